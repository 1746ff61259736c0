"""Limits of the physics, and light cones alone and in a batch."""

import numpy as np
import pytest
import torch

from skatr_sk import SimulatedLightcones
from skatr_sk.parameters import PARAMETER_NAMES
from skatr_sk.simulator.lightcone import Box, brightness_lightcones, node_redshifts
from tests.simulator.universes import FIDUCIAL


def test_redshifts_of_boxes():
    nodes = node_redshifts(5.0)
    assert len(nodes) == 20
    assert nodes[0] == pytest.approx(35.7, abs=0.05)
    assert nodes[-2:] == pytest.approx([5.6, 5.0])


def assert_alike(found, expected):
    """Equal to rounding; a cell on the brink may be ionised in one and not in the other."""
    close = np.isclose(found, expected, rtol=1e-3, atol=0.01)
    assert close.mean() > 0.999


def test_a_batch_is_its_light_cones():
    """What a GPU does, on any device."""
    y = torch.from_numpy(SimulatedLightcones(4, field_shape=(8, 8, 60), random_state=1).target)
    noise = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    box = Box((8, 8, 60), 200 / 28, 5.0, False)
    batch = brightness_lightcones(y, noise, box)
    for i in range(4):
        alone = brightness_lightcones(y[i : i + 1], noise[i : i + 1], box)
        assert_alike(batch.brightness[i].numpy(), alone.brightness[0].numpy())
        torch.testing.assert_close(batch.x_HI[i], alone.x_HI[0], rtol=1e-3, atol=1e-3)


def history(**changes):
    """Mean brightness and neutral fraction along one small cone with some parameters changed."""
    y = FIDUCIAL.copy()
    for name, value in changes.items():
        y[0, PARAMETER_NAMES.index(name)] = value
    box = Box((12, 12, 380), 200 / 28, 5.0, False)
    noise = torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    made = brightness_lightcones(torch.from_numpy(y), noise, box)
    return made.brightness.mean((0, 1, 2)).numpy(), made.x_HI[0].numpy()


def test_without_xrays_the_gas_stays_cold():
    cold, _ = history(log10_L_X=30)
    hot, _ = history(log10_L_X=42)
    assert cold.max() < 2
    assert cold.min() < 1.5 * hot.min()
    assert hot.max() > 15  # mK: emission


def test_efficiency_sets_the_end_of_reionisation():
    none, neutral = history(zeta=0)
    assert neutral.min() > 0.9  # X-rays alone
    _, late = history(zeta=10)
    _, early = history(zeta=1000)
    assert early[-1] == 0
    assert (early <= late + 1e-6).all()
    assert history(zeta=1000)[0][0] == 0
    assert none[0] != 0


def test_warm_dark_matter_and_heavy_haloes_delay_everything():
    _, cold = history()
    _, warm = history(m_WDM=1.0)
    _, heavy = history(log10_T_vir=5.3)
    assert (warm >= cold - 1e-6).all()
    assert warm.mean() > cold.mean() + 0.05
    assert heavy.mean() > cold.mean() + 0.02
    # Without any haloes there is neither light nor bubble, only collisions.
    signal, dark = history(m_WDM=0.1)
    assert dark.min() > 0.999
    assert signal.max() <= 0
    assert abs(signal[0]) < 2


def test_hard_xrays_heat_less():
    soft, _ = history(E_0=200)
    hard, _ = history(E_0=1400)
    assert hard.mean() < soft.mean()
