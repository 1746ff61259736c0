"""How well parameters are recovered: errors per parameter, and the same as scikit-learn scorers.

Targets are ``(n_lightcones, n_parameters)``, or ``(n_lightcones,)`` for one parameter, in their own
units.
"""

from __future__ import annotations

__all__ = [
    "ParameterScorer",
    "effective_rank",
    "mean_absolute_relative_error",
    "neg_mean_absolute_relative_error_scorer",
    "r2_per_parameter",
]

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skatr_sk._rank import effective_rank

_MULTIOUTPUT = ("uniform_average", "raw_values")


def mean_absolute_relative_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    multioutput: str = "uniform_average",
) -> float | NDArray[np.float64]:
    r"""Mean over light cones of :math:`|\hat y - y| / |y|`, the field's figure of merit.

    Parameters
    ----------
    y_true : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True parameters, none of them zero.
    y_pred : array-like of the same shape
        Predicted parameters.
    sample_weight : array-like of shape (n_lightcones,), default=None
        Weights of the light cones, not negative and not all zero.
    multioutput : {"uniform_average", "raw_values"}, default="uniform_average"
        The mean over parameters, or one error per parameter.

    Returns
    -------
    error : float or ndarray of shape (n_parameters,)
        Not negative; 0.05 means 5 % of the truth.

    Raises
    ------
    TypeError
        When the entries are not real numbers.
    ValueError
        When shapes differ, values are missing, a truth is zero (the message names rows and
        columns), the weights are not valid, or ``multioutput`` is unknown.

    Notes
    -----
    The error is relative to the value as given: of a parameter that is a logarithm, such as
    ``log10 L_X``, it is the error of the logarithm. It depends on where a parameter's zero lies, so
    compare it between methods, not between parameters.

    References
    ----------
    Ore, Heneka & Plehn, "SKATR: A self-supervised summary transformer for SKA", arXiv:2410.18899.

    Examples
    --------
    >>> from skatr_sk.evaluation import mean_absolute_relative_error
    >>> y_true = [[0.2, 100.0], [0.4, 200.0]]
    >>> y_pred = [[0.22, 100.0], [0.4, 150.0]]
    >>> round(mean_absolute_relative_error(y_true, y_pred), 4)
    0.0875
    >>> mean_absolute_relative_error(y_true, y_pred, multioutput="raw_values").round(4)
    array([0.05 , 0.125])
    """
    _check_choice("multioutput", multioutput, _MULTIOUTPUT)
    true, pred = _check_targets(y_true, y_pred)
    rows, columns = np.nonzero(true == 0.0)
    if rows.size:
        raise ValueError(
            f"y_true is zero in {rows.size} of {true.size} entries (rows {_first(rows)}; parameter "
            f"columns {_first(columns)}), where a relative error is not defined; leave those out, "
            "or use r2_per_parameter."
        )
    weight = _check_weight(sample_weight, len(true))
    errors = np.average(np.abs(pred - true) / np.abs(true), axis=0, weights=weight)
    return errors if multioutput == "raw_values" else float(errors.mean())


