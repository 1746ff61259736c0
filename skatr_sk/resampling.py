"""Fields on other grids: exact means over larger cells, straight lines between smaller ones.

Along each axis the cells of a field, and those that are wanted, lie between edges in one
coordinate: comoving Mpc, or what redshifts make of it. A wanted cell that is no smaller than those
that it covers is the mean over them, each weighted by its overlap, so that the mean over the volume
stays; a smaller one is interpolated between the centres of cells, and is as the outermost beyond
them. On uneven grids one axis may have cells of both kinds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from skatr_sk._checks import Integer, Problems
from skatr_sk.fields import ArrayFields, Fields
from skatr_sk.grid import SAME_SIZE, Grid, depths_of, redshifts_of
from skatr_sk.lazy_fields import DerivedFields

__all__ = ["Axis", "Resampling", "block_means", "edges_of", "onto", "overlaps", "resampled"]

_SAME = 1e-6  # of a cell: edges that are nearer are one
_EDGES = ("given", "wanted")
_AT_ONCE = 4_000_000  # values of fields in memory that are resampled at a time


def block_means(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Means of fields (n, *field_shape), in float64, over blocks of cells that divide each axis."""
    # Every axis becomes two, blocks and cells within a block; the latter are averaged away.
    pairs = zip(values.shape[1:], sizes, strict=True)
    split = [n for cells, size in pairs for n in (cells // size, size)]
    within = tuple(range(2, 2 * len(sizes) + 1, 2))
    means: np.ndarray = values.reshape(len(values), *split).mean(axis=within, dtype=np.float64)
    return means


def edges_of(centres: Any) -> np.ndarray:
    """Edges of cells by their rising centres: midway, and as far outside as inside at the ends."""
    centres = np.asarray(centres, dtype=np.float64)
    middle = (centres[1:] + centres[:-1]) / 2
    ends = 2 * centres[[0, -1]] - middle[[0, -1]]
    return np.concatenate([ends[:1], middle, ends[1:]])


@dataclass(frozen=True)
class Axis:
    """How cells along one axis become others: those from `first` to before `last`.

    They are averaged in blocks of `block`, or lie between the edges `given` and become cells
    between the edges `wanted`.
    """

    first: int
    last: int
    block: int = 1
    given: tuple[float, ...] = ()
    wanted: tuple[float, ...] = ()

    @classmethod
    def between(cls, given: np.ndarray, wanted: np.ndarray) -> Axis | None:
        """From cells between given edges to cells between wanted ones; None where these are beyond.

        The centre of each wanted cell must lie within the given ones: nothing is extrapolated.
        """
        near = _SAME * float(np.diff(given).min())
        centres = (wanted[1:] + wanted[:-1]) / 2
        beyond = centres[0] < given[0] - near or centres[-1] > given[-1] + near
        return None if beyond else cls._within(given, wanted)

    @classmethod
    def _within(cls, given: np.ndarray, wanted: np.ndarray) -> Axis:
        near = _SAME * float(np.diff(given).min())
        places = np.abs(np.subtract.outer(wanted, given)).argmin(axis=1)
        blocks = np.diff(places)
        meet = (np.abs(given[places] - wanted) <= near).all() and blocks[0] > 0
        if meet and (blocks == blocks[0]).all():
            return cls(int(places[0]), int(places[-1]), int(blocks[0]))
        # One cell more on each side, for the lines between centres.
        first = max(0, int(np.searchsorted(given, wanted[0], "right")) - 2)
        last = min(len(given) - 1, int(np.searchsorted(given, wanted[-1])) + 1)
        cut = given[first : last + 1]
        return cls(first, last, 1, tuple(cut.tolist()), tuple(wanted.tolist()))

    @classmethod
    def even(cls, n: int, wanted: int) -> Axis:
        """From n cells to as many as are wanted of the same volume."""
        return cls._within(np.arange(n + 1.0) * wanted, np.arange(wanted + 1.0) * n)

    @classmethod
    def of_sizes(cls, n: int, size: float, n_wanted: int, wanted: float) -> Axis | None:
        """From n cells of a size to others of a size, from the same edge on; None beyond the last.

        What differs by a hundredth is rounding: it becomes whole blocks, or the same volume.
        """
        block = round(wanted / size)
        if block and abs(wanted / size / block - 1) <= SAME_SIZE and n_wanted * block <= n:
            return cls(0, n_wanted * block, block)
        if abs(n * size - n_wanted * wanted) <= SAME_SIZE * n * size:
            return cls.even(n, n_wanted)
        return (
            None
            if n * size < n_wanted * wanted
            else cls.between(size * np.arange(n + 1), wanted * np.arange(n_wanted + 1))
        )

    def fits(self, n: int) -> bool:
        """Whether it is one of `n` cells, whatever it was made of."""
        numbers = {"first": Integer(0, n - 1), "last": Integer(1, n), "block": Integer(1, n)}
        if any(kind.fault(getattr(self, name)) for name, kind in numbers.items()):
            return False
        n_given = self.last - self.first
        if n_given < 1 or not self.wanted:
            return n_given > 0 and n_given % self.block == 0 and not self.given
        given, wanted = np.array(self.given), np.array(self.wanted)
        if self.block > 1 or len(given) != n_given + 1 or len(wanted) < 2:
            return False
        if not all(
            np.isfinite(each).all() and (np.diff(each) > 0).all() for each in (given, wanted)
        ):
            return False
        return self.between(given, wanted) is not None

    @property
    def places(self) -> np.ndarray:
        """Where the edges of what it makes lie, counted in cells of what it is made of."""
        if not self.wanted:
            return np.arange(self.first, self.last + 1.0, self.block)
        return np.interp(self.wanted, self.given, np.arange(self.first, self.last + 1.0))

    @property
    def n_cells(self) -> int:
        """Cells that it makes."""
        return (len(self.wanted) or (self.last - self.first) // self.block + 1) - 1


def overlaps(given: np.ndarray, wanted: np.ndarray) -> sparse.csr_array:
    """Share of each given cell in the mean over each wanted one, by the edges of both.

    The shape is (n_wanted, n_given), and rows sum to 1.

    >>> overlaps(np.array([0, 2, 4, 6]), np.array([0, 3, 6])).toarray().round(2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    edges = np.unique(np.concatenate([given, wanted]))
    inside = edges >= max(given[0], wanted[0])
    edges = edges[inside & (edges <= min(given[-1], wanted[-1]))]
    middle = (edges[1:] + edges[:-1]) / 2
    rows, columns = (np.searchsorted(of, middle) - 1 for of in (wanted, given))
    shape = len(wanted) - 1, len(given) - 1
    shares = np.diff(edges)
    shares = shares / np.bincount(rows, shares, shape[0])[rows]
    return sparse.csr_array((shares, (rows, columns)), shape=shape)


@functools.lru_cache(maxsize=64)
def _weights(axis: Axis) -> sparse.csr_array:
    """Share of each given cell in each wanted one, of shape (n_wanted, n_given); rows sum to 1."""
    given, wanted = np.array(axis.given), np.array(axis.wanted)
    means = overlaps(given, wanted)
    larger = np.diff(wanted) >= (1 - _SAME) * (means @ np.diff(given))  # than those that it covers
    lines = _between_centres(given, wanted)
    chosen = (sparse.diags_array(1.0 * of) for of in (larger, ~larger))
    return sparse.csr_array(next(chosen) @ means + next(chosen) @ lines)


def _between_centres(given: np.ndarray, wanted: np.ndarray) -> sparse.csr_array:
    """Share of each given cell in what lies on a line between the centres of two."""
    shape = len(wanted) - 1, len(given) - 1
    centres, asked = ((edges[1:] + edges[:-1]) / 2 for edges in (given, wanted))
    place = np.interp(asked, centres, np.arange(shape[1]))
    low = np.minimum(place.astype(np.int64), max(shape[1] - 2, 0))
    beyond = np.minimum(low + 1, shape[1] - 1)
    rows = np.arange(shape[0])
    shares = np.concatenate([1 - (place - low), place - low])
    index = np.tile(rows, 2), np.concatenate([low, beyond])
    return sparse.csr_array((shares, index), shape=shape)


@dataclass(frozen=True)
class Resampling:
    """How fields of one shape become fields of another, axis by axis."""

    axes: tuple[Axis, ...]

    @property
    def field_shape(self) -> tuple[int, ...]:
        """Shape of what it makes."""
        return tuple(axis.n_cells for axis in self.axes)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Resample fields (n, *field_shape); float64, unless nothing but cells at an end go."""
        values = values[(slice(None), *(slice(axis.first, axis.last) for axis in self.axes))]
        blocks = [axis.block for axis in self.axes]
        if max(blocks) > 1:
            values = block_means(values, blocks)
        left = [k for k, axis in enumerate(self.axes, 1) if axis.wanted]
        # First where it shrinks the most.
        for k in sorted(left, key=lambda k: self.axes[k - 1].n_cells / values.shape[k]):
            first = np.moveaxis(values, k, 0)
            made = _weights(self.axes[k - 1]) @ first.reshape(len(first), -1).astype(np.float64)
            values = np.moveaxis(made.reshape(-1, *first.shape[1:]), 0, k)
        return values

    def grid_of(self, grid: Grid, field_shape: Sequence[int]) -> Grid:
        """Grid of what it makes of fields of a shape on a grid."""
        sizes: list[float | None] = []
        for axis, size in zip(self.axes, grid.cell_size, strict=True):
            steps = np.diff(axis.places)
            even = np.ptp(steps) <= SAME_SIZE * steps.mean()
            sizes.append(size * float(steps.mean()) if size is not None and even else None)
        places, redshifts = self.axes[-1].places, grid.redshifts
        if redshifts is not None and len(redshifts) > 1:
            edges = edges_of(depths_of(redshifts))
            centres = np.interp((places[1:] + places[:-1]) / 2, np.arange(len(edges)), edges)
            redshifts = tuple(redshifts_of(centres).tolist())
        if grid.cell_size[-1] is None:
            return Grid(tuple(sizes), redshifts, grid.origin if places[0] == 0 else None)
        start = grid.start + grid.cell_size[-1] * float(places[0])
        return replace(grid, cell_size=tuple(sizes), redshifts=redshifts, start=start)

    def check(self, problems: Problems, field_shape: Sequence[int]) -> None:
        """Note what cannot be done to fields of a shape."""
        if len(self.axes) != len(field_shape):
            problems.add("axes", f"those of fields of shape {tuple(field_shape)}", len(self.axes))
            return
        for number, (axis, n) in enumerate(zip(self.axes, field_shape, strict=True)):
            if not axis.fits(n):
                problems.add(f"axis {number}", f"one of {n} cells", axis)

    def packed(self) -> list[dict[str, Any]]:
        """Return each axis as plain numbers and arrays, as files hold them."""
        return [
            vars(axis) | {name: np.array(getattr(axis, name)) for name in _EDGES}
            for axis in self.axes
        ]

    @classmethod
    def of_packed(cls, packed: Sequence[Any]) -> Resampling:
        """Return what :meth:`packed` was of, to be checked; a ValueError says what cannot be."""
        axes = []
        for found in packed:
            edges = {name: found[name] for name in _EDGES}
            if not all(
                isinstance(v, np.ndarray) and v.dtype == float and v.ndim == 1
                for v in edges.values()
            ):
                raise ValueError("axes: expected edges as arrays of float64")
            axes.append(Axis(**found | {k: tuple(v.tolist()) for k, v in edges.items()}))
        return cls(tuple(axes))

    def keeps(self, field_shape: Sequence[int]) -> bool:
        """Whether fields of a shape stay as they are."""
        return self.axes == tuple(Axis(0, n) for n in field_shape)


def resampled(fields: Fields, resampling: Resampling, grid: Grid | None = None) -> Fields:
    """Fields on another grid: at once where they are in memory, else when they are read.

    In float32, or float64 where they are in this. The `grid` is what they are said to be on; by
    default it follows from that of the fields.
    """
    if grid is None and fields.grid is not None:
        grid = resampling.grid_of(fields.grid, fields.shape[1:])
    dtype = np.result_type(fields.dtype, np.float32)
    if not fields.in_memory:
        return DerivedFields(fields, resampling, resampling.field_shape, dtype, grid)
    n = fields.shape[0]
    values = np.empty((n, *resampling.field_shape), dtype)
    step = max(1, _AT_ONCE // math.prod(fields.shape[1:]))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        values[rows] = resampling(fields.read(rows))
    return ArrayFields(values, grid)


# Onto a given grid --------------------------------------------------------------------------------


def onto(
    grid: Grid | None, field_shape: Sequence[int], wanted: Grid, shape: Sequence[int]
) -> tuple[Resampling, list[str]]:
    """Bring fields onto a grid that is wanted, of a shape; say what was assumed of their own.

    What is larger is cut: the sky at its end, the line of sight at both. A ValueError says in
    what the fields do not reach as far. Where they do not know their grid, the sky is as wide as
    the wanted one, the nearest slice at the same redshift, and cells are cubes; where these would
    not be deep enough, fields span the same volume. Where cells are as wide as the wanted ones and
    no cubes, nothing says what other slices are: a ValueError does.
    """
    rank = len(shape)
    if len(field_shape) != rank:
        raise ValueError(f"{len(field_shape)} axes instead of {rank}")
    sizes = list(grid.cell_size if grid is not None else [None] * rank)
    axes: list[Axis] = []
    guessed: list[str] = []
    n_sky = rank if rank == 2 else rank - 1
    for k in range(n_sky):
        size, of = sizes[k], wanted.cell_size[k]
        if size is None or of is None:
            axes.append(Axis.even(field_shape[k], shape[k]))
            sizes[k] = None if of is None else of * shape[k] / field_shape[k]
            width = "" if of is None else f", {of * shape[k]:.4g} Mpc"
            guessed = [f"the sky is as wide{width}"]
            continue
        axis = Axis.of_sizes(field_shape[k], size, shape[k], of)
        if axis is None:
            widths = f"{field_shape[k] * size:.4g} Mpc, not {shape[k] * of:.4g}"
            raise ValueError(f"the sky is {widths} wide on axis {k}")
        axes.append(axis)
    if n_sky < rank:
        square = rank == 3 and _same_size(sizes[0], sizes[1])
        cube = sizes[0] if square else None
        own = Grid((sizes[-1],)) if grid is None else grid
        axis, more = _along_sight(own, field_shape[-1], wanted, shape[-1], cube)
        axes.append(axis)
        guessed += more
    return Resampling(tuple(axes)), guessed


def _along_sight(
    own: Grid, n: int, wanted: Grid, n_wanted: int, cube: float | None
) -> tuple[Axis, list[str]]:
    """Line of sight of :func:`onto`, where a cell as deep as wide would be a `cube` of a size."""
    size, of = own.cell_size[-1], wanted.cell_size[-1]
    known = own.redshifts is not None and wanted.redshifts is not None
    edges = [edges_of(depths_of(g.redshifts)) for g in (own, wanted)] if known else []
    width = wanted.cell_size[0]
    as_wide = size is None and _same_size(cube, width)
    # Of such cells the depth is likely to be the wanted one, too, but there are other slices.
    unclear = as_wide and not (_same_size(of, width) and n >= n_wanted)
    if known and (of is None or (size is None and (unclear or not own.is_even))):
        axis = Axis.between(*edges)
        if axis is None:
            raise ValueError("its slices do not reach as near, or as far")
        return axis, []
    if unclear and n != n_wanted:
        raise ValueError(f"cells are as wide, and nothing says where {n} slices lie")
    placed = known or (own.origin is not None and wanted.origin is not None)
    guessed = [] if placed else ["the nearest slice is at the same redshift"]
    mine = cube if size is None else size
    if of is None or mine is None or unclear:
        return Axis.even(n, n_wanted), [*guessed, _same_depth(n, n_wanted, of)]
    # Of the wanted near edge, in Mpc behind its own.
    offset = 0.0
    if own.differs_in_start(wanted):
        offset = wanted.start - own.start
        if not own.is_measured_from(wanted):
            if not known:
                raise ValueError("it begins at another redshift")
            place = np.interp(edges[1][0], edges[0], np.arange(n + 1), left=-1)
            offset = mine * float(place)
        if offset < 0:
            raise ValueError("it begins farther away")
    if offset:
        axis = Axis.between(mine * np.arange(n + 1) - offset, of * np.arange(n_wanted + 1))
    else:
        axis = Axis.of_sizes(n, mine, n_wanted, of)
    if axis is not None:
        cubes = [f"cells are cubes of {mine:.3g} Mpc"] if size is None else []
        if cubes and n * mine > (n_wanted + 1) * of:
            cubes = [f"{cubes[0]}, of which {n_wanted * of / mine:.0f} of {n} slices reach as far"]
        return axis, guessed + cubes
    if size is None and not offset:
        why = f"{n} cubes of {mine:.3g} Mpc would not be as deep"
        return Axis.even(n, n_wanted), [*guessed, f"{_same_depth(n, n_wanted, of)}, for {why}"]
    raise ValueError(f"it is {n * mine - offset:.5g} Mpc deep, not {n_wanted * of:.5g}")


def _same_size(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= SAME_SIZE * other


def _same_depth(n: int, n_wanted: int, of: float | None) -> str:
    """Say that n cells are as deep as those that are wanted, and what that makes of one."""
    each = "" if of is None else f", {n_wanted * of:.4g} Mpc in slices of {n_wanted * of / n:.3g}"
    return f"the depth is the same{each}"
