"""
Frozen summaries, or an encoder trained with the flow
=====================================================

Compares what posteriors say of light cones that they have not seen, in nats beyond the prior, where
the encoder is frozen and where it is trained together with the flow, in the same processor time::

    python examples/run_joint_posterior.py FOLDER

The ways are:

mini-lr
    Summaries of the bundled weights, whose pre-training is not counted.
pre-trained
    Summaries of a transformer that is pre-trained, without labels, on the light cones that train.
joint
    A vision transformer and a flow, from scratch.
cnn
    The convolutional network 3D-21cmPIE-Net and a flow, from scratch.
tuned
    The bundled weights and a flow, which begin with the frozen summaries: the flow alone is trained
    in the first fifth of the epochs, then both, the encoder at a fifth of the rate, which falls
    from layer to layer towards the light cones.

``--part simulated`` trains on 2,000 simulated light cones and tests on 500 others; ``--part real``
has five folds of the real ones of :func:`~skatr_sk.load_lightcones`. Networks that are trained
whole get as many epochs as fit into the processor time that "pre-trained" took on the same fold,
pre-training, summaries and flow together, or into ``--seconds``; the time of a first epoch says how
many those are.

FOLDER keeps the light cones, and one line of ``scores.jsonl`` for each fit; a second run goes on
where the first stopped.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline

from skatr_sk import (
    PosteriorEstimator,
    ShortTrainingWarning,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.parameters import PRIOR_BOUNDS

FULL = SimpleNamespace(
    grid=dict(field_shape=(14, 14, 90), block=(2, 2, 5)),
    n_train=2000,
    n_test=500,
    n_folds=5,
    # Patches twice as long make it 2.5 times cheaper.
    vit=dict(patch_size=(2, 2, 10)),
    pretraining={},
    mini_lr=dict(weights="mini-lr"),
    posterior={},
)
QUICK = SimpleNamespace(
    grid=dict(field_shape=(4, 4, 30), block=(1, 1, 3), cell_size=30),
    n_train=12,
    n_test=6,
    n_folds=2,
    vit=dict(patch_size=(2, 2, 10), embed_dim=8, depth=1),
    pretraining=dict(patch_size=(2, 2, 10), embed_dim=8, depth=1, max_epochs=1),
    mini_lr=dict(patch_size=(2, 2, 10), embed_dim=8, depth=1),  # of another grid
    posterior=dict(n_blocks=1, n_bins=4, hidden_dims=(8,)),
)
CHUNK = 500  # light cones in a file
WAYS = ("mini-lr", "pre-trained", "joint", "cnn", "tuned")
PARTS = ("simulated", "real")


def simulated(folder, plan):
    """Light cones that train and that test, simulated where they are missing."""
    n = plan.n_train + plan.n_test
    cones = SimulatedLightcones(n, random_state=4321, **plan.grid)
    for start in range(0, n, CHUNK):
        path = folder / "cones" / f"{start:05}.h5"
        if not path.exists():
            some = cones[start : start + CHUNK]
            save_lightcones(path, some, dtype=np.float16)
    stored = open_lightcones(folder / "cones")
    X, y = stored.data.read(np.arange(n)).astype(np.float32), stored.target[:n]
    train = np.arange(n) < plan.n_train
    return X, y, [(np.flatnonzero(train), np.flatnonzero(~train))]


def real(folder, plan):
    """Real light cones in folds; simulated ones stand in for them in the quick form."""
    if plan is QUICK:
        X, y, _ = simulated(folder, plan)
    else:
        X, y = load_lightcones(return_X_y=True)
    folds = KFold(plan.n_folds, shuffle=True, random_state=0)
    return X, y, list(folds.split(X))


def posterior(plan, seed, **parameters):
    """One flow in all ways; the other defaults depend on the number of rows."""
    shared = dict(prior_bounds=PRIOR_BOUNDS, n_members=1, random_state=seed) | plan.posterior
    return PosteriorEstimator(**shared | parameters)


def mini_lr(plan, X):
    """Transformer with the bundled weights; one of random weights stands in on other grids."""
    epochs = {} if "weights" in plan.mini_lr else dict(max_epochs=0, random_state=0)
    return SKATRTransformer(**plan.mini_lr | epochs, cache=None).fit(X)


def backbone(way, plan, X):
    """What is trained with the flow, and the parameters of that."""
    if way == "joint":
        return dict(backbone=SKATRTransformer(**plan.vit))
    if way == "cnn":
        return dict(backbone="cnn")
    # With its whitening, which a transformer as backbone leaves behind.
    whole = mini_lr(plan, X[:2]).as_module().requires_grad_(True)
    return dict(backbone=whole, backbone_learning_rate=2e-4, layer_decay=0.7)


def fitted(way, plan, X, y, seed, seconds):
    """Fit one of the ways; return what gives the densities, and what it took."""
    start = time.process_time()
    if way in ("mini-lr", "pre-trained"):
        skatr = mini_lr(plan, X[:2])
        if way == "pre-trained":
            skatr = SKATRTransformer(**plan.pretraining, random_state=seed, cache=None).fit(X)
        summaries = skatr.transform(X)
        seen = time.process_time()
        flow = posterior(plan, seed).fit(summaries, y)
        epochs, ready = len(flow.history_), make_pipeline(skatr, flow)
        took = dict(encoder_seconds=seen - start, flow_seconds=time.process_time() - seen)
        return ready, took | dict(epochs=epochs)
    given = backbone(way, plan, X)
    posterior(plan, seed, max_epochs=1, **given).fit(X[:64], y[:64])  # warms up, too
    begin = time.process_time()
    some = min(len(X), 256)
    posterior(plan, seed, max_epochs=1, **given).fit(X[:some], y[:some])
    one = (time.process_time() - begin) * len(X) / some
    epochs = max(2, int(seconds / one))
    if way == "tuned":
        given["frozen_epochs"] = epochs // 5
    start = time.process_time()
    whole = posterior(plan, seed, max_epochs=epochs, **given).fit(X, y)
    took = dict(seconds=time.process_time() - start, epochs=len(whole.history_))
    kept = next(row["epoch"] for row in whole.history_ if row["kept"])
    return whole, took | dict(kept=kept, planned_epochs=epochs)


def taken(lines, *which):
    """Processor seconds of a fit that is done, else none."""
    mine = [line for line in lines if key(line) == which]
    return sum(v for line in mine for k, v in line.items() if k.endswith("seconds")) or None


def key(line):
    return line["part"], line["way"], line["seed"], line["fold"]


def nats(ready, X, y):
    """Log density of the truth beyond that of the uniform prior, of each light cone."""
    estimator = ready[-1] if hasattr(ready, "steps") else ready
    inputs = ready[:-1].transform(X) if hasattr(ready, "steps") else X
    return estimator.log_prob(inputs, y) + np.log(np.ptp(PRIOR_BOUNDS, axis=1)).sum()


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare frozen and jointly trained encoders.")
    parser.add_argument("folder", type=Path, help="where everything is kept")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--seconds", type=float, help="of the processor for a network that is trained whole"
    )
    parser.add_argument("--folds", type=int, help="of the real light cones, the first ones")
    parser.add_argument("--quick", action="store_true", help="a glance at the smallest size")
    given = parser.parse_args(arguments)
    plan = QUICK if given.quick else FULL
    (given.folder / "cones").mkdir(parents=True, exist_ok=True)
    scores = given.folder / "scores.jsonl"
    lines = (
        [json.loads(line) for line in scores.read_text().splitlines()] if scores.exists() else []
    )
    done = {key(line) for line in lines}
    warnings.simplefilter("ignore", ShortTrainingWarning)  # time is what is compared
    for part in given.part:
        X, y, folds = (
            simulated(given.folder, plan) if part == "simulated" else real(given.folder, plan)
        )
        for seed in given.seeds:
            for fold, (train, test) in enumerate(folds[: given.folds]):
                for way in given.ways:
                    if (part, way, seed, fold) in done:
                        continue
                    seconds = given.seconds or taken(lines, part, "pre-trained", seed, fold)
                    if seconds is None and way in ("joint", "cnn", "tuned"):
                        parser.error(f"{way} needs --seconds, or pre-trained among --ways")
                    ready, took = fitted(way, plan, X[train], y[train], seed, seconds)
                    each = nats(ready, X[test], y[test])
                    line = dict(part=part, way=way, seed=seed, fold=fold, n=len(train), **took)
                    line |= dict(nats=each.mean(), error=each.std(ddof=1) / len(each) ** 0.5)
                    with scores.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    lines.append(line)
                    print(json.dumps(line), flush=True)
    print_table(lines)


def print_table(lines):
    """Nats of each way, with the error over test cones or over folds and seeds, and its cost."""
    print(f"\n{'part':<10} {'way':<12} {'nats':>14} {'seconds':>8} {'epochs':>7}")
    for part in PARTS:
        for way in WAYS:
            mine = [line for line in lines if (line["part"], line["way"]) == (part, way)]
            if not mine:
                continue
            found = np.array([line["nats"] for line in mine])
            error = found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else mine[0]["error"]
            cost = [sum(v for k, v in line.items() if k.endswith("seconds")) for line in mine]
            epochs = np.mean([line["epochs"] for line in mine])
            text = f"{found.mean():.2f} ± {error:.2f}"
            print(f"{part:<10} {way:<12} {text:>14} {np.mean(cost):>8.1f} {epochs:>7.0f}")


if __name__ == "__main__":
    main()
