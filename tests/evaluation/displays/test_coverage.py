"""CoverageDisplay: its curves and band, and what it refuses."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skatr_sk.evaluation import CoverageDisplay
from tests.evaluation.posteriors import draws, fitted


def test_coverage_curves_and_band(rng):
    levels = rng.uniform(size=300)
    display = CoverageDisplay.from_levels({"good": levels, "narrow": np.sqrt(levels)})
    good, narrow = display.curves.values()
    assert good.calibrated and not narrow.calibrated
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), narrow.coverage)
    assert len(display.bands_) == 1  # of the same number of cones
    names = [text.get_text() for text in display.legend_.get_texts()]
    assert names == ["99% band if calibrated", "good", "narrow", "calibrated"]
    display.figure_.draw_without_rendering()
    beside = display.ax_.get_window_extent().x1  # where it hides no curve
    assert display.legend_.get_window_extent().x0 > beside
    difference = display.plot(kind="difference")
    np.testing.assert_allclose(difference.lines_[0].get_ydata(), good.coverage - good.credibility)


def test_ranks_carry_the_names_of_the_estimator():
    pipe, X, y = fitted()
    for names, wanted in ((None, [r"$\Omega_m$", r"$\zeta$"]), (["a", "b"], ["a", "b"])):
        given = {} if names is None else {"parameter_names": names}
        display = CoverageDisplay.from_estimator(
            pipe, X[:60], y[:60], method="ranks", n_samples=50, **given
        )
        assert list(display.curves) == wanted
    for method in ("highest_density", "tarp"):  # one curve for all parameters
        display = CoverageDisplay.from_estimator(pipe, X[:60], y[:60], method=method, n_samples=50)
        assert len(display.curves) == 1


def test_from_an_estimator():
    pipe, X, y = fitted()
    for method, curves in (("highest_density", 1), ("tarp", 1), ("ranks", 2)):
        display = CoverageDisplay.from_estimator(pipe, X[:90], y[:90], method=method, n_samples=100)
        assert len(display.lines_) == curves


def test_axes_of_the_user():
    _, ax = plt.subplots()
    assert CoverageDisplay.from_samples(*draws(), ax=ax).ax_ is ax


def test_styles_reach_the_artists():
    display = CoverageDisplay.from_samples(*draws(), line_kwargs={"lw": 4}, band_kwargs={"lw": 2})
    assert display.lines_[0].get_linewidth() == 4
    assert display.bands_[0].get_linewidth() == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoverageDisplay.from_samples(*draws(), method="trap"), "did you mean 'tarp'"),
        (lambda: CoverageDisplay(curves={}).plot(), "curves: expected"),
        (lambda: CoverageDisplay.from_levels([0.5], kind="cover"), "did you mean 'coverage'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
