"""Samples for other packages: names that these take, and that stay apart."""

import numpy as np
import pytest

from skatr_sk.heads.export import getdist_names, to_getdist

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
