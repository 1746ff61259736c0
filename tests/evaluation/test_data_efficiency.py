"""Curves of scores over the number of labels, and how they are drawn."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
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
    with pytest.raises(ValueError, match=r"has \[20\], expected integers in \[1, 10\]"):
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
    assert set(table["parameter"]) == {"parameter 0"}
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
        X, y, [5, 16], cv=KFold(5, shuffle=True, random_state=0), n_repeats=2, random_state=0,
    )  # fmt: skip
    assert cache_info().misses == 20
    assert np.isfinite(rows(table, metric="mean_absolute_relative_error")).all()


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimators": {}}, TypeError, "found none"),
        ({"estimators": {"a": 3}}, TypeError, "dict of names to estimators; found 'a': 3"),
        ({"estimators": {1: Ridge()}}, TypeError, r"found 1: Ridge\(\)"),
        ({"estimators": {"a": Ridge}}, TypeError, "found 'a': <class"),
        ({"train_sizes": [0.0, 0.5]}, ValueError, r"\[0.0\], expected fractions .* has 32 light"),
        ({"train_sizes": [0.5, 1.5]}, ValueError, r"\[1.5\], expected fractions"),
        ({"train_sizes": [0.5, np.nan]}, ValueError, r"\[nan\], expected fractions"),
        ({"train_sizes": [0, 33]}, ValueError, r"\[0, 33\], expected integers in \[1, 32\]"),
        ({"train_sizes": []}, ValueError, r"train_sizes is \[\], expected a list"),
        ({"train_sizes": 3}, ValueError, "train_sizes is 3, expected a list"),
        ({"train_sizes": ["all"]}, ValueError, "expected a list of fractions"),
        ({"n_repeats": 0}, ValueError, "n_repeats is 0, expected an integer >= 1"),
        ({"scoring": "r3"}, ValueError, "r3"),
        ({"scoring": 3}, TypeError, "scoring is 3, expected None, a scorer's name or a callable"),
        ({"scoring": lambda *_: [1.0]}, ValueError, r"shape \(1,\) for 'score', .*of 2 parameters"),
        ({"error_score": "nan"}, ValueError, "error_score is 'nan', expected a number or 'raise'"),
        ({"parameter_names": ["a"]}, ValueError, "has 1 entries .a., and y has 2 param"),
        ({"parameter_names": "zeta"}, TypeError, "parameter_names is 'zeta', expected a sequence"),
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


@pytest.mark.parametrize("n_jobs", [1, 2])
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


# the display


@pytest.fixture
def table(problem):
    estimators = {"ridge": Ridge(), "constant mean": DummyRegressor()}
    return data_efficiency_curve(
        estimators, *problem, [4, 8, 32], n_repeats=2, parameter_names=NAMES, random_state=0
    )


def test_lines_and_bands_are_the_table(table):
    display = DataEfficiencyDisplay.from_table(table, metric="r2")
    assert display.axes_.shape == (2,)
    assert display.sizes_.tolist() == [4, 8, 32]
    for i, name in enumerate(NAMES):
        for j, estimator in enumerate(["ridge", "constant mean"]):
            at = {"metric": "r2", "parameter": name, "estimator": estimator}
            values = [rows(table, size=size, **at) for size in (4, 8, 32)]
            mean, std = np.mean(values, axis=1), np.std(values, axis=1, ddof=1)
            line = display.lines_[i, j]
            np.testing.assert_allclose(line.get_xdata(), [4, 8, 32])
            np.testing.assert_allclose(line.get_ydata(), mean)
            np.testing.assert_allclose(display.mean_[i, j], mean)
            np.testing.assert_allclose(display.std_[i, j], std)
            corners = display.bands_[i, j].get_paths()[0].vertices
            for edge in (mean - std, mean + std):
                assert all(np.isclose(corners[:, 1], value).any() for value in edge)
            assert same_color(display.bands_[i, j].get_facecolor()[0, :3], line.get_color())
            assert line.axes is display.axes_[i]


def test_labels_scales_and_legend(table):
    display = DataEfficiencyDisplay.from_table(table)
    assert [axes.get_title() for axes in display.axes_] == [r"$\Omega_m$", r"$\zeta$"]
    for axes in display.axes_:
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "light cones with labels"
        assert axes.get_ylabel() == "mean absolute relative error"  # the table's first metric
    display.figure_.canvas.draw()
    shown = [label.get_text() for label in display.axes_[0].get_xticklabels()]
    assert shown == ["4", "8", "32"]
    entries = [text.get_text() for text in display.legend_.get_texts()]
    assert entries == ["ridge", "constant mean"]
    other = DataEfficiencyDisplay.from_table(table, metric="r2")
    assert other.axes_[0].get_ylabel() == "$R^2$"


def test_sizes_that_would_touch_share_a_tick():
    sizes = [100, 105, 110, 200]
    table = {
        "estimator": ["a"] * 4, "size": sizes, "parameter": ["p"] * 4, "metric": ["m"] * 4,
        "value": [1.0, 2.0, 3.0, 4.0],
    }  # fmt: skip
    display = DataEfficiencyDisplay.from_table(table)
    assert display.axes_[0].xaxis.get_ticklocs().tolist() == [110, 200]
    assert display.bands_[0, 0] is None  # a single value has no scatter
    assert np.isnan(display.std_).all()


def test_bands(table):
    ranges = DataEfficiencyDisplay.from_table(table, metric="r2", band="range")
    corners = ranges.bands_[0, 0].get_paths()[0].vertices
    values = rows(table, metric="r2", parameter="Omega_m", estimator="ridge")
    assert corners[:, 1].min() == pytest.approx(values.min())
    assert corners[:, 1].max() == pytest.approx(values.max())
    quartiles = DataEfficiencyDisplay.from_table(table, metric="r2", band="quartiles")
    values = rows(table, metric="r2", parameter="Omega_m", estimator="ridge", size=4)
    line, band = quartiles.lines_[0, 0], quartiles.bands_[0, 0]
    assert line.get_ydata()[0] == pytest.approx(np.median(values))
    corners = band.get_paths()[0].vertices
    ends = np.unique(corners[corners[:, 0] == 4, 1])
    np.testing.assert_allclose(ends, np.quantile(values, [0.25, 0.75]))
    none = DataEfficiencyDisplay.from_table(table, band="none")
    assert (none.bands_ == None).all()  # noqa: E711 (elementwise)


def test_missing_values_leave_gaps():
    table = {
        "estimator": ["a", "a", "a", "b"], "size": [5, 5, 10, 10], "parameter": ["p"] * 4,
        "metric": ["m"] * 4, "value": [1.0, np.nan, 3.0, 4.0],
    }  # fmt: skip
    display = DataEfficiencyDisplay.from_table(table)
    np.testing.assert_array_equal(display.mean_, [[[1.0, 3.0], [np.nan, 4.0]]])


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (6, (2, 3))])
def test_panels_wrap_and_nothing_is_cut_off(rng, n, shape):
    y = 5 + rng.normal(size=(20, n))
    estimators = {name: DummyRegressor() for name in ("SKATR + head", "trained from scratch")}
    display = DataEfficiencyDisplay.from_estimators(estimators, y, y, [4, 16], random_state=0)
    figure = display.figure_
    figure.canvas.draw()
    corners = [axes.get_position() for axes in display.axes_]
    rows_, columns = ({round(getattr(box, e), 3) for box in corners} for e in ("y0", "x0"))
    assert (len(rows_), len(columns)) == shape
    width, height = figure.canvas.get_width_height()
    boxes = [artist.get_tightbbox() for artist in (*display.axes_, display.legend_)]
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_given_axes_and_styles(table):
    figure, axes = plt.subplots(1, 2)
    display = DataEfficiencyDisplay.from_table(
        table, ax=axes, line_kwargs={"lw": 4, "c": "green"}, band_kwargs={"alpha": 0.5}
    )
    assert display.figure_ is figure and (display.axes_ == axes).all()
    assert display.lines_[0, 0].get_linewidth() == 4
    assert same_color(display.bands_[1, 1].get_facecolor()[0, :3], "green")
    assert display.bands_[0, 0].get_alpha() == 0.5
    assert plt.get_fignums() == [figure.number]


def test_from_estimators_keeps_the_table(problem):
    display = DataEfficiencyDisplay.from_estimators(
        Ridge(), *problem, [8, 30], metric="r2", cv=4, random_state=0
    )
    expected = data_efficiency_curve(Ridge(), *problem, [8, 30], cv=4, random_state=0)
    np.testing.assert_array_equal(display.table["value"], expected["value"])
    assert display.metric == "r2"


def test_a_data_frame_is_a_table(table):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table).query("estimator == 'ridge'")
    assert DataEfficiencyDisplay.from_table(frame).lines_.shape == (2, 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"value": None}, {}, "table has no column value, expected estimator, size,"),
        ({"value": [1.0]}, {}, r"columns of shapes .*'value': \(1,\)"),
        ({}, {"metric": "r3"}, "metric is 'r3', expected .* Did you mean 'r2'"),
        ({}, {"band": "sem"}, "band is 'sem', expected 'std' or 'quartiles' or"),
        ({}, {"ax": 3}, "ax is 3, expected 2 Axes, one for each parameter"),
    ],
)
def test_a_wrong_table_is_refused_before_a_figure_is_made(table, change, options, message):
    changed = {key: column for key, column in (table | change).items() if column is not None}
    with pytest.raises(ValueError, match=message):
        DataEfficiencyDisplay.from_table(changed, **options)
    assert plt.get_fignums() == []


def test_absence_of_matplotlib_is_one_sentence(table, problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    sentence = r'needs matplotlib, which is not installed: pip install "skatr_sk\[plots\]"\.$'
    with pytest.raises(ImportError, match=r"^DataEfficiencyDisplay\.plot " + sentence):
        DataEfficiencyDisplay.from_table(table)
    Recorder.log.clear()
    with pytest.raises(ImportError, match=r"^DataEfficiencyDisplay\.from_estimators " + sentence):
        DataEfficiencyDisplay.from_estimators(Recorder(), *problem)
    assert Recorder.log == []
