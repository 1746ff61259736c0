"""What all displays share: one sentence without matplotlib, progress bars, panels of the user."""

import sys

import numpy as np
import pytest

from skatr_sk.evaluation import CoverageDisplay, MarginalsDisplay, PosteriorDisplay, RecoveryDisplay
from tests.evaluation.posteriors import draws, fitted


@pytest.mark.parametrize("verbose", [0, 1])
def test_bars_show_when_asked_for(verbose, monkeypatch, capsys):
    pipe, X, y = fitted()
    monkeypatch.setattr("skatr_sk.training.progress._LONG", 0)
    monkeypatch.setattr("skatr_sk.evaluation.arrays._BAR_AFTER", 0)
    options = {"n_samples": 20, "verbose": verbose}
    sampling, tarp, ranks = "posterior: 100%", "TARP: 100%", "ranks: 100%"
    for call, bars in (
        (lambda: CoverageDisplay.from_samples(*draws(), verbose=verbose), [tarp]),
        (lambda: CoverageDisplay.from_samples(*draws(), method="ranks", verbose=verbose), [ranks]),
        (
            lambda: CoverageDisplay.from_estimator(pipe, X[:9], y[:9], **options),
            [sampling, "highest density: 100%"],
        ),
        (
            lambda: CoverageDisplay.from_estimator(pipe, X[:9], y[:9], method="tarp", **options),
            [sampling, tarp],
        ),
        (
            lambda: MarginalsDisplay.from_estimator(pipe, X[:9], y[:9], **options),
            [sampling, "quantiles: 100%"],
        ),
        (lambda: PosteriorDisplay.from_estimator(pipe, X[:1], **options), [sampling]),
    ):
        call()
        shown = capsys.readouterr().err
        assert [bar in shown for bar in bars] == [bool(verbose)] * len(bars)


def test_matplotlib_is_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for call in (
        lambda: PosteriorDisplay.from_samples(np.eye(2)),
        lambda: MarginalsDisplay.from_samples(*draws()),
        lambda: CoverageDisplay.from_levels([0.5]),
    ):
        with pytest.raises(ImportError, match=r'pip install "skatr_sk\[plots\]"'):
            call()


def test_what_is_shown_is_computed_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    samples, true = draws()
    assert MarginalsDisplay(samples=samples, y_true=true).coverage_.shape == (2, 2)
    assert PosteriorDisplay(samples=samples[0]).densities_["posterior"].shape[0] == 2
    assert RecoveryDisplay(y_true=true, y_pred=samples.mean(axis=1)).r2_.shape == (2,)


def test_an_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'boundz'"):
        PosteriorDisplay.from_samples(np.eye(2), boundz=None)
