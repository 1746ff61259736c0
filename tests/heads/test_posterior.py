"""PosteriorEstimator: known posteriors, prior edges, shapes, the estimator's contract, messages."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest, multivariate_normal, norm, uniform
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import LightconeRegressor, PosteriorEstimator, SKATRTransformer
from skatr_sk._checks import NoEffectWarning, PriorWarning, ShortTrainingWarning
from skatr_sk.evaluation import posterior_draws
from skatr_sk.fields import ArrayFields
from skatr_sk.heads import base
from skatr_sk.heads import posterior as module
from skatr_sk.heads.flow import ConditionalFlow, FlowEnsemble
from skatr_sk.training.held_out import Given, Rows
from tests.heads import two_moons

SMALL = dict(n_blocks=2, n_bins=5, hidden_dims=(16,), max_epochs=10, learning_rate=1e-2)
SMALL |= dict(dropout=0.05, n_members=1, device="cpu", random_state=0)


def make(**parameters):
    settings = dict(batch_size=128, weight_decay=1.0, dropout=0.2)
    return PosteriorEstimator(**settings | SMALL | parameters)


class LinearGaussian:
    """y from a standard normal or a box, x = y + correlated noise: the posterior is known."""

    def __init__(self, n_parameters, bounded, noise=0.3, correlation=0.9):
        self.d, self.bounded = n_parameters, bounded
        shape = (1 - correlation) * np.eye(n_parameters) + correlation
        self.noise = noise**2 * (shape if n_parameters > 1 else np.eye(1))
        self.bounds = np.tile([-1.0, 1.0], (n_parameters, 1)) if bounded else None
        precision = np.linalg.inv(self.noise)
        self.covariance = np.linalg.inv(precision + (0 if bounded else 1) * np.eye(n_parameters))
        self.gain = self.covariance @ precision

    def draw(self, n, seed):
        rng = np.random.default_rng(seed)
        shape = (n, self.d)
        y = rng.uniform(-1, 1, shape) if self.bounded else rng.normal(size=shape)
        return y + rng.multivariate_normal(np.zeros(self.d), self.noise, n), y

    def log_prob(self, X, y):
        mean = X @ self.gain.T
        log_prob = multivariate_normal(np.zeros(self.d), self.covariance).logpdf(y - mean)
        if self.bounded:
            box = multivariate_normal(np.zeros(self.d), self.covariance, abseps=1e-4)
            mass = [box.cdf(1 - m, lower_limit=-1 - m, rng=0) for m in mean]
            log_prob = log_prob - np.log(mass)
        return log_prob

    def sample(self, X, seed):
        """One exact draw for each row of X, by rejection where there is a box."""
        rng = np.random.default_rng(seed)
        mean, todo = X @ self.gain.T, np.arange(len(X))
        y = np.empty_like(mean)
        while todo.size:
            y[todo] = mean[todo] + rng.multivariate_normal(
                np.zeros(self.d), self.covariance, todo.size
            )
            todo = todo[(np.abs(y[todo]) > 1).any(axis=1)] if self.bounded else todo[:0]
        return y


def c2st(first, second):
    """Accuracy of a classifier on held-out halves; 0.5 is what equal distributions give."""
    X = np.concatenate([first, second])
    label = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(0).permutation(len(X))
    X, label = StandardScaler().fit_transform(X)[order], label[order]
    half = len(X) // 2
    classifier = MLPClassifier((64, 64), early_stopping=True, max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stops before it has converged
        return classifier.fit(X[:half], label[:half]).score(X[half:], label[half:])


# In a box the narrow posterior of six correlated parameters bends: more blocks, of fewer bins.
SIX = [pytest.param(6, bounded, marks=pytest.mark.slow) for bounded in (False, True)]
CASES = [
    pytest.param(1, False, marks=pytest.mark.slow),
    pytest.param(1, True, marks=pytest.mark.slow),
    *SIX,
]


@pytest.mark.parametrize(("n_parameters", "bounded"), CASES)
def test_linear_gaussian(n_parameters, bounded):
    """5,000 simulations: within 0.05 nats a parameter, C2ST at most 0.55, calibrated."""
    problem = LinearGaussian(n_parameters, bounded)
    X, y = problem.draw(5000, seed=0)
    # Every number of the summary counts: no dropout.
    bent = bounded and n_parameters > 1
    posterior = PosteriorEstimator(
        prior_bounds=problem.bounds,
        n_blocks=8 if bent else 6,
        n_bins=5 if bent else 10,
        max_epochs=40 if bent else 20 if n_parameters > 1 else 10,
        learning_rate=5e-3,
        weight_decay=1.0 if bent else "auto",
        dropout=0.0,
        device="cpu",
        random_state=0,
    ).fit(X, y)
    X_test, y_test = problem.draw(1000, seed=1)
    gap = (problem.log_prob(X_test, y_test).mean() - posterior.score(X_test, y_test)) / n_parameters
    print(f"gap {gap:.4f} nats a parameter")
    assert gap < 0.05

    X_pairs, _ = problem.draw(4000, seed=2)
    root = np.linalg.cholesky(problem.covariance)

    def features(points):
        return np.concatenate(
            [(points - X_pairs @ problem.gain.T) @ np.linalg.inv(root).T, X_pairs], axis=1
        )

    ours = posterior.sample(X_pairs, 1, random_state=0)[:, 0]
    accuracy = c2st(features(ours), features(problem.sample(X_pairs, seed=3)))
    print(f"C2ST {accuracy:.4f}")
    assert accuracy < 0.55

    # Shares of samples at a higher density than the truth are uniform: a Kolmogorov-Smirnov band.
    samples, log_prob = posterior.sample_log_prob(X_test, 200, random_state=0)
    levels = np.sort((log_prob > posterior.log_prob(X_test, y_test)[:, None]).mean(axis=1))
    uniform = (np.arange(len(levels)) + 0.5) / len(levels)
    print(f"coverage off by {np.abs(levels - uniform).max():.4f}")
    assert np.abs(levels - uniform).max() < 1.63 / np.sqrt(len(levels)) + 1 / 200


def piled_up(n, n_parameters, seed=0):
    """Parameters in [0, 1], most of whose posteriors lean on an edge."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(0, 1, (n, n_parameters))
    return np.clip(y, 0.1, 0.9) + 0.02 * rng.normal(size=y.shape), y


