"""Datasets and loaders: the same batches from memory and from files, read ahead, few at a time."""

import threading
import time

import numpy as np
import pytest
import torch

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk.fields import ArrayFields, digest_rows
from skatr_sk.training import batches
from skatr_sk.training.batches import FieldDataset, Loader, TensorDataset, read_ahead


class Stored:
    """Fields that are not in memory: each reading is noted."""

    in_memory = False
    grid = None

    def __init__(self, values):
        self.values, self.asked = values, []
        self.shape, self.dtype = values.shape, values.dtype

    def read(self, rows=None):
        self.asked.append(np.arange(len(self.values))[rows].tolist())
        return self.values[rows]

    def digests(self, rows=None, *, recall=None):
        return digest_rows(self.values[rows])


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(30, 4, 6)).astype(np.float16)


@pytest.fixture
def X(values, tmp_path):
    save_lightcones(tmp_path / "a.h5", values)
    return open_lightcones(tmp_path / "a.h5", validate=False).data


# Datasets ----------------------------------------------------------------------------------------


def test_a_dataset_gives_rows_and_their_targets(values):
    y = torch.arange(60.0).reshape(30, 2)
    rows = np.array([3, 5, 8, 13])
    for fields in (ArrayFields(values), Stored(values)):
        dataset = FieldDataset(fields, y, rows)
        assert len(dataset) == 4 and dataset.in_memory is fields.in_memory
        batch, targets = dataset[torch.tensor([2, 0])]
        np.testing.assert_array_equal(batch, values[[8, 3]])
        assert torch.equal(targets, y[[8, 3]])
    batch, targets = FieldDataset(ArrayFields(values))[torch.tensor([1])]
    assert batch.dtype == torch.float16 and batch.shape == (1, 4, 6) and targets.numel() == 0


def test_rows_of_a_read_only_memory_map_are_copied(values, tmp_path):
    np.save(tmp_path / "X.npy", values)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    batch, _ = FieldDataset(ArrayFields(mapped))[torch.arange(2)]
    batch += 1  # torch would write into the file's pages
    np.testing.assert_array_equal(np.load(tmp_path / "X.npy"), values)


# Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gathered", [1, 30, 400_000])
def test_batches_of_tensors_are_those_of_their_rows(gathered, monkeypatch):
    """However many are gathered together, and never more than are asked to be."""
    monkeypatch.setattr(batches, "_GATHERED", gathered)
    dataset = TensorDataset(torch.arange(66.0).reshape(22, 3), torch.arange(22.0))
    taken, whole = [], TensorDataset.__getitem__
    monkeypatch.setattr(
        TensorDataset, "__getitem__", lambda own, rows: taken.append(len(rows)) or whole(own, rows)
    )
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0)).split(4)
    found = list(dataset.batches(order))
    assert max(taken) == {1: 4, 30: 8, 400_000: 22}[gathered]
    for rows, (X, y) in zip(order, found, strict=True):
        assert torch.equal(X[:, 0], 3.0 * rows) and torch.equal(y, rows.float())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_batches_cover_each_row_once(batch_size, shuffle):
    X, y = np.arange(22.0)[:, None], torch.arange(22.0)
    rows = np.array([0, 2, 3, 5, 8, 13, 14, 19, 20, 21])
    generator = torch.Generator().manual_seed(0) if shuffle else None
    batches = Loader(FieldDataset(ArrayFields(X), y, rows), batch_size, generator)
    passes = [list(batches), list(batches)]
    for batch in passes:
        assert len(batch) == len(batches) == -(-10 // batch_size)
        assert [len(x) for x, _ in batch[:-1]] == [batch_size] * (len(batch) - 1)
        seen = torch.cat([x[:, 0] for x, _ in batch])
        assert torch.equal(torch.cat([y for _, y in batch]), seen)
        assert sorted(seen.tolist()) == rows.tolist()
        assert (seen.tolist() == rows.tolist()) is not shuffle
    first, second = (torch.cat([y for _, y in batch]) for batch in passes)
    assert torch.equal(first, second) is not shuffle


def test_batches_of_tensors(torch_seed):
    X, y = torch.rand(5, 3), torch.rand(5, 2)
    first, last = Loader(TensorDataset(X, y), 3)
    assert torch.equal(torch.cat([first[0], last[0]]), X)
    assert torch.equal(torch.cat([first[1], last[1]]), y)


def test_rows_are_read_batch_by_batch():
    stored = Stored(np.arange(20.0).reshape(10, 2))
    list(Loader(FieldDataset(stored), 4))
    assert stored.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_batches_are_those_of_memory(values, X, n_workers):
    rows = np.arange(1, 30, 2)
    passes = []
    for fields, workers in ((ArrayFields(values), 0), (X, n_workers)):
        generator = torch.Generator().manual_seed(3)
        batches = Loader(FieldDataset(fields, rows=rows), 4, generator, n_workers=workers)
        passes.append([X for _ in range(2) for X, _ in batches])
        assert len(batches) == 4
    assert [len(batch) for batch in passes[0]] == [4, 4, 4, 3] * 2
    for here, there in zip(*passes, strict=True):
        assert there.dtype == torch.float16 and torch.equal(here, there)


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("rows", [None, np.array([5, 0, 3])])
def test_batches_that_were_read_are_pinned(pin, rows, values, X, monkeypatch):
    """Where a GPU is to fetch them; without one the call is noted in its place."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batches = [batch for batch, _ in Loader(FieldDataset(X, rows=rows), 2, pin_memory=pin)]
    np.testing.assert_array_equal(torch.cat(batches), values if rows is None else values[rows])
    assert len(pinned) == (len(batches) if pin else 0)
    # What is in memory needs no such place.
    pinned.clear()
    list(Loader(FieldDataset(ArrayFields(values)), 2, pin_memory=pin))
    assert pinned == []


def test_few_batches_are_held(tmp_path):
    """While an epoch goes over many batches, the arrays alive are a handful."""
    save_lightcones(tmp_path / "a.h5", np.random.default_rng(0).normal(size=(200, 8)))
    X = open_lightcones(tmp_path / "a.h5").data
    alive, most = 0, 0

    class Counted(FieldDataset):
        def __getitem__(self, indices):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__getitem__(indices)

    for _ in Loader(Counted(X), 5):
        alive -= 1
    assert most <= 3


# Reading ahead -----------------------------------------------------------------------------------


def test_reading_ahead_is_ahead_in_order_and_bounded():
    started = []

    def read(k):
        started.append(k)
        return k

    for k in read_ahead(read, range(20), depth=3):
        give_up = time.monotonic() + 10
        while len(started) < min(20, k + 4) and time.monotonic() < give_up:
            time.sleep(0.001)
        assert started == list(range(min(20, k + 4)))  # three wait behind this one


def _readers():
    return [t for t in threading.enumerate() if t.name.startswith("skatr_sk-reader")]


def test_an_error_arrives_and_no_thread_is_left():
    def read(k):
        if k == 2:
            raise OSError("row 2")
        return k

    found = []
    with pytest.raises(OSError, match="row 2"):
        for k in read_ahead(read, range(9)):
            found.append(k)
    assert found == [0, 1] and not _readers()


def test_who_stops_early_leaves_no_thread():
    ahead = read_ahead(abs, range(100))
    assert next(ahead) == 0 and _readers()
    ahead.close()
    assert not _readers()
