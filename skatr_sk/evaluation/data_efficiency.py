"""How many labels an estimator needs: scores over the size of the training set, as a tidy table."""

from __future__ import annotations

__all__ = ["TRAIN_SIZES", "data_efficiency_curve"]

import itertools
import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv, cross_validate
from sklearn.utils import indexable
from sklearn.utils.parallel import Parallel, delayed

from skatr_sk._checks import Integer, Rule, check_options, warn
from skatr_sk._checks import parameter_names as names_of
from skatr_sk.evaluation.metrics import parameter_scores
from skatr_sk.training.seeds import draw_seeds


def _can_be_fitted(named: Mapping[Any, Any]) -> bool:
    return bool(named) and all(
        isinstance(name, str) and hasattr(each, "fit") and not isinstance(each, type)
        for name, each in named.items()
    )


_Scores = dict[tuple[str, str], float]  # of each metric and parameter
TRAIN_SIZES = (0.1, 0.325, 0.55, 0.775, 1.0)  # those of learning_curve
_SHOWN = 5  # fits that failed, in the warning
_ALL = "all"  # the parameter of a score that is one number for all parameters
_OPTIONS = {
    "estimators": Rule(_can_be_fitted, "an estimator, or a dict of names to estimators"),
    "n_repeats": Integer(1),
    "scoring": Rule(
        lambda value: callable(value) or isinstance(value, str),
        "a scorer's name, a callable",
        optional=True,
    ),
    "error_score": Rule(
        lambda value: value == "raise" or isinstance(value, numbers.Real), "a number or 'raise'"
    ),
}


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
    rows, so that they can be compared row by row. SKATR's paper (Ore, Heneka & Plehn,
    arXiv:2410.18899) shows such curves of networks with and without pre-training.

    Parameters
    ----------
    estimators : dict of str to estimator, or one estimator
        Not fitted; each fit is that of a clone. Freeze a pre-trained transformer
        (``SKATRTransformer(weights=...)`` or :class:`~sklearn.frozen.FrozenEstimator`), and its
        summaries are computed once for all sizes, folds and repeats. The light cones that it was
        pre-trained on, more and without labels, are not part of `X`.
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
        In the order of the columns of `y`; by default the columns of a DataFrame or the name of a
        Series, otherwise ``parameter_0`` and so on.
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
    named: Any = estimators
    if not isinstance(estimators, Mapping):
        named = {type(estimators).__name__: estimators}
    options = {"n_repeats": n_repeats, "scoring": scoring, "error_score": error_score}
    check_options("data_efficiency_curve", _OPTIONS, {"estimators": named, **options})
    scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring or parameter_scores
    X, y, groups = indexable(X, y, groups)
    names = names_of(parameter_names, y, 1 if np.ndim(y) == 1 else np.shape(y)[1])
    folds = list(check_cv(cv, np.asarray(y), classifier=False).split(X, y, groups))
    sizes = _check_sizes(train_sizes, min(len(train) for train, _ in folds))
    shape = len(folds), int(n_repeats)
    seeds = draw_seeds(random_state, shape)
    tasks = [
        {"estimator": name, "size": size, "fold": at[0], "repeat": at[1], "seed": seeds[at]}
        for name, size, at in itertools.product(named, sizes, np.ndindex(shape))
    ]
    fit = partial(_fit_and_score, (X, y), partial(_scores, scorer, names), error_score == "raise")
    done = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(fit)(named[task["estimator"]], *folds[task["fold"]], task) for task in tasks
    )
    _report([failure for *_, failure in done if failure], len(tasks), error_score)
    # A fit that failed has the rows that the others have.
    cells = dict.fromkeys(cell for scores, *_ in done for cell in scores)
    rows = []
    for task, (scores, seconds, failure) in zip(tasks, done, strict=True):
        if failure:
            scores = dict.fromkeys(cells, float(error_score))
        for (metric, parameter), value in scores.items():
            row = {"parameter": parameter, "metric": metric, "value": value, "fit_seconds": seconds}
            rows.append(task | row)
    return {column: np.array([row[column] for row in rows]) for column in rows[0]}


