"""Ranks, levels and coverage: uniform when calibrated, caught when not, and equal to others'."""

import copy
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import PosteriorEstimator
from skatr_sk.evaluation import (
    coverage_band,
    expected_coverage,
    highest_density_levels,
    posterior_draws,
    rank_levels,
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
    shares = rank_levels(sbc_ranks(samples, true), M)
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


# --- few samples, and ties


@pytest.mark.parametrize("n_samples", [1, 2, 5, 20, 50, 500])
def test_ranks_of_few_samples_give_uniform_levels(n_samples):
    """With more light cones than a band hides steps of 1 / n_samples: every trial but chance's."""
    ranks = np.random.default_rng(0).integers(0, n_samples + 1, size=(20, 10_000))
    curves = [
        expected_coverage(rank_levels(each, n_samples, random_state=k))
        for k, each in enumerate(ranks)
    ]
    assert sum(curve.calibrated for curve in curves) >= 19
    assert stats.kstest([curve.p_value for curve in curves], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("n_samples", [1, 5, 20])
@pytest.mark.parametrize("figure", ["ranks", "tarp", "highest density"])
def test_calibrated_posteriors_pass_with_few_samples(figure, n_samples):
    rng = np.random.default_rng(2)
    n = 10_000
    mean = 3 * rng.normal(size=(n, 1, 2))
    samples, true = (mean + rng.normal(size=(n, k, 2)) for k in (n_samples, 1))
    if figure == "ranks":
        levels = rank_levels(sbc_ranks(samples, true[:, 0]), n_samples)[:, 1]
    elif figure == "tarp":
        levels = tarp_levels(samples, true[:, 0])
    else:
        each, truth = (-np.square(points - mean).sum(axis=2) for points in (samples, true))
        levels = highest_density_levels(each, truth[:, 0])
    curve = expected_coverage(levels)
    assert curve.calibrated
    assert curve.p_value > 0.01


@pytest.mark.parametrize("grid", [None, 1, 4])
def test_ties_are_split_at_random(grid):
    """Flat posteriors, or a coarse grid: no rank among equal samples is preferred."""
    rng = np.random.default_rng(0)
    size = (4000, 31, 1)
    drawn = np.zeros(size) if grid is None else rng.integers(0, grid + 1, size)
    samples, true = drawn[:, :-1], drawn[:, -1]
    levels = {
        "highest density": highest_density_levels(samples[..., 0], true[:, 0]),
        "ranks": rank_levels(sbc_ranks(samples, true), 30)[:, 0],
        "tarp": tarp_levels(samples, true),
    }
    for name, each in levels.items():
        assert expected_coverage(each).p_value > 1e-3, name


def test_ranks_are_whole_numbers_and_levels_fall_where_they_say():
    ranks = sbc_ranks(np.zeros((500, 3, 1)), np.zeros(500))
    assert ranks.dtype.kind == "i"
    assert set(ranks.ravel()) == {0, 1, 2, 3}
    levels = rank_levels(ranks, 3)
    np.testing.assert_array_equal(np.floor(levels * 4), ranks)
    np.testing.assert_array_equal(rank_levels(ranks, 3), levels)
    assert (rank_levels(ranks, 3, random_state=1) != levels).all()


def test_a_truth_on_an_edge_is_half_inside():
    curve = expected_coverage([0.25, 0.25, 0.75, 0.75, 0.5], n_levels=5)
    np.testing.assert_allclose(curve.coverage, [0, 0.2, 0.5, 0.8, 1])


def test_levels_that_come_in_steps_are_pointed_out():
    ranks = np.random.default_rng(0).integers(0, 21, size=3000)
    with pytest.warns(UserWarning, match=r"levels takes only 19 values.*rank_levels"):
        expected_coverage(ranks / 20)


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
    each, truth = samples[..., 0], true[:, 0]
    highest = highest_density_levels(each, truth)
    monkeypatch.setattr("skatr_sk.evaluation.arrays._BATCH_VALUES", 7 * M * D)
    np.testing.assert_array_equal(sbc_ranks(samples, true), ranks)
    np.testing.assert_array_equal(tarp_levels(samples, true), levels)
    np.testing.assert_array_equal(highest_density_levels(each, truth), highest)


def test_memory_is_bounded_by_a_batch(tmp_path):
    """Samples in a file stay there: what a call holds is far below the file's size."""
    shape = (1000, 1000, 4)  # 16 MB
    samples = np.memmap(tmp_path / "samples", dtype=np.float32, mode="w+", shape=shape)
    samples[:] = np.random.default_rng(0).normal(size=shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skatr_sk.evaluation.arrays._BATCH_VALUES", 20_000)
        for call in (
            lambda: sbc_ranks(samples, np.zeros((1000, 4))),
            lambda: tarp_levels(samples, np.zeros((1000, 4))),
            lambda: highest_density_levels(samples[..., 0], np.zeros(1000)),
        ):
            tracemalloc.start()
            call()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2e6


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_bar_shows_when_asked_for(verbose, monkeypatch, capsys):
    monkeypatch.setattr("skatr_sk.evaluation.arrays._BAR_AFTER", 0)
    samples, true, *_ = gaussian()
    for call, title in (
        (lambda: sbc_ranks(samples, true, verbose=verbose), "ranks"),
        (lambda: tarp_levels(samples, true, verbose=verbose), "TARP"),
        (
            lambda: highest_density_levels(samples[..., 0], true[:, 0], verbose=verbose),
            "highest density",
        ),
    ):
        call()
        shown = capsys.readouterr().err
        assert (f"{title}: 100%" in shown) == bool(verbose)
        assert (f"{N}/{N}" in shown) == bool(verbose)


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(300, 2))
    X = y + 0.3 * rng.normal(size=y.shape)
    posterior = PosteriorEstimator(
        n_blocks=2, hidden_dims=(16,), n_members=1, max_epochs=5, device="cpu", random_state=0
    )
    return posterior.fit(X, y), X, y


def test_from_an_estimator(fitted):
    posterior, X, y = fitted
    samples, levels = posterior_draws(posterior, X[:9], n_samples=40, y=y[:9])
    assert samples.shape == (9, 40, 2)
    _, log_prob = posterior.sample_log_prob(X[:9], 40, random_state=0)
    wanted = (log_prob > posterior.log_prob(X[:9], y[:9])[:, None]).sum(axis=1)
    np.testing.assert_array_equal(np.floor(levels * 41), wanted)


def test_from_a_search(fitted):
    """A fitted search samples as what it has chosen, on its own and at either end of a Pipeline."""
    posterior, X, y = fitted
    X, y = X[:60], y[:60]
    head = posterior.__class__(**posterior.get_params() | {"max_epochs": 1})
    pipe = make_pipeline(StandardScaler(), head)
    for search in (
        GridSearchCV(pipe, {"posteriorestimator__dropout": [0.0]}, cv=2),
        make_pipeline(StandardScaler(), GridSearchCV(head, {"dropout": [0.0]}, cv=2)),
    ):
        pipe.set_params(posteriorestimator__dropout=0.0)
        wanted = posterior_draws(pipe.fit(X, y), X[:3], n_samples=5)[0]
        np.testing.assert_array_equal(
            posterior_draws(search.fit(X, y), X[:3], n_samples=5)[0], wanted
        )
    with pytest.raises(
        TypeError, match="refit=True, found GridSearchCV, which has no sample_log_prob"
    ):
        posterior_draws(GridSearchCV(head, {"dropout": [0.0]}), X[:3])
    with pytest.raises(TypeError, match="Ridge, which has no sample_log_prob"):
        posterior_draws(GridSearchCV(Ridge(), {"alpha": [1]}, cv=2).fit(X, y), X[:3])


@pytest.mark.parametrize("verbose", [0, 1])
def test_a_bar_of_the_sampling_shows_when_asked_for(fitted, verbose, monkeypatch, capsys):
    posterior, X, _ = fitted
    monkeypatch.setattr("skatr_sk.training.progress._LONG", 0)
    posterior_draws(posterior, X, n_samples=5, verbose=verbose)
    assert ("posterior: 100%" in capsys.readouterr().err) == bool(verbose)
    assert posterior.verbose == 0
    loud = copy.copy(posterior).set_params(verbose=verbose)
    loud.sample(X, 5)
    assert ("300/300" in capsys.readouterr().err) == bool(verbose)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sbc_ranks(np.zeros((3, 2)), np.zeros((3, 2))),
            r"samples and y_true: .* found \(3, 2\)",
        ),
        (
            lambda: tarp_levels(np.zeros((3, 5, 2)), np.zeros((4, 2))),
            r"samples and y_true: .* and \(4, 2\)",
        ),
        (lambda: sbc_ranks(np.full((3, 5, 2), np.nan), np.zeros((3, 2))), "samples: .* NaN"),
        (lambda: sbc_ranks(np.zeros((3, 5, 1)), [0, np.inf, 0]), "y_true: .* NaN .*rows 1"),
        (
            lambda: tarp_levels(np.zeros((3, 5, 2)), np.zeros((3, 2)), references=np.zeros(2)),
            r"references: expected the shape of y_true, \(3, 2\), found \(2,\)",
        ),
        (
            lambda: tarp_levels(np.zeros((3, 5, 1)), np.zeros(3), references=[[0], [0], [np.nan]]),
            r"references: .* NaN or infinite values in 1 of 3 light cones \(rows 2\)",
        ),
        (lambda: sbc_ranks([[[1.0], [2.0]], [[1.0]]], [1, 1]), "samples: expected a rectangular"),
        (
            lambda: sbc_ranks(np.zeros((3, 5, 1)), np.zeros(3), random_state=-1),
            "random_state: .* found -1",
        ),
        (lambda: rank_levels([0, 4], 3), "n_samples=3, found values from 0 to 4"),
        (lambda: rank_levels([0], 1.5), "n_samples: expected an integer >= 1, found 1.5"),
        (lambda: rank_levels([0.5], 3), "expected whole numbers"),
        (lambda: rank_levels(["a"], 3), "expected whole numbers"),
        (lambda: highest_density_levels(np.zeros((3, 5)), np.zeros(4)), "log_prob_true"),
        (lambda: highest_density_levels(np.full((3, 5), np.nan), np.zeros(3)), "no NaN"),
        (lambda: expected_coverage([0.5, 1.5]), r"one number in \[0, 1\]"),
        (
            lambda: expected_coverage([0.5, np.nan]),
            "NaN .* 1 of 2 .* first of them 1, which has nan",
        ),
        (
            lambda: expected_coverage([[0.5]]),
            r"levels: expected one number .* found shape \(1, 1\)",
        ),
        (lambda: expected_coverage(["a"]), "levels: .* found no array of numbers"),
        (
            lambda: expected_coverage([0.5], n_levels=1),
            "n_levels: expected an integer >= 2, found 1",
        ),
        (
            lambda: expected_coverage([0.5], n_levels=10.5),
            "n_levels: expected an integer .* found 10.5",
        ),
        (
            lambda: expected_coverage([0.5], confidence="a"),
            "confidence: expected a number .* found 'a'",
        ),
        (lambda: coverage_band(10.5), "n_lightcones: expected an integer .* found 10.5"),
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


def in_units(width=1.0):
    """Posteriors as they come, with references around them.

    Others scale a parameter by the range of all truths, we by each cone's samples: of equal widths
    in all cones and equal ratios in all parameters, as here, these come to the same distances.
    """
    samples, true, *_ = gaussian(width)
    noise = np.random.default_rng(1).normal(size=true.shape)
    return samples, true, samples.mean(axis=1) + samples.std(axis=1) * noise


BOTH = pytest.mark.parametrize("arrays", [z_scored, in_units])


@BOTH
@pytest.mark.changes_global_state  # tarp's doing
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_agrees_with_tarp(width, arrays):
    tarp = pytest.importorskip("tarp")
    samples, true, references = arrays(width)
    norm = arrays is in_units
    low, high = true.min(axis=0), true.max(axis=0)
    theirs = (references - low) / (high - low) if norm else references  # it scales all else
    ecp, alpha = tarp.get_tarp_coverage(
        samples.transpose(1, 0, 2), true, references=theirs, norm=norm, num_alpha_bins=50
    )
    levels = tarp_levels(samples, true, references=references)
    ours = np.searchsorted(np.sort(levels), alpha, side="right") / N
    # Their grid counts levels on an edge with the bin above: at most a sample's step.
    np.testing.assert_allclose(ours[1:-1], np.ravel(ecp)[1:-1], atol=0.03)


class Drawn:
    """Given samples, with the methods of a posterior that sbi calls."""

    def __init__(self, samples):
        import torch

        self.samples = torch.from_numpy(samples.transpose(1, 0, 2))

    def sample_batched(self, shape, x, **kwargs):
        assert (*shape, len(x)) == self.samples.shape[:2]
        return self.samples


@BOTH
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_agrees_with_sbi(width, arrays):
    diagnostics = pytest.importorskip("sbi.diagnostics")
    import torch

    samples, true, references = arrays(width)
    truth, posterior = torch.from_numpy(true), Drawn(samples)
    options = {"num_posterior_samples": M, "show_progress_bar": False}
    ranks, _ = diagnostics.run_sbc(truth, truth, posterior, **options)
    np.testing.assert_array_equal(ranks.numpy(), sbc_ranks(samples, true))
    ecp, alpha = diagnostics.run_tarp(
        truth,
        truth,
        posterior,
        references=torch.from_numpy(references),
        num_bins=50,
        z_score_theta=arrays is in_units,
        **options,
    )
    levels = tarp_levels(samples, true, references=references)
    ours = np.searchsorted(np.sort(levels), alpha.numpy(), side="right") / N
    np.testing.assert_allclose(ours[1:-1], ecp.numpy()[1:-1], atol=0.03)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_highest_density_agrees_with_sbi(width):
    diagnostics = pytest.importorskip("sbi.diagnostics")
    import torch

    samples, true, *_ = gaussian(width)
    sigma = torch.tensor([0.1, 1.0, 30.0]) * width
    centres = samples.mean(axis=1)

    def log_prob(theta, x):
        return -((theta - x) / sigma).square().sum(dim=-1)

    x = torch.from_numpy(centres)
    ranks, _ = diagnostics.run_sbc(
        torch.from_numpy(true),
        x,
        Drawn(samples),
        num_posterior_samples=M,
        reduce_fns=log_prob,
        show_progress_bar=False,
    )
    densities = [
        -np.square((points - centres[:, np.newaxis]) / sigma.numpy()).sum(axis=2)
        for points in (samples, true[:, np.newaxis])
    ]
    levels = highest_density_levels(densities[0], densities[1][:, 0])
    # They count the samples at a lower density, we those at a higher one.
    np.testing.assert_allclose(M - np.floor(levels * (M + 1)), ranks.numpy()[:, 0], atol=1)
