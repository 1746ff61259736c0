"""Summaries in a folder that many processes read and fill at once, any of which may be killed.

A folder holds one folder for each space (weights, pooling, precision; another for digests of light
cones in files, which are kept in the same way). In it every process has a file of its own, a
*shard*, to which it appends records of one length: the key of a light cone (16 bytes), a checksum
(8), the values (little-endian float32). No process writes into another's shard, and no record is
ever changed, so that reading needs no lock: a record counts when it is all there and its checksum
is right. Locks only keep two processes from computing the same summary, and vanish with their
process.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np

from skatr_sk._checks import warn
from skatr_sk._files import NO_ROOM, check_regular, open_regular, room_error

try:
    import fcntl
except ImportError:  # Windows: what two processes want at the same moment, both compute
    fcntl = None  # type: ignore[assignment]

__all__ = ["Shards", "clear_folder", "count_records"]

_KEY, _CHECKSUM = 16, 8  # bytes
_CLAIMS = "claims"
# Process, bytes of a record, and what it holds.
_SHARD = re.compile(r"[0-9a-f]+-[1-9][0-9]*\.(summaries|digests)")
_LOGGER = logging.getLogger("skatr_sk.cache")


class _Process:
    """What a process does not share with those that it forks."""

    token = secrets.token_hex(8)  # of its shards' names
    warned: set[Path] = set()

    @classmethod
    def renew(cls) -> None:
        cls.token = secrets.token_hex(8)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.renew)


class Shards(AbstractContextManager["Shards"]):
    """The summaries of one space in a folder, and the claims on those to be computed.

    Use it in a ``with`` statement: at its end the claims are given up. It is not safe for several
    threads at once.

    The folder is made where it does not exist, with the first summary that is written. `space` keys
    the checksums, so that a shard in the wrong folder is not believed; `shape` is that of one
    summary, and `what` is "summaries" or "digests", which are kept as four numbers each.
    """

    def __init__(
        self, folder: str | os.PathLike[str], space: bytes, shape: Sequence[int], what: str
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / space.hex()
        self.space = space
        self.shape = tuple(shape)
        self.record_size = _KEY + _CHECKSUM + 4 * math.prod(self.shape)
        self.ending = f"-{self.record_size}.{what}"
        self._seen: dict[Path, int] = {}  # records of each shard that the index knows
        # A damaged record is followed by a good one elsewhere, once it has been computed again.
        self._index: dict[bytes, list[tuple[Path, int]]] = {}
        self._claims: IO[bytes] | None = None
        self._lockable = fcntl is not None

    def __exit__(self, *exception: object) -> None:
        if self._claims is not None:
            self._claims.close()  # and with it go the locks
            self._claims = None

    def find(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Return the summaries that any process has written; what is damaged is not found."""
        self._look()
        wanted: dict[Path, list[tuple[int, bytes]]] = {}
        for key in keys:
            for shard, index in self._index.get(key, ()):
                wanted.setdefault(shard, []).append((index, key))
        found: dict[bytes, np.ndarray] = {}
        for shard, indices in wanted.items():
            try:
                with open(shard, "rb") as stream:
                    for index, key in sorted(indices):
                        values = None if key in found else self._read(stream, index, key)
                        if values is not None:
                            found[key] = values
            except OSError as error:  # gone since, or unreadable
                _LOGGER.warning("%s cannot be read (%s): computing its summaries.", shard, error)
        return found

    def append(self, found: Mapping[bytes, np.ndarray]) -> None:
        """Write summaries to this process's shard; where that fails, warn once and go on."""
        data = {k: np.ascontiguousarray(v, dtype="<f4").tobytes() for k, v in found.items()}
        records = b"".join(k + self._checksum(k, values) + values for k, values in data.items())
        shard = self.path / f"{_Process.token}{self.ending}"
        whole = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Closed each time: on a network's file system that is when others get to see it.
            with open(shard, "ab") as stream:
                whole = stream.tell() // self.record_size * self.record_size
                stream.truncate(whole)  # a write that failed may have left a part of a record
                stream.write(records)
        except OSError as error:
            if whole is not None:
                _truncate(shard, whole)
            if error.errno in NO_ROOM:
                error = room_error(shard, error.errno or 0, (whole or 0) + len(records))
            if self.folder not in _Process.warned:
                _Process.warned.add(self.folder)
                warn(
                    f"Summaries cannot be written to the cache folder {str(self.folder)!r} "
                    f"({str(error).rstrip('.')}). They are right, but other processes and later "
                    "runs compute them again: make room, or name another folder in cache=."
                )

    def claim(self, key: bytes) -> bool:
        """Say whether this process may compute a summary: False while another one does.

        The claim is a lock on one byte of a file, far beyond its end, which the system takes back
        when the process ends, however it ends. Where there are no such locks all may compute.
        """
        if self._claims is None and self._lockable:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._claims = open(
                    open_regular(self.path / _CLAIMS, os.O_WRONLY | os.O_CREAT), "wb"
                )
            except OSError:  # a folder to read from only, or no regular file
                self._lockable = False
        return self._lock(key, wanted=True)

    def release(self, keys: Iterable[bytes]) -> None:
        """Give claims up; what was computed has been written before."""
        for key in keys:
            self._lock(key, wanted=False)

    def _lock(self, key: bytes, *, wanted: bool) -> bool:
        if self._claims is None or not self._lockable:
            return True
        command = fcntl.LOCK_EX | fcntl.LOCK_NB if wanted else fcntl.LOCK_UN
        try:
            fcntl.lockf(self._claims, command, 1, int.from_bytes(key[:7], "little"))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            self._lockable = False
            _LOGGER.info("No locks in %s (%s): processes may compute twice.", self.path, error)
        return True

    def _look(self) -> None:
        """Bring the index up to date with what the shards hold now."""
        for shard in sorted(self.path.glob(f"*{self.ending}")):
            seen = self._seen.get(shard, 0)
            try:
                there = check_regular(shard).st_size // self.record_size
                if there <= seen:
                    continue
                with open(shard, "rb") as stream:
                    for index in range(seen, there):
                        stream.seek(index * self.record_size)
                        self._index.setdefault(stream.read(_KEY), []).append((shard, index))
            except OSError as error:  # gone since, or unreadable
                _LOGGER.warning("%s cannot be read (%s): computing its summaries.", shard, error)
                continue
            self._seen[shard] = there

    def _read(self, stream: IO[bytes], index: int, key: bytes) -> np.ndarray | None:
        """Read one summary; None where the record is cut off or damaged."""
        stream.seek(index * self.record_size)
        record = stream.read(self.record_size)
        data = record[_KEY + _CHECKSUM :]
        if len(record) < self.record_size or record != key + self._checksum(key, data) + data:
            _LOGGER.warning("Record %d of %s is damaged: computing it anew.", index, stream.name)
            return None
        return np.frombuffer(data, dtype="<f4").reshape(self.shape).astype(np.float32, copy=False)

    def _checksum(self, key: bytes, data: bytes) -> bytes:
        return hashlib.blake2b(key + data, key=self.space, digest_size=_CHECKSUM).digest()


