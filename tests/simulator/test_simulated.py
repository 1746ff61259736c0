"""Simulated light cones: the array that they stand for, limits of the physics, 21cmFAST."""

import math
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.special import erfc

from skatr_sk import SimulatedLightcones, load_lightcones, make_lightcones
from skatr_sk.lightcones import _lightcone, coarsen, simulate
from skatr_sk.lightcones._cosmology import DELTA_CRITICAL, HUBBLE, Cosmology, top_hat
from skatr_sk.lightcones._density import Grid, InitialConditions, smooth
from skatr_sk.lightcones._lightcone import Box, node_redshifts
from skatr_sk.lightcones._radiation import XRAY_ELECTRONS, cross_section, lyman_series, xray_tables
from skatr_sk.lightcones._reionisation import conditional_fraction
from skatr_sk.lightcones.simulate import PARAMETER_NAMES, PRIOR_BOUNDS
from tests.lightcones import against_21cmfast

ROOT = Path(__file__).resolve().parents[2]
FULL_SIZE = Path(
    os.environ.get("SKATR_SK_LIGHTCONES", ROOT.parent / "shared" / "data" / "lightcones_lr.h5")
)
SMALL = {"field_shape": (8, 8, 60), "random_state": 3}
COLD = 1e5  # keV
FIDUCIAL = np.array([[COLD, 0.31, 500, 40.0, 4.7, 30]])


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

    monkeypatch.setattr(simulate, "simulate", fail)


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


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [3, 1], np.array([-1, 0]), np.array([1, 0, 0, 1], bool), slice(None, None, -1)],
    ids=str,
)
def test_views_index_as_arrays_do(small, small_rows, index):
    view = small[:4][index]
    np.testing.assert_array_equal(np.asarray(view), small_rows[index])
    np.testing.assert_array_equal(view.target, small[:4].target[index])
    assert view.row_digests() == list(np.array(small[:4].row_digests(), dtype=object)[index])


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
    with pytest.raises(ValueError, match="without a copy"):
        small[:1].__array__(copy=False)
    with pytest.raises(IndexError):
        small[1000]
    with pytest.raises(IndexError, match="by rows only"):
        small[0, 0]
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


def test_digests_name_the_content(forbidden):
    def digests(n=3, **changes):
        return SimulatedLightcones(n, **(SMALL | changes)).row_digests()

    first = digests()
    assert all(len(digest) == 16 for digest in first)
    assert digests(5)[:3] == first
    assert digests(batch_size=2) == first
    same = np.repeat(FIDUCIAL, 3, axis=0)
    others = [
        digests(random_state=4),
        digests(field_shape=(8, 8, 61)),
        digests(field_shape=(4, 4, 60), block=(2, 2, 1)),
        digests(cell_size=7.0),
        digests(redshift_min=6),
        digests(evolution="linear"),
        digests(prior_bounds=PRIOR_BOUNDS + [[0, 0.1]]),
        digests(parameters=same),
        digests(parameters=same + [[0, 0, 0, 0, 0, 1]]),
    ]
    every = sum(others, first)
    assert len(set(every)) == len(every)


def test_random_states():
    def target(random_state):
        return SimulatedLightcones(2, field_shape=(4, 4, 9), random_state=random_state).target

    assert not np.array_equal(target(None), target(None))
    for make in (np.random.default_rng, np.random.RandomState):
        np.testing.assert_array_equal(target(make(5)), target(make(5)))


def test_blocks_are_averaged():
    fine = make_lightcones(1, field_shape=(8, 8, 60), random_state=3)[0]
    coarse = make_lightcones(1, field_shape=(4, 4, 12), block=(2, 2, 5), random_state=3)[0]
    np.testing.assert_allclose(coarse, coarsen(fine, (2, 2, 5)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"field_shape": (28, 470)}, "field_shape must be three integers"),
        ({"field_shape": (28, 28, 700)}, "beyond redshift 35.*at most 472 cells of 7.14 Mpc"),
        ({"field_shape": (28, 28, 100), "block": (1, 1, 5)}, "at most 94 cells of 35.7 Mpc"),
        ({"n_samples": 0}, "n_samples must be an integer >= 1; found 0"),
        ({"n_samples": 2, "parameters": FIDUCIAL}, r"parameters must have shape \(2, 6\)"),
        ({"parameters": FIDUCIAL * np.nan}, "parameters must be finite.*row 0"),
        ({"parameters": FIDUCIAL * 10}, "Omega_m must be from 0.1 to 1; found 3.1 in row 0"),
        ({"prior_bounds": PRIOR_BOUNDS[:, ::-1]}, "m_WDM: the first, 10, is above the second"),
        ({"prior_bounds": PRIOR_BOUNDS[:5]}, r"prior_bounds must have shape \(6, 2\)"),
        ({"evolution": "quadratic"}, "evolution must be 'zeldovich' or 'linear'"),
        ({"cell_size": -1, "redshift_min": 0}, "cell_size must be .*; redshift_min must be"),
        ({"block": 0}, "block must be three integers >= 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"device": "tpu9"}, "device must be"),
        ({"random_state": -1}, "random_state must be"),
    ],
)
def test_faults_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SimulatedLightcones(**({"n_samples": 1} | changes))


