"""Whether a file is still as it was when the digests of its rows were written into it."""

from __future__ import annotations

import logging
import os

import h5py
import numpy as np

from skatr_sk.lightcones.files import Stamp

__all__ = ["is_sealed", "seal"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
_WRITTEN = "written"  # attribute of the index: size and time of change of the finished file


def seal(path: str | os.PathLike[str], index: str) -> None:
    """Note a finished file's size and time of change with its index.

    As long as both hold, the index is believed without reading what it is of. Whoever writes to
    the file breaks the seal, and so does a copy that gets a new time: digests are then computed
    from the values, once. The time is set to whole seconds, which archives keep and no later
    writer happens to leave.

    Parameters
    ----------
    path : path
        Of an HDF5 file that is closed.
    index : str
        Dataset of the digests.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "cones.h5")
    >>> with h5py.File(path, "w") as file:
    ...     file["row_digest"] = np.zeros((2, 16), dtype=np.uint8)
    >>> seal(path, "row_digest")
    >>> found = os.stat(path)
    >>> with h5py.File(path) as file:
    ...     is_sealed(file["row_digest"], (found.st_size, found.st_mtime_ns, found.st_ino))
    True
    """
    time = os.stat(path).st_mtime_ns // 10**9 * 10**9
    for _ in range(2):  # with the attribute the file has its final size
        size = os.stat(path).st_size
        with h5py.File(path, "r+") as file:
            file[index].attrs[_WRITTEN] = np.array([size, time], dtype=np.int64)
    try:
        os.utime(path, ns=(time, time))
    except OSError as error:  # some shared folders set no times
        _LOGGER.info("%s stays unsealed (%s): its rows are digested when asked for.", path, error)


def is_sealed(index: h5py.Dataset, stamp: Stamp) -> bool:
    """Say whether a file has the size and the time of change that were noted with its index.

    Parameters
    ----------
    index : h5py.Dataset
        Of the digests.
    stamp : Stamp
        Of the file as it is now.
    """
    return tuple(np.ravel(index.attrs.get(_WRITTEN, ())).tolist()) == stamp[:2]
