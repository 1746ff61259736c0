"""Fields: all that later stages know of data, whether it lies in memory, in files, or in a seed.

A *field* is one light cone ``(n_x, n_y, n_z)``, one map ``(n_x, n_y)`` or one signal ``(n_z,)``.
Arrays are wrapped by :class:`ArrayFields`; :class:`~skatr_sk.LightconeArray` (files) and
:class:`~skatr_sk.SimulatedLightcones` are fields themselves. What is asked of them is asked here:
whether they are numbers, finite, of the shape that an estimator knows, and in mK.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skatr_sk._checks import AssumedGridWarning, Problems, UnitsWarning, in_unit, listed, warn
from skatr_sk.grid import Grid

__all__ = [
    "BEYOND_PHYSICS",
    "ArrayFields",
    "ChosenFields",
    "Fields",
    "Look",
    "Recall",
    "as_fields",
    "as_parameters",
    "brightness_unit",
    "check_columns",
    "check_cell_size",
    "check_fields",
    "check_finite_rows",
    "check_numbers",
    "digest",
    "digest_once",
    "digest_rows",
    "from_other_library",
    "from_xarray",
    "is_finite",
    "misplaced_axis",
    "moved_axis",
    "rows_at_once",
    "sight_last",
    "split_rows",
    "warn_implausible",
]

Rows = slice | np.ndarray | Sequence[int]
# ``recall(identities, compute)``: find digests that some process has computed, or compute them;
# ``compute(indices)`` gives those of the rows with these indices into the identities.
Recall = Callable[[Sequence[bytes], Callable[[np.ndarray], list[bytes]]], list[bytes]]

# mK. Gas that cools with the expansion alone is seen at some -250 against the microwave background,
# and in the densest cells at some -1000; only a fill value, or what is no 21 cm signal, is beyond.
BEYOND_PHYSICS = 5000.0

# Names of the line of sight, and of the redshifts along it, in labelled arrays.
_ALONG_SIGHT = ("z", "redshift", "redshifts", "los", "line_of_sight", "distance", "frequency")
_REDSHIFTS = ("redshift", "redshifts", "lightcone_redshifts", "z")
_UNLIKE = 1.5  # times as far apart slices are of other cells, whatever Omega_m is
_SPREAD = 0.15  # of comoving distances, between most values of Omega_m
_FLOATS = (np.float32, np.float64, np.float16)
_CHUNK_VALUES = 4_000_000  # values converted or looked at at a time
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MOST_KNOWN = 2**16  # digests of contents that are remembered, some 15 MB
_LOOKED_AT = 16  # of fields that are not in memory, before they are read
_IN_KELVIN = 0.6  # absorption is at most some 0.5 K deep


@runtime_checkable
class Fields(Protocol):
    """Light cones, maps or signals: their shape, their values when asked, and what each one is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of fields, then the shape of one."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that reading gives."""

    @property
    def in_memory(self) -> bool:
        """Whether reading costs nothing, so that nothing is gained by reading ahead."""

    @property
    def grid(self) -> Grid | None:
        """Cell size and redshifts, as far as they are known; bare arrays know nothing of them."""

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Return fields, all finite, in the asked order; without `rows` all of them."""

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """Stand for the content of each row in 16 bytes, without reading it where it is known.

        `recall` finds what other processes have computed, where it would have to be read.
        """


class ArrayFields:
    """Fields in memory: finite values of shape (n, *field_shape), kept and not copied."""

    in_memory = True

    def __init__(self, values: np.ndarray, grid: Grid | None = None) -> None:
        self._values, self.grid = values, grid
        self.shape, self.dtype = values.shape, values.dtype

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Return rows in the asked order; a slice or None without a copy."""
        return self._values if rows is None else self._values[rows]

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """:func:`digest` of each row, computed once for each content."""
        return digest_rows(self.read(rows), digest_once)


