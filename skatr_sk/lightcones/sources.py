"""Where rows of light cones lie: the file of each, how it is read, and the few files kept open."""

from __future__ import annotations

import errno
import math
import os
import threading
import weakref
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import h5py
import numpy as np

from skatr_sk._files import Stamp, stamp_of
from skatr_sk.lightcones.npy import fill, find_members, member, open_archive, read_array
from skatr_sk.lightcones.repair import find_bad, repair

__all__ = [
    "BRIGHTNESS",
    "OPEN_FILES",
    "FileRows",
    "Hdf5Source",
    "NpySource",
    "NpzSource",
    "Source",
    "close_files",
    "explain",
    "float_type",
    "raise_if_out_of_handles",
]

BRIGHTNESS = "brightness_temp"  # the dataset in files of this package and of 21cmFAST
_PART_BYTES = 2**26  # read at a time in a pass over many rows
_LEAST_CACHE, _MOST_CACHE = 2**20, 2**28  # bytes of HDF5's cache of chunks
_MOST_OPEN = 32
_MOST_TEXT = 300  # characters of what a library says


class OpenFiles:
    """The files that this process has open, those used last; a fork starts with none.

    An HDF5 handle must not be used on both sides of a fork, and the lock may have been held by a
    thread that does not exist in the child.
    """

    def __init__(self) -> None:
        self._unwanted: deque[Source] = deque()
        self._start_anew()

    def _start_anew(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.handles: OrderedDict[Source, Any] = OrderedDict()

    def _own(self) -> None:
        if self.pid != os.getpid():
            self._start_anew()

    @contextmanager
    def of(self, source: Source) -> Iterator[Any]:
        """Yield the open file of a source; no other thread closes it meanwhile."""
        self._own()
        with self.lock:
            handle = self.handles.get(source)
            if handle is None:
                while len(self.handles) >= _MOST_OPEN:
                    _close(self.handles.popitem(last=False)[1])
                handle = self.handles[source] = source._open()
            self.handles.move_to_end(source)
            try:
                yield handle
            except BaseException:
                self._unwanted.append(source)
                raise
            finally:
                self._close_unwanted()

    def let_go(self, sources: Iterable[Source]) -> None:
        """Close files now or, where one is being read, afterwards; never wait for that."""
        self._own()
        self._unwanted.extend(sources)
        if self.lock.acquire(blocking=False):
            try:
                self._close_unwanted()
            finally:
                self.lock.release()

    def _close_unwanted(self) -> None:
        while self._unwanted:
            _close(self.handles.pop(self._unwanted.popleft(), None))

    def close(self) -> None:
        """Close all files."""
        self._own()
        with self.lock:
            while self.handles:
                _close(self.handles.popitem()[1])


def _close(handle: Any) -> None:
    if hasattr(handle, "close"):  # not a memory map
        handle.close()


OPEN_FILES = OpenFiles()


def close_files() -> None:
    """Close the files of light cones that this process holds open; the next reading opens them.

    HDF5 refuses to open a file for writing while it is open for reading.

    Examples
    --------
    >>> close_files()
    """
    OPEN_FILES.close()


def explain(error: Exception) -> str:
    """What a reader raised, in a line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]} ..."
    if text and isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def raise_if_out_of_handles(error: Exception, where: str) -> None:
    """Raise what is no fault of a file: the process has too many files open."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise OSError(
            error.errno,
            f"{where}: cannot be opened, for too many files are open; close some of them, or allow "
            "more with 'ulimit -n'",
        ) from error


def float_type(stored: np.dtype) -> np.dtype:
    """Type that values are read and written as: a native float of at most 64 bits.

    Integers and the like become float32, for networks take nothing else.
    """
    if stored.kind != "f":
        return np.dtype(np.float32)
    return np.dtype(np.float64) if stored.itemsize > 8 else stored.newbyteorder("=")


