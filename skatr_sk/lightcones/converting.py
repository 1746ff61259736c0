"""convert_lightcones: any files into the one file that is read fastest, resumably."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike

from skatr_sk._checks import Problems
from skatr_sk._files import (
    check_regular,
    check_room,
    check_writable,
    open_regular,
    private_folder,
    remove_leftovers,
    said_of,
    write_whole,
)
from skatr_sk.fields import digest_rows
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.digests import INDEX, pack
from skatr_sk.lightcones.opening import Paths, find_files, open_lightcones
from skatr_sk.lightcones.quality import digests_of_nothing
from skatr_sk.lightcones.sources import BRIGHTNESS, close_files, explain
from skatr_sk.lightcones.writing import FORMAT, Piece, Stack, save_lightcones, say_if_replaced
from skatr_sk.training.progress import watched

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["convert_lightcones"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
_PART_BYTES = 2**27
_READ_BYTES = 2**24  # of a part at a time
_NOTE, _LOCK = "job.json", "skatr_sk.lock"  # in the folder of parts
_LONGEST_NAME = 255  # bytes


def convert_lightcones(
    source: Paths,
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    compression: str = "none",
    verbose: int = 0,
    **options: Any,
) -> None:
    """Gather light cones from any files into the one file of :func:`save_lightcones`, resumably.

    The cones are first written as parts of some 128 MiB into the folder ``<path>.parts``, each
    whole or not at all, and then joined without being unpacked. What was interrupted goes on after
    the last whole part when it is called again, and gives the same file; parts that do not have
    their digests any more are written anew. While it runs it needs the room of the result twice.

    Parameters
    ----------
    source : path or sequence of paths
        As for :func:`~skatr_sk.open_lightcones`. Where it is a folder that `path` lies in, a
        former result there is not taken for one of the sources.
    path : path
        Appears whole or not at all, as for :func:`save_lightcones`.
    dtype, compression
        As for :func:`save_lightcones`.
    verbose : int, default=0
        1 shows a progress bar.
    **options
        Others of :func:`~skatr_sk.open_lightcones`, such as ``parameters`` or ``on_bad``.

    Raises
    ------
    ValueError
        When the folder of parts belongs to another conversion, when two light cones have the same
        values (unless ``validate=False``), or as :func:`open_lightcones`.
    FileExistsError
        When ``<path>.parts`` is there and was not made here; it is left as it is.
    BlockingIOError
        When another process writes the same file.
    OSError
        As :func:`save_lightcones`; what is done stays in the parts.

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
    check_writable(path)
    path = Path(path)
    cones = open_lightcones(_without(source, path), **options)
    X: LightconeArray = cones.data
    problems = Problems("convert_lightcones")
    stack = Stack.plan(problems, X, cones, dict(dtype=dtype, compression=compression))
    problems.raise_if_any()
    # Parts end where chunks end, so that they can be joined chunk by chunk.
    chunk = stack.cones_in_a_chunk
    step = max(1, _PART_BYTES // (math.prod(X.shape[1:]) * stack.dtype.itemsize * chunk)) * chunk
    rows = hashlib.blake2b(b"".join(X._digests.identities(X._rows)), digest_size=16).hexdigest()
    job = {"format": FORMAT, "dtype": stack.dtype.str, "compression": compression, "step": step}
    note = json.dumps(job | {"rows": rows}, sort_keys=True).encode()
    names = [f"{start:09d}.h5" for start in range(0, len(X), step)]
    with _parts_of(path, note, names) as folder:
        parts = [folder / name for name in names]
        shapes = [(min(step, len(X) - k), *X.shape[1:]) for k in range(0, len(X), step)]
        there = [p for p, shape in zip(parts, shapes, strict=True) if _is_whole(p, shape, stack)]
        left = len(parts) - len(there)
        check_room(path, stack.n_bytes, beside=stack.n_bytes * left // len(parts))
        seen: dict[bytes, int] = {}
        with watched(f"to {path}", len(X), "cone", verbose=verbose, logger=_LOGGER) as tell:
            for start, part in zip(range(0, len(X), step), parts, strict=True):
                some = X[start : start + step]
                if part not in there:
                    part.unlink(missing_ok=True)
                    save_lightcones(part, some, dtype=stack.dtype, compression=compression)
                    _LOGGER.info("%s: %d of %d light cones.", path, start + len(some), len(X))
                if options.get("validate", "fast"):
                    _check_new(part, start, seen, X)
                tell(len(some))
        say_if_replaced(path)
        size = max(stack.n_bytes, sum(part.stat().st_size for part in parts))
        write_whole(path, lambda temporary: stack.write(temporary, _join(parts, step, chunk)), size)
        close_files()


def _without(source: Paths, path: Path) -> Paths:
    """Leave what is to be written out of a folder that it lies in."""
    if not isinstance(source, str | os.PathLike) or Path(source).expanduser().is_file():
        return source
    found = find_files(source)
    kept = [one for one in found if not (path.exists() and os.path.samefile(one, path))]
    if not kept:
        raise FileNotFoundError(f"There are no light cones in {source} but {path} itself.")
    return source if len(kept) == len(found) else kept


@contextmanager
def _parts_of(path: Path, note: bytes, names: Sequence[str]) -> Iterator[Path]:
    """Make the folder of parts, keep other processes from it, and remove it when all is done.

    The note says of which conversion the parts are, and shows that the folder was made here: it
    appears with it. Any other folder is refused, and nothing in it touched. Of ours only files of
    the given names are removed. A process that is killed leaves nothing locked.
    """
    folder = path.with_name(path.name + ".parts")
    if len(os.fsencode(folder.name)) > _LONGEST_NAME:
        name = hashlib.blake2b(os.fsencode(path.name), digest_size=16).hexdigest()
        folder = path.with_name(f"{name}.parts")
    advice = "Remove the folder to start anew, or name another path."
    if not os.path.lexists(folder):
        _make_folder(folder, note)
    if not folder.is_dir() or not os.path.lexists(folder / _NOTE):
        what = "a folder" if folder.is_dir() else "something"
        raise FileExistsError(
            f"{folder}: expected nothing there, or the parts of a conversion to {path.name}, found "
            f"{what} that convert_lightcones has not made, and leaves alone; move it, or name "
            "another path."
        )
    try:
        held = open_regular(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        raise ValueError(f"{folder} holds the parts of another conversion. {advice}") from None
    with open(held, "ab") as stream:
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{path} is being written by another process, in {folder}. Wait until it is done, "
                "or name another path."
            ) from error
        except OSError as error:  # a file system without locks
            _LOGGER.info("%s cannot be locked (%s): let nobody else write it.", folder, error)
        state = check_regular(folder / _NOTE)
        if state.st_size != len(note) or (folder / _NOTE).read_bytes() != note:
            raise ValueError(
                f"{folder} holds the parts of another conversion: other files, or other options. "
                f"{advice}"
            )
        yield folder
        for name in names:
            (folder / name).unlink(missing_ok=True)
        remove_leftovers(folder)
    # Not while it is open, for NFS keeps what is open. Whoever has locked it meanwhile keeps it.
    for name in (_LOCK, _NOTE):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        _LOGGER.warning("%s stays, for it holds other files (%s).", folder, error)


def _make_folder(folder: Path, note: bytes) -> None:
    """Make the folder of parts with its note and its lock, all at once."""
    with said_of(folder, len(note)), private_folder(folder.parent) as new:
        (new / _LOCK).touch()
        (new / _NOTE).write_bytes(note)
        try:
            new.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another was faster
                raise


def _is_whole(part: Path, shape: tuple[int, ...], stack: Stack) -> bool:
    """Tell whether a part is there, and its values have the digests that were written with them."""
    if not os.path.lexists(part):
        return False
    check_regular(part)
    step = max(1, _READ_BYTES // (math.prod(shape[1:]) * stack.dtype.itemsize))
    try:
        with h5py.File(part, "r") as file:
            cells, index = file[BRIGHTNESS], file[INDEX]
            right = (cells.shape, cells.dtype, len(index)) == (shape, stack.dtype, shape[0])
            for row in range(0, shape[0] if right else 0, step):
                found = pack(digest_rows(cells[row : row + step]))
                right = right and np.array_equal(found, index[row : row + step])
    except Exception as error:  # h5py raises all kinds on a damaged file
        _LOGGER.info("%s cannot be read (%s).", part, explain(error))
        right = False
    if not right:
        _LOGGER.warning("%s is damaged, and is written anew.", part)
    return right


def _check_new(part: Path, start: int, seen: dict[bytes, int], X: LightconeArray) -> None:
    """Refuse a part with a light cone that was there already; `seen` has the rows by digest."""
    with h5py.File(part, "r") as file:
        contents = file[INDEX][:]
    nothing = digests_of_nothing(X.shape[1:])
    for row, content in enumerate(contents, start):
        if content.tobytes() in nothing:
            continue
        first = seen.setdefault(content.tobytes(), row)
        if first != row:
            (path, number), (other, its_number) = X.origin(row), X.origin(first)
            raise ValueError(
                f"{path}, row {number}, has the same values as {other}, row {its_number}. Keep "
                "both with validate=False; or remove one of them, or leave all such out with "
                f"validate='full' and on_bad='drop', and remove the folder {part.parent}."
            )


def _join(parts: Sequence[Path], step: int, chunk: int) -> Iterator[Piece]:
    """Read the parts, of `step` light cones each, chunk by chunk as they are packed."""
    for first, part in zip(range(0, len(parts) * step, step), parts, strict=True):
        with h5py.File(part, "r") as file:
            cells, index = file[BRIGHTNESS], file[INDEX][:]
            if cells.chunks[0] != chunk:  # a last part that is shorter
                yield Piece(first, cells[:], index)
                continue
            rest = (0,) * (cells.ndim - 1)
            several = chunk * max(
                1, _READ_BYTES // (math.prod(cells.chunks) * cells.dtype.itemsize)
            )
            for row in range(0, len(cells), several):
                rows = range(row, min(row + several, len(cells)), chunk)
                packed = [cells.id.read_direct_chunk((k, *rest)) for k in rows]
                yield Piece(first + row, packed, index[row : row + several])
