"""Memory of full resolution: cones of 140 x 140 x 2350 cells in patches of 7 x 7 x 94.

10,000 tokens, width 96, depth 4 (Ore, Heneka, Plehn, arXiv:2410.18899, table 3). A cone is 184 MB
in float32. Each figure is the peak resident memory of a process of its own, Python and torch in it
(0.4 GB): `transform` of one light cone from a file, and steps of pre-training with batches of one.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skatr_sk import save_lightcones

ROOT = Path(__file__).resolve().parents[2]
FIELD = (140, 140, 2350)
CHILD = """
import sys
import torch
torch.set_num_threads(2)
from skatr_sk import SKATRTransformer, open_lightcones

task, cones, weights = sys.argv[1:]
X = open_lightcones(cones).data
sizes = dict(patch_size=(7, 7, 94), embed_dim=96, depth=4, n_heads=4, device="cpu", random_state=0)
if task == "transform":
    summaries = SKATRTransformer.load(weights, cache=None, device="cpu").transform(X[:1])
    assert summaries.shape == (1, 288)
else:
    steps = dict(max_epochs=1, batch_size=1, validation_fraction=0) if task == "pretrain" else {}
    published = SKATRTransformer.published(**sizes, **(steps or dict(max_epochs=0)))
    published.set_params(embedding="moments", pooling="slices").fit(X).save(weights)
"""
LIMITS = {"transform": 4.0, "pretrain": 8.0}  # GB


def peak(*arguments):
    """Peak resident memory in GB of a process that does the task."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    timer = shutil.which("time")
    done = subprocess.run(
        [timer, "-v", *command] if timer else command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if timer is None:
        pytest.skip("there is no /usr/bin/time")
    return int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)[1]) / 1e6


def test_full_resolution(tmp_path, table):
    """`transform` below 4 GB, and a step of batch 1 below 8 GB."""
    rng = np.random.default_rng(0)
    path, weights = tmp_path / "cones.h5", tmp_path / "weights.safetensors"
    save_lightcones(path, 40 * rng.standard_normal((2, *FIELD), dtype=np.float32) - 20)
    peak("begin", path, weights)
    for task, limit in LIMITS.items():
        found = peak(task, path, weights)
        cells = " x ".join(map(str, FIELD))
        table.add(f"peak memory, {task} at {cells} cells", found, unit="GB", limit=limit)
