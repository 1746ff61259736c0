"""HDF5 files that are written so that a full disk is an error, and nothing worse."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import h5py

from skatr_sk._files import CutShort

__all__ = ["write_hdf5"]

_Piece = TypeVar("_Piece")


def write_hdf5(
    path: str | os.PathLike[str],
    plan: Callable[[h5py.File], Callable[[_Piece], object] | None],
    pieces: Iterable[_Piece] = (),
    mode: str = "w",
) -> None:
    """Write an HDF5 file piece by piece; whatever happens, the library sees no failed write.

    ``plan(file)`` writes what is known beforehand, and returns what is called with each piece. The
    library cannot close a file whose last writes failed, and ends the process when it tries again;
    so it writes into an object that takes everything, and remembers the first error, which is
    raised after the piece and when the file has been closed.

    The library works on a thread of its own. A signal's handler, such as that of Ctrl-C, runs on
    the main thread only, and so cannot raise within the library. The pieces are made on the
    caller's thread.
    """
    stream = _Patient(path, "r+b" if mode == "r+" else "w+b")
    work = _Work(stream, mode)
    with ThreadPoolExecutor(1, "skatr_sk-hdf5") as thread:
        try:
            thread.submit(work.begin, plan).result()
            stream.raise_if_failed()
            for piece in pieces:
                thread.submit(work.put, piece).result()
                stream.raise_if_failed()
        finally:
            closed = thread.submit(work.close)  # and waited for
    stream.raise_if_failed()
    closed.result()


class _Work:
    """What the thread does; nothing of the library is held elsewhere, or ends on another thread."""

    def __init__(self, stream: _Patient, mode: str) -> None:
        self.stream, self.mode = stream, mode
        self.file: h5py.File | None = None
        self.write: Callable[[Any], object] | None = None

    def begin(self, plan: Callable[[h5py.File], Callable[[Any], object] | None]) -> None:
        self.file = h5py.File(self.stream, self.mode)
        self.write = plan(self.file)

    def put(self, piece: Any) -> None:
        if self.write is not None:
            self.write(piece)

    def close(self) -> None:
        self.write = None
        try:
            if self.file is not None:
                self.file.close()
        finally:
            self.file = None
            self.stream.close()


class _Patient(io.FileIO):
    """A file that takes every write, and remembers the first error.

    What comes after it is kept in memory, for the library to read back: little, because whoever
    writes looks at :meth:`raise_if_failed` after each piece.
    """

    def __init__(self, path: str | os.PathLike[str], mode: str) -> None:
        super().__init__(path, mode)
        self._error: BaseException | None = None
        self._kept: list[tuple[int, bytes]] = []  # where, and what
        self._at = 0
        self._end = os.fstat(self.fileno()).st_size

    def raise_if_failed(self) -> None:
        """Raise the first error, with the bytes that the file would have had by now."""
        if isinstance(self._error, OSError) and self._error.errno is not None:
            raise CutShort(self._error.errno, self._end)
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error.with_traceback(None)  # whose frames hold the library's memory

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any, /) -> int:
        rest = memoryview(data)
        start, size = self._at, rest.nbytes
        self._at += size
        self._end = max(self._end, self._at)
        try:
            if self._error is None:
                super().seek(start)
                while rest:
                    rest = rest[super().write(rest) :]
                return size
        except BaseException as error:
            self._fail(error)
        with suppress(MemoryError):
            self._kept.append((start, bytes(data)))
        return size

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        start, size = self._at, view.nbytes
        self._at += size
        done = 0
        try:
            super().seek(start)
            while done < size and (n := super().readinto(view[done:])):
                done += n
            view[done:] = bytes(size - done)  # as the library's own drivers do beyond the end
            for at, piece in self._kept:
                first, last = max(at, start), min(at + len(piece), start + size)
                if first < last:
                    view[first - start : last - start] = piece[first - at : last - at]
        except BaseException as error:
            self._fail(error)
        return size

    def truncate(self, size: int | None = None, /) -> int:
        self._end = self._at if size is None else size
        try:
            if self._error is None:
                super().truncate(self._end)
        except BaseException as error:
            self._fail(error)
        return self._end
