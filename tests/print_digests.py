"""Print digests of the package's numbers: run before and after a refactoring.

Equal lines mean equal numbers on one machine. Another processor, or another version of numpy, torch
or scikit-learn, may round otherwise: compare runs on one machine in one environment. From the root
of a checkout, on the checked-out code and with its own fixtures:

    python -m tests.print_digests > before.txt
    python -m tests.print_digests > after.txt
    diff before.txt after.txt

``--save before.npz`` also keeps the numbers, and ``--against before.npz`` then says of every array
that differs by how much; ``--only simulator fixtures`` prints these sections alone, and ``--list``
names them. A section that fails prints the error in the place of what is left of it, and the exit
status is 1.

A line is ``name: digest``, where the digest is BLAKE2b of the type, the shape and the bytes of an
array, or of a JSON text where the value is a list of names, say. Seconds and wording are left out.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.numpy import load_file
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

import skatr_sk
from skatr_sk import (
    BlockMask,
    LightconeRegressor,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
    evaluation,
    lightcones,
    load_lightcones,
    make_lightcones,
    open_lightcones,
    save_lightcones,
    summaries,
)
from tests.lightcones.layouts import write_npz, write_v3, write_v4

# ----------------------------------------------------------------------------- two sets of names
# The newer names first, else those from before the refactoring; this block can go with the latter.

try:
    from skatr_sk.fields import as_fields, split_rows

    def digests(X: Any) -> list[bytes]:
        return as_fields(X).digests()

    def split(X: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return split_rows(as_fields(X), fraction, seed)

except ImportError:
    from skatr_sk._rows import digest_rows as digests
    from skatr_sk._rows import split_rows as split

_OLD_NAMES = {
    "expander_dim": "predictor_dim",
    "expander_depth": "predictor_depth",
    "region": "min_context",
}
_OLD_OBJECTIVES = {"JEPA": "jepa", "VICReg": "vicreg", "Reconstruction": "reconstruction"}


def objective(name: str, **parameters: Any) -> dict[str, Any]:
    """Parameters of a SKATRTransformer that choose an objective with parameters of its own."""
    if hasattr(summaries, name):
        return {"objective": getattr(summaries, name)(**parameters)}
    renamed = {_OLD_NAMES.get(key, key): value for key, value in parameters.items()}
    return {"objective": _OLD_OBJECTIVES[name], **renamed}


def redshifts_of(cones: SimulatedLightcones) -> np.ndarray:
    found = cones.redshifts
    return found() if callable(found) else found


convert = getattr(lightcones, "convert_lightcones", None) or lightcones.convert

# ----------------------------------------------------------------------------------- what is shared

# What a section yields: a name, and an array or something that JSON can hold.
Lines = Iterator[tuple[str, Any]]

SMALL = {
    "patch_size": (2, 2, 30),
    "embed_dim": 24,
    "depth": 1,
    "n_heads": 2,
    "max_epochs": 2,
    "batch_size": 16,
    "validation_fraction": 0.2,
    "cache": None,
    "device": "cpu",
    "random_state": 0,
}
PREDICTOR = {"predictor_dim": 24, "predictor_depth": 1}


@functools.cache
def bundled_cones() -> Any:
    return load_lightcones()


@functools.cache
def bundled_summaries() -> np.ndarray:
    skatr = SKATRTransformer(weights="mini-lr", cache=None, device="cpu")
    return skatr.fit_transform(bundled_cones().data)


def history(fitted: Any) -> np.ndarray:
    """Figures of each epoch, without the seconds."""
    names = ("train_loss", "valid_loss", "effective_rank", "effective_rank_at_init", "kept")
    return np.array([[float(row.get(name, np.nan)) for name in names] for row in fitted.history_])


# ---------------------------------------------------------------------------------- light cones


def bundled() -> Lines:
    """The light cones that come with the package."""
    cones = bundled_cones()
    for name in sorted(cones):
        if name != "DESCR":
            yield name, cones[name]
    yield "digests", digests(cones.data)
    yield "coarsened", lightcones.coarsen(cones.data[:8], (2, 7, 9))
    for fraction, seed in ((0.1, 0), (0.25, 7)):
        train, valid = split(cones.data, fraction, seed)
        yield f"split {fraction} by seed {seed}", [train.tolist(), valid.tolist()]
    narrow = cones.data[::-1].astype(np.float64)
    yield "split of float64, reversed", [part.tolist() for part in split(narrow, 0.25, 7)]


def simulator() -> Lines:
    """Simulated light cones, the same by whatever way they are asked for."""
    grid = {"field_shape": (14, 14, 90), "block": (2, 2, 5)}
    X, y = make_lightcones(20, **grid, random_state=0)
    yield "20 cones", X
    yield "20 cones, parameters", y
    cones = SimulatedLightcones(20, **grid, random_state=0)
    yield "20 cones, redshifts", redshifts_of(cones)
    yield "20 cones, digests", digests(cones)
    yield "20 cones, split", [part.tolist() for part in split(cones, 0.2, 0)]
    np.testing.assert_array_equal(np.asarray(cones[[3, 1]]), X[[3, 1]])
    np.testing.assert_array_equal(cones[5], X[5])
    given = y[:4].copy()
    given[:, 1] = (0.2, 0.3, 0.3, 0.4)
    other = SimulatedLightcones(
        4,
        field_shape=(12, 10, 60),
        parameters=given,
        cell_size=10.0,
        redshift_min=5.5,
        evolution="linear",
        random_state=np.random.default_rng(3),
    )
    yield "linear", np.asarray(other)
    yield "linear, redshifts", redshifts_of(other)
    yield "linear, digests", digests(other)
    bounds = np.stack([given.min(axis=0), given.max(axis=0)], axis=1)
    narrow = make_lightcones(
        2, field_shape=(8, 8, 100), prior_bounds=bounds, random_state=np.random.RandomState(1)
    )
    yield "narrow prior", narrow[0]
    yield "narrow prior, parameters", narrow[1]
    small = SimulatedLightcones(24, field_shape=(8, 8, 40), random_state=1)
    fitted = SKATRTransformer(**SMALL | {"patch_size": (2, 2, 10), "max_epochs": 1}).fit(small)
    yield "pre-training", fitted.transform(small[:8])
    yield "pre-training, history", history(fitted)


# ------------------------------------------------------------------------------- files of all kinds

# Comoving distance in Mpc to redshift 6 by Omega_m: written into the files, so that what is read
# does not depend on what the fixtures compute.
NEAREST = {0.25: 9049.69, 0.3: 8515.86, 0.35: 8080.15}
CELL = 7.5  # Mpc


def thetas(n: int) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(5)
    drawn = rng.uniform([1, 0, 100, 38, 4, 10], [9, 1, 1500, 42, 5, 250], (n, 6))
    drawn[:, 1] = np.resize(list(NEAREST), n)
    return [tuple(row) for row in drawn.tolist()]


def field(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-30, 20, shape).astype(np.float32)


def simulation(path: Path, write: Any = write_v3, low: int = 0, **options: Any) -> None:
    """A file of 21cmFAST with distances that are known."""
    if write is write_v4:
        options["low"] = low
    write(path, **options)
    omega_m = options.get("theta", (0, 0.3))[1]
    with h5py.File(path, "r+") as file:
        for name in {"distances", "lightcone_distances"} & set(file):
            stored = file[name]
            stored[:] = NEAREST[omega_m] + CELL * (np.arange(len(stored)) - low)


def table(name: str, source: Any, folder: Path, **options: Any) -> Lines:
    """All that open_lightcones finds; of the report's details the numbers alone."""
    cones = open_lightcones(source, **options)
    yield f"{name}, data", np.asarray(cones.data)
    yield f"{name}, target", cones.target
    yield f"{name}, labels", [cones.target_names, cones.target_units]
    yield f"{name}, bounds", cones.target_bounds
    yield f"{name}, redshifts", cones.redshifts
    yield f"{name}, seeds", cones.seeds
    yield f"{name}, digests", digests(cones.data)
    lines = [(Path(x["file"]).name, int(x["row"]), str(x["fault"])) for x in cones.report]
    yield f"{name}, report", lines
    details = [str(x["detail"]).replace(str(folder), "") for x in cones.report]
    yield f"{name}, numbers of the report", [re.findall(r"\d+\.?\d*", text) for text in details]


