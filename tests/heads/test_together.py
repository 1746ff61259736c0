"""Networks trained at once: each as it would be alone."""

import logging
import re

import numpy as np
import pytest
import torch

import skatr_sk.heads.together as together
from skatr_sk import LightconeRegressor, PosteriorEstimator
from skatr_sk.fields import as_fields
from skatr_sk.training.held_out import Rows
from tests.training.runs import Act

SMALL = dict(hidden_dims=(16, 8), n_members=3, max_epochs=8, random_state=0, device="cpu")
HEADS = {
    "l1": lambda **given: LightconeRegressor(**SMALL, **given),
    "with ridge": lambda **given: LightconeRegressor(
        max_epochs=15, patience=3, random_state=0, **given
    ),
    "gaussian, dropped": lambda **given: LightconeRegressor(
        **SMALL, loss="gaussian", dropout=0.2, patience=2, **given
    ),
    "to the end": lambda **given: LightconeRegressor(
        **SMALL, validation_fraction=0, patience=None, **given
    ),
    "posterior": lambda **given: PosteriorEstimator(
        **SMALL | dict(max_epochs=2), n_blocks=2, dropout=0.1, **given
    ),
}


def draw(n=203):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 10)).astype(np.float32)
    return X, np.tanh(X[:, :3]) + 0.1 * rng.normal(size=(n, 3)), rng.uniform(0.5, 2, n)


@pytest.fixture
def counted(monkeypatch):
    """How many networks were trained at once, each time that some were."""
    found, train = [], together._train_together
    monkeypatch.setattr(
        together, "_train_together", lambda members: found.append(len(members)) or train(members)
    )
    return found


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize(
    ("kind", "weighted"),
    [
        ("l1", False),
        *((kind, True) for kind in HEADS),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in HEADS if kind != "l1"),
    ],
)
def test_members_are_what_they_are_alone(kind, weighted, counted):
    X, y, weights = draw()
    weights = weights if weighted else None
    at_once = HEADS[kind]().fit(X, y, sample_weight=weights)
    assert counted == [5 if kind == "with ridge" else 3]
    alone = HEADS[kind](callbacks=[Act("epoch", lambda net: None)])
    alone.fit(X, y, sample_weight=weights)
    assert len(counted) == 1
    assert len(at_once.history_) == len(alone.history_)
    for found, wanted in zip(at_once.history_, alone.history_, strict=True):
        assert list(found) == list(wanted)
        assert (found["member"], found["epoch"], found["kept"]) == (
            *(wanted["member"], wanted["epoch"], wanted["kept"]),
        )
        for name in {"train_loss", "valid_loss"} & wanted.keys():
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5)
    some = X[:40]
    np.testing.assert_allclose(at_once.predict(some), alone.predict(some), rtol=1e-3, atol=1e-4)
    again = HEADS[kind]().fit(X, y, sample_weight=weights)
    np.testing.assert_array_equal(again.predict(some), at_once.predict(some))


def test_unlike_numbers_of_rows_are_filled_up(counted):
    """Groups of unlike sizes: members train and validate on unlike numbers of rows."""
    X, y, _ = draw(200)
    groups = np.repeat(np.arange(10), [34, 10, 10, 17, 25, 33, 16, 25, 20, 10])
    make = dict(SMALL, batch_size=64, validation_fraction=0.2, patience=None)
    at_once = LightconeRegressor(**make).fit(X, y, groups=groups)
    alone = LightconeRegressor(**make, callbacks=[Act("epoch", lambda net: None)])
    alone.fit(X, y, groups=groups)
    sizes = {len(valid) for (_, valid), _ in at_once._runs(as_fields(X), Rows(200, groups=groups))}
    assert len(sizes) > 1 and counted
    np.testing.assert_allclose(at_once.predict(X), alone.predict(X), rtol=1e-3, atol=1e-4)


