"""The cosmology of the package: constants, expansion, distances, growth, power spectrum of matter.

It is that of 21cmFAST and of astropy's ``Planck18``: flat, with photons and three neutrinos, one of
them of 0.06 eV. The matter density does not include the neutrinos. The Hubble constant and the
matter density may vary. Units are cgs where none are given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "BARYONS", "BOLTZMANN", "CRITICAL_DENSITY", "EV", "HELIUM", "HUBBLE", "HUBBLE_RATE", "HYDROGEN",
    "MPC", "OMEGA_B", "OMEGA_M", "PLANCK", "PROTON_MASS", "SOLAR_MASS", "SPEED_OF_LIGHT", "T_CMB",
    "Background", "Cosmology", "comoving_distances", "interpolate", "match_axes", "redshifts_at",
    "top_hat",
]  # fmt: skip

# CODATA 2018; the solar mass and the parsec are the IAU's.
SPEED_OF_LIGHT = 2.99792458e10  # cm/s
BOLTZMANN = 1.380649e-16  # erg/K
PLANCK = 6.62607015e-27  # erg s
EV = 1.602176634e-12  # erg
PROTON_MASS = 1.67262192e-24  # g
SOLAR_MASS = 1.98841e33  # g
MPC = 3.0856775814913673e24  # cm
_GRAVITY = 6.6743e-8  # cm^3 / g / s^2

# Planck 2018 (arXiv:1807.06209, last column of table 2).
HUBBLE = 0.6766  # 100 km/s/Mpc
OMEGA_M = 0.30966
OMEGA_B = 0.04897
T_CMB = 2.7255  # K, today
_SIGMA_8 = 0.8102
_SPECTRAL_INDEX = 0.9665
_N_EFF = 3.046
_NEUTRINO_MASS = 0.06  # eV; the two others have none
_HELIUM_MASS = 0.245  # share of the baryons' mass

HUBBLE_RATE = 1e7 * HUBBLE / MPC  # today, 1/s
CRITICAL_DENSITY = 3 * HUBBLE_RATE**2 / (8 * math.pi * _GRAVITY)  # g / cm^3
# Energy density of photons: Omega_photons h^2 / (T_CMB / 1 K)^4, from 4 sigma / c^3 where sigma is
# the constant of Stefan and Boltzmann.
_PHOTONS = 4.48162009e-7
# Numbers of hydrogen and helium among nuclei, and nuclei per cubic centimetre today.
HYDROGEN = (1 - _HELIUM_MASS) / (1 - _HELIUM_MASS + _HELIUM_MASS / 4)
HELIUM = 1 - HYDROGEN
BARYONS = CRITICAL_DENSITY * OMEGA_B * (1 - 0.75 * _HELIUM_MASS) / PROTON_MASS

_HUBBLE_DISTANCE = 1e-7 * SPEED_OF_LIGHT  # Mpc / h
_X_STEP, _N_X = 0.01, 702  # of x = ln(1 + z), to a redshift of 1100
_AT_ONCE = 256  # cosmologies for which tables are held in memory
_LN_K = (math.log(1e-5), math.log(1e5), 1200)  # 1/Mpc
_LN_R = (math.log(1e-3), math.log(700.0), 160)  # Mpc


def _relativistic(a: Tensor) -> Tensor:
    """Energy density of photons and neutrinos over that of photons at a = 1 + z.

    arXiv:1001.4538, eq. 26.
    """
    t_over_cmb = (4 / 11) ** (1 / 3)
    x = _NEUTRINO_MASS * EV / (BOLTZMANN * T_CMB * t_over_cmb * a)
    two_massless = 2 + (1 + (0.3173 * x) ** 1.83) ** (1 / 1.83)
    return 1 + 7 / 8 * t_over_cmb**4 * _N_EFF / 3 * two_massless


def match_axes(values: Tensor, like: Tensor) -> Tensor:
    """Append axes of length 1, until there are as many as `like` has."""
    return values.view(*values.shape, *[1] * (like.ndim - values.ndim))


class Background:
    """A batch of n expanding universes.

    `omega_m` (n,) is the density of matter today over the critical one, without neutrinos; `hubble`
    is the Hubble constant in 100 km/s/Mpc. The methods take float64 of shape (n, ...), its first
    axis counts universes, and return that shape.
    """

    def __init__(self, omega_m: Tensor, hubble: Tensor | float = HUBBLE) -> None:
        self.omega_m = omega_m.double()
        self.hubble = torch.as_tensor(hubble, dtype=torch.float64, device=omega_m.device)
        self.hubble = self.hubble.expand(len(omega_m))
        self._photons = _PHOTONS * T_CMB**4 / self.hubble**2
        self._vacuum = 1 - self.omega_m - self._photons * _relativistic(torch.ones_like(omega_m))
        # dz / H = (1 + z) dx / H is smooth on a grid of x, and Simpson's rule good to 1e-9.
        x = torch.arange(2 * _N_X - 1, dtype=torch.float64, device=omega_m.device) * (_X_STEP / 2)
        z = torch.expm1(x)[None]
        integrand = _HUBBLE_DISTANCE / match_axes(self.hubble, z) * (1 + z) / self.expansion(z)
        self._slope, middle = _X_STEP * integrand[:, ::2], _X_STEP * integrand[:, 1::2]
        steps = (self._slope[:, :-1] + 4 * middle + self._slope[:, 1:]) / 6
        self._distance = torch.nn.functional.pad(steps.cumsum(1), (1, 0))

    def expansion(self, z: Tensor) -> Tensor:
        """Hubble rate over that of today."""
        omega_m, photons, vacuum = (
            match_axes(each, z) for each in (self.omega_m, self._photons, self._vacuum)
        )
        a = 1 + z
        return (omega_m * a**3 + photons * _relativistic(a) * a**4 + vacuum).sqrt()

    def matter_fraction(self, z: Tensor) -> Tensor:
        """Omega_m at a redshift."""
        return match_axes(self.omega_m, z) * (1 + z) ** 3 / self.expansion(z) ** 2

    def distance(self, z: Tensor) -> Tensor:
        """Comoving distance in Mpc, to redshifts up to 1100."""
        x = (torch.log1p(z.double()) / _X_STEP).reshape(len(z), -1)
        low = x.long().clamp(0, _N_X - 2)
        near, far, slope, end_slope = self._around(low)
        return (near + _cubic(x - low, far - near, slope, end_slope)).view(z.shape)

    def redshift(self, distance: Tensor) -> Tensor:
        """Redshift at comoving distances in Mpc, the inverse of :meth:`distance`."""
        wanted = distance.double().reshape(len(distance), -1).contiguous()
        low = torch.searchsorted(self._distance, wanted).clamp(1, _N_X - 1) - 1
        near, far, slope, end_slope = self._around(low)
        width = far - near
        x = low + _cubic((wanted - near) / width, 1, width / slope, width / end_slope)
        return torch.expm1(x * _X_STEP).view(distance.shape)

    def _around(self, low: Tensor) -> list[Tensor]:
        """Distances at the nodes `low` and after them, then their slopes at both."""
        tables = self._distance, self._slope
        return [table.gather(1, nodes) for table in tables for nodes in (low, low + 1)]


def _cubic(t: Tensor, rise: Tensor | float, slope: Tensor, end_slope: Tensor) -> Tensor:
    """Cubic polynomial that is 0 at t = 0 and `rise` at t = 1, of given slopes there (Hermite)."""
    curve = 3 * rise - 2 * slope - end_slope + t * (slope + end_slope - 2 * rise)
    return t * (slope + t * curve)


def comoving_distances(z: ArrayLike, omega_m: ArrayLike, hubble: ArrayLike = HUBBLE) -> np.ndarray:
    """Comoving distances in Mpc, float64, to redshifts up to 1100.

    For n cosmologies `omega_m` and `hubble` (in 100 km/s/Mpc) have shape (n,), and `z` (n, ...).
    """
    return _in_each(Background.distance, z, omega_m, hubble)


def redshifts_at(distance: ArrayLike, omega_m: ArrayLike, hubble: ArrayLike = HUBBLE) -> np.ndarray:
    """Redshifts at comoving distances in Mpc, the inverse of :func:`comoving_distances`."""
    return _in_each(Background.redshift, distance, omega_m, hubble)


def _in_each(
    function: Callable[[Background, Tensor], Tensor], values: ArrayLike, *cosmology: ArrayLike
) -> np.ndarray:
    """Apply a method of :class:`Background` to numpy arrays, some cosmologies at a time."""
    values = np.array(values, dtype=np.float64)
    cosmologies = np.array(np.broadcast_arrays(*cosmology), dtype=np.float64)
    n = cosmologies.size // 2
    found = np.empty((n, values.size // max(n, 1)))
    for start in range(0, n, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        omega, h = torch.from_numpy(cosmologies.reshape(2, n)[:, part])
        rows = torch.from_numpy(values.reshape(found.shape)[part])
        found[part] = function(Background(omega, h), rows).numpy()
    return found.reshape(values.shape)


def interpolate(x: Tensor, start: float, step: float, table: Tensor) -> Tensor:
    """Interpolate linearly in tables over the grid ``start + i * step``, constant beyond its ends.

    There is a table, a row of ``(n, n_grid)``, for each row of `x`, which has shape ``(n, ...)``.
    """
    position = ((x.to(table) - start) / step).clamp(0, table.shape[1] - 1).reshape(len(table), -1)
    low = position.long().clamp(max=table.shape[1] - 2)
    below, above = table.gather(1, low), table.gather(1, low + 1)
    return torch.lerp(below, above, position - low).view(x.shape)


def top_hat(x: Tensor) -> Tensor:
    """Fourier transform of a sphere of radius 1, normalised to 1 at ``x = k R = 0``."""
    x = x.clamp(min=1e-3)
    return 3 * (torch.sin(x) - x * torch.cos(x)) / x**3


def _step(grid: tuple[float, float, int]) -> float:
    """Step of an even grid of a start, a stop and a number of nodes."""
    start, stop, n = grid
    return (stop - start) / (n - 1)


@functools.lru_cache(maxsize=4)
def _spheres(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Wave numbers k, and the weights of the power at k in the variance of the density in spheres.

    Shapes (n_k,), (n_k, n_r) for spheres of all radii of the table, and (n_k, 1) for 8 Mpc / h.
    """
    ln_k, ln_r = (torch.linspace(*grid, dtype=torch.float64) for grid in (_LN_K, _LN_R))
    k = ln_k.exp()
    weight = (k**3 / (2 * math.pi**2) * _step(_LN_K))[:, None]
    radii = ln_r.exp(), torch.tensor([8 / HUBBLE], dtype=torch.float64)
    spheres, sphere_8 = (weight * top_hat(k[:, None] * radius) ** 2 for radius in radii)
    return k.to(device), spheres.to(device), sphere_8.to(device)


