"""Thermal noise of SKA-Low and the wedge, against published figures and by hand."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from skatr_sk.lightcones.thermal_noise import (
    _share_of_baselines,
    bandwidths,
    horizon_slopes,
    noise_of_tools21cm,
    radiometer_noise,
    sensitivity,
)
from skatr_sk.simulator.cosmology import OMEGA_M, redshifts_at

LINE = 1420.405751768  # MHz


def cube(nu, width):
    """Redshifts of three slices of a comoving width (Mpc), the middle one at a frequency (MHz)."""
    near, far = (redshift_near(nu, step * width) for step in (-1, 1))
    return np.array([near, LINE / nu - 1, far])


def redshift_near(nu, shift):
    from skatr_sk.simulator.cosmology import comoving_distances

    distance = comoving_distances([[LINE / nu - 1]], [OMEGA_M])
    return float(redshifts_at(distance + shift, [OMEGA_M])[0, 0])


def test_a_station_is_as_sensitive_as_the_observatory_says():
    """A_eff / T_sys in m^2 / K of SKA-TEL-SKO-0000818, revision 2 (arXiv:1912.12699)."""
    nu = np.array([60, 70, 80, 90, 100, 110, 120, 150, 200, 250])
    published = [0.255, 0.420, 0.580, 0.781, 0.862, 0.885, 0.924, 1.119, 1.223, 1.282]
    ratio = sensitivity(LINE / nu - 1) / published
    assert (ratio > 0.9).all() and (ratio < 1.45).all()


@pytest.mark.parametrize(("nu", "width"), [(140, 19), (80, 47)])
def test_a_thousand_hours_give_a_millikelvin(nu, width):
    """Cubes whose noise is some 1 mK: Mellema et al., arXiv:1501.04203."""
    level = radiometer_noise(cube(nu, width), (width, width), 1000.0)[1]
    assert 0.7 < level < 2.5


def test_how_noise_scales():
    z = cube(140, 19)
    once = radiometer_noise(z, (5.0, 5.0), 1000.0)
    np.testing.assert_allclose(radiometer_noise(z, (5.0, 5.0), 4000.0), once / 2)
    # All baselines are within cells so small: the noise goes with the solid angle.
    np.testing.assert_allclose(radiometer_noise(z, (5.0, 2.5), 1000.0), once * 2)
    rising = radiometer_noise(np.linspace(6, 25, 40), (14.0, 14.0), 1000.0)
    assert (np.diff(rising[1:-1]) > 0).all()  # those at the ends have half a neighbour


def test_bandwidths_add_up():
    z = np.linspace(6, 12, 200)
    total = LINE / (1 + z[0]) - LINE / (1 + z[-1])
    np.testing.assert_allclose(bandwidths(z)[1:-1].sum() + bandwidths(z)[[0, -1]].sum() / 2, total)


def test_share_of_baselines_is_that_of_points_in_a_disc(rng):
    radius, angle = np.sqrt(rng.random((2, 40_000))), 2 * np.pi * rng.random((2, 40_000))
    points = radius * np.exp(1j * angle) / 2  # a disc of diameter 1
    apart = np.abs(points[0] - points[1])
    for share in (0.1, 0.4, 0.8, 1.0, 2.0):
        found = _share_of_baselines(np.array(share))
        np.testing.assert_allclose(found, np.mean(apart < share), atol=0.01)


def test_slope_of_the_horizon():
    """By astropy's Planck18: H(z) D(z) / (c (1 + z))."""
    np.testing.assert_allclose(horizon_slopes([5, 9, 20]), [2.46, 3.75, 6.34], atol=0.01)
    z = np.array([9.0, 9.01])
    from skatr_sk.simulator.cosmology import comoving_distances

    distance = comoving_distances(z[None], [OMEGA_M])[0]
    by_hand = distance.mean() / (np.diff(distance)[0] / 0.01 * 10.005)
    np.testing.assert_allclose(horizon_slopes([9.005]), by_hand, rtol=1e-5)


# tools21cm ----------------------------------------------------------------------------------------


@pytest.fixture
def tools(monkeypatch):
    """Stands in for tools21cm: baselines at all modes but one, and one micro-Jansky each."""
    asked = []

    def get_uv_map(n, z, **options):
        asked.append((n, z, options))
        counts = np.full((n, n), 4.0 * z)
        counts[0, 0] = 0
        return counts, 512

    def sigma_noise_radio(z, depth, hours, step, N_ant, verbose):
        return None, 8.0 * np.sqrt(hours * 3600 / step)  # cancels the time

    stand_in = SimpleNamespace(
        get_uv_map=get_uv_map,
        sigma_noise_radio=sigma_noise_radio,
        jansky_2_kelvin=lambda array, z, boxsize, ncells: array * boxsize / ncells,
        asked=asked,
    )
    monkeypatch.setitem(sys.modules, "tools21cm", stand_in)
    return stand_in


def test_noise_of_modes_from_tools21cm(tools):
    z = np.linspace(6, 16, 11)
    level = noise_of_tools21cm(z, (4, 4, 11), (10.0, 10.0, 20.0), 1000.0)
    assert level.shape == (4, 4, 11)
    assert (level[0, 0] == 0).all()  # no baseline, no noise
    expected = 8 / np.sqrt(4 * z) / 4 * 10
    np.testing.assert_allclose(level[1:].reshape(-1, 11), np.broadcast_to(expected, (12, 11)))
    assert len(tools.asked) < 11  # it is slow
    assert tools.asked[0][2]["boxsize"] == 40.0


def test_tools21cm_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "tools21cm", None)
    with pytest.raises(ImportError, match=r'pip install "skatr_sk\[noise\]"'):
        noise_of_tools21cm(np.array([6.0, 7.0]), (4, 4, 2), (10.0, 10.0, 20.0), 1000.0)


@pytest.mark.slow
def test_the_real_tools21cm_agrees_within_a_factor_of_two():
    pytest.importorskip("tools21cm")
    z = np.linspace(7, 12, 6)
    level = noise_of_tools21cm(z, (14, 14, 6), (14.3, 14.3, 35.7), 1000.0)
    found = np.sqrt(np.square(level).mean(axis=(0, 1)))
    ratio = found / radiometer_noise(z, (14.3, 14.3), 1000.0)
    assert (ratio > 0.5).all() and (ratio < 3).all()