@dataclass(frozen=True)
class Source:
    """Rows of one file: what must be known to read them, and nothing that is open."""

    path: str  # absolute
    stamp: Stamp  # of the file when it was looked into; another one at reading is an error
    n_rows: int
    field_shape: tuple[int, ...]  # of the part that is read
    dtype: str  # as stored
    first: int = 0  # slices left out at the near end of the line of sight
    index: str | None = None  # dataset of the rows' digests (see skatr_sk.lightcones.digests)
    sealed: bool = False  # the file is as it was when the index was written, which is believed
    repair: float | None = None  # single cells beyond it are repaired
    flip: bool = False  # the farthest slice is stored first
    scale: float = 1.0  # from the stored unit to mK

    def read(self, row: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (k, *field_shape), with the rows from `row` on.

        They are as they are stored, but nearest first and in mK.
        """
        with self.opened(row) as handle:
            self._load(handle, row, out)
        if self.flip:
            for field in out:
                field[...] = field[..., ::-1].copy()
        if self.scale != 1:
            out *= self.scale

    @contextmanager
    def opened(self, row: int = 0) -> Iterator[Any]:
        """Yield the open file; a FileNotFoundError or OSError names the file and the row."""
        self.check(row)
        try:
            with OPEN_FILES.of(self) as handle:
                yield handle
        except Exception as error:  # h5py, numpy and zipfile raise all kinds on a damaged file
            where = f"{self.path}, row {row}"
            raise_if_out_of_handles(error, where)
            self.check(row)  # what happened to the file says more than what the reader met
            if isinstance(error, MemoryError):
                raise MemoryError(f"{where}: there is no memory to read it ({error}).") from error
            raise OSError(
                f"{where}: cannot be read ({explain(error)}). If the file is damaged, write it "
                "anew, or leave it out: open_lightcones(..., validate='full', on_bad='drop')."
            ) from error
        self.check(row)  # a file that changed while it was read gave old values or new ones

    def check(self, row: int = 0) -> None:
        """Raise unless the file is still the one that was opened."""
        try:
            found = stamp_of(os.stat(self.path))
        except OSError as error:
            raise FileNotFoundError(
                f"{self.path}, row {row}: the file was there when it was opened, and cannot be "
                f"found now ({error.strerror}). Bring it back, or open the light cones anew."
            ) from error
        if found[:3] != self.stamp[:3]:
            # HDF5 would share what it remembers of the old file with whoever opens the new one.
            OPEN_FILES.let_go([self])
            raise OSError(
                f"{self.path}, row {row}: the file has changed since it was opened (it had "
                f"{self.stamp[0]} bytes then, and has {found[0]} now, or was written again). "
                "Open the light cones anew."
            )

    def cropped(self, n_z: int) -> Self:
        """Return these rows with their nearest `n_z` slices, and no index: it is of whole rows."""
        if n_z == self.field_shape[-1]:
            return self
        first = self.first + (self.field_shape[-1] - n_z if self.flip else 0)
        shape = (*self.field_shape[:-1], n_z)
        return replace(self, field_shape=shape, first=first, index=None, sealed=False)

    def seen_as(self, *, flip: bool = False, scale: float = 1.0) -> Self:
        """Return these rows with the line of sight reversed or in another unit, and no index."""
        if not flip and scale == 1:
            return self
        return replace(self, flip=flip, scale=scale, index=None, sealed=False)

    def repaired(self, limit: float) -> Self:
        """Return these rows with single cells repaired, and no index: it is of rows as they are."""
        return replace(self, repair=limit, index=None, sealed=False)

    def _open(self) -> Any:
        raise NotImplementedError

    def _load(self, handle: Any, row: int, out: np.ndarray) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Hdf5Source(Source):
    """Rows of a dataset of an HDF5 file."""

    dataset: str = ""
    single: bool = False  # the dataset is one cone, without an axis of rows

    def _open(self) -> _OpenDataset:
        dataset = h5py.File(self.path, "r")[self.dataset]
        if self.single or (chunks := dataset.chunks) is None:
            return _OpenDataset(dataset)
        if chunks == (1, *self.field_shape) == (1, *dataset.shape[1:]):
            plain = dataset.id.get_create_plist().get_nfilters() == 0 and dataset.dtype.isnative
            return _OpenDataset(dataset, plain and dataset.id.get_num_chunks() == len(dataset))
        # A chunk that does not fit the cache is unpacked anew for each row that it holds. A read
        # goes through the file in order, so that the chunks side by side in a row are enough.
        beside = [-(-n // c) for n, c in zip(dataset.shape[1:], chunks[1:], strict=True)]
        needed = math.prod(chunks) * dataset.dtype.itemsize * math.prod(beside)
        if chunks[0] == 1 or needed <= _LEAST_CACHE:
            return _OpenDataset(dataset)
        dataset.file.close()
        room = min(needed + _LEAST_CACHE, _MOST_CACHE)
        file = h5py.File(self.path, "r", rdcc_nbytes=room, rdcc_nslots=10_007)
        return _OpenDataset(file[self.dataset])

    def _load(self, handle: _OpenDataset, row: int, out: np.ndarray) -> None:
        dataset = handle.dataset
        if handle.plain and out.dtype == dataset.dtype:
            near = [0] * len(self.field_shape)
            for number, values in enumerate(out, row):
                room = values.reshape(-1).view(np.uint8)
                dataset.id.read_direct_chunk((number, *near), out=room)
            return
        # The bare calls of HDF5: h5py's indexing costs as much again as reading a cone.
        start = (*[0] * (len(self.field_shape) - 1), self.first)
        count = self.field_shape
        if not self.single:
            start, count = (row, *start), (len(out), *count)
        there = dataset.id.get_space()
        there.select_hyperslab(start, count)
        dataset.id.read(h5py.h5s.create_simple(out.shape), there, out)


@dataclass
class _OpenDataset:
    dataset: h5py.Dataset
    plain: bool = False  # each row is a chunk as it is in memory, and can be copied at one go

    def close(self) -> None:
        self.dataset.file.close()


@dataclass(frozen=True)
class NpzSource(Source):
    """One cone in an .npz file, or rows that are packed: read in their order, they cost a pass."""

    key: str = "image"  # name of the array
    single: bool = True  # the array is one cone, without an axis of rows
    n_z: int = 0  # stored slices

    def _open(self) -> _OpenMember:
        archive = open_archive(self.path)
        return _OpenMember(archive, find_members(archive)[self.key])

    def _load(self, handle: _OpenMember, row: int, out: np.ndarray) -> None:
        part = slice(self.first, self.first + self.field_shape[-1])
        if self.single:
            with member(handle.archive, handle.info) as (stream, header):
                out[0] = read_array(stream, header)[..., part]
            return
        stored = np.empty((*self.field_shape[:-1], self.n_z), self.dtype)
        for number, values in enumerate(out, row):
            fill(handle.at(number * stored.nbytes), stored)
            values[...] = stored[..., part]


@dataclass
class _OpenMember:
    """An array of an archive, unpacked as far as it was read."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    stream: Any = None
    start: int = 0  # of the values
    reading: ExitStack = field(default_factory=ExitStack)

    def at(self, offset: int) -> Any:
        """Return the stream at a byte of the values; to go back is to unpack anew."""
        if self.stream is None:
            self.stream, header = self.reading.enter_context(member(self.archive, self.info))
            self.start = header.n_bytes
        self.stream.seek(self.start + offset)
        return self.stream

    def close(self) -> None:
        self.reading.close()
        self.archive.close()


@dataclass(frozen=True)
class NpySource(Source):
    """Rows of an .npy file, or of an array that lies in an .npz as it is.

    It is read, not memory-mapped: pages of a map count as memory of the process, and a map of a
    file that is cut short while it is read ends the process.
    """

    offset: int = 0  # where the first row begins, in bytes
    fortran: bool = False  # stored column by column, which only a map can take rows from
    n_z: int = 0  # stored slices

    def _open(self) -> Any:
        if self.fortran:
            shape = (self.n_rows, *self.field_shape[:-1], self.n_z)
            return np.memmap(self.path, self.dtype, "r", self.offset, shape, order="F")
        return open(self.path, "rb", buffering=0)

    def _load(self, handle: Any, row: int, out: np.ndarray) -> None:
        part = slice(self.first, self.first + self.field_shape[-1])
        if self.fortran:
            out[...] = handle[row : row + len(out), ..., part]
            return
        stored, shape = np.dtype(self.dtype), (*out.shape[:-1], self.n_z)
        plain = out.dtype == stored and out.shape == shape
        values = out if plain else np.empty(shape, stored)
        handle.seek(self.offset + row * values[0].nbytes)
        fill(handle, values)
        if not plain:
            out[...] = values[..., part]


class FileRows:
    """The rows of some files, numbered through in the order of the files.

    The files, of one field shape, are closed when the last array of these rows is gone, so that
    they can be written to.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("A LightconeArray needs at least one file.")
        shapes = {source.field_shape for source in sources}
        if len(shapes) > 1:
            raise ValueError(f"Light cones of several shapes cannot be one array: {shapes}.")
        self.sources = list(sources)
        self.starts = np.cumsum([0, *(source.n_rows for source in sources)], dtype=np.int64)
        self.field_shape = shapes.pop()
        self.dtype = float_type(np.result_type(*{np.dtype(s.dtype) for s in self.sources}))
        weakref.finalize(self, OPEN_FILES.let_go, self.sources).atexit = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sources,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        """Tell in which source each row is."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def origin(self, row: int) -> tuple[Source, int]:
        """Return the source of a row, and its number therein."""
        which = int(self.source_of(np.array(row)))
        return self.sources[which], int(row - self.starts[which])

    def by_source(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield for each source that holds some rows: which, their indices, their numbers in it.

        The indices are into `rows`, and rise.
        """
        which = self.source_of(rows)
        order = np.argsort(which, kind="stable")
        for indices in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            if len(indices):
                source = int(which[indices[0]])
                yield source, indices, rows[indices] - self.starts[source]

    def parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Split rows, so that a bounded number of cells is read at a time."""
        step = max(1, _PART_BYTES // max(1, math.prod(self.field_shape) * self.dtype.itemsize))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows in the order of the files, and return them in the asked order.

        Where it was asked for, cells that can be are repaired.
        """
        out = self.read_raw(rows)
        limit = self.sources[0].repair
        if limit is not None:
            for field in out:
                if (bad := find_bad(field, limit)) is not None:
                    repair(field, bad)
        return out

    def read_raw(self, rows: np.ndarray) -> np.ndarray:
        """As :meth:`read`, and repair nothing."""
        try:
            out = np.empty((len(rows), *self.field_shape), dtype=self.dtype)
        except MemoryError as error:
            raise MemoryError(
                f"{self.origin(int(rows[0]))[0].path}: there is no memory for {len(rows)} light "
                f"cones at a time ({error}); read fewer."
            ) from error
        if len(rows) == 0:
            return out
        order = np.argsort(rows, kind="stable")
        asked = rows[order]
        which = self.source_of(asked)
        # Neighbours in the file that stay neighbours are read at one go.
        breaks = (np.diff(asked) != 1) | (np.diff(order) != 1) | (np.diff(which) != 0)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            source, index = which[start], order[start]
            first = int(asked[start] - self.starts[source])
            self.sources[source].read(first, out[index : index + stop - start])
        return out
