"""
Quick start: pre-train, freeze, regress
=======================================

The way of :class:`~skatr_sk.SKATRTransformer` from real 21cmFAST light cones to parameters:
pre-train without labels, freeze, and cross-validate a small head on the summaries.

The tables put five summaries side by side, on the same folds: the plain global signal (mean and
standard deviation of each redshift slice); an encoder with its random initial weights; these with
the whitening of summaries that pre-training ends with, which needs no label either; the same
encoder pre-trained on these 229 light cones alone; and the weights that come with the package,
pre-trained on 4000 simulated light cones.
"""

# %%
# The light cones
# ---------------
# 229 light cones on a grid of 14 x 14 x 90 cells, 200 Mpc wide, in mK, and the six parameters
# that they were simulated with.
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, RepeatedKFold, cross_val_predict, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import LightconeRegressor, SKATRTransformer, load_lightcones
from skatr_sk.evaluation import ParameterScorer, RecoveryDisplay

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(min(2, os.cpu_count() or 1))

cones = load_lightcones()
if FAST:
    keep = slice(0, 8)
    cones.data, cones.target = cones.data[keep], cones.target[keep]
print(f"{len(cones.data)} light cones of {cones.data.shape[1:]} cells")

# %%
# Bundled weights
# ---------------
# ``fit`` loads them, and trains nothing.
start = time.perf_counter()
skatr = SKATRTransformer(weights="mini-lr").fit(cones.data)
summaries = skatr.transform(cones.data)
print(f"summarised with the bundled weights in {time.perf_counter() - start:.0f} s")

# %%
# Pre-train without labels
# ------------------------
# This is how such weights are made, here on the 229 light cones: by a joint-embedding predictive
# architecture, with the defaults of :class:`~skatr_sk.SKATRTransformer`. It sees every light cone
# and no label. ``max_epochs=0`` gives the same encoder with its random initial weights, and learns
# the whitening alone.
start = time.perf_counter()
length = {"max_epochs": 1} if FAST else {}
own = SKATRTransformer(**length, verbose=1, random_state=0).fit(cones.data)
untrained = SKATRTransformer(max_epochs=0, random_state=0).fit(cones.data)
last = own.history_[-1]
print(
    f"pre-trained in {time.perf_counter() - start:.0f} s; effective rank of the summaries "
    f"{last['effective_rank']:.1f}, at initialisation {last['effective_rank_at_init']:.1f}"
)

# %%
# Freeze, and cross-validate the head
# -----------------------------------
# Summaries are computed once: frozen, they do not depend on the fold.
signal = np.concatenate([cones.data.mean(axis=(1, 2)), cones.data.std(axis=(1, 2))], axis=1)
head = LightconeRegressor(
    target_bounds=cones.target_bounds, random_state=0, **({"max_epochs": 2} if FAST else {})
)
# The targets are standardised: otherwise E_0, in hundreds of eV, would alone choose the penalty.
ridge = TransformedTargetRegressor(
    make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))), transformer=StandardScaler()
)
ways = {
    "global signal": signal,
    "random weights": clone(untrained).set_params(whiten=False).fit_transform(cones.data),
    "random, whitened": untrained.transform(cones.data),
    "own weights": own.transform(cones.data),
    "mini-lr": summaries,
}
folds = RepeatedKFold(n_splits=2 if FAST else 5, n_repeats=1 if FAST else 2, random_state=0)
scorer = ParameterScorer(cones.target_names)
scores = {
    (name, way): cross_validate(estimator, X, cones.target, cv=folds, scoring=scorer)
    for name, estimator in {"ridge": ridge, "head": head}.items()
    for way, X in ways.items()
}

# %%
# The tables: mean over the folds, and the standard deviation between them. The folds share light
# cones, so that this is the standard deviation of one fold, not the error of the mean. m_WDM leaves
# hardly a mark at this resolution, and is left out of the mean over the parameters.
for name in ("ridge", "head"):
    print(f"\n{'R2 with the ' + name:<24}" + "".join(f"{way:>20}" for way in ways))
    found = {
        parameter: [scores[name, way][f"test_r2_{parameter}"] for way in ways]
        for parameter in cones.target_names
    }
    found["mean but m_WDM"] = list(np.mean(list(found.values())[1:], axis=0))
    for parameter, values in found.items():
        cells = (f"{v.mean():>12.3f} ± {v.std(ddof=1):.3f}" for v in values)
        print(f"{parameter:<24}" + "".join(cells))

# %%
# Look at the recovery
# --------------------
# The frozen transformer and the head are one Pipeline here; each light cone is predicted by a head
# that has not seen it. The scores in the panels are of all predictions together, not means over
# folds as above.
pipe = make_pipeline(FrozenEstimator(skatr), head)
shuffled = KFold(n_splits=2 if FAST else 5, shuffle=True, random_state=0)
predictions = cross_val_predict(pipe, cones.data, cones.target, cv=shuffled)
display = RecoveryDisplay.from_predictions(
    cones.target,
    predictions,
    parameter_names=cones.target_names,
    parameter_units=cones.target_units,
    bounds=cones.target_bounds,
)
display.figure_.savefig("recovery.png", dpi=120)
print("\nwrote recovery.png")
plt.show()
