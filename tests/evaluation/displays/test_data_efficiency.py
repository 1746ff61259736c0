"""DataEfficiencyDisplay: its lines, bands and labels, and what it refuses."""

import copy
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge

from skatr_sk.evaluation import DataEfficiencyDisplay, data_efficiency_curve

NAMES = ["Omega_m", "zeta"]


class Unasked(DummyRegressor):
    """Must not be fitted."""

    def fit(self, X, y, sample_weight=None):
        raise RuntimeError("fitted in vain")


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    return X, 50 + X @ rng.normal(size=(3, 2)) + rng.normal(size=(40, 2))


def rows(table, **wanted):
    """Values of the rows with these entries."""
    chosen = np.ones(len(table["value"]), dtype=bool)
    for column, value in wanted.items():
        chosen &= table[column] == value
    return table["value"][chosen]


@pytest.fixture(scope="module")
def computed(problem):
    estimators = {"ridge": Ridge(), "constant mean": DummyRegressor()}
    return data_efficiency_curve(
        estimators, *problem, [4, 8, 32], n_repeats=2, parameter_names=NAMES, random_state=0
    )


@pytest.fixture
def table(computed):
    """A copy, which may be spoilt."""
    return copy.deepcopy(computed)


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
    labels = [axes.get_ylabel() for axes in display.axes_]
    assert labels == ["mean absolute relative error", ""]  # the table's first metric, once in a row
    assert display.legend_.get_title().get_text().startswith("mean, and one standard deviation")
    markers = {line.get_marker() for line in display.lines_[0]}
    assert len(markers) == 2  # told apart without colours too
    display.figure_.draw_without_rendering()
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
    assert display.bands_[0, 0] is None  # a single value has no standard deviation
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
    figure.draw_without_rendering()
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
        ({"value": None}, {}, "table: expected the columns estimator, size, .* name value"),
        ({"value": [1.0]}, {}, r"columns of one length, .* shapes .*'value': \(1,\)"),
        ({}, {"metric": "r3"}, "metric: expected .* found 'r3'; did you mean 'r2'"),
        ({}, {"band": "sem"}, "band: expected one of 'std', 'quartiles', .* found 'sem'"),
        ({}, {"ax": 3}, "ax: expected 2 Axes, one for each parameter, found 3"),
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
    with pytest.raises(ImportError, match=r"^DataEfficiencyDisplay\.from_estimators " + sentence):
        DataEfficiencyDisplay.from_estimators(Unasked(), *problem, error_score="raise")
