"""HDF5 files, looked at without touching what hangs, crashes, lies elsewhere or does not end.

HDF5 follows whatever a file says: links and virtual datasets into other files, which may be pipes
or lead back, and it gives zeros for what was never written. Here a dataset is opened by its hard
links, asked where its values lie, and read once its size has been compared with the file's.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t

from skatr_sk._checks import listed
from skatr_sk.lightcones.formats.chunk_trees import HEADER, check_tree_of
from skatr_sk.lightcones.formats.metadata import Fault, check_no_holes, check_size
from skatr_sk.lightcones.npy import beginning

__all__ = ["Stored", "attribute", "datasets", "find", "opened", "said_of_cells", "scalars"]

_MOST_OBJECTS = 10_000  # in one file
_MOST_NESTED = 64  # groups
_MOST_LINKS = 16  # that lead on to others, as in HDF5 itself
_MOST_ATTRIBUTES = 4096  # of one object, and numbers in one
_MOST_BYTES = 2**20  # of one attribute
# A row costs unpacking the chunks that it is in: one of several rows should not be larger.
_MOST_CHUNK = 2**27  # bytes
_CHUNK_ENTRY = 8  # bytes that a file needs at least to say where a chunk is

_HEAP, _HEAP_HEADER = b"GCOL", 16  # where HDF5 keeps texts of any length; bytes before each
_WATCHED = re.compile(_HEAP + b"|" + HEADER)
_SIZES = (8, 8)  # bytes of an address and of a length, in all but very odd files

_NUMBERS = (h5t.INTEGER, h5t.FLOAT)
_KINDS = {
    h5t.STRING: "text",
    h5t.BITFIELD: "bits",
    h5t.OPAQUE: "opaque bytes",
    h5t.COMPOUND: "compound",
    h5t.REFERENCE: "reference",
    h5t.ENUM: "enumeration",
    h5t.VLEN: "variable length",
    h5t.ARRAY: "array",
}


class _Watched(io.FileIO):
    """A file in which what HDF5 does not survive is checked when HDF5 reads it, or is about to.

    It adds up the sizes of what is in a heap of texts to get to its end, and where one of them is
    zero it never does. B-trees of chunks: see `chunk_trees`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._checked: set[int] = set()  # bytes where such a thing begins

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes, as any file does."""
        start, n = self.tell(), len(buffer)
        beyond = len(_HEAP) - 1  # what begins with the last byte that is read
        around = min(start, beyond)
        self.seek(start - around)
        read = self.read(around + n + beyond) or b""
        for found in _WATCHED.finditer(read):
            self._check(start - around + found.start(), found.group())
        wanted = read[around : around + n]
        buffer[: len(wanted)] = wanted
        self.seek(start + len(wanted))
        return len(wanted)

    def _check(self, at: int, signature: bytes) -> None:
        if at in self._checked:
            return
        self._checked.add(at)
        if signature == HEADER:
            check_tree_of(self.fileno(), at)
        else:
            self._check_heap(at)

    def _check_heap(self, at: int) -> None:
        self.seek(at)
        header = self.read(_HEAP_HEADER) or b""
        size = int.from_bytes(header[8:], "little")
        if header[4:5] != b"\1" or size > os.fstat(self.fileno()).st_size - at:
            return  # no heap, or one that HDF5 refuses
        heap = header + (self.read(size - _HEAP_HEADER) or b"")
        here = _HEAP_HEADER
        while here + _HEAP_HEADER <= size:
            kept = heap[here : here + _HEAP_HEADER]
            length = int.from_bytes(kept[8:], "little")
            free = kept[:2] == b"\0\0"
            step = length if free else _HEAP_HEADER + -(-length // 8) * 8
            if not 0 < step <= size - here:
                raise OSError(f"a damaged heap of texts at byte {at}")
            here += step


@contextmanager
def opened(path: str) -> Iterator[h5py.File]:
    """Open a file to look into it."""
    with _Watched(path) as stream:
        start = stream.read(4) or b""
        if start[:2] == b"PK" or start == b"\x93NUM":
            raise Fault("unreadable", f"expected HDF5, found {beginning(start)}")
        with h5py.File(stream, "r") as file:
            sizes = tuple(file.id.get_create_plist().get_sizes())
            if sizes != _SIZES:
                found = f"addresses and lengths of {sizes} bytes"
                raise Fault("unreadable", f"{found}; expected {_SIZES}")
            yield file


@dataclass
class Stored:
    """A dataset of an HDF5 file: what it says of itself, and its values once that is checked."""

    id: Any  # h5py's low-level identifier; None of what lies in another file
    name: str  # its path, from the first slash on
    elsewhere: list[str] = field(default_factory=list)  # other files that its values lie in
    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None  # None where it does not hold real numbers
    kind: str = ""  # of what it holds, for messages

    @classmethod
    def of(cls, dataset: Any, name: str) -> Stored:
        """Ask a dataset for its layout, and for more where its values are its own."""
        made = dataset.get_create_plist()
        # To ask for the shape of a virtual dataset may open its sources, and theirs.
        if made.get_layout() == h5d.VIRTUAL:
            some = range(min(made.get_virtual_count(), 8))
            return cls(dataset, name, [made.get_virtual_filename(i) for i in some] or ["."])
        if made.get_external_count():
            return cls(dataset, name, [os.fsdecode(made.get_external(0)[0])])
        if dataset.get_space().get_simple_extent_type() == h5s.NULL:
            return cls(dataset, name, kind="nothing")
        kind, dtype = dataset.get_type().get_class(), None
        text = _KINDS.get(kind, "an unknown kind")
        if kind in _NUMBERS:
            try:
                # By its name: h5py may give a type of the same values that goes by another.
                dtype = np.dtype(dataset.dtype.str)
                text = str(dtype)
            except (TypeError, ValueError):  # bits that no type of numpy has
                text = "odd numbers"
        return cls(dataset, name, [], dataset.shape, dtype, text)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def unknown(self) -> bool:
        """Whether it lies in another file, and was not asked for its shape."""
        return bool(self.elsewhere)

    def check(self, what: str, n_bytes: int, row_shape: tuple[int, ...] = ()) -> np.dtype:
        """Return the type of numbers that are all in this file, or a Fault.

        `n_bytes` has the file, without holes; `row_shape` is that of what is read at a time.
        """
        if self.elsewhere:
            named = listed(dict.fromkeys(self.elsewhere), shown=1)
            lies = f"{self.name} has its values in other files ({named})"
            if set(self.elsewhere) == {"."}:
                lies = f"{self.name} is a virtual dataset"
            raise Fault(
                "elsewhere",
                f"{lies}, and were one of them lost, HDF5 would read zeros. Open a list of those "
                "files themselves, or copy the values into one file with save_lightcones",
            )
        if self.dtype is None:
            raise Fault("shape", f"{what} of type {self.kind}; expected real numbers")
        made = self.id.get_create_plist()
        layout, itemsize = made.get_layout(), self.dtype.itemsize
        if layout == h5d.CHUNKED:
            chunk = made.get_chunk()
            n = math.prod(-(-cells // c) for cells, c in zip(self.shape, chunk, strict=True))
            # Counting the chunks of some files takes as long as they could be many.
            written = self.id.get_num_chunks() if n * _CHUNK_ENTRY <= n_bytes else 0
            if written < n:
                part = f"{written} of {n} chunks" if written else f"hardly any of {n} chunks"
                self._unfinished(what, part)
            unpacked = math.prod(chunk) * itemsize
            if unpacked > max(_MOST_CHUNK, math.prod(row_shape) * itemsize):
                wanted = f"chunks of at most {_MOST_CHUNK >> 20} MB; write one row in a chunk"
                detail = f"{what} in chunks of {chunk}, {unpacked >> 20} MB each; expected {wanted}"
                raise Fault("size", detail)
            check_size(what, self.shape, itemsize, self.id.get_storage_size())
        elif layout == h5d.CONTIGUOUS and math.prod(self.shape):
            if self.id.get_offset() is None:
                self._unfinished(what, "nothing")
        check_size(what, self.shape, itemsize, n_bytes)
        return self.dtype

    def check_no_holes(self, path: str, row_shape: tuple[int, ...]) -> None:
        """Refuse rows of this shape in one piece that was not written throughout."""
        start = self.id.get_offset()
        if start is not None and self.dtype is not None:
            stop = start + math.prod(self.shape) * self.dtype.itemsize
            check_no_holes(path, row_shape, start, stop)

    def _unfinished(self, what: str, part: str) -> None:
        raise Fault(
            "unfinished",
            f"{part} of {self.name} was ever written ({what} of shape {self.shape}), and HDF5 reads"
            " zeros for the rest; write the file anew, or copy what was written to another",
        )

    def read(self) -> np.ndarray:
        """Return all values; whoever asks has called :meth:`check`."""
        values = np.empty(self.shape, self.dtype)
        if values.size:
            self.id.read(h5s.ALL, h5s.ALL, values)
        return values

    def texts(self) -> list[str] | None:
        """Return the texts of a short list of them, and None for anything else."""
        if self.elsewhere or self.kind != _KINDS[h5t.STRING] or self.ndim != 1:
            return None
        n = self.shape[0]
        if n > _MOST_ATTRIBUTES or n * self.id.get_type().get_size() > _MOST_BYTES:
            raise Fault("size", f"{self.name} has {n} texts; expected a few")
        values = np.empty(self.shape, self.id.dtype)
        if values.size:
            self.id.read(h5s.ALL, h5s.ALL, values)
        return [text.decode() for text in values.tolist()]

    def attribute(self, name: str) -> Any:
        """:func:`attribute` of this dataset."""
        return attribute(self.id, name)


def datasets(file: h5py.File) -> dict[str, Stored]:
    """All datasets of a file by their paths, each once; links out of the file count as datasets."""
    found: dict[str, Stored] = {}
    seen: set[int] = set()
    groups: list[tuple[Any, str, int]] = [(file.id, "", 0)]
    n = 0
    while groups:
        group, path, depth = groups.pop()
        n += group.get_num_objs()
        if n > _MOST_OBJECTS or depth > _MOST_NESTED:
            expected = f"at most {_MOST_OBJECTS} objects, {_MOST_NESTED} groups deep"
            raise Fault("size", f"too much to look through; expected {expected}")
        inside = []
        for link in group:
            name = f"{path}{link.decode()}"
            kind = group.links.get_info(link).type
            if kind == h5l.TYPE_SOFT:
                continue
            if kind != h5l.TYPE_HARD:
                found[name] = Stored(None, f"/{name}", [_target(group, link)])
                continue
            opened = h5o.open(group, link)
            address = h5o.get_info(opened).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(opened, h5d.DatasetID):
                found[name] = Stored.of(opened, f"/{name}")
            elif isinstance(opened, h5g.GroupID):
                inside.append((opened, f"{name}/", depth + 1))
        groups += reversed(inside)
    return found


def find(at: Any, path: str) -> Any:
    """Open what a path from a group on names: :class:`Stored`, a group's identifier, or None.

    A link on the way that leads out of the file gives what lies elsewhere; one that leads in a
    circle is a Fault.
    """
    left = _MOST_LINKS

    def follow(at: Any, names: bytes) -> Any:
        nonlocal left
        for name in filter(None, names.split(b"/")):
            if not isinstance(at, h5g.GroupID) or not at.links.exists(name):
                return None
            kind = at.links.get_info(name).type
            if kind == h5l.TYPE_HARD:
                at = h5o.open(at, name)
                continue
            if kind != h5l.TYPE_SOFT:
                return Stored(None, f"/{path}", [_target(at, name)])
            left -= 1
            if left < 0:
                raise Fault("unreadable", f"/{path} is a link that leads in a circle")
            target = at.links.get_val(name)
            at = follow(h5g.open(at, b"/") if target.startswith(b"/") else at, target)
        return at

    found = follow(at, path.encode())
    return Stored.of(found, f"/{path}") if isinstance(found, h5d.DatasetID) else found


def _target(group: Any, link: bytes) -> str:
    """File that an external link leads to."""
    if group.links.get_info(link).type != h5l.TYPE_EXTERNAL:
        return "a link of an unknown kind"
    return os.fsdecode(group.links.get_val(link)[0])


def attribute(at: Any, name: str) -> Any:
    """Value of an attribute: numbers, text, a list of texts, or None where there is none.

    What is neither, or too long, is a Fault.
    """
    if at is None or not h5a.exists(at, name.encode()):
        return None
    opened = h5a.open(at, name.encode())
    space, stored = opened.get_space(), opened.get_type()
    if space.get_simple_extent_type() == h5s.NULL:
        return None
    kind, n = stored.get_class(), space.get_simple_extent_npoints()
    if n > _MOST_ATTRIBUTES or n * stored.get_size() > _MOST_BYTES:
        raise Fault("size", f"the attribute {name} has {n} values; expected a few")
    if kind not in (*_NUMBERS, h5t.ENUM, h5t.STRING):
        found = _KINDS.get(kind, "an unknown kind")
        raise Fault("parameters", f"the attribute {name} is of type {found}; expected numbers")
    values = np.empty(opened.shape, opened.dtype.str if kind in _NUMBERS else opened.dtype)
    opened.read(values)
    if kind != h5t.STRING:
        return values[()]
    texts = [text.decode() for text in values.ravel().tolist()]
    return texts if values.ndim else texts[0]


def said_of_cells(*at: Any) -> Any:
    """Unit that a dataset of cells, or the first of the groups around it, says: the first text.

    Cells that are packed by a factor and an offset are a Fault: what they mean is another number.
    """
    for name in ("scale_factor", "add_offset"):
        value = attribute(at[0], name)
        if value is not None and np.any(np.asarray(value) != (name == "scale_factor")):
            what = "cells * scale_factor + add_offset"
            raise Fault("units", f"cells are packed ({name} {value}); write {what} in mK instead")
    for place in at:
        for word in ("units", "unit", "Units", "Unit"):
            text = attribute(place, word)
            if isinstance(text, list) and len(text) == 1:
                text = text[0]
            if isinstance(text, str):
                return text
    return None


def scalars(at: Any) -> dict[str, float | None]:
    """Attributes of a group by their names: single numbers, and None for what is none."""
    n = h5a.get_num_attrs(at)
    if n > _MOST_ATTRIBUTES:
        raise Fault("size", f"a group of {n} attributes; expected at most {_MOST_ATTRIBUTES}")
    names: list[bytes] = []
    h5a.iterate(at, names.append)
    found: dict[str, float | None] = {}
    for name in names:
        opened = h5a.open(at, name)
        dtype, value = opened.dtype, None
        if dtype.kind in "biuf" and opened.shape == () and not _is_null(opened):
            read = np.empty((), dtype)
            opened.read(read)
            value = read.item()
        found[name.decode()] = value
    return found


def _is_null(opened: Any) -> bool:
    """Tell whether an attribute has a type and no value; faster than to ask for its space."""
    try:
        return not opened.get_storage_size()
    except RuntimeError:
        return True
