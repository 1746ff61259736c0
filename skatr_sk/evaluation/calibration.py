"""Is a posterior honest? Where the truth lies among the samples: ranks and credibility levels.

Samples are ``(n_lightcones, n_samples, n_parameters)`` and truths ``(n_lightcones, n_parameters)``,
in the same units. The levels of a calibrated posterior are uniform in [0, 1], exactly, whatever the
number of samples M: the samples leave M + 1 intervals to the truth, and each of these stands for an
interval of width 1 / (M + 1) in which the level is drawn at random.
:mod:`~skatr_sk.evaluation.coverage` turns levels into coverage.
"""

from __future__ import annotations

__all__ = ["highest_density_levels", "posterior_draws", "rank_levels", "sbc_ranks", "tarp_levels"]

import copy
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk._checks import Integer, NeverSeenWarning, check_options
from skatr_sk.evaluation.arrays import Floats, check_samples, in_batches, not_finite, real_array
from skatr_sk.evaluation.fitted import unwrap
from skatr_sk.training.seeds import entropy_of

Seed = int | np.random.Generator | None
# Keys of the random streams: functions that are given the same seed share no random numbers.
_TIES, _RANKS, _REFERENCES, _DENSITIES = range(1, 5)


def sbc_ranks(
    samples: ArrayLike, y_true: ArrayLike, *, random_state: Seed = 0, verbose: int = 0
) -> NDArray[np.int64]:
    """Ranks of truths among samples: simulation-based calibration, Talts et al., arXiv:1804.06788.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)
    random_state : int, Generator or None, default=0
        Where samples equal the truth, decides how many of them count as below it.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    ranks : ndarray of int, shape (n_lightcones, n_parameters)
        Number of samples below the truth, 0 to n_samples. Uniform for a calibrated posterior; a
        heap at both ends means too narrow, in the middle too wide, at one end shifted.
        :func:`rank_levels` makes levels of them.

    Raises
    ------
    TypeError, ValueError
        When entries are not real numbers, shapes do not fit each other, or values are missing.

    Examples
    --------
    >>> from skatr_sk.evaluation import sbc_ranks
    >>> sbc_ranks([[[0.1], [0.2], [0.3]]], [[0.25]])
    array([[2]])
    """
    drawn, true = check_samples(samples, y_true)
    jitter = _stream(random_state, _TIES).uniform(size=true.shape)
    ranks = np.empty(true.shape, dtype=np.int64)
    for rows in in_batches(drawn.shape, "ranks", verbose):
        part, truth = drawn[rows], true[rows, np.newaxis]
        ties = (part == truth).sum(axis=1)
        ranks[rows] = (part < truth).sum(axis=1) + np.floor(jitter[rows] * (ties + 1))
    return ranks


def rank_levels(ranks: ArrayLike, n_samples: int, *, random_state: Seed = 0) -> Floats:
    """Credibility levels from ranks, drawn at random within the interval that a rank stands for.

    Ranks are whole numbers. Divided by `n_samples` and taken for levels they come in steps, which
    look like a wrong posterior as soon as there are many light cones.

    Parameters
    ----------
    ranks : array-like of int, shape (n_lightcones, n_parameters) or (n_lightcones,)
        From :func:`sbc_ranks`, 0 to `n_samples`.
    n_samples : int
        Of each posterior.
    random_state : int, Generator or None, default=0

    Returns
    -------
    levels : ndarray of the same shape
        (rank + u) / (n_samples + 1) with u uniform in [0, 1).

    Raises
    ------
    ValueError
        When `n_samples` is no integer >= 1, or ranks are not whole numbers from 0 to it.

    Examples
    --------
    >>> from skatr_sk.evaluation import rank_levels
    >>> levels = rank_levels([0, 3], 3)
    >>> bool(levels[0] < 0.25), bool(levels[1] >= 0.75)
    (True, True)
    """
    check_options("rank_levels", {"n_samples": Integer(1)}, {"n_samples": n_samples})
    given = np.asarray(ranks)
    numbers = given.dtype.kind in "biuf"
    if not numbers or not ((given == np.round(given)) & (given >= 0) & (given <= n_samples)).all():
        found = f"values from {given.min()} to {given.max()}" if numbers else "other"
        raise ValueError(
            f"ranks: expected whole numbers from 0 to n_samples={n_samples}, found {found} of "
            f"dtype {given.dtype}; give the result of sbc_ranks, and the number of samples that it "
            "was computed from."
        )
    jitter = _stream(random_state, _RANKS).uniform(size=given.shape)
    return (given + jitter) / (n_samples + 1)


