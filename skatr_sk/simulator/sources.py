"""Galaxies on past shells around a point: how much matter collapses there, which light arrives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from skatr_sk.simulator.collapsed_fraction import (
    DELTA_CRITICAL,
    F_STAR,
    Haloes,
    barriers,
    conditional_fraction,
    sheth_tormen,
)
from skatr_sk.simulator.cosmology import (
    BARYONS,
    BOLTZMANN,
    HUBBLE_RATE,
    MPC,
    SPEED_OF_LIGHT,
    match_axes,
)
from skatr_sk.simulator.initial_conditions import CELL_RADIUS
from skatr_sk.simulator.lyman_alpha import LYMAN_ALPHA, lyman_series
from skatr_sk.simulator.xrays import X_E, Paths, paths_to, xray_photons, xray_tables

__all__ = ["Light", "Shells", "arriving_light", "collapse_in", "shell_radii", "shells_around"]

_N_SHELLS = 10
_LARGEST = 500.0  # Mpc


def shell_radii(cell: float) -> list[float]:
    """Outer radii in Mpc of the shells, from that of a cell outwards."""
    smallest = CELL_RADIUS * cell
    ratio = (_LARGEST / smallest) ** (1 / _N_SHELLS)
    return [smallest * ratio**i for i in range(_N_SHELLS)]


class Shells(NamedTuple):
    """Shells around points at n_z redshifts, at the time when their light set out.

    Each of shape (n, n_z, n_shells, ...), or without n_z, around points at one redshift.
    """

    growth: Tensor  # growth factor
    barrier: Tensor  # to collapse, with the next
    fall: Tensor
    scale: Tensor  # of the matter that collapses, over (1 + z)
    stars: Tensor  # continuum and injected flux of this matter, (..., 2)
    paths: Paths

    def at(self, i: int) -> Shells:
        """Those around points at one of the redshifts."""
        growth, barrier, fall, scale, stars = (values[:, i] for values in self[:5])
        return Shells(growth, barrier, fall, scale, stars, self.paths.at(i))


def shells_around(haloes: Haloes, z: Tensor, radii: list[float], sigma_scale: Tensor) -> Shells:
    """Shells of given radii in Mpc around points at redshifts (n, n_z).

    `sigma_scale` (n, n_shells) is the standard deviation of the density within them today.
    """
    cosmology, edges = haloes.cosmology, [z]
    for inner, outer in itertools.pairwise([0.0, *radii]):
        per_mpc = MPC * HUBBLE_RATE * cosmology.expansion(edges[-1]) / SPEED_OF_LIGHT
        edges.append(edges[-1] + (outer - inner) * per_mpc)
    inside, outside = torch.stack(edges[:-1], -1), torch.stack(edges[1:], -1)
    middle = (inside + outside) / 2
    sigma_min, growth = haloes.sigma(middle), cosmology.growth(middle)
    barrier, fall = barriers(growth, sigma_min, sigma_scale[:, None])
    steepness = -DELTA_CRITICAL * cosmology.growth_slope(middle) / growth**2 * fall
    collapsed = sheth_tormen(DELTA_CRITICAL / (sigma_min * growth))
    scale = 2 / math.sqrt(math.pi) * (outside - inside) / (1 + middle) * collapsed * steepness
    z = z[..., None]
    stars = torch.stack(lyman_series(z, middle), dim=-1)
    stars = stars * ((1 + z) * (1 + middle))[..., None] ** 2
    stars = stars * (F_STAR * SPEED_OF_LIGHT * BARYONS / (4 * math.pi))
    paths = paths_to(haloes, z[..., 0], middle)
    return Shells(growth, barrier, fall, scale, stars, paths)


def collapse_in(shells: Shells, density: Iterable[Tensor], lit: Tensor) -> Tensor:
    """Matter that collapses in each shell over its light travel time, over (1 + z).

    `density` gives the linear contrast (n, some shells, ...) of today within the radii of some
    shells after the others; `lit` (n,) says whether there are any galaxies. The result
    (n, n_shells, ...) is a share of the mean density; its mean on every scale follows Sheth and
    Tormen.
    """
    growth, barrier, fall, scale = shells[:4]
    collapsing: list[Tensor] = []
    done = 0
    for contrast in density:
        some = slice(done, done := done + contrast.shape[1])
        f_coll, peak = conditional_fraction(contrast, barrier[:, some], fall[:, some])
        mean = f_coll.flatten(2).mean(2)
        share = scale[:, some] / mean.clamp(min=1e-30)
        share = torch.where((mean > 0) & lit[:, None], share, 0)
        factors = (share, share * growth[:, some])
        share, rise = (match_axes(t.to(contrast.dtype), contrast) for t in factors)
        matter = (contrast * rise).add_(share)  # share * (1 + growth * contrast)
        collapsing.append(peak.square_().neg_().exp_().mul_(matter))
    return collapsing[0] if len(collapsing) == 1 else torch.cat(collapsing, dim=1)


class Light(NamedTuple):
    """What reaches the cells, each of shape (n, ...); fluxes in photons/cm^2/s/Hz/sr."""

    heat: Tensor  # by X-rays, K/s per nucleus
    ions: Tensor  # by X-rays, 1/s per nucleus
    alpha: Tensor  # flux of Lyman alpha that X-rays make in gas of the mean density
    continuum: Tensor  # flux of stars that redshifts into Lyman alpha
    injected: Tensor  # flux of stars that cascades into Lyman alpha


def arriving_light(
    z: float,
    rate: Tensor,
    shells: Shells,
    transparent: Tensor,
    collapsing: Tensor,
    E_0: Tensor,
    log10_L_X: Tensor,
    x_e: Tensor,
) -> Light:
    """Sum the light of all shells around points at z, as one matrix product.

    The share of matter that collapses in each shell has shape (n, n_shells, ...) and is zero where
    there is no light; X-rays arrive above the energies `transparent` (n, n_shells), in eV; `rate`
    (n,) is the Hubble rate in 1/s; E_0 and L_X (n,) are those of
    :func:`~skatr_sk.simulator.xrays.xray_photons`; x_e, of shape (n, ...), is the ionised fraction
    of the gas that takes it up.
    """
    # Only the columns of the tables for the ionised fractions that occur.
    grid = X_E.to(x_e)
    x = x_e.clamp(float(grid[0]) * 1.001, float(grid[-1]) * 0.999)
    first, last = (torch.bucketize(torch.stack(torch.aminmax(x)), grid) - 1).tolist()
    grid = grid[first : last + 2]
    tables = xray_tables(torch.maximum(transparent, E_0[:, None]))[..., first : last + 2]
    tables = tables * xray_photons(z, E_0, log10_L_X)[:, None, None, None]
    # The lowest column, then the steps to the next: linear interpolation is a sum of them.
    tables = tables.diff(dim=-1, prepend=torch.zeros_like(tables[..., :1]))
    heat, ions, alpha = tables.unbind(2)
    per_photon = SPEED_OF_LIGHT / (4 * math.pi * LYMAN_ALPHA) * BARYONS * (1 + z) ** 3
    alpha = alpha * (per_photon / rate.view(-1, 1, 1))
    # In kelvin, heat is within the range of float32.
    xrays = torch.stack([heat / BOLTZMANN, ions, alpha], dim=3).flatten(2)
    weights = torch.cat([shells.stars, xrays], dim=2).transpose(1, 2)
    sums = weights.to(collapsing.dtype) @ collapsing.flatten(2)
    sums = sums.unflatten(2, collapsing.shape[2:])
    by_stars, by_xrays, *steps = sums.split([2, *[3] * len(grid)], dim=1)
    for step, low, high in zip(steps, grid[:-1], grid[1:], strict=True):
        by_xrays.addcmul_(step, ((x - low) / (high - low)).clamp_(0, 1)[:, None])
    return Light(*by_xrays.unbind(1), *by_stars.unbind(1))
