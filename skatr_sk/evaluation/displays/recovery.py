"""RecoveryDisplay: true against predicted parameters."""

from __future__ import annotations

__all__ = ["RecoveryDisplay"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk._checks import Choice, check_options, listed, shared_docs
from skatr_sk.evaluation.arrays import check_targets
from skatr_sk.evaluation.displays import base
from skatr_sk.evaluation.displays.base import merged
from skatr_sk.evaluation.fitted import check_truths
from skatr_sk.evaluation.metrics import scores_where_defined

_MANY_POINTS = 2000
_SCATTER = {"color": base.COLORS[0], "s": 14, "alpha": 0.6, "linewidth": 0}
_DENSITY = {"cmap": "Blues", "mincnt": 1, "bins": "log"}
_ERRORBAR = {"ecolor": base.COLORS[0], "elinewidth": 0.8, "alpha": 0.35, "zorder": 1}
_LINE = {"color": "black", "linestyle": "--", "linewidth": 1, "alpha": 0.8}


@shared_docs(**base.SHARED_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class RecoveryDisplay(base.ParameterDisplay):
    """Truth against prediction, one pair of panels per parameter.

    The upper panel shows the prediction over the truth, the lower one the residual, prediction
    minus truth, as in SKATR's paper (Ore, Heneka & Plehn, arXiv:2410.18899). Make it with
    :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True and predicted parameters, in the same units.
    y_std : array-like of the same shape, default=None
        Predicted standard deviations, not negative, drawn as error bars beside points.
    {names_and_units}
    {bounds}

    Attributes
    ----------
    r2_, mean_absolute_relative_error_ : ndarray of shape (n_parameters,)
        The scores, NaN where not defined (R2 of a single light cone; MARE with a truth of zero).
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (2, n_parameters)
        The recovery panels, then the residual panels.
    points_, lines_, errorbars_ : ndarray of artists of shape (2, n_parameters)
        Points or hexagons, lines of agreement, and error bars (None where none are drawn).
    texts_ : list of Text
        The scores above the recovery panels; MARE is the mean absolute relative error.
    legend_ : Legend, or None where Axes were given

    Examples
    --------
    >>> from skatr_sk.evaluation import RecoveryDisplay
    >>> y_true, y_pred = [[0.2, 10], [0.3, 80], [0.4, 90]], [[0.2, 12], [0.3, 70], [0.3, 99]]
    >>> display = RecoveryDisplay.from_predictions(y_true, y_pred, bounds=[[0.1, 0.5], [5, 250]])
    >>> display.axes_.shape
    (2, 2)
    """

    y_true: ArrayLike
    y_pred: ArrayLike
    y_std: ArrayLike | None = None

    def __post_init__(self) -> None:
        self._true, self._pred = true, pred = check_targets(self.y_true, self.y_pred)
        self._std = None if self.y_std is None else check_targets(true, self.y_std, "y_std")[1]
        if self._std is not None and (self._std < 0).any():
            rows = listed(np.flatnonzero((self._std < 0).any(axis=1)))
            raise ValueError(
                f"y_std: expected standard deviations >= 0, found negative ones in rows {rows}."
            )
        self._check_parameters(true.shape[1])
        scores = scores_where_defined(true, pred)
        self.r2_ = scores["r2"]
        self.mean_absolute_relative_error_ = scores["mean_absolute_relative_error"]

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "auto",
        scatter_kwargs: Mapping[str, Any] | None = None,
        density_kwargs: Mapping[str, Any] | None = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the panels, and return the display.

        Parameters
        ----------
        ax : array-like of Axes of shape (2, n_parameters), default=None
            Recovery panels, then residual panels; shape (2,) will do for one parameter. By default
            a new figure: up to three parameters in one row, six as two rows of three.
        kind : {"auto", "scatter", "density"}, default="auto"
            Points, or hexagons coloured by the logarithm of the count, which ``"auto"`` takes for
            more than 2000 light cones.
        scatter_kwargs, density_kwargs, errorbar_kwargs, line_kwargs : dict, default=None
            Passed on to ``Axes.scatter``, ``Axes.hexbin``, ``Axes.errorbar`` and ``Axes.plot``.
        """
        plt = self._pyplot("plot")
        kinds = {"kind": Choice("auto", "scatter", "density")}
        check_options("RecoveryDisplay.plot", kinds, {"kind": kind})
        scatter, density = merged(_SCATTER, scatter_kwargs), merged(_DENSITY, density_kwargs)
        bars, line = merged(_ERRORBAR, errorbar_kwargs), merged(_LINE, line_kwargs)
        n = len(self._labels)
        wanted = f"Axes of shape (2, {n}), recovery above residual"
        given = ax is not None
        self.axes_ = base.check_axes(ax, (2, n), wanted) if given else _pairs_of_panels(plt, n)
        self.figure_ = self.axes_[0, 0].figure
        self.points_, self.lines_, self.errorbars_ = np.full((3, 2, n), None)
        self.texts_: list[Any] = []
        dense = kind == "density" or (kind == "auto" and len(self._true) > _MANY_POINTS)
        bars_drawn = self._std is not None and not dense
        for i in range(n):
            true, pred, edges = self._true[:, i], self._pred[:, i], self._edges[i]
            error = self._std[:, i] if self._std is not None and bars_drawn else None
            span = base.axis_span(true, pred, edges)
            residual = pred - true
            reach = float(np.max(np.abs(residual) + (0.0 if error is None else error)))
            reach = 1.1 * reach or 0.04 * (span[1] - span[0])
            for row, (y, limits) in enumerate([(pred, span), (residual, (-reach, reach))]):
                axes, at = self.axes_[row, i], (row, i)
                if dense:
                    cells = {"gridsize": (40, 8 if row else 20), "extent": (*span, *limits)}
                    self.points_[at] = axes.hexbin(true, y, **{**cells, **density})
                else:
                    self.points_[at] = axes.scatter(true, y, **scatter)
                if error is not None:
                    self.errorbars_[at] = axes.errorbar(true, y, error, fmt="none", **bars)
                self.lines_[at] = axes.plot(span, (0.0, 0.0) if row else span, **line)[0]
                base.draw_edges(axes, edges, horizontal=row == 0)
                axes.set(xlim=span, ylim=limits)
                axes.locator_params(axis="x", nbins=5)
                axes.locator_params(axis="y", nbins=3 if row else 5)
            self._annotate(i)
        points = {"marker": "o", "linestyle": "none", **_legend_style(scatter)}
        handles = [base.mark("light cone", **points)] if not dense else []
        if bars_drawn:
            handles.append(
                base.mark(
                    "predicted standard deviation",
                    color=bars.get("ecolor", base.COLORS[0]),
                    linewidth=bars.get("elinewidth", 0.8),
                    alpha=bars.get("alpha"),
                )
            )
        handles.append(base.mark("prediction = truth", **line))
        handles.append(base.mark("MARE: mean absolute relative error", linestyle="none"))
        self.legend_ = None if given else base.explain(self.figure_, self._edges, handles)
        return self

    def _annotate(self, i: int) -> None:
        """Labels and scores of one parameter."""
        (main, below), (symbol, unit) = self.axes_[:, i], self._labels[i]
        main.set_ylabel(base.with_unit(f"predicted {symbol}", unit, wrap=True))
        main.tick_params(labelbottom=False)
        below.set_xlabel(base.with_unit(f"true {symbol}", unit))
        unit = base.unit_of_difference(symbol, unit)
        below.set_ylabel(f"residual\n[{unit}]" if unit else "residual")
        r2, mare = self.r2_[i], self.mean_absolute_relative_error_[i]
        scores = {f"$R^2$ = {r2:.3f}": r2, f"MARE = {mare:.3g}": mare}
        defined = [text for text, score in scores.items() if np.isfinite(score)]
        self.texts_.append(base.write_scores(main, [", ".join(defined)]))

    @classmethod
    def from_predictions(
        cls, y_true: ArrayLike, y_pred: ArrayLike, *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw predictions, return the display; takes the parameters of the class and :meth:`plot`.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        TypeError, ValueError
            When data, names, units, bounds, axes or options do not fit each other.
        """
        return cls._drawn(ax, {"y_true": y_true, "y_pred": y_pred, **kwargs})

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, return_std: bool = False, **kwargs: Any
    ) -> Self:
        """Predict with a fitted regressor or pipeline, draw, and return the display.

        Parameters
        ----------
        estimator : fitted estimator with ``predict``
        X : array-like of shape (n_lightcones, ...)
            Whatever the estimator takes, preferably light cones that it was not fitted on.
        y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
            True parameters.
        return_std : bool, default=False
            Ask ``predict(X, return_std=True)`` for error bars; a ``TypeError`` where it has none.
        **kwargs
            As for :meth:`from_predictions`: ``parameter_names``, ``bounds``, ``ax``, ``kind``, ...
            Names and bounds are those of the estimator by default.
        """
        cls._pyplot("from_estimator")
        check_truths(estimator, y)
        kwargs = base.prior_of(estimator) | kwargs
        if not return_std:
            return cls.from_predictions(y, estimator.predict(X), **kwargs)
        try:
            mean, std = estimator.predict(X, return_std=True)
        except TypeError as error:
            # Any other TypeError comes from the data, and says so itself.
            if "return_std" not in str(error):
                raise
            raise TypeError(
                f"return_std: expected False, found True, but {type(estimator).__name__} predicts "
                "no standard deviations; leave it out, or use an estimator whose predict takes "
                "return_std."
            ) from error
        return cls.from_predictions(y, mean, y_std=std, **kwargs)


def _legend_style(scatter: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of ``Axes.scatter`` that a marker of a legend has too."""
    color = scatter.get("color", scatter.get("c", base.COLORS[0]))
    return {"color": color, "alpha": scatter.get("alpha")} if isinstance(color, str) else {}


def _pairs_of_panels(plt: Any, n_parameters: int) -> NDArray[np.object_]:
    columns = base.n_columns(n_parameters)
    n_rows = math.ceil(n_parameters / columns)
    heights = ([3, 1, 0.15] * n_rows)[:-1]  # the third is room between the pairs
    figure = plt.figure(figsize=(3.3 * columns, 3.9 * n_rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.025, hspace=0.0)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    axes = np.empty((2, n_parameters), dtype=object)
    for i in range(n_parameters):
        row, column = divmod(i, columns)
        axes[0, i] = figure.add_subplot(grid[3 * row, column])
        axes[1, i] = figure.add_subplot(grid[3 * row + 1, column], sharex=axes[0, i])
    figure.align_ylabels(axes.ravel().tolist())
    return axes