class ChosenFields:
    """Some rows of several fields of one shape, one after the other; nothing is copied or read.

    Each of the `parts` is fields and the numbers of their rows.
    """

    def __init__(self, *parts: tuple[Fields, np.ndarray]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(rows) for _, rows in parts])
        first = parts[0][0]
        self.shape = (int(self._ends[-1]), *first.shape[1:])
        self.dtype = np.result_type(*(fields.dtype for fields, _ in parts))
        self.in_memory = all(fields.in_memory for fields, _ in parts)
        self.grid = next((fields.grid for fields, _ in parts if fields.grid is not None), None)

    def _of_parts(self, rows: Rows | None) -> tuple[int, list[tuple[np.ndarray, Fields, Any]]]:
        """Number of the asked rows; of each part which of them it has, and its rows."""
        asked = np.arange(self.shape[0])[slice(None) if rows is None else rows]
        whose = np.searchsorted(self._ends, asked, side="right")
        found = []
        for number, (fields, chosen) in enumerate(self._parts):
            mine = np.flatnonzero(whose == number)
            if len(mine):
                start = self._ends[number] - len(chosen)
                found.append((mine, fields, chosen[asked[mine] - start]))
        return len(asked), found

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Return rows in the asked order."""
        n, parts = self._of_parts(rows)
        values = np.empty((n, *self.shape[1:]), self.dtype)
        for mine, fields, chosen in parts:
            values[mine] = fields.read(chosen)
        return values

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """Digest of each row, as its own fields give it."""
        n, parts = self._of_parts(rows)
        digests = [b""] * n
        for mine, fields, chosen in parts:
            for at, one in zip(mine, fields.digests(chosen, recall=recall), strict=True):
                digests[at] = one
        return digests


def as_fields(X: Any) -> Fields:
    """Return fields as they are, and anything else as an array in memory, unchecked."""
    return X if isinstance(X, Fields) else ArrayFields(np.asarray(X))


def check_numbers(values: Any, name: str) -> Any:
    """Return an array-like with a shape; raise where it cannot hold real numbers.

    What has a shape (an array, a DataFrame, a memory map) comes back as it is; arrays of other
    libraries become numpy's, in mK and nearest first where they know their unit and their redshifts
    (see :func:`from_other_library`). Messages call it `name`.
    """
    values = from_other_library(values, name)
    if isinstance(values, Iterator):
        raise TypeError(
            f"{name}: expected an array of numbers, found a {type(values).__name__}, which can be "
            f"read once; give list({name}), or an array."
        )
    if not hasattr(values, "shape"):
        try:
            values = np.asarray(values)
        except ValueError as error:
            found = f"rows of unequal shapes ({error}); stack rows of equal shape with numpy.stack"
            raise ValueError(f"{name}: expected one array of numbers, found {found}.") from error
    dtype = getattr(values, "dtype", None)
    kind = getattr(dtype, "kind", "")
    wrong = f"{name}: expected real numbers, found dtype {dtype}"
    if kind == "c":
        mend = f"take {name}.real if the imaginary part is zero"
        raise ValueError(f"Complex data not supported: {wrong}; {mend}.")
    if kind in ("U", "S", "M", "m", "V"):
        mend = f"convert it first, for instance with numpy.asarray({name}, dtype=float)"
        raise TypeError(f"{wrong}; {mend}.")
    return values


def as_parameters(y: Any, **options: Any) -> np.ndarray:
    """Return parameters of light cones as float64, of any number of axes; pandas.NA becomes NaN.

    `options` are more of ``sklearn.utils.check_array``.
    """
    options |= {"ensure_2d": False, "allow_nd": True, "ensure_all_finite": False}
    try:
        found: np.ndarray = check_array(y, dtype=np.float64, input_name="y", **options)
    except (TypeError, ValueError) as error:
        if words := [str(name) for name in getattr(y, "columns", ()) if not _are_numbers(y[name])]:
            raise type(error)(
                f"y: expected columns of numbers, found others in {listed(words)} ({error}); leave "
                "these out, or give numbers in their place."
            ) from error
        raise
    return found


def _are_numbers(column: Any) -> bool:
    try:
        column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        return False
    return True


def from_other_library(values: Any, name: str) -> Any:
    """Turn tensors, masked arrays, quantities of astropy and DataArrays into arrays of numpy.

    Masked cells become NaN, brightness temperatures mK, and the line of sight of a DataArray the
    last axis, nearest first. Anything else comes back as it is.
    """
    kind = type(values).__module__.partition(".")[0]
    if isinstance(values, np.ma.MaskedArray):
        if not np.ma.is_masked(values):
            return values.data
        floats = values.dtype if values.dtype.kind == "f" else np.float32
        return np.where(np.ma.getmaskarray(values), np.nan, values.data).astype(floats)
    if kind == "torch" and hasattr(values, "detach"):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        return (values.float() if "bfloat16" in str(values.dtype) else values).numpy()
    if kind == "xarray" and hasattr(values, "dims"):
        return from_xarray(values)[0] if name == "X" else values.to_numpy()
    return in_unit(name, values, "mK" if name == "X" else "")


def brightness_unit(word: str) -> str | None:
    """Unit of brightness temperatures, "mK" or "K", that a word stands for; None of any other."""
    for unit, words in {"mK": ("millikelvin", "millikelvins"), "K": ("kelvin", "kelvins")}.items():
        if word == unit or word.lower() in words:
            return unit
    return None


def sight_last(array: Any) -> Any:
    """Return a DataArray (n, *field_shape) with the line of sight, which a name tells, last."""
    along = [dim for dim in array.dims if str(dim) in _ALONG_SIGHT]
    if len(along) != 1:
        return array
    return array.transpose(*(dim for dim in array.dims if dim != along[0]), along[0])


def from_xarray(array: Any) -> tuple[np.ndarray, np.ndarray | None, Grid | None]:
    """Values of a DataArray (n, *field_shape) in mK, nearest first, its redshifts, and its grid.

    The axis whose name says so is the line of sight. The redshifts are a coordinate of it, and the
    comoving size of a cell on each axis, in Mpc, is the attribute ``cell_mpc``: that along the line
    of sight where the redshifts do not tell of another. Distances and frequencies say which end is
    near, too.
    """
    array = sight_last(array)
    values, word = array.to_numpy(), str(array.attrs.get("units", "")).strip()
    unit = "K" if word == "k" else brightness_unit(word)
    if unit == "K":
        values = values * 1000
    elif word and unit is None and values.ndim > 2:  # signals may be summaries, in their own units
        raise ValueError(
            f"X: expected brightness temperatures in mK or K, found a DataArray with the units "
            f"{word!r}; convert it, and set X.attrs['units'] = 'mK'."
        )
    named = [key for key in _REDSHIFTS if key in array.coords]
    said, rank = np.ravel(array.attrs.get("cell_mpc", np.nan)), max(values.ndim - 1, 1)
    right = said.dtype.kind in "fiu" and len(said) in (1, rank) and (said > 0).all()
    sizes = np.broadcast_to(said, rank).tolist() if right else [None] * rank
    if not named or array.coords[named[0]].dims[-1:] != array.dims[-1:]:
        if _is_farthest_first(array):
            values = values[..., ::-1]
        return values, None, Grid(tuple(sizes)) if any(sizes) else None
    redshifts = array.coords[named[0]].to_numpy()
    if redshifts.shape[-1] > 1 and (np.diff(redshifts, axis=-1) < 0).all():
        values, redshifts = values[..., ::-1], redshifts[..., ::-1]
    typical = np.median(redshifts.reshape(-1, redshifts.shape[-1]), axis=0).tolist()
    try:
        grid = Grid(tuple(sizes), tuple(typical))
    except ValueError:  # whatever else goes by that name
        return values, redshifts, None
    return values, redshifts, _with_own_steps(grid)


def _is_farthest_first(array: Any) -> bool:
    """Whether the coordinate of the line of sight falls in distance, or rises in frequency."""
    name = array.dims[-1]
    if str(name) not in _ALONG_SIGHT or name not in array.coords:
        return False
    places = array.coords[name].to_numpy()
    if places.dtype.kind not in "fiu" or places.size < 2:
        return False
    steps = np.diff(places.astype(np.float64))
    return bool((steps > 0).all() if str(name) == "frequency" else (steps < 0).all())


def _with_own_steps(grid: Grid) -> Grid:
    """Replace a size of slices that its redshifts contradict, and say so.

    Slices of a DataArray that were left out or averaged leave the attribute as it was.
    """
    many = grid.steps_of_slice
    if many is None or 1 / _UNLIKE < many < _UNLIKE:
        return grid
    *sky, said = grid.cell_size
    bare = replace(grid, cell_size=(*sky, None))
    whole = max(1, round(many))
    near = bare.is_even and abs(many / whole - 1) < _SPREAD
    size = said * whole if near and said is not None else None
    warn(
        f"X: expected slices {said:.4g} Mpc apart, as the attribute cell_mpc says, found redshifts "
        f"{many:.2g} times as far apart, which are believed: slices of "
        f"{'unknown size' if size is None else f'{size:.4g} Mpc'}. Set X.attrs['cell_mpc'] to what "
        "cells are now, those of the sky too.",
        AssumedGridWarning,
    )
    return replace(bare, cell_size=(*sky, size))


def check_fields(estimator: Any, X: Any, *, reset: bool, min_rows: int = 1) -> Fields:
    """Check light cones, maps or signals, and remember or compare the shape of one.

    The estimator gets ``n_features_in_``, ``field_shape_in_`` and, where the fields know their
    grid, ``grid_in_`` when `reset` (in ``fit``), else they are compared: ``n_features_in_`` alone
    is the first axis of a field and would let wrong fields pass. Floats of any precision are kept
    as they are; other numbers become float32.

    Raises a TypeError or a ValueError when `X` (n, *field_shape) holds no real or no finite
    numbers, fewer than `min_rows` fields, or fields of another shape than was fitted. What is not
    in memory is not read here: its NaN and infinite cells are refused when it is.
    """
    known = X if isinstance(X, Fields) else None
    grid = None
    if type(X).__module__.partition(".")[0] == "xarray" and hasattr(X, "dims"):
        X, _, grid = from_xarray(X)
    X = check_numbers(X, "X")
    shape = tuple(X.shape)
    if not reset:
        _compare_shape(estimator, shape, grid if known is None else known.grid)
    if known is not None:
        # scikit-learn's bookkeeping of n_features_in_, on one number per feature.
        validate_data(estimator, np.zeros((1, shape[1])), reset=reset)
        if shape[0] < min_rows:
            raise ValueError(f"X: expected at least {min_rows} light cones, found {shape[0]}.")
    else:
        kind = getattr(getattr(X, "dtype", None), "kind", "")
        if kind == "O" and len(shape) not in (0, 2):
            found = f"dtype object and shape {shape}"
            mend = "stack fields of equal shape with numpy.stack"
            raise TypeError(f"X: expected one array of numbers, found {found}; {mend}.")
        options = dict(dtype=_FLOATS, allow_nd=True, ensure_all_finite=False)
        checked = validate_data(estimator, X, reset=reset, ensure_min_samples=min_rows, **options)
        shape = checked.shape
        known = ArrayFields(checked, grid)
    if len(shape) > 4:
        raise ValueError(
            f"X: expected shape (n, n_z), (n, n_x, n_y) or (n, n_x, n_y, n_z), found {shape}; an "
            "axis of a single channel goes away with numpy.squeeze."
        )
    if 0 in shape:
        raise ValueError(f"X: expected no axis of length 0, found shape {shape}.")
    if known.in_memory:
        check_finite_rows(known.read())
    if not reset:
        _compare_grid(estimator, known.grid)
        if known.in_memory:  # else when they are read
            warn_implausible(known)
    else:
        _check_axes(shape, sure=known.grid is not None and known.grid.redshifts is not None)
        estimator.field_shape_in_ = tuple(int(n) for n in shape[1:])
        vars(estimator).pop("grid_in_", None)
        if known.grid is not None:
            estimator.grid_in_ = known.grid
    return known


def check_columns(estimator: Any, *, only_for_frames: bool = False) -> None:
    """Refuse names of columns, or DataFrames where they are asked for, of fields with more axes."""
    wanted = getattr(estimator, "_sklearn_output_config", {}).get("transform")
    asked = (wanted or get_config()["transform_output"]) != "default"
    if len(estimator.field_shape_in_) > 1 and (asked or not only_for_frames):
        raise ValueError(
            f"X: expected signals, whose slices are columns, found fields of shape "
            f"{estimator.field_shape_in_}, which have none; use set_output(transform='default') "
            f"here, and ask a later step for names or DataFrames, such as pipe[-1].set_output(...)."
        )


def misplaced_axis(field_shape: Sequence[int]) -> int | None:
    """Axis of the line of sight where it surely is not the last: longer than a square sky.

    >>> misplaced_axis((470, 28, 28)), misplaced_axis((28, 28, 470))
    (0, None)
    """
    if len(field_shape) == 3:
        x, y, z = field_shape
        if x > y == z or y > x == z:
            return 0 if x > y else 1
    return None


def moved_axis(found: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Axis of fields that is to be put last for them to have a wanted shape, if there is one.

    >>> moved_axis((4, 9, 4), (4, 4, 9)), moved_axis((4, 9, 5), (4, 4, 9))
    (1, None)
    """
    for axis in reversed(range(len(found) - 1)):
        if (*found[:axis], *found[axis + 1 :], found[axis]) == tuple(wanted):
            return axis
    return None


