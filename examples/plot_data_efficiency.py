"""
How many labels does it take?
=============================

Simulated light cones with labels are few. This example draws, for each parameter, the error over
the number of labels (:func:`~skatr_sk.evaluation.data_efficiency_curve`). Four ways are compared on
the same folds and the same nested subsets: the constant mean; a ridge regression on the global
signal; the same on summaries of an encoder with its random initial weights; and the same on
summaries of the weights that come with the package, pre-trained on simulated light cones.

The encoder sees each light cone once, whatever the number of sizes, folds and repeats.
"""

# %%
# Four ways
# ---------
# All of them are pipelines that take the light cones themselves. The frozen transformers are fitted
# here, and are not fitted again by the curve.
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skatr_sk import SKATRTransformer, load_lightcones
from skatr_sk.evaluation import DataEfficiencyDisplay, data_efficiency_curve
from skatr_sk.summaries import cache_info, clear_cache

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(min(2, os.cpu_count() or 1))

cones = load_lightcones()
if FAST:
    keep = slice(0, 10)
    cones.data, cones.target = cones.data[keep], cones.target[keep]


def global_signal(X):
    """Mean and standard deviation of each slice, along the line of sight."""
    return np.concatenate([X.mean(axis=(1, 2)), X.std(axis=(1, 2))], axis=1, dtype=np.float64)


skatr = SKATRTransformer(weights="mini-lr").fit(cones.data)
untrained = SKATRTransformer(
    patch_size=skatr.architecture_.patch_size,
    embed_dim=skatr.architecture_.embed_dim,
    depth=skatr.architecture_.depth,
    embedding=skatr.architecture_.embedding,
    pooling=skatr.pooling_,
    max_epochs=0,
    random_state=0,
).fit(cones.data)

# The targets are standardised: otherwise E_0, in hundreds of eV, would alone choose the penalty.
ridge = TransformedTargetRegressor(
    make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))), transformer=StandardScaler()
)
ways = {
    "constant mean": DummyRegressor(),
    "signal + ridge": make_pipeline(FunctionTransformer(global_signal), ridge),
    "random + ridge": make_pipeline(FrozenEstimator(untrained), ridge),
    "SKATR + ridge": make_pipeline(FrozenEstimator(skatr), ridge),
}

# %%
# The curve
# ---------
# A tidy table, one row for each number: ``pandas.DataFrame(table)`` takes it as it is.
clear_cache()
start = time.perf_counter()
table = data_efficiency_curve(
    ways,
    cones.data,
    cones.target,
    [3, 5] if FAST else [15, 30, 60, 120, 180],
    cv=KFold(2 if FAST else 5, shuffle=True, random_state=0),
    n_repeats=1 if FAST else 3,
    parameter_names=cones.target_names,
    random_state=0,
)
info = cache_info()
print(
    f"{len(np.unique(table['seed'])) * len(np.unique(table['size'])) * len(ways)} fits in "
    f"{time.perf_counter() - start:.0f} s; {info.misses} summaries computed, by two encoders, and "
    f"{info.hits} found again"
)

# %%
# In numbers
# ----------
# Mean absolute relative error with the fewest and the most labels.
error = table["metric"] == "mean_absolute_relative_error"
fewest, most = table["size"].min(), table["size"].max()
print(f"\n{'parameter':<12}" + "".join(f"{way:>22}" for way in ways))
for name in cones.target_names:
    cells = []
    for way in ways:
        chosen = error & (table["parameter"] == name) & (table["estimator"] == way)
        few, many = (table["value"][chosen & (table["size"] == n)].mean() for n in (fewest, most))
        cells.append(f"{few:.3f} -> {many:.3f}")
    print(f"{name:<12}" + "".join(f"{cell:>22}" for cell in cells))

# %%
# In a picture
# ------------
# With few labels some fits go astray: lines are medians over folds and repeats, and half of the
# fits lie in the bands.
display = DataEfficiencyDisplay.from_table(
    table, metric="mean_absolute_relative_error", band="quartiles"
)
display.figure_.savefig("data_efficiency.png", dpi=120)
print("\nwrote data_efficiency.png")
plt.show()
