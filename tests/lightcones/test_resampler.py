"""LightconeResampler: which cells become which, in memory, in files and in pipelines."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from skatr_sk import (
    LightconeRegressor,
    LightconeResampler,
    SimulatedLightcones,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.fields import ArrayFields, Fields, digest_rows
from skatr_sk.grid import Grid, depths_of, redshifts_of
from skatr_sk.lightcones import coarsen

RNG = np.random.default_rng(0)
CONES = RNG.normal(-20, 30, size=(6, 8, 8, 50)).astype(np.float32)
CELL = 200 / 28
Z = redshifts_of(-(6**-0.5) + 0.00045 * np.arange(50))


def resample(X=CONES, **parameters):
    return LightconeResampler(**parameters).fit_transform(X)


@pytest.fixture
def stored(tmp_path):
    save_lightcones(tmp_path / "a.h5", CONES, redshifts=Z, cell_size=CELL)
    return open_lightcones(tmp_path / "a.h5", validate=False).data


@pytest.mark.parametrize(
    "parameters",
    [
        {"factor": (2, 2, 5)},
        {"shape": (4, 4, 10)},
        {"cell_size": (14.3, 14.3, 35.7), "input_cell_size": CELL},
        {"cell_size": [2 * CELL, 2 * CELL, 5 * CELL], "input_cell_size": (7.1, 7.1, 7.14)},
    ],
)
def test_blocks_however_they_are_asked_for(parameters):
    made = LightconeResampler(**parameters).fit(CONES)
    found = made.transform(CONES)
    expected = coarsen(CONES, (2, 2, 5)).astype(np.float32)
    assert found.dtype == np.float32 and made.field_shape_out_ == (4, 4, 10)
    np.testing.assert_array_equal(found, expected)


def test_what_does_not_divide_keeps_the_mean():
    for parameters in ({"shape": (5, 7, 13)}, {"factor": (8 / 5, 8 / 7, 50 / 13)}):
        found = resample(CONES.astype(np.float64), **parameters)
        assert found.shape == (6, 5, 7, 13) and found.dtype == np.float64
        np.testing.assert_allclose(
            found.mean(axis=(1, 2, 3)), CONES.mean(axis=(1, 2, 3), dtype=float)
        )
    assert resample(factor=0.5).shape == (6, 16, 16, 100)


def test_cell_sizes_of_a_line_of_sight_leave_the_rest():
    known = dict(input_cell_size=1.0)
    assert resample(cell_size=(1, 1, 3), **known).shape == (6, 8, 8, 16)
    np.testing.assert_allclose(
        resample(cell_size=(1, 1, 3), **known),
        coarsen(CONES[..., :48], (1, 1, 3)),
        rtol=1e-5,
        atol=1e-5,
    )
    assert resample(cell_size=(2, 4, 1.3), **known).shape == (6, 4, 2, 38)
    assert resample(cell_size=0.5, **known).shape == (6, 16, 16, 100)


@pytest.mark.parametrize("n", [100, 110, 605])
def test_cell_sizes_are_those_asked_for_however_long_the_line_of_sight(n):
    X = np.random.default_rng(0).normal(size=(2, 4, 4, n))
    resampler = LightconeResampler(cell_size=(2.0, 2.0, 9.7), input_cell_size=1.0).fit(X)
    assert resampler.grid_.cell_size == pytest.approx((2.0, 2.0, 9.7))
    assert resampler.field_shape_out_ == (2, 2, int(n / 9.7))


def test_redshifts():
    z = np.linspace(Z[3], Z[-3], 12)
    rising = np.broadcast_to(depths_of(Z).astype(np.float64) * 100, (2, 4, 4, 50))
    made = LightconeResampler(redshifts=z, input_redshifts=Z, shape=2).fit(rising)
    found = made.transform(rising)
    assert found.shape == (2, 2, 2, 12)
    edges = depths_of((z[1:] + z[:-1]) / 2)
    np.testing.assert_allclose(found[0, 0, 0, 1:-1] / 100, (edges[1:] + edges[:-1]) / 2, rtol=1e-3)
    np.testing.assert_allclose(made.grid_.redshifts, z, rtol=1e-3)
    assert made.grid_.cell_size == (None, None, None)  # of equal steps in redshift
    signals = resample(rising[:, 0, 0], redshifts=z, input_redshifts=Z)
    np.testing.assert_allclose(signals, found[:, 0, 0])
    with pytest.raises(
        ValueError, match=r"slices within those of X, redshift 5 to .*found 'redshift 4"
    ):
        resample(rising, redshifts=z - 0.2, input_redshifts=Z)


def test_files_are_resampled_when_they_are_read(stored):
    at_once = resample(factor=(2, 1.6, 5))
    later = resample(stored, factor=(2, 1.6, 5))
    assert isinstance(later, Fields) and not later.in_memory
    assert later.shape == at_once.shape and later.dtype == at_once.dtype
    np.testing.assert_array_equal(later.read([4, 0, 4]), at_once[[4, 0, 4]])
    np.testing.assert_array_equal(np.asarray(later[2:, ..., :3]), at_once[2:, ..., :3])
    # The rest of the package tells rows by their content, wherever they lie.
    assert later.digests() == digest_rows(at_once) != stored.digests()
    assert len(pickle.dumps(later)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(later)).read([1]), at_once[[1]])


def test_grids_follow(stored):
    made = LightconeResampler(factor=(2, 2, 5)).fit(stored)
    grid = made.transform(stored).grid
    assert grid == made.grid_ and made.grid_in_ == stored.grid
    assert grid.cell_size == pytest.approx((2 * CELL, 2 * CELL, 5 * CELL))
    assert len(grid.redshifts) == 10 and grid.nearest == pytest.approx(
        stored.grid.nearest, abs=1e-4
    )
    # What is given wins.
    given = LightconeResampler(cell_size=2.0, input_cell_size=1.0).fit(stored)
    assert given.grid_.cell_size == (2.0, 2.0, 2.0) and given.field_shape_out_ == (4, 4, 25)
    assert LightconeResampler(factor=2).fit(CONES).grid_ is None
    fields = LightconeResampler(factor=2).fit_transform(ArrayFields(CONES, stored.grid))
    assert fields.in_memory and fields.grid.cell_size == pytest.approx((2 * CELL,) * 3)
    cut = LightconeResampler(factor=(2, 2, 4)).fit_transform(stored[..., 10:])
    assert cut.grid.start == pytest.approx(10 * CELL) and cut.grid.origin == stored.grid.origin


def test_simulated_cones_are_the_same_as_by_their_own_blocks():
    options = dict(random_state=0, cell_size=10)
    fine = SimulatedLightcones(2, field_shape=(8, 8, 20), **options)
    coarse = SimulatedLightcones(2, field_shape=(4, 4, 4), block=(2, 2, 5), **options)
    found = resample(fine, factor=(2, 2, 5))
    np.testing.assert_allclose(found.read([1]), coarse.read([1]), rtol=1e-4, atol=1e-3)
    assert not coarse.grid.differences(found.grid)
    # Known without a simulation, and told from what they are made of.
    assert (
        len({*found.digests(), *fine.digests(), *resample(fine, factor=(2, 2, 4)).digests()}) == 6
    )


def test_memory_of_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("skatr_sk.fields._CHUNK_VALUES", 200_000)  # 0.8 MB
    many = np.ones((200, 16, 16, 64), np.float32)  # 13 MB
    save_lightcones(tmp_path / "a.h5", many + RNG.normal(size=(200, 1, 1, 1)).astype(np.float32))
    later = resample(open_lightcones(tmp_path / "a.h5", validate=False).data, factor=(2, 2, 4))
    later.read([0])
    tracemalloc.start()
    later.read()
    later.digests()
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_in_a_pipeline_files_and_arrays_give_the_same(stored):
    y = np.arange(6.0)
    skatr = SKATRTransformer(
        patch_size=(2, 2, 5), embed_dim=12, depth=1, max_epochs=1, random_state=0, device="cpu"
    )
    head = LightconeRegressor(max_epochs=2, random_state=0, device="cpu")
    pipe = make_pipeline(LightconeResampler(factor=(2, 2, 5)), skatr, head)
    from_file = clone(pipe).fit(stored, y)
    assert not skatr.__sklearn_is_fitted__() and from_file[1].grid_in_ == from_file[0].grid_
    found = from_file.predict(stored[2:])
    np.testing.assert_array_equal(found, clone(pipe).fit(CONES, y).predict(CONES[2:]))


def test_another_grid_than_in_fit_is_refused(stored, tmp_path):
    save_lightcones(tmp_path / "b.h5", CONES + 1, redshifts=Z, cell_size=5.7)
    other = open_lightcones(tmp_path / "b.h5", validate=False).data
    made = LightconeResampler(factor=2).fit(stored)
    with pytest.raises(ValueError, match=r"cells of 7.14 x .*found cells of 5.7 x .*on axis 0"):
        made.transform(other)
    with pytest.raises(ValueError, match="expected fields of shape"):
        made.transform(CONES[..., :40])
    made.transform(CONES)  # which knows nothing of its grid


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "shape: expected one of shape, cell_size and factor, or redshifts, found None"),
        ({"shape": 4, "factor": 2}, "shape: expected one of .* found 'shape and factor'"),
        ({"shape": (4, 4)}, r"shape: expected one for each of 3 axes, found \(4, 4\)"),
        ({"shape": 0}, "shape: expected an integer >= 1, or one for each axis or None, found 0"),
        ({"factor": 3}, "factor: expected what makes whole cells of the 8 on axis 0.*are 2 and 4"),
        ({"cell_size": 2.0}, "X: expected light cones of a known cell size.*input_cell_size"),
        ({"cell_size": 3.0, "input_cell_size": 1.0}, "divides the 8 Mpc of axis 0.*2.667 and 4"),
        ({"cell_size": (1, 1, 60), "input_cell_size": 1.0}, "at most the 50 Mpc of axis 2"),
        ({"redshifts": Z[5:9]}, "redshifts: expected light cones of two or more known slices"),
        ({"redshifts": Z[::-1]}, "(?s)rising numbers >= 0, the nearest first .*; turn them around"),
        ({"redshifts": Z, "input_redshifts": Z[:9]}, "input_redshifts: expected 50, one a slice"),
        ({"factor": "half"}, "factor: expected a number in"),
    ],
)  # fmt: skip
def test_errors(parameters, message):
    made = LightconeResampler(factor=2).fit(CONES)
    before = dict(vars(made))
    made.set_params(factor=None).set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        made.fit(CONES)
    assert all(vars(made)[name] is before[name] for name in ("field_shape_in_", "_resampling"))


def test_maps_and_signals():
    np.testing.assert_allclose(
        resample(CONES[..., 0], factor=2), coarsen(CONES[..., 0], 2).astype(np.float32)
    )
    assert resample(CONES[:, 0, 0], shape=10).shape == (6, 10)
    made = LightconeResampler(shape=10).set_output(transform="pandas")
    assert list(made.fit_transform(CONES[:, 0, 0]).columns[:2]) == [
        "lightconeresampler0",
        "lightconeresampler1",
    ]
    with pytest.raises(ValueError, match="None with maps"):
        resample(CONES[..., 0], redshifts=Z)
    with pytest.raises(ValueError, match="set_output"):
        LightconeResampler(factor=2).set_output(transform="pandas").fit_transform(CONES)


def test_layout_and_type_do_not_matter_and_data_are_left_alone():
    X = CONES.round()
    before, expected = X.copy(), resample(X, factor=(2, 1.6, 5))
    made = LightconeResampler(factor=(2, 1.6, 5)).fit(X)
    forms = [X.astype(">f4"), np.asfortranarray(X), X.repeat(2, -1)[..., ::2], X.tolist()]
    forms += [torch.from_numpy(X.copy()), X.astype(np.int16)]
    for form in forms:
        np.testing.assert_allclose(made.transform(form), expected, rtol=1e-5, atol=1e-5)
    half = made.transform(X.astype(np.float16))
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, expected)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(made)).transform(X[:1]), expected[:1])
    assert not hasattr(clone(made), "field_shape_in_")


def test_not_fitted():
    with pytest.raises(NotFittedError):
        LightconeResampler(factor=2).transform(CONES)


def test_units_of_astropy():
    units = pytest.importorskip("astropy.units")
    found = resample(cell_size=2e-3 * units.Gpc, input_cell_size=1.0)
    np.testing.assert_array_equal(found, resample(factor=2))


def test_grid_of_infinite_redshifts_is_refused():
    with pytest.raises(ValueError, match="rising"):
        Grid((1.0,), (1.0, 1.0))
