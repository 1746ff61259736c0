"""What users do, on a GPU: it comes to an end, and to what a processor makes of the same weights.

Without a card, a pretended one shows whether all tensors are where they are computed with
(tests/pretended_gpu.py).
"""

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from skorch.callbacks import EpochTimer

from skatr_sk import (
    HeadSearchCV,
    LightconeRegressor,
    NoiseTransformer,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
)
from skatr_sk.summaries import JEPA, Combined, LeJEPA, Reconstruction, Supervised, VICReg
from tests.training.runs import Act

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")]
RNG = np.random.default_rng(0)
FIELDS = RNG.normal(-20, 30, size=(40, 4, 4, 6)).astype(np.float32)
LABELS = FIELDS.reshape(40, -1)[:, :2].astype(np.float64)
SUMMARIES = RNG.normal(size=(60, 5)).astype(np.float32)
TARGETS = SUMMARIES[:, :2] + 0.1 * RNG.normal(size=(60, 2))
OBJECTIVES = {
    "jepa": JEPA(predictor_dim=8, predictor_depth=1),
    "jepa with regions": JEPA(predictor_dim=8, predictor_depth=1, regions_weight=1.0),
    "lejepa": LeJEPA(),
    "vicreg": VICReg(),
    "supervised": Supervised(),
    "reconstruction": Reconstruction(predictor_dim=8, predictor_depth=1),
    "combined": Combined(
        objectives=[("jepa", JEPA(predictor_dim=8, predictor_depth=1)), ("y", Supervised())]
    ),
}


def transformer(**parameters):
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=2, batch_size=8)
    small |= dict(objective="lejepa", device="cuda", precision="float32", random_state=0)
    return SKATRTransformer(**small | parameters)


def head(kind, **parameters):
    small = dict(hidden_dims=(8,), max_epochs=3, learning_rate=1e-2, batch_size=16)
    small |= dict(device="cuda", precision="float32", random_state=0)
    small |= dict(n_blocks=2, n_bins=4) if kind is PosteriorEstimator else {}
    return kind(**small | parameters)


