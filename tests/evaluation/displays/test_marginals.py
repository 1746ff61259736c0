"""MarginalsDisplay: the quantiles and the coverage that it draws, and what it refuses."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from skatr_sk.evaluation import MarginalsDisplay
from tests.evaluation.posteriors import NAMES, draws, fitted


def test_marginals_show_quantiles_and_coverage():
    samples, true = draws(n=400)
    display = MarginalsDisplay.from_samples(samples, true, parameter_names=NAMES)
    np.testing.assert_allclose(display.quantiles_[2], np.median(samples, axis=1))
    np.testing.assert_allclose(display.coverage_[0], 0.68, atol=0.08)
    np.testing.assert_allclose(display.coverage_[1], 0.95, atol=0.05)
    dots = display.axes_[1].lines[0].get_xydata()
    np.testing.assert_allclose(dots, np.stack([true[:, 1], display.quantiles_[2, :, 1]], axis=1))
    assert display.axes_[0].get_title("left").splitlines() == [
        f"68 % intervals hold {100 * display.coverage_[0, 0]:.0f} % of truths",
        f"95 % intervals hold {100 * display.coverage_[1, 0]:.0f} % of truths",
    ]
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "central 68 % of a posterior", "central 95 %", "median", "posterior = truth",
    ]  # fmt: skip
    bounded = MarginalsDisplay.from_samples(samples, true, bounds=[[-5, 5], [-6, 6]])
    assert bounded.legend_.get_texts()[-1].get_text() == "edge of the prior"
    assert display.axes_[0].get_xlabel() == r"true $\Omega_m$"


def test_from_an_estimator():
    pipe, X, y = fitted()
    marginals = MarginalsDisplay.from_estimator(pipe, X[:30], y[:30], n_samples=100)
    assert marginals.axes_[1].get_xlabel() == r"true $\zeta$"


def test_axes_of_the_user():
    _, axes = plt.subplots(1, 2)
    assert MarginalsDisplay.from_samples(*draws(), ax=axes).axes_[1] is axes[1]


def test_wrong_axes_are_refused():
    with pytest.raises(ValueError, match="expected 2"):
        MarginalsDisplay.from_samples(*draws(), ax=[1])


def test_estimators_without_samples_are_named():
    with pytest.raises(TypeError, match="StandardScaler, which has no sample_log_prob"):
        MarginalsDisplay.from_estimator(StandardScaler(), np.eye(2), np.eye(2))


@pytest.mark.parametrize("n_samples", [20, 50, 200])
def test_coverage_is_right_however_few_the_samples(n_samples):
    samples, y = draws(n=4000, m=n_samples, seed=3)
    display = MarginalsDisplay.from_samples(samples, y)
    wanted = np.minimum([0.68, 0.95], (n_samples - 1) / (n_samples + 1))  # all of few samples
    np.testing.assert_allclose(display.coverage_.mean(axis=1), wanted, atol=0.02)
    plt.close("all")