def _check_axes(shape: tuple[int, ...], *, sure: bool) -> None:
    """Refuse fields whose line of sight is not last, and a single light cone taken for maps.

    Fields whose redshifts are known are `sure` to have it there.
    """
    axis = None if sure else misplaced_axis(shape[1:])
    if axis is not None:
        raise ValueError(
            f"X: expected shape (n, n_x, n_y, n_z), the line of sight last, found {shape}, whose "
            f"axis {axis + 1} is longer than a square sky; use numpy.moveaxis(X, {axis + 1}, -1)."
        )
    # As many maps as they are wide may be: those of a light cone would be far longer, too.
    if len(shape) == 3 and shape[0] == shape[1] <= shape[2] / 2:
        raise ValueError(
            f"X: expected shape (n, n_x, n_y, n_z) or maps (n, n_x, n_y), found {shape}, the shape "
            "of one light cone; pass a single field as X[None]."
        )


def _compare_shape(estimator: Any, shape: tuple[int, ...], grid: Grid | None) -> None:
    """Compare the shape of fields with that of those that were fitted; say the grids of both."""
    fitted = getattr(estimator, "field_shape_in_", None)
    # On 2-D input scikit-learn's own comparison of feature counts and names speaks.
    if fitted is None or len(shape) < 2 or (len(shape) == 2 and len(fitted) == 1):
        return
    expected = f"(n, {', '.join(map(str, fitted))})"
    if shape == tuple(fitted):
        mend = "the shape of one field; pass a single field as X[None]"
        raise ValueError(f"X: expected {expected}, found {shape}, {mend}.")
    if shape[1:] != tuple(fitted):
        own = getattr(estimator, "grid_in_", None)
        grids = [f" with {one}" if one is not None else "" for one in (own, grid)]
        mend = "resample the fields to that grid, or fit again on the new one"
        if tuple(n for n in shape[1:] if n != 1) == tuple(fitted):
            mend = "an axis of a single channel goes away with numpy.squeeze"
        if (axis := moved_axis(shape[1:], fitted)) is not None:
            mend = f"the line of sight is last after numpy.moveaxis(X, {axis + 1}, -1)"
        raise ValueError(
            f"X: expected fields of shape {tuple(fitted)}{grids[0]}, on which this "
            f"{type(estimator).__name__} was fitted, found {shape[1:]}{grids[1]}; X must have "
            f"shape {expected}: {mend}."
        )


