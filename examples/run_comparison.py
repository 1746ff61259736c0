"""
What else could be done: the whole comparison
=============================================

Every way from light cones to parameters that a cosmologist could take instead of frozen summaries
of SKATR, on the real light cones of :func:`~skatr_sk.load_lightcones`: the same folds and the same
labels for all of them::

    python examples/run_comparison.py FOLDER

FOLDER keeps a file for each way and shuffle; a second run goes on where the first stopped. In the
end it prints the tables, and draws ``comparison.png``. The spread is over folds, shuffles of the
labels and seeds of heads and networks; the frozen encoders are one of each kind. "random" is the
encoder of SKATR untrained, whitened like it; it has learned its scaling and whitening from all
light cones, those of the tests too, without labels. Summaries of frozen encoders are computed
once, and the seconds of a fit are without them: what they take is printed apart. The networks that
are trained on the light cones themselves take most of the time, some two hours of two cores;
``--ways`` chooses some. ``examples/plot_comparison.py`` is the same in 8 to 15 minutes.
"""

import argparse
import json
import os
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skatr_sk import LightconeRegressor, PowerSpectrumTransformer, SKATRTransformer, load_lightcones
from skatr_sk._files import write_whole
from skatr_sk.evaluation import DataEfficiencyDisplay, data_efficiency_curve

# The ways -----------------------------------------------------------------------------------------


def global_signal(X):
    """Mean and standard deviation of each slice, along the line of sight."""
    return np.concatenate([X.mean(axis=(1, 2)), X.std(axis=(1, 2))], axis=1, dtype=np.float64)


def frozen(name, cones, **parameters):
    """A transformer that no fit changes: weights are read, or drawn, here. Print what it takes."""
    start = time.perf_counter()
    skatr = SKATRTransformer(**parameters).fit(cones.data)
    skatr.transform(cones.data)
    print(f"{name}: {time.perf_counter() - start:.1f} s for {len(cones.data)} summaries")
    return FrozenEstimator(skatr)


def ways_to_compare(cones, *, quick=False, max_epochs=100):
    """Two dicts of estimators by their names: on summaries, and trained on the light cones.

    All of them take light cones in mK. `max_epochs` is of the second ones.
    """
    usual = dict(target_bounds=cones.target_bounds)
    head = LightconeRegressor(**usual, **(dict(hidden_dims=(8,), max_epochs=2) if quick else {}))
    # The targets are standardised: otherwise E_0, in hundreds of eV, would choose the penalty.
    ridge = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))),
        transformer=StandardScaler(),
    )
    skatr = frozen("SKATR", cones, weights="mini-lr")
    labels = frozen("Supervised", cones, weights="mini-lr-labels")
    untrained = frozen("random", cones, max_epochs=0, random_state=0)
    signal = FunctionTransformer(global_signal)
    spectra = PowerSpectrumTransformer(cell_size=cones.cell_size)
    with_means = PowerSpectrumTransformer(cell_size=cones.cell_size, moments=True)
    on_summaries = {
        "constant": DummyRegressor(),
        "signal, ridge": make_pipeline(signal, ridge),
        "signal, head": make_pipeline(signal, head),
        "2-D spectra, ridge": make_pipeline(spectra, ridge),
        "2-D spectra, head": make_pipeline(spectra, head),
        "and means, ridge": make_pipeline(with_means, ridge),
        "and means, head": make_pipeline(with_means, head),
        "random, ridge": make_pipeline(untrained, ridge),
        "random, head": make_pipeline(untrained, head),
        "SKATR, ridge": make_pipeline(skatr, ridge),
        "SKATR, head": make_pipeline(skatr, head),
        "Supervised, ridge": make_pipeline(labels, ridge),
        "Supervised, head": make_pipeline(labels, head),
    }
    # As a module it begins with the frozen summaries.
    tuned = skatr.estimator.as_module().requires_grad_(True)
    careful = dict(frozen_epochs=10, backbone_learning_rate=1e-4, layer_decay=0.7)
    # Patches twice as long make it 2.5 times cheaper; the mean of tokens suits it best.
    vit = SKATRTransformer(patch_size=(2, 2, 10), pooling="mean")
    usual |= dict(max_epochs=2 if quick else max_epochs, batch_size=16)
    on_cones = {
        "SKATR, fine-tuned": LightconeRegressor(backbone=tuned, **usual, **careful),
        "ViT from scratch": LightconeRegressor(backbone=vit, learning_rate=1e-3, **usual),
        "CNN from scratch": LightconeRegressor(backbone="cnn", learning_rate=1e-3, **usual),
    }
    return on_summaries, on_cones


# What is fitted, and kept -------------------------------------------------------------------------


