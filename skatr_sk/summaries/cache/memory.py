"""Summaries in the memory of a process: bounded, and shared by its threads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np

__all__ = ["Memory"]

_OVERHEAD = 250  # bytes of an entry in memory beside its values


class Memory:
    """Summaries of all spaces in this process; the least recently used leave when it is full.

    `limit` is the most bytes it holds, `n_bytes` what it holds now, in `entries`; `hits` and
    `misses` count what was found and what was computed.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.n_bytes = self.hits = self.misses = 0
        self.entries: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._renew_locks()
        if hasattr(os, "register_at_fork"):
            # A thread that held a lock does not exist in the child.
            os.register_at_fork(after_in_child=self._renew_locks)

    def _renew_locks(self) -> None:
        self.lock = threading.Lock()
        self.turns: dict[bytes, threading.Lock] = {}

    def turn(self, space: bytes) -> threading.Lock:
        """Return the lock by which threads that summarise in one space take turns."""
        with self.lock:
            return self.turns.setdefault(space, threading.Lock())

    def get(self, space: bytes, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return what is held of some keys."""
        with self.lock:
            found = {key: self.entries[space + key] for key in keys if space + key in self.entries}
            for key in found:
                self.entries.move_to_end(space + key)
        return found

    def put(self, space: bytes, found: Mapping[bytes, np.ndarray]) -> None:
        """Hold summaries, as far as there is room."""
        with self.lock:
            for key, values in found.items():
                size = values.nbytes + _OVERHEAD
                if space + key not in self.entries and size <= self.limit:
                    self.entries[space + key] = values.copy()  # a view would hold its batch
                    self.n_bytes += size
            self._trim()

    def resize(self, limit: int) -> None:
        """Set another bound."""
        with self.lock:
            self.limit = limit
            self._trim()

    def clear(self) -> None:
        """Forget the summaries and the counts."""
        with self.lock:
            self.entries.clear()
            self.n_bytes = self.hits = self.misses = 0

    def count(self, hits: int, misses: int) -> None:
        """Add to the counts."""
        with self.lock:
            self.hits += hits
            self.misses += misses

    def _trim(self) -> None:
        while self.n_bytes > self.limit:
            _, values = self.entries.popitem(last=False)
            self.n_bytes -= values.nbytes + _OVERHEAD
