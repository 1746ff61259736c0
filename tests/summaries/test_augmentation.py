"""What a training does to the fields of a step: functions and transformers as `augment`."""

import functools

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from skatr_sk import (
    LightconeRegressor,
    NoEffectWarning,
    NoiseTransformer,
    SKATRTransformer,
    load_model,
    save_model,
)
from skatr_sk.fields import as_fields
from skatr_sk.summaries import JEPA, LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.summaries.augmentation import Augmentation, name_of

SHAPE = (6, 6, 8)


@pytest.fixture
def X(rng):
    return rng.normal(-20, 30, size=(16, *SHAPE)).astype(np.float32)


def make(augment=True, **parameters):
    small = dict(patch_size=2, embed_dim=12, depth=1, max_epochs=1, batch_size=8, random_state=0)
    small |= dict(objective="lejepa", device="cpu")  # which trains the soonest
    return SKATRTransformer(**small | dict(augment=augment) | parameters)


def drawn(fields):
    """A function that draws from torch's global generator."""
    return fields + torch.randn_like(fields)


class Recorder:
    """A function that keeps what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, fields):
        self.seen.append(fields.clone())
        return fields * 1

    def __deepcopy__(self, memo):  # a clone of the transformer calls the same
        return self


# Functions ----------------------------------------------------------------------------------------


def test_a_function_gets_the_turned_fields_of_each_step(X):
    recorder = Recorder()
    model = make(recorder, max_epochs=2, validation_fraction=0.25).fit(X)
    steps = recorder.seen
    assert len(steps) == 2 * 2 and all(fields.dtype == torch.float32 for fields in steps)
    assert {tuple(fields.shape[1:]) for fields in steps} == {SHAPE}
    assert sum(map(len, steps)) == 2 * 12  # validation fields are left alone
    # They are the fields in mK, and most are turned.
    ordered = {np.sort(cone, axis=None).tobytes() for cone in X}
    cones = [cone.numpy() for cone in torch.cat(steps)]
    assert {np.sort(cone, axis=None).tobytes() for cone in cones} <= ordered
    as_they_are = {cone.tobytes() for cone in X}
    assert sum(cone.tobytes() in as_they_are for cone in cones) < len(cones) / 2
    # It has changed nothing.
    plain = make(max_epochs=2, validation_fraction=0.25).fit(X)
    np.testing.assert_array_equal(model.transform(X), plain.transform(X))


def test_what_a_function_draws_is_seeded(X):
    first, again, other = (make(drawn, random_state=seed).fit(X).transform(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other, rtol=1e-2)
    assert not np.array_equal(first, make().fit(X).transform(X))


@pytest.mark.changes_global_state
def test_numpys_generator_is_seeded_and_put_back(X):
    def drawn(fields):
        return fields + float(np.random.normal(0, 9))  # noqa: NPY002

    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = make(drawn).fit(X).transform(X)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    np.testing.assert_array_equal(make(drawn).fit(X).transform(X), first)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda fields: 1 / 0, r"from .*test_augm[a-z.]*<lambda>, found ZeroDivisionError"),
        (lambda fields, more: fields, "found TypeError.*missing 1 required"),
        (lambda fields: fields * 1j, "real numbers of shape .*, found torch.complex64"),
        (
            lambda fields: fields[..., :4],
            r"numbers of shape \(8, 6, 6, 8\) .*, found \(8, 6, 6, 4\)",
        ),
        (lambda fields: fields.numpy(), "found ndarray"),
        (lambda fields: None, "found NoneType"),
        (lambda fields: fields * torch.inf, "expected finite values"),
    ],
)
def test_a_function_that_spoils_fields_is_refused(wrong, message, X):
    model = make(wrong)
    with pytest.raises(ValueError, match=f"augment: .*{message}") as raised:
        model.fit(X)
    assert "symmetries" not in str(raised.value)
    assert not hasattr(model, "encoder_")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("noise", "expected True, False, a function"),
        (NoiseTransformer, r"give an object of it, NoiseTransformer\(...\)"),
        (StandardScaler(), "belongs before this one, in a pipeline"),
        (None, "expected True"),
    ],
)
def test_what_is_no_augmentation_is_refused(wrong, message, X):
    with pytest.raises(ValueError, match=f"augment: .*{message}"):
        make(wrong).fit(X)


# Transformers -------------------------------------------------------------------------------------


def test_a_transformer_draws_anew_in_each_step_and_not_beside_them(X):
    fields = as_fields(X)
    augmentation = Augmentation(NoiseTransformer(noise=5.0), fields, 3)
    generator = torch.Generator().manual_seed(0)
    batch = torch.from_numpy(X)
    first, second = (augmentation.change(batch, generator) for _ in range(2))
    assert np.isclose(first, second).mean() < 1e-3
    again = augmentation.change(batch, torch.Generator().manual_seed(0))
    assert torch.equal(again, first)
    assert 4.5 < float((first - batch).std()) < 5.5
    beside = augmentation.beside(fields).read()
    np.testing.assert_array_equal(beside, augmentation.beside(fields).read())
    other = Augmentation(NoiseTransformer(noise=5.0), fields, 4).beside(fields).read()
    assert np.isclose(beside, other).mean() < 1e-3  # by the seed of the run
    kept = NoiseTransformer(noise=5.0, random_state=7)
    by_itself = [Augmentation(kept, fields, seed).beside(fields).read() for seed in (3, 4)]
    np.testing.assert_array_equal(*by_itself)
    assert not hasattr(kept, "seed_")  # a clone is fitted


OTHERS = [LeJEPA(), VICReg(), Reconstruction()]


@pytest.mark.parametrize(
    "objective",
    [
        JEPA(predictor_dim=12, predictor_depth=1),
        Supervised(),
        *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS),
    ],
    ids=lambda one: type(one).__name__,
)
def test_noise_in_all_objectives(objective, X):
    noisy = make(NoiseTransformer(noise=30.0), objective=objective)
    y = X.mean(axis=(1, 2, 3))
    expected = noisy.fit(X, y).transform(X)
    np.testing.assert_array_equal(clone(noisy).fit(X, y).transform(X), expected)
    bare = make(objective=objective).fit(X, y)
    assert not np.allclose(bare.transform(X), expected, rtol=1e-2)
    # Scaling is learned from what is seen.
    assert noisy.scaling_.softening > bare.scaling_.softening


def test_a_run_with_noise_resumes_to_the_same_end(X, tmp_path):
    noise = NoiseTransformer(noise=5.0)
    whole = make(noise, max_epochs=4).fit(X)

    class Break(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 3:
                raise ZeroDivisionError

    options = dict(checkpoint_dir=tmp_path, checkpoint_every=2, max_epochs=4)
    with pytest.raises(ZeroDivisionError):
        make(noise, callbacks=[Break], **options).fit(X)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    resumed = make(noise, **options).fit(X)
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))
    # Other noise is another run.
    make(NoiseTransformer(noise=6.0), **options | dict(max_epochs=1)).fit(X)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_run_with_another_function_of_the_same_name_is_another(X, tmp_path):
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, fields):
            return fields * self.factor

    def scaled(factor):
        return lambda fields: fields * factor

    found = []
    for each in (Scaled(1.0), Scaled(9.0), scaled(1.0), scaled(9.0), scaled(9.0)):
        model = make(each, max_epochs=1, checkpoint_dir=tmp_path).fit(X)
        found.append(model.transform(X))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[2], found[3])


def test_signals_have_noise_and_no_turns(rng):
    X = rng.normal(0, 30, size=(20, 24)).astype(np.float32)
    small = dict(patch_size=4, whiten=False)
    noisy = make(NoiseTransformer(noise=9.0), **small).fit(X)
    assert not np.allclose(noisy.transform(X), make(**small).fit(X).transform(X), rtol=1e-2)


def test_without_steps_noise_counts_for_the_scaling_alone(X, recwarn):
    noisy = make(NoiseTransformer(noise=30.0), max_epochs=0, whiten=False)
    noisy.set_params(batch_size=32, objective="jepa").fit(X)
    assert not [one for one in recwarn if "augment" in str(one.message)]
    assert noisy.scaling_ != make(max_epochs=0, whiten=False).fit(X).scaling_


# In a network that is trained end to end ----------------------------------------------------------


@pytest.mark.parametrize(
    "augment", [NoiseTransformer(noise=30.0), drawn], ids=["noise", "function"]
)
def test_with_a_backbone(augment, X):
    y = X.mean(axis=(1, 2, 3))
    parts = dict(hidden_dims=(8,), max_epochs=1, random_state=0, device="cpu")
    bare, noisy, again = (
        LightconeRegressor(
            backbone=SKATRTransformer(patch_size=2, embed_dim=12, depth=1, augment=one), **parts
        ).fit(X, y)
        for one in (True, augment, augment)
    )
    np.testing.assert_array_equal(noisy.predict(X), again.predict(X))
    assert not np.isclose(noisy.predict(X), bare.predict(X), rtol=1e-8).any()
    assert noisy.backbone_.augmentation_ == name_of(augment)
    if augment is not drawn:
        assert noisy.backbone_.scaling_ != bare.backbone_.scaling_


# What is said of it -------------------------------------------------------------------------------


def test_names():
    assert name_of(True) == "sky symmetries" and name_of(np.False_) == "none"
    assert name_of(drawn).startswith("sky symmetries, ") and name_of(drawn).endswith(".drawn")
    assert "functools.partial" in name_of(functools.partial(drawn))
    noise = NoiseTransformer(noise=np.arange(3.0), wedge="horizon")
    assert name_of(noise).startswith("sky symmetries, NoiseTransformer(noise=array of (3,), ")
    assert name_of(noise) == name_of(clone(noise)) and "wedge='horizon'" in name_of(noise)
    assert name_of(noise) != name_of(NoiseTransformer(noise=np.ones(3), wedge="horizon"))


def test_weights_say_it(X, tmp_path):
    model = make(NoiseTransformer(noise=5.0)).fit(X)
    assert model.augmentation_ == "sky symmetries, NoiseTransformer(noise=5.0)"
    model.save(tmp_path / "weights.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "weights.safetensors")
    assert loaded.augmentation_ == model.augmentation_
    assert make().fit(X).augmentation_ == "sky symmetries"
    # Those of before say nothing.
    old = SKATRTransformer(weights="mini-lr").fit(np.zeros((2, 14, 14, 90)) + np.arange(90.0))
    assert old.augmentation_ is None
    old.save(tmp_path / "again.safetensors")
    assert SKATRTransformer.load(tmp_path / "again.safetensors").augmentation_ is None


def test_a_model_file_holds_a_transformer_of_ours(X, tmp_path):
    model = make(NoiseTransformer(noise=5.0)).fit(X)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
    assert repr(loaded.augment) == repr(model.augment)


def test_a_model_file_leaves_a_function_out(X, tmp_path):
    model = make(drawn).fit(X)
    with pytest.warns(UserWarning, match="left out of .*augment"):
        save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
    assert loaded.augment is True and loaded.augmentation_ == model.augmentation_


def test_a_search_reaches_its_parameters(X):
    model = make(NoiseTransformer(noise=5.0)).set_params(augment__noise=7.0)
    assert model.augment.noise == 7.0
    cloned = clone(model)
    assert cloned.augment is not model.augment and cloned.augment.noise == 7.0
    with pytest.warns(NoEffectWarning, match="augment"):
        SKATRTransformer(weights="mini-lr", augment=drawn).fit(
            np.random.default_rng(0).normal(size=(2, 14, 14, 90))
        )
