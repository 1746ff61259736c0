"""Displays in scikit-learn's manner: made from predictions or an estimator, drawn by ``plot``."""

from __future__ import annotations

__all__ = ["RecoveryDisplay"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk.evaluation import metrics
from skatr_sk.evaluation._panels import (
    EDGE,
    SCORE_BOX,
    check_bounds,
    import_pyplot,
    merged,
    n_columns,
    parameter_labels,
)

_MANY_POINTS = 2000
_STYLES: dict[str, dict[str, Any]] = {
    "scatter": {"color": "tab:blue", "s": 14, "alpha": 0.6, "linewidth": 0},
    "density": {"cmap": "Blues", "mincnt": 1, "bins": "log"},
    "errorbar": {"ecolor": "tab:blue", "elinewidth": 0.8, "alpha": 0.35, "zorder": 1},
    "line": {"color": "black", "linestyle": "--", "linewidth": 1, "alpha": 0.8},
}


class RecoveryDisplay:
    """Truth against prediction, one pair of panels per parameter.

    The upper panel shows the prediction over the truth, the lower one the residual, prediction
    minus truth. Make it with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True and predicted parameters, in the same units.
    y_std : array-like of the same shape, default=None
        Predicted standard deviations, not negative, drawn as error bars beside points.
    parameter_names : sequence of str, default=None
        Names in the order of the columns. The six standard ones (``m_WDM``, ``Omega_m``, ``E_0``,
        ``log10_L_X``, ``log10_T_vir``, ``zeta``) are set in mathematics, others drawn as given.
    parameter_units : sequence of str, default=None
        Units in the same order, ``""`` for none. By default those of the standard names.
    bounds : array-like of shape (n_parameters, 2), default=None
        Lower and upper edge of the prior of each parameter, drawn as dotted lines.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (2, n_parameters)
        The recovery panels, then the residual panels.
    points_, lines_, errorbars_ : ndarray of artists of shape (2, n_parameters)
        Points or hexagons, lines of agreement, and error bars (None where none are drawn).
    texts_ : list of the annotated Text
    r2_, mean_absolute_relative_error_ : ndarray of shape (n_parameters,)
        The scores, NaN where not defined (R2 of a single light cone; MARE with a truth of zero).

    References
    ----------
    Ore, Heneka & Plehn, "SKATR: A self-supervised summary transformer for SKA", arXiv:2410.18899.

    Examples
    --------
    >>> from skatr_sk.evaluation import RecoveryDisplay
    >>> y_true, y_pred = [[0.2, 10], [0.3, 80], [0.4, 90]], [[0.2, 12], [0.3, 70], [0.3, 99]]
    >>> display = RecoveryDisplay.from_predictions(y_true, y_pred, bounds=[[0.1, 0.5], [5, 250]])
    >>> display.axes_.shape
    (2, 2)
    """

    def __init__(
        self,
        *,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        y_std: ArrayLike | None = None,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
    ) -> None:
        self.y_true = y_true
        self.y_pred = y_pred
        self.y_std = y_std
        self.parameter_names = parameter_names
        self.parameter_units = parameter_units
        self.bounds = bounds

    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "auto",
        scatter_kwargs: Mapping[str, Any] | None = None,
        density_kwargs: Mapping[str, Any] | None = None,
        errorbar_kwargs: Mapping[str, Any] | None = None,
        line_kwargs: Mapping[str, Any] | None = None,
    ) -> RecoveryDisplay:
        """Draw the panels.

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

        Returns
        -------
        display : RecoveryDisplay
            Itself, with the attributes that end in an underscore.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        TypeError, ValueError
            When data, names, units, bounds, axes or options do not fit each other.
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        metrics._check_choice("kind", kind, ("auto", "scatter", "density"))
        styles = _styles(scatter_kwargs, density_kwargs, errorbar_kwargs, line_kwargs)
        true, pred = metrics._check_targets(self.y_true, self.y_pred)
        std = None if self.y_std is None else metrics._check_targets(true, self.y_std, "y_std")[1]
        if std is not None and (std < 0).any():
            rows = metrics._first(np.nonzero(std < 0)[0])
            raise ValueError(f"y_std is negative in rows {rows}, expected deviations >= 0.")
        n_parameters = true.shape[1]
        labels = parameter_labels(self.parameter_names, self.parameter_units, n_parameters)
        bounds = check_bounds(self.bounds, n_parameters)
        dense = kind == "density" or (kind == "auto" and len(true) > _MANY_POINTS)
        self.axes_ = _make_axes(plt, n_parameters) if ax is None else _check_axes(ax, n_parameters)
        self.figure_ = self.axes_[0, 0].figure
        self.points_, self.lines_, self.errorbars_ = np.full((3, 2, n_parameters), None)
        self.r2_, self.mean_absolute_relative_error_ = _scores(true, pred)
        self.texts_: list[Any] = []

        for i in range(n_parameters):
            values = np.concatenate([true[:, i], pred[:, i], bounds[i]])
            low, high = np.nanmin(values), np.nanmax(values)
            margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
            span = (low - margin, high + margin)
            error = None if std is None or dense else std[:, i]
            residual = pred[:, i] - true[:, i]
            reach = float(np.max(np.abs(residual) + (0.0 if error is None else error)))
            reach = 1.1 * reach or margin
            for row, (y, limits) in enumerate([(pred[:, i], span), (residual, (-reach, reach))]):
                axes, at = self.axes_[row, i], (row, i)
                if dense:
                    cells = {"gridsize": (40, 8 if row else 20), "extent": (*span, *limits)}
                    self.points_[at] = axes.hexbin(true[:, i], y, **{**cells, **styles["density"]})
                else:
                    self.points_[at] = axes.scatter(true[:, i], y, **styles["scatter"])
                if error is not None:
                    self.errorbars_[at] = axes.errorbar(
                        true[:, i], y, error, fmt="none", **styles["errorbar"]
                    )
                ideal = (0.0, 0.0) if row else span
                self.lines_[at] = axes.plot(span, ideal, **styles["line"])[0]
                for edge in bounds[i][np.isfinite(bounds[i])]:
                    axes.axvline(edge, **EDGE)
                    if row == 0:
                        axes.axhline(edge, **EDGE)
                axes.set(xlim=span, ylim=limits)
                axes.locator_params(axis="x", nbins=5)
                axes.locator_params(axis="y", nbins=3 if row else 5)
            self._annotate(i, *labels[i])
        return self

    def _annotate(self, i: int, symbol: str, unit: str) -> None:
        """Labels and scores of one parameter."""
        main, below = self.axes_[:, i]
        main.set_ylabel(f"predicted {symbol}")
        main.tick_params(labelbottom=False)
        below.set(xlabel=f"true {symbol}" + (f" [{unit}]" if unit else ""), ylabel="residual")
        r2, mare = self.r2_[i], self.mean_absolute_relative_error_[i]
        scores = [f"$R^2$ = {r2:.3f}"] if np.isfinite(r2) else []
        scores += [f"MARE = {mare:.3g}"] if np.isfinite(mare) else []
        # The upper left corner is the farthest from the diagonal.
        place = {"x": 0.04, "y": 0.96, "ha": "left", "va": "top", "transform": main.transAxes}
        self.texts_.append(
            main.text(s="\n".join(scores), fontsize="small", bbox=SCORE_BOX, **place)
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        y_std: ArrayLike | None = None,
        parameter_names: Sequence[str] | None = None,
        parameter_units: Sequence[str] | None = None,
        bounds: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> RecoveryDisplay:
        """Draw true against predicted parameters, and return the display.

        Parameters
        ----------
        y_true, y_pred, y_std, parameter_names, parameter_units, bounds
            As for the class.
        ax, **kwargs
            As for :meth:`plot`, which also says what is raised.
        """
        display = cls(
            y_true=y_true,
            y_pred=y_pred,
            y_std=y_std,
            parameter_names=parameter_names,
            parameter_units=parameter_units,
            bounds=bounds,
        )
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike, *, return_std: bool = False, **kwargs: Any
    ) -> RecoveryDisplay:
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
        """
        import_pyplot(f"{cls.__name__}.from_estimator")  # before the prediction's long wait
        if not return_std:
            return cls.from_predictions(y, estimator.predict(X), **kwargs)
        try:
            mean, std = estimator.predict(X, return_std=True)
        except TypeError as error:
            # Any other TypeError comes from the data, and says so itself.
            if "return_std" not in str(error):
                raise
            raise TypeError(
                f"return_std is True, but {type(estimator).__name__} predicts no standard "
                "deviations; leave it out, or use an estimator whose predict takes return_std."
            ) from error
        return cls.from_predictions(y, mean, y_std=std, **kwargs)


