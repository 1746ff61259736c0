"""Out-of-fold posterior draws."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit
from sklearn.pipeline import Pipeline

from skatr_sk import PosteriorEstimator
from skatr_sk.evaluation import cross_val_draws

SMALL = dict(n_blocks=1, n_bins=4, hidden_dims=(8,), n_members=1, max_epochs=2)
SMALL |= dict(device="cpu", random_state=0)


def data(n=40):
    rng = np.random.default_rng(0)
    y = rng.uniform(size=(n, 2))
    return np.concatenate([y, y**2], axis=1), y


def test_draws_are_of_the_fit_without_the_row():
    X, y = data()
    head = PosteriorEstimator(**SMALL)
    folds = KFold(2, shuffle=True, random_state=1)
    samples = cross_val_draws(head, X, y, cv=folds, n_samples=7, random_state=3)
    assert samples.shape == (40, 7, 2) and not hasattr(head, "net_")
    train, test = next(folds.split(X))
    seed = np.random.SeedSequence(3).spawn(2)[0]
    alone = PosteriorEstimator(**SMALL).fit(X[train], y[train])
    expected = alone.sample(X[test], 7, random_state=np.random.default_rng(seed))
    np.testing.assert_array_equal(samples[test], expected)


def test_pipelines_groups_and_parameters_of_fit(monkeypatch):
    X, y = data()
    labels, seen = np.arange(40) % 8, []
    fit = PosteriorEstimator.fit

    def spy(self, X, y, sample_weight=None, **given):
        seen.append((sample_weight, given))
        return fit(self, X, y, sample_weight, **given)

    monkeypatch.setattr(PosteriorEstimator, "fit", spy)
    pipe = Pipeline([("pca", PCA(2)), ("head", PosteriorEstimator(**SMALL))])
    params = {"head__groups": labels, "head__sample_weight": np.ones(40)}
    options = dict(cv=GroupKFold(4), groups=labels, n_samples=3, params=params)
    assert cross_val_draws(pipe, X, y, **options).shape == (40, 3, 2)
    assert len(seen) == 4
    for weights, given in seen:
        assert len(set(given["groups"])) == 6 and len(weights) == len(given["groups"]) == 30


def test_each_row_is_tested_once():
    X, y = data()
    with pytest.raises(ValueError, match="cv: expected each of 40 light cones in one test fold"):
        cross_val_draws(PosteriorEstimator(**SMALL), X, y, cv=ShuffleSplit(3, random_state=0))
    with pytest.raises(ValueError, match="n_samples: expected an integer >= 1"):
        cross_val_draws(PosteriorEstimator(**SMALL), X, y, n_samples=0)
