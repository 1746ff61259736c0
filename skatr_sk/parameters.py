"""The six parameters of a light cone: names, units, symbols, 21cmFAST's names, and the prior box.

They are those of SKATR (arXiv:2410.18899, section 2), in the order of the paper. Nothing else in
the package writes them down.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["PARAMETERS", "PARAMETER_NAMES", "PARAMETER_UNITS", "PRIOR_BOUNDS", "Parameter"]


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
