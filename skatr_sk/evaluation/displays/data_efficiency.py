"""DataEfficiencyDisplay: scores over the number of labelled light cones."""

from __future__ import annotations

__all__ = ["DataEfficiencyDisplay"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk._checks import Choice, check_options, warn_no_effect
from skatr_sk.evaluation.arrays import Floats
from skatr_sk.evaluation.data_efficiency import TRAIN_SIZES, data_efficiency_curve
from skatr_sk.evaluation.displays.base import (
    COLORS,
    Display,
    merged,
    n_columns,
    panel_axes,
    parameter_labels,
)

_COLUMNS = ("estimator", "size", "parameter", "value", "metric")
_YLABELS = {"mean_absolute_relative_error": "mean absolute relative error", "r2": "$R^2$"}
_OF_THE_DISPLAY = "metric", "band", "line_kwargs", "band_kwargs"  # not of the curve
_LINE = {"markersize": 4, "linewidth": 1.6}
_MARKERS = "os^Dv<>PX*ph"
_BANDS = {
    "std": "mean, and one standard deviation on either side",
    "quartiles": "median, and the middle half of the fits",
    "range": "mean, and the range of the fits",
    "none": "mean of the fits",
}
_BAND = {"alpha": 0.18, "linewidth": 0}


@dataclass(kw_only=True, eq=False, repr=False)
class DataEfficiencyDisplay(Display):
    """Score against the size of the training set: a panel per parameter, a line per estimator.

    A line is the mean (or median) over folds and repeats, and its band their standard deviation (or
    quartiles, or range). SKATR's paper (Ore, Heneka & Plehn, arXiv:2410.18899) shows such curves.
    Make it with :meth:`from_table` or :meth:`from_estimators`.

    Parameters
    ----------
    table : mapping of columns, or DataFrame
        As :func:`~skatr_sk.evaluation.data_efficiency_curve` returns it, or any other with the
        columns ``estimator, size, parameter, metric, value``.
    metric : str, default=None
        Which of the table's; the first one by default.

    Attributes
    ----------
    sizes_ : ndarray of int
    mean_, std_ : ndarray of shape (n_parameters, n_estimators, n_sizes)
        Over folds and repeats; the standard deviation has one degree of freedom less than values.
        NaN where the table has no value, or for `std_` a single one.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters,)
    lines_, bands_ : ndarray of artists of shape (n_parameters, n_estimators)
        Bands are None where none is drawn.
    legend_ : Legend

    Examples
    --------
    >>> from skatr_sk.evaluation import DataEfficiencyDisplay
    >>> table = {
    ...     "estimator": ["a", "a", "a", "b", "b", "b"],
    ...     "size": [10, 10, 100, 10, 10, 100],
    ...     "parameter": ["zeta"] * 6,
    ...     "metric": ["r2"] * 6,
    ...     "value": [0.1, 0.3, 0.6, 0.5, 0.5, 0.7],
    ... }
    >>> display = DataEfficiencyDisplay.from_table(table)
    >>> display.mean_[0].round(2)
    array([[0.2, 0.6], [0.5, 0.7]])
    """

    table: Any
    metric: str | None = None

    def __post_init__(self) -> None:
        columns = _check_table(self.table)
        known = _in_order(columns["metric"])
        self._metric = known[0] if self.metric is None else self.metric
        check_options("DataEfficiencyDisplay", {"metric": Choice(*known)}, {"metric": self._metric})
        here = columns["metric"] == self._metric
        estimator, size, parameter, value = (columns[name][here] for name in _COLUMNS[:-1])
        self._estimators, self._parameters = _in_order(estimator), _in_order(parameter)
        self.sizes_ = np.unique(size.astype(np.int64))
        shape = len(self._parameters), len(self._estimators), len(self.sizes_)
        self._cells = np.empty(shape, dtype=object)  # the values of each
        for i, j, k in np.ndindex(shape):
            chosen = (parameter == self._parameters[i]) & (estimator == self._estimators[j])
            values = value[chosen & (size == self.sizes_[k])].astype(np.float64)
            self._cells[i, j, k] = values[np.isfinite(values)]
        self.mean_ = self._over_values(np.mean)
        self.std_ = self._over_values(partial(np.std, ddof=1), 2)

    def _over_values(self, function: Callable[..., Any], fewest: int = 1) -> Floats:
        """Reduce the values of each parameter, estimator and size; NaN where they are too few."""
        reduced = [function(cell) if len(cell) >= fewest else np.nan for cell in self._cells.flat]
        return np.array(reduced, dtype=np.float64).reshape(self._cells.shape)

    def plot(
        self,
        ax: Any = None,
        *,
        band: str = "std",
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the panels, and return the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes of shape (n_parameters,), default=None
            By default a new figure: up to three parameters in one row, six as two rows of three.
        band : {"std", "quartiles", "range", "none"}, default="std"
            One standard deviation on either side of the mean, the middle half of the values about
            their median (for scores with a long tail), or from the least to the largest. As folds
            share light cones, it is the standard deviation of one fit, not the error of the mean.
        line_kwargs, band_kwargs : dict, default=None
            Passed on to ``Axes.plot`` and ``Axes.fill_between``.
        """
        plt = self._pyplot("plot")
        kinds = {"band": Choice("std", "quartiles", "range", "none")}
        check_options("DataEfficiencyDisplay.plot", kinds, {"band": band})
        if band == "none" and band_kwargs is not None:
            warn_no_effect("DataEfficiencyDisplay", ["band_kwargs"], "band='none'")
        line, filling = merged(_LINE, line_kwargs), merged(_BAND, band_kwargs)
        n = len(self._parameters)
        labels = parameter_labels(self._parameters, None, n)
        self.axes_ = panel_axes(plt, ax, n, height=2.7)
        self.figure_ = self.axes_.item(0).figure
        middle, low, high = self.mean_, self.mean_ - self.std_, self.mean_ + self.std_
        if band == "range":
            low, high = self._over_values(np.min, 2), self._over_values(np.max, 2)
        elif band == "quartiles":
            middle = self._over_values(np.median)
            low, high = (self._over_values(partial(np.quantile, q=q), 2) for q in (0.25, 0.75))
        self.lines_, self.bands_ = np.full((2, n, len(self._estimators)), None)
        for i, (axes, (symbol, _)) in enumerate(zip(self.axes_, labels, strict=True)):
            for j, name in enumerate(self._estimators):
                turn, color = divmod(j, len(COLORS))
                own = {"color": COLORS[color], "marker": _MARKERS[j % len(_MARKERS)]}
                own["linestyle"] = "--" if turn % 2 else "-"  # where colours are used again
                styled = merged({"label": name, **own}, line)
                known = np.isfinite(middle[i, j])  # others may have more sizes
                (drawn,) = axes.plot(self.sizes_[known], middle[i, j, known], **styled)
                self.lines_[i, j] = drawn
                if band != "none" and np.isfinite(low[i, j]).any():
                    styled = {"color": drawn.get_color(), **filling}
                    edges = low[i, j, known], high[i, j, known]
                    self.bands_[i, j] = axes.fill_between(self.sizes_[known], *edges, **styled)
            axes.set(xscale="log", xlabel="light cones with labels", title=symbol)
            if ax is not None or i % n_columns(n) == 0:  # once in a row of a figure of ours
                axes.set_ylabel(_YLABELS.get(self._metric, self._metric.replace("_", " ")))
            _mark_sizes(plt, axes, self.sizes_)
        owner: Any = self.axes_[0]
        options: dict[str, Any] = {"loc": "best", "fontsize": "small"}
        if ax is None:
            columns = min(4, n_columns(n) + 1)
            owner, options = self.figure_, {"loc": "outside upper center", "ncols": columns}
            self.figure_.get_layout_engine().set(h_pad=0.08)  # room for the title of the legend
        options |= {"title": _BANDS[band], "title_fontsize": "small"}
        self.legend_ = owner.legend(handles=self.lines_[0].tolist(), frameon=False, **options)
        return self

    @classmethod
    def from_table(
        cls, table: Any, *, metric: str | None = None, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw a table, return the display; takes the parameters of the class and :meth:`plot`."""
        return cls._drawn(ax, {"table": table, "metric": metric, **kwargs})

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        X: ArrayLike,
        y: ArrayLike,
        train_sizes: ArrayLike = TRAIN_SIZES,
        *,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Fit and score with :func:`data_efficiency_curve`, draw, and return the display.

        Parameters are those of that function, ``metric`` of the class, and ``ax``, ``band``,
        ``line_kwargs`` and ``band_kwargs`` of :meth:`plot`. The table stays in ``table``.
        """
        cls._pyplot("from_estimators")
        ours = {name: kwargs.pop(name) for name in _OF_THE_DISPLAY if name in kwargs}
        table = data_efficiency_curve(estimators, X, y, train_sizes, **kwargs)
        return cls._drawn(ax, {"table": table, **ours})


def _check_table(table: Any) -> dict[str, NDArray[Any]]:
    """The columns that are drawn, as arrays of one length."""
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"table: expected the columns {', '.join(_COLUMNS)}, as data_efficiency_curve returns "
            f"them, found none of the name {', '.join(missing)}."
        )
    columns = {name: np.asarray(table[name]) for name in _COLUMNS}
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or columns["value"].ndim != 1 or not columns["value"].size:
        raise ValueError(
            f"table: expected columns of one length, not zero, found shapes {lengths}."
        )
    return columns


def _in_order(names: NDArray[Any]) -> list[str]:
    """Distinct names in the order of their first rows."""
    return list(dict.fromkeys(str(name) for name in names))


def _mark_sizes(plt: Any, axes: Any, sizes: NDArray[np.int64]) -> None:
    """Ticks at the sizes themselves, fewer where they would touch."""
    apart = [sizes[-1]]
    for size in sizes[-2::-1]:
        if apart[-1] / size > 1.25:
            apart.append(size)
    ticker = plt.matplotlib.ticker
    axes.xaxis.set_major_locator(ticker.FixedLocator(apart[::-1]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
