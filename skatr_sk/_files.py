"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_writable", "write_whole"]


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
