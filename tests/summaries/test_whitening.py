"""Summaries without what the regions of one sky disagree on."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import SKATRTransformer, open_lightcones
from skatr_sk.summaries import Combined, Supervised, VICReg, pretraining
from skatr_sk.summaries.weights import Architecture, whitening_of
from skatr_sk.summaries.whitening import Whitening

SMALL = dict(patch_size=2, embed_dim=8, depth=1, max_epochs=1, device="cpu", random_state=0)
SMALL |= dict(objective="lejepa")  # the one that trains the soonest
N_LOUD = 60


def regions(rng, n, *, loud):
    """Summaries of light cones and of two regions of each: two numbers are common to a sky.

    Of the others, all mixed with these, some differ between regions, `loud` times as much.
    """
    mixed = np.linalg.qr(rng.normal(size=(N_LOUD + 2, N_LOUD + 2)))[0]
    common = np.pad(rng.normal(size=(n, 2)), ((0, 0), (0, N_LOUD)))
    own = rng.normal(size=(2, n, N_LOUD + 2)) * np.array([0.3, 0.3, *[loud] * N_LOUD])
    one, two = (5.0 + (common + each) @ mixed for each in own)
    return (one + two) / 2, one, two, common[:, 0]


def test_a_regression_on_few_labels_gains_by_it(rng):
    whole, one, two, y = regions(rng, 1000, loud=2.0)
    white = Whitening.learn(whole, one, two)(whole)
    # Standardising, as a user's pipeline does, takes nothing of it back.
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15)))
    before, after = (ridge.fit(S[:40], y[:40]).score(S[40:], y[40:]) for S in (whole, white))
    assert after > before + 0.3


@pytest.mark.parametrize("n", [2, 16, 300])
def test_columns_have_unit_variance_and_no_mean(rng, n):
    whole, one, two, _ = regions(rng, n, loud=2.0)
    white = Whitening.learn(whole, one, two)(whole)
    assert white.dtype == np.float32
    np.testing.assert_allclose(white.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(white.std(axis=0), 1.0, rtol=1e-3)


def test_nothing_is_lost(rng):
    """What summaries say can be read from whitened ones: the map has an inverse."""
    whole, one, two, _ = regions(rng, 300, loud=3.0)
    white = Whitening.learn(whole, one, two)
    back = white(whole) @ np.linalg.inv(white.matrix) + white.mean
    np.testing.assert_allclose(back, whole, rtol=1e-3, atol=1e-3)


def test_units_of_the_summaries_do_not_matter(rng):
    whole, one, two, _ = regions(rng, 300, loud=3.0)
    units = np.logspace(-6, 6, whole.shape[1])
    first = Whitening.learn(whole, one, two)(whole)
    other = Whitening.learn(whole * units, one * units, two * units)(whole * units)
    np.testing.assert_allclose(other @ other.T, first @ first.T, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_numbers_that_do_not_vary_stay_finite(rng, value):
    whole, one, two, _ = regions(rng, 40, loud=3.0)
    for each in (whole, one, two):
        each[:, 3] = value
    assert np.isfinite(Whitening.learn(whole, one, two)(whole)).all()
    alike = np.full((20, 4), value)
    assert (Whitening.learn(alike, alike, alike)(alike) == 0).all()


# As a part of the transformer -------------------------------------------------------------------


def draw(rng, shape=(24, 6, 6, 8)):
    return rng.normal(size=shape).astype(np.float32) * 10


@functools.cache
def fitted_once(whiten):
    X = draw(np.random.default_rng(0))
    return X, SKATRTransformer(**SMALL, whiten=whiten).fit(X)


def fitted(whiten="auto"):
    """Fields and a transformer that was fitted on them; a test may change both."""
    return copy.deepcopy(fitted_once(whiten))


def test_it_is_learned_after_the_training_saved_and_left_out_at_will(tmp_path):
    X, skatr = fitted()
    white = skatr.transform(X)
    assert white.shape == (24, 24)
    pooled = skatr.set_params(whiten=False).transform(X)
    assert skatr.whitening_ is None
    skatr.set_params(whiten="auto")
    np.testing.assert_allclose(skatr.whitening_(pooled), white, rtol=1e-6, atol=1e-6)
    skatr.save(path := tmp_path / "w.safetensors")
    for made in (SKATRTransformer.load(path), SKATRTransformer(weights=path).fit(X)):
        np.testing.assert_array_equal(made.transform(X), white)
    without = SKATRTransformer(weights=path, whiten=False).fit(X)
    np.testing.assert_array_equal(without.transform(X), pooled)
    without.save(other := tmp_path / "other.safetensors")
    assert SKATRTransformer.load(other).whitening_ is None
    with pytest.raises(ValueError, match="whiten: expected 'auto' or False, for the weights have"):
        SKATRTransformer(weights=other, whiten=True).fit(X)


@pytest.mark.parametrize(("wanted", "n_pairs"), [(1024, 8), (40, 2), (22, 1)])
def test_few_skies_give_several_pairs_of_regions(rng, monkeypatch, wanted, n_pairs):
    """Of 24 light cones 22 train."""
    given = []

    def learn(*summaries):
        given.extend(summaries)
        return Whitening.learn(*summaries)

    monkeypatch.setattr(pretraining, "_PAIRS_WHITENED", wanted)
    monkeypatch.setattr(pretraining, "Whitening", SimpleNamespace(learn=learn))
    SKATRTransformer(**SMALL).fit(draw(rng))
    whole, one, two = given
    assert whole.shape == (22, 24) and one.shape == two.shape == (22 * n_pairs, 24)
    # The pairs of a sky follow each other at a distance of all skies.
    skies = (one + two).reshape(n_pairs, 22, 24).mean(axis=0)
    spread = (one + two).reshape(n_pairs, 22, 24) - skies
    assert spread.std() < skies.std() and (spread.std() > 1e-3 * skies.std()) == (n_pairs > 1)


def test_the_same_of_a_file_as_of_an_array(tmp_path):
    X, of_array = fitted()
    np.save(tmp_path / "X.npy", X)
    of_file = SKATRTransformer(**SMALL).fit(open_lightcones(tmp_path / "X.npy").data)
    np.testing.assert_array_equal(of_array.whitening_.matrix, of_file.whitening_.matrix)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((24, 12), {}),  # no sky
        ((24, 2, 2, 8), {}),  # a sky of one patch
        ((12, 6, 6, 8), {}),  # few
        ((24, 6, 6, 8), {"pooling": "tokens"}),
        ((24, 6, 6, 8), {"objective": Supervised()}),
    ],
)
def test_auto_leaves_out_what_cannot_be_whitened(rng, shape, options):
    X = draw(rng, shape)
    skatr = SKATRTransformer(**SMALL | options).fit(X, np.arange(len(X)))
    assert skatr.whitening_ is None


@pytest.mark.parametrize("weights", [None, [1, 1], [0, 1]])
def test_auto_whitens_what_labels_share_with_another_objective(rng, weights):
    parts = [("regions", VICReg()), ("labels", Supervised())]
    both = Combined(objectives=parts, weights=weights)
    skatr = SKATRTransformer(**SMALL | dict(objective=both)).fit(draw(rng), np.arange(24))
    assert (skatr.whitening_ is None) == (weights == [0, 1])


@pytest.mark.parametrize(
    ("shape", "pooling", "said"),
    [((24, 12), "auto", "no two patches"), ((24, 6, 6, 8), "tokens", "pooling='tokens'")],
)
def test_what_cannot_be_whitened_is_refused(rng, shape, pooling, said):
    skatr = SKATRTransformer(**SMALL, pooling=pooling, whiten=True)
    with pytest.raises(ValueError, match=f"whiten: expected .*{said}"):
        skatr.fit(draw(rng, shape))


def test_whiten_overrules_auto(rng):
    X = draw(rng)
    labelled = SKATRTransformer(**SMALL | dict(objective=Supervised()), whiten=True)
    assert labelled.fit(X, np.arange(24)).whitening_ is not None
    assert SKATRTransformer(**SMALL, whiten=True).fit(X[:10]).whitening_ is not None
    with pytest.raises(ValueError, match="whiten: expected 'auto' or False where 2 fields train"):
        SKATRTransformer(**SMALL, whiten=True).fit(X[:3])


def test_what_was_not_learned_cannot_be_asked_for_afterwards():
    X, skatr = fitted(whiten=False)
    skatr.set_params(whiten=True)
    with pytest.raises(ValueError, match="whiten: expected 'auto' or False where no whitening"):
        skatr.transform(X)
    _, skatr = fitted(whiten=True)
    skatr.set_params(pooling="mean")
    with pytest.raises(ValueError, match="whiten: expected .* pooling='mean'"):
        skatr.transform(X)


def test_a_warm_start_keeps_the_whitening_that_it_cannot_learn(tmp_path):
    X, first = fitted()
    first.save(path := tmp_path / "w.safetensors")
    warm = dict(weights=path, warm_start=True, device="cpu", random_state=0)
    same = SKATRTransformer(**warm, max_epochs=0).fit(X)
    np.testing.assert_array_equal(same.transform(X), first.transform(X))
    few = SKATRTransformer(**warm, max_epochs=1, patch_size=2).fit(X[:10])
    np.testing.assert_array_equal(few.whitening_.matrix, first.whitening_.matrix)
    more = SKATRTransformer(**warm, max_epochs=1).fit(X)
    assert (more.whitening_.matrix != first.whitening_.matrix).any()


@pytest.mark.parametrize("n_epochs", [0, 1])
@pytest.mark.parametrize("kept_in", ["itself", "a file"])
def test_a_warm_start_learns_the_whitening_that_was_left_out(tmp_path, kept_in, n_epochs):
    on = dict(warm_start=True, whiten=True, max_epochs=n_epochs)
    X, skatr = fitted(whiten=False)
    before = skatr.transform(X)
    if kept_in == "a file":
        skatr.save(path := tmp_path / "w.safetensors")
        skatr = SKATRTransformer(weights=path, device="cpu", random_state=0)
    white = skatr.set_params(**on).fit(X).transform(X)
    pooled = skatr.set_params(whiten=False).transform(X)
    np.testing.assert_allclose(skatr.set_params(whiten=True).whitening_(pooled), white, rtol=1e-5)
    assert np.array_equal(pooled, before) == (n_epochs == 0)


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((24, 12), {"whiten": True}, "no two patches"),
        ((24, 6, 6, 8), {"whiten": True, "pooling": "tokens"}, "pooling='tokens'"),
    ],
)
def test_a_warm_start_refuses_what_cannot_be_whitened(rng, tmp_path, shape, options, said):
    X = draw(rng, shape)
    SKATRTransformer(**SMALL, whiten=False).fit(X).save(path := tmp_path / "w.safetensors")
    warm = dict(weights=path, warm_start=True, max_epochs=0, device="cpu", random_state=0)
    with pytest.raises(ValueError, match=f"whiten: expected .*{said}"):
        SKATRTransformer(**warm, **options).fit(X)


def test_tokens_that_were_saved_are_not_whitened_by_a_warm_start(rng, tmp_path):
    X = draw(rng)
    skatr = SKATRTransformer(**SMALL, pooling="tokens").fit(X)
    skatr.save(path := tmp_path / "w.safetensors")
    warm = dict(weights=path, warm_start=True, max_epochs=1, device="cpu", random_state=0)
    for made in (SKATRTransformer(**warm), skatr.set_params(pooling="auto", warm_start=True)):
        assert made.fit(X).transform(X).shape == (24, 36, 8) and made.whitening_ is None


def test_an_adapted_transformer_learns_a_whitening_that_is_asked_for(rng):
    _, coarse = fitted(whiten=False)
    fine = coarse.adapted_to((12, 12, 16), cell_size=0.5).set_params(whiten=True)
    assert fine.adapt(draw(rng, (24, 12, 12, 16))).whitening_ is not None


def test_a_warm_start_with_another_pooling_whitens_it():
    X, skatr = fitted()
    skatr.set_params(pooling="moments", warm_start=True)
    assert skatr.set_params(max_epochs=0).fit(X).transform(X).shape == (24, 16)
    assert skatr.whitening_.matrix.shape == (16, 16)


def test_another_pooling_is_not_whitened():
    X, skatr = fitted()
    skatr.set_params(pooling="mean")
    assert skatr.whitening_ is None
    pooled = skatr.set_params(pooling="slices", whiten=False).transform(X)[:, :8]
    np.testing.assert_array_equal(skatr.set_params(pooling="mean").transform(X), pooled)


@pytest.mark.parametrize("harm", ["missing", "shape"])
def test_a_damaged_whitening_in_a_file_is_refused(tmp_path, harm):
    fitted()[1].save(path := tmp_path / "w.safetensors")
    with safe_open(path, framework="np") as stream:
        metadata, tensors = stream.metadata(), {k: stream.get_tensor(k) for k in stream.keys()}
    if harm == "missing":
        del tensors["whitening.mean"]
    else:
        tensors["whitening.matrix"] = tensors["whitening.matrix"][:5].copy()
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"w\.safetensors.*whitening\."):
        SKATRTransformer.load(path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ({"mean": np.full(8, np.nan, np.float32)}, "whitening.mean has NaN"),
        ({"mean": np.zeros(8)}, "whitening.mean: expected an array of float32"),
        ({"matrix": np.zeros((8, 7), np.float32)}, "whitening.matrix: expected .*8, 8"),
        ({"more": np.zeros(8)}, "whitening: expected arrays mean, matrix"),
    ],
)
def test_only_arrays_that_fit_are_taken(harm, said):
    sizes = Architecture((6, 6), (2, 2), embed_dim=8, depth=1, n_heads=2, mlp_ratio=2.0)
    arrays = {"mean": np.zeros(8, np.float32), "matrix": np.eye(8, dtype=np.float32)}
    assert whitening_of(arrays, sizes, "mean") is not None
    with pytest.raises(ValueError, match=said):
        whitening_of(arrays | harm, sizes, "mean")
    with pytest.raises(ValueError, match="pooling"):
        whitening_of(arrays, sizes, "tokens")
