"""Densities of a corner plot: histograms over a posterior's own range, smoothed inside the prior.

A posterior may fill a thousandth of its prior, and have two narrow peaks far apart: bins follow its
finest structure, not the axis that it is drawn on.
"""

from __future__ import annotations

__all__ = ["axis_limits", "bin_edges", "contour_heights", "smoothed", "spread"]

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

_BINS = 60, 300  # at least and at most
_SHARE = 0.383  # of a Gaussian's samples, inside an interval one sigma wide
_BINS_PER_SIGMA = 8
_REACH = 4.0  # widths of the smoothing, beyond which nothing is left of a kernel
_TAIL = 0.0005  # of the samples, left out at either end


def spread(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width of the densest part of samples (n, n_axes), in units in which a Gaussian has sigma.

    The standard deviation, or the shortest interval with 38.3 % of the samples where that is
    smaller: of two narrow peaks the former is their distance, the latter their width.
    """
    deviation = points.std(axis=0)
    inside = round(_SHARE * len(points))
    if inside < 2:
        return deviation
    ordered = np.sort(points, axis=0)
    shortest = (ordered[inside:] - ordered[:-inside]).min(axis=0)
    return np.where(shortest > 0, np.minimum(shortest, deviation), deviation)


def bin_edges(
    points: NDArray[np.float64],
    bounds: NDArray[np.float64],
    limits: NDArray[np.float64],
    smoothing: float | None,
) -> NDArray[np.float64]:
    """Edges of the bins of one posterior, of shape (n_parameters, n_bins + 1).

    They reach beyond the samples as far as the smoothing does, but not past finite `bounds` (NaN
    where there are none). A parameter that never varies gets a sixtieth of its axis.
    """
    sigma = spread(points)
    low, high = np.quantile(points, [_TAIL, 1 - _TAIL], axis=0)
    widest = sigma * len(points) ** (-1 / 6)
    if smoothing is not None:
        widest = np.maximum(widest, smoothing * sigma / _BINS_PER_SIGMA)
    margin = np.maximum(0.05 * (high - low), _REACH * widest)
    margin = np.where(high > low, margin, np.ptp(limits, axis=1) / 120)
    low = np.fmax(low - margin, bounds[:, 0])
    high = np.fmin(high + margin, bounds[:, 1])
    fine = np.divide(high - low, sigma, out=np.zeros_like(low), where=sigma > 0).max()
    n_bins = int(np.clip(np.ceil(_BINS_PER_SIGMA * fine), *_BINS))
    return np.linspace(low, high, n_bins + 1, axis=1)


def smoothed(
    points: NDArray[np.float64], edges: NDArray[np.float64], smoothing: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of samples (n, n_axes) in their bins, and the same smoothed.

    By Scott's rule, or by a Gaussian `smoothing` bins wide. The density is mirrored at the ends of
    the bins: at a finite bound that keeps its height, elsewhere nothing is left there to mirror.
    """
    n, n_axes = points.shape
    counts, _ = np.histogramdd(points, bins=list(edges))
    bins = edges[:, 1] - edges[:, 0]
    widths = spread(points) / bins * n ** (-1 / (n_axes + 4))
    widths = widths if smoothing is None else np.full(n_axes, smoothing)
    return counts, gaussian_filter(counts, widths, mode="reflect")


def contour_heights(
    density: NDArray[np.float64], counts: NDArray[np.float64], levels: Sequence[float]
) -> NDArray[np.float64]:
    """Heights, rising, above which lie these shares of the samples.

    Of the samples, not of the smoothed density, which is wider than they are.
    """
    order = np.argsort(density, axis=None)[::-1]
    ordered = density.ravel()[order]
    mass = np.cumsum(counts.ravel()[order]) / counts.sum()
    places = [min(int(np.searchsorted(mass, level)), len(ordered) - 1) for level in levels]
    heights = np.unique(ordered[places])
    return heights[(heights > 0) & (heights < ordered[0])]


def axis_limits(
    posteriors: Mapping[str, NDArray[np.float64]],
    truth: NDArray[np.float64] | None,
    bounds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Range of each axis: the prior's box, or what holds nearly all samples and the truth."""
    every = np.concatenate(list(posteriors.values()))
    low, high = np.quantile(every, [_TAIL, 1 - _TAIL], axis=0)
    if truth is not None:
        low, high = np.minimum(low, truth), np.maximum(high, truth)
    margin = np.where(high > low, 0.08 * (high - low), 0.5 * np.maximum(1.0, np.abs(low)))
    low, high = low - margin, high + margin
    finite = np.isfinite(bounds)
    return np.where(finite, bounds, np.stack([low, high], axis=1))
