"""PosteriorDisplay: the corner plot of one light cone's posterior, or of several posteriors."""

from __future__ import annotations

__all__ = ["PosteriorDisplay"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from skatr_sk.evaluation._panels import (
    TRUTH,
    check_bounds,
    check_corner,
    corner_grid,
    import_pyplot,
    parameter_labels,
    prior_of,
)
from skatr_sk.evaluation.calibration import posterior_draws

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_BINS = 60


class PosteriorDisplay:
    """Corner plot: marginals on the diagonal, 68 and 95 % contours below, lines at the truth.

    Make it with :meth:`from_samples` or :meth:`from_estimator`.

    Parameters
    ----------
    samples : array-like of shape (n_samples, n_parameters), or a dict of names to such
        Posteriors of one light cone; a dict overlays several.
    y_true : array-like of shape (n_parameters,), default=None
        True parameters, drawn as lines.
    parameter_names, parameter_units : sequence of str, default=None
        As for :class:`~skatr_sk.evaluation.RecoveryDisplay`.
    bounds : array-like of shape (n_parameters, 2), default=None
        Edges of the prior: the axes span them, and densities are not smoothed across.
    levels : sequence of float, default=(0.68, 0.95)
        Shares of the samples inside the contours.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters, n_parameters)
        None above the diagonal.
    densities_ : dict of str to ndarray of shape (n_parameters, n_bins)
        The marginals drawn, which integrate to one.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import PosteriorDisplay
    >>> samples = np.random.default_rng(0).normal(size=(500, 2))
    >>> PosteriorDisplay.from_samples(samples, y_true=[0.0, 0.5]).axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        samples: ArrayLike | Mapping[str, ArrayLike],
        y_true: ArrayLike | None = None,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
        levels: Sequence[float] = (0.68, 0.95),
    ) -> None:
        self.samples = samples
        self.y_true = y_true
        self.parameter_names = parameter_names
        self.parameter_units = parameter_units
        self.bounds = bounds
        self.levels = levels

    def plot(
        self,
        axes: Any = None,
        *,
        colors: Sequence[Any] | None = None,
        smoothing: float | None = None,
    ) -> PosteriorDisplay:
        """Draw the panels.

        Parameters
        ----------
        axes : array-like of Axes of shape (n_parameters, n_parameters), default=None
            By default those of a new figure.
        colors : sequence of colours, default=None
            One for each posterior.
        smoothing : float, default=None
            Width of the Gaussian that smooths the histograms, in bins of a sixtieth of an axis; by
            default that of Scott's rule for the spread and the number of the samples.

        Returns
        -------
        display : PosteriorDisplay
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        posteriors, truth, bounds, labels = self._check()
        n = len(labels)
        if smoothing is not None and not smoothing >= 0:
            raise ValueError(f"smoothing is {smoothing!r}, expected a number >= 0.")
        colors = _COLORS if colors is None else colors
        self.axes_ = corner_grid(plt, n) if axes is None else check_corner(axes, n)
        self.figure_ = self.axes_[0, 0].figure
        spans = _spans(posteriors, truth, bounds)
        self.densities_: dict[str, NDArray[np.float64]] = {}
        for k, (name, points) in enumerate(posteriors.items()):
            color = colors[k % len(colors)]
            self.densities_[name] = np.empty((n, _BINS))
            for row in range(n):
                self._marginal(row, points[:, row], spans[row], name, color, smoothing)
                for column in range(row):
                    pair = points[:, [column, row]]
                    self._contours(row, column, pair, spans, color, smoothing)
        self._decorate(labels, spans, truth)
        if len(posteriors) > 1:
            handles, names = self.axes_[0, 0].get_legend_handles_labels()
            place = {"loc": "upper right"} if n > 1 else {"loc": "best"}
            target = self.figure_ if n > 1 and axes is None else self.axes_[0, 0]
            target.legend(handles, names, frameon=False, **place)
        return self

    def _marginal(
        self,
        row: int,
        points: NDArray[np.float64],
        span: NDArray[np.float64],
        name: str,
        color: Any,
        smoothing: float | None,
    ) -> None:
        counts, edges = np.histogram(points, bins=_BINS, range=(span[0], span[1]))
        width = _scott(points[:, None], span[None]) if smoothing is None else smoothing
        density = gaussian_filter(counts.astype(float), width, mode="reflect")
        density /= density.sum() * (edges[1] - edges[0])
        middle = (edges[1:] + edges[:-1]) / 2
        self.densities_[name][row] = density
        axes = self.axes_[row, row]
        axes.plot(middle, density, color=color, linewidth=1.5, label=name)
        axes.fill_between(middle, density, color=color, alpha=0.15, linewidth=0)

    def _contours(
        self,
        row: int,
        column: int,
        pair: NDArray[np.float64],
        spans: NDArray[np.float64],
        color: Any,
        smoothing: float | None,
    ) -> None:
        ranges = spans[[column, row]]
        counts, x, y = np.histogram2d(pair[:, 0], pair[:, 1], bins=_BINS, range=ranges)
        width = _scott(pair, ranges) if smoothing is None else smoothing
        density = gaussian_filter(counts, width, mode="reflect")
        heights = _heights(density, self.levels)
        if not len(heights):
            return
        # Out to the edges of the box: bins end half a cell before them.
        density = np.pad(density, 1, mode="edge")
        middles = [np.r_[e[0], (e[1:] + e[:-1]) / 2, e[-1]] for e in (x, y)]
        axes = self.axes_[row, column]
        shades = [*heights, density.max() * 1.001]
        fills = [(color, 0.18 + 0.32 * k / len(heights)) for k in range(len(heights))]
        axes.contourf(*middles, density.T, levels=shades, colors=fills)
        axes.contour(*middles, density.T, levels=heights, colors=[color], linewidths=1.0)

    def _decorate(
        self,
        labels: list[tuple[str, str]],
        spans: NDArray[np.float64],
        truth: NDArray[np.float64] | None,
    ) -> None:
        n = len(labels)
        texts = [symbol + (f"\n[{unit}]" if unit else "") for symbol, unit in labels]
        for row in range(n):
            for column in range(row + 1):
                axes = self.axes_[row, column]
                axes.set_xlim(*spans[column])
                if truth is not None:
                    axes.axvline(truth[column], **TRUTH)
                if row == column:
                    axes.set_ylim(bottom=0)
                    axes.set_yticks([])
                else:
                    axes.set_ylim(*spans[row])
                    axes.locator_params(axis="y", nbins=4, prune="both")
                    if truth is not None:
                        axes.axhline(truth[row], **TRUTH)
                axes.locator_params(axis="x", nbins=4, prune="both")
                axes.tick_params(labelsize="small", labelbottom=row == n - 1)
                axes.tick_params(axis="x", labelrotation=40)
                axes.tick_params(axis="y", labelleft=column == 0 and row > 0)
                if row == n - 1:
                    axes.set_xlabel(texts[column])
                if column == 0 and row > 0:
                    axes.set_ylabel(texts[row])
        self.figure_.align_labels([each for each in self.axes_.ravel() if each is not None])

    def _check(
        self,
    ) -> tuple[
        dict[str, NDArray[np.float64]],
        NDArray[np.float64] | None,
        NDArray[np.float64],
        list[tuple[str, str]],
    ]:
        given = self.samples if isinstance(self.samples, Mapping) else {"posterior": self.samples}
        posteriors = {str(k): np.asarray(v, dtype=np.float64) for k, v in given.items()}
        shapes = {name: points.shape for name, points in posteriors.items()}
        widths = {shape[-1] for shape in shapes.values() if len(shape) == 2 and 0 not in shape}
        if len(widths) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
            raise ValueError(
                f"samples has shapes {shapes}, expected (n_samples, n_parameters), the parameters "
                "the same for all: give the samples of one light cone."
            )
        n = widths.pop()
        for name, points in posteriors.items():
            if not np.isfinite(points).all():
                raise ValueError(f"samples of {name!r} hold NaN or infinite values; drop those.")
        truth = None if self.y_true is None else np.asarray(self.y_true, dtype=np.float64)
        if truth is not None and truth.shape != (n,):
            raise ValueError(f"y_true has shape {truth.shape}, expected ({n},): of one light cone.")
        if not len(self.levels) or not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"levels is {self.levels!r}, expected numbers in (0, 1).")
        labels = parameter_labels(self.parameter_names, self.parameter_units, n)
        return posteriors, truth, check_bounds(self.bounds, n), labels

    @classmethod
    def from_samples(
        cls,
        samples: ArrayLike | Mapping[str, ArrayLike],
        *,
        y_true: ArrayLike | None = None,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
        levels: Sequence[float] = (0.68, 0.95),
        axes: Any = None,
        **kwargs: Any,
    ) -> PosteriorDisplay:
        """Draw samples of one light cone's posterior, and return the display.

        Parameters
        ----------
        samples, y_true, parameter_names, parameter_units, bounds, levels
            As for the class.
        axes, **kwargs
            As for :meth:`plot`.
        """
        display = cls(
            samples=samples,
            y_true=y_true,
            parameter_names=parameter_names,
            parameter_units=parameter_units,
            bounds=bounds,
            levels=levels,
        )
        return display.plot(axes, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        n_samples: int = 20_000,
        random_state: Any = 0,
        **kwargs: Any,
    ) -> PosteriorDisplay:
        """Sample the posterior of one light cone, draw, and return the display.

        Parameters
        ----------
        estimator : fitted PosteriorEstimator or Pipeline, or a dict of names to such
        X : array-like of shape (1, ...)
            One light cone, or its summary.
        y : array-like of shape (n_parameters,) or (1, n_parameters), default=None
            Its true parameters.
        n_samples : int, default=20000
        random_state : int, Generator or None, default=0
        **kwargs
            As for :meth:`from_samples`. Names and bounds are those of the estimator by default.
        """
        import_pyplot(f"{cls.__name__}.from_estimator")  # before the long wait
        if len(X) != 1:  # type: ignore[arg-type]
            raise ValueError(f"X has {len(X)} rows, expected one light cone: X[:1].")  # type: ignore[arg-type]
        named = estimator if isinstance(estimator, Mapping) else {"posterior": estimator}
        samples = {}
        for name, each in named.items():
            drawn, _ = posterior_draws(each, X, n_samples=n_samples, random_state=random_state)
            samples[name] = drawn[0]
            kwargs = prior_of(each) | kwargs
        truth = None if y is None else np.ravel(np.asarray(y, dtype=np.float64))
        return cls.from_samples(samples, y_true=truth, **kwargs)


