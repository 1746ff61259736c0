"""Simulated light cones: the array that they stand for, and 21cmFAST beside them."""

import inspect
import math
import pickle

import h5py
import numpy as np
import pytest

from skatr_sk import SimulatedLightcones, load_lightcones, make_lightcones
from skatr_sk._checks import NoEffectWarning
from skatr_sk.fields import Fields
from skatr_sk.lightcones import coarsen
from skatr_sk.parameters import PRIOR_BOUNDS
from skatr_sk.simulator import simulated
from skatr_sk.simulator.lightcone import node_redshifts
from tests.simulator import against_21cmfast
from tests.simulator.test_lightcone import assert_alike
from tests.simulator.universes import FIDUCIAL, FINE, FULL_SIZE

SMALL = {"field_shape": (8, 8, 60), "redshift_min": 12, "random_state": 3}


@pytest.fixture(scope="module")
def small():
    return SimulatedLightcones(1000, **SMALL)


@pytest.fixture(scope="module")
def small_rows(small):
    return np.asarray(small[:4])


@pytest.fixture
def forbidden(monkeypatch):
    def fail(*_):
        pytest.fail("something was simulated")

    monkeypatch.setattr(simulated, "brightness_lightcones", fail)


# The array ------------------------------------------------------------------------------------


def test_it_looks_like_an_array_and_simulates_nothing(forbidden):
    cones = SimulatedLightcones(100_000, **SMALL)
    assert cones.shape == (100_000, 8, 8, 60)
    assert cones.ndim == 4
    assert len(cones) == 100_000
    assert cones.dtype == np.float32
    assert cones.nbytes == 100_000 * 8 * 8 * 60 * 4
    assert "not in memory" in repr(cones[10:])
    assert cones[::2].shape == (50_000, 8, 8, 60)
    assert cones[np.arange(100_000) < 5].target.shape == (5, 6)
    assert len(cones[[]]) == 0


def test_it_is_fields(small, small_rows, forbidden):
    assert isinstance(small, Fields)
    assert not small.in_memory
    assert small.digests([3, 1]) == [small.digests()[3], small.digests()[1]]
    assert small[2:].digests(slice(0, 2)) == small.digests(np.arange(2, 4))
    assert small.digests([]) == []


def test_reading_is_in_the_asked_order(small, small_rows):
    for rows in ([3, 1], np.array([1, 1]), slice(3, 0, -2), np.array([True, False, False, True])):
        read = small[:4].read(rows)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, small_rows[rows])
    np.testing.assert_array_equal(small[1:3].read(), small_rows[1:3])
    assert small.read([]).shape == (0, 8, 8, 60)
    assert np.isfinite(small_rows).all()


def test_one_signature_for_both():
    """But for the bar, where all are simulated at once."""
    one, other = (
        dict(inspect.signature(f).parameters) for f in (SimulatedLightcones, make_lightcones)
    )
    assert other.pop("verbose").default == 0
    assert list(one.items()) == list(other.items())
    assert len(one) == 12


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [3, 1], np.array([-1, 0]), np.array([1, 0, 0, 1], bool), slice(None, None, -1)],
    ids=str,
)
def test_views_index_as_arrays_do(small, small_rows, index):
    view = small[:4][index]
    np.testing.assert_array_equal(np.asarray(view), small_rows[index])
    np.testing.assert_array_equal(view.target, small[:4].target[index])
    assert view.digests() == list(np.array(small[:4].digests(), dtype=object)[index])


def test_a_row_is_the_same_whatever_it_is_read_with(small, small_rows):
    np.testing.assert_array_equal(small[2], small_rows[2])
    np.testing.assert_array_equal(small[np.int64(2)], small_rows[2])
    np.testing.assert_array_equal(list(small[2:4])[0], small_rows[2])
    np.testing.assert_array_equal(np.asarray(small[[2, 999]])[0], small_rows[2])
    X, y = make_lightcones(3, **SMALL)  # another number of rows
    np.testing.assert_array_equal(X, small_rows[:3])
    np.testing.assert_array_equal(y, small.target[:3])


def test_it_survives_pickling(small, small_rows):
    copy = pickle.loads(pickle.dumps(small[1:3]))
    np.testing.assert_array_equal(np.asarray(copy), small_rows[1:3])


