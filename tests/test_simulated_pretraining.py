"""Light cones that are simulated while the encoder trains on them."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from skatr_sk import LightconeRegressor, SimulatedLightcones, SKATRTransformer

CONES = SimulatedLightcones(6, field_shape=(4, 4, 30), redshift_min=15, random_state=0)


def transformer(**parameters):
    small = dict(patch_size=(2, 2, 5), embed_dim=12, depth=1, n_heads=2, predictor_dim=12)
    small |= dict(predictor_depth=1, max_epochs=1, batch_size=4, device="cpu", random_state=0)
    return SKATRTransformer(**small | parameters)


@pytest.fixture(scope="module")
def stored():
    return np.asarray(CONES)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_training_equals_that_on_the_stored_cones(n_workers, stored):
    # Without a split: what is not simulated yet is split by its seed, not by its content.
    simulated = transformer(validation_fraction=0, n_workers=n_workers).fit(CONES)
    in_memory = transformer(validation_fraction=0).fit(stored)
    losses = [[row["train_loss"] for row in each.history_] for each in (simulated, in_memory)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(
        simulated.transform(CONES), in_memory.transform(stored), rtol=1e-4, atol=1e-5
    )


def test_a_pass_simulates_each_cone_once(monkeypatch):
    """Training rows once an epoch; what is looked at besides is held in memory."""
    simulated = []
    original = SimulatedLightcones._simulate

    def counting(self, rows):
        simulated.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(SimulatedLightcones, "_simulate", counting)
    transformer(validation_fraction=0, brightness_range=(-120, 0), max_epochs=3).fit(CONES)
    once = 2  # for constant fields, and for the effective rank
    assert np.bincount(simulated).tolist() == [3 + once] * len(CONES)


def test_in_a_pipeline(stored):
    pipe = make_pipeline(
        transformer(), LightconeRegressor(max_epochs=2, device="cpu", random_state=0)
    )
    pipe.fit(CONES, CONES.target)
    np.testing.assert_allclose(pipe.predict(CONES), pipe.predict(stored), rtol=1e-3, atol=1e-3)
