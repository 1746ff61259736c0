"""Gaussian initial conditions in a periodic box: density, smoothed on any scale, and velocities."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from skatr_sk.simulator.cosmology import Cosmology, match_axes, top_hat

__all__ = ["CELL_RADIUS", "Grid", "InitialConditions", "smooth", "to_modes"]

CELL_RADIUS = (4 * math.pi / 3) ** (-1 / 3)  # of the sphere with the volume of a cubic cell
_FINE = 3  # the matter is laid out on a grid that is finer by this factor
_FIRST_Z = 300.0  # where the displacements begin
_CELLS_AT_ONCE = 300_000  # that are smoothed, which keeps them in the processor's cache
_EMPTIEST = 0.2  # lowest density, over the mean, of matter that does not move


class Grid:
    """Wave numbers and filters of a periodic box of cubic cells, whose size `cell` is in Mpc."""

    def __init__(self, shape: tuple[int, int, int], cell: float, device: torch.device) -> None:
        self.shape, self.cell = shape, cell
        steps = [*map(torch.fft.fftfreq, shape[:2]), torch.fft.rfftfreq(shape[2])]
        axes = torch.meshgrid(*(step.double() for step in steps), indexing="ij")
        k = 2 * math.pi / cell * torch.stack(axes)  # (3, *rfft shape)
        squared = (k**2).sum(0)
        self.k = squared.sqrt().to(device)
        self.mu_squared = (k[2] ** 2 / squared.clamp(min=1e-12)).float().to(device)
        self.directions = (k / squared.clamp(min=1e-12)).float().to(device)
        images, self._displacement, self._mass = (t.to(device) for t in self._aliases(k))
        # Many wave numbers are equal by symmetry: each is looked up once.
        spacing = 2 * math.pi / (cell * max(shape)) * 1e-3
        labels, self._inverse = torch.unique((images / spacing).round().long(), return_inverse=True)
        self._unique = labels.double() * spacing

    def _aliases(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Wave numbers that cells cannot tell apart; their weights in displacement and in mass.

        Matter lies on a grid that is finer by `_FINE`. A cell moves with the velocity in a sphere
        of its volume (a field over k squared), and has the mass that is in it.
        """
        images, displacement, mass = [], [], []
        for shift in itertools.product(range(-(_FINE // 2), _FINE // 2 + 1), repeat=3):
            moved = k + 2 * math.pi / self.cell * torch.tensor(shift).view(3, 1, 1, 1)
            squared = (moved**2).sum(0)
            images.append(squared.sqrt())
            sphere = top_hat(images[-1] * CELL_RADIUS * self.cell)
            displacement.append(sphere**2 * (k**2).sum(0) / squared.clamp(min=1e-12))
            mass.append(torch.sinc(moved * self.cell / (2 * math.pi)).prod(0) ** 2)
        return torch.stack(images), torch.stack(displacement), torch.stack(mass)

    def amplitudes(self, cosmology: Cosmology) -> tuple[Tensor, Tensor]:
        """Standard deviations of today's modes, for unit noise; each (n, *rfft shape), float32.

        The first is of minus the divergence of the cells' displacement, the second of their density
        contrast.
        """
        k = self._unique.clamp(min=1e-4).expand(len(cosmology.omega_m), -1)
        table = cosmology.power(k) / self.cell**3
        displacement, mass = (self.k.new_zeros(len(k), *self.k.shape) for _ in range(2))
        images = zip(self._inverse, self._displacement, self._mass, strict=True)
        for places, of_displacement, of_mass in images:
            power = table[:, places]
            displacement.addcmul_(power, of_displacement)
            mass.addcmul_(power, of_mass)
        displacement[:, 0, 0, 0] = mass[:, 0, 0, 0] = 0  # a box has the mean of the universe
        return displacement.sqrt().float(), mass.sqrt().float()

    def top_hat(self, radius: float) -> Tensor:
        """Filter of a sphere of a radius in Mpc."""
        return top_hat(self.k * radius).float()

    def sharp(self, radius: float) -> Tensor:
        """Filter that is sharp in k, of the volume of a sphere of a radius in Mpc."""
        return (self.k * radius * (9 * math.pi / 2) ** (-1 / 3) <= 1).float()

    def groups(self, filters: list[Tensor]) -> list[Tensor]:
        """Stack filters for :func:`smooth`, as many as make fields that stay in the cache."""
        n = max(1, _CELLS_AT_ONCE // math.prod(self.shape))
        stacks = (torch.stack(filters[i : i + n]) for i in range(0, len(filters), n))
        # Sharp filters pass nothing beyond some plane.
        return [some[..., : int(some.any(0).any(0).any(0).nonzero().max()) + 1] for some in stacks]


class InitialConditions:
    """Matter in the cells of n boxes, moved along straight lines from a Gaussian beginning.

    The approximation of Zel'dovich 1970: the mass of every cell travels by the linear displacement
    of its first position, as a cube, and is shared out to the cells that it ends in. The noise
    (n, *grid.shape) is unit normal.

    If `linear`, density contrasts grow and nothing moves. Those of the emptiest cells would fall
    below -1, and their gas cool to nothing on the way: no cell begins emptier than that at the
    redshift `last` it has a fifth of the mean density, which cells that move hardly come to.
    """

    def __init__(
        self, grid: Grid, cosmology: Cosmology, noise: Tensor, linear: bool, last: float
    ) -> None:
        self.grid, self._linear = grid, linear
        white = torch.fft.rfftn(noise, dim=(-3, -2, -1))
        displacement, mass = grid.amplitudes(cosmology)
        self._mass = self._to_cells(white * mass)  # density contrast of today if nothing moved
        begin = torch.full((len(noise),), _FIRST_Z, dtype=torch.float64, device=noise.device)
        self._first_growth = cosmology.growth(begin).to(noise.dtype)
        if linear:
            growth = match_axes(cosmology.growth(torch.full_like(begin, last)), noise)
            growth = growth.to(noise.dtype)
            matter = (1 + self._mass * growth).clamp(min=_EMPTIEST)
            matter = matter / matter.mean(dim=(1, 2, 3), keepdim=True)  # what was added is taken
            self._mass = (matter - 1) / growth
        else:
            modes = white * displacement
            # Displacement psi with div psi = -delta, in cells, of shape (3, n, *grid.shape).
            moves = [self._to_cells(1j * k * modes) / grid.cell for k in grid.directions]
            self._moves = torch.stack(moves)

    def _to_cells(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=self.grid.shape, dim=(-3, -2, -1))

    def density(self, growth: Tensor) -> Tensor:
        """Density contrast at a growth factor of shape (n,); shape (n, *grid.shape)."""
        growth = match_axes(growth.to(self._mass.dtype), self._mass)
        if self._linear:
            return self._mass * growth
        first = match_axes(self._first_growth, self._mass)
        return _spread(1 + first * self._mass, self._moves * (growth - first)) - 1


def _spread(mass: Tensor, moves: Tensor) -> Tensor:
    """Share masses (n, *grid) out to cells that they overlap when moved by (3, n, *grid) cells."""
    n, *sizes = mass.shape
    reach = _reach(moves)
    # Into a box with margins, which are then folded back: space is periodic. Because the margins
    # begin without mass, a whole box of masses moves by shifts along one axis of memory.
    mass, moves = (torch.nn.functional.pad(field, [reach] * 6) for field in (mass, moves))
    shares = _overlaps(moves, reach)
    strides = mass.stride()[1:]
    farthest, n_cells = reach * sum(strides), mass.numel()
    flat = mass.new_zeros(n_cells + 2 * farthest)
    offsets = range(2 * reach + 1)
    for i in offsets:
        along_x = mass * shares[i, 0]
        for j in offsets:
            along_xy = along_x * shares[j, 1]
            for k in offsets:
                start = i * strides[0] + j * strides[1] + k
                flat[start : start + n_cells].addcmul_(along_xy.view(-1), shares[k, 2].view(-1))
    total = flat[farthest : farthest + n_cells].view_as(mass)
    for axis, size in enumerate(sizes, start=1):
        inner = total.narrow(axis, reach, size).clone()
        # The margin before comes in again at the end, however small the box.
        for start, first in ((0, -reach), (size + reach, 0)):
            for step in range(reach):
                inner.select(axis, (first + step) % size).add_(total.select(axis, start + step))
        total = inner
    return total


def _reach(moves: Tensor) -> int:
    """How many cells on either side can get a share of cubes that move."""
    half = (_FINE - 1) / (2 * _FINE)
    return max(1, math.ceil(float(moves.abs().amax()) + half))


def _overlaps(moves: Tensor, reach: int) -> Tensor:
    """Along each axis, the shares that the cells around get of cubes moved by `moves` cells.

    A cube, a cell wide, is `_FINE` clouds along each axis, each as wide as a cell. The shares have
    shape (2 * reach + 1, *moves.shape).
    """
    clouds = [(i - (_FINE - 1) / 2) / _FINE for i in range(_FINE)]
    if reach == 1:  # what passes a cell's centre on either side goes there, and the rest stays
        after = torch.zeros_like(moves)
        for cloud in clouds:
            after.add_((moves + cloud).clamp_(min=0), alpha=1 / _FINE)
        before = (after - moves).clamp_(min=0)
        return torch.stack([before, 1 - before - after, after])
    shares = moves.new_zeros(2 * reach + 1, *moves.shape)
    for share, offset in zip(shares, range(-reach, reach + 1), strict=True):
        for cloud in clouds:
            distance = (moves + (cloud - offset)).abs_()
            share += distance.neg_().add_(1).clamp_(min=0)
    return shares.div_(_FINE)


def to_modes(density: Tensor) -> Tensor:
    """Fourier transform of real densities (n, n_x, n_y, n_z), as that of ``torch.fft.rfftn``."""
    n_z = density.shape[3]
    along = density @ _to_waves(n_z, density.device)  # faster than an FFT on a short axis
    return torch.fft.fft2(torch.view_as_complex(along.unflatten(3, (-1, 2))), dim=(1, 2))


def smooth(modes: Tensor, filters: Tensor, n_z: int) -> Tensor:
    """Densities (n, n_filters, n_x, n_y, n_z) of modes (n, *rfft shape) through filters.

    The last axis of the filters (n_filters, *rfft shape) may end where no more modes pass.
    """
    n_modes = filters.shape[-1]
    planes = torch.fft.ifft2(modes[:, None, ..., :n_modes] * filters, dim=(2, 3))
    parts = torch.view_as_real(planes).permute(0, 1, 4, 5, 2, 3).flatten(0, 1)
    # On an axis that short, a matrix product is faster than an FFT.
    along = parts.flatten(3).flatten(1, 2).mT @ _waves(n_modes, n_z, modes.device)
    return along.view(*planes.shape[:-1], n_z)


@functools.lru_cache(maxsize=64)
def _to_waves(n_z: int, device: torch.device) -> Tensor:
    """Fourier transform of real values, to real and imaginary parts of the modes in turn."""
    modes = torch.fft.rfft(torch.eye(n_z, dtype=torch.float64))
    return torch.view_as_real(modes).flatten(1).to(device, torch.float32)


@functools.lru_cache(maxsize=64)
def _waves(n_modes: int, n_z: int, device: torch.device) -> Tensor:
    """Inverse Fourier transform of the first modes' real and imaginary parts, to real values."""
    one = torch.eye(n_modes, dtype=torch.complex128)
    parts = torch.stack([torch.fft.irfft(each, n=n_z) for each in (one, 1j * one)], dim=1)
    return parts.flatten(0, 1).to(device, torch.float32)
