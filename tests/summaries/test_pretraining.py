"""Pre-training: its steps, what it learns, collapse, resumed runs, and simulated light cones."""

import copy
import json
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

from skatr_sk import (
    CollapseWarning,
    LightconeRegressor,
    NoEffectWarning,
    SimulatedLightcones,
    SKATRTransformer,
    make_lightcones,
)
from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import JEPA, Reconstruction, Supervised, VICReg, vit
from skatr_sk.summaries.objectives import as_objective
from skatr_sk.summaries.pretraining import _identity
from skatr_sk.summaries.vit import Block
from skatr_sk.training.identity import identity_of
from tests.gaussian_fields import gaussian_fields, ridge_probe
from tests.training.runs import Act, assert_same_run, raising, signals, transformer, without_seconds


class Steps(Callback):
    """Hands out the learning rate of each step."""

    def __init__(self, note):
        self.note = note

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.note(net.optimizer_.param_groups[0]["lr"])


def run(n=23, **parameters):
    """Train on n signals; return the learning rates of all steps."""
    fields = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    rates = []
    defaults = dict(
        patch_size=2,
        embed_dim=8,
        depth=1,
        n_heads=2,
        objective=JEPA(predictor_dim=8, predictor_depth=1),
        batch_size=4,
        max_epochs=3,
        validation_fraction=0.25,
        learning_rate=0.02,
        device="cpu",
        callbacks=[Steps(rates.append)],
        random_state=0,
    )
    SKATRTransformer(**defaults | parameters).fit(fields)
    return rates


def test_the_learning_rate_moves_once_a_step():
    # Of 23 signals 6 validate: 17 train, in 5 batches, 3 times.
    rates = run(warmup=0.2)
    assert len(rates) == 15
    middle = (np.arange(15) + 0.5) / 15
    falling = 0.01 * (1 + np.cos(np.pi * (middle - 0.2) / 0.8))
    np.testing.assert_allclose(
        rates, np.where(middle < 0.2, 0.02 * middle / 0.2, falling), rtol=1e-12
    )


def test_a_run_of_a_single_step_learns():
    (rate,) = run(batch_size=64, max_epochs=1)
    assert rate > 0.005


# What a run depends on -------------------------------------------------------------------------


