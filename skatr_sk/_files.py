"""Files that appear whole or not at all, and what is said of paths that are none."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from skatr_sk._checks import InvalidParameterError, is_path

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

__all__ = [
    "NO_ROOM",
    "CutShort",
    "Stamp",
    "check_regular",
    "check_room",
    "check_writable",
    "open_regular",
    "private_folder",
    "remove_leftovers",
    "room_error",
    "said_of",
    "stamp_of",
    "write_whole",
]

_LOGGER = logging.getLogger("skatr_sk.files")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# A full disk, a full quota, and a limit of the process (ulimit -f).
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# Temporary folders: of which computer, and a random name that nobody can have foreseen.
_TEMPORARY = re.compile(r"\.skatr_sk-([0-9a-f]{8})-[0-9a-f]{16}")
_ABANDONED = 24 * 3600.0  # seconds without a change, where no lock tells


# Size, time of the last change in nanoseconds, and inode: a file that keeps these is the same, as
# far as it can be told. Then the time when anything of the inode changed, its name or its mode too:
# a file that was written anew within a second may keep the others, but not this one.
Stamp = tuple[int, int, int, int]


def stamp_of(found: os.stat_result) -> Stamp:
    """Stamp of a file in this state."""
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns


def check_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the state of a regular file; an OSError says what else `path` is, without opening it.

    To open a pipe waits for its other end, and to read a device may never end.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot be read: {error.strerror}", os.fspath(path)
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(path, found, "a regular file")
    return found


def _not_regular(path: str | os.PathLike[str], found: os.stat_result, expected: str) -> OSError:
    what = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
    return OSError(f"{os.fspath(path)}: expected {expected}, found {what}; name another path.")


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file as ``os.open`` does, and never wait for anything else to open."""
    with suppress(FileNotFoundError):  # which the flags may allow
        check_regular(path)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):  # it became something else meanwhile
        os.close(descriptor)
        raise _not_regular(path, found, "a regular file")
    return descriptor


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return where a file is written that is named `path`: links are followed, as ``open`` does.

    An OSError refuses, without opening it, what is no regular file, a file that may not be
    written, and a name in a folder that does not exist.
    """
    if not is_path(path):
        raise InvalidParameterError(f"path: expected that of a file, found {path!r}.")
    target = Path(os.path.realpath(path))
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"Cannot write {path}: the folder {target.parent} does not exist; create it first."
            ) from None
        return target
    except OSError as error:  # links in a circle, a name that is too long
        raise _unwritten(path, error) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"Cannot write {path}: it is a folder; name a file inside it.")
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(path, found, "a regular file, or none")
    if not os.access(target, os.W_OK):
        raise _unwritten(path, PermissionError(errno.EACCES, "it may not be written"))
    return target


def _unwritten(path: str | os.PathLike[str], error: OSError) -> OSError:
    """Say of a file what kept it from being written; the class of an OSError is by its number."""
    return OSError(error.errno, f"{os.fspath(path)}: cannot be written: {error.strerror or error}.")


# Room ---------------------------------------------------------------------------------------------


class CutShort(OSError):
    """A write that failed, of a file that was to have `wanted` bytes or more."""

    def __init__(self, number: int, wanted: int) -> None:
        super().__init__(number, os.strerror(number))
        self.wanted = wanted


def check_room(path: str | os.PathLike[str], size: int, beside: int = 0) -> None:
    """Raise an OSError where a file of `size` bytes, and `beside` of others, find no room."""
    if size > _largest_file():
        raise room_error(path, errno.EFBIG, size)
    if size + beside > _free_bytes(path):
        raise room_error(path, errno.ENOSPC, size + beside)


def room_error(path: str | os.PathLike[str], number: int, wanted: int) -> OSError:
    """Return the one error of a file that is to have `wanted` bytes, and does not fit.

    `number` is the system's own; 0 bytes are an unknown number.
    """
    where, mend = "on its disk", "make room, or name another path"
    found = _free_bytes(path)
    if number == errno.EFBIG:
        where, found = "in a file of this file system", min(found, max(0, wanted - 1))
        if _largest_file() < sys.maxsize:
            where, mend = "under this process's limit of a file's size", "raise it (ulimit -f)"
            found = _largest_file()
    elif number != errno.ENOSPC:
        where = "in a quota"
    if wanted <= found:
        # What is free has changed meanwhile; or nobody knows what was wanted, but a byte more.
        wanted, found = (wanted, wanted - 1) if wanted else (found + 1, found)
    return OSError(
        number,
        f"{os.fspath(path)}: expected room for at least {wanted:,} bytes {where}, found {found:,} "
        f"({wanted - found:,} missing); {mend}.",
    )


def _free_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that are free where `path` is, or would be."""
    try:
        found = shutil.disk_usage(os.path.dirname(os.path.realpath(path)))
    except OSError:
        return sys.maxsize
    return found.free if found.total else sys.maxsize  # some file systems do not know


