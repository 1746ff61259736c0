"""Reading light cones from files, beside plain h5py, beside memory, and how much memory it takes.

The files lie in the page cache, which is where differences show: a disk is slower than any of this.
"""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import SKATRTransformer, open_lightcones, save_lightcones
from skatr_sk.fields import digest
from skatr_sk.lightcones.digests import seal
from skatr_sk.summaries import JEPA
from tests.benchmarks.references import read_in_order

ROOT = Path(__file__).resolve().parents[2]
FIELD = (28, 28, 470)
CONE_BYTES = int(np.prod(FIELD)) * 2  # float16


def cones(n, seed=0):
    rng = np.random.default_rng(seed)
    return (40 * rng.standard_normal((n, *FIELD), dtype=np.float32) - 20).astype(np.float16)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("batch", [4, 64])
def test_shuffled_reading(tmp_path, table, compression, batch):
    """At most 1.25 of the time of plain h5py reading the same rows in the order of the file."""
    n = 512 if compression == "none" else 128
    save_lightcones(tmp_path / "a.h5", cones(n), compression=compression)
    X = open_lightcones(tmp_path / "a.h5").data
    order = np.random.default_rng(0).permutation(n)
    np.asarray(X[:4])

    def shuffled():
        for start in range(0, n, batch):
            np.asarray(X[order[start : start + batch]])

    table.compare(
        f"reading {n} light cones in shuffled batches of {batch}, compression {compression}",
        shuffled,
        {"h5py in order": lambda: read_in_order(tmp_path / "a.h5", batch)},
        limit=1.25,
        pairs=7,
        in_readme=batch == 64 and compression == "none",
    )


@pytest.mark.parametrize(("compression", "limit"), [("none", 1.1), ("gzip", 1.2)])
def test_training_from_files(tmp_path, table, compression, limit):
    """An epoch from a file takes little more than from memory; unpacking takes a thread's time."""
    values = cones(32)
    save_lightcones(tmp_path / "a.h5", values, compression=compression)
    X = open_lightcones(tmp_path / "a.h5").data

    def epoch(data):
        transformer = SKATRTransformer.published(
            patch_size=(4, 4, 47),
            max_epochs=1,
            batch_size=4,
            validation_fraction=0,
            device="cpu",
            random_state=0,
        )
        return transformer.fit(data).history_[0]["seconds"]

    table.compare(
        f"epoch of pre-training from a file, compression {compression}",
        lambda: epoch(X),
        {"from memory": lambda: epoch(values)},
        limit=limit,
        pairs=5,
        warm_up=False,
    )


MEASURE = """
import sys
import numpy as np
import torch
torch.set_num_threads(2)
from skatr_sk import SKATRTransformer, open_lightcones
from skatr_sk.summaries import JEPA
from tests.memory import memory

X = open_lightcones(sys.argv[1]).data
transformer = SKATRTransformer(max_epochs=1, device="cpu", random_state=0, **eval(sys.argv[2]))
summaries = transformer.fit(X).transform(X)
assert summaries.shape[0] == len(X) and np.isfinite(summaries).all()
print(memory("VmHWM") / 1e9)
"""
# The default network takes its memory for the activations of a step, and half a second for a cone,
# so that its files are small; those of many GB show with a small one. Its steps draw masks of
# different sizes, and the largest of more steps is larger: in a single step 0.2 GB smaller. The
# peak of one file differs by a tenth from run to run (0.87 to 0.95 GB), as threads happen to meet.
NETWORKS = {
    "default": ({}, (0.1, 0.3), 1.15),
    "small": (
        {
            "patch_size": (7, 7, 47), "embed_dim": 16, "depth": 1, "n_heads": 2,
            "objective": JEPA(predictor_dim=16, predictor_depth=1),
        },
        (2, 8),
        1.15,
    ),
}  # fmt: skip


def write_large(path, n):
    """A file as save_lightcones writes it, of n cones that differ in one cell from 64 others."""
    tile = cones(64)
    save_lightcones(path, tile)
    with h5py.File(path, "r+") as file:
        del file["brightness_temp"], file["row_digest"]
        stored = file.create_dataset("brightness_temp", (n, *FIELD), np.float16, chunks=(1, *FIELD))
        digests = file.create_dataset("row_digest", (n, 16), np.uint8)
        for row in range(n):
            cone = tile[row % 64]
            cone[0, 0, 0], cone[0, 0, 1] = row % 1000, row // 1000
            stored[row] = cone
            digests[row] = np.frombuffer(digest(cone), dtype=np.uint8)
    seal(path)


@pytest.mark.parametrize("network", ["default", pytest.param("small", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_file(network, tmp_path, table):
    """One epoch and a transform: below 1.5 GB, and no more for three or four times the cones."""
    parameters, sizes, growth = NETWORKS[network]
    peaks = []
    for gigabytes in sizes:
        path = tmp_path / "large.h5"
        n = int(gigabytes * 10**9) // CONE_BYTES
        write_large(path, n)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), repr(parameters)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
            capture_output=True,
            text=True,
            check=False,
        )
        path.unlink()
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    small, large = (f"{n} GB" for n in sizes)
    what = f"peak memory, an epoch and summaries, {network} network"
    rows = table.add(f"{what}, file of {large}", peaks[1], unit="GB", limit=1.5, check=False)
    against = f"file of {small}"
    options = dict(against=against, unit="GB", limit=growth, check=False)
    table.check(rows + table.add(f"{what}, file of {large}", *reversed(peaks), **options))
