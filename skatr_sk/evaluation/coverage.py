"""Expected coverage of credible regions, and the band that chance allows."""

from __future__ import annotations

__all__ = ["Coverage", "coverage_band", "expected_coverage"]

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import kolmogi

from skatr_sk._checks import Integer, Real, check_options, warn
from skatr_sk.evaluation.arrays import Floats


@dataclass(frozen=True)
class Coverage:
    """Expected coverage against nominal credibility, with the band of a calibrated posterior.

    Attributes
    ----------
    credibility : ndarray of shape (n_levels,)
        Nominal, from 0 to 1.
    coverage : ndarray of shape (n_levels,)
        Share of the light cones whose truth lies in the region of that credibility. Below the
        diagonal the posterior is too narrow, or shifted; above it is too wide.
    low, high : ndarray of shape (n_levels,)
        Uniform band: a calibrated posterior stays inside it, at all levels at once, with
        probability `confidence`.
    confidence : float
    p_value : float
        Of the largest distance from the diagonal, if the posterior is calibrated.
    """

    credibility: Floats
    coverage: Floats
    low: Floats
    high: Floats
    confidence: float
    p_value: float

    @property
    def calibrated(self) -> bool:
        """Whether the coverage stays inside the band at every level."""
        return bool(((self.low <= self.coverage) & (self.coverage <= self.high)).all())


def expected_coverage(
    levels: ArrayLike, *, n_levels: int = 101, confidence: float = 0.99
) -> Coverage:
    """Expected coverage of credible regions, from the levels of the truths.

    Parameters
    ----------
    levels : array-like of shape (n_lightcones,)
        From :func:`tarp_levels`, :func:`highest_density_levels` or :func:`rank_levels`; in [0, 1].
    n_levels : int, default=101
        Points of the curve.
    confidence : float in (0, 1), default=0.99
        Of the uniform band.

    Returns
    -------
    Coverage

    Raises
    ------
    ValueError
        When levels are not in [0, 1], or an option is out of range.

    Warns
    -----
    UserWarning
        When many levels are equal: the band and the p-value hold for levels without ties.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import expected_coverage
    >>> overconfident = expected_coverage(np.linspace(0.5, 1, 100))  # truths far out
    >>> overconfident.calibrated, bool(overconfident.coverage[50] < 0.1)
    (False, True)
    """
    levels = _check_levels(levels)
    check_options("expected_coverage", {"n_levels": Integer(2)}, {"n_levels": n_levels})
    half = coverage_band(len(levels), confidence)
    credibility = np.linspace(0.0, 1.0, n_levels)
    low, high = (np.clip(credibility + step, 0.0, 1.0) for step in (-half, half))
    # A truth on the edge of a region is half in.
    ordered = np.sort(levels)
    edges = [np.searchsorted(ordered, credibility, side) for side in ("left", "right")]
    coverage = np.sum(edges, axis=0) / (2 * len(levels))
    coverage[0], coverage[-1] = 0.0, 1.0
    p_value = float(stats.kstest(levels, "uniform").pvalue)
    return Coverage(credibility, coverage, low, high, confidence, p_value)


def coverage_band(n_lightcones: int, confidence: float = 0.99) -> float:
    """Half width of the uniform band around the diagonal, for so many light cones.

    It is the quantile `confidence` of the largest distance between an empirical distribution and
    the one that it was drawn from (Kolmogorov).

    Parameters
    ----------
    n_lightcones : int
    confidence : float in (0, 1), default=0.99

    Returns
    -------
    float

    Examples
    --------
    >>> from skatr_sk.evaluation import coverage_band
    >>> round(coverage_band(1000), 4)
    0.0513
    """
    kinds = {"n_lightcones": Integer(1), "confidence": Real("(0, 1)")}
    check_options("coverage_band", kinds, {"n_lightcones": n_lightcones, "confidence": confidence})
    # The asymptotic distribution with Stephens' correction, good to a per cent from n = 5 on.
    root = math.sqrt(n_lightcones)
    return min(1.0, float(kolmogi(1 - confidence)) / (root + 0.12 + 0.11 / root))


def _check_levels(given: ArrayLike) -> Floats:
    """One number in [0, 1] for each light cone."""
    expected = "levels: expected one number in [0, 1] for each light cone, shape (n_lightcones,)"
    try:
        levels = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, found no array of numbers ({error}).") from error
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(f"{expected}, found shape {levels.shape}.")
    bad = np.flatnonzero(~((levels >= 0) & (levels <= 1)))
    if bad.size:
        raise ValueError(
            f"{expected}, found NaN or numbers outside [0, 1] in {bad.size} of {len(levels)} light "
            f"cones, the first of them {bad[0]}, which has {levels[bad[0]]}."
        )
    # Truths that no region holds, or every one, are at the very ends for good reason.
    inner = levels[(levels > 0) & (levels < 1)]
    distinct = len(np.unique(inner))
    if distinct < len(inner) / 2:
        warn(
            f"levels takes only {distinct} values for {len(inner)} light cones, and its steps may "
            "look like a wrong posterior: turn ranks into levels with rank_levels, which splits "
            "ties at random."
        )
    return levels
