"""save_lightcones: light cones into the one file that is read fastest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from skatr_sk._checks import Choice, Problems, check_numbers
from skatr_sk._files import write_whole
from skatr_sk.fields import digest
from skatr_sk.lightcones.contents import INDEX, SIX, UNITS, VOXELS
from skatr_sk.lightcones.seal import seal

__all__ = [
    "FORMAT",
    "cones_in_a_chunk",
    "create",
    "prepare",
    "save_lightcones",
    "write_beside",
]

FORMAT = 1
_COMPRESSIONS = ("gzip", "lzf", "none")


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
    dtype: DTypeLike | None = None,
    compression: str = "none",
) -> None:
    """Write light cones into one HDF5 file with an index, a bounded number at a time.

    Each cone is a chunk of its own, so that shuffled reading costs no more than reading in order;
    short fields share one. The file carries a digest of each row, so that
    :func:`~skatr_sk.open_lightcones` knows its rows apart without reading them.

    Parameters
    ----------
    path : path
        Replaced whole or not at all; its folder must exist.
    X : array-like or LightconeArray of shape (n, ...)
        In mK.
    y : array-like of shape (n, n_parameters) or (n,), optional
        A DataFrame brings its names along.
    target_names, target_units : sequence of str, optional
        Of the parameters; default are the names of `y`, or of the paper's six where there are six.
    target_bounds : array-like of shape (n_parameters, 2), optional
        Prior box.
    redshifts : array-like of shape (n, n_z) or (n_z,), optional
    seeds : array-like of int, shape (n,), optional
        Of the initial conditions.
    dtype : dtype, optional
        Of the stored voxels; default is that of `X`. float16 halves the file at a precision of
        0.05 %.
    compression : {"none", "gzip", "lzf"}, default="none"
        "gzip" halves a file of 21cmFAST's cones in float16, and reads some four times slower.

    Raises
    ------
    ValueError
        When shapes do not agree, or a value cannot be stored in `dtype`.

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
    X = check_numbers(X, "X")
    kind, beside = prepare(
        X, y, target_names, target_units, target_bounds, redshifts, seeds, dtype, compression
    )

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            voxels, digests = create(file, X.shape, kind, compression)
            for start, values in _batches(X, kind):
                voxels[start : start + len(values)] = values
                digests[start : start + len(values)] = _digests(values)
            write_beside(file, beside)
        seal(temporary, INDEX)

    write_whole(path, write)


def prepare(
    X: Any,
    y: Any,
    names: Sequence[str] | None,
    units: Sequence[str] | None,
    bounds: ArrayLike | None,
    redshifts: ArrayLike | None,
    seeds: ArrayLike | None,
    dtype: DTypeLike | None,
    compression: str,
) -> tuple[np.dtype, dict[str, tuple[np.ndarray, dict[str, Any]]]]:
    """Check what is to be written; return the voxels' type and the datasets beside them."""
    n = len(X)
    if len(X.shape) < 2 or 0 in X.shape:
        raise ValueError(
            f"X has shape {tuple(X.shape)}; expected (n, *field_shape) with no axis of length 0. A "
            "single field becomes one by X[None]."
        )
    problems = Problems("save_lightcones")
    problems.check({"compression": Choice(*_COMPRESSIONS)}, {"compression": compression})
    kind = np.dtype(X.dtype if dtype is None else dtype)
    if dtype is None and kind.kind != "f":
        kind = np.dtype(np.float32)
    if kind.kind != "f" or kind.itemsize > 8:
        problems.add("dtype", "float16, float32 or float64", dtype)
    beside: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    if y is not None:
        columns = getattr(y, "columns", None)
        target = np.asarray(y, dtype=np.float64)
        width = 1 if target.ndim == 1 else target.shape[-1]
        if names is None and columns is not None:
            names = [str(column) for column in columns]
        if names is None:
            names = SIX if width == len(SIX) else [f"parameter_{k}" for k in range(width)]
        units = [UNITS.get(name, "") for name in names] if units is None else units
        if target.ndim not in (1, 2) or len(target) != n:
            problems.add("y", f"shape ({n}, n_parameters) or ({n},)", target.shape)
        for name, given in (("target_names", names), ("target_units", units)):
            if len(given) != width:
                problems.add(name, f"{width} of them, one for each parameter", list(given))
        if len(set(names)) < len(names):
            problems.add("target_names", "names of which no two are alike", list(names))
        attributes: dict[str, Any] = {"names": list(names), "units": list(units)}
        if bounds is not None:
            attributes["bounds"] = np.asarray(bounds, dtype=np.float64)
            if attributes["bounds"].shape != (width, 2):
                problems.add("target_bounds", f"shape ({width}, 2)", attributes["bounds"].shape)
        beside["parameters"] = (target, attributes)
    if redshifts is not None:
        grid = np.asarray(redshifts, dtype=np.float32)
        if grid.shape not in ((n, X.shape[-1]), (X.shape[-1],)):
            problems.add("redshifts", f"shape ({n}, {X.shape[-1]}) or ({X.shape[-1]},)", grid.shape)
        beside["redshifts"] = (grid, {})
    if seeds is not None:
        numbers = np.asarray(seeds)
        if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
            problems.add("seeds", f"{n} integers", f"{numbers.shape} of {numbers.dtype}")
        beside["seed"] = (numbers, {})
    problems.raise_if_any()
    return kind, beside


def create(
    file: h5py.File, shape: Sequence[int], kind: np.dtype, compression: str
) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Make the datasets of voxels and of their digests."""
    file.attrs["skatr_sk_lightcones"] = FORMAT
    packed = compression != "none"
    voxels = file.create_dataset(
        VOXELS,
        tuple(shape),
        kind,
        # Short fields share a chunk, for each chunk costs a lookup.
        chunks=(cones_in_a_chunk(shape, kind), *shape[1:]),
        compression=compression if packed else None,
        shuffle=packed,
        fletcher32=packed,
        track_times=False,
    )
    voxels.attrs["units"] = "mK"
    digests = file.create_dataset(INDEX, (shape[0], 16), np.uint8, track_times=False)
    digests.attrs["dataset"] = VOXELS
    return voxels, digests


def cones_in_a_chunk(shape: Sequence[int], kind: np.dtype) -> int:
    """Say how many short fields share a chunk; a light cone has one of its own."""
    cone = int(np.prod(shape[1:])) * kind.itemsize
    return max(1, min(shape[0], 2**16 // cone))


def write_beside(
    file: h5py.File, beside: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]]
) -> None:
    """Write what :func:`prepare` has found to belong beside the voxels."""
    for name, (values, attributes) in beside.items():
        dataset = file.create_dataset(name, data=values, track_times=False)
        dataset.attrs.update(attributes)


def _batches(X: Any, kind: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, values as they are stored) of a bounded number of rows at a time."""
    step = max(1, 2**26 // (int(np.prod(X.shape[1:])) * 8))
    for start in range(0, len(X), step):
        read = np.asarray(X[start : start + step])
        with np.errstate(over="ignore"):
            values = read.astype(kind, copy=False)
        lost = np.isinf(values) & ~np.isinf(read)
        if lost.any():
            row = start + int(np.argmax(lost.reshape(len(lost), -1).any(axis=1)))
            raise ValueError(
                f"X[{row}] has values up to {np.abs(read[row - start]).max():.3g}, which {kind} "
                "cannot hold; choose another dtype."
            )
        yield start, values


def _digests(values: Iterable[np.ndarray]) -> np.ndarray:
    joined = b"".join(digest(row) for row in values)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)