def _compare_grid(estimator: Any, grid: Grid | None) -> None:
    """Compare the grid of fields with that of those that were fitted, where both are known."""
    fitted: Grid | None = getattr(estimator, "grid_in_", None)
    if fitted is not None and grid is not None and (wrong := fitted.differences(grid)):
        raise ValueError(
            f"X: expected fields on the grid for which this {type(estimator).__name__} is, "
            f"{fitted}, found {grid}: {'; '.join(wrong)}. Resample X to that grid with "
            "LightconeResampler, or SKATRTransformer(on_new_grid='resample')."
        )


def check_cell_size(sizes: Sequence[float], grid: Grid | None, problems: Problems) -> None:
    """Note a ``cell_size`` that was given, one number an axis, and is not that of the fields."""
    if grid is not None and grid.differences(Grid(tuple(sizes))):
        problems.add("cell_size", f"that of the light cones, {grid}", tuple(sizes), "leave it out")


# Finite or not ------------------------------------------------------------------------------------


def is_finite(values: np.ndarray) -> bool:
    """Tell whether all floats are finite in float32, in one pass without a copy of them."""
    if values.size == 0:
        return True
    if values.dtype == np.float16 and values.flags.c_contiguous:
        # numpy compares float16 one by one; the bits of an exponent are all set in NaN and infinity
        return bool(np.bitwise_and(values.view(np.uint16), 0x7C00).max() < 0x7C00)
    if values.dtype == np.float32:  # a sum is finite only of such, and takes one pass
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):
                return True
    largest = _largest(values.dtype)
    # A NaN makes both comparisons false, and an infinity one of them.
    return float(values.min()) >= -largest and float(values.max()) <= largest


