"""convert_lightcones: any files into the one file that is read fastest, resumably."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import DTypeLike

from skatr_sk._checks import Problems
from skatr_sk._files import check_writable, write_whole
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.digests import INDEX
from skatr_sk.lightcones.opening import Paths, find_files, open_lightcones
from skatr_sk.lightcones.sources import BRIGHTNESS, close_files
from skatr_sk.lightcones.writing import FORMAT, Stack, save_lightcones

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["convert_lightcones"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
_PART_BYTES = 2**27


def convert_lightcones(
    source: Paths,
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    compression: str = "none",
    **options: Any,
) -> None:
    """Gather light cones from any files into the one file of :func:`save_lightcones`, resumably.

    The cones are first written as parts of some 128 MiB into the folder ``<path>.parts``, each
    whole or not at all, and then joined without being unpacked. What was interrupted goes on after
    the last whole part when it is called again, and gives the same file. While it runs it needs
    the room of the result twice.

    Parameters
    ----------
    source : path or sequence of paths
        As for :func:`~skatr_sk.open_lightcones`. Where it is a folder that `path` lies in, a
        former result there is not taken for one of the sources.
    path : path
        Appears whole or not at all.
    dtype, compression
        As for :func:`save_lightcones`.
    **options
        Others of :func:`~skatr_sk.open_lightcones`, such as ``parameters`` or ``on_bad``.

    Raises
    ------
    ValueError
        When the folder of parts belongs to another conversion, when two light cones have the same
        values (unless ``validate=False``), or as :func:`open_lightcones`.
    BlockingIOError
        When another process writes the same file.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skatr_sk import open_lightcones
    >>> from skatr_sk.lightcones import convert_lightcones
    >>> folder = tempfile.mkdtemp()
    >>> source, path = (os.path.join(folder, name) for name in ("signals.npy", "signals.h5"))
    >>> np.save(source, np.arange(20.0).reshape(4, 5))
    >>> convert_lightcones(source, path)
    >>> open_lightcones(path).data.shape
    (4, 5)
    """
    path = Path(path)
    cones = open_lightcones(_without(source, path), **options)
    X: LightconeArray = cones.data
    problems = Problems("convert_lightcones")
    stack = Stack.plan(problems, X, cones, dict(dtype=dtype, compression=compression))
    problems.raise_if_any()
    check_writable(path)
    parts = path.with_name(path.name + ".parts")
    # Parts end where chunks end, so that they can be joined chunk by chunk.
    chunk = stack.cones_in_a_chunk
    step = max(1, _PART_BYTES // (math.prod(X.shape[1:]) * stack.dtype.itemsize * chunk)) * chunk
    rows = hashlib.blake2b(b"".join(X._digests.identities(X._rows)), digest_size=16).hexdigest()
    job = {"format": FORMAT, "dtype": stack.dtype.str, "compression": compression, "step": step}
    text = json.dumps(job | {"rows": rows}, sort_keys=True)
    with _alone(parts, path):
        note = parts / "job.json"
        if not note.exists():
            write_whole(note, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        elif note.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"{parts} holds the parts of another conversion: other files, or other options. "
                "Remove the folder to start anew, or name another path."
            )
        seen: dict[bytes, int] = {}
        for start in range(0, len(X), step):
            part = parts / f"{start:09d}.h5"
            if not part.exists():
                some = X[start : start + step]
                save_lightcones(part, some, dtype=stack.dtype, compression=compression)
                _LOGGER.info("%s: %d of %d light cones.", path, start + len(some), len(X))
            if options.get("validate", "fast"):
                _check_new(part, start, seen, X)
        whole = parts / "whole.h5"
        write_whole(whole, lambda temporary: stack.write(temporary, partial(_join, parts, step)))
        os.replace(whole, path)
        close_files()


def _without(source: Paths, path: Path) -> Paths:
    """Leave what is to be written out of a folder that it lies in."""
    if not isinstance(source, str | os.PathLike) or not Path(source).is_dir():
        return source
    found = find_files(source)
    kept = [one for one in found if not (path.exists() and os.path.samefile(one, path))]
    if not kept:
        raise FileNotFoundError(f"There are no light cones in {source} but {path} itself.")
    return source if len(kept) == len(found) else kept


@contextmanager
def _alone(parts: Path, path: Path) -> Iterator[None]:
    """Make the folder of parts, keep other processes from it, and remove it when all is done.

    A process that is killed leaves nothing locked.
    """
    parts.mkdir(exist_ok=True)
    with open(parts / "lock", "ab") as held:
        try:
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path} is being written by another process, in {parts}. Wait until it is done, "
                "or name another path."
            ) from error
        except OSError as error:  # a file system without locks
            _LOGGER.info("%s cannot be locked (%s): let nobody else write it.", parts, error)
        yield
        for part in parts.iterdir():
            if part.name != "lock":
                part.unlink()
    # Not while it is open, for NFS keeps what is open. Whoever has locked it meanwhile keeps it.
    (parts / "lock").unlink(missing_ok=True)
    with suppress(OSError):
        parts.rmdir()


def _check_new(part: Path, start: int, seen: dict[bytes, int], X: LightconeArray) -> None:
    """Refuse a part with a light cone that was there already; `seen` has the rows by digest."""
    with h5py.File(part, "r") as file:
        contents = file[INDEX][:]
    for row, content in enumerate(contents, start):
        first = seen.setdefault(content.tobytes(), row)
        if first != row:
            (path, number), (other, its_number) = X.origin(row), X.origin(first)
            raise ValueError(
                f"{path}, row {number}, has the same values as {other}, row {its_number}. Keep "
                "both with validate=False; or remove one of them, or leave all such out with "
                f"validate='full' and on_bad='drop', and remove the folder {part.parent}."
            )


def _join(parts: Path, step: int, cells: h5py.Dataset, index: h5py.Dataset) -> None:
    """Join the parts, of `step` light cones each, chunk by chunk as they are packed."""
    for start in range(0, len(cells), step):
        with h5py.File(parts / f"{start:09d}.h5", "r") as part:
            piece = part[BRIGHTNESS]
            index[start : start + len(piece)] = part[INDEX][:]
            if piece.chunks == cells.chunks:
                rest = (0,) * (piece.ndim - 1)
                for row in range(0, len(piece), piece.chunks[0]):
                    mask, packed = piece.id.read_direct_chunk((row, *rest))
                    cells.id.write_direct_chunk((start + row, *rest), packed, mask)
            else:  # a last part that is shorter than a chunk
                cells[start : start + len(piece)] = piece[:]
