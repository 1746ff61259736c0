"""The six parameters of a light cone: names, units, symbols, 21cmFAST's names, and the prior box.

They are those of SKATR (arXiv:2410.18899, section 2), in the order of the paper. Nothing else in
the package writes them down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "PARAMETERS",
    "PARAMETER_NAMES",
    "PARAMETER_UNITS",
    "PRIOR_BOUNDS",
    "Parameter",
    "name_columns",
]


class Parameter(NamedTuple):
    """One parameter of the simulations."""

    name: str  # as in ``target_names``
    unit: str  # empty where there is none; of a logarithm ``log10(...)``
    symbol: str  # in the mathematics of matplotlib, without the unit
    symbol_unit: str  # of what the symbol shows: of a logarithm the unit of its argument
    attribute: str  # what the files of 21cmFAST call it
    low: float  # ends of the uniform prior, in the unit
    high: float
    logarithmic: bool = False  # whether the values are decimal logarithms


PARAMETERS = (
    # Mass of a thermal relic of warm dark matter.
    Parameter("m_WDM", "keV", r"$m_\mathrm{WDM}$", "keV", "M_WDM", 0.3, 10.0),
    # Density of matter today, over the critical one.
    Parameter("Omega_m", "", r"$\Omega_m$", "", "OMm", 0.2, 0.4),
    # X-rays of less energy are absorbed in their own galaxy.
    Parameter("E_0", "eV", r"$E_0$", "eV", "NU_X_THRESH", 100.0, 1500.0),
    # Luminosity in X-rays below 2 keV over the rate of star formation.
    Parameter(
        "log10_L_X", "log10(erg/s/(Msun/yr))", r"$\log_{10} L_X$", "erg/s/(Msun/yr)", "L_X",
        38.0, 42.0, logarithmic=True,
    ),
    # Smallest virial temperature of haloes that form stars.
    Parameter(
        "log10_T_vir", "log10(K)", r"$\log_{10} T_\mathrm{vir}$", "K", "ION_Tvir_MIN",
        4.0, 5.3, logarithmic=True,
    ),
    # Ionising photons that leave a halo per hydrogen atom, less recombinations.
    Parameter("zeta", "", r"$\zeta$", "", "HII_EFF_FACTOR", 10.0, 250.0),
)  # fmt: skip
PARAMETER_NAMES = tuple(parameter.name for parameter in PARAMETERS)
PARAMETER_UNITS = {parameter.name: parameter.unit for parameter in PARAMETERS}
# Lowest and highest value of each parameter, of shape (6, 2): the box of the bundled light cones.
PRIOR_BOUNDS = np.array([[parameter.low, parameter.high] for parameter in PARAMETERS])
PRIOR_BOUNDS.setflags(write=False)

# No log10 of an X-ray luminosity, in erg/s/(Msun/yr), is beyond these, and no E_0, in eV, within.
_LOG_L_X = (30.0, 45.0)
# Where the density of matter and the log10 of the virial temperature lie, in any simulation.
_OMEGA_M, _LOG_T_VIR = (0.05, 0.95), (2.0, 7.0)


def name_columns(values: np.ndarray) -> tuple[str, ...] | None:
    """Names of six columns (n, 6) without names, by their values; None where they are others.

    Public data sets have the paper's parameters in two orders: ``E_0`` before ``log10_L_X``, as the
    paper, and after it. A ValueError says where the values do not tell. NaN is a value that is not
    known: where ``Omega_m`` and ``log10_T_vir`` are, one of the other two tells, and with neither
    the order of the paper is as good as the other.

    >>> name_columns(np.array([[3.0, 0.3, 40.5, 500.0, 4.7, 30.0]]))[2:4]
    ('log10_L_X', 'E_0')
    """
    known = [values[np.isfinite(values[:, column]), column] for column in range(len(PARAMETERS))]

    def within(column: int, bounds: tuple[float, float]) -> bool:
        return bool(((bounds[0] <= known[column]) & (known[column] <= bounds[1])).all())

    order = list(PARAMETER_NAMES)
    e_0, l_x = order.index("E_0"), order.index("log10_L_X")
    above = (np.nextafter(_LOG_L_X[1], np.inf), np.inf)
    omega_m, t_vir = order.index("Omega_m"), order.index("log10_T_vir")
    others = ((omega_m, _OMEGA_M), (t_vir, _LOG_T_VIR))
    sure = all(len(known[column]) and within(column, bounds) for column, bounds in others)
    right = within(l_x, _LOG_L_X) and within(e_0, above)
    swapped = not right and within(e_0, _LOG_L_X) and within(l_x, above)
    if (right or swapped) and (sure or (len(known[e_0]) and len(known[l_x]))):
        for column, bounds in others:
            if not within(column, bounds):
                raise ValueError(
                    f"six labels without names, of which column {column} begins with "
                    f"{known[column][0]:.6g}: expected {order[column]} there, from {bounds[0]:g} "
                    f"to {bounds[1]:g}; name the columns with parameters=[...]"
                )
        if swapped:
            order[e_0], order[l_x] = order[l_x], order[e_0]
        return tuple(order)
    if sure:
        first = values[0, [e_0, l_x]].tolist()
        raise ValueError(
            f"six labels without names, of which the third and fourth begin with {first}: expected "
            "log10 L_X, from 30 to 45, in one of them and E_0 in eV, above 45, in the other; name "
            "the columns with parameters=[...]"
        )
    return None


def in_another_order(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether names are the wanted ones, and not in their order."""
    return list(found) != list(wanted) and sorted(found) == sorted(wanted)


def check_order(name: str, table: Any, names: Sequence[str], what: str = "columns") -> None:
    """Raise where a table has the names of parameters in another order, as its columns or rows.

    `table` may be anything: what has no names, or others, says nothing of an order. `what` is
    "columns", or "rows" of a table of bounds.

    >>> import pandas as pd
    >>> check_order("y", pd.DataFrame([[1.0, 2.0]], columns=["b", "a"]), ["a", "b"])
    Traceback (most recent call last):
    ...
    ValueError: y: expected the columns in the order ['a', 'b'], found ['b', 'a']; ...
    """
    labels = getattr(table, {"columns": "columns", "rows": "index"}[what], None)
    found = [str(label) for label in labels] if isinstance(labels, Iterable) else []
    wanted = [str(each) for each in names]
    if in_another_order(found, wanted):
        at = {"columns": "", "rows": ".loc"}[what]
        raise ValueError(
            f"{name}: expected the {what} in the order {wanted}, found {found}; pass "
            f"{name}{at}[{wanted}]."
        )
