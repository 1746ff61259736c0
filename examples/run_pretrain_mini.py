"""
Pre-train the bundled weights, and judge them
=============================================

Simulates light cones without 21cmFAST, pre-trains encoders on them in several ways, and judges the
frozen summaries on the real light cones of :func:`~skatr_sk.load_lightcones`, which no pre-training
sees::

    python examples/run_pretrain_mini.py FOLDER

FOLDER keeps the light cones, the weights, the summaries, and one line of ``scores.jsonl`` for each
fit; a second run goes on where the first stopped. Two processes share the work if they have other
seeds: ``--seeds 0`` and ``--seeds 1 2``. ``--part`` chooses parts of the work, which are:

simulate
    The light cones, on the grid of the real ones.
pretrain
    Every recipe with every seed. ``weights/jepa-0.safetensors`` is ready for
    ``SKATRTransformer(weights=...)``.
probe
    A ridge regression on a few labels of simulated light cones that no pre-training saw. It is
    what recipes are chosen by, and which seed of a recipe is the median one.
few
    A few labels of real light cones: five folds for each seed.
curve
    Labels of simulated light cones. The tests are the real ones, and light cones that differ.
shifts
    A few labels of light cones that differ.
no-mean
    As "few", where the mean of each slice is subtracted from all light cones.
tables
    Print what the scores say, and write it as reStructuredText, ``tables.rst``.

A seed belongs to a pre-training, to a shuffle of the labels and to what is fitted on them, so that
the spread over seeds holds all three.
"""

import argparse
import io
import json
import sys
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
    LightconeRegressor,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._files import write_whole
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS
from skatr_sk.summaries import JEPA, Combined, LeJEPA, Supervised, VICReg

# Ways to summarise a light cone -------------------------------------------------------------------

# What is not said is the default of SKATRTransformer.
BOTH = Combined(objectives=[("jepa", JEPA()), ("labels", Supervised())], weights=[1.0, 1.0])
RECIPES = {
    "jepa": {},
    "vicreg": dict(objective=VICReg()),
    "lejepa": dict(objective=LeJEPA()),
    # With all labels of what it trains on. Labels are learned in more steps.
    "supervised": dict(objective=Supervised(), max_epochs=4),
    "combined": dict(objective=BOTH, max_epochs=2),
    "random": dict(max_epochs=0, whiten=False),
    "random-white": dict(max_epochs=0),
}
RECIPES = {name: recipe | dict(validation_fraction=0.02) for name, recipe in RECIPES.items()}
SIGNAL = "signal"  # mean and standard deviation of each slice: nothing is trained
NO_MEAN = "-no-mean"  # behind a name: the mean of each slice is subtracted before all else
NO_MEAN_WAYS = [
    way + NO_MEAN
    for way in ("jepa", "lejepa", "vicreg", "random", "random-white", SIGNAL, "supervised")
]
SCRATCH = "from scratch"  # a vision transformer that is trained on the labels alone

# What is fitted on labels -------------------------------------------------------------------------

FITTED = {
    # The targets are standardised: otherwise E_0, in hundreds of eV, would choose the penalty.
    "ridge": TransformedTargetRegressor(
        make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))),
        transformer=StandardScaler(),
    ),
    "head": LightconeRegressor(target_bounds=PRIOR_BOUNDS),
    "posterior": PosteriorEstimator(prior_bounds=PRIOR_BOUNDS),
    # Patches twice as long make it 2.5 times cheaper; the mean of tokens suits it best.
    SCRATCH: LightconeRegressor(
        backbone=SKATRTransformer(
            patch_size=(2, 2, 10), embed_dim=96, depth=2, embedding="moments", pooling="mean"
        ),
        target_bounds=PRIOR_BOUNDS,
        learning_rate=1e-3,
        batch_size=16,
        max_epochs=100,
        patience=20,
    ),
}

# How much of everything ---------------------------------------------------------------------------

