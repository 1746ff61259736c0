"""Posterior samples of every light cone, from estimators that have not seen it."""

from __future__ import annotations

__all__ = ["cross_val_draws"]

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples

from skatr_sk._checks import Instance, Integer, check_options, listed
from skatr_sk.evaluation.arrays import Floats
from skatr_sk.evaluation.calibration import posterior_draws
from skatr_sk.training.seeds import entropy_of

_OPTIONS = {
    "n_samples": Integer(1),
    "params": Instance(Mapping, expected="a dict of what fit takes", optional=True),
}


def cross_val_draws(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    cv: Any = None,
    n_samples: int = 500,
    params: Mapping[str, Any] | None = None,
    random_state: Any = 0,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Floats:
    """Draw from the posterior of each light cone, by an estimator whose training fold lacks it.

    What ``cross_val_predict`` is to predictions: all light cones test the calibration of a
    posterior, though labels are few. The draws of a fold are of one estimator, and those of two
    folds of two.

    Parameters
    ----------
    estimator : PosteriorEstimator, a Pipeline that ends in one, or a search over such
        Each fold fits a clone.
    X : array-like of shape (n_lightcones, ...)
        Whatever the estimator takes.
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
    groups : array-like of shape (n_lightcones,), default=None
        For a `cv` that splits by groups.
    cv : int, splitter or iterable of (train, test), default=None
        Each light cone is in one test fold. None is five folds, in the order of the rows.
    n_samples : int, default=500
        For each light cone.
    params : dict or None, default=None
        What ``fit`` takes beside `X` and `y`, such as ``{"head__groups": seeds}``; arrays with a
        row for each light cone are split like these.
    random_state : int, Generator or None, default=0
        Of the draws; the estimator keeps its own.
    n_jobs : int or None, default=None
        Processes, one for a fold at a time.
    verbose : int, default=0
        Whether to show progress bars.

    Returns
    -------
    samples : ndarray of shape (n_lightcones, n_samples, n_parameters)
        In the order of `X`, as :func:`posterior_draws` gives them.

    Raises
    ------
    ValueError
        When the test folds do not have each light cone once.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import PosteriorEstimator
    >>> from skatr_sk.evaluation import cross_val_draws, expected_coverage, sbc_ranks
    >>> rng = np.random.default_rng(0)
    >>> y = rng.uniform(size=(60, 1))
    >>> X = y + 0.1 * rng.normal(size=(60, 3))
    >>> head = PosteriorEstimator(
    ...     prior_bounds=[[0, 1]], n_blocks=1, hidden_dims=(8,), max_epochs=2, random_state=0
    ... )
    >>> cross_val_draws(head, X, y, cv=3, n_samples=20).shape
    (60, 20, 1)
    """
    check_options("cross_val_draws", _OPTIONS, {"n_samples": n_samples, "params": params})
    X, y, groups = indexable(X, y, groups)
    n = _num_samples(X)
    folds = list(check_cv(cv, np.asarray(y), classifier=False).split(X, y, groups))
    tested = [np.arange(n)[test] for _, test in folds]
    times = np.bincount(np.concatenate(tested), minlength=n)
    if (times != 1).any():
        wrong = np.flatnonzero(times != 1)
        raise ValueError(
            f"cv: expected each of {n} light cones in one test fold, found {len(wrong)} in none or "
            f"several, the first of them {listed(wrong)}; use KFold or GroupKFold."
        )
    seeds = np.random.SeedSequence(entropy_of(random_state)).spawn(len(folds))

    def draw(train: np.ndarray, test: np.ndarray, seed: np.random.SeedSequence) -> Floats:
        given = {
            name: _safe_indexing(values, train) if _is_per_row(values, n) else values
            for name, values in (params or {}).items()
        }
        fitted = clone(estimator).fit(_safe_indexing(X, train), _safe_indexing(y, train), **given)
        options: dict[str, Any] = {"n_samples": n_samples, "verbose": verbose}
        options["random_state"] = np.random.default_rng(seed)
        return posterior_draws(fitted, _safe_indexing(X, test), **options)[0]

    done = Parallel(n_jobs=n_jobs)(
        delayed(draw)(np.arange(n)[train], test, seed)
        for (train, _), test, seed in zip(folds, tested, seeds, strict=True)
    )
    return np.concatenate(done)[np.argsort(np.concatenate(tested))]


def _is_per_row(values: Any, n: int) -> bool:
    return (hasattr(values, "shape") or isinstance(values, list)) and len(values) == n
