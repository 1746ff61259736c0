"""Arrays of numpy: a stack of fields in an .npy, or one cone in an .npz as the SKATR authors do."""

from __future__ import annotations

from typing import Any

import numpy as np

from skatr_sk.lightcones.formats.metadata import CELLS, TARGETS, Fault, FileMetadata, check_cells
from skatr_sk.lightcones.sources import NpySource, NpzSource, stamp_of

__all__ = ["look_into_npy", "look_into_npz"]


def look_into_npz(path: str, key: str | None = None) -> FileMetadata:
    """One cone, in the array `key` or one of a usual name, and its parameters."""
    stamp = stamp_of(path)
    with np.load(path, allow_pickle=False) as arrays:
        key = key or next((name for name in CELLS if name in arrays), None)
        if key is None or key not in arrays:
            found = ", ".join(arrays.files)
            raise Fault("missing", f"no array {key or 'image'!r}; it has {found or 'none'}")
        shape, dtype = _header(arrays, key)
        check_cells(shape, dtype, least=1)
        metadata = FileMetadata(NpzSource(path, stamp, 1, shape, dtype.str, key=key))
        label = next((arrays[name] for name in TARGETS if name in arrays), None)
    if label is not None:
        if label.ndim > 1:
            raise Fault(
                "shape",
                f"a label of shape {label.shape}; expected ({label.size},), the parameters of one "
                "light cone",
            )
        metadata.take_parameters(np.atleast_1d(label)[None])
    return metadata


def _header(arrays: Any, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in an open .npz, without its values."""
    with arrays.zip.open(f"{key}.npy") as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def look_into_npy(path: str) -> FileMetadata:
    """Many fields in one array, and nothing beside them.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "signals.npy")
    >>> np.save(path, np.zeros((3, 8)))
    >>> look_into_npy(path).field_shape
    (8,)
    """
    stamp = stamp_of(path)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    check_cells(mapped.shape, mapped.dtype, least=2)
    layout = {"offset": mapped.offset, "fortran": not mapped.flags.c_contiguous}
    n, field_shape = len(mapped), mapped.shape[1:]
    return FileMetadata(NpySource(path, stamp, n, field_shape, mapped.dtype.str, **layout))
