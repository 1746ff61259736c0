"""Summaries computed once for each light cone and set of weights, in memory and on disk.

A *space* is all that a summary depends on beside the light cone: weights, pooling, precision. A
*key* is the digest of a light cone's content. The memory is the process's own, and bounded; a
folder is shared by as many processes as like. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import numbers
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np

from skatr_sk.summaries._shards import Shards, clear_folder, count_records

__all__ = ["CacheInfo", "cache_info", "clear_cache", "compute_once", "limit_cache_memory"]

_OVERHEAD = 250  # bytes of an entry in memory beside its values
_POLL = 0.02  # seconds between two looks at what other processes are computing
# Seconds without any news from them before it is computed here as well: one may be suspended.
_PATIENCE = 60.0
_READ = 512  # summaries read from a folder at a time


class CacheInfo(NamedTuple):
    """What the cache did in this process, and what it holds.

    Parameters
    ----------
    hits, misses : int
        Summaries that were found, and that the encoder computed, in this process and since
        :func:`clear_cache` was last called.
    n_entries, n_bytes : int
        Summaries held and their size, in memory or in the folder that was asked for. A folder
        holds one entry for each time that any process computed one.
    """

    hits: int
    misses: int
    n_entries: int
    n_bytes: int


class _Memory:
    """Summaries of all spaces in this process; the least recently used leave when it is full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.n_bytes = self.hits = self.misses = 0
        self.entries: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self.renew_locks()

    def renew_locks(self) -> None:
        """Also after a fork: a thread that held a lock does not exist in the child."""
        self.lock = threading.Lock()
        self.turns: dict[bytes, threading.Lock] = {}

    def turn(self, space: bytes) -> threading.Lock:
        """The lock by which threads that summarise in one space take turns."""
        with self.lock:
            return self.turns.setdefault(space, threading.Lock())

    def get(self, space: bytes, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        found = {}
        with self.lock:
            for key in keys:
                values = self.entries.get(space + key)
                if values is not None:
                    self.entries.move_to_end(space + key)
                    found[key] = values
        return found

    def put(self, space: bytes, found: Mapping[bytes, np.ndarray]) -> None:
        with self.lock:
            for key, values in found.items():
                size = values.nbytes + _OVERHEAD
                if space + key not in self.entries and size <= self.limit:
                    self.entries[space + key] = values.copy()  # a view would hold its batch
                    self.n_bytes += size
            self._trim()

    def resize(self, limit: int) -> None:
        with self.lock:
            self.limit = limit
            self._trim()

    def clear(self) -> None:
        with self.lock:
            self.entries.clear()
            self.n_bytes = self.hits = self.misses = 0

    def count(self, hits: int, misses: int) -> None:
        with self.lock:
            self.hits += hits
            self.misses += misses

    def _trim(self) -> None:
        while self.n_bytes > self.limit:
            _, values = self.entries.popitem(last=False)
            self.n_bytes -= values.nbytes + _OVERHEAD


_MEMORY = _Memory(limit=256 * 2**20)
_DIGESTS = _Memory(limit=0)  # gives turns and no more: light cones remember their digests
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_MEMORY.renew_locks)
    os.register_at_fork(after_in_child=_DIGESTS.renew_locks)


def compute_once(
    keys: Sequence[bytes],
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    space: bytes,
    shape: Sequence[int],
    group: int,
    folder: str | os.PathLike[str] | None = None,
    what: str = "summaries",
) -> np.ndarray:
    """Find summaries, and compute those that nobody has computed.

    Threads of a process take turns in a space. Processes with a common folder share the work: each
    claims some light cones at a time, and those that another is computing it waits for, at the end.

    Parameters
    ----------
    keys : sequence of bytes
        Of length 16, one for each row.
    compute : callable
        ``compute(rows)`` gives the summaries of some rows, (n, *shape) in float32.
    space : bytes
        Of length 16.
    shape : sequence of int
        Of one summary.
    group : int
        Most rows to claim, compute and write at a time.
    folder : path, optional
        Where other processes look, too.
    what : {"summaries", "digests"}, default="summaries"
        Digests of light cones are shared in the same way, but neither counted nor kept in memory.

    Returns
    -------
    ndarray of shape (n, *shape), float32

    Examples
    --------
    >>> import numpy as np
    >>> def double(rows):
    ...     print("computing", rows)
    ...     return 2.0 * rows[:, None]
    >>> a, b, c = (bytes([i] * 16) for i in range(3))
    >>> options = dict(space=b"as an example...", shape=(1,), group=8)
    >>> compute_once([a, b], double, **options).ravel()
    computing [0 1]
    array([0., 2.], dtype=float32)
    >>> compute_once([b, c, a, c], double, **options).ravel()
    computing [1]
    array([2., 2., 0., 2.], dtype=float32)
    """
    summaries = np.empty((len(keys), *shape), dtype=np.float32)
    rows: dict[bytes, list[int]] = {}  # of the summaries that are still wanted
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)

    def settle(found: Mapping[bytes, np.ndarray]) -> None:
        for key, values in found.items():
            summaries[rows.pop(key)] = values

    memory = _MEMORY if what == "summaries" else _DIGESTS
    place = _place(space, folder)
    settle(memory.get(place, rows))
    n_computed = 0
    if rows:
        with memory.turn(place):
            settle(memory.get(place, rows))  # what another thread computed in its turn
            with nullcontext() if folder is None else Shards(folder, space, shape, what) as shards:
                for found, n_new in _missing(rows, compute, group, shards, memory):
                    memory.put(place, found)
                    settle(found)
                    n_computed += n_new
    memory.count(hits=len(keys) - n_computed, misses=n_computed)
    return summaries


