"""HDF5 files that are written so that a full disk is an error, and nothing worse."""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import h5py

from skatr_sk._files import CutShort

__all__ = ["write_hdf5"]

_POLL = 0.5  # seconds between two looks at whether the main thread is alive


def write_hdf5(
    path: str | os.PathLike[str],
    plan: Callable[[h5py.File], Any],
    pieces: Iterable[Any] = (),
    mode: str = "w",
) -> None:
    """Write an HDF5 file piece by piece; whatever happens, the library sees no failed write.

    ``plan(file)`` writes what is known beforehand, and returns what is called with each piece. The
    library cannot close a file whose last writes failed, and ends the process when it tries again;
    so it writes into an object that takes everything, and remembers the first error, which is
    raised after the piece, when the file has been closed.

    The library works on a thread of its own. A signal's handler, such as that of Ctrl-C, runs on
    the main thread only, and so cannot raise within the library. The pieces are made on the
    caller's thread while the library is at rest, so that whoever makes them may fork.
    """
    caller, thread = _Caller(), _Writer(_Patient(path, f"{mode.strip('+')}+b"), plan, mode)
    # However the caller ends, the thread is told: an interrupt finds no line of Python here.
    thread.end = weakref.ref(caller, thread.inbox.put)
    thread.start()
    asked = iter(pieces)
    try:
        while thread.ready.get() and (piece := next(asked, thread.end)) is not thread.end:
            thread.inbox.put(piece)
    finally:
        thread.inbox.put(thread.end)
        thread.join()
    if thread.error is not None:
        raise thread.error


class _Caller:
    """Lives as long as the call that a thread works for."""


class _Writer(threading.Thread):
    """The thread on which the library opens, writes and closes one file.

    It says when it is ready for a piece, or False when it has ended. It ends with the call, whose
    end comes as a piece, or with the main thread. What is the library's stays here.
    """

    def __init__(self, stream: _Patient, plan: Callable[[h5py.File], Any], mode: str) -> None:
        super().__init__(name="skatr_sk-hdf5")
        self.stream, self.plan, self.mode = stream, plan, mode
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.ready: SimpleQueue[bool] = SimpleQueue()
        self.end: weakref.ref[_Caller] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.stream, h5py.File(self.stream, self.mode) as file:
                write = self.plan(file)
                for piece in self._pieces():
                    write(piece)
            self.stream.raise_if_failed()
        except BaseException as error:
            self.error = error
        self.ready.put(False)

    def _pieces(self) -> Iterator[Any]:
        while not self.stream.failed:
            self.ready.put(True)
            if (piece := self._next()) is self.end:
                break
            yield piece

    def _next(self) -> Any:
        while threading.main_thread().is_alive():
            with suppress(Empty):
                return self.inbox.get(timeout=_POLL)
        return self.end


class _Patient(io.FileIO):
    """A file that takes every write, and remembers the first error.

    What comes after it is kept in memory, for the library to read back: a piece at most, for then
    whoever writes looks at `failed`.
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

    @property
    def failed(self) -> bool:
        """Whether a write has failed."""
        return self._error is not None

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
