"""Seconds from nothing to the score that a plain loop reaches in ten minutes on two cores.

1,600 light cones of `SimulatedLightcones` on the grid of the bundled ones, without labels. The
score is the mean R2, over all parameters but m_WDM, of a ridge regression on the frozen summaries
of 1,000 others, five folds. The plain loop has the published recipe: width 144, depth 4, four masks
of each light cone's own, batches of 64, AdamW at 1e-3, a moving average of 0.9997, mean tokens.
Ours has its defaults, for the fewest epochs that reach that score. Random weights of either encoder
are judged beside them. It takes some half an hour, and runs where a folder is given::

    SKATR_SCORE=FOLDER python -m pytest -m slow tests/benchmarks/test_time_to_score.py -s

The folder keeps the light cones and all scores, so that a run which was ended goes on.
``SKATR_SCORE_MINUTES`` gives the plain loop another time than ten minutes.
"""

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import SimulatedLightcones, SKATRTransformer
from tests.benchmarks.references import PlainJEPA
from tests.benchmarks.table import seconds

FOLDER = os.environ.get("SKATR_SCORE")
MINUTES = float(os.environ.get("SKATR_SCORE_MINUTES", 10))
GRID = dict(field_shape=(14, 14, 90), block=(2, 2, 5))
N_TRAIN, N_PROBE = 1600, 1000
EPOCHS = (0, 1, 2, "auto")  # of ours, "auto" being the default


class Log:
    """Scores in a file of the folder, a line of JSON for each; none is computed twice."""

    def __init__(self, path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.found = {tuple(each["key"]): each for each in map(json.loads, lines)}

    def __getitem__(self, key):
        return self.found.get(key)

    def add(self, key, **values):
        self.found[key] = values | {"key": key}
        with self.path.open("a") as file:
            file.write(json.dumps(self.found[key]) + "\n")
        print(f"\n{' '.join(map(str, key))}: {values}", end="", flush=True)
        return self.found[key]


def light_cones(folder):
    """Return those of the training, those of the probe and their labels; simulated once."""
    path = folder / "cones.npz"
    if not path.exists():
        simulated = SimulatedLightcones(N_TRAIN + N_PROBE, random_state=1234, **GRID)
        groups = np.arange(len(simulated)).reshape(-1, 100)
        X = np.concatenate([simulated.read(rows).astype(np.float16) for rows in groups])
        np.savez(path, X=X, y=simulated.target[N_TRAIN:, 1:])
    with np.load(path) as kept:
        X = kept["X"].astype(np.float32)
        return X[:N_TRAIN], X[N_TRAIN:], kept["y"]


def probe(summaries, y):
    """Mean R2 of a ridge regression on summaries, of which it saw four fifths."""
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    ridge = TransformedTargetRegressor(ridge, transformer=StandardScaler())
    predicted = cross_val_predict(ridge, summaries, y, cv=KFold(5))
    return float(r2_score(y, predicted))


def plain_loop(X, score, log):
    """Train the plain loop for its minutes and score it after each epoch; only steps are timed."""
    torch.manual_seed(0)
    plain = PlainJEPA(X.shape[1:], (2, 2, 5), 144, per_sample=True)
    fields, budget, spent, steps = torch.from_numpy(X), 60 * MINUTES, 0.0, 0
    judged = partial(plain.summaries, batch_size=64)
    log.add(("plain loop", "random weights"), seconds=0.0, score=score(judged))
    while spent < budget:
        start = time.perf_counter()
        for _ in plain.epoch(fields, 64):
            steps += 1
            if spent + time.perf_counter() - start >= budget:
                break
        spent += time.perf_counter() - start
        log.add(("plain loop", steps), seconds=spent, score=score(judged))
    return log.add(("plain loop", "at the end"), steps=steps, seconds=spent, score=score(judged))


@pytest.mark.slow
def test_time_to_the_score_of_the_plain_loop(table, torch_seed):
    """At most a fifth of the plain loop's ten minutes."""
    if not FOLDER:
        pytest.skip("SKATR_SCORE has to name a folder")
    log = Log(Path(FOLDER) / "scores.jsonl")
    X, others, y = light_cones(Path(FOLDER))

    def score(summaries):
        return probe(np.asarray(summaries(torch.from_numpy(others))), y)

    plain = log["plain loop", "at the end"] or plain_loop(X, score, log)
    for max_epochs in EPOCHS:
        key = ("ours", f"max_epochs={max_epochs!r}")
        if log[key] is None:
            skatr = SKATRTransformer(max_epochs=max_epochs, cache=None, random_state=0)
            spent = seconds(skatr.fit, X)
            log.add(key, seconds=spent, score=probe(skatr.transform(others), y))
        ours = log[key]
        reached = ours["score"] >= plain["score"]
        table.add(
            f"pre-training, {key[1]}: R2 {ours['score']:.3f}",
            ours["seconds"],
            plain["seconds"],
            against=f"plain loop, {plain['steps']} steps: R2 {plain['score']:.3f}",
            check=False,
            limit=0.2 if reached else None,
        )
    assert any(row.met for row in table.rows)
