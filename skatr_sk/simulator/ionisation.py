"""Where the gas is ionised by stars: the excursion set over a ladder of radii."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skatr_sk.lightcones._cosmology import DELTA_CRITICAL

__all__ = ["CELL_RADIUS", "bubble_radii", "conditional_fraction", "neutral_fraction"]

_LARGEST = 15.0  # Mpc: ionising photons get no farther
_RATIO = 1.1  # of neighbouring radii
CELL_RADIUS = (4 * math.pi / 3) ** (-1 / 3)  # of the sphere with the volume of a cubic cell


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


def conditional_fraction(
    density: Tensor, growth: Tensor, sigma_min: Tensor, sigma_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Fraction of matter in haloes within regions of a given density.

    Extended Press-Schechter (Bond et al. 1991, Lacey and Cole 1993).

    Parameters
    ----------
    density : Tensor of shape (n, n_scales, ...)
        Linear density contrast of the regions, extrapolated to today.
    growth, sigma_min, sigma_scale : Tensor of shape (n, n_scales)
        Growth factor, and standard deviation today of the density in spheres of the smallest
        halo's mass and of the regions' size.

    Returns
    -------
    fraction : Tensor of the shape of `density`
        Zero where the regions are smaller than the halo.
    peak : Tensor of the shape of `density`
        The argument of the complementary error function.
    """
    spread = sigma_min**2 - sigma_scale**2
    scale = (2 * spread.clamp(min=1e-12)).rsqrt()
    barrier = DELTA_CRITICAL / growth * scale
    shape = (*growth.shape, *[1] * (density.ndim - 2))
    barrier, scale = (t.to(density.dtype).view(shape) for t in (barrier, scale))
    peak = torch.addcmul(barrier, density, -scale)
    fraction = torch.erfc(peak)
    if (spread <= 0).any():
        fraction = fraction * (spread > 0).to(density.dtype).view(shape)
    return fraction, peak


def neutral_fraction(
    density: Tensor,
    growth: Tensor,
    sigma_min: Tensor,
    sigma_scale: Tensor,
    mean_fraction: Tensor,
    zeta: Tensor,
    electrons: Tensor,
) -> Tensor:
    """Neutral fraction of hydrogen in every cell.

    A cell is ionised where, on any scale around it, stars have sent out more ionising photons
    than there are neutral atoms (Furlanetto, Zaldarriaga and Hernquist 2004, astro-ph/0403697;
    Mesinger, Furlanetto and Cen 2011, arXiv:1003.3878). Else its own stars ionise it in part.

    Parameters
    ----------
    density : Tensor of shape (n, n_radii, ...)
        Linear density contrast of today on each scale, that of the cell last.
    growth, mean_fraction, zeta : Tensor of shape (n,)
        Growth factor, collapsed fraction of the universe, photons for each collapsed baryon.
    sigma_min : Tensor of shape (n,)
    sigma_scale : Tensor of shape (n, n_radii)
    electrons : Tensor of shape (n, ...)
        Fraction that X-rays have ionised.

    Returns
    -------
    Tensor of shape (n, ...), 0 to 1
    """
    n_radii = density.shape[1]
    fraction, _ = conditional_fraction(
        density,
        growth[:, None].expand(-1, n_radii),
        sigma_min[:, None].expand(-1, n_radii),
        sigma_scale,
    )
    cells = tuple(range(2, density.ndim))
    # On every scale the mean is that of Sheth and Tormen.
    mean = fraction.mean(cells, keepdim=True).clamp(min=1e-7)
    photons = (zeta * mean_fraction).to(mean.dtype).view(-1, *[1] * (mean.ndim - 1)) / mean
    photons = photons * fraction
    neutral = 1 - electrons
    ionised = photons.amax(1) > neutral
    left = (neutral - photons[:, -1]).clamp(0, 1)
    return torch.where(ionised, torch.zeros_like(left), left)