def _largest_file() -> int:
    limit = -1 if resource is None else resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return sys.maxsize if limit == -1 else limit


# Whole or not at all ------------------------------------------------------------------------------


def write_whole(
    path: str | os.PathLike[str], write: Callable[[Path], object], size: int = 0
) -> None:
    """Call ``write(temporary_path)`` beside `path`, flush to disk, then rename to `path`.

    A crash leaves the old file, or none, and a failed write leaves nothing behind. Links are
    followed. A file that is replaced bequeaths its mode and, where the system permits, its owner;
    a new one has the mode of any new file. What a killed process left in the folder is removed.

    `size` are the bytes to be written, as far as they are known: where there is no room for them,
    nothing is tried. A disk that is full, before or at last, is the OSError of :func:`room_error`.
    """
    target = check_writable(path)
    check_room(path, size)
    remove_leftovers(target.parent)
    with said_of(path, size), private_folder(target.parent) as folder:
        temporary = folder / "whole"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        # A writer that replaces the file by its own, as safetensors does, loses the mode.
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            write(temporary)
        except OSError as error:
            if error.errno is None or error.errno not in NO_ROOM or isinstance(error, CutShort):
                raise
            written = temporary.stat().st_size if temporary.exists() else 0
            raise CutShort(error.errno, written + 1) from error
        try:
            _bequeath(target, temporary, mode)
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise CutShort(error.errno or 0, 0) from error


@contextmanager
def said_of(path: str | os.PathLike[str], size: int = 0) -> Iterator[None]:
    """Say of `path` what goes wrong when it is written, and of no temporary file.

    Errors that are not about writing, such as of what is read meanwhile, stay as they are.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        met = error
        if told := re.search(r"\(os error (\d+)\)", str(error)):
            met = CutShort(int(told[1]), 0)
        if not isinstance(met, OSError):
            raise
        if (number := met.errno or 0) in NO_ROOM:
            raise room_error(path, number, max(size, getattr(met, "wanted", 0))) from error
        if isinstance(met, CutShort) or _TEMPORARY.search(str(met.filename)):
            raise _unwritten(path, met) from error
        raise


def _bequeath(old: Path, new: Path, mode: int) -> None:
    """Give a file the mode and, as far as permitted, the owner of the one it replaces.

    Where there is none it has `mode`.
    """
    with suppress(FileNotFoundError):
        found = os.stat(old)
        mode = stat.S_IMODE(found.st_mode)
        if hasattr(os, "chown"):
            for owner in (found.st_uid, -1):
                with suppress(OSError):  # only the administrator gives files away
                    os.chown(new, owner, found.st_gid)
                    break
            if new.stat().st_gid != found.st_gid:  # what its group may, another may not
                mode &= ~0o070 | (mode & 0o007) << 3
    new.chmod(mode)


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Make a folder for temporary files, which no other user reads; remove it with its files.

    It is locked while it is used, so that others can tell whether its process lives.
    """
    while True:
        folder = parent / f".skatr_sk-{_host()}-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = _Lock(folder)
        # Before it was locked, somebody may have taken it for a dead process's.
        if not lock.taken and folder.exists():
            break
        _remove(folder)
        lock.close()
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of processes that were killed.

    Ours are known by their names and owner. Those of this computer whose lock is free are dead;
    where locks do not tell, those in which nothing has changed for a day.
    """
    try:
        found = [one for one in os.scandir(parent) if _TEMPORARY.fullmatch(one.name)]
    except OSError as error:
        _LOGGER.info("%s cannot be searched for leftovers (%s).", parent, error)
        return
    for one in found:
        folder, lock = Path(one.path), _Lock(one.path)
        with suppress(OSError):  # its process has finished meanwhile
            state = folder.lstat()
            mine = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
            changes = [state.st_mtime, *(inner.lstat().st_mtime for inner in folder.iterdir())]
            here = lock.held and one.name.split("-")[1] == _host()
            old = time.time() - max(changes) > _ABANDONED
            if stat.S_ISDIR(state.st_mode) and mine and not lock.taken and (here or old):
                _LOGGER.info("Removing %s, which a killed process left.", folder)
                _remove(folder)
        lock.close()


def _remove(folder: Path) -> None:
    """Remove a temporary folder, as far as possible: what stays is a leftover."""
    with suppress(OSError):
        for inner in folder.iterdir():
            inner.unlink(missing_ok=True)
        folder.rmdir()


def _host() -> str:
    """Stand for this computer: a lock on a shared disk may be seen on its own computer only."""
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


class _Lock:
    """A lock on a folder, `held` here or `taken` by another; neither where there are no locks.

    It is given up when it is closed, or forgotten.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._descriptor: int | None = None
        self.taken = False
        if fcntl is None:
            return
        try:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.taken = isinstance(error, BlockingIOError)
            self.close()

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = close
