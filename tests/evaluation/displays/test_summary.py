"""SummaryDisplay: the map of summaries, its colours, new light cones, and what it refuses."""

import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.dummy import DummyRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk.evaluation import SummaryDisplay
from tests.evaluation.posteriors import BOUNDS, fitted


@pytest.fixture
def problem(rng):
    """Summaries that know one of two parameters."""
    y = rng.uniform(size=(200, 2))
    known = (y * [3.0, 0.0]) @ rng.normal(size=(2, 10))
    return known + 0.1 * rng.normal(size=(200, 10)), y


def test_the_map_follows_what_the_summaries_know(problem):
    summaries, y = problem
    display = SummaryDisplay.from_summaries(summaries, y, method="pca", parameter_names=["a", "b"])
    assert abs(np.corrcoef(display.map_[:, 0], y[:, 0])[0, 1]) > 0.95
    first, second = display.explained_variance_ratio_
    assert first > 0.8 > second
    assert display.axes_[0].get_xlabel() == f"1st component ({first:.0%})"
    for points, values in zip(display.points_, y.T, strict=True):
        np.testing.assert_array_equal(points.get_offsets(), display.map_)
        np.testing.assert_array_equal(points.get_array(), values)
    bars = [points.colorbar.ax.get_ylabel() for points in display.points_]
    assert bars == ["a", "b"]


def test_new_light_cones_lie_on_the_map_of_the_others(problem):
    summaries, y = problem
    new = {"same": summaries[:3], "other": summaries[:2] + 9}
    display = SummaryDisplay.from_summaries(summaries, y[:, 0], new=new, method="pca")
    np.testing.assert_allclose(display.new_["same"], display.map_[:3], atol=1e-9)
    shown = display.axes_[0].collections[1].get_offsets()
    np.testing.assert_allclose(shown, display.new_["same"])
    assert [text.get_text() for text in display.legend_.get_texts()] == ["same", "other"]
    plain = SummaryDisplay.from_summaries(summaries, method="pca")
    assert plain.axes_.shape == (1,) and plain.legend_ is None
    np.testing.assert_allclose(plain.map_, display.map_)


def test_summaries_of_a_pipeline_are_those_before_its_head():
    pipe, X, y = fitted()
    display = SummaryDisplay.from_estimator(pipe, X, y, X_new=X[:2], method="pca")
    np.testing.assert_allclose(display.summaries, StandardScaler().fit_transform(X))
    np.testing.assert_allclose(display.new_["new"], display.map_[:2], atol=1e-9)
    assert display.points_[0].get_clim() == tuple(BOUNDS[0])
    assert display.points_[1].colorbar.ax.get_ylabel() == r"$\zeta$"
    scaler = StandardScaler().fit(X)
    alone = SummaryDisplay.from_estimator(scaler, X, y[:, 0], method="pca")
    np.testing.assert_allclose(alone.map_, display.map_)
    with pytest.raises(TypeError, match="found DummyRegressor; give its summaries"):
        SummaryDisplay.from_estimator(DummyRegressor(), X)
    searched = make_pipeline(scaler, DummyRegressor()).fit(X, y)
    assert SummaryDisplay.from_estimator(searched, X, method="pca").map_.shape == (300, 2)


def test_umap_is_taken_where_it_is_installed(problem, monkeypatch):
    class UMAP:
        def __init__(self, **options):
            assert options == {"n_components": 2, "random_state": 3, "n_jobs": 1}

        def fit_transform(self, X):
            return X[:, :2].astype(np.float32)

        transform = fit_transform

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "umap" or None)
    display = SummaryDisplay(summaries=problem[0], new=problem[0][:1], random_state=3)
    assert display.method_ == "umap" and display.explained_variance_ratio_ is None
    np.testing.assert_allclose(display.new_["new"], display.map_[:1])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert SummaryDisplay(summaries=problem[0]).method_ == "pca"
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r'pip install "skatr_sk\[umap\]"'):
        SummaryDisplay(summaries=problem[0], method="umap")


def test_umap_keeps_what_the_summaries_know(problem):
    pytest.importorskip("umap")
    summaries, y = problem
    display = SummaryDisplay(summaries=summaries, new=summaries[:5], method="umap")
    again = SummaryDisplay(summaries=summaries, method="umap")
    np.testing.assert_array_equal(display.map_, again.map_)
    apart = np.abs(y[:, :1] - y[:, 0])
    nearest = np.linalg.norm(display.map_[:, np.newaxis] - display.map_, axis=2).argsort(1)[:, 1]
    assert np.median(apart[np.arange(200), nearest]) < 0.2 * np.median(apart)
    assert np.linalg.norm(display.new_["new"] - display.map_[:5], axis=1).max() < 1.0


def test_axes_of_the_user(problem):
    _, axes = plt.subplots(1, 2)
    given = SummaryDisplay.from_summaries(*problem, new=problem[0][:1], method="pca", ax=axes)
    assert given.axes_[1] is axes[1] and given.legend_ is axes[0].get_legend()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"summaries": np.zeros((5, 4, 4))}, r"summaries: .* found \(5, 4, 4\); transform light"),
        ({"summaries": np.zeros((2, 4))}, "at least 3 light cones"),
        ({"summaries": np.full((5, 4), np.nan)}, "summaries: expected finite numbers"),
        ({"y": np.zeros(4)}, "y: expected a row for each of 5"),
        ({"new": np.zeros((2, 3))}, r"new: expected shape \(n_lightcones, 4\), found \(2, 3\)"),
        ({"method": "tsne"}, "method: expected one of 'auto', 'umap', 'pca', found 'tsne'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        SummaryDisplay.from_summaries(**({"summaries": np.eye(5, 4)} | options))
    assert plt.get_fignums() == []
