"""save_lightcones: light cones into the one file that is read fastest."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from skatr_sk._checks import (
    CELL_SIZE,
    Bounds,
    Choice,
    Problems,
    Rule,
    is_path,
    names_of,
    warn,
    warn_no_effect,
)
from skatr_sk._files import write_whole
from skatr_sk.fields import Fields, as_parameters, check_numbers, digest_rows
from skatr_sk.grid import Grid
from skatr_sk.lazy_fields import LazyFields
from skatr_sk.lightcones.digests import create_index, pack, seal
from skatr_sk.lightcones.formats.metadata import GRID_REDSHIFTS, Fault, name_parameters, take_seeds
from skatr_sk.lightcones.guarded import write_hdf5
from skatr_sk.lightcones.labelled import from_labelled, is_labelled
from skatr_sk.lightcones.sources import BRIGHTNESS, float_type
from skatr_sk.parameters import check_order
from skatr_sk.training.progress import watched

__all__ = ["FORMAT", "Piece", "Stack", "save_lightcones", "say_if_replaced"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
FORMAT = 1
_LABELS = ("target", "target_names", "target_units", "target_bounds", "redshifts", "seeds")
_WRITTEN_BYTES = 2**26  # of float64 that are written at a time
_SHARED_CHUNK = 2**16  # bytes


def save_lightcones(
    path: str | os.PathLike[str],
    X: Any,
    y: ArrayLike | None = None,
    *,
    target_names: Sequence[str] | None = None,
    target_units: Sequence[str] | None = None,
    target_bounds: ArrayLike | None = None,
    redshifts: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
    cell_size: Any = None,
    dtype: DTypeLike | None = None,
    compression: str = "none",
    verbose: int = 0,
) -> None:
    """Write light cones into one HDF5 file with an index, a bounded number at a time.

    Each cone is a chunk of its own, so that shuffled reading costs no more than reading in order;
    short fields share one. The file carries a digest of each row, so that
    :func:`~skatr_sk.open_lightcones` knows its rows apart without reading them.

    Parameters
    ----------
    path : path
        Replaced whole or not at all; its folder must exist. A link is followed, and what is
        replaced keeps its mode.
    X : array-like or LightconeArray of shape (n, ...), `~sklearn.utils.Bunch`, or DataArray
        In mK, or a tensor, or a quantity of astropy in kelvin. What
        :func:`~skatr_sk.open_lightcones` and :func:`~skatr_sk.load_lightcones` return brings its
        labels, redshifts, seeds, cell size and prior box along, and so do what
        :func:`~skatr_sk.lightcones.to_xarray` makes of them, :class:`~skatr_sk.SimulatedLightcones`
        and what is derived from these; the parameters below go before.
    y : array-like of shape (n, n_parameters) or (n,), optional
        NaN is a parameter that is not known. A DataFrame or Series brings its names along.
    target_names, target_units : sequence of str, optional
        Of the parameters; default are the names of `y`, or those of the paper's six where there are
        six of their values, in whichever order.
    target_bounds : array-like of shape (n_parameters, 2), optional
        Prior box; a row (-inf, inf) is a parameter without bounds. Default is the one that `X`
        brings along, where it is of the same labels, within float32. Simulated light cones bring
        theirs where their parameters were drawn in one.
    redshifts : array-like of shape (n, n_z) or (n_z,), optional
        Default are those of the rows of `X`, where it is :class:`~skatr_sk.SimulatedLightcones`, or
        part of them; otherwise the file keeps those of its grid, which are of a typical cone.
    seeds : array-like of whole numbers, shape (n,), optional
        Of the initial conditions.
    cell_size : float, or one for each axis of a field, or quantity of astropy, optional
        Comoving size of a cell in Mpc; default is that of the grid of `X`, where it has one.
    dtype : dtype, optional
        Of the stored cells; default is that of `X`. float16 halves the file at a precision of
        0.05 %.
    compression : {"none", "gzip", "lzf"}, default="none"
        "gzip" halves a file of 21cmFAST's cones in float16, and reads some four times slower.
    verbose : int, default=0
        1 shows a progress bar.

    Raises
    ------
    ValueError
        When shapes do not agree, or a value cannot be stored in `dtype`.
    OSError
        When the file cannot be written: without room (``errno`` is ENOSPC, EDQUOT or EFBIG) it
        says how many bytes are missing. What was there before stays as it was.

    Warns
    -----
    UserWarning
        When a file is replaced.

    Examples
    --------
    >>> import os, tempfile
    >>> from skatr_sk import load_lightcones, open_lightcones, save_lightcones
    >>> cones = load_lightcones()
    >>> path = os.path.join(tempfile.mkdtemp(), "cones.h5")
    >>> save_lightcones(path, cones.data[:8], cones.target[:8], seeds=cones.seeds[:8])
    >>> open_lightcones(path).data
    LightconeArray(shape=(8, 14, 14, 90), dtype=float32, 1 file)
    """
    labels: dict[str, Any] = dict(target=y, target_names=target_names, target_units=target_units)
    labels |= dict(target_bounds=target_bounds, redshifts=redshifts, seeds=seeds)
    X, beside = _with_labels(X)
    X = check_numbers(X, "X")
    for each in (labels, beside):
        if each.get("target") is not None:
            each["target"] = check_numbers(each["target"], "y")
    _fill(labels, beside)
    if isinstance(X, LazyFields):
        lacking = {name for name in _LABELS if labels[name] is None}
        # With which it is told whether a box is that of the labels.
        _fill(labels, X._known(lacking | ({"target"} if "target_bounds" in lacking else set())))
    problems = Problems("save_lightcones")
    labels["grid"] = _grid_of(problems, cell_size, beside.get("grid"), X)
    if not is_path(path):
        problems.add("path", "that of a file", path)
    elif os.fspath(path).lower().endswith((".npz", ".npy")):
        problems.add("path", "a name that ends in .h5, for HDF5 is written", os.fspath(path))
    if (y := labels["target"]) is not None:
        width = 1 if np.ndim(y) < 2 else np.shape(y)[-1]
        problems.check({"target_bounds": Bounds(width, unbounded=True)}, labels)
    else:
        given = dict(
            target_names=target_names, target_units=target_units, target_bounds=target_bounds
        )
        warn_no_effect("save_lightcones", [k for k, v in given.items() if v is not None], "y=None")
    if problems.messages:
        labels["target_bounds"] = None
    stack = Stack.plan(problems, X, labels, dict(dtype=dtype, compression=compression))
    problems.raise_if_any()
    say_if_replaced(path)
    with watched(f"to {path}", len(X), "cone", verbose=verbose, logger=_LOGGER) as tell:
        pieces = _pieces(X, stack.dtype, tell)
        write_whole(path, lambda temporary: stack.write(temporary, pieces), stack.n_bytes)


def _grid_of(problems: Problems, cell_size: Any, grid: Grid | None, X: Any) -> Grid | None:
    """Grid of light cones, with the cell size that was given, if any; what is wrong is noted."""
    grid = X.grid if grid is None and isinstance(X, Fields) else grid
    if cell_size is None:
        return grid
    rank = max(len(X.shape) - 1, 1)
    problems.check({"cell_size": CELL_SIZE}, {"cell_size": cell_size})
    known = None
    if CELL_SIZE.fault(cell_size) is None:
        known = CELL_SIZE.of_axes("cell_size", cell_size, rank, problems)
    if known is None:
        return grid
    return Grid(known) if grid is None else replace(grid, cell_size=known)


def say_if_replaced(path: str | os.PathLike[str]) -> None:
    """Warn that a file that is to be written is there already."""
    if os.path.exists(path):
        warn(f"{os.fspath(path)} was there before, and is replaced.")


def _with_labels(X: Any) -> tuple[Any, dict[str, Any]]:
    """Light cones and what is said beside them, by a Bunch or by a DataArray of `to_xarray`."""
    if isinstance(X, Mapping) and "data" in X:
        return X["data"], {name: X.get(name) for name in (*_LABELS, "grid")}
    if is_labelled(X):
        beside = from_labelled(X)
        return beside.pop("data"), beside
    return X, {}


def _fill(labels: dict[str, Any], known: Mapping[str, Any]) -> None:
    """Take what is known where labels lack it; what is known of a target not for another one."""
    y, theirs = labels["target"], known.get("target")
    another = y is not None and (theirs is None or not _are_equal(y, theirs))
    named = bool(names_of(y))
    for name, value in known.items():
        of_another = another and name.startswith("target")
        renamed = named and name in ("target_names", "target_units")
        if name in labels and labels[name] is None and not (of_another or renamed):
            labels[name] = value


def _are_equal(y: Any, other: ArrayLike) -> bool:
    """Whether labels are the same within float32, NaN being equal to NaN."""
    given = as_parameters(y, ensure_min_samples=0).astype(np.float32)
    return np.array_equal(given, np.asarray(other, dtype=np.float32), equal_nan=True)


def _is_float(dtype: DTypeLike) -> bool:
    try:
        found = np.dtype(dtype)
    except TypeError:
        return False
    return found.kind == "f" and found.itemsize <= 8


_STORAGE = {
    "dtype": Rule(_is_float, "float16, float32 or float64", optional=True),
    "compression": Choice("gzip", "lzf", "none"),
}


@dataclass(frozen=True)
class Stack:
    """What a file of light cones is to hold."""

    shape: tuple[int, ...]  # of all light cones
    dtype: np.dtype  # of the stored cells
    compression: str
    # Values and attributes of each dataset beside that of the light cones, by its name.
    beside: dict[str, tuple[np.ndarray, dict[str, Any]]]
    grid: Grid | None

    @classmethod
    def plan(
        cls, problems: Problems, X: Any, labels: Mapping[str, Any], storage: Mapping[str, Any]
    ) -> Self:
        """Check what is to be written, and note what is wrong; without fields, raise at once.

        `labels` are ``target, target_names, target_units, target_bounds, redshifts, seeds, grid``,
        each of them or None; `storage` is ``dtype, compression``.
        """
        shape = tuple(X.shape)
        if len(shape) < 2 or 0 in shape:
            expected = "shape (n, *field_shape) with no axis of length 0"
            problems.add("X", expected, shape, "a single field becomes one by X[None]")
            problems.raise_if_any()
        problems.check(_STORAGE, storage)
        asked = storage["dtype"]
        known = asked is not None and _is_float(asked)
        dtype = np.dtype(asked) if known else float_type(X.dtype)
        n, n_z = shape[0], shape[-1]
        beside: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
        if (y := labels["target"]) is not None:
            target = as_parameters(y, ensure_min_samples=0)
            names, units, faults = name_parameters(
                labels["target_names"], labels["target_units"], y
            )
            if target.ndim not in (1, 2) or len(target) != n:
                mend = "a single light cone is X[None], with y[None]" if len(shape) == 3 else ""
                problems.add("y", f"shape ({n}, n_parameters) or ({n},)", target.shape, mend)
            elif (rows := np.flatnonzero(np.isinf(target.reshape(n, -1)).any(axis=1))).size:
                wanted = "finite numbers, or NaN where one is not known"
                problems.add("y", wanted, f"{target[rows[0]].tolist()} in row {rows[0]}")
            for what, expected, found in faults:
                problems.add(f"target_{what}", expected, found)
            attributes: dict[str, Any] = {"names": names, "units": units}
            if labels["target_bounds"] is not None:
                check_order("target_bounds", labels["target_bounds"], names, "rows")
                attributes["bounds"] = np.asarray(labels["target_bounds"], dtype=np.float64)
            beside["parameters"] = target, attributes
        if (redshifts := labels["redshifts"]) is not None:
            grid = np.asarray(redshifts, dtype=np.float32)
            if grid.shape not in ((n, n_z), (n_z,)):
                problems.add("redshifts", f"shape ({n}, {n_z}) or ({n_z},)", grid.shape)
            beside["redshifts"] = grid, {}
        if (seeds := labels["seeds"]) is not None:
            numbers = np.asarray(seeds)
            wanted, kind = f"{n} whole numbers below 2^63", f"{numbers.shape} of {numbers.dtype}"
            if numbers.shape != (n,) or numbers.dtype.kind not in "iuf":
                problems.add("seeds", wanted, kind)
            else:
                try:
                    numbers = take_seeds(numbers)
                except Fault as fault:
                    problems.add("seeds", wanted, fault.detail)
            beside["seed"] = numbers, {}
        of_all: Grid | None = labels["grid"]
        typical = of_all.redshifts if of_all is not None and of_all.fits(shape[1:]) else None
        if typical and "redshifts" not in beside:  # which say more
            beside[GRID_REDSHIFTS] = np.array(typical), {}
        return cls(shape, dtype, storage["compression"], beside, of_all)

    @property
    def cones_in_a_chunk(self) -> int:
        """How many short fields share a chunk, which costs a lookup; a light cone has its own."""
        cone = math.prod(self.shape[1:]) * self.dtype.itemsize
        return max(1, min(self.shape[0], _SHARED_CHUNK // cone))

    @property
    def n_bytes(self) -> int:
        """Bytes that the file takes at least, as far as that is known: packed it may be small."""
        beside = sum(values.nbytes for values, _ in self.beside.values())
        packed = self.compression != "none"
        return beside + (0 if packed else math.prod(self.shape) * self.dtype.itemsize)

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        """Write the file, its light cones piece by piece."""
        write_hdf5(path, self._plan, pieces)
        seal(path)

    def _plan(self, file: h5py.File) -> Callable[[Piece], None]:
        """Write all but the light cones; return what writes a piece of these."""
        chunks = (self.cones_in_a_chunk, *self.shape[1:])
        options: dict[str, Any] = dict(chunks=chunks, track_times=False)
        if self.compression != "none":
            options |= dict(compression=self.compression, shuffle=True, fletcher32=True)
        file.attrs["skatr_sk_lightcones"] = FORMAT
        cells = file.create_dataset(BRIGHTNESS, self.shape, self.dtype, **options)
        cells.attrs["units"] = "mK"
        if self.grid is not None and None not in self.grid.cell_size:
            cells.attrs["cell_mpc"] = self.grid.cell_size
        if self.grid is not None and self.grid.origin is not None:
            cells.attrs["grid_begins"] = self.grid.origin, self.grid.start
        index = create_index(cells)
        for name, (values, attributes) in self.beside.items():
            dataset = file.create_dataset(name, data=values, track_times=False)
            dataset.attrs.update(attributes)

        def put(piece: Piece) -> None:
            start, values, digests = piece
            if isinstance(values, np.ndarray):
                cells[start : start + len(values)] = values
            else:
                for row, (mask, packed) in zip(count(start, chunks[0]), values, strict=False):
                    cells.id.write_direct_chunk((row, *[0] * (cells.ndim - 1)), packed, mask)
            index[start : start + len(digests)] = digests

        return put


class Piece(NamedTuple):
    """Some light cones that lie side by side in a file."""

    start: int  # row of the first
    values: np.ndarray | list[tuple[int, bytes]]  # or chunks as they are packed, with their masks
    digests: np.ndarray


def _pieces(X: Any, dtype: np.dtype, tell: Callable[[int], object]) -> Iterator[Piece]:
    """Read light cones and their digests, a bounded number at a time; tell of those written."""
    step = max(1, _WRITTEN_BYTES // (math.prod(X.shape[1:]) * 8))
    for start in range(0, len(X), step):
        read = np.asarray(X[start : start + step])
        with np.errstate(over="ignore"):
            values = read.astype(dtype, copy=False)
        lost = np.isinf(values) & ~np.isinf(read)
        if lost.any():
            row = start + int(np.argmax(lost.reshape(len(lost), -1).any(axis=1)))
            raise ValueError(
                f"X[{row}] has values up to {np.abs(read[row - start]).max():.3g}, which "
                f"{dtype} cannot hold; choose another dtype."
            )
        yield Piece(start, values, pack(digest_rows(values)))
        tell(len(values))
