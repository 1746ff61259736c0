"""Galaxies on past shells around a point: how much matter collapses, which X-rays arrive."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import (
    DELTA_CRITICAL,
    HUBBLE_RATE,
    SPEED_OF_LIGHT,
    Cosmology,
)
from skatr_sk.lightcones._radiation import BARYONS, cross_section
from skatr_sk.lightcones._reionisation import CELL_RADIUS, conditional_fraction

__all__ = ["Haloes", "Shells", "emission", "shell_radii", "shells_around"]

_N_SHELLS = 10
_LARGEST = 500.0  # Mpc
_MPC = 3.0857e24  # cm
_LN_ENERGY = (math.log(80.0), math.log(1e4), 48)  # eV
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))


def shell_radii(cell: float) -> list[float]:
    """Outer radii in Mpc of the shells, from that of a cell outwards.

    Examples
    --------
    >>> [round(radius) for radius in shell_radii(200 / 28)]
    [4, 7, 11, 18, 29, 47, 76, 121, 194, 312]
    """
    smallest = CELL_RADIUS * cell
    ratio = (_LARGEST / smallest) ** (1 / _N_SHELLS)
    return [smallest * ratio**i for i in range(_N_SHELLS)]


class Haloes:
    """The smallest haloes that form stars.

    Parameters
    ----------
    cosmology : Cosmology
        Of n light cones.
    t_vir : Tensor of shape (n,)
        Their virial temperature in K.
    """

    def __init__(self, cosmology: Cosmology, t_vir: Tensor) -> None:
        self.cosmology = cosmology
        self.t_vir = t_vir

    def sigma(self, z: Tensor) -> Tensor:
        """Standard deviation today on the scale of their mass; z and result of shape (n, ...)."""
        mass = self.cosmology.smallest_mass(z, self.t_vir)
        jeans = self.cosmology.jeans_mass().view(-1, *[1] * (z.ndim - 1))
        mass = torch.maximum(mass, jeans)
        return self.cosmology.sigma(self.cosmology.radius(mass))


class Shells(NamedTuple):
    """Shells around a point, seen at the time when their light set out.

    Attributes
    ----------
    z : Tensor of shape (n, n_shells)
        Redshift of their middle.
    width : Tensor of shape (n, n_shells)
        In redshift, positive.
    transparent : Tensor of shape (n, n_shells)
        Photon energy in eV, at the point, above which most photons arrive.
    """

    z: Tensor
    width: Tensor
    transparent: Tensor


def shells_around(
    haloes: Haloes, z: float, radii: list[float], electrons: Tensor, efficiency: Tensor
) -> Shells:
    """Shells of given radii around a point at redshift z.

    Parameters
    ----------
    electrons : Tensor of shape (n,)
        Mean ionised fraction of the gas outside bubbles.
    efficiency : Tensor of shape (n,)
        Ionising photons per atom over the collapsed fraction of Press and Schechter.
    """
    cosmology = haloes.cosmology
    edge = torch.full((len(electrons),), z, dtype=torch.float64, device=electrons.device)
    middles, widths, inner = [], [], 0.0
    for radius in radii:
        per_mpc = _MPC * HUBBLE_RATE * cosmology.expansion(edge) / SPEED_OF_LIGHT  # redshift
        outer = edge + (radius - inner) * per_mpc
        middles.append((edge + outer) / 2)
        widths.append(outer - edge)
        edge, inner = outer, radius
    z_shells, width = torch.stack(middles, 1), torch.stack(widths, 1)
    return Shells(z_shells, width, _transparent(haloes, z, z_shells, electrons, efficiency))


def _transparent(
    haloes: Haloes, z: float, z_shells: Tensor, electrons: Tensor, efficiency: Tensor
) -> Tensor:
    """Energy at which the optical depth of X-rays to each shell is one."""
    device = z_shells.device
    nodes, weights = _NODES.to(device), _WEIGHTS.to(device)
    half = (z_shells - z)[..., None] / 2
    between = z + half * (1 + nodes)  # (n, n_shells, n_nodes)
    collapsed = haloes.cosmology.press_schechter(between, haloes.sigma(between))
    free = 1 - electrons.view(-1, 1, 1)
    neutral = (1 - efficiency.view(-1, 1, 1) * collapsed / free).clamp(min=1e-4)
    path = SPEED_OF_LIGHT / (HUBBLE_RATE * haloes.cosmology.expansion(between) * (1 + between))
    column = path * BARYONS * (1 + between) ** 3 * neutral * half * weights
    ln_energy = torch.linspace(*_LN_ENERGY, dtype=torch.float64, device=device)
    arriving = ln_energy.exp() * ((1 + between) / (1 + z))[..., None]
    sigma = cross_section(arriving, electrons.view(-1, 1, 1, 1))
    ln_tau = (column[..., None] * sigma).sum(2).log()  # falls with energy
    above = (ln_tau > 0).sum(-1, keepdim=True).clamp(1, len(ln_energy) - 1)
    high, low = ln_tau.gather(-1, above), ln_tau.gather(-1, above - 1)
    share = (low / (low - high)).clamp(0, 1)
    return torch.lerp(ln_energy[above - 1], ln_energy[above], share)[..., 0].exp()


def emission(
    haloes: Haloes, shells: Shells, density: Tensor, sigma_scale: Tensor, lit: Tensor
) -> Tensor:
    """Matter that collapses in each shell over its light travel time, over (1 + z).

    Parameters
    ----------
    density : Tensor of shape (n, n_shells, ...)
        Linear density contrast of today within the radius of each shell.
    sigma_scale : Tensor of shape (n, n_shells)
        Its standard deviation in the linear theory.
    lit : Tensor of bool, shape (n,)
        Whether there are any galaxies.

    Returns
    -------
    Tensor of the shape of `density`
        Share of the mean density of matter; its mean on every scale follows Sheth and Tormen.
    """
    cosmology = haloes.cosmology
    sigma_min, growth = haloes.sigma(shells.z), cosmology.growth(shells.z)
    fraction, peak = conditional_fraction(density, growth, sigma_min, sigma_scale)
    cells = tuple(range(2, density.ndim))
    mean = fraction.mean(cells)
    spread = (2 * (sigma_min**2 - sigma_scale**2).clamp(min=1e-12)).sqrt()
    steepness = -DELTA_CRITICAL * cosmology.growth_slope(shells.z) / (growth**2 * spread)
    scale = shells.width / (1 + shells.z) * cosmology.collapsed_fraction(shells.z, sigma_min)
    scale = scale * 2 / math.sqrt(math.pi) * steepness / mean.clamp(min=1e-30)
    scale = torch.where((mean > 0) & lit[:, None], scale, 0).to(density.dtype)
    shape = (*growth.shape, *[1] * len(cells))
    growth = growth.to(density.dtype).view(shape)
    return scale.view(shape) * (1 + density * growth) * torch.exp(-(peak**2))
