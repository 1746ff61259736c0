"""Rows: digests, splits and batches are the same in memory and in files, and read ahead."""

import hashlib
import threading
import time

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer, open_lightcones, save_lightcones
from skatr_sk.fields import check_finite_rows, is_finite
from skatr_sk._rows import Batches, Rows, digest, digest_rows, read_ahead, split_rows
from skatr_sk.lightcones import BrightnessScaling, scaling
from skatr_sk.lightcones.files import Hdf5Source
from skatr_sk.summaries.encoding import _batches


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(30, 4, 6)).astype(np.float16)


@pytest.fixture
def X(values, tmp_path):
    save_lightcones(tmp_path / "a.h5", values)
    return open_lightcones(tmp_path / "a.h5", validate=False).data


def test_digest_is_blake2b_of_little_endian_float32():
    row = np.array([[1.5, -2.0], [0.0, 65504.0]])
    expected = hashlib.blake2b(row.astype("<f4").tobytes(), digest_size=16).digest()
    for kind in ("<f2", ">f2", "<f4", ">f4", "<f8"):
        assert digest(row.astype(kind)) == expected
    assert digest(np.asfortranarray(row)) == expected
    assert digest(row + 1e-3) != expected


def test_digests_of_many_rows_in_any_layout(values):
    expected = [digest(row) for row in values]
    assert digest_rows(values) == expected
    assert digest_rows(np.asfortranarray(values)) == expected
    assert digest_rows(values[::-2]) == expected[::-2]
    assert digest_rows(values.tolist()) == expected


def test_a_split_needs_no_voxels_and_is_that_of_memory(values, X, monkeypatch):
    train, valid = split_rows(values, 0.3, seed=5)
    X.row_digests()
    monkeypatch.setattr(Hdf5Source, "_load", lambda *_: pytest.fail("voxels were read"))
    for found, expected in zip(split_rows(X, 0.3, seed=5), (train, valid), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(valid, split_rows(X, 0.3, seed=6)[1])
    # A row stays on its side wherever it stands.
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(np.sort(order[split_rows(X[order], 0.3, seed=5)[1]]), valid)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_batches_are_those_of_memory(values, X, n_workers):
    rows = np.arange(1, 30, 2)
    passes = []
    for data, workers in ((values, 0), (X, n_workers)):
        batches = Batches(
            Rows(data, rows=rows), 4, torch.Generator().manual_seed(3), n_workers=workers
        )
        passes.append([X for _ in range(2) for X, _ in batches])
        assert len(batches) == 4
    assert [len(batch) for batch in passes[0]] == [4, 4, 4, 3] * 2
    for here, there in zip(*passes, strict=True):
        assert there.dtype == torch.float16 and torch.equal(here, there)


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rows", [None, np.array([5, 0, 3])])
def test_summaries_on_a_gpu_are_fed_from_pinned_memory(device, rows, values, X, monkeypatch):
    """As a training is; where there is no GPU the call is noted in its place."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    batches = list(_batches(X, rows, 2, torch.device(device)))
    np.testing.assert_array_equal(torch.cat(batches), values if rows is None else values[rows])
    assert len(pinned) == (len(batches) if device == "cuda" else 0)


def test_few_batches_are_held(tmp_path):
    """While an epoch goes over many batches, the arrays alive are a handful."""
    save_lightcones(tmp_path / "a.h5", np.random.default_rng(0).normal(size=(200, 8)))
    X = open_lightcones(tmp_path / "a.h5").data
    alive, most = 0, 0

    class Counted(Rows):
        def __getitems__(self, places):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__getitems__(places)

    for _ in Batches(Counted(X), 5):
        alive -= 1
    assert most <= 3


# ------------------------------------------------------------------------------ finite or not


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_not_finite(kind, wrong):
    X = np.zeros((4, 3, 5), dtype=kind)
    X[1] = np.finfo(np.float16).max
    X[2] = np.finfo(np.float16).smallest_subnormal
    assert finite(X) and finite(-X) and finite(X[:, ::2, 1:]) and finite(X[:0])
    check_finite_rows(X)
    X[2, 1, 3] = wrong
    assert not finite(X) and not finite(X[2]) and not finite(X[:, ::-1]) and finite(X[3])
    with pytest.raises(ValueError, match="in 1 of 4 rows, the first of them 2"):
        check_finite_rows(X)


# ------------------------------------------------------------------------------ bounded passes


def test_scaling_is_learned_from_a_sample_the_same_in_files(values, X, monkeypatch):
    whole = BrightnessScaling.learn(values)
    assert BrightnessScaling.learn(X) == whole
    monkeypatch.setattr(scaling, "_SAMPLE_VALUES", 0)
    monkeypatch.setattr(scaling, "_FEWEST_SAMPLED", 10)
    read = []
    load = Hdf5Source._load

    def counted(self, handle, row, out):
        read.extend(range(row, row + len(out)))
        load(self, handle, row, out)

    monkeypatch.setattr(Hdf5Source, "_load", counted)
    sampled = BrightnessScaling.learn(X, np.arange(5, 30))
    assert len(set(read)) == 10 and min(read) >= 5
    assert sampled == BrightnessScaling.learn(values, np.arange(5, 30))
    assert sampled != whole and sampled.scale == pytest.approx(whole.scale, rel=0.2)
    # Voxels of one field in pieces, as of one too large for memory.
    monkeypatch.setattr(scaling, "_CHUNK_VALUES", 7)
    pieces = BrightnessScaling.learn(X, np.arange(5, 30))
    assert pieces.scale == pytest.approx(sampled.scale) and len(set(read)) == 10


def test_constant_fields_in_files_are_noticed(tmp_path):
    X = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    X[3] = 1.0
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.warns(UserWarning, match=r"1 of 12 constant fields \(first rows: 3\)"):
        SKATRTransformer(max_epochs=0, embed_dim=8, depth=1, random_state=0).fit(
            open_lightcones(tmp_path / "a.h5").data
        )