def _scott(points: NDArray[np.float64], spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """Widths in bins by Scott's rule for points of shape (n, n_axes)."""
    n, n_axes = points.shape
    return _BINS * points.std(axis=0) / np.ptp(spans, axis=1) * n ** (-1 / (n_axes + 4))


def _heights(density: NDArray[np.float64], levels: Sequence[float]) -> NDArray[np.float64]:
    """Heights, rising, above which lie these shares of the mass."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    places = [min(int(np.searchsorted(mass, level)), len(ordered) - 1) for level in levels]
    heights = np.unique(ordered[places])
    return heights[(heights > 0) & (heights < ordered[0])]


def _spans(
    posteriors: Mapping[str, NDArray[np.float64]],
    truth: NDArray[np.float64] | None,
    bounds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Range of each axis: the prior's box, or what holds nearly all samples and the truth."""
    every = np.concatenate(list(posteriors.values()))
    low, high = np.quantile(every, [0.0005, 0.9995], axis=0)
    if truth is not None:
        low, high = np.minimum(low, truth), np.maximum(high, truth)
    margin = np.where(high > low, 0.08 * (high - low), 0.5)
    low, high = low - margin, high + margin
    finite = np.isfinite(bounds)
    return np.where(finite, bounds, np.stack([low, high], axis=1))
