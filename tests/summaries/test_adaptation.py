"""A fitted transformer on other grids: places, averages within patches, and a new embedding."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

from skatr_sk import (
    LightconeRegressor,
    LightconeResampler,
    SimulatedLightcones,
    SKATRTransformer,
    load_model,
    save_model,
)
from skatr_sk.fields import ArrayFields
from skatr_sk.grid import depths_of, redshifts_of
from skatr_sk.lightcones import Grid
from skatr_sk.summaries import VICReg

SIZES = dict(embed_dim=12, depth=1, n_heads=2, device="cpu", random_state=0)
# Shapes of fields, of their patches, and how many times finer the new cells are.
GRIDS = [((24,), (3,), (2,)), ((8, 6), (2, 3), (2, 3)), ((6, 6, 10), (2, 2, 5), (2, 2, 3))]


def draw(shape, n=20, seed=0):
    return np.random.default_rng(seed).normal(-20, 30, size=(n, *shape)).astype(np.float32)


def fit(shape, patch, **parameters):
    return SKATRTransformer(patch_size=patch, **SIZES | {"max_epochs": 0} | parameters).fit(
        draw(shape)
    )


def refined(X, factor, noise=0.0):
    """The same fields on a finer grid, with noise that averages to zero in each coarse cell."""
    fine = X
    for axis, f in enumerate(factor, start=1):
        fine = fine.repeat(f, axis=axis)
    fluctuation = noise * draw(fine.shape[1:], n=len(X), seed=1)
    split = [s for n, f in zip(X.shape[1:], factor, strict=True) for s in (n, f)]
    blocks = fluctuation.reshape(len(X), *split)
    blocks -= blocks.mean(axis=tuple(range(2, blocks.ndim, 2)), keepdims=True)
    return fine + blocks.reshape(fine.shape)


def finer(skatr, factor, **options):
    shape = tuple(n * f for n, f in zip(skatr.field_shape_in_, factor, strict=True))
    return skatr.adapted_to(shape, cell_size=tuple(1 / f for f in factor), **options)


# Other cells -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[6, pytest.param(50, marks=pytest.mark.slow)])
def simulated(request):
    """Simulated light cones, their means over blocks of two cells, and an encoder of these."""
    n, options = request.param, dict(redshift_min=9.0, random_state=0)
    fine = SimulatedLightcones(n, field_shape=(8, 8, 40), **options)
    fine = ArrayFields(np.asarray(fine), fine.grid)
    means = fine.read().reshape(n, 4, 2, 4, 2, 20, 2).mean(axis=(2, 4, 6))
    grid = Grid(tuple(2 * size for size in fine.grid.cell_size), fine.grid.redshifts[::2])
    grid = replace(grid, origin=fine.grid.origin)
    coarse = ArrayFields(means, grid)
    parameters = dict(patch_size=(2, 2, 5), max_epochs=0, whiten=False)
    return fine, coarse, SKATRTransformer(**SIZES | parameters).fit(coarse)


def test_summaries_on_the_doubled_grid_with_doubled_patches(simulated):
    """Every number of a summary correlates by more than .95, though cells have a structure."""
    fine, coarse, skatr = simulated
    doubled = skatr.adapted_to(fine.shape[1:], grid=fine.grid)
    assert doubled.architecture_.patch_size == (4, 4, 10)
    expected = skatr.transform(coarse)

    def lowest(found):
        return min(np.corrcoef(*pair)[0, 1] for pair in zip(found.T, expected.T, strict=True))

    assert lowest(doubled.transform(fine)) > 0.95
    one_in_eight = skatr.transform(fine.read()[:, ::2, ::2, ::2])
    assert lowest(one_in_eight) < 0.95  # the structure within cells does matter to it


def test_fewer_patches_at_the_same_physical_places(simulated):
    fine, coarse, skatr = simulated
    cells = (slice(None), slice(None), slice(20, None))
    far = ArrayFields(fine.read()[..., 20:], fine.grid.cut(cells, fine.shape[1:]))
    shape = (len(far.read()), 2, 2, -1, 12)
    of_all = copy.deepcopy(skatr).set_params(pooling="tokens").transform(coarse).reshape(shape)

    def distance(**where):
        found = skatr.adapted_to(far.shape[1:], **where).set_params(pooling="tokens")
        return np.abs(found.transform(far.read()).reshape(shape) - of_all[:, :, :, 2:]).mean()

    right = distance(grid=far.grid)
    assert right < 0.3 * distance(cell_size=0.5)  # as if they began where all of them do


@pytest.mark.parametrize("embedding", ["linear", "moments"])
@pytest.mark.parametrize(("shape", "patch", "factor"), GRIDS, ids=lambda x: str(x))
def test_finer_cells_give_the_summaries_of_the_coarsened_fields(shape, patch, factor, embedding):
    X, skatr = draw(shape), fit(shape, patch, embedding=embedding, subtract_mean=len(shape) > 1)
    found = finer(skatr, factor)
    fine = refined(X, factor, noise=1.0)
    np.testing.assert_allclose(found.transform(fine), skatr.transform(X), atol=1e-4)
    module = found.as_module()
    np.testing.assert_allclose(module(torch.from_numpy(fine)), found.transform(fine), atol=1e-4)
    assert found.architecture_.positions is None  # the places are the same
    assert found.field_shape_in_ == fine.shape[1:]
    assert found.get_params()["patch_size"] == found.architecture_.patch_size


def test_coarser_cells_and_patches_that_do_not_divide(torch_seed):
    skatr = fit((8, 8), (4, 4))
    coarse = draw((4, 4))
    found = skatr.adapted_to((4, 4), cell_size=2)
    np.testing.assert_allclose(
        found.transform(coarse), skatr.transform(refined(coarse, (2, 2))), atol=1e-5
    )
    # Three cells of 4/3 for four voxels: constant patches show the weights of the means.
    steps = np.broadcast_to(np.arange(6.0)[:, None], (1, 6, 6)).astype(np.float32)
    found = skatr.adapted_to((6, 6), cell_size=4 / 3)
    by_hand = [0, 2 / 3, 4 / 3, 2, 3, 11 / 3, 13 / 3, 5]
    expected = np.broadcast_to(np.array(by_hand)[:, None], (1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(found.transform(steps), skatr.transform(expected), atol=1e-5)


# Other places ----------------------------------------------------------------------------------


def codes(skatr):
    architecture = skatr.architecture_
    return skatr.encoder_.position().reshape(*architecture.grid_shape, -1).numpy()


def test_a_longer_line_of_sight_has_the_same_code_at_the_same_place():
    skatr = fit((6, 6, 20), (2, 2, 5))
    longer = skatr.adapted_to((6, 6, 35))
    assert longer.architecture_.patch_size == (2, 2, 5)
    np.testing.assert_array_equal(codes(longer)[:, :, :4], codes(skatr))
    later = skatr.adapted_to((8, 6, 15), offset=(0, 0, 5))
    np.testing.assert_allclose(codes(later)[:3, :, :3], codes(skatr)[:, :, 1:], atol=1e-6)
    assert later.transform(draw((8, 6, 15))).shape == (20, 36)
    # Tokens at the same places with the same neighbours are the same.
    found = skatr.adapted_to((6, 6, 10), offset=(0, 0, 10)).set_params(pooling="tokens")
    alone = copy.deepcopy(skatr).set_params(pooling="tokens")
    alone.encoder_.blocks = torch.nn.Sequential()
    found.encoder_.blocks = torch.nn.Sequential()
    X = draw((6, 6, 20))
    tokens = alone.transform(X).reshape(20, 3, 3, 4, 12)[:, :, :, 2:]
    np.testing.assert_allclose(
        found.transform(X[..., 10:]).reshape(tokens.shape), tokens, atol=1e-5
    )


def test_patches_of_another_size_have_the_code_of_their_centres():
    skatr = fit((8, 12), (2, 2))
    found = skatr.adapted_to((16, 12), patch_size=(4, 2))  # as many, twice as large along x
    assert found.architecture_.positions == ((0.5, 2.0), (0.0, 1.0))
    assert found.architecture_.voxels == (2, 2)
    frequencies = skatr.encoder_.position.frequencies.numpy()
    along_x = frequencies[skatr.encoder_.position.axes.numpy() == 0]
    phases = np.multiply.outer(0.5 + 2 * np.arange(4), along_x)
    np.testing.assert_allclose(codes(found)[:, 0, : len(along_x)], np.sin(phases), atol=1e-5)
    assert found.transform(draw((16, 12))).shape == (20, 24)


def test_twice_adapted_is_adapted_once():
    skatr = fit((8, 12), (2, 3))
    once = skatr.adapted_to((16, 12), patch_size=(4, 6), cell_size=0.5, offset=(2, 3))
    twice = skatr.adapted_to((8, 6), offset=(2, 3)).adapted_to((16, 12), cell_size=0.5)
    assert twice.architecture_ == once.architecture_
    back = once.adapted_to((8, 12), cell_size=2, offset=(-4, -6))
    assert back.architecture_ == skatr.architecture_
    X = draw((8, 12))
    np.testing.assert_array_equal(back.transform(X), skatr.transform(X))


def test_the_one_that_is_adapted_stays_as_it_was():
    X, skatr = draw((8, 6)), fit((8, 6), (2, 3))
    before, parameters = skatr.transform(X), repr(skatr.get_params())
    finer(skatr, (2, 2)).set_params(max_epochs=1, batch_size=8).adapt(draw((16, 12)))
    np.testing.assert_array_equal(skatr.transform(X), before)
    assert repr(skatr.get_params()) == parameters


DEPTHS = np.linspace(depths_of(5.2), depths_of(8), 20)  # of even slices
GRID = Grid((14.0, 14.0, 35.0), tuple(redshifts_of(DEPTHS).tolist()), origin=5.0, start=70.0)
NEW_GRIDS = {
    "finer": ((12, 12, 40), Grid((7.0, 7.05, 17.5), origin=5.0, start=70.0), (0.5, 0.5, 0.5), 0),
    "farther": ((6, 6, 10), Grid((14.0, 14.0, 35.0), origin=5.0, start=245.0), 1, 5),
    "by redshifts": ((6, 6, 10), Grid((None,) * 3, GRID.redshifts[5:15]), 1, 5),
    "unknown": ((6, 6, 10), Grid((None,) * 3), 1, 0),
}


@pytest.mark.parametrize("name", NEW_GRIDS)
def test_a_grid_says_how_large_cells_are_and_where_they_begin(name):
    shape, grid, cells, begin = NEW_GRIDS[name]
    skatr = fit((6, 6, 20), (2, 2, 5))
    with pytest.raises(ValueError, match="grid: .*do not know their own: give cell_size"):
        skatr.adapted_to(shape, grid=grid)
    skatr.grid_in_ = GRID
    found = skatr.adapted_to(shape, grid=grid)
    expected = skatr.adapted_to(shape, cell_size=cells, offset=(0, 0, begin))
    assert found.architecture_.patch_size == expected.architecture_.patch_size
    np.testing.assert_allclose(codes(found), codes(expected), atol=1e-3)
    assert not found.grid_in_.differences(grid)
    assert found.grid_in_.fits(shape)
    own = skatr.adapted_to(shape, grid=grid, cell_size=1, offset=0)  # what is given wins
    assert own.architecture_.positions is None


def test_an_adapted_transformer_knows_its_grid(tmp_path):
    skatr = fit((6, 6, 20), (2, 2, 5))
    skatr.grid_in_ = GRID
    fine = skatr.adapted_to((12, 12, 30), cell_size=0.5, offset=(0, 0, 5))
    assert fine.grid_in_.cell_size == (7.0, 7.0, 17.5)
    assert fine.grid_in_.start == 70 + 5 * 35
    redshifts = np.array(fine.grid_in_.redshifts)
    # Two new slices lie about each old one.
    pairs = redshifts.reshape(-1, 2).mean(axis=1)
    np.testing.assert_allclose(pairs, GRID.redshifts[5:], atol=0.01)
    assert skatr.adapted_to((6, 6, 25)).grid_in_.redshifts is None  # they are not known beyond
    fine.save(tmp_path / "w.safetensors")
    assert SKATRTransformer.load(tmp_path / "w.safetensors").grid_in_ == fine.grid_in_
    other = ArrayFields(draw((12, 12, 30)), Grid((14.0, 14.0, 35.0)))
    with pytest.raises(ValueError, match="cells of 14 Mpc on axis 0, not 7"):
        fine.transform(other)


# What goes with it -----------------------------------------------------------------------------


def test_a_whitening_is_kept_for_the_same_line_of_sight_in_the_same_patches():
    skatr = fit((6, 6, 20), (2, 2, 5))
    assert skatr.whitening_ is not None
    assert finer(skatr, (2, 2, 2)).whitening_ is skatr.whitening_
    assert skatr.adapted_to((8, 8, 20)).whitening_ is skatr.whitening_  # a wider sky
    for other in [
        skatr.adapted_to((6, 6, 15)),
        skatr.adapted_to((6, 6, 20), offset=(0, 0, 5)),
        skatr.adapted_to((6, 6, 20), patch_size=(3, 3, 5)),
    ]:
        assert other.whitening_ is None
    with pytest.raises(ValueError, match="whiten: expected 'auto' or False"):
        copy.deepcopy(skatr).set_params(whiten=True).adapted_to((6, 6, 15))


@pytest.mark.parametrize(
    "change", [dict(cell_size=0.5), dict(patch_size=(4, 3)), dict(offset=(0.5, 1))], ids=str
)
def test_it_is_saved_and_loaded(tmp_path, change):
    X, found = draw((16, 12)), fit((8, 6), (2, 3)).adapted_to((16, 12), **change)
    found.save(tmp_path / "w.safetensors")
    save_model(found, tmp_path / "m.safetensors")
    expected = found.transform(X)
    for again in [
        SKATRTransformer.load(tmp_path / "w.safetensors", device="cpu"),
        SKATRTransformer(weights=tmp_path / "w.safetensors", device="cpu").fit(X),
        load_model(tmp_path / "m.safetensors"),
    ]:
        assert again.architecture_ == found.architecture_
        np.testing.assert_array_equal(again.transform(X), expected)


@pytest.mark.parametrize("n_slices", [8, 12, 4])
def test_axial_attention_on_another_line_of_sight(n_slices, tmp_path):
    skatr = fit((4, 4, 6), 2, attention="axial", depth=2)
    other, X = skatr.adapted_to((4, 4, n_slices), cell_size=1), draw((4, 4, n_slices))
    other.set_params(cache=None).save(tmp_path / "w.safetensors")
    again = SKATRTransformer(weights=tmp_path / "w.safetensors", cache=None).fit(X)
    np.testing.assert_array_equal(again.transform(X), other.transform(X))
    with pytest.raises(ValueError, match="attention: expected 'full' but for light cones of sever"):
        skatr.adapted_to((2, 2, 6), cell_size=1)


def test_a_clone_begins_anew_and_a_warm_start_goes_on():
    X = draw((8, 12))
    found = fit((8, 6), (2, 3)).adapted_to((8, 12), patch_size=(2, 6))
    assert clone(found).fit(X).architecture_.positions is None
    on = found.set_params(warm_start=True, max_epochs=1, batch_size=8)
    sizes = found.architecture_
    before = found.encoder_.blocks[0].qkv.weight.clone()
    assert on.fit(X).architecture_ == sizes
    assert not torch.equal(on.encoder_.blocks[0].qkv.weight, before)


def test_a_regressor_takes_it_as_its_backbone():
    X, y = draw((16, 12)), np.linspace(0, 1, 20)
    found = fit((8, 6), (2, 3)).adapted_to((16, 12), cell_size=0.5)
    backbone = FrozenEstimator(found)
    tuned = LightconeRegressor(backbone=backbone, hidden_dims=(4,), max_epochs=1, device="cpu")
    assert np.isfinite(tuned.fit(X, y).predict(X)).all()
    assert tuned.backbone_.architecture_ == found.architecture_


WRONG = {
    "of two axes": (dict(field_shape=(8, 6, 4)), "field_shape: expected one for each of 2 axes"),
    "no shape": (
        dict(field_shape=8),
        "field_shape: expected an integer >= 1 for each axis, found 8",
    ),
    "no cells": (dict(field_shape=(8, 0)), "field_shape: expected an integer >= 1"),
    "words": (dict(field_shape="86"), "field_shape: expected"),
    "patch": (
        dict(patch_size="auto"),
        "patch_size: expected an integer >= 1, or one for each axis or None",
    ),
    "patches": (dict(patch_size=(2, 3, 1)), "patch_size: expected one for each of 2 axes"),
    "no divisor": (dict(patch_size=(5, 3)), "patch_size: expected divisors .* axis 0"),
    "cell": (dict(cell_size=0), "cell_size: expected a number in"),
    "cells": (dict(cell_size=(1, 1, 1)), "cell_size: expected one for each of 2 axes"),
    "no number": (dict(cell_size=np.nan), "cell_size: expected"),
    "no whole number": (dict(cell_size=0.7), "patch_size: .*no whole numbers of cells"),
    "grid": (dict(grid=(1, 1)), "grid: expected a Grid or None"),
    "grids": (dict(grid=Grid((1.0,))), "grid: expected one that the weights can be compared"),
    "offset": (dict(offset=(0, np.inf)), "offset: expected a number in"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused(name):
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        fit((8, 6), (2, 3)).adapted_to(**{"field_shape": (8, 6)} | change)


def test_an_axis_that_had_a_single_patch_tells_no_places_apart():
    with pytest.raises(ValueError, match="field_shape: expected a single patch along axis 1"):
        fit((8, 6), (2, 6)).adapted_to((8, 12))
    assert fit((8, 6), (2, 6)).adapted_to((8, 12), cell_size=(1, 0.5)).transform(
        draw((8, 12))
    ).shape == (20, 24)


def test_nothing_is_adapted_before_it_is_fitted():
    for call in [lambda s: s.adapted_to((8, 6)), lambda s: s.adapt(draw((8, 6)))]:
        with pytest.raises(NotFittedError):
            call(SKATRTransformer())


# A new embedding -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["jepa", VICReg(), pytest.param("reconstruction", marks=pytest.mark.slow)], ids=str
)
def test_only_the_embedding_is_trained(objective):
    skatr = fit((6, 6, 10), (2, 2, 5), objective=objective)
    found = finer(skatr, (2, 2, 2)).set_params(max_epochs=2, batch_size=8)
    fine = draw((12, 12, 20))
    first = found.transform(fine)
    assert found.adapt(fine) is found
    assert found.architecture_.voxels is None
    assert found.encoder_.embed.texture.weight.shape == (12, 4 * 4 * 10)
    for name, value in skatr.encoder_.state_dict().items():
        same = torch.equal(value, found.encoder_.state_dict()[name])
        assert same != name.startswith("embed."), name
    assert len(found.history_) == 2
    assert not np.allclose(found.transform(fine), first)
    assert found.whitening_ is not skatr.whitening_  # learned anew
    assert not any(p.requires_grad for p in found.encoder_.parameters())


def test_an_embedding_that_is_spread_gives_the_same_token():
    """A linear one of a linear scaling: before it is trained on nothing has changed."""
    X = draw((6, 6, 10))
    skatr = SKATRTransformer(
        patch_size=(2, 2, 5), embedding="linear", brightness_range=(-100, 50), max_epochs=0,
        whiten=False, **SIZES,
    ).fit(X)  # fmt: skip
    found, fine = finer(skatr, (2, 1, 3)), refined(X, (2, 1, 3), noise=1.0)
    found.adapt(fine)
    assert found.encoder_.embed.weight.shape == (12, 4 * 2 * 15)
    np.testing.assert_allclose(found.transform(fine), skatr.transform(X), atol=1e-4)


def test_it_adapts_weights_from_a_file_to_other_fields(tmp_path):
    skatr = fit((6, 6, 10), (2, 2, 5))
    skatr.save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer(weights=tmp_path / "w.safetensors", device="cpu", random_state=0)
    loaded.fit(draw((6, 6, 10))).set_params(max_epochs=1, batch_size=8)
    before = loaded.encoder_.embed.texture.weight.clone()
    loaded.adapt(draw((6, 6, 10), seed=2))
    assert not torch.equal(loaded.encoder_.embed.texture.weight, before)
    assert torch.equal(loaded.encoder_.norm.weight, skatr.encoder_.norm.weight)


def test_a_failed_adapt_changes_nothing():
    found = fit((8, 6), (2, 3)).adapted_to((16, 12), cell_size=0.5)
    before = found.transform(draw((16, 12)))
    for X in [draw((8, 6)), draw((16, 12), n=1), np.full((4, 16, 12), np.nan)]:
        with pytest.raises(ValueError, match="X: expected|minimum of 2"):
            found.adapt(X)
    np.testing.assert_array_equal(found.transform(draw((16, 12))), before)


def test_the_same_seed_adapts_alike(tmp_path):
    X = draw((16, 12))
    fitted = fit((8, 6), (2, 3)).adapted_to((16, 12), cell_size=0.5)
    fitted.set_params(max_epochs=1, batch_size=8)
    one, two = copy.deepcopy(fitted), copy.deepcopy(fitted).set_params(checkpoint_dir=tmp_path)
    expected = one.adapt(X).transform(X)
    np.testing.assert_array_equal(two.adapt(X).transform(X), expected)
    # A checkpoint of it is none of a warm start.
    on = copy.deepcopy(fitted).set_params(checkpoint_dir=tmp_path, warm_start=True)
    assert not np.array_equal(on.fit(X).transform(X), expected)


def test_pre_training_on_light_cones_that_were_brought_up():
    """The encoder has seen patches of the right physical size, and takes fine cones as they are."""
    coarse, fine = draw((6, 6, 10)), draw((12, 12, 20), seed=1)
    up = LightconeResampler(shape=(12, 12, 20)).fit_transform(coarse)
    skatr = SKATRTransformer(patch_size=(4, 4, 10), max_epochs=1, batch_size=8, **SIZES).fit(up)
    assert np.isfinite(skatr.transform(fine)).all()
    taken = finer(fit((6, 6, 10), (2, 2, 5)), (2, 2, 2)).set_params(
        max_epochs=1, batch_size=8, on_new_grid="resample"
    )
    taken.grid_in_ = Grid((7.0, 7.0, 7.0), origin=5.0)
    resampled = ArrayFields(draw((24, 24, 40)), Grid((3.5, 3.5, 3.5), origin=5.0))
    assert taken.adapt(resampled).transform(resampled).shape == (20, 36)
