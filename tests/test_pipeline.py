"""Real light cones through one Pipeline of transformer and head, with scikit-learn's own tools."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate, learning_curve
from sklearn.pipeline import Pipeline

from skatr_sk import LightconeRegressor, SKATRTransformer, load_lightcones
from skatr_sk.parameters import PARAMETER_NAMES


def make_pipeline():
    skatr = SKATRTransformer(
        patch_size=(2, 2, 45),
        embed_dim=24,
        depth=1,
        n_heads=2,
        objective="lejepa",  # which trains the soonest
        max_epochs=1,
        batch_size=16,
        device="cpu",
        random_state=0,
    )
    head = LightconeRegressor(
        hidden_dims=(16,), max_epochs=15, learning_rate=2e-2, device="cpu", random_state=0
    )
    return Pipeline([("skatr", skatr), ("head", head)])


@pytest.fixture(scope="module")
def cones():
    bunch = load_lightcones()
    # Fewer cones, as float32: the tools are on trial here, not what can be learnt.
    rows = np.arange(0, len(bunch.data), 4)
    return bunch.data[rows].astype(np.float32), bunch.target[rows], bunch.seeds[rows]


@pytest.fixture(scope="module")
def fitted(cones):
    X, y, _ = cones
    return make_pipeline().fit(X, y)


@pytest.fixture
def frozen(fitted):
    """The fitted transformer, frozen, before a head that is not fitted."""
    return Pipeline([("skatr", FrozenEstimator(fitted["skatr"])), ("head", clone(fitted["head"]))])


def test_fit_predict_score(fitted, cones):
    X, y, _ = cones
    predicted = fitted.predict(X[:7])
    assert predicted.shape == (7, 6)
    np.testing.assert_allclose(fitted.predict(X)[:7], predicted, rtol=1e-4)
    # In the units of each parameter, and for most of them better than their mean already.
    found, mean = fitted.predict(X), y.mean(axis=0)
    assert (np.abs(found.mean(axis=0) - mean) < 0.5 * y.std(axis=0)).all()
    error = np.abs(found - y).mean(axis=0) / np.abs(y - mean).mean(axis=0)
    assert (error < 1.2).all() and (error < 0.95).sum() >= 4
    assert error[PARAMETER_NAMES.index("log10_L_X")] < 0.7
    assert 0.1 < fitted.score(X, y) < 1
    # The pipeline is its two parts, one after the other.
    by_hand = fitted["head"].predict(fitted["skatr"].transform(X))
    np.testing.assert_array_equal(fitted.predict(X), by_hand)
    assert fitted["head"].n_features_in_ == 3 * 24  # by slices
    assert fitted[:-1].get_feature_names_out()[:2].tolist() == [
        "skatrtransformer0",
        "skatrtransformer1",
    ]


def test_one_parameter(cones):
    X, y, _ = cones
    assert make_pipeline().fit(X[:20], y[:20, 1]).predict(X[20:25]).shape == (5,)


def test_the_same_seeds_give_the_same_pipeline(fitted, cones):
    X, y, _ = cones
    np.testing.assert_array_equal(clone(fitted).fit(X, y).predict(X), fitted.predict(X))


def test_nested_parameters(fitted):
    cloned = clone(fitted)
    assert cloned.get_params()["skatr__embed_dim"] == 24
    cloned.set_params(skatr__embed_dim=12, head__hidden_dims=(4,))
    assert cloned["skatr"].embed_dim == 12
    assert cloned["head"].hidden_dims == (4,)
    assert fitted["skatr"].embed_dim == 24  # the original is another object
    with pytest.raises(ValueError, match="embeddim"):
        cloned.set_params(skatr__embeddim=12)


def test_joblib_round_trip(fitted, cones, tmp_path):
    X, _, _ = cones
    joblib.dump(fitted, tmp_path / "pipeline.joblib")
    loaded = joblib.load(tmp_path / "pipeline.joblib")
    np.testing.assert_array_equal(loaded.predict(X[:9]), fitted.predict(X[:9]))
    assert loaded["skatr"].history_ == fitted["skatr"].history_


def test_std_through_the_pipeline(frozen, cones):
    X, y, _ = cones
    mean, std = frozen.set_params(head__loss="gaussian").fit(X, y).predict(X[:5], return_std=True)
    assert mean.shape == std.shape == (5, 6)
    assert (std > 0).all()


def test_cross_validation_over_groups_of_cones(cones):
    X, y, seeds = cones
    groups = seeds % 7  # every bundled cone has a seed of its own
    results = cross_validate(
        make_pipeline(), X, y, groups=groups, cv=GroupKFold(2), return_indices=True,
        return_estimator=True, error_score="raise",
    )  # fmt: skip
    assert np.isfinite(results["test_score"]).all()
    for train, test in zip(results["indices"]["train"], results["indices"]["test"], strict=True):
        assert not set(groups[train]) & set(groups[test])
    first, second = (pipeline["skatr"] for pipeline in results["estimator"])
    assert first.scaling_ != second.scaling_  # each fold learns from its own cones


def test_frozen_means_frozen(frozen, fitted, cones):
    X, y, seeds = cones
    before = {k: v.clone() for k, v in fitted["skatr"].encoder_.state_dict().items()}
    results = cross_validate(
        frozen, X, y, groups=seeds, cv=GroupKFold(3), return_estimator=True, error_score="raise"
    )
    assert np.isfinite(results["test_score"]).all()
    for pipeline in results["estimator"]:
        # Not merely equal: no fold has another transformer.
        assert pipeline["skatr"].estimator is fitted["skatr"]
        np.testing.assert_array_equal(pipeline[:-1].transform(X), fitted[:-1].transform(X))
    after = fitted["skatr"].encoder_.state_dict()
    assert all((after[name] == before[name]).all() for name in before)


def test_learning_curve_of_the_head(frozen, cones):
    X, y, _ = cones
    sizes, train, test = learning_curve(
        frozen, X, y, train_sizes=[10, 29], cv=2, shuffle=True, random_state=0, error_score="raise"
    )
    assert sizes.tolist() == [10, 29]  # of 58 cones in two folds
    assert train.shape == test.shape == (2, 2)
    assert np.isfinite(train).all() and np.isfinite(test).all()


def test_search_over_the_head(frozen, cones):
    X, y, _ = cones
    grid = {"head__hidden_dims": [(), (8,)], "head__learning_rate": [1e-2, 1e-8]}
    search = GridSearchCV(frozen, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_["head__learning_rate"] == 1e-2
    assert search.predict(X[:3]).shape == (3, 6)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(frozen, cones):
    X, y, _ = cones
    alone, together = (
        cross_validate(frozen, X, y, cv=2, n_jobs=n_jobs, error_score="raise")["test_score"]
        for n_jobs in (1, 2)
    )
    # A process of its own may run another number of threads, and so round otherwise.
    np.testing.assert_allclose(together, alone, rtol=1e-2, atol=1e-2)
