"""What the displays share: matplotlib, labels, edges of the prior, and grids of panels."""

from __future__ import annotations

__all__ = [
    "COLORS",
    "EDGE",
    "SCORE_BOX",
    "TRUTH",
    "check_bounds",
    "check_colors",
    "check_corner",
    "check_inside",
    "check_panels",
    "common_prior",
    "corner_grid",
    "import_pyplot",
    "merged",
    "n_columns",
    "panel_grid",
    "parameter_labels",
    "prior_of",
]

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk.evaluation import metrics
from skatr_sk.evaluation._samples import unwrap

# Symbol and unit of the six standard parameters; other names are drawn as they are.
_LABELS = {
    "m_WDM": (r"$m_\mathrm{WDM}$", "keV"),
    "Omega_m": (r"$\Omega_m$", ""),
    "E_0": (r"$E_0$", "eV"),
    "log10_L_X": (r"$\log_{10} L_X$", "erg/s/(Msun/yr)"),
    "log10_T_vir": (r"$\log_{10} T_\mathrm{vir}$", "K"),
    "zeta": (r"$\zeta$", ""),
}
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
EDGE = {"color": "0.6", "linestyle": ":", "linewidth": 0.8, "zorder": 0}
TRUTH = {"color": "black", "linestyle": "--", "linewidth": 1.0}
# matplotlib refuses a keyword beside its alias.
_ALIASES = {"c": "color", "ls": "linestyle", "lw": "linewidth", "linewidths": "linewidth"}
SCORE_BOX = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 2}


def import_pyplot(caller: str) -> Any:
    """Pyplot, or the sentence that says how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib, which is not installed: pip install "skatr_sk[plots]".'
        ) from error
    return plt


def check_bounds(bounds: ArrayLike | None, n_parameters: int) -> NDArray[np.float64]:
    """Prior edges of shape (n_parameters, 2), NaN where there are none."""
    edges = np.full((n_parameters, 2), np.nan) if bounds is None else np.asarray(bounds, np.float64)
    if edges.shape != (n_parameters, 2) or (edges[:, 0] >= edges[:, 1]).any():
        raise ValueError(
            f"bounds is {edges.tolist()}, expected lower < upper for each of {n_parameters} "
            f"parameters, shape ({n_parameters}, 2)."
        )
    return np.where(np.isfinite(edges), edges, np.nan)


def check_inside(
    points: NDArray[np.float64], bounds: NDArray[np.float64], posterior: str, names: Sequence[str]
) -> NDArray[np.float64]:
    """Samples within the bounds; what rounding has put beyond them, on them."""
    slack = 1e-6 * (bounds[:, 1] - bounds[:, 0])
    slack = np.where(np.isfinite(slack), slack, 0.0)
    outside = ((points < bounds[:, 0] - slack) | (points > bounds[:, 1] + slack)).sum(axis=0)
    if outside.any():
        each = "; ".join(
            f"{outside[i]} of {names[i]!r}, which is {points[:, i].min():.6g} to "
            f"{points[:, i].max():.6g} with bounds {bounds[i].tolist()}"
            for i in np.flatnonzero(outside).tolist()
        )
        raise ValueError(
            f"samples of {posterior!r} lie outside bounds: of {len(points)}, {each}. Give both in "
            "the same units, or bounds=None if the posterior is not confined to the prior."
        )
    return np.fmin(np.fmax(points, bounds[:, 0]), bounds[:, 1])


def check_colors(colors: Sequence[Any] | None) -> Sequence[Any]:
    """Colours of the posteriors: those given, or the usual ones."""
    from matplotlib.colors import is_color_like

    if colors is None:
        return COLORS
    listed = [] if isinstance(colors, str) or not isinstance(colors, Iterable) else list(colors)
    if not listed or not all(is_color_like(color) for color in listed):
        raise ValueError(
            f"colors is {colors!r}, expected a list of matplotlib's colours, one or more."
        )
    return listed


def parameter_labels(
    names: Sequence[str] | None, units: Sequence[str] | None, n_parameters: int
) -> list[tuple[str, str]]:
    """Symbol and unit of each parameter, ready to draw."""
    names = [f"parameter {i}" for i in range(n_parameters)] if names is None else names
    names = metrics._check_names("parameter_names", names)
    known = [_LABELS.get(name.replace(" ", "_"), (name, "")) for name in names]
    units = [unit for _, unit in known] if units is None else list(units)
    for what, found in (("parameter_names", names), ("parameter_units", units)):
        if len(found) != n_parameters or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{what} is {list(found)}, expected {n_parameters} strings.")
    # The logarithm is part of the symbol already.
    units = [re.sub(r"^log10\((.*)\)$", r"\1", unit) for unit in units]
    units = [unit.replace("Msun", r"M$_\odot$") for unit in units]
    return [(symbol, unit) for (symbol, _), unit in zip(known, units, strict=True)]


def prior_of(estimator: Any) -> dict[str, Any]:
    """Names and prior edges that a fitted posterior, a Pipeline or a search over such knows."""
    _, final = unwrap(estimator)
    return {
        "parameter_names": getattr(final, "parameter_names_", None),
        "bounds": getattr(final, "prior_bounds_", None),
    }


def common_prior(estimators: Iterable[Any]) -> dict[str, Any]:
    """Names of the first posterior, and the box that holds the priors of all."""
    priors = [prior_of(each) for each in estimators]
    common = {"parameter_names": next((p["parameter_names"] for p in priors), None)}
    boxes = [prior["bounds"] for prior in priors]
    if any(box is None for box in boxes) or len({np.shape(box) for box in boxes}) != 1:
        return common
    low, high = np.min(boxes, axis=0)[:, 0], np.max(boxes, axis=0)[:, 1]
    return common | {"bounds": np.stack([low, high], axis=1)}


def n_columns(n_parameters: int) -> int:
    """Panels in a row: up to three in one row, six as two rows of three."""
    return n_parameters if n_parameters <= 3 else math.ceil(math.sqrt(n_parameters))


def merged(defaults: Mapping[str, Any], user: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the user's keywords over the defaults, aliases counted as what they stand for."""
    replaced = {_ALIASES.get(key, key) for key in user or {}}
    return {k: v for k, v in defaults.items() if k not in replaced} | dict(user or {})


