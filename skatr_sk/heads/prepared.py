"""What the fits of a search have in common: what they compute alike, and fits made beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

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
    """What estimators have learned, by their parameters and the rows that they were fitted on.

    These are some of all, by their numbers: `trained` has those of each fold.
    """

    def __init__(self, rows: Fold, trained: Sequence[NDArray[Any]]) -> None:
        self._rows, self._trained = rows, trained
        self._states: dict[tuple[int, str], dict[str, Any]] = {}

    @cached_property
    def _all(self) -> list[NDArray[Any] | None]:
        """All rows, made of a table, or read from a file, only where some have been trained."""
        return _arrays(self._rows)

    def add(self, fold: int, identity: str, state: dict[str, Any]) -> None:
        """Keep what was learned on a fold, under the identity of the parameters before the fit."""
        self._states[fold, identity] = state

    def take(self, estimator: Any, rows: Fold) -> dict[str, Any] | None:
        """Hand out, once, what an estimator would learn; None where nobody has fitted it."""
        if not self._states:
            return None
        given = _arrays(rows)
        of_rows = [
            k
            for k, numbers in enumerate(self._trained)
            if all(_same(own, numbers, some) for own, some in zip(self._all, given, strict=True))
        ]
        identity = identity_of_parameters(estimator) if of_rows else ""
        return next((s for k in of_rows if (s := self._states.pop((k, identity), None))), None)


def _arrays(rows: Fold) -> list[NDArray[Any] | None]:
    """Each part of some rows as an array, made once of a table."""
    return [None if part is None else np.asarray(part) for part in rows]


def identity_of_parameters(estimator: Any) -> str:
    """Digest of the parameters of an estimator."""
    given: Mapping[str, Any] = estimator.get_params(deep=False)
    return identity_of(sorted(given.items()))


def _same(known: NDArray[Any] | None, numbers: NDArray[Any], given: NDArray[Any] | None) -> bool:
    """Whether the rows of these numbers are those that are given."""
    if known is None or given is None:
        return known is given
    return bool(np.array_equal(known[numbers], given))


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
