"""Checks of what users hand in: tables of parameters, and the one grammar of the messages.

Every message reads ``name: expected X, found Y; mend``. All that is wrong with a call is collected
and said at once.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import numbers
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from skatr_sk.parameters import check_order

__all__ = [
    "CELL_SIZE",
    "AssumedGridWarning",
    "Auto",
    "Bounds",
    "CheckpointWarning",
    "Choice",
    "CollapseWarning",
    "DivergenceWarning",
    "EachAxis",
    "ExtrapolationWarning",
    "Flag",
    "Instance",
    "Integer",
    "InvalidParameterError",
    "Kind",
    "NeverSeenWarning",
    "NoEffectWarning",
    "PathLike",
    "PlaceWarning",
    "PriorWarning",
    "Problems",
    "Real",
    "Rising",
    "Rule",
    "ShortTrainingWarning",
    "UnitsWarning",
    "changed_parameters",
    "check_options",
    "in_unit",
    "is_path",
    "listed",
    "nearest_divisors",
    "names_of",
    "parameter_names",
    "require",
    "shared_docs",
    "spell",
    "unchanged_on_error",
    "warn",
    "warn_no_effect",
    "warn_without_effect",
    "with_object",
]

_Class = TypeVar("_Class", bound=type)

# What other libraries call some of our options.
_ALIASES = {"average": "mean", "avg": "mean", "bfloat16": "bf16", "gpu": "cuda"}
_ALIASES |= {"huber": "smooth_l1", "mae": "l1", "mse": "l2", "nll": "gaussian"}
# Whose frames lie between the line that called us and the line that warns.
_PASSED_OVER = {"contextlib", "joblib", "skatr_sk", "sklearn"}


class InvalidParameterError(ValueError, TypeError):
    """Parameters of an estimator or a function have wrong values or types, all of them listed."""


class NoEffectWarning(UserWarning):
    """A parameter was given that changes nothing beside the others."""


class AssumedGridWarning(UserWarning):
    """Light cones do not say which cells they have, and something usual was assumed of them."""


class UnitsWarning(UserWarning):
    """Brightness temperatures that look as if they were not in mK."""


class PriorWarning(UserWarning):
    """True parameters lie outside the prior of a posterior, where its density is zero."""


class NeverSeenWarning(UserWarning):
    """Light cones, or their summaries, lie far outside all that a network was trained on."""


class ExtrapolationWarning(UserWarning):
    """Predictions lie at or beyond the range of the parameters that a network was trained on."""


class PlaceWarning(UserWarning):
    """A JEPA predicts no better than what all light cones share at a redshift."""


class ShortTrainingWarning(UserWarning):
    """The last epoch was the best, and the loss was still falling: the training ended too early."""


class CollapseWarning(UserWarning):
    """The summaries vary along a handful of directions only: pre-training has collapsed."""


class DivergenceWarning(UserWarning):
    """Steps of a training were not finite, and were skipped or undone."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written, or is left because other versions have written it."""


_WARNINGS = (
    NoEffectWarning,
    AssumedGridWarning,
    UnitsWarning,
    PriorWarning,
    PlaceWarning,
    CollapseWarning,
)
_OF_TRAINING = (ShortTrainingWarning, DivergenceWarning, CheckpointWarning)
_OF_USE = (NeverSeenWarning, ExtrapolationWarning)
# Users catch and filter these by the name under which they are public.
for _shown in (InvalidParameterError, *_WARNINGS, *_OF_TRAINING, *_OF_USE):
    _shown.__module__ = "skatr_sk"


