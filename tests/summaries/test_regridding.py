"""Light cones on the grid of given weights: brought onto it, or refused with both grids."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from skatr_sk import (
    AssumedGridWarning,
    LightconeRegressor,
    LightconeResampler,
    SKATRTransformer,
    load_lightcones,
    load_model,
    open_lightcones,
    save_lightcones,
    save_model,
)
from skatr_sk.fields import ArrayFields
from skatr_sk.grid import Grid, redshifts_of
from skatr_sk.summaries import cache_info, clear_cache
from skatr_sk.summaries.regridding import onto_grid_of, why_of_another_shape
from skatr_sk.summaries.weights import BUNDLED, read_encoder
from tests.counting import CountFields

CELL = 10.0
FINE_Z = redshifts_of(-(6**-0.5) + 0.00062 * np.arange(46))
FINE = np.random.default_rng(0).normal(-20, 30, size=(12, 8, 8, 46)).astype(np.float32)
GRID = Grid((CELL,) * 3, tuple(FINE_Z))
COARSE = FINE[..., :45].reshape(12, 4, 2, 4, 2, 9, 5).mean(axis=(2, 4, 6), dtype=np.float64)
COARSE = COARSE.astype(np.float32)
COARSE_GRID = Grid((2 * CELL, 2 * CELL, 5 * CELL), tuple(FINE_Z[2:45:5]))


def small(**parameters):
    sizes = dict(patch_size=(2, 2, 3), embed_dim=12, depth=1, max_epochs=1, device="cpu")
    sizes |= dict(objective="lejepa", random_state=0)  # the one that trains the soonest
    return SKATRTransformer(**sizes | parameters)


def loaded(path, **parameters):
    return SKATRTransformer(weights=path, device="cpu", **parameters)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "skatr.safetensors"
    small().fit(ArrayFields(COARSE, COARSE_GRID)).save(path)
    return path


@pytest.fixture(scope="module")
def expected(weights):
    return loaded(weights).fit(COARSE).transform(COARSE)


@pytest.fixture
def stored(tmp_path):
    save_lightcones(tmp_path / "a.h5", FINE, redshifts=FINE_Z, cell_size=CELL)
    return open_lightcones(tmp_path / "a.h5", validate=False).data


# What is remembered -------------------------------------------------------------------------------


def test_weights_know_the_grid_of_their_training(weights, tmp_path):
    for transformer in (loaded(weights).fit(COARSE), SKATRTransformer.load(weights)):
        assert transformer.grid_in_ == COARSE_GRID
        assert pickle.loads(pickle.dumps(transformer)).grid_in_ == COARSE_GRID
        save_model(transformer, tmp_path / "model.safetensors")
        assert load_model(tmp_path / "model.safetensors").grid_in_ == COARSE_GRID
        transformer.save(tmp_path / "again.safetensors")
        assert read_encoder(tmp_path / "again.safetensors").grid == COARSE_GRID


def test_arrays_know_none(tmp_path, expected):
    bare = small().fit(COARSE)
    assert not hasattr(bare, "grid_in_")
    np.testing.assert_array_equal(bare.transform(COARSE), expected)  # nor does it change anything
    bare.save(tmp_path / "bare.safetensors")
    assert read_encoder(tmp_path / "bare.safetensors").grid is None
    again = small().fit(ArrayFields(COARSE, COARSE_GRID))
    assert not hasattr(again.fit(COARSE), "grid_in_")
    with pytest.raises(ValueError, match="weights do not know their cell size and redshifts"):
        loaded(tmp_path / "bare.safetensors", on_new_grid="resample").fit(FINE)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_of_the_grid_of_the_bundled_cones(name):
    grid = read_encoder(name).grid
    assert not grid.differences(load_lightcones().grid) and len(grid.redshifts) == 90


@pytest.mark.parametrize(
    "grid",
    [
        {"cell_size": [1.0, 1.0]},
        {"cell_size": [1.0, 1.0, -1.0]},
        {"cell_size": [1.0] * 3, "redshifts": [5.0, 6.0]},
        {"cell_size": [1.0] * 3, "colour": 1},
        {"cell_size": [1.0] * 3, "redshifts": ["a"] * 9},
        {},
        [1.0],
    ],
)
def test_a_grid_that_is_none_is_refused(grid, weights, tmp_path, monkeypatch):
    from skatr_sk.summaries import weights as module

    frozen = read_encoder(weights)
    header = module._header(frozen) | {"grid": grid}
    path = tmp_path / "wrong.safetensors"
    module.write_tensors(path, module.WEIGHTS_KEY, header, frozen.tensors())
    with pytest.raises(ValueError, match="cannot be used"):
        read_encoder(path)


# Brought onto it ----------------------------------------------------------------------------------


def test_known_grids_go_through(weights, expected, stored):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for X in (stored, ArrayFields(FINE, GRID), stored[..., :45]):
            transformer = loaded(weights, on_new_grid="resample").fit(X)
            np.testing.assert_allclose(transformer.transform(X), expected, rtol=1e-5, atol=1e-6)
            assert transformer.field_shape_in_ == (4, 4, 9) and transformer.n_features_in_ == 4
            # What fits stays as it is.
            np.testing.assert_array_equal(transformer.transform(COARSE), expected)


def test_arrays_are_taken_for_cubes_and_it_is_said(weights, expected):
    transformer = loaded(weights, on_new_grid="resample")
    with pytest.warns(
        AssumedGridWarning, match=r"\(8, 8, 46\).*\(4, 4, 9\).*cubes of 10 Mpc"
    ) as said:
        found = transformer.fit(FINE).transform(FINE)
    assert len(said) == 1  # fit with weights learns nothing from them
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.warns(
        AssumedGridWarning,
        match="depth is the same, 450 Mpc in slices of 15, for 30 cubes of 8 Mpc",
    ):
        found = transformer.transform(
            FINE[:, :, :, :30].repeat(5, axis=1).repeat(5, axis=2)[:, ::4, ::4]
        )
    assert found.shape == expected.shape and np.isfinite(found).all()


def test_in_fit_nothing_is_resampled_that_trains(stored):
    transformer = small(on_new_grid="resample").fit(ArrayFields(COARSE, COARSE_GRID))
    assert transformer.transform(stored).shape == (12, 36)
    again = transformer.set_params(warm_start=True).fit(stored)  # it goes on, on its grid
    assert again.field_shape_in_ == (4, 4, 9) and again.grid_in_ == COARSE_GRID


@pytest.mark.parametrize("call", ["fit", "adapt"])
def test_rows_that_validate_are_resampled_like_those_that_train(call, weights, expected, stored):
    """In training from weights, whose numbers are those of rows that were resampled before."""

    def trained(X, X_valid):
        skatr = loaded(weights, on_new_grid="resample", max_epochs=1, random_state=0)
        if call == "adapt":
            skatr.fit(COARSE)
        else:
            skatr.set_params(warm_start=True)
        return getattr(skatr, call)(X, validation_data=(X_valid, None))

    wanted = trained(COARSE[:8], COARSE[8:])
    found = trained(stored[:8], stored[8:])
    assert found.history_[-1]["valid_loss"] == pytest.approx(
        wanted.history_[-1]["valid_loss"], rel=1e-4
    )
    np.testing.assert_allclose(found.transform(COARSE), wanted.transform(COARSE), rtol=1e-3)
    with pytest.raises(ValueError, match="validation_data: X: expected fields that reach as far"):
        trained(stored[:8], stored[8:, ..., :20])


@pytest.mark.parametrize("on_new_grid", ["raise", "resample"])
@pytest.mark.parametrize(
    ("X", "mend"),
    [
        (COARSE[:, 0], r"take fields of 3 axes and no others"),
        (COARSE[:, 0, 0], r"take fields of 3 axes and no others"),
    ],
)
def test_other_axes_have_a_mend(weights, X, mend, on_new_grid):
    with pytest.raises(ValueError, match=f"(?i){mend}"):
        loaded(weights, on_new_grid=on_new_grid).fit(X)
    with pytest.raises(ValueError, match=r"light cones on the last axis, .*moveaxis\(X, -1, 0\)"):
        loaded(weights).fit(np.moveaxis(COARSE, 0, -1))


def test_cubes_do_not_tell_which_axis_is_which():
    shape = (8, 8, 8)
    assert why_of_another_shape(shape, shape) == why_of_another_shape((8, 8, 16), shape) == ""
    assert why_of_another_shape((4, 4, 9), (4, 4, 9)) == ""
    with pytest.raises(ValueError, match=r"rows of unequal shapes .*numpy.stack"):
        onto_grid_of(read_encoder("mini-lr"), [[1.0], [1.0, 2.0]])


def test_in_a_pipeline(weights, stored):
    y = np.arange(12.0)
    head = LightconeRegressor(max_epochs=2, random_state=0, device="cpu")
    pipe = make_pipeline(loaded(weights, on_new_grid="resample"), head)
    by_hand = make_pipeline(LightconeResampler(factor=(2, 2, 5)), loaded(weights), head)
    expected = clone(by_hand).fit(stored[..., :45], y).predict(stored[:5, ..., :45])
    np.testing.assert_allclose(clone(pipe).fit(stored, y).predict(stored[:5]), expected, atol=1e-5)
    assert cross_val_predict(pipe, stored, y, cv=2).shape == (12,)
    frozen = FrozenEstimator(loaded(weights, on_new_grid="resample").fit(stored))
    pipe = make_pipeline(frozen, head).fit(stored, y)
    np.testing.assert_allclose(pipe.predict(stored[:5]), expected, atol=1e-5)


def test_the_cache_tells_cones_from_what_was_made_of_them(weights, expected, stored, tmp_path):
    clear_cache()
    transformer = loaded(weights, on_new_grid="resample", cache=tmp_path / "cache").fit(stored)
    counter = CountFields(tmp_path / "n")
    transformer.encoder_.register_forward_hook(counter)
    np.testing.assert_allclose(transformer.transform(stored), expected, rtol=1e-5, atol=1e-6)
    assert counter.total() == 12
    for X in (stored, stored[3:], ArrayFields(FINE, GRID), COARSE):
        transformer.transform(X)  # the same cones, from wherever
    assert counter.total() == 12
    later = stored[..., 1:]  # and others, whose part is another
    assert not np.allclose(
        transformer.transform(
            ArrayFields(
                FINE[..., 1:], GRID.cut((slice(None),) * 2 + (slice(None, 45),), (8, 8, 46))
            )
        ),
        expected,
    )
    assert counter.total() == 24 and cache_info(tmp_path / "cache").n_entries >= 24
    with pytest.raises(ValueError, match="begins farther away"):
        transformer.transform(later)


def test_networks_from_cones_to_parameters_know_their_grid(tmp_path):
    y = np.arange(12.0)
    backbone = SKATRTransformer(patch_size=(2, 2, 3), embed_dim=12, depth=1)
    joint = LightconeRegressor(backbone=backbone, max_epochs=1, random_state=0, device="cpu")
    joint.fit(ArrayFields(COARSE, COARSE_GRID), y)
    save_model(joint, tmp_path / "joint.safetensors")
    for model in (joint, load_model(tmp_path / "joint.safetensors")):
        assert model.grid_in_ == model.backbone_.grid_in_ == COARSE_GRID
        with pytest.raises(ValueError, match="for which this LightconeRegressor is"):
            model.predict(ArrayFields(COARSE, Grid((20.0, 20.0, 40.0))))


# Refused ------------------------------------------------------------------------------------------


def test_another_grid_is_refused_by_default_with_both(weights, stored):
    both = r"\(4, 4, 9\) \(cells of 20 x 20 x 50 Mpc, .*found \(8, 8, 46\) \(cells of 10 x 10 x 10"
    with pytest.raises(ValueError, match=both):
        loaded(weights).fit(stored)
    fitted = loaded(weights).fit(COARSE)
    both = r"\(4, 4, 9\) with cells of 20 x 20 x 50 Mpc.*\(8, 8, 46\) with cells of 10 x 10 x 10"
    with pytest.raises(ValueError, match=both):
        fitted.transform(stored)


def test_a_wrong_grid_is_refused_though_its_shape_fits(weights, tmp_path):
    later = Grid(COARSE_GRID.cell_size, tuple(np.array(COARSE_GRID.redshifts) + 1))
    for wrong in (Grid((20.0, 20.0, 40.0)), later):
        fields = ArrayFields(COARSE, wrong)
        with pytest.raises(
            ValueError, match=r"cells of 20 x 20 x 50 Mpc.*found \(4, 4, 9\) \(cells"
        ):
            loaded(weights).fit(fields)
        with pytest.raises(ValueError, match=r"cells of 20 x 20 x 50 Mpc.*found cells of 20 x 20"):
            loaded(weights).fit(COARSE).transform(fields)
        with pytest.raises(ValueError, match="reach as far"):
            loaded(weights, on_new_grid="resample").fit(fields)
    save_lightcones(tmp_path / "a.h5", COARSE, cell_size=(20, 20, 40))
    with pytest.raises(ValueError, match="on axis 2"):
        loaded(weights).fit(COARSE).transform(
            open_lightcones(tmp_path / "a.h5", validate=False).data
        )


@pytest.mark.parametrize(
    ("n", "mend"), [(12, r"X\[..., :9\] cuts them"), (7, r"adapted_to\(\(4, 4, 7\)\) of a")]
)
def test_arrays_of_the_same_cells_and_another_depth_are_not_stretched(weights, n, mend):
    X = np.ones((2, 4, 4, n), np.float32) * np.arange(n, dtype=np.float32)
    both = rf"\(4, 4, 9\) \(cells of 20 x 20 x 50 Mpc.*found \(4, 4, {n}\): cells are as wide"
    for refuse in (
        loaded(weights, on_new_grid="resample").fit,
        loaded(weights, on_new_grid="resample").fit(COARSE).transform,
    ):
        with pytest.raises(
            ValueError, match=rf"{both}.*{mend}.*LightconeResampler\(shape=\(4, 4, 9"
        ):
            refuse(X)


def test_a_failed_fit_changes_nothing(weights, stored):
    transformer = loaded(weights).fit(ArrayFields(COARSE, COARSE_GRID))
    before = dict(vars(transformer))
    with pytest.raises(ValueError, match="resample"):
        transformer.fit(stored)
    assert vars(transformer) == before


def test_a_wrong_word_is_refused(weights):
    with pytest.raises(ValueError, match="on_new_grid: expected one of 'raise', 'resample'"):
        loaded(weights, on_new_grid="resamble").fit(COARSE)
