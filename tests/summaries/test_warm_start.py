"""Pre-training that goes on from what is there: an earlier fit, or weights."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skatr_sk import LightconeRegressor, NoEffectWarning, SKATRTransformer
from skatr_sk.summaries import Supervised, VICReg
from tests.training.runs import Act, assert_same_run, raising, signals, transformer, without_seconds


@pytest.fixture
def saved(tmp_path):
    fitted = transformer(pooling="max").fit(signals())
    fitted.save(tmp_path / "w.safetensors")
    return fitted, tmp_path / "w.safetensors"


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
    assert_same_run(first.fit(signals()), transformer().fit(signals()))


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
    parameters = dict(weights=path, warm_start=True, max_epochs=4)
    whole = transformer(**parameters).fit(signals(seed=1))
    kept = transformer(**parameters, checkpoint_dir=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        cut = Act("batch", raising(ZeroDivisionError()), at=8)
        kept.set_params(callbacks=[cut]).fit(signals(seed=1))
    assert_same_run(clone(kept).set_params(callbacks=None).fit(signals(seed=1)), whole)
    # Other weights under the same name are another run.
    transformer(random_state=9).fit(signals()).save(path)
    other = clone(kept).set_params(callbacks=None).fit(signals(seed=1))
    assert len(list((tmp_path / "run").glob("checkpoint-*.safetensors"))) == 2
    assert apart(weights_of(other), weights_of(whole)) > 0


def test_it_warns_of_nothing_that_has_an_effect(saved):
    _, path = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        transformer(weights=path, warm_start=True, warmup=0.2).fit(signals())


def test_labels_are_asked_for_where_they_count(saved):
    _, path = saved
    learner = transformer(weights=path, warm_start=True, objective=Supervised())
    assert learner.__sklearn_tags__().target_tags.required
    learner.fit(signals(), signals()[:, 0])
    with pytest.raises(ValueError, match="y"):
        learner.fit(signals())


def test_a_backbone_is_its_weights_and_trains_with_the_head(saved):
    """Whatever it would do in a fit of its own."""
    _, path = saved
    y = signals()[:, 0]
    options = dict(hidden_dims=(8,), max_epochs=1, random_state=0)
    backbones = [SKATRTransformer(weights=path, warm_start=warm) for warm in (False, True)]
    fits = [LightconeRegressor(backbone=each, **options).fit(signals(), y) for each in backbones]
    np.testing.assert_array_equal(*(fitted.predict(signals()) for fitted in fits))
    assert torch.is_grad_enabled()
