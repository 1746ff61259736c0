"""Where the gas is ionised by stars: the excursion set over a ladder of radii."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skatr_sk.simulator.collapsed_fraction import conditional_fraction
from skatr_sk.simulator.initial_conditions import CELL_RADIUS

__all__ = ["bubble_radii", "neutral_fraction"]

_LARGEST = 15.0  # Mpc: ionising photons get no farther
_RATIO = 1.1  # of neighbouring radii


def bubble_radii(cell: float, largest: float = _LARGEST) -> list[float]:
    """Radii in Mpc over which ionising sources and gas are averaged, largest first.

    The last is that of the cell, which stands for the cell itself, unsmoothed.

    Examples
    --------
    >>> [round(radius, 1) for radius in bubble_radii(200 / 28)]
    [15.0, 13.9, 12.6, 11.5, 10.4, 9.5, 8.6, 7.8, 7.1, 6.5, 5.9, 5.4, 4.4]
    """
    smallest = CELL_RADIUS * cell
    n_steps = math.floor(math.log(largest / smallest) / math.log(_RATIO)) if largest > cell else 1
    ladder = [smallest * _RATIO**i for i in range(n_steps, 1, -1)]
    return [largest, *ladder, smallest] if ladder else [smallest]


def neutral_fraction(
    density: Tensor,
    growth: Tensor,
    sigma_min: Tensor,
    sigma_scale: Tensor,
    f_coll: Tensor,
    zeta: Tensor,
    x_e: Tensor,
) -> Tensor:
    """Neutral fraction of hydrogen in every cell.

    A cell is ionised where, on any scale around it, stars have sent out more ionising photons
    than there are neutral atoms (Furlanetto, Zaldarriaga and Hernquist 2004, astro-ph/0403697;
    Mesinger, Furlanetto and Cen 2011, arXiv:1003.3878). Else its own stars ionise it in part.

    Parameters
    ----------
    density : Tensor of shape (n, n_radii, ...)
        Linear density contrast of today on each scale, that of the cell last.
    growth, sigma_min, f_coll, zeta : Tensor of shape (n,)
        Growth factor, standard deviation today on the scale of the smallest haloes, collapsed
        fraction of the universe, photons for each collapsed baryon.
    sigma_scale : Tensor of shape (n, n_radii)
        Standard deviation today on the scale of each radius.
    x_e : Tensor of shape (n, ...)
        Fraction that X-rays have ionised.
    """
    each = (-1, density.shape[1])
    in_region, _ = conditional_fraction(
        density, growth[:, None].expand(each), sigma_min[:, None].expand(each), sigma_scale
    )
    # On every scale the mean is that of Sheth and Tormen.
    mean = in_region.mean(tuple(range(2, density.ndim)), keepdim=True).clamp(min=1e-7)
    photons = (zeta * f_coll).to(mean.dtype).view(-1, *[1] * (mean.ndim - 1)) / mean * in_region
    neutral = 1 - x_e
    ionised = photons.amax(1) > neutral
    left = (neutral - photons[:, -1]).clamp(0, 1)
    return torch.where(ionised, torch.zeros_like(left), left)
