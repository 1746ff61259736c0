"""What all displays share: how they are made, colours, labels, edges of the prior, panels."""

from __future__ import annotations

__all__ = [
    "COLORS",
    "SHARED_DOCS",
    "TRUTH",
    "Display",
    "ParameterDisplay",
    "axis_span",
    "check_axes",
    "draw_edges",
    "explain",
    "merged",
    "mark",
    "n_columns",
    "panel_axes",
    "parameter_labels",
    "prior_of",
    "unit_of_difference",
    "with_unit",
    "write_scores",
]

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk._checks import parameter_names as names_of
from skatr_sk._checks import require
from skatr_sk.evaluation.arrays import Floats
from skatr_sk.evaluation.fitted import unwrap
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETERS, check_order, in_another_order

# Of Okabe and Ito, which the colour-blind tell apart too; neighbours differ in brightness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
TRUTH = {"color": "black", "linestyle": "--", "linewidth": 1.0}
_EDGE = {"color": "0.6", "linestyle": ":", "linewidth": 0.8, "zorder": 0}
# matplotlib refuses a keyword beside its alias.
_ALIASES = {"c": "color", "ls": "linestyle", "lw": "linewidth", "linewidths": "linewidth"}
SHARED_DOCS = {
    "names_and_units": f"""
        parameter_names : sequence of str, default=None
            In the order of the columns, by default ``parameter_0`` and so on. The standard ones
            ({", ".join(f"``{name}``" for name in PARAMETER_NAMES)})
            are shown by their symbols, others as they are given.
        parameter_units : sequence of str, default=None
            In the same order, ``""`` for none. By default those of the standard parameters.""",
    "bounds": """
        bounds : array-like of shape (n_parameters, 2), default=None
            Lower and upper edge of the prior of each parameter, drawn as dotted lines; infinite or
            NaN where there is none.""",
}


@dataclass(kw_only=True, eq=False, repr=False)
class Display:
    """A plot: making it checks the data and computes what is shown, and ``plot`` draws that.

    A subclass is a dataclass of what it shows; its `__post_init__` checks and computes.
    """

    def plot(self, *args: Any, **kwargs: Any) -> Self:
        """Draw into the given Axes, or into a new figure, and return the display."""
        raise NotImplementedError

    @classmethod
    def _drawn(cls, ax: Any, options: Mapping[str, Any]) -> Self:
        """Make a display of those options that are fields of its class; plot it with the others."""
        own = {field.name for field in fields(cls)}
        display = cls(**{name: value for name, value in options.items() if name in own})
        return display.plot(ax, **{k: value for k, value in options.items() if k not in own})

    @classmethod
    def _pyplot(cls, method: str) -> Any:
        """Import pyplot; called before a long computation, so that its absence is said at once."""
        return require("matplotlib.pyplot", f"{cls.__name__}.{method}", "plots")


@dataclass(kw_only=True, eq=False, repr=False)
class ParameterDisplay(Display):
    """A display with panels for the parameters, their names, and the edges of their prior."""

    parameter_names: Sequence[str] | None = None
    parameter_units: Sequence[str] | None = None
    bounds: ArrayLike | None = None

    def _check_parameters(self, n: int) -> None:
        """Set `_labels`, symbols and units, and `_edges`, shape (n, 2) and NaN for no edge."""
        self._labels = parameter_labels(self.parameter_names, self.parameter_units, n)
        if self.parameter_names is not None:
            check_order("bounds", self.bounds, self.parameter_names, "rows")
        none = np.full((n, 2), np.nan)
        edges = none if self.bounds is None else np.asarray(self.bounds, np.float64)
        if edges.shape != (n, 2) or (edges[:, 0] >= edges[:, 1]).any():
            raise ValueError(
                f"bounds: expected lower < upper for each of {n} parameters, shape ({n}, 2), found "
                f"{edges.tolist()}."
            )
        self._edges = np.where(np.isfinite(edges), edges, np.nan)


def parameter_labels(
    names: Sequence[str] | None, units: Sequence[str] | None, n_parameters: int
) -> list[tuple[str, str]]:
    """Symbol and unit of each parameter, ready to draw."""
    known = {each.name: (each.symbol, each.symbol_unit) for each in PARAMETERS}
    named = names_of(names, None, n_parameters)
    labels = [known.get(name.replace(" ", "_"), (name, "")) for name in named]
    units = [unit for _, unit in labels] if units is None else list(units)
    if len(units) != n_parameters or not all(isinstance(unit, str) for unit in units):
        raise ValueError(f"parameter_units: expected {n_parameters} strings, found {units}.")
    units = [unit.replace("Msun", r"M$_\odot$") for unit in units]
    # The logarithm is part of the symbol already.
    units = [re.sub(r"^log10\((.*)\)$", r"\1", unit) for unit in units]
    return list(zip((symbol for symbol, _ in labels), units, strict=True))


