"""What the fits of a search have in common: what they compute alike, and fits made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import numpy as np
import torch

from skatr_sk.training.identity import identity_of
from skatr_sk.training.state import digest_of

__all__ = [
    "Fold",
    "Prepared",
    "identity_of_parameters",
    "offering",
    "prepared_state",
    "shared",
    "shared_key",
    "sharing",
]

_Value = TypeVar("_Value")
Fold = tuple[Any, Any, Any]  # X, y and the weights of the rows, or None
_computed: ContextVar[dict[Any, Any] | None] = ContextVar("computed", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Let the fits inside share what they compute of the same numbers."""
    token = _computed.set({})
    try:
        yield
    finally:
        _computed.reset(token)


def shared_key(read: Callable[[], np.ndarray]) -> str:
    """Return a digest of the numbers that are read, where it is asked for; "" elsewhere."""
    if _computed.get() is None:
        return ""
    return digest_of({"X": torch.from_numpy(np.ascontiguousarray(read()))})


def shared(key: Any, compute: Callable[[], _Value]) -> _Value:
    """Compute something, or return what another fit inside :func:`sharing` has found."""
    known = _computed.get()
    if known is None:
        return compute()
    if key not in known:
        known[key] = compute()
    return cast(_Value, known[key])


class Prepared:
    """What estimators have learned, by their parameters and the rows that they were fitted on."""

    def __init__(self, folds: list[Fold]) -> None:
        self.folds = folds
        self._states: dict[tuple[int, str], dict[str, Any]] = {}

    def add(self, fold: int, identity: str, state: dict[str, Any]) -> None:
        """Keep what was learned on a fold, under the identity of the parameters before the fit."""
        self._states[fold, identity] = state

    def take(self, estimator: Any, rows: Fold) -> dict[str, Any] | None:
        """Hand out, once, what an estimator would learn; None where nobody has fitted it."""
        of_rows = [k for k, known in enumerate(self.folds) if all(map(_same, known, rows))]
        identity = identity_of_parameters(estimator) if of_rows else ""
        return next((s for k in of_rows if (s := self._states.pop((k, identity), None))), None)


def identity_of_parameters(estimator: Any) -> str:
    """Digest of the parameters of an estimator."""
    given: Mapping[str, Any] = estimator.get_params(deep=False)
    return identity_of(sorted(given.items()))


def _same(known: Any, rows: Any) -> bool:
    if known is None or rows is None:
        return known is rows
    known, rows = np.asarray(known), np.asarray(rows)
    return known.dtype == rows.dtype and np.array_equal(known, rows)


_offered: ContextVar[Prepared | None] = ContextVar("offered", default=None)


@contextmanager
def offering(prepared: Prepared) -> Iterator[None]:
    """Let the fits inside take what was prepared instead of training."""
    token = _offered.set(prepared)
    try:
        yield
    finally:
        _offered.reset(token)


def prepared_state(estimator: Any, rows: Fold) -> dict[str, Any] | None:
    """Return what was prepared of an estimator's fit, or None."""
    offered = _offered.get()
    return None if offered is None else offered.take(estimator, rows)
