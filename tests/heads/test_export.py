"""Samples for other packages: names that these take, and that stay apart."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from skatr_sk import LightconeRegressor
from skatr_sk.evaluation import RecoveryDisplay
from skatr_sk.heads.export import getdist_names, to_arviz, to_getdist
from skatr_sk.parameters import PARAMETER_NAMES

NAMES = ["a b", "a_b", "x*", "x?", "x_", "", "a\tb", "a_b_2"]


def test_names_for_getdist_stay_apart():
    short = getdist_names(NAMES)
    assert len(set(short)) == len(NAMES)
    assert not any(set(name) & set(" \t*?") for name in short)
    for name in ("a_b", "x_", "a_b_2"):  # fine as they are
        assert short[NAMES.index(name)] == name


def test_getdist_takes_every_parameter_for_itself():
    pytest.importorskip("getdist")
    rng = np.random.default_rng(0)
    samples = rng.uniform(size=(1, 200, len(NAMES)))
    low = -1.0 - np.arange(len(NAMES))
    bounds = np.stack([low, np.full(len(NAMES), np.inf)], axis=1)
    (chain,) = to_getdist(samples, np.zeros((1, 200)), NAMES, bounds)
    assert chain.getParamNames().numNonDerived() == len(NAMES)
    for i, name in enumerate(getdist_names(NAMES)):
        assert chain.getMeans([i]) == pytest.approx(samples[0, :, i].mean())
        np.testing.assert_array_equal(chain[name], samples[0, :, i])
        assert chain.ranges.getLower(name) == low[i]


def test_getdist_shows_symbols_and_units(monkeypatch):
    made = []
    package = SimpleNamespace(MCSamples=lambda **given: made.append(given))
    monkeypatch.setitem(__import__("sys").modules, "getdist", package)
    names = [*PARAMETER_NAMES, "log10 T_vir", "my_own"]
    to_getdist(np.zeros((1, 5, 8)), np.zeros((1, 5)), names, np.full((8, 2), np.inf))
    assert made[0]["labels"] == [
        r"m_\mathrm{WDM}\;[\mathrm{keV}]",
        r"\Omega_m",
        r"E_0\;[\mathrm{eV}]",
        r"\log_{10} L_X\;[\mathrm{erg/s/(M_\odot/yr)}]",
        r"\log_{10} T_\mathrm{vir}\;[\mathrm{K}]",
        r"\zeta",
        r"\log_{10} T_\mathrm{vir}\;[\mathrm{K}]",
        r"my\_own",
    ]


def of_groups(posterior=None, *, sample_stats=None, coords=None, dims=None):
    """What ArviZ 0.x has."""
    return {"posterior": posterior, "sample_stats": sample_stats}, coords, dims


def of_a_dict(data, *, name=None, coords=None, dims=None):
    """What ArviZ 1.x has."""
    return data, coords, dims


@pytest.mark.parametrize("from_dict", [of_groups, of_a_dict])
def test_both_kinds_of_arviz(from_dict, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "arviz", SimpleNamespace(from_dict=from_dict))
    samples, log_prob = np.arange(12.0).reshape(2, 3, 2), np.arange(6.0).reshape(2, 3)
    groups, coords, dims = to_arviz(samples, log_prob, ["a", "b"])
    np.testing.assert_array_equal(groups["posterior"]["b"], samples[:, :, 1].T[None])
    np.testing.assert_array_equal(groups["sample_stats"]["lp"], log_prob.T[None])
    assert list(coords["lightcone"]) == [0, 1]
    assert dims == {name: ["lightcone"] for name in ("a", "b", "lp")}


def test_names_of_a_regressor_reach_its_display(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    y = pd.DataFrame(X[:, :2], columns=["Omega_m", "mine"])
    head = LightconeRegressor(hidden_dims=(4,), max_epochs=1).fit(X, y)
    assert head.parameter_names_ == ["Omega_m", "mine"]
    display = RecoveryDisplay.from_estimator(head, X, y)
    assert list(display.parameter_names) == ["Omega_m", "mine"]
    head.save(tmp_path / "head.safetensors")
    assert LightconeRegressor.load(tmp_path / "head.safetensors").parameter_names_ == [
        "Omega_m",
        "mine",
    ]
