"""Where rows of light cones lie: one source a file, opened when read and in each process anew."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import Any, Self

import h5py
import numpy as np

from skatr_sk.lightcones.handles import HANDLES, let_go

__all__ = [
    "CHANGED",
    "DAMAGED",
    "Hdf5Source",
    "NpySource",
    "NpzSource",
    "Source",
    "Stamp",
    "stamp_of",
]

Stamp = tuple[int, int, int]

# What to do about an index of digests, which is written last, that is not of the values.
CHANGED = "The file was changed after it was written: write it anew with save_lightcones"

_LEAST_CACHE = 2**20
_MOST_CACHE = 2**28
# All that h5py, numpy and zipfile raise on a damaged file.
DAMAGED = (OSError, KeyError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """Size, time of the last change in nanoseconds and inode: a file that keeps all is the same.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    """
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(frozen=True)
class Source:
    """Rows of one file: what must be known to read them, and nothing that is open.

    Parameters
    ----------
    path : str
        Absolute.
    stamp : Stamp
        Of the file when it was looked at; another one at reading is an error.
    n_rows : int
    field_shape : tuple of int
        Of the part that is read.
    dtype : str
        Of the values as stored.
    first : int
        Cells left out at the near end of the line of sight.
    """

    path: str
    stamp: Stamp
    n_rows: int
    field_shape: tuple[int, ...]
    dtype: str
    first: int = 0

    def read(self, row: int, out: np.ndarray) -> None:
        """Fill `out`, of shape (k, *field_shape), with the rows from `row` on.

        Raises
        ------
        FileNotFoundError
            When the file is gone.
        OSError
            When it was changed since it was opened, or is damaged.
        """
        self.check(row)
        try:
            with HANDLES.of(self) as handle:
                self._load(handle, row, out)
        except DAMAGED as error:
            self.check(row)  # what happened to the file says more than what the reader met
            raise OSError(
                f"{self.path}, row {row}: cannot be read ({error}). If the file is damaged, write "
                "it anew, or leave it out: open_lightcones(..., validate='full', on_bad='drop')."
            ) from error
        self.check(row)  # a file that changed under the reader gave who knows what

    def check(self, row: int = 0) -> None:
        """Raise unless the file is still the one that was opened."""
        try:
            found = stamp_of(self.path)
        except OSError as error:
            raise FileNotFoundError(
                f"{self.path}, row {row}: the file was there when it was opened, and cannot be "
                f"found now ({error.strerror}). Bring it back, or open the light cones anew."
            ) from error
        if found != self.stamp:
            # HDF5 would share what it remembers of the old file with whoever opens the new one.
            let_go([self])
            raise OSError(
                f"{self.path}, row {row}: the file has changed since it was opened (it had "
                f"{self.stamp[0]} bytes then, and has {found[0]} now, or was written again). "
                "Open the light cones anew."
            )

    def cropped(self, n_z: int) -> Self:
        """Return the same rows with their nearest `n_z` cells along the line of sight."""
        if n_z == self.field_shape[-1]:
            return self
        return replace(self, field_shape=(*self.field_shape[:-1], n_z))

    @property
    def has_index(self) -> bool:
        """Whether the file carries digests of its rows, and is as it was when it got them."""
        return False

    def digests(self) -> np.ndarray | None:
        """Stored digests of the rows, of shape (n_rows, 16), or None where the file has none."""
        return None

    def _open(self) -> Any:
        raise NotImplementedError

    def _load(self, handle: Any, row: int, out: np.ndarray) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Hdf5Source(Source):
    """Rows of a dataset of an HDF5 file.

    Parameters
    ----------
    dataset : str
        Its name.
    single : bool
        The dataset is one cone, without an axis of rows.
    index : str or None
        Dataset of the rows' digests.
    sealed : bool
        The file is as it was when the index was written, so that it may be believed unread.
    """

    dataset: str = ""
    single: bool = False
    index: str | None = None
    sealed: bool = False

    def cropped(self, n_z: int) -> Self:
        """Return the same rows cut short; the index is of whole ones."""
        cropped = super().cropped(n_z)
        return cropped if cropped is self else replace(cropped, index=None)

    @property
    def has_index(self) -> bool:
        """Whether the file carries digests of its rows, and is as it was when it got them."""
        return self.index is not None and self.sealed

    def digests(self) -> np.ndarray | None:
        """Read the index, if the file carries one."""
        if self.index is None:
            return None
        self.check()
        with HANDLES.of(self) as handle:
            stored: np.ndarray = handle.dataset.file[self.index][:]
        self.check()
        return stored

    def _open(self) -> _OpenDataset:
        dataset = h5py.File(self.path, "r")[self.dataset]
        chunks = dataset.chunks
        if chunks is None or self.single:
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
            for place, values in enumerate(out):
                chunk = (row + place, *[0] * values.ndim)
                dataset.id.read_direct_chunk(chunk, out=values.reshape(-1).view(np.uint8))
            return
        # The bare calls of HDF5: h5py's indexing costs as much again as reading a cone.
        start = [0] * len(self.field_shape)
        start[-1] = self.first
        count: tuple[int, ...] = self.field_shape
        if not self.single:
            start, count = [row, *start], (len(out), *count)
        there = dataset.id.get_space()
        there.select_hyperslab(tuple(start), count)
        dataset.id.read(h5py.h5s.create_simple(out.shape), there, out)


@dataclass
class _OpenDataset:
    """A dataset of an open file.

    Parameters
    ----------
    dataset : h5py.Dataset
    plain : bool
        Each row is a chunk as it is in memory, and can be copied at one go.
    """

    dataset: h5py.Dataset
    plain: bool = False

    def close(self) -> None:
        """Close the file."""
        self.dataset.file.close()


@dataclass(frozen=True)
class NpzSource(Source):
    """One cone in an .npz file.

    Parameters
    ----------
    key : str
        Name of the array.
    """

    key: str = "image"

    def _open(self) -> Any:
        return np.load(self.path, allow_pickle=False)

    def _load(self, handle: Any, row: int, out: np.ndarray) -> None:
        out[0] = handle[self.key][..., self.first : self.first + self.field_shape[-1]]


@dataclass(frozen=True)
class NpySource(Source):
    """Rows of an .npy file.

    It is read, not memory-mapped: pages of a map count as memory of the process, and a map of a
    file that is cut short while it is read ends the process.

    Parameters
    ----------
    offset : int
        Where the first row begins, in bytes.
    fortran : bool
        Stored column by column, which only a map can take rows from.
    """

    offset: int = 0
    fortran: bool = False

    def _open(self) -> Any:
        if self.fortran:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        return open(self.path, "rb", buffering=0)

    def _load(self, handle: Any, row: int, out: np.ndarray) -> None:
        if self.fortran:
            out[...] = handle[row : row + len(out)]
            return
        kind = np.dtype(self.dtype)
        values = out if out.dtype == kind else np.empty(out.shape, kind)
        handle.seek(self.offset + row * kind.itemsize * math.prod(self.field_shape))
        rest = values.reshape(-1).view(np.uint8).data
        while rest.nbytes:
            n = handle.readinto(rest)
            if not n:
                raise EOFError("the file ends before its last row")
            rest = rest[n:]
        if values is not out:
            out[...] = values
