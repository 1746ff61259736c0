"""Collapsed fractions against integrals of mass functions; what warm dark matter does to haloes."""

import math

import pytest
import torch
from scipy import integrate
from scipy.special import erfc

from skatr_sk.simulator.collapsed_fraction import (
    DELTA_CRITICAL,
    barriers,
    conditional_fraction,
    jeans_mass,
    sheth_tormen,
)
from tests.simulator.universes import at, cosmology


def test_collapsed_fraction_is_an_integral_of_the_mass_function():
    sigma, z = 4.0, 8.0
    growth = cosmology().growth(at(z)).item()

    def mass_function(nu):
        return 0.353 * math.sqrt(2 / math.pi) * (1 + nu**-0.35) * math.exp(-(nu**2) / 2)

    smallest = math.sqrt(0.73) * DELTA_CRITICAL / (sigma * growth)
    expected = integrate.quad(mass_function, smallest, 20)[0]
    found = sheth_tormen(at(DELTA_CRITICAL / (sigma * growth))).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_conditional_fractions_average_to_the_unconditional_one():
    sigma_min, sigma_scale, growth = 3.0, 1.2, 0.15
    density = torch.linspace(-8, 8, 4001, dtype=torch.float64) * sigma_scale
    weight = torch.exp(-(density**2) / (2 * sigma_scale**2))
    both = barriers(*map(at, (growth, sigma_min, sigma_scale)))
    fraction, _ = conditional_fraction(density[None, None], *both)
    mean = (fraction[0, 0] * weight).sum() / weight.sum()
    expected = erfc(DELTA_CRITICAL / growth / (math.sqrt(2) * sigma_min))
    assert mean.item() == pytest.approx(expected, rel=1e-5)
    # Regions smaller than the halo hold none.
    small = barriers(at(growth), at(1.0), at(1.2))
    assert not conditional_fraction(density[None, None], *small)[0].any()


def test_warm_dark_matter_keeps_small_haloes_from_forming():
    warm, cold = cosmology(m_wdm=1.0), cosmology()
    ratio = (warm.power(at(0.05, 1.0, 20.0)) / cold.power(at(0.05, 1.0, 20.0)))[0]
    assert ratio[0] == pytest.approx(1, abs=0.01)
    assert ratio[2] < 0.01
    assert warm.sigma(at(0.1)).item() < 0.8 * cold.sigma(at(0.1)).item()
    masses = [jeans_mass(cosmology(m_wdm=m)).item() for m in (0.5, 1.0)]
    assert masses[0] / masses[1] == pytest.approx(16, rel=1e-6)