def _fit_and_score(
    data: Any, scorer: Any, strict: bool, estimator: Any, train: Any, test: Any, task: Any
) -> tuple[_Scores, float, str]:
    """Return the scores of one fit, its seconds, and what failed, if anything.

    One fit a call: of several, ``cross_validate`` does not say which have failed, and it cannot
    collect the scores of the others where a score is what failed.
    """
    scores: _Scores = {}

    def score(*fitted_and_data: Any) -> float:
        scores.update(scorer(*fitted_and_data))
        return 0.0  # cross_validate insists on a number

    rows = np.random.default_rng(task["seed"]).permutation(train)[: task["size"]]
    options: dict[str, Any] = {"scoring": score, "error_score": "raise", "n_jobs": 1}
    try:
        found = cross_validate(estimator, *data, cv=[(rows, test)], **options)
    except Exception as error:
        where = ", ".join(f"{key} {value!r}" for key, value in task.items() if key != "seed")
        error.add_note(f"In data_efficiency_curve: {where}.")
        if strict:
            raise
        return {}, np.nan, f"{where}: {type(error).__name__}: {error}"
    return scores, found["fit_time"][0], ""


def _scores(scorer: Any, names: Sequence[str], estimator: Any, X: Any, y: Any) -> _Scores:
    """Score, and take the result apart: a number for each metric and parameter."""
    scores = scorer(estimator, X, y)
    flat: _Scores = {}
    for metric, values in (scores if isinstance(scores, Mapping) else {"score": scores}).items():
        array = np.asarray(values, dtype=np.float64)
        if array.shape not in ((), (len(names),)):
            raise ValueError(
                f"scoring: expected a number, or one for each of {len(names)} parameters "
                f"({', '.join(names)}), found an array of shape {array.shape} for {metric!r}."
            )
        which = names if array.ndim else [_ALL]
        flat |= zip(((metric, name) for name in which), array.ravel().tolist(), strict=True)
    return flat


def _report(failures: Sequence[str], n_fits: int, error_score: Any) -> None:
    """Warn of fits that failed; if all did there is nothing to return, and it is an error."""
    if not failures:
        return
    more = [f"and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
    shown = "\n- ".join([f"{len(failures)} of {n_fits} fits failed:", *failures[:_SHOWN], *more])
    if len(failures) == n_fits:
        raise ValueError(f"{shown}\nerror_score='raise' shows where the first of them does.")
    end = f"Their values are {error_score}; error_score='raise' stops at the first."
    warn(f"{shown}\n{end}", FitFailedWarning)


def _check_sizes(train_sizes: ArrayLike, most: int) -> list[int]:
    """Numbers of light cones, in increasing order, of fractions or numbers."""
    sizes = np.asarray(train_sizes)
    if sizes.ndim != 1 or not sizes.size or sizes.dtype.kind not in "iuf":
        raise ValueError(
            "train_sizes: expected a list of fractions in (0, 1] or of numbers of light cones, "
            f"found {train_sizes!r}."
        )
    fractions = sizes.dtype.kind == "f"
    wrong = sizes[~((sizes > 0) & (sizes <= (1.0 if fractions else most)))]
    if wrong.size:
        expected = "fractions (floats) in (0, 1]" if fractions else f"integers in [1, {most}]"
        raise ValueError(
            f"train_sizes: expected {expected}, found {wrong.tolist()}; the smallest training fold "
            f"has {most} light cones."
        )
    if fractions:
        sizes = np.maximum((sizes * most).astype(np.int64), 1)
    distinct = np.unique(sizes).tolist()
    if len(distinct) < len(sizes):
        warn(
            f"train_sizes stands for {sorted(sizes.tolist())} light cones, some of them twice: "
            f"{distinct} are used."
        )
    return distinct
