"""Arrays of numpy: a stack of fields in an .npy, or one cone in an .npz as the SKATR authors do."""

from __future__ import annotations

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
        with arrays.zip.open(f"{key}.npy") as stream:  # the shape and type without the values
            form = np.lib.format
            old = form.read_magic(stream) == (1, 0)
            read = form.read_array_header_1_0 if old else form.read_array_header_2_0
            shape, _, dtype = read(stream)
        check_cells(shape, dtype, least=1)
        metadata = FileMetadata(NpzSource(path, stamp, 1, shape, dtype.str, key=key))
        label = next((arrays[name] for name in TARGETS if name in arrays), None)
    if label is not None:
        if label.ndim > 1:
            expected = f"({label.size},), the parameters of one light cone"
            raise Fault("shape", f"a label of shape {label.shape}; expected {expected}")
        metadata.take_parameters(np.atleast_1d(label)[None], None, None)
    return metadata


def look_into_npy(path: str) -> FileMetadata:
    """Many fields in one array, and nothing beside them."""
    stamp = stamp_of(path)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    check_cells(mapped.shape, mapped.dtype, least=2)
    n, *field_shape = mapped.shape
    layout = {"offset": mapped.offset, "fortran": not mapped.flags.c_contiguous}
    return FileMetadata(NpySource(path, stamp, n, tuple(field_shape), mapped.dtype.str, **layout))
