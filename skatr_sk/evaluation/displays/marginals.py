"""MarginalsDisplay: the one-dimensional posteriors of many light cones, beside their truths."""

from __future__ import annotations

__all__ = ["MarginalsDisplay"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import shared_docs
from skatr_sk.evaluation.arrays import check_samples, in_batches
from skatr_sk.evaluation.calibration import posterior_draws
from skatr_sk.evaluation.displays import base
from skatr_sk.evaluation.fitted import check_truths

_TAIL, _INNER_TAIL = (1 - 0.95) / 2, (1 - 0.68) / 2
_SHARES = (_TAIL, _INNER_TAIL, 0.5, 1 - _INNER_TAIL, 1 - _TAIL)


@shared_docs(**base.SHARED_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class MarginalsDisplay(base.ParameterDisplay):
    """Marginal posteriors of many light cones: intervals over the truth, a panel per parameter.

    Each light cone is a vertical line at its true value: thick over the central 68 % of its
    posterior, thin over 95 %, with a dot at the median. Where posteriors are calibrated, 68 % of
    the thick lines cross the diagonal; the share that does is written above the panel, as in
    SKATR's paper (arXiv:2410.18899). Make it with :meth:`from_samples` or :meth:`from_estimator`.

    Parameters
    ----------
    samples : array-like of shape (n_lightcones, n_samples, n_parameters)
    y_true : array-like of shape (n_lightcones, n_parameters) or (n_lightcones,)
    {names_and_units}
    {bounds}
    verbose : int, default=0
        Whether to show a progress bar of the quantiles.

    Attributes
    ----------
    quantiles_ : ndarray of shape (5, n_lightcones, n_parameters)
        2.5, 16, 50, 84 and 97.5 % of each marginal.
    coverage_ : ndarray of shape (2, n_parameters)
        Share of the truths inside the central 68 and 95 %.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters,)
    legend_ : Legend, or None where Axes were given

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

    samples: ArrayLike
    y_true: ArrayLike
    verbose: int = 0

    def __post_init__(self) -> None:
        samples, self._true = check_samples(self.samples, self.y_true)
        self._check_parameters(self._true.shape[1])
        self.quantiles_ = q = np.empty((len(_SHARES), *self._true.shape))
        for rows in in_batches(samples.shape, "quantiles", self.verbose):
            part = np.asarray(samples[rows], dtype=np.float64)
            # Between n samples of a posterior and at its ends a truth lies n + 1 times alike.
            q[:, rows] = np.quantile(part, _SHARES, axis=1, method="weibull")
        inside = [(q[k] <= self._true) & (self._true <= q[-1 - k]) for k in (1, 0)]
        self.coverage_ = np.mean(inside, axis=1)

    def plot(self, ax: Any = None, *, style_kwargs: Mapping[str, Any] | None = None) -> Self:
        """Draw the panels, and return the display.

        Parameters
        ----------
        ax : array-like of Axes of shape (n_parameters,), default=None
            By default those of a new figure.
        style_kwargs : dict, default=None
            Colour and the like of the intervals, passed on to ``Axes.vlines`` and ``Axes.plot``.
        """
        self.axes_ = base.panel_axes(self._pyplot("plot"), ax, len(self._labels))
        self.figure_ = self.axes_[0].figure
        style = base.merged({"color": base.COLORS[0]}, style_kwargs)
        # Many cones lie over each other: fainter and thinner lines keep the crowd legible.
        crowd = min(1.0, (60 / len(self._true)) ** 0.5)
        outer = {"linewidth": 0.8, "alpha": 0.5 * crowd, **style}
        inner = {"linewidth": 1 + 1.5 * crowd, "alpha": 0.6 * crowd, **style}
        for i, (symbol, unit) in enumerate(self._labels):
            axes, true, q = self.axes_[i], self._true[:, i], self.quantiles_[:, :, i]
            axes.vlines(true, q[0], q[4], **outer)
            axes.vlines(true, q[1], q[3], **inner)
            axes.plot(true, q[2], ".", **{"markersize": 2 + 3 * crowd, **style})
            span = base.axis_span(true, q[0], q[4], self._edges[i])
            axes.plot(span, span, **base.TRUTH)
            base.draw_edges(axes, self._edges[i])
            axes.set(xlim=span, ylim=span, aspect="equal")
            axes.set_xlabel(base.with_unit(f"true {symbol}", unit))
            axes.set_ylabel(base.with_unit(f"posterior of {symbol}", unit, wrap=True))
            axes.locator_params(nbins=5)
            held = zip((68, 95), self.coverage_[:, i], strict=True)
            lines = (
                f"{nominal} % intervals hold {100 * share:.0f} % of truths"
                for nominal, share in held
            )
            base.write_scores(axes, lines)
        handles = [
            base.mark("central 68 % of a posterior", **{**style, "linewidth": 2.5}),
            base.mark("central 95 %", **{**style, "linewidth": 0.8}),
            base.mark("median", **{**style, "marker": ".", "linestyle": "none"}),
            base.mark("posterior = truth", **base.TRUTH),
        ]
        self.legend_ = None if ax is not None else base.explain(self.figure_, self._edges, handles)
        return self

    @classmethod
    def from_samples(
        cls, samples: ArrayLike, y_true: ArrayLike, *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw samples, return the display; takes the parameters of the class and :meth:`plot`."""
        return cls._drawn(ax, {"samples": samples, "y_true": y_true, **kwargs})

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
    ) -> Self:
        """Sample a fitted posterior, draw, and return the display.

        Parameters
        ----------
        estimator, X, y, n_samples, random_state, verbose
            As for :func:`~skatr_sk.evaluation.posterior_draws`; `X` are light cones, or their
            summaries, that it was not fitted on, and `y` their true parameters.
        **kwargs
            As for :meth:`from_samples`. Names and bounds are those of the estimator by default.
        """
        cls._pyplot("from_estimator")
        check_truths(estimator, y, in_prior=True)
        options: dict[str, Any] = {"random_state": random_state, "verbose": verbose}
        samples, _ = posterior_draws(estimator, X, n_samples=n_samples, **options)
        return cls.from_samples(samples, y, verbose=verbose, **(base.prior_of(estimator) | kwargs))
