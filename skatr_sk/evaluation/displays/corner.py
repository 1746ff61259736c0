"""PosteriorDisplay: the corner plot of one light cone's posterior, or of several posteriors.

A posterior may fill a thousandth of its prior, and have two narrow peaks far apart: the bins of its
histograms follow its finest structure, not the axis that it is drawn on. It is not left to another
package because corner bins the axis, so that its 68 % contour of a posterior a hundred times
narrower than the prior holds all samples, and GetDist, whose contours are right, draws into no
given Axes, hides one posterior behind another, and lowers two narrow peaks far apart by 16 %.
"""

from __future__ import annotations

__all__ = ["PosteriorDisplay"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from skatr_sk._checks import Real, Rule, check_options, shared_docs
from skatr_sk._checks import parameter_names as names_of
from skatr_sk.evaluation.arrays import Floats
from skatr_sk.evaluation.calibration import posterior_draws
from skatr_sk.evaluation.displays import base
from skatr_sk.evaluation.fitted import check_truths


def _are_shares(levels: Any) -> bool:
    numbers = np.asarray(levels)
    listed = numbers.ndim == 1 and numbers.dtype.kind in "iuf" and numbers.size > 0
    return listed and bool(((numbers > 0) & (numbers < 1)).all())


def _are_colors(colors: Any) -> bool:
    from matplotlib.colors import is_color_like

    listed = [] if isinstance(colors, str) or not np.iterable(colors) else list(colors)
    return bool(listed) and all(is_color_like(color) for color in listed)


_OPTIONS = {
    "levels": Rule(_are_shares, "a list of numbers in (0, 1)"),
    "smoothing": Real("[0, inf)", optional=True),
}
_BINS = 60, 300  # at least and at most
_SHARE = 0.383  # of a Gaussian's samples, inside an interval one sigma wide
_BINS_PER_SIGMA = 8
_REACH = 4.0  # widths of the smoothing, beyond which nothing is left of a kernel
_TAIL = 0.0005  # of the samples, left out at either end


@shared_docs(**base.SHARED_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class PosteriorDisplay(base.ParameterDisplay):
    """Corner plot: marginals on the diagonal, 68 and 95 % contours below, lines at the truth.

    Above each marginal is its median, with the distances to the 16 and 84 % quantiles.
    Make it with :meth:`from_samples` or :meth:`from_estimator`.

    Parameters
    ----------
    samples : array-like of shape (n_samples, n_parameters), or a dict of names to such
        Posteriors of one light cone; a dict overlays several.
    y_true : array-like of shape (n_parameters,), default=None
        True parameters, drawn as lines.
    {names_and_units}
    bounds : array-like of shape (n_parameters, 2), default=None
        Edges of the prior, which hold all samples: the axes span them, and densities are not
        smoothed across. Infinite or NaN where there are none.
    levels : sequence of float, default=(0.68, 0.95)
        Shares of the samples inside the contours.
    smoothing : float, default=None
        Width of the Gaussian that smooths the histograms, in their bins; by default that of
        Scott's rule for the number of the samples and the width of their densest part.

    Attributes
    ----------
    densities_ : dict of str to ndarray of shape (n_parameters, n_bins)
        The marginals drawn, which integrate to one over their bins.
    bin_edges_ : dict of str to ndarray of shape (n_parameters, n_bins + 1)
        Edges of those bins, over each posterior's own range.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters, n_parameters)
        None above the diagonal.
    legend_ : Legend, or None
        Names of the posteriors, contours and lines; None where Axes were given that leave no room.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import PosteriorDisplay
    >>> samples = np.random.default_rng(0).normal(size=(500, 2))
    >>> PosteriorDisplay.from_samples(samples, y_true=[0.0, 0.5]).axes_.shape
    (2, 2)
    """

    samples: ArrayLike | Mapping[str, ArrayLike]
    y_true: ArrayLike | None = None
    levels: Sequence[float] = (0.68, 0.95)
    smoothing: float | None = None

    def __post_init__(self) -> None:
        self._posteriors = _check_posteriors(self.samples)
        n = next(iter(self._posteriors.values())).shape[1]
        check_options("PosteriorDisplay", _OPTIONS, vars(self))
        self._truth = None if self.y_true is None else np.asarray(self.y_true, dtype=np.float64)
        if self._truth is not None and self._truth.shape != (n,):
            raise ValueError(
                f"y_true: expected shape ({n},), the parameters of one light cone, found "
                f"{self._truth.shape}."
            )
        self._check_parameters(n)
        self._posteriors = {k: self._inside(points, k) for k, points in self._posteriors.items()}
        self._spans = _axis_limits(self._posteriors, self._truth, self._edges)
        self.bin_edges_, self.densities_ = {}, {}
        for name, points in self._posteriors.items():
            edges = _bin_edges(points, self._edges, self._spans, self.smoothing)
            axes = [(points[:, [i]], edges[[i]]) for i in range(n)]
            density = np.array([_smoothed(*axis, self.smoothing)[1] for axis in axes])
            density /= density.sum(axis=1, keepdims=True) * np.diff(edges[:, :2])
            self.bin_edges_[name], self.densities_[name] = edges, density

    def _inside(self, points: Floats, name: str) -> Floats:
        """Samples within the bounds; what rounding has put beyond them, on them."""
        bounds, n = self._edges, len(self._edges)
        slack = np.nan_to_num(1e-6 * (bounds[:, 1] - bounds[:, 0]))
        outside = ((points < bounds[:, 0] - slack) | (points > bounds[:, 1] + slack)).sum(axis=0)
        if outside.any():
            names = names_of(self.parameter_names, None, n)
            each = "; ".join(
                f"{outside[i]} of {names[i]!r}, which is {points[:, i].min():.6g} to "
                f"{points[:, i].max():.6g} with bounds {bounds[i].tolist()}"
                for i in np.flatnonzero(outside).tolist()
            )
            raise ValueError(
                f"samples: expected those of {name!r} inside bounds, found outside, of "
                f"{len(points)}, {each}; give both in the same units, or bounds=None if the "
                "posterior is not confined to the prior."
            )
        return np.fmin(np.fmax(points, bounds[:, 0]), bounds[:, 1])

    def plot(self, ax: Any = None, *, colors: Sequence[Any] | None = None) -> Self:
        """Draw the panels, and return the display.

        Parameters
        ----------
        ax : array-like of Axes of shape (n_parameters, n_parameters), default=None
            By default those of a new figure.
        colors : sequence of colours, default=None
            One for each posterior.
        """
        plt = self._pyplot("plot")
        n = len(self._labels)
        kind = Rule(_are_colors, "a list of matplotlib's colours, one or more", optional=True)
        check_options("PosteriorDisplay.plot", {"colors": kind}, {"colors": colors})
        shades = base.COLORS if colors is None else list(colors)
        self.axes_ = _corner_axes(plt, ax, n, len(self._posteriors))
        self.figure_ = self.axes_[0, 0].figure
        for k, (name, points) in enumerate(self._posteriors.items()):
            color = shades[k % len(shades)]
            edges = self.bin_edges_[name]
            middles = (edges[:, 1:] + edges[:, :-1]) / 2
            for row in range(n):
                curve = middles[row], self.densities_[name][row]
                axes = self.axes_[row, row]
                axes.plot(*curve, color=color, linewidth=1.5, label=name)
                axes.fill_between(*curve, color=color, alpha=0.15, linewidth=0)
                for column in range(row):
                    pair = [column, row]
                    self._contours(self.axes_[row, column], points[:, pair], edges[pair], color)
        self._decorate()
        self._write_quantiles(shades)
        self.legend_ = self._explain(shades, ax is not None)
        return self

    def _write_quantiles(self, shades: Sequence[Any]) -> None:
        """Write medians and errors above the marginals, a line for each posterior."""
        posteriors = list(enumerate(self._posteriors.values()))
        for i, (symbol, _) in enumerate(self._labels):
            axes = self.axes_[i, i]
            for line, (k, points) in enumerate(reversed(posteriors)):
                text = f"{symbol} = {_median_and_errors(points[:, i])}"
                color = shades[k % len(shades)] if len(posteriors) > 1 else "black"
                raised = {"xytext": (0, 5 + 15 * line), "textcoords": "offset points"}
                corner = {"xy": (0, 1), "xycoords": "axes fraction", "annotation_clip": False}
                axes.annotate(text, **corner, **raised, fontsize="small", color=color)

    def _explain(self, shades: Sequence[Any], given: bool) -> Any:
        """Name posteriors, contours and lines, where there is room for it."""
        from matplotlib.patches import Patch

        n, names = len(self._labels), list(self._posteriors)
        several = len(names) > 1
        entries = enumerate(names if several else [])
        handles = [base.mark(name, color=shades[k % len(shades)]) for k, name in entries]
        if n > 1:
            color = "0.3" if several else shades[0]
            for k, level in enumerate(sorted(self.levels, reverse=True)):
                style: dict[str, Any] = {"alpha": _opacity(k, len(self.levels)), "linewidth": 0}
                text = f"{100 * level:.3g} % of samples"
                handles.append(Patch(facecolor=color, label=text, **style))
        if self._truth is not None:
            handles.append(base.mark("truth", **base.TRUTH))
        if np.isfinite(self._edges).any():
            handles.append(base.mark("axes: the prior", linestyle="none"))
        options = {"handles": handles, "frameon": False, "fontsize": "small"}
        if n > 1 and not given:
            return self.figure_.legend(loc="upper right", **options)
        if n > 1 and self.axes_[0, -1] is not None:
            return self.axes_[0, -1].legend(loc="upper right", **options)
        return self.axes_[0, 0].legend(loc="best", **options) if several or n == 1 else None

    def _contours(self, axes: Any, points: Floats, edges: Floats, color: Any) -> None:
        """Draw the filled contours of two parameters."""
        counts, density = _smoothed(points, edges, self.smoothing)
        heights = _contour_heights(density, counts, self.levels)
        if not len(heights):
            return
        # Out to the edges of the box: the middle of the last bin is half a bin before them.
        density = np.pad(density, 1, mode="edge")
        middles = [np.r_[e[0], (e[1:] + e[:-1]) / 2, e[-1]] for e in edges]
        fills = [(color, _opacity(k, len(heights))) for k in range(len(heights))]
        shades = [*heights, density.max() * 1.001]
        axes.contourf(*middles, density.T, levels=shades, colors=fills)
        axes.contour(*middles, density.T, levels=heights, colors=[color], linewidths=1.0)

    def _decorate(self) -> None:
        """Limits, ticks and labels of the panels, and the lines at the truth."""
        n, truth, spans = len(self._labels), self._truth, self._spans
        texts = [symbol + (f"\n[{unit}]" if unit else "") for symbol, unit in self._labels]
        for row, column in zip(*np.tril_indices(n), strict=True):
            axes, lowest, leftmost = self.axes_[row, column], row == n - 1, row > column == 0
            axes.set_xlim(*spans[column])
            axes.locator_params(axis="x", nbins=4, prune="both")
            if row == column:
                axes.set_ylim(bottom=0)
                axes.set_yticks([])
            else:
                axes.set_ylim(*spans[row])
                axes.locator_params(axis="y", nbins=4, prune="both")
            if truth is not None:
                axes.axvline(truth[column], **base.TRUTH)
                if row != column:
                    axes.axhline(truth[row], **base.TRUTH)
            axes.tick_params(labelsize="small", labelbottom=lowest, labelleft=leftmost)
            axes.tick_params(axis="x", labelrotation=40)
            if lowest:
                axes.set_xlabel(texts[column])
            if leftmost:
                axes.set_ylabel(texts[row])
        self.figure_.align_labels([each for each in self.axes_.ravel() if each is not None])

    @classmethod
    def from_samples(
        cls, samples: ArrayLike | Mapping[str, ArrayLike], *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw samples, return the display; takes the parameters of the class and :meth:`plot`."""
        return cls._drawn(ax, {"samples": samples, **kwargs})

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        n_samples: int = 20_000,
        random_state: Any = 0,
        verbose: int = 0,
        **kwargs: Any,
    ) -> Self:
        """Sample the posterior of one light cone, draw, and return the display.

        Parameters
        ----------
        estimator : fitted PosteriorEstimator, Pipeline or search, or a dict of names to such
        X : array-like of shape (1, ...)
            One light cone, or its summary.
        y : array-like of shape (n_parameters,) or (1, n_parameters), default=None
            Its true parameters.
        n_samples, random_state, verbose
            As for :func:`~skatr_sk.evaluation.posterior_draws`; 20,000 samples by default.
        **kwargs
            As for :meth:`from_samples`. Names and bounds are those of the estimator by default;
            of several, the names of the first and bounds that hold the prior of each.
        """
        n = len(X)  # type: ignore[arg-type]
        if n != 1:
            raise ValueError(
                f"X: expected one light cone, X[i : i + 1] of several, found {n} rows; the first "
                "axis counts light cones."
            )
        cls._pyplot("from_estimator")
        named = estimator if isinstance(estimator, Mapping) else {"posterior": estimator}
        for each in named.values():
            check_truths(each, y, in_prior=True)
        draw = partial(
            posterior_draws, X=X, n_samples=n_samples, random_state=random_state, verbose=verbose
        )
        samples = {name: draw(each)[0][0] for name, each in named.items()}
        truth = None if y is None else np.ravel(np.asarray(y, dtype=np.float64))
        return cls.from_samples(samples, y_true=truth, **(base.prior_of(*named.values()) | kwargs))


def _check_posteriors(samples: Any) -> dict[str, Floats]:
    given = samples if isinstance(samples, Mapping) else {"posterior": samples}
    posteriors = {str(name): np.asarray(each, np.float64) for name, each in given.items()}
    shapes = {name: points.shape for name, points in posteriors.items()}
    widths = {shape[-1:] for shape in shapes.values()}
    if len(widths) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise ValueError(
            "samples: expected shape (n_samples, n_parameters), the same parameters for each "
            f"posterior, found {shapes}; give the samples of one light cone."
        )
    if wrong := [name for name, points in posteriors.items() if not np.isfinite(points).all()]:
        raise ValueError(
            f"samples: expected finite numbers, found NaN or infinite values in "
            f"{', '.join(map(repr, wrong))}; leave those samples out."
        )
    return posteriors


def _corner_axes(plt: Any, given: Any, n: int, n_posteriors: int) -> NDArray[np.object_]:
    """Axes on and below the diagonal: of a new figure, with None above it, or those given."""
    lower = np.tri(n, dtype=bool)
    if given is not None:
        axes = base.check_axes(given, (n, n), f"Axes of shape ({n}, {n})", lower)
        for spare in axes[~lower]:
            if spare is not None:
                spare.set_axis_off()
        return axes
    size = 1.35 * n + 1.5 if n > 1 else 4.0
    # Room in inches for labels and for the medians; panels that nearly touch.
    low, right, top = 0.95 / size, 1 - 0.45 / size, 1 - (0.15 + 0.21 * n_posteriors) / size
    room = {"left": low, "right": right, "bottom": low, "top": top, "wspace": 0.07, "hspace": 0.07}
    _, axes = plt.subplots(n, n, figsize=(size, size), squeeze=False, gridspec_kw=room)
    for spare in axes[~lower]:
        spare.remove()
    axes[~lower] = None
    return axes


def _opacity(k: int, n: int) -> float:
    """Of the k-th of n filled contours, from the outermost."""
    return 0.18 + 0.32 * k / n


def _median_and_errors(values: Floats) -> str:
    """Median, and distances to the 16 and 84 % quantiles, to two digits of the smaller distance."""
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84])
    least = min((each for each in (high - middle, middle - low) if each > 0), default=0.0)
    if not least:
        return f"{middle:.4g}"
    digits = min(max(0, 1 - math.floor(math.log10(least))), 12)
    errors = f"^{{+{high - middle:.{digits}f}}}_{{-{middle - low:.{digits}f}}}"
    return f"${middle:.{digits}f}{errors}$"


def _width(points: Floats) -> Floats:
    """Width of the densest part of samples (n, n_axes), which is sigma for a Gaussian.

    The standard deviation, or the shortest interval with 38.3 % of the samples where that is
    smaller: for two narrow peaks the former is their distance, the latter their width.
    """
    deviation = points.std(axis=0)
    inside = round(_SHARE * len(points))
    if inside < 2:
        return deviation
    ordered = np.sort(points, axis=0)
    shortest = (ordered[inside:] - ordered[:-inside]).min(axis=0)
    return np.where(shortest > 0, np.minimum(shortest, deviation), deviation)


def _bin_edges(points: Floats, bounds: Floats, limits: Floats, smoothing: float | None) -> Floats:
    """Edges of the bins of one posterior, of shape (n_parameters, n_bins + 1).

    They reach beyond the samples as far as the smoothing does, but not past finite `bounds` (NaN
    where there are none). A parameter that never varies gets a sixtieth of its axis.
    """
    sigma = _width(points)
    low, high = np.quantile(points, [_TAIL, 1 - _TAIL], axis=0)
    widest = sigma * len(points) ** (-1 / 6)
    if smoothing is not None:
        widest = np.maximum(widest, smoothing * sigma / _BINS_PER_SIGMA)
    margin = np.maximum(0.05 * (high - low), _REACH * widest)
    margin = np.where(high > low, margin, np.ptp(limits, axis=1) / 120)
    low = np.fmax(low - margin, bounds[:, 0])
    high = np.fmin(high + margin, bounds[:, 1])
    fine = np.divide(high - low, sigma, out=np.zeros_like(low), where=sigma > 0).max()
    n_bins = int(np.clip(math.ceil(_BINS_PER_SIGMA * fine), *_BINS))
    return np.linspace(low, high, n_bins + 1, axis=1)


def _smoothed(points: Floats, edges: Floats, smoothing: float | None) -> tuple[Floats, Floats]:
    """Counts of samples (n, n_axes) in their bins, and the same smoothed.

    By Scott's rule, or by a Gaussian `smoothing` bins wide. The density is mirrored at the ends of
    the bins: at a finite bound that keeps its height, elsewhere nothing is left there to mirror.
    """
    n, n_axes = points.shape
    counts, _ = np.histogramdd(points, bins=list(edges))
    of_scott = _width(points) / (edges[:, 1] - edges[:, 0]) * n ** (-1 / (n_axes + 4))
    widths = of_scott if smoothing is None else np.full(n_axes, smoothing)
    return counts, gaussian_filter(counts, widths, mode="reflect")


def _contour_heights(density: Floats, counts: Floats, levels: Sequence[float]) -> Floats:
    """Heights, rising, above which lie these shares of the samples.

    Of the samples, not of the smoothed density, which is wider than they are.
    """
    order = np.argsort(density, axis=None)[::-1]
    ordered = density.ravel()[order]
    mass = np.cumsum(counts.ravel()[order]) / counts.sum()
    found = np.minimum(np.searchsorted(mass, levels), len(ordered) - 1)
    heights = np.unique(ordered[found])
    return heights[(heights > 0) & (heights < ordered[0])]


def _axis_limits(posteriors: Mapping[str, Floats], truth: Floats | None, bounds: Floats) -> Floats:
    """Range of each axis: the prior's box, or what holds nearly all samples and the truth."""
    every = np.concatenate(list(posteriors.values()))
    low, high = np.quantile(every, [_TAIL, 1 - _TAIL], axis=0)
    if truth is not None:
        low, high = np.minimum(low, truth), np.maximum(high, truth)
    margin = np.where(high > low, 0.08 * (high - low), 0.5 * np.maximum(1.0, np.abs(low)))
    reached = np.stack([low - margin, high + margin], axis=1)
    return np.where(np.isfinite(bounds), bounds, reached)
