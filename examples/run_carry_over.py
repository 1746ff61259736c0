"""
Do summaries carry over to another physics?
===========================================

Summaries are pre-trained on cheap light cones and used on others. Here the cheap ones are of *cold*
dark matter: their labels m_WDM are drawn, and have no effect. The others are of warm dark matter,
in coarse cells, and in cells half as wide that are brought down to the same grid::

    python examples/run_carry_over.py FOLDER

FOLDER keeps the light cones, the weights, the summaries and one line of ``scores.jsonl`` for each
fit; a second run goes on where the first stopped. ``--part`` chooses parts of the work, which are:

simulate
    The light cones. Half of the fine ones have m_WDM below 3 keV.
pretrain
    The recipes: no labels (the default JEPA), all six labels, those of four parameters (neither
    m_WDM nor T_vir), and random weights; and, as a control, all six labels of as many *warm* light
    cones, which nothing has to carry over from.
score
    A ridge regression on frozen summaries, trained and tested on light cones of one kind: as they
    are, with m_WDM below 3 keV, with thermal noise, with a band of redshifts missing, and real
    ones of 21cmFAST.
tables
    Print R2 per parameter, and write it as reStructuredText, ``tables.rst``.
"""

import argparse
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import (
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._files import write_whole
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS
from skatr_sk.summaries import Supervised

LIGHT = 3.0  # keV: below it m_WDM leaves its mark
LIGHT_BOUNDS = PRIOR_BOUNDS.copy()
LIGHT_BOUNDS[0, 1] = LIGHT
NOT_ASKED = [PARAMETER_NAMES.index(name) for name in ("m_WDM", "log10_T_vir")]

# Light cones to pre-train on, and others; all end on the grid of the bundled ones.
KINDS = {
    "cold": dict(random_state=1, dark_matter="cold"),
    "control": dict(random_state=4),
    "warm": dict(random_state=1234),
    "fine": dict(random_state=2),
    "fine-light": dict(random_state=3, prior_bounds=LIGHT_BOUNDS),
}
# Ways to summarise them, what they are pre-trained on, and the labels that they are not given; the
# rest are the defaults of SKATRTransformer.
RECIPES = {
    "JEPA, no labels": (dict(max_epochs=4), "cold", []),
    "six labels": (dict(objective=Supervised(), max_epochs=10), "cold", []),
    "four labels": (dict(objective=Supervised(), max_epochs=10), "cold", NOT_ASKED),
    "six labels, warm": (dict(objective=Supervised(), max_epochs=10), "control", []),
    "random weights": (dict(max_epochs=0, whiten=False), "cold", []),
}
# The targets are standardised: otherwise E_0, in hundreds of eV, would choose the penalty.
RIDGE = TransformedTargetRegressor(
    make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))), transformer=StandardScaler()
)

FULL = SimpleNamespace(
    coarse=dict(field_shape=(14, 14, 90), block=(2, 2, 5)),
    fine=dict(field_shape=(14, 14, 90), block=(4, 4, 10), cell_size=200 / 56),
    n={"cold": 1000, "control": 1000, "warm": 1400, "fine": 700, "fine-light": 560},
    chunk=50,  # light cones in a file
    labels=(64, 183, 256, 1000),
    n_folds=5,
    recipe={},
)
QUICK = SimpleNamespace(
    coarse=dict(field_shape=(4, 4, 30), block=(1, 1, 3), cell_size=30),
    fine=dict(field_shape=(4, 4, 30), block=(1, 1, 6), cell_size=15),
    n={"cold": 6, "control": 6, "warm": 16, "fine": 4, "fine-light": 4},
    chunk=8,
    labels=(2, 4, 10_000),
    n_folds=2,
    recipe=dict(embed_dim=8, depth=1),
)

# What happens to light cones ----------------------------------------------------------------------


