"""From parameters and noise to brightness: boxes at a ladder of redshifts, a cone through them."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import HUBBLE, OMEGA_B, Cosmology
from skatr_sk.lightcones._density import Grid, InitialConditions, smooth
from skatr_sk.lightcones._heating import T_CMB, Gas, evolve, first_gas
from skatr_sk.lightcones._reionisation import bubble_radii, neutral_fraction
from skatr_sk.lightcones._sources import Haloes, emission, shell_radii, shells_around

__all__ = ["FARTHEST", "Box", "Cones", "cell_redshifts", "node_redshifts", "simulate"]

FARTHEST = 35.0  # redshift where the simulation starts
_STEP = 1.1  # of 1 + z from one box to the next
_STEEPEST = 0.2  # largest velocity gradient over the Hubble rate
_DARK = 1e-15  # collapsed fraction below which nothing shines
_UNTOUCHED = 1e-5  # ionising photons per atom below which there are no bubbles


class Box(NamedTuple):
    """The grid that is simulated, before block means.

    Attributes
    ----------
    shape : tuple of 3 int
        Cells of the light cone: sky, sky, line of sight.
    cell_size : float
        In Mpc.
    redshift_min : float
        Of the nearest cell.
    linear : bool
        Whether densities grow in place.
    """

    shape: tuple[int, int, int]
    cell_size: float
    redshift_min: float
    linear: bool

    @property
    def periodic(self) -> tuple[int, int, int]:
        """Cells of the periodic box: as deep as wide, and repeated along the line of sight."""
        n_x, n_y, _ = self.shape
        return n_x, n_y, max(n_x, n_y)


class Cones(NamedTuple):
    """Light cones, and their history.

    Attributes
    ----------
    brightness : Tensor of shape (n, *shape)
        In mK.
    neutral : Tensor of shape (n, n_nodes)
        Mean neutral fraction of the boxes.
    """

    brightness: Tensor
    neutral: Tensor


def node_redshifts(redshift_min: float) -> list[float]:
    """Redshifts of the boxes, farthest first.

    Examples
    --------
    >>> nodes = node_redshifts(5.0)
    >>> len(nodes), nodes[0], nodes[-2:]
    (20, 35.7, [5.6, 5.0])
    """
    n_steps = math.ceil(math.log((1 + FARTHEST) / (1 + redshift_min)) / math.log(_STEP))
    return [(1 + redshift_min) * _STEP**i - 1 for i in range(n_steps, -1, -1)]


def cell_redshifts(cosmology: Cosmology, box: Box) -> Tensor:
    """Redshifts of the cells along the line of sight, shape (n, box.shape[-1])."""
    return cosmology.redshift(_cell_distances(cosmology, box))


def _cell_distances(cosmology: Cosmology, box: Box) -> Tensor:
    like = cosmology.omega_m
    nearest = cosmology.distance(torch.full_like(like, box.redshift_min)[:, None])
    return nearest + box.cell_size * torch.arange(box.shape[-1], device=like.device)


class _Plan(NamedTuple):
    """What is the same for all light cones of a box."""

    grid: Grid
    shells: list[float]
    bubbles: list[float]
    filters: Tensor  # shells but the first, bubbles but the last, line of sight


@functools.lru_cache(maxsize=4)
def _plan(shape: tuple[int, int, int], cell_size: float, device: torch.device) -> _Plan:
    grid = Grid(shape, cell_size, device)
    shells, bubbles = shell_radii(cell_size), bubble_radii(cell_size)
    filters = [grid.top_hat(radius) for radius in shells[1:]]
    filters += [grid.sharp(radius) for radius in bubbles[:-1]]
    return _Plan(grid, shells, bubbles, torch.stack([*filters, grid.mu_squared]))


def simulate(parameters: Tensor, noise: Tensor, box: Box) -> Cones:
    """Simulate light cones.

    Parameters
    ----------
    parameters : Tensor of shape (n, 6), float64
        m_WDM, Omega_m, E_0, log10 L_X, log10 T_vir, zeta.
    noise : Tensor of shape (n, *box.periodic), float32
        Unit normal: the initial conditions.
    box : Box

    Returns
    -------
    Cones
    """
    m_wdm, omega_m, energy, log_lx, log_t_vir, zeta = parameters.double().unbind(1)
    n, device = len(parameters), parameters.device
    plan = _plan(noise.shape[1:], box.cell_size, device)
    cosmology = Cosmology(omega_m, m_wdm)
    haloes = Haloes(cosmology, 10**log_t_vir)
    initial = InitialConditions(plan.grid, cosmology, noise, linear=box.linear)

    def scale(radii: list[float]) -> Tensor:
        return cosmology.sigma(
            torch.tensor(radii, dtype=torch.float64, device=device).expand(n, -1)
        )

    shell_sigma, bubble_sigma = scale(plan.shells), scale(plan.bubbles)
    n_shells = len(plan.shells) - 1  # that are smoothed
    efficiency = torch.zeros_like(zeta)
    brightness, neutral = [], []
    gas: Gas | None = None
    nodes = node_redshifts(box.redshift_min)
    for z, z_before in zip(nodes, [math.nan, *nodes], strict=False):
        at_z = torch.full((n, 1), z, dtype=torch.float64, device=device)
        growth, sigma_min = cosmology.growth(at_z)[:, 0], haloes.sigma(at_z)
        collapsed = cosmology.collapsed_fraction(at_z, sigma_min)[:, 0]
        today = growth.float().view(-1, 1, 1, 1)
        delta = initial.density(growth)
        density = delta / today
        smoothed = smooth(density, plan.filters)
        if gas is None:
            gas = first_gas(z, delta)
        else:
            simple = cosmology.press_schechter(at_z, sigma_min)[:, 0]
            electrons = gas.electrons.mean((1, 2, 3)).double()
            # The ionised share of the volume, until it is all.
            ionised = zeta * collapsed / (1 - electrons)
            share = ionised / simple.clamp(min=1e-300) * (1 - electrons)
            efficiency = torch.where((ionised < 1) & (simple > 0), share, efficiency)
            shells = shells_around(haloes, z, plan.shells, electrons, efficiency)
            within = torch.cat([density[:, None], smoothed[:, :n_shells]], dim=1)
            light = emission(haloes, shells, within, shell_sigma, simple > _DARK)
            gas = evolve(gas, cosmology, z, z_before, density, shells, light, energy, log_lx)
        x_neutral = 1 - gas.electrons
        if (zeta * collapsed > _UNTOUCHED).any():
            within = torch.cat([smoothed[:, n_shells:-1], density[:, None]], dim=1)
            bubbles = neutral_fraction(
                within, growth, sigma_min[:, 0], bubble_sigma, collapsed, zeta, gas.electrons
            )
            touched = (zeta * collapsed > _UNTOUCHED).view(-1, 1, 1, 1)
            x_neutral = torch.where(touched, bubbles, x_neutral)
        slope = -(1 + z) * cosmology.growth_slope(at_z)[:, 0]
        gradient = (-slope.float().view(-1, 1, 1, 1) * smoothed[:, -1]).clamp(-_STEEPEST, _STEEPEST)
        scale_mk = (
            27 * (OMEGA_B * HUBBLE**2 / 0.023) * (0.015 / (omega_m * HUBBLE**2) * (1 + z)).sqrt()
        )
        contrast = (1 - T_CMB * (1 + z) / gas.t_spin) / (1 + gradient)
        brightness.append(scale_mk.float().view(-1, 1, 1, 1) * x_neutral * (1 + delta) * contrast)
        neutral.append(x_neutral.mean((1, 2, 3)))
    return Cones(_through(brightness, nodes, cosmology, box), torch.stack(neutral, dim=1))


def _through(boxes: list[Tensor], nodes: list[float], cosmology: Cosmology, box: Box) -> Tensor:
    """Cut light cones out of boxes, between which brightness is linear in distance."""
    n, device = len(boxes[0]), boxes[0].device
    distances = cosmology.distance(
        torch.tensor(nodes, dtype=torch.float64, device=device).expand(n, -1)
    )
    cells = _cell_distances(cosmology, box)
    near = torch.searchsorted(-distances, -cells).clamp(1, len(nodes) - 1)
    far_distance, near_distance = distances.gather(1, near - 1), distances.gather(1, near)
    share = (far_distance - cells) / (far_distance - near_distance)
    layers = torch.stack(boxes, dim=1).permute(0, 1, 4, 2, 3)  # n, node, line of sight, sky, sky
    depth = torch.arange(cells.shape[1], device=device) % layers.shape[2]
    row = torch.arange(n, device=device)[:, None]
    share = share.float()[..., None, None]
    cones = torch.lerp(layers[row, near - 1, depth], layers[row, near, depth], share)
    return cones.permute(0, 2, 3, 1).contiguous()
