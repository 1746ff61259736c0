"""How many labels an estimator needs: scores over the size of the training set, as a tidy table."""

from __future__ import annotations

__all__ = ["TRAIN_SIZES", "data_efficiency_curve", "parameter_scores"]

import numbers
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils.parallel import Parallel, delayed

from skatr_sk.evaluation import metrics

TRAIN_SIZES = (0.1, 0.325, 0.55, 0.775, 1.0)  # those of learning_curve
_SHOWN = 5  # fits that failed, in the warning
_ALL = "all"  # the parameter of a score that is one number for all parameters
_TYPES = {"estimator": str, "parameter": str, "metric": str, "value": float, "fit_seconds": float}


def parameter_scores(estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Mean absolute relative error and R2 of each parameter, of a fitted regressor.

    Parameters
    ----------
    estimator : fitted estimator with ``predict``
    X : array-like of shape (n_lightcones, ...)
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)

    Returns
    -------
    dict of str to ndarray of shape (n_parameters,)
        ``"mean_absolute_relative_error"``, NaN for a parameter of which a truth is zero, and
        ``"r2"``, NaN with a single light cone.

    Examples
    --------
    >>> from sklearn.dummy import DummyRegressor
    >>> from skatr_sk.evaluation import parameter_scores
    >>> X, y = [[0], [1]], [[1.0, 5.0], [3.0, 0.0]]
    >>> scores = parameter_scores(DummyRegressor().fit(X, y), X, y)
    >>> scores["mean_absolute_relative_error"].round(3)
    array([0.667,   nan])
    """
    true, pred = metrics._check_targets(y, estimator.predict(X))
    error, gain = np.full((2, true.shape[1]), np.nan)
    defined = (true != 0.0).all(axis=0)
    if defined.any():
        error[defined] = metrics.mean_absolute_relative_error(
            true[:, defined], pred[:, defined], multioutput="raw_values"
        )
    if len(true) > 1:
        gain = metrics.r2_per_parameter(true, pred)
    return {"mean_absolute_relative_error": error, "r2": gain}


def data_efficiency_curve(
    estimators: Any,
    X: ArrayLike,
    y: ArrayLike,
    train_sizes: ArrayLike = TRAIN_SIZES,
    *,
    groups: ArrayLike | None = None,
    cv: Any = None,
    n_repeats: int = 1,
    scoring: str | Callable[..., Any] | None = None,
    parameter_names: Sequence[str] | None = None,
    error_score: float | str = np.nan,
    n_jobs: int | None = None,
    verbose: int = 0,
    random_state: int | np.random.RandomState | None = None,
) -> dict[str, NDArray[Any]]:
    """Fit estimators on ever larger parts of the training data, and score them on the rest.

    The conventions are those of scikit-learn's ``learning_curve``: the test fold stays the same
    whatever the size, and a smaller training set is a part of every larger one. Here the training
    fold is always shuffled, as often as there are repeats, and all estimators are given the same
    rows, so that they can be compared row by row.

    Parameters
    ----------
    estimators : dict of str to estimator, or one estimator
        Not fitted; each fit is that of a clone. Freeze a pre-trained transformer
        (``SKATRTransformer(weights=...)`` or :class:`~sklearn.frozen.FrozenEstimator`), and its
        summaries are computed once for all sizes, folds and repeats. What it was pre-trained on is
        no matter of this function: other light cones, and more of them, without labels.
    X : array-like of shape (n_lightcones, ...)
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
    train_sizes : array-like of float in (0, 1] or of int
        Fractions of the smallest training fold, or numbers of light cones.
    groups : array-like of shape (n_lightcones,), default=None
        For a `cv` that splits by groups.
    cv : int, splitter or iterable of (train, test), default=None
        None is five folds, in the order of the rows, as everywhere in scikit-learn.
    n_repeats : int, default=1
        Shufflings of each training fold.
    scoring : str, callable or None, default=None
        ``scoring(estimator, X, y)`` returns a number, an array of one for each parameter, or a dict
        of names to such; a string is one of scikit-learn's scorers, and None is
        :func:`parameter_scores`.
    parameter_names : sequence of str, default=None
        In the order of the columns of `y`; default are the columns of a DataFrame, and "parameter
        0" and so on otherwise.
    error_score : float or "raise", default=nan
        Values of a fit that fails, or cannot be scored; a ``FitFailedWarning`` then says which and
        why. "raise" stops at the first.
    n_jobs : int or None, default=None
        Processes. With more than one, a transformer's ``cache=`` should name a folder.
    verbose : int, default=0
        Of joblib.
    random_state : int, RandomState instance or None, default=None
        Of the shufflings. The estimators keep their own.

    Returns
    -------
    table : dict of str to ndarray of shape (n_rows,)
        One row for each number, with the columns ``estimator``, ``size`` (of the training set),
        ``fold``, ``repeat``, ``seed`` (of the shuffling), ``parameter`` ("all" where there is one
        number for all of them), ``metric``, ``value`` and ``fit_seconds``. It is what
        ``pandas.DataFrame(table)`` takes. The seconds of a pipeline's first fits include the
        summaries that later ones find in the cache; to compare, call the transformer's
        ``transform(X)`` before.

    Raises
    ------
    TypeError, ValueError
        When estimators, sizes, names or scores are not as expected, or all fits fail.

    Warns
    -----
    FitFailedWarning
        When some fits fail.

    References
    ----------
    Ore, Heneka & Plehn, "SKATR: A self-supervised summary transformer for SKA", arXiv:2410.18899,
    for the same curves of pre-trained networks and of such without.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from skatr_sk.evaluation import data_efficiency_curve
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> y = X @ [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    >>> table = data_efficiency_curve(
    ...     {"ridge": Ridge()}, X, y, [5, 48], parameter_names=["a", "b"], random_state=0
    ... )
    >>> chosen = (table["parameter"] == "a") & (table["metric"] == "r2")
    >>> for size in (5, 48):
    ...     print(size, table["value"][chosen & (table["size"] == size)].round(2))
    5 [0.94 0.87 0.8  0.72 0.7 ]
    48 [1. 1. 1. 1. 1.]
    """
    named = _check_estimators(estimators)
    if not isinstance(n_repeats, numbers.Integral) or n_repeats < 1:
        raise ValueError(f"n_repeats is {n_repeats!r}, expected an integer >= 1.")
    scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring or parameter_scores
    if not callable(scorer):
        raise TypeError(f"scoring is {scoring!r}, expected None, a scorer's name or a callable.")
    if error_score != "raise" and not isinstance(error_score, numbers.Real):
        raise ValueError(f"error_score is {error_score!r}, expected a number or 'raise'.")
    X, y, groups = indexable(X, y, groups)
    names = _check_parameter_names(parameter_names, y)
    folds = list(check_cv(cv, np.asarray(y), classifier=False).split(X, y, groups))
    sizes = _check_sizes(train_sizes, min(len(train) for train, _ in folds))
    shape = len(folds), int(n_repeats)
    seeds = check_random_state(random_state).randint(2**31 - 1, size=shape)
    orders = {
        at: np.random.default_rng(seeds[at]).permutation(folds[at[0]][0])
        for at in np.ndindex(shape)
    }
    tasks = [
        {
            "estimator": name,
            "size": size,
            "fold": fold,
            "repeat": repeat,
            "seed": seeds[fold, repeat],
        }
        for name in named
        for size in sizes
        for fold, repeat in orders
    ]
    done = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(_fit_and_score)(
            clone(named[task["estimator"]]),
            X,
            y,
            orders[task["fold"], task["repeat"]][: task["size"]],
            folds[task["fold"]][1],
            scorer,
            task,
            error_score == "raise",
        )
        for task in tasks
    )
    cells = [
        {
            at: value
            for metric in scores
            for at, value in _by_parameter(metric, scores[metric], names)
        }
        for scores, _, _ in done
    ]
    failures = [failure for *_, failure in done if failure is not None]
    if failures:
        _report(failures, len(tasks), error_score)
        # They have the rows that the others have.
        whole = dict.fromkeys(at for found in cells for at in found)
        cells = [found or dict.fromkeys(whole, float(error_score)) for found in cells]
    rows = [
        task | {"parameter": parameter, "metric": metric, "value": value, "fit_seconds": seconds}
        for task, found, (_, seconds, _) in zip(tasks, cells, done, strict=True)
        for (metric, parameter), value in found.items()
    ]
    return {
        column: np.array([row[column] for row in rows], dtype=_TYPES.get(column, np.int64))
        for column in rows[0]
    }


def _fit_and_score(
    estimator: Any,
    X: Any,
    y: Any,
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    scorer: Callable[..., Any],
    task: Mapping[str, Any],
    strict: bool,
) -> tuple[Mapping[str, Any], float, str | None]:
    """Fit on `train`; return scores on `test` by metric, seconds of the fit, and what failed."""
    seconds = np.nan
    try:
        start = time.perf_counter()
        estimator.fit(_safe_indexing(X, train), _safe_indexing(y, train))
        seconds = time.perf_counter() - start
        scores = scorer(estimator, _safe_indexing(X, test), _safe_indexing(y, test))
    except Exception as error:
        where = ", ".join(f"{key} {task[key]!r}" for key in ("estimator", "size", "fold", "repeat"))
        error.add_note(f"In data_efficiency_curve: {where}.")
        if strict:
            raise
        return {}, seconds, f"{where}: {type(error).__name__}: {error}"
    return (scores if isinstance(scores, Mapping) else {"score": scores}), seconds, None


def _report(failures: Sequence[str], n_fits: int, error_score: Any) -> None:
    """Warn of fits that failed; with none that did not there is nothing to return."""
    listed = "\n".join(f"- {failure}" for failure in failures[:_SHOWN])
    more = f"\n- and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    text = f"{len(failures)} of {n_fits} fits failed:\n{listed}{more}\n"
    if len(failures) == n_fits:
        raise ValueError(f"{text}error_score='raise' shows where the first of them does.")
    warnings.warn(
        f"{text}Their values are {error_score}; error_score='raise' stops at the first.",
        FitFailedWarning,
        stacklevel=3,
    )


def _by_parameter(
    metric: str, values: Any, names: Sequence[str]
) -> list[tuple[tuple[str, str], float]]:
    """Return ((metric, parameter), value) of each number of a score."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        return [((metric, _ALL), float(array))]
    if array.shape != (len(names),):
        raise ValueError(
            f"scoring returned an array of shape {array.shape} for {metric!r}, expected a number, "
            f"or one for each of {len(names)} parameters ({', '.join(names)})."
        )
    return [((metric, name), value) for name, value in zip(names, array.tolist(), strict=True)]


def _check_estimators(estimators: Any) -> dict[str, Any]:
    named = (
        estimators if isinstance(estimators, Mapping) else {type(estimators).__name__: estimators}
    )
    wrong = [
        f"{name!r}: {value!r}"
        for name, value in named.items()
        if isinstance(value, type) or not (isinstance(name, str) and hasattr(value, "fit"))
    ]
    if wrong or not named:
        raise TypeError(
            "estimators must be an estimator, or a dict of names to estimators; found "
            f"{'; '.join(wrong) or 'none'}."
        )
    return dict(named)


def _check_parameter_names(names: Sequence[str] | None, y: Any) -> tuple[str, ...]:
    shape = np.shape(y)
    n_parameters = 1 if len(shape) == 1 else shape[1]
    if names is None:
        columns = getattr(y, "columns", [f"parameter {i}" for i in range(n_parameters)])
        return tuple(str(column) for column in columns)
    checked = metrics._check_names("parameter_names", names)
    if len(checked) != n_parameters:
        raise ValueError(
            f"parameter_names has {len(checked)} entries ({', '.join(checked)}), and y has "
            f"{n_parameters} parameter columns; give one name for each column."
        )
    return checked


def _check_sizes(train_sizes: ArrayLike, most: int) -> list[int]:
    """Numbers of light cones, in increasing order, of fractions or numbers."""
    sizes = np.asarray(train_sizes)
    if sizes.ndim != 1 or not sizes.size or sizes.dtype.kind not in "iuf":
        raise ValueError(
            f"train_sizes is {train_sizes!r}, expected a list of fractions in (0, 1] or of numbers "
            "of light cones."
        )
    fractions = sizes.dtype.kind == "f"
    wrong = sizes[~((sizes > 0) & (sizes <= (1.0 if fractions else most)))]
    if wrong.size:
        expected = "fractions (floats) in (0, 1]" if fractions else f"integers in [1, {most}]"
        raise ValueError(
            f"train_sizes has {wrong.tolist()}, expected {expected}: the smallest training fold "
            f"has {most} light cones."
        )
    if fractions:
        sizes = np.maximum((sizes * most).astype(np.int64), 1)
    distinct = np.unique(sizes)
    if len(distinct) < len(sizes):
        warnings.warn(
            f"train_sizes stands for {sorted(sizes.tolist())} light cones, some of them twice: "
            f"{distinct.tolist()} are used.",
            UserWarning,
            stacklevel=3,
        )
    return [int(size) for size in distinct]
