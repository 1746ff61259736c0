"""Fitted estimators: the end of a Pipeline or a search, and the order of its parameters."""

from __future__ import annotations

__all__ = ["check_truths", "unwrap"]

from typing import Any

from skatr_sk.parameters import check_order


def unwrap(estimator: Any) -> tuple[list[Any], Any]:
    """Take Pipelines and fitted searches apart: the transformers, and the estimator at the end."""
    if hasattr(estimator, "best_estimator_"):
        return unwrap(estimator.best_estimator_)
    if not hasattr(estimator, "steps"):
        return [], estimator
    before, final = unwrap(estimator.steps[-1][1])
    return ([estimator[:-1]] if len(estimator.steps) > 1 else []) + before, final


def check_truths(estimator: Any, y: Any) -> None:
    """Raise where a table of truths has the parameters of a fitted estimator in another order.

    So it does for a row of such a table, a Series whose index has their names.
    """
    names = getattr(unwrap(estimator)[1], "parameter_names_", None) or ()
    of_one = hasattr(y, "iloc") and not hasattr(y, "columns")
    check_order("y", y, names, "rows" if of_one else "columns")
