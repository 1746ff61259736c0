"""The transformer's parameters: their number, their effect, and those of its objective."""

import ast
import inspect
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from skorch.callbacks import Callback

import skatr_sk
from skatr_sk import SKATRTransformer
from skatr_sk._checks import NoEffectWarning
from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import JEPA, BlockMask, Combined, Supervised, VICReg
from skatr_sk.summaries.masking import SHORT
from skatr_sk.summaries.objectives import OBJECTIVES

SIZES = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2)


def small(**parameters):
    defaults = dict(max_epochs=1, batch_size=16, device="cpu", random_state=0)
    return SKATRTransformer(**SIZES | defaults | parameters)


@pytest.fixture
def X(rng):
    return rng.normal(size=(24, 8, 6)).astype(np.float32)


@pytest.fixture
def path(X, tmp_path):
    SKATRTransformer(max_epochs=0, **SIZES, random_state=0).fit(X).save(tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


# Parameters ------------------------------------------------------------------------------------


def test_there_are_few_parameters_and_each_is_checked_and_documented():
    names = set(inspect.signature(SKATRTransformer).parameters)
    assert len(names) <= 33
    assert names == set(SKATRTransformer._parameters)
    before_attributes = SKATRTransformer.__doc__.partition("Attributes\n")[0]
    assert all(name in before_attributes for name in names)
    assert "{device}" not in before_attributes


def test_parameters_reach_a_searched_objective(X):
    y = X.mean(axis=(1, 2))
    pipe = Pipeline([("skatr", small(max_epochs=2)), ("head", Ridge())])
    grid = {"skatr__objective__ema_decay": [0.0, 1.0], "skatr__objective__masks": ["short"]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, y)
    found = search.best_estimator_["skatr"].objective
    assert isinstance(found, JEPA) and found.masks == "short"
    assert found.ema_decay == search.best_params_["skatr__objective__ema_decay"]
    # A moving target teaches something else than a fixed one.
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]
    assert pipe["skatr"].objective == "jepa"  # what was searched over is as it was
    by_hand = clone(pipe).set_params(**search.best_params_).fit(X, y)
    np.testing.assert_array_equal(search.predict(X), by_hand.predict(X))


def test_a_search_over_objectives(X):
    grid = {"skatr__objective": ["jepa", VICReg(region=0.4)]}
    pipe = Pipeline([("skatr", small()), ("head", Ridge())])
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, X.mean(axis=(1, 2)))
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0


def test_set_params_turns_a_name_into_its_object():
    skatr = SKATRTransformer().set_params(objective__ema_decay=0.9)
    assert repr(skatr) == "SKATRTransformer(objective=JEPA(ema_decay=0.9))"
    assert skatr.get_params()["objective__ema_decay"] == 0.9
    objective = skatr.objective
    assert skatr.set_params(objective__loss="l2", depth=3).objective is objective
    skatr.set_params(objective__region=0.3, objective="vicreg")  # in any order
    assert repr(skatr) == "SKATRTransformer(depth=3, objective=VICReg(region=0.3))"
    assert skatr.set_params(objective="jepa").objective == "jepa"  # as it was given
    with pytest.raises(ValueError, match=r"Invalid parameter 'region' for estimator JEPA\(\)"):
        SKATRTransformer().set_params(objective__region=0.3)
    with pytest.raises(ValueError, match="objective: expected .* did you mean 'vicreg'"):
        SKATRTransformer().set_params(objective="vcreg", objective__region=0.3)
    with pytest.raises(ValueError, match=r"objective: expected .* did you mean JEPA\(\)\?"):
        SKATRTransformer(objective=JEPA).fit(np.zeros((4, 8, 6)))


def test_an_objective_is_cloned_and_stored(X, tmp_path):
    skatr = small(objective=JEPA(ema_decay=0.5, predictor_depth=1), max_epochs=2).fit(X)
    cloned = clone(skatr)
    assert cloned.objective is not skatr.objective
    assert repr(cloned) == repr(skatr)
    np.testing.assert_array_equal(cloned.fit_transform(X), skatr.transform(X))
    joblib.dump(skatr, tmp_path / "skatr.joblib")
    loaded = joblib.load(tmp_path / "skatr.joblib")
    assert repr(loaded.get_params()) == repr(skatr.get_params())
    np.testing.assert_array_equal(loaded.transform(X), skatr.transform(X))
    plain = small(objective=JEPA(predictor_depth=1), max_epochs=2).fit_transform(X)
    assert not np.array_equal(plain, skatr.transform(X))


