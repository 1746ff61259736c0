"""Posteriors for the tests of displays: Gaussian ones, and a network fitted in a moment."""

import functools

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import PosteriorEstimator

NAMES = ["Omega_m", "zeta"]
BOUNDS = [[0.2, 0.4], [10.0, 250.0]]


def draws(n=40, m=300, seed=0):
    """Calibrated samples of two parameters, and their truths."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(n, 1, 2))
    true = (centre + 0.2 * rng.normal(size=(n, 1, 2)))[:, 0]
    return centre + 0.2 * rng.normal(size=(n, m, 2)), true


@functools.cache
def fitted():
    """A fitted posterior in a Pipeline, and its data."""
    rng = np.random.default_rng(0)
    y = rng.uniform(*np.transpose(BOUNDS), size=(300, 2))
    X = y / [0.2, 240] + 0.1 * rng.normal(size=y.shape)
    head = PosteriorEstimator(
        prior_bounds=BOUNDS,
        parameter_names=NAMES,
        n_blocks=2,
        hidden_dims=(16,),
        n_members=1,
        max_epochs=8,
        device="cpu",
        random_state=0,
    )
    return make_pipeline(StandardScaler(), head).fit(X, y), X, y