def _suppressed(omega_m: Tensor) -> Tensor:
    """Growth factor over 1 / (1 + z) at a matter density over the critical one of its time."""
    return 2.5 * omega_m / (1 / 70 + omega_m * (209 - omega_m) / 140 + omega_m ** (4 / 7))


class Cosmology(Background):
    """A batch of n universes with Planck's Hubble constant, and the matter in them.

    The mass `m_wdm` (n,) of the dark matter particle is in keV; infinity is cold dark matter. The
    transfer function is the smooth one of Eisenstein and Hu 1999 (astro-ph/9710252), cut off for
    warm dark matter as in Bode, Ostriker and Turok 2001 (astro-ph/0010389) at the scale of Barkana,
    Haiman and Ostriker 2001 (astro-ph/0102304, eq. 4). Growth follows Carroll, Press and Turner
    1992.
    """

    def __init__(self, omega_m: Tensor, m_wdm: Tensor) -> None:
        super().__init__(omega_m)
        self.m_wdm = m_wdm.double()
        self._growth_today = _suppressed(self.omega_m)
        k, spheres, sphere_8 = _spheres(omega_m.device)
        power = k**_SPECTRAL_INDEX * self._transfer(k) ** 2  # (n, n_k), not normalised
        norm = _SIGMA_8**2 / (power @ sphere_8)
        self._ln_sigma = 0.5 * (norm * (power @ spheres)).log()
        self._ln_power = (norm * power).clamp(min=1e-300).log()

    def _transfer(self, k: Tensor) -> Tensor:
        """Transfer function at wave numbers of shape (n_k,), in 1/Mpc; shape (n, n_k)."""
        omega_m = self.omega_m[:, None]
        omhh, obhh = omega_m * HUBBLE**2, OMEGA_B * HUBBLE**2
        f_b, theta = OMEGA_B / omega_m, T_CMB / 2.7
        z_equal = 2.5e4 * omhh * theta**-4 - 1
        k_equal = 0.0746 * omhh / theta**2
        b1 = 0.313 * omhh**-0.419 * (1 + 0.607 * omhh**0.674)
        b2 = 0.238 * omhh**0.223
        z_drag = 1291 * omhh**0.251 / (1 + 0.659 * omhh**0.828) * (1 + b1 * obhh**b2)
        y_drag = (1 + z_equal) / (1 + z_drag)
        r_drag = 31.5 * obhh * theta**-4 * 1000 / (1 + z_drag)
        r_equal = 31.5 * obhh * theta**-4 * 1000 / (1 + z_equal)
        ratio = ((1 + r_drag).sqrt() + (r_drag + r_equal).sqrt()) / (1 + r_equal.sqrt())
        horizon = 2 / (3 * k_equal) * (6 / r_equal).sqrt() * ratio.log()
        # Suppression of growth by baryons, without neutrinos (their p_cb is 0).
        p_c = -(5 - (1 + 24 * (1 - f_b)).sqrt()) / 4
        alpha = (1 - f_b) * (2 * p_c + 5) / 5
        alpha = alpha * (1 - 0.553 * f_b + 0.126 * f_b**3) * (1 + y_drag) ** p_c
        alpha = alpha * (1 - p_c / 2 * (1 + 1 / (7 * (4 * p_c + 3))) / (1 + y_drag))
        gamma = alpha.sqrt() + (1 - alpha.sqrt()) / (1 + (0.43 * k * horizon) ** 4)
        q = k * theta**2 / (omhh * gamma)
        log_term = (math.e + 1.84 * alpha.sqrt() / (1 - 0.949 * f_b) * q).log()
        cold = log_term / (log_term + q**2 * (14.4 + 325 / (1 + 60.5 * q**1.11)))
        density = (omega_m - OMEGA_B) * HUBBLE**2 / 0.15
        cutoff = 0.201 * density**0.15 * self.m_wdm[:, None] ** -1.15
        return cold * (1 + (0.361 * k * cutoff) ** 2.4) ** (-5 / 1.2)

    def power(self, k: Tensor) -> Tensor:
        """Linear power spectrum today, Mpc^3, at wave numbers in 1/Mpc."""
        return interpolate(k.log(), _LN_K[0], _step(_LN_K), self._ln_power).exp()

    def sigma(self, radius: Tensor) -> Tensor:
        """Standard deviation today of the linear density in spheres of radii in Mpc."""
        return interpolate(radius.log(), _LN_R[0], _step(_LN_R), self._ln_sigma).exp()

    def radius(self, mass: Tensor) -> Tensor:
        """Comoving radius in Mpc of the sphere that holds a mass, in Msun, at the mean density."""
        density = CRITICAL_DENSITY * MPC**3 / SOLAR_MASS * match_axes(self.omega_m, mass)
        return (mass / (4 / 3 * math.pi * density)) ** (1 / 3)

    def growth(self, z: Tensor) -> Tensor:
        """Linear growth factor, 1 today."""
        growth, today = _suppressed(self.matter_fraction(z)), match_axes(self._growth_today, z)
        return growth / (today * (1 + z))

    def growth_slope(self, z: Tensor) -> Tensor:
        """Derivative of the growth factor with respect to redshift; negative."""
        dx = 1e-3
        nearer, farther = (self.growth((1 + z) * math.exp(step) - 1) for step in (-dx, dx))
        return (farther - nearer) / (2 * dx * (1 + z))
