"""X-rays: which of them arrive, and the heat, ions and Lyman alpha photons that they make."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skatr_sk.simulator.collapsed_fraction import F_STAR, Haloes, press_schechter
from skatr_sk.simulator.cosmology import (
    BARYONS,
    CRITICAL_DENSITY,
    EV,
    HELIUM,
    HUBBLE_RATE,
    HYDROGEN,
    OMEGA_B,
    PLANCK,
    SOLAR_MASS,
    SPEED_OF_LIGHT,
    interpolate,
)

__all__ = [
    "X_E", "Paths", "cross_section", "paths_to", "transparent_energy", "xray_photons",
    "xray_tables",
]  # fmt: skip

X_E = torch.tensor([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.6, 0.9, 0.999])  # of tables
_LN_ENERGY = (math.log(50.0), math.log(1e4), 400)  # eV, of tables
_LN_ENERGY_TAU = (math.log(80.0), math.log(1e4), 48)  # eV, of optical depths
_LN_ENERGY_SIGMA = (math.log(80.0), math.log(1e5), 2000)  # eV, where photons set out
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
_BAND_TOP = 2000.0  # eV: L_X is the luminosity between E_0 and here
_YEAR = 3.15569e7  # s
_EV_HZ = EV / PLANCK


def _hydrogenic(energy: Tensor, charge: int) -> Tensor:
    """Cross section, cm^2, of one electron around a nucleus (Osterbrock 1989, eq. 2.4)."""
    threshold = 13.6 * charge**2
    x = (energy / threshold - 1).clamp(min=1e-8).sqrt()
    shape = torch.exp(4 - 4 * torch.atan(x) / x) / (1 - torch.exp(-2 * math.pi / x))
    return 6.3e-18 / charge**2 * (threshold / energy) ** 4 * shape * (energy >= threshold)


def _helium(energy: Tensor) -> Tensor:
    """Cross section, cm^2, of neutral helium (Verner et al. 1996, astro-ph/9601009)."""
    x = energy / 13.61 - 0.4434
    y = (x**2 + 2.136**2).sqrt()
    shape = ((x - 1) ** 2 + 2.039**2) * y ** (0.5 * 3.188 - 5.5)
    return 9.492e-16 * shape * (1 + (y / 1.469).sqrt()) ** -3.188 * (energy >= 24.59)


def cross_section(energy: Tensor, x_e: Tensor) -> Tensor:
    """Cross section in cm^2 per nucleus of hydrogen or helium, for photons of an energy in eV.

    Hydrogen is ionised, and helium singly ionised, to a share x_e.
    """
    neutral = HYDROGEN * _hydrogenic(energy, 1) + HELIUM * _helium(energy)
    return (1 - x_e) * neutral + x_e * HELIUM * _hydrogenic(energy, 2)


def _electron_yields(energy: Tensor, x_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heat fraction, ionisations and Lyman alpha photons per eV of a fast electron.

    Our fit, to 0.03 in the heat fraction, to the Monte Carlo of Furlanetto and Stoever 2010
    (arXiv:0910.4410).
    """
    x, e = x_e.log10(), (energy.clamp(min=80.0) / 500).log10()
    at_500_eV = 4.3254 + 4.1193 * x + 1.0269 * x**2 + 0.0979 * x**3
    heat = torch.sigmoid(at_500_eV + (-0.9211 - 0.1891 * x) * e + 0.2572 * e**2)
    ions = 0.03423 - 0.00017 * x - 0.00025 * x**2 - (0.00068 + 0.00033 * x) * e
    alpha = 0.03879 - 0.00068 * x + 0.00006 * x**2 + (0.00042 + 0.00018 * x) * e
    return heat, (1 - heat) * ions, (1 - heat) * alpha


@functools.cache
def _rates_above() -> Tensor:
    """Integrals of :func:`xray_tables` on the grid of energies, (3, n_x_e, n_energies)."""
    ln_e = torch.linspace(*_LN_ENERGY, dtype=torch.float64)
    energy, x_e = ln_e.exp(), X_E.double()[:, None]
    rates = torch.zeros(3, len(x_e), len(energy), dtype=torch.float64)
    for threshold, number, sigma in (
        (13.6, HYDROGEN * (1 - x_e), _hydrogenic(energy, 1)),
        (24.59, HELIUM * (1 - x_e), _helium(energy)),
        (54.4, HELIUM * x_e, _hydrogenic(energy, 2)),
    ):
        left = (energy - threshold).clamp(min=0)
        heat, ions, alpha = _electron_yields(left, x_e)
        rates += torch.stack([heat * left * EV, 1 + ions * left, alpha * left]) * number * sigma
    integrand = rates / energy * _EV_HZ  # d nu = energy d ln energy
    pieces = (integrand[..., 1:] + integrand[..., :-1]) / 2 * (ln_e[1] - ln_e[0])
    return torch.nn.functional.pad(pieces.flip(-1).cumsum(-1).flip(-1), (0, 1))