def count_records(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Count the records of all spaces in a folder, and their bytes."""
    n_records = n_bytes = 0
    for shard in _files(folder):
        if shard.suffix == ".summaries":
            try:
                size = shard.stat().st_size
            except OSError as error:  # gone since, or a link to nowhere
                _LOGGER.info("%s is not counted (%s).", shard, error)
                continue
            n_records += size // int(shard.stem.rpartition("-")[2])
            n_bytes += size
    return n_records, n_bytes


def clear_folder(folder: str | os.PathLike[str]) -> None:
    """Delete the shards in a folder, and no other file."""
    paths = _files(folder)
    for path in paths:
        path.unlink(missing_ok=True)
    for space in {path.parent for path in paths}:
        try:
            space.rmdir()
        except OSError as error:
            _LOGGER.info("%s stays, or is gone already (%s).", space, error)


def _files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of ours: the folders of spaces have names of 32 hexadecimal digits."""
    found = Path(folder).glob("[0-9a-f]" * 32 + "/*")
    ours = (path for path in found if path.name == _CLAIMS or _SHARD.fullmatch(path.name))
    return sorted(path for path in ours if path.is_file() or path.is_symlink())


def _truncate(shard: Path, size: int) -> None:
    """Take back a part of a record that a failed write has left, as far as that can be done."""
    try:
        os.truncate(shard, size)
    except OSError as error:
        _LOGGER.info("%s keeps an incomplete record (%s), which is not read.", shard, error)
