"""Rows of an array as a training sees them: split by content, read by whole batches."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["Batches", "Rows", "digest", "digest_rows", "read_ahead", "split_rows"]

T = TypeVar("T")

_CHUNK_VALUES = 4_000_000  # values converted to float32 at a time while rows are digested


def digest(row: ArrayLike) -> bytes:
    """Digest of a row's values in float32: 16 bytes that stand for its content.

    The same for an in-memory and a file-backed row, and for float16, float32 and float64 where
    they hold the same values; what float32 rounds alike counts as the same.

    Parameters
    ----------
    row : array-like of any shape
        The shape does not enter.

    Returns
    -------
    bytes
        Of length 16, from BLAKE2b (RFC 7693).

    Examples
    --------
    >>> digest([1.0, 2.0]).hex()
    '42f796cded228dc080ef1964ee5d73c3'
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused elsewhere
        values = np.ascontiguousarray(row, dtype="<f4")
    return hashlib.blake2b(values.data, digest_size=16).digest()


def digest_rows(X: Any) -> list[bytes]:
    """:func:`digest` of each row, a bounded number of values at a time.

    Parameters
    ----------
    X : array-like of shape (n, ...) or LightconeArray
        What knows its own digests (``X.row_digests()``) is asked for them, so that a file that
        carries an index is not read.

    Returns
    -------
    list of bytes

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(6.0).reshape(3, 2)
    >>> digest_rows(X)[1] == digest(X[1])
    True
    """
    known = getattr(X, "row_digests", None)
    if known is not None:
        digests: list[bytes] = known()
        return digests
    values = np.asarray(X)
    step = max(1, _CHUNK_VALUES // max(1, math.prod(values.shape[1:])))
    digests = []
    for start in range(0, len(values), step):
        with np.errstate(over="ignore"):
            chunk = np.ascontiguousarray(values[start : start + step], dtype="<f4")
        digests += [digest(row) for row in chunk]
    return digests


def split_rows(rows: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split by content: a row's side depends on its values, not on its place or type.

    The rows with the smallest keyed digests validate, so that adding or reordering rows moves at
    most as many rows across as were added, and copies of a row stay together but for the last.

    Parameters
    ----------
    rows : ndarray of shape (n, ...) or LightconeArray
        The latter without reading voxels, where its file carries digests.
    fraction : float in [0, 1)
        Share that validates; more than zero means at least one row, and at least one row trains.
    seed : int
        Key of the digest: another seed is another split.

    Returns
    -------
    train, valid : ndarray of int64
        Sorted row numbers.

    Examples
    --------
    >>> import numpy as np
    >>> train, valid = split_rows(np.arange(10.0)[:, None], 0.2, seed=0)
    >>> len(train), len(valid)
    (8, 2)
    """
    n = len(rows)
    if fraction == 0 or n < 2:
        return np.arange(n), np.arange(0)
    n_valid = min(max(1, round(fraction * n)), n - 1)
    key = seed.to_bytes(8, "little")
    keyed = [
        hashlib.blake2b(content, key=key, digest_size=8).digest() for content in digest_rows(rows)
    ]
    # As big-endian integers: strings of bytes would lose zeros at their end.
    order = np.argsort(np.frombuffer(b"".join(keyed), dtype=">u8"), kind="stable")
    return np.sort(order[n_valid:]), np.sort(order[:n_valid])


class Rows(torch.utils.data.Dataset):
    """Rows of one array, and of targets where there are any, sliced by whole batches.

    Parameters
    ----------
    X : ndarray, Tensor or LightconeArray of shape (n, ...)
    y : Tensor of shape (n, ...), optional
    rows : ndarray of int64, optional
        Which rows belong; default is all.
    """

    def __init__(self, X: Any, y: Tensor | None = None, rows: np.ndarray | None = None) -> None:
        self.X = X
        self.y = y
        self.rows = torch.arange(len(X)) if rows is None else torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def in_files(self) -> bool:
        """Whether a batch is read from files, so that reading ahead pays."""
        return not isinstance(self.X, np.ndarray | Tensor)

    def __getitem__(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return one batch, as worker processes ask for it."""
        return self.__getitems__(places)

    def __getitems__(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return one batch; where there are no targets an empty tensor stands in."""
        rows = self.rows[places]
        X = self.X[rows.to(self.X.device)] if isinstance(self.X, Tensor) else self._read(rows)
        y = torch.empty(0) if self.y is None else self.y[rows.to(self.y.device)]
        return X, y

    def _read(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.asarray(self.X[rows.numpy()])))


class Batches:
    """Iterate over a :class:`Rows` in whole batches; the last one may be smaller, none is lost.

    What lies in files is read ahead, by a thread or by processes, while the last batch is
    computed with. Who reads makes no difference to the batches or their order.

    Parameters
    ----------
    dataset : Rows
    batch_size : int
    generator : torch.Generator, optional
        Shuffles each pass anew; without it the order is that of the rows.
    n_workers : int, default=0
        Processes that read files; 0 is a thread of this process.
    pin_memory : bool, default=False
        Put batches from files where a GPU fetches them while it computes.
    """

    def __init__(
        self,
        dataset: Rows,
        batch_size: int,
        generator: torch.Generator | None = None,
        n_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.generator = generator
        self.n_workers = n_workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.dataset)
        if self.generator is None:
            order = torch.arange(n)
        else:
            order = torch.randperm(n, generator=self.generator)
        places = order.split(self.batch_size)
        if not self.dataset.in_files:
            yield from map(self.dataset.__getitems__, places)
        elif self.n_workers == 0:
            yield from read_ahead(self._read, places, depth=1)  # each is a batch in memory
        else:
            yield from DataLoader(
                self.dataset,
                batch_size=None,
                sampler=places,  # type: ignore[arg-type]
                num_workers=self.n_workers,
                pin_memory=self.pin_memory,
                # One of its own: the global one would be drawn from, and the run depend on it.
                generator=torch.Generator().manual_seed(0),
            )

    def _read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        X, y = self.dataset.__getitems__(places)
        return (X.pin_memory(), y) if self.pin_memory else (X, y)


def read_ahead(read: Callable[[Any], T], asked: Iterable[Any], depth: int = 2) -> Iterator[T]:
    """Yield ``read(what)`` of each, in order, while a thread reads the next ones.

    Parameters
    ----------
    read : callable
    asked : iterable
        What to read, one after the other.
    depth : int, default=2
        Results that wait at most.

    Examples
    --------
    >>> list(read_ahead(abs, [-1, -2, 3]))
    [1, 2, 3]
    """
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="skatr_sk-reader")
    try:
        for what in asked:
            waiting.append(pool.submit(read, what))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Also where the one who asks has stopped, or a read has failed.
        pool.shutdown(wait=True, cancel_futures=True)
