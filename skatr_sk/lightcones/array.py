"""LightconeArray: light cones that stay in their files until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from skatr_sk.fields import Recall, Rows, is_finite
from skatr_sk.grid import Grid
from skatr_sk.lazy_fields import LazyFields
from skatr_sk.lightcones.digests import RowDigests
from skatr_sk.lightcones.sources import FileRows, Source

__all__ = ["LightconeArray"]


class LightconeArray(LazyFields):
    """Light cones (n, n_x, n_y, n_z) in files, indexed like an array and read when needed.

    A slice, an index array or a mask gives another `LightconeArray`, which reads nothing; slices of
    the cones' own axes, as in ``X[..., :450]`` or ``X[:, :14, :14]``, give that part of each, still
    unread; an integer gives the cone, and :func:`numpy.asarray` all of them. It is made by
    :func:`~skatr_sk.open_lightcones` and works as `X` wherever scikit-learn takes rows:
    splitters, cross-validation, searches. Pickled it is a list of paths, row numbers and digests,
    so that parallel jobs are sent no cells; each process opens the files for itself. A file that
    was deleted, damaged or changed since is an error that names the file and the row.

    Parameters
    ----------
    sources : sequence of Source
        Files and the rows in them, all of one field shape.
    grid : Grid, optional
        Where their cells lie, as far as it is known.

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

    def __init__(self, sources: Sequence[Source], grid: Grid | None = None) -> None:
        self._files = FileRows(sources)
        self._digests = RowDigests(self._files)
        self._field_shape = self._files.field_shape
        self._rows = np.arange(len(self._files))  # numbers in `_files`
        self._grid = grid

    @property
    def dtype(self) -> np.dtype:
        """Type of the values that reading gives: floats as stored, float32 for integers."""
        return self._files.dtype

    @property
    def files(self) -> list[str]:
        """Paths of the files that hold these cones."""
        used = np.unique(self._files.source_of(self._rows))
        return [self._files.sources[which].path for which in used]

    def __repr__(self) -> str:
        n = len(self.files)
        files = f"{n} file{'' if n == 1 else 's'}"
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, {files})"

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        return self._files.read(numbers)

    def _contents(self, rows: Rows | None) -> np.ndarray:
        chosen = self._chosen(rows)
        values = self._files.read(chosen)
        self._digests.hold(chosen, values)
        return values

    def _identities(self, rows: Rows) -> list[bytes]:
        return self._digests.identities(self._chosen(rows))

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Read cones in the order of their files, and return them in the asked order.

        Parameters
        ----------
        rows : slice, or array-like of int or bool, optional
            Which cones, in any order, repeated or not; default is all.

        Returns
        -------
        ndarray of shape (n_rows, *field_shape)
            Finite. (:func:`numpy.asarray` gives NaN cells as they are stored.)

        Raises
        ------
        OSError
            When a file is gone (FileNotFoundError), damaged, or changed since it was opened.
        ValueError
            When a cone has NaN or infinite cells, or other values than its digest, where
            that is known, is of.
        """
        values = self._contents(rows)
        if is_finite(values):
            return values
        chosen = self._chosen(rows)
        row = next(row for row, cone in zip(chosen, values, strict=True) if not is_finite(cone))
        source, number = self._files.origin(row)
        index = int(np.flatnonzero(self._rows == row)[0])
        raise ValueError(
            f"X has NaN or infinite cells in row {index}: {source.path}, row {number}. Leave such "
            "cones out with open_lightcones(..., validate='full', on_bad='drop'), or repair them."
        )

    def digests(self, rows: Rows | None = None, *, recall: Recall | None = None) -> list[bytes]:
        """Stand for the content of each cone in 16 bytes (see ``skatr_sk.fields.digest``).

        Where the file carries an index (:func:`~skatr_sk.save_lightcones` writes one) and was not
        written to since, only two rows are read, to see that the index is its own. Otherwise all
        cells are read, once in a process.

        `rows` and the errors are those of :meth:`read`; values that are not those that the file's
        index is of are a ValueError, too. `recall` finds digests that other processes have computed
        (see ``skatr_sk.fields``).
        """
        return self._digests.of(self._chosen(rows), recall)

    def origin(self, row: int) -> tuple[str, int]:
        """Return the path of the file that a row is in, and its number therein."""
        source, number = self._files.origin(self._chosen([row])[0])
        return source.path, number

    @classmethod
    def concatenate(cls, arrays: Sequence[LightconeArray]) -> Self:
        """Put light cones of one field shape one after the other; nothing is read."""
        each = {id(array._files): array._files for array in arrays}  # views share their files
        grid = next((array.grid for array in arrays if array.grid is not None), None)
        joined = cls([source for files in each.values() for source in files.sources], grid)
        starts = np.cumsum([0, *map(len, each.values())])
        offsets = dict(zip(each, starts, strict=False))
        joined._rows = np.concatenate([a._rows + offsets[id(a._files)] for a in arrays])
        return joined