def check_finite_rows(values: np.ndarray, name: str = "X", what: str = "cells") -> None:
    """Raise a ValueError that names the first rows with NaN or infinite values.

    Values that float32 cannot hold count as infinite: it is what the networks compute in. The
    message calls the array (n, ...) by its `name`, and `what` its rows are made of.
    """
    if values.dtype.kind not in "fc" or values.size == 0:
        return
    n, largest = len(values), _largest(values.dtype)
    step = rows_at_once(values.shape)  # keeps the temporaries small beside the data
    bad: list[int] = []
    n_nan = n_infinite = 0
    for start in range(0, n, step):
        chunk = values[start : start + step].reshape(min(step, n - start), -1)
        if is_finite(chunk):
            continue
        wrong, nan = ~(np.abs(chunk) <= largest), np.isnan(chunk)
        bad += (start + np.flatnonzero(wrong.any(axis=1))).tolist()
        n_nan += int(nan.sum())
        n_infinite += int((wrong & ~nan).sum())
    if bad:
        where = f"{len(bad)} of {n} rows, the first of them {', '.join(map(str, bad[:5]))}"
        found = values[bad[0]]
        if not n_nan and np.isfinite(found).all():
            raise ValueError(
                f"{name}: expected finite {what}, found {what} too large for float32, in which "
                f"networks compute, up to {np.abs(found).max():.3g}, in {where}; give their "
                "logarithm (numpy.log10), or choose larger units."
            )
        raise ValueError(
            f"{name}: expected finite {what}, found NaN or infinite ones in {where} ({n_nan} NaN, "
            f"{n_infinite} infinite values in all); drop or repair these rows before the call."
        )