def _check_axes(ax: Any, n_parameters: int) -> NDArray[np.object_]:
    axes = np.asarray(ax, dtype=object)
    axes = axes[:, np.newaxis] if axes.shape == (2,) and n_parameters == 1 else axes
    if axes.shape != (2, n_parameters) or not all(hasattr(each, "hexbin") for each in axes.flat):
        found = f"an array of shape {axes.shape}" if axes.ndim else repr(ax)
        raise ValueError(
            f"ax is {found}, expected Axes of shape (2, {n_parameters}), recovery above residual; "
            f"make them with plt.subplots(2, {n_parameters}), or leave ax out."
        )
    return axes


def _make_axes(plt: Any, n_parameters: int) -> NDArray[np.object_]:
    columns = n_columns(n_parameters)
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


def _styles(*given: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The user's keywords over the defaults of each kind of artist."""
    pairs = zip(_STYLES.items(), given, strict=True)
    return {name: merged(defaults, user) for (name, defaults), user in pairs}


def _scores(true: NDArray[np.float64], pred: NDArray[np.float64]) -> NDArray[np.float64]:
    """R2 and mean absolute relative error of each parameter, NaN where not defined."""
    scores = np.full((2, true.shape[1]), np.nan)
    if len(true) > 1:
        scores[0] = metrics.r2_per_parameter(true, pred)
    some = (true != 0.0).all(axis=0)
    if some.any():
        scores[1, some] = metrics.mean_absolute_relative_error(
            true[:, some], pred[:, some], multioutput="raw_values"
        )
    return scores
