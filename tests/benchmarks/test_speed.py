"""Costs as matmul equivalents: seconds x the rate of a 2048^3 float32 product in the same run.

So that machines compare. `pytest -m benchmark -s tests/benchmarks` prints them beside what the
authors' public research code needs, measured in the same unit on 2 threads (GFLOP):

    pre-training step, 28 x 28 x 136, patch 7 x 7 x 8, width 96, batch 32       360
    pre-training step, 28 x 28 x 470, patch 4 x 4 x 10, width 144, batch 4    1,750
    the same at width 360                                                     3,100
    summaries of 32 cones of the first kind                                      23
    epoch of the head, 3750 summaries of 360, MLP 360-360-6, batch 32            52
"""

import statistics
import time

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skatr_sk import LightconeRegressor, SKATRTransformer
from skatr_sk.summaries.masking import LONG, SHORT, sample_masks
from tests.benchmarks.matmul import matmul_rate, report


class StepTimes(Callback):
    """Seconds from the end of one training step to the end of the next: all that a step costs."""

    def __init__(self):
        self.seconds = []

    def on_epoch_begin(self, net, **kwargs):
        self.last = None

    def on_batch_end(self, net, training=None, **kwargs):
        now = time.perf_counter()
        if training and self.last is not None:
            self.seconds.append(now - self.last)
        self.last = now


def cones(n, *field_shape):
    return np.random.default_rng(0).normal(-20, 50, (n, *field_shape)).astype(np.float32)


STEPS = {
    "step 28x28x136 width 96 batch 32": ((28, 28, 136), (7, 7, 8), 96, 32, 7, 360),
    "step 28x28x470 width 144 batch 4": ((28, 28, 470), (4, 4, 10), 144, 4, 5, 1750),
    "step 28x28x470 width 360 batch 4": ((28, 28, 470), (4, 4, 10), 360, 4, 5, 3100),
}


def step_seconds(field_shape, patch_size, embed_dim, batch_size, n_steps):
    """Median seconds of a pre-training step."""
    times = StepTimes()
    SKATRTransformer.published(
        patch_size=patch_size,
        embed_dim=embed_dim,
        max_epochs=1,
        batch_size=batch_size,
        validation_fraction=0,
        callbacks=[times],
        device="cpu",
        random_state=0,
    ).fit(cones(batch_size * n_steps, *field_shape))
    return statistics.median(times.seconds)


@pytest.mark.parametrize("what", STEPS)
def test_pretraining_step(what, capsys):
    *sizes, theirs = STEPS[what]
    rates = [matmul_rate()]
    seconds = step_seconds(*sizes)
    rates.append(matmul_rate())
    report(capsys, what, seconds, rates, theirs, limit=1 / 3)


def test_transform(capsys, benchmark):
    X = cones(32, 28, 28, 136)
    transformer = SKATRTransformer.published(
        patch_size=(7, 7, 8), embed_dim=96, max_epochs=1, device="cpu", random_state=0
    ).fit(X[:2])
    rates = [matmul_rate()]
    benchmark.pedantic(transformer.transform, args=(X,), rounds=9, warmup_rounds=2)
    rates.append(matmul_rate())
    seconds = benchmark.stats.stats.median
    report(capsys, "transform of 32 cones 28x28x136", seconds, rates, 23, limit=1.0)


def test_head_epoch(capsys):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(3750, 360)).astype(np.float32), rng.normal(size=(3750, 6))
    rates = [matmul_rate()]
    head = LightconeRegressor(
        hidden_dims=(360,), max_epochs=6, validation_fraction=0, device="cpu", random_state=0
    ).fit(X, y)
    rates.append(matmul_rate())
    seconds = statistics.median(row["seconds"] for row in head.history_[1:])
    report(capsys, "epoch of the head", seconds, rates, 52, limit=0.5)


def test_masks_are_free(capsys):
    """Sampling the two masks of a step, beside that step."""
    field_shape, patch_size, embed_dim, batch_size, n_steps, _ = next(iter(STEPS.values()))
    step = step_seconds(field_shape, patch_size, embed_dim, batch_size, n_steps)
    generator = torch.Generator().manual_seed(0)
    grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for mask in (SHORT, LONG):
            sample_masks(batch_size, grid_shape, mask, generator=generator)
        seconds.append(time.perf_counter() - start)
    share = statistics.median(seconds) / step
    with capsys.disabled():
        print(f"\nmask sampling: {share:.2%} of a step (limit 2 %)")
    assert share <= 0.02
