"""Fitted estimators: the end of a Pipeline or a search, and the order of its parameters."""

from __future__ import annotations

__all__ = ["check_truths", "unwrap"]

from typing import Any

import numpy as np

from skatr_sk._checks import PriorWarning, listed, warn
from skatr_sk.fields import check_numbers
from skatr_sk.heads.prior_transform import is_inside
from skatr_sk.parameters import check_order


def unwrap(estimator: Any) -> tuple[list[Any], Any]:
    """Take Pipelines and fitted searches apart: the transformers, and the estimator at the end."""
    if hasattr(estimator, "best_estimator_"):
        return unwrap(estimator.best_estimator_)
    if not hasattr(estimator, "steps"):
        return [], estimator
    before, final = unwrap(estimator.steps[-1][1])
    return ([estimator[:-1]] if len(estimator.steps) > 1 else []) + before, final


def check_truths(estimator: Any, y: Any, *, in_prior: bool = False) -> None:
    """Raise where a table of truths has the parameters of a fitted estimator in another order.

    So it does for a row of such a table, a Series whose index has their names. Where they are to be
    `in_prior`, a PriorWarning says which are outside the box of a fitted posterior.
    """
    final = unwrap(estimator)[1]
    names = getattr(final, "parameter_names_", None) or ()
    of_one = hasattr(y, "iloc") and not hasattr(y, "columns")
    check_order("y", y, names, "rows" if of_one else "columns")
    box = getattr(final, "prior_bounds_", None)
    if not in_prior or box is None or y is None:
        return
    truths = np.asarray(check_numbers(y, "y"))
    if truths.size % len(box) or truths.dtype.kind not in "fiu":
        return  # which is said where shapes and types are looked at
    truths = truths.reshape(-1, len(box))
    outside = ~is_inside(truths.astype(np.float64), *np.asarray(box).T)
    if rows := np.flatnonzero(outside.any(axis=1)).tolist():
        which = [names[i] for i in np.flatnonzero(outside.any(axis=0)).tolist()]
        warn(
            f"y: expected parameters inside the prior box of the posterior, found others in "
            f"{len(rows)} of {len(truths)} rows, the first of them {listed(rows)}, in "
            f"{listed(which)}, where no sample can lie; look at their units, or fit with the "
            "bounds of the prior that they were drawn from.",
            PriorWarning,
        )