def tarp_levels(
    samples: ArrayLike,
    y_true: ArrayLike,
    *,
    references: ArrayLike | None = None,
    random_state: Seed = 0,
    verbose: int = 0,
) -> Floats:
    """Credibility levels of the truth by distances to random points: TARP.

    The method is that of Lemos et al., "Sampling-Based Accuracy Testing of Posterior Estimators",
    arXiv:2302.03026. Every parameter is z-scored to the samples of its light cone, so that a sphere
    around the reference means the same for all, and references fall where the samples are. The
    truth counts as one more sample in the mean and the standard deviation: without it, it would lie
    farther out than a sample of the same posterior, which shows where samples are few.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)
    references : array-like of shape (n_lightcones, n_parameters), default=None
        Points in the units of y. They may depend on the light cone, but not on its truth. By
        default standard normal around the samples' mean, in units of their standard deviation.
    random_state : int, Generator or None, default=0
        Draws the references, and the level within the interval between two samples.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    levels : ndarray of shape (n_lightcones,)
        Share of the samples that are nearer to the reference than the truth is.

    Raises
    ------
    ValueError
        When shapes do not fit each other or values are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import expected_coverage, tarp_levels
    >>> rng = np.random.default_rng(0)
    >>> levels = tarp_levels(rng.normal(size=(300, 99, 2)), rng.normal(size=(300, 2)))
    >>> expected_coverage(levels).calibrated
    True
    """
    drawn, true = check_samples(samples, y_true)
    generator = _stream(random_state, _REFERENCES)
    jitter = generator.uniform(size=len(true))
    if references is None:
        centres = generator.standard_normal(true.shape)
    else:
        centres = real_array("references", references).astype(np.float64)
        wrong = f"references: expected the shape of y_true, {true.shape}, found {centres.shape}."
        if centres.shape == true.shape:
            wrong = not_finite("references", centres)
        if wrong:
            raise ValueError(wrong)
    levels = np.empty(len(true))
    for rows in in_batches(drawn.shape, "TARP", verbose):
        points = np.concatenate([true[rows, np.newaxis], drawn[rows]], axis=1, dtype=np.float64)
        mean, scale = points.mean(axis=1, keepdims=True), points.std(axis=1, keepdims=True)
        scale[scale == 0] = 1.0
        centre = centres[rows, np.newaxis]
        if references is not None:
            centre = (centre - mean) / scale
        points -= mean
        points /= scale
        points -= centre
        distance = np.square(points, out=points).sum(axis=2)
        levels[rows] = _share_below(distance[:, 1:], distance[:, :1], jitter[rows])
    return levels


def highest_density_levels(
    log_prob_samples: ArrayLike,
    log_prob_true: ArrayLike,
    *,
    random_state: Seed = 0,
    verbose: int = 0,
) -> Floats:
    """Credibility of the smallest highest-density region that holds the truth.

    Hermans et al., arXiv:2110.06581, compare it with the share of truths inside.

    Parameters
    ----------
    log_prob_samples : array-like of shape (n_lightcones, n_samples)
        Log density of the posterior at its own samples.
    log_prob_true : array-like of shape (n_lightcones,)
        At the truth; -inf where the posterior excludes it.
    random_state : int, Generator or None, default=0
        Draws the level within the interval between two samples, or among samples of equal density.
    verbose : int, default=0
        Whether to show a progress bar.

    Returns
    -------
    levels : ndarray of shape (n_lightcones,)
        Share of the samples at a higher density; 1 where the posterior excludes the truth.

    Raises
    ------
    ValueError
        When shapes do not fit each other, or values are NaN.

    Examples
    --------
    >>> from skatr_sk.evaluation import highest_density_levels
    >>> level = highest_density_levels([[-1.0, -2.0, -3.0, -4.0]], [-2.5])  # third of 5 intervals
    >>> bool(0.4 <= level[0] < 0.6)
    True
    """
    each = real_array("log_prob_samples", log_prob_samples)
    true = real_array("log_prob_true", log_prob_true).astype(np.float64)
    if each.ndim != 2 or 0 in each.shape or true.shape != each.shape[:1]:
        raise ValueError(
            "log_prob_samples and log_prob_true: expected shapes (n_lightcones, n_samples) and "
            f"(n_lightcones,), found {each.shape} and {true.shape}."
        )
    jitter = _stream(random_state, _DENSITIES).uniform(size=len(true))
    levels = np.empty(len(true))
    for rows in in_batches(each.shape, "highest density", verbose):
        part, truth = each[rows], true[rows, np.newaxis]
        if np.isnan(part).any() or np.isnan(truth).any():
            raise ValueError(
                "log_prob_samples and log_prob_true: expected no NaN, found some in rows "
                f"{rows.start} to {rows.stop - 1}; leave those light cones out."
            )
        levels[rows] = _share_below(-part, -truth, jitter[rows])
    return np.where(np.isneginf(true), 1.0, levels)


