"""Summaries computed once for each light cone and set of weights, in memory and on disk.

A *space* is all that a summary depends on beside the light cone: weights, pooling, precision. A
*key* is the digest of a light cone's content. The memory is the process's own, and bounded; a
folder is shared by any number of processes. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np

from skatr_sk._checks import Integer, check_options
from skatr_sk.fields import Recall
from skatr_sk.summaries.cache.memory import Memory
from skatr_sk.summaries.cache.shards import Shards, clear_folder, count_records

__all__ = [
    "CacheInfo",
    "cache_info",
    "clear_cache",
    "compute_once",
    "limit_cache_memory",
    "recall_in",
]

_POLL = 0.02  # seconds between two looks at what other processes are computing
# Seconds without any news from them before it is computed here as well: one may be suspended.
_PATIENCE = 60.0
_READ = 512  # summaries read from a folder at a time
_MEMORY = Memory(limit=256 * 2**20)
# Digests are not kept in memory, for light cones remember their own; threads take turns by it.
_DIGESTS = Memory(limit=0)
_SPACE_OF_DIGESTS = hashlib.blake2b(b"digests of light cones in files", digest_size=16).digest()


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


def compute_once(
    keys: Sequence[bytes],
    compute: Callable[[np.ndarray], np.ndarray],
    space: bytes,
    shape: Sequence[int],
    *,
    group: int,
    folder: str | os.PathLike[str] | None = None,
    what: str = "summaries",
) -> np.ndarray:
    """Find summaries (n, *shape) in float32, and compute those that nobody has computed.

    Threads of a process take turns in a space. Processes with a common folder share the work: each
    claims some light cones at a time, and waits at the end for those that others are computing.

    The keys, one for each row, and `space` have 16 bytes. ``compute(rows)`` gives the summaries of
    some rows; at most `group` rows are claimed, computed and written at a time. With `what`
    "digests" instead of "summaries", those of light cones are shared in the same way, but neither
    counted nor kept in memory.
    """
    summaries = np.empty((len(keys), *shape), dtype=np.float32)
    rows: dict[bytes, list[int]] = {}  # of the summaries that are still wanted
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)

    def settle(found: Mapping[bytes, np.ndarray]) -> None:
        for key, values in found.items():
            for row in rows.pop(key):
                summaries[row] = values

    memory = _MEMORY if what == "summaries" else _DIGESTS
    name = space
    if folder is not None:  # what is found under the name is in the folder, too
        path = os.fsencode(os.path.realpath(folder))
        name = hashlib.blake2b(space + path, digest_size=16).digest()
    settle(memory.get(name, rows))
    n_computed = 0
    if rows:
        with memory.turn(name):
            settle(memory.get(name, rows))  # what another thread computed in its turn
            with nullcontext() if folder is None else Shards(folder, space, shape, what) as shards:
                for found, n_new in _missing(rows, compute, group, shards, memory):
                    memory.put(name, found)
                    settle(found)
                    n_computed += n_new
    memory.count(hits=len(keys) - n_computed, misses=n_computed)
    return summaries


def _missing(
    rows: Mapping[bytes, list[int]],
    compute: Callable[[np.ndarray], np.ndarray],
    group: int,
    shards: Shards | None,
    memory: Memory,
) -> Iterator[tuple[dict[bytes, np.ndarray], int]]:
    """Yield summaries, and how many of them were computed here, until no row is wanted any more."""

    def computed(keys: list[bytes]) -> dict[bytes, np.ndarray]:
        return dict(zip(keys, compute(np.array([rows[k][0] for k in keys])), strict=True))

    queue = iter(list(rows))
    if shards is None:
        while mine := list(islice(queue, group)):
            yield computed(mine), len(mine)
        return
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


def recall_in(folder: str | os.PathLike[str]) -> Recall:
    """Return what finds the digests of light cones in a folder, or computes and keeps them there.

    Of all processes that share the folder, only one reads a row whose file says no digest.
    """

    def recall(
        identities: Sequence[bytes], compute: Callable[[np.ndarray], list[bytes]]
    ) -> list[bytes]:
        def as_numbers(rows: np.ndarray) -> np.ndarray:
            # The 16 bytes of a digest are kept as four numbers of float32, bit by bit.
            return np.frombuffer(b"".join(compute(rows)), np.float32).reshape(-1, 4)

        found = compute_once(
            identities, as_numbers, _SPACE_OF_DIGESTS, (4,), group=64, folder=folder, what="digests"
        )
        return [values.tobytes() for values in found]

    return recall


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
    in_memory = len(_MEMORY.entries), _MEMORY.n_bytes
    held = in_memory if folder is None else count_records(folder)
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
    InvalidParameterError
        When it is not an integer >= 0.
    """
    check_options("limit_cache_memory", {"n_bytes": Integer(0)}, {"n_bytes": n_bytes})
    _MEMORY.resize(int(n_bytes))
