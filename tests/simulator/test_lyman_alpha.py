"""Lyman series photons and their horizons."""

from skatr_sk.simulator.lyman_alpha import lyman_series
from tests.simulator.universes import at


def test_lyman_photons_come_from_within_their_horizon():
    z = at(10.0)
    horizon = 11 * (8 / 9) / (3 / 4) - 1
    shells = at(10.2, 11.0, horizon + 0.5, horizon + 3)
    continuum, injected = lyman_series(z, shells)
    assert (continuum[0, :2] > 0).all()
    assert injected[0, 0] > injected[0, 1]  # higher lines are closer together
    assert 0 < continuum[0, 2] < continuum[0, 1]  # the shell that the horizon cuts
    assert continuum[0, 3] == 0
    assert injected[0, 3] == 0
