import pickle

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk.evaluation import (
    ParameterScorer,
    effective_rank,
    mean_absolute_relative_error,
    neg_mean_absolute_relative_error_scorer,
    r2_per_parameter,
)
from skatr_sk.training.effective_rank import effective_rank as effective_rank_of_the_history

LOW = np.array([0.3, 0.2, 100.0, 38.0, 4.0, 10.0])
HIGH = np.array([10.0, 0.4, 1500.0, 42.0, 5.3, 250.0])
METRICS = [mean_absolute_relative_error, r2_per_parameter]


@pytest.fixture
def parameters(rng):
    true = rng.uniform(LOW, HIGH, size=(40, 6))
    return true, true + rng.normal(0, 0.05 * (HIGH - LOW), size=true.shape)


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(60, 5))
    y = 20 + X @ rng.normal(size=(5, 2)) + rng.normal(0, 0.5, size=(60, 2))
    return X, y


# mean absolute relative error


def test_mare_by_hand():
    true = [[1.0, -2.0], [4.0, 10.0]]
    pred = [[1.5, -1.0], [4.0, 12.0]]
    raw = mean_absolute_relative_error(true, pred, multioutput="raw_values")
    np.testing.assert_allclose(raw, [0.25, 0.35])
    mean = mean_absolute_relative_error(true, pred)
    assert isinstance(mean, float)
    assert mean == pytest.approx(0.30)


def test_mare_is_relative(parameters):
    true, pred = parameters
    scale = np.logspace(-3, 3, 6)
    raw = mean_absolute_relative_error(true, pred, multioutput="raw_values")
    scaled = mean_absolute_relative_error(true * scale, pred * scale, multioutput="raw_values")
    np.testing.assert_allclose(scaled, raw)


def test_mare_one_dimensional_and_one_column_agree(parameters):
    true, pred = parameters[0][:, 1], parameters[1][:, 1]
    expected = np.mean(np.abs(pred / true - 1))
    assert mean_absolute_relative_error(true, pred) == pytest.approx(expected)
    assert mean_absolute_relative_error(true, pred[:, None]) == pytest.approx(expected)
    raw = mean_absolute_relative_error(true, pred, multioutput="raw_values")
    assert raw.shape == (1,)


def test_mare_weights_repeat_cones(parameters):
    true, pred = parameters
    weight = np.arange(40) % 3
    rows = np.repeat(np.arange(40), weight)
    weighted = mean_absolute_relative_error(true, pred, sample_weight=weight)
    assert weighted == pytest.approx(mean_absolute_relative_error(true[rows], pred[rows]))
    assert weighted != pytest.approx(mean_absolute_relative_error(true, pred))


def test_mare_of_float16_is_not_rounded_or_overflown():
    true = np.full((3000, 1), 1000, dtype=np.float16)
    assert mean_absolute_relative_error(true, true + 1) == pytest.approx(1e-3, rel=1e-9)


def test_mare_zero_truth_names_rows_and_columns(parameters):
    true, pred = parameters
    true[[3, 17], 4] = 0.0
    true[17, 1] = 0.0
    with pytest.raises(
        ValueError, match=r"zeros, found them in 3 of 240 .*rows 3, 17; parameter columns 1, 4"
    ):
        mean_absolute_relative_error(true, pred)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (np.ones(3), ValueError, r"expected one weight for each of the 40 .*shape \(3,\)"),
        (np.zeros(40), ValueError, "zero everywhere"),
        (np.where(np.arange(40) == 7, -1.0, 1.0), ValueError, r"others in rows 7\."),
        (np.where(np.arange(40) == 8, np.nan, 1.0), ValueError, r"others in rows 8\."),
        (["a"] * 40, TypeError, "sample_weight: .* found dtype <U1"),
    ],
)
def test_mare_bad_weights(parameters, weight, error, message):
    with pytest.raises(error, match=message):
        mean_absolute_relative_error(*parameters, sample_weight=weight)


