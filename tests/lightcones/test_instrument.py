"""Light cones as an interferometer would see them."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from skatr_sk import (
    NoEffectWarning,
    NoiseTransformer,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.fields import ArrayFields, Fields, digest_rows
from skatr_sk.grid import Grid
from skatr_sk.lightcones.thermal_noise import horizon_slopes, radiometer_noise

SHAPE = (8, 8, 24)
SIZES = (10.0, 10.0, 5.0)  # Mpc
REDSHIFTS = np.linspace(6, 12, 24)
GRID = dict(cell_size=SIZES, redshifts=REDSHIFTS)


@pytest.fixture
def X(rng):
    return rng.normal(-20, 30, size=(12, *SHAPE)).astype(np.float32)


def instrument(X, **parameters):
    seed = {} if parameters.get("noise", 1) is None else {"random_state": 0}
    return NoiseTransformer(**seed | parameters).fit(X)


def added(X, **parameters):
    return instrument(X, **parameters).transform(X) - X


def power(X, sizes=SIZES):
    """|T(k)|^2 of light cones, k_perp and k_par."""
    each = [2 * np.pi * np.fft.fftfreq(n, d) for n, d in zip(X.shape[1:], sizes, strict=True)]
    k_x, k_y, k_z = np.meshgrid(*each, indexing="ij")
    modes = np.square(np.abs(np.fft.fftn(X, axes=(1, 2, 3)))).mean(axis=0)
    return modes, np.hypot(k_x, k_y), np.abs(k_z)


# Noise --------------------------------------------------------------------------------------------


def test_the_default_is_the_radiometer_formula(X):
    level = radiometer_noise(REDSHIFTS, SIZES, 1000.0)
    X = np.repeat(X, 20, axis=0) + np.arange(240, dtype=np.float32)[:, None, None, None]
    model = instrument(X, **GRID)
    np.testing.assert_allclose(model.sigma_, level)
    noise = model.transform(X) - X
    np.testing.assert_allclose(noise.std(axis=(0, 1, 2)), level, rtol=0.05)
    assert np.abs(noise.mean(axis=(0, 1, 2)) / level).max() < 0.05
    long = instrument(X, observing_hours=4000.0, **GRID)
    np.testing.assert_allclose(long.sigma_, level / 2)


def test_it_takes_the_grid_of_the_fields(X):
    fields = ArrayFields(X, Grid(SIZES, tuple(REDSHIFTS)))
    of_fields = instrument(fields).transform(fields)
    np.testing.assert_allclose(of_fields.read(), instrument(X, **GRID).transform(X), atol=1e-4)
    assert of_fields.grid == fields.grid
    given = instrument(fields, redshifts=REDSHIFTS + 2)
    assert (given.sigma_ > instrument(fields).sigma_).all()  # what was given wins
    with pytest.raises(ValueError, match=r"cell_size: .* cells of 10 x 10 x 5 Mpc, .*found \(3.0,"):
        instrument(fields, cell_size=3.0)


@pytest.mark.parametrize("given", [3.0, np.linspace(1, 9, 24)], ids=["number", "slices"])
def test_noise_that_is_given(given, X):
    X = np.repeat(X, 20, axis=0) + np.arange(240, dtype=np.float32)[:, None, None, None]
    noise = added(X, noise=given)
    np.testing.assert_allclose(noise.std(axis=(0, 1, 2)), np.broadcast_to(given, 24), rtol=0.05)
    # Cells are independent.
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_noise_of_modes_of_the_sky(X):
    X = np.repeat(X, 20, axis=0) + np.arange(240, dtype=np.float32)[:, None, None, None]
    k = [0.0, 0.2, 0.4]
    table = np.outer([0.0, 2.0, 4.0], np.linspace(1, 2, 24))
    model = instrument(X, noise=table, k_perp=k, cell_size=SIZES)
    noise = model.transform(X) - X
    modes = np.square(np.abs(np.fft.fft2(noise, axes=(1, 2)))).mean(axis=0) / 64
    k_x = 2 * np.pi * np.fft.fftfreq(8, 10.0)
    expected = 10 * np.minimum(np.hypot(k_x[:, None], k_x), 0.4)[..., None] * np.linspace(1, 2, 24)
    np.testing.assert_allclose(np.sqrt(modes), expected, rtol=0.25, atol=1e-3)
    np.testing.assert_allclose(model.sigma_, np.sqrt(np.square(expected).mean(axis=(0, 1))))
    # A constant is white noise.
    flat = instrument(X, noise=np.full((3, 24), 5.0), k_perp=k, cell_size=SIZES)
    np.testing.assert_allclose(flat.sigma_, 5.0)
    np.testing.assert_allclose((flat.transform(X) - X).std(), 5.0, rtol=0.02)


def test_cubes_of_noise_are_turned_and_shifted(X, rng):
    cubes = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    noise = added(X, noise=cubes)
    views = set()
    for cone in noise:
        # Each slice has the values of one cube's, somewhere else.
        ordered = np.sort(cone.reshape(64, 24), axis=0)
        which = [np.allclose(ordered, np.sort(cube.reshape(64, 24), axis=0), atol=1e-4)
                 for cube in cubes]  # fmt: skip
        assert sum(which) == 1
        views.add(cone[0, 0].tobytes())
    assert len(views) > 8
    one = instrument(X, noise=cubes[0])
    assert one.sigma_.shape == (24,)


def test_no_noise_is_none(X):
    np.testing.assert_array_equal(instrument(X, noise=None).transform(X), X)
    np.testing.assert_array_equal(instrument(X, noise=0.0).transform(X), X)


# One light cone, one noise ------------------------------------------------------------------------


def test_a_cone_has_the_same_noise_whenever_it_comes(X):
    model = instrument(X, noise=3.0)
    seen = model.transform(X)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(model.transform(X[order]), seen[order])
    np.testing.assert_array_equal(model.transform(X[3:4]), seen[3:4])
    np.testing.assert_array_equal(model.transform(X.astype(np.float64)), seen)
    np.testing.assert_array_equal(instrument(X[:5], noise=3.0).transform(X), seen)
    other = instrument(X, noise=3.0, random_state=1).transform(X)
    assert np.isclose(seen, other).mean() < 1e-3
    noise = seen - X
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    # Without a seed each fit has one of its own.
    drawn = [clone(model).set_params(random_state=None).fit(X) for _ in range(2)]
    assert drawn[0].seed_ != drawn[1].seed_
    np.testing.assert_array_equal(drawn[0].transform(X), drawn[0].transform(X))


def test_files_are_read_with_noise(X, tmp_path):
    save_lightcones(tmp_path / "cones.h5", X)
    stored = open_lightcones(tmp_path / "cones.h5").data
    model = instrument(stored, noise=3.0)
    seen, expected = model.transform(stored), model.transform(X)
    assert isinstance(seen, Fields) and not seen.in_memory and seen.dtype == np.float32
    assert seen.shape == X.shape
    np.testing.assert_array_equal(np.asarray(seen), expected)
    np.testing.assert_array_equal(seen[[7, 2]].read(), expected[[7, 2]])
    np.testing.assert_array_equal(seen.read([7, 2]), expected[[7, 2]])
    np.testing.assert_array_equal(seen[4], expected[4])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(seen)).read(), expected)
    assert seen.digests() == digest_rows(expected)
    other = instrument(stored, noise=3.0, random_state=1).transform(stored)
    assert not set(other.digests()) & set(seen.digests())
    with pytest.raises(OSError, match="cones.h5"):
        (tmp_path / "cones.h5").unlink()
        instrument(stored, noise=3.0).transform(stored).read()


def test_before_a_transformer_in_a_pipeline(X, tmp_path):
    save_lightcones(tmp_path / "cones.h5", X)
    stored = open_lightcones(tmp_path / "cones.h5").data
    small = SKATRTransformer(patch_size=4, embed_dim=12, depth=1, max_epochs=0, random_state=0)
    small.set_params(whiten=False)
    pipe = make_pipeline(NoiseTransformer(noise=3.0, random_state=0), small)
    expected = pipe.fit_transform(X)
    np.testing.assert_allclose(clone(pipe).fit_transform(stored), expected, rtol=1e-5, atol=1e-5)
    bare = clone(small).fit_transform(X)
    assert not np.allclose(bare, expected, rtol=1e-2)
    search = clone(pipe).set_params(noisetransformer__noise=30.0)
    assert not np.allclose(search.fit_transform(X), expected, rtol=1e-2)


def test_fresh_noise(X):
    model = instrument(X, noise=3.0)
    first, again, other = (model.augment(X, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.isclose(first, other).mean() < 1e-3
    np.testing.assert_allclose((first - X).std(), 3.0, rtol=0.03)


# What is not seen ---------------------------------------------------------------------------------


def test_the_mean_of_each_slice_is_subtracted(X):
    seen = instrument(X, noise=3.0, subtract_mean=True).transform(X)
    np.testing.assert_allclose(seen.mean(axis=(1, 2)), 0, atol=1e-5)
    noise = instrument(X, noise=3.0).transform(X)
    np.testing.assert_allclose(seen, noise - noise.mean(axis=(1, 2), keepdims=True), atol=1e-4)


def test_a_wedge_of_one_slope_is_cut(X):
    slope = 1.0
    before, k_perp, k_par = power(X)
    seen = instrument(X, noise=None, wedge=slope, cell_size=SIZES).transform(X)
    after, *_ = power(seen)
    inside, outside = k_par < 0.8 * slope * k_perp, (k_par > 1.2 * slope * k_perp) & (k_perp > 0)
    assert after[inside].sum() < 0.02 * before[inside].sum()
    assert after[outside].sum() > 0.9 * before[outside].sum()
    # Only once: what is left stays.
    twice = instrument(seen, noise=None, wedge=slope, cell_size=SIZES).transform(seen)
    np.testing.assert_allclose(twice, seen, atol=0.01)


def test_the_horizon_follows_the_redshift(X):
    model = instrument(X, noise=None, wedge="horizon", **GRID)
    np.testing.assert_allclose(model.slopes_, horizon_slopes(REDSHIFTS))
    assert (np.diff(model.slopes_) > 0).all()
    seen = model.transform(X)
    for slope in (model.slopes_[0], model.slopes_[-1]):
        fixed = instrument(X, noise=None, wedge=float(slope), cell_size=SIZES).transform(X)
        at = 0 if slope == model.slopes_[0] else -1
        np.testing.assert_allclose(seen[..., at], fixed[..., at], atol=1e-3)


@pytest.mark.parametrize(("mean", "left"), [(False, "only the mean"), (True, "nothing")])
def test_a_wedge_over_all_modes_is_said(mean, left, X):
    options = dict(noise=None, wedge=4.0, cell_size=(10.0, 10.0, 40.0), subtract_mean=mean)
    with pytest.warns(UserWarning, match=f"no mode of these cells is above it .* {left} is left"):
        model = instrument(X, **options)
    means = X.mean(axis=(1, 2), keepdims=True) * (not mean)
    np.testing.assert_allclose(model.transform(X), np.broadcast_to(means, X.shape), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [dict(wedge=0.5, cell_size=SIZES), dict(wedge="horizon", **GRID)],
    ids=["slope", "horizon"],
)
def test_a_wedge_leaves_the_mean_of_each_slice(options, X):
    seen = instrument(X, noise=None, **options).transform(X)
    np.testing.assert_allclose(seen.mean(axis=(1, 2)), X.mean(axis=(1, 2)), atol=1e-3)
    assert np.abs(seen.mean()) > 10  # mK


def test_a_wide_open_wedge_takes_what_is_constant_along_the_sight_line(X):
    seen = instrument(X, noise=None, wedge=0.0, cell_size=SIZES).transform(X)
    along = X.mean(axis=-1, keepdims=True)
    fluctuations = along - along.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(seen, X - fluctuations, atol=1e-3)


# Other shapes, and what is wrong ------------------------------------------------------------------


def test_maps_and_signals(rng):
    maps, signals = rng.normal(0, 9, size=(50, 8, 6)), rng.normal(0, 9, size=(50, 24))
    np.testing.assert_allclose(added(maps, noise=2.0).std(), 2.0, rtol=0.05)
    np.testing.assert_allclose(added(signals, noise=np.full(24, 2.0)).std(), 2.0, rtol=0.1)
    seen = instrument(maps, noise=2.0, subtract_mean=True).transform(maps)
    np.testing.assert_allclose(seen.mean(axis=(1, 2)), 0, atol=1e-5)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(signals, columns=[f"z{i}" for i in range(24)])
    found = instrument(frame, noise=2.0).set_output(transform="pandas").transform(frame)
    assert list(found.columns) == list(frame.columns)
    with pytest.raises(ValueError, match="expected signals, whose slices are columns"):
        instrument(maps, noise=2.0).get_feature_names_out()
    with pytest.raises(ValueError, match="expected signals, whose slices are columns"):
        instrument(maps, noise=2.0).set_output(transform="pandas").transform(maps)


def test_what_is_missing_is_asked_for(X):
    with pytest.raises(ValueError, match="2 invalid") as error:
        instrument(X)
    assert "redshifts: expected those of the light cones with noise='radiometer'" in str(
        error.value
    )
    assert "cell_size: expected those" in str(error.value)
    with pytest.raises(ValueError, match="cell_size: expected those .* wedge=2.0"):
        instrument(X, noise=None, wedge=2.0)
    with pytest.raises(ValueError, match="redshifts: expected 24, one a slice, found 5"):
        instrument(X, cell_size=SIZES, redshifts=REDSHIFTS[:5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(noise="radiometre"), "did you mean 'radiometer'"),
        (dict(noise=-1.0), "noise: expected one of"),
        (dict(noise=np.full(24, -1.0)), "all >= 0"),
        (dict(noise=np.full(24, np.nan)), "finite mK"),
        (dict(noise=np.ones(23)), r"found \(23,\)"),
        (dict(noise=np.ones((3, 24)), k_perp=[0, 1], cell_size=SIZES), r"shape \(2, n_z\)"),
        (dict(k_perp=[1, 0]), "k_perp: expected rising"),
        (dict(wedge="horizont"), "did you mean 'horizon'"),
        (dict(redshifts=REDSHIFTS[::-1]), "rising redshifts"),
        (
            dict(cell_size=(1.0, 2.0), redshifts=REDSHIFTS),
            "cell_size: expected one for each of 3 axes",
        ),
        (dict(observing_hours=0), "observing_hours"),
    ],
)
def test_wrong_parameters(wrong, message, X):
    with pytest.raises(ValueError, match=message):
        instrument(X, **wrong)


def test_shapes_that_have_no_wedge_and_no_array(rng):
    with pytest.raises(ValueError, match="wedge: expected None with fields of 2 axes"):
        instrument(rng.normal(0, 9, size=(3, 8, 6)), noise=2.0, wedge=1.0)
    with pytest.raises(ValueError, match="noise: expected a number or an array") as error:
        instrument(rng.normal(0, 9, size=(3, 24)), subtract_mean=True)
    assert "subtract_mean: expected False with signals" in str(error.value)
    with pytest.raises(ValueError, match="noise: expected a number for a single slice"):
        instrument(rng.normal(0, 9, size=(3, 8, 8, 1)), redshifts=[6.0], cell_size=1.0)
    with pytest.raises(ValueError, match=r"another for a sky of \(8, 6\)"):
        instrument(rng.normal(0, 9, size=(3, 8, 6, 4)), noise="tools21cm")


@pytest.mark.parametrize(
    ("idle", "message"),
    [
        (dict(noise=2.0, observing_hours=10.0), "of observing_hours"),
        (dict(noise=2.0, cell_size=1.0), "of cell_size"),
        (dict(noise=2.0, redshifts=REDSHIFTS), "of redshifts"),
        (dict(noise=None, k_perp=[0.0, 1.0]), "noise=None of k_perp"),
        (dict(k_perp=[0.0, 1.0], **GRID), "of k_perp"),
    ],
)
def test_parameters_without_effect(idle, message, X):
    with pytest.warns(NoEffectWarning, match=message):
        instrument(X, **idle)


def test_a_failed_fit_changes_nothing(X):
    model = instrument(X, noise=2.0)
    expected = model.transform(X)
    with pytest.raises(ValueError, match="noise"):
        model.set_params(noise=np.ones(7)).fit(X)
    np.testing.assert_array_equal(model.transform(X), expected)
