import sys

import numpy as np
import pytest
from sklearn.linear_model import BayesianRidge, LinearRegression
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk.evaluation import RecoveryDisplay, mean_absolute_relative_error

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

NAMES = ["m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta"]
BOUNDS = np.array([[0.3, 10], [0.2, 0.4], [100, 1500], [38, 42], [4, 5.3], [10, 250]])
WIDTH = BOUNDS[:, 1] - BOUNDS[:, 0]


@pytest.fixture
def recovery(rng):
    true = rng.uniform(BOUNDS[:, 0], BOUNDS[:, 1], size=(50, 6))
    std = 0.05 * WIDTH * rng.uniform(0.5, 2, size=true.shape)
    return true, true + std * rng.normal(size=true.shape), std


@pytest.fixture
def of_two(recovery):
    """Two of the parameters: fewer panels are drawn in less time."""
    return tuple(values[:, :2] for values in recovery)


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(60, 4))
    return X, 20 + X @ rng.normal(size=(4, 2)) + rng.normal(size=(60, 2))


def test_six_parameters_make_two_rows_of_three_pairs(recovery):
    display = RecoveryDisplay.from_predictions(*recovery[:2])
    assert display.axes_.shape == (2, 6)
    assert len(display.figure_.axes) == 12
    display.figure_.draw_without_rendering()
    main, below = ([axes.get_position() for axes in row] for row in display.axes_)
    assert len({round(box.x0, 3) for box in main}) == 3
    assert len({round(box.y0, 3) for box in main}) == 2
    for upper, lower in zip(main, below, strict=True):
        assert lower.y1 < upper.y0
        assert (lower.x0, lower.x1) == pytest.approx((upper.x0, upper.x1))
        assert upper.height == pytest.approx(3 * lower.height, rel=0.05)


@pytest.mark.parametrize(
    ("n_parameters", "shape"),
    [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3))],
)
def test_panels_wrap(rng, n_parameters, shape):
    y = rng.normal(size=(5, n_parameters))
    display = RecoveryDisplay.from_predictions(y, y + 0.1)
    corners = [axes.get_position() for axes in display.axes_[0]]
    rows = len({round(box.y0, 3) for box in corners})
    assert (rows, len({round(box.x0, 3) for box in corners})) == shape


def test_panels_show_the_data(of_two):
    true, pred, _ = of_two
    display = RecoveryDisplay.from_predictions(true, pred)
    for index in range(2):
        upper, lower = (points.get_offsets() for points in display.points_[:, index])
        np.testing.assert_allclose(upper, np.column_stack([true[:, index], pred[:, index]]))
        np.testing.assert_allclose(lower[:, 1], pred[:, index] - true[:, index], atol=1e-12)
        identity, zero = (line.get_xydata() for line in display.lines_[:, index])
        np.testing.assert_array_equal(identity[:, 0], identity[:, 1])
        np.testing.assert_array_equal(zero[:, 1], 0)
        for axes, points in [(display.axes_[0, index], upper), (display.axes_[1, index], lower)]:
            low, high = np.sort(np.transpose([axes.get_xlim(), axes.get_ylim()]), axis=0)
            assert (points > low).all()
            assert (points < high).all()
    assert (display.errorbars_ == None).all()  # noqa: E711 (elementwise)


def test_scores_are_stored_and_annotated(of_two):
    true, pred, _ = of_two
    display = RecoveryDisplay.from_predictions(true, pred)
    np.testing.assert_allclose(display.r2_, r2_score(true, pred, multioutput="raw_values"))
    mare = mean_absolute_relative_error(true, pred, multioutput="raw_values")
    np.testing.assert_allclose(display.mean_absolute_relative_error_, mare)
    for index, text in enumerate(display.texts_):
        assert text.axes is display.axes_[0, index]
        assert text.get_text() == f"$R^2$ = {display.r2_[index]:.3f}, MARE = {mare[index]:.3g}"


def test_labels_of_the_standard_parameters(recovery):
    display = RecoveryDisplay.from_predictions(*recovery[:2], parameter_names=NAMES)
    assert [axes.get_xlabel() for axes in display.axes_[1]] == [
        r"true $m_\mathrm{WDM}$ [keV]",
        r"true $\Omega_m$",
        "true $E_0$ [eV]",
        r"true $\log_{10} L_X$ [erg/s/(M$_\odot$/yr)]",
        r"true $\log_{10} T_\mathrm{vir}$ [K]",
        r"true $\zeta$",
    ]
    assert display.axes_[0, 1].get_ylabel() == r"predicted $\Omega_m$"
    assert [axes.get_ylabel() for axes in display.axes_[0, [1, 2, 3]]] == [
        r"predicted $\Omega_m$",
        "predicted $E_0$ [eV]",
        "predicted $\\log_{10} L_X$\n[erg/s/(M$_\\odot$/yr)]",
    ]
    residuals = [axes.get_ylabel().replace("\n", " ") for axes in display.axes_[1, :5]]
    assert residuals == ["residual [keV]", "residual", "residual [eV]", *["residual [dex]"] * 2]