def contents(path: Path) -> dict[str, list[str]]:
    """Digest of each dataset in an HDF5 file."""
    found: dict[str, list[str]] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = [str(item.chunks), digest_of(item[()])]

    with h5py.File(path) as file:
        file.visititems(look)
    return found


def fixtures() -> Lines:
    """Tables of files of every kind that can be read."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _fixtures(Path(folder))


def _fixtures(folder: Path) -> Lines:
    def new(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    given = thetas(4)
    for version in ("3.3.1", "3.4.0"):
        here = new(f"21cmFAST {version}")
        for k, theta in enumerate(given):
            simulation(here / f"c{k}.h5", seed=k, n_z=20 + k, theta=theta, version=version)
        yield from table(here.name, here, folder, validate="full")
    here = new("21cmFAST 4.1")
    for k, theta in enumerate(given):
        simulation(here / f"{k}.h5", write_v4, seed=k, n_z=20 - k, theta=theta, low=k, high=2)
    yield from table(here.name, here, folder, validate="full")
    here = new("parameters")
    simulation(here / "cold.h5", warm=False)
    simulation(here / "mass.h5", seed=2, USE_MASS_DEPENDENT_ZETA=True)
    simulation(here / "new.h5", write_v4, seed=3, SOURCE_MODEL="E-INTEGRAL")
    simulation(here / "linear.h5", seed=4, L_X=10**41.0, SIGMA_8=0.75)
    for path in sorted(here.iterdir()):
        yield from table(f"parameters, {path.stem}", path, folder)
    names = ["SIGMA_8", "log10_L_X", "F_STAR10"]
    options = {"parameters": names, "dataset": "density"}
    yield from table("parameters, by name", here / "linear.h5", folder, **options)

    here = new("npz")
    for k, theta in enumerate(given):
        write_npz(here / f"run{k}.npz", seed=k, theta=theta)
    yield from table("npz", here, folder, validate="full")
    here, values = new("npy"), field(7, 5, 6)
    np.save(here / "maps.npy", values)
    np.save(here / "columns first.npy", np.asfortranarray(values))
    np.save(here / "big-endian.npy", values.astype(">f8"))
    np.save(here / "integers.npy", (1000 * values).astype(np.int64))
    for path in sorted(here.iterdir()):
        yield from table(f"npy, {path.stem}", path, folder)

    here = new("hdf5")
    with h5py.File(here / "any.h5", "w") as file:
        file["deep/boxes"] = field(6, 4, 4, 8).astype(np.float16)
        file["deep/params"] = np.random.default_rng(0).uniform(size=(6, 2))
        file["deep/params"].attrs["names"] = ["a", "b"]
        file["deep/redshifts"] = np.linspace(6, 8, 8)
        file["deep/seed"] = np.arange(6)
        file["history"] = field(6, 20)
    yield from table("hdf5", here / "any.h5", folder)
    yield from table("hdf5, one parameter", here / "any.h5", folder, parameters=["b"])
    cones = bundled_cones()
    names = ("target_names", "target_units", "target_bounds")
    labels = {name: cones[name] for name in names}
    for k, compression in enumerate(("none", "gzip", "lzf")):
        rows = slice(5 * k, 5 * k + 5)
        save_lightcones(
            here / f"part{k}.h5",
            cones.data[rows],
            cones.target[rows],
            **labels,
            redshifts=cones.redshifts[rows],
            seeds=cones.seeds[rows],
            dtype=np.float16,
            compression=compression,
        )
        yield f"saved, {compression}", contents(here / f"part{k}.h5")
    parts = [here / f"part{k}.h5" for k in (2, 0, 1)]
    yield from table("saved", parts, folder, validate="full")
    save_lightcones(here / "flat.h5", field(300, 30), np.arange(300.0))
    yield "saved, signals", contents(here / "flat.h5")
    yield from table("saved, signals", here / "flat.h5", folder, validate="full")

    for source in (folder / "21cmFAST 3.4.0", folder / "npz", parts):
        name = source.name if isinstance(source, Path) else "saved"
        convert(source, folder / "converted.h5", dtype=np.float64, compression="gzip")
        yield f"converted, {name}", contents(folder / "converted.h5")
        yield from table(f"converted, {name}", folder / "converted.h5", folder)


def _replace(file: h5py.File, values: np.ndarray) -> None:
    del file["lightcones/brightness_temp"]
    file["lightcones/brightness_temp"] = values


def _shorten(file: h5py.File) -> None:
    _replace(file, field(4, 4, 4))
    del file["distances"]
    file["distances"] = NEAREST[0.3] - 500 + CELL * np.arange(4)


def _remove(file: h5py.File) -> None:
    del file["lightcones/brightness_temp"]


def _write(name: str, index: Any, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def _annotate(group: str, name: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return change


FAULTS = {
    "backwards": _write("distances", slice(None), NEAREST[0.3] - CELL * np.arange(20)),
    "coarse": _write("distances", slice(None), NEAREST[0.3] + 2 * CELL * np.arange(20)),
    "cold": _annotate("_globals", "P_CUTOFF", 0),
    "empty end": _write("lightcones/brightness_temp", np.s_[..., 15:], 0),
    "farther": _write("distances", slice(None), NEAREST[0.3] + 500 + CELL * np.arange(20)),
    "missing": _remove,
    "nan": _write("lightcones/brightness_temp", (1, 2, 3), np.nan),
    "no number": _annotate("astro_params", "L_X", np.nan),
    "short": _shorten,
    "unfinished": _annotate("/", "current_redshift", 11.0),
    "wide": lambda file: _replace(file, field(5, 5, 20)),
}


def faults() -> Lines:
    """Tables of faulty files and rows, which are left out."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _faults(Path(folder))


