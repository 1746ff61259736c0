"""A trained encoder on another grid: more or fewer patches, other cells, patches of another size.

The position code counts in patches of the training, so that a patch of the same physical size has
the same code at the same physical place, and one of another size the code of its centre. What was
learned of the voxels of a patch serves for other cells, too: these are averaged to the voxels, as a
coarser simulation would have done it, or the embedding is spread over them and trained on (Ore,
Heneka, Plehn, ML4Jets 2024: "Adapting to full resolution").
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from skatr_sk._checks import EachAxis, Instance, Integer, Kind, Problems, Real, check_options
from skatr_sk.grid import SAME_SIZE, Grid, depths_of, redshifts_of
from skatr_sk.resampling import edges_of
from skatr_sk.summaries.embedding import voxel_layer
from skatr_sk.summaries.patch_size import patch_size_for
from skatr_sk.summaries.patches import along_axis, shares_of
from skatr_sk.summaries.pooling import count_slices
from skatr_sk.summaries.vit import PositionCode
from skatr_sk.summaries.weights import FrozenEncoder

__all__ = ["adapted", "with_own_embedding"]

_LOGGER = logging.getLogger("skatr_sk.summaries")


_EACH = {
    "field_shape": EachAxis(Integer(1), shared=False),
    "patch_size": EachAxis(Integer(1), optional=True),
    "cell_size": EachAxis(Real("(0, inf)"), optional=True),
    "offset": EachAxis(Real("(-inf, inf)"), optional=True),
}
_TABLE: dict[str, Kind] = {**_EACH, "grid": Instance(Grid, expected="a Grid", optional=True)}


def adapted(
    frozen: FrozenEncoder,
    field_shape: Any,
    *,
    grid: Any = None,
    patch_size: Any = None,
    cell_size: Any = None,
    offset: Any = None,
) -> FrozenEncoder:
    """Return an encoder for fields of another shape, its weights a copy; nothing is trained.

    The parameters are those of :meth:`~skatr_sk.SKATRTransformer.adapted_to`, unchecked.
    """
    old = frozen.architecture
    owner, problems = "SKATRTransformer.adapted_to", Problems("SKATRTransformer.adapted_to")
    given = dict(field_shape=field_shape, patch_size=patch_size, cell_size=cell_size, offset=offset)
    check_options(owner, _TABLE, given | {"grid": grid})
    rank = len(old.field_shape)
    field_shape, patch_size, cell_size, offset = (
        None if value is None else _EACH[name].of_axes(name, value, rank, problems)
        for name, value in given.items()
    )
    problems.raise_if_any()
    shape = tuple(map(int, field_shape))
    if grid is not None:
        try:
            ratios, shifts = _between(frozen.grid, grid, shape)
        except ValueError as reason:
            problems.add("grid", f"one that the weights can be compared with ({reason})", str(grid))
            problems.raise_if_any()
        cell_size = ratios if cell_size is None else cell_size
        offset = shifts if offset is None else offset
    known = (1.0 if cell_size is None else cell_size), (0.0 if offset is None else offset)
    cells, first = (np.broadcast_to(each, rank).astype(float) for each in known)
    old_patch = np.array(old.patch_size)
    same = old_patch / cells
    if patch_size is None:
        patch_size = np.round(same).astype(int)
        if (abs(same - patch_size) > 1e-6 * same).any() or (patch_size < 1).any():
            expected = "one for each axis, for the patches of the weights are no whole numbers of "
            found = f"None with cell_size={cell_size!r}, which makes them {same.tolist()}"
            problems.add("patch_size", f"{expected}cells", found)
            problems.raise_if_any()
    patch = patch_size_for(shape, patch_size)
    # How far apart the centres of the new patches are, and where the first is, in patches of the
    # old field; rounded, for three thirds are one.
    step = np.round(patch * cells / old_patch, 9)
    start = np.round(first / old_patch, 9) + (step - 1) / 2
    was = old.positions or tuple((0.0, float(n > 1)) for n in old.grid_shape)
    patches = tuple(n // p for n, p in zip(shape, patch, strict=True))
    for axis, (n, (_, unit)) in enumerate(zip(patches, was, strict=True)):
        if n > 1 and not unit:
            expected = f"a single patch along axis {axis}, as in the training, whose code tells no "
            problems.add("field_shape", f"{expected}more apart there", shape)
    problems.raise_if_any()
    positions = tuple(
        (float(origin + unit * at), float(unit * far))
        for (origin, unit), at, far in zip(was, start, step, strict=True)
    )
    voxels = old.voxels or old.patch_size
    architecture = replace(
        old,
        field_shape=shape,
        patch_size=patch,
        voxels=None if voxels == patch else voxels,
        positions=None if positions == tuple((0.0, float(n > 1)) for n in patches) else positions,
    )
    architecture.check_attention(problems)
    problems.raise_if_any()
    encoder = copy.deepcopy(frozen.encoder)
    code = PositionCode(patches, old.embed_dim, positions=architecture.positions)
    code.load_state_dict(encoder.position.state_dict())
    encoder.position, encoder.n_slices = code.requires_grad_(False).eval(), count_slices(patches)
    # Summaries of the same line of sight in patches of the same size are distributed alike.
    sight = rank != 3 or (positions[-1], patches[-1]) == (was[-1], old.grid_shape[-1])
    new: dict[str, Any] = {"architecture": architecture, "encoder": encoder}
    if not (sight and (step == 1).all()):
        message = "%s: another line of sight or size of patches; whitening and novelty are left out"
        _LOGGER.info(message, owner)
        new |= {"whitening": None, "seen": None}
    if frozen.grid is not None:
        new["grid"] = _grid_on(frozen.grid, shape, cells, first)
    return replace(frozen, **new)


def _between(
    own: Grid | None, new: Grid, shape: tuple[int, ...]
) -> tuple[list[float], list[float]]:
    """Cell sizes and near edges of a new grid, for fields of a shape, in cells of one's own.

    A ValueError says why they are not known.
    """
    if own is None:
        raise ValueError("which do not know their own: give cell_size and offset")
    if not new.fits(shape) or len(own.cell_size) != len(shape):
        raise ValueError(f"and fits fields of {shape}")
    ratios = []
    for mine, its in zip(own.cell_size, new.cell_size, strict=True):
        ratio = 1.0 if mine is None or its is None else its / mine
        whole = float(max(1, round(max(ratio, 1 / ratio)))) ** (1 if ratio > 1 else -1)
        ratios.append(whole if abs(ratio / whole - 1) <= SAME_SIZE else ratio)
    shifts = [0.0] * len(shape)
    if own.differs_in_start(new):
        size, edge = own.cell_size[-1], new.nearest
        if own.is_measured_from(new) and size is not None:
            shifts[-1] = (new.start - own.start) / size
        elif own.redshifts is not None and edge is not None:
            edges = edges_of(depths_of(own.redshifts))
            shifts[-1] = float(np.interp(depths_of(edge), edges, np.arange(len(edges)), left=-1))
            if shifts[-1] < 0:
                raise ValueError(f"but it begins nearer, at redshift {edge:.4g}: give offset")
    return ratios, shifts


def _grid_on(grid: Grid, shape: tuple[int, ...], cells: np.ndarray, first: np.ndarray) -> Grid:
    """Grid of fields of a shape, from the sizes and near edges of their cells in cells of another.

    Redshifts beyond those that are known are not extrapolated.
    """
    sizes = tuple(size and size * c for size, c in zip(grid.cell_size, cells.tolist(), strict=True))
    size, redshifts = grid.cell_size[-1], None
    if grid.redshifts is not None and len(grid.redshifts) > 1:
        edges = edges_of(depths_of(grid.redshifts))
        places = first[-1] + (np.arange(shape[-1]) + 0.5) * cells[-1]
        if 0 <= places[0] and places[-1] <= len(edges) - 1:
            depths = np.interp(places, np.arange(len(edges)), edges)
            redshifts = tuple(redshifts_of(depths).tolist())
    if size is None:
        return Grid(sizes, redshifts, grid.origin if first[-1] == 0 else None)
    return replace(
        grid, cell_size=sizes, redshifts=redshifts, start=grid.start + float(first[-1]) * size
    )


def with_own_embedding(frozen: FrozenEncoder) -> FrozenEncoder:
    """Return an encoder that embeds each cell of its patches by itself, to be trained on.

    Each weight of a voxel is spread over the cells that are averaged to it: a linear embedding
    then gives the same token as before, but for the curvature of the scaling.
    """
    old = frozen.architecture
    if old.voxels is None:
        return frozen
    encoder = copy.deepcopy(frozen.encoder)
    layer = voxel_layer(encoder.embed)
    weight = layer.weight.detach().unflatten(1, old.voxels).double()
    for axis, (n, cells) in enumerate(zip(old.voxels, old.patch_size, strict=True), start=1):
        weight = along_axis(weight, axis, shares_of(cells, n))
    layer.weight = nn.Parameter(weight.flatten(1).float(), requires_grad=False)
    layer.in_features = layer.weight.shape[1]
    if (means := encoder.slice_means) is not None:
        along = shares_of(old.patch_size[-1], old.voxels[-1])
        spread = along_axis(means.embed.weight.detach().double(), 1, along)
        means.embed.weight = nn.Parameter(spread.float(), requires_grad=False)
        means.depth = means.embed.in_features = spread.shape[1]
    return replace(frozen, architecture=replace(old, voxels=None), encoder=encoder)
