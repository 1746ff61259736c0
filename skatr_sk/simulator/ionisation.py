"""Where the gas is ionised by stars: the excursion set over a ladder of radii."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from skatr_sk.simulator.collapsed_fraction import conditional_fraction
from skatr_sk.simulator.cosmology import match_axes
from skatr_sk.simulator.initial_conditions import CELL_RADIUS

__all__ = ["bubble_radii", "neutral_fraction"]

_LARGEST = 15.0  # Mpc: ionising photons get no farther
_RATIO = 1.1  # of neighbouring radii


def bubble_radii(cell: float) -> list[float]:
    """Radii in Mpc over which ionising sources and gas are averaged, largest first.

    The last is that of the cell, which stands for the cell itself, unsmoothed.
    """
    smallest = CELL_RADIUS * cell
    n_steps = math.floor(math.log(_LARGEST / smallest) / math.log(_RATIO)) if cell < _LARGEST else 1
    ladder = [smallest * _RATIO**i for i in range(n_steps, 1, -1)]
    return [_LARGEST, *ladder, smallest] if ladder else [smallest]


def neutral_fraction(
    density: Iterable[Tensor], barrier: Tensor, fall: Tensor, mean: Tensor, x_e: Tensor
) -> Tensor:
    """Neutral fraction of hydrogen in every cell.

    A cell is ionised where, on any scale around it, stars have sent out more ionising photons
    than there are neutral atoms (Furlanetto, Zaldarriaga and Hernquist 2004, astro-ph/0403697;
    Mesinger, Furlanetto and Cen 2011, arXiv:1003.3878). Else its own stars ionise it in part.

    `density` gives today's linear contrast (n, some radii, ...) on some scales after the others,
    that of the cell last; `barrier` and `fall` (n, n_radii) are their
    :func:`~skatr_sk.simulator.collapsed_fraction.barriers`. The number of ionising photons per atom
    of the universe, after Sheth and Tormen, is `mean` (n,). X-rays have ionised `x_e` (n, ...).
    """
    neutral, photons, most, done = 1 - x_e, x_e[:, None], torch.zeros_like(x_e), 0
    for contrast in density:
        some = slice(done, done := done + contrast.shape[1])
        photons, _ = conditional_fraction(contrast, barrier[:, some], fall[:, some])
        # On every scale the photons average to `mean` over the box.
        found = photons.flatten(2).mean(2).clamp(min=1e-7)
        photons *= match_axes(mean[:, None].to(found.dtype) / found, photons)
        most = torch.maximum(most, photons.amax(1))
    return (neutral - photons[:, -1]).clamp_(0, 1).masked_fill_(most > neutral, 0)
