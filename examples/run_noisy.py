"""
Trained clean or noisy, tested noisy
====================================

A summary that is good on clean light cones may be of no use once an array has looked at them. This
script adds the thermal noise of SKA-Low after 1000 hours to simulated light cones
(:class:`~skatr_sk.NoiseTransformer`), and fits a ridge regression on summaries of clean or of noisy
ones, with 64, 183 and 1000 labels::

    python examples/run_noisy.py FOLDER

The summaries are those of the bundled weights, of power spectra, of random weights, and of encoders
that are pre-trained here: on noise that is fresh in each step (``augment=NoiseTransformer()``), on
light cones with the same noise in each epoch, and on clean ones. ``--subtract-mean`` takes the mean
of each slice out of all light cones, which an interferometer does not see; give it a FOLDER of its
own. FOLDER keeps light cones, weights, summaries, and a line of ``scores.jsonl`` for each fit; a
second run goes on where the first stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import (
    NoiseTransformer,
    PowerSpectrumTransformer,
    SimulatedLightcones,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)

GRID = dict(field_shape=(14, 14, 90), block=(2, 2, 5))
N_PRETRAIN, N_LABELS, N_TEST = 3400, 1000, 600
LABELS = (64, 183, 1000)
SHUFFLES = 3
TRAINING = dict(max_epochs=1, validation_fraction=0.02, random_state=0, verbose=1)
# What is fitted, and on which light cones.
WAYS = {
    "spectra": (PowerSpectrumTransformer(), "clean"),
    "spectra, moments": (PowerSpectrumTransformer(moments=True), "clean"),
    "mini-lr": (SKATRTransformer(weights="mini-lr"), "clean"),
    "random": (SKATRTransformer(max_epochs=0, random_state=0), "clean"),
    "JEPA, fresh noise": (SKATRTransformer(**TRAINING), "fresh"),
    "JEPA": (SKATRTransformer(**TRAINING), "clean"),
    "JEPA, fixed noise": (SKATRTransformer(**TRAINING), "noisy"),
    "random, of noisy": (SKATRTransformer(max_epochs=0, random_state=0), "noisy"),
}
RIDGE = TransformedTargetRegressor(
    make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))), transformer=StandardScaler()
)


class Folder:
    """Light cones, weights, summaries and scores, each made once."""

    def __init__(self, path, subtract_mean):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        cones = self.path / "cones.h5"
        if not cones.exists():
            n = N_PRETRAIN + N_LABELS + N_TEST
            many = SimulatedLightcones(n, random_state=0, **GRID)
            save_lightcones(cones, many, dtype="float16", verbose=1)
        stored = open_lightcones(cones)
        self.target = stored.target
        grid = SimulatedLightcones(1, **GRID).grid
        where = dict(redshifts=grid.redshifts, cell_size=grid.cell_size)
        self.noise = NoiseTransformer(subtract_mean=subtract_mean, random_state=0, **where)
        clean = NoiseTransformer(noise=None, subtract_mean=subtract_mean)
        self.data = {
            "clean": clean.fit(stored.data).transform(stored.data),
            "noisy": self.noise.fit(stored.data).transform(stored.data),
        }
        self.scores = self.path / "scores.jsonl"
        lines = self.scores.read_text().splitlines() if self.scores.exists() else []
        self.lines = [json.loads(line) for line in lines]

    def fitted(self, way):
        """The transformer of a way, which is trained where its weights are missing."""
        transformer, on = WAYS[way]
        path, start = self.path / f"{way}.safetensors", time.process_time()
        if path.exists():
            return SKATRTransformer.load(path, cache=None)
        if on == "fresh":
            noise = clone(self.noise).set_params(random_state=None)
            transformer, on = clone(transformer).set_params(augment=noise), "clean"
        transformer.fit(self.data[on][:N_PRETRAIN])
        if isinstance(transformer, SKATRTransformer):
            transformer.save(path)
            print(f"{way}: {(time.process_time() - start) / 60:.1f} core minutes", flush=True)
        return transformer

    def summaries(self, way, how):
        """Summaries of the light cones with labels and of the test, clean or noisy."""
        path = self.path / f"{way}-{how}.npy"
        if not path.exists():
            np.save(path, self.fitted(way).transform(self.data[how][N_PRETRAIN:]))
        return np.load(path)

    def score(self, way, trained, tested):
        """Fit a ridge regression for each number of labels and shuffle, and keep what it scores."""
        known = {(line["way"], line["trained"], line["tested"]) for line in self.lines}
        if (way, trained, tested) in known:
            return
        S, test = self.summaries(way, trained), self.summaries(way, tested)[N_LABELS:]
        y = self.target[N_PRETRAIN:]
        scores = {n: [] for n in LABELS}
        for shuffle in range(SHUFFLES):
            order = np.random.default_rng(shuffle).permutation(N_LABELS)
            for n in LABELS:
                fitted = RIDGE.fit(S[order[:n]], y[order[:n]])
                r2 = r2_score(y[N_LABELS:], fitted.predict(test), multioutput="raw_values")
                scores[n].append(r2.tolist())
        line = dict(way=way, trained=trained, tested=tested, scores=scores)
        with self.scores.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)


def print_table(lines):
    """Mean R2 of all parameters but m_WDM, and its spread over the shuffles of the labels."""
    print(f"{'trained, tested':<16}{'labels':<20}" + "".join(f"{n:>16}" for n in LABELS))
    for line in sorted(lines, key=lambda one: (one["trained"], one["tested"], one["way"])):
        each = [np.array(one)[:, 1:].mean(axis=1) for one in line["scores"].values()]
        cells = [f"{one.mean():.3f} ± {one.std(ddof=1):.3f}" for one in each]
        how = f"{line['trained']}, {line['tested']}"
        print(f"{how:<16}{line['way']:<20}" + "".join(f"{cell:>16}" for cell in cells))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Trained clean or noisy, tested noisy.")
    parser.add_argument("folder", help="where everything is kept")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--subtract-mean", action="store_true", help="of each slice")
    given = parser.parse_args(arguments)
    folder = Folder(given.folder, given.subtract_mean)
    for way in given.ways:
        for trained, tested in [("clean", "clean"), ("clean", "noisy"), ("noisy", "noisy")]:
            folder.score(way, trained, tested)
    print_table(json.loads(json.dumps(folder.lines)))


if __name__ == "__main__":
    main()
