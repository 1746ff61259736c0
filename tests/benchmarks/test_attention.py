"""Time and memory of the encoder as tokens grow to the 10,000 of full resolution.

Attention compares all pairs of tokens, so that its time grows with their square; flash attention
(Dao et al., arXiv:2205.14135) keeps none of the pairs, so that memory grows with the tokens. The
encoder is that of the paper's table 3: width 96, depth 4, heads 4.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from skatr_sk.summaries.vit import Encoder

ROOT = Path(__file__).resolve().parents[2]
GRIDS = {2500: (10, 10, 25), 5000: (10, 20, 25), 10_000: (20, 20, 25)}
N_VOXELS = 64


def build(n_tokens):
    sizes = dict(embed_dim=96, depth=4, n_heads=4, mlp_ratio=2.0)
    return Encoder(N_VOXELS, GRIDS[n_tokens], **sizes), torch.randn(1, n_tokens, N_VOXELS)


def one_pass(n_tokens, gradient):
    encoder, patches = build(n_tokens)

    def run():
        with torch.set_grad_enabled(gradient):
            tokens = encoder(patches)
            if gradient:
                tokens.square().mean().backward()

    return run


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with gradient"])
def test_time(gradient, capsys, torch_seed):
    """At most four times as long for twice the tokens."""
    passes = {n: one_pass(n, gradient) for n in GRIDS}
    times = {n: [] for n in GRIDS}
    for turn in range(4):
        for n, run in passes.items():
            start = time.perf_counter()
            run()
            if turn:
                times[n].append(time.perf_counter() - start)
    seconds = {n: statistics.median(each) for n, each in times.items()}
    ratios = [
        statistics.median(b / a for a, b in zip(times[n], times[2 * n], strict=True))
        for n in (2500, 5000)
    ]
    with capsys.disabled():
        said = ", ".join(f"{n} tokens {t:.2f} s" for n, t in seconds.items())
        print(f"\n{said}: times {ratios[0]:.2f} and {ratios[1]:.2f} for twice as many (limit 4.2)")
    assert max(ratios) < 4.2


# The peak of the process since it began: ru_maxrss has that of the parent in it.
PEAK = """
import re, sys
from pathlib import Path
import torch
torch.set_num_threads(2)
from tests.benchmarks.test_attention import one_pass
one_pass(int(sys.argv[1]), sys.argv[2] == "True")()
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the peak")
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "with gradient"])
def test_memory(gradient, capsys):
    """The memory that 5,000 tokens more take is at most 2.2 times that of 2,500 more."""
    command = [sys.executable, "-c", PEAK]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    peaks = [
        float(subprocess.check_output([*command, str(n), str(gradient)], env=env, text=True))
        for n in GRIDS
    ]
    rises = peaks[1] - peaks[0], peaks[2] - peaks[1]
    with capsys.disabled():
        said = ", ".join(f"{n} tokens {peak:.0f} MB" for n, peak in zip(GRIDS, peaks, strict=True))
        print(
            f"\n{said}: the last rise over the first {rises[1] / max(rises[0], 1):.2f} (linear: 2)"
        )
    assert rises[1] < 2.2 * max(rises[0], 20)
