"""Heads with a backbone: from light cones to parameters or posteriors, encoder and head as one."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

from skatr_sk import (
    InvalidParameterError,
    LightconeRegressor,
    PosteriorEstimator,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._checks import NoEffectWarning
from skatr_sk.heads import end_to_end
from skatr_sk.summaries.embedding import EMBEDDINGS
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.views import PatchViews
from skatr_sk.summaries.vit import Encoder, patchify
from tests.gaussian_fields import gaussian_fields

SHAPE = (6, 6, 8)
TINY = 1e-9  # a learning rate


def skatr(**parameters):
    small = dict(patch_size=2, embed_dim=12, depth=1, n_heads=2, device="cpu")
    return SKATRTransformer(**small | parameters)


def trainable(**parameters):
    small = dict(max_epochs=1, batch_size=8, objective="lejepa", random_state=0)
    return skatr(**small | parameters)


def regressor(**parameters):
    small = dict(backbone=skatr(), hidden_dims=(8,), max_epochs=2, batch_size=8, device="cpu")
    return LightconeRegressor(**small | dict(learning_rate=3e-3, random_state=0) | parameters)


def posterior(**parameters):
    small = dict(backbone=skatr(), hidden_dims=(8,), n_blocks=1, n_bins=4, max_epochs=2)
    small |= dict(batch_size=8, learning_rate=3e-3, device="cpu", random_state=0)
    return PosteriorEstimator(**small | parameters)


BOTH = pytest.mark.parametrize("head", [regressor, posterior])
# Where the second takes long, and has all of it from what both share.
FIRST = pytest.mark.parametrize(
    "head", [regressor, pytest.param(posterior, marks=pytest.mark.slow)]
)


def draw(n=24, shape=SHAPE, seed=0):
    X = np.random.default_rng(seed).normal(-20, 30, size=(n, *shape)).astype(np.float32)
    flat = X.reshape(n, -1)
    return X, np.stack([flat.mean(axis=1), 1e4 * flat.std(axis=1)], axis=1)


@pytest.fixture(scope="module")
def pretrained():
    return trainable().fit(draw(seed=1)[0])


@pytest.fixture(scope="module")
def fitted():
    return regressor().fit(*draw())


def weights(encoder):
    return torch.cat([value.flatten() for value in encoder.state_dict().values()])


# --- what it learns -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields():
    return gaussian_fields(500, seed=20, field_shape=(8, 8, 8))


def learner(**parameters):
    sizes = dict(hidden_dims=(32,), max_epochs=14, batch_size=32)
    return regressor(**dict(backbone=skatr(embed_dim=24)) | sizes | parameters)


@pytest.mark.parametrize(
    ("pooling", "loss"), [("mean", "l1"), pytest.param("attention", "l2", marks=pytest.mark.slow)]
)
def test_learns_what_mean_and_variance_do_not_say(pooling, loss, fields):
    X, y = fields
    bounds = np.array([[0.5, 4.5], [-1.5, 1.5]])
    model = learner(pooling=pooling, loss=loss, target_bounds=bounds)
    predicted = model.fit(X[:350], y[:350]).predict(X[350:])
    # The mean of the targets has 0, and so has whatever knows only mean and variance.
    assert r2_score(y[350:], predicted, multioutput="raw_values").min() > 0.4
    assert ((predicted >= bounds[:, 0]) & (predicted <= bounds[:, 1])).all()


@pytest.mark.parametrize("pooling", ["mean", "max", "moments", "tokens"])
def test_the_network_pools_as_its_transformer_does(pooling, tmp_path):
    """What the head sees are the summaries of the trained encoder, frozen."""
    X, y = draw()
    model = regressor(backbone=skatr(pooling=pooling)).fit(X, y)
    assert model.backbone_.pooling_ == pooling
    summaries = torch.from_numpy(model.backbone_.transform(X))
    assert model.head_.head.layers[0].in_features == summaries.shape[-1]
    with torch.inference_mode():
        unit = model.head_.head(summaries).double().numpy()
    np.testing.assert_allclose(model.predict(X), model.scaling_.from_unit(unit), rtol=1e-4)
    # What is fine-tuned from a file is pooled as it was saved.
    model.backbone_.save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer(weights=tmp_path / "w.safetensors", device="cpu")
    again = regressor(backbone=loaded, max_epochs=1).fit(X, y)
    assert again.backbone_.pooling_ == pooling
    width = again.head_.head.layers[0].in_features
    assert width == again.backbone_.transform(X).shape[-1] == summaries.shape[-1]


def test_the_trained_backbone_says_what_it_is(tmp_path):
    X, y = draw()
    trainable(embed_dim=24, pooling="moments").fit(X).save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer(weights=tmp_path / "w.safetensors", device="cpu")
    backbone = regressor(backbone=loaded, max_epochs=1).fit(X, y).backbone_
    assert (backbone.embed_dim, backbone.depth, backbone.pooling) == (24, 1, "moments")
    assert backbone.weights is None
    again = clone(backbone).set_params(max_epochs=0, random_state=0).fit(X)
    assert again.architecture_ == backbone.architecture_


def test_the_trained_backbone_knows_the_names_of_features():
    pandas = pytest.importorskip("pandas")
    X, y = draw(shape=(8,))
    table = pandas.DataFrame(X, columns=[f"z{i}" for i in range(8)])
    model = regressor().fit(table, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.backbone_.transform(table)


def test_attention_sees_tokens_whatever_the_pooling():
    X, y = draw()
    model = regressor(backbone=skatr(pooling="moments"), pooling="attention").fit(X, y)
    assert model.head_.pooling == "tokens"
    assert model.backbone_.transform(X).shape == (24, 24)


def test_gaussian_loss_gives_errors():
    X, y = draw()
    model = regressor(loss="gaussian").fit(X, y)
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X))
    assert std.shape == y.shape and (std > 0).all()


@pytest.mark.slow
def test_gaussian_loss_knows_its_errors(fields):
    X, slope = fields[0], fields[1][:, 0]
    model = learner(loss="gaussian").fit(X[:350], slope[:350])
    mean, std = model.predict(X[350:], return_std=True)
    assert r2_score(slope[350:], mean) > 0.4
    pull = np.abs(slope[350:] - mean) / std
    assert np.mean(pull < 2) > 0.85
    assert np.mean(pull < 0.2) < 0.4


def test_every_weight_is_trained():
    X, y = draw()
    start = regressor(max_epochs=0, pooling="attention").fit(X, y)
    trained = regressor(pooling="attention").fit(X, y)
    before, after = start.head_.state_dict(), trained.head_.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    # Softmax does not feel what all keys share: rounding alone moves their bias.
    assert still <= {"head.pooling.keys.bias"}, still
    assert not trained.head_.training
    assert not any(p.requires_grad for p in trained.head_.parameters())


def test_the_best_epoch_comes_back(rng):
    X, _ = draw(40)
    y = rng.normal(size=40)  # noise to overfit
    model = regressor(max_epochs=40, patience=3, learning_rate=1e-2).fit(X, y)
    losses = [row["valid_loss"] for row in model.history_]
    kept = [row["kept"] for row in model.history_]
    assert kept.index(True) == int(np.argmin(losses)) == len(losses) - 4
    again = regressor(max_epochs=int(np.argmin(losses)) + 1, learning_rate=1e-2).fit(X, y)
    np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-6)


def test_seeds(fitted):
    X, y = draw()
    expected = fitted.predict(X)
    np.testing.assert_array_equal(regressor().fit(X, y).predict(X), expected)
    assert not np.allclose(regressor(random_state=1).fit(X, y).predict(X), expected, rtol=1e-3)


def test_dropout_acts_in_training_only():
    X, y = draw()
    model = regressor(dropout=0.5).fit(X, y)
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    assert not np.allclose(model.predict(X), regressor().fit(X, y).predict(X), rtol=1e-4)


# --- symmetries of the sky ----------------------------------------------------------------------


def test_each_training_cone_is_turned_by_itself(rng):
    cone = torch.from_numpy(rng.normal(size=(4, 4, 3)).astype(np.float32))
    plain = BrightnessScaling.from_range(0, 1)
    patches = PatchViews((4, 4, 3), (1, 1, 1), scaling=plain, augment=True, seed=0)
    sky = [np.rot90(v, k) for v in (cone.numpy(), cone.numpy()[::-1]) for k in range(4)]
    views = [torch.from_numpy(np.ascontiguousarray(view)).reshape(1, -1, 1) for view in sky]
    (found,) = patches(cone.expand(64, 4, 4, 3), training=True)
    which = [[torch.equal(row[None], view) for view in views].index(True) for row in found]
    assert set(which) == set(range(8))
    (again,) = patches(cone.expand(64, 4, 4, 3), training=True)
    assert not torch.equal(found, again)
    (still,) = patches(cone.expand(64, 4, 4, 3), training=False)
    assert torch.equal(still, views[0].expand(64, -1, 1))
    plain = PatchViews((4, 4, 3), (1, 1, 1), scaling=plain, augment=False, seed=0)
    assert torch.equal(plain(cone[None], training=True)[0], patchify(cone[None], (1, 1, 1)))


def test_training_is_augmented(fitted):
    X, y = draw()
    without = regressor(backbone=skatr(augment=False)).fit(X, y)
    assert not np.allclose(without.predict(X), fitted.predict(X), rtol=1e-4)
    # Cones that are their own mirror images in every way do not notice.
    flat = np.broadcast_to(X[:, :1, :1], X.shape).copy()
    found = [
        regressor(backbone=skatr(augment=on)).fit(flat, y).predict(flat) for on in (True, False)
    ]
    np.testing.assert_allclose(*found, rtol=1e-4)


# --- what training starts from ------------------------------------------------------------------


def test_vit_is_the_transformer_of_the_defaults():
    X, y = draw(8)
    model = regressor(backbone="vit", max_epochs=0).fit(X, y)
    default = SKATRTransformer()
    for name in ("embed_dim", "depth", "n_heads", "mlp_ratio"):
        assert getattr(model.backbone_.architecture_, name) == getattr(default, name)
    assert model.backbone == "vit"
    same = regressor(backbone=SKATRTransformer(), max_epochs=0).fit(X, y)
    np.testing.assert_array_equal(same.predict(X), model.predict(X))


def test_sizes_and_scaling_of_an_unfitted_transformer(fitted, tmp_path):
    X, y = draw()
    sizes = dict(patch_size=(3, 3, 4), embed_dim=np.int64(16), depth=2, n_heads=4, mlp_ratio=1.5)
    given = skatr(**sizes, brightness_range=(-120, -1))
    model = regressor(backbone=given).fit(X, y)
    architecture = model.backbone_.architecture_
    assert {name: getattr(architecture, name) for name in sizes} == sizes
    assert model.backbone_.scaling_ == BrightnessScaling.from_range(-120, -1)
    with pytest.raises(NotFittedError):
        given.transform(X)
    model.backbone_.save(tmp_path / "numpys.safetensors")  # a search hands in numpy's numbers
    learned = regressor(validation_fraction=0).fit(X, y).backbone_.scaling_
    assert learned == BrightnessScaling.learn(X)
    assert fitted.backbone_.scaling_ != learned  # the validation rows are not looked at


def test_the_backbone_is_a_transformer_of_its_own(fitted, tmp_path):
    X, _ = draw()
    fitted.backbone_.save(tmp_path / "tuned.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "tuned.safetensors")
    summaries = fitted.backbone_.transform(X)
    np.testing.assert_array_equal(loaded.transform(X), summaries)
    with torch.inference_mode():
        unit = fitted.head_.head(torch.from_numpy(summaries)).numpy()
    found = fitted.scaling_.from_unit(unit.astype(np.float64))
    np.testing.assert_allclose(found, fitted.predict(X), rtol=1e-4)


@pytest.mark.parametrize("wrap", [copy.copy, FrozenEstimator])
def test_fine_tuning_starts_from_the_given_weights(wrap, pretrained):
    X, y = draw()
    before = weights(pretrained.encoder_).clone()
    expected = copy.copy(pretrained).set_params(whiten=False).transform(X)
    untouched = regressor(backbone=wrap(pretrained), max_epochs=0).fit(X, y)
    np.testing.assert_array_equal(untouched.backbone_.transform(X), expected)
    nearly = regressor(backbone=wrap(pretrained), learning_rate=TINY).fit(X, y)
    np.testing.assert_allclose(nearly.backbone_.transform(X), expected, rtol=1e-4, atol=1e-5)
    tuned = regressor(backbone=wrap(pretrained)).fit(X, y)
    assert np.abs(tuned.backbone_.transform(X) - expected).max() > 0.01
    assert tuned.backbone_.scaling_ == pretrained.scaling_
    assert tuned.backbone_.architecture_ == pretrained.architecture_
    # Copied, never changed in place.
    assert torch.equal(weights(pretrained.encoder_), before)
    assert pretrained.whitening_ is not None


def test_weights_in_a_file(pretrained, tmp_path):
    X, y = draw()
    pretrained.save(tmp_path / "w.safetensors")
    model = regressor(backbone=SKATRTransformer(weights=tmp_path / "w.safetensors"))
    expected = regressor(backbone=pretrained).fit(X, y).predict(X)
    np.testing.assert_array_equal(model.fit(X, y).predict(X), expected)
    # What has been tuned is no longer what the file has.
    assert model.backbone_.weights is None


# --- with scikit-learn's own tools --------------------------------------------------------------


def test_clone_keeps_what_the_backbone_has_learned(pretrained):
    X, y = draw()
    model = regressor(backbone=pretrained)
    expected = model.fit(X, y).predict(X)
    for cloned in (clone(model), clone(clone(model)), clone(Pipeline([("m", model)]))[0]):
        with pytest.raises(NotFittedError):
            cloned.predict(X)
        np.testing.assert_array_equal(cloned.backbone.transform(X), pretrained.transform(X))
        np.testing.assert_array_equal(cloned.fit(X, y).predict(X), expected)
    # Parameters of a clone are its own.
    cloned = clone(model).set_params(backbone__augment=False)
    assert not cloned.backbone.augment and pretrained.augment
    assert clone(regressor(backbone="vit")).backbone == "vit"
    assert not clone(regressor()).backbone.__sklearn_is_fitted__()


def test_parameters_of_the_backbone():
    X, y = draw()
    model = regressor().set_params(backbone__embed_dim=16, backbone__depth=2)
    assert model.get_params()["backbone__embed_dim"] == 16
    assert model.fit(X, y).backbone_.architecture_.depth == 2
    grid = {"backbone__embed_dim": [8, np.int64(12)], "loss": ["l1"]}
    search = GridSearchCV(regressor(max_epochs=1), grid, cv=2).fit(X, y)
    best = search.best_estimator_
    assert best.backbone_.architecture_.embed_dim == search.best_params_["backbone__embed_dim"]


def test_searches_and_cross_validation_fine_tune(pretrained):
    X, y = draw()
    model = regressor(backbone=pretrained, learning_rate=TINY, max_epochs=1)
    folds = KFold(2)
    done = cross_validate(model, X, y, cv=folds, return_estimator=True)
    assert np.isfinite(done["test_score"]).all()
    grid = {"loss": ["l1", "l2"]}
    search = GridSearchCV(model, grid, cv=folds, error_score="raise").fit(X, y)
    for one in (*done["estimator"], search.best_estimator_):
        near = one.backbone_.transform(X)
        pooled = copy.copy(pretrained).set_params(whiten=False).transform(X)
        np.testing.assert_allclose(near, pooled, rtol=1e-4, atol=1e-5)


def test_pickle(fitted, pretrained):
    X, y = draw()
    loaded = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    unfitted = pickle.loads(pickle.dumps(regressor(backbone=pretrained)))
    expected = regressor(backbone=pretrained).fit(X, y).predict(X)
    np.testing.assert_array_equal(unfitted.fit(X, y).predict(X), expected)


def test_refits_forget():
    X, y = draw()
    summaries = X.reshape(len(X), -1)[:, :5]
    model = regressor().fit(X, y).set_params(backbone=None).fit(summaries, y)
    assert model.backbone_ is None
    expected = regressor(backbone=None).fit(summaries, y).predict(summaries)
    np.testing.assert_array_equal(model.predict(summaries), expected)
    model.set_params(backbone=skatr()).fit(X, y)
    assert not hasattr(model, "summary_mean_")
    np.testing.assert_array_equal(model.predict(X), regressor().fit(X, y).predict(X))


# --- posteriors ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "cnn"])
def test_a_posterior_learns_from_fields(backbone, fields):
    X, y = fields
    given = skatr(embed_dim=24) if backbone == "vit" else "cnn"
    bounds = [[0.5, 4.5], [-1.5, 1.5]]
    model = posterior(backbone=given, prior_bounds=bounds, max_epochs=14, batch_size=32)
    model.fit(X[:350], y[:350])
    nats, error = model.information(X[350:], y[350:])
    assert nats > 0.3 > 3 * error  # in which mean and variance alone are worth nothing
    draws = model.sample(X[350:], 200, random_state=0)
    assert ((draws > np.array(bounds)[:, 0]) & (draws < np.array(bounds)[:, 1])).all()
    within = np.abs(draws.mean(axis=1) - y[350:]) < 2 * draws.std(axis=1)
    assert within.mean() > 0.85


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_posterior_on_the_trained_encoder_is_one_on_its_summaries(pooling):
    """The flow sees what ``backbone_`` gives, frozen, and as it is."""
    X, y = draw()
    model = posterior(pooling=pooling, prior_bounds="data").fit(X, y)
    tokens = {"pooling": "tokens"} if pooling == "attention" else {}
    summaries = copy.copy(model.backbone_).set_params(**tokens).transform(X)
    free, log_jacobian = model.prior_transform_.to_free(y)
    net = copy.deepcopy(model.net_).double()
    with torch.inference_mode():
        context = net.context(torch.from_numpy(summaries).double())
        found = net.log_prob(torch.from_numpy(free)[:, None], context)[:, 0].numpy()
    np.testing.assert_allclose(model.log_prob(X, y), found + log_jacobian, rtol=1e-5)
    samples, log_prob = model.sample_log_prob(X, 5, random_state=0)
    np.testing.assert_allclose(model.log_prob(X, samples), log_prob, rtol=1e-3, atol=1e-3)
    assert model.predict_quantiles(X).shape == (24, 3, 2)
    assert not hasattr(model, "summary_mean_")
    again = model.backbone_.as_module()(torch.from_numpy(X))
    if pooling == "mean":
        np.testing.assert_allclose(again, summaries, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_posteriors_hold_some_cones_at_a_time(pooling, monkeypatch):
    X, y = draw(40)
    model = posterior(max_epochs=0, pooling=pooling).fit(X, y)
    whole, drawn = model.log_prob(X, y), model.sample(X, 3, random_state=0)
    monkeypatch.setattr("skatr_sk.heads.posterior._ROWS", 7)
    monkeypatch.setattr("skatr_sk.heads.base._NUMBERS", 36 * 12 * 5)
    seen = []
    model.backbone_.encoder_.register_forward_hook(lambda *call: seen.append(len(call[2])))
    np.testing.assert_allclose(model.log_prob(X, y), whole, rtol=1e-6)
    assert sum(seen) == 40 and max(seen) == (5 if pooling == "attention" else 7)
    np.testing.assert_allclose(model.sample(X, 3, random_state=0), drawn, rtol=1e-4)


@pytest.mark.slow
def test_posteriors_from_files_groups_weights_and_own_validation(tmp_path):
    X, y = draw()
    save_lightcones(tmp_path / "cones.h5", X, y)
    stored = open_lightcones(tmp_path / "cones.h5").data
    plain = posterior(backbone="cnn").fit(X, y)
    found = posterior(backbone="cnn").fit(stored, y)
    np.testing.assert_allclose(found.log_prob(stored, y), plain.log_prob(X, y), rtol=1e-5)
    kept = np.arange(24.0) % 3
    weighted = posterior(backbone="cnn").fit(X, y, kept, validation_data=(X[:5], y[:5]))
    some = posterior(backbone="cnn").fit(
        X[kept > 0], y[kept > 0], kept[kept > 0], validation_data=(X[:5], y[:5])
    )
    np.testing.assert_array_equal(weighted.predict(X), some.predict(X))
    together = posterior(backbone="cnn", validation_fraction=0.5).fit(
        X, y, groups=np.arange(24) // 2
    )
    assert np.isfinite(together.score(X, y))
    assert np.isfinite(cross_validate(posterior(), stored, y, cv=2)["test_score"]).all()


def test_a_posterior_is_told_of_bad_fields():
    X, y = draw()
    model = posterior(backbone=skatr(brightness_range=(-3, 3))).fit(X, y)
    for call in (model.predict, model.sample, lambda X: model.log_prob(X, y)):
        with pytest.raises(ValueError, match=r"this PosteriorEstimator was.*found \(6, 4, 8\)"):
            call(X[:, :, :4])
        with pytest.raises(ValueError, match="without a finite .* mK from zero"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call(3e38 * np.sign(X))
    with pytest.raises(ValueError, match=r"PosteriorEstimator\(backbone='vit'\)"):
        posterior(backbone=None).fit(X, y)
    with pytest.raises(
        InvalidParameterError, match="n_members: expected 'auto' or 1 with a backbone, found 2"
    ):
        posterior(n_members=2).fit(X, y)
    model.set_params(backbone=None).fit(X[:, 0, 0], y)
    assert model.backbone_ is None and np.isfinite(model.score(X[:, 0, 0], y))


# --- fine-tuning --------------------------------------------------------------------------------


@BOTH
def test_the_backbone_is_frozen_at_first(head, pretrained):
    X, y = draw()
    start = weights(pretrained.encoder_)
    frozen = head(backbone=pretrained, frozen_epochs=2).fit(X, y)
    assert torch.equal(weights(frozen.backbone_.encoder_), start)
    alone = head(backbone=pretrained, frozen_epochs=2, max_epochs=4, patience=None)
    released = alone.fit(X, y)
    assert not torch.allclose(weights(released.backbone_.encoder_), start)
    # Until then it is the same run, whose validation rows see the head alone change.
    if head is regressor:  # whose rate does not depend on the number of epochs
        losses = [[row["train_loss"] for row in one.history_] for one in (frozen, released)]
        assert losses[0] == losses[1][:2]
    assert not any(each.requires_grad for each in released.backbone_.encoder_.parameters())


@FIRST
def test_patience_begins_when_the_backbone_is_released(head, rng):
    X, _ = draw()
    y = rng.normal(size=24)  # noise, of which the first epochs know most
    small = dict(patience=1, max_epochs=12, learning_rate=3e-2)
    assert len(head(**small).fit(X, y).history_) < 7
    model = head(**small, frozen_epochs=8).fit(X, y)
    assert len(model.history_) >= 9


@BOTH
def test_layers_have_rates_of_their_own(head, pretrained):
    """After one step of AdamW a weight has moved by its rate."""
    X, y = draw()

    def moved(**parameters):
        options = dict(max_epochs=1, batch_size=32, weight_decay=0.0, validation_fraction=0.0)
        model = head(backbone=pretrained, **options | parameters).fit(X, y)
        before = dict(pretrained.encoder_.named_parameters())
        after = dict(model.backbone_.encoder_.named_parameters())
        names = ("norm.weight", "blocks.0.mlp.0.weight", "embed.texture.weight")
        return np.array([float((after[k] - before[k]).abs().median()) for k in names])

    plain = moved()
    np.testing.assert_allclose(moved(backbone_learning_rate=3e-4), plain / 10, rtol=0.05)
    decayed = plain * 0.5 ** np.arange(3)
    np.testing.assert_allclose(moved(layer_decay=0.5), decayed, rtol=0.05)
    both = moved(layer_decay=0.5, backbone_learning_rate=6e-3, learning_rate=1e-3)
    np.testing.assert_allclose(both, 2 * decayed, rtol=0.05)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_each_weight_of_an_encoder_is_in_one_layer(embedding, torch_seed):
    sizes = dict(embed_dim=12, depth=2, n_heads=2, mlp_ratio=2.0, patch_depth=4)
    encoder = Encoder(16, (2, 2, 3), embedding=embedding, **sizes)
    layers = list(end_to_end._layers(encoder))
    assert len(layers) == 4  # the embedding, the blocks and the norm
    in_layers = [id(weight) for layer in layers for weight in layer]
    assert sorted(in_layers) == sorted(map(id, encoder.parameters()))


@FIRST
def test_defaults_of_fine_tuning_change_no_bit(head):
    X, y = draw()
    expected = head().fit(X, y).predict(X)
    same = head(frozen_epochs=0, layer_decay=1, backbone_learning_rate=3e-3).fit(X, y)
    np.testing.assert_array_equal(same.predict(X), expected)


@FIRST
def test_a_frozen_run_goes_on_where_it_stopped(head, tmp_path, pretrained):
    X, y = draw()
    options = dict(backbone=pretrained, frozen_epochs=2, max_epochs=4, layer_decay=0.5)

    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == at:
                raise ZeroDivisionError

    whole = head(**options).fit(X, y)
    for at in (1, 3):
        folder = tmp_path / str(at)
        stopped = head(**options, checkpoint_dir=folder, callbacks=[Stop()])
        with pytest.raises(ZeroDivisionError):
            stopped.fit(X, y)
        resumed = head(**options, checkpoint_dir=folder).fit(X, y)
        np.testing.assert_array_equal(resumed.predict(X), whole.predict(X))


@BOTH
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (dict(frozen_epochs=-1), "frozen_epochs: expected an integer >= 0, found -1"),
        (dict(frozen_epochs=1.5), "frozen_epochs: expected an integer >= 0, found 1.5"),
        (dict(layer_decay=0), r"layer_decay: expected a number in \(0, 1\], found 0"),
        (dict(layer_decay=1.1), "layer_decay: expected"),
        (dict(layer_decay=None), "layer_decay: expected"),
        (dict(backbone_learning_rate=0), "backbone_learning_rate: .* or None, found 0"),
        (dict(backbone_learning_rate="auto"), "backbone_learning_rate: expected a number"),
        (dict(backbone="cn"), "backbone: .*found 'cn'; did you mean 'cnn'"),
    ],
)
def test_wrong_parameters_of_fine_tuning(head, parameters, said):
    with pytest.raises(InvalidParameterError, match=said):
        head(**parameters).fit(*draw())


@BOTH
def test_parameters_of_fine_tuning_without_effect(head):
    X, y = draw()
    given = dict(frozen_epochs=2, layer_decay=0.5, backbone_learning_rate=1e-4)
    names = "frozen_epochs, backbone_learning_rate, layer_decay; leave"
    with pytest.warns(NoEffectWarning, match=f"no effect with backbone=None of {names}"):
        head(backbone=None, **given).fit(X[:, 0, 0], y)
    with pytest.warns(NoEffectWarning, match="frozen_epochs=2 of backbone_learning_rate, layer_"):
        head(**given).fit(X, y)


@FIRST
def test_clones_and_searches_keep_the_weights_to_start_from(head, pretrained):
    X, y = draw()
    model = head(backbone=pretrained, learning_rate=TINY, weight_decay=0.0, max_epochs=1)
    start = weights(pretrained.encoder_)
    search = GridSearchCV(model, {"layer_decay": [0.5, 1.0]}, cv=2, error_score="raise").fit(X, y)
    whole = clone(Pipeline([("model", model)])).fit(X, y)
    for one in (search.best_estimator_, whole[-1]):
        np.testing.assert_allclose(weights(one.backbone_.encoder_), start, atol=1e-5)
    # In a grid over the backbone itself FrozenEstimator keeps them.
    grid = {"backbone": [FrozenEstimator(pretrained), "cnn"]}
    search = GridSearchCV(model, grid, cv=2, refit=False, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 2
    kept = clone(model).set_params(backbone=FrozenEstimator(pretrained)).fit(X, y)
    np.testing.assert_allclose(weights(kept.backbone_.encoder_), start, atol=1e-5)


# --- shapes and files ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16,), (6, 8), (4, 4, 6)])
def test_signals_maps_and_cones(shape):
    X, y = draw(shape=shape)
    for head in (regressor, posterior)[: 2 if len(shape) == 3 else 1]:
        model = head(backbone="cnn", max_epochs=1).fit(X, y[:, 0])
        assert model.predict(X).shape == (24,) and model.field_shape_in_ == shape
        torch.testing.assert_close(
            model.backbone_(torch.from_numpy(X[:3])), model.backbone_(torch.from_numpy(X))[:3]
        )
    model = regressor().fit(X, y[:, 0])
    assert model.field_shape_in_ == shape
    assert model.predict(X).shape == (24,)
    assert regressor().fit(X, y[:, :1]).predict(X[:3]).shape == (3, 1)


def test_cones_in_files(tmp_path, fitted):
    X, y = draw()
    save_lightcones(tmp_path / "cones.h5", X, y)
    stored = open_lightcones(tmp_path / "cones.h5").data
    model = regressor().fit(stored, y)
    np.testing.assert_allclose(model.predict(X), fitted.predict(X), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(stored[5:]), model.predict(X[5:]))
    assert np.isfinite(cross_validate(regressor(), stored, y, cv=2)["test_score"]).all()


def test_predictions_hold_some_cones_at_a_time():
    X, y = draw(40, shape=(16, 16, 16))
    model = regressor(max_epochs=0).fit(X, y)
    seen = []
    model.backbone_.encoder_.register_forward_hook(lambda *call: seen.append(len(call[2])))
    whole = model.predict(X)
    assert sum(seen) == 40 and max(seen) == 20
    np.testing.assert_allclose(model.predict(X[7:8]), whole[7:8], rtol=1e-5)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "phrases"),
    [
        ("vitt", ["- backbone: expected 'vit'", "None, found 'vitt'; did you mean 'vit'?"]),
        (
            SKATRTransformer,
            ["- backbone: expected 'vit', 'cnn', a SKATRTransformer", "or None, found <"],
        ),
        (PosteriorEstimator(), ["- backbone: expected 'vit'", "found PosteriorEstimator()"]),
        (FrozenEstimator(skatr()), ["fitted SKATRTransformer in FrozenEstimator", "fit it first"]),
        (skatr(embed_dim=-1), ["SKATRTransformer has", "embed_dim: expected an integer >= 1"]),
        (skatr(patch_size=4), ["patch_size", "(4, 4, 4)", "axis 0 has 6 cells"]),
    ],
)
def test_what_is_no_backbone(backbone, phrases):
    model = regressor(backbone=backbone)
    with pytest.raises(ValueError) as caught:
        model.fit(*draw())
    assert all(phrase in str(caught.value) for phrase in phrases), caught.value
    assert not hasattr(model, "backbone_") and not hasattr(model, "n_features_in_")


def test_a_fitted_backbone_fits_its_cones_alone(pretrained):
    X, y = draw(shape=(4, 4, 8))
    with pytest.raises(ValueError, match=r"\(6, 6, 8\), on which the backbone .* \(4, 4, 8\)"):
        regressor(backbone=pretrained).fit(X, y)
    changed = copy.copy(pretrained).set_params(embed_dim=16)
    with pytest.raises(ValueError, match=r"backbone: .*that it was fitted with.*(\n.*)*embed_dim"):
        regressor(backbone=changed).fit(*draw())


def test_one_network_alone_is_trained_with_a_backbone():
    X, y = draw()
    model = regressor(hidden_dims="auto", max_epochs=1, n_members=1).fit(X, y)
    assert [layer.out_features for layer in model.head_.head.layers[::2]] == [360, 360, 2]
    assert model.network_weight_ == 1
    with pytest.raises(InvalidParameterError, match=r"n_members: expected 'auto' or 1 with a .* 3"):
        regressor(n_members=3).fit(X, y)


def test_data_that_is_not_as_expected(fitted):
    X, y = draw()
    before = fitted.predict(X)
    with pytest.raises(ValueError, match=r"this LightconeRegressor was.*found \(6, 4, 8\)"):
        fitted.predict(X[:, :, :4])
    with pytest.raises(ValueError, match=r"the shape of one field.*X\[None\]"):
        fitted.predict(X[0])
    with pytest.raises(ValueError, match="return_std=True: expected"):
        fitted.predict(X, return_std=True)
    with pytest.raises(ValueError, match="y: expected 24 rows .* found 5"):
        fitted.fit(X, y[:5])
    with pytest.raises(ValueError, match="requires y"):
        fitted.fit(X, None)
    with pytest.raises(ValueError, match=r"y: .* inside target_bounds \[\[-1.0, 1.0\]"):
        copy.copy(fitted).set_params(target_bounds=[[-1, 1]] * 2).fit(X, y)
    X[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="X: .*finite cells, .*1 of 24 rows.*first of them 3"):
        fitted.fit(X, y)
    np.testing.assert_array_equal(fitted.predict(draw()[0]), before)
    with pytest.raises(NotFittedError):
        regressor().predict(X)


def test_light_cones_without_a_backbone_are_told_of_it(tmp_path):
    X, y = draw()
    save_lightcones(tmp_path / "cones.h5", X, y)
    for cones in (X, open_lightcones(tmp_path / "cones.h5").data):
        with pytest.raises(ValueError, match=r"SKATRTransformer.*LightconeRegressor\(backbone='vi"):
            regressor(backbone=None).fit(cones, y)


# --- parameters without effect ------------------------------------------------------------------


def test_parameters_of_pretraining_have_no_effect_in_a_backbone():
    X, y = draw()
    given = skatr(max_epochs=7, learning_rate=0.5, objective="vicreg", random_state=3)
    with pytest.warns(NoEffectWarning) as caught:
        model = regressor(backbone=given).fit(X, y)
    (message,) = {str(warning.message) for warning in caught}
    assert message.startswith("SKATRTransformer: no effect with LightconeRegressor(backbone=...)")
    for name in ("max_epochs", "learning_rate", "objective", "random_state"):
        assert name in message
    assert "embed_dim" not in message and "device" not in message
    np.testing.assert_array_equal(model.predict(X), regressor().fit(X, y).predict(X))


def test_nothing_else_is_warned_of(pretrained, tmp_path):
    """Neither defaults, nor what counts, nor what a fitted transformer was trained with."""
    X, y = draw()
    pretrained.save(tmp_path / "w.safetensors")
    counts = dict(mlp_ratio=1.5, embedding="moments", pooling="max", brightness_range=(-120, -1))
    counts |= dict(augment=False, cache=None, precision="float32")
    for backbone in (
        "vit",
        SKATRTransformer(),
        skatr(**counts),
        skatr(attention="axial", depth=2),
        pretrained,
        FrozenEstimator(pretrained),
        SKATRTransformer(weights=tmp_path / "w.safetensors", augment=False),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoEffectWarning)
            regressor(backbone=backbone, max_epochs=1).fit(X, y)


def test_parameters_of_a_named_backbone_are_set_by_name():
    head = LightconeRegressor(backbone="vit").set_params(backbone__depth=1)
    assert repr(head.backbone) == "SKATRTransformer(depth=1)"
    for backbone in (None, "cnn"):
        head = LightconeRegressor(backbone=backbone)
        with pytest.raises(ValueError, match=f"'depth', found {backbone!r}; set backbone first"):
            head.set_params(backbone__depth=1)
        assert head.backbone == backbone