def test_objectives_are_told_apart_in_their_own_room_alone():
    """No ``objective == ...`` and no question for the kind of one elsewhere in the package."""
    package = Path(skatr_sk.__file__).parent
    names = {kind.__name__ for kind in OBJECTIVES.values()}
    names |= {"Combined", "Objective", "MaskedObjective", "RegionObjective"}
    found = []
    for path in package.rglob("*.py"):
        if path == package / "summaries" / "objectives" / "__init__.py":
            continue
        source = path.read_text(encoding="utf-8")
        if not any(name in source for name in (*names, "objective")):
            continue
        for node in ast.walk(ast.parse(source)):
            compared = isinstance(node, ast.Compare) and "objective" in ast.unparse(node.left)
            asked = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance"
            if not compared and not asked:
                continue
            text = ast.unparse(node)
            compared = compared and "is not None" not in text and "is True" not in text
            if compared or (asked and names & set(ast.unparse(node.args[1]).split(" | "))):
                found.append(f"{path.name}: {text}")
    assert found == []


# Without effect --------------------------------------------------------------------------------


OF_PRETRAINING = dict(
    augment=False,
    batch_size=2,
    callbacks=[Callback()],
    checkpoint_every=2,
    compile=True,
    learning_rate=0.1,
    max_epochs=0,
    n_workers=1,
    objective="vicreg",
    patience=3,
    validation_fraction=0.2,
    warmup=0.2,
    weight_decay=0.1,
)


@pytest.mark.parametrize("name", OF_PRETRAINING)
def test_with_weights_parameters_of_the_training_have_no_effect(name, X, path):
    message = rf"SKATRTransformer: no effect with weights=.*w\.safetensors'\)? of {name}; leave it"
    given = {name: OF_PRETRAINING[name]}
    with pytest.warns(NoEffectWarning, match=message) as caught:
        skatr = SKATRTransformer(weights=path, device="cpu", **given).fit(X)
    assert len(caught) == 1
    plain = SKATRTransformer(weights=path, device="cpu").fit(X)
    np.testing.assert_array_equal(skatr.transform(X), plain.transform(X))
    with pytest.warns(NoEffectWarning, match=message):
        SKATRTransformer.load(path, **given)


def test_all_of_them_are_in_one_warning(X, path, tmp_path):
    given = OF_PRETRAINING | dict(checkpoint_dir=tmp_path / "run", random_state=0)
    skatr = SKATRTransformer(weights=path, **given)
    with pytest.warns(NoEffectWarning, match=", ".join(["max_epochs", "batch_size"])) as caught:
        skatr.fit(X)
    (warning,) = caught
    assert all(name in str(warning.message) for name in [*OF_PRETRAINING, "checkpoint_dir"])
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("error::skatr_sk.NoEffectWarning")
class TestNoWarning:
    def test_at_the_defaults(self, X, path):
        small().fit(X)
        SKATRTransformer(max_epochs=0, **SIZES, random_state=0).fit(X)
        same = dict(objective=JEPA(), callbacks=[])  # the defaults in other words
        SKATRTransformer(max_epochs=0, **SIZES, random_state=0, **same).fit(X)
        SKATRTransformer(weights=path, **same).fit(X)
        for skatr in (SKATRTransformer(weights=path), SKATRTransformer.load(path)):
            for each in (skatr, clone(skatr)):
                each.fit(X).transform(X)

    def test_of_what_frozen_weights_are_used_with(self, X, path, tmp_path):
        used = dict(pooling="moments", device="cpu", cache=tmp_path / "cache", precision="float32")
        used |= dict(random_state=0, verbose=1) | SIZES
        skatr = SKATRTransformer.load(path, **used).fit(X)
        y = X.mean(axis=(1, 2))
        for frozen in (skatr, FrozenEstimator(skatr), SKATRTransformer(weights=path, **used)):
            pipe = make_pipeline(frozen, Ridge())
            clone(pipe).fit(X, y).predict(X)
        skatr.set_params(pooling="max", cache=None).transform(X)

    def test_of_what_has_an_effect(self, X, tmp_path):
        small(checkpoint_dir=tmp_path, checkpoint_every=2, patience=2).fit(X)
        small(objective=JEPA(predictor_dim=24, predictor_depth=1)).fit(X)
        small(objective=JEPA(predictor_depth=0)).fit(X)

        class NotInMemory(ArrayFields):
            in_memory = False

        small(n_workers=1).fit(NotInMemory(X))


