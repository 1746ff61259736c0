"""Steps that are not finite: skipped, undone, and never fitted."""

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from skatr_sk import DivergenceWarning, LightconeRegressor, PosteriorEstimator
from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.trainer import train
from tests.training.runs import (
    SMALL_JEPA,
    Act,
    Identity,
    Trained,
    signals,
    transformer,
    without_seconds,
)

N_STEPS = 3  # of an epoch of `signals`


def poison(net):
    """Spoil a weight beside the encoder, as a step of its own would."""
    with torch.no_grad():
        named = net.module_.named_parameters()
        next(p for name, p in named if "expander" in name).fill_(torch.nan)


class Wild(nn.Module):
    """A weight whose loss, or whose gradient, is not finite in the steps that are `bad`."""

    def __init__(self, bad, of="loss"):
        super().__init__()
        self.bad, self.of = bad, of
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))  # of a batch, as a norm keeps it
        self.steps = 0

    def forward(self, x):
        if not self.training:
            return self.weight + self.mean
        self.steps += 1
        if self.steps not in self.bad:
            return self.weight.square()
        if self.of == "gradient":
            return (self.weight - self.weight.detach()).sqrt()
        self.mean.fill_(torch.nan)
        return self.weight * torch.nan


def wild(bad, of="loss", valid=True, **parameters):
    """Train it in 3 steps an epoch, and return it, its history and the words of the warning."""
    rows = FieldDataset(ArrayFields(signals()))
    estimator = Trained(**dict(max_epochs=4, batch_size=8, learning_rate=0.1) | parameters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DivergenceWarning)
        module, history = train(
            estimator,
            lambda: Wild(bad, of),
            Identity(),
            rows,
            rows if valid else None,
            seeds=(0, 0),
        )
    return module, history, [str(w.message) for w in said if w.category is DivergenceWarning]


@pytest.mark.parametrize("of", ["loss", "gradient"])
@pytest.mark.parametrize("at", [1, 5, 12])
def test_a_step_that_is_not_finite_is_skipped_and_counted(of, at):
    module, history, (said,) = wild([at], of)
    assert [row.get("skipped_steps", 0) for row in history] == [int(at in e) for e in EPOCHS]
    assert all(math.isfinite(row["train_loss"]) for row in history)
    assert all("learning_rate_share" not in row for row in history)
    assert "1 of 12 steps" in said and "learning_rate (found 0.1)" in said
    # As a run that had one step less.
    assert module.weight.item() == pytest.approx(wild([])[0].weight.item(), abs=0.15)
    assert torch.isfinite(module.mean)


EPOCHS = [range(3 * n + 1, 3 * n + 4) for n in range(4)]


def test_nothing_is_said_of_a_run_that_is_finite():
    _, history, said = wild([])
    assert not said
    assert not any({"skipped_steps", "learning_rate_share"} & row.keys() for row in history)


def test_a_run_of_bad_steps_goes_back_at_half_the_rate():
    """Five in a row, across the end of an epoch: the state of the epoch before comes back."""
    seen = []
    watch = Act("batch", lambda net: seen.append((net.module_.weight.item(), net.rate)))
    module, history, (said,) = wild([5, 6, 7, 8, 9], callbacks=[watch])
    rates = [rate for _, rate in seen]
    assert rates == [0.1] * 8 + [0.05] * 4
    assert [row.get("skipped_steps") for row in history] == [None, 2, 3, None]
    assert [row.get("learning_rate_share") for row in history] == [None, None, 0.5, 0.5]
    assert "halved 1 times" in said
    assert torch.isfinite(module.weight)


def test_it_goes_back_three_times_and_then_says_what_was_seen():
    with pytest.raises(FloatingPointError) as error:
        wild(range(4, 100), max_epochs=40)
    said = str(error.value)
    assert "Training diverged: the loss became nan in epoch 8" in said, said
    assert "a learning rate of 0.1, halved 3 times to 0.013" in said
    assert "smaller learning_rate (found 0.1)" in said


@pytest.mark.parametrize("at", [5, 3 * N_STEPS])
def test_weights_that_are_spoilt_are_undone(at):
    """In the middle of an epoch, and by its last step; the run ends with finite weights."""
    with pytest.warns(DivergenceWarning, match="halved 1 times"):
        fitted = transformer(callbacks=[Act("batch", poison, at=at)]).fit(signals())
    assert np.isfinite(fitted.transform(signals())).all()
    assert [row.get("learning_rate_share") for row in fitted.history_][-1] == 0.5
    assert fitted.history_[-1]["kept"]


