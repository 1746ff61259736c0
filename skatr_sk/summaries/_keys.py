"""The keys of the cache: digests of light cones, found with as little reading as can be."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from skatr_sk._rows import digest_rows
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.summaries.cache import compute_once

__all__ = ["find_keys"]

_SPACE = hashlib.blake2b(b"digests of light cones in files", digest_size=16).digest()
_NUMBERS = 4  # of float32 that the 16 bytes of a digest are kept as, bit by bit


def find_keys(fields: Any, folder: str | os.PathLike[str] | None) -> list[bytes]:
    """Digests of fields, the cache's keys; those of files that carry none are read once.

    A process remembers the digest of a row of a file that has not changed since. Where the cache
    is a folder they are kept there as well, by path, stamp and row, so that of all processes one
    reads a file to know its keys.

    Parameters
    ----------
    fields : ndarray or LightconeArray of shape (n, *field_shape)
    folder : path or None
        Of the cache, where it has one.

    Returns
    -------
    list of bytes
        Of length 16, see :func:`skatr_sk._rows.digest`.

    Raises
    ------
    OSError, ValueError
        When a file is not what it was, as for :meth:`LightconeArray.row_digests`.

    Examples
    --------
    >>> import os, tempfile
    >>> from skatr_sk import open_lightcones
    >>> folder = tempfile.mkdtemp()
    >>> np.save(os.path.join(folder, "signals.npy"), np.arange(6.0).reshape(2, 3))
    >>> X = open_lightcones(os.path.join(folder, "signals.npy")).data
    >>> find_keys(X, os.path.join(folder, "cache")) == digest_rows(np.arange(6.0).reshape(2, 3))
    True
    """
    if folder is None or not isinstance(fields, LightconeArray):
        return digest_rows(fields)
    places = fields.undigested()
    if len(places):
        unknown = fields[places]

        def compute(rows: np.ndarray) -> np.ndarray:
            digests = b"".join(unknown[rows].row_digests())
            return np.frombuffer(digests, dtype=np.float32).reshape(-1, _NUMBERS)

        found = compute_once(
            unknown.identities(),
            compute,
            space=_SPACE,
            shape=(_NUMBERS,),
            group=unknown.rows_at_once,
            folder=folder,
            what="digests",
        )
        fields.remember(places, [values.tobytes() for values in found])
    return fields.row_digests()
