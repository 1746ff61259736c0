"""Arrays of numpy: a stack of fields in an .npy, or one cone in an .npz as the SKATR authors do."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from skatr_sk._checks import listed
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    TARGETS,
    Fault,
    FileMetadata,
    bytes_on_disk,
    check_cells,
    check_no_holes,
    check_size,
)
from skatr_sk.lightcones.npy import (
    Header,
    find_members,
    member,
    open_archive,
    read_array,
    read_header,
)
from skatr_sk.lightcones.sources import NpySource, NpzSource, stamp_of

__all__ = ["look_into_npy", "look_into_npz"]

_MOST_LABELS = 4096


def look_into_npz(path: str, found: os.stat_result, key: str | None = None) -> FileMetadata:
    """One cone, in the array `key` or one of a usual name, and its parameters."""
    with open_archive(path) as archive:
        arrays = find_members(archive)
        key = key or next((name for name in CELLS if name in arrays), None)
        if key is None or key not in arrays:
            has = listed(arrays) or "none"
            raise Fault("missing", f"no array {key or 'image'!r}; it has {has}")
        with member(archive, arrays[key]) as (_, header):  # the shape and type without the values
            shape, dtype = header.shape, header.dtype
        check_cells(shape, dtype, least=1)
        stored = min(arrays[key].compress_size, bytes_on_disk(path, found))
        check_size("cells", (1, *shape), dtype.itemsize, stored)
        metadata = FileMetadata(NpzSource(path, stamp_of(found), 1, shape, dtype.str, key=key))
        label = next((arrays[name] for name in TARGETS if name in arrays), None)
        if label is not None:
            with member(archive, label) as (stream, header):
                _check_label(header)
                values = read_array(stream, header)
            metadata.take_parameters(np.atleast_1d(values)[None], None, None)
    return metadata


def _check_label(header: Header) -> None:
    n = math.prod(header.shape)
    if len(header.shape) > 1 or n > _MOST_LABELS:
        expected = f"({n},)" if n <= _MOST_LABELS else f"at most ({_MOST_LABELS},)"
        found = f"a label of shape {header.shape}; expected {expected}"
        raise Fault("shape", f"{found}, the parameters of one light cone")


def look_into_npy(path: str, found: os.stat_result) -> FileMetadata:
    """Many fields in one array, and nothing beside them."""
    with open(path, "rb") as stream:
        header = read_header(stream)
    shape, fortran, dtype, start = header
    check_cells(shape, dtype, least=2)
    if header.size > found.st_size:
        expected = f"{header.size} bytes for {shape} of {dtype}"
        raise Fault("unreadable", f"expected {expected}, found {found.st_size}: it is cut short")
    check_size("cells", shape, dtype.itemsize, bytes_on_disk(path, found))
    n, *field_shape = shape
    check_no_holes(path, tuple(field_shape), start, header.size)
    layout: dict[str, Any] = {"offset": start, "fortran": fortran}
    return FileMetadata(
        NpySource(path, stamp_of(found), n, tuple(field_shape), dtype.str, **layout)
    )
