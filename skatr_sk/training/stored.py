"""What files hold of a fitted estimator: its parameters, and what it has learned, by tables.

:func:`~skatr_sk.save_model` writes, and :func:`~skatr_sk.load_model` builds, the classes of ours
that have entered the register here; nothing else of a class is known to them.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, SupportsIndex, TypeVar

import numpy as np
from sklearn.base import BaseEstimator

from skatr_sk._checks import Instance, Integer, Kind, Problems, Rule
from skatr_sk.grid import Grid

__all__ = ["STORED", "StoredEstimator", "stored_by_name"]

STORED: dict[str, type[StoredEstimator]] = {}
_GRIDS = ("grid_in_", "grid_")


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(Integer(1).fault(n) is None for n in value)


def _are_names(value: Any) -> bool:
    """Names of features, as scikit-learn keeps them."""
    some = isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1
    return some and all(isinstance(name, str) for name in value)


class StoredEstimator(BaseEstimator):
    """An estimator with a table of its parameters, and one of what it learns."""

    _parameters: ClassVar[Mapping[str, Kind]] = {}

    # What is learned, and so is in a file: attributes, and what they may be there.
    _learned: ClassVar[Mapping[str, Kind]] = {
        "field_shape_in_": Rule(_is_shape, "a tuple of integers >= 1"),
        "n_features_in_": Integer(1),
        "feature_names_in_": Rule(_are_names, "an array of strings", optional=True),
        "grid_in_": Instance(Grid, expected="a grid", optional=True),
    }

    def _check_parameters(self) -> None:
        """Compare all parameters with the table; raise one error that lists what is wrong."""
        problems = Problems(type(self).__name__)
        problems.check(self._parameters, self)
        self._check_together(problems)
        problems.raise_if_any()

    def _check_together(self, problems: Problems) -> None:
        """Note what is wrong with parameters side by side; for subclasses to extend."""

    def _check_stored(self, problems: Problems) -> None:
        """Compare what a file has with the table, and with each other; for subclasses to extend.

        Those that the table calls optional may be missing.
        """
        values = {name: getattr(self, name, None) for name in self._learned}
        problems.check(self._learned, values)
        problems.raise_if_any()  # what follows relies on the kinds
        n, shape = self.n_features_in_, self.field_shape_in_
        if shape[:1] != (n,):
            problems.add("n_features_in_", f"the first of {shape}", n)
        names = values["feature_names_in_"]
        if names is not None and len(names) != n:
            problems.add("feature_names_in_", f"{n} names", len(names))
        if (grid := values["grid_in_"]) is not None and not grid.fits(shape):
            problems.add("grid_in_", f"one of fields of shape {shape}", str(grid))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state whose objects are plain sizes and arrays, as files hold them."""
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state with its objects, if these are plain.

        A ValueError says what cannot be.
        """
        return state

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state |= {k: asdict(state[k]) for k in _GRIDS if isinstance(state.get(k), Grid)}
        return self._pack(state)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(self._unpacked(state))

    def _unpacked(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state with its objects and its grids, if these are plain."""
        known = {k: Grid(**state[k]) for k in _GRIDS if isinstance(state.get(k), dict)}
        return self._unpack(dict(state) | known)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # pickle and copy keep objects as they are, with what a user has attached to them.
        return copyreg.__newobj__, (type(self),), super().__getstate__()  # type: ignore[attr-defined]


_Class = TypeVar("_Class", bound=type[StoredEstimator])


def stored_by_name(kind: _Class) -> _Class:
    """Let files hold estimators of a class of ours."""
    STORED[kind.__name__] = kind
    return kind
