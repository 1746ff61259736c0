"""Digests of light cones in files, shared by processes through the cache's folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np

from skatr_sk.summaries.cache import compute_once

__all__ = ["recall_in"]

_SPACE = hashlib.blake2b(b"digests of light cones in files", digest_size=16).digest()
_NUMBERS = 4  # of float32 that the 16 bytes of a digest are kept as, bit by bit
_CLAIMED = 64  # rows that a process digests at a time


def recall_in(
    folder: str | os.PathLike[str],
) -> Callable[[Sequence[bytes], Callable[[np.ndarray], list[bytes]]], list[bytes]]:
    """Return what finds digests in a folder, or computes and keeps them there.

    Of all processes that share the folder one reads a row that carries no digest.

    Examples
    --------
    >>> import tempfile
    >>> recall = recall_in(tempfile.mkdtemp())
    >>> recall([bytes(16)], lambda rows: [b"digest of a row."])
    [b'digest of a row.']
    """

    def recall(
        identities: Sequence[bytes], compute: Callable[[np.ndarray], list[bytes]]
    ) -> list[bytes]:
        def as_numbers(rows: np.ndarray) -> np.ndarray:
            joined = b"".join(compute(rows))
            return np.frombuffer(joined, dtype=np.float32).reshape(-1, _NUMBERS)

        found = compute_once(
            identities,
            as_numbers,
            space=_SPACE,
            shape=(_NUMBERS,),
            group=_CLAIMED,
            folder=folder,
            what="digests",
        )
        return [values.tobytes() for values in found]

    return recall