FULL = SimpleNamespace(
    grid=dict(field_shape=(14, 14, 90), block=(2, 2, 5)),
    n_labelled=4000,  # simulated light cones: to pre-train on, and for the labels of the curve
    n_held_out=500,  # more of them, for the probe
    n_last=1000,  # more of them, of which some are chosen by their parameters
    n_real=229,
    n_folds=5,
    recipe={},  # parameters put over those of every recipe, and
    network={},  # over those of all networks that are fitted on labels
    # Numbers of labels; None are all of a fold's training rows.
    probe=dict(ridge=(32, 64, 128, 183, None)),
    few=dict(ridge=(32, 64, 128, None), head=(32, 64, 128, None), posterior=(None,)),
    curve=dict(
        ridge=(125, 250, 500, 1000, 2000, 4000),
        head=(125, 250, 500, 1000, 2000, 4000),
        posterior=(500, 4000),
    ),
    shifts=dict(ridge=(64, None), head=(None,)),
)
QUICK = SimpleNamespace(
    grid=dict(field_shape=(4, 4, 30), block=(1, 1, 3), cell_size=30),
    n_labelled=16,
    n_held_out=8,
    n_last=16,
    n_real=8,
    n_folds=2,
    recipe=dict(embed_dim=8, depth=1),
    network=dict(max_epochs=2),
    probe=dict(ridge=(6,)),
    few=dict(ridge=(4, None), head=(None,), posterior=(None,)),
    curve=dict(ridge=(8, 16), head=(16,), posterior=(16,)),
    shifts=dict(ridge=(None,)),
)
CHUNK = 500  # light cones in a file

# Light cones that differ --------------------------------------------------------------------------


def slice_redshifts(grid):
    """Redshift of each slice, for the parameters in the middle of the prior.

    The same for all light cones: their own redshifts would give Omega_m away.
    """
    middle = PRIOR_BOUNDS.mean(axis=1)[np.newaxis]
    return SimulatedLightcones(1, parameters=middle, **grid).redshifts()[0]


def with_noise(X, redshifts):
    """Add thermal noise, Gaussian and independent in each cell.

    It grows with redshift as the temperature of the sky, the synchrotron radiation of our galaxy,
    does with wavelength: to the power 2.55 (Pober et al., arXiv:1310.7031, section 2). At redshift
    9 it is 3 mK, so that over all slices it has the root mean square of the structure on the sky.
    """
    sigma = (3.0 * ((1 + redshifts) / 10) ** 2.55).astype(np.float32)
    return X + sigma * np.random.default_rng(0).standard_normal(X.shape, dtype=np.float32)


def with_cut(X, redshifts):
    """Set all slices but those from redshift 7 to 15 to 0 mK, no signal."""
    return X * ((redshifts > 7) & (redshifts < 15))


def near_a_line(y, n):
    """Rows of the `n` light cones whose L_X and T_vir are most nearly anticorrelated."""
    low, high = PRIOR_BOUNDS.T
    unit = (y - low) / (high - low)
    columns = [PARAMETER_NAMES.index(name) for name in ("log10_L_X", "log10_T_vir")]
    return np.argsort(np.abs(unit[:, columns].sum(axis=1) - 1))[:n]


def without_mean(X):
    """Subtract the mean of each slice, which an interferometer does not see."""
    return X - X.mean(axis=(1, 2), keepdims=True)


CHANGES = {"noise": with_noise, "cut": with_cut}  # of the real light cones
TESTS = ("real", *CHANGES, "simulated", "correlated")

# What is kept -------------------------------------------------------------------------------------


