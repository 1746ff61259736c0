"""Matter in cells: mass is kept, variance is that of the power spectrum, dense grows denser."""

import math

import pytest
import torch

from skatr_sk.simulator import initial_conditions
from skatr_sk.simulator.cosmology import Cosmology, top_hat
from skatr_sk.simulator.initial_conditions import Grid, InitialConditions, smooth, to_modes


def matter(linear, n=6, cells=24, size=200 / 28):
    universe = Cosmology(torch.full((n,), 0.31), torch.full((n,), math.inf))
    noise = torch.randn(n, cells, cells, cells, generator=torch.Generator().manual_seed(0))
    grid = Grid((cells, cells, cells), size, torch.device("cpu"))
    return universe, grid, InitialConditions(grid, universe, noise, linear, 5.0)


@pytest.mark.parametrize("linear", [True, False])
def test_density_has_the_variance_of_the_power_spectrum(linear):
    universe, grid, initial = matter(linear)
    growth = universe.growth(torch.full((6, 1), 12.0))[:, 0]
    density = initial.matter(growth) - 1
    assert abs(density.mean().item()) < 1e-5  # mass is kept
    # In spheres that hold many cells the grid does not matter.
    radius = 20.0
    smoothed = smooth(to_modes(density), grid.top_hat(radius)[None])[:, 0]
    k = grid.k.clamp(min=1e-3)
    # Modes of the box alone.
    modes = universe.power(k[None].expand(6, -1, -1, -1))[0] * grid.top_hat(radius) ** 2
    modes[0, 0, 0] = 0
    variance = modes.sum().item() / (24 * grid.cell) ** 3 * growth[0].item() ** 2
    # Clouds as wide as a cell blur even that a little.
    low, high = (0.87, 1.13) if linear else (0.7, 1.05)
    assert low < smoothed.var().item() / variance < high


def test_density_is_gaussian_at_first_and_skewed_later():
    universe, _, initial = matter(linear=False)
    skewness = []
    for z in (30.0, 5.0):
        density = initial.matter(universe.growth(torch.full((6, 1), z))[:, 0]) - 1
        assert density.min() > -1
        skewness.append(((density / density.std()) ** 3).mean().item())
    assert abs(skewness[0]) < 0.4
    assert skewness[1] > skewness[0] + 0.3


@pytest.mark.parametrize("size", [200 / 28, 200 / 56, 1.0])
def test_contrasts_that_grow_leave_matter_in_every_cell(size):
    universe, _, initial = matter(linear=True, size=size)
    first, last = (
        initial.matter(universe.growth(torch.full((6, 1), z))[:, 0]) - 1 for z in (30.0, 5.0)
    )
    assert (first / last).std() < 1e-3  # all grow alike
    assert last.mean(dim=(1, 2, 3)).abs().max() < 1e-5 and (1 + last).min() > 0.1


def test_moved_masses_stay_whole_in_boxes_of_any_size():
    for cells in (1, 2, 3):
        universe, _, initial = matter(linear=False, n=1, cells=cells)
        density = initial.matter(universe.growth(torch.zeros(1, 1))[:, 0]) - 1  # today: far moves
        assert density.shape == (1, cells, cells, cells)
        assert abs(density.mean().item()) < 1e-5


def test_filters_in_groups_are_filters_one_by_one(monkeypatch):
    shape, cell = (12, 11, 12), 200 / 28
    grid = Grid(shape, cell, torch.device("cpu"))
    density = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    filters = [grid.sharp(60.0), grid.sharp(9.0), grid.top_hat(20.0), grid.mu_squared]
    # The same of complex waves.
    waves = torch.fft.rfftn(density, dim=(1, 2, 3))
    axes = [torch.fft.fftfreq(12), torch.fft.fftfreq(11), torch.fft.rfftfreq(12)]
    squares = [(2 * math.pi / cell * axis.double()) ** 2 for axis in axes]
    k = sum(torch.meshgrid(*squares, indexing="ij")).sqrt()
    cuts = [(k * radius * (9 * math.pi / 2) ** (-1 / 3) <= 1) for radius in (60.0, 9.0)]
    complex_filters = [*cuts, top_hat(k * 20.0), squares[2] / k.square().clamp(min=1e-12)]
    expected = [
        torch.fft.irfftn(waves * each.float(), s=shape, dim=(1, 2, 3)) for each in complex_filters
    ]
    modes, n_cells = to_modes(density), math.prod(shape)
    for at_once, n_groups in ((1, 4), (2 * n_cells, 2), (10**6, 1)):
        monkeypatch.setattr(initial_conditions, "_CELLS_AT_ONCE", at_once)
        groups = grid.groups(filters)
        assert len(groups) == n_groups
        assert groups[0].shape[-1] < 12 or n_groups == 1  # long waves alone
        found = torch.cat([smooth(modes, group) for group in groups], dim=1)
        torch.testing.assert_close(found, torch.stack(expected, dim=1))
