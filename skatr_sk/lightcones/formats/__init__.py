"""What files of light cones hold, one module for each kind of file."""

from __future__ import annotations

import h5py

from skatr_sk.lightcones.formats.arrays import look_into_npy, look_into_npz
from skatr_sk.lightcones.formats.metadata import Fault, FileMetadata
from skatr_sk.lightcones.formats.stacks import look_into_stack
from skatr_sk.lightcones.formats.twentyonecmfast import look_into_simulation
from skatr_sk.lightcones.sources import DAMAGED

__all__ = ["Fault", "FileMetadata", "look_into"]


def look_into(path: str, dataset: str | None = None) -> FileMetadata:
    """Find out what a file holds, from its layout alone; whatever is wrong with it is a Fault.

    `path` is absolute, and `dataset` is that of :func:`~skatr_sk.open_lightcones`.
    """
    try:
        if path.lower().endswith(".npz"):
            return look_into_npz(path, dataset)
        if path.lower().endswith(".npy"):
            if dataset is not None:
                raise Fault("missing", f"no dataset {dataset!r}: an .npy file has one array alone")
            return look_into_npy(path)
        with h5py.File(path, "r") as file:
            if isinstance(file.get("lightcones"), h5py.Group):
                return look_into_simulation(path, file, dataset)
            return look_into_stack(path, file, dataset)
    except FileNotFoundError as error:
        raise Fault("missing", "there is no such file") from error
    except DAMAGED as error:
        raise Fault("unreadable", str(error) or type(error).__name__) from error