def test_other_labels_are_drawn_as_given(recovery):
    true, pred = recovery[0][:, :3], recovery[1][:, :3]
    display = RecoveryDisplay.from_predictions(
        true,
        pred,
        parameter_names=["log10 L_X", "my_name", "E_0"],
        parameter_units=["log10(erg/s/(Msun/yr))", "Mpc", ""],
    )
    assert [axes.get_xlabel() for axes in display.axes_[1]] == [
        r"true $\log_{10} L_X$ [erg/s/(M$_\odot$/yr)]",
        "true my_name [Mpc]",
        "true $E_0$",
    ]
    unnamed = RecoveryDisplay.from_predictions(true, pred)
    assert unnamed.axes_[1, 2].get_xlabel() == "true parameter_2"


def test_nothing_overlaps_or_is_cut_off(recovery):
    true, pred, std = recovery
    display = RecoveryDisplay.from_predictions(
        true, pred, y_std=std, parameter_names=NAMES, bounds=BOUNDS
    )
    display.figure_.draw_without_rendering()
    width, height = display.figure_.canvas.get_width_height()
    tight = [axes.get_tightbbox() for axes in display.axes_.ravel()]
    for box in tight:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    for pair in [(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (6, 3), (7, 4), (8, 5)]:
        assert not tight[pair[0]].overlaps(tight[pair[1]]), pair
    for axes, text in zip(display.axes_[0], display.texts_, strict=True):
        outer, inner = axes.get_window_extent(), text.get_window_extent()
        # Above the panel, where it hides no point, and below whatever is over it.
        assert outer.x0 - 1 <= inner.x0 and inner.x1 < outer.x1 and outer.y1 < inner.y0
    for text, above in zip(display.texts_[3:], display.axes_[1, :3], strict=True):
        assert not text.get_window_extent().overlaps(above.get_tightbbox())
    legend = display.legend_.get_window_extent()
    assert legend.y0 >= 0 and not any(legend.overlaps(box) for box in tight)
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "light cone",
        "predicted standard deviation",
        "prediction = truth",
        "MARE: mean absolute relative error",
        "edge of the prior",
    ]
    for axes in display.axes_[1]:
        ticks = [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted((tick.get_window_extent() for tick in ticks), key=lambda box: box.x0)
        assert len(boxes) >= 2
        assert all(a.x1 < b.x0 for a, b in zip(boxes[:-1], boxes[1:], strict=True))


@pytest.mark.parametrize("column", [True, False], ids=["(n,)", "(n, 1)"])
def test_one_parameter(recovery, column):
    true, pred, std = (values[:, 1] if column else values[:, [1]] for values in recovery)
    display = RecoveryDisplay.from_predictions(true, pred, y_std=std, parameter_names=["Omega_m"])
    assert display.axes_.shape == (2, 1)
    assert display.r2_ == pytest.approx([r2_score(true, pred)])


def test_error_bars(of_two):
    true, pred, std = of_two
    display = RecoveryDisplay.from_predictions(true, pred, y_std=std)
    for index in range(2):
        for row, centre in enumerate([pred[:, index], pred[:, index] - true[:, index]]):
            (bars,) = display.errorbars_[row, index][2]
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            expected = np.column_stack([centre - std[:, index], centre + std[:, index]])
            np.testing.assert_allclose(ends, expected, atol=1e-12)
        low, high = display.axes_[1, index].get_ylim()
        assert low < ends.min() and ends.max() < high
        assert low == -high


@pytest.mark.parametrize(
    ("n", "kind", "artist"),
    [
        (2000, "auto", "PathCollection"),
        (2001, "auto", "PolyCollection"),
        (2001, "scatter", "PathCollection"),
        (50, "density", "PolyCollection"),
    ],
)
def test_density_of_many_points(rng, n, kind, artist):
    true = rng.normal(size=n)
    pred, std = true + rng.normal(size=n), np.ones(n)
    display = RecoveryDisplay.from_predictions(true, pred, y_std=std, kind=kind)
    assert {type(points).__name__ for points in display.points_.ravel()} == {artist}
    assert (display.errorbars_[0, 0] is None) == (artist == "PolyCollection")
    if artist == "PolyCollection":
        assert [int(points.get_array().sum()) for points in display.points_[:, 0]] == [n, n]


def test_bounds_are_drawn_and_inside(of_two):
    true, pred, _ = of_two
    plain = RecoveryDisplay.from_predictions(true, pred)
    display = RecoveryDisplay.from_predictions(true, pred, bounds=BOUNDS[:2])
    for index, (low, high) in enumerate(BOUNDS[:2]):
        more = [len(d.axes_[0, index].lines) for d in (display, plain)]
        assert more[0] - more[1] == 4
        left, right = display.axes_[0, index].get_xlim()
        assert left < low and high < right
    half = RecoveryDisplay.from_predictions(true[:, 1], pred[:, 1], bounds=[[0.1, np.inf]])
    assert len(half.axes_[0, 0].lines) == 3
    assert half.axes_[0, 0].get_xlim()[0] < 0.1


def test_scores_that_are_not_defined_are_left_out():
    true = np.array([[0.0, 1.0], [1.0, 2.0]])
    display = RecoveryDisplay.from_predictions(true, true)
    np.testing.assert_array_equal(display.mean_absolute_relative_error_, [np.nan, 0.0])
    assert [text.get_text() for text in display.texts_] == ["$R^2$ = 1.000"] + [
        "$R^2$ = 1.000, MARE = 0"
    ]
    single = RecoveryDisplay.from_predictions([2.0], [3.0])
    assert single.texts_[0].get_text() == "MARE = 0.5"
    nothing = RecoveryDisplay.from_predictions([0.0], [0.0])
    assert nothing.texts_[0].get_text() == ""
    low, high = nothing.axes_[0, 0].get_xlim()
    assert low < 0 < high


def test_given_axes_are_drawn_into(recovery):
    true, pred = recovery[0][:, :2], recovery[1][:, :2]
    figure, axes = plt.subplots(2, 2)
    display = RecoveryDisplay.from_predictions(true, pred, ax=axes)
    assert display.figure_ is figure
    assert (display.axes_ == axes).all()
    assert len(figure.axes) == 4
    assert [each.get_ylabel() for each in axes[:, 1]] == ["predicted parameter_1", "residual"]
    assert plt.get_fignums() == [figure.number]

    _, pair = plt.subplots(2)
    single = RecoveryDisplay.from_predictions(true[:, 0], pred[:, 0], ax=list(pair))
    assert single.axes_[1, 0] is pair[1]


def test_wrong_axes_are_refused_and_nothing_is_drawn(recovery):
    true, pred = recovery[0][:, :2], recovery[1][:, :2]
    _, axes = plt.subplots(2, 3)
    for ax, found in [(axes, r"shape \(2, 3\)"), (axes[:, 0], r"shape \(2,\)"), (axes[0, 0], "<A")]:
        with pytest.raises(ValueError, match=f"ax: expected .*{found}.*plt.subplots\\(2, 2\\)"):
            RecoveryDisplay.from_predictions(true, pred, ax=ax)
    with pytest.raises(ValueError, match=r"ax: .* found an array of shape \(2, 2\)"):
        RecoveryDisplay.from_predictions(true, pred, ax=[[1, 2], [3, 4]])
    assert not any(each.has_data() for each in axes.ravel())


def test_styles_reach_the_artists(recovery):
    true, pred, std = (values[:, 0] for values in recovery)
    display = RecoveryDisplay.from_predictions(
        true,
        pred,
        y_std=std,
        scatter_kwargs={"c": "red", "s": 3},
        line_kwargs={"lw": 4, "c": "green"},
        errorbar_kwargs={"ecolor": "orange"},
    )
    for row in range(2):
        points, line = display.points_[row, 0], display.lines_[row, 0]
        assert matplotlib.colors.same_color(points.get_facecolor()[0, :3], "red")
        assert points.get_sizes() == [3]
        assert (line.get_linewidth(), line.get_color()) == (4, "green")
        bars = display.errorbars_[row, 0][2][0]
        assert matplotlib.colors.same_color(bars.get_color()[0, :3], "orange")
    dense = RecoveryDisplay.from_predictions(
        true, pred, kind="density", density_kwargs={"cmap": "Reds", "gridsize": 5}
    )
    assert dense.points_[0, 0].get_cmap().name == "Reds"


def test_display_can_be_made_first_and_drawn_twice(of_two):
    true, pred, _ = of_two
    display = RecoveryDisplay(y_true=true, y_pred=pred)
    assert plt.get_fignums() == []
    assert not hasattr(display, "figure_")
    assert display.plot() is display
    first = display.figure_
    display.plot(kind="density")
    assert display.figure_ is not first
    assert len(display.texts_) == 2
    assert display.y_true is true


def test_settings_and_window_are_left_alone(of_two, monkeypatch):
    def show(*args, **kwargs):
        raise RuntimeError("a display must not open a window")

    monkeypatch.setattr(plt, "show", show)
    settings = dict(matplotlib.rcParams)
    data = [values.copy() for values in of_two]
    RecoveryDisplay.from_predictions(*of_two[:2], y_std=of_two[2], bounds=BOUNDS[:2])
    assert dict(matplotlib.rcParams) == settings
    for before, after in zip(data, of_two, strict=True):
        np.testing.assert_array_equal(before, after)


# from_estimator


def test_from_estimator(problem):
    X, y = problem
    model = make_pipeline(StandardScaler(), LinearRegression()).fit(X, y)
    _, axes = plt.subplots(2, 2)
    display = RecoveryDisplay.from_estimator(
        model, X, y, parameter_names=["zeta", "E_0"], ax=axes, kind="density"
    )
    np.testing.assert_array_equal(display.y_pred, model.predict(X))
    assert display.y_std is None
    assert axes[1, 0].get_xlabel() == r"true $\zeta$"
    assert display.axes_[0, 0] is axes[0, 0]


@pytest.mark.parametrize("steps", [[], [StandardScaler()]], ids=["alone", "in a pipeline"])
def test_from_estimator_with_standard_deviations(problem, steps):
    X, y = problem[0], problem[1][:, 0]
    model = make_pipeline(*steps, BayesianRidge()).fit(X, y)
    display = RecoveryDisplay.from_estimator(model, X, y, return_std=True)
    np.testing.assert_array_equal(display.y_std, model.predict(X, return_std=True)[1])
    assert display.errorbars_[0, 0] is not None


def test_from_estimator_without_standard_deviations(problem):
    X, y = problem
    model = LinearRegression().fit(X, y)
    with pytest.raises(TypeError, match="LinearRegression predicts no standard deviations; leave"):
        RecoveryDisplay.from_estimator(model, X, y, return_std=True)


def test_from_estimator_keeps_other_type_errors(problem):
    class Broken:
        def predict(self, X, return_std=False):
            raise TypeError("the data are at fault")

    with pytest.raises(TypeError, match="^the data are at fault$"):
        RecoveryDisplay.from_estimator(Broken(), *problem, return_std=True)


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"y_pred": np.ones((50, 5))},
            ValueError,
            r"y_pred: .* y_true, \(50, 6\), found \(50, 5\)",
        ),
        ({"y_pred": np.full((50, 6), np.nan)}, ValueError, "y_pred: .* NaN .* in 50 of 50"),
        ({"y_std": np.ones(50)}, ValueError, r"y_std: expected the shape .* found \(50,\)"),
        (
            {"y_std": -np.ones((50, 6))},
            ValueError,
            "y_std: .* negative ones in rows 0, 1, 2, 3, 4 and",
        ),
        (
            {"parameter_names": NAMES[:4]},
            ValueError,
            "parameter_names: expected 6 different strings",
        ),
        ({"parameter_names": "zeta"}, ValueError, "parameter_names: .* found 'zeta'"),
        (
            {"parameter_names": ["a"] * 6},
            ValueError,
            "parameter_names: expected 6 different strings",
        ),
        (
            {"parameter_units": ["K"]},
            ValueError,
            r"parameter_units: expected 6 strings, found \['K'\]",
        ),
        ({"parameter_units": [None] * 6}, ValueError, "parameter_units: expected 6 strings.* None"),
        ({"bounds": [0, 1]}, ValueError, r"bounds: expected lower < upper .* found \[0.0, 1.0\]"),
        ({"bounds": BOUNDS[:, ::-1]}, ValueError, "bounds: expected lower < upper for each"),
        ({"kind": "desnity"}, ValueError, "kind: .* found 'desnity'; did you mean 'density'"),
    ],
)
def test_bad_input_is_refused_before_a_figure_is_made(recovery, options, error, message):
    data = {"y_true": recovery[0], "y_pred": recovery[1], **options}
    with pytest.raises(error, match=message):
        RecoveryDisplay.from_predictions(**data)
    assert plt.get_fignums() == []


# without matplotlib


def test_absence_of_matplotlib_is_one_sentence(recovery, problem, monkeypatch):
    class Untouched:
        def predict(self, X):
            raise RuntimeError("predicted in vain")

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    sentence = r'needs matplotlib, which is not installed: pip install "skatr_sk\[plots\]"\.$'
    with pytest.raises(ImportError, match=r"^RecoveryDisplay\.plot " + sentence):
        RecoveryDisplay.from_predictions(*recovery[:2])
    with pytest.raises(ImportError, match=r"^RecoveryDisplay\.from_estimator " + sentence):
        RecoveryDisplay.from_estimator(Untouched(), *problem)
