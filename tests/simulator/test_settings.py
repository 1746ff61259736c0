"""What a user asks of the simulator: faults are named, seeds of every kind are taken."""

import numpy as np
import pytest

from skatr_sk import SimulatedLightcones, make_lightcones
from skatr_sk._checks import NoEffectWarning
from skatr_sk.parameters import PRIOR_BOUNDS
from tests.simulator.universes import FIDUCIAL


def test_random_states():
    def target(random_state):
        return SimulatedLightcones(2, field_shape=(4, 4, 9), random_state=random_state).target

    assert not np.array_equal(target(None), target(None))
    for make in (np.random.default_rng, np.random.RandomState):
        np.testing.assert_array_equal(target(make(5)), target(make(5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field_shape": (28, 470)}, r"field_shape: expected three integers >= 1.*\(28, 470\)"),
        (
            {"field_shape": (28, 28, 700)},
            r"field_shape\[2\]: expected at most 472 cells of 7.14 Mpc, found 700;.* redshift 35",
        ),
        ({"field_shape": (28, 28, 100), "block": (1, 1, 5)}, "at most 94 cells of 35.7 Mpc"),
        ({"n_samples": 0}, "n_samples: expected an integer >= 1, found 0"),
        ({"n_samples": 2, "parameters": FIDUCIAL}, r"parameters: expected .*\(2, 6\).*\(1, 6\)"),
        ({"n_samples": 2.5, "parameters": FIDUCIAL}, "n_samples: expected an integer"),
        ({"parameters": FIDUCIAL * np.nan}, "parameters: expected finite numbers.*row 0"),
        ({"parameters": FIDUCIAL * 10}, "expected Omega_m from 0.1 to 1, found 3.1; see row 0"),
        ({"parameters": "fiducial"}, "parameters: expected numbers of shape"),
        (
            {"prior_bounds": PRIOR_BOUNDS[:, ::-1]},
            "expected low <= high for m_WDM, found '10, 0.3'",
        ),
        ({"prior_bounds": PRIOR_BOUNDS[:5]}, r"prior_bounds: expected .*\(6, 2\), .*\(5, 2\)"),
        ({"prior_bounds": PRIOR_BOUNDS * 20}, "prior_bounds: expected Omega_m from 0.1 to 1"),
        ({"evolution": "quadratic"}, "evolution: expected one of 'zeldovich', 'linear'"),
        ({"dark_matter": "hot"}, "dark_matter: expected one of 'warm', 'cold'"),
        ({"block": 0}, "block: expected an integer >= 1 or three.*found 0"),
        ({"block": True}, "block: expected"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1 or None"),
        ({"device": "tpu9"}, "device: expected 'auto', 'cpu'"),
        ({"random_state": -1}, "random_state: expected an int >= 0"),
        ({"random_state": True}, "random_state: expected an int >= 0"),
    ],
)
@pytest.mark.parametrize("made", [SimulatedLightcones, make_lightcones])
def test_faults_are_named(made, changes, message):
    with pytest.raises(ValueError, match=message):
        made(**({"n_samples": 1} | changes))


def test_all_faults_are_in_one_message():
    with pytest.raises(ValueError, match="has 3 invalid parameters") as raised:
        SimulatedLightcones(
            1, cell_size=-1, redshift_min=0, parameters=FIDUCIAL * [1, 10, 1, 1, 1, 1]
        )
    for name in ("cell_size", "redshift_min", "parameters"):
        assert f"\n- {name}: expected " in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"prior_bounds": PRIOR_BOUNDS, "parameters": FIDUCIAL}, "prior_bounds"),
        ({"batch_size": 2}, "batch_size"),
    ],
)
def test_what_has_no_effect_is_told(changes, name):
    with pytest.warns(NoEffectWarning, match=f"no effect with .* of {name}; leave it out") as told:
        SimulatedLightcones(1, **changes)
    assert told[0].filename == __file__


def test_a_parameter_may_be_held():
    bounds = PRIOR_BOUNDS.copy()
    bounds[1] = 0.3
    assert set(SimulatedLightcones(5, prior_bounds=bounds).target[:, 1]) == {0.3}
