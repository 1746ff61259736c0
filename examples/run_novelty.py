"""
Which light cones are called new
================================

Learns where the summaries of light cones lie that no weights were trained on, and judges what
:meth:`~skatr_sk.SKATRTransformer.novelty` says of others: in other units, with the line of sight
reversed, of noise alone, of parameters beyond the prior, of another simulator::

    python examples/run_novelty.py FOLDER

FOLDER keeps the light cones, their summaries, and the weights with what was learned,
``weights/mini-lr.safetensors``; a second run goes on where the first stopped. ``--real`` judges the
21cmFAST light cones of :func:`~skatr_sk.load_lightcones` too.
"""

import argparse
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from sklearn.metrics import roc_auc_score

from skatr_sk import (
    NeverSeenWarning,
    SimulatedLightcones,
    SKATRTransformer,
    UnitsWarning,
    load_lightcones,
)
from skatr_sk._files import write_whole
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS

LEVELS = 0.05, 0.01, 0.001  # of the tail probability; by the second light cones are called new
CALL, N_CALLS = 10, 20  # light cones in a call, and calls that may warn
LOUD = 1000.0  # noise, in mK
X_RAYS = 43.0  # log10 L_X, of which the prior ends at 42

FULL = SimpleNamespace(
    grid=dict(field_shape=(14, 14, 90), block=(2, 2, 5)),
    # The bundled weights were trained on the first 4,000 of the same seed.
    rows=dict(reference=(4000, 5000), held_out=(5000, 5600)),
    n_other=150,
    recipe=None,
)
QUICK = SimpleNamespace(
    grid=dict(field_shape=(4, 4, 30), block=(1, 1, 3), cell_size=30),
    rows=dict(reference=(0, 40), held_out=(40, 60)),
    n_other=10,
    recipe=dict(embed_dim=8, depth=1, max_epochs=1, random_state=0),  # instead of bundled weights
)


def simulated(path, make):
    """Light cones of a file, which are simulated where it is missing."""
    if not path.exists():
        cones = make().read().astype(np.float16)

        def write(whole):
            with open(whole, "wb") as stream:
                np.save(stream, cones)

        write_whole(path, write)
    return np.load(path).astype(np.float32)


def all_light_cones(plan):
    """Those of the seed of the bundled weights; none is simulated yet."""
    n = max(stop for _, stop in plan.rows.values())
    return SimulatedLightcones(n, random_state=1234, **plan.grid)


def light_cones(folder, plan):
    """Light cones by what they are: the reference, others of its kind, and those of other kinds."""
    rows, n, grid = plan.rows, plan.n_other, plan.grid
    all_of_them = all_light_cones(plan)
    cones = {
        name: simulated(folder / f"{name}.npy", lambda span=span: all_of_them[slice(*span)])
        for name, span in rows.items()
    }
    X = cones["held_out"][:n]
    rng = np.random.default_rng(0)
    cones["kelvin"] = X / 1000
    cones["line of sight reversed"] = X[..., ::-1].copy()
    cones["white noise of 1 K"] = rng.normal(0, LOUD, X.shape).astype(np.float32)
    y = rng.uniform(*PRIOR_BOUNDS.T, size=(n, len(PARAMETER_NAMES)))
    y[:, PARAMETER_NAMES.index("log10_L_X")] = X_RAYS
    beyond = SimulatedLightcones(n, parameters=y, random_state=77, **grid)
    cones["log10 L_X = 43"] = simulated(folder / "x_rays.npy", lambda: beyond)
    mean = X.mean(axis=(1, 2), keepdims=True)
    cones["structure x 1.4"] = mean + 2**0.5 * (X - mean)
    cones["structure / 1.4"] = mean + 0.5**0.5 * (X - mean)
    cones["noise of 3 mK"] = X + rng.normal(0, 3, X.shape).astype(np.float32)
    return cones


def judge(skatr, cones):
    """Rows of the table: of each kind its area under the curve, and how many are called new."""
    found = {name: skatr.novelty(X) for name, X in cones.items()}
    usual = found["held_out"]
    rows = []
    for name, each in found.items():
        truth = np.repeat([0, 1], [len(usual.distance), len(each.distance)])
        area = roc_auc_score(
            truth, -np.concatenate([usual.tail_probability, each.tail_probability])
        )
        shares = [f"{(each.tail_probability < level).mean():.1%}" for level in LEVELS]
        warned = [
            bool(is_warned(skatr, rng.choice(cones[name], CALL, replace=False)))
            for rng in map(np.random.default_rng, range(N_CALLS))
        ]
        distance = f"{np.median(each.distance):.2f}"
        rows.append([name, f"{area:.3f}", *shares, f"{sum(warned)} of {N_CALLS}", distance])
    return rows


def is_warned(skatr, X):
    """Whether one call with these light cones warns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NeverSeenWarning)
        skatr.transform(X)
    return any(each.category is NeverSeenWarning for each in caught)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Learn, and judge, which light cones are new.")
    parser.add_argument("folder", help="where everything is kept")
    parser.add_argument("--weights", nargs="+", default=["mini-lr", "mini-lr-labels"])
    parser.add_argument("--real", action="store_true", help="judge 21cmFAST light cones too")
    parser.add_argument("--quick", action="store_true", help="a glance at the smallest size")
    given = parser.parse_args(arguments)
    folder, plan = Path(given.folder), QUICK if given.quick else FULL
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    cones = light_cones(folder, plan)
    reference = cones.pop("reference")
    parameters = all_light_cones(plan)[slice(*plan.rows["reference"])].target
    if given.real:
        cones["21cmFAST"] = load_lightcones().data
    warnings.simplefilter("ignore", NeverSeenWarning)
    warnings.simplefilter("ignore", UnitsWarning)
    for name in given.weights:
        start = dict(weights=name) if plan.recipe is None else plan.recipe
        skatr = SKATRTransformer(**start, cache=folder / "summaries").fit(reference)
        skatr.learn_novelty(reference, parameters).save(folder / "weights" / f"{name}.safetensors")
        print(f"\n{name}: {len(reference)} light cones learned from\n")
        header = ["light cones", "area under curve", *map("rarer than {:.1%}".format, LEVELS)]
        header += ["calls that warn", "median distance"]
        for row in [header, *judge(skatr, cones)]:
            print(f"{row[0]:<24}" + "".join(f"{text:>18}" for text in row[1:]), flush=True)


if __name__ == "__main__":
    main()