def assert_as_on_the_processor(model, method):
    """Hold what a model computes on the GPU to what the same weights give on the processor."""
    there = _parts(method(model))
    weights = [v for v in vars(model).values() if isinstance(v, torch.nn.Module)]
    assert {p.device.type for module in weights for p in module.parameters()} <= {"cpu"}
    here = _parts(method(model.set_params(device="cpu")))
    model.set_params(device="cuda")
    for one, other in zip(there, here, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def _parts(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.fixture(autouse=True)
def _something_was_on_the_card(monkeypatch):
    moved, move = set(), torch.nn.Module.to

    def seen(module, *args, **kwargs):
        found = move(module, *args, **kwargs)
        moved.update(each.device.type for each in found.parameters())
        return found

    monkeypatch.setattr(torch.nn.Module, "to", seen)
    yield
    assert "cuda" in moved


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective(objective):
    skatr = transformer(objective=OBJECTIVES[objective], validation_fraction=0.2)
    skatr.fit(FIELDS, LABELS)
    assert np.isfinite([row["train_loss"] for row in skatr.history_]).all()
    assert_as_on_the_processor(skatr.set_params(cache=None), lambda model: model.transform(FIELDS))


@pytest.mark.parametrize(
    "parameters",
    [
        dict(attention="axial", depth=2),
        dict(pooling="tokens"),
        dict(pooling="slices", whiten=True),
        dict(augment=NoiseTransformer(noise=5.0, random_state=0)),
        dict(subtract_mean=True),
    ],
    ids=str,
)
def test_ways_of_a_transformer(parameters):
    skatr = transformer(**parameters).fit(FIELDS)
    assert_as_on_the_processor(skatr.set_params(cache=None), lambda model: model.transform(FIELDS))


def test_what_is_done_with_summaries():
    skatr = transformer().fit(FIELDS).set_params(cache=None)
    assert_as_on_the_processor(skatr, lambda model: model.novelty(FIELDS))
    assert np.isfinite(skatr.adapt(FIELDS).transform(FIELDS)).all()


def test_bundled_weights():
    X = load_lightcones().data[:8]
    skatr = SKATRTransformer(weights="mini-lr", device="cuda", precision="float32", cache=None)
    assert_as_on_the_processor(skatr.fit(X), lambda model: model.transform(X))


def test_a_module_of_ones_own_loop():
    module = transformer().fit(FIELDS).as_module().to("cuda")
    found = module(torch.from_numpy(FIELDS).to("cuda"))
    assert found.device.type == "cuda" and torch.isfinite(found).all()


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    whole = transformer(max_epochs=4).fit(FIELDS)
    kept = transformer(max_epochs=4, checkpoint_dir=tmp_path, checkpoint_every=1)
    with pytest.raises(ZeroDivisionError):
        kept.set_params(callbacks=[Act("epoch", lambda net: 1 / 0, at=3)]).fit(FIELDS)
    epochs = []
    count = Act("epoch", lambda net: epochs.append(len(net.history)))
    kept.set_params(callbacks=[count]).fit(FIELDS)
    assert epochs == [3, 4]
    for one, other in zip(kept.history_, whole.history_, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)


def test_light_cones_that_are_simulated_while_it_trains():
    cones = SimulatedLightcones(
        8, field_shape=(4, 4, 30), redshift_min=25, random_state=0, device="cuda"
    )
    skatr = transformer(patch_size=(2, 2, 10), max_epochs=1).fit(cones)
    assert np.isfinite(skatr.transform(cones)).all()


@pytest.mark.parametrize(
    "parameters",
    [
        dict(n_members=3),
        dict(n_members=2, hidden_dims="auto"),
        dict(loss="gaussian", n_members=2, target_bounds=[[-200, 200]] * 2),
        dict(backbone="cnn", hidden_dims=(4,)),
    ],
    ids=str,
)
def test_regressors(parameters):
    X, y = (FIELDS, LABELS) if "backbone" in parameters else (SUMMARIES, TARGETS)
    model = head(LightconeRegressor, **parameters)
    model.fit(X, y, sample_weight=np.linspace(0.5, 1, len(y)))
    assert_as_on_the_processor(model, lambda model: model.predict(X))


@pytest.mark.parametrize("kind", [LightconeRegressor, PosteriorEstimator])
def test_members_are_what_they_are_alone(kind):
    """With callbacks they train one after another; the noise of dropout is the same."""
    at_once = head(kind, n_members=3, dropout=0.2).fit(SUMMARIES, TARGETS)
    alone = head(kind, n_members=3, dropout=0.2, callbacks=[EpochTimer()]).fit(SUMMARIES, TARGETS)
    found, wanted = at_once.predict(SUMMARIES), alone.predict(SUMMARIES)
    np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("n_members", [1, 3])
def test_all_that_posteriors_tell(n_members):
    model = head(PosteriorEstimator, n_members=n_members).fit(SUMMARIES, TARGETS)
    X, y = SUMMARIES[:7], TARGETS[:7]
    assert_as_on_the_processor(model, lambda model: model.predict(X, return_std=True))
    assert_as_on_the_processor(model, lambda model: model.predict_quantiles(X))
    assert_as_on_the_processor(model, lambda model: model.log_prob(X, y))
    for n in (3, 300):
        assert_as_on_the_processor(model, lambda model: model.sample(X, n, random_state=0))  # noqa: B023
    assert_as_on_the_processor(model, lambda model: model.sample_log_prob(X, 20, random_state=0))


def test_a_posterior_with_a_weight_on_its_calibration():
    model = head(PosteriorEstimator, calibration_weight=1.0).fit(SUMMARIES, TARGETS)
    assert_as_on_the_processor(model, lambda model: model.predict(SUMMARIES))


@pytest.mark.parametrize("kind", [LightconeRegressor, PosteriorEstimator])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_heads_on_tokens(kind, pooling):
    tokens = RNG.normal(size=(60, 3, 5)).astype(np.float32)
    model = head(kind, pooling=pooling, n_members=2).fit(tokens, TARGETS)
    assert_as_on_the_processor(model, lambda model: model.predict(tokens))


@pytest.mark.parametrize("kind", [LightconeRegressor, PosteriorEstimator])
def test_fine_tuning(kind):
    backbone = transformer().fit(FIELDS)
    model = head(kind, backbone=backbone, frozen_epochs=1).fit(FIELDS, LABELS)
    assert_as_on_the_processor(model, lambda model: model.predict(FIELDS))


@pytest.mark.parametrize("kind", [LightconeRegressor, PosteriorEstimator])
def test_a_search_at_once(kind):
    grid = {"learning_rate": [1e-3, 1e-2], "weight_decay": [0.0, 0.1]}
    search = HeadSearchCV(head(kind, n_members=1), grid, cv=3).fit(SUMMARIES, TARGETS)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_a_pipeline():
    pipe = make_pipeline(transformer(), head(LightconeRegressor, n_members=2))
    assert np.isfinite(pipe.fit(FIELDS, LABELS).predict(FIELDS)).all()
