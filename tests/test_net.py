"""The trainer: rows, batches, seeds, failures, interrupts, resumed runs, progress."""

import copy
import ctypes
import json
import logging
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback
from skorch.callbacks import EarlyStopping as SkorchEarlyStopping
from torch import nn

from skatr_sk import SKATRTransformer, _callbacks
from skatr_sk._device import autocast, resolve_device, return_memory
from skatr_sk._net import seeded, train
from skatr_sk._rows import Batches, Rows, split_rows

CPU = torch.device("cpu")


def fields(n=24, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)


def small(**parameters):
    """A transformer that trains in a moment: 24 signals, 18 of them in 3 batches."""
    defaults = dict(
        patch_size=2,
        embed_dim=8,
        depth=1,
        n_heads=2,
        predictor_dim=8,
        predictor_depth=1,
        batch_size=8,
        max_epochs=4,
        validation_fraction=0.25,
        learning_rate=5e-3,
        device="cpu",
        random_state=3,
    )
    return SKATRTransformer(**defaults | parameters)


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def assert_same_run(first, second):
    assert without_seconds(first.history_) == without_seconds(second.history_)
    weights = second.encoder_.state_dict()
    for name, value in first.encoder_.state_dict().items():
        assert torch.equal(value, weights[name]), name


# Rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "fraction", "n_valid"),
    [(100, 0.1, 10), (100, 0.25, 25), (10, 0.01, 1), (2, 0.9, 1), (7, 0.99, 6), (5, 0.0, 0)]
    + [(1, 0.5, 0)],
)
def test_split_sizes(n, fraction, n_valid):
    training, validation = split_rows(fields(n), fraction, seed=1)
    assert len(validation) == n_valid
    assert sorted([*training, *validation]) == list(range(n))
    assert (np.diff(training) > 0).all() and (np.diff(validation) > 0).all()


def members(rows, index):
    return {rows[i].tobytes() for i in index}


def test_split_follows_the_content_of_a_row(rng):
    rows = fields(200)
    _, validation = split_rows(rows, 0.2, seed=1)
    order = rng.permutation(200)
    _, shuffled = split_rows(rows[order], 0.2, seed=1)
    assert members(rows, validation) == members(rows[order], shuffled)
    assert validation.tolist() != list(range(40))
    _, strided = split_rows(np.repeat(rows, 2, axis=1)[:, ::2], 0.2, seed=1)
    assert strided.tolist() == validation.tolist()


def test_split_with_another_seed_is_another():
    rows = fields(200)
    first, second = (set(split_rows(rows, 0.5, seed)[1]) for seed in (1, 2))
    # Two independent halves share some 50 of 100 rows, with a scatter of 3.5.
    assert 30 < len(first & second) < 70


def test_one_more_row_moves_at_most_one_across():
    rows = fields(101)
    moved = []
    for n in range(60, 101):
        before = members(rows, split_rows(rows[:n], 0.2, seed=1)[1])
        after = members(rows, split_rows(rows[: n + 1], 0.2, seed=1)[1])
        new = rows[n].tobytes()
        moved.append(len((before ^ after) - {new}))
    assert max(moved) <= 1


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_batches_cover_each_row_once(batch_size, shuffle):
    X, y = torch.arange(22.0)[:, None], torch.arange(22.0)
    rows = np.array([0, 2, 3, 5, 8, 13, 14, 19, 20, 21])
    generator = torch.Generator().manual_seed(0) if shuffle else None
    batches = Batches(Rows(X, y, rows), batch_size, generator)
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


def test_rows_of_an_array_are_read_batch_by_batch():
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            read.append(np.asarray(index).tolist())
            return np.asarray(super().__getitem__(index))

    list(Batches(Rows(fields(10).view(Watched)), 4))
    assert read == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# Seeds, devices and precision -------------------------------------------------------------------