# Cosmology ------------------------------------------------------------------------------------


def cosmology(omega_m=0.31, m_wdm=math.inf):
    return Cosmology(torch.tensor([omega_m]), torch.tensor([m_wdm]))


def at(*values):
    return torch.tensor([values], dtype=torch.float64)


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


def test_collapsed_fraction_is_an_integral_of_the_mass_function():
    sigma, z = 4.0, 8.0
    growth = cosmology().growth(at(z)).item()

    def sheth_tormen(nu):
        return 0.353 * math.sqrt(2 / math.pi) * (1 + nu**-0.35) * math.exp(-(nu**2) / 2)

    smallest = math.sqrt(0.73) * DELTA_CRITICAL / (sigma * growth)
    expected = integrate.quad(sheth_tormen, smallest, 20)[0]
    found = cosmology().collapsed_fraction(at(z), at(sigma)).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_conditional_fractions_average_to_the_unconditional_one():
    sigma_min, sigma_scale, growth = 3.0, 1.2, 0.15
    density = torch.linspace(-8, 8, 4001, dtype=torch.float64) * sigma_scale
    weight = torch.exp(-(density**2) / (2 * sigma_scale**2))
    fraction, _ = conditional_fraction(
        density[None, None], *map(at, (growth, sigma_min, sigma_scale))
    )
    mean = (fraction[0, 0] * weight).sum() / weight.sum()
    expected = erfc(DELTA_CRITICAL / growth / (math.sqrt(2) * sigma_min))
    assert mean.item() == pytest.approx(expected, rel=1e-5)
    # Regions smaller than the halo hold none.
    assert not conditional_fraction(density[None, None], at(growth), at(1.0), at(1.2))[0].any()


def test_warm_dark_matter_keeps_small_haloes_from_forming():
    warm, cold = cosmology(m_wdm=1.0), cosmology()
    ratio = (warm.power(at(0.05, 1.0, 20.0)) / cold.power(at(0.05, 1.0, 20.0)))[0]
    assert ratio[0] == pytest.approx(1, abs=0.01)
    assert ratio[2] < 0.01
    assert warm.sigma(at(0.1)).item() < 0.8 * cold.sigma(at(0.1)).item()
    masses = [cosmology(m_wdm=m).jeans_mass().item() for m in (0.5, 1.0)]
    assert masses[0] / masses[1] == pytest.approx(16, rel=1e-6)


def test_redshifts_of_cells_are_those_of_21cmfast():
    cones = load_lightcones()
    coarse = SimulatedLightcones(
        229, field_shape=(14, 14, 90), block=(2, 2, 5), parameters=cones.target
    )
    found = coarse[:40].redshifts()
    assert found.shape == (40, 90)
    assert np.abs(found - cones.redshifts[:40]).max() < 0.01
    nodes = node_redshifts(5.0)
    np.testing.assert_allclose(np.array(nodes), cones.node_redshifts[0], rtol=1e-5)


# Matter ---------------------------------------------------------------------------------------


def matter(linear, n=6, cells=24):
    universe = Cosmology(torch.full((n,), 0.31), torch.full((n,), math.inf))
    noise = torch.randn(n, cells, cells, cells, generator=torch.Generator().manual_seed(0))
    grid = Grid((cells, cells, cells), 200 / 28, torch.device("cpu"))
    return universe, grid, InitialConditions(grid, universe, noise, linear)


@pytest.mark.parametrize("linear", [True, False])
def test_density_has_the_variance_of_the_power_spectrum(linear):
    universe, grid, initial = matter(linear)
    growth = universe.growth(torch.full((6, 1), 12.0))[:, 0]
    density = initial.density(growth)
    assert abs(density.mean().item()) < 1e-5  # mass is kept
    # In spheres that hold many cells the grid does not matter.
    radius = 20.0
    smoothed = smooth(density, grid.top_hat(radius)[None])[:, 0]
    k = grid.k.clamp(min=1e-3)
    # Modes of the box alone, counted with their mirror images.
    modes = universe.power(k[None].expand(6, -1, -1, -1))[0] * grid.top_hat(radius) ** 2
    twice = torch.ones_like(modes)
    twice[..., 1:-1] = 2
    modes[0, 0, 0] = 0
    variance = (modes * twice).sum().item() / (24 * grid.cell) ** 3 * growth[0].item() ** 2
    # Clouds as wide as a cell blur even that a little.
    low, high = (0.87, 1.13) if linear else (0.7, 1.05)
    assert low < smoothed.var().item() / variance < high


