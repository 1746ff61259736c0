"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_regular", "check_writable", "write_whole"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "no file")
        raise OSError(
            f"{os.fspath(path)}: expected a regular file, found {what}; name another path."
        )
    return found


def check_writable(path: Path) -> None:
    """Refuse a path that is a folder, or that lies in one that does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {path}: the folder {path.parent} does not exist; create it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder; name a file inside it.")


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call ``write(temporary_path)`` beside `path`, flush to disk, then rename to `path`.

    A crash leaves the old file, or none, and a failed write leaves nothing behind.
    """
    path = Path(path)
    check_writable(path)
    # A name that nobody else has, and the permissions of any new file: tempfile's are its owner's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = stat.S_IMODE(temporary.stat().st_mode)
    try:
        write(temporary)
        # A writer that replaces the file by its own, as safetensors does, loses the permissions.
        temporary.chmod(permissions)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
