"""What each row of a file is: its digest, from where it is known, and whether it still holds.

A digest stands for a row's values in 16 bytes (``skatr_sk.fields.digest``). It is taken

* from the memory of this process, which keeps the digests of the files read last by their names
  and stamps;
* from the *index*, the dataset of digests that :func:`~skatr_sk.save_lightcones` writes into its
  files, while the file is *sealed*: of the size and time of change that were noted with the index;
* from what other processes have computed, where the caller can ask them; or
* by reading the row, which is then compared with the index of a file that is no longer sealed.

A row whose digest is known, as a fit or the cache of summaries has asked for it, is held to it the
first time that this process reads it; others are taken as they are, for a digest takes longer than
reading. Afterwards the file's stamp, compared at each reading, says that it is the same; where only
the inode was touched, as by a new name, rows are held to their digests at each reading.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import h5py
import numpy as np

from skatr_sk._files import Stamp, stamp_of
from skatr_sk.fields import Recall, digest, digest_rows
from skatr_sk.lightcones.guarded import write_hdf5
from skatr_sk.lightcones.sources import BRIGHTNESS, FileRows, Source

__all__ = ["CHANGED", "INDEX", "RowDigests", "create_index", "find_index", "pack", "seal"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")

INDEX = "row_digest"  # name of the index
# What to do about an index, which is written last, that is not of the values.
CHANGED = "The file was changed after it was written: write it anew with save_lightcones"

_DATASET = "dataset"  # attribute of the index: name of what it is of
_WRITTEN = "written"  # attribute of the index: size and time of change of the finished file
_BYTES = 16
_SPOT_CHECKS = 2  # rows read to see whether an index still belongs to its file


def create_index(brightness: h5py.Dataset) -> h5py.Dataset:
    """Make the dataset of digests, of shape (n, 16), beside a dataset of n light cones."""
    shape = (len(brightness), _BYTES)
    index = brightness.file.create_dataset(INDEX, shape, np.uint8, track_times=False)
    index.attrs[_DATASET] = brightness.name.strip("/")
    return index


def find_index(
    stored: Mapping[str, Any], brightness: Any, n_bytes: int, stamp: Stamp
) -> tuple[str | None, bool]:
    """Find the name of these light cones' index in a file; tell whether the file is sealed.

    `stored` has what ``formats.hdf5`` says of each dataset, `brightness` is one of them, and the
    file has `n_bytes` and a `stamp`. An index of another dataset does not count. One that has not
    a digest for each light cone is a ValueError.
    """
    index = stored.get(INDEX)
    if index is None:
        return None, False
    kind, n = index.check("row digests", n_bytes), brightness.shape[0]
    of = index.attribute(_DATASET)
    if (BRIGHTNESS if of is None else of) != brightness.name.strip("/"):
        return None, False
    if index.shape != (n, _BYTES) or kind != np.uint8:
        found_index = f"an index of row digests of shape {index.shape} and type {kind}"
        raise ValueError(f"{found_index}; expected ({n}, {_BYTES}) and uint8. {CHANGED}")
    written = np.ravel(index.attribute(_WRITTEN)).tolist()
    return index.name, written == list(stamp[:2])


def seal(path: str | os.PathLike[str]) -> None:
    """Note a finished file's size and time of change with its index.

    As long as both hold, the index is believed without reading what it is of. Whoever writes to
    the file breaks the seal, and so does a copy that gets a new time: digests are then computed
    from the values, once. The time is set to whole seconds, which archives keep and no later
    writer happens to leave. The file, in HDF5, must be closed.
    """
    time = os.stat(path).st_mtime_ns // 10**9 * 10**9
    for _ in range(2):  # with the attribute the file has its final size
        written = np.array([os.stat(path).st_size, time], dtype=np.int64)
        write_hdf5(path, partial(_note, written=written), mode="r+")
    try:
        os.utime(path, ns=(time, time))
    except OSError as error:  # some shared folders set no times
        _LOGGER.info("%s stays unsealed (%s): its rows are digested when asked for.", path, error)


def _note(file: h5py.File, written: np.ndarray) -> None:
    file[INDEX].attrs[_WRITTEN] = written


def pack(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as an array of shape (n, 16), uint8, as the index has them."""
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _BYTES)


@functools.lru_cache(maxsize=8)
def _index_of(source: Source) -> np.ndarray:
    """Index of a file as it is stored; whether it is of the values is another matter."""
    with source.opened() as handle:
        stored: np.ndarray = handle.dataset.file[source.index][:]
    return stored


class _Record:
    """Digests of one file's rows that this process knows."""

    def __init__(self, n_rows: int) -> None:
        self.digests = np.zeros((n_rows, _BYTES), dtype=np.uint8)
        self.known = np.zeros(n_rows, dtype=bool)
        self.held = np.zeros(n_rows, dtype=bool)  # whether this process has read such values

    def learn(self, rows: np.ndarray, digests: np.ndarray, held: bool = False) -> None:
        self.digests[rows] = digests
        self.known[rows] = True
        self.held[rows] |= held


@functools.lru_cache(maxsize=2**16)  # files
def _records_of(path: str) -> dict[Source, _Record]:
    return {}