def test_mare_unknown_multioutput_suggests_the_nearest(parameters):
    with pytest.raises(ValueError, match="found 'raw_value'; did you mean 'raw_values'"):
        mean_absolute_relative_error(*parameters, multioutput="raw_value")
    with pytest.raises(ValueError, match=r"multioutput: expected .* found \[0.5, 0.5\]"):
        mean_absolute_relative_error(*parameters, multioutput=[0.5, 0.5])


# R2


def test_r2_agrees_with_sklearn(parameters):
    true, pred = parameters
    for y, y_pred in [(true, pred), (true[:, 2], pred[:, 2]), (true, true), (true, -true)]:
        expected = r2_score(y, y_pred, multioutput="raw_values")
        np.testing.assert_allclose(r2_per_parameter(y, y_pred), expected, rtol=1e-12)


def test_r2_of_constant_truth_agrees_with_sklearn(parameters):
    true, pred = parameters
    true[:, [0, 3]] = 2.0
    pred[:, 0] = 2.0
    r2 = r2_per_parameter(true, pred)
    assert (r2[0], r2[3]) == (1.0, 0.0)
    np.testing.assert_allclose(r2, r2_score(true, pred, multioutput="raw_values"))


def test_r2_of_constant_truth_survives_rounding():
    true = np.full(3, 0.1)  # its mean is not 0.1 in floating point
    assert (true - true.mean() != 0).any()
    np.testing.assert_array_equal(r2_per_parameter(true, true + 0.01), [0.0])


def test_r2_of_one_cone_is_nan_with_a_warning():
    with pytest.warns(UserWarning, match="single light cone"):
        r2 = r2_per_parameter([[1.0, 2.0]], [[1.0, 3.0]])
    np.testing.assert_array_equal(r2, [np.nan, np.nan])


# what both refuse


@pytest.mark.parametrize("metric", METRICS)
def test_bad_shapes(metric, parameters):
    true, pred = parameters
    for other in (pred[:, :5], pred[:-1], pred[:, 0]):
        with pytest.raises(
            ValueError, match=r"y_pred: expected the shape of y_true, \(40, 6\), found"
        ):
            metric(true, other)
    with pytest.raises(ValueError, match="y_pred: expected shape .*average posterior samples"):
        metric(true, np.stack([pred, pred], axis=1))
    with pytest.raises(ValueError, match=r"(?s)y_true: .* found \(\).*y_pred: .* found \(\)"):
        metric(1.0, 1.0)
    with pytest.raises(ValueError, match=r"y_true: .* at least one .* \(0, 6\)"):
        metric(true[:0], pred[:0])
    with pytest.raises(ValueError, match="y_true: expected a rectangular array"):
        metric([[1.0], [1.0, 2.0]], pred)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_missing_values_are_all_named_at_once(metric, value, parameters):
    true, pred = parameters
    true[5, 2] = value
    pred[np.arange(6, 20), 0] = value
    message = r"(?s)y_true: .* NaN or infinite .* 1 of 40 light cones \(rows 5\).*"
    message += r"y_pred: .* 14 of 40 light cones \(rows 6, 7, 8, 9, 10 and 9 more\)"
    with pytest.raises(ValueError, match=message):
        metric(true, pred)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [object, complex, str])
def test_other_types_are_refused(metric, dtype, parameters):
    true, pred = parameters
    with pytest.raises(TypeError, match="y_pred: expected real numbers, found dtype "):
        metric(true, pred.astype(dtype))


# scorers


def test_scorer_in_cross_val_score(problem):
    X, y = problem
    scores = cross_val_score(
        LinearRegression(), X, y, cv=3, scoring=neg_mean_absolute_relative_error_scorer
    )
    rest, fold = np.arange(20, 60), np.arange(20)  # the first of three unshuffled folds
    pred = LinearRegression().fit(X[rest], y[rest]).predict(X[fold])
    assert scores.shape == (3,)
    assert scores[0] == pytest.approx(-np.mean(np.abs(pred - y[fold]) / y[fold]))