class Problems:
    """What is wrong with the parameters of an estimator or of a call (`owner`), in one message.

    >>> problems = Problems("LightconeRegressor")
    >>> problems.check({"loss": Choice("l1", "l2", "gaussian")}, {"loss": "gausian"})
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    ...
    skatr_sk.InvalidParameterError: LightconeRegressor has 1 invalid parameter:
    - loss: expected one of 'l1', 'l2', 'gaussian', found 'gausian'; did you mean 'gaussian'?
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.messages: list[str] = []

    def add(self, name: str, expected: str, found: object, mend: str = "") -> None:
        """Note that a parameter is not what was expected."""
        tail = f"; {mend}" if mend else ""
        self.messages.append(f"{name}: expected {expected}, found {found!r}{tail}")

    def check(self, table: Mapping[str, Kind], values: Any, prefix: str = "") -> None:
        """Compare the items of a mapping, or an object's attributes, with a table of kinds.

        The messages put `prefix`, such as ``"objective__"``, before the names.
        """
        for name, kind in table.items():
            value = values[name] if isinstance(values, Mapping) else getattr(values, name)
            if value is None and kind.optional:
                continue
            if wrong := kind.fault(value):
                expected, found, mend = wrong
                also = " or None" if kind.optional and not expected.endswith("None") else ""
                self.add(prefix + name, expected + also, found, mend)

    def raise_if_any(self) -> None:
        """Raise one error that lists everything noted."""
        if self.messages:
            count = len(self.messages)
            title = f"{self.owner} has {count} invalid parameter{'s' if count > 1 else ''}:"
            raise InvalidParameterError("\n- ".join([title, *self.messages]))


def check_options(owner: str, table: Mapping[str, Kind], values: Mapping[str, Any]) -> None:
    """Check the options of a function; raise one error that lists what is wrong."""
    problems = Problems(owner)
    problems.check(table, values)
    problems.raise_if_any()


# Kinds of parameters, for the tables --------------------------------------------------------------


Fault = tuple[str, object, str]  # what was expected, what was found, how to mend it


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a parameter may be; None as well where it is `optional`."""

    optional: bool = False

    def fault(self, value: Any) -> Fault | None:
        """Return what was expected, what was found and a mend; None for a right value."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rule(Kind):
    """Whatever a function finds right: ``holds(value)`` returns True, False, or how to mend it.

    >>> even = Rule(lambda value: value % 2 == 0, "an even number")
    >>> even.fault(2) is None, even.fault(3)
    (True, ('an even number', 3, ''))
    """

    holds: Callable[[Any], bool | str]
    expected: str

    def fault(self, value: Any) -> Fault | None:
        """See :class:`Kind`."""
        found = self.holds(value)
        if found is True:
            return None
        return self.expected, value, found if isinstance(found, str) else ""


class Integer(Rule):
    """An integer of at least `low` and, where it is given, at most `high`."""

    def __init__(self, low: int, high: int | None = None, *, optional: bool = False) -> None:
        def holds(value: Any) -> bool:
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            return bool(whole and value >= low and (high is None or value <= high))

        span = f">= {low}" if high is None else f"from {low} to {high}"
        super().__init__(holds, f"an integer {span}", optional=optional)


class Real(Rule):
    """A number in an interval such as ``"[0, 1)"``."""

    def __init__(self, interval: str, *, optional: bool = False) -> None:
        low, high = (float(end) for end in interval[1:-1].split(","))

        def holds(value: Any) -> bool:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                return False
            number: Any = value
            if isinstance(value, int) and abs(value).bit_length() > 1023:
                return False  # no float holds it
            above = number >= low if interval[0] == "[" else number > low
            below = number <= high if interval[-1] == "]" else number < high
            return bool(above and below)

        super().__init__(holds, f"a number in {interval}", optional=optional)


class Choice(Rule):
    """One of some strings; a near miss is told the right spelling."""

    def __init__(self, *options: str, optional: bool = False) -> None:
        def holds(value: Any) -> bool | str:
            return (isinstance(value, str) and value in options) or spell(value, options)

        super().__init__(holds, f"one of {', '.join(map(repr, options))}", optional=optional)


class Auto(Rule):
    """What another kind takes, or "auto", which leaves the value to the data."""

    def __init__(self, kind: Rule) -> None:
        def holds(value: Any) -> bool | str:
            if isinstance(value, str):
                return value == "auto" or spell(value, ["auto"])
            return kind.fault(value) is None

        super().__init__(holds, f"'auto' or {kind.expected}", optional=kind.optional)


class Instance(Rule):
    """An object of one of some types, which `expected` describes."""

    def __init__(self, *types: type, expected: str, optional: bool = False) -> None:
        super().__init__(lambda value: isinstance(value, types), expected, optional=optional)


class Flag(Instance):
    """True or False."""

    def __init__(self) -> None:
        super().__init__(bool, np.bool_, expected="True or False")


class PathLike(Rule):
    """The path of a file or a folder."""

    def __init__(self, *, optional: bool = True) -> None:
        super().__init__(is_path, "a path", optional=optional)


class Rising(Rule):
    """At least so many rising numbers >= 0, which are `what`."""

    def __init__(self, what: str = "rising numbers >= 0", least: int = 1) -> None:
        def holds(value: Any) -> bool | str:
            try:
                array = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                return False
            if array.ndim != 1 or len(array) < least:
                return False
            if not (np.isfinite(array).all() and (array >= 0).all()):
                return False
            falls = len(array) > 1 and bool((np.diff(array) < 0).all())
            return bool((np.diff(array) > 0).all()) or (falls and "turn them around")

        super().__init__(holds, what, optional=True)


@dataclass(frozen=True)
class EachAxis(Kind):
    """One value of a kind for each axis of a field or, where it may be `shared`, one for all.

    A quantity of astropy is taken in `unit`.

    >>> EachAxis(Integer(1)).fault((4, 0))[0]
    'an integer >= 1, or one for each axis'
    """

    kind: Rule
    unit: str = field(default="", kw_only=True)
    shared: bool = field(default=True, kw_only=True)

    def fault(self, value: Any) -> Fault | None:
        """See :class:`Kind`."""
        of_all = ", or one for each axis" if self.shared else " for each axis"
        expected = f"{self.kind.expected}{f' {self.unit}' * bool(self.unit)}{of_all}"
        try:
            each = self._each(value)
        except TypeError:  # of another unit
            return expected, value, ""
        each = each.tolist() if isinstance(each, np.ndarray) else each
        single = isinstance(each, str) or not isinstance(each, Sequence)
        parts = [each] if single else each
        right = (self.shared or not single) and parts and not any(map(self.kind.fault, parts))
        return None if right else (expected, value, "")

    def of_axes(
        self, name: str, value: Any, n_axes: int, problems: Problems
    ) -> tuple[Any, ...] | None:
        """Value of a checked parameter along each axis; that they are too few or many is noted."""
        each = np.ravel(self._each(value)).tolist()
        if len(each) == n_axes:
            return tuple(each)
        if self.shared and len(each) == 1:
            return tuple(each * n_axes)
        problems.add(name, f"one for each of {n_axes} axes", value)
        return None

    def _each(self, value: Any) -> Any:
        return in_unit("value", value, self.unit)


# Comoving size of a cell, where light cones do not say it, or something else is wanted.
CELL_SIZE = EachAxis(Real("(0, inf)"), unit="Mpc", optional=True)


@dataclass(frozen=True)
class Bounds(Kind):
    """Rows of finite (low, high), low below high, of shape (n_parameters, 2).

    `n_rows` is the number of parameters, where it is known. A `pair` is one (low, high) instead of
    rows of them. An `unbounded` row may be (-inf, inf).

    >>> Bounds().fault([[0, 1], [3, 2]])
    ('finite low < high in every row (see [1])', [[0.0, 1.0], [3.0, 2.0]], 'low and high are ...')
    """

    n_rows: int | None = None
    pair: bool = False
    unbounded: bool = False
    optional: bool = field(default=True, kw_only=True)

    def fault(self, value: Any) -> Fault | None:
        """See :class:`Kind`."""
        expected = (
            f"an array of shape ({'n_parameters' if self.n_rows is None else self.n_rows}, 2)"
        )
        if self.pair:
            expected = "finite (low, high), low < high"
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            return expected, value, ""
        rows = array[None] if self.pair else array
        if rows.ndim != 2 or rows.shape[1] != 2 or self.n_rows not in (None, len(rows)):
            transposed = self.n_rows is not None and array.shape == (2, self.n_rows)
            return expected, value if self.pair else array.shape, "transpose it" * transposed
        good = np.isfinite(rows).all(axis=1) & (rows[:, 0] < rows[:, 1])
        if self.unbounded:
            good |= (rows == [-np.inf, np.inf]).all(axis=1)
        if good.all():
            return None
        if not self.pair:
            expected = f"finite low < high in every row (see {np.flatnonzero(~good).tolist()})"
            expected += ", or (-inf, inf) for no bounds" * self.unbounded
        return expected, array.tolist(), self._mend(rows[~good])

    def _mend(self, wrong: np.ndarray) -> str:
        if (wrong[:, 0] > wrong[:, 1]).any():
            return "low and high are swapped"
        if np.isinf(wrong).any() and self.unbounded:
            known = "where only one is known, map y yourself or leave it unbounded"
            return f"a box has two ends: {known}"
        if np.isinf(wrong).any():
            return "both ends must be finite"
        if (wrong[:, 0] == wrong[:, 1]).any():
            return "a box of no width holds no density"
        return "give each row its low and its high end"


# Words --------------------------------------------------------------------------------------------


def spell(found: object, options: Iterable[str]) -> str:
    """Suggest the nearest right spelling, or nothing where none is near.

    >>> spell("smoothl1", ["l1", "l2", "smooth_l1"])
    "did you mean 'smooth_l1'?"
    """
    spelt, lower = {option.lower(): option for option in options}, str(found).lower()
    near = difflib.get_close_matches(lower, spelt, n=1, cutoff=0.5)
    if _ALIASES.get(lower) in spelt:
        near = [_ALIASES[lower]]
    return f"did you mean {spelt[near[0]]!r}?" if near else ""


def listed(items: Iterable[object], shown: int = 5) -> str:
    """First few of some things, for a message: ``"0, 1, 2, 3, 4 and 6 more"``."""
    items = list(items)
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def nearest_divisors(n: int, wanted: int) -> list[int]:
    """Return the divisors of `n` on either side of `wanted`: of 470 beside 9, 5 and 10."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return [d for d in divisors if d <= wanted][-1:] + [d for d in divisors if d > wanted][:1]


