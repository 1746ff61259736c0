"""Two moons, a problem of the benchmark of simulation-based inference, with its exact posterior.

Lueckmann et al., arXiv:2101.04653, appendix T.8, after Greenberg et al., arXiv:1905.07488:
parameters uniform in the box [-1, 1]^2, and a point on a half circle that is shifted by them,

    x = (r cos a + 0.25, r sin a) + (-|y1 + y2|, -y1 + y2) / sqrt(2),
    a uniform in [-pi / 2, pi / 2], r normal with mean 0.1 and standard deviation 0.01.

The posterior is two thin crescents, one for each sign of y1 + y2.
"""

import warnings

import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

BOUNDS = [[-1.0, 1.0], [-1.0, 1.0]]


def half_circle(rng, n):
    """Points (n, 2) on the half circle."""
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.normal(0.1, 0.01, n)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)


def simulate(n, seed):
    """Observations and parameters, each (n, 2)."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(-1, 1, (n, 2))
    shift = np.stack([-np.abs(y[:, 0] + y[:, 1]), y[:, 1] - y[:, 0]], axis=1) / np.sqrt(2)
    return half_circle(rng, n) + shift, y


def reference(x, n, seed):
    """Exact samples (n, 2) of the posterior at one observation x.

    The shift is linear on either side of y1 + y2 = 0: each point of the half circle leads back to
    one parameter on each side, and those in the box, equally probable, are the posterior.
    """
    rng = np.random.default_rng(seed)
    kept = np.empty((0, 2))
    while len(kept) < n:
        left = np.sqrt(2) * (half_circle(rng, n) - x)  # (|y1 + y2|, y1 - y2)
        left = left[left[:, 0] >= 0]
        total, difference = left[:, 0] * rng.choice([-1, 1], len(left)), left[:, 1]
        y = np.stack([total + difference, total - difference], axis=1) / 2
        kept = np.concatenate([kept, y[(np.abs(y) <= 1).all(axis=1)]])
    return kept[:n]


def c2st(samples, exact):
    """Accuracy of the benchmark's classifier, by five folds; 0.5 is what equal samples give."""
    X = (np.concatenate([exact, samples]) - exact.mean(axis=0)) / exact.std(axis=0)
    label = np.repeat([0, 1], [len(exact), len(samples)])
    width = 10 * X.shape[1]
    classifier = MLPClassifier((width, width), max_iter=1000, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # may stop before it has converged
        folds = KFold(5, shuffle=True, random_state=0)
        return cross_val_score(classifier, X, label, cv=folds).mean()


def mean_c2st(posterior, n=1000):
    """Mean accuracy on three observations that never change."""
    X, _ = simulate(3, seed=1234)
    samples = posterior.sample(X, n, random_state=0)
    exact = (reference(x, n, seed) for seed, x in enumerate(X))
    return np.mean([c2st(ours, theirs) for ours, theirs in zip(samples, exact, strict=True)])