def test_density_is_gaussian_at_first_and_skewed_later():
    universe, _, initial = matter(linear=False)
    skewness = []
    for z in (30.0, 5.0):
        density = initial.density(universe.growth(torch.full((6, 1), z))[:, 0])
        assert density.min() > -1
        skewness.append(((density / density.std()) ** 3).mean().item())
    assert abs(skewness[0]) < 0.4
    assert skewness[1] > skewness[0] + 0.3


def test_moved_masses_stay_whole_in_boxes_of_any_size():
    for cells in (1, 2, 3):
        universe, _, initial = matter(linear=False, n=1, cells=cells)
        density = initial.density(universe.growth(torch.zeros(1, 1))[:, 0])  # today: far moves
        assert density.shape == (1, cells, cells, cells)
        assert abs(density.mean().item()) < 1e-5


# Light ----------------------------------------------------------------------------------------


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


def test_xray_energy_is_shared_out():
    """Heat, ionisations of 13.6 eV and Lyman alpha of 10.2 eV add up to what electrons bring."""
    electrons = XRAY_ELECTRONS.double()
    heat, ions, alpha = xray_tables(torch.tensor(300.0))

    def over_spectrum(yields):
        """Integral over frequency, and the same with the energy that the electron is left with."""
        energy = torch.logspace(math.log10(300), 4, 2000, dtype=torch.float64)
        rate = cross_section(energy, electrons[:, None]) * energy**-2 * 2.418e14
        return torch.trapezoid(rate * yields(energy), energy)

    primaries = over_spectrum(torch.ones_like)
    # Most come from helium; the last electron of helium costs more.
    brought = over_spectrum(lambda energy: energy - (24.6 + electrons * 29.8)[:, None])
    shares = heat / 1.602e-12 / brought
    assert (torch.diff(shares[:-1]) > 0).all()
    assert 0.1 < shares[0] < 0.16
    assert 0.95 < shares[-1] < 1.05
    spent = heat / 1.602e-12 + 13.6 * (ions - primaries) + 10.2 * alpha
    assert ((spent / brought > 0.75) & (spent / brought < 1.05)).all()
    # Fewer photons, less of everything.
    falling = xray_tables(torch.tensor([200.0, 500.0, 2000.0]))
    assert (torch.diff(falling, dim=0) < 0).all()


# Light cones ----------------------------------------------------------------------------------


def assert_alike(found, expected):
    """Equal to rounding; a cell on the brink may be ionised in one and not in the other."""
    close = np.isclose(found, expected, rtol=1e-3, atol=0.01)
    assert close.mean() > 0.999


def test_a_batch_is_its_light_cones():
    """What a GPU does, on any device."""
    y = torch.from_numpy(SimulatedLightcones(4, field_shape=(8, 8, 60), random_state=1).target)
    noise = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    box = Box((8, 8, 60), 200 / 28, 5.0, False)
    batch = _lightcone.simulate(y, noise, box)
    for i in range(4):
        alone = _lightcone.simulate(y[i : i + 1], noise[i : i + 1], box)
        assert_alike(batch.brightness[i].numpy(), alone.brightness[0].numpy())
        torch.testing.assert_close(batch.neutral[i], alone.neutral[0], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_light_cones(small_rows):
    cones = SimulatedLightcones(1000, device="cuda", batch_size=3, **SMALL)
    assert_alike(np.asarray(cones[:4]), small_rows)


def history(**changes):
    """Mean brightness and neutral fraction along one small cone with some parameters changed."""
    y = FIDUCIAL.copy()
    for name, value in changes.items():
        y[0, PARAMETER_NAMES.index(name)] = value
    box = Box((12, 12, 380), 200 / 28, 5.0, False)
    noise = torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    made = _lightcone.simulate(torch.from_numpy(y), noise, box)
    return made.brightness.mean((0, 1, 2)).numpy(), made.neutral[0].numpy()


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


def test_signal_and_scatter_are_those_of_21cmfast():
    real = load_lightcones()
    rows = np.arange(0, 229, 38)
    X, _ = make_lightcones(
        len(rows), field_shape=(14, 14, 90), block=(2, 2, 5), parameters=real.target[rows],
        random_state=0,
    )  # fmt: skip
    signals = [cones.mean((1, 2), dtype=np.float64) for cones in (X, real.data[rows])]
    assert np.median(np.abs(signals[0] - signals[1])) < 2  # mK
    assert np.abs(signals[0] - signals[1]).mean() < 5
    scatter = [cones.std((1, 2), dtype=np.float64) for cones in (X, real.data[rows])]
    shines = scatter[1] > 2
    ratio = scatter[0][shines] / scatter[1][shines]
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
    cones, neutral = against_21cmfast.simulate_like(parameters)
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