def test_auto_trains_and_summarises_wide_tokens_in_bf16_where_that_is_faster(monkeypatch):
    """The same numbers as by name, in steps as in summaries."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True, raising=False)
    fields = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    options = dict(patch_size=1, embed_dim=64, depth=1, batch_size=4, max_epochs=1, device="cpu")
    options |= dict(embedding="linear", validation_fraction=0, cache=None, random_state=0)
    fitted = {
        given: SKATRTransformer(**options, precision=given).fit(fields)
        for given in ("auto", "bf16", "float32")
    }
    found = {given: weights_of(skatr) for given, skatr in fitted.items()}
    assert apart(found["auto"], found["bf16"]) == 0 < apart(found["auto"], found["float32"])
    skatr = fitted["auto"]
    lowered = skatr.transform(fields)
    assert np.array_equal(lowered, skatr.set_params(precision="bf16").transform(fields))
    assert not np.array_equal(lowered, skatr.set_params(precision="float32").transform(fields))


def identity(objective, seed=0, **parameters):
    fields = ArrayFields(np.arange(32.0, dtype=np.float32).reshape(4, 8))
    skatr = SKATRTransformer(objective=objective, **{"checkpoint_dir": "here"} | parameters)
    pooling = skatr._pooling_in_training(fields.shape[1:])
    of_data = _identity(as_objective(objective), fields, None, pooling, None)
    return json.loads(skatr._checkpoint(seed, **of_data).run)


def test_the_objectives_parameters_are_part_of_a_run():
    plain = identity("jepa")
    assert identity(JEPA()) == plain  # the name is short for it
    others = [
        JEPA(ema_decay=0.5),
        JEPA(masks="short"),
        Reconstruction(),
        VICReg(),
        VICReg(region=0.2),
    ]
    found = [plain, *map(identity, others)]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert identity("jepa", seed=1) != plain != identity("jepa", learning_rate=0.1)


def test_what_does_not_change_the_result_is_no_part_of_a_run(tmp_path):
    other = dict(verbose=1, device="cpu", checkpoint_dir=tmp_path, checkpoint_every=2)
    other |= dict(cache=None, n_workers=1, callbacks=[], compile=True)
    for objective in ("jepa", "vicreg", "reconstruction"):
        assert identity(objective, **other) == identity(objective)
    for objective in ("jepa", "vicreg", "lejepa", "reconstruction"):
        assert identity(objective, pooling="max") == identity(objective)
    # But what labels are learned from is pooled as `transform` pools.
    assert identity(Supervised(), pooling="max") != identity(Supervised())
    assert identity(Supervised(), pooling="tokens") == identity(Supervised(), pooling="mean")


def test_a_checkpoint_of_another_objective_is_another_file(tmp_path):
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1, max_epochs=1)
    run(**folder)
    for n_files, changed in ((2, dict(ema_decay=0.5)), (3, dict(masks="short"))):
        objective = JEPA(predictor_dim=8, predictor_depth=1, **changed)
        assert len(run(**folder, objective=objective)) == 5
        assert len(list(tmp_path.iterdir())) == n_files
    assert run(**folder) == []  # done before


# Where it begins -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first_fit():
    return transformer(pooling="max").fit(signals())


@pytest.fixture
def saved(first_fit, tmp_path):
    """A fitted transformer and its file, which a test may change."""
    first_fit.save(tmp_path / "w.safetensors")
    return copy.deepcopy(first_fit), tmp_path / "w.safetensors"


def weights_of(fitted):
    return {k: v.clone() for k, v in fitted.encoder_.state_dict().items()}


def apart(one, other):
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def test_a_second_fit_goes_on(saved):
    """Not from random weights, on other light cones, with the scaling of the first."""
    first, _ = saved
    before, scaling, history = weights_of(first), first.scaling_, first.history_
    again = first.set_params(warm_start=True, max_epochs=2, learning_rate=1e-5)
    again.fit(5 + 3 * signals(seed=1))
    assert 0 < apart(weights_of(again), before) < 1e-3
    assert again.scaling_ == scaling
    assert [row["epoch"] for row in again.history_] == [1, 2, 3, 4, 5, 6]
    assert [row["kept"] for row in again.history_] == [False] * 5 + [True]
    assert without_seconds(again.history_[:3]) == without_seconds(history[:3])
    assert not any(p.requires_grad for p in again.encoder_.parameters())
    assert again.encoder_.training is False


def test_without_it_a_second_fit_begins_anew(saved):
    first, _ = saved
    first.set_params(max_epochs=1).fit(signals())
    assert_same_run(first, transformer(max_epochs=1).fit(signals()))


def test_weights_are_where_it_begins(saved):
    """As a second fit of the transformer that saved them."""
    first, path = saved
    parameters = dict(warm_start=True, max_epochs=2, random_state=5)
    from_file = transformer(weights=path, **parameters).fit(signals(seed=1))
    assert from_file.pooling_ == "max"
    assert_same_run(from_file, first.set_params(**parameters).fit(signals(seed=1)))
    # A clone begins with the weights again, and the transformer itself goes on.
    assert_same_run(clone(from_file).fit(signals(seed=1)), from_file)
    assert len(from_file.fit(signals(seed=1)).history_) == 8


def test_sizes_are_those_of_the_weights(saved):
    _, path = saved
    fitted = SKATRTransformer(
        weights=path, warm_start=True, max_epochs=1, objective=VICReg(), random_state=0
    ).fit(signals())
    assert fitted.architecture_.embed_dim == 8
    with pytest.raises(ValueError, match="embed_dim: expected 8 as in the weights file"):
        transformer(weights=path, warm_start=True, embed_dim=16).fit(signals())
    with pytest.raises(ValueError, match=r"X: expected fields of shape \(12,\)"):
        transformer(weights=path, warm_start=True).fit(signals()[:, :8])
    wrong = clone(fitted).set_params(objective="jepa", objective__predictor_dim=1)
    with pytest.raises(ValueError, match="objective__predictor_dim"):
        wrong.fit(signals())


def test_an_error_leaves_the_earlier_fit(saved):
    first, _ = saved
    before, history = weights_of(first), first.history_
    first.set_params(warm_start=True, callbacks=[Act("batch", raising(ZeroDivisionError()), at=4)])
    with pytest.raises(ZeroDivisionError):
        first.fit(signals())
    assert first.history_ is history and apart(weights_of(first), before) == 0
    assert not any(p.requires_grad for p in first.encoder_.parameters())


def test_it_resumes_from_where_it_stopped(saved, tmp_path):
    _, path = saved
    parameters = dict(weights=path, warm_start=True, max_epochs=3)
    whole = transformer(**parameters).fit(signals(seed=1))
    kept = transformer(**parameters, checkpoint_dir=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        cut = Act("batch", raising(ZeroDivisionError()), at=5)
        kept.set_params(callbacks=[cut]).fit(signals(seed=1))
    assert_same_run(clone(kept).set_params(callbacks=None).fit(signals(seed=1)), whole)
    # Other weights under the same name are another run.
    transformer(random_state=9, max_epochs=1).fit(signals()).save(path)
    other = clone(kept).set_params(callbacks=None).fit(signals(seed=1))
    assert len(list((tmp_path / "run").glob("checkpoint-*.safetensors"))) == 2
    assert apart(weights_of(other), weights_of(whole)) > 0


@pytest.mark.parametrize(
    "parts", [dict(scale=2.0), dict(criterion=lambda self: None)], ids=["attribute", "method"]
)
def test_an_objective_of_ones_own_is_told_by_its_content(parts):
    fields = ArrayFields(signals())
    one, other, changed = (
        type("Mine", (JEPA,), {"scale": 1.0} | more)() for more in ({}, {}, parts)
    )
    told = [_identity(each, fields, None, "mean", None) for each in (one, other, changed)]
    assert told[0] == told[1] != told[2]


def test_it_warns_of_nothing_that_has_an_effect(saved):
    _, path = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        transformer(weights=path, warm_start=True, warmup=0.2, max_epochs=1).fit(signals())


def test_labels_are_asked_for_where_they_count(saved):
    _, path = saved
    learner = transformer(weights=path, warm_start=True, objective=Supervised(), max_epochs=1)
    assert learner.__sklearn_tags__().target_tags.required
    learner.fit(signals(), signals()[:, 0])
    with pytest.raises(ValueError, match="y"):
        learner.fit(signals())


def test_a_backbone_is_its_weights_and_trains_with_the_head(saved):
    """Whatever it would do in a fit of its own."""
    _, path = saved
    y = signals()[:, 0]
    options = dict(hidden_dims=(8,), max_epochs=1, random_state=0)
    plain = LightconeRegressor(backbone=SKATRTransformer(weights=path), **options).fit(signals(), y)
    warm = SKATRTransformer(weights=path, warm_start=True)
    with pytest.warns(NoEffectWarning, match="of warm_start"):
        fitted = LightconeRegressor(backbone=warm, **options).fit(signals(), y)
    np.testing.assert_array_equal(plain.predict(signals()), fitted.predict(signals()))


# Compiled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["jepa", "vicreg"])
def test_the_blocks_are_compiled_for_the_steps_alone(objective, monkeypatch):
    seen = []

    def stand_in(block, *arguments):
        seen.append((block.training, torch.is_grad_enabled()))
        return Block._mapped(block, *arguments)

    monkeypatch.setattr(vit, "_compiled_block", lambda: stand_in)
    X, parameters = signals(), dict(objective=objective, max_epochs=1)
    plain = transformer(**parameters).fit(X)
    assert not seen
    compiled = transformer(**parameters, compile=True).fit(X)
    assert all(training for training, _ in seen)
    # The averaged encoder of a JEPA needs no gradient.
    assert {gradient for _, gradient in seen} == ({True, False} if objective == "jepa" else {True})
    np.testing.assert_array_equal(compiled.transform(X), plain.transform(X))
    assert identity_of(compiled.encoder_) == identity_of(plain.encoder_)
    n_seen = len(seen)
    compiled.adapt(X)
    assert len(seen) > n_seen
    n_seen = len(seen)
    compiled.set_params(compile=False, warm_start=True).fit(X)
    assert len(seen) == n_seen


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_compiled_training_is_the_same_within_rounding(device, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    X, options = signals(), dict(device=device, whiten=False, precision="float32")
    plain, compiled = (transformer(**options, compile=each).fit(X) for each in (False, True))
    losses = [[row["train_loss"] for row in each.history_] for each in (plain, compiled)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    np.testing.assert_allclose(compiled.transform(X), plain.transform(X), atol=0.02)


# What is learned -------------------------------------------------------------------------------


# Found on seeds 0 to 2; the seeds below were not used to find it. On fields of 64 patches of 64
# voxels: in smaller patches the local covariance says it all, and random features hold that.
RECIPE = dict(
    patch_size=4,
    embed_dim=48,
    depth=2,
    objective=JEPA(predictor_dim=24, predictor_depth=2, ema_decay=(0.99, 1.0)),
    learning_rate=6e-3,
    batch_size=32,
    validation_fraction=0.05,
    device="cpu",
)


def probe_all(n, seed, max_epochs):
    """Mean R2 of a ridge probe on trained and untrained summaries, and on mean and variance.

    Pre-training sees the first half of the fields, without labels, and the probe is fitted on it;
    it is judged on the other half.
    """
    X, y = gaussian_fields(n, seed)
    start = time.process_time()
    trained = SKATRTransformer(**RECIPE, max_epochs=max_epochs, random_state=seed).fit(X[: n // 2])
    cpu_seconds = time.process_time() - start
    untrained = SKATRTransformer(**RECIPE, max_epochs=0, random_state=seed).fit(X[: n // 2])
    moments = np.column_stack([X.mean(axis=(1, 2, 3)), X.var(axis=(1, 2, 3))])
    features = (trained.transform(X), untrained.transform(X), moments)
    return [ridge_probe(Z, y).mean() for Z in features], cpu_seconds


@pytest.mark.slow
def test_jepa_beats_random_weights_short():
    (trained, untrained, moments), _ = probe_all(2000, seed=10, max_epochs=10)
    assert trained > untrained + 0.1
    assert trained > moments + 0.4


@pytest.mark.slow
def test_jepa_beats_random_weights(capsys):
    """The whole problem: 2000 fields, three seeds, three CPU minutes."""
    gains, total = [], 0.0
    for seed in (10, 11, 12):
        (trained, untrained, moments), cpu_seconds = probe_all(2000, seed, max_epochs=26)
        gains.append(trained - untrained)
        total += cpu_seconds
        with capsys.disabled():
            print(
                f"\nseed {seed}: mean R2 of JEPA {trained:.3f}, random weights {untrained:.3f}, "
                f"mean and variance {moments:.3f}; {cpu_seconds:.0f} CPU s"
            )
        assert trained > moments + 0.5
    with capsys.disabled():
        print(
            f"\ngain {np.mean(gains):.3f} +- {np.std(gains, ddof=1):.3f}, {total:.0f} CPU s in all"
        )
    assert min(gains) > 0.1
    assert total < 300  # 180 where nothing else computes


COLLAPSE = dict(
    # No predictor, a target without lag, and nothing that asks of summaries to differ.
    embedding="linear",
    objective=JEPA(
        predictor_depth=0,
        ema_decay=0.0,
        normalize_targets=False,
        slice_targets=False,
        regions_weight=0,
    ),
    max_epochs=6,
    validation_fraction=0.2,
    random_state=0,
)


def test_collapse_without_protections_is_seen_and_warned_of():
    X, _ = gaussian_fields(600, seed=50)
    with pytest.warns(CollapseWarning, match=r"effective rank fell from .*\(ema_decay near 1, "):
        skatr = SKATRTransformer(**(RECIPE | COLLAPSE)).fit(X)
    last = skatr.history_[-1]
    assert last["effective_rank_at_init"] > 20
    assert last["effective_rank"] < 3


@pytest.mark.slow
def test_collapse_of_few_fields_is_seen():
    X, _ = gaussian_fields(120, seed=51)
    few = COLLAPSE | dict(validation_fraction=0.1, max_epochs=25)
    with pytest.warns(CollapseWarning):
        SKATRTransformer(**(RECIPE | few)).fit(X)


@pytest.mark.slow
def test_protections_keep_the_rank_and_the_peace():
    X, _ = gaussian_fields(600, seed=50)
    healthy = dict(max_epochs=6, validation_fraction=0.2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        skatr = SKATRTransformer(**(RECIPE | healthy)).fit(X)
    assert skatr.history_[-1]["effective_rank"] > 10


# Light cones that are simulated while the encoder trains on them -------------------------------


CONES = SimulatedLightcones(6, field_shape=(4, 4, 30), redshift_min=25, random_state=0)


@pytest.mark.slow
def test_bf16_keeps_the_probe_score():
    """In summaries of bundled weights and in a pre-training, on simulated light cones."""
    X, y = make_lightcones(160, field_shape=(14, 14, 90), block=(2, 2, 5), random_state=0)
    options = dict(max_epochs=2, validation_fraction=0, cache=None, device="cpu", random_state=0)
    for given, most in (({"weights": "mini-lr"}, 0.002), (options, 0.02)):
        scores = [
            ridge_probe(SKATRTransformer(**given, precision=precision).fit_transform(X), y).mean()
            for precision in ("float32", "bf16")
        ]
        assert abs(scores[0] - scores[1]) < most, scores


def of_cones(**parameters):
    small = dict(patch_size=(2, 2, 5), embed_dim=12, depth=1, n_heads=2, max_epochs=1)
    small |= dict(objective="lejepa", batch_size=4)  # which trains the soonest
    small |= dict(device="cpu", random_state=0)
    return SKATRTransformer(**small | parameters)


@pytest.fixture(scope="module")
def stored():
    return np.asarray(CONES)


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_equals_that_on_the_stored_cones(n_workers, stored):
    # Without a split: what is not simulated yet is split by its seed, not by its content.
    simulated = of_cones(validation_fraction=0, n_workers=n_workers).fit(CONES)
    in_memory = of_cones(validation_fraction=0).fit(stored)
    losses = [[row["train_loss"] for row in each.history_] for each in (simulated, in_memory)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(
        simulated.transform(CONES), in_memory.transform(stored), rtol=1e-4, atol=1e-5
    )


def test_a_pass_simulates_each_cone_once(monkeypatch):
    """Training rows once an epoch; what is looked at besides is held in memory."""
    simulated = []
    original = SimulatedLightcones._read

    def counting(self, rows):
        simulated.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(SimulatedLightcones, "_read", counting)
    of_cones(validation_fraction=0, brightness_range=(-120, 0), max_epochs=2).fit(CONES)
    once = 2  # for constant fields, and for the effective rank
    assert np.bincount(simulated).tolist() == [2 + once] * len(CONES)


def test_in_a_pipeline(stored):
    head = LightconeRegressor(hidden_dims=(8,), max_epochs=2, device="cpu", random_state=0)
    pipe = make_pipeline(of_cones(), head)
    pipe.fit(CONES, CONES.target)
    np.testing.assert_allclose(pipe.predict(CONES), pipe.predict(stored), rtol=1e-3, atol=1e-3)
