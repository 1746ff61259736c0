"""
Pre-train the bundled weights
=============================

Makes ``skatr_sk/summaries/weights/mini-lr.safetensors``: simulate light cones without 21cmFAST,
pre-train on them without labels, and judge the frozen summaries on the real light cones of
:func:`~skatr_sk.load_lightcones`, which pre-training never sees. Each step is kept, and a second
run goes on where the first stopped::

    python examples/run_pretrain_mini.py cones.h5 mini-lr.safetensors

On one core the 4800 light cones take 20 minutes to simulate and about as long to train on.
"""

import argparse
import os
import time

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import (
    LightconeRegressor,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)

RECIPE = dict(
    patch_size=(2, 2, 5),
    embed_dim=96,
    depth=2,
    embedding="moments",
    objective="vicreg",
    predictor_dim=16,
    predictor_depth=1,
    min_context=0.2,
    batch_size=64,
    max_epochs=6,
    learning_rate=2e-3,
    validation_fraction=0.02,
    random_state=0,
)
LABELS = (32, 64, 128, None)  # None: all of a fold's training rows


def scores(summaries, cones, estimator, n_labels, seeds=(0, 1, 2)):
    """R2 of each parameter on the test folds: (5 folds x seeds, n_parameters)."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for train, test in KFold(5, shuffle=True, random_state=seed).split(summaries):
            train = rng.permutation(train)[:n_labels]
            fitted = estimator.fit(summaries[train], cones.target[train])
            predicted = fitted.predict(summaries[test])
            found.append(r2_score(cones.target[test], predicted, multioutput="raw_values"))
    return np.array(found)


def judge(ways, cones, heads):
    """Print the table: mean R2 without m_WDM, and the standard error over seeds."""
    for name, estimator in heads.items():
        print(f"\n{name}: mean R2 over all parameters but {cones.target_names[0]}")
        print(f"{'labels':<40}" + "".join(f"{n or 'all':>16}" for n in LABELS))
        for way, summaries in ways.items():
            print(f"{way:<40}", end="", flush=True)
            for n_labels in LABELS:
                by_fold = scores(summaries, cones, estimator, n_labels)[:, 1:].mean(axis=1)
                by_seed = by_fold.reshape(-1, 5).mean(axis=1)
                error = by_seed.std(ddof=1)
                print(f"{by_seed.mean():>9.3f} ± {error:.3f}", end="", flush=True)
            print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[3])
    parser.add_argument("cones", help="HDF5 file of the simulated light cones, made if missing")
    parser.add_argument("weights", help="safetensors file to write; judged only if it exists")
    parser.add_argument("--n-cones", type=int, default=4800)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    if not os.path.exists(arguments.weights):
        if not os.path.exists(arguments.cones):
            simulated = SimulatedLightcones(
                arguments.n_cones, field_shape=(14, 14, 90), block=(2, 2, 5), random_state=0
            )
            start = time.perf_counter()
            save_lightcones(arguments.cones, simulated, dtype=np.float16)
            print(f"simulated {len(simulated)} in {time.perf_counter() - start:.0f} s", flush=True)
        X = np.asarray(open_lightcones(arguments.cones).data[: arguments.n_cones], dtype=np.float32)
        start = time.perf_counter()
        skatr = SKATRTransformer(**RECIPE, verbose=1).fit(X)
        print(f"pre-trained on {len(X)} in {time.perf_counter() - start:.0f} s", flush=True)
        skatr.save(arguments.weights)

    cones = load_lightcones()
    frozen = SKATRTransformer(weights=arguments.weights).fit(cones.data)
    untrained = [
        SKATRTransformer(**RECIPE | {"max_epochs": 0, "random_state": seed}).fit(cones.data)
        for seed in (1, 2)
    ]
    signal = np.concatenate([cones.data.mean(axis=(1, 2)), cones.data.std(axis=(1, 2))], axis=1)
    ways = {
        "pre-trained on simulated light cones": frozen.transform(cones.data),
        "random weights": untrained[0].transform(cones.data),
        "random weights, another draw": untrained[1].transform(cones.data),
        "global signal and scatter per slice": signal,
    }
    heads = {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))),
        "MLP head": LightconeRegressor(
            target_bounds=cones.target_bounds, max_epochs=200, patience=30, random_state=0
        ),
    }
    judge(ways, cones, heads)


if __name__ == "__main__":
    main()
