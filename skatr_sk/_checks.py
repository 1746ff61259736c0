"""Checks of what users hand in, and the messages they get."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from skatr_sk._finite import check_finite_rows

__all__ = [
    "InvalidParameterError",
    "Problems",
    "check_bounds",
    "check_fields",
    "check_finite_rows",
    "check_numbers",
    "nearest_divisors",
    "spell",
    "unchanged_on_error",
]

_FLOATS = (np.float32, np.float64, np.float16)
_MAX_RANK = 3
# What other libraries call some of our options.
_ALIASES = {
    "average": "mean",
    "avg": "mean",
    "bfloat16": "bf16",
    "gpu": "cuda",
    "huber": "smooth_l1",
    "mae": "l1",
    "mse": "l2",
    "nll": "gaussian",
}


class InvalidParameterError(ValueError, TypeError):
    """Parameters of an estimator have wrong values or types, all of them listed."""


class Problems:
    """Collects what is wrong with an estimator's parameters, to say it in one message.

    Parameters
    ----------
    owner : str
        Name of the estimator.

    Examples
    --------
    >>> problems = Problems("LightconeRegressor")
    >>> problems.choice("loss", "gausian", ["l1", "l2", "gaussian"])
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    ...
    skatr_sk._checks.InvalidParameterError: LightconeRegressor has 1 invalid parameter:
    - loss: expected one of 'l1', 'l2', 'gaussian', found 'gausian'; did you mean 'gaussian'?
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.messages: list[str] = []

    def add(self, name: str, expected: str, found: object, mend: str = "") -> None:
        """Note that a parameter is not what was expected."""
        tail = f"; {mend}" if mend else ""
        self.messages.append(f"{name}: expected {expected}, found {found!r}{tail}")

    def integer(self, name: str, value: Any, low: int, *, optional: bool = False) -> None:
        """Expect an integer of at least `low` (or None)."""
        if optional and value is None:
            return
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
            self.add(name, f"an integer >= {low}" + (" or None" if optional else ""), value)

    def real(self, name: str, value: Any, interval: str, *, optional: bool = False) -> None:
        """Expect a number in an interval such as ``"[0, 1)"`` (or None)."""
        if optional and value is None:
            return
        low, high = (float(end) for end in interval[1:-1].split(","))
        valid = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if valid:
            above = value > low or (interval[0] == "[" and value == low)
            below = value < high or (interval[-1] == "]" and value == high)
            valid = above and below
        if not valid:
            self.add(name, f"a number in {interval}" + (" or None" if optional else ""), value)

    def flag(self, name: str, value: Any) -> None:
        """Expect a boolean."""
        if not isinstance(value, bool | np.bool_):
            self.add(name, "True or False", value)

    def choice(self, name: str, value: Any, options: Collection[str]) -> None:
        """Expect one of some strings."""
        if not (isinstance(value, str) and value in options):
            expected = "one of " + ", ".join(repr(option) for option in options)
            self.add(name, expected, value, spell(value, options))

    def raise_if_any(self) -> None:
        """Raise one error that lists everything noted."""
        if self.messages:
            count = len(self.messages)
            title = f"{self.owner} has {count} invalid parameter{'s' if count > 1 else ''}:"
            raise InvalidParameterError("\n- ".join([title, *self.messages]))


def spell(found: object, options: Iterable[str]) -> str:
    """Suggest the nearest right spelling, or nothing where none is near.

    Examples
    --------
    >>> spell("smoothl1", ["l1", "l2", "smooth_l1"])
    "did you mean 'smooth_l1'?"
    """
    options, lower = list(options), str(found).lower()
    near = difflib.get_close_matches(lower, options, n=1, cutoff=0.5)
    if _ALIASES.get(lower) in options:
        near = [_ALIASES[lower]]
    return f"did you mean {near[0]!r}?" if near else ""