def xray_tables(lowest: Tensor) -> Tensor:
    """Heat, ionisations and Lyman alpha photons that X-rays above an energy give a nucleus.

    For lowest energies in eV, of shape (...), a result of shape (..., 3, n_x_e): the integrals over
    frequency, up to 10 keV, of cross section times yield (erg, 1, 1) times a photon spectrum
    ``(energy / 1 eV)**-2``, at the ionised fractions `X_E`.
    """
    lowest, tables = lowest.double(), _rates_above().to(lowest.device)
    step = (_LN_ENERGY[1] - _LN_ENERGY[0]) / (_LN_ENERGY[2] - 1)
    each = lowest.log().expand(3 * len(X_E), *lowest.shape)
    between = interpolate(each, _LN_ENERGY[0], step, tables.flatten(0, 1))
    return between.unflatten(0, (3, -1)).movedim((0, 1), (-2, -1))


def xray_photons(z: float, E_0: Tensor, log10_L_X: Tensor) -> Tensor:
    """Photons at z for the matter that collapses in a shell: they multiply :func:`xray_tables`.

    L_X in erg/s/(Msun/yr) is the luminosity from the threshold of self-absorption E_0, in eV, to
    2 keV; the number of photons falls with the square of their energy.
    """
    per_star = 10**log10_L_X * _YEAR / PLANCK / (_BAND_TOP / E_0).log() / _EV_HZ**2
    stars = F_STAR * OMEGA_B * CRITICAL_DENSITY / SOLAR_MASS  # Msun/cm^3
    return per_star * SPEED_OF_LIGHT * stars * (1 + z) ** 4


class Paths(NamedTuple):
    """Ways to shells, at nodes of an integral, each of shape (n, ..., n_shells, n_nodes)."""

    f_coll: Tensor  # after Press and Schechter
    column: Tensor  # cm^-2, of all nuclei
    neutral: Tensor  # cm^2, cross sections for energies that arrive, along another axis: x_e = 0
    ionised: Tensor  # x_e = 1; both float32

    def at(self, i: int) -> Paths:
        """Those to the shells around points at one of some redshifts."""
        return Paths(*(values[:, i] for values in self))


def paths_to(haloes: Haloes, z: Tensor, z_shells: Tensor) -> Paths:
    """Paths from redshifts (n, n_z) to shells around at (n, n_z, n_shells)."""
    nodes, weights = _NODES.to(z.device), _WEIGHTS.to(z.device)
    z = z[..., None, None]
    half = (z_shells[..., None] - z) / 2
    between = z + half * (1 + nodes)
    per_z = SPEED_OF_LIGHT / (HUBBLE_RATE * haloes.cosmology.expansion(between) * (1 + between))
    column = per_z * BARYONS * (1 + between) ** 3 * half * weights
    ln_energy = torch.linspace(*_LN_ENERGY_TAU, dtype=torch.float64, device=z.device)
    set_out = ln_energy.float() + ((1 + between) / (1 + z)).log()[..., None].float()
    start, stop, n = _LN_ENERGY_SIGMA
    tables = _ln_cross_sections().to(set_out)[:, None]
    sigmas = (interpolate(set_out[None], start, (stop - start) / (n - 1), t) for t in tables)
    return Paths(press_schechter(haloes.nu(between)), column, *(t[0].exp() for t in sigmas))


@functools.cache
def _ln_cross_sections() -> Tensor:
    """Cross sections of :func:`cross_section` for x_e of 0 and 1, good to 1e-5 between nodes."""
    energy = torch.linspace(*_LN_ENERGY_SIGMA, dtype=torch.float64).exp()
    return cross_section(energy, torch.tensor([[0.0], [1.0]], dtype=torch.float64)).log()


def transparent_energy(paths: Paths, x_e: Tensor, efficiency: Tensor) -> Tensor:
    """Energy in eV, on arrival, of X-rays whose optical depth to each shell is one.

    X-rays pass gas that is ionised to a share x_e outside bubbles. The bubbles' share of the volume
    is `efficiency` times the collapsed fraction of Press and Schechter. Both have shape (n,), the
    paths and the result (n, n_shells, ...).
    """
    x_e, efficiency = x_e.view(-1, 1, 1), efficiency.view(-1, 1, 1)
    neutral = 1 - efficiency / (1 - x_e) * paths.f_coll
    column = (paths.column * neutral.clamp(min=1e-4)).to(paths.neutral)
    sigma = torch.lerp(paths.neutral, paths.ionised, x_e[..., None].to(paths.neutral))
    ln_tau = (column[..., None, :] @ sigma)[..., 0, :].double().log()  # falls with energy
    ln_energy = torch.linspace(*_LN_ENERGY_TAU, dtype=torch.float64, device=x_e.device)
    above = (ln_tau > 0).sum(-1, keepdim=True).clamp(1, len(ln_energy) - 1)
    high, low = ln_tau.gather(-1, above), ln_tau.gather(-1, above - 1)
    share = (low / (low - high)).clamp(0, 1)
    return torch.lerp(ln_energy[above - 1], ln_energy[above], share)[..., 0].exp()