def prior_of(*estimators: Any) -> dict[str, Any]:
    """Names of the first fitted posterior, Pipeline or search, and a box with the priors of all."""
    finals = [unwrap(each)[1] for each in estimators]
    known = {"parameter_names": getattr(finals[0], "parameter_names_", None)}
    first = known["parameter_names"] or []
    for final in finals[1:]:
        names = getattr(final, "parameter_names_", None) or []
        if in_another_order(names, first):
            raise ValueError(
                f"estimator: expected posteriors of {first}, found one of {names}; fit them on "
                "parameters in one order."
            )
    boxes: Any = [getattr(final, "prior_bounds_", None) for final in finals]
    if any(box is None for box in boxes) or len({np.shape(box) for box in boxes}) != 1:
        return known
    low, high = np.min(boxes, axis=0)[:, 0], np.max(boxes, axis=0)[:, 1]
    return known | {"bounds": np.stack([low, high], axis=1)}


def n_columns(n_parameters: int) -> int:
    """Panels in a row: up to three in one row, six as two rows of three."""
    return n_parameters if n_parameters <= 3 else math.ceil(math.sqrt(n_parameters))


def panel_axes(plt: Any, given: Any, n: int, height: float = 3.3) -> NDArray[np.object_]:
    """Axes for each parameter: those given, or of a new figure with panels `height` inches high."""
    if given is not None:
        return check_axes(given, (n,), f"{n} Axes, one for each parameter")
    columns = n_columns(n)
    n_rows = math.ceil(n / columns)
    size = max(4.4, 3.3 * columns), height * n_rows
    _, grid = plt.subplots(n_rows, columns, figsize=size, layout="constrained", squeeze=False)
    for spare in grid.ravel()[n:]:
        spare.remove()
    return grid.ravel()[:n]


def check_axes(
    given: Any, shape: tuple[int, ...], wanted: str, needed: Any = True
) -> NDArray[np.object_]:
    """Axes handed in by the user, as an array of a shape with Axes at least where `needed`.

    Those in one row or column may be given in any shape; `wanted` is what the message asks for.
    """
    from matplotlib.axes import Axes

    axes = np.asarray(given, dtype=object)
    if axes.shape != shape and axes.size == math.prod(shape) and max(shape) == axes.size:
        axes = axes.reshape(shape)
    needed = np.broadcast_to(needed, shape)
    if axes.shape != shape or not all(isinstance(each, Axes) for each in axes[needed]):
        found = f"an array of shape {axes.shape}" if axes.ndim else repr(given)
        numbers = ", ".join(map(str, shape if len(shape) > 1 else (1, *shape)))
        raise ValueError(
            f"ax: expected {wanted}, found {found}; make them with plt.subplots({numbers}), or "
            "leave ax out."
        )
    return axes


def axis_span(*values: ArrayLike) -> tuple[float, float]:
    """Range of an axis that shows all of some values, NaN apart, with a margin."""
    together = np.concatenate([np.ravel(each) for each in values])
    low, high = float(np.nanmin(together)), float(np.nanmax(together))
    margin = 0.04 * (high - low) or 0.04 * abs(high) or 1.0
    return low - margin, high + margin


def draw_edges(axes: Any, edges: Floats, *, horizontal: bool = True) -> None:
    """Draw the finite edges of a parameter's prior as dotted lines."""
    for edge in edges[np.isfinite(edges)]:
        axes.axvline(edge, **_EDGE)
        if horizontal:
            axes.axhline(edge, **_EDGE)


def write_scores(axes: Any, lines: Iterable[str]) -> Any:
    """Write lines above a panel, where they hide nothing."""
    return axes.set_title("\n".join(lines), loc="left", fontsize="small")


def with_unit(text: str, unit: str, *, wrap: bool = False) -> str:
    """Text and unit of an axis; with `wrap` a long unit has a line of its own."""
    return text + (f"{chr(10) if wrap and len(unit) > 4 else ' '}[{unit}]" if unit else "")


def unit_of_difference(symbol: str, unit: str) -> str:
    """Unit of the difference of two values: of decimal logarithms, dex."""
    return "dex" if symbol.startswith(r"$\log_{10}") else unit


def mark(label: str, **style: Any) -> Any:
    """Entry of a legend that looks like a line or a marker of a style."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)


def explain(figure: Any, edges: Floats, handles: Iterable[Any]) -> Any:
    """Say below the panels of a new figure what their marks are, edges of a prior among them."""
    handles = list(handles)
    if np.isfinite(edges).any():
        handles.append(mark("edge of the prior", **_EDGE))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.1)))
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns}
    return figure.legend(handles=handles, fontsize="small", frameon=False, **place)


def merged(defaults: Mapping[str, Any], user: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the user's keywords over the defaults, aliases counted as what they stand for."""
    replaced = {_ALIASES.get(key, key) for key in user or {}}
    return {k: v for k, v in defaults.items() if k not in replaced} | dict(user or {})
