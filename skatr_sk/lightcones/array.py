"""LightconeArray: light cones that stay in their files until they are asked for."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from skatr_sk.fields import is_finite
from skatr_sk.lightcones.files import Source
from skatr_sk.lightcones.table import Table

__all__ = ["LightconeArray"]

_CHUNK_BYTES = 2**26  # read at a time where a pass over many rows is needed


class LightconeArray:
    """Light cones (n, n_x, n_y, n_z) in files, indexed as an array and read when needed.

    A slice, an index array or a mask gives another `LightconeArray`, which reads nothing; an
    integer gives the cone, and :func:`numpy.asarray` all of them. It is made by
    :func:`~skatr_sk.open_lightcones` and works as `X` wherever scikit-learn takes rows:
    splitters, cross-validation, searches. Pickled it is a list of paths and row numbers, so that
    parallel jobs send no voxels; each process opens the files for itself. A file that was
    deleted, damaged or changed since is an error that names the file and the row.

    Parameters
    ----------
    sources : sequence of Source
        Files and the rows in them, all of one field shape.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Floats as they are stored; what is stored as integers is read as float32.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skatr_sk import open_lightcones, save_lightcones
    >>> path = os.path.join(tempfile.mkdtemp(), "cones.h5")
    >>> save_lightcones(path, np.arange(24.0, dtype=np.float32).reshape(4, 2, 3))
    >>> X = open_lightcones(path).data
    >>> X
    LightconeArray(shape=(4, 2, 3), dtype=float32, 1 file)
    >>> X[[3, 1]].shape
    (2, 2, 3)
    >>> np.asarray(X[[3, 1]])[:, 0, 0]
    array([18., 6.], dtype=float32)
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("A LightconeArray needs at least one file.")
        shapes = {source.field_shape for source in sources}
        if len(shapes) > 1:
            raise ValueError(f"Light cones of several shapes cannot be one array: {shapes}.")
        self._table = Table(sources)
        self._rows = np.arange(int(self._table.starts[-1]))
        self._finite = self._verified = False

    def _view(self, rows: np.ndarray) -> Self:
        view = object.__new__(type(self))
        view._table, view._rows = self._table, rows
        view._finite, view._verified = self._finite, self._verified
        return view

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cones, then the shape of one."""
        return (len(self._rows), *self._table.field_shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that reading gives."""
        return self._table.dtype

    @property
    def ndim(self) -> int:
        """Number of axes, that of the cones included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that all cones would take in memory."""
        return self.size * self.dtype.itemsize

    @property
    def files(self) -> list[str]:
        """Paths of the files that hold these cones."""
        used = np.unique(self._table.source_of(self._rows))
        return [self._table.sources[which].path for which in used]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        n = len(self.files)
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, "
            f"{n} file{'' if n == 1 else 's'})"
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        for row in range(len(self)):
            yield self[row]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            key, rest = (key[0], key[1:]) if key else (slice(None), ())
            if isinstance(key, numbers.Integral) and rest:
                return self[key][rest]
            if len(rest) > self.ndim or not all(_is_full(part) for part in rest):
                raise IndexError(
                    f"Only whole cones can be taken from files: found the index {(key, *rest)}. "
                    "Read them first, numpy.asarray(X[rows])[...]."
                )
        if key is Ellipsis:
            key = slice(None)
        if isinstance(key, slice):
            return self._view(self._rows[key])
        places = np.asarray(key)
        if places.ndim == 0 and places.dtype.kind in "iu":
            return self.rows([int(places)])[0]
        return self._view(self._rows[self._places(places)])

    def _places(self, places: np.ndarray) -> np.ndarray:
        """Turn an index array or a mask into row numbers of this view."""
        if places.ndim != 1 or (places.dtype.kind not in "iub" and places.size):
            raise IndexError(
                "Light cones are indexed by an integer, a slice, or a 1-D array of integers or "
                f"booleans: found an array of shape {places.shape} and type {places.dtype}."
            )
        if places.dtype.kind == "b":
            if len(places) != len(self):
                raise IndexError(f"A mask of {len(places)} entries for {len(self)} light cones.")
            return np.flatnonzero(places)
        places = places.astype(np.int64)
        wrong = places[(places < -len(self)) | (places >= len(self))]
        if wrong.size:
            raise IndexError(f"Row {wrong[0]} is out of range for {len(self)} light cones.")
        return np.where(places < 0, places + len(self), places)

    def rows(self, places: ArrayLike | None = None) -> np.ndarray:
        """Read cones in the order of their files and return them in the asked order.

        Parameters
        ----------
        places : array-like of int or bool, optional
            Which rows, in any order, repeated or not; default is all.

        Returns
        -------
        ndarray of shape (n_places, *field_shape)

        Raises
        ------
        OSError
            When a file is gone (FileNotFoundError), damaged, or changed since it was opened.
        """
        rows = self._rows if places is None else self._rows[self._places(np.asarray(places))]
        values = self._table.read(rows)
        if self._verified:
            self._table.verify(rows, values)
        if self._finite and not is_finite(values):
            self._refuse(values, rows)
        return values

    in_memory = False

    def read(self, rows: Any = None) -> np.ndarray:
        """Return light cones, all finite, in the asked order."""
        view = self if rows is None else self[rows]
        return view.require_finite().require_known().rows()

    def digests(self, rows: Any = None, *, recall: Any = None) -> list[bytes]:
        """Stand for the content of each row in 16 bytes."""
        view = self if rows is None else self[rows]
        if recall is not None:
            places = view.undigested()
            if len(places):
                unknown = view[places]
                found = recall(unknown.identities(), lambda some: unknown[some].row_digests())
                view.remember(places, found)
        return view.row_digests()

    def _refuse(self, values: np.ndarray, rows: np.ndarray) -> None:
        row = next(row for row, cone in zip(rows, values, strict=True) if not is_finite(cone))
        source, place = self._table.origin(row)
        where = int(np.flatnonzero(self._rows == row)[0])
        raise ValueError(
            f"X has NaN or infinite cells in row {where}: {source.path}, row {place}. Leave such "
            "cones out with open_lightcones(..., validate='full', on_bad='drop'), or repair them."
        )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Light cones in files cannot become an array without reading them.")
        values = self.rows()
        return values if dtype is None else values.astype(dtype, copy=False)

    @property
    def rows_at_once(self) -> int:
        """Rows that a pass over many reads at a time, to hold a bounded number of voxels."""
        return max(1, _CHUNK_BYTES // max(1, self.nbytes // max(1, len(self))))

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, values) of some cones at a time, in order."""
        step = self.rows_at_once
        for start in range(0, len(self), step):
            yield start, self.rows(np.arange(start, min(start + step, len(self))))

    def require_finite(self) -> Self:
        """Return the same cones such that reading NaN or infinite cells is an error."""
        view = self._view(self._rows)
        view._finite = True
        return view

    def require_known(self) -> Self:
        """Return the same cones such that reading other values than were digested is an error."""
        view = self._view(self._rows)
        view._verified = True
        return view

    def origin(self, row: int) -> tuple[str, int]:
        """Return the file of a row, and its number therein."""
        source, place = self._table.origin(self._rows[row])
        return source.path, place

    def row_digests(self) -> list[bytes]:
        """Digest of each row's content, 16 bytes (see ``skatr_sk.fields.digest``).

        Without reading voxels where the file carries an index (:func:`~skatr_sk.save_lightcones`
        writes one) and was not written to since, but for two rows that show that it is its own; by
        reading otherwise, once in a process.

        Returns
        -------
        list of bytes

        Raises
        ------
        OSError
            When a file is gone (FileNotFoundError), damaged, or changed since it was opened.
        ValueError
            When values are not those that the file's index is of.
        """
        unknown = self[self.undigested()]
        for start, values in unknown.chunks():
            self._table.compute(unknown._rows[start : start + len(values)], values)
        return [row.tobytes() for row in self._table.digests[self._rows]]

    def undigested(self) -> np.ndarray:
        """Places of rows, each row once, whose voxels must be read to know their digests."""
        table = self._table
        for which in np.unique(table.source_of(self._rows)):
            # What was remembered holds for the file that was opened alone.
            table.sources[which].check()
            table.recall(which)
        rows, places = np.unique(self._rows, return_index=True)
        unknown: np.ndarray = places[~table.known[rows]]
        return unknown

    def identities(self) -> list[bytes]:
        """Stand for each row by its file, the file's stamp and its number therein: 16 bytes."""
        table = self._table
        named = [f"{source!r} {table.dtype}".encode() for source in table.sources]
        return [
            hashlib.blake2b(named[which] + b" %d" % (row - table.starts[which]), digest_size=16)
            .digest()
            for which, row in zip(table.source_of(self._rows), self._rows, strict=True)
        ]  # fmt: skip

    @property
    def indexed(self) -> np.ndarray:
        """Whether the file of each row carries an index to be believed unread, of shape (n,)."""
        table = self._table
        carried = np.array([source.has_index for source in table.sources])
        found: np.ndarray = carried[table.source_of(self._rows)]
        return found

    def stored_digests(self) -> list[bytes | None]:
        """Digests that the files carry, unverified; None where there are none."""
        table, found = self._table, {}
        which = table.source_of(self._rows)
        for source in np.unique(which):
            stored = table.stored(source)
            if stored is not None:
                found[source] = stored
        return [
            found[source][row - table.starts[source]].tobytes() if source in found else None
            for source, row in zip(which, self._rows, strict=True)
        ]

    def remember(self, places: ArrayLike, digests: Sequence[bytes]) -> None:
        """Take over digests of rows that were computed from their voxels."""
        rows = self._rows[self._places(np.asarray(places))]
        self._table.remember(rows, digests)

    def fingerprint(self) -> str:
        """Stand for these rows of these files as they are now, by names and stamps alone."""
        described = repr(self._table.sources).encode() + self._rows.astype("<i8").tobytes()
        return hashlib.blake2b(described, digest_size=16).hexdigest()

    @classmethod
    def concatenate(cls, arrays: Sequence[LightconeArray]) -> Self:
        """Join light cones of one field shape, in the order given; nothing is read.

        Parameters
        ----------
        arrays : sequence of LightconeArray

        Returns
        -------
        LightconeArray
        """
        tables = list({id(array._table): array._table for array in arrays}.values())
        joined = cls([source for table in tables for source in table.sources])
        starts = np.concatenate([[0], np.cumsum([len(table.known) for table in tables])])
        offsets = {id(table): start for table, start in zip(tables, starts, strict=False)}
        joined._table.digests = np.concatenate([table.digests for table in tables])
        joined._table.known = np.concatenate([table.known for table in tables])
        joined._rows = np.concatenate([a._rows + offsets[id(a._table)] for a in arrays])
        joined._finite = any(array._finite for array in arrays)
        joined._verified = any(array._verified for array in arrays)
        return joined


def _is_full(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))
