"""Is a posterior honest? Where the truth lies among the samples: ranks and credibility levels.

Samples are ``(n_lightcones, n_samples, n_parameters)`` and truths ``(n_lightcones, n_parameters)``,
in the same units. :mod:`~skatr_sk.evaluation.coverage` turns levels into coverage.
"""

from __future__ import annotations

__all__ = [
    "highest_density_levels",
    "posterior_draws",
    "sbc_ranks",
    "tarp_levels",
]

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BATCH_VALUES = 4_000_000  # of the temporaries of one batch


def sbc_ranks(samples: ArrayLike, y_true: ArrayLike) -> NDArray[np.int64]:
    """Ranks of the truth among its posterior samples: simulation-based calibration.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)

    Returns
    -------
    ranks : ndarray of int, shape (n_lightcones, n_parameters)
        Number of samples below the truth, 0 to n_samples. Uniform for a calibrated posterior; a
        heap at both ends means too narrow, in the middle too wide, at one end shifted.

    Raises
    ------
    ValueError
        When shapes do not fit each other or values are missing.

    References
    ----------
    Talts et al., arXiv:1804.06788.

    Examples
    --------
    >>> from skatr_sk.evaluation import sbc_ranks
    >>> sbc_ranks([[[0.1], [0.2], [0.3]]], [[0.25]])
    array([[2]])
    """
    samples, true = _check_samples(samples, y_true)
    ranks = np.empty(true.shape, dtype=np.int64)
    for rows in _batches(samples):
        ranks[rows] = (samples[rows] < true[rows, np.newaxis]).sum(axis=1)
    return ranks


def tarp_levels(
    samples: ArrayLike,
    y_true: ArrayLike,
    *,
    references: ArrayLike | None = None,
    random_state: int | np.random.Generator | None = 0,
) -> NDArray[np.float64]:
    """Credibility levels of the truth by distances to random points (TARP).

    Every parameter is z-scored to the samples of its light cone, so that a sphere around the
    reference means the same for all of them, and the references fall where the samples are.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)
    references : array-like of shape (n_lightcones, n_parameters), default=None
        Points in the units of y. They must not depend on the truth but through the light cone. By
        default standard normal around the samples' mean, in units of their deviation.
    random_state : int, Generator or None, default=0
        Draws the references.

    Returns
    -------
    levels : ndarray of shape (n_lightcones,)
        Share of the samples that are nearer to the reference than the truth is; uniform for a
        calibrated posterior.

    Raises
    ------
    ValueError
        When shapes do not fit each other or values are missing.

    References
    ----------
    Lemos et al., "Sampling-Based Accuracy Testing of Posterior Estimators", arXiv:2302.03026.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import expected_coverage, tarp_levels
    >>> rng = np.random.default_rng(0)
    >>> levels = tarp_levels(rng.normal(size=(300, 99, 2)), rng.normal(size=(300, 2)))
    >>> expected_coverage(levels).calibrated
    True
    """
    samples, true = _check_samples(samples, y_true)
    given = None if references is None else np.asarray(references, dtype=np.float64)
    if given is not None and given.shape != true.shape:
        raise ValueError(f"references has shape {given.shape}, expected {true.shape}, as y_true.")
    rng = np.random.default_rng(random_state)
    levels = np.empty(len(true))
    for rows in _batches(samples):
        part = samples[rows]
        mean = part.mean(axis=1, keepdims=True)
        scale = part.std(axis=1, keepdims=True)
        scale = np.where(scale > 0, scale, 1.0)
        if given is None:
            reference = rng.standard_normal(true[rows].shape)[:, np.newaxis]
        else:
            reference = (given[rows][:, np.newaxis] - mean) / scale
        distance = np.square((part - mean) / scale - reference).sum(axis=2)
        z_true = (true[rows][:, np.newaxis] - mean) / scale
        levels[rows] = (distance < np.square(z_true - reference).sum(axis=2)).mean(axis=1)
    return levels


