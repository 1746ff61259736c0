"""What a script has set in torch changes no result of the package, and is as it was afterwards."""

import contextlib

import numpy as np
import pytest
import torch

from skatr_sk import (
    LightconeRegressor,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    make_lightcones,
)
from skatr_sk.summaries import JEPA
from skatr_sk.training.device import _SWITCHES

SMALL = dict(patch_size=3, embed_dim=8, depth=1, device="cpu", random_state=0)
HEAD = dict(hidden_dims=(8,), max_epochs=2, device="cpu", random_state=0)


def _given():
    rng = np.random.default_rng(0)
    fields = rng.normal(-20, 30, size=(12, 6, 6, 6)).astype(np.float32)
    summaries = rng.normal(size=(40, 4)).astype(np.float32)
    return fields, summaries, summaries[:, :2] + rng.normal(size=(40, 2))


def weights(tmp_path):
    skatr = SKATRTransformer(weights="mini-lr", cache=None).fit(load_lightcones().data[:2])
    skatr.save(tmp_path / "w")
    again = SKATRTransformer.load(tmp_path / "w", cache=None)
    return again.transform(load_lightcones().data[:2])


def pretraining(tmp_path):
    fields, _, _ = _given()
    small = SMALL | dict(objective=JEPA(predictor_dim=8, predictor_depth=1), cache=None)
    return SKATRTransformer(**small, max_epochs=1, batch_size=8).fit(fields).transform(fields)


def backbone(tmp_path):
    fields, _, y = _given()
    vit = SKATRTransformer(patch_size=3, embed_dim=8, depth=1)
    whole = LightconeRegressor(backbone=vit, **HEAD | dict(max_epochs=1))
    return whole.fit(fields, y[:12]).predict(fields)


def regressor(tmp_path):
    _, X, y = _given()
    head = LightconeRegressor(max_epochs=1, device="cpu", random_state=0).fit(X, y)
    return head.predict(X)


def posterior(tmp_path):
    _, X, y = _given()
    head = PosteriorEstimator(n_blocks=2, n_bins=4, n_members=2, **HEAD).fit(X, y)
    samples, log_prob = head.sample_log_prob(X[:3], 5, random_state=0)
    parts = [samples, log_prob, head.predict(X[:3], n_samples=8), head.log_prob(X, y)]
    return np.concatenate([part.ravel() for part in parts])


def simulator(tmp_path):
    small = dict(field_shape=(4, 4, 6))
    made, _ = make_lightcones(1, random_state=0, **small)
    return np.stack([made[0], SimulatedLightcones(2, random_state=1, **small)[1]])


ACTIONS = [weights, pretraining, backbone, regressor, posterior, simulator]


@contextlib.contextmanager
def _set(get, change, value):
    before = get()
    change(value)
    try:
        yield
    finally:
        assert get() == value  # it was left as it had been set
        change(before)


def _threads(n):
    return _set(torch.get_num_threads, torch.set_num_threads, n)


def _device():
    """A device without memory: what forgets its own cannot work."""
    return torch.device("meta")


@contextlib.contextmanager
def _all():
    with contextlib.ExitStack() as stack:
        for setting in ("float64", "inference", "no_grad", "device", "deterministic", "autocast"):
            stack.enter_context(SETTINGS[setting]())
        yield


SETTINGS = {
    "all": _all,
    "float64": lambda: _set(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "device": _device,
    "deterministic": lambda: _set(_SWITCHES[1].get, _SWITCHES[1].set, (True, False)),
    "anomaly": torch.autograd.detect_anomaly,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "threads": lambda: _threads(2),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {each: each(tmp_path_factory.mktemp("plain")) for each in ACTIONS}


SINGLE = [pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS if s not in ("all", "threads")]


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:PosteriorEstimator")
@pytest.mark.parametrize("setting", ["all", "threads", *SINGLE])
@pytest.mark.parametrize("action", ACTIONS)
def test_settings_change_nothing(action, setting, plain, tmp_path):
    with SETTINGS[setting]():
        found = action(tmp_path)
    if setting == "threads":  # sums in two parts: nothing but their rounding may change
        np.testing.assert_allclose(found, plain[action], rtol=1e-3, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, plain[action])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_is_multiplied_in_all_digits(precision, plain, tmp_path):
    get, change = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    with _set(get, change, precision):
        np.testing.assert_array_equal(regressor(tmp_path), plain[regressor])


def test_everything_that_was_set_at_once_comes_back(tmp_path):
    with _all():
        regressor(tmp_path)
        assert torch.get_default_dtype() == torch.float64
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "meta"