def nearest_divisors(n: int, wanted: int) -> list[int]:
    """Return the divisors of `n` on either side of `wanted`.

    Examples
    --------
    >>> nearest_divisors(470, 9)
    [5, 10]
    """
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below = [d for d in divisors if d <= wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return below + above


def check_numbers(values: Any, name: str) -> Any:
    """Return an array-like with a shape; raise where it cannot hold real numbers.

    Parameters
    ----------
    values : array-like
        What has a shape (an array, a DataFrame, a memory map) comes back as it is.
    name : str
        How the message calls it.

    Examples
    --------
    >>> check_numbers(["1", "2"], "y")
    Traceback (most recent call last):
    ...
    TypeError: y has dtype <U1; expected real numbers. Convert it first, for ...
    """
    if not hasattr(values, "shape"):
        try:
            values = np.asarray(values)
        except ValueError as error:
            raise ValueError(
                f"{name} is not one array of numbers ({error}). Its rows must have equal shapes: "
                "stack them with numpy.stack."
            ) from error
    dtype = getattr(values, "dtype", None)
    kind = getattr(dtype, "kind", "")
    if kind == "c":
        raise ValueError(
            f"Complex data not supported: {name} has dtype {dtype}; expected real numbers. "
            f"Take {name}.real if the imaginary part is zero."
        )
    if kind in ("U", "S", "M", "m", "V"):
        raise TypeError(
            f"{name} has dtype {dtype}; expected real numbers. Convert it first, for instance "
            f"with numpy.asarray({name}, dtype=float)."
        )
    return values


def check_fields(estimator: Any, X: Any, *, reset: bool, min_rows: int = 1) -> Any:
    """Check light cones, maps or signals, and remember or compare the field's shape.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` and ``field_shape_in_`` when `reset`, else they are compared:
        ``n_features_in_`` alone is the first field axis and would let wrong fields pass.
    X : array-like of shape (n, *field_shape)
        Floats of any precision are kept as they are; other numbers become float32.
    reset : bool
        True in ``fit``.
    min_rows : int
        Smallest number of fields.

    Returns
    -------
    ndarray or LightconeArray of shape (n, *field_shape)
        A LightconeArray is not read: it refuses NaN and infinite cells when it is, by file and row.
    """
    X = check_numbers(X, "X")
    shape = tuple(X.shape)
    fitted = None if reset else getattr(estimator, "field_shape_in_", None)
    # On 2-D input scikit-learn's own comparison of feature counts and names speaks.
    if fitted is not None and len(shape) > 1 and (len(shape) > 2 or len(fitted) > 1):
        if shape == tuple(fitted):
            raise ValueError(
                f"X has shape {shape}, which is that of one field: expected (n, *{shape}). Pass a "
                "single field as X[None]."
            )
        if shape[1:] != tuple(fitted):
            raise ValueError(
                f"X has fields of shape {shape[1:]}, but this {type(estimator).__name__} was "
                f"fitted on fields of shape {tuple(fitted)}: X must have shape "
                f"(n, {', '.join(str(n) for n in fitted)}). Resample the fields to that grid, "
                "or fit again on the new one."
            )
    kind = getattr(getattr(X, "dtype", None), "kind", "")
    if kind == "O" and len(shape) not in (0, 2):
        raise TypeError(
            f"X has dtype object and shape {shape}; light cones must be one array of numbers: "
            "stack fields of equal shape with numpy.stack."
        )
    # Only a LightconeArray knows this: what lies in files is checked as it is read, not here.
    in_files = getattr(X, "require_finite", None)
    if in_files is None:
        checked = validate_data(
            estimator,
            X,
            reset=reset,
            dtype=_FLOATS,
            allow_nd=True,
            ensure_all_finite=False,
            ensure_min_samples=min_rows,
        )
    else:
        # scikit-learn's bookkeeping of n_features_in_, on one number per feature.
        validate_data(estimator, np.zeros((1, shape[1])), reset=reset)
        checked = in_files()
        if shape[0] < min_rows:
            raise ValueError(f"X has {shape[0]} light cones; at least {min_rows} are needed.")
    if checked.ndim - 1 > _MAX_RANK:
        raise ValueError(
            f"X must have shape (n, n_z), (n, n_x, n_y) or (n, n_x, n_y, n_z), found "
            f"{checked.shape}; a single-channel axis goes away with numpy.squeeze."
        )
    if 0 in checked.shape:
        raise ValueError(f"X has an axis of length 0: found shape {checked.shape}.")
    if in_files is None:
        check_finite_rows(checked)
    if reset:
        estimator.field_shape_in_ = tuple(int(n) for n in checked.shape[1:])
    return checked


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


def check_bounds(
    problems: Problems, name: str, bounds: Any, n_rows: int | None
) -> np.ndarray | None:
    """Check an array of (low, high) rows; note what is wrong and return it as float64."""
    if bounds is None:
        return None
    try:
        array = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        problems.add(name, "an array of shape (n_parameters, 2)", bounds)
        return None
    if array.ndim != 2 or array.shape[1] != 2 or n_rows not in (None, len(array)):
        rows = "n_parameters" if n_rows is None else str(n_rows)
        problems.add(name, f"an array of shape ({rows}, 2)", array.shape)
        return None
    wrong = np.flatnonzero(~(np.isfinite(array).all(axis=1) & (array[:, 0] < array[:, 1])))
    if wrong.size:
        problems.add(name, f"finite low < high in every row (see {wrong.tolist()})", array.tolist())
        return None
    return array
