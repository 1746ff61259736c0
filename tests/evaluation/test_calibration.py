"""Ranks, levels and coverage: uniform when calibrated, caught when not, and equal to others'."""

import numpy as np
import pytest
from scipy import stats

from skatr_sk import PosteriorEstimator
from skatr_sk.evaluation import (
    coverage_band,
    expected_coverage,
    highest_density_levels,
    posterior_draws,
    sbc_ranks,
    tarp_levels,
)

N, M, D = 600, 250, 3


def gaussian(width=1.0, shift=0.0, seed=0):
    """Posteriors N(mean, sigma^2) of known truth; `width` and `shift` (in sigma) spoil them."""
    rng = np.random.default_rng(seed)
    sigma = np.array([0.1, 1.0, 30.0])
    mean = rng.normal(size=(N, 1, D)) * sigma * 3
    true = (mean + sigma * rng.normal(size=(N, 1, D)))[:, 0]
    centre, scale = mean + shift * sigma, width * sigma
    samples = centre + scale * rng.normal(size=(N, M, D))
    log_prob = stats.norm(centre, scale).logpdf(samples).sum(axis=2)
    log_true = stats.norm(centre, scale).logpdf(true[:, np.newaxis]).sum(axis=2)[:, 0]
    return samples, true, log_prob, log_true


def figures(samples, true, log_prob, log_true):
    """The three judgements of one set of posteriors, as coverages."""
    shares = sbc_ranks(samples, true) / M
    return {
        "ranks": [expected_coverage(shares[:, i]) for i in range(D)],
        "tarp": [expected_coverage(tarp_levels(samples, true))],
        "highest density": [expected_coverage(highest_density_levels(log_prob, log_true))],
    }


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_posteriors_pass(seed):
    for name, curves in figures(*gaussian(seed=seed)).items():
        assert all(curve.calibrated for curve in curves), name
        assert all(curve.p_value > 1e-3 for curve in curves), name


@pytest.mark.parametrize(
    "spoiled", [dict(width=0.5), dict(width=2.0), dict(shift=1.0)], ids=["narrow", "wide", "shift"]
)
@pytest.mark.parametrize("figure", ["ranks", "tarp", "highest density"])
def test_spoiled_posteriors_are_caught(spoiled, figure):
    curves = figures(*gaussian(**spoiled))[figure]
    assert not any(curve.calibrated for curve in curves)
    assert all(curve.p_value < 1e-6 for curve in curves)


def test_the_side_of_the_diagonal_tells_narrow_from_wide():
    for width, above in ((0.5, False), (2.0, True)):
        (curve,) = figures(*gaussian(width=width))["highest density"]
        middle = slice(20, 80)
        assert ((curve.coverage > curve.credibility)[middle] == above).all()


def test_ranks_count_the_samples_below():
    samples = np.array([[[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]]])
    np.testing.assert_array_equal(sbc_ranks(samples, [[1.5, 4.0]]), [[2, 0]])
    np.testing.assert_array_equal(sbc_ranks(samples[..., :1], [1.5]), [[2]])


def test_levels_do_not_depend_on_units():
    """TARP z-scores each parameter to the samples: a change of units changes nothing."""
    samples, true, *_ = gaussian()
    scale, offset = np.array([1e-3, 10.0, 1.0]), np.array([5.0, -100.0, 0.0])
    np.testing.assert_allclose(
        tarp_levels(samples * scale + offset, true * scale + offset), tarp_levels(samples, true)
    )


def test_batches_leave_no_trace(monkeypatch):
    samples, true, *_ = gaussian()
    ranks, levels = sbc_ranks(samples, true), tarp_levels(samples, true)
    monkeypatch.setattr("skatr_sk.evaluation.calibration._BATCH_VALUES", 7 * M * D)
    np.testing.assert_array_equal(sbc_ranks(samples, true), ranks)
    np.testing.assert_array_equal(tarp_levels(samples, true), levels)


@pytest.mark.parametrize("n", [20, 200])
def test_band_holds_what_it_promises(n):
    """A calibrated posterior leaves the band in 1 - confidence of all trials."""
    levels = np.random.default_rng(0).uniform(size=(1500, n))
    inside = [expected_coverage(each, confidence=0.9, n_levels=301).calibrated for each in levels]
    # Curves are compared at points, not everywhere: slightly more than promised is inside.
    assert 0.885 < np.mean(inside) < 0.935
    assert coverage_band(n, 0.99) > coverage_band(n, 0.9) > coverage_band(4 * n, 0.9)


