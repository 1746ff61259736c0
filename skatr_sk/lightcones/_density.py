"""Gaussian initial conditions in a periodic box: density, smoothed on any scale, and velocities."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import Cosmology, top_hat

__all__ = ["Grid", "InitialConditions"]

_FINE = 3  # the matter is laid out on a grid finer by this factor, and put into cells as clouds


class Grid:
    """A periodic box of cubic cells.

    Parameters
    ----------
    shape : tuple of 3 int
    cell : float
        Size of a cell in Mpc.
    device : torch.device

    Examples
    --------
    >>> grid = Grid((4, 4, 4), 7.0, torch.device("cpu"))
    >>> grid.k.shape
    torch.Size([4, 4, 3])
    """

    def __init__(self, shape: tuple[int, int, int], cell: float, device: torch.device) -> None:
        self.shape = shape
        self.cell = cell
        x, y, z = shape
        steps = [torch.fft.fftfreq(x), torch.fft.fftfreq(y), torch.fft.rfftfreq(z)]
        axes = [2 * math.pi / cell * step.double() for step in steps]
        k_x, k_y, k_z = torch.meshgrid(*axes, indexing="ij")
        squared = k_x**2 + k_y**2 + k_z**2
        self.k = squared.sqrt().to(device)
        self.mu_squared = (k_z**2 / squared.clamp(min=1e-12)).float().to(device)
        self.images, self.weights = (t.to(device) for t in self._aliases(k_x, k_y, k_z))

    def _aliases(self, *k: Tensor) -> tuple[Tensor, Tensor]:
        """Wave numbers that a cell cannot tell apart, and what clouds in cells leave of each.

        Clouds of the size of a cell, counted in cells, are the density times a triangle along
        each axis. Wave numbers that agree within a cell's resolution add up.
        """
        images, weights = [], []
        for shift in itertools.product(range(-(_FINE // 2), _FINE // 2 + 1), repeat=3):
            moved = [a + 2 * math.pi / self.cell * s for a, s in zip(k, shift, strict=True)]
            half = [torch.sinc(a * self.cell / (2 * math.pi)) for a in moved]
            images.append(sum(a**2 for a in moved) ** 0.5)
            weights.append((half[0] * half[1] * half[2]) ** 4)
        return torch.stack(images), torch.stack(weights)

    def power(self, cosmology: Cosmology) -> Tensor:
        """Power of the gridded density of today, Mpc^3, shape (n, *rfft shape); no mean."""
        # Many wave numbers are equal by symmetry: look each up once.
        unique, inverse = self._unique_images
        values = cosmology.power(unique.clamp(min=1e-4).expand(len(cosmology.omega_m), -1))
        power = (values[:, inverse] * self.weights).sum(1)
        power[:, 0, 0, 0] = 0
        return power

    @functools.cached_property
    def _unique_images(self) -> tuple[Tensor, Tensor]:
        spacing = 2 * math.pi / (self.cell * max(self.shape)) * 1e-3
        labels = (self.images / spacing).round().long()
        unique, inverse = torch.unique(labels, return_inverse=True)
        return unique.double() * spacing, inverse

    def top_hat(self, radius: float) -> Tensor:
        """Filter of a sphere of a radius in Mpc."""
        return top_hat(self.k * radius).float()

    def sharp(self, radius: float) -> Tensor:
        """Filter that is sharp in k, of the volume of a sphere of a radius in Mpc."""
        return (self.k * radius * (9 * math.pi / 2) ** (-1 / 3) <= 1).float()


class InitialConditions:
    """Linear density and velocity gradient, extrapolated to today.

    Parameters
    ----------
    grid : Grid
    cosmology : Cosmology
        Of n light cones.
    noise : Tensor of shape (n, *grid.shape)
        Unit normal, independent in every cell.

    Examples
    --------
    >>> noise = torch.randn(1, 28, 28, 28, generator=torch.Generator().manual_seed(0))
    >>> cosmology = Cosmology(torch.tensor([0.3]), torch.tensor([float("inf")]))
    >>> initial = InitialConditions(Grid((28, 28, 28), 200 / 28, torch.device("cpu")), cosmology, noise)
    >>> initial.smoothed([torch.ones(())]).std().item()
    0.8
    """

    def __init__(self, grid: Grid, cosmology: Cosmology, noise: Tensor) -> None:
        self.grid = grid
        scale = (grid.power(cosmology) / grid.cell**3).sqrt().float()
        self._modes = torch.fft.rfftn(noise, dim=(-3, -2, -1)) * scale

    def _to_cells(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=self.grid.shape, dim=(-3, -2, -1))

    def smoothed(self, filters: list[Tensor]) -> Tensor:
        """Density contrast under each filter, shape (n, n_filters, *grid.shape)."""
        return torch.stack([self._to_cells(self._modes * each) for each in filters], dim=1)

    def stretch(self) -> Tensor:
        """Density along the line of sight alone, shape (n, *grid.shape).

        Times growth and its logarithmic slope it is minus the gradient of the peculiar velocity
        along the line of sight, over the Hubble rate (Kaiser 1987).
        """
        return self._to_cells(self._modes * self.grid.mu_squared)