class Folder:
    """Light cones, weights, summaries and scores, each made once."""

    def __init__(self, path, plan, *, stand_in, core_hours):
        self.path, self.plan, self.stand_in = Path(path), plan, stand_in
        self.core_hours = core_hours  # of the rival from scratch
        for name in ("cones", "weights", "summaries"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self._check_settings()
        self.scores = self.path / "scores.jsonl"
        kept = self.scores.read_text() if self.scores.exists() else ""
        if kept and not kept.endswith("\n"):  # a line that was cut off
            kept = kept[: kept.rfind("\n") + 1]
            write_whole(self.scores, lambda whole: whole.write_text(kept))
        self.lines = [json.loads(line) for line in kept.splitlines()]
        self.done = {_key(line) for line in self.lines}
        self._sets = {}

    def _check_settings(self):
        """Stop where the folder was begun with other recipes, or another plan."""
        path = self.path / "settings.json"
        estimators = {name: SKATRTransformer(**recipe) for name, recipe in RECIPES.items()} | FITTED
        now = {name: repr(each.get_params()) for name, each in estimators.items()}  # and defaults
        sizes = ("grid", "n_labelled", "n_held_out", "n_last", "n_real", "n_folds")
        now |= {name: repr(getattr(self.plan, name)) for name in (*sizes, "recipe", "network")}
        now["real"] = "simulated ones stand in" if self.stand_in else "21cmFAST"
        before = json.loads(path.read_text()) if path.exists() else {}
        other = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
        if other:
            sys.exit(
                f"{path} has another {', '.join(other)}. Take a new folder, to which the light "
                "cones may move; or remove what depends on it: weights, summaries, lines of "
                "scores.jsonl, and its entry in this file."
            )
        text = json.dumps(before | now, indent=1)
        write_whole(path, lambda whole: whole.write_text(text))

    def simulate(self):
        """Simulate the light cones that are missing."""
        n = self.plan.n_labelled + self.plan.n_held_out + self.plan.n_last
        simulated = SimulatedLightcones(n, random_state=1234, **self.plan.grid)
        for start in range(0, n, CHUNK):
            path = self.path / "cones" / f"{start:05}.h5"
            if not path.exists():
                some = simulated[start : start + CHUNK]
                save_lightcones(path, some, dtype=np.float16)
                print(f"{path}: {len(some)} light cones", flush=True)

    def cones(self, name):
        """A set of light cones, and their parameters."""
        if name not in self._sets:
            self._sets[name] = self._load(name)
        return self._sets[name]

    def _load(self, name):
        plan = self.plan
        if name == "real" and not self.stand_in:
            return load_lightcones(return_X_y=True)
        if name in CHANGES:
            X, y = self.cones("real")
            return CHANGES[name](X, slice_redshifts(plan.grid)), y
        stored = open_lightcones(self.path / "cones")
        ends = np.cumsum([plan.n_labelled, plan.n_held_out, plan.n_last])
        labelled, held_out, last = np.split(np.arange(ends[-1]), ends[:-1])
        near = last[near_a_line(stored.target[last], plan.n_real)]
        rows = {
            "labelled": labelled,
            "held-out": held_out,
            "simulated": held_out[: plan.n_real],  # as many as "correlated", to compare
            "correlated": near,
            "real": np.setdiff1d(last, near)[: plan.n_real],  # only where they stand in
        }[name]
        return stored.data.read(rows).astype(np.float32), stored.target[rows]

    def weights(self, way, seed):
        """Path of the weights of a recipe, which are pre-trained where they are missing."""
        path = self.path / "weights" / f"{way}-{seed}.safetensors"
        if not path.exists():
            X, y = self.cones("labelled")
            X = without_mean(X) if way.endswith(NO_MEAN) else X
            recipe = RECIPES[way.removesuffix(NO_MEAN)] | self.plan.recipe
            start = time.process_time()
            SKATRTransformer(**recipe, random_state=seed).fit(X, y).save(path)
            print(f"{path}: {(time.process_time() - start) / 60:.1f} core minutes", flush=True)
        return path

    def summaries(self, way, seed, name):
        """Summaries of a set of light cones, and its parameters; from scratch the light cones."""
        X, y = self.cones(name)
        if way == SCRATCH:
            return X, y
        path = self.path / "summaries" / f"{way}-{seed}-{name}.npy"
        if not path.exists():
            X = without_mean(X) if way.endswith(NO_MEAN) else X
            if way.startswith(SIGNAL):
                S = X.std(axis=(1, 2))
                if way == SIGNAL:
                    S = np.concatenate([X.mean(axis=(1, 2)), S], axis=1)
            else:
                S = SKATRTransformer.load(self.weights(way, seed), cache=None).transform(X)
            write_whole(path, lambda whole: whole.write_bytes(_as_npy(S)))
        return np.load(path), y

    def score(self, line, X, y, tests):
        """Fit what `line` says, judge it on each of `tests`, and keep the line."""
        if _key(line) in self.done or not self._affordable(line, len(X)):
            return
        start = time.process_time()
        estimator = clone(FITTED[line["fitted"]])
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=line["seed"], **self.plan.network)
        estimator.fit(X, y)
        scores = {name: score_of(estimator, *test) for name, test in tests.items()}
        line = line | {"scores": scores, "n": len(X), "seconds": time.process_time() - start}
        with self.scores.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self.done.add(_key(line))

    def _affordable(self, line, n):
        """Whether `n` labels are within the core hours from scratch, as far as others tell."""
        others = [kept for kept in self.lines if kept["fitted"] == SCRATCH]
        if line["fitted"] != SCRATCH or not others:
            return True
        spent = sum(kept["seconds"] for kept in others)
        if spent + n * max(kept["seconds"] / kept["n"] for kept in others) < 3600 * self.core_hours:
            return True
        print(f"from scratch: not with {n} labels, after {spent / 3600:.1f} core hours", flush=True)
        return False


