"""Distances and redshifts against astropy, and against simulated light cones."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk.lightcones.cosmology import comoving_distances, redshifts_at

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "lightcones_lr.h5"

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


def test_a_universe_of_matter_alone_nearly():
    """Einstein and de Sitter: 2 c / H_0 (1 - 1 / sqrt(1 + z)), up to the radiation."""
    found = comoving_distances(3.0, omega_m=1.0, hubble=0.7)
    assert found == pytest.approx(2997.92458 / 0.7, rel=2e-3)


@pytest.mark.skipif(not REAL.exists(), reason="needs the full-size light cones")
def test_slices_of_simulated_cones_lie_a_cell_apart():
    with h5py.File(REAL) as file:
        redshifts = file["redshifts"][:20].astype(np.float64)
        omega_m = file["parameters"][:20, 1]
    for z, omega in zip(redshifts, omega_m, strict=True):
        cells = np.diff(comoving_distances(z, omega))
        np.testing.assert_allclose(cells, 200 / 28, rtol=1e-4)
