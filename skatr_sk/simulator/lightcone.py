"""From parameters and noise to brightness: boxes at a ladder of redshifts, a cone through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from skatr_sk.simulator.collapsed_fraction import (
    DELTA_CRITICAL,
    Haloes,
    barriers,
    press_schechter,
    sheth_tormen,
)
from skatr_sk.simulator.cosmology import HUBBLE, HUBBLE_RATE, OMEGA_B, T_CMB, Cosmology, match_axes
from skatr_sk.simulator.initial_conditions import Grid, InitialConditions, smooth, to_modes
from skatr_sk.simulator.ionisation import bubble_radii, neutral_fraction
from skatr_sk.simulator.sources import (
    Light,
    arriving_light,
    collapse_in,
    shell_radii,
    shells_around,
)
from skatr_sk.simulator.spin_temperature import Gas, evolve, first_gas
from skatr_sk.simulator.xrays import transparent_energy

__all__ = ["FARTHEST", "Box", "Lightcones", "brightness_lightcones", "node_redshifts"]

FARTHEST = 35.0  # redshift where the simulation starts
_STEP = 1.1  # of 1 + z from one box to the next
_STEEPEST = 0.2  # largest velocity gradient over the Hubble rate
_DARK = 1e-15  # collapsed fraction below which nothing shines
_CELLS_AT_ONCE = 2**16
_UNTOUCHED = 1e-5  # ionising photons per atom below which there are no bubbles


class Box(NamedTuple):
    """The grid that is simulated, before block means."""

    shape: tuple[int, int, int]  # cells of the light cone: sky, sky, line of sight
    cell_size: float  # Mpc
    redshift_min: float  # of the nearest cell
    linear: bool  # whether densities grow and nothing moves

    @property
    def periodic(self) -> tuple[int, int, int]:
        """Cells of the periodic box: as deep as wide, and repeated along the line of sight."""
        n_x, n_y, _ = self.shape
        return n_x, n_y, max(n_x, n_y)


class Lightcones(NamedTuple):
    """Light cones, and their history."""

    brightness: Tensor  # mK, (n, *shape)
    x_HI: Tensor  # mean neutral fraction of the boxes, farthest first, (n, n_nodes)


def node_redshifts(redshift_min: float) -> list[float]:
    """Redshifts of the boxes, farthest first."""
    n_steps = math.ceil(math.log((1 + FARTHEST) / (1 + redshift_min)) / math.log(_STEP))
    return [(1 + redshift_min) * _STEP**i - 1 for i in range(n_steps, -1, -1)]


@functools.lru_cache(maxsize=4)
class _Plan:
    """Grid, radii in Mpc and filters: the same for all light cones of a box."""

    def __init__(self, shape: tuple[int, int, int], cell_size: float, device: torch.device) -> None:
        self.grid = grid = Grid(shape, cell_size, device)
        self.shells, self.bubbles = shell_radii(cell_size), bubble_radii(cell_size)
        # A cell, the first shell and the last bubble, is not smoothed.
        shells = [grid.none(), *map(grid.top_hat, self.shells[1:])]
        bubbles = [*map(grid.sharp, self.bubbles[:-1]), grid.none()]
        self.shell_filters, self.bubble_filters = grid.groups(shells), grid.groups(bubbles)


class _Universe:
    """A batch of boxes, each with its cosmology, that advance from one redshift to the next."""

    def __init__(self, parameters: Tensor, noise: Tensor, box: Box) -> None:
        m_wdm, omega_m, E_0, log10_L_X, log10_t_vir, zeta = parameters.double().unbind(1)
        self._xrays = E_0, log10_L_X
        # Ionised share of the volume over the collapsed fraction, until all is ionised.
        self._efficiency = torch.zeros_like(zeta)
        self._plan = _Plan(box.periodic, box.cell_size, parameters.device)
        self.cosmology = Cosmology(omega_m, m_wdm)
        beginning = self._plan.grid, self.cosmology, noise, box.linear, box.redshift_min
        self._initial = InitialConditions(*beginning)
        # All that no cell changes, at once for all redshifts; each (n, n_nodes, ...).
        self.nodes = node_redshifts(box.redshift_min)
        z = torch.tensor(self.nodes, dtype=torch.float64, device=zeta.device).expand(len(zeta), -1)
        haloes = Haloes(self.cosmology, 10**log10_t_vir)
        self._rate = HUBBLE_RATE * self.cosmology.expansion(z)
        self._growth, self._slope = self.cosmology.growth(z), self.cosmology.growth_slope(z)
        sigma_min = haloes.sigma(z)
        nu = DELTA_CRITICAL / (sigma_min * self._growth)
        self._photons = zeta[:, None] * sheth_tormen(nu)  # that ionise, per atom
        self._f_coll = press_schechter(nu)
        shells, bubbles = (self._sigma(radii) for radii in (self._plan.shells, self._plan.bubbles))
        self._shells = shells_around(haloes, z, self._plan.shells, shells)
        times = self._growth[..., None], sigma_min[..., None]
        self._barriers = barriers(*times, bubbles[:, None])
        self._gas: Gas | None = None

    def _sigma(self, radii: list[float]) -> Tensor:
        values = torch.tensor(radii, dtype=torch.float64, device=self._efficiency.device)
        return self.cosmology.sigma(values.expand(len(self._efficiency), -1))

    def advance(self, i: int) -> tuple[Tensor, Tensor]:
        """Go to the next node, i; return brightness, mK, and neutral fraction of every cell."""
        z, growth, photons = self.nodes[i], self._growth[:, i], self._photons[:, i]
        matter = self._initial.matter(growth)
        # The linear contrast of today, if nothing moved.
        modes = to_modes((matter - 1).div_(match_axes(growth.float(), matter)))
        plan = self._plan
        if self._gas is None:
            gas = first_gas(z, matter)
        else:
            around = (smooth(modes, filters) for filters in plan.shell_filters)
            gas = self._next_gas(self._gas, i, matter, around)
        x_HI = 1 - gas.x_e
        touched = photons > _UNTOUCHED
        if touched.any():
            inside = (smooth(modes, filters) for filters in plan.bubble_filters)
            barrier, fall = (each[:, i] for each in self._barriers)
            bubbles = neutral_fraction(inside, barrier, fall, photons, gas.x_e)
            x_HI = torch.where(match_axes(touched, x_HI), bubbles, x_HI)
        self._gas = gas
        slope = (1 + z) * self._slope[:, i]  # of growth today: negative
        along = smooth(modes, plan.grid.mu_squared[None])[:, 0]
        gradient = match_axes(slope.float(), matter) * along
        return self._brightness(z, matter, x_HI, gas.T_s, gradient), x_HI

    def _next_gas(self, gas: Gas, i: int, matter: Tensor, around: Iterable[Tensor]) -> Gas:
        """Gas at node i, of that at the node before, under the light of all shells around."""
        z, rate, shells = self.nodes[i], self._rate[:, i], self._shells.at(i)
        photons, f_coll = self._photons[:, i], self._f_coll[:, i]
        x_e = gas.x_e.mean((1, 2, 3)).double()
        share = photons / f_coll.clamp(min=1e-300)
        partly = (photons / (1 - x_e) < 1) & (f_coll > 0)
        self._efficiency = torch.where(partly, share, self._efficiency)
        lit = f_coll > _DARK
        if lit.any():
            transparent = transparent_energy(shells.paths, x_e, self._efficiency)
            collapsing = collapse_in(shells, around, lit)
            light = arriving_light(z, rate, shells, transparent, collapsing, *self._xrays, gas.x_e)
        else:
            light = Light(*[torch.zeros_like(matter)] * len(Light._fields))
        # Some planes of cells at a time, whose intermediate results stay in the processor's cache.
        n_planes = max(1, _CELLS_AT_ONCE // matter[0, 0].numel())
        pieces = (field.split(n_planes, dim=1) for field in (matter, *gas, *light))
        then = z, self.nodes[i - 1], rate, self._growth[:, i], self._slope[:, i]
        parts = [
            evolve(Gas(*some[:3]), *then, piece, Light(*some[3:]))
            for piece, *some in zip(*pieces, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return Gas(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

    def _brightness(
        self, z: float, matter: Tensor, x_HI: Tensor, T_s: Tensor, gradient: Tensor
    ) -> Tensor:
        """Brightness temperature in mK (Mesinger, Furlanetto and Cen 2011, eq. 1).

        The gradient is that of the velocity along the line of sight, over the Hubble rate.
        """
        scale = (0.15 / (self.cosmology.omega_m * HUBBLE**2) * (1 + z) / 10).sqrt()
        scale = 27 * (OMEGA_B * HUBBLE**2 / 0.023) * match_axes(scale.float(), matter)
        contrast = T_s.reciprocal().mul_(-T_CMB * (1 + z)).add_(1)
        stretched = gradient.clamp(-_STEEPEST, _STEEPEST).add_(1)
        return contrast.div_(stretched).mul_(x_HI).mul_(matter).mul_(scale)


def brightness_lightcones(parameters: Tensor, noise: Tensor, box: Box) -> Lightcones:
    """Simulate light cones of parameters (n, 6), float64, in the package's order.

    The noise (n, *box.periodic), float32, is unit normal: the initial conditions.
    """
    universe = _Universe(parameters, noise, box)
    boxes: list[Tensor] = []
    neutral: list[Tensor] = []
    for i in range(len(universe.nodes)):
        if neutral and not neutral[-1].any():  # once all is ionised it stays so, and dark
            brightness = x_HI = torch.zeros_like(boxes[-1])
        else:
            brightness, x_HI = universe.advance(i)
        boxes.append(brightness)
        neutral.append(x_HI.mean((1, 2, 3)))
    cones = _through(boxes, universe.nodes, universe.cosmology, box)
    return Lightcones(cones, torch.stack(neutral, dim=1))


def _through(boxes: list[Tensor], nodes: list[float], cosmology: Cosmology, box: Box) -> Tensor:
    """Cut light cones out of boxes, between which brightness is linear in distance."""
    n, device = len(boxes[0]), boxes[0].device
    ladder = torch.tensor(nodes, dtype=torch.float64, device=device).expand(n, -1)
    distances = cosmology.distance(ladder)  # the last node is the nearest cell
    cells = distances[:, -1:] + box.cell_size * torch.arange(box.shape[-1], device=device)
    near = torch.searchsorted(-distances, -cells).clamp(1, len(nodes) - 1)
    far_distance, near_distance = distances.gather(1, near - 1), distances.gather(1, near)
    share = (far_distance - cells) / (far_distance - near_distance)
    # All boxes behind each other; a light cone goes through the layers of each in turn.
    depth = boxes[0].shape[3]
    layers = torch.arange(box.shape[2], device=device) % depth + depth * near
    every = torch.cat(boxes, dim=3)
    before, after = (
        every.gather(3, at[:, None, None].expand(-1, *every.shape[1:3], -1))
        for at in (layers - depth, layers)
    )
    return before.lerp_(after, share.float()[:, None, None])
