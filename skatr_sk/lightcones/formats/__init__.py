"""What files of light cones hold, one module for each kind of file."""

from __future__ import annotations

import os

from skatr_sk.lightcones.formats import hdf5
from skatr_sk.lightcones.formats.arrays import look_into_npy, look_into_npz
from skatr_sk.lightcones.formats.metadata import Fault, FileMetadata, Undecided
from skatr_sk.lightcones.formats.stacks import look_into_stack
from skatr_sk.lightcones.formats.twentyonecmfast import (
    is_simulation,
    look_into_simulation,
    refuse_cache,
)
from skatr_sk.lightcones.sources import explain, raise_if_out_of_handles

__all__ = ["Fault", "FileMetadata", "Undecided", "look_into"]


def look_into(
    path: str, found: os.stat_result, dataset: str | None = None, one: bool | None = None
) -> FileMetadata:
    """Find out what a file holds, from its layout alone; whatever is wrong with it is a Fault.

    `path` is absolute, `found` the state of the regular file that it names, `dataset` that of
    :func:`~skatr_sk.open_lightcones`, and `one` says whether the file is one cone. Undecided where
    it does not, and neither does the file.
    """
    try:
        if path.lower().endswith(".npz"):
            return look_into_npz(path, found, dataset, one)
        if path.lower().endswith(".npy"):
            if dataset is not None:
                raise Fault("missing", f"no dataset {dataset!r}: an .npy file has one array alone")
            return look_into_npy(path, found, one)
        with hdf5.opened(path) as file:
            if is_simulation(file):
                return look_into_simulation(path, found, file, dataset)
            if dataset is None:
                refuse_cache(file)
            return look_into_stack(path, found, file, dataset, one)
    except (Fault, Undecided):
        raise
    except Exception as error:  # readers raise all kinds on a file that is not what it says
        raise_if_out_of_handles(error, path)
        raise Fault("unreadable", explain(error)) from error