def r2_per_parameter(y_true: ArrayLike, y_pred: ArrayLike) -> NDArray[np.float64]:
    r"""Coefficient of determination :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`.

    The same as ``sklearn.metrics.r2_score(y_true, y_pred, multioutput="raw_values")``.

    Parameters
    ----------
    y_true : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True parameters.
    y_pred : array-like of the same shape
        Predicted parameters.

    Returns
    -------
    r2 : ndarray of shape (n_parameters,)
        At most 1; 0 is as good as the mean of the truth, which a negative value falls short of. A
        parameter whose truth is the same in every light cone has 1 when predicted exactly, else 0.
        With a single light cone all are NaN, with a ``UserWarning``.

    Raises
    ------
    TypeError
        When the entries are not real numbers.
    ValueError
        When shapes differ or values are missing.

    References
    ----------
    scikit-learn user guide, "R2 score, the coefficient of determination".

    Examples
    --------
    >>> from skatr_sk.evaluation import r2_per_parameter
    >>> y_true = [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    >>> y_pred = [[1.0, 5.0], [2.0, 5.0], [2.0, 6.0]]
    >>> r2_per_parameter(y_true, y_pred)
    array([0.5, 0. ])
    """
    true, pred = _check_targets(y_true, y_pred)
    if len(true) < 2:
        warnings.warn(
            "R2 is not defined for a single light cone, and is NaN; give at least two.",
            UserWarning,
            stacklevel=2,
        )
        return np.full(true.shape[1], np.nan)
    residual = np.sum((true - pred) ** 2, axis=0)
    total = np.sum((true - true.mean(axis=0)) ** 2, axis=0)
    # The rounding of the mean leaves a constant truth with a scatter that is not quite zero.
    total[np.ptp(true, axis=0) == 0.0] = 0.0
    r2 = np.where(residual == 0.0, 1.0, 0.0)
    defined = (total > 0.0) & (residual > 0.0)
    r2[defined] = 1.0 - residual[defined] / total[defined]
    return r2


