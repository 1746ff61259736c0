"""Which patches are seen: unions of blocks that are hidden, and regions that are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from skatr_sk._checks import Integer, Rule, check_options

__all__ = [
    "LONG",
    "SHORT",
    "BlockMask",
    "sample_masks",
    "sample_patches",
    "sample_regions",
    "whole_columns",
]


def _range_up_to(most: float) -> Rule:
    """A pair (low, high), 0 < low <= high <= `most`."""

    def holds(value: Any) -> bool:
        pair = isinstance(value, Sequence) and len(value) == 2
        numbers = pair and all(isinstance(end, Real) for end in value)
        return numbers and 0 < value[0] <= value[1] <= most

    return Rule(holds, f"a range (low, high) with 0 < low <= high <= {most}")


@dataclass(frozen=True)
class BlockMask:
    """A family of masks: the union of several blocks of patches is hidden.

    Parameters
    ----------
    n_blocks : int
        Blocks in the union.
    scale : (float, float)
        Range of the share of the sky that one block covers; of the line of sight where there is
        no sky, or a single patch of it.
    aspect : (float, float)
        Range of a block's width over its height, relative to the sky's.
    depth : (float, float)
        Range of the share of the line of sight that a block spans; (1, 1) is all of it. Only
        light cones have both a sky and a line of sight; elsewhere it has no effect.

    Examples
    --------
    >>> BlockMask(n_blocks=4, scale=(0.2, 0.3))
    BlockMask(n_blocks=4, scale=(0.2, 0.3), aspect=(0.75, 1.5), depth=(1.0, 1.0))
    """

    n_blocks: int
    scale: tuple[float, float]
    aspect: tuple[float, float] = (0.75, 1.5)
    depth: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        ranges = {"scale": 1.0, "aspect": math.inf, "depth": 1.0}
        table = {name: _range_up_to(most) for name, most in ranges.items()}
        check_options("BlockMask", {"n_blocks": Integer(1), **table}, vars(self))
        for name in table:  # lists compare as tuples do
            object.__setattr__(self, name, tuple(getattr(self, name)))


SHORT = BlockMask(n_blocks=8, scale=(0.1, 0.2))
LONG = BlockMask(n_blocks=2, scale=(0.6, 0.8))


def _block_sides(
    n: int, grid_shape: Sequence[int], mask: BlockMask, generator: torch.Generator
) -> Tensor:
    """Sides of the blocks in patches, of shape (n, n_blocks, rank)."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, mask.n_blocks, generator=generator)

    scale = uniform(*mask.scale)
    stretch = (uniform(*map(math.log, mask.aspect)) / 2).exp()
    depth = uniform(*mask.depth)
    sky = [scale.sqrt() / stretch, scale.sqrt() * stretch]
    shares = {1: [scale], 2: sky, 3: [*sky, depth]}[len(grid_shape)]
    size = torch.tensor(grid_shape, dtype=torch.float32)
    return (torch.stack(shares, dim=-1) * size).round().clamp(min=torch.ones(()), max=size)


