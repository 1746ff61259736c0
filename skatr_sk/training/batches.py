"""Datasets and loaders: rows in whole batches, read ahead where they are not in memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from skatr_sk.fields import Fields

__all__ = ["Dataset", "FieldDataset", "Loader", "TensorDataset", "WeightedDataset", "read_ahead"]

T = TypeVar("T")

_GATHERED = 400_000  # numbers of batches whose rows are gathered together


class Dataset(Protocol):
    """Rows and their targets, taken by whole batches: ``dataset[indices]`` is (X, y).

    Where rows have weights X is a pair of the rows and these.
    """

    in_memory: bool

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> tuple[Any, Tensor]: ...

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        """Yield the batches of some indices, one after the other."""
        yield from map(self.__getitem__, order)


class TensorDataset(torch.utils.data.TensorDataset, Dataset):
    """Rows of two tensors, each on its device."""

    in_memory = True

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        X, y = (each.index_select(0, indices.to(each.device)) for each in self.tensors)
        return X, y

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches; the rows of many small ones are gathered together, which costs less."""
        together = max(1, _GATHERED // max(1, len(order[0]) * self.tensors[0][:1].numel()))
        for start in range(0, len(order), together):
            some = order[start : start + together]
            sizes = [len(each) for each in some]
            X, y = (each.split(sizes) for each in self[torch.cat(some)])  # type: ignore[arg-type]
            yield from zip(X, y, strict=True)


class FieldDataset(torch.utils.data.Dataset, Dataset):
    """Some rows of fields, or all of them, read when they are asked for, and of targets.

    Without targets the rows have none: those of a batch are of shape (n, 0).
    """

    def __init__(
        self, fields: Fields, y: Tensor | None = None, rows: np.ndarray | None = None
    ) -> None:
        self.fields = fields
        self.y = y
        self.rows = torch.arange(fields.shape[0]) if rows is None else torch.from_numpy(rows)
        self.in_memory = fields.in_memory

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows[indices]
        # Memory maps may be read-only, which torch does not know: these are copied.
        X = np.require(self.fields.read(rows.numpy()), requirements=["C", "W"])
        y = torch.empty(len(rows), 0) if self.y is None else self.y[rows.to(self.y.device)]
        return torch.from_numpy(X), y


class WeightedDataset(torch.utils.data.Dataset, Dataset):
    """A dataset with a weight of each of its rows, which go with ``X``: ``(X, weights), y``."""

    def __init__(self, dataset: Dataset, weights: Tensor) -> None:
        self.dataset, self.weights, self.in_memory = dataset, weights, dataset.in_memory

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        X, y = self.dataset[indices]
        return (X, self.weights[indices]), y


@dataclass(eq=False)
class Loader:
    """Iterate over a dataset in whole batches; the last one may be smaller, none is lost.

    What is not in memory is read ahead, by a thread or by processes, while the last batch is
    computed with. Who reads makes no difference to the batches or their order.
    """

    dataset: Dataset
    batch_size: int
    generator: torch.Generator | None = None  # shuffles each pass; without it rows are in order
    n_workers: int = 0  # processes that read; 0 is a thread of this process
    pin_memory: bool = False  # put what was read where a GPU fetches it while it computes
    pairs: bool = False  # a last row alone goes with the batch before it

    def __len__(self) -> int:
        n = len(self.dataset)
        return math.ceil(n / self.batch_size) - self._merges(n)

    def _merges(self, n: int) -> bool:
        return self.pairs and n > self.batch_size > 1 and n % self.batch_size == 1

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        order = torch.arange(len(self.dataset))
        if self.generator is not None:
            order = torch.randperm(len(order), generator=self.generator)
        batches = order.split(self.batch_size)
        if self._merges(len(order)):
            batches = (*batches[:-2], torch.cat(batches[-2:]))
        if self.dataset.in_memory:
            yield from self.dataset.batches(batches)
        elif self.n_workers == 0:
            for X, y in read_ahead(self.dataset.__getitem__, batches, depth=1):  # one in memory
                yield (_pinned(X), y) if self.pin_memory else (X, y)
        else:
            yield from DataLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_size=None,
                sampler=batches,  # type: ignore[arg-type]
                num_workers=self.n_workers,
                pin_memory=self.pin_memory,
                # One of its own: the global one would be drawn from, and the run depend on it.
                generator=torch.Generator().manual_seed(0),
            )


def _pinned(batch: Any) -> Any:
    return tuple(map(_pinned, batch)) if isinstance(batch, tuple) else batch.pin_memory()


def read_ahead(read: Callable[[Any], T], asked: Iterable[Any], depth: int = 2) -> Iterator[T]:
    """Yield ``read(what)`` of each that is asked, in order, while a thread reads the next ones.

    At most `depth` results wait.
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