def neg_mean_absolute_relative_error_scorer(
    estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> float:
    """Score a fitted regressor by minus its mean absolute relative error.

    Hand it to ``scoring=`` of scikit-learn's ``cross_validate``, ``GridSearchCV`` or
    ``learning_curve``. Larger is better, as for every scorer there.

    Parameters
    ----------
    estimator : fitted estimator with ``predict``
        For instance a :class:`~sklearn.pipeline.Pipeline` that ends in a regressor.
    X : array-like of shape (n_lightcones, ...)
        Whatever the estimator takes.
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True parameters, none of them zero.
    sample_weight : array-like of shape (n_lightcones,), default=None
        Weights of the light cones.

    Returns
    -------
    score : float
        Not positive.

    Raises
    ------
    TypeError, ValueError
        As :func:`mean_absolute_relative_error`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import cross_val_score
    >>> from skatr_sk.evaluation import neg_mean_absolute_relative_error_scorer
    >>> X = np.arange(40.0).reshape(20, 2)
    >>> y = 1 + X @ np.array([[1.0, 2.0], [0.5, 0.1]])
    >>> scores = cross_val_score(Ridge(), X, y, scoring=neg_mean_absolute_relative_error_scorer)
    >>> bool((scores <= 0).all())
    True
    """
    return -float(
        mean_absolute_relative_error(y, estimator.predict(X), sample_weight=sample_weight)
    )


class ParameterScorer:
    """Several scores at once, one pair per parameter: columns for a table of a cross-validation.

    Parameters
    ----------
    names : sequence of str
        Names of the parameters, in the order of the columns of ``y``; stored as a tuple.

    Raises
    ------
    TypeError
        When ``names`` is not a sequence of strings.
    ValueError
        When a name is repeated or, on calling, their number is not that of the parameters.

    Notes
    -----
    Calling it as ``scorer(estimator, X, y)`` returns a dict of floats: ``"r2"`` and
    ``"neg_mean_absolute_relative_error"``, averaged over parameters and meant for
    ``GridSearchCV(refit=...)``, then ``"r2_<name>"`` and ``"mare_<name>"`` of each parameter. The
    ``mare_`` entries are errors, smaller is better: read them, do not refit or rank by them.

    References
    ----------
    scikit-learn user guide, "Using multiple metric evaluation".

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import cross_validate
    >>> from skatr_sk.evaluation import ParameterScorer
    >>> X = np.arange(40.0).reshape(20, 2)
    >>> y = 1 + X @ np.array([[1.0, 2.0], [0.5, 0.1]])
    >>> table = cross_validate(Ridge(), X, y, scoring=ParameterScorer(["Omega_m", "zeta"]))
    >>> sorted(key for key in table if key.endswith("zeta"))
    ['test_mare_zeta', 'test_r2_zeta']
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = _check_names("names", names)

    def __call__(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """Score a fitted estimator; see the class for the entries."""
        true, pred = _check_targets(y, estimator.predict(X))
        if true.shape[1] != len(self.names):
            raise ValueError(
                f"names has {len(self.names)} entries ({', '.join(self.names)}) and y has "
                f"{true.shape[1]} parameter columns; give one name for each column."
            )
        r2 = r2_per_parameter(true, pred)
        mare = np.asarray(mean_absolute_relative_error(true, pred, multioutput="raw_values"))
        scores = {"r2": float(r2.mean()), "neg_mean_absolute_relative_error": -float(mare.mean())}
        for name, gain, error in zip(self.names, r2, mare, strict=True):
            scores |= {f"r2_{name}": float(gain), f"mare_{name}": float(error)}
        return scores

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.names)!r})"


def _first(indices: NDArray[np.intp]) -> str:
    """The first distinct indices, for a message."""
    distinct = np.unique(indices)
    return ", ".join(map(str, distinct[:5])) + (", ..." if distinct.size > 5 else "")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = " or ".join(map(repr, choices))
    raise ValueError(f"{name} is {value!r}, expected {listed}.{hint}")


def _check_names(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    listed = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else ()
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"{argument} is {names!r}, expected a sequence of strings, such as a list.")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise ValueError(f"{argument} repeats {', '.join(twice)}, expected distinct names.")
    # numpy's strings are strings too, but do not print as such.
    return tuple(map(str, listed))


def _real(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected real numbers; convert it to float first."
        )
    return array.astype(np.float64)


def _as_matrix(name: str, values: ArrayLike, problems: list[str]) -> NDArray[np.float64]:
    """Float64 of shape (n_lightcones, n_parameters); what is wrong is added to the problems."""
    array = _real(name, values)
    matrix = array[:, np.newaxis] if array.ndim == 1 else array
    if matrix.ndim != 2 or matrix.size == 0:
        mend = " (average posterior samples first)" if matrix.ndim == 3 else ""
        problems.append(
            f"{name} has shape {array.shape}, expected (n_lightcones,) or (n_lightcones, "
            f"n_parameters) with at least one of each{mend}"
        )
    elif (bad := np.flatnonzero(~np.isfinite(matrix).all(axis=1))).size:
        problems.append(
            f"{name} has NaN or infinite values in {bad.size} of {len(matrix)} rows (rows "
            f"{_first(bad)}), expected finite numbers; leave those rows out"
        )
    return matrix


def _check_targets(
    y_true: ArrayLike, y_pred: ArrayLike, name: str = "y_pred"
) -> tuple[NDArray[np.float64], ...]:
    """Both as float64 matrices of one shape, or one error that lists all that is wrong."""
    problems: list[str] = []
    true = _as_matrix("y_true", y_true, problems)
    pred = _as_matrix(name, y_pred, problems)
    if true.ndim == pred.ndim == 2 and true.shape != pred.shape:
        problems.append(
            f"{name} has shape {np.shape(y_pred)}, y_true {np.shape(y_true)}, expected the same: "
            "one prediction per light cone and parameter"
        )
    if problems:
        raise ValueError("; and ".join(problems) + ".")
    return true, pred


def _check_weight(sample_weight: ArrayLike | None, n_lightcones: int) -> NDArray[np.float64] | None:
    if sample_weight is None:
        return None
    weight = _real("sample_weight", sample_weight)
    if weight.shape != (n_lightcones,):
        raise ValueError(
            f"sample_weight has shape {weight.shape}, expected one weight for each of the "
            f"{n_lightcones} light cones."
        )
    bad = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if bad.size or not weight.any():
        found = f"not valid in rows {_first(bad)}" if bad.size else "zero everywhere"
        raise ValueError(f"sample_weight is {found}, expected finite weights >= 0, not all zero.")
    return weight
