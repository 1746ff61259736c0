"""DataEfficiencyDisplay: scores over the number of labelled light cones."""

from __future__ import annotations

__all__ = ["DataEfficiencyDisplay"]

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk.evaluation import metrics
from skatr_sk.evaluation._panels import (
    check_panels,
    import_pyplot,
    merged,
    panel_grid,
    parameter_labels,
)
from skatr_sk.evaluation.data_efficiency import TRAIN_SIZES, data_efficiency_curve

_COLUMNS = ("estimator", "size", "parameter", "metric", "value")
_BANDS = ("std", "quartiles", "range", "none")
_YLABELS = {"mean_absolute_relative_error": "mean absolute relative error", "r2": "$R^2$"}
_LINE = {"marker": "o", "markersize": 4, "linewidth": 1.6}
_BAND = {"alpha": 0.18, "linewidth": 0}


class DataEfficiencyDisplay:
    """Score against the size of the training set: a panel per parameter, a line per estimator.

    A line is the mean (or median) over folds and repeats, and its band their scatter. Make it with
    :meth:`from_table` or :meth:`from_estimators`.

    Parameters
    ----------
    table : mapping of columns, or DataFrame
        As :func:`~skatr_sk.evaluation.data_efficiency_curve` returns it, or any other with the
        columns ``estimator, size, parameter, metric, value``.
    metric : str, default=None
        Which of the table's; the first one by default.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters,)
    lines_, bands_ : ndarray of artists of shape (n_parameters, n_estimators)
        Bands are None where none is drawn.
    legend_ : Legend
    sizes_ : ndarray of int
    mean_, std_ : ndarray of shape (n_parameters, n_estimators, n_sizes)
        Over folds and repeats; the standard deviation has one degree of freedom less than values.
        NaN where the table has no value, or for `std_` a single one.

    References
    ----------
    Ore, Heneka & Plehn, "SKATR: A self-supervised summary transformer for SKA", arXiv:2410.18899.

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

    def __init__(self, *, table: Any, metric: str | None = None) -> None:
        self.table = table
        self.metric = metric

    def plot(
        self,
        ax: Any = None,
        *,
        band: str = "std",
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
    ) -> DataEfficiencyDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : Axes or array-like of Axes of shape (n_parameters,), default=None
            By default a new figure: up to three parameters in one row, six as two rows of three.
        band : {"std", "quartiles", "range", "none"}, default="std"
            One standard deviation on either side of the mean, the middle half of the values about
            their median (for scores with a long tail), or from the least to the largest. Folds
            share light cones: it is the scatter of one fit, not the error of the mean.
        line_kwargs, band_kwargs : dict, default=None
            Passed on to ``Axes.plot`` and ``Axes.fill_between``.

        Returns
        -------
        display : DataEfficiencyDisplay
            Itself, with the attributes that end in an underscore.

        Raises
        ------
        ImportError
            When matplotlib is not installed.
        TypeError, ValueError
            When the table, the metric or the axes are not as expected.
        """
        plt = import_pyplot(f"{type(self).__name__}.plot")
        metrics._check_choice("band", band, _BANDS)
        line, filling = merged(_LINE, line_kwargs), merged(_BAND, band_kwargs)
        metric, estimators, parameters, cells = self._read()
        labels = parameter_labels(parameters, None, len(parameters))
        n = len(parameters)
        axes = panel_grid(plt, n, height=2.7) if ax is None else check_panels(ax, n, "ax")
        self.axes_, self.figure_ = axes, axes.item(0).figure
        self.mean_ = _over_cells(cells, np.mean, 1)
        self.std_ = _over_cells(cells, lambda values: np.std(values, ddof=1), 2)
        middle, low, high = self.mean_, self.mean_ - self.std_, self.mean_ + self.std_
        if band == "range":
            low, high = _over_cells(cells, np.min, 2), _over_cells(cells, np.max, 2)
        elif band == "quartiles":
            middle = _over_cells(cells, np.median, 1)
            low, high = (_over_cells(cells, partial(np.quantile, q=q), 2) for q in (0.25, 0.75))
        self.lines_, self.bands_ = np.full((2, len(parameters), len(estimators)), None)
        for i, (each, (symbol, _)) in enumerate(zip(axes, labels, strict=True)):
            for j, name in enumerate(estimators):
                (drawn,) = each.plot(self.sizes_, middle[i, j], **{"label": name, **line})
                self.lines_[i, j] = drawn
                if band != "none" and np.isfinite(low[i, j]).any():
                    styled = {"color": drawn.get_color(), **filling}
                    edges = low[i, j], high[i, j]
                    self.bands_[i, j] = each.fill_between(self.sizes_, *edges, **styled)
            each.set(xscale="log", xlabel="light cones with labels", title=symbol)
            each.set_ylabel(_YLABELS.get(metric, metric.replace("_", " ")))
            _mark_sizes(plt, each, self.sizes_)
        if ax is None:
            handles = self.lines_[0].tolist()
            self.legend_ = self.figure_.legend(
                handles=handles, loc="outside upper center", ncols=4, frameon=False
            )
        else:
            self.legend_ = axes[0].legend(loc="best", fontsize="small", frameon=False)
        return self

    def _read(self) -> tuple[str, list[str], list[str], NDArray[np.object_]]:
        """Check the table; return names, and the values of each parameter, estimator and size."""
        columns = _check_table(self.table)
        known = _in_order(columns["metric"])
        metric = known[0] if self.metric is None else self.metric
        metrics._check_choice("metric", metric, tuple(known))
        chosen = {name: column[columns["metric"] == metric] for name, column in columns.items()}
        estimators, parameters = _in_order(chosen["estimator"]), _in_order(chosen["parameter"])
        self.sizes_ = np.unique(chosen["size"].astype(np.int64))
        cells = np.empty((len(parameters), len(estimators), len(self.sizes_)), dtype=object)
        for at in np.ndindex(cells.shape):
            here = chosen["parameter"] == parameters[at[0]]
            here &= chosen["estimator"] == estimators[at[1]]
            here &= chosen["size"] == self.sizes_[at[2]]
            values = chosen["value"][here].astype(np.float64)
            cells[at] = values[np.isfinite(values)]
        return metric, estimators, parameters, cells

    @classmethod
    def from_table(
        cls, table: Any, *, metric: str | None = None, ax: Any = None, **kwargs: Any
    ) -> DataEfficiencyDisplay:
        """Draw a table, and return the display.

        Parameters
        ----------
        table, metric
            As for the class.
        ax, **kwargs
            As for :meth:`plot`, which also says what is raised.
        """
        return cls(table=table, metric=metric).plot(ax=ax, **kwargs)

    @classmethod
    def from_estimators(
        cls,
        estimators: Any,
        X: ArrayLike,
        y: ArrayLike,
        train_sizes: ArrayLike = TRAIN_SIZES,
        *,
        metric: str | None = None,
        ax: Any = None,
        band: str = "std",
        line_kwargs: Mapping[str, Any] | None = None,
        band_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> DataEfficiencyDisplay:
        """Fit and score with :func:`data_efficiency_curve`, draw, and return the display.

        Parameters
        ----------
        estimators, X, y, train_sizes, **kwargs
            As for :func:`~skatr_sk.evaluation.data_efficiency_curve`; the table stays in ``table``.
        metric
            As for the class.
        ax, band, line_kwargs, band_kwargs
            As for :meth:`plot`.
        """
        import_pyplot(f"{cls.__name__}.from_estimators")  # before the long wait
        table = data_efficiency_curve(estimators, X, y, train_sizes, **kwargs)
        display = cls(table=table, metric=metric)
        return display.plot(ax=ax, band=band, line_kwargs=line_kwargs, band_kwargs=band_kwargs)


def _check_table(table: Any) -> dict[str, NDArray[Any]]:
    """The columns that are drawn, as arrays of one length."""
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"table has no column {', '.join(missing)}, expected {', '.join(_COLUMNS)}, as "
            "data_efficiency_curve returns them."
        )
    columns = {name: np.asarray(table[name]) for name in _COLUMNS}
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) > 1 or columns["value"].ndim != 1 or not columns["value"].size:
        raise ValueError(f"table has columns of shapes {lengths}, expected one length, not zero.")
    return columns


def _in_order(names: NDArray[Any]) -> list[str]:
    """Distinct names in the order of their first rows."""
    return list(dict.fromkeys(str(name) for name in names))


def _over_cells(
    cells: NDArray[np.object_], function: Callable[..., Any], fewest: int
) -> NDArray[np.float64]:
    """Reduce each cell to a number; NaN where it has fewer values."""
    reduced = np.full(cells.shape, np.nan)
    for at in np.ndindex(cells.shape):
        if len(cells[at]) >= fewest:
            reduced[at] = function(cells[at])
    return reduced


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