def _largest(dtype: np.dtype) -> float:
    return min(_FLOAT32_MAX, float(np.finfo(dtype).max))


def rows_at_once(shape: Sequence[int]) -> int:
    """Rows of fields of this shape (n, ...) that are worked on together, to keep memory small."""
    return max(1, _CHUNK_VALUES // max(1, math.prod(shape[1:])))


class Look:
    """What is implausible of fields in mK that are seen some at a time: no structure, other units.

    `see` them, then `warn`.
    """

    def __init__(self) -> None:
        self.n = self.n_beyond = 0
        self.constant: list[int] = []
        self.beyond: list[int] = []
        self.largest = 0.0

    def see(self, values: np.ndarray, rows: np.ndarray) -> None:
        """Look at some more fields (n, *field_shape), whose numbers in X are `rows`."""
        flat = values.reshape(len(values), -1)
        lowest, highest = flat.min(axis=1), flat.max(axis=1)
        self.constant += rows[lowest == highest].tolist()
        far = np.maximum(-lowest, highest) > BEYOND_PHYSICS
        self.beyond += rows[far].tolist()
        self.n_beyond += int((np.abs(flat[far]) > BEYOND_PHYSICS).sum())
        self.largest = max(self.largest, -float(lowest.min()), float(highest.max()))
        self.n += len(values)

    def warn(self, n_rows: int | None = None) -> None:
        """Warn of what was seen, where `n_rows` are there: as many, unless it is said."""
        only = "" if n_rows in (None, self.n) else f" that were looked at, of {n_rows}"
        if self.constant:
            warn(
                f"X has constant fields: {len(self.constant)} of {self.n}{only} (first rows: "
                f"{listed(self.constant)}); there is nothing to learn from them. Check how they "
                "were made or read."
            )
        if self.beyond:
            warn(
                f"X has {self.n_beyond} cells beyond {BEYOND_PHYSICS:.0f} mK, up to "
                f"{self.largest:.3g}, in {len(self.beyond)} of {self.n} fields{only} (first rows: "
                f"{listed(self.beyond)}): they are fill values, or no 21 cm signal in mK. Repair "
                "these cells or leave the rows out, here and in transform.",
                UnitsWarning,
            )
        if 0 < self.largest < _IN_KELVIN:
            warn(
                f"No value of X is beyond {self.largest:.2g}: is it in kelvin? Brightness "
                "temperatures are expected in mK. Multiply X by 1000, here and in transform, or "
                "open its files with open_lightcones(..., units='K').",
                UnitsWarning,
            )


def warn_implausible(fields: Fields) -> None:
    """Warn of fields without structure, or in kelvin; of those not in memory a few are looked at.

    All of these would have to be read once more.
    """
    look, step = Look(), rows_at_once(fields.shape)
    n = fields.shape[0] if fields.in_memory else min(fields.shape[0], _LOOKED_AT)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        look.see(fields.read(slice(rows[0], rows[-1] + 1)), rows)
    look.warn(fields.shape[0])


# What a row is, and on which side of a split ------------------------------------------------------


def digest(row: ArrayLike) -> bytes:
    """Digest of a row's values in float32: 16 bytes of BLAKE2b (RFC 7693), for its content.

    The same for an in-memory and a file-backed row, and for float16, float32 and float64 where
    they hold the same values; what float32 rounds alike counts as the same. The shape of the row
    does not enter.

    >>> digest([1.0, 2.0]).hex()
    '42f796cded228dc080ef1964ee5d73c3'
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused elsewhere
        values = np.ascontiguousarray(row, dtype="<f4")
    return _blake2b(values.data)


def digest_rows(values: ArrayLike, of: Callable[[Any], bytes] | None = None) -> list[bytes]:
    """:func:`digest` of each row, a bounded number of values at a time.

    ``of(bytes)`` is the digest of the values of a row as they lie in memory.
    """
    values = np.asarray(values)
    step, of = rows_at_once(values.shape), of or _blake2b
    chunks = (values[start : start + step] for start in range(0, len(values), step))
    with np.errstate(over="ignore"):
        as_float32 = (np.ascontiguousarray(some, dtype="<f4") for some in chunks)
        return [of(row.data) for some in as_float32 for row in some]


def _blake2b(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


_known: dict[tuple[int, int], bytes] = {}  # digests by length and hash of a content


def digest_once(content: Any) -> bytes:
    """BLAKE2b of some bytes, in 16, looked up where these were digested before.

    A search hands the same light cones to each of its fits, always as another array. They are found
    by their content, so that an array that was changed is another: by Python's own hash of bytes,
    SipHash (Aumasson, Bernstein 2012), whose key is random and which is four times faster. Two of
    100,000 contents have the same 64 bits once in 10^9 processes.
    """
    content = bytes(content)
    key = len(content), hash(content)
    if (found := _known.get(key)) is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        found = _known[key] = _blake2b(content)
    return found


def split_rows(
    fields: Fields,
    fraction: float,
    seed: int,
    rows: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split into sorted rows that train and that validate, by content and not by index or type.

    The rows with the smallest digests, keyed by the seed, validate. The order of the rows therefore
    does not matter, and adding rows moves at most as many of the others to the other side. Equal
    rows are on one side, unless the boundary between the sides falls among them.

    A `fraction` in [0, 1) validates; more than zero means at least one row, and at least one row
    trains. Fields whose digests are known are not read. Where `rows`, sorted numbers of rows, are
    given, the others are on no side. Where `groups` has the number of each row's group, all rows of
    a group are on one side, by the content of them all; as many groups validate as come nearest to
    the fraction of the rows, at least one of them, and not all.
    """
    among = np.arange(fields.shape[0]) if rows is None else rows
    n = len(among)
    if fraction == 0 or n < 2:
        return among, among[:0]
    n_valid = min(max(1, round(fraction * n)), n - 1)
    key = seed.to_bytes(8, "little")
    keyed = [hashlib.blake2b(one, key=key, digest_size=8).digest() for one in fields.digests(rows)]
    # As big-endian integers: strings of bytes would lose zeros at their end.
    order = np.argsort(np.frombuffer(b"".join(keyed), dtype=">u8"), kind="stable")
    if groups is not None:
        valid = _whole_groups(keyed, groups[among], fraction * n, key)
        return among[~valid], among[valid]
    return np.sort(among[order[n_valid:]]), np.sort(among[order[:n_valid]])


def _whole_groups(keyed: list[bytes], groups: np.ndarray, n_valid: float, key: bytes) -> np.ndarray:
    """Mask of the rows of the groups that validate, some `n_valid` in all.

    A group is known by the content of its rows, whatever their order and its label.
    """
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError(
            "groups: expected at least two groups, to train and to validate, found one; give "
            "validation_data, or validation_fraction=0."
        )
    contents: list[list[bytes]] = [[] for _ in sizes]
    for code, one in zip(codes, keyed, strict=True):
        contents[code].append(one)
    content = [hashlib.blake2b(b"".join(sorted(of)), key=key).digest() for of in contents]
    order = np.array(sorted(range(len(sizes)), key=content.__getitem__))
    taken = np.cumsum(sizes[order])[:-1]  # not the last of them
    return np.isin(codes, order[: 1 + int(np.abs(taken - n_valid).argmin())])
