"""Light cones in an HDF5 file: a dataset of cells, of one cone or a stack, and what lies beside."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
from h5py import h5a

from skatr_sk._checks import listed
from skatr_sk._files import stamp_of
from skatr_sk.grid import Grid
from skatr_sk.lightcones.digests import find_index
from skatr_sk.lightcones.formats.hdf5 import attribute, datasets, find, said_of_cells
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    GRID_REDSHIFTS,
    Fault,
    FileMetadata,
    bytes_on_disk,
    check_cells,
    take_unit,
)
from skatr_sk.lightcones.formats.tables import find_cells, is_one_cone, take_what_lies_beside
from skatr_sk.lightcones.sources import Hdf5Source
from skatr_sk.parameters import PARAMETER_NAMES

__all__ = ["look_into_stack"]

_FAR = 1e5  # Mpc, or a redshift


def look_into_stack(
    path: str, found: os.stat_result, file: h5py.File, name: str | None, one: bool | None = None
) -> FileMetadata:
    """Find out what an HDF5 file with a dataset of cones ``(n, *field_shape)``, or of one, holds.

    It is the dataset `name`, or one of a usual name, or the only one that could be it. `found` is
    the state of the file, and `one` says whether it is one cone, where that is known.
    """
    stored, n_bytes = datasets(file), bytes_on_disk(path, found)
    cells = find_cells(stored, name)
    # Whether this is one cone is not known yet: a row has three axes at most.
    dtype = cells.check("cells", n_bytes, cells.shape[-3:] if cells.ndim > 2 else ())
    ours = attribute(file.id, "skatr_sk_lightcones") is not None
    one = is_one_cone(cells, stored, one, ours=ours)
    row_shape = cells.shape if one else cells.shape[1:]
    dtype = cells.check("cells", n_bytes, row_shape)
    check_cells(cells.shape, dtype, one=one)
    cells.check_no_holes(path, row_shape)
    try:
        index, sealed = find_index(stored, cells, n_bytes, stamp_of(found))
    except ValueError as error:
        raise Fault("digest", str(error)) from error
    layout: dict[str, Any] = {"dataset": cells.name, "single": one}
    if not one:
        layout |= {"index": index, "sealed": sealed}
    n = 1 if one else cells.shape[0]
    metadata = FileMetadata(Hdf5Source(path, stamp_of(found), n, row_shape, dtype.str, **layout))
    if cells.name.rpartition("/")[2] in CELLS or name is None:
        folder = cells.name.rpartition("/")[0]
        around = [find(file.id, folder)] if folder.strip("/") else []
        metadata.unit = take_unit(said_of_cells(cells.id, *around, file.id))
    take_what_lies_beside(metadata, cells, stored, n_bytes, one, ours=ours)
    if ours and metadata.redshifts is None and (typical := stored.get(GRID_REDSHIFTS)) is not None:
        typical.check("redshifts", n_bytes)
        z = typical.read() if typical.shape == row_shape[-1:] else np.zeros(0)
        try:
            metadata.typical = Grid((None,), tuple(z.tolist())).redshifts
        except ValueError as error:
            expected = f"{row_shape[-1]} rising numbers >= 0"
            what = f"{typical.shape} ({error})"
            raise Fault("grid", f"{GRID_REDSHIFTS}: expected {expected}, found {what}") from error
    said = [k for k in PARAMETER_NAMES for at in (file.id, cells.id) if h5a.exists(at, k.encode())]
    if said and not metadata.parameters:
        mend = "save them as a dataset, parameters (n, n_parameters)"
        metadata.note = f"attributes are no labels, not read: {listed(said)}; {mend}"
    if (given := cells.attribute("cell_mpc")) is not None:
        sizes = np.ravel(given).astype(np.float64)
        if len(sizes) not in (1, len(row_shape)) or not ((sizes > 0) & (sizes < np.inf)).all():
            expected = f"a size in Mpc, or one for each of {len(row_shape)} axes"
            raise Fault("grid", f"cell_mpc: expected {expected}, found {given}")
        metadata.cell_size = tuple(np.broadcast_to(sizes, len(row_shape)).tolist())
    if (given := cells.attribute("grid_begins")) is not None:
        start = np.ravel(given).astype(np.float64)
        if len(start) != 2 or not ((start >= 0) & (start < _FAR)).all():
            expected = "a redshift and a distance in Mpc"
            raise Fault("grid", f"grid_begins: expected {expected}, found {given}")
        metadata.begins = float(start[0]), float(start[1])
    return metadata
