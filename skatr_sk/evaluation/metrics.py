"""How well parameters are recovered: errors of each parameter, and the same as scorers.

Targets are ``(n_lightcones, n_parameters)``, or ``(n_lightcones,)`` for one parameter, in their own
units. Scorers go to ``scoring=`` of scikit-learn's ``cross_validate``, ``GridSearchCV`` and
``learning_curve``.
"""

from __future__ import annotations

__all__ = [
    "ParameterScorer",
    "effective_rank",
    "mean_absolute_relative_error",
    "neg_mean_absolute_relative_error_scorer",
    "parameter_scores",
    "r2_per_parameter",
    "scores_where_defined",
]

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import make_scorer, r2_score

from skatr_sk._checks import Choice, Rule, check_options, listed, warn
from skatr_sk.evaluation.arrays import Floats, check_targets, real_array
from skatr_sk.evaluation.fitted import check_truths
from skatr_sk.parameters import check_order
from skatr_sk.training.effective_rank import effective_rank


def mean_absolute_relative_error(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    multioutput: str = "uniform_average",
) -> float | Floats:
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
    TypeError, ValueError
        When entries are not real numbers, shapes differ, values are missing, a truth is zero (the
        message names rows and columns), weights are not valid, or ``multioutput`` is unknown.

    Notes
    -----
    SKATR's paper (Ore, Heneka & Plehn, arXiv:2410.18899) judges by it. The error is relative to the
    value as given: of a logarithm, such as ``log10 L_X``, it is the error of the logarithm. It
    depends on where the zero lies, so compare it between methods, not between parameters.

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
    kinds = {"multioutput": Choice("uniform_average", "raw_values")}
    check_options("mean_absolute_relative_error", kinds, {"multioutput": multioutput})
    true, pred = check_targets(y_true, y_pred)
    rows, columns = np.nonzero(true == 0.0)
    if rows.size:
        raise ValueError(
            f"y_true: expected no zeros, found them in {rows.size} of {true.size} entries (rows "
            f"{listed(np.unique(rows))}; parameter columns {listed(np.unique(columns))}), where a "
            "relative error is not defined; leave those out, or use r2_per_parameter."
        )
    weight = None if sample_weight is None else _check_weight(sample_weight, len(true))
    errors = np.average(np.abs(pred - true) / np.abs(true), axis=0, weights=weight)
    return errors if multioutput == "raw_values" else float(errors.mean())


def r2_per_parameter(y_true: ArrayLike, y_pred: ArrayLike) -> Floats:
    r"""Coefficient of determination :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`.

    This is ``sklearn.metrics.r2_score(y_true, y_pred, multioutput="raw_values")``, except that a
    constant truth is recognised as such whatever the rounding of its mean.

    Parameters
    ----------
    y_true : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)
        True parameters.
    y_pred : array-like of the same shape
        Predicted parameters.

    Returns
    -------
    r2 : ndarray of shape (n_parameters,)
        At most 1; 0 is as good as predicting the mean of the truth, and worse predictions are
        negative. A parameter whose truth is the same in every light cone has 1 when predicted
        exactly, else 0. With a single light cone all are NaN, with a ``UserWarning``.

    Raises
    ------
    TypeError, ValueError
        When entries are not real numbers, shapes differ, or values are missing.

    Examples
    --------
    >>> from skatr_sk.evaluation import r2_per_parameter
    >>> y_true = [[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    >>> y_pred = [[1.0, 5.0], [2.0, 5.0], [2.0, 6.0]]
    >>> r2_per_parameter(y_true, y_pred)
    array([0.5, 0. ])
    """
    true, pred = check_targets(y_true, y_pred)
    if len(true) < 2:
        warn("R2 is not defined for a single light cone, and is NaN; give at least two.")
        return np.full(true.shape[1], np.nan)
    constant = np.where(np.ptp(true, axis=0) == 0.0, true[0], 0.0)
    return r2_score(true - constant, pred - constant, multioutput="raw_values")


