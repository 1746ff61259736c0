"""Labels that an objective learns from: checked, standardised, and NaN where they are unknown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skatr_sk.fields import as_parameters, check_finite_rows, check_numbers

__all__ = ["Labels", "check_labels", "labels_if_any"]

_LEAST_LABELLED = 2  # rows that train and have labels that differ


@dataclass(frozen=True)
class Labels:
    """Labels of shape (n, n_parameters), float64, finite or NaN."""

    values: NDArray[np.float64]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows that have a label at least."""
        return np.flatnonzero(~np.isnan(self.values).all(axis=1))

    def standardised(self, rows: NDArray[Any]) -> Tensor:
        """Labels of zero mean and unit variance over the known ones of the rows that train.

        A parameter that does not vary there becomes zero. A ValueError says when none does.
        """
        known = np.ma.masked_invalid(self.values[rows])
        mean, deviation = (getattr(known, of)(axis=0).filled(0.0) for of in ("mean", "std"))
        if not (deviation > 0).any():
            n = int((~np.ma.getmaskarray(known)).any(axis=1).sum())
            level = ", of which no parameter has two that differ" * (n >= _LEAST_LABELLED)
            raise ValueError(
                f"y: expected at least {_LEAST_LABELLED} light cones that train with labels that "
                f"differ, found {n} labelled of those that train{level}; NaN counts as unlabelled: "
                "give more labels, or take an objective that needs none, such as JEPA()."
            )
        scaled = (self.values - mean) / np.where(deviation > 0, deviation, np.inf)
        return torch.from_numpy(scaled.astype(np.float32))

    def digest(self) -> str:
        """Stand for the labels in the identity of a run."""
        return hashlib.blake2b(self.values.tobytes(), digest_size=8).hexdigest()


def check_labels(y: Any, n: int, learner: str) -> Labels:
    """Check the labels of `n` light cones, one number or a row of them for each.

    `learner` is what needs them, for the message where there are none. Raises a TypeError or a
    ValueError where `y` holds no numbers, infinite ones, or not one row for each light cone.
    """
    if y is None:
        raise ValueError(
            f"y: expected labels of shape (n,) or (n, n_parameters), from which {learner} learns, "
            "found None; hand in y, or take an objective that needs none, such as JEPA()."
        )
    y = as_parameters(check_numbers(y, "y"))
    if y.ndim not in (1, 2) or len(y) != n:
        raise ValueError(
            f"y: expected shape ({n},) or ({n}, n_parameters), a row for each row of X and in its "
            f"order, found {y.shape}."
        )
    check_finite_rows(np.nan_to_num(y, nan=0.0, posinf=np.inf, neginf=-np.inf), "y", "values")
    return Labels(np.ascontiguousarray(y.reshape(n, -1)))


def labels_if_any(y: Any, n: int) -> NDArray[np.float64] | None:
    """Return `y` as labels of `n` light cones where it can be such, whatever else it may be.

    Raises a ValueError where it has a row for each of another number.
    """
    rows = np.shape(y)[:1] if hasattr(y, "shape") else (len(y),) if isinstance(y, list) else (n,)
    if rows and rows[0] != n:
        raise ValueError(
            f"y: expected {n} rows, one for each row of X and in its order, found {rows[0]}; leave "
            "y out where the parameters are not known."
        )
    try:
        return check_labels(y, n, "nothing").values
    except (TypeError, ValueError):
        return None
