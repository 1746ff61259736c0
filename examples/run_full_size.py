"""
Pre-train at the published size
===============================

What one graphics card does in some minutes with light cones of 28 x 28 x 470 cells: the tests that
need it, the simulator, a step of the pre-training beside a plain product of matrices, the
pre-training itself on simulated light cones of which each is seen once, and a ridge regression on
the frozen summaries beside those of random weights::

    python examples/run_full_size.py full-lr.safetensors --minutes 8

Each stage prints a line of JSON, and the last line has all of them. ``--quick`` runs a small size
in a minute or two, on a CPU too.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from skatr_sk import SimulatedLightcones, SKATRTransformer
from skatr_sk.summaries import JEPA

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = SimpleNamespace(
    grid=dict(field_shape=(28, 28, 470)),
    sizes=dict(batch_size=64),
    n_trial=1024,  # light cones on which a step is timed
    n_probe=1536,  # light cones of the probe, if they are simulated in time
    n_valid=128,
    most=10**6,  # light cones to pre-train on
    matrix=8192,  # rows of the matrices
)
SMALL = SimpleNamespace(
    grid=dict(field_shape=(8, 8, 40), block=(1, 1, 3), cell_size=25),
    sizes=dict(batch_size=2, embed_dim=16, depth=1),
    n_trial=8,
    n_probe=9,
    n_valid=2,
    most=8,
    matrix=256,
)
# Sizes, masks and predictor are those of arXiv:2410.18899; the rest is what learns on light cones.
LEARNS = dict(
    objective=JEPA(masks="multiblock", predictor_depth=4),
    embedding="moments",
    pooling="moments",
    brightness_range=None,
    max_epochs=1,
)
# Shares of the time after which a stage ends; what is left is for the probe.
ENDS = {"tests": 0.25, "simulator": 0.4, "pre-training": 0.9}
MOST_MEGABYTES = 12


class Report:
    """A line of JSON for each stage, and the time that is left."""

    def __init__(self, minutes):
        self.start, self.seconds, self.stages = time.perf_counter(), 60 * minutes, {}

    def left(self, stage):
        """Seconds until a stage has to end."""
        return ENDS[stage] * self.seconds - (time.perf_counter() - self.start)

    def add(self, stage, **found):
        at = round(time.perf_counter() - self.start, 1)
        print(json.dumps({"stage": stage, "at": at} | found), flush=True)
        self.stages[stage] = found


# Measured -----------------------------------------------------------------------------------------


def run_gpu_tests(seconds):
    """Run the tests that need a GPU: the last line of pytest, and what failed."""
    if not torch.cuda.is_available():
        return {"result": "no GPU", "passed": True}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"result": f"not done after {seconds:.0f} s", "passed": False}
    lines = done.stdout.strip().splitlines() or [done.stderr]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"result": lines[-1], "passed": done.returncode == 0, "failed": failed}


def synchronize():
    """Wait for what the GPU has been asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gigabytes():
    """Most memory of the GPU that was in use since the last call; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def matrix_rate(n, device, repeats=20):
    """Floating-point operations a second, of products of n x n matrices in bfloat16."""
    a = torch.ones(n, n, device=device, dtype=torch.bfloat16)
    a @ a
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    synchronize()
    return repeats * 2 * n**3 / (time.perf_counter() - start)


class StepSeconds(Callback):
    """Record in ``history_`` the median time from the end of a step to the end of the next."""

    def on_epoch_begin(self, net, **kwargs):
        self.ends_ = []

    def on_batch_end(self, net, training, **kwargs):
        if training:
            synchronize()
            self.ends_.append(time.perf_counter())

    def on_epoch_end(self, net, **kwargs):
        net.history.record("step_seconds", float(np.median(np.diff(self.ends_))))


def field_operations(sizes, objective, pairs):
    """Floating-point operations of JEPA on one field, counted from the sizes of its products.

    `pairs` are what the objective draws. What is trained counts three times, for it is passed once
    forwards and twice backwards, and the target encoder once.
    """
    dim, narrow = sizes.embed_dim, objective.predictor_dim

    def block(n_tokens, dim, n_asked):
        # Products with weights: three for each token that is seen, the others for those asked for;
        # and tokens with each other.
        of_weights = 6 * n_tokens + (2 + 4 * sizes.mlp_ratio) * n_asked
        return of_weights * dim**2 + 4 * n_asked * n_tokens * dim

    def encoder(n_tokens):
        embedding = 2 * n_tokens * sizes.n_voxels * dim
        return sizes.depth * block(n_tokens, dim, n_tokens) + embedding

    def predictor(n_seen, n_hidden):
        n_tokens = n_seen + n_hidden
        whole = (objective.predictor_depth - 1) * block(n_tokens, narrow, n_tokens)
        return whole + block(n_tokens, narrow, n_hidden) + 2 * n_tokens * dim * narrow

    # Of the regions come the two first; what else is drawn for them behind.
    *masks, regions = [[index.shape[1] for index in drawn[:2]] for drawn in pairs]
    trained = sum(encoder(seen) + predictor(seen, hidden) for seen, hidden in masks)
    return 3 * (trained + sum(map(encoder, regions))) + encoder(sizes.n_tokens)


def step_operations(skatr):
    """Mean over many steps, since masks differ in size."""
    sizes, objective = skatr.architecture_, skatr.objective
    generator = torch.Generator().manual_seed(0)
    draws = [objective.draw(1, sizes.grid_shape, generator) for _ in range(200)]
    counts = [field_operations(sizes, objective, pairs) for pairs in draws]
    return skatr.batch_size * float(np.mean(counts))


def compiled_step(pretrain):
    """Seconds of a step that torch has compiled, and of all until then; or why it cannot."""
    start = time.perf_counter()
    try:
        seconds = pretrain().history_[-1]["step_seconds"]
    except RuntimeError as error:
        return {"reason": str(error)}
    return {"seconds": seconds, "seconds_in_all": time.perf_counter() - start}


def probe(S, y):
    """Mean R2 but m_WDM of a ridge regression on two thirds of the rows, tested on the others."""
    n = len(S) * 2 // 3
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    ridge = TransformedTargetRegressor(ridge, transformer=StandardScaler()).fit(S[:n], y[:n])
    return float(r2_score(y[n:, 1:], ridge.predict(S[n:])[:, 1:]))


# All of it ----------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Pre-train at the published size on one GPU.")
    parser.add_argument("weights", type=Path, help="safetensors file to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take")
    parser.add_argument("--quick", action="store_true", help="a small size, on a CPU too")
    given = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if not cuda and not given.quick:
        parser.error("this size needs a CUDA device; --quick runs a small one")
    plan, device = SMALL if given.quick else PUBLISHED, "cuda" if cuda else "cpu"
    grid, batch_size = plan.grid | dict(device=device), plan.sizes["batch_size"]

    report = Report(given.minutes)
    report.add("device", name=torch.cuda.get_device_name() if cuda else "CPU")
    report.add("tests", **run_gpu_tests(report.left("tests")))

    # The light cones of the probe show how fast they are made.
    simulated = SimulatedLightcones(plan.n_probe, random_state=1, **grid)
    simulated[:1].read()  # tables that are made once
    X, start = [], time.perf_counter()
    while len(X) < plan.n_probe and (len(X) < plan.n_trial or report.left("simulator") > 0):
        X.extend(simulated[len(X) : len(X) + batch_size].read())
    made = len(X) / (time.perf_counter() - start)
    report.add("simulator", n=len(X), light_cones_per_second=made)
    X, y = np.stack(X), simulated[: len(X)].target

    def pretrain(X, n_valid, **options):
        run = dict(validation_fraction=n_valid / len(X), callbacks=[StepSeconds()], random_state=0)
        run |= options
        return SKATRTransformer.published(**LEARNS, **plan.sizes, **run).fit(X)

    peak_gigabytes()
    trial = pretrain(X[: plan.n_trial], 0)
    memory = peak_gigabytes()
    step, operations = trial.history_[-1]["step_seconds"], step_operations(trial)
    rate = matrix_rate(plan.matrix, device)
    report.add(
        "step",
        seconds=step,
        light_cones_per_second=batch_size / step,
        teraflops=operations / step / 1e12,
        teraflops_of_matrices=rate / 1e12,
        share=operations / step / rate,
        memory_gigabytes=memory,
    )

    trial.set_params(cache=None).transform(X[:batch_size])
    start = time.perf_counter()
    trial.transform(X[: plan.n_trial])
    rate = plan.n_trial / (time.perf_counter() - start)
    report.add("summaries", per_second=rate)
    report.add(
        "compiled step", **compiled_step(lambda: pretrain(X[: plan.n_trial], 0, compile=True))
    )

    # Each light cone is simulated when its batch is read, and never again.
    seconds = 1 / made + step / batch_size  # for a light cone
    n = min(plan.most, max(plan.n_trial, int(0.9 * report.left("pre-training") / seconds)))
    skatr = pretrain(SimulatedLightcones(n, random_state=0, **grid), plan.n_valid)
    skatr.save(given.weights)
    megabytes = given.weights.stat().st_size / 1e6
    kept = {name: value for name, value in skatr.history_[-1].items() if name != "kept"}
    report.add("pre-training", n=n, megabytes=megabytes, **kept)
    if megabytes > MOST_MEGABYTES:
        raise SystemExit(f"{given.weights} is larger than {MOST_MEGABYTES} MB")

    sizes = skatr.architecture_.parameters()
    sizes |= dict(pooling=skatr.pooling_, max_epochs=0, random_state=0)
    encoders = dict(jepa=skatr, random=SKATRTransformer(**sizes).fit(X))
    scores = {name: probe(each.transform(X), y) for name, each in encoders.items()}
    report.add("probe", labels=len(X) * 2 // 3, **scores)
    report.add("summary", minutes=(time.perf_counter() - report.start) / 60, **report.stages)
    return report.stages


if __name__ == "__main__":
    main()