@pytest.mark.parametrize(
    ("given", "beside", "name"),
    [
        (dict(checkpoint_every=2), "checkpoint_dir=None", "checkpoint_every"),
        (dict(patience=2, validation_fraction=0), "validation_fraction=0", "patience"),
        (dict(n_workers=1), "fields in memory", "n_workers"),
        (dict(max_epochs=0, compile=True), "max_epochs=0", "(.*, )?compile"),
        (dict(max_epochs=0, warmup=0.3), "max_epochs=0", "(.*, )?warmup"),
    ],
)
def test_what_needs_another_parameter(given, beside, name, X):
    said = f"no effect with {beside} of {name}; leave (it|them) out"
    with pytest.warns(NoEffectWarning, match=said):
        found = small(**given).fit(X)
    del given[name.removeprefix("(.*, )?")]
    np.testing.assert_array_equal(found.transform(X), small(**given).fit_transform(X))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (dict(augment=False), "augment"),
        (dict(objective=JEPA(masks=BlockMask(2, (0.2, 0.4), aspect=(1.0, 2.0)))), "aspect"),
        (dict(objective=VICReg(expander_dim=1, covariance=2.0)), "covariance"),
    ],
)
def test_what_signals_or_a_single_number_leave_without_effect(given, name, rng):
    signals = rng.normal(size=(24, 12)).astype(np.float32)
    with pytest.warns(NoEffectWarning, match=f"no effect with .* of {name}; leave it out"):
        small(**given).fit(signals)


