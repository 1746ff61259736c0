"""Arrays of numpy in files: their headers and archives, believed as far as the bytes go."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import numpy as np

__all__ = [
    "Header",
    "data_start",
    "fill",
    "find_members",
    "member",
    "open_archive",
    "read_array",
    "read_header",
]

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000  # bytes, numpy's own limit for what is not trusted
_MOST_DIRECTORY = 2**20  # bytes of an archive's list of its arrays
_LOCAL, _LOCAL_BYTES = b"PK\x03\x04", 30  # before the name of a member and its bytes
_END, _END_BYTES, _MOST_COMMENT = b"PK\x05\x06", 22, 2**16
_AT_ONCE = 2**22  # bytes read at a time
_BEGINNINGS = {b"\x89HDF": "HDF5", b"PK\x03\x04": "a zip archive", b"\x93NUM": "one .npy array"}


class Header(NamedTuple):
    """What an array in a file is."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    n_bytes: int  # of the header itself

    @property
    def size(self) -> int:
        """Bytes of the header and the array."""
        return self.n_bytes + math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """Read the header of an array; a ValueError where it is none, or too long to be one."""
    start = stream.read(8)
    if start[:6] != _MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError(f"expected an array of numpy, found {beginning(start)}")
    length = stream.read(2 if start[6] == 1 else 4)
    n = int.from_bytes(length, "little")
    if n > _MOST_HEADER:
        raise ValueError(f"expected a header of at most {_MOST_HEADER} bytes, found one of {n}")
    text = io.BytesIO(length + stream.read(n))
    form = np.lib.format
    read = form.read_array_header_1_0 if start[6] == 1 else form.read_array_header_2_0
    try:
        shape, fortran, dtype = read(text)
    except (MemoryError, RecursionError) as error:  # brackets in brackets
        raise ValueError(f"expected a header, found {text.getvalue()[:40]!r} ...") from error
    if any(type(cells) is not int or cells < 0 for cells in shape):
        raise ValueError(f"expected a shape of whole numbers that are not negative, found {shape}")
    if dtype.hasobject:
        raise ValueError("expected numbers, found Python objects, which are never unpickled")
    return Header(shape, fortran, dtype, len(start) + len(length) + n)


def beginning(start: bytes) -> str:
    """Say what a file that begins so is."""
    kind = _BEGINNINGS.get(start[:4])
    return f"{kind}; give the file the ending of what it is" if kind else f"{start[:4]!r}"


def open_archive(path: str) -> zipfile.ZipFile:
    """Open an .npz; a ValueError where it is of another kind, or lists too much."""
    with open(path, "rb") as stream:
        start = stream.read(4)
        if start[:2] != b"PK":
            raise ValueError(f"expected an .npz archive, found {beginning(start)}")
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _END_BYTES - _MOST_COMMENT))
        end = stream.read()
        listed = end[end.rfind(_END) :][12:16]
        if int.from_bytes(listed, "little") > _MOST_DIRECTORY:
            raise ValueError("expected an .npz of a few arrays, found a list of very many")
    return zipfile.ZipFile(path)


def find_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Arrays of an archive by their names."""
    return {
        info.filename.removesuffix(".npy"): info
        for info in archive.infolist()
        if info.filename.endswith(".npy") and ".." not in info.filename.split("/")
    }


def data_start(path: str, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin that is not packed; a ValueError where they cannot be."""
    with open(path, "rb") as stream:
        stream.seek(info.header_offset)
        local = stream.read(_LOCAL_BYTES)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = info.header_offset + _LOCAL_BYTES + lengths
        size = stream.seek(0, os.SEEK_END)
    if local[:4] != _LOCAL or info.compress_size != info.file_size or start + info.file_size > size:
        raise ValueError(f"expected {info.file_size} bytes of {info.filename}, found fewer")
    return start


@contextmanager
def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[tuple[IO[bytes], Header]]:
    """Yield an array's bytes and its header; a ValueError where they do not fit."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"expected an array packed as numpy does, found {info.filename} otherwise")
    with archive.open(info) as stream:
        header = read_header(stream)
        if header.size != info.file_size:
            found = f"{info.file_size} for {header.shape} of {header.dtype}"
            raise ValueError(f"expected {header.size} bytes of {info.filename}, found {found}")
        yield stream, header


def read_array(stream: IO[bytes], header: Header) -> np.ndarray:
    """Read the array that the bytes after its header hold, to their end and checksum."""
    order = header.shape[::-1] if header.fortran else header.shape
    values = np.empty(order, header.dtype)
    fill(stream, values)
    stream.read(1)  # an archive compares its checksum at the end
    return values.T if header.fortran else values


def fill(stream: IO[bytes], values: np.ndarray) -> None:
    """Fill an array with the next bytes of a stream; an EOFError where there are too few."""
    rest = values.reshape(-1).view(np.uint8).data
    while rest.nbytes:
        n = stream.readinto(rest[:_AT_ONCE])  # type: ignore[attr-defined]
        if not n:
            raise EOFError("the file ends before its last value")
        rest = rest[n:]
