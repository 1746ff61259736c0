"""The cosmology against astropy, integrals and limits, and against light cones of 21cmFAST."""

import math

import h5py
import numpy as np
import pytest
import torch
from scipy import integrate

from skatr_sk.simulator.cosmology import (
    CRITICAL_DENSITY,
    HUBBLE,
    OMEGA_B,
    OMEGA_M,
    T_CMB,
    Background,
    comoving_distances,
    redshifts_at,
    top_hat,
)
from tests.simulator.universes import FULL_SIZE, at, cosmology

# astropy 7: Planck18.clone(H0=67.66, Om0=omega_m, Ob0=0.04897).comoving_distance([5, 10, 20, 34])
ASTROPY = {
    0.2: [9136.457896734491, 11231.491930905417, 12870.101894088171, 13835.976902497441],
    0.3: [8029.549189491359, 9746.156399391002, 11087.364630304055, 11878.375670543823],
    0.4: [7292.413706733118, 8781.667322335803, 9944.619718537502, 10630.691873240732],
}


@pytest.mark.parametrize("omega_m", ASTROPY)
def test_distances_are_those_of_astropy(omega_m):
    np.testing.assert_allclose(
        comoving_distances([5, 10, 20, 34], omega_m), ASTROPY[omega_m], rtol=1e-9
    )
    np.testing.assert_allclose(redshifts_at(ASTROPY[omega_m], omega_m), [5, 10, 20, 34], rtol=1e-9)


def test_constants_and_expansion_are_those_of_astropy():
    cosmologies = pytest.importorskip("astropy.cosmology")
    theirs = cosmologies.Planck18
    ours = (HUBBLE, OMEGA_M, OMEGA_B, T_CMB, CRITICAL_DENSITY)
    assert ours == pytest.approx(
        (theirs.h, theirs.Om0, theirs.Ob0, theirs.Tcmb0.value, theirs.critical_density0.value),
        rel=1e-9,
    )
    z = np.array([0.0, 0.5, 5.0, 35.0, 300.0, 1000.0])
    for omega_m, hubble in ((0.2, HUBBLE), (0.4, HUBBLE), (0.31, 0.74)):
        theirs = cosmologies.Planck18.clone(H0=100 * hubble, Om0=omega_m)
        background = Background(torch.tensor([omega_m], dtype=torch.float64), hubble)
        found = background.expansion(torch.from_numpy(z)[None])[0]
        np.testing.assert_allclose(found, theirs.efunc(z), rtol=1e-9)
        distances = theirs.comoving_distance(z).value
        np.testing.assert_allclose(comoving_distances(z, omega_m, hubble), distances, rtol=1e-9)
        np.testing.assert_allclose(
            redshifts_at(distances, omega_m, hubble), z, rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("n", [0, 1, 600])
def test_many_cosmologies_at_once(n, rng):
    omega_m, hubble = rng.uniform(0.2, 0.4, n), rng.uniform(0.6, 0.8, n)
    z = rng.uniform(0, 30, (n, 7))
    distances = comoving_distances(z, omega_m, hubble)
    assert distances.shape == (n, 7)
    for i in range(0, n, 97):
        alone = comoving_distances(z[i], omega_m[i], hubble[i])
        np.testing.assert_allclose(distances[i], alone, rtol=1e-12)
    np.testing.assert_allclose(redshifts_at(distances, omega_m, hubble), z, rtol=1e-8, atol=1e-9)
    one_hubble = comoving_distances(z[:, 0], omega_m)
    assert one_hubble.shape == (n,)


def test_a_universe_of_matter_alone_nearly():
    """Einstein and de Sitter: 2 c / H_0 (1 - 1 / sqrt(1 + z)), up to the radiation."""
    found = comoving_distances(3.0, omega_m=1.0, hubble=0.7)
    assert found == pytest.approx(2997.92458 / 0.7, rel=2e-3)


@pytest.mark.skipif(not FULL_SIZE.is_file(), reason=f"needs {FULL_SIZE.name}")
def test_slices_of_simulated_cones_lie_a_cell_apart():
    with h5py.File(FULL_SIZE) as file:
        redshifts = file["redshifts"][:20].astype(np.float64)
        omega_m = file["parameters"][:20, 1]
    for z, omega in zip(redshifts, omega_m, strict=True):
        cells = np.diff(comoving_distances(z, omega))
        np.testing.assert_allclose(cells, 200 / 28, rtol=1e-4)


def test_growth_is_that_of_matter_early_on():
    growth = cosmology().growth(at(20.0, 30.0))[0]
    assert growth[0] / growth[1] == pytest.approx(31 / 21, rel=3e-3)
    assert cosmology().growth(at(0.0)).item() == pytest.approx(1, rel=1e-4)
    # Its slope is that of finite differences, and that of an Einstein-de Sitter universe.
    steps = cosmology().growth(at(9.99, 10.01))[0]
    slope = cosmology().growth_slope(at(10.0)).item()
    assert slope == pytest.approx((steps[1] - steps[0]).item() / 0.02, rel=1e-3)
    flat = cosmology(omega_m=1.0)
    assert flat.growth(at(8.0)).item() == pytest.approx(1 / 9, rel=0.01)


def test_distances_are_integrals():
    integrand = lambda z: 299792.458 / (100 * HUBBLE * math.sqrt(0.31 * (1 + z) ** 3 + 0.69))  # noqa: E731
    expected = integrate.quad(integrand, 0, 9)[0]
    assert cosmology().distance(at(9.0)).item() == pytest.approx(expected, rel=0.01)
    there = cosmology().redshift(cosmology().distance(at(6.0, 20.0)))
    torch.testing.assert_close(there, at(6.0, 20.0))


def test_variance_is_an_integral_of_the_power_spectrum():
    cold = cosmology()
    assert cold.sigma(at(8 / HUBBLE)).item() == pytest.approx(0.8102, rel=1e-3)

    def integrand(ln_k, radius):
        k = torch.tensor([[math.exp(ln_k)]], dtype=torch.float64)
        return (k**3 * cold.power(k) * top_hat(k * radius) ** 2 / (2 * math.pi**2)).item()

    for radius in (0.3, 4.0, 40.0):
        variance = integrate.quad(integrand, -9, 6, args=(radius,), limit=400, epsrel=1e-4)[0]
        assert cold.sigma(at(radius)).item() == pytest.approx(math.sqrt(variance), rel=0.01)


def test_primordial_slope_and_turnover():
    k = at(1e-5, 1e-4, 0.015, 1.0, 10.0)
    slopes = torch.diff(cosmology().power(k).log())[0] / torch.diff(k.log())[0]
    assert slopes[0] == pytest.approx(0.9665, abs=0.01)
    assert slopes[-1] < -2.3
