"""A search over the whole Pipeline beside the same one over the bare head; hashing and storing."""

import itertools

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline

from skatr_sk import (
    LightconeRegressor,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.fields import digest_rows
from skatr_sk.summaries import cache_info, clear_cache
from skatr_sk.summaries.cache import compute_once
from tests.benchmarks.table import seconds

GRID = {"head__hidden_dims": [(360,), (360, 360)], "head__learning_rate": [2e-3, 5e-4, 1e-4]}


@pytest.mark.parametrize(("kept", "cache"), [("in memory", "memory"), ("in files", "folder")])
def test_search(kept, cache, tmp_path, table):
    """6 candidates x 4 folds + refit on the bundled cones: at most 1.05 of doing it by hand."""
    cones = load_lightcones()
    X, y = cones.data.astype(np.float32), cones.target
    if kept == "in files":
        save_lightcones(tmp_path / "cones.h5", X)
        X = open_lightcones(tmp_path / "cones.h5").data
    weights = tmp_path / "weights.safetensors"
    SKATRTransformer(max_epochs=0, device="cpu", random_state=0).fit(X[:8]).save(weights)
    head = LightconeRegressor(max_epochs=60, patience=None, device="cpu", random_state=0)

    def search(pipe, X):
        GridSearchCV(pipe, GRID, cv=KFold(4), error_score="raise").fit(X, y)

    def by_hand():
        summaries = SKATRTransformer.load(weights, cache=None, device="cpu").transform(X)
        search(Pipeline([("head", head)]), summaries)

    def together(folder, X):
        skatr = SKATRTransformer(weights=weights, cache=folder, device="cpu")
        search(Pipeline([("skatr", skatr), ("head", head)]), X)

    runs = itertools.count()

    def anew():
        clear_cache()
        together("memory" if cache == "memory" else tmp_path / f"cache{next(runs)}", X)
        assert cache_info().misses == len(X)

    table.compare(
        f"search of 6 candidates x 4 folds over frozen weights, light cones {kept}, cache: {cache}",
        anew,
        {"by hand": by_hand},
        limit=1.05,
        pairs=3,
        warm_up=False,
        in_readme=cache == "memory",
    )


@pytest.mark.parametrize(
    ("field_shape", "make", "n"),
    [((14, 14, 90), SKATRTransformer, 64), ((28, 28, 470), SKATRTransformer.published, 8)],
    ids=["14x14x90", "28x28x470"],
)
def test_hashing(field_shape, make, n, table):
    """The key of a light cone costs at most 5 % of its summary, which is all that a search adds."""
    X = np.random.default_rng(0).normal(-20, 50, (n, *field_shape)).astype(np.float32)
    skatr = make(max_epochs=0, cache=None, device="cpu", random_state=0).fit(X[:2])
    table.compare(
        f"key of a light cone of {' x '.join(map(str, field_shape))} cells",
        lambda: seconds(digest_rows, X) / n,
        {"its summary": lambda: seconds(skatr.transform, X) / n},
        limit=0.05,
        pairs=7,
    )


@pytest.mark.parametrize(
    ("shape", "n", "limit"), [((144,), 5000, 1.0), ((490, 144), 500, 5.0)], ids=["pooled", "tokens"]
)
def test_folder(shape, n, limit, tmp_path, table):
    """Summaries that are written in groups of 16, and read by a process that has none of them."""
    values = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    drawn = np.random.default_rng(1).bytes(16 * n)
    keys = [drawn[i : i + 16] for i in range(0, 16 * n, 16)]
    options = {"space": bytes(16), "shape": shape, "group": 16}

    def ask(folder):
        found = compute_once(keys, lambda rows: values[rows], folder=folder, **options)
        np.testing.assert_array_equal(found, values)

    clear_cache()
    written = seconds(ask, tmp_path)
    clear_cache()
    read = seconds(ask, tmp_path)
    rows = []
    for done, took in (("written to", written), ("read from", read)):
        rows += table.add(
            f"summary of shape {shape} {done} a folder",
            took / n,
            unit="s",
            limit=limit / 1e3,  # to compute one takes 20 ms and more
            check=False,
        )
    table.check(rows)
