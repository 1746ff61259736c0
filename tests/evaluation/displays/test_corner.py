"""PosteriorDisplay: the densities and contours that it draws, and what it refuses."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.path import Path
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skatr_sk import PriorWarning
from skatr_sk.evaluation import CoverageDisplay, MarginalsDisplay, PosteriorDisplay
from tests.evaluation.posteriors import BOUNDS, NAMES, draws, fitted


def test_corner_shows_the_density(rng):
    samples = rng.normal(size=(50_000, 2)) @ [[1, 0.8], [0, 0.6]]
    display = PosteriorDisplay.from_samples(samples, y_true=[0.5, -0.5], smoothing=1.0)
    assert display.axes_[0, 1] is None
    line = display.axes_[0, 0].lines[0].get_xydata()
    width = np.diff(line[:2, 0])[0]
    np.testing.assert_allclose(display.densities_["posterior"].sum(axis=1)[0] * width, 1)
    normal = np.exp(-0.5 * line[:, 0] ** 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(line[:, 1], normal, atol=0.02)
    lines = display.axes_[1, 0].lines
    assert {tuple(each.get_xdata()) for each in lines} >= {(0.5, 0.5)}
    assert display.axes_[1, 0].get_xlim() == display.axes_[0, 0].get_xlim()


def test_contours_hold_their_share(rng):
    from matplotlib.contour import QuadContourSet

    samples = rng.normal(size=(100_000, 2))
    display = PosteriorDisplay.from_samples(samples, levels=[0.68])
    contours = [c for c in display.axes_[1, 0].collections if isinstance(c, QuadContourSet)]
    (outline,) = (c for c in contours if not c.filled)
    vertices = np.concatenate([path.vertices for path in outline.get_paths()])
    radius = np.sqrt(-2 * np.log(1 - 0.68))  # of a circle with 68 % of a normal density
    np.testing.assert_allclose(np.hypot(*vertices.T), radius, rtol=0.12)


def test_corner_respects_the_prior_edge(rng):
    """A density that piles up at an edge is not smoothed across it."""
    samples = np.abs(rng.normal(size=(50_000, 1)))
    samples = samples[samples[:, 0] < 4]
    display = PosteriorDisplay.from_samples(samples, bounds=[[0, 4]])
    density = display.densities_["posterior"][0]
    assert display.axes_[0, 0].get_xlim() == (0, 4)
    assert density[0] == pytest.approx(np.sqrt(2 / np.pi), rel=0.05)


def contours(axes):
    """The filled contours of a panel, as closed polygons."""
    from matplotlib.contour import QuadContourSet

    (filled,) = (c for c in axes.collections if isinstance(c, QuadContourSet) and c.filled)
    return [Path(p) for path in filled.get_paths() for p in path.to_polygons()]


def inside_contours(axes, points):
    """Share of points inside: within an odd number of polygons, holes being polygons too."""
    count = sum(path.contains_points(points).astype(int) for path in contours(axes))
    return (count % 2 == 1).mean()


def in_unit_box(rng, width, correlation, n):
    factor = np.linalg.cholesky([[1, correlation], [correlation, 1]])
    points = [0.4, 0.5] + width * rng.normal(size=(8 * n, 2)) @ factor.T
    return points[((points > 0) & (points < 1)).all(axis=1)][:n]


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("width", [0.3, 0.02, 0.005, 0.002])
def test_contours_hold_their_share_at_every_width_in_the_prior(rng, width, correlation):
    samples = in_unit_box(rng, width, correlation, 20_000)
    unit_box = [[0, 1], [0, 1]]
    display = PosteriorDisplay.from_samples(samples, bounds=unit_box, levels=[0.68])
    fresh = in_unit_box(rng, width, correlation, 20_000)
    for points in (samples, fresh):
        assert 0.66 < inside_contours(display.axes_[1, 0], points) < 0.70
    # Bins follow the posterior, axes the prior.
    edges, density = display.bin_edges_["posterior"], display.densities_["posterior"]
    assert edges.shape == (2, density.shape[1] + 1)
    assert (edges >= 0).all() and (edges <= 1).all()
    np.testing.assert_allclose((density * np.diff(edges)).sum(axis=1), 1)
    assert display.axes_[1, 0].get_xlim() == display.axes_[1, 0].get_ylim() == (0, 1)
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    mean = (middle * density * np.diff(edges)).sum(axis=1, keepdims=True)
    drawn = np.sqrt((np.square(middle - mean) * density * np.diff(edges)).sum(axis=1))
    np.testing.assert_allclose(drawn, samples.std(axis=0), rtol=0.03)


@pytest.mark.parametrize("separation", [5, 50, 150])
def test_two_narrow_peaks_keep_their_height(rng, separation):
    """Scott's rule with the standard deviation smooths by the peaks' distance, not their width."""
    n, sigma = 20_000, 1 / (3 * separation)
    centre = 0.3 + separation * sigma * rng.integers(2, size=n)
    samples = np.stack([rng.normal(centre, sigma), rng.normal(size=n)], axis=1)
    display = PosteriorDisplay.from_samples(samples)
    peak = 0.5 / (sigma * np.sqrt(2 * np.pi))
    assert display.densities_["posterior"][0].max() == pytest.approx(peak, rel=0.1)


def test_each_posterior_has_its_own_bins(rng):
    samples = {"narrow": 0.01 * rng.normal(size=(5000, 2)), "wide": rng.normal(size=(5000, 2))}
    display = PosteriorDisplay.from_samples(samples)
    for name, points in samples.items():
        ends = display.bin_edges_[name][:, [0, -1]]
        np.testing.assert_allclose(np.abs(ends), 4.5 * points.std(), rtol=0.25)


def test_a_parameter_that_never_varies_is_drawn():
    samples = np.stack([np.linspace(0, 1, 500), np.full(500, 0.3)], axis=1)
    for bounds in (None, [[0, 1], [0.3, 1]]):
        display = PosteriorDisplay.from_samples(samples, bounds=bounds)
        density, edges = display.densities_["posterior"][1], display.bin_edges_["posterior"][1]
        assert np.count_nonzero(density) == 1
        assert edges[0] <= 0.3 <= edges[-1]


def test_rounding_at_the_prior_edge_is_forgiven():
    samples = np.linspace(0.2, 0.4, 500, dtype=np.float32)[:, np.newaxis]  # the last one above 0.4
    display = PosteriorDisplay.from_samples(samples, bounds=[[0.2, 0.4]])
    assert display.bin_edges_["posterior"].max() == 0.4


def test_corner_overlays_several(rng):
    samples = {"first": rng.normal(size=(900, 3)), "second": rng.normal(size=(500, 3))}
    display = PosteriorDisplay.from_samples(samples, colors=["red", "blue"])
    assert list(display.densities_) == ["first", "second"]
    legend = display.figure_.legends[0]
    assert legend is display.legend_
    assert [text.get_text() for text in legend.get_texts()] == [
        "first", "second", "95 % of samples", "68 % of samples",
    ]  # fmt: skip
    second, first = display.axes_[0, 0].texts  # above each other, in the colours of their lines
    assert (first.get_color(), second.get_color()) == ("red", "blue")
    assert [line.get_color() for line in display.axes_[2, 2].lines] == ["red", "blue"]


def test_median_and_errors_are_written_above_the_marginals(rng):
    gaussian = norm.ppf((np.arange(20_000) + 0.5) / 20_000, 3, 0.2)
    samples = np.stack([rng.permutation(gaussian), np.full(20_000, 0.25)], axis=1)
    display = PosteriorDisplay.from_samples(samples, y_true=[3, 0.25], parameter_names=["a", "b"])
    titles = [display.axes_[i, i].texts[0].get_text() for i in range(2)]
    assert titles == ["a = $3.00^{+0.20}_{-0.20}$", "b = 0.25"]
    names = [text.get_text() for text in display.legend_.get_texts()]
    assert names == ["95 % of samples", "68 % of samples", "truth"]
    bounds = [[0, 6], [0, 1]]
    bounded = PosteriorDisplay.from_samples(samples, bounds=bounds, levels=[0.5])
    names = [text.get_text() for text in bounded.legend_.get_texts()]
    assert names == ["50 % of samples", "axes: the prior"]


@pytest.mark.parametrize("n", [1, 2, 6])
def test_nothing_is_cut_off_or_hidden(rng, n):
    samples = {name: 1e4 + rng.normal(size=(500, n)) for name in ("SKATR", "global signal")}
    display = PosteriorDisplay.from_samples(samples, y_true=[1e4] * n)
    display.figure_.draw_without_rendering()
    width, height = display.figure_.canvas.get_width_height()
    texts = [text.get_window_extent() for i in range(n) for text in display.axes_[i, i].texts]
    legend = display.legend_.get_window_extent()
    for box in texts:
        assert box.x0 >= 0 and box.x1 <= width and box.y1 <= height
        assert n == 1 or not box.overlaps(legend)
    assert not any(a.overlaps(b) for k, a in enumerate(texts) for b in texts[:k])


def test_corner_from_an_estimator():
    pipe, X, y = fitted()
    display = PosteriorDisplay.from_estimator(pipe, X[:1], y[0], n_samples=500)
    assert display.axes_[1, 0].get_xlabel() == r"$\Omega_m$"
    assert display.axes_[1, 0].get_xlim() == tuple(BOUNDS[0])
    both = PosteriorDisplay.from_estimator({"a": pipe, "b": pipe}, X[:1], n_samples=500)
    assert list(both.densities_) == ["a", "b"]


@pytest.mark.parametrize("display", [PosteriorDisplay, CoverageDisplay, MarginalsDisplay])
def test_truths_outside_the_prior_are_warned_of(display):
    head, X, y = fitted()
    n = 1 if display is PosteriorDisplay else 12
    wrong = np.array(y[:n], dtype=float)
    wrong[0, 1] = BOUNDS[1][1] + 0.5
    with pytest.warns(PriorWarning, match=f"in 1 of {n} rows, the first of them 0, in {NAMES[1]}"):
        display.from_estimator(head, X[:n], wrong, n_samples=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PriorWarning)
        display.from_estimator(head, X[:n], np.clip(y[:n], *np.transpose(BOUNDS)), n_samples=50)


def test_displays_of_a_search():
    pipe, X, y = fitted()
    grid = {"posteriorestimator__max_epochs": [1]}
    search = GridSearchCV(pipe, grid, cv=2).fit(X, y)
    display = PosteriorDisplay.from_estimator(search, X[:1], n_samples=200)
    assert display.axes_[1, 0].get_xlabel() == r"$\Omega_m$"
    assert display.axes_[1, 0].get_xlim() == tuple(BOUNDS[0])


def test_posteriors_of_two_priors_share_a_box():
    pipe, X, y = fitted()
    wider = [[0.1, 0.4], [10.0, 300.0]]
    other = clone(pipe).set_params(
        posteriorestimator__prior_bounds=wider, posteriorestimator__max_epochs=1
    )
    both = {"narrow": pipe, "wide": other.fit(X, y)}
    display = PosteriorDisplay.from_estimator(both, X[:1], n_samples=500)
    assert display.axes_[1, 0].get_xlim() == (0.1, 0.4)
    assert display.axes_[1, 0].get_ylim() == (10.0, 300.0)


def test_axes_of_the_user():
    samples, _ = draws()
    _, axes = plt.subplots(2, 2)
    assert PosteriorDisplay.from_samples(samples[0], ax=axes).axes_ is axes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PosteriorDisplay.from_samples(np.zeros((3, 4, 2))), "samples of one light cone"),
        (lambda: PosteriorDisplay.from_samples(np.full((3, 2), np.nan)), "NaN"),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), y_true=[1.0]), r"expected shape \(3,\)"),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), levels=[1.5]), "levels"),
        (
            lambda: PosteriorDisplay.from_samples(np.eye(3), levels=0.68),
            "levels: expected a list of numbers in .* found 0.68",
        ),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), levels="a"), "levels: .* found 'a'"),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), smoothing=-1), "smoothing"),
        (
            lambda: PosteriorDisplay.from_samples(np.eye(3), smoothing="a"),
            "smoothing: expected a number in .* found 'a'",
        ),
        (
            lambda: PosteriorDisplay.from_samples(np.eye(3), colors=[]),
            r"colors: expected a list of .* found \[\]",
        ),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), colors="red"), "colors: .* found 'red'"),
        (
            lambda: PosteriorDisplay.from_samples(np.eye(3), colors=["rde"]),
            r"colors: .* found \['rde'\]",
        ),
        (
            lambda: PosteriorDisplay.from_samples(
                [[1.0, 0.1], [2.0, 0.2], [3.0, 9.0]],
                bounds=[[10, 20], [0, 1]],
                parameter_names=NAMES,
            ),
            r"of 3, 3 of 'Omega_m', which is 1 to 3 with bounds \[10.0, 20.0\]; 1 of 'zeta'",
        ),
        (lambda: PosteriorDisplay.from_samples(np.eye(3), ax=[1]), r"subplots\(3, 3\)"),
        (
            lambda: PosteriorDisplay.from_samples(np.eye(2), parameter_names=["a"]),
            "2 different strings",
        ),
        (lambda: PosteriorDisplay.from_estimator(None, np.eye(2)), "X: .* found 2 rows"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert plt.get_fignums() == []