@pytest.fixture(scope="module", params=[2, pytest.param(1, marks=pytest.mark.slow)])
def edge_posterior(request):
    X, y = piled_up(1000, request.param)
    bounds = np.tile([0.0, 1.0], (request.param, 1))
    return make(prior_bounds=bounds, max_epochs=15).fit(X, y)


@pytest.mark.parametrize("n_numbers", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_samples_stay_in_the_box(n_numbers, edge_posterior):
    """Many of them, at an edge."""
    d = edge_posterior.n_parameters_
    n_samples = n_numbers // (100 * d)
    samples = edge_posterior.sample(np.full((100, d), 0.05), n_samples, random_state=0)
    assert samples.size >= n_numbers
    assert ((samples > 0) & (samples < 1)).all()
    assert (samples < 0.2).mean() > 0.9  # it does lean on the edge


def test_density_integrates_to_one(edge_posterior):
    d = edge_posterior.n_parameters_
    # Midpoints of cells that are finer towards the edges.
    edges = 0.5 - 0.5 * np.cos(np.pi * np.linspace(0, 1, 2001 if d == 1 else 301))
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    grid = np.stack(np.meshgrid(*[middle] * d, indexing="ij"), axis=-1).reshape(1, -1, d)
    volume = np.prod(np.meshgrid(*[width] * d, indexing="ij"), axis=0).ravel()
    for x in (0.05, 0.5):
        density = np.exp(edge_posterior.log_prob(np.full((1, d), x), grid)[0])
        assert density @ volume == pytest.approx(1, abs=0.01)


def test_density_is_zero_outside_the_box(edge_posterior):
    d = edge_posterior.n_parameters_
    X = np.full((3, d), 0.5)
    y = np.full((3, d), 0.5)
    y[1, 0], y[2, 0] = -0.01, 1.0
    log_prob = edge_posterior.log_prob(X, y)
    assert log_prob[1] == -np.inf
    assert np.isfinite(log_prob[[0, 2]]).all()  # the edge itself belongs to the box
    with pytest.warns(PriorWarning, match="in 1 of 3 rows, the first of them 1"):
        assert edge_posterior.score(X, y) == -np.inf


def test_log_prob_equals_that_of_the_samples(edge_posterior):
    """Unequal numbers of cones and samples."""
    d = edge_posterior.n_parameters_
    X, _ = piled_up(7, d, seed=1)
    samples, log_prob = edge_posterior.sample_log_prob(X, 3000, random_state=0)
    assert samples.shape == (7, 3000, d)
    assert log_prob.shape == (7, 3000)
    np.testing.assert_allclose(edge_posterior.log_prob(X, samples), log_prob, atol=1e-3)
    one_each = edge_posterior.log_prob(X, samples[:, 5])
    assert one_each.shape == (7,)
    np.testing.assert_allclose(one_each, log_prob[:, 5], atol=1e-3)


def heap(rng, n):
    """A third of the parameters lie exactly at the lower edge."""
    y = rng.uniform(0, 1, n)
    return np.where(rng.random(n) < 0.3, 0.0, y), 1.0


def design(rng, n):
    """A grid that reaches both edges."""
    return rng.choice([0, 0.25, 0.5, 0.75, 1], n), 1.0


def decades(rng, n):
    """Uniform in the logarithm, in a box that is not; what is seen says where."""
    y = 10 ** rng.uniform(-8, 0, n)
    return y, np.log10(y) + 0.5 * rng.normal(size=n)


@pytest.fixture(
    scope="module", params=[pytest.param(heap, marks=pytest.mark.slow), design, decades]
)
def at_the_edge(request):
    y, X = request.param(np.random.default_rng(0), 1000)
    X = np.broadcast_to(X, len(y))[:, None]
    several = dict(n_members=2) if request.param is design else {}
    fitted = make(prior_bounds=[[0, 1]], max_epochs=15, **several).fit(X, y)
    return fitted, np.full((1, 1), -8.0 if request.param is decades else 1.0)


def test_density_at_the_edge_integrates_to_one(at_the_edge):
    """On nodes that reach 1e-12 of the box on either side."""
    posterior, X = at_the_edge
    logit = np.linspace(-28, 28, 20_001)
    low, high = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))
    width = np.where(logit[1:] <= 0, np.diff(low), -np.diff(high))
    middle = 1 / (1 + np.exp(-(logit[1:] + logit[:-1]) / 2))
    density = np.exp(posterior.log_prob(X, middle[None, :, None])[0])
    assert density @ width == pytest.approx(1, abs=0.01)


def test_samples_pulled_in_from_an_edge_have_the_density_there(at_the_edge):
    posterior, X = at_the_edge
    samples, log_prob = posterior.sample_log_prob(X, 5000, random_state=0)
    assert ((samples > 0) & (samples < 1)).all()
    np.testing.assert_allclose(posterior.log_prob(X, samples), log_prob, atol=1e-3)


def problem_in_units(n=400, seed=0):
    """Two parameters in awkward units, the second unbounded."""
    rng = np.random.default_rng(seed)
    y = np.stack([rng.uniform(1e3, 1e3 + 1e-3, n), 50 * rng.normal(size=n)], axis=1)
    noise = rng.normal(size=(n, 3))
    return np.stack([1e3 * (y[:, 0] - 1e3), y[:, 1] / 50, y[:, 1] / 50], axis=1) + 0.1 * noise, y


MIXED = [[1e3, 1e3 + 1e-3], [-np.inf, np.inf]]


@pytest.fixture(scope="module")
def mixed():
    return make(prior_bounds=MIXED, max_epochs=20).fit(*problem_in_units())


