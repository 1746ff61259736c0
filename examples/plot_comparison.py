"""
What else could be done?
========================

A summary network is believed only beside what else a user could do. All ways from a light cone to
its parameters that are usual in the field are put on the same folds of the 229 real light cones
that come with the package: frozen summaries of the bundled weights, pre-trained without labels
(SKATR) or with those of our simulator (Supervised); the same encoder untrained, or fine-tuned; a
vision transformer and a convolutional network trained on the light cones alone; cylindrical power
spectra, the field's usual summary; the global signal; and the constant mean.

The ways, and how they are scored, are in ``examples/run_comparison.py``, which does the same with
more folds and shuffles for the networks that take minutes a fit.
"""

# %%
# The ways
# --------
# Each of them is an estimator that takes light cones; they are pipelines, or a
# :class:`~skatr_sk.LightconeRegressor` with a `backbone`.
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from run_comparison import compare, print_all, ways_to_compare

from skatr_sk import load_lightcones
from skatr_sk.evaluation import DataEfficiencyDisplay

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(min(2, os.cpu_count() or 1))

cones = load_lightcones()
if FAST:
    cones.data, cones.target = cones.data[:10], cones.target[:10]
on_summaries, on_cones = ways_to_compare(cones, quick=FAST, max_epochs=30)

# %%
# The fits
# --------
# Five folds for what is fitted on summaries, which are computed once. The networks that are trained
# on the light cones themselves take minutes, and have two of these folds and 30 epochs.
start = time.perf_counter()
sizes = [5] if FAST else [32, 64, 128, 183]
few = [5] if FAST else [64, 183]
n_folds = 2 if FAST else 5
tables = [
    compare(on_summaries, cones, sizes, n_folds=n_folds),
    compare(on_cones, cones, few, n_folds=n_folds, n_tests=1 if FAST else 2),
]
table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}
print(f"all fits in {(time.perf_counter() - start) / 60:.1f} minutes")

# %%
# In numbers
# ----------
print_all(table)

# %%
# In a picture
# ------------
# Summaries under the default head, and the networks that are trained on the light cones.
shown = ["constant", "signal, head", "2-D spectra, head", "random, head", "SKATR, head"]
shown += ["Supervised, head", *on_cones]
keep = np.isin(table["estimator"], shown)
display = DataEfficiencyDisplay.from_table(
    {name: column[keep] for name, column in table.items()}, metric="r2"
)
for axes in display.axes_:
    axes.set_ylim(-0.3, 1.02)  # fits that went astray are below
display.figure_.savefig("comparison.png", dpi=120)
print("\nwrote comparison.png")
plt.show()