def scores_where_defined(true: Floats, pred: Floats) -> dict[str, Floats]:
    """Return the scores of :func:`parameter_scores`, of checked truths and predictions."""
    error = np.full(true.shape[1], np.nan)
    defined = (true != 0.0).all(axis=0)
    if defined.any():
        known = true[:, defined], pred[:, defined]
        error[defined] = mean_absolute_relative_error(*known, multioutput="raw_values")
    gain = r2_per_parameter(true, pred) if len(true) > 1 else np.full_like(error, np.nan)
    return {"mean_absolute_relative_error": error, "r2": gain}


def parameter_scores(estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, Floats]:
    """Mean absolute relative error and R2 of each parameter, of a fitted regressor.

    Parameters
    ----------
    estimator : fitted estimator with ``predict``
    X : array-like of shape (n_lightcones, ...)
    y : array-like of shape (n_lightcones,) or (n_lightcones, n_parameters)

    Returns
    -------
    dict of str to ndarray of shape (n_parameters,)
        ``"mean_absolute_relative_error"``, NaN for a parameter that is zero in some light cone, and
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
    check_truths(estimator, y)
    return scores_where_defined(*check_targets(y, estimator.predict(X)))


neg_mean_absolute_relative_error_scorer = make_scorer(
    mean_absolute_relative_error, greater_is_better=False
)
neg_mean_absolute_relative_error_scorer.__doc__ = """\
Score a fitted regressor by minus its mean absolute relative error, so that larger is better.

It is called as ``scorer(estimator, X, y, sample_weight=None)``, and raises what
:func:`mean_absolute_relative_error` raises.
"""


class ParameterScorer:
    """Several scores at once, two for each parameter: columns for a table of a cross-validation.

    Parameters
    ----------
    names : sequence of str
        Names of the parameters, in the order of the columns of ``y``; stored as a tuple.

    Raises
    ------
    TypeError, ValueError
        When ``names`` is not a sequence of different strings or, on calling, their number is not
        that of the parameters.

    Notes
    -----
    Calling it as ``scorer(estimator, X, y)`` returns a dict of floats: ``"r2"`` and
    ``"neg_mean_absolute_relative_error"``, averaged over parameters and meant for
    ``GridSearchCV(refit=...)``, then ``"r2_<name>"`` and ``"mare_<name>"`` of each parameter. The
    ``mare_`` entries are errors, smaller is better: read them, do not refit or rank by them.

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
        kinds = {"names": Rule(_are_names, "a sequence of different strings, such as a list")}
        check_options("ParameterScorer", kinds, {"names": names})
        self.names = tuple(str(name) for name in names)  # numpy's strings print as such

    def __call__(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, float]:
        """Score a fitted estimator; see the class for the entries."""
        check_truths(estimator, y)
        check_order("y", y, self.names)
        true, pred = check_targets(y, estimator.predict(X))
        if true.shape[1] != len(self.names):
            raise ValueError(
                f"names: expected {true.shape[1]}, one for each parameter column of y, found "
                f"{len(self.names)} ({', '.join(self.names)})."
            )
        r2 = r2_per_parameter(true, pred)
        mare = np.asarray(mean_absolute_relative_error(true, pred, multioutput="raw_values"))
        scores = {"r2": float(r2.mean()), "neg_mean_absolute_relative_error": -float(mare.mean())}
        for name, gain, error in zip(self.names, r2, mare, strict=True):
            scores |= {f"r2_{name}": float(gain), f"mare_{name}": float(error)}
        return scores

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.names)!r})"


def _are_names(value: Any) -> bool:
    names = [] if isinstance(value, str) or not np.iterable(value) else list(value)
    return all(isinstance(name, str) for name in names) and 0 < len(set(names)) == len(names)


def _check_weight(sample_weight: ArrayLike, n_lightcones: int) -> Floats:
    weight = real_array("sample_weight", sample_weight).astype(np.float64)
    if weight.shape != (n_lightcones,):
        raise ValueError(
            f"sample_weight: expected one weight for each of the {n_lightcones} light cones, found "
            f"shape {weight.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(weight) | (weight < 0))
    if bad.size or not weight.any():
        found = f"others in rows {listed(bad)}" if bad.size else "zero everywhere"
        raise ValueError(
            f"sample_weight: expected finite weights >= 0, not all zero, found {found}."
        )
    return weight