def panel_grid(plt: Any, n: int, height: float = 3.3) -> NDArray[np.object_]:
    """Axes of one panel a parameter, in a new figure; height is that of a panel in inches."""
    columns = n_columns(n)
    n_rows = math.ceil(n / columns)
    figure, grid = plt.subplots(
        n_rows,
        columns,
        figsize=(max(4.4, 3.3 * columns), height * n_rows),
        layout="constrained",
        squeeze=False,
    )
    for spare in grid.ravel()[n:]:
        figure.delaxes(spare)
    return grid.ravel()[:n]


def check_panels(given: Any, n: int, name: str = "axes") -> NDArray[np.object_]:
    """Axes handed in by the user, one for each parameter."""
    axes = np.atleast_1d(np.asarray(given, dtype=object)).ravel()
    if len(axes) != n or not all(hasattr(each, "vlines") for each in axes):
        raise ValueError(
            f"{name} is {given!r}, expected {n} Axes, one for each parameter; make them with "
            f"plt.subplots(1, {n}), or leave {name} out."
        )
    return axes


def corner_grid(plt: Any, n: int) -> NDArray[np.object_]:
    """Axes on and below the diagonal, in a new figure; None above it."""
    size = 1.35 * n + 1.2 if n > 1 else 4.0
    figure = plt.figure(figsize=(size, size))
    # Room in inches for labels at the left and below; panels that nearly touch.
    low, high = 0.95 / size, 1 - 0.12 / size
    gaps = {"wspace": 0.07, "hspace": 0.07}
    grid = figure.add_gridspec(n, n, left=low, right=high, bottom=low, top=high, **gaps)
    axes = np.full((n, n), None, dtype=object)
    for row in range(n):
        for column in range(row + 1):
            axes[row, column] = figure.add_subplot(grid[row, column])
    return axes


def check_corner(given: Any, n: int) -> NDArray[np.object_]:
    """Axes of a corner plot handed in by the user; those above the diagonal are switched off."""
    axes = np.asarray(given, dtype=object)
    axes = axes.reshape(1, 1) if n == 1 and axes.size == 1 else axes
    lower = [axes[i, j] for i in range(n) for j in range(i + 1)] if axes.shape == (n, n) else []
    if not lower or not all(hasattr(each, "contourf") for each in lower):
        raise ValueError(
            f"axes has shape {axes.shape}, expected Axes of shape ({n}, {n}): make them with "
            f"plt.subplots({n}, {n}), or leave axes out."
        )
    for i in range(n):
        for j in range(i + 1, n):
            if axes[i, j] is not None:
                axes[i, j].set_axis_off()
    return axes