def _record_of(source: Source) -> _Record:
    """Return the one record of a file with this stamp, whatever array asks for it.

    A task of a parallel search is sent its array anew, and must not digest everything anew. What
    was known of the file before it was written anew is let go.
    """
    records = _records_of(source.path)
    record = records.get(source)
    if record is None:
        for other in list(records):
            if other.stamp != source.stamp:
                records.pop(other, None)
        record = records.setdefault(source, _Record(source.n_rows))
    return record


class RowDigests:
    """The digests of rows in files; rows are numbered as in `files`.

    Pickled it takes along what is known, so that a parallel job need not read what was read here.
    """

    def __init__(self, files: FileRows) -> None:
        self.files = files
        self._records = [_record_of(source) for source in files.sources]

    def __getstate__(self) -> tuple[Any, ...]:
        sent = [(r.known, r.digests[r.known]) if r.known.any() else None for r in self._records]
        return self.files, sent

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        files, sent = state
        RowDigests.__init__(self, files)
        for record, learned in zip(self._records, sent, strict=True):
            if learned is not None:  # known to all arrays of this process from now on
                known, digests = learned
                new = known & ~record.known
                record.learn(new, digests[new[known]])

    def of(self, rows: np.ndarray, recall: Recall | None = None) -> list[bytes]:
        """Return the digest of each row; only rows whose digest nobody knows are read.

        For `recall` and the errors see :meth:`~skatr_sk.LightconeArray.digests`.
        """
        unknown = self._unknown(rows)
        if recall is None:
            self._compute(unknown)
        elif len(unknown):
            found = recall(self.identities(unknown), lambda some: self._compute(unknown[some]))
            self.note(unknown, found)
        digests = np.empty((len(rows), _BYTES), dtype=np.uint8)
        for source, indices, numbers in self.files.by_source(rows):
            digests[indices] = self._records[source].digests[numbers]
        return [row.tobytes() for row in digests]

    def _unknown(self, rows: np.ndarray) -> np.ndarray:
        """Rows, each once, whose cells must be read to know their digests."""
        rows = np.unique(rows)
        unknown = np.zeros(len(rows), dtype=bool)
        for which, indices, numbers in self.files.by_source(rows):
            source, known = self.files.sources[which], self._records[which].known
            source.check(numbers[0])  # what is remembered holds only for the file that was opened
            if source.sealed and not known[numbers].all():
                self._take_index(which)
            unknown[indices] = ~known[numbers]
        return rows[unknown]

    def _take_index(self, which: int) -> None:
        """Take over the digests that a file carries, once some rows show that they are its own."""
        record, start = self._records[which], self.files.starts[which]
        stored = _index_of(self.files.sources[which])
        n = len(stored)
        for row in np.random.default_rng(0).choice(n, size=min(_SPOT_CHECKS, n), replace=False):
            if digest(self.files.read(start + np.array([row]))[0]) != stored[row].tobytes():
                self._refuse(start + row)
        record.learn(~record.known, stored[~record.known])

    def _compute(self, rows: np.ndarray) -> list[bytes]:
        """Digest rows, and refuse those that their file's own index is not of."""
        found: list[bytes] = []
        for part in self.files.parts(rows):
            digests = digest_rows(self.files.read(part))
            for row, computed, stored in zip(part, digests, self.stored(part), strict=True):
                if stored not in (None, computed):
                    self._refuse(row)
            self.note(part, digests, held=True)
            found += digests
        return found

    def note(self, rows: np.ndarray, digests: Sequence[bytes], held: bool = False) -> None:
        """Remember digests; with `held`, those of values that were read just now."""
        packed = pack(digests)
        for source, indices, numbers in self.files.by_source(rows):
            self._records[source].learn(numbers, packed[indices], held)

    def hold(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Raise a ValueError for rows whose values do not have their known digests.

        A row is digested the first time that it is read with its digest known, and not again
        unless its file was touched.
        """
        for source, indices, numbers in self.files.by_source(rows):
            record, of = self._records[source], self.files.sources[source]
            new = record.known[numbers]
            if stamp_of(os.stat(of.path)) == of.stamp:
                new = new & ~record.held[numbers]  # surely the file that was opened
            for index, number in zip(indices[new], numbers[new], strict=True):
                if digest(values[index]) != record.digests[number].tobytes():
                    self._refuse(rows[index])
                record.held[number] = True

    def _refuse(self, row: int) -> None:
        source, number = self.files.origin(row)
        wrong = "its values do not have the digest that was taken of them before"
        raise ValueError(f"{source.path}, row {number}: {wrong}. {CHANGED}.")

    def stored(self, rows: np.ndarray) -> list[bytes | None]:
        """Digests that the files carry, unverified; None where there are none."""
        found: list[bytes | None] = [None] * len(rows)
        for source, indices, numbers in self.files.by_source(rows):
            if self.files.sources[source].index is not None:
                stored = _index_of(self.files.sources[source])[numbers]
                for index, row in zip(indices, stored, strict=True):
                    found[index] = row.tobytes()
        return found

    def identities(self, rows: np.ndarray) -> list[bytes]:
        """Stand for each row by its file, the file's stamp and its number therein: 16 bytes."""
        found = [b""] * len(rows)
        for source, indices, numbers in self.files.by_source(rows):
            name = repr(self.files.sources[source]).encode()
            for index, number in zip(indices, numbers, strict=True):
                found[index] = hashlib.blake2b(name + b" %d" % number, digest_size=16).digest()
        return found