def _as_npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _key(line):
    names = ("part", "cones", "way", "seed", "fold", "fitted", "labels")
    return tuple(line[name] for name in names)


def score_of(estimator, X, y):
    """R2 of each parameter; of a posterior what it says beyond the uniform prior, in nats."""
    if isinstance(estimator, PosteriorEstimator):
        log_prior = -np.log(np.ptp(PRIOR_BOUNDS, axis=1)).sum()
        return [float(estimator.log_prob(X, y).mean() - log_prior)]
    return r2_score(y, estimator.predict(X), multioutput="raw_values").tolist()


# The fits -----------------------------------------------------------------------------------------


def cross_validate(folder, part, cones, ways, seeds, wanted):
    """Train and test on folds of a set of light cones, with some labels of the training rows."""
    for way in ways:
        for seed in seeds:
            S, y = folder.summaries(way, seed, cones)
            folds = KFold(folder.plan.n_folds, shuffle=True, random_state=seed).split(S)
            for fold, (train, test) in enumerate(folds):
                train = np.random.default_rng((seed, fold)).permutation(train)
                line = dict(part=part, cones=cones, way=way, seed=seed, fold=fold)
                fit_each(folder, line, wanted, S[train], y[train], {cones: (S[test], y[test])})
        print(f"{part}, {cones}: {way}", flush=True)


def learn_curve(folder, ways, seeds, wanted):
    """Train on some of the simulated labels, and test on other sets of light cones."""
    for way in ways:
        for seed in seeds:
            S, y = folder.summaries(way, seed, "labelled")
            train = np.random.default_rng(seed).permutation(len(S))
            line = dict(part="curve", cones="labelled", way=way, seed=seed, fold=None)
            tests = {name: folder.summaries(way, seed, name) for name in TESTS}
            fit_each(folder, line, wanted, S[train], y[train], tests)
        print(f"curve: {way}", flush=True)


def fit_each(folder, line, wanted, S, y, tests):
    """Fit on the first rows, as many as `wanted` says for each kind of estimator."""
    for fitted, counts in wanted.items():
        for n in counts:
            folder.score(line | dict(fitted=fitted, labels=n), S[:n], y[:n], tests)