@pytest.mark.parametrize("valid", [0.25, 0.0])
def test_a_last_step_that_is_not_finite_is_never_fitted(valid):
    """Also where no row is held out, whose loss would tell."""
    fitted = transformer(validation_fraction=valid).fit(signals())
    before, history = fitted.transform(signals()), copy.deepcopy(fitted.history_)
    last = fitted.history_[-1]["epoch"] * math.ceil(24 * (1 - valid) / 8)
    fitted.set_params(callbacks=[Act("batch", poison, at=last)])
    with pytest.raises(FloatingPointError, match="diverged: .* in epoch 4 .*smaller learning_rate"):
        fitted.fit(signals())
    assert fitted.history_ == history
    np.testing.assert_array_equal(fitted.transform(signals()), before)
    fresh = transformer(validation_fraction=valid, callbacks=fitted.callbacks)
    with pytest.raises(FloatingPointError):
        fresh.fit(signals())
    assert not any(name.endswith("_") for name in vars(fresh))


OBJECTIVES = [SMALL_JEPA, VICReg(), LeJEPA(), Reconstruction(predictor_dim=8), Supervised()]


def estimators(**parameters):
    """Every estimator that trains, small."""
    for objective in OBJECTIVES:
        yield transformer(max_epochs=2, objective=objective, **parameters)
    small = dict(max_epochs=2, random_state=0, device="cpu") | parameters
    backbone = transformer(learning_rate=2e-3, validation_fraction=0.1)
    yield LightconeRegressor(**small)
    yield LightconeRegressor(hidden_dims=(8,), loss="gaussian", target_bounds=[[0, 1]], **small)
    yield LightconeRegressor(hidden_dims=(8,), backbone="vit", **small)
    yield LightconeRegressor(hidden_dims=(8,), backbone=backbone.set_params(batch_size=32), **small)
    yield PosteriorEstimator(n_blocks=1, hidden_dims=(8,), backbone="cnn", **small)
    for weight in (0.0, 10.0):
        flow = dict(n_blocks=2, hidden_dims=(8,), n_members=1, prior_bounds=[[0, 1]])
        yield PosteriorEstimator(**flow, **small, calibration_weight=weight)


@pytest.mark.filterwarnings("ignore:LightconeRegressor|SKATRTransformer:UserWarning")
@pytest.mark.parametrize(("rate", "valid"), [(1e20, 0.25), (1e38, 0.0)])
def test_a_rate_beyond_all_bounds_is_what_is_blamed(rate, valid):
    X = signals()
    y = X[:, :1].astype(np.float64)
    y = (y - y.min()) / np.ptp(y)
    blamed = 0
    for estimator in estimators(learning_rate=rate, validation_fraction=valid):
        try:
            estimator.fit(X, y)
        except FloatingPointError as error:
            assert re.search(r"Training diverged: .*learning_rate \(found", str(error))
            blamed += 1
        else:  # a bounded head can saturate, and stay finite
            assert estimator.target_bounds is not None and np.isfinite(estimator.predict(X)).all()
    assert blamed >= 10


def test_a_run_that_was_undone_resumes_alike(tmp_path):
    """What was skipped, how often it went back, and the rate are part of a checkpoint."""

    def cut(net):
        raise RuntimeError("cut")

    def made(*more, **folder):
        spoil = Act("batch", poison, at=4)  # of the second epoch, whose end undoes it
        return transformer(max_epochs=5, callbacks=[spoil, *more], **folder)

    with pytest.warns(DivergenceWarning):
        whole = made().fit(signals())
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    with pytest.raises(RuntimeError, match="cut"):
        made(Act("epoch", cut, at=4), **folder).fit(signals())
    with pytest.warns(DivergenceWarning, match="halved 1 times"):
        resumed = transformer(max_epochs=5, **folder).fit(signals())
    assert repr(without_seconds(resumed.history_)) == repr(without_seconds(whole.history_))
    np.testing.assert_array_equal(resumed.transform(signals()), whole.transform(signals()))
    assert [row.get("learning_rate_share") for row in resumed.history_] == [None, *[0.5] * 4]
