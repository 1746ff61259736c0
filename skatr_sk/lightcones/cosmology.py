"""Redshifts of comoving distances in the cosmology that 21cmFAST simulates in."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline

__all__ = ["comoving_distances", "redshifts_at"]

# Planck 2018, as in 21cmFAST, which changes the Hubble constant and the densities alone.
HUBBLE = 0.6766
OMEGA_M = 0.30966
_T_CMB = 2.7255  # K
_N_EFF = 3.046
_NEUTRINO_MASSES = np.array([0.0, 0.0, 0.06])  # eV
_HUBBLE_DISTANCE = 2997.92458  # Mpc / h
_PHOTONS = 4.48162009e-7  # of the critical density, times h^2 / T^4
_KELVIN = 8.617333262e-5  # eV
_GRID = np.linspace(0.0, np.log1p(1100.0), 4001)  # of log(1 + z)


def _expansion(z: np.ndarray, omega_m: float, hubble: float) -> np.ndarray:
    """H(z) / H_0 of a flat universe with photons and neutrinos, one of them massive."""
    photons = _PHOTONS * _T_CMB**4 / hubble**2

    def neutrinos(z: np.ndarray) -> np.ndarray:
        # Komatsu et al. 2011 (WMAP 7), eq. 26: relative to the photons.
        mass = _NEUTRINO_MASSES / (_KELVIN * _T_CMB * (4 / 11) ** (1 / 3))
        x = mass[:, None] / (1 + z)
        heavy = (1 + (0.3173 * x) ** 1.83) ** (1 / 1.83)
        relative: np.ndarray = 7 / 8 * (4 / 11) ** (4 / 3) * _N_EFF / 3 * heavy.sum(axis=0)
        return relative

    vacuum = 1 - omega_m - photons * (1 + neutrinos(np.zeros(1)))
    squared = omega_m * (1 + z) ** 3 + photons * (1 + neutrinos(z)) * (1 + z) ** 4 + vacuum
    root: np.ndarray = np.sqrt(squared)
    return root


def comoving_distances(z: ArrayLike, omega_m: float, hubble: float = HUBBLE) -> np.ndarray:
    """Comoving distance in Mpc to redshifts up to 1100.

    Parameters
    ----------
    z : array-like
    omega_m : float
        Matter density.
    hubble : float
        Hubble constant in 100 km/s/Mpc.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> print(np.round(comoving_distances([5, 20], omega_m=0.3), 2))
    [ 8029.55 11087.36]
    """
    spline = CubicSpline(_GRID, _distances(omega_m, hubble))
    found: np.ndarray = spline(np.log1p(np.asarray(z, dtype=np.float64)))
    return found


def redshifts_at(distances: ArrayLike, omega_m: float, hubble: float = HUBBLE) -> np.ndarray:
    """Redshifts at comoving distances in Mpc, the inverse of :func:`comoving_distances`.

    Examples
    --------
    >>> print(np.round(redshifts_at([8029.549, 11087.365], omega_m=0.3), 4))
    [ 5. 20.]
    """
    spline = CubicSpline(_distances(omega_m, hubble), _GRID)
    found: np.ndarray = np.expm1(spline(np.asarray(distances, dtype=np.float64)))
    return found


def _distances(omega_m: float, hubble: float) -> np.ndarray:
    """Comoving distances at the grid of redshifts."""
    z = np.expm1(_GRID)
    # dz / H = (1 + z) dlog(1 + z) / H, smooth on the grid
    integrand = (1 + z) / _expansion(z, omega_m, hubble)
    integral: np.ndarray = CubicSpline(_GRID, integrand).antiderivative()(_GRID)
    return _HUBBLE_DISTANCE / hubble * integral