def test_density_is_in_the_units_of_y(mixed):
    """The prior's own density is what a posterior must beat; units of 1e-3 and 50 move both."""
    X, y = problem_in_units(seed=1)
    prior = -np.log(1e-3) + norm(0, 50).logpdf(y[:, 1]).mean()
    assert mixed.score(X, y) > prior + 2
    samples = mixed.sample(X, 300, random_state=0)
    assert ((samples[..., 0] > 1e3) & (samples[..., 0] < 1e3 + 1e-3)).all()
    np.testing.assert_allclose(mixed.prior_bounds_, MIXED)


def test_without_training_the_density_is_the_prior():
    y = np.random.default_rng(0).uniform(2, 4, (20_000, 2))
    posterior = make(prior_bounds=[[2, 4]] * 2, max_epochs=0).fit(y, y)
    np.testing.assert_allclose(posterior.log_prob(y[:9], y[:9]), -2 * np.log(2), atol=0.05)


def test_data_bounds():
    X, y = problem_in_units()
    posterior = make(prior_bounds="data").fit(X, y)
    beyond = np.ptp(y, axis=0) / (len(y) - 1)
    box = np.stack([y.min(0) - beyond, y.max(0) + beyond], axis=1)
    np.testing.assert_allclose(posterior.prior_bounds_, box)
    assert np.isfinite(posterior.log_prob(X, y)).all()
    samples = posterior.sample(X, 50, random_state=0)
    assert ((samples > box[:, 0]) & (samples < box[:, 1])).all()


@pytest.mark.slow
def test_the_ends_of_few_rows_do_not_spoil_the_box_around_them():
    """Were the least and the greatest row edges of the box, there would be spikes of density."""
    rng, scores = np.random.default_rng(0), []
    X, x = rng.normal(size=(2, 230, 4))
    y = X[:, :1] + 0.3 * x[:, :1]
    for bounds in ("data", None):
        posterior = PosteriorEstimator(prior_bounds=bounds, random_state=0, device="cpu")
        inside = (y[30:] > y[:30].min()) & (y[30:] < y[:30].max())
        found = posterior.fit(X[:30], y[:30]).log_prob(X[30:], y[30:])[inside[:, 0]]
        scores.append(found.mean())
    assert scores[0] > scores[1] - 0.5


def test_predictions_are_moments_and_quantiles_of_the_samples(mixed):
    X, y = problem_in_units(n=20, seed=2)
    samples = mixed.sample(X, 10_000, random_state=0)
    mean, std = mixed.predict(X, return_std=True)
    assert mean.shape == std.shape == y.shape
    np.testing.assert_array_equal(mixed.predict(X), mean)
    scale = samples.std(axis=1)
    np.testing.assert_array_less(np.abs(mean - samples.mean(axis=1)) / scale, 0.06)
    np.testing.assert_allclose(std, scale, rtol=0.1)
    quantiles = mixed.predict_quantiles(X, [0.1, 0.5, 0.9])
    assert quantiles.shape == (20, 3, 2)
    wanted = np.quantile(samples, [0.1, 0.5, 0.9], axis=1).transpose(1, 0, 2)
    assert (np.abs(quantiles - wanted) / scale[:, None]).max() < 0.15
    np.testing.assert_array_equal(mixed.predict_quantiles(X, 0.5), quantiles[:, 1])


def test_one_dimensional_targets_come_back_so():
    X, y = problem_in_units()
    posterior = make(max_epochs=1).fit(X, y[:, 1])
    assert posterior.predict(X[:5]).shape == (5,)
    assert posterior.predict_quantiles(X[:5], [0.2, 0.8]).shape == (5, 2)
    assert posterior.predict_quantiles(X[:5], 0.2).shape == (5,)
    assert posterior.sample(X[:5], 7).shape == (5, 7, 1)
    assert posterior.log_prob(X[:5], y[:5, 1]).shape == (5,)
    column = make(max_epochs=1).fit(X, y[:, 1:])
    assert column.predict(X[:5]).shape == (5, 1)
    assert column.predict_quantiles(X[:5], [0.2, 0.8]).shape == (5, 2, 1)


