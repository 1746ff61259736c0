"""Time and memory of the encoder as tokens grow to the 10,000 of full resolution.

Attention compares all pairs of tokens, so that its time grows with their square; flash attention
(Dao et al., arXiv:2205.14135) keeps none of the pairs, so that memory grows with the tokens. The
encoder is that of the paper's table 3: width 96, depth 4, heads 4.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skatr_sk.summaries.vit import Encoder
from tests.benchmarks.table import seconds

ROOT = Path(__file__).resolve().parents[2]
GRIDS = {2500: (10, 10, 25), 5000: (10, 20, 25), 10_000: (20, 20, 25)}
N_VOXELS = 64


def build(n_tokens, attention):
    sizes = dict(embed_dim=96, depth=4, n_heads=4, mlp_ratio=2.0, attention=attention)
    return Encoder(N_VOXELS, GRIDS[n_tokens], **sizes), torch.randn(1, n_tokens, N_VOXELS)


def one_pass(n_tokens, gradient, attention="full"):
    encoder, patches = build(n_tokens, attention)

    def run():
        with torch.set_grad_enabled(gradient):
            tokens = encoder(patches)
            if gradient:
                tokens.square().mean().backward()

    return run


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with gradient"])
def test_time(gradient, request, table, torch_seed):
    """At most four times as long for twice the tokens."""
    passes = {n: one_pass(n, gradient) for n in GRIDS}
    times = {n: [] for n in GRIDS}
    passes[2500]()  # a process's first pass loads what later ones find
    for _ in range(2):
        for n, run in passes.items():
            times[n].append(seconds(run))
    ratios = [
        statistics.median(b / a for a, b in zip(times[n], times[2 * n], strict=True))
        for n in (2500, 5000)
    ]
    what = f"encoder at 10,000 tokens, {request.node.callspec.id}"
    one, two = (statistics.median(times[n]) for n in (5000, 10_000))
    table.add(what, two, one, against="at 5,000", limit=4.2, check=False)
    assert max(ratios) < 4.2


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with gradient"])
def test_axial(gradient, request, table, torch_seed):
    """Attention within columns and slices: a fifth of the time at the most."""
    table.compare(
        f"encoder at 10,000 tokens, axial attention, {request.node.callspec.id}",
        one_pass(10_000, gradient, "axial"),
        {"full attention": one_pass(10_000, gradient)},
        limit=0.2,
        pairs=3,
    )


PEAK = """
import sys
import torch
torch.set_num_threads(2)
from tests.benchmarks.test_attention import one_pass
from tests.memory import memory
one_pass(int(sys.argv[1]), sys.argv[2] == "True")()
print(memory("VmHWM") / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with gradient"])
def test_memory(gradient, request, table):
    """The memory that 5,000 tokens more take is at most 2.2 times that of 2,500 more."""
    command = [sys.executable, "-c", PEAK]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    peaks = [
        float(subprocess.check_output([*command, str(n), str(gradient)], env=env, text=True))
        for n in GRIDS
    ]
    rises = peaks[1] - peaks[0], peaks[2] - peaks[1]
    what = f"memory that the last 5,000 of 10,000 tokens add, {request.node.callspec.id}"
    first = max(rises[0], 20)
    table.add(what, rises[1], first, against="the 2,500 before", unit="MB", limit=2.2, check=False)
    assert rises[1] < 2.2 * max(rises[0], 20)