def test_scorer_picks_the_better_model_in_a_parallel_search(problem):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": [1e6, 1e-3]},
        scoring=neg_mean_absolute_relative_error_scorer,
        cv=3,
        n_jobs=2,
    )
    with parallel_config(backend="multiprocessing"):  # these need not import torch anew
        search.fit(*problem)
    assert search.best_params_ == {"ridge__alpha": 1e-3}
    assert search.score(*problem) == pytest.approx(
        neg_mean_absolute_relative_error_scorer(search, *problem)
    )


def test_scorer_weighs(problem):
    X, y = problem
    model = Ridge().fit(X, y)
    weight = np.arange(60.0)
    expected = -mean_absolute_relative_error(y, model.predict(X), sample_weight=weight)
    found = neg_mean_absolute_relative_error_scorer(model, X, y, sample_weight=weight)
    assert found == expected
    assert found != neg_mean_absolute_relative_error_scorer(model, X, y)


def test_parameter_scorer_makes_columns(problem):
    X, y = problem
    table = cross_validate(
        Ridge(), X, y, scoring=ParameterScorer(["Omega_m", "zeta"]), return_estimator=True
    )
    fold = np.arange(12)
    pred = table["estimator"][0].predict(X[fold])
    r2 = r2_score(y[fold], pred, multioutput="raw_values")
    mare = np.mean(np.abs(pred - y[fold]) / y[fold], axis=0)
    for index, name in enumerate(["Omega_m", "zeta"]):
        assert table[f"test_r2_{name}"][0] == pytest.approx(r2[index])
        assert table[f"test_mare_{name}"][0] == pytest.approx(mare[index])
    assert table["test_r2"][0] == pytest.approx(r2.mean())
    assert table["test_neg_mean_absolute_relative_error"][0] == pytest.approx(-mare.mean())


@pytest.mark.parametrize("refit", ["r2", "neg_mean_absolute_relative_error"])
def test_parameter_scorer_refits_a_search(problem, refit):
    search = GridSearchCV(
        Ridge(), {"alpha": [1e6, 1e-3]}, scoring=ParameterScorer(["a", "b"]), refit=refit, cv=3
    )
    assert search.fit(*problem).best_params_ == {"alpha": 1e-3}


def test_parameter_scorer_pickles_and_shows_its_names():
    scorer = ParameterScorer(np.array(["Omega_m", "zeta"]))
    assert pickle.loads(pickle.dumps(scorer)).names == ("Omega_m", "zeta")
    assert repr(scorer) == "ParameterScorer(['Omega_m', 'zeta'])"


def test_parameter_scorer_takes_one_dimensional_targets(problem):
    X, y = problem
    scores = ParameterScorer(["zeta"])(Ridge().fit(X, y[:, 0]), X, y[:, 0])
    assert scores["r2"] == scores["r2_zeta"]
    assert 0 < scores["mare_zeta"] < 0.1


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("zeta", TypeError, "sequence of different strings.* found 'zeta'"),
        (3, TypeError, "expected a sequence .* found 3"),
        ([], TypeError, r"expected a sequence .* found \[\]"),
        (["a", 1], TypeError, r"expected .* found \['a', 1\]"),
        (["a", "b", "a"], ValueError, r"different strings, .* found \['a', 'b', 'a'\]"),
    ],
)
def test_parameter_scorer_bad_names(names, error, message):
    with pytest.raises(error, match=message):
        ParameterScorer(names)


def test_parameter_scorer_counts_columns(problem):
    X, y = problem
    with pytest.raises(
        ValueError, match=r"names: expected 2, one for each parameter .* found 3 \(a, b, c\)"
    ):
        ParameterScorer(["a", "b", "c"])(Ridge().fit(X, y), X, y)


# effective rank


def test_one_rule_for_history_and_metrics():
    assert effective_rank is effective_rank_of_the_history