def test_seeded_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    with seeded(1, CPU):
        first = torch.rand(3)
    with seeded(1, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(2, CPU):
        assert not torch.equal(torch.rand(3), first)
    with pytest.raises(RuntimeError, match="inside"), seeded(1, CPU):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_resolve_device():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == wanted


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5, None, "cpu:x"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'.*found"):
        resolve_device(device)
    with pytest.raises(ValueError, match="device: expected"):
        small(device=device).fit(fields())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32)] + [("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_bf16_trains_and_summarises_in_float32():
    fitted = small(precision="bf16").fit(fields())
    assert fitted.transform(fields()).dtype == np.float32
    assert all(p.dtype == torch.float32 for p in fitted.encoder_.parameters())


# Failures and interrupts -------------------------------------------------------------------------


class Act(Callback):
    """Does something at one moment of the run, and counts the moments."""

    def __init__(self, moment, act, at):
        self.moment, self.act, self.at = moment, act, at

    def initialize(self):
        self.calls = 0
        return self

    def _call(self, net):
        self.calls += 1
        if self.calls == self.at:
            self.act(net)

    def on_batch_end(self, net, training=None, **kwargs):
        if self.moment == "batch" and training:
            self._call(net)

    def on_epoch_end(self, net, **kwargs):
        if self.moment == "epoch":
            self._call(net)


def raising(error):
    def act(net):
        raise error

    return act


def poison(net):
    with torch.no_grad():
        net.module_.predictor.out.bias.fill_(torch.nan)


def test_divergence_says_what_to_do_and_changes_nothing():
    fitted = small().fit(fields())
    before, history = fitted.transform(fields()), copy.deepcopy(fitted.history_)
    fitted.set_params(callbacks=[Act("batch", poison, at=5)])
    message = r"diverged: the loss became nan in epoch 2 .*smaller learning_rate \(found 0\.005\)"
    with pytest.raises(FloatingPointError, match=message):
        fitted.fit(fields())
    assert fitted.history_ == history
    np.testing.assert_array_equal(fitted.transform(fields()), before)
    fresh = small(callbacks=[Act("batch", poison, at=1)])
    with pytest.raises(FloatingPointError):
        fresh.fit(fields())
    assert not any(name.endswith("_") for name in vars(fresh))


@pytest.mark.parametrize("at", [1, 4])
def test_a_users_interrupt_comes_through(at):
    fitted = small().fit(fields())
    before = fitted.transform(fields())
    fitted.set_params(callbacks=[Act("batch", raising(KeyboardInterrupt()), at)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(fields())
    np.testing.assert_array_equal(fitted.transform(fields()), before)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_freed_memory_goes_back_to_the_system():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    blocks = [np.ones(8000) for _ in range(3000)]  # 64 kB each: too small for pages of their own
    held = blocks[::100]  # between them glibc keeps what is freed
    del blocks
    before = resident()
    return_memory()
    assert before - resident() > 100e6
    assert all((block == 1).all() for block in held)


@pytest.mark.parametrize(("seconds", "n"), [(1.5, 6), (0.4, 2)])
def test_long_steps_give_memory_back(seconds, n, monkeypatch):
    """After each of 6 steps, or after every third."""
    returned = []
    monkeypatch.setattr(_callbacks, "return_memory", lambda: returned.append(None))
    callback = _callbacks.ReturnMemory()
    monkeypatch.setattr(_callbacks.time, "monotonic", lambda: now[0])
    now = [0.0]
    net = SimpleNamespace(device="cpu")
    callback.on_train_begin(net)
    for _ in range(6):
        now[0] += seconds
        callback.on_batch_end(net)
    assert len(returned) == n
    callback.on_batch_end(SimpleNamespace(device="cuda"))
    assert len(returned) == n


def test_pretraining_gives_memory_back(monkeypatch):
    returned = []
    monkeypatch.setattr(_callbacks, "return_memory", lambda: returned.append(None))
    monkeypatch.setattr(_callbacks, "_TRIM_SECONDS", -1.0)
    small(max_epochs=2).fit(fields())
    assert len(returned) == 2 * (3 + 1)


def test_early_stopping_of_skorch_ends_quietly():
    stop = SkorchEarlyStopping(patience=2, threshold=1e9, threshold_mode="abs", sink=lambda _: 0)
    fitted = small(max_epochs=50, callbacks=[stop]).fit(fields())
    # No epoch can improve by 1e9: the second after the first ends the run.
    assert 2 <= len(fitted.history_) <= 3
    assert fitted.transform(fields()).shape == (24, 8)


def test_callbacks_may_ask_for_the_end():
    def stop(net):
        net.stop_ = True

    after = Act("epoch", lambda net: None, at=0)
    fitted = small(max_epochs=50, callbacks=[Act("epoch", stop, at=2)]).fit(fields())
    assert len(fitted.history_) == 2
    # Those that come later still see the epoch end.
    small(max_epochs=50, callbacks=[Act("epoch", stop, at=2), after]).fit(fields())
    assert after.calls == 2


class Scripted(nn.Module):
    """A module whose only weight counts its training steps; its loss follows a script."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.steps += 1
            return self.weight * 0
        return self.weight * 0 + self.losses[self.steps - 1]


class Identity(nn.Module):
    def forward(self, output, target):
        return output


def scripted(losses, **parameters):
    module = Scripted(losses)
    defaults = dict(
        device=CPU,
        precision="float32",
        max_epochs=len(losses),
        batch_size=100,
        learning_rate=1e-3,
        weight_decay=0.0,
        patience=None,
        seed=0,
    )
    rows = Rows(fields())
    with seeded(0, CPU):
        history = train(module, Identity(), rows, rows, **defaults | parameters)
    return module, history


@pytest.mark.parametrize(
    ("losses", "patience", "n_epochs", "best"),
    [
        ([5, 4, 3, 4, 5, 6, 1], 3, 6, 3),
        ([5, 4, 3, 4, 5, 2, 6, 7], 3, 8, 6),
        ([1, 2, 3, 4], 1, 2, 1),
        ([4, 3, 2, 1], 1, 4, 4),
        ([2, 2, 2, 2, 2], 2, 3, 1),
    ],
)
def test_early_stopping_brings_back_the_best_epoch(losses, patience, n_epochs, best):
    module, history = scripted([float(x) for x in losses], patience=patience)
    assert [row["valid_loss"] for row in history] == losses[:n_epochs]
    assert module.steps == best
    assert not module.training


def test_without_patience_the_last_epoch_stays():
    module, history = scripted([5.0, 1.0, 9.0])
    assert module.steps == len(history) == 3


def test_history_of_a_run():
    history = small().fit(fields()).history_
    names = "epoch train_loss valid_loss effective_rank effective_rank_at_init seconds kept"
    assert all(list(row) == names.split() for row in history)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert len({row["effective_rank_at_init"] for row in history}) == 1
    unwatched = small(validation_fraction=0.0).fit(fields()).history_
    assert all("valid_loss" not in row and "effective_rank" in row for row in unwatched)


# Resumed runs ------------------------------------------------------------------------------------


class Cut(Exception):
    pass


@pytest.mark.parametrize("moment", ["batch", "epoch"])
@pytest.mark.parametrize(
    "parameters",
    [
        dict(),
        dict(checkpoint_every=2),
        dict(objective="reconstruction"),
        dict(validation_fraction=0.0),
    ],
    ids=str,
)
def test_a_resumed_run_equals_one_without_a_break(tmp_path, parameters, moment):
    parameters = dict(max_epochs=5, checkpoint_every=1) | parameters
    whole = small(**parameters).fit(fields())
    # In the middle of epoch 4, and at the end of epoch 3.
    cut = Act(moment, raising(Cut()), at=11 if moment == "batch" else 3)
    kept = small(**parameters, checkpoint_dir=tmp_path / "run")
    with pytest.raises(Cut):
        kept.set_params(callbacks=[cut]).fit(fields())
    assert len(list((tmp_path / "run").glob("checkpoint-*.safetensors"))) == 1
    counted = Act("epoch", lambda net: None, at=0)
    kept.set_params(callbacks=[counted]).fit(fields())
    done = 2 if parameters["checkpoint_every"] == 2 else 3
    assert counted.calls == 5 - done  # the rest alone was trained
    assert_same_run(kept, whole)
    # The end is kept as well: another fit trains nothing more.
    kept.fit(fields())
    assert counted.calls == 0
    assert_same_run(kept, whole)


def test_a_resumed_run_keeps_what_early_stopping_knew(tmp_path):
    # A rate that is far too high: the validation loss turns up soon.
    parameters = dict(max_epochs=40, patience=4, learning_rate=0.3, checkpoint_every=1)
    whole = small(**parameters).fit(fields())
    losses = [row["valid_loss"] for row in whole.history_]
    best = int(np.argmin(losses)) + 1
    n_epochs = len(losses)
    assert n_epochs == best + 4 < 40
    # Cut after the best epoch: its weights must come out of the checkpoint.
    kept = small(**parameters, checkpoint_dir=tmp_path)
    with pytest.raises(Cut):
        kept.set_params(callbacks=[Act("epoch", raising(Cut()), at=best + 2)]).fit(fields())
    kept.set_params(callbacks=None).fit(fields())
    assert_same_run(kept, whole)
    # A run that had stopped stays stopped.
    kept.fit(fields())
    assert_same_run(kept, whole)


def checkpointed(folder):
    transformer = small(checkpoint_dir=folder, checkpoint_every=1).fit(fields())
    (path,) = folder.glob("checkpoint-*.safetensors")
    return transformer, path


@pytest.mark.parametrize("damage", ["truncated", "random", "foreign", "empty header"])
def test_a_damaged_checkpoint(tmp_path, damage):
    transformer, path = checkpointed(tmp_path)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "random":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    else:
        metadata = {"skatr_sk_checkpoint": "{}"} if damage == "empty header" else {"made": "by"}
        save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"checkpoint-.*\.safetensors.*Remove the file") as error:
        transformer.fit(fields())
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change", [dict(random_state=4), dict(learning_rate=1e-4), dict(max_epochs=9), "data"], ids=str
)
def test_a_checkpoint_of_another_run(tmp_path, change):
    transformer, path = checkpointed(tmp_path)
    before = path.read_bytes()
    X = fields(seed=1) if change == "data" else fields()
    if change != "data":
        transformer.set_params(**change)
    transformer.fit(X)
    # It starts anew beside the first, which stays as it was.
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 2
    assert path.read_bytes() == before
    fresh = clone(transformer).set_params(checkpoint_dir=None).fit(X)
    np.testing.assert_array_equal(transformer.transform(X), fresh.transform(X))


def test_folds_share_a_checkpoint_folder(tmp_path):
    pipe = Pipeline([("skatr", small(checkpoint_dir=tmp_path)), ("head", Ridge())])
    X = fields()
    assert len(cross_val_score(pipe, X, X[:, 0], cv=3)) == 3


def test_a_file_under_the_name_of_another_run(tmp_path):
    transformer, path = checkpointed(tmp_path)
    header = json.dumps({"format": 1, "run": "another"})
    save_file(load_file(path), path, metadata={"skatr_sk_checkpoint": header})
    with pytest.raises(ValueError, match="was not written by this run. Remove the file"):
        transformer.fit(fields())


def test_a_checkpoint_of_another_kind_of_device(tmp_path):
    # What another device's generator knew is not in the file; that is no reason to fail.
    transformer, path = checkpointed(tmp_path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = {k: v for k, v in load_file(path).items() if k != "generator.torch"}
    save_file(tensors, path, metadata=metadata)
    before = transformer.history_
    assert without_seconds(transformer.fit(fields()).history_) == without_seconds(before)


def test_a_checkpoint_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="random_state: expected an int with checkpoint_dir"):
        small(checkpoint_dir=tmp_path, random_state=None).fit(fields())


def test_resuming_is_logged(tmp_path, caplog):
    transformer, path = checkpointed(tmp_path)
    with caplog.at_level(logging.INFO, logger="skatr_sk"):
        transformer.fit(fields())
    assert f"Resumed after epoch 4 from {path}." in caplog.text


# Progress ----------------------------------------------------------------------------------------


def test_verbose_shows_a_bar_with_loss_and_rank(capfd):
    fitted = small(verbose=1).fit(fields())
    out, err = capfd.readouterr()
    assert out == ""
    last = err.rsplit("\r", 1)[-1]
    assert re.search(r"SKATRTransformer: 100%.*4/4", last)
    row = fitted.history_[-1]
    assert f"train={row['train_loss']:.3g}" in last
    assert f"valid={row['valid_loss']:.3g}" in last
    assert f"rank={row['effective_rank']:.3g}" in last


def test_a_quiet_fit_says_nothing(capfd):
    small().fit(fields())
    assert capfd.readouterr() == ("", "")


class Tasks:
    """A scikit-learn callback that notes the tasks of a fit."""

    max_propagation_depth = None

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.begun, self.ended = [], []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        self.begun.append((context.estimator_name, context.task_name, context.max_subtasks))

    def on_fit_task_end(self, estimator, context):
        self.ended.append((context.estimator_name, context.task_name))
        epochs = self.ended.count(("SKATRTransformer", "epoch"))
        return epochs == self.stop_at


def test_scikit_learns_callbacks_see_the_epochs():
    pytest.importorskip("sklearn.callback")
    tasks = Tasks()
    small().set_callbacks(tasks).fit(fields())
    epoch = ("SKATRTransformer", "epoch")
    assert tasks.ended == [epoch] * 4 + [("SKATRTransformer", "fit")]
    assert [begun[:2] for begun in tasks.begun] == [("SKATRTransformer", "fit")] + [epoch] * 4
    assert tasks.begun[0][2] == 4


def test_scikit_learns_callbacks_may_stop_the_run():
    pytest.importorskip("sklearn.callback")
    fitted = small().set_callbacks(Tasks(stop_at=2)).fit(fields())
    assert len(fitted.history_) == 2


def searched():
    pipe = Pipeline([("skatr", small()), ("head", Ridge())])
    return GridSearchCV(pipe, {"head__alpha": [0.1, 1.0]}, cv=2, error_score="raise")


@pytest.mark.filterwarnings("ignore:The estimator Ridge does not support callbacks")
def test_scikit_learns_callbacks_reach_into_a_search():
    pytest.importorskip("sklearn.callback")
    tasks = Tasks()
    searched().set_callbacks(tasks).fit(fields(), fields()[:, 0])
    # Two candidates on two folds, and the refit, of four epochs each.
    assert tasks.ended.count(("SKATRTransformer", "epoch")) == 20


@pytest.mark.filterwarnings("ignore:The estimator Ridge does not support callbacks")
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a search"])
def test_scikit_learns_progress_bar(inside, capfd):
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")  # draws the bars
    estimator = searched() if inside else small()
    bars = callback.ProgressBar(max_propagation_depth=None)
    estimator.set_callbacks(bars).fit(fields(), fields()[:, 0])
    out, err = capfd.readouterr()
    assert "SKATRTransformer" in out + err


# Threads -----------------------------------------------------------------------------------------


def test_threads_that_fit_and_load_at_once_do_not_disturb_each_other(tmp_path):
    X = fields()
    small().fit(X).save(tmp_path / "w.safetensors")
    alone = small(random_state=1).fit(X).transform(X)
    done = threading.Event()

    def load():
        while not done.is_set():
            SKATRTransformer.load(tmp_path / "w.safetensors")

    loader = threading.Thread(target=load)
    loader.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            fits = [pool.submit(small(random_state=1).fit, X) for _ in range(4)]
            results = [fit.result().transform(X) for fit in fits]
    finally:
        done.set()
        loader.join()
    for result in results:
        np.testing.assert_array_equal(result, alone)


def test_the_split_does_not_depend_on_the_type():
    X = fields()
    first, second = small(random_state=2).fit(X), small(random_state=2).fit(X.astype(np.float64))
    np.testing.assert_allclose(first.transform(X), second.transform(X), rtol=1e-4, atol=1e-5)


def test_the_kept_epoch_is_marked():
    history = small(max_epochs=3).fit(fields()).history_
    assert [row["kept"] for row in history] == [False, False, True]
    stopped = small(max_epochs=40, patience=3, learning_rate=0.3).fit(fields()).history_
    best = min(stopped, key=lambda row: row["valid_loss"])
    assert [row["epoch"] for row in stopped if row["kept"]] == [best["epoch"]]


def test_callbacks_must_be_instances():
    for wrong in ([3], [SkorchEarlyStopping]):
        with pytest.raises(ValueError, match="callbacks: expected a list of instances"):
            small(callbacks=wrong).fit(fields())
