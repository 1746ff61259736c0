"""Arrays of numpy: cells in an .npy, or in an .npz with what belongs to them."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from skatr_sk._files import stamp_of
from skatr_sk.fields import misplaced_axis
from skatr_sk.lightcones.formats.metadata import (
    Fault,
    FileMetadata,
    Undecided,
    bytes_on_disk,
    check_cells,
    check_no_holes,
    check_size,
    take_unit,
)
from skatr_sk.lightcones.formats.tables import (
    find_cells,
    is_one_cone,
    sight_comes_first,
    take_what_lies_beside,
)
from skatr_sk.lightcones.npy import (
    data_start,
    find_members,
    member,
    open_archive,
    read_array,
    read_header,
)
from skatr_sk.lightcones.sources import NpySource, NpzSource, Source

__all__ = ["look_into_npy", "look_into_npz"]

_MOST_TEXT = 2**20  # bytes


@dataclass
class _Packed:
    """An array of an .npz: a ``Table`` (see ``formats.tables``)."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None  # None where it does not hold real numbers
    fortran: bool = False
    stored: str = ""  # the type, for messages
    fault: Exception | None = None  # what its header is wrong with

    @classmethod
    def of(cls, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Packed:
        """Read the shape and the type, and none of the values."""
        packed = cls(archive, info, name)
        try:
            with member(archive, info) as (_, header):
                packed.shape, packed.fortran = header.shape, header.fortran
                packed.stored = header.dtype.str
                packed.dtype = header.dtype if header.dtype.kind in "fiu" else None
        except Exception as error:  # of all kinds, and of no matter where nobody asks for it
            packed.fault = error
        return packed

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def unknown(self) -> bool:
        return self.fault is not None

    def check(self, what: str, n_bytes: int, row_shape: tuple[int, ...] = ()) -> np.dtype:
        if self.fault is not None:
            raise self.fault
        if self.dtype is None:
            raise Fault("shape", f"{what} of type {self.stored}; expected real numbers")
        held = min(self.info.compress_size, n_bytes)
        check_size(what, self.shape or (1,), self.dtype.itemsize, held)
        return self.dtype

    def read(self) -> np.ndarray:
        with member(self.archive, self.info) as (stream, header):
            return read_array(stream, header)

    def texts(self) -> list[str] | None:
        if self.stored[1:2] not in ("U", "S") or self.info.file_size > _MOST_TEXT:
            return None
        return [str(text) for text in np.char.decode(self.read().astype("S")).ravel()]

    def attribute(self, name: str) -> Any:
        return None


def look_into_npz(
    path: str, found: os.stat_result, key: str | None = None, one: bool | None = None
) -> FileMetadata:
    """One cone or a stack, in the array `key` or one of a usual name, and what lies beside."""
    with open_archive(path) as archive:
        tables = {k: _Packed.of(archive, i, f"/{k}") for k, i in find_members(archive).items()}
        cells = find_cells(tables, key)
        n_bytes = bytes_on_disk(path, found)
        dtype = cells.check("cells", n_bytes)
        one = is_one_cone(cells, tables, one)
        check_cells(cells.shape, dtype, one=one)
        metadata = FileMetadata(_source(path, found, cells, dtype, one))
        said = [tables[name].texts() for name in ("units", "unit") if name in tables]
        metadata.unit = take_unit(next((texts[0] for texts in said if texts), None))
        take_what_lies_beside(metadata, cells, tables, n_bytes, one)
    return metadata


def _source(path: str, found: os.stat_result, cells: _Packed, dtype: np.dtype, one: bool) -> Source:
    n, shape = (1, cells.shape) if one else (cells.shape[0], cells.shape[1:])
    known = path, stamp_of(found), n, shape, dtype.str
    if one or cells.info.compress_type != zipfile.ZIP_STORED:
        if cells.fortran and not one:
            mend = "save numpy.ascontiguousarray(cells)"
            raise Fault("shape", f"packed cells whose rows are not side by side; {mend}")
        return NpzSource(*known, key=cells.name[1:], single=one, n_z=shape[-1])
    # What is not packed lies there as in an .npy, and any row can be read by itself.
    start = data_start(path, cells.info)
    check_no_holes(path, shape, start, start + cells.info.file_size)
    with member(cells.archive, cells.info) as (_, header):
        offset = start + header.n_bytes
    return NpySource(*known, offset=offset, fortran=cells.fortran, n_z=shape[-1])


def look_into_npy(path: str, found: os.stat_result, one: bool | None = None) -> FileMetadata:
    """Many fields in one array, or one, and nothing beside it."""
    with open(path, "rb") as stream:
        header = read_header(stream)
    shape, fortran, dtype, start = header
    if one is None and len(shape) == 3:
        raise Undecided(shape)
    one = bool(one) and (len(shape) != 4 or shape[0] > 1)  # or a stack of one
    check_cells(shape, dtype, one=one)
    if header.size > found.st_size:
        expected = f"{header.size} bytes for {shape} of {dtype}"
        raise Fault("unreadable", f"expected {expected}, found {found.st_size}: it is cut short")
    check_size("cells", shape, dtype.itemsize, bytes_on_disk(path, found))
    n, field_shape = (1, shape) if one else (shape[0], shape[1:])
    axis = misplaced_axis(field_shape)
    if axis is not None:
        what = "by its length the line of sight lies along"
        raise sight_comes_first(what, shape, axis + len(shape) - 3)
    check_no_holes(path, field_shape, start, header.size)
    layout: dict[str, Any] = {"offset": start, "fortran": fortran, "n_z": field_shape[-1]}
    return FileMetadata(NpySource(path, stamp_of(found), n, field_shape, dtype.str, **layout))
