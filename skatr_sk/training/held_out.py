"""Which rows of a fit train and which validate, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight

from skatr_sk._checks import listed, warn_no_effect, warn_without_effect
from skatr_sk.fields import ChosenFields, Fields, split_rows
from skatr_sk.training.batches import Dataset, WeightedDataset

__all__ = ["Given", "Rows", "check_given", "compare_columns"]

_OF_VALIDATION = "validation_data: "
_Targets = NDArray[np.float64] | None
Checked = tuple[Fields, _Targets]


class Given(NamedTuple):
    """What a user has handed to ``fit`` beside ``X`` and ``y``."""

    groups: Any = None
    validation_data: Any = None
    sample_weight: Any = None

    def warn_without_effect(self, estimator: Any) -> None:
        """Warn of what changes nothing, and of parameters that change nothing beside it."""
        own, name = self.validation_data is not None, type(estimator).__name__
        if own:
            warn_without_effect(estimator, {"validation_fraction"}, "validation_data")
        if self.groups is not None and (own or estimator.validation_fraction == 0):
            beside = "validation_data" if own else "validation_fraction=0"
            warn_no_effect(name, ["groups"], beside)

    def changed(self, change: Callable[[Any], Any]) -> Given:
        """Return the same where ``change(X)`` is in place of the fields that validate, if any."""
        if self.validation_data is None:
            return self
        X, y = _pair(self.validation_data)
        with _of_validation_data():
            return self._replace(validation_data=(change(X), y))


@dataclass(frozen=True)
class Rows:
    """The rows of a fit: those of ``X`` that count, then those of the user's validation data.

    Rows of one of the `groups` are on one side of the split. `weights`, of all rows, are above 0.
    `numbers` are those of the first in ``X``, where others have a weight of 0.
    """

    n_own: int
    n_given: int = 0
    groups: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None
    numbers: NDArray[np.int64] | None = None

    def of_one_side(self, wrong: NDArray[np.bool_]) -> tuple[str, slice, NDArray[np.int64]]:
        """Return of which side to speak where some rows are wrong: that of ``y`` first.

        What is to be said before the name ``y``, where its rows are, and the numbers that the wrong
        ones of them have for the user.
        """
        own, given = slice(self.n_own), slice(self.n_own, None)
        if not wrong[own].any():
            return _OF_VALIDATION, given, np.flatnonzero(wrong[given])
        rows = np.flatnonzero(wrong[own])
        return "", own, rows if self.numbers is None else self.numbers[rows]

    def split(
        self, fields: Fields, fraction: float, seed: int, among: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that train and that validate, `among` some or all of them."""
        if not self.n_given:
            return split_rows(fields, fraction, seed, among, self.groups)
        rows = np.arange(self.n_own + self.n_given) if among is None else among
        return rows[rows < self.n_own], rows[rows >= self.n_own]

    def weights_of(self, rows: Any) -> NDArray[np.float64] | None:
        """Weights of some rows, of mean one; None where all count alike."""
        if self.weights is None or not len(self.weights[rows]):
            return None
        chosen = self.weights[rows]
        return chosen / chosen.mean()

    def weighted(self, sets: Sequence[Dataset], split: Sequence[np.ndarray]) -> list[Dataset]:
        """Return the datasets of the two sides of a split, with weights where rows have such."""
        each = [self.weights_of(rows) for rows in split]
        return [
            one if weights is None else WeightedDataset(one, torch.from_numpy(np.float32(weights)))
            for one, weights in zip(sets, each, strict=True)
        ]

    def identity(self) -> dict[str, Any]:
        """Say, for the identity of a run, what is not as it is without any of these."""
        own = {"groups": self.groups, "weights": self.weights, "given": self.n_given or None}
        return {name: value for name, value in own.items() if value is not None}