def sample_masks(
    n: int,
    grid_shape: Sequence[int],
    mask: BlockMask,
    *,
    min_context: float = 0.1,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw the visible and the hidden patches of ``n`` fields, all in one vectorised step.

    In each field a union of blocks is hidden, and the rest of its patches is the context (V-JEPA,
    arXiv:2404.08471, section 3.2). All fields of a batch must hide the same number of patches: that
    of the first field's union, but at most ``1 - min_context`` of the grid. The unions of the other
    fields grow or shrink at their rims until they have that size. No draw is thrown away, and no
    context is ever empty.

    `grid_shape` counts the patches on each axis: of the line of sight, of the sky, or of the sky
    and the line of sight. Returned are the context's and the hidden indices, (n, n_context) and
    (n, n_target) of int64: sorted, in C order, each patch exactly once.
    """
    if math.prod(grid_shape[:-1]) == 1:
        # Without a sky to hide there is the line of sight: a cone of one column is a signal.
        grid_shape = grid_shape[-1:]
    rank = len(grid_shape)
    sides = _block_sides(n, grid_shape, mask, generator)
    size = torch.tensor(grid_shape, dtype=torch.float32)
    share = torch.rand(sides.shape, generator=generator)
    first = (share * (size - sides + 1)).floor().minimum(size - sides)  # patch of each block
    # Blocks that span the whole line of sight make every slice alike: draw one slice of columns.
    drawn_rank = 2 if rank == 3 and mask.depth == (1.0, 1.0) else rank
    # The distance of a patch from a block, in patches and negative inside it, is the largest of the
    # distances along the axes; that from the union is the smallest over the blocks.
    outside = torch.full((), -math.inf)
    for axis in range(drawn_rank):
        centre = first[..., axis] + (sides[..., axis] - 1) / 2
        coordinate = torch.arange(grid_shape[axis], dtype=torch.float32)
        distance = (coordinate - centre[..., None]).abs() - sides[..., axis, None] / 2
        spread = [1] * drawn_rank
        spread[axis] = grid_shape[axis]
        outside = torch.maximum(outside, distance.reshape(n, mask.n_blocks, *spread))
    distance = outside.amin(dim=1).reshape(n, -1)
    n_drawn = distance.shape[1]
    most = max(1, math.floor((1 - min_context) * n_drawn))
    n_hidden = min(int((distance[0] < 0).sum()), most, n_drawn - 1)
    # Distances are multiples of a half: noise below that only settles ties.
    order = (distance + 0.4 * torch.rand(distance.shape, generator=generator)).argsort(dim=1)
    context = order[:, n_hidden:].sort(dim=1).values
    target = order[:, :n_hidden].sort(dim=1).values
    if drawn_rank < rank:
        return whole_columns(context, grid_shape[-1]), whole_columns(target, grid_shape[-1])
    return context, target


def whole_columns(columns: Tensor, n_slices: int) -> Tensor:
    """Indices of all patches along the line of sight, from indices of columns on the sky."""
    along = torch.arange(n_slices, device=columns.device)
    return (columns[..., None] * n_slices + along).flatten(1)


def sample_regions(
    n: int, grid_shape: Sequence[int], *, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw patches of two disjoint regions of the sky for each of ``n`` fields.

    A line of random direction parts the sky in halves. In each half some columns of patches along
    the whole line of sight are chosen at random: a step costs as much as these hold, not as much as
    the field. Without a sky, the two regions are random choices of patches along the line of sight.

    Each region has a `share` of the patches, at most a half; returned are its sorted indices,
    (n, n_region) of int64 in C order.
    """
    sky, grid_shape = _sky_of(grid_shape)
    positions = torch.cartesian_prod(*(torch.arange(float(size)) / size for size in sky))
    noise = torch.rand((n, math.prod(sky)), generator=generator)
    if len(sky) == 1:
        along = noise
    else:
        angle = 2 * math.pi * torch.rand((n, 1), generator=generator)
        directions = torch.cat([angle.cos(), angle.sin()], dim=1)
        along = directions @ positions.T + noise / (2 * max(sky))  # a ragged line
    order = along.argsort(dim=1)
    n_half = order.shape[1] // 2
    n_kept = min(max(1, round(share * order.shape[1])), n_half)

    halves = order[:, :n_half], order[:, -n_half:]
    one, two = (_some_columns(half, n_kept, grid_shape, generator) for half in halves)
    return one, two


def sample_patches(
    n: int, grid_shape: Sequence[int], *, share: float, generator: torch.Generator
) -> Tensor:
    """Draw some patches of each of ``n`` fields: whole columns, at random places of the sky.

    Without a sky, patches at random along the line of sight. A `share` in (0, 1] of the patches is
    kept, at least one column; returned are sorted indices, (n, n_kept) of int64 in C order.
    """
    sky, grid_shape = _sky_of(grid_shape)
    columns = torch.arange(math.prod(sky)).expand(n, -1)
    n_kept = max(1, round(share * columns.shape[1]))
    return _some_columns(columns, n_kept, grid_shape, generator)


def _sky_of(grid_shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes of the columns, and all axes; without a sky both are the line of sight."""
    grid = tuple(grid_shape)
    if len(grid) == 1 or math.prod(grid[:2]) == 1:
        return grid[-1:], grid[-1:]
    return grid[:2], grid


def _some_columns(
    columns: Tensor, n_kept: int, grid_shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Choose some of the columns (n, n_columns) of each field at random, and return patches."""
    chosen = torch.rand(columns.shape, generator=generator).argsort(dim=1)[:, :n_kept]
    kept = columns.gather(1, chosen).sort(dim=1).values
    return whole_columns(kept, grid_shape[-1]) if len(grid_shape) == 3 else kept