def test_a_warning_made_an_error_changes_nothing(X, path):
    skatr = SKATRTransformer(weights=path).fit(X)
    before = skatr.transform(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        with pytest.raises(NoEffectWarning):
            skatr.set_params(batch_size=2).fit(X[:, :4])
    assert skatr.field_shape_in_ == (8, 6)
    np.testing.assert_array_equal(skatr.set_params(batch_size=32).transform(X), before)


# The mean of the sky ---------------------------------------------------------------------------


def test_without_the_mean_of_the_sky_no_signal_changes_a_summary(rng, tmp_path):
    cones = rng.normal(size=(20, 4, 4, 6)).astype(np.float32)
    signal = 30 * rng.normal(size=(20, 1, 1, 6)).astype(np.float32)
    plain, blind = (small(subtract_mean=flag).fit(cones) for flag in (False, True))
    assert not np.allclose(plain.transform(cones), plain.transform(cones + signal), atol=1e-3)
    np.testing.assert_allclose(
        blind.transform(cones), blind.transform(cones + signal), atol=1e-4, rtol=1e-4
    )
    blind.save(tmp_path / "blind.safetensors")
    again = SKATRTransformer(weights=tmp_path / "blind.safetensors").fit(cones)
    assert again.scaling_.subtract_mean
    np.testing.assert_array_equal(again.transform(cones), blind.transform(cones))


def test_weights_that_know_the_mean_do_not_lose_it_in_silence(X, path):
    with pytest.raises(ValueError, match="subtract_mean: expected False as in the weights file"):
        SKATRTransformer(weights=path, subtract_mean=True).fit(X)


def test_a_signal_has_no_sky_to_take_the_mean_over(rng):
    with pytest.raises(ValueError, match="subtract_mean: expected False with signals"):
        SKATRTransformer(subtract_mean=True, max_epochs=0).fit(rng.normal(size=(20, 12)))


def test_fluctuations_about_the_mean_of_the_sky(rng, tmp_path):
    cones = rng.normal(size=(20, 4, 4, 6)).astype(np.float32)
    apart = small(embedding="fluctuations").fit(cones)
    apart.save(tmp_path / "apart.safetensors")
    again = SKATRTransformer(weights=tmp_path / "apart.safetensors").fit(cones)
    np.testing.assert_array_equal(again.transform(cones), apart.transform(cones))
    for fields in (rng.normal(size=(20, 12)), cones[:, :1, :1]):
        wrong = SKATRTransformer(embedding="fluctuations", patch_size="auto", max_epochs=0)
        with pytest.raises(ValueError, match="embedding: expected 'moments' or 'linear' with"):
            wrong.fit(fields)


def test_axial_attention_of_light_cones(rng, tmp_path):
    cones = rng.normal(size=(20, 4, 4, 6)).astype(np.float32)
    axial = small(attention="axial", depth=2, max_epochs=1).fit(cones)
    axial.save(tmp_path / "axial.safetensors")
    again = SKATRTransformer(weights=tmp_path / "axial.safetensors").fit(cones)
    assert again.architecture_.attention == "axial"
    np.testing.assert_array_equal(again.transform(cones), axial.transform(cones))
    same = dict(depth=2, max_epochs=0, whiten=False)
    full, other = small(**same).fit(cones), small(**same, attention="axial").fit(cones)
    for one, two in zip(full.encoder_.parameters(), other.encoder_.parameters(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.abs(full.transform(cones) - other.transform(cones)).max() > 0.01
    full.save(tmp_path / "full.safetensors")
    with pytest.raises(ValueError, match="attention: expected 'full' as in the weights file, fou"):
        SKATRTransformer(weights=tmp_path / "full.safetensors", attention="axial").fit(cones)
    axial.set_params(warm_start=True).fit(cones)
    assert len(axial.history_) == 2
    axial.set_params(attention="full")
    with pytest.raises(ValueError, match="attention: expected 'axial' as in what was fitted"):
        axial.fit(cones)


@pytest.mark.parametrize("shape", [(20, 12), (20, 4, 6), (20, 4, 4, 2), (20, 2, 2, 6)])
def test_axial_attention_takes_columns_and_slices(shape, rng):
    wrong = SKATRTransformer(attention="axial", patch_size=2, max_epochs=0)
    with pytest.raises(
        ValueError, match="attention: expected 'full' but for light cones of several"
    ):
        wrong.fit(rng.normal(size=shape))


def test_axial_attention_takes_a_block_for_each_axis(rng):
    wrong = SKATRTransformer(attention="axial", patch_size=2, depth=1, max_epochs=0)
    with pytest.raises(ValueError, match="depth: expected at least 2, a block for each axis"):
        wrong.fit(rng.normal(size=(20, 4, 4, 6)))


@pytest.mark.parametrize("predictor_depth", [0, 1])
def test_axial_attention_takes_masks_of_whole_columns(predictor_depth, rng):
    cones = rng.normal(size=(20, 4, 4, 6)).astype(np.float32)
    masks = [SHORT, BlockMask(n_blocks=2, scale=(0.3, 0.4), depth=[0.5, 1.0])]
    objective = JEPA(masks=masks, predictor_depth=predictor_depth)
    wrong = small(attention="axial", objective=objective, depth=2)
    with pytest.raises(ValueError, match=r"objective__masks: expected .*whole line.*\(0.5, 1.0\)"):
        wrong.fit(cones)
    wrong.set_params(attention="full").fit(cones)
    whole = BlockMask(n_blocks=2, scale=[0.3, 0.4], depth=[1.0, 1.0])
    wrong.set_params(attention="axial", objective__masks=whole).fit(cones)


@pytest.mark.parametrize(
    "objective",
    [
        JEPA(pooled_weight=0.5),
        "lejepa",
        VICReg(),
        "reconstruction",
        "supervised",
        Combined(objectives=[("jepa", JEPA()), ("labels", Supervised())]),
    ],
    ids=lambda objective: getattr(type(objective), "__name__", objective),
)
def test_every_objective_takes_axial_attention(objective, rng):
    cones = rng.normal(size=(20, 4, 4, 6)).astype(np.float32)
    axial = small(attention="axial", objective=objective, depth=2, embedding="fluctuations")
    assert np.isfinite(axial.fit(cones, cones.mean(axis=(1, 2, 3))).transform(cones)).all()


# The length of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_rows", "epochs"), [(1, 120), (32, 120), (206, 18), (900, 5), (20_000, 1)]
)
def test_few_fields_are_visited_more_often(n_rows, epochs):
    skatr = SKATRTransformer(max_epochs="auto", batch_size=32)
    assert skatr._resolved(n_rows).max_epochs == epochs
    assert skatr.max_epochs == "auto"


@pytest.mark.slow
def test_auto_is_the_number_that_it_stands_for(X):
    left = small(max_epochs="auto").fit(X)
    given = small(max_epochs=len(left.history_)).fit(X)
    assert len(left.history_) == 60  # 120 steps of 2 batches
    np.testing.assert_array_equal(left.transform(X), given.transform(X))


def test_the_published_settings_are_one_word():
    paper = SKATRTransformer.published(embed_dim=360)
    assert (paper.embed_dim, paper.depth, paper.max_epochs) == (360, 4, 1000)
    assert (paper.embedding, paper.brightness_range) == ("linear", (-120.0, -1.0))
    assert paper.objective.ema_decay == 0.9997 and not paper.objective.slice_targets
    architecture = paper._architecture_for((28, 28, 470), paper.objective)
    assert architecture.n_tokens == 2303
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        for max_epochs in (0, 1):
            SKATRTransformer.published(max_epochs=max_epochs)._warn_without_effect()


def test_a_warm_start_does_not_ignore_a_size_that_is_a_default_again():
    X = np.random.default_rng(0).normal(size=(8, 4, 4, 6)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, max_epochs=0, device="cpu", random_state=0)
    model = SKATRTransformer(**small, warm_start=True).fit(X).fit(X)
    with pytest.raises(ValueError, match="embed_dim: expected 8 as in what was fitted, found 96"):
        model.set_params(embed_dim=96).fit(X)
