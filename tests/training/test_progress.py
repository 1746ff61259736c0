"""Bars and log lines of what takes long."""

import inspect
import logging

import numpy as np
import pytest

from skatr_sk import PosteriorEstimator, make_lightcones, save_lightcones
from skatr_sk.lightcones import convert_lightcones
from skatr_sk.training import progress
from skatr_sk.training.progress import watched
from tests.training.runs import signals, transformer

LOGGER = logging.getLogger("skatr_sk.test")


@pytest.fixture
def at_once(monkeypatch):
    """All takes long."""
    monkeypatch.setattr(progress, "_LONG", -1.0)


def test_what_takes_long_is_logged_twice(at_once, caplog, capfd):
    with caplog.at_level(logging.INFO, "skatr_sk"):
        with watched("things", 3, "thing", verbose=0, logger=LOGGER) as tell:
            for _ in range(3):
                tell(1)
    first, last = caplog.messages
    assert first.startswith("things: 1 of 3, about 0.0 minutes to go")
    assert last.startswith("things: 3 in 0 s")
    assert capfd.readouterr() == ("", "")


def test_what_is_fast_is_not_said(caplog, capfd):
    with caplog.at_level(logging.INFO, "skatr_sk"):
        with watched("things", 3, "thing", verbose=1, logger=LOGGER) as tell:
            tell(3)
    assert caplog.messages == [] and capfd.readouterr().out == ""


def simulate(path, verbose):
    X, y = make_lightcones(2, field_shape=(4, 4, 8), random_state=0, verbose=verbose)
    assert X.shape == (2, 4, 4, 8) and y.shape == (2, 6)


def write(path, verbose):
    save_lightcones(path / "a.h5", signals(), verbose=verbose)


def convert(path, verbose):
    np.save(path / "a.npy", signals())
    convert_lightcones(path / "a.npy", path / "b.h5", verbose=verbose)


def summarise(path, verbose):
    transformer(max_epochs=0, batch_size=32).fit(signals()).set_params(
        verbose=verbose, cache=None
    ).transform(signals())


def sample(path, verbose):
    X = signals(20)
    head = PosteriorEstimator(n_blocks=1, hidden_dims=(4,), n_members=1, max_epochs=1, device="cpu")
    head.fit(X, X[:, :1]).set_params(verbose=verbose).sample(X, 3)


@pytest.mark.parametrize("call", [simulate, write, convert, summarise, sample])
@pytest.mark.filterwarnings("ignore::skatr_sk.NoEffectWarning")
def test_long_calls_have_a_bar(call, at_once, tmp_path, capfd, caplog):
    call(tmp_path, 0)
    assert capfd.readouterr() == ("", "")
    for path in tmp_path.iterdir():
        path.unlink()
    with caplog.at_level(logging.INFO, "skatr_sk"):
        call(tmp_path, 1)
    assert "100%" in capfd.readouterr().err
    assert any(" in 0 s." in line or " in 1 s." in line for line in caplog.messages)


def test_make_lightcones_shows_its_parameters():
    names = list(inspect.signature(make_lightcones).parameters)
    assert names[:2] == ["n_samples", "field_shape"] and names[-1] == "verbose"