def names_of(y: Any) -> list[str]:
    """Names of the columns of a DataFrame, or of a Series; none of anything else."""
    columns = getattr(y, "columns", None)
    if columns is None:
        columns = [y.name] if isinstance(getattr(y, "name", None), str) else []
    return [str(name) for name in columns]


def parameter_names(given: Sequence[str] | None, y: Any, n_parameters: int) -> list[str]:
    """Names of the parameters: those given, else those of the columns of `y`, else numbers.

    A DataFrame or a Series `y` brings its names along; numbered are ``parameter_0`` and so on.
    Raises a ValueError when `given` are not as many different strings as there are parameters, or
    those of the columns of `y` in another order.
    """
    if given is None:
        found = names_of(y)
        if len(found) == n_parameters == len(set(found)):
            return found
        return [f"parameter_{i}" for i in range(n_parameters)]
    names = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    strings = all(isinstance(name, str) for name in names)
    if not strings or not len(names) == n_parameters == len(set(names)):
        raise ValueError(
            f"parameter_names: expected {n_parameters} different strings, one for each column of "
            f"y, found {given!r}."
        )
    check_order("y", y, names)
    return [str(name) for name in names]


def require(package: str, caller: str, extra: str | None = None) -> Any:
    """Import an optional package or a module of it, or say in one sentence how to install it.

    `caller` needs it; `extra` is the extra of skatr_sk that brings it, by default of its own name.

    >>> require("no_such_package", "plot", "plots")
    Traceback (most recent call last):
    ...
    ImportError: plot needs no_such_package, which is not installed: pip install "skatr_sk[plots]".
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        raise ImportError(
            f"{caller} needs {name}, which is not installed: "
            f'pip install "skatr_sk[{extra or name}]".'
        ) from error


def shared_docs(**texts: str) -> Callable[[_Class], _Class]:
    """Put the documentation of shared parameters into a class's docstring.

    A line of the docstring that holds a name in braces and nothing else, such as ``{device}``, is
    replaced by its text.
    """
    texts = {name: textwrap.dedent(text).strip() for name, text in texts.items()}

    def document(owner: _Class) -> _Class:
        def written(found: re.Match[str]) -> str:
            return "\n".join(found[1] + line for line in texts[found[2]].splitlines())

        if owner.__doc__:  # none under python -OO
            owner.__doc__ = re.sub(r"^([ ]*)\{(\w+)\}$", written, owner.__doc__, flags=re.M)
        return owner

    return document


# Values -------------------------------------------------------------------------------------------


def in_unit(name: str, value: Any, unit: str) -> Any:
    """Number or array of a quantity of astropy, in a unit, "" for none; other values as they are.

    A quantity of another kind is a TypeError, which calls it by its `name`.
    """
    if type(value).__module__.partition(".")[0] != "astropy" or not hasattr(value, "to_value"):
        return value
    if not value.unit.is_equivalent(unit):
        expected = f"a quantity in {unit}" if unit else "numbers without a unit"
        mend = f"hand in {name}.to_value(...)"
        raise TypeError(f"{name}: expected {expected}, found the unit {value.unit}; {mend}.")
    return value.to_value(unit)


def is_path(value: Any) -> bool:
    """Whether a file can have this path: not the empty one, nor one with a NUL in it."""
    name = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    return isinstance(name, str) and name != "" and "\0" not in name


def changed_parameters(estimator: Any) -> dict[str, Any]:
    """Constructor parameters of an estimator that differ from their defaults."""

    def same(value: Any, default: Any) -> bool:
        if default is None and isinstance(value, Sequence) and len(value) == 0:
            return True  # an empty list of callbacks is none
        if isinstance(value, float) and isinstance(default, float) and math.isnan(value):
            return math.isnan(default)
        return value is default or bool(np.array_equal(value, default))

    kind: Any = type(estimator)  # mypy doubts that classes can be hashed
    return {
        name: getattr(estimator, name)
        for name, default in _defaults_of(kind).items()
        if not same(getattr(estimator, name), default)
    }


@functools.cache
def _defaults_of(kind: type) -> dict[str, Any]:
    """Constructor parameters of a class, by name, with their defaults."""
    return {name: one.default for name, one in inspect.signature(kind).parameters.items()}


def with_object(
    estimator: Any, name: str, standing_for: Callable[[Any], Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what ``set_params`` is to set, where ``name__x`` is a parameter of an object.

    Where the parameter `name` is a word or None, the object that it stands for takes its place; a
    fault changes nothing.
    """
    prefix = f"{name}__"
    own = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
    if not own:
        return dict(params)
    given = params.get(name, getattr(estimator, name))
    chosen = standing_for(given)
    if not hasattr(chosen, "set_params"):
        problems = Problems(type(estimator).__name__)
        mend = f"set {name} first"
        problems.add(name, f"an object with the parameter {next(iter(own))!r}", given, mend)
        problems.raise_if_any()
    if chosen is not given:
        chosen.set_params(**own)
    return {**params, name: chosen}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this package, through whatever of scikit-learn lies between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_no_effect(owner: str, names: Sequence[str], beside: str) -> None:
    """Warn of parameters of an estimator or a call, if any, that have no effect beside others."""
    if names:
        leave = "leave it out" if len(names) == 1 else "leave them out"
        warn(f"{owner}: no effect with {beside} of {', '.join(names)}; {leave}.", NoEffectWarning)


def warn_without_effect(estimator: Any, names: Collection[str], beside: str) -> None:
    """Warn of those of the named parameters that were given, for they have no effect.

    Those at their defaults are no matter. `beside` says why, such as ``"weights='mini-lr'"``.
    """
    given = [name for name in changed_parameters(estimator) if name in names]
    warn_no_effect(type(estimator).__name__, given, beside)


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """Give an estimator back its fitted attributes when ``fit`` fails half-way."""
    before = {k: v for k, v in vars(estimator).items() if not k.startswith("_")}
    try:
        yield
    except BaseException:
        for key in [k for k in vars(estimator) if not k.startswith("_") and k not in before]:
            delattr(estimator, key)
        vars(estimator).update(before)
        raise