def _place(space: bytes, folder: str | os.PathLike[str] | None) -> bytes:
    """Name a space in memory, apart for each folder: what is found there is in the folder, too."""
    if folder is None:
        return space
    path = os.fsencode(os.path.realpath(folder))
    return hashlib.blake2b(space + path, digest_size=16).digest()


def _missing(
    rows: Mapping[bytes, list[int]],
    compute: Callable[[np.ndarray], np.ndarray],
    group: int,
    shards: Shards | None,
    memory: _Memory,
) -> Iterator[tuple[dict[bytes, np.ndarray], int]]:
    """Yield summaries, and how many of them were computed here, until no row is wanted any more."""

    def computed(keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        keys = list(keys)
        return dict(zip(keys, compute(np.array([rows[k][0] for k in keys])), strict=True))

    if shards is None:
        queue = iter(list(rows))
        while mine := list(islice(queue, group)):
            yield computed(mine), len(mine)
        return
    queue = iter(list(rows))
    while asked := list(islice(queue, _READ)):
        yield shards.find(asked), 0
    news = time.monotonic()
    while rows:
        alone = time.monotonic() - news > _PATIENCE
        free = (key for key in list(rows) if alone or shards.claim(key))
        while mine := list(islice(free, group)):
            try:
                found = shards.find(mine)  # written after the last look, and before the claim
                left = [key for key in mine if key not in found]
                new = memory.get(shards.space, left)  # from before there was a folder
                left = [key for key in left if key not in new]
                if left:
                    new |= computed(left)
                if new:
                    shards.append(new)
                    found |= new
            finally:
                shards.release(mine)
            yield found, len(left)
            news = time.monotonic()
        if rows:
            time.sleep(_POLL)


def cache_info(folder: str | os.PathLike[str] | None = None) -> CacheInfo:
    """Say what the cache of summaries did in this process, and what it holds.

    Parameters
    ----------
    folder : path, default=None
        Count the entries of this folder, of all weights together, instead of those in memory.

    Returns
    -------
    CacheInfo

    Examples
    --------
    >>> from skatr_sk.summaries import cache_info
    >>> cache_info()._fields
    ('hits', 'misses', 'n_entries', 'n_bytes')
    """
    if folder is None:
        held = len(_MEMORY.entries), _MEMORY.n_bytes
    else:
        held = count_records(folder)
    return CacheInfo(_MEMORY.hits, _MEMORY.misses, *held)


def clear_cache(folder: str | os.PathLike[str] | None = None) -> None:
    """Forget the summaries in memory and the counts, and delete those in a folder.

    Parameters
    ----------
    folder : path, default=None
        What the cache wrote there, for any weights, is deleted, and no other file.
    """
    _MEMORY.clear()
    if folder is not None:
        clear_folder(folder)


def limit_cache_memory(n_bytes: int) -> None:
    """Bound the memory that summaries may take in this process; 256 MiB unless changed.

    Parameters
    ----------
    n_bytes : int
        0 keeps none. Those that were used least recently leave first.

    Raises
    ------
    ValueError
        When it is not an integer >= 0.
    """
    if not isinstance(n_bytes, numbers.Integral) or n_bytes < 0:
        raise ValueError(f"n_bytes is {n_bytes!r}, expected an integer >= 0, such as 2**30.")
    _MEMORY.resize(int(n_bytes))