def test_coverage_of_known_levels():
    curve = expected_coverage([0.125, 0.375, 0.625, 0.875], n_levels=5)
    np.testing.assert_allclose(curve.credibility, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.coverage, [0, 0.25, 0.5, 0.75, 1])


def test_a_truth_outside_the_box_is_in_no_region():
    assert highest_density_levels([[-1.0, -2.0]], [-np.inf]) == [1.0]


def test_from_an_estimator():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, 2))
    X = y + 0.3 * rng.normal(size=y.shape)
    posterior = PosteriorEstimator(
        n_blocks=2, hidden_dims=(16,), max_epochs=20, device="cpu", random_state=0
    ).fit(X, y)
    samples, levels = posterior_draws(posterior, X[:9], n_samples=40, y=y[:9])
    assert samples.shape == (9, 40, 2)
    _, log_prob = posterior.sample_log_prob(X[:9], 40, random_state=0)
    wanted = (log_prob > posterior.log_prob(X[:9], y[:9])[:, None]).mean(axis=1)
    np.testing.assert_array_equal(levels, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sbc_ranks(np.zeros((3, 2)), np.zeros((3, 2))), r"samples has shape \(3, 2\)"),
        (lambda: tarp_levels(np.zeros((3, 5, 2)), np.zeros((4, 2))), r"y_true \(4, 2\), expected"),
        (lambda: sbc_ranks(np.full((3, 5, 2), np.nan), np.zeros((3, 2))), "samples has NaN"),
        (lambda: sbc_ranks(np.zeros((3, 5, 1)), [0, np.inf, 0]), "y_true has NaN.*first of them 1"),
        (
            lambda: tarp_levels(np.zeros((3, 5, 2)), np.zeros((3, 2)), references=np.zeros(2)),
            r"references has shape \(2,\), expected \(3, 2\)",
        ),
        (lambda: highest_density_levels(np.zeros((3, 5)), np.zeros(4)), "log_prob_true"),
        (lambda: highest_density_levels(np.full((3, 5), np.nan), np.zeros(3)), "no NaN"),
        (lambda: expected_coverage([0.5, 1.5]), r"one number in \[0, 1\]"),
        (lambda: expected_coverage([0.5], n_levels=1), "n_levels is 1"),
        (lambda: coverage_band(10, 1.0), "confidence"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the same figures from other packages, on the same arrays


def z_scored(width=1.0):
    """Posteriors already z-scored to their samples, where ours and others' distances agree."""
    samples, true, *_ = gaussian(width)
    mean, scale = samples.mean(axis=1, keepdims=True), samples.std(axis=1, keepdims=True)
    references = np.random.default_rng(1).normal(size=true.shape)
    return (samples - mean) / scale, ((true[:, None] - mean) / scale)[:, 0], references


@pytest.mark.changes_global_state  # tarp's doing
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_agrees_with_tarp(width):
    tarp = pytest.importorskip("tarp")
    samples, true, references = z_scored(width)
    ecp, alpha = tarp.get_tarp_coverage(
        samples.transpose(1, 0, 2), true, references=references, norm=False, num_alpha_bins=50
    )
    levels = tarp_levels(samples, true, references=references)
    ours = np.searchsorted(np.sort(levels), alpha, side="right") / N
    # Their grid counts levels on an edge with the bin above: at most a sample's step.
    np.testing.assert_allclose(ours[1:-1], np.ravel(ecp)[1:-1], atol=0.03)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_agrees_with_sbi(width):
    diagnostics = pytest.importorskip("sbi.diagnostics")
    import torch

    samples, true, references = z_scored(width)
    drawn, truth = torch.from_numpy(samples.transpose(1, 0, 2)), torch.from_numpy(true)
    ranks = diagnostics.sbc._run_sbc(truth, truth, drawn, "marginals", show_progress_bar=False)
    np.testing.assert_array_equal(ranks.numpy(), sbc_ranks(samples, true))
    ecp, alpha = diagnostics.tarp._run_tarp(drawn, truth, torch.from_numpy(references), num_bins=50)
    levels = tarp_levels(samples, true, references=references)
    ours = np.searchsorted(np.sort(levels), alpha.numpy(), side="right") / N
    np.testing.assert_allclose(ours[1:-1], ecp.numpy()[1:-1], atol=0.03)