def compare(ways, cones, sizes, *, n_folds=5, repeats=(0,), n_tests=None, folder=None):
    """Return the table of :func:`data_efficiency_curve` of all ways, and of each repeat.

    A repeat has folds, shuffles and seeds of its own; `n_tests` are so many of its folds that are a
    test. What is in the `folder` already is not fitted again.
    """
    tables = []
    for repeat in repeats:
        folds = list(KFold(n_folds, shuffle=True, random_state=repeat).split(cones.data))
        for name, way in ways.items():
            key = f"{repeat}-{'-'.join(map(str, sizes))}-of-{len(cones.data)}"
            path = folder and folder / f"{zlib.crc32(name.encode()):08x}-{key}.json"
            if path and path.exists():
                tables.append(json.loads(path.read_text()))
                continue
            way = clone(way)
            own = [key for key in way.get_params() if "backbone" not in key]
            seeds = [key for key in own if key.rpartition("__")[2] == "random_state"]
            way.set_params(**dict.fromkeys(seeds, repeat))
            start = time.process_time()
            table = data_efficiency_curve(
                {name: way},
                cones.data,
                cones.target,
                sizes,
                cv=folds[:n_tests],
                parameter_names=cones.target_names,
                random_state=repeat,
            )
            table = {column: values.tolist() for column, values in table.items()}
            table["repeat"] = [repeat] * len(table["repeat"])
            tables.append(table)
            if path:
                write_whole(path, lambda whole, table=table: whole.write_text(json.dumps(table)))
            spent = time.process_time() - start
            print(f"{name}, shuffle {repeat}: {spent:.0f} core seconds", flush=True)
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


# The tables ---------------------------------------------------------------------------------------


def print_table(table, metric, title):
    """Mean and standard deviation over folds and shuffles, with the most labels of all ways."""
    chosen = (table["metric"] == metric) & (table["size"] == table["size"].max())
    names = list(dict.fromkeys(table["parameter"]))
    print(f"\n{title}, {table['size'].max()} labels: mean and standard deviation over fits")
    print(f"{'':<20}" + "".join(f"{name:>16}" for name in names) + f"{'seconds a fit':>16}")
    for way in dict.fromkeys(table["estimator"]):
        mine = chosen & (table["estimator"] == way)
        if not mine.any():
            continue
        cells = []
        for name in names:
            values = table["value"][mine & (table["parameter"] == name)]
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=min(1, len(values) - 1)):.3f}")
        seconds = np.median(table["fit_seconds"][mine])
        print(f"{way:<20}" + "".join(f"{cell:>16}" for cell in cells) + f"{seconds:>16.1f}")


def print_means(table, without=("m_WDM",)):
    """Mean R2 over the parameters that leave a mark, for each number of labels."""
    r2 = (table["metric"] == "r2") & ~np.isin(table["parameter"], without)
    sizes = np.unique(table["size"])
    print("\nMean R2 over all parameters but m_WDM; mean and standard deviation over fits")
    print(f"{'labels':<20}" + "".join(f"{size:>16}" for size in sizes))
    for way in dict.fromkeys(table["estimator"]):
        cells = []
        for size in sizes:
            mine = r2 & (table["estimator"] == way) & (table["size"] == size)
            fits = [
                (table["repeat"] == r) & (table["fold"] == f)
                for r, f in sorted(
                    set(zip(table["repeat"][mine], table["fold"][mine], strict=True))
                )
            ]
            scores = np.array([table["value"][mine & fit].mean() for fit in fits])
            spread = scores.std(ddof=1) if len(scores) > 1 else 0
            cells.append(f"{scores.mean():.3f} ± {spread:.3f}" if len(scores) else "-")
        print(f"{way:<20}" + "".join(f"{cell:>16}" for cell in cells))


def print_all(table):
    """Print the three tables."""
    print_means(table)
    print_table(table, "r2", "R2")
    print_table(table, "mean_absolute_relative_error", "Mean absolute relative error")


# All of it ----------------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare ways from light cones to parameters.")
    parser.add_argument("folder", type=Path, help="where the fits are kept")
    parser.add_argument("--ways", nargs="+", help="all by default")
    parser.add_argument("--repeats", nargs="+", type=int, default=[0, 1, 2], help="shuffles")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128, 183], help="labels")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="a glance at the smallest size")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    cones = load_lightcones()
    if given.quick:
        cones.data, cones.target = cones.data[:24], cones.target[:24]
    on_summaries, on_cones = ways_to_compare(cones, quick=given.quick)
    ways = on_summaries | on_cones
    if given.ways:
        unknown = set(given.ways) - ways.keys()
        if unknown:
            parser.error(f"--ways: expected some of {list(ways)}, found {sorted(unknown)}")
        ways = {name: ways[name] for name in given.ways}
    sizes = [12] if given.quick else given.sizes
    options = dict(n_folds=2 if given.quick else 5, repeats=given.repeats, folder=given.folder)
    table = compare(ways, cones, sizes, **options)
    print_all(table)
    display = DataEfficiencyDisplay.from_table(table, metric="r2")
    display.figure_.savefig(given.folder / "comparison.png", dpi=120)


if __name__ == "__main__":
    main()
