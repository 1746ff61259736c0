"""The files that a process has open: few, its own, and closed when nobody wants them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["HANDLES", "Handles", "close_files", "let_go"]

_MOST_OPEN = 32


class Handles:
    """The files that this process has open, the ones used last; a fork starts with none."""

    def __init__(self) -> None:
        self.unwanted: deque[Hashable] = deque()
        self._forget()

    def _forget(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.open: OrderedDict[Hashable, Any] = OrderedDict()

    def _own(self) -> None:
        """Start anew in a fork.

        An HDF5 handle must not be used on both sides of it, and the lock may have been held by a
        thread that does not exist here.
        """
        if self.pid != os.getpid():
            self._forget()

    @contextmanager
    def of(self, source: Any) -> Iterator[Any]:
        """Yield the open file of a source; no other thread closes it meanwhile."""
        self._own()
        with self.lock:
            handle = self.open.get(source)
            if handle is None:
                while len(self.open) >= _MOST_OPEN:
                    _close(self.open.popitem(last=False)[1])
                handle = self.open[source] = source._open()
            self.open.move_to_end(source)
            try:
                yield handle
            except BaseException:
                self.unwanted.append(source)
                raise
            finally:
                self._close_unwanted()

    def let_go(self, sources: Iterable[Hashable]) -> None:
        """Close files now or, where one is being read, afterwards; never wait for that."""
        self._own()
        self.unwanted.extend(sources)
        if self.lock.acquire(blocking=False):
            try:
                self._close_unwanted()
            finally:
                self.lock.release()

    def _close_unwanted(self) -> None:
        while self.unwanted:
            _close(self.open.pop(self.unwanted.popleft(), None))

    def close(self) -> None:
        """Close all files."""
        self._own()
        with self.lock:
            while self.open:
                _close(self.open.popitem()[1])


def _close(handle: Any) -> None:
    if hasattr(handle, "close"):  # not a memory map
        handle.close()


HANDLES = Handles()


def close_files() -> None:
    """Close what this process holds open; the next reading opens it again.

    Examples
    --------
    >>> close_files()
    """
    HANDLES.close()


def let_go(sources: Iterable[Hashable]) -> None:
    """Close the files of an array that is no more, so that they can be written to again."""
    HANDLES.let_go(sources)