# The tables ---------------------------------------------------------------------------------------


def scores_of(folder, way, *, test, column=None, **wanted):
    """Mean over the folds for each seed.

    Of R2 it is the mean over all parameters but m_WDM, or that of one `column`.
    """
    if way == SCRATCH and wanted["fitted"] == "head":
        wanted["fitted"] = SCRATCH  # has its row beside the heads
    if column is None:
        column = slice(0, 1) if wanted["fitted"] == "posterior" else slice(1, None)
    found = {}
    for line in folder.lines:
        if line["way"] == way and all(line[name] == value for name, value in wanted.items()):
            found.setdefault(line["seed"], []).append(np.mean(line["scores"][test][column]))
    return {seed: float(np.mean(scores)) for seed, scores in found.items()}


def over_random(folder, way, **wanted):
    """The same, less that of random weights with the same labels."""
    random = "random" + NO_MEAN * way.endswith(NO_MEAN)
    ours, theirs = (scores_of(folder, each, **wanted) for each in (way, random))
    return {seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()}


def as_text(scores):
    """Mean and standard deviation over seeds."""
    values = list(scores.values())
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def make_table(folder, title, ways, columns, of=scores_of):
    """Table of the ways that have scores: a title and rows of text, the first of them a header."""
    rows = []
    for way in ways:
        cells = [as_text(of(folder, way, **wanted)) for wanted in columns.values()]
        if set(cells) != {"-"}:
            rows.append([way, *cells])
    return title, [["", *columns], *rows]


def as_plain(title, rows):
    lines = [f"{row[0]:<16}" + "".join(f"{text:>18}" for text in row[1:]) for row in rows]
    return "\n".join(["", title, "", *lines])


def as_rst(title, rows):
    lines = ["", f".. list-table:: {title}", "   :header-rows: 1", ""]
    for first, *others in rows:
        lines += [f"   * - {first}", *(f"     - {text}" for text in others)]
    return "\n".join(lines)


def print_tables(folder, ways, no_mean_ways):
    """Print a table for each part that has scores, and write them beside these."""
    plan, rivals, tables = folder.plan, [*ways, SCRATCH], []
    most = max(plan.curve["ridge"])

    def by_labels(fitted, counts, **wanted):
        return {str(n or "all"): wanted | dict(fitted=fitted, labels=n) for n in counts}

    def add(title, ways, fitted, columns):
        what = "nats" if fitted == "posterior" else "mean R2 but m_WDM"
        title = f"{title}, {fitted}"
        trained = [way for way in ways if not way.startswith("random")]
        tables.append(make_table(folder, f"{title}: {what}", ways, columns))
        ahead = f"{title}: ahead of random weights"
        tables.append(make_table(folder, ahead, trained, columns, over_random))

    probe = dict(part="probe", cones="held-out", test="held-out")
    columns = by_labels("ridge", plan.probe["ridge"], **probe)
    add("Probe, labels of simulated light cones", ways, "ridge", columns)
    for way in ways:
        found = [scores_of(folder, way, **wanted) for wanted in columns.values()]
        seeds = set.intersection(*map(set, found))
        order = sorted(seeds, key=lambda seed: sum(scores[seed] for scores in found))
        if len(order) > 2:
            print(f"{way}: seed {order[len(order) // 2]} is the median of the probe")

    for fitted, counts in plan.few.items():
        real = dict(part="few", cones="real", test="real")
        add("Real labels", rivals, fitted, by_labels(fitted, counts, **real))
    columns = {
        name: real | dict(fitted="ridge", labels=None, column=column)
        for column, name in enumerate(PARAMETER_NAMES)
    }
    tables.append(make_table(folder, "All real labels, ridge: R2", ways, columns))

    curve = dict(part="curve", cones="labelled")
    for fitted, counts in plan.curve.items():
        columns = by_labels(fitted, counts, **curve, test="real")
        add("Simulated labels, tested on real light cones", rivals, fitted, columns)
    for fitted in plan.curve:
        columns = {name: curve | dict(fitted=fitted, labels=most, test=name) for name in TESTS}
        add(f"{most} simulated labels, tested on", rivals, fitted, columns)

    for fitted, counts in plan.shifts.items():
        for n in counts:
            columns = {"real": real | dict(fitted=fitted, labels=n)} | {
                name: dict(part="shifts", cones=name, test=name, fitted=fitted, labels=n)
                for name in TESTS[1:]
            }
            title = f"{n or 'All'} labels of the light cones that are the test"
            add(title, ways, fitted, columns)

    for fitted, counts in plan.few.items():
        columns = by_labels(fitted, counts, part="no-mean", cones="real", test="real")
        add("Real labels, no mean", no_mean_ways, fitted, columns)

    tables = [(title, rows) for title, rows in tables if len(rows) > 1]
    print("\n".join(as_plain(*table) for table in tables))
    (folder.path / "tables.rst").write_text("\n".join(as_rst(*table) for table in tables))
    minutes = {}
    for line in folder.lines:
        minutes[line["part"]] = minutes.get(line["part"], 0) + line["seconds"] / 60
    print("\ncore minutes of the fits:", {part: round(time, 1) for part, time in minutes.items()})