def _faults(folder: Path) -> Lines:
    (folder / "files").mkdir()
    paths = []
    for k, theta in enumerate(thetas(16)):
        paths.append(folder / "files" / f"good{k:02d}.h5")
        simulation(paths[-1], seed=k, theta=theta)
    for k, (name, change) in enumerate(FAULTS.items(), 100):
        paths.append(folder / "files" / f"{name}.h5")
        simulation(paths[-1], seed=k)
        with h5py.File(paths[-1], "r+") as file:
            change(file)
    whole = paths[3].read_bytes()
    damaged = {"copy": whole, "truncated": whole[: len(whole) // 2], "text": b"text", "void": b""}
    for name, data in damaged.items():
        paths.append(folder / "files" / f"{name}.h5")
        paths[-1].write_bytes(data)
    paths.append(folder / "files" / "gone.h5")
    for validate in ("fast", "full"):
        options = {"on_bad": "drop", "validate": validate}
        yield from table(f"files, {validate}", paths, folder, **options)

    X = field(30, 4, 4, 30)
    X[3, 0, 0, 0] = np.nan
    X[5, 1] = np.inf
    X[8, ..., :9] = 0  # an ionised near end is no fault
    X[9, ..., 12] = 0
    X[21] = X[7]
    y = field(30, 2).astype(np.float64)
    y[11, 1] = np.nan
    save_lightcones(folder / "rows.h5", X, y, seeds=np.arange(30))
    np.save(folder / "rows.npy", X)
    for name in ("rows.h5", "rows.npy"):
        for validate in ("fast", "full"):
            options = {"on_bad": "drop", "validate": validate}
            yield from table(f"{name}, {validate}", folder / name, folder, **options)
    save_lightcones(folder / "changed.h5", field(30, 4, 4, 30))
    with h5py.File(folder / "changed.h5", "r+") as file:
        file["brightness_temp"][17, 0, 0, 0] = 0.5  # not what its digest is of
    options = {"on_bad": "drop", "validate": "full"}
    yield from table("changed.h5", folder / "changed.h5", folder, **options)


# ------------------------------------------------------------------------------------- summaries


def bundled_weights() -> Lines:
    """Summaries by the weights that come with the package."""
    X = bundled_cones().data
    yield "mini-lr", bundled_summaries()
    for pooling in ("mean", "max", "moments", "tokens"):
        skatr = SKATRTransformer(weights="mini-lr", pooling=pooling, cache=None, device="cpu")
        yield f"mini-lr, {pooling}", skatr.fit(X[:8]).transform(X[:8])
        if pooling != "tokens":  # which have no columns to name
            yield f"mini-lr, {pooling}, names", skatr.get_feature_names_out().tolist()
    yield "mini-lr, history", history(SKATRTransformer.load("mini-lr", device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("memory", Path(folder) / "cache"):
            for _ in range(2):  # computed, and found
                kept = SKATRTransformer(weights="mini-lr", cache=cache, device="cpu").fit(X[:20])
                np.testing.assert_array_equal(kept.transform(X[:20]), bundled_summaries()[:20])


def pretraining() -> Lines:
    """Seeded pre-trainings of every objective: summaries and losses."""
    X = bundled_cones().data[:64]
    block = BlockMask(n_blocks=3, scale=(0.2, 0.3), aspect=(0.5, 2.0), depth=(0.3, 0.7))
    plain = objective("JEPA", **PREDICTOR)
    runs: dict[str, dict[str, Any]] = {
        "jepa": plain,
        "jepa, all defaults": {"objective": "jepa"},
        "jepa, other parameters": objective(
            "JEPA",
            masks="short",
            predictor_dim=12,
            predictor_depth=2,
            min_context=0.3,
            ema_decay=0.9,
            normalize_targets=False,
            loss="l2",
        ),
        "jepa, masks of its own": objective(
            "JEPA", masks=[block, block], ema_decay=(0.5, 0.9), loss="smooth_l1", **PREDICTOR
        ),
        "jepa, mean as predictor": objective("JEPA", predictor_depth=0),
        "jepa, other settings": plain
        | {
            "embedding": "moments",
            "pooling": "moments",
            "augment": False,
            "brightness_range": (-300.0, 50.0),
            "patience": 1,
            "warmup": 0.0,
            "mlp_ratio": 1.5,
            "patch_size": "auto",
            "learning_rate": 3e-3,
            "weight_decay": 0.1,
            "validation_fraction": 0.1,
        },
        "jepa, tokens": plain | {"pooling": "tokens", "validation_fraction": 0.0},
        "reconstruction": objective("Reconstruction", **PREDICTOR),
        "reconstruction, all defaults": {"objective": "reconstruction"},
        "reconstruction, other parameters": objective(
            "Reconstruction",
            masks="long",
            min_context=0.3,
            normalize_targets=False,
            loss="smooth_l1",
            **PREDICTOR,
        ),
        "vicreg": objective("VICReg", expander_dim=16, expander_depth=1),
        "vicreg, all defaults": {"objective": "vicreg"},
        "vicreg, other parameters": objective(
            "VICReg", expander_dim=8, expander_depth=0, region=0.4
        )
        | {"pooling": "moments", "embedding": "moments"},
        "random weights": plain | {"max_epochs": 0},
    }
    for name, parameters in runs.items():
        fitted = SKATRTransformer(**SMALL | parameters).fit(X)
        yield name, fitted.transform(X)
        yield f"{name}, history", history(fitted)
    generator = np.random.RandomState(4)
    maps = SKATRTransformer(**SMALL | plain | {"patch_size": 2, "random_state": generator})
    yield "maps", maps.fit_transform(X[..., 20])
    signals = SKATRTransformer(**SMALL | plain | {"patch_size": 5})
    yield "signals", signals.fit_transform(X.mean(axis=(1, 2)))


def pretraining_from_files() -> Lines:
    """The same summaries from files as from memory, by threads and by processes."""
    X = bundled_cones().data[:64]
    skatr = SKATRTransformer(**SMALL | objective("JEPA", **PREDICTOR)).fit(X)
    with tempfile.TemporaryDirectory() as folder:
        save_lightcones(Path(folder) / "cones.h5", X)
        stored = open_lightcones(Path(folder) / "cones.h5").data
        yield "digests", digests(stored)
        yield "split", [part.tolist() for part in split(stored, 0.2, 0)]
        assert digests(stored) == digests(X)
        order = np.random.default_rng(0).permutation(len(X))
        yield "shuffled", np.asarray(stored[order])
        for n_workers in (0, 1):
            again = SKATRTransformer(**skatr.get_params(deep=False) | {"n_workers": n_workers})
            yield f"{n_workers} workers", again.fit(stored).transform(stored[::3])
            yield f"{n_workers} workers, history", history(again)
            np.testing.assert_array_equal(again.transform(X), skatr.transform(X))


def weights() -> Lines:
    """Weights that were saved and loaded, and what is in their file."""
    X = bundled_cones().data[:32]
    given = {"embedding": "moments", "pooling": "max"}
    skatr = SKATRTransformer(**SMALL | given | {"max_epochs": 1}).fit(X)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        skatr.save(path)
        tensors = load_file(path)
        yield "tensors", {name: digest_of(values) for name, values in sorted(tensors.items())}
        loaded = SKATRTransformer.load(path, cache=None, device="cpu")
        yield "loaded", loaded.transform(X)
        yield "loaded, history", history(loaded)
        yield "loaded, pooling", loaded.pooling_
        np.testing.assert_array_equal(loaded.transform(X), skatr.transform(X))
        loaded.save(Path(folder) / "again.safetensors")
        assert (Path(folder) / "again.safetensors").read_bytes() == path.read_bytes()


# ----------------------------------------------------------------------------------------- heads


def regressors() -> Lines:
    """Predictions of seeded regressors."""
    cones = bundled_cones()
    S, y = bundled_summaries(), cones.target
    tokens = SKATRTransformer(weights="mini-lr", pooling="tokens", cache=None, device="cpu")
    T = tokens.fit_transform(cones.data[:40])[:, ::10]
    common = {"max_epochs": 20, "device": "cpu", "random_state": 0}
    bounds = cones.target_bounds
    runs: dict[str, Any] = {
        "l1": (S, y, {"loss": "l1"}),
        "gaussian": (S, y, {"loss": "gaussian", "target_bounds": bounds}),
        "l2, one parameter": (S, y[:, 1], {"loss": "l2", "hidden_dims": (32,), "dropout": 0.2}),
        "attention": (T, y[:40], {"pooling": "attention", "hidden_dims": (16,), "patience": 2}),
        "linear, no validation": (S, y, {"hidden_dims": (), "validation_fraction": 0.0}),
    }
    for name, (X, target, parameters) in runs.items():
        n = len(X) * 3 // 4
        head = LightconeRegressor(**common | parameters).fit(X[:n], target[:n])
        yield name, head.predict(X[n:])
        yield f"{name}, history", history(head)
        if head.loss == "gaussian":
            yield f"{name}, deviations", head.predict(X[n:], return_std=True)[1]
    grid = {"head__hidden_dims": [(8,), (16,)], "head__learning_rate": [1e-3, 1e-2]}
    skatr = SKATRTransformer(weights="mini-lr", device="cpu")
    head = LightconeRegressor(**common | {"max_epochs": 5})
    search = GridSearchCV(Pipeline([("skatr", skatr), ("head", head)]), grid, cv=KFold(2))
    search.fit(cones.data[:40], y[:40])
    scores = [search.cv_results_[f"split{k}_test_score"] for k in range(2)]
    yield "search, scores", np.array(scores)
    yield "search, predictions", search.predict(cones.data[40:50])


def end_to_end() -> Lines:
    """Heads that train the encoder too."""
    cones = bundled_cones()
    X, y = cones.data[:32], cones.target[:32]
    small = {"patch_size": (7, 7, 18), "embed_dim": 24, "depth": 1, "n_heads": 2}
    fitted = SKATRTransformer(**SMALL | {"patch_size": (2, 2, 45)}).fit(X)
    runs = {
        "backbone": (SKATRTransformer(**small), {}),
        "backbone, attention": (SKATRTransformer(**small), {"pooling": "attention"}),
        "backbone, gaussian": (
            SKATRTransformer(**small | {"pooling": "moments", "augment": False}),
            {"loss": "gaussian", "target_bounds": cones.target_bounds},
        ),
        "fine-tuned": (fitted, {"dropout": 0.1}),
        "layer by layer": (fitted, {"frozen_epochs": 1, "layer_decay": 0.5}),
    }
    common = {"hidden_dims": (32,), "max_epochs": 2, "batch_size": 8}
    common |= {"device": "cpu", "random_state": 0}
    for name, (backbone, parameters) in runs.items():
        whole = LightconeRegressor(backbone=backbone, **common | parameters).fit(X, y)
        yield name, whole.predict(cones.data[32:48])
        yield f"{name}, history", history(whole)
        yield f"{name}, its summaries", whole.backbone_.transform(X[:4])
    cnn = LightconeRegressor(backbone="cnn", **common).fit(X, y)
    yield "cnn", cnn.predict(cones.data[32:48])
    for name, backbone in {"cnn": "cnn", "transformer": SKATRTransformer(**small)}.items():
        flow = PosteriorEstimator(backbone=backbone, n_blocks=2, prior_bounds="data", **common)
        flow.fit(X, y)
        yield f"posterior, {name}", flow.sample(cones.data[32:36], 10, random_state=0)
        yield f"posterior, {name}, history", history(flow)


def posteriors() -> Lines:
    """Samples and densities of seeded posteriors."""
    cones = bundled_cones()
    S, y = bundled_summaries(), cones.target
    small = {"n_blocks": 2, "n_bins": 5, "hidden_dims": (16,)}
    runs: dict[str, Any] = {
        "box": (y, {"prior_bounds": cones.target_bounds}),
        "no bounds": (y[:, 1:3], small | {"dropout": 0.0, "validation_fraction": 0.0}),
        "one parameter": (y[:, 1], small | {"prior_bounds": "data", "patience": 1}),
        "calibrated": (y[:, :2], small | {"calibration_weight": 10.0, "batch_size": 64}),
    }
    for name, (target, parameters) in runs.items():
        posterior = PosteriorEstimator(
            **{"max_epochs": 5, "device": "cpu", "random_state": 0} | parameters
        ).fit(S[:200], target[:200])
        samples, log_prob = posterior.sample_log_prob(S[200:], 50, random_state=1)
        yield f"{name}, samples", samples
        yield f"{name}, log_prob of samples", log_prob
        yield f"{name}, sample", posterior.sample(S[200:205], 20, random_state=2)
        yield f"{name}, log_prob", posterior.log_prob(S[200:], target[200:])
        yield f"{name}, mean and deviation", np.stack(posterior.predict(S[200:], return_std=True))
        yield f"{name}, quantiles", posterior.predict_quantiles(S[200:], n_samples=64)
        yield f"{name}, bounds", posterior.prior_bounds_
        yield f"{name}, history", history(posterior)


# ------------------------------------------------------------------------------------- evaluation


def scores() -> Lines:
    """Metrics and data efficiency."""
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 2, (50, 3))
    pred = true + 0.1 * rng.normal(size=true.shape)
    weight = rng.uniform(size=50)
    names = ["a", "b", "c"]
    error = evaluation.mean_absolute_relative_error
    yield "relative error", error(true, pred, multioutput="raw_values")
    yield "relative error, weighted", error(true, pred, sample_weight=weight)
    yield "r2", evaluation.r2_per_parameter(true, pred)
    yield "effective rank", evaluation.effective_rank(bundled_summaries())
    yield "effective rank, floor", evaluation.effective_rank(bundled_summaries(), floor=0.1)
    ridge = Ridge().fit(pred, true)
    yield "scorer", evaluation.ParameterScorer(names)(ridge, pred, true)
    found = evaluation.parameter_scores(ridge, pred, true)
    yield "parameter scores", {name: values.tolist() for name, values in found.items()}

    head = LightconeRegressor(hidden_dims=(16,), max_epochs=3, device="cpu", random_state=0)
    S, y = bundled_summaries()[:60], bundled_cones().target[:60]
    options: dict[str, Any] = {
        "six": {"parameter_names": bundled_cones().target_names, "cv": KFold(3), "n_repeats": 2},
        "scorer": {"scoring": "neg_mean_squared_error", "random_state": np.random.RandomState(3)},
    }
    sizes: dict[str, Any] = {"six": [10, 40], "scorer": (0.3, 1.0)}
    for name, given in options.items():
        estimators = {"ridge": Ridge(), "head": head}
        given = {"random_state": 0} | given
        rows = evaluation.data_efficiency_curve(estimators, S, y, sizes[name], **given)
        for column in sorted(rows):
            if column != "fit_seconds":
                values = rows[column]
                kept = values if values.dtype.kind in "if" else values.tolist()
                yield f"data efficiency, {name}, {column}", kept


def calibration() -> Lines:
    """Ranks, levels and coverage."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(60, 40, 3)) + rng.normal(size=(60, 1, 3))
    samples[..., 2] = samples[..., 2].round(1)  # ties
    true = rng.normal(size=(60, 3)).round(1)
    log_prob, of_true = rng.normal(size=(60, 40)), rng.normal(size=60)
    references = rng.normal(size=(60, 3))
    ranks = evaluation.sbc_ranks(samples, true, random_state=1)
    levels = {
        "rank": evaluation.rank_levels(ranks, 40, random_state=1)[:, 0],
        "tarp": evaluation.tarp_levels(samples, true, random_state=1),
        "tarp, references": evaluation.tarp_levels(samples, true, references=references),
        "highest density": evaluation.highest_density_levels(log_prob, of_true, random_state=1),
    }
    yield "ranks", ranks
    for name, each in levels.items():
        found = evaluation.expected_coverage(each, n_levels=31, confidence=0.95)
        yield f"{name} levels", each
        curves = (found.credibility, found.coverage, found.low, found.high)
        yield f"{name} coverage", np.stack(curves)
        yield f"{name} p-value", [found.p_value, found.calibrated]
    yield "band", [evaluation.coverage_band(n, 0.9) for n in (10, 1000)]
    S, y = bundled_summaries()[:80], bundled_cones().target[:80, 1:3]
    posterior = PosteriorEstimator(
        n_blocks=1, hidden_dims=(8,), max_epochs=2, device="cpu", random_state=0
    ).fit(S, y)
    drawn, of_truth = evaluation.posterior_draws(posterior, S, n_samples=30, y=y)
    yield "draws", drawn
    yield "draws, levels", of_truth


# ----------------------------------------------------------------------------------------- printing

SECTIONS = (
    bundled,
    simulator,
    fixtures,
    faults,
    bundled_weights,
    pretraining,
    pretraining_from_files,
    weights,
    regressors,
    end_to_end,
    posteriors,
    scores,
    calibration,
)


def digest_of(value: Any) -> str:
    """Digest of an array's type, shape and bytes, or of a JSON text.

    Examples
    --------
    >>> digest_of(np.zeros(2)) == digest_of(np.zeros(2, dtype=np.float32))
    False
    """
    if isinstance(value, np.ndarray):
        data = f"{value.dtype.str} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    else:
        data = json.dumps(value, sort_keys=True, default=_plain).encode()
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.item() if isinstance(value, np.generic) else list(value)


def difference(found: Any, before: np.ndarray | None) -> str:
    """Say how far apart two arrays are."""
    if before is None:
        return "new"
    if found.shape != before.shape or found.dtype != before.dtype:
        return f"{found.dtype} {found.shape}, before {before.dtype} {before.shape}"
    a, b = found.astype(np.float64), before.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return "not finite elsewhere than before"
    most, largest = np.abs(np.nan_to_num(a - b)).max(), np.abs(np.nan_to_num(b)).max()
    return f"differs by at most {most:.3g}, the largest value is {largest:.3g}"


def main() -> int:
    """Print the digests that were asked for; return the exit status."""
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, metavar="SECTION", default=names)
    parser.add_argument("--list", action="store_true", help="names of the sections")
    parser.add_argument("--save", metavar="NPZ", help="keep the arrays")
    parser.add_argument("--against", metavar="NPZ", help="say how far from those that were kept")
    chosen = parser.parse_args()
    if chosen.list:
        print("\n".join(f"{section.__name__}: {section.__doc__}" for section in SECTIONS))
        return 0
    print(f"of {Path(skatr_sk.__file__).parent}", file=sys.stderr)
    before = dict(np.load(chosen.against)) if chosen.against else {}
    arrays: dict[str, np.ndarray] = {}
    status = 0
    for section in SECTIONS:
        if section.__name__ not in chosen.only:
            continue
        try:
            for name, value in section():
                line = f"{section.__name__}: {name}".replace("_", " ")
                print(f"{line}: {digest_of(value)}", flush=True)
                if isinstance(value, np.ndarray):
                    arrays[line] = value.copy()  # the section goes on with it
                    known = before.get(line)
                    if before and (known is None or digest_of(known) != digest_of(value)):
                        print(f"    {difference(value, known)}", flush=True)
        except Exception as error:  # the other sections are of use all the same
            print(f"{section.__name__}: FAILED: {type(error).__name__}", flush=True)
            traceback.print_exception(error)
            status = 1
    if chosen.save:
        np.savez_compressed(chosen.save, **arrays)
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums of several threads may be ordered otherwise
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main())
