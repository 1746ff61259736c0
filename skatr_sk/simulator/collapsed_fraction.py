"""The share of matter in haloes that form stars, in all of the universe or in dense regions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skatr_sk.simulator.cosmology import HUBBLE, OMEGA_B, Cosmology, match_axes

__all__ = [
    "DELTA_CRITICAL", "F_STAR", "Haloes", "barriers", "conditional_fraction", "jeans_mass",
    "press_schechter", "sheth_tormen",
]  # fmt: skip

DELTA_CRITICAL = 1.68  # linear density contrast of what collapses
F_STAR = 0.05  # share of the collapsed baryons that is in stars
# Sheth and Tormen's mass function with the constants of Jenkins et al. 2001
# (Barkana and Loeb 2001, astro-ph/0010468).
_ST_A, _ST_P, _ST_NORM = 0.73, 0.175, 0.353


def sheth_tormen(nu: Tensor) -> Tensor:
    """Collapsed fraction above a mass of peak height nu, after Sheth and Tormen.

    The peak height is `DELTA_CRITICAL` over the growth factor and today's sigma of the mass.
    """
    half = _ST_A * nu**2 / 2
    order = torch.tensor(0.5 - _ST_P, dtype=half.dtype, device=half.device)
    upper = torch.special.gammaincc(order, half) * math.gamma(0.5 - _ST_P)
    return _ST_NORM * (torch.erfc(half.sqrt()) + 2**-_ST_P / math.sqrt(math.pi) * upper)


def press_schechter(nu: Tensor) -> Tensor:
    """Collapsed fraction above a mass, of peak height nu, after Press and Schechter."""
    return torch.erfc(nu / math.sqrt(2))


def barriers(growth: Tensor, sigma_min: Tensor, sigma_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Peak height that collapses in regions of the mean density, and how it falls with density.

    Growth factors and standard deviations today, in spheres of the smallest halo's mass and of the
    regions' size, have shapes that broadcast. No halo is in a region smaller than it.
    """
    excess = sigma_min**2 - sigma_scale**2
    fall = (2 * excess.clamp(min=1e-12)).rsqrt()
    return torch.where(excess > 0, DELTA_CRITICAL / growth * fall, math.inf), fall


def conditional_fraction(density: Tensor, barrier: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """Collapsed fraction of regions, and the argument of erfc in it, of the shape of `density`.

    Extended Press-Schechter (Bond et al. 1991, Lacey and Cole 1993). The linear density contrasts
    (n, n_scales, ...), extrapolated to today, are those of regions of some scales, whose
    :func:`barriers` have shape (n, n_scales).
    """
    barrier, fall = (match_axes(t.to(density.dtype), density) for t in (barrier, fall))
    peak = (density * -fall).add_(barrier)  # with factors that broadcast, addcmul is slow
    return torch.erfc(peak), peak


def jeans_mass(cosmology: Cosmology) -> Tensor:
    """Mass in Msun that the velocities of the dark matter keep from collapsing, shape (n,).

    Barkana, Haiman and Ostriker 2001, eq. 10, times 60: their simulated haloes.
    """
    density = (cosmology.omega_m - OMEGA_B) * HUBBLE**2 / 0.15
    return 60 * 3.06e8 * density.sqrt() * cosmology.m_wdm**-4 * (1.2 * density) ** 1.5


class Haloes:
    """The smallest haloes that form stars.

    They have virial temperatures (n,) in K, or the Jeans mass of the dark matter if it is larger.
    """

    def __init__(self, cosmology: Cosmology, t_vir: Tensor) -> None:
        self.cosmology, self._t_vir = cosmology, t_vir
        self._jeans_mass = jeans_mass(cosmology)

    def sigma(self, z: Tensor) -> Tensor:
        """Standard deviation today on the scale of their mass; z and result of shape (n, ...)."""
        cosmology, t_vir = self.cosmology, match_axes(self._t_vir, z)
        # Virial mass in Msun where the gas is ionised: Barkana and Loeb 2001, eq. 26, with the
        # overdensity of Bryan and Norman 1998.
        omega = cosmology.matter_fraction(z)
        overdensity = 18 * math.pi**2 + 82 * (omega - 1) - 39 * (omega - 1) ** 2
        density = match_axes(cosmology.omega_m, z) * overdensity / omega
        mass = 7030.97 / HUBBLE * density**-0.5 * (t_vir / (0.6 * (1 + z))) ** 1.5
        mass = torch.maximum(mass, match_axes(self._jeans_mass, z))
        return cosmology.sigma(cosmology.radius(mass))

    def nu(self, z: Tensor) -> Tensor:
        """Peak height of their mass, the argument of the collapsed fractions."""
        return DELTA_CRITICAL / (self.sigma(z) * self.cosmology.growth(z))