# All of it ----------------------------------------------------------------------------------------

PARTS = ("simulate", "pretrain", "probe", "few", "curve", "shifts", "no-mean", "tables")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Pre-train the bundled weights, and judge them.")
    parser.add_argument("folder", help="where everything is kept")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ways", nargs="+", choices=[*RECIPES, SIGNAL], help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--from-scratch", type=int, default=0, metavar="N_MAX",
        help="judge that rival as well, with up to so many labels and the first seed",
    )  # fmt: skip
    parser.add_argument("--core-hours", type=float, default=4.0, help="for --from-scratch")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument(
        "--stand-in", action="store_true", help="simulated light cones stand in for the real ones"
    )
    parser.add_argument("--quick", action="store_true", help="a glance at the smallest size")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    plan = QUICK if given.quick else FULL
    stand_in = given.stand_in or given.quick  # light cones of that size are simulated ones
    folder = Folder(given.folder, plan, stand_in=stand_in, core_hours=given.core_hours)
    ways, seeds = given.ways or [*RECIPES, SIGNAL], given.seeds
    no_mean_ways = [way for way in NO_MEAN_WAYS if way.removesuffix(NO_MEAN) in ways]

    def from_scratch(counts):
        return {SCRATCH: [n for n in counts if (n or plan.n_real) <= given.from_scratch]}

    if "simulate" in given.part:
        folder.simulate()
    if "pretrain" in given.part:
        for seed in seeds:
            for way in (*ways, *no_mean_ways):
                if not way.startswith(SIGNAL):
                    folder.weights(way, seed)
    if "probe" in given.part:
        cross_validate(folder, "probe", "held-out", ways, seeds, plan.probe)
    if "few" in given.part:
        cross_validate(folder, "few", "real", ways, seeds, plan.few)
        if given.from_scratch:
            wanted = from_scratch(plan.few["head"])
            cross_validate(folder, "few", "real", [SCRATCH], seeds[:1], wanted)
    if "curve" in given.part:
        learn_curve(folder, ways, seeds, plan.curve)
        if given.from_scratch:
            learn_curve(folder, [SCRATCH], seeds[:1], from_scratch(plan.curve["head"]))
    if "shifts" in given.part:
        for cones in TESTS[1:]:
            cross_validate(folder, "shifts", cones, ways, seeds, plan.shifts)
    if "no-mean" in given.part:
        cross_validate(folder, "no-mean", "real", no_mean_ways, seeds, plan.few)
    if "tables" in given.part:
        print_tables(folder, ways, no_mean_ways)


if __name__ == "__main__":
    main()