def check_given(
    given: Given, checked: Checked, check: Callable[[Any, Any], Checked]
) -> tuple[Fields, _Targets, Rows]:
    """Check what was handed to ``fit`` beside fields and targets; return all rows that count.

    ``check(X, y)`` checks validation data as fields and targets. A row of weight 0 is left out.
    """
    fields, targets = checked
    n = fields.shape[0]
    groups = None if given.groups is None else _check_groups(given.groups, n)
    weights = None if given.sample_weight is None else _check_weights(given.sample_weight, n)
    numbers = None
    if weights is not None and not weights.all():
        numbers = counted = np.flatnonzero(weights)
        fields, weights = ChosenFields((fields, counted)), weights[counted]
        targets = None if targets is None else targets[counted]
        groups = None if groups is None else groups[counted]
    if weights is not None and (weights == weights[0]).all():
        weights = None
    n = fields.shape[0]
    if given.validation_data is None:
        return fields, targets, Rows(n, groups=groups, weights=weights, numbers=numbers)
    X, y = _pair(given.validation_data)
    with _of_validation_data():
        own, own_targets = check(X, y)
        if targets is not None and own_targets is not None:
            if own_targets.shape[1] != targets.shape[1]:
                raise ValueError(
                    f"y: expected {targets.shape[1]} parameters, as in fit, found "
                    f"{own_targets.shape[1]}."
                )
            targets = np.concatenate([targets, own_targets])
    n_given = own.shape[0]
    if weights is not None:
        weights = np.concatenate([weights, np.ones(n_given)])
    joined = ChosenFields((fields, np.arange(n)), (own, np.arange(n_given)))
    return joined, targets, Rows(n, n_given, weights=weights, numbers=numbers)


@contextmanager
def _of_validation_data() -> Iterator[None]:
    """Say of errors that they are of the rows that validate."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{_OF_VALIDATION}{error}") from error


def _pair(given: Any) -> tuple[Any, Any]:
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    found = f"{type(given).__name__}{f' of {len(given)}' if isinstance(given, tuple) else ''}"
    raise ValueError(
        f"validation_data: expected a pair (X, y), found {found}; without labels give (X, None)."
    )


def compare_columns(y: Any, validation_data: Any) -> None:
    """Raise where names are the same, or those of validation rows others, or in another order."""
    names = list(getattr(y, "columns", ()))
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(
            f"y: expected columns of different names, found {listed(twice)} more than once; "
            "rename them, or give y.to_numpy()."
        )
    pair = isinstance(validation_data, tuple | list) and len(validation_data) == 2
    other = getattr(validation_data[1], "columns", None) if pair else None
    own = getattr(y, "columns", None)
    if own is None or other is None or not all(isinstance(name, str) for name in other):
        return
    if list(own) != list(other):
        raise ValueError(
            f"validation_data: expected the columns of y, {listed(own)}, in this order, found "
            f"{listed(other)}; give the same columns, or an array."
        )


def _check_groups(groups: Any, n: int) -> NDArray[np.int64]:
    """Return the number of the group of each row."""
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(
            f"groups: expected a label for each of {n} rows, shape ({n},), found {labels.shape}."
        )
    try:
        unknown = labels != labels  # NaN
        if labels.dtype == object:
            unknown = unknown | np.array([label is None for label in labels])
        if np.any(unknown):
            raise ValueError(
                "groups: expected a label for each row, found NaN or None in "
                f"{np.sum(unknown)} of {n}; give rows that are alone in their group labels of "
                "their own."
            )
        codes: NDArray[np.int64] = np.unique(labels, return_inverse=True)[1]
    except TypeError as error:
        raise TypeError(f"groups: expected labels of one kind, found other ({error}).") from error
    return codes


def _check_weights(sample_weight: Any, n: int) -> NDArray[np.float64]:
    weights = _check_sample_weight(sample_weight, np.empty((n, 1)), ensure_non_negative=True)
    if np.count_nonzero(weights) < 2:
        raise ValueError(
            "sample_weight: expected at least two rows that count, found "
            f"{np.count_nonzero(weights)} above zero; leave it out to count all rows alike."
        )
    return np.asarray(weights, dtype=np.float64)
