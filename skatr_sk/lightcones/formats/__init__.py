"""What files of light cones hold, one module for each kind of file."""

from __future__ import annotations

import os

from h5py import h5g

from skatr_sk.lightcones.formats import hdf5
from skatr_sk.lightcones.formats.arrays import look_into_npy, look_into_npz
from skatr_sk.lightcones.formats.metadata import Fault, FileMetadata
from skatr_sk.lightcones.formats.stacks import look_into_stack
from skatr_sk.lightcones.formats.twentyonecmfast import look_into_simulation
from skatr_sk.lightcones.sources import explain, raise_if_out_of_handles

__all__ = ["Fault", "FileMetadata", "look_into"]


def look_into(path: str, found: os.stat_result, dataset: str | None = None) -> FileMetadata:
    """Find out what a file holds, from its layout alone; whatever is wrong with it is a Fault.

    `path` is absolute, `found` the state of the regular file that it names, and `dataset` that of
    :func:`~skatr_sk.open_lightcones`.
    """
    try:
        if path.lower().endswith(".npz"):
            return look_into_npz(path, found, dataset)
        if path.lower().endswith(".npy"):
            if dataset is not None:
                raise Fault("missing", f"no dataset {dataset!r}: an .npy file has one array alone")
            return look_into_npy(path, found)
        with hdf5.opened(path) as file:
            if isinstance(hdf5.find(file.id, "lightcones"), h5g.GroupID):
                return look_into_simulation(path, found, file, dataset)
            return look_into_stack(path, found, file, dataset)
    except Fault:
        raise
    except Exception as error:  # readers raise all kinds on a file that is not what it says
        raise_if_out_of_handles(error, path)
        raise Fault("unreadable", explain(error)) from error
