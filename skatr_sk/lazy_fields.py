"""Fields that are not in memory: indexed like arrays, read when asked, and what is made of them.

Files and seeds are such fields, and so are parts of each of them (``X[..., :450]``), and the same
fields on another grid or with noise, which are computed when they are read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from skatr_sk.fields import (
    Fields,
    Recall,
    Rows,
    check_finite_rows,
    digest_rows,
    is_finite,
    rows_at_once,
)
from skatr_sk.grid import Grid

__all__ = ["DerivedFields", "LazyFields"]

# Digests of derived fields that this process has computed; emptied when it is full.
_DERIVED: dict[bytes, bytes] = {}
_MOST_DERIVED = 2**17


class LazyFields:
    """Base of fields that are not in memory: indexed like an array, and read when needed.

    A slice, an index array or a mask gives a view, which reads nothing, slices of field axes beside
    it such as ``X[..., :450]`` a part of each field, an integer the field, and
    :func:`numpy.asarray` all of them. A subclass sets `_rows`, the numbers of its rows, and
    `_field_shape`, and says how rows are read, and named.
    """

    in_memory = False  # reading takes time
    _by_content = True  # whether digests are of values; others are known without these
    _rows: np.ndarray
    _field_shape: tuple[int, ...]
    _grid: Grid | None = None

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of these numbers as they are, in this order."""
        raise NotImplementedError

    def _contents(self, rows: Rows | None) -> np.ndarray:
        """Return rows for what is derived from them: finite or not, but held to what is known."""
        return self._read(self._chosen(rows))

    def _identities(self, rows: Rows) -> list[bytes]:
        """Stand for each row in 16 bytes without reading it, if that can be."""
        return self.digests(rows)

    def _known(self, wanted: Collection[str], rows: Rows = slice(None)) -> dict[str, Any]:
        """What is known of rows by themselves, as files name it, of what is wanted.

        That is ``redshifts, seeds, target, target_names, target_bounds``.
        """
        return {}

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Return fields, all finite, in the asked order; without `rows` all of them."""
        raise NotImplementedError

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """Stand for the content of each row in 16 bytes, without reading it where it is known."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of fields, then the shape of one."""
        return (len(self._rows), *self._field_shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that reading gives."""
        raise NotImplementedError

    @property
    def grid(self) -> Grid | None:
        """Cell size and redshifts, as far as they are known."""
        return self._grid

    @property
    def ndim(self) -> int:
        """Number of axes, that of the fields included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of cells of all fields."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all fields would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"A {type(self).__name__} cannot become an array without reading it.")
        values = self._read(self._rows)
        return values if dtype is None else values.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            if key[1:] and _is_whole(key[0]):
                return self[key[0]][key[1:]]
            key, cells = self._split(key)
            whole = [(0, n, 1) for n in self._field_shape]
            if [c.indices(n) for c, n in zip(cells, self._field_shape, strict=True)] != whole:
                return _part_of(self[key], cells)
        if key is None:
            raise IndexError("rows: expected an index, found None; use numpy.asarray(X)[None].")
        if key is Ellipsis:
            key = slice(None)
        if _is_whole(key):
            return self._read(self._chosen([int(key)]))[0]
        view = object.__new__(type(self))
        # Without what was computed for the rows of this one, which has public names.
        view.__dict__ = {name: value for name, value in vars(self).items() if name[0] == "_"}
        view._rows = self._chosen(key)
        return view

    def _split(self, key: tuple[Any, ...]) -> tuple[Any, list[slice]]:
        """Split an index into that of the rows and a slice of each field axis."""
        dots = [at for at, part in enumerate(key) if part is Ellipsis]
        at = dots[0] if dots else len(key)
        lacking = self.ndim - len(key) + len(dots)
        parts = [*key[:at], *[slice(None)] * lacking, *key[at + 1 :]]
        rows, *cells = parts
        right = len(dots) < 2 and lacking >= 0 and all(isinstance(c, slice) for c in cells)
        if not right or any(c.step is not None and c.step < 1 for c in cells):
            raise IndexError(
                f"X: expected an index of the rows of a {type(self).__name__} and slices of the "
                f"{self.ndim - 1} axes of its fields, with steps of at least 1, found "
                f"[{', '.join(map(_spelt, key))}]; read them first, numpy.asarray(X[rows])[...]."
            )
        return rows, cells

    def _chosen(self, key: Any) -> np.ndarray:
        """Numbers of the rows that a slice, an index array or a mask chooses; None is all."""
        if key is None or isinstance(key, slice):
            return self._rows[slice(None) if key is None else key]
        index = np.asarray(key)
        if index.ndim != 1 or (index.dtype.kind not in "iub" and index.size):
            raise IndexError(
                "rows: expected an integer, a slice, or a 1-D array of integers or booleans, found "
                f"{type(key).__name__} of shape {index.shape} and dtype {index.dtype}."
            )
        if index.dtype.kind == "b":
            if len(index) != len(self):
                found = f"found {len(index)} entries"
                raise IndexError(f"rows: expected a mask of {len(self)}, {found}.")
            return self._rows[index]
        wrong = index[(index < -len(self)) | (index >= len(self))]
        if wrong.size:
            raise IndexError(f"rows: expected those of {len(self)} light cones, found {wrong[0]}.")
        return self._rows[index.astype(np.int64)]


def _is_whole(key: Any) -> bool:
    return np.ndim(key) == 0 and np.asarray(key).dtype.kind in "iu"


def _spelt(part: Any) -> str:
    """Part of an index as it is written."""
    if isinstance(part, slice):
        ends = [part.start, part.stop, *([] if part.step is None else [part.step])]
        return ":".join("" if end is None else str(end) for end in ends)
    return "..." if part is Ellipsis else str(part)


class DerivedFields(LazyFields):
    """Fields that are computed from others whenever they are read, some at a time.

    Parameters
    ----------
    fields : Fields
        The others.
    derive : callable
        Gives fields (n, *field_shape) for n of the others. It must be pickled and, by its ``repr``,
        told from all that give other values.
    field_shape : tuple of int
    dtype : numpy.dtype
    grid : Grid, optional
    """

    def __init__(
        self,
        fields: Fields,
        derive: Callable[[np.ndarray], np.ndarray],
        field_shape: Sequence[int],
        dtype: np.dtype,
        grid: Grid | None = None,
    ) -> None:
        self._fields, self._derive = fields, derive
        self._field_shape, self._dtype, self._grid = tuple(field_shape), dtype, grid
        self._rows = np.arange(fields.shape[0])
        self._by_content: bool = getattr(fields, "_by_content", True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}, from {self._fields!r}>"

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that reading gives."""
        return self._dtype

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        values = np.empty((len(numbers), *self._field_shape), self._dtype)
        contents = getattr(self._fields, "_contents", self._fields.read)
        step = rows_at_once(self._fields.shape)
        for start in range(0, len(numbers), step):
            some = slice(start, start + step)
            values[some] = self._derive(contents(numbers[some]))
        return values

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Return rows in the asked order, all finite; a ValueError says which are not."""
        numbers = self._chosen(rows)
        values = self._read(numbers)
        if not is_finite(values):
            for number, field in zip(numbers, values, strict=True):
                if not is_finite(field):
                    self._fields.read([number])  # which says in which file it is
            check_finite_rows(values)
        return values

    def _known(self, wanted: Collection[str], rows: Rows = slice(None)) -> dict[str, Any]:
        fields, part = self._fields, self._derive if isinstance(self._derive, _Part) else None
        if not isinstance(fields, LazyFields):
            return {}
        if part is None and self._grid != fields.grid:
            wanted = set(wanted) - {"redshifts"}
        known = fields._known(wanted, self._chosen(rows))
        if part is not None and "redshifts" in known:
            known["redshifts"] = known["redshifts"][:, slice(*part.cells[-1])]
        return known

    def _identities(self, rows: Rows) -> list[bytes]:
        known = getattr(self._fields, "_identities", self._fields.digests)
        key = hashlib.blake2b(repr(self._derive).encode(), digest_size=32).digest()
        each = known(self._chosen(rows))
        return [hashlib.blake2b(one, key=key, digest_size=16).digest() for one in each]

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """:func:`digest` of each row, as of the same values in memory.

        Where digests of the others are known without their values (simulated ones), so are these.
        """
        numbers = self._chosen(rows)
        identities = self._identities(slice(None) if rows is None else rows)
        if not self._by_content:
            return identities
        unknown = {one: at for at, one in enumerate(identities) if one not in _DERIVED}
        found = {one: _DERIVED[one] for one in identities if one not in unknown}
        if unknown:
            rest, lacking = np.array(list(unknown.values())), list(unknown)

            def compute(indices: np.ndarray) -> list[bytes]:
                step = rows_at_once(self.shape)
                parts = (numbers[rest[indices[k : k + step]]] for k in range(0, len(indices), step))
                return [one for part in parts for one in digest_rows(self._read(part))]

            computed = compute(np.arange(len(rest))) if recall is None else recall(lacking, compute)
            found |= zip(lacking, computed, strict=True)
            if len(_DERIVED) + len(unknown) > _MOST_DERIVED:
                _DERIVED.clear()
            _DERIVED.update(found)
        return [found[one] for one in identities]


@dataclass(frozen=True)
class _Part:
    """The same part of each field: start, stop and step on each of its axes."""

    cells: tuple[tuple[int, int, int], ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return values[(slice(None), *(slice(*cells) for cells in self.cells))]


def _part_of(fields: LazyFields, cells: Sequence[slice]) -> DerivedFields:
    """Part of each field, which is read whole."""
    field_shape = fields.shape[1:]
    spans = tuple(c.indices(n) for c, n in zip(cells, field_shape, strict=True))
    shape = tuple(len(range(*span)) for span in spans)
    if 0 in shape:
        raise IndexError(
            f"X: expected slices that leave at least one cell of fields of shape {field_shape}, "
            f"found [:, {', '.join(map(_spelt, cells))}]."
        )
    grid = None if fields.grid is None else fields.grid.cut(cells, field_shape)
    return DerivedFields(fields, _Part(spans), shape, fields.dtype, grid)