def test_batches_leave_no_trace(mixed, monkeypatch):
    X, y = problem_in_units(n=5)
    whole = mixed.sample_log_prob(X, 30, random_state=0)
    means, log_prob = mixed.predict(X, n_samples=40), mixed.log_prob(X, y)
    for points in (7, 64):  # parts of a row's samples; some rows
        monkeypatch.setattr(module, "_POINTS", points)
        for ours, theirs in zip(mixed.sample_log_prob(X, 30, random_state=0), whole, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(mixed.predict(X, n_samples=40), means, rtol=1e-12)
        np.testing.assert_allclose(mixed.log_prob(X, y), log_prob, rtol=1e-9)
    np.testing.assert_allclose(mixed.predict(X[3:5], n_samples=40), means[3:5], rtol=1e-12)


def test_random_state_of_samples(mixed):
    X, _ = problem_in_units(n=3)
    first = mixed.sample(X, 5, random_state=1)
    np.testing.assert_array_equal(mixed.sample(X, 5, random_state=1), first)
    assert not np.array_equal(mixed.sample(X, 5, random_state=2), first)
    assert not np.array_equal(mixed.sample(X, 5), mixed.sample(X, 5))
    generator = np.random.default_rng(1)
    np.testing.assert_array_equal(mixed.sample(X, 5, random_state=generator), first)
    state = np.random.RandomState(0)
    assert not np.array_equal(*(mixed.sample(X, 5, random_state=state) for _ in range(2)))


# --- information


def test_information_is_that_of_the_known_posterior():
    """One parameter in [0, 1], seen with a normal error and far from an edge."""
    rng = np.random.default_rng(0)
    y = rng.uniform(size=3000)
    X = (y + 0.05 * rng.normal(size=3000))[:, None]
    rows = np.flatnonzero((y > 0.2) & (y < 0.8))
    rows = rows[rows >= 1000]  # the others train
    known = -np.log(0.05 * np.sqrt(2 * np.pi * np.e))

    def information(n, low=0.0, width=1.0):
        longer = dict(weight_decay=0.1, dropout=0.0, batch_size=64, learning_rate=2e-2, n_blocks=1)
        posterior = make(prior_bounds=[[low, low + width]], **longer)
        posterior.fit(X[:n], low + width * y[:n])
        return posterior.information(X[rows], low + width * y[rows])

    found = information(1000)
    assert found.nats == pytest.approx(known, abs=0.05)
    # The log density of a normal variable is half a chi square, whose variance is two.
    assert found.standard_error == pytest.approx(np.sqrt(0.5 / len(rows)), rel=0.2)
    # Units change nothing.
    assert information(200) == pytest.approx(information(200, -1e4, 2e4), abs=1e-4)


def test_information_outside_the_prior_and_of_one_row(edge_posterior):
    d = edge_posterior.n_parameters_
    X, y = np.full((3, d), 0.5), np.full((3, d), 0.5)
    y[1] = 1.5
    with pytest.warns(PriorWarning, match="in 1 of 3 rows, the first of them 1"):
        nats, error = edge_posterior.information(X, y)
    assert nats == -np.inf
    assert np.isnan(error)
    nats, error = edge_posterior.information(X[:1], y[:1])
    assert nats == edge_posterior.log_prob(X[:1], y[:1])  # the box is [0, 1]
    assert np.isnan(error)


def test_a_range_is_no_prior_of_what_is_not_uniform():
    """What a normal distribution lacks in the box of its range is no information."""
    rng = np.random.default_rng(0)
    X, uniform = rng.normal(size=(400, 2)), rng.uniform(size=(400, 1))
    for y, is_prior in (uniform, True), (rng.normal(size=(400, 1)), False):
        posterior = make(prior_bounds="data", max_epochs=2).fit(X, y)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            posterior.information(X, y)
        said = [each for each in caught if each.category is PriorWarning]
        assert len(said) == (0 if is_prior else 1)
    assert "drawn uniformly from the prior box, found others in parameter_0" in str(said[0].message)


def test_bounds_in_another_order_are_refused():
    X, y = problem_in_units(30)
    names = [f"p{i}" for i in range(y.shape[1])]
    bounds = pd.DataFrame({"low": y.min(axis=0) - 1, "high": y.max(axis=0) + 1}, index=names)
    table = pd.DataFrame(y, columns=names)
    make(prior_bounds=bounds, max_epochs=1).fit(X, table)
    for head in (make(prior_bounds=bounds[::-1]), LightconeRegressor(target_bounds=bounds[::-1])):
        with pytest.raises(
            ValueError, match=r"_bounds: expected the rows in the order \['p0', 'p1'"
        ):
            head.fit(X, table)
    with pytest.raises(ValueError, match="y: expected the parameters of each row of X, found None"):
        make(max_epochs=1).fit(X, y).score(X, None)


def test_information_needs_a_prior(mixed):
    X, y = problem_in_units(n=5)
    message = "prior_bounds: expected a box for every parameter, .* none for parameter_1; fit again"
    with pytest.raises(ValueError, match=message):
        mixed.information(X, y)


# --- ensembles


@pytest.fixture(scope="module")
def ensemble():
    return make(prior_bounds=MIXED, max_epochs=8, n_members=3).fit(*problem_in_units())


def members_of(ensemble):
    """One estimator for each member."""
    for flow in ensemble.net_:
        alone = copy.copy(ensemble)
        alone.net_ = FlowEnsemble([flow])
        yield alone


def test_density_of_an_ensemble_is_the_mean_of_its_members(ensemble):
    X, y = problem_in_units(n=20, seed=1)
    y[0, 0] = 0.0
    each = np.stack([alone.log_prob(X, y) for alone in members_of(ensemble)])
    assert each[:, 1:].std(axis=0).min() > 1e-3  # they differ
    assert np.isneginf(ensemble.log_prob(X, y)[0])
    np.testing.assert_allclose(
        ensemble.log_prob(X, y)[1:], np.log(np.exp(each[:, 1:]).mean(axis=0)), rtol=1e-10
    )


def test_an_ensemble_of_one_is_its_first_member(ensemble):
    X, y = problem_in_units()
    single = make(prior_bounds=MIXED, max_epochs=8).fit(X, y)
    weights = single.net_[0].state_dict()
    # They saw the same batches, up to the standardisation, which knows more rows in the ensemble.
    for name, weight in ensemble.net_[0].state_dict().items():
        torch.testing.assert_close(weight, weights[name], atol=0.05, rtol=0)


def test_samples_of_an_ensemble_have_its_density(ensemble):
    X, _ = problem_in_units(n=5, seed=1)
    samples, log_prob = ensemble.sample_log_prob(X, 3000, random_state=0)
    np.testing.assert_allclose(ensemble.log_prob(X, samples), log_prob, atol=1e-3)
    np.testing.assert_array_equal(ensemble.sample(X, 3000, random_state=0), samples)
    means = np.mean([alone.predict(X) for alone in members_of(ensemble)], axis=0)
    error = np.abs(samples.mean(axis=1) - means) / samples.std(axis=1)
    assert error.max() < 4 / np.sqrt(3000)
    # Each sample has a member of its own: single ones of many rows are not all of one member.
    first = ensemble.sample(np.repeat(X[:1], 300, axis=0), 1, random_state=0)[:, 0]
    assert np.unique(first, axis=0).shape == first.shape


def test_draws_of_a_row_do_not_depend_on_those_after_it(ensemble):
    X, _ = problem_in_units(n=9, seed=1)
    whole = ensemble.sample_log_prob(X, 20, random_state=0)
    for some, wanted in zip(
        ensemble.sample_log_prob(X[:4], 20, random_state=0), whole, strict=True
    ):
        np.testing.assert_allclose(some, wanted[:4], rtol=1e-5, atol=1e-5)


def test_predictions_of_an_ensemble_share_the_points_between_its_members(ensemble):
    X, _ = problem_in_units(n=10, seed=2)
    samples = ensemble.sample(X, 10_000, random_state=0)
    mean, std = ensemble.predict(X, return_std=True)
    scale = samples.std(axis=1)
    assert (np.abs(mean - samples.mean(axis=1)) / scale).max() < 0.08
    np.testing.assert_allclose(std, scale, rtol=0.1)
    quantiles = ensemble.predict_quantiles(X, [0.1, 0.5, 0.9])
    wanted = np.quantile(samples, [0.1, 0.5, 0.9], axis=1).transpose(1, 0, 2)
    assert (np.abs(quantiles - wanted) / scale[:, None]).max() < 0.15
    assert ensemble.predict(X, n_samples=2).shape == mean.shape  # fewer points than members


def test_batches_leave_no_trace_in_an_ensemble(ensemble, monkeypatch):
    X, y = problem_in_units(n=5)
    whole = ensemble.sample_log_prob(X, 30, random_state=0)
    means, log_prob = ensemble.predict(X, n_samples=40), ensemble.log_prob(X, y)
    for points in (7, 64):
        monkeypatch.setattr(module, "_POINTS", points)
        for ours, theirs in zip(
            ensemble.sample_log_prob(X, 30, random_state=0), whole, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)
        np.testing.assert_allclose(ensemble.predict(X, n_samples=40), means, rtol=1e-12)
        np.testing.assert_allclose(ensemble.log_prob(X, y), log_prob, rtol=1e-9)


def test_an_ensemble_is_better_than_its_members_on_few_rows():
    problem = LinearGaussian(2, bounded=False)
    X_test, y_test = problem.draw(500, seed=1)
    overfitted = dict(max_epochs=40, validation_fraction=0, weight_decay=0.0, dropout=0.0)
    ensemble = make(n_members=4, **overfitted).fit(*problem.draw(60, seed=0))
    alone = [member.score(X_test, y_test) for member in members_of(ensemble)]
    assert ensemble.score(X_test, y_test) > max(alone)


def test_without_steps_members_have_no_effect():
    with pytest.warns(NoEffectWarning, match="max_epochs=0 of .*n_members"):
        make(max_epochs=0, n_members=2).fit(*problem_in_units(60))


# --- the contract of an estimator


def test_same_seed_same_result_and_global_generators_untouched():
    X, y = problem_in_units()
    ours, again, other = (
        make(random_state=s, max_epochs=2).fit(X, y).predict(X[:20]) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(ours, again)
    assert not np.array_equal(ours, other)


def test_fit_leaves_the_parameters_alone():
    X, y = problem_in_units()
    given = dict(prior_bounds=[list(pair) for pair in MIXED], hidden_dims=[8], callbacks=[])
    posterior = make(**given)
    before = posterior.get_params()
    posterior.fit(X, y)
    after = posterior.get_params()
    assert all(after[name] is before[name] for name in before)
    assert given["prior_bounds"] == MIXED
    assert clone(posterior).get_params() == before


def test_refit_on_another_shape():
    X, y = problem_in_units()
    posterior = make(max_epochs=2).fit(X, y)
    posterior.fit(X[:, :2], y[:, 1])
    some = X[:20]
    assert posterior.predict(some[:, :2]).shape == (20,)
    posterior.fit(X, y)
    expected = make(max_epochs=2).fit(X, y).predict(some)
    np.testing.assert_array_equal(posterior.predict(some), expected)


def test_a_failed_fit_changes_nothing(mixed):
    X, y = problem_in_units()
    posterior = pickle.loads(pickle.dumps(mixed))
    before = posterior.predict(X[:20])
    with pytest.raises(ValueError, match="NaN"):
        posterior.fit(X[:, :2], np.full(len(X), np.nan))
    np.testing.assert_array_equal(posterior.predict(X[:20]), before)


def test_pickle(mixed):
    X, y = problem_in_units()
    loaded = pickle.loads(pickle.dumps(mixed))
    np.testing.assert_array_equal(loaded.log_prob(X, y), mixed.log_prob(X, y))


def test_weights_rest_on_the_cpu(mixed):
    assert {p.device.type for p in mixed.net_.parameters()} == {"cpu"}
    assert not any(p.requires_grad for p in mixed.net_.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_on_a_gpu(precision):
    X, y = problem_in_units()
    posterior = make(device="cuda", precision=precision, max_epochs=30).fit(X, y)
    there = posterior.score(X, y)
    assert there > make(max_epochs=0).fit(X, y).score(X, y) + 1
    posterior = pickle.loads(pickle.dumps(posterior)).set_params(device="cpu")
    assert posterior.score(X, y) == pytest.approx(there, abs=1e-6)
    assert {p.device.type for p in posterior.net_.parameters()} == {"cpu"}


def test_in_a_search():
    """The score is a likelihood: a search maximises it."""
    X, y = problem_in_units(100)
    pipe = make_pipeline(StandardScaler(), make(n_blocks=1))
    grid = {"posteriorestimator__max_epochs": [0, 10]}
    search = GridSearchCV(pipe, grid, cv=2).fit(X, y)
    assert search.best_params_["posteriorestimator__max_epochs"] == 10
    pipe.set_params(posteriorestimator__max_epochs=1)
    assert cross_val_score(pipe, X, y, cv=2).shape == (2,)
    assert cross_val_predict(pipe, X, y, cv=2).shape == y.shape


def test_tokens_of_the_transformer_in_a_pipeline():
    """Cones whose brightness is the parameter: random weights tell it, and beat the prior."""
    rng = np.random.default_rng(0)
    y = rng.uniform(size=160)
    fields = 60 * y[:, None, None, None] + rng.normal(-50, 30, size=(160, 4, 4, 8))
    skatr = SKATRTransformer(
        patch_size=2,
        embed_dim=8,
        depth=1,
        n_heads=2,
        pooling="tokens",
        max_epochs=0,
        device="cpu",
        random_state=0,
    )
    head = make(pooling="attention", prior_bounds=[[0, 1]], max_epochs=30)
    pipe = make_pipeline(skatr, head).fit(fields[:120], y[:120])
    tokens = pipe[:-1].transform(fields)
    assert tokens.shape == (160, 16, 8)
    alone = clone(head).set_params(max_epochs=2).fit(tokens[:120], y[:120])
    short = clone(pipe).set_params(posteriorestimator__max_epochs=2).fit(fields[:120], y[:120])
    np.testing.assert_array_equal(short.predict(fields[120:]), alone.predict(tokens[120:]))
    assert pipe.score(fields[120:], y[120:]) > 0.3  # nats; the prior alone has 0
    assert np.abs(pipe.predict(fields[120:]) - y[120:]).mean() < 0.15  # the prior's mean has 0.25
    samples = pipe[-1].sample(tokens[120:], 50, random_state=0)
    assert samples.shape == (40, 50, 1)
    assert ((samples > 0) & (samples < 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("calibration", ["conservative", "symmetric"])
def test_calibration_widens_an_overfitted_posterior(calibration):
    """Trained far too long on few rows, the flow is too narrow; the penalty counters it."""
    problem = LinearGaussian(2, bounded=False)
    X, y = problem.draw(60, seed=0)
    X_test, y_test = problem.draw(500, seed=1)
    levels = {}
    for weight in (0.0, 60.0):
        posterior = make(
            hidden_dims=(64,),
            max_epochs=80,
            batch_size=60,
            validation_fraction=0,
            **(dict(calibration_weight=weight, calibration=calibration) if weight else {}),
        ).fit(X, y)
        _, log_prob = posterior.sample_log_prob(X_test, 100, random_state=0)
        truth = posterior.log_prob(X_test, y_test)[:, None]
        levels[weight] = (log_prob > truth).mean()
    assert levels[0.0] > 0.55  # the truth lies too far out
    assert levels[60.0] < levels[0.0] - 0.01


def test_a_row_of_no_weight_may_lie_outside_the_box(mixed):
    X, y = problem_in_units(n=5)
    y[2, 0] = 0.0
    weight = np.arange(5.0) - 2.0
    weight = np.where(np.arange(5) == 2, 0.0, np.abs(weight))
    log_prob = mixed.log_prob(X, y)
    wanted = np.average(np.delete(log_prob, 2), weights=np.delete(weight, 2))
    assert mixed.score(X, y, sample_weight=weight) == pytest.approx(wanted)


def test_a_table_in_another_order_is_refused():
    X, y = problem_in_units()
    frame = pd.DataFrame(y, columns=["a", "b"])
    posterior = make(max_epochs=1).fit(X, frame)
    assert np.isfinite(posterior.score(X, frame))
    for call in (
        lambda: posterior.score(X, frame[["b", "a"]]),
        lambda: make(parameter_names=["b", "a"]).fit(X, frame),
    ):
        with pytest.raises(
            ValueError, match=r"y: expected the columns in the order \['.', '.'\], found \['"
        ):
            call()
    assert make(parameter_names=["c", "d"], max_epochs=1).fit(X, frame).parameter_names_ == [
        "c",
        "d",
    ]


def test_memory_bounds_leave_no_trace(monkeypatch):
    """Tokens are standardised and embedded in parts."""
    rng = np.random.default_rng(0)
    tokens, y = rng.normal(size=(60, 4, 3)).astype(np.float32), rng.normal(size=60)
    whole = make(max_epochs=3).fit(tokens, y)
    expected = whole.log_prob(tokens, y)
    monkeypatch.setattr(base, "_NUMBERS", 40)
    parts = make(max_epochs=3).fit(tokens, y)
    np.testing.assert_allclose(parts.summary_scale_, whole.summary_scale_, rtol=1e-12)
    np.testing.assert_allclose(parts.summary_scale_, tokens.std(axis=(0, 1)), rtol=0.05)
    np.testing.assert_allclose(parts.log_prob(tokens, y), expected, rtol=1e-4, atol=1e-4)


def test_names():
    X, y = problem_in_units()
    frame = pd.DataFrame(y, columns=["Omega_m", "zeta"])
    assert make(max_epochs=1).fit(X, frame).parameter_names_ == ["Omega_m", "zeta"]
    assert make(max_epochs=1).fit(X, y).parameter_names_ == ["parameter_0", "parameter_1"]
    named = make(parameter_names=("a", "b"), max_epochs=1).fit(X, frame)
    assert named.parameter_names_ == ["a", "b"]
    draws = named.to_dict(X[:3], 5, random_state=0)
    np.testing.assert_array_equal(draws["b"], named.sample(X[:3], 5, random_state=0)[..., 1])


def test_to_arviz(mixed):
    pytest.importorskip("arviz")
    X, _ = problem_in_units(n=3)
    samples, log_prob = mixed.sample_log_prob(X, 5, random_state=0)
    data = mixed.to_arviz(X, 5, random_state=0)
    assert data.posterior["parameter_0"].dims == ("chain", "draw", "lightcone")
    np.testing.assert_array_equal(data.posterior["parameter_1"][0].T, samples[..., 1])
    np.testing.assert_array_equal(data.sample_stats["lp"][0].T, log_prob)


def test_to_getdist(mixed):
    pytest.importorskip("getdist")
    X, _ = problem_in_units(n=3)
    samples, _ = mixed.sample_log_prob(X, 50, random_state=0)
    chains = mixed.to_getdist(X, 50, random_state=0)
    assert len(chains) == 3
    np.testing.assert_array_equal(chains[1].samples, samples[1])
    assert chains[0].ranges.getLower("parameter_0") == 1e3
    assert chains[0].ranges.getLower("parameter_1") is None


@pytest.mark.parametrize("package", ["arviz", "getdist"])
def test_a_missing_extra_says_how_to_install_it(mixed, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    X, _ = problem_in_units(n=3)
    with pytest.raises(ImportError, match=rf'pip install "skatr_sk\[{package}\]"'):
        getattr(mixed, f"to_{package}")(X, 5)


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prior_bounds=[[0, 1], [0, 0]]), r"prior_bounds: .*see \[1\].*no width"),
        (dict(prior_bounds=[[0, 1], [1, 0]]), r"prior_bounds: .*see \[1\].*swapped"),
        (dict(prior_bounds=[[0, np.inf], [0, 1]]), r"prior_bounds: .*see \[0\].*two ends"),
        (dict(prior_bounds=[[1e9, 1e9 + 1e-6], [0, 1]]), r"prior_bounds: .*1e8 float64 steps"),
        (
            dict(prior_bounds=[[0, 1e12], [-1e4, 1e4]]),
            r"'parameter_0' that covers .* prior_bounds=None",
        ),
        (dict(prior_bounds=[[0, 1]]), r"prior_bounds: .*\(2, 2\).* found \(1, 2\)"),
        (dict(prior_bounds="dta"), "did you mean 'data'"),
        (
            dict(prior_bounds=[[1e3, 2e3], [-1, 1]]),
            r"inside prior_bounds .* found others in rows \d+, ",
        ),
        (dict(parameter_names=["a"]), "parameter_names: expected 2 different strings"),
        (dict(n_blocks=0), "n_blocks: expected an integer >= 1, found 0"),
        (dict(n_bins=1), "n_bins: expected an integer from 2 to 500, found 1"),
        (dict(n_bins=np.int64(1000)), "n_bins: expected an integer from 2 to 500"),
        (dict(hidden_dims=()), "hidden_dims: expected a tuple of at least one"),
        (dict(hidden_dims=(8, 0)), "hidden_dims: expected a tuple of at least one integer >= 1"),
        (dict(hidden_dims=8), "hidden_dims: expected a tuple of at least one integer >= 1"),
        (dict(pooling="atention"), "did you mean 'attention'"),
        (dict(calibration="sym"), "did you mean 'symmetric'"),
        (dict(calibration_weight=-1), "calibration_weight: expected a number"),
        (dict(n_blocks=0, dropout=1.0, max_epochs=-1), "3 invalid parameters"),
    ],
)
def test_wrong_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change).fit(*problem_in_units())


def test_wrong_training_data():
    X, y = problem_in_units()
    cases = [
        (X[:2], y[:2], "X: expected at least 3 rows, .* n_samples=2 with"),
        (
            X,
            np.where(np.arange(2) == 1, 7.0, y),
            r"y: expected parameters that vary.*column 1\) = 7",
        ),
        (X, y * [1e-200, 1], "at least 1e-100, found 'parameter_0' that varies by"),
        (
            X,
            np.where(np.arange(len(y))[:, None] == 3, np.nan, y),
            "y: expected finite values, .* first of them 3",
        ),
        (
            np.where(np.arange(3) == 1, np.inf, X),
            y,
            "X: expected finite summaries, found NaN or infinite",
        ),
        (X, y[:-1], "y: expected 400 rows of parameters, .* found 399"),
        (X[:, None, None], y, "light cones go through SKATRTransformer"),
    ]
    for bad_X, bad_y, message in cases:
        with pytest.raises(ValueError, match=message):
            make().fit(bad_X, bad_y)


def test_wrong_calls(mixed):
    X, y = problem_in_units(n=5)
    for n_samples in (0, -1, 2.5, True):
        for call in (mixed.sample, mixed.sample_log_prob, mixed.to_dict):
            with pytest.raises(ValueError, match="n_samples: expected an integer >= 1, found"):
                call(X, n_samples)
        with pytest.raises(ValueError, match="n_samples"):
            mixed.predict(X, n_samples=n_samples)
    with pytest.raises(ValueError, match=r"y: expected shape \(5, 2\) or .*, found \(4, 2\)"):
        mixed.log_prob(X, y[:4])
    with pytest.raises(ValueError, match="one truth for each row"):
        mixed.score(X, y[:, None].repeat(3, axis=1))
    with pytest.raises(ValueError, match=r"y: expected shape \(5, 2\) or .*, found \(5, 0, 2\)"):
        mixed.log_prob(X, np.zeros((5, 0, 2)))
    for q in ([0.5, 1.5], "median"):
        with pytest.raises(ValueError, match=r"q: expected a number in \[0, 1\]"):
            mixed.predict_quantiles(X, q)
    for weight, message in [
        (np.ones(3), "sample_weight"),
        (np.zeros(5), "zero"),
        (-np.ones(5), "[Nn]egative"),
        (np.full(5, np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixed.score(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match="random_state: .* found 'x'"):
        mixed.sample(X, 3, random_state="x")
    with pytest.raises(ValueError, match="y: expected finite values"):
        mixed.log_prob(X, y * np.nan)


def test_precision_of_the_flow_is_float32_in_bf16_training():
    X, y = problem_in_units()
    posterior = make(precision="bf16").fit(X, y)
    assert {p.dtype for p in posterior.net_.parameters()} == {torch.float32}
    assert posterior.score(X, y) > make(max_epochs=0).fit(X, y).score(X, y) + 1


# --- parameters without effect


def test_calibration_without_its_weight_has_no_effect():
    X, y = problem_in_units(60)
    with pytest.warns(NoEffectWarning, match="calibration_weight=0 of calibration; leave it out"):
        symmetric = make(calibration="symmetric", max_epochs=2).fit(X, y)
    np.testing.assert_array_equal(symmetric.predict(X), make(max_epochs=2).fit(X, y).predict(X))


def test_pooling_has_no_effect_on_pooled_summaries():
    X, y = problem_in_units(60)
    with pytest.warns(NoEffectWarning, match="summaries that are pooled already of pooling; leave"):
        attentive = make(pooling="attention", max_epochs=2).fit(X, y)
    np.testing.assert_array_equal(attentive.predict(X), make(max_epochs=2).fit(X, y).predict(X))


def test_patience_without_validation_has_no_effect():
    X, y = problem_in_units(60)
    with pytest.warns(NoEffectWarning, match="validation_fraction=0 of patience; leave it out"):
        make(patience=3, validation_fraction=0, max_epochs=1).fit(X, y)


def test_what_counts_is_not_warned_of():
    X, y = problem_in_units(60)
    tokens = np.stack([X, X], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(validation_fraction=0, max_epochs=1).fit(X, y)
        make(calibration="symmetric", calibration_weight=1.0, max_epochs=1).fit(X, y)
        make(pooling="attention", patience=3, max_epochs=1).fit(tokens, y)


# Too short a training --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_that_ends_too_early_is_warned_of(rng):
    y = rng.uniform(size=(300, 2))
    X = y + 0.05 * rng.normal(size=(300, 2))
    short = dict(prior_bounds=[[0, 1], [0, 1]], n_blocks=2, hidden_dims=(16,), random_state=0)
    with pytest.warns(ShortTrainingWarning, match="the last of 3 epochs is the best, .*max_epochs"):
        PosteriorEstimator(**short, max_epochs=3).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ShortTrainingWarning)
        PosteriorEstimator(**short, max_epochs=3, validation_fraction=0).fit(X, y)
        PosteriorEstimator(**short, max_epochs=60, learning_rate=1e-2).fit(X, y)


@pytest.mark.parametrize(
    ("n_rows", "n_summary", "decay", "dropout"),
    [
        (30, 2, 10.0, 0.3),
        (165, 2, 400 / 165, 0.3),  # few rows, whatever the summary
        (250, 288, 1000 / 250, 0.3),
        (900, 2, 400 / 900, 0.0),
        (900, 288, 1000 / 900, 0.3),  # few for so long a summary
        (900, 100, 700 / 900, 0.0),
        (350, 200, 700 / 350, 0.3),
        (3600, 288, 2000 / 3600, 0.0),
    ],
)
def test_decay_and_dropout_by_rows_and_summary(n_rows, n_summary, decay, dropout):
    posterior = PosteriorEstimator()
    posterior.field_shape_in_ = (n_summary,)
    resolved = posterior._resolved(n_rows)
    assert resolved.weight_decay == pytest.approx(decay)
    assert resolved.dropout == dropout


def test_five_flows_unless_they_would_be_trained_one_by_one():
    def members(**parameters):
        return PosteriorEstimator(**parameters)._resolved(900).n_members

    assert members() == 5
    assert members(backbone="vit") == members(calibration_weight=1.0) == 1
    assert members(max_epochs=0) == 1  # all would be the same identity
    X, y = problem_in_units(40)
    assert len(make(n_members="auto", max_epochs=1).fit(X, y).net_) == 5


def test_members_that_train_on_unlike_numbers_of_rows_follow_one_rule(torch_seed):
    """Groups leave 320 rows to one of them and 294 to others, on both sides of a rule."""
    X, y = problem_in_units(334)
    groups = np.arange(334) // 40
    auto = dict.fromkeys(("dropout", "weight_decay", "max_epochs", "batch_size"), "auto")
    short = make(**auto | dict(n_members=5, patience=None), prior_bounds=None)
    rows = [len(train) for (train, _), _ in short._runs(ArrayFields(X), Rows(334, groups=groups))]
    assert min(rows) < 300 <= max(rows)
    planned = next(short._steps(X, y, Given(groups)))
    assert [each.settings.max_epochs for each in planned] == [60] * 5
    assert [each.build().sizes["dropout"] for each in planned] == [0.3] * 5
    assert [each.alone.keywords["n_rows"] for each in planned] == [min(rows)] * 5


def test_samples_alone_ask_for_no_densities(ensemble, monkeypatch):
    X, _ = problem_in_units(n=5, seed=1)

    def samples_alone(head):
        points = head.sample(X, 4, random_state=0), posterior_draws(head, X, n_samples=4)[0]
        return [*points, head.predict(X), head.predict_quantiles(X)]

    def refuse(*_):
        raise AssertionError

    heads = [ensemble, next(members_of(ensemble))]
    wanted = [samples_alone(head) for head in heads]
    monkeypatch.setattr(ConditionalFlow, "log_prob", refuse)
    monkeypatch.setattr(ConditionalFlow, "sample_and_log_prob", refuse)
    for head, each in zip(heads, wanted, strict=True):
        for found, points in zip(samples_alone(head), each, strict=True):
            assert found.shape == points.shape
        np.testing.assert_array_equal(head.sample(X, 4, random_state=0), each[0])
        with pytest.raises(AssertionError):
            head.sample_log_prob(X, 4, random_state=0)


# Two moons -------------------------------------------------------------------------------------


def test_reference_samples_lead_to_the_observation():
    """From the half circle, on both sides; where an edge cuts a crescent off, fewer."""
    x = np.array([-0.2, -0.6])
    y = two_moons.reference(x, 20_000, seed=0)
    total, difference = y.sum(axis=1) / np.sqrt(2), (y[:, 1] - y[:, 0]) / np.sqrt(2)
    across, along = x[0] + np.abs(total) - 0.25, x[1] - difference
    radius = np.hypot(across, along)
    assert radius.mean() == pytest.approx(0.1, abs=3e-4)
    assert radius.std() == pytest.approx(0.01, rel=0.03)
    assert across.min() >= -1e-12
    angle = np.arctan2(along, across)
    assert kstest(angle, uniform(-np.pi / 2, np.pi).cdf).pvalue > 0.01
    assert (total > 0).mean() == pytest.approx(0.5, abs=0.02)
    cut = two_moons.reference(np.array([-0.2, -0.9]), 1000, seed=0)
    assert (np.abs(cut) <= 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "limit"), [(1000, 0.66), (10_000, 0.54)])
def test_defaults_find_both_moons(n, limit):
    """Mean over three training sets; the benchmark's own posterior estimator has 0.73 and 0.61."""
    found = []
    for seed in range(3):
        X, y = two_moons.simulate(n, seed)
        posterior = PosteriorEstimator(
            prior_bounds=two_moons.BOUNDS, device="cpu", random_state=seed
        )
        found.append(two_moons.mean_c2st(posterior.fit(X, y)))
    print(f"C2ST {np.round(found, 3)}")
    assert np.mean(found) < limit
