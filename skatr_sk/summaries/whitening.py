"""What a summary owes to the patch of sky, made small beside what it owes to the universe.

The mean tokens of two regions of one sky differ by the structure that happens to lie in each
(cosmic variance, and noise of the instrument), and agree on what the whole light cone shares: its
parameters. The covariance of these differences says in which directions summaries are noisy, and
needs no label. Weighing the directions by it is the normalisation by within-class covariance of
speaker recognition (Hatch, Kajarekar, Stolcke, Interspeech 2006, section 3), whose classes are the
skies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Whitening"]

# Powers of the two covariances by which summaries are multiplied. Fully whitened (-1/2 of the
# first) they lose by the errors of its small eigenvalues. Chosen by a ridge regression on few
# labels of simulated light cones (docs/learning.rst).
_BY_REGIONS = -0.25
_BY_SUMMARIES = -0.125


@dataclass(frozen=True)
class Whitening:
    """Affine map of summaries: less of what the regions of one sky disagree on.

    Its columns have zero mean and unit variance over the fields that it was learned from, so that
    a regression that standardises its features, as most do, keeps the weights of the directions.

    Parameters
    ----------
    mean : ndarray of shape (n_summary,), float32
        Of the summaries.
    matrix : ndarray of shape (n_summary, n_summary), float32
        By which they are multiplied from the right, less the mean.

    Examples
    --------
    The second of two numbers differs as much within a sky as between skies:

    >>> import numpy as np
    >>> from skatr_sk.summaries.whitening import Whitening
    >>> normal = np.random.default_rng(0).normal
    >>> common, (one, two) = normal(size=(1000, 2)), normal(size=(2, 1000, 2)) * [0.01, 1.0]
    >>> whole = common * [1.0, 0.01] + (one + two) / 2
    >>> white = Whitening.learn(whole, common + one, common + two)
    >>> white(whole).std(axis=0).round(3)
    array([1., 1.], dtype=float32)
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, summaries: np.ndarray) -> np.ndarray:
        """Map summaries (n, n_summary) to float32 of the same shape."""
        # In float64, so that rounding does not depend on how many are mapped at a time.
        centred = summaries.astype(np.float64) - self.mean
        return (centred @ self.matrix.astype(np.float64)).astype(np.float32)

    @classmethod
    def learn(cls, whole: np.ndarray, one: np.ndarray, two: np.ndarray) -> Whitening:
        """Learn from the summaries (n, n_summary) of `n` >= 2 fields and of pairs of their regions.

        A pair (n_pairs, n_summary each) is of one sky; a sky may have several.
        """
        whole, one, two = (np.asarray(each, dtype=np.float64) for each in (whole, one, two))
        mean, scale = whole.mean(axis=0), whole.std(axis=0)
        # A number that does not vary stays as it is: zero, for the mean is subtracted.
        scale = np.where(scale > 1e-6 * np.abs(whole).max(axis=0), scale, np.inf)
        matrix = _power((one - two) / scale, _BY_REGIONS) / scale[:, np.newaxis]
        matrix = matrix @ _power((whole - mean) @ matrix, _BY_SUMMARIES)
        matrix = matrix @ _equal_variances(np.cov((whole - mean) @ matrix, rowvar=False, ddof=0))
        spread = ((whole - mean) @ matrix).std(axis=0).max()
        matrix = matrix / spread if spread else matrix
        return cls(mean.astype(np.float32), matrix.astype(np.float32))


def _power(rows: np.ndarray, power: float) -> np.ndarray:
    """Return a power of the covariance of some rows (n, dim).

    The fewer rows there are, the more its eigenvalues are drawn to their mean: what few rows say of
    the smallest is chance.
    """
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    values = np.maximum(values, 0.0) + values.mean() / len(rows)
    return (vectors * np.where(values > 0, values, 1.0) ** power) @ vectors.T


def _equal_variances(covariance: np.ndarray) -> np.ndarray:
    """Return the rotation (dim, dim) after which all columns have the same variance.

    Each plane rotation gives one more column the mean variance (Davies, Higham, BIT 40, 640 (2000),
    section 3, with another diagonal).
    """
    covariance = covariance.copy()
    rotation = np.eye(len(covariance))
    mean = np.trace(covariance) / len(covariance)
    for _ in range(len(covariance) - 1):
        diagonal = np.diag(covariance) - mean
        low, high = int(diagonal.argmin()), int(diagonal.argmax())
        if diagonal[high] - diagonal[low] <= 1e-12 * mean:
            break
        a, b, c = diagonal[low], covariance[low, high], diagonal[high]
        root = np.sqrt(b * b - a * c)  # a <= 0 <= c
        tangent = a / (-b - root if b > 0 else -b + root)
        cosine = 1 / np.sqrt(1 + tangent**2)
        turn = np.array([[cosine, -tangent * cosine], [tangent * cosine, cosine]])
        plane = [low, high]
        covariance[:, plane] = covariance[:, plane] @ turn
        covariance[plane] = turn.T @ covariance[plane]
        rotation[:, plane] = rotation[:, plane] @ turn
    return rotation
