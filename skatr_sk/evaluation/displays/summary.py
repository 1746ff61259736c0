"""SummaryDisplay: summaries of light cones in two dimensions, coloured by a parameter."""

from __future__ import annotations

__all__ = ["SummaryDisplay"]

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from skatr_sk._checks import Choice, Integer, check_options, require, shared_docs
from skatr_sk.evaluation.arrays import Floats, not_finite, real_array
from skatr_sk.evaluation.displays import base
from skatr_sk.evaluation.fitted import unwrap

_OPTIONS = {"method": Choice("auto", "umap", "pca"), "random_state": Integer(0)}
_POINTS = {"s": 14, "cmap": "viridis", "linewidth": 0}
_NEW = {"s": 90, "edgecolor": "black", "linewidth": 0.8, "zorder": 3}
_NEW_MARKERS = "*XPD^s"
_NEW_COLORS = (base.COLORS[3], base.COLORS[1], base.COLORS[5], base.COLORS[4])


@shared_docs(names_and_units=base.SHARED_DOCS["names_and_units"])
@dataclass(kw_only=True, eq=False, repr=False)
class SummaryDisplay(base.ParameterDisplay):
    """Map of summaries in two dimensions, a panel for each parameter that colours it.

    The map is made without the parameters: where colours run smoothly, the summaries know the
    parameter. New light cones are put on the map of the others; those that lie beside it are
    unlike what the summaries were computed from. Make it with :meth:`from_summaries` or
    :meth:`from_estimator`.

    Parameters
    ----------
    summaries : array-like of shape (n_lightcones, n_summary)
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters), default=None
        Parameters that give the colours; without them points are grey.
    new : array-like of shape (n_new, n_summary), or a dict of names to such, default=None
        Summaries of other light cones.
    {names_and_units}
    bounds : array-like of shape (n_parameters, 2), default=None
        Ends of the colours; by default those of `y`.
    method : {"auto", "umap", "pca"}, default="auto"
        UMAP (McInnes, Healy & Melville, arXiv:1802.03426; ``pip install "skatr_sk[umap]"``) keeps
        neighbours together, and distances between far points mean little. The first two principal
        components are a linear view. ``"auto"`` is UMAP where it is installed. Either is of
        summaries with unit variance in each direction.
    random_state : int, default=0
        Of UMAP.

    Attributes
    ----------
    map_ : ndarray of shape (n_lightcones, 2)
    new_ : dict of str to ndarray of shape (n_new, 2)
    method_ : str
        "umap" or "pca".
    explained_variance_ratio_ : ndarray of shape (2,), or None for UMAP
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_parameters,), or (1,) without `y`
    points_ : list of PathCollection
        The points of each panel.
    legend_ : Legend, or None without `new`

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import SummaryDisplay
    >>> rng = np.random.default_rng(0)
    >>> y = rng.uniform(size=(60, 2))
    >>> summaries = y @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(60, 8))
    >>> display = SummaryDisplay.from_summaries(summaries, y, new=summaries[:2], method="pca")
    >>> display.map_.shape, display.new_["new"].shape
    ((60, 2), (2, 2))
    """

    summaries: ArrayLike
    y: ArrayLike | None = None
    new: ArrayLike | Mapping[str, ArrayLike] | None = None
    method: str = "auto"
    random_state: int = 0

    def __post_init__(self) -> None:
        check_options("SummaryDisplay", _OPTIONS, vars(self))
        summaries = _check("summaries", self.summaries)
        if len(summaries) < 3 or summaries.shape[1] < 2:
            raise ValueError(
                "summaries: expected at least 3 light cones of 2 numbers, found shape "
                f"{summaries.shape}."
            )
        named = self.new if isinstance(self.new, Mapping) else {"new": self.new}
        new = {
            str(name): _check("new", each, summaries.shape[1])
            for name, each in named.items()
            if each is not None
        }
        self._y = None
        if self.y is not None:
            y = real_array("y", self.y).astype(np.float64)
            self._y = y = y[:, np.newaxis] if y.ndim == 1 else y
            if y.ndim != 2 or len(y) != len(summaries) or y.shape[1] == 0:
                raise ValueError(
                    f"y: expected a row for each of {len(summaries)} light cones, found shape "
                    f"{np.shape(self.y)}."
                )
        self._check_parameters(0 if self._y is None else self._y.shape[1])
        self._embed(summaries, new)

    def _embed(self, summaries: Floats, new: Mapping[str, Floats]) -> None:
        self.method_ = self.method
        if self.method == "auto":
            self.method_ = "umap" if importlib.util.find_spec("umap") else "pca"
        if self.method_ == "umap":
            umap = require("umap", "SummaryDisplay", "umap")
            # Its seed makes it serial, and it warns unless that is said.
            reducer = umap.UMAP(n_components=2, random_state=self.random_state, n_jobs=1)
        else:
            reducer = PCA(2, svd_solver="full")
        scaler, threads = StandardScaler().fit(summaries), torch.get_num_threads()
        self.map_ = np.asarray(reducer.fit_transform(scaler.transform(summaries)), np.float64)
        self.new_ = {
            name: np.asarray(reducer.transform(scaler.transform(each)), np.float64)
            for name, each in new.items()
        }
        torch.set_num_threads(threads)  # the threads of numba, which UMAP brings, are torch's too
        self.explained_variance_ratio_ = getattr(reducer, "explained_variance_ratio_", None)

    def plot(
        self,
        ax: Any = None,
        *,
        scatter_kwargs: Mapping[str, Any] | None = None,
        new_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the map, and return the display.

        Parameters
        ----------
        ax : Axes or array-like of Axes of shape (n_parameters,), default=None
            By default a new figure: up to three parameters in one row, six as two rows of three.
        scatter_kwargs, new_kwargs : dict, default=None
            Passed on to ``Axes.scatter``, for the map and for the new light cones.
        """
        plt = self._pyplot("plot")
        columns = [None] if self._y is None else list(self._y.T)
        self.axes_ = base.panel_axes(plt, ax, len(columns), height=3.0)
        self.figure_ = self.axes_[0].figure
        points, star = base.merged(_POINTS, scatter_kwargs), base.merged(_NEW, new_kwargs)
        xlabel, ylabel = self._axis_labels()
        self.points_: list[Any] = []
        for i, (axes, values) in enumerate(zip(self.axes_, columns, strict=True)):
            colors: dict[str, Any] = {"color": "0.6"}
            if values is not None:
                low, high = self._edges[i]
                colors = {"c": values, "vmin": None if np.isnan(low) else low}
                colors["vmax"] = None if np.isnan(high) else high
            shown = points if values is not None else {**points, "cmap": None}
            self.points_.append(axes.scatter(*self.map_.T, **{**colors, **shown}))
            if values is not None:
                bar = self.figure_.colorbar(self.points_[-1], ax=axes)
                bar.set_label(base.with_unit(*self._labels[i]))
            for k, (name, where) in enumerate(self.new_.items()):
                look = {"marker": _NEW_MARKERS[k % 6], "color": _NEW_COLORS[k % 4], "label": name}
                axes.scatter(*where.T, **base.merged(look, star))
            axes.set(xlabel=xlabel, ylabel=ylabel)
            if self.method_ == "umap":
                axes.set(xticks=[], yticks=[])  # its scale has no meaning
        self.legend_ = None
        if self.new_ and ax is None:
            handles, _ = self.axes_[0].get_legend_handles_labels()
            options = {"loc": "outside lower center", "ncols": 4, "fontsize": "small"}
            self.legend_ = self.figure_.legend(handles=handles, frameon=False, **options)
        elif self.new_:
            self.legend_ = self.axes_[0].legend(fontsize="small", frameon=False)
        return self

    def _axis_labels(self) -> tuple[str, str]:
        if self.explained_variance_ratio_ is None:
            return "UMAP, first axis", "UMAP, second axis"
        first, second = self.explained_variance_ratio_
        return f"1st component ({first:.0%})", f"2nd component ({second:.0%})"

    @classmethod
    def from_summaries(
        cls, summaries: ArrayLike, y: ArrayLike | None = None, *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw summaries, return the display; takes parameters of the class and :meth:`plot`."""
        return cls._drawn(ax, {"summaries": summaries, "y": y, **kwargs})

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike | None = None, *, X_new: Any = None, **kwargs: Any
    ) -> Self:
        """Summarise light cones, draw, and return the display.

        Parameters
        ----------
        estimator : fitted transformer, Pipeline or search
            Of a Pipeline that ends with a head all that comes before it.
        X : array-like of shape (n_lightcones, ...)
        y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters), default=None
        X_new : array-like of shape (n_new, ...), or a dict of names to such, default=None
            Other light cones, to be put on the map.
        **kwargs
            As for :meth:`from_summaries`; names and bounds are those of a fitted posterior at the
            end of a Pipeline.
        """
        cls._pyplot("from_estimator")
        new = X_new if isinstance(X_new, Mapping) or X_new is None else {"new": X_new}
        if new is not None:
            new = {name: _summarise(estimator, each) for name, each in new.items()}
        known = base.prior_of(estimator)
        if y is None or len(known.get("bounds", ())) != (np.shape(y) + (1,))[1]:
            known = {}
        summaries = _summarise(estimator, X)
        return cls.from_summaries(summaries, y, new=new, **(known | kwargs))


def _check(name: str, values: ArrayLike, width: int | None = None) -> Floats:
    array = real_array(name, values).astype(np.float64)
    if array.ndim != 2 or 0 in array.shape or (width is not None and array.shape[1] != width):
        wanted = "n_summary" if width is None else str(width)
        raise ValueError(
            f"{name}: expected shape (n_lightcones, {wanted}), found {array.shape}; transform "
            "light cones first, or use from_estimator."
        )
    if wrong := not_finite(name, array):
        raise ValueError(wrong)
    return array


def _summarise(estimator: Any, X: Any) -> Any:
    """Summaries of light cones: by a transformer, or by all of a Pipeline but its head."""
    if hasattr(estimator, "transform"):
        return estimator.transform(X)
    steps, final = unwrap(estimator)
    if not steps:
        raise TypeError(
            f"estimator: expected one with transform, or a Pipeline, found {type(final).__name__}; "
            "give its summaries to from_summaries."
        )
    for step in steps:
        X = step.transform(X)
    return X
