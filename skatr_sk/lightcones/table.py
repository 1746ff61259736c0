"""The rows of many files, numbered through: reading them in order, and what their digests are."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from skatr_sk.fields import digest
from skatr_sk.lightcones.files import CHANGED, Source
from skatr_sk.lightcones.handles import let_go

__all__ = ["Table"]

_SPOT_CHECKS = 2  # rows read to see whether an index still belongs to its file
_MOST_FILES = 2**16  # of which a process remembers digests, those used last


class Table:
    """The rows of all sources, numbered through, and the digests known so far.

    Parameters
    ----------
    sources : sequence of Source
        Of one field shape.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        counts = [source.n_rows for source in self.sources]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.digests = np.zeros((int(self.starts[-1]), 16), dtype=np.uint8)
        self.known = np.zeros(len(self.digests), dtype=bool)
        # Integers and the like are read as float32: networks take nothing else.
        stored = np.result_type(*{np.dtype(s.dtype) for s in self.sources}).newbyteorder("=")
        self.dtype = stored if stored.kind == "f" else np.dtype(np.float32)
        if self.dtype.itemsize > 8:
            self.dtype = np.dtype(np.float64)
        self.field_shape = self.sources[0].field_shape
        self._close_at_the_end()

    def _close_at_the_end(self) -> None:
        weakref.finalize(self, let_go, self.sources).atexit = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close_at_the_end()

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        """Say which source each row is in."""
        found: np.ndarray = np.searchsorted(self.starts, rows, side="right") - 1
        return found

    def origin(self, row: int) -> tuple[Source, int]:
        """Return the source of a row, and its number therein."""
        which = int(self.source_of(np.array([row]))[0])
        return self.sources[which], int(row - self.starts[which])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows in the order of the files, straight to their asked places."""
        out = np.empty((len(rows), *self.field_shape), dtype=self.dtype)
        if len(rows) == 0:
            return out
        order = np.argsort(rows, kind="stable")
        asked = rows[order]
        which = self.source_of(asked)
        # Neighbours in the file that stay neighbours are read at one go.
        breaks = (np.diff(asked) != 1) | (np.diff(order) != 1) | (np.diff(which) != 0)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            source, place = self.sources[which[start]], order[start]
            first = int(asked[start] - self.starts[which[start]])
            source.read(first, out[place : place + stop - start])
        return out

    def remember(self, rows: np.ndarray, digests: Sequence[bytes]) -> None:
        """Note digests that were computed from the voxels, for all tables of this process."""
        values = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)
        self.digests[rows] = values
        self.known[rows] = True
        which = self.source_of(rows)
        for source in np.unique(which):
            its = which == source
            shared, known = _taken(self.sources[source], self.dtype.str)
            shared[rows[its] - self.starts[source]] = values[its]
            known[rows[its] - self.starts[source]] = True

    def recall(self, which: int) -> None:
        """Take over what is known of a file: from another table, or from its index."""
        part = slice(self.starts[which], self.starts[which + 1])
        if self.known[part].all():
            return
        shared, known = _taken(self.sources[which], self.dtype.str)
        if not known.all() and self.sources[which].has_index:
            self.load_index(which)
        self.digests[part][known] = shared[known]
        self.known[part] |= known

    def compute(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Digest rows that were read, and refuse those that their file's own index is not of."""
        found = [digest(cone) for cone in values]
        which = self.source_of(rows)
        for source in np.unique(which):
            stored = self.stored(source)
            if stored is not None:
                for place in np.flatnonzero(which == source):
                    row = rows[place] - self.starts[source]
                    if found[place] != stored[row].tobytes():
                        self._refuse(rows[place])
        self.remember(rows, found)

    def verify(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Refuse rows with other values than those that their known digests were taken of."""
        for row, cone in zip(rows, values, strict=True):
            if self.known[row] and digest(cone) != self.digests[row].tobytes():
                self._refuse(row)

    def _refuse(self, row: int) -> None:
        source, place = self.origin(row)
        raise ValueError(
            f"{source.path}, row {place}: its values do not have the digest that was taken of them "
            f"before. {CHANGED}."
        )

    def stored(self, which: int) -> np.ndarray | None:
        """Index of a file, of the right shape; whether it is of these values is another matter."""
        source = self.sources[which]
        stored = source.digests()
        right = stored is None or (stored.shape == (source.n_rows, 16) and stored.itemsize == 1)
        if not right and stored is not None:
            raise ValueError(
                f"{source.path}: its index of row digests has shape {stored.shape} and type "
                f"{stored.dtype}, expected ({source.n_rows}, 16) and uint8. {CHANGED}."
            )
        return stored

    def load_index(self, which: int) -> None:
        """Take over the digests that a file carries, if some rows show that they are its own."""
        source = self.sources[which]
        stored = self.stored(which)
        if stored is None:
            return
        rows = np.arange(self.starts[which], self.starts[which + 1])
        rng = np.random.default_rng(0)
        for row in rng.choice(len(rows), size=min(_SPOT_CHECKS, len(rows)), replace=False):
            if digest(self.read(rows[row : row + 1])[0]) != stored[row].tobytes():
                self._refuse(rows[row])
        shared, known = _taken(source, self.dtype.str)
        shared[~known] = stored[~known]
        known[:] = True


@functools.lru_cache(maxsize=_MOST_FILES)
def _taken(source: Source, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Digests of a file's rows that this process knows, and which: of the file with this stamp.

    A task of a parallel search is sent its table anew, and must not digest everything anew.
    """
    return np.zeros((source.n_rows, 16), dtype=np.uint8), np.zeros(source.n_rows, dtype=bool)
