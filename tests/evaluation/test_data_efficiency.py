"""Curves of scores over the number of labels."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, learning_curve
from sklearn.pipeline import Pipeline

from skatr_sk import SKATRTransformer, load_lightcones, open_lightcones, save_lightcones
from skatr_sk.evaluation import (
    DataEfficiencyDisplay,
    ParameterScorer,
    data_efficiency_curve,
    mean_absolute_relative_error,
    parameter_scores,
)
from skatr_sk.summaries import cache_info, clear_cache

NAMES = ["Omega_m", "zeta"]


class Recorder(BaseEstimator):
    """Predicts the mean, and remembers on which rows it was fitted and asked."""

    log = []

    def __init__(self, name=""):
        self.name = name

    def fit(self, X, y):
        self.mean_ = np.mean(y, axis=0)
        self.log.append(["fit", self.name, np.asarray(X)[:, 0].tolist()])
        return self

    def predict(self, X):
        self.log.append(["predict", self.name, np.asarray(X)[:, 0].tolist()])
        return np.broadcast_to(self.mean_, (len(X), *np.shape(self.mean_)))


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(40, 3))
    X[:, 0] = np.arange(40)
    y = 50 + X @ rng.normal(size=(3, 2)) + rng.normal(size=(40, 2))
    return X, y


def rows(table, **wanted):
    """Values of the rows with these entries."""
    chosen = np.ones(len(table["value"]), dtype=bool)
    for column, value in wanted.items():
        chosen &= table[column] == value
    return table["value"][chosen]


# the table


def test_table_is_tidy(problem):
    estimators = {"ridge": Ridge(), "mean": DummyRegressor()}
    table = data_efficiency_curve(
        estimators, *problem, [8, 32], cv=5, n_repeats=3, parameter_names=NAMES, random_state=0
    )
    columns = "estimator size fold repeat seed parameter metric value fit_seconds".split()
    assert list(table) == columns
    assert {len(column) for column in table.values()} == {2 * 2 * 5 * 3 * 2 * 2}
    assert all(column.ndim == 1 for column in table.values())
    assert table["size"].dtype.kind == table["seed"].dtype.kind == "i"
    assert list(dict.fromkeys(table["estimator"])) == ["ridge", "mean"]
    assert list(dict.fromkeys(table["parameter"])) == NAMES
    assert list(dict.fromkeys(table["metric"])) == ["mean_absolute_relative_error", "r2"]
    assert len(np.unique(table["seed"])) == 5 * 3
    assert (table["fit_seconds"] > 0).all()
    # No row says what another one says already.
    keys = zip(*(table[c] for c in columns[:4] + columns[5:7]), strict=True)
    assert len(set(keys)) == len(table["value"])
    pandas = pytest.importorskip("pandas")
    means = pandas.DataFrame(table).groupby(["estimator", "size", "metric"])["value"].mean()
    assert means["ridge", 32, "r2"] > means["ridge", 8, "r2"] > means["mean", 8, "r2"]


def test_subsets_are_nested_and_the_test_fold_is_fixed(problem):
    X, y = problem
    Recorder.log.clear()
    table = data_efficiency_curve(
        {"a": Recorder("a"), "b": Recorder("b")}, X, y, [4, 9, 30], cv=4, n_repeats=2,
        random_state=0,
    )  # fmt: skip
    fits = [entry for entry in Recorder.log if entry[0] == "fit"]
    tests = [entry for entry in Recorder.log if entry[0] == "predict"]
    assert len(fits) == len(tests) == 2 * 3 * 4 * 2
    drawn = {}
    order = [(n, s, f, r) for n in "ab" for s in (4, 9, 30) for f in range(4) for r in range(2)]
    for key, fit, test in zip(order, fits, tests, strict=True):
        name, size, fold, _ = key
        assert fit[1] == name
        assert len(fit[2]) == size
        assert test[2] == list(range(10 * fold, 10 * fold + 10))
        assert not set(fit[2]) & set(test[2])
        drawn[key] = fit[2]
    for _, _, fold, repeat in order:
        small, middle, large = (drawn["a", size, fold, repeat] for size in (4, 9, 30))
        assert small == middle[:4] and middle == large[:9]
        assert all(drawn["b", s, fold, repeat] == drawn["a", s, fold, repeat] for s in (4, 9, 30))
    # Shuffled, each time otherwise.
    assert len({tuple(drawn["a", 30, fold, repeat]) for fold in range(4) for repeat in (0, 1)}) == 8
    assert drawn["a", 30, 0, 0] != sorted(drawn["a", 30, 0, 0])
    assert rows(table, estimator="a").tolist() == rows(table, estimator="b").tolist()


def test_random_state(problem):
    def run(seed):
        return data_efficiency_curve(Ridge(), *problem, [8], n_repeats=2, random_state=seed)

    first, same, other = run(0), run(np.random.RandomState(0)), run(1)
    for column in set(first) - {"fit_seconds"}:
        np.testing.assert_array_equal(first[column], same[column])
    assert (first["value"] != other["value"]).all()


def test_values_are_the_scores_of_a_fit_by_hand(problem):
    X, y = problem
    table = data_efficiency_curve(
        Ridge(), X, y, [1.0], cv=KFold(4), parameter_names=NAMES, random_state=0
    )
    for fold, (train, test) in enumerate(KFold(4).split(X)):
        predicted = Ridge().fit(X[train], y[train]).predict(X[test])
        for i, name in enumerate(NAMES):
            at = {"fold": fold, "parameter": name}
            (r2,) = rows(table, metric="r2", **at)
            (error,) = rows(table, metric="mean_absolute_relative_error", **at)
            assert r2 == pytest.approx(r2_score(y[test, i], predicted[:, i]))
            expected = mean_absolute_relative_error(y[test, i], predicted[:, i])
            assert error == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:R.2 score is not well-defined")  # of one light cone
def test_sizes_are_those_of_learning_curve(problem):
    X, y = problem
    for sizes in ([0.1, 0.55, 1.0], [1, 5, 32], np.linspace(0.1, 1.0, 5), [0.001]):
        expected, *_ = learning_curve(Ridge(), X, y, train_sizes=sizes, cv=5)
        table = data_efficiency_curve(Ridge(), X, y, sizes, random_state=0)
        assert np.unique(table["size"]).tolist() == expected.tolist()


def test_folds_of_unequal_sizes(problem):
    X, y = problem
    splits = [(np.arange(10), np.arange(30, 40)), (np.arange(20), np.arange(20, 40))]
    table = data_efficiency_curve(Ridge(), X, y, [1.0], cv=splits, random_state=0)
    assert np.unique(table["size"]).tolist() == [10]
    with pytest.raises(ValueError, match=r"expected integers in \[1, 10\], found \[20\]"):
        data_efficiency_curve(Ridge(), X, y, [20], cv=splits)


def test_groups(problem):
    X, y = problem
    groups = np.arange(40) % 8
    Recorder.log.clear()
    data_efficiency_curve(Recorder(), X, y, [1.0], groups=groups, cv=GroupKFold(4), random_state=0)
    for fit, test in zip(Recorder.log[::2], Recorder.log[1::2], strict=True):
        assert not {row % 8 for row in fit[2]} & {row % 8 for row in test[2]}


def test_one_parameter(problem):
    X, y = problem
    table = data_efficiency_curve(Ridge(), X, y[:, 0], [8, 32], random_state=0)
    assert set(table["parameter"]) == {"parameter_0"}
    assert set(table["estimator"]) == {"Ridge"}


def log_probability(estimator, X, y):
    return 2.5


@pytest.mark.parametrize(
    ("scoring", "metrics", "parameters"),
    [
        ("r2", {"score"}, {"all"}),
        (log_probability, {"score"}, {"all"}),
        (ParameterScorer(NAMES), {"r2", "r2_zeta", "mare_zeta"}, {"all"}),
        (lambda e, X, y: {"bias": (e.predict(X) - y).mean(axis=0)}, {"bias"}, set(NAMES)),
        (lambda e, X, y: {"a": 1.0, "b": [2.0, 3.0]}, {"a", "b"}, {"all", *NAMES}),
    ],
)
def test_scoring(problem, scoring, metrics, parameters):
    table = data_efficiency_curve(
        Ridge(), *problem, [32], scoring=scoring, parameter_names=NAMES, random_state=0
    )
    assert metrics <= set(table["metric"])
    assert set(table["parameter"]) == parameters
    assert np.isfinite(table["value"]).all()


def test_scores_that_are_not_defined_are_nan():
    X = np.arange(6.0)[:, None]
    y = np.column_stack([np.arange(6.0), np.arange(1.0, 7.0)])
    scores = parameter_scores(LinearRegression().fit(X, y), X, y)
    np.testing.assert_allclose(scores["mean_absolute_relative_error"], [np.nan, 0], atol=1e-9)
    scores = parameter_scores(LinearRegression().fit(X, y), X[1:2], y[1:2])
    assert np.isnan(scores["r2"]).all()


@pytest.mark.slow
def test_two_processes_give_the_same_table(problem):
    alone, together = (
        data_efficiency_curve(Ridge(), *problem, [8, 32], n_jobs=n_jobs, random_state=0)
        for n_jobs in (1, 2)
    )
    for column in set(alone) - {"fit_seconds"}:
        np.testing.assert_array_equal(together[column], alone[column])


@pytest.mark.parametrize("kept", ["in memory", "in files"])
def test_the_encoder_sees_each_cone_once(kept, tmp_path):
    bunch = load_lightcones()
    X, y = bunch.data[:20].astype(np.float32), bunch.target[:20]
    skatr = SKATRTransformer(
        patch_size=(2, 2, 45), embed_dim=8, depth=1, n_heads=2, max_epochs=0, random_state=0
    )
    skatr.fit(bunch.data[20:30]).save(tmp_path / "weights.safetensors")  # on other cones
    if kept == "in files":
        save_lightcones(tmp_path / "cones.h5", X)
        X = open_lightcones(tmp_path / "cones.h5").data
    frozen = SKATRTransformer(weights=tmp_path / "weights.safetensors")
    clear_cache()
    table = data_efficiency_curve(
        {str(alpha): Pipeline([("skatr", frozen), ("head", Ridge(alpha))]) for alpha in (1, 9)},
        X, y, [5, 10], cv=KFold(3, shuffle=True, random_state=0), n_repeats=2, random_state=0,
    )  # fmt: skip
    assert cache_info().misses == 20
    assert np.isfinite(rows(table, metric="mean_absolute_relative_error")).all()


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimators": {}}, TypeError, r"estimators: expected .* found \{\}"),
        ({"estimators": {"a": 3}}, TypeError, "dict of names to estimators, found {'a': 3}"),
        ({"estimators": {1: Ridge()}}, TypeError, r"found {1: Ridge\(\)}"),
        ({"estimators": {"a": Ridge}}, TypeError, "found {'a': <class"),
        ({"train_sizes": [0.0, 0.5]}, ValueError, r"fractions .* found \[0.0\]; .* has 32 light"),
        ({"train_sizes": [0.5, 1.5]}, ValueError, r"expected fractions .* found \[1.5\]"),
        ({"train_sizes": [0.5, np.nan]}, ValueError, r"expected fractions .* found \[nan\]"),
        ({"train_sizes": [0, 33]}, ValueError, r"expected integers in \[1, 32\], found \[0, 33\]"),
        ({"train_sizes": []}, ValueError, r"train_sizes: expected a list .* found \[\]"),
        ({"train_sizes": 3}, ValueError, "train_sizes: expected a list .* found 3"),
        ({"train_sizes": ["all"]}, ValueError, "expected a list of fractions"),
        ({"n_repeats": 0}, ValueError, "n_repeats: expected an integer >= 1, found 0"),
        ({"scoring": "r3"}, ValueError, "r3"),
        ({"scoring": 3}, TypeError, "scoring: .* name, a callable or None, found 3"),
        ({"scoring": lambda *_: [1.0]}, ValueError, r"of 2 parameters .* shape \(1,\) for 'score'"),
        ({"error_score": "nan"}, ValueError, "error_score: .* number or 'raise', found 'nan'"),
        ({"parameter_names": ["a"]}, ValueError, r"parameter_names: expected 2 .* found \['a'\]"),
        ({"parameter_names": "zeta"}, ValueError, "parameter_names: .* found 'zeta'"),
        ({"y": np.ones((39, 2))}, ValueError, "inconsistent numbers of samples"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(problem, options, error, message):
    given = {"estimators": Ridge(), "X": problem[0], "y": problem[1], "random_state": 0} | options
    with pytest.raises(error, match=message):
        data_efficiency_curve(given.pop("estimators"), given.pop("X"), given.pop("y"), **given)


def test_sizes_that_agree_are_one_and_said(problem):
    with pytest.warns(UserWarning, match=r"\[3, 3, 16\] light cones.*: \[3, 16\] are used"):
        table = data_efficiency_curve(Ridge(), *problem, [0.1, 0.11, 0.5], random_state=0)
    assert np.unique(table["size"]).tolist() == [3, 16]


class Picky(Ridge):
    """Cannot be fitted to many light cones."""

    most = 20

    def fit(self, X, y):
        if len(X) > self.most:
            raise ValueError("too many")
        return super().fit(X, y)


def test_a_fit_that_fails_says_where(problem):
    with pytest.raises(ValueError, match="too many") as caught:
        data_efficiency_curve(
            {"good": Ridge(), "picky": Picky()}, *problem, [8, 32], error_score="raise",
            random_state=0,
        )  # fmt: skip
    (note,) = caught.value.__notes__
    assert note == "In data_efficiency_curve: estimator 'picky', size 32, fold 0, repeat 0."


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fit_that_fails_costs_no_other(problem, n_jobs):
    options = {"parameter_names": NAMES, "random_state": 0, "n_jobs": n_jobs}
    estimators = {"picky": Picky(), "good": Ridge()}
    message = r"5 of 20 fits failed:\n- estimator 'picky', size 32, fold 0.*ValueError: too many"
    with pytest.warns(FitFailedWarning, match=message):
        table = data_efficiency_curve(estimators, *problem, [8, 32], **options)
    failed = (table["estimator"] == "picky") & (table["size"] == 32)
    assert np.isnan(table["value"][failed]).all() and np.isnan(table["fit_seconds"][failed]).all()
    assert failed.sum() == 5 * 2 * 2  # each metric of each parameter, as of the others
    expected = data_efficiency_curve(
        {"picky": Ridge(), "good": Ridge()}, *problem, [8, 32], **options
    )
    for column in ("parameter", "metric", "fold", "seed"):
        np.testing.assert_array_equal(table[column], expected[column])
    np.testing.assert_array_equal(table["value"][~failed], expected["value"][~failed])
    assert DataEfficiencyDisplay.from_table(table, metric="r2").mean_.shape == (2, 2, 2)


def test_a_score_that_fails_is_a_fit_that_fails(problem):
    def scoring(estimator, X, y):
        if X[0, 0] == 0:
            raise ValueError("cannot be scored")
        return {"bias": (estimator.predict(X) - y).mean(axis=0)}

    message = r"1 of 5 fits failed:\n- estimator 'Ridge', size 32, fold 0.*: cannot be scored"
    with pytest.warns(FitFailedWarning, match=message):
        table = data_efficiency_curve(Ridge(), *problem, [32], scoring=scoring, random_state=0)
    assert np.isnan(rows(table, fold=0)).tolist() == [True, True]
    assert np.isfinite(table["value"]).sum() == 4 * 2


def test_a_score_of_its_own_for_fits_that_fail(problem):
    with pytest.warns(FitFailedWarning, match="Their values are -1"):
        table = data_efficiency_curve(Picky(), *problem, [8, 32], error_score=-1, random_state=0)
    assert (rows(table, size=32) == -1).all()


def test_when_all_fits_fail_there_is_no_table(problem):
    with pytest.raises(ValueError, match=r"(?s)5 of 5 fits failed:.*too many.*='raise' shows"):
        data_efficiency_curve(Picky(), *problem, [32], random_state=0)


def test_a_frame_names_the_parameters(problem):
    pandas = pytest.importorskip("pandas")
    X, y = problem
    y = pandas.DataFrame(y, columns=NAMES)
    table = data_efficiency_curve(Ridge(), X, y, [32], random_state=0)
    assert list(dict.fromkeys(table["parameter"])) == NAMES
    named = data_efficiency_curve(Ridge(), X, y, [32], parameter_names=["a", "b"], random_state=0)
    assert set(named["parameter"]) == {"a", "b"}
