"""Blocks that torch compiles for the steps of a training."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import vit
from skatr_sk.summaries.vit import Block, compile_blocks, through

SMALL = dict(patch_size=2, embed_dim=16, depth=2, max_epochs=2, random_state=0, device="cpu")


@pytest.fixture
def X(rng):
    return rng.normal(scale=30, size=(20, 4, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("objective", ["jepa", "vicreg"])
def test_what_is_compiled_are_the_blocks_in_steps(objective, X, monkeypatch):
    seen = []

    def stand_in(block, *args):
        seen.append((block.training, torch.is_grad_enabled()))
        return Block._mapped(block, *args)

    monkeypatch.setattr(vit, "_compiled_block", lambda: stand_in)
    plain = SKATRTransformer(**SMALL, objective=objective).fit(X)
    assert not seen
    compiled = SKATRTransformer(**SMALL, objective=objective, compile=True).fit(X)
    assert all(training for training, _ in seen)
    # The averaged encoder of a JEPA needs no gradient.
    assert {gradient for _, gradient in seen} == ({True, False} if objective == "jepa" else {True})
    n_seen = len(seen)
    np.testing.assert_array_equal(compiled.transform(X), plain.transform(X))
    again = pickle.loads(pickle.dumps(compiled))
    again.set_params(compile=False, max_epochs=1, warm_start=True).fit(X)
    assert len(seen) == n_seen


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "axial"])
def test_gradients_are_the_same(attention, torch_seed, monkeypatch):
    blocks = vit._blocks(2, 32, 2, 2.0, attention)
    fields = torch.randn(3, 24, 32)

    def gradients(compiled, n_unasked):
        compile_blocks(blocks, compiled)
        blocks.zero_grad()
        tokens = fields.clone().requires_grad_()
        through(blocks, tokens, 24, n_unasked, n_slices=4).square().mean().backward()
        return [tokens.grad, *(weight.grad.clone() for weight in blocks.parameters())]

    for most in (vit._MOST_KEPT_ON_CPU, 0):  # kept for the gradient, and computed anew
        monkeypatch.setattr(vit, "_MOST_KEPT_ON_CPU", most)
        for n_unasked in (0, 8):
            for one, other in zip(
                gradients(False, n_unasked), gradients(True, n_unasked), strict=True
            ):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_training_is_the_same_within_rounding(X):
    options = SMALL | dict(whiten=False)
    plain, compiled = (SKATRTransformer(**options, compile=c).fit(X) for c in (False, True))
    losses = [[row["train_loss"] for row in each.history_] for each in (plain, compiled)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(compiled.transform(X), plain.transform(X), atol=0.01)


@pytest.mark.gpu
def test_a_training_on_a_gpu(X):
    options = SMALL | dict(device="cuda", whiten=False, precision="float32")
    plain, compiled = (SKATRTransformer(**options, compile=c).fit(X) for c in (False, True))
    losses = [[row["train_loss"] for row in each.history_] for each in (plain, compiled)]
    np.testing.assert_allclose(*losses, rtol=1e-2)


@pytest.mark.slow
def test_without_a_compiler_it_says_so(tmp_path):
    script = (
        "import numpy as np, skatr_sk\n"
        "X = np.random.default_rng(0).normal(0, 30, (8, 4, 4, 8)).astype('f')\n"
        f"skatr_sk.SKATRTransformer(**{SMALL}, compile=True).fit(X)\n"
    )
    environment = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 1
    assert "compile: expected a torch that can compile here" in found.stderr
    assert "leave compile=False" in found.stderr.splitlines()[-1]
