"""A stack of light cones in an HDF5 file: one dataset of cones, and others beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from skatr_sk._checks import listed
from skatr_sk.lightcones.digests import INDEX, find_index
from skatr_sk.lightcones.formats.hdf5 import Stored, datasets
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    TARGETS,
    Fault,
    FileMetadata,
    bytes_on_disk,
    check_cells,
    take_seeds,
)
from skatr_sk.lightcones.sources import Hdf5Source, stamp_of

__all__ = ["look_into_stack"]

_REDSHIFTS = ("redshifts", "lightcone_redshifts", "redshift", "z")
_SEEDS = ("seed", "seeds", "random_seed")


def look_into_stack(
    path: str, found: os.stat_result, file: h5py.File, name: str | None
) -> FileMetadata:
    """Find out what an HDF5 file with a dataset of cones ``(n, *field_shape)`` holds.

    It is the dataset `name`, or one of a usual name, or the only one that could be it. `found` is
    the state of the file.
    """
    stored, n_bytes = datasets(file), bytes_on_disk(path, found)
    cells = stored[name] if name in stored else _find_cells(stored, name)
    dtype = cells.check("cells", n_bytes, cells.shape[1:])
    check_cells(cells.shape, dtype, least=2)
    cells.check_no_holes(path, cells.shape[1:])
    n, *field_shape = cells.shape
    n_z = field_shape[-1]
    try:
        index, sealed = find_index(stored, cells, n_bytes, stamp_of(found))
    except ValueError as error:
        raise Fault("digest", str(error)) from error
    layout: dict[str, Any] = {"index": index, "sealed": sealed, "dataset": cells.name}
    source = Hdf5Source(path, stamp_of(found), n, tuple(field_shape), dtype.str, **layout)
    metadata = FileMetadata(source)
    folder = cells.name.rpartition("/")[0].strip("/")

    def beside(names: Sequence[str]) -> Stored | None:
        """Return the table or list of one of these names beside the light cones, if any."""
        for path in (path for name in names for path in (f"{folder}/{name}".strip("/"), name)):
            table = stored.get(path)
            # What lies elsewhere was not asked for its axes.
            if table and (table.ndim in (1, 2) or table.elsewhere) and table.name != cells.name:
                return table
        return None

    if (targets := beside(TARGETS)) is not None:
        _take_targets(metadata, targets, n_bytes)
    if (redshifts := beside(_REDSHIFTS)) is not None:
        redshifts.check("redshifts", n_bytes)
        if redshifts.shape not in ((n_z,), (n, n_z)):
            detail = f"redshifts of shape {redshifts.shape}; expected ({n_z},) or ({n}, {n_z})"
            raise Fault("shape", detail)
        # One grid for all cones, or one for each.
        metadata.redshifts = np.broadcast_to(redshifts.read(), (n, n_z))
    if (seeds := beside(_SEEDS)) is not None:
        kind = seeds.check("seeds", n_bytes)
        if seeds.shape != (n,) or kind.kind not in "iu":
            detail = f"seeds of shape {seeds.shape} and type {kind}; expected {n} integers"
            raise Fault("shape", detail)
        metadata.seeds = take_seeds(seeds.read())
    cell_size = cells.attribute("cell_mpc")
    if cell_size is not None:
        metadata.cell_size = float(np.ravel(cell_size)[-1])
        if not 0 < metadata.cell_size < np.inf:
            raise Fault("grid", f"cell_mpc: expected sizes in Mpc, found {cell_size}")
    return metadata


def _find_cells(found: Mapping[str, Stored], name: str | None) -> Stored:
    """Take the dataset of a known name, or the only one that looks like fields."""
    has = listed((f"{k} {v.shape}" for k, v in sorted(found.items())), shown=8) or "none"
    if name is not None:
        raise Fault("missing", f"no dataset {name!r}; it has {has}")
    # What lies elsewhere was not asked what it is.
    fields = {
        k: v for k, v in found.items() if v.elsewhere or (v.ndim >= 2 and v.dtype is not None)
    }
    if usual := [name for name in CELLS if name in fields]:
        return fields[usual[0]]
    others = {*TARGETS, *_REDSHIFTS, *_SEEDS, INDEX}
    left = {k: v for k, v in fields.items() if k.split("/")[-1] not in others}
    # Fields have more axes than tables of parameters or redshifts.
    rank = max((v.ndim for v in left.values()), default=0)
    left = {k: v for k, v in left.items() if v.ndim == rank}
    if len(left) != 1:
        what = "no dataset that looks like light cones" if not left else "several that could be"
        raise Fault("missing", f"{what}; name it with dataset=. It has {has}")
    return next(iter(left.values()))


def _take_targets(metadata: FileMetadata, targets: Stored, n_bytes: int) -> None:
    """Take the parameters, their names and units and their prior box."""
    targets.check("parameters", n_bytes)
    metadata.flat = targets.ndim == 1
    # An axis is added where there is none, and nothing else: a table of another shape is a
    # mistake that must not be cut into rows.
    width = 1 if metadata.flat else targets.shape[1]
    metadata.check_table(targets.shape[0], width)
    names, units = (_texts(name, targets.attribute(name)) for name in ("names", "units"))
    metadata.take_parameters(targets.read().reshape(-1, width), names, units)
    bounds = targets.attribute("bounds")
    if bounds is not None:
        box = np.asarray(bounds)
        if box.shape != (width, 2) or box.dtype.kind not in "fiu":
            raise Fault("parameters", f"bounds of shape {box.shape}; expected {(width, 2)} numbers")
        if np.isnan(box).any():
            raise Fault("parameters", f"bounds: expected numbers, found {box.tolist()}")
        metadata.target_bounds = box.astype(np.float64)


def _texts(name: str, values: Any) -> list[str] | None:
    if values is None or isinstance(values, list):
        return values
    if not isinstance(values, str):
        raise Fault("parameters", f"{name}: expected texts, found {values!r}")
    return [values]