def posterior_draws(
    estimator: Any,
    X: ArrayLike,
    *,
    n_samples: int = 500,
    y: ArrayLike | None = None,
    random_state: Any = 0,
    verbose: int = 0,
) -> tuple[Floats, Floats | None]:
    """Samples of a fitted posterior, and with `y` the highest-density levels of the truths.

    Parameters
    ----------
    estimator : fitted PosteriorEstimator, a Pipeline that ends in one, or a fitted search over such
    X : array-like of shape (n_lightcones, ...)
        Whatever the estimator takes.
    n_samples : int, default=500
        For each light cone.
    y : array-like of shape (n_lightcones, n_parameters), default=None
    random_state : int, Generator or None, default=0
    verbose : int, default=0
        Whether to show progress bars; those of the estimator's own `verbose` show in any case.

    Returns
    -------
    samples : ndarray of shape (n_lightcones, n_samples, n_parameters)
    levels : ndarray of shape (n_lightcones,) or None

    Raises
    ------
    TypeError
        When the estimator has no ``sample_log_prob``.

    Examples
    --------
    >>> from sklearn.linear_model import Ridge
    >>> from skatr_sk.evaluation import posterior_draws
    >>> posterior_draws(Ridge(), [[1.0]])
    Traceback (most recent call last):
    ...
    TypeError: estimator: expected a fitted PosteriorEstimator, a Pipeline that ends in one, or ...
    """
    before, final = unwrap(estimator)
    if not hasattr(final, "sample_log_prob"):
        raise TypeError(
            "estimator: expected a fitted PosteriorEstimator, a Pipeline that ends in one, or a "
            f"search over such, fitted with refit=True, found {type(final).__name__}, which has no "
            "sample_log_prob."
        )
    for transformer in before:  # a Pipeline passes on predict and score only
        X = transformer.transform(X)
    if verbose and not getattr(final, "verbose", True):
        final = copy.copy(final)  # the user's own stays as it was
        final.verbose = verbose
    if y is None:
        return final.sample(X, n_samples, random_state=random_state), None
    samples, each = final.sample_log_prob(X, n_samples, random_state=random_state)
    options: dict[str, Any] = {"random_state": random_state, "verbose": verbose}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeverSeenWarning)  # the draws have said it
        at_truth = final.log_prob(X, y)
    return samples, highest_density_levels(each, at_truth, **options)


def _share_below(samples: NDArray[Any], truth: NDArray[Any], jitter: Floats) -> Floats:
    """Level in [0, 1) of a number of the truth (n, 1) among those of the samples (n, n_samples).

    If truth and samples come from one distribution and the jitter is uniform in [0, 1), so is the
    level, for any number of samples and of ties.
    """
    below, ties = (samples < truth).sum(axis=1), (samples == truth).sum(axis=1)
    return (below + jitter * (ties + 1)) / (samples.shape[1] + 1)


def _stream(random_state: Any, key: int) -> np.random.Generator:
    """Return a generator for one purpose: with one seed, no two purposes share their numbers."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    return np.random.default_rng(np.random.SeedSequence(entropy_of(random_state), spawn_key=(key,)))