def highest_density_levels(
    log_prob_samples: ArrayLike, log_prob_true: ArrayLike
) -> NDArray[np.float64]:
    """Credibility of the smallest highest-density region that holds the truth.

    Parameters
    ----------
    log_prob_samples : array-like of shape (n_lightcones, n_samples)
        Log density of the posterior at its own samples.
    log_prob_true : array-like of shape (n_lightcones,)
        At the truth; -inf where the posterior excludes it.

    Returns
    -------
    levels : ndarray of shape (n_lightcones,)
        Share of the samples at a higher density; uniform for a calibrated posterior.

    Raises
    ------
    ValueError
        When shapes do not fit each other, or values are NaN.

    References
    ----------
    Hermans et al., arXiv:2110.06581 (expected coverage).

    Examples
    --------
    >>> from skatr_sk.evaluation import highest_density_levels
    >>> highest_density_levels([[-1.0, -2.0, -3.0, -4.0]], [-2.5])
    array([0.5])
    """
    each = np.asarray(log_prob_samples, dtype=np.float64)
    true = np.asarray(log_prob_true, dtype=np.float64)
    if each.ndim != 2 or 0 in each.shape or true.shape != each.shape[:1]:
        raise ValueError(
            f"log_prob_samples has shape {each.shape} and log_prob_true {true.shape}, expected "
            "(n_lightcones, n_samples) and (n_lightcones,)."
        )
    if np.isnan(each).any() or np.isnan(true).any():
        raise ValueError("log_prob_samples and log_prob_true must hold no NaN; drop those rows.")
    return (each > true[:, np.newaxis]).mean(axis=1)


def posterior_draws(
    estimator: Any,
    X: ArrayLike,
    *,
    n_samples: int = 500,
    y: ArrayLike | None = None,
    random_state: Any = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Samples of a fitted posterior, and with `y` the highest-density levels of the truths.

    Parameters
    ----------
    estimator : fitted PosteriorEstimator, or a Pipeline that ends in one
    X : array-like of shape (n_lightcones, ...)
        Whatever the estimator takes.
    n_samples : int, default=500
        For each light cone.
    y : array-like of shape (n_lightcones, n_parameters), default=None
    random_state : int, Generator or None, default=0

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
    TypeError: Ridge has no sample_log_prob; expected a fitted PosteriorEstimator, or a ...
    """
    final = estimator
    if hasattr(estimator, "steps"):  # a Pipeline passes on predict and score only
        final = estimator.steps[-1][1]
        X = estimator[:-1].transform(X) if len(estimator.steps) > 1 else X
    if not hasattr(final, "sample_log_prob"):
        raise TypeError(
            f"{type(final).__name__} has no sample_log_prob; expected a fitted PosteriorEstimator, "
            "or a Pipeline that ends in one."
        )
    samples, log_prob = final.sample_log_prob(X, n_samples, random_state=random_state)
    levels = None if y is None else highest_density_levels(log_prob, final.log_prob(X, y))
    return samples, levels


def _batches(samples: NDArray[np.float64]) -> Iterator[slice]:
    """Slices of light cones whose temporaries stay small."""
    step = max(1, _BATCH_VALUES // math.prod(samples.shape[1:]))
    for start in range(0, len(samples), step):
        yield slice(start, start + step)


def _check_samples(
    samples: ArrayLike, y_true: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    drawn = np.asarray(samples, dtype=np.float64)
    true = np.asarray(y_true, dtype=np.float64)
    true = true[:, np.newaxis] if true.ndim == 1 else true
    if drawn.ndim != 3 or 0 in drawn.shape or true.shape != (len(drawn), drawn.shape[-1]):
        raise ValueError(
            f"samples has shape {drawn.shape} and y_true {np.shape(y_true)}, expected "
            "(n_lightcones, n_samples, n_parameters) and (n_lightcones, n_parameters)."
        )
    for name, values in (("samples", drawn), ("y_true", true)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if bad.size:
            raise ValueError(
                f"{name} has NaN or infinite values in {bad.size} of {len(values)} light cones, "
                f"the first of them {bad[0]}; leave those out."
            )
    return drawn, true