def test_numpy_conversions(small, small_rows):
    assert np.asarray(small[:1], dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without reading"):
        small[:1].__array__(copy=False)
    with pytest.raises(IndexError):
        small[1000]
    with pytest.raises(IndexError):
        small.read([1000])
    with pytest.raises(IndexError, match="slices of the"):
        small[:2, 0]
    np.testing.assert_array_equal(small[0, 1, 2], small_rows[0, 1, 2])
    with pytest.raises(IndexError, match="integers or booleans"):
        small[[0.5]]


def test_parameters_are_drawn_within_the_prior():
    bounds = PRIOR_BOUNDS.copy()
    bounds[3] = 41.0, 41.5
    y = SimulatedLightcones(2000, prior_bounds=bounds, random_state=0).target
    unit = (y - bounds[:, 0]) / (bounds[:, 1] - bounds[:, 0])
    assert unit.min() >= 0
    assert unit.max() <= 1
    # Uniform: mean and variance within five standard errors.
    assert np.abs(unit.mean(0) - 0.5).max() < 5 * math.sqrt(1 / 12 / 2000)
    assert np.abs(unit.var(0) - 1 / 12).max() < 5 * math.sqrt(1 / 180 / 2000)
    assert np.abs(np.corrcoef(unit.T) - np.eye(6)).max() < 5 / math.sqrt(2000)


def test_given_parameters_are_used():
    y = np.repeat(FIDUCIAL, 2, axis=0)
    X, target = make_lightcones(2, parameters=y, **SMALL)
    np.testing.assert_array_equal(target, y)
    assert not np.allclose(X[0], X[1])  # each has its own initial conditions


def test_seeds_are_those_of_the_initial_conditions(forbidden):
    cones = SimulatedLightcones(50, **SMALL)
    assert cones.seeds.dtype == np.int64
    assert len(set(cones.seeds.tolist())) == 50
    assert cones.seeds.min() >= 0
    np.testing.assert_array_equal(cones[10:3:-2].seeds, cones.seeds[10:3:-2])
    others = SimulatedLightcones(3, parameters=cones.target[7:10], **SMALL)
    np.testing.assert_array_equal(others.seeds, cones.seeds[:3])
    again = SimulatedLightcones(50, **SMALL | {"random_state": 4})
    assert not set(again.seeds.tolist()) & set(cones.seeds.tolist())


def test_cold_dark_matter_changes_light_cones_but_no_label():
    sizes = SMALL | {"field_shape": (8, 8, 300), "redshift_min": 5}
    warm, cold = (SimulatedLightcones(4, dark_matter=kind, **sizes) for kind in ("warm", "cold"))
    np.testing.assert_array_equal(warm.target, cold.target)  # m_WDM is drawn
    # As particles of any mass without velocities, with the same initial conditions.
    heavy = warm.target.copy()
    heavy[:, 0] = 1e6
    expected = SimulatedLightcones(4, parameters=heavy, **sizes)
    np.testing.assert_allclose(cold[1], expected[1], rtol=1e-4, atol=1e-4)
    light = int(warm.target[:, 0].argmin())
    assert np.abs(cold[light] - warm[light]).max() > 1  # mK
    # Given or drawn, the mass is no more than a label.
    given = warm.target * [[0.5, 1, 1, 1, 1, 1]]
    same = SimulatedLightcones(4, parameters=given, dark_matter="cold", **sizes)
    np.testing.assert_array_equal(same[light], cold[light])
    np.testing.assert_array_equal(same.target, given)


def test_digests_name_the_content(forbidden):
    def digests(n=3, **changes):
        return SimulatedLightcones(n, **(SMALL | changes)).digests()

    first = digests()
    assert all(len(digest) == 16 for digest in first)
    assert digests(5)[:3] == first
    with pytest.warns(NoEffectWarning):
        assert digests(batch_size=2) == first
    same = np.repeat(FIDUCIAL, 3, axis=0)
    others = [
        digests(random_state=4),
        digests(field_shape=(8, 8, 61)),
        digests(field_shape=(4, 4, 60), block=(2, 2, 1)),
        digests(cell_size=7.0),
        digests(redshift_min=6),
        digests(evolution="linear"),
        digests(dark_matter="cold"),
        digests(prior_bounds=PRIOR_BOUNDS + [[0, 0.1]]),
        digests(parameters=same),
        digests(parameters=same + [[0, 0, 0, 0, 0, 1]]),
    ]
    every = sum(others, first)
    assert len(set(every)) == len(every)


def test_blocks_are_averaged():
    fine = make_lightcones(1, field_shape=(8, 8, 60), random_state=3)[0]
    coarse = make_lightcones(1, field_shape=(4, 4, 12), block=(2, 2, 5), random_state=3)[0]
    np.testing.assert_allclose(coarse, coarsen(fine, (2, 2, 5)), rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_light_cones(small_rows):
    cones = SimulatedLightcones(1000, device="cuda", batch_size=3, **SMALL)
    assert_alike(np.asarray(cones[:4]), small_rows)


def test_redshifts_of_cells_are_those_of_21cmfast():
    cones = load_lightcones()
    coarse = SimulatedLightcones(
        229, field_shape=(14, 14, 90), block=(2, 2, 5), parameters=cones.target
    )
    found = coarse[:40].redshifts()
    assert found.shape == (40, 90)
    assert coarse[[]].redshifts().shape == (0, 90)
    assert np.abs(found - cones.redshifts[:40]).max() < 0.01
    nodes = node_redshifts(5.0)
    np.testing.assert_allclose(np.array(nodes), cones.node_redshifts[0], rtol=1e-5)


def test_linear_growth_gives_the_same_history():
    y = np.repeat(FIDUCIAL, 3, axis=0)
    both = [
        make_lightcones(3, field_shape=(12, 12, 380), parameters=y, evolution=way, random_state=0)[
            0
        ]
        for way in ("zeldovich", "linear")
    ]
    signals = [X.mean((0, 1, 2)) for X in both]
    assert np.abs(signals[0] - signals[1]).max() < 15
    assert 1 < both[1].std() / both[0].std() < 1.3  # sharper without the clouds' blur


def test_gas_of_voids_does_not_cool_to_nothing_under_linear_growth():
    fine = dict(field_shape=(16, 16, 300), cell_size=200 / 56, random_state=0)
    ways = [SimulatedLightcones(60, evolution=way, **fine) for way in ("linear", "zeldovich")]
    linear, moved = (cones[[26, 28]].read().min(axis=(1, 2, 3)) for cones in ways)
    np.testing.assert_allclose(linear, moved, rtol=0.5)  # -10^5 to -10^6 mK where voids empty


def test_signal_and_standard_deviation_are_those_of_21cmfast():
    real = load_lightcones()
    rows = np.arange(0, 229, 38)
    X, _ = make_lightcones(
        len(rows), field_shape=(14, 14, 90), block=(2, 2, 5), parameters=real.target[rows],
        random_state=0,
    )  # fmt: skip
    signals = [cones.mean((1, 2), dtype=np.float64) for cones in (X, real.data[rows])]
    assert np.median(np.abs(signals[0] - signals[1])) < 2  # mK
    assert np.abs(signals[0] - signals[1]).mean() < 5
    deviation = [cones.std((1, 2), dtype=np.float64) for cones in (X, real.data[rows])]
    shines = deviation[1] > 2
    ratio = deviation[0][shines] / deviation[1][shines]
    assert np.median(ratio) == pytest.approx(1, abs=0.15)
    assert np.mean((ratio > 0.5) & (ratio < 2)) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(
    not FULL_SIZE.is_file(), reason=f"needs {FULL_SIZE.name}, set SKATR_SK_LIGHTCONES"
)
def test_all_figures_against_21cmfast(capsys):
    with h5py.File(FULL_SIZE, "r") as file:
        parameters, redshifts = file["parameters"][:], file["redshifts"][:]
        real, real_neutral = file["brightness_temp"][:], file["global_xH"][:]
    cones, neutral = against_21cmfast.simulate_like(parameters, real.shape[1:])
    figures = against_21cmfast.compare(cones, neutral, real, real_neutral, redshifts)
    with capsys.disabled():
        print(f"\n{len(cones)} light cones, simulated and of 21cmFAST")
        for name, value in figures.items():
            print(f"{name:<55}{value:>10.3f}")
    assert figures["global signal, median absolute error [mK]"] <= 15
    correlations = [value for name, value in figures.items() if "rank correlation" in name]
    assert len(correlations) == 3
    assert min(correlations) > 0.9
    assert figures["power, share within a factor 2"] >= 0.75


@pytest.mark.slow
@pytest.mark.skipif(not FINE.is_file(), reason=f"needs {FINE.name}, set SKATR_SK_LIGHTCONES_FINE")
def test_fine_cells_against_21cmfast(capsys):
    with h5py.File(FINE, "r") as file:
        parameters, real = file["parameters"][:], file["brightness_temp"][:]
    cones, _ = against_21cmfast.simulate_like(parameters, real.shape[1:])
    signal = against_21cmfast.compare_signals(cones, real)
    power = [
        against_21cmfast.compare_power(cones, real, edges)
        for edges in (against_21cmfast.K_EDGES, against_21cmfast.FINER_K_EDGES)
    ]
    with capsys.disabled():
        print(f"\n{len(cones)} light cones of {real.shape[1:]} cells, simulated and of 21cmFAST")
        for figures in (signal, *power):
            for name, value in figures.items():
                print(f"{name:<55}{value:>10.3f}")
    assert signal["global signal, median absolute error [mK]"] < 1
    for figures in power:
        assert figures["power, share within a factor 2"] > 0.95
        assert figures["power, median ratio"] == pytest.approx(1, abs=0.15)
