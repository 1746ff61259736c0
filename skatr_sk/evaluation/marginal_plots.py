"""MarginalsDisplay: the one-dimensional posteriors of many light cones, beside their truths."""

from __future__ import annotations

__all__ = ["MarginalsDisplay"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk.evaluation._panels import (
    EDGE,
    SCORE_BOX,
    TRUTH,
    check_bounds,
    check_panels,
    import_pyplot,
    panel_grid,
    parameter_labels,
    prior_of,
)
from skatr_sk.evaluation._samples import check_samples, in_batches
from skatr_sk.evaluation.calibration import posterior_draws

_STYLE = {"color": "tab:blue"}
_INTERVALS = (0.68, 0.95)


class MarginalsDisplay:
    """Marginal posteriors over many light cones: intervals over the truth, a panel a parameter.

    Each light cone is a vertical line at its true value: thick over the central 68 % of its
    posterior, thin over 95 %, with a dot at the median. Where posteriors are calibrated, 68 % of
    the thick lines cross the diagonal; the share that does is written in the panel. Make it with
    :meth:`from_samples` or :meth:`from_estimator`.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)
    parameter_names, parameter_units : sequence of str, default=None
        As for :class:`~skatr_sk.evaluation.RecoveryDisplay`.
    bounds : array-like of shape (n_parameters, 2), default=None
        Edges of the prior, drawn as dotted lines.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters,)
    quantiles_ : ndarray of shape (5, n_lightcones, n_parameters)
        2.5, 16, 50, 84 and 97.5 % of each marginal.
    coverage_ : ndarray of shape (2, n_parameters)
        Share of the truths inside the central 68 and 95 %.

    References
    ----------
    Ore, Heneka & Plehn, arXiv:2410.18899.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import MarginalsDisplay
    >>> rng = np.random.default_rng(0)
    >>> centres = rng.normal(size=(50, 1, 2))
    >>> samples = centres + 0.1 * rng.normal(size=(50, 200, 2))
    >>> y_true = (centres + 0.1 * rng.normal(size=(50, 1, 2)))[:, 0]
    >>> MarginalsDisplay.from_samples(samples, y_true).coverage_.shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        samples: ArrayLike,
        y_true: ArrayLike,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
    ) -> None:
        self.samples = samples
        self.y_true = y_true
        self.parameter_names = parameter_names
        self.parameter_units = parameter_units
        self.bounds = bounds

    def plot(
        self,
        axes: Any = None,
        *,
        style_kwargs: Mapping[str, Any] | None = None,
        verbose: int = 0,
    ) -> MarginalsDisplay:
        """Draw the panels.

        Parameters
        ----------
        axes : array-like of Axes of shape (n_parameters,), default=None
            By default those of a new figure.
        style_kwargs : dict, default=None
            Colour and the like of the intervals, passed on to ``Axes.vlines`` and ``Axes.plot``.
        verbose : int, default=0
            Whether to show a progress bar of the quantiles.

        Returns
        -------
        display : MarginalsDisplay
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        samples, true = check_samples(self.samples, self.y_true)
        n = true.shape[1]
        labels = parameter_labels(self.parameter_names, self.parameter_units, n)
        bounds = check_bounds(self.bounds, n)
        tails = [(1 - share) / 2 for share in _INTERVALS]
        shares = [tails[1], tails[0], 0.5, 1 - tails[0], 1 - tails[1]]
        self.quantiles_ = np.empty((len(shares), *true.shape))
        for rows in in_batches(samples.shape, "quantiles", verbose):
            part = np.asarray(samples[rows], dtype=np.float64)
            self.quantiles_[:, rows] = np.quantile(part, shares, axis=1)
        q = self.quantiles_
        inner = (q[1] <= true) & (true <= q[3])
        outer = (q[0] <= true) & (true <= q[4])
        self.coverage_ = np.stack([inner.mean(axis=0), outer.mean(axis=0)])
        self.axes_ = panel_grid(plt, n) if axes is None else check_panels(axes, n)
        self.figure_ = self.axes_[0].figure
        style = {**_STYLE, **dict(style_kwargs or {})}
        # Many cones lie over each other: fainter and thinner lines keep the crowd legible.
        crowd = min(1.0, (60 / len(true)) ** 0.5)
        for i, (symbol, unit) in enumerate(labels):
            self._panel(i, true[:, i], bounds[i], style, crowd)
            tail = f" [{unit}]" if unit else ""
            self.axes_[i].set(xlabel=f"true {symbol}{tail}", ylabel=f"posterior of {symbol}")
        return self

    def _panel(
        self,
        i: int,
        true: NDArray[np.float64],
        edges: NDArray[np.float64],
        style: Mapping[str, Any],
        crowd: float,
    ) -> None:
        axes, q = self.axes_[i], self.quantiles_[:, :, i]
        lines = dict(style)
        axes.vlines(true, q[0], q[4], **{"linewidth": 0.8, "alpha": 0.5 * crowd, **lines})
        thick = {"linewidth": 1 + 1.5 * crowd, "alpha": 0.6 * crowd, **lines}
        axes.vlines(true, q[1], q[3], **thick)
        axes.plot(true, q[2], ".", **{"markersize": 2 + 3 * crowd, **lines})
        values = np.concatenate([true, q[0], q[4], edges[np.isfinite(edges)]])
        low, high = values.min(), values.max()
        margin = 0.04 * (high - low) or 1.0
        span = (low - margin, high + margin)
        axes.plot(span, span, **TRUTH)
        for edge in edges[np.isfinite(edges)]:
            axes.axhline(edge, **EDGE)
            axes.axvline(edge, **EDGE)
        axes.set(xlim=span, ylim=span)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        inner, outer = self.coverage_[:, i]
        axes.text(
            0.04,
            0.96,
            f"68 %: {inner:.0%}\n95 %: {outer:.0%}",
            transform=axes.transAxes,
            va="top",
            fontsize="small",
            bbox=SCORE_BOX,
        )

    @classmethod
    def from_samples(
        cls,
        samples: ArrayLike,
        y_true: ArrayLike,
        *,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
        axes: Any = None,
        **kwargs: Any,
    ) -> MarginalsDisplay:
        """Draw samples of many light cones' posteriors, and return the display.

        Parameters
        ----------
        samples, y_true, parameter_names, parameter_units, bounds
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
        )
        return display.plot(axes, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        n_samples: int = 500,
        random_state: Any = 0,
        verbose: int = 0,
        **kwargs: Any,
    ) -> MarginalsDisplay:
        """Sample a fitted posterior, draw, and return the display.

        Parameters
        ----------
        estimator : fitted PosteriorEstimator, a Pipeline that ends in one, or a search over such
        X : array-like of shape (n_lightcones, ...)
            Light cones, or their summaries, that it was not fitted on.
        y : array-like of shape (n_lightcones, n_parameters)
            True parameters.
        n_samples : int, default=500
            For each light cone.
        random_state : int, Generator or None, default=0
        verbose : int, default=0
            Whether to show progress bars.
        **kwargs
            As for :meth:`from_samples`. Names and bounds are those of the estimator by default.
        """
        import_pyplot(f"{cls.__name__}.from_estimator")  # before the long wait
        samples, _ = posterior_draws(
            estimator, X, n_samples=n_samples, random_state=random_state, verbose=verbose
        )
        return cls.from_samples(samples, y, verbose=verbose, **(prior_of(estimator) | kwargs))
