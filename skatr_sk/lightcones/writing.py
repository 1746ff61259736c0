"""save_lightcones and convert: light cones into the one file that is read fastest."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from skatr_sk._checks import Problems, check_numbers
from skatr_sk._files import write_whole
from skatr_sk._rows import digest
from skatr_sk.lightcones.contents import INDEX, SIX, UNITS
from skatr_sk.lightcones.handles import close_files
from skatr_sk.lightcones.opening import Paths, open_lightcones
from skatr_sk.lightcones.seal import seal

__all__ = ["convert", "save_lightcones"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
_FORMAT = 1
_PART_BYTES = 2**27
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
    kind, beside = _prepare(
        X, y, target_names, target_units, target_bounds, redshifts, seeds, dtype, compression
    )

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            voxels = _create(file, X.shape, kind, compression)
            digests = file.create_dataset(INDEX, (len(X), 16), np.uint8, track_times=False)
            for start, values in _batches(X, kind):
                voxels[start : start + len(values)] = values
                digests[start : start + len(values)] = _digests(values)
            _write_beside(file, beside)
        seal(temporary, INDEX)

    write_whole(path, write)


def convert(
    source: Paths,
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    compression: str = "none",
    **options: Any,
) -> None:
    """Gather light cones from any files into the one file of :func:`save_lightcones`, resumably.

    The cones are first written as parts of some 128 MiB into the folder ``<path>.parts``, each
    whole or not at all, and then joined without being unpacked. What was interrupted goes on after
    the last whole part when it is called again, and gives the same file. While it runs it needs
    the room of the result twice.

    Parameters
    ----------
    source : path or sequence of paths
        As for :func:`~skatr_sk.open_lightcones`.
    path : path
        Appears whole or not at all.
    dtype, compression
        As for :func:`save_lightcones`.
    **options
        Others of :func:`~skatr_sk.open_lightcones`, such as ``parameters`` or ``on_bad``.

    Raises
    ------
    ValueError
        When the folder of parts belongs to another conversion, or as :func:`open_lightcones`.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skatr_sk import open_lightcones
    >>> from skatr_sk.lightcones import convert
    >>> folder = tempfile.mkdtemp()
    >>> np.save(os.path.join(folder, "signals.npy"), np.arange(20.0).reshape(4, 5))
    >>> convert(os.path.join(folder, "signals.npy"), os.path.join(folder, "signals.h5"))
    >>> open_lightcones(os.path.join(folder, "signals.h5")).data.shape
    (4, 5)
    """
    cones = open_lightcones(source, **options)
    X = cones.data
    kind, beside = _prepare(
        X,
        cones.target,
        cones.target_names,
        cones.target_units,
        cones.target_bounds,
        cones.redshifts,
        cones.seeds,
        dtype,
        compression,
    )
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Cannot write {path}: its folder does not exist; create it first.")
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder; name a file inside it.")
    parts = path.with_name(path.name + ".parts")
    # Parts end where chunks end, so that they can be joined chunk by chunk.
    together = _cones_in_a_chunk(X.shape, kind)
    step = max(1, _PART_BYTES // (X.size // len(X) * kind.itemsize * together)) * together
    job = {"format": _FORMAT, "dtype": kind.str, "compression": compression, "step": step}
    job["rows"] = X.fingerprint()
    _claim(parts, job)
    for start in range(0, len(X), step):
        part = parts / f"{start:09d}.h5"
        if not part.exists():
            save_lightcones(part, X[start : start + step], dtype=kind, compression=compression)
            _LOGGER.info("%s: %d of %d light cones.", path, min(start + step, len(X)), len(X))
    whole = parts / "whole.h5"
    write_whole(whole, lambda temporary: _assemble(temporary, parts, X.shape, kind, beside, job))
    os.replace(whole, path)
    close_files()
    shutil.rmtree(parts)


def _prepare(
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
    problems.choice("compression", compression, _COMPRESSIONS)
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


def _create(
    file: h5py.File, shape: Sequence[int], kind: np.dtype, compression: str
) -> h5py.Dataset:
    file.attrs["skatr_sk_lightcones"] = _FORMAT
    packed = compression != "none"
    voxels = file.create_dataset(
        "brightness_temp",
        tuple(shape),
        kind,
        # Short fields share a chunk, for each chunk costs a lookup.
        chunks=(_cones_in_a_chunk(shape, kind), *shape[1:]),
        compression=compression if packed else None,
        shuffle=packed,
        fletcher32=packed,
        track_times=False,
    )
    voxels.attrs["units"] = "mK"
    return voxels


def _cones_in_a_chunk(shape: Sequence[int], kind: np.dtype) -> int:
    cone = int(np.prod(shape[1:])) * kind.itemsize
    return max(1, min(shape[0], 2**16 // cone))


def _write_beside(
    file: h5py.File, beside: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]]
) -> None:
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


def _claim(parts: Path, job: Mapping[str, Any]) -> None:
    """Make the folder of parts, or check that it is of this conversion."""
    note = parts / "job.json"
    text = json.dumps(job, sort_keys=True)
    if note.exists() and note.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{parts} holds the parts of another conversion: other files, or other options. "
            "Remove the folder to start anew, or name another path."
        )
    parts.mkdir(exist_ok=True)
    if not note.exists():
        write_whole(note, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _assemble(
    path: Path,
    parts: Path,
    shape: tuple[int, ...],
    kind: np.dtype,
    beside: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]],
    job: Mapping[str, Any],
) -> None:
    """Join the parts chunk by chunk, as they are packed."""
    with h5py.File(path, "w") as file:
        voxels = _create(file, shape, kind, job["compression"])
        digests = file.create_dataset(INDEX, (shape[0], 16), np.uint8, track_times=False)
        for start in range(0, shape[0], job["step"]):
            with h5py.File(parts / f"{start:09d}.h5", "r") as part:
                piece = part["brightness_temp"]
                digests[start : start + len(piece)] = part[INDEX][:]
                if piece.chunks == voxels.chunks and start % voxels.chunks[0] == 0:
                    _copy_chunks(piece, voxels, start)
                else:  # a last part that is shorter than a chunk
                    voxels[start : start + len(piece)] = piece[:]
        _write_beside(file, beside)
    seal(path, INDEX)


def _copy_chunks(piece: h5py.Dataset, voxels: h5py.Dataset, start: int) -> None:
    for row in range(0, len(piece), piece.chunks[0]):
        rest = (0,) * (piece.ndim - 1)
        mask, packed = piece.id.read_direct_chunk((row, *rest))
        voxels.id.write_direct_chunk((start + row, *rest), packed, mask)
