"""The posterior beside bare nflows: time to its log probability; the memory of sampling.

Bare nflows is the same kind of flow (6 coupling blocks of rational-quadratic splines, 10 bins,
residual conditioners of width 128, 360 summaries as the context) in a plain loop with Adam at batch
32 and the published learning rate of 1e-4.
"""

import numpy as np
import torch
from sklearn.base import clone

from skatr_sk import PosteriorEstimator
from skatr_sk.training.device import return_memory
from tests.benchmarks.references import BareFlow
from tests.benchmarks.table import seconds
from tests.memory import forget_peak, memory

N, N_SUMMARY, N_PARAMETERS = 3750, 360, 6


def problem(n=N, seed=0):
    """Six parameters, read with correlated noise through 360 summaries."""
    mixing = np.random.default_rng(7).normal(size=(N_PARAMETERS, N_SUMMARY))
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, size=(n, N_PARAMETERS))
    noisy = y + 0.2 * rng.normal(size=y.shape) + 0.2 * rng.normal(size=(n, 1))
    X = noisy @ mixing + rng.normal(size=(n, N_SUMMARY))
    return X.astype(np.float32), y


def in_box(y):
    """Parameters in our unbounded space, for the bare flow: the same density is compared."""
    return torch.special.ndtri((torch.from_numpy(y) + 1) / 2).float()


def test_time_to_the_log_probability_of_the_bare_loop(table, torch_seed):
    """One flow with the defaults against 9 epochs of the bare loop, which then overfits.

    The time is that to the best that both reach; what ours lacks to the better one is said apart.
    """
    X, y = problem()
    X_valid, y_valid = problem(1000, seed=1)
    bare, spent, theirs = BareFlow(X, in_box(y)), 0.0, []
    for _ in range(9):
        spent += seconds(bare.epoch)
        theirs.append((float(bare.log_prob(X_valid, in_box(y_valid)).mean()), spent))
    default = PosteriorEstimator(prior_bounds=[[-1, 1]] * 6, device="cpu", random_state=0)
    ours = clone(default).set_params(n_members=1).fit(X, y)
    # The density of the unbounded parameters, as that of the bare loop.
    _, log_jacobian = ours.prior_transform_.to_free(y_valid)
    log_scale = np.log(ours.prior_transform_.scale).sum()

    def value_of(posterior):
        return posterior.score(X_valid, y_valid) - log_jacobian.mean() - log_scale

    value = value_of(ours)
    best = max(reached for reached, _ in theirs)
    own = [
        (-row["valid_loss"] - log_scale, at)
        for row, at in zip(
            ours.history_, np.cumsum([row["seconds"] for row in ours.history_]), strict=True
        )
    ]
    level = min(best, max(reached for reached, _ in own))
    name = "one flow with the defaults beside 9 epochs of bare nflows"
    rows = table.add(
        f"{name}, to {level:.2f} nats",
        *(next(at for reached, at in each if reached >= level) for each in (own, theirs)),
        against="bare nflows",
        limit=0.5,
        in_readme=True,
        check=False,
    )
    # Theirs is at its best on the test, after training on all rows; ours holds rows out to stop by.
    rows += table.add(f"{name}, what it lacks", best - value, unit="nats", limit=0.05, check=False)
    name = "five flows, the default, beside 9 epochs of bare nflows"
    took = seconds(default.fit, X, y)
    rows += table.add(f"{name}, the whole fit", took, spent, against="bare nflows", check=False)
    lacks = best - value_of(default)
    rows += table.add(f"{name}, what it lacks", lacks, unit="nats", limit=0.0, check=False)
    table.check(rows)


def test_memory_of_sampling_is_bounded(table):
    """Ten times the samples take little more than the room of the result."""
    X, y = problem(200)
    posterior = PosteriorEstimator(max_epochs=1, device="cpu", random_state=0).fit(X, y)

    def grown(n_samples):
        """MiB at the peak beyond those before, and those of the result."""
        return_memory()
        before = memory("VmRSS")
        forget_peak()  # that of the benchmarks before this one
        samples = posterior.sample(X, n_samples)
        return np.array([memory("VmHWM") - before, samples.nbytes]) / 2**20

    grown(250)
    few, _ = grown(250)
    many, room = grown(2500)
    what = f"memory of 2,500 samples for each of 200 light cones, which take {room:.0f} MiB"
    table.add(what, many, unit="MiB", limit=few + 2 * room)
