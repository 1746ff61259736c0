"""
Posteriors from frozen summaries
================================

:class:`~skatr_sk.PosteriorEstimator` turns summaries of light cones into posteriors of the six
parameters. How much is that worth? The figure of merit is the mean log probability of the true
parameters under the posterior, cross-validated: in nats, and larger is better.

The table puts the flow beside two simpler densities, on the same folds: the prior, which knows
nothing of the light cone, and a Gaussian around the prediction of the regression head, with the
covariance of its cross-validated residuals. There are two kinds of summaries: those of the weights
that come with the package, which were pre-trained without labels on simulated light cones and not
on these, and the plain global signal (mean and standard deviation of each redshift slice).
"""

# %%
# Light cones and frozen summaries
# --------------------------------
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import multivariate_normal
from sklearn.model_selection import KFold, cross_val_predict, train_test_split

from skatr_sk import LightconeRegressor, PosteriorEstimator, SKATRTransformer, load_lightcones
from skatr_sk.evaluation import CoverageDisplay, MarginalsDisplay, PosteriorDisplay

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(min(2, os.cpu_count() or 1))

cones = load_lightcones()
if FAST:
    keep = slice(0, 16)
    cones.data, cones.target = cones.data[keep], cones.target[keep]
start = time.perf_counter()
skatr = SKATRTransformer(weights="mini-lr").fit(cones.data)
signal = np.concatenate([cones.data.mean(axis=(1, 2)), cones.data.std(axis=(1, 2))], axis=1)
summaries = {"SKATR": skatr.transform(cones.data), "global signal": signal}
print(f"summarised in {time.perf_counter() - start:.0f} s")

# %%
# Three densities
# ---------------
# The prior is uniform in a box; the posterior keeps to it. The residuals of the regression head are
# taken from an inner cross-validation: on the rows that it was trained on they would be too small.
settings = dict(batch_size=32, max_epochs=2 if FAST else 60, device="cpu", random_state=0)
flow = PosteriorEstimator(
    prior_bounds=cones.target_bounds, parameter_names=cones.target_names, **settings
)
regressor = LightconeRegressor(target_bounds=cones.target_bounds, patience=15, **settings)
log_prior = -np.log(np.diff(cones.target_bounds, axis=1)).sum()


def gaussian_log_prob(X_train, y_train, X_test, y_test):
    """Mean log density of the truth under a Gaussian on the regressor's residuals."""
    inner = cross_val_predict(regressor, X_train, y_train, cv=3)
    covariance = np.cov((y_train - inner).T)
    residuals = y_test - regressor.fit(X_train, y_train).predict(X_test)
    return multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(residuals).mean()


# %%
# The table
# ---------
# Mean over the folds, and the standard deviation between them.
folds = KFold(2 if FAST else 5, shuffle=True, random_state=0)
print(f"\nmean log probability of the truth [nats]; the prior alone: {log_prior:.2f}\n")
print(f"{'summaries':<16}{'Gaussian on residuals':>26}{'flow':>20}")
for name, X in summaries.items():
    scores = {"gaussian": [], "flow": []}
    for train, test in folds.split(X):
        parts = X[train], cones.target[train], X[test], cones.target[test]
        scores["gaussian"].append(gaussian_log_prob(*parts))
        scores["flow"].append(flow.fit(*parts[:2]).score(*parts[2:]))
    cells = [f"{np.mean(each):.2f} ± {np.std(each, ddof=1):.2f}" for each in scores.values()]
    print(f"{name:<16}{cells[0]:>26}{cells[1]:>20}")

# %%
# One posterior
# -------------
# A test cone's posterior from either kind of summaries, within the prior's box; dashed, the truth.
train, test = train_test_split(np.arange(len(signal)), test_size=0.3, random_state=0)
samples = {}
for name, X in summaries.items():
    flow.fit(X[train], cones.target[train])
    samples[name] = flow.sample(X[test], 200 if FAST else 4000, random_state=0)
parameters = dict(parameter_names=cones.target_names, parameter_units=cones.target_units)
corner = PosteriorDisplay.from_samples(
    {name: each[0] for name, each in samples.items()},
    y_true=cones.target[test[0]],
    bounds=cones.target_bounds,
    **parameters,
)
corner.figure_.savefig("posterior.png", dpi=120)

# %%
# Are they honest?
# ----------------
# The marginals of all test cones beside their truths, and two checks of calibration: the ranks of
# the truths among the samples, parameter by parameter, and the coverage of highest-density regions,
# which see the joint density of all six. The two can disagree: of a single flow
# (``n_members=1``) the ranks stay in their band with 160 training light cones, but the joint
# posteriors are too narrow. The mean of five flows, the default, is wide enough: over the five
# folds the regions that should hold 68 and 95 % of the truths hold 73 and 97 %.
drawn, truths = samples["global signal"], cones.target[test]
marginals = MarginalsDisplay.from_samples(drawn, truths, bounds=cones.target_bounds, **parameters)
marginals.figure_.savefig("marginals.png", dpi=120)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
CoverageDisplay.from_samples(
    drawn, truths, method="ranks", parameter_names=cones.target_names, ax=left
)
CoverageDisplay.from_estimator(flow, signal[test], truths, ax=right)
figure.savefig("coverage.png", dpi=120)
print(f"\nwrote posterior.png, marginals.png and coverage.png; {time.perf_counter() - start:.0f} s")
plt.show()
