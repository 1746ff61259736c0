"""
Search over heads: summaries computed once
==========================================

A search over the head of a frozen transformer asks for the same summaries again and again: with
six candidates, four folds and the final fit each light cone goes through the pipeline 25 times.
:class:`~skatr_sk.SKATRTransformer` computes each summary once, keyed by the content of the light
cone and of the weights, so that :class:`~sklearn.model_selection.GridSearchCV` over the whole
pipeline costs little more than over the head alone. Here both are run once;
``tests/benchmarks/test_search_speed.py`` compares them over several pairs of runs.
"""

# %%
# Light cones and weights
# -----------------------
# The weights that come with the package: ``fit`` loads them and trains nothing. A file that
# :meth:`~skatr_sk.SKATRTransformer.save` wrote would do as well.
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline

from skatr_sk import LightconeRegressor, SKATRTransformer, load_lightcones
from skatr_sk.evaluation import neg_mean_absolute_relative_error_scorer
from skatr_sk.summaries import cache_info, clear_cache

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(min(2, os.cpu_count() or 1))

cones = load_lightcones()
if FAST:
    keep = slice(0, 12)
    cones.data, cones.target = cones.data[keep], cones.target[keep]

# %%
# The search
# ----------
# Parameters of the head are reached by the name of its step. ``cache="memory"`` is the default:
# with ``n_jobs=2``, name a folder instead, which the processes share.
skatr = SKATRTransformer(weights="mini-lr", cache="memory")
epochs = dict(max_epochs=2 if FAST else 150, patience=20)
head = LightconeRegressor(target_bounds=cones.target_bounds, random_state=0, **epochs)
pipe = Pipeline([("skatr", skatr), ("head", head)])
grid = {"head__hidden_dims": [(32,), (360,), (360, 360)], "head__learning_rate": [2e-3, 2e-4]}
folds = KFold(2 if FAST else 4, shuffle=True, random_state=0)
search = GridSearchCV(pipe, grid, cv=folds, scoring=neg_mean_absolute_relative_error_scorer)

clear_cache()
start = time.perf_counter()
search.fit(cones.data, cones.target)
together = time.perf_counter() - start
info = cache_info()
print(
    f"search over the pipeline: {together:.1f} s, {info.misses} summaries computed, "
    f"{info.hits} found again"
)

# %%
# What the summaries cost
# -----------------------
# The same by hand: summarise once, then search over the bare head.
start = time.perf_counter()
summaries = SKATRTransformer(weights="mini-lr", cache=None).fit_transform(cones.data)
summarised = time.perf_counter() - start
bare = GridSearchCV(
    Pipeline([pipe.steps[-1]]), grid, cv=folds, scoring=neg_mean_absolute_relative_error_scorer
)
bare.fit(summaries, cones.target)
by_hand = time.perf_counter() - start
n_asked = info.hits + info.misses
print(
    f"by hand: {by_hand:.1f} s, of which {summarised:.1f} s for the summaries. Without the cache "
    f"the search over the pipeline would have computed {n_asked} of them, in some "
    f"{summarised * n_asked / len(summaries):.0f} s"
)

# %%
# The candidates
# --------------
# Mean and standard deviation over the folds. The folds share light cones, so that this is the
# standard deviation of one fold, not the error of the mean.
results = search.cv_results_
order = np.argsort(-results["mean_test_score"])
for i in order:
    error, deviation = -results["mean_test_score"][i], results["std_test_score"][i]
    print(f"{error:.3f} ± {deviation:.3f}  {results['params'][i]}")

names = [
    f"{'-'.join(map(str, params['head__hidden_dims']))}, {params['head__learning_rate']:g}"
    for params in results["params"]
]
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
axes.errorbar(
    -results["mean_test_score"][order],
    np.arange(len(order)),
    xerr=results["std_test_score"][order],
    fmt="o",
    capsize=3,
)
axes.set_yticks(np.arange(len(order)), [names[i] for i in order])
axes.invert_yaxis()
axes.set(
    xlabel="mean absolute relative error, cross-validated", ylabel="hidden layers, learning rate"
)
figure.savefig("search.png", dpi=120)
print("\nwrote search.png")
plt.show()