def with_noise(X, redshifts):
    """Add thermal noise, Gaussian in each cell: 3 mK at redshift 9, growing as (1 + z)^2.55."""
    sigma = (3.0 * ((1 + redshifts) / 10) ** 2.55).astype(np.float32)
    return X + sigma * np.random.default_rng(0).standard_normal(X.shape, dtype=np.float32)


def with_gap(X, redshifts):
    """Set a band, redshift 8 to 11, to 0 mK, no signal: as where the radio is jammed."""
    return X * ~((redshifts > 8) & (redshifts < 11))


CHANGES = {"as they are": lambda X, redshifts: X, "noise": with_noise, "gap": with_gap}


class Folder:
    """Light cones, weights, summaries and scores, each made once."""

    def __init__(self, path, plan):
        self.path, self.plan = Path(path), plan
        for name in ("cones", "weights", "summaries"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.scores = self.path / "scores.jsonl"
        kept = self.scores.read_text() if self.scores.exists() else ""
        if not kept.endswith("\n"):  # a line that was cut off
            kept = kept[: kept.rfind("\n") + 1]
            self.scores.write_text(kept)
        self.lines = [json.loads(line) for line in kept.splitlines()]
        self.done = {_key(line) for line in self.lines}
        # Of the middle of the prior: their own redshifts would give Omega_m away.
        middle = PRIOR_BOUNDS.mean(axis=1)[np.newaxis]
        self.redshifts = SimulatedLightcones(1, parameters=middle, **plan.coarse).redshifts()[0]

    def simulate(self):
        for kind, options in KINDS.items():
            grid = self.plan.fine if kind.startswith("fine") else self.plan.coarse
            cones = SimulatedLightcones(self.plan.n[kind], **grid, **options)
            for start in range(0, len(cones), self.plan.chunk):
                path = self.path / "cones" / f"{kind}-{start:05}.h5"
                if not path.exists():
                    some = cones[start : start + self.plan.chunk]
                    save_lightcones(path, some, dtype=np.float16)
                    print(f"{path}: {len(some)} light cones", flush=True)

    def cones(self, kind):
        """Light cones of a kind, as far as they are there, and their parameters."""
        if kind == "real":
            if self.plan is QUICK:  # of another grid
                return self.cones("warm")
            return load_lightcones(return_X_y=True)
        if kind == "fine":
            both = [self.stored(name) for name in ("fine", "fine-light")]
            return tuple(np.concatenate(each) for each in zip(*both, strict=True))
        return self.stored(kind)

    def stored(self, kind):
        files = sorted((self.path / "cones").glob(f"{kind}-[0-9]*.h5"))
        found = open_lightcones(files)
        return found.data.read().astype(np.float32), found.target

    def weights(self, way, seed):
        """Path of the weights of a recipe, which is pre-trained where they are missing."""
        path = self.path / "weights" / f"{way.replace(' ', '-')}-{seed}.safetensors"
        if not path.exists():
            recipe, kind, without = RECIPES[way]
            X, y = self.cones(kind)
            y[:, without] = np.nan
            start = time.process_time()
            SKATRTransformer(**recipe | self.plan.recipe, random_state=seed).fit(X, y).save(path)
            minutes = (time.process_time() - start) / 60
            print(f"{path}: {len(X)} light cones, {minutes:.1f} core minutes", flush=True)
        return path

    def summaries(self, way, seed, kind, change):
        name = f"{way}-{seed}-{kind}-{change}.npy".replace(" ", "-")
        path = self.path / "summaries" / name
        X, y = self.cones(kind)
        if not path.exists() or len(np.load(path)) != len(X):
            X = CHANGES[change](X, self.redshifts)
            S = SKATRTransformer.load(self.weights(way, seed), cache=None).transform(X)
            stream = io.BytesIO()
            np.save(stream, S)
            write_whole(path, lambda whole: whole.write_bytes(stream.getvalue()))
        return np.load(path), y

    def score(self, way, seed, kind, change, light):
        """Ridge regressions in folds of one kind, on as many labels as there are and are asked."""
        S, y = self.summaries(way, seed, kind, change)
        if light:
            S, y = S[y[:, 0] < LIGHT], y[y[:, 0] < LIGHT]
        folds = KFold(self.plan.n_folds, shuffle=True, random_state=seed).split(S)
        for fold, (train, test) in enumerate(folds):
            train = np.random.default_rng((seed, fold)).permutation(train)
            for labels in self.plan.labels:
                line = dict(way=way, seed=seed, kind=kind, change=change, light=light)
                line |= dict(labels=labels, n=len(S), fold=fold)
                if labels > len(train) or _key(line) in self.done:
                    continue
                fitted = clone(RIDGE).fit(S[train[:labels]], y[train[:labels]])
                line["r2"] = r2_score(
                    y[test], fitted.predict(S[test]), multioutput="raw_values"
                ).tolist()
                with self.scores.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                self.lines.append(line)
                self.done.add(_key(line))


def _key(line):
    return tuple(value for name, value in line.items() if name != "r2")


# All of it ----------------------------------------------------------------------------------------

TESTS = [
    ("warm", "as they are", False), ("warm", "as they are", True), ("warm", "noise", False),
    ("warm", "gap", False), ("fine", "as they are", False), ("fine", "as they are", True),
    ("fine", "noise", False), ("fine", "gap", False), ("real", "as they are", False),
]  # fmt: skip


def tables(folder):
    """One table for each kind of light cones and number of labels: R2 per parameter."""
    found = []
    for kind, change, light in TESTS:
        here = [line for line in folder.lines if line["kind"] == kind]
        here = [line for line in here if (line["change"], line["light"]) == (change, light)]
        n = max((line["n"] for line in here), default=0)
        for labels in folder.plan.labels:
            rows = [["", *PARAMETER_NAMES, "mean"]]
            for way in RECIPES:
                wanted = dict(way=way, labels=labels, n=n)
                lines = [line for line in here if wanted.items() <= line.items()]
                if lines:
                    r2 = np.mean([line["r2"] for line in lines], axis=0)
                    rows.append([way, *(f"{value:.2f}" for value in (*r2, r2.mean()))])
            title = f"{kind}{', m_WDM < 3 keV' * light}, {change}, {n}: {labels} labels"
            if len(rows) > 1:
                found.append((title, rows))
    return found


def as_plain(title, rows):
    lines = ["".join(f"{text:>13}" if i else f"{text:<18}" for i, text in enumerate(row))
             for row in rows]  # fmt: skip
    return "\n".join(["", title, *lines])


def as_rst(title, rows):
    lines = ["", f".. list-table:: {title}", "   :header-rows: 1", ""]
    for first, *others in rows:
        lines += [f"   * - {first}", *(f"     - {text}" for text in others)]
    return "\n".join(lines)


PARTS = ("simulate", "pretrain", "score", "tables")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Do summaries carry over to another physics?")
    parser.add_argument("folder", help="where everything is kept")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--kinds", nargs="+", choices=["warm", "fine", "real"], help="to score on")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--quick", action="store_true", help="a glance at the smallest size")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    folder = Folder(given.folder, QUICK if given.quick else FULL)
    if "simulate" in given.part:
        folder.simulate()
    for seed in given.seeds:
        if "pretrain" in given.part:
            for way in RECIPES:
                folder.weights(way, seed)
        if "score" in given.part:
            for kind, change, light in TESTS:
                if kind in (given.kinds or [kind]):
                    for way in RECIPES:
                        folder.score(way, seed, kind, change, light)
    if "tables" in given.part:
        found = tables(folder)
        print("\n".join(as_plain(*table) for table in found))
        (folder.path / "tables.rst").write_text("\n".join(as_rst(*table) for table in found))


if __name__ == "__main__":
    main()
