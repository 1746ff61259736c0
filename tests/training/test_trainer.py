"""The trainer: failures, interrupts, early ends, the history of a run, threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import EpochScoring
from torch import nn

from skatr_sk import SKATRTransformer
from skatr_sk.fields import ArrayFields
from skatr_sk.training.batches import FieldDataset, TensorDataset
from skatr_sk.training.trainer import train
from tests.training.runs import (
    SMALL_JEPA,
    Act,
    Identity,
    Trained,
    raising,
    scripted,
    signals,
    transformer,
)


@pytest.mark.parametrize("at", [1, 4])
def test_a_users_interrupt_comes_through(at):
    fitted = transformer().fit(signals())
    before = fitted.transform(signals())
    fitted.set_params(callbacks=[Act("batch", raising(KeyboardInterrupt()), at)])
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(signals())
    np.testing.assert_array_equal(fitted.transform(signals()), before)


def test_callbacks_may_ask_for_the_end():
    def stop(net):
        net.stop_ = True

    seen = []
    early = Act("epoch", stop, at=2)
    fitted = transformer(max_epochs=50, callbacks=[early]).fit(signals())
    assert len(fitted.history_) == 2
    # Those that come later still see the epoch end.
    later = Act("epoch", lambda net: seen.append(len(net.history)))
    transformer(max_epochs=50, callbacks=[early, later]).fit(signals())
    assert seen == [1, 2]


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
    assert [row["epoch"] for row in history if row["kept"]] == [best]
    assert module.steps == best
    assert not module.training


def test_without_patience_the_last_epoch_stays():
    module, history = scripted([5.0, 1.0, 9.0])
    assert module.steps == len(history) == 3


def test_history_of_a_run():
    history = transformer(objective=SMALL_JEPA).fit(signals()).history_
    names = "epoch train_loss valid_loss effective_rank effective_rank_at_init seconds kept".split()
    of_the_jepa = {"prediction_loss", "place_loss", "place_share"}
    assert all([k for k in row if k not in of_the_jepa] == names for row in history)
    assert all(of_the_jepa < row.keys() for row in history)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert len({row["effective_rank_at_init"] for row in history}) == 1
    unwatched = transformer(validation_fraction=0.0).fit(signals()).history_
    assert all("valid_loss" not in row and "effective_rank" in row for row in unwatched)


def test_the_kept_epoch_is_marked():
    history = transformer(max_epochs=3).fit(signals()).history_
    assert [row["kept"] for row in history] == [False, False, True]
    stopped = transformer(max_epochs=40, patience=3, learning_rate=0.3).fit(signals()).history_
    best = min(stopped, key=lambda row: row["valid_loss"])
    assert [row["epoch"] for row in stopped if row["kept"]] == [best["epoch"]]


def test_no_epoch_keeps_the_module_as_it_was_built():
    module, history = scripted([], max_epochs=0)
    assert history == [] and module.steps == 0 and not module.training


def test_the_split_does_not_depend_on_the_type():
    X = signals()
    first = transformer(random_state=2).fit(X)
    second = transformer(random_state=2).fit(X.astype(np.float64))
    np.testing.assert_allclose(first.transform(X), second.transform(X), rtol=1e-4, atol=1e-5)


# What counts for one run -------------------------------------------------------------------------


def linear(seeds=(1, 2), **parameters):
    """Train a linear map on random rows; return its weights after training."""
    X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    module, _ = train(
        Trained(**dict(max_epochs=2, batch_size=5, learning_rate=0.1) | parameters),
        lambda: nn.Linear(3, 1),
        nn.L1Loss(),
        TensorDataset(X, X[:, :1]),
        None,
        seeds=seeds,
    )
    return module.weight


def test_seeds_fix_weights_and_order():
    before = torch.get_rng_state()
    assert torch.equal(linear((1, 2)), linear((1, 2)))
    assert not torch.equal(linear((1, 2)), linear((3, 2)))
    assert not torch.equal(linear((1, 2)), linear((1, 3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_matrices_decay():
    """A rate so small that the decay is all that moves the weights, if anything does."""
    start = linear(max_epochs=0)
    decayed = linear(learning_rate=1e-4, weight_decay=1e3)
    free = linear(learning_rate=1e-4, weight_decay=0.0)
    assert (decayed.abs() < 0.7 * start.abs()).all()
    assert (free - start).abs().max() < 1e-2

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.bias.sum() * 0

    rows = FieldDataset(ArrayFields(signals()))
    settings = Trained(max_epochs=2, learning_rate=1e-4, weight_decay=1e3)
    module, _ = train(settings, Bias, Identity(), rows, None, seeds=(0, 0))
    assert torch.equal(module.bias, torch.ones(3))


def test_threads_that_fit_and_load_at_once_do_not_disturb_each_other(tmp_path):
    X = signals()
    transformer(max_epochs=0).fit(X).save(tmp_path / "w.safetensors")
    other = transformer(random_state=1, max_epochs=2)
    alone = clone(other).fit(X).transform(X)
    done = threading.Event()

    def load():
        while not done.is_set():
            SKATRTransformer.load(tmp_path / "w.safetensors")

    loader = threading.Thread(target=load)
    loader.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            fits = [pool.submit(clone(other).fit, X) for _ in range(2)]
            results = [fit.result().transform(X) for fit in fits]
    finally:
        done.set()
        loader.join()
    for result in results:
        np.testing.assert_array_equal(result, alone)


@pytest.mark.parametrize("name", ["valid_loss", "train_loss", "kept"])
def test_a_score_cannot_take_the_name_of_a_loss(name):
    score = EpochScoring(lambda net, X, y: 0.0, name=name)
    with pytest.raises(ValueError, match=f"callbacks: expected a score of another name .*{name}"):
        transformer(callbacks=[score]).fit(signals())