def test_numbers_that_are_not_finite_are_met_alone(monkeypatch, caplog, counted):
    """What skips steps and goes back is the trainer of one network."""
    X, y, _ = draw(100)
    wanted = LightconeRegressor(**SMALL).fit(X, y)
    monkeypatch.setattr(together._Stacked, "are_finite", lambda stacked: np.zeros(3, dtype=bool))
    with caplog.at_level(logging.INFO, logger="skatr_sk.heads"):
        found = LightconeRegressor(**SMALL).fit(X, y)
    assert "3 networks diverged" in caplog.text
    np.testing.assert_allclose(found.predict(X), wanted.predict(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        {"callbacks": [Act("epoch", lambda net: None)]},
        {"max_epochs": 0},
        {"loss": torch.nn.L1Loss()},
        {"head": torch.nn.Linear(10, 3)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_is_trained_alone(given, counted):
    X, y, _ = draw(60)
    head = LightconeRegressor(**dict(n_members=2, max_epochs=2, random_state=0) | given)
    if "head" not in given:
        head.set_params(hidden_dims=(8,))
    if given.get("max_epochs") == 0:
        head.set_params(patience=20)
    assert len(head.fit(X, y).predict(X)) == 60
    assert counted == []


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_bar_shows_those_that_are_trained_at_once(fraction, counted, capfd):
    """With the mean of their losses; the numbers are those of a quiet fit."""
    X, y, _ = draw(60)
    make = SMALL | dict(max_epochs=3, validation_fraction=fraction, patience=None)
    loud = LightconeRegressor(**make, verbose=1).fit(X, y)
    last = capfd.readouterr().err.rsplit("\r", 1)[-1]
    assert re.search("LightconeRegressor, 3 networks at once: 100%.*3/3", last)
    of_last = [row for row in loud.history_ if row["epoch"] == 3]
    names = {"train": "train_loss"} | ({"valid": "valid_loss"} if fraction else {})
    for name, recorded in names.items():
        assert f"{name}={np.mean([row[recorded] for row in of_last]):.3g}" in last
    assert ("valid=" in last) == bool(fraction)
    quiet = LightconeRegressor(**make).fit(X, y)
    assert counted == [3, 3] and capfd.readouterr().err == ""
    np.testing.assert_array_equal(quiet.predict(X), loud.predict(X))


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize("kind", ["l1", "with ridge", "posterior"])
def test_means_of_tokens_are_summaries(kind, counted):
    """What predicts takes the tokens themselves."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(60, 7, 10)) + rng.normal(size=(60, 1, 10))
    y = tokens[:, :, :3].mean(axis=1)
    at_once = HEADS[kind]().set_params(max_epochs=3).fit(tokens, y)
    assert len(counted) == 1 and at_once.field_shape_in_ == (7, 10)
    alone = HEADS[kind](callbacks=[Act("epoch", lambda net: None)]).set_params(max_epochs=3)
    module = at_once.net_[0] if kind == "posterior" else at_once.head_[0]
    wanted = alone.fit(tokens, y).predict(tokens)
    np.testing.assert_allclose(at_once.predict(tokens), wanted, rtol=1e-3, atol=1e-4)
    pooled = module.pooling(torch.from_numpy(tokens))
    assert pooled.shape == (60, 10)
    HEADS[kind](pooling="attention").set_params(max_epochs=1).fit(tokens, y)
    assert len(counted) == 1  # attention is trained, in each network


def test_large_networks_take_turns(monkeypatch, counted):
    X, y, _ = draw(60)
    whole = LightconeRegressor(**SMALL | dict(n_members=5)).fit(X, y)
    monkeypatch.setattr(together, "_MOST_WEIGHTS", 1)
    parts = LightconeRegressor(**SMALL | dict(n_members=5)).fit(X, y)
    assert counted == [5, 2, 2, 1]
    np.testing.assert_allclose(parts.predict(X), whole.predict(X), rtol=1e-3, atol=1e-4)
