"""A stack of light cones in an HDF5 file: one dataset of cones, and others beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from skatr_sk.lightcones.digests import INDEX, find_index
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    TARGETS,
    Fault,
    FileMetadata,
    check_cells,
    refuse_elsewhere,
)
from skatr_sk.lightcones.sources import Hdf5Source, stamp_of

__all__ = ["look_into_stack"]

_REDSHIFTS = ("redshifts", "lightcone_redshifts", "redshift", "z")
_SEEDS = ("seed", "seeds", "random_seed")


def look_into_stack(path: str, file: h5py.File, name: str | None) -> FileMetadata:
    """Find out what an HDF5 file with a dataset of cones ``(n, *field_shape)`` holds.

    It is the dataset `name`, or one of a usual name, or the only one that could be it.
    """
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda k, v: found.update({k: v}) if isinstance(v, h5py.Dataset) else None)
    cells = found[name] if name in found else _find_cells(found, name)
    check_cells(cells.shape, cells.dtype, least=2)
    refuse_elsewhere(cells, file)
    n, n_z = len(cells), cells.shape[-1]
    stamp = stamp_of(path)
    try:
        index, sealed = find_index(found, cells, stamp)
    except ValueError as error:
        raise Fault("digest", str(error)) from error
    layout = {"index": index, "sealed": sealed, "dataset": cells.name}
    metadata = FileMetadata(Hdf5Source(path, stamp, n, cells.shape[1:], cells.dtype.str, **layout))
    folder = cells.name.rpartition("/")[0].strip("/")

    def beside(names: Sequence[str]) -> h5py.Dataset | None:
        """Return the table or list of one of these names beside the light cones, if any."""
        for path in (path for name in names for path in (f"{folder}/{name}".strip("/"), name)):
            dataset = found.get(path)
            if dataset is not None and dataset.ndim in (1, 2) and dataset.name != cells.name:
                refuse_elsewhere(dataset, file)
                return dataset
        return None

    if (targets := beside(TARGETS)) is not None:
        _take_targets(metadata, targets)
    if (redshifts := beside(_REDSHIFTS)) is not None:
        if redshifts.shape not in ((n_z,), (n, n_z)):
            detail = f"redshifts of shape {redshifts.shape}; expected ({n_z},) or ({n}, {n_z})"
            raise Fault("shape", detail)
        # One grid for all cones, or one for each.
        metadata.redshifts = np.broadcast_to(redshifts[:], (n, n_z))
    if (seeds := beside(_SEEDS)) is not None:
        if seeds.shape != (n,) or seeds.dtype.kind not in "iu":
            detail = f"seeds of shape {seeds.shape} and type {seeds.dtype}; expected {n} integers"
            raise Fault("shape", detail)
        metadata.seeds = seeds[:].astype(np.int64)
    cell_size = cells.attrs.get("cell_mpc")
    metadata.cell_size = None if cell_size is None else float(np.atleast_1d(cell_size)[-1])
    return metadata


def _find_cells(found: Mapping[str, h5py.Dataset], name: str | None) -> h5py.Dataset:
    """Take the dataset of a known name, or the only one that looks like fields."""
    listed = ", ".join(f"{k} {v.shape}" for k, v in sorted(found.items())) or "none"
    if name is not None:
        raise Fault("missing", f"no dataset {name!r}; it has {listed}")
    fields = {k: v for k, v in found.items() if v.ndim >= 2 and v.dtype.kind in "fiu"}
    if usual := [name for name in CELLS if name in fields]:
        return fields[usual[0]]
    others = {*TARGETS, *_REDSHIFTS, *_SEEDS, INDEX}
    left = {k: v for k, v in fields.items() if k.split("/")[-1] not in others}
    # Fields have more axes than tables of parameters or redshifts.
    rank = max((v.ndim for v in left.values()), default=0)
    left = {k: v for k, v in left.items() if v.ndim == rank}
    if len(left) != 1:
        what = "no dataset that looks like light cones" if not left else "several that could be"
        raise Fault("missing", f"{what}; name it with dataset=. It has {listed}")
    return next(iter(left.values()))


def _take_targets(metadata: FileMetadata, targets: h5py.Dataset) -> None:
    """Take the parameters, their names and units and their prior box."""
    values = targets[:]
    metadata.flat = values.ndim == 1
    # An axis is added where there is none, and nothing else: a table of another shape is a
    # mistake that must not be cut into rows.
    values = values[:, None] if metadata.flat else values
    names, units, bounds = (targets.attrs.get(name) for name in ("names", "units", "bounds"))
    metadata.take_parameters(values, _texts(names), _texts(units))
    if bounds is not None:
        metadata.target_bounds = np.asarray(bounds, dtype=np.float64)
        found, expected = metadata.target_bounds.shape, (len(metadata.parameters), 2)
        if found != expected:
            raise Fault("parameters", f"bounds of shape {found}; expected {expected}")


def _texts(values: Any) -> list[str] | None:
    if values is None:
        return None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(values)]
