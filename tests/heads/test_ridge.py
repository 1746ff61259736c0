"""Ridge regression as a head: scikit-learn's, and what it says of rows that it has not seen."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.preprocessing import StandardScaler

from skatr_sk.heads.mlp import CUT
from skatr_sk.heads.ridge import Ridge


def draw(n, n_summary=6, seed=0):
    rng = np.random.default_rng(seed)
    X = StandardScaler().fit_transform(rng.normal(size=(n, n_summary))).clip(-CUT, CUT)
    y = 0.5 + 0.1 * X[:, :2] + 0.1 * rng.normal(size=(n, 2))
    return X, y


def fitted(X, y, **parameters):
    kind = dict(gaussian=False, bounded=False) | parameters
    ridge = Ridge(X.shape[-1], y.shape[1], **kind)
    summaries = torch.from_numpy(X)
    return ridge, ridge.solve(ridge.features(summaries), torch.from_numpy(y)).numpy()


@pytest.mark.parametrize(("n", "n_summary"), [(80, 6), (20, 50)])
def test_it_is_that_of_scikit_learn(n, n_summary):
    X, y = draw(n, n_summary)
    ridge, left_out = fitted(X, y)
    features, targets = StandardScaler().fit(X), StandardScaler().fit(y)
    standardised = features.transform(X), targets.transform(y)
    searched = RidgeCV(np.logspace(-1, 5, 13)).fit(*standardised)
    expected = targets.inverse_transform(searched.predict(standardised[0]))
    np.testing.assert_allclose(ridge(torch.from_numpy(X)), expected, rtol=1e-10)
    alone = SklearnRidge(searched.alpha_)  # the penalty, and the scales, are those of all rows
    predicted = cross_val_predict(alone, *standardised, cv=LeaveOneOut())
    np.testing.assert_allclose(left_out, targets.inverse_transform(predicted), rtol=1e-8)


def test_tokens_are_averaged_and_scaled_again(rng):
    tokens = rng.normal(size=(60, 50, 4))
    y = tokens.mean(axis=1)[:, :1]
    y = 0.5 + y / np.ptp(y)
    ridge, _ = fitted(tokens, y)
    predicted = ridge(torch.from_numpy(tokens)).numpy()
    assert np.corrcoef(predicted[:, 0], y[:, 0])[0, 1] > 0.99
    pooled = torch.from_numpy(tokens.mean(axis=1))
    np.testing.assert_allclose(ridge(pooled), predicted)


def test_an_extreme_summary_is_cut():
    X, y = draw(40)
    ridge, _ = fitted(X, y)
    far = torch.from_numpy(np.where(X == X.max(), 1e6, X))
    assert np.abs(ridge(far).numpy() - y.mean()).max() < 1
    inside = torch.from_numpy(np.where(X == X.max(), CUT, X))
    np.testing.assert_array_equal(ridge(far), ridge(inside))


def test_bounds_and_errors_of_its_predictions():
    X, y = draw(200)
    y[:, 1] = 0.5 + 3 * (y[:, 1] - 0.5)
    free, left_out = fitted(X, y, gaussian=True)
    summaries = torch.from_numpy(X)
    mean, log_sigma = free(summaries).numpy().reshape(200, 2, 2).transpose(1, 0, 2)
    assert mean.min() < 0 and mean.max() > 1
    assert (log_sigma == log_sigma[0]).all()
    expected = np.sqrt(np.mean((left_out - y) ** 2, axis=0))
    np.testing.assert_allclose(np.exp(log_sigma[0]), expected)
    np.testing.assert_allclose(expected, [0.1, 0.3], rtol=0.15)
    bounded, cut = fitted(X, y, bounded=True)
    np.testing.assert_array_equal(bounded(summaries), mean.clip(0, 1))
    np.testing.assert_array_equal(cut, left_out.clip(0, 1))


def test_what_never_varies_says_nothing():
    X, y = draw(30)
    ridge, left_out = fitted(X, np.column_stack([y, np.full(30, 0.25)]))
    np.testing.assert_allclose(left_out[:, 2], 0.25)
    np.testing.assert_allclose(ridge(torch.from_numpy(X))[:, 2], 0.25)
    noise = 1e-8 * np.random.default_rng(1).normal(size=(30, 3))  # a constant, but for rounding
    wide, _ = fitted(np.column_stack([X, noise]), y)
    assert float(wide.linear.weight[:, 6:].abs().max()) < 1e-3
