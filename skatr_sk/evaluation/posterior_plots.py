"""PosteriorDisplay: the corner plot of one light cone's posterior, or of several posteriors."""

from __future__ import annotations

__all__ = ["PosteriorDisplay"]

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk.evaluation._density import axis_limits, bin_edges, contour_heights, smoothed
from skatr_sk.evaluation._panels import (
    TRUTH,
    check_bounds,
    check_colors,
    check_corner,
    check_inside,
    common_prior,
    corner_grid,
    import_pyplot,
    parameter_labels,
)
from skatr_sk.evaluation.calibration import posterior_draws


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
        Edges of the prior, which hold all samples: the axes span them, and densities are not
        smoothed across. Infinite or NaN where there are none.
    levels : sequence of float, default=(0.68, 0.95)
        Shares of the samples inside the contours.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters, n_parameters)
        None above the diagonal.
    densities_ : dict of str to ndarray of shape (n_parameters, n_bins)
        The marginals drawn, which integrate to one over their bins.
    bin_edges_ : dict of str to ndarray of shape (n_parameters, n_bins + 1)
        Edges of those bins, over each posterior's own range.

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
            Width of the Gaussian that smooths the histograms, in their bins; by default that of
            Scott's rule for the number of the samples and the spread of their densest part.

        Returns
        -------
        display : PosteriorDisplay
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        posteriors, truth, bounds, labels = self._check()
        n = len(labels)
        _check_smoothing(smoothing)
        shades = check_colors(colors)
        self.axes_ = corner_grid(plt, n) if axes is None else check_corner(axes, n)
        self.figure_ = self.axes_[0, 0].figure
        spans = axis_limits(posteriors, truth, bounds)
        self.densities_: dict[str, NDArray[np.float64]] = {}
        self.bin_edges_: dict[str, NDArray[np.float64]] = {}
        for k, (name, points) in enumerate(posteriors.items()):
            color = shades[k % len(shades)]
            edges = self.bin_edges_[name] = bin_edges(points, bounds, spans, smoothing)
            self.densities_[name] = np.empty((n, edges.shape[1] - 1))
            for row in range(n):
                self._marginal(row, points, name, color, smoothing)
                for column in range(row):
                    self._contours(row, column, points, name, color, smoothing)
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
        name: str,
        color: Any,
        smoothing: float | None,
    ) -> None:
        edges = self.bin_edges_[name][row]
        _, density = smoothed(points[:, [row]], edges[np.newaxis], smoothing)
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
        points: NDArray[np.float64],
        name: str,
        color: Any,
        smoothing: float | None,
    ) -> None:
        edges = self.bin_edges_[name][[column, row]]
        counts, density = smoothed(points[:, [column, row]], edges, smoothing)
        heights = contour_heights(density, counts, self.levels)
        if not len(heights):
            return
        # Out to the edges of the box: bins end half a cell before them.
        density = np.pad(density, 1, mode="edge")
        middles = [np.r_[e[0], (e[1:] + e[:-1]) / 2, e[-1]] for e in edges]
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
        levels = np.asarray(self.levels)
        if levels.ndim != 1 or levels.dtype.kind not in "iuf" or not levels.size:
            raise ValueError(f"levels is {self.levels!r}, expected a list of numbers in (0, 1).")
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"levels is {self.levels!r}, expected numbers in (0, 1).")
        labels = parameter_labels(self.parameter_names, self.parameter_units, n)
        bounds = check_bounds(self.bounds, n)
        names = [symbol for symbol, _ in labels]
        names = names if self.parameter_names is None else list(self.parameter_names)
        for name, points in posteriors.items():
            posteriors[name] = check_inside(points, bounds, name, names)
        return posteriors, truth, bounds, labels

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
        verbose: int = 0,
        **kwargs: Any,
    ) -> PosteriorDisplay:
        """Sample the posterior of one light cone, draw, and return the display.

        Parameters
        ----------
        estimator : fitted PosteriorEstimator, Pipeline or search, or a dict of names to such
        X : array-like of shape (1, ...)
            One light cone, or its summary.
        y : array-like of shape (n_parameters,) or (1, n_parameters), default=None
            Its true parameters.
        n_samples : int, default=20000
        random_state : int, Generator or None, default=0
        verbose : int, default=0
            Whether to show a progress bar of the sampling.
        **kwargs
            As for :meth:`from_samples`. Names and bounds are those of the estimator by default;
            of several, the names of the first and bounds that hold the prior of each.
        """
        import_pyplot(f"{cls.__name__}.from_estimator")  # before the long wait
        if len(X) != 1:  # type: ignore[arg-type]
            raise ValueError(f"X has {len(X)} rows, expected one light cone: X[:1].")  # type: ignore[arg-type]
        named = estimator if isinstance(estimator, Mapping) else {"posterior": estimator}
        samples = {}
        for name, each in named.items():
            drawn, _ = posterior_draws(
                each, X, n_samples=n_samples, random_state=random_state, verbose=verbose
            )
            samples[name] = drawn[0]
        kwargs = common_prior(named.values()) | kwargs
        truth = None if y is None else np.ravel(np.asarray(y, dtype=np.float64))
        return cls.from_samples(samples, y_true=truth, **kwargs)


def _check_smoothing(smoothing: Any) -> None:
    number = isinstance(smoothing, numbers.Real) and not isinstance(smoothing, bool)
    if smoothing is not None and not (number and 0 <= smoothing < np.inf):
        raise ValueError(f"smoothing is {smoothing!r}, expected a finite number >= 0, or None.")
