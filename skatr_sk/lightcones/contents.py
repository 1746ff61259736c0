"""What one file of light cones holds: a stack in HDF5 or .npy, or the SKATR authors' .npz."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from skatr_sk.lightcones.files import (
    CHANGED,
    Hdf5Source,
    NpySource,
    NpzSource,
    Source,
    stamp_of,
)
from skatr_sk.lightcones.seal import is_sealed

__all__ = [
    "INDEX",
    "SIX",
    "UNITS",
    "VOXELS",
    "Contents",
    "Fault",
    "check_own",
    "look_into_npy",
    "look_into_npz",
    "look_into_stack",
]

# The six parameters of the paper, in its order (and that of the labels in its files).
SIX = ("m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta")
UNITS = dict(zip(SIX, ("keV", "", "eV", "log10(erg/s/(Msun/yr))", "log10(K)", ""), strict=True))
INDEX = "row_digest"
VOXELS = "brightness_temp"
# Names that datasets go by, the first that is found counts.
_VOXELS = (VOXELS, "data", "lightcones", "images", "image", "X", "x")
_TARGETS = ("parameters", "target", "targets", "labels", "label", "params", "theta", "y")
_REDSHIFTS = ("redshifts", "lightcone_redshifts", "redshift", "z")
_SEEDS = ("seed", "seeds", "random_seed")


class Fault(Exception):
    """What is wrong with a file or a row of it.

    Parameters
    ----------
    kind : str
        One word, for the report.
    detail : str
        What was found, and what was expected.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass
class Contents:
    """Rows of one file and what is known of them, without their voxels.

    Parameters
    ----------
    source : Source
    parameters : dict of str to ndarray of shape (n_rows,)
        By name, in the order of the file.
    units : dict of str to str
    redshifts : ndarray of shape (n_rows, n_z) or None
    seeds : ndarray of int64, shape (n_rows,), or None
    cell : float or None
        Mpc (comoving) between slices.
    bounds : ndarray of shape (n_parameters, 2) or None
    flat : bool
        The one parameter is stored without an axis of its own.
    offered : tuple of str
        Parameters that make the target where none are asked for by name.
    """

    source: Source
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    redshifts: np.ndarray | None = None
    seeds: np.ndarray | None = None
    cell: float | None = None
    bounds: np.ndarray | None = None
    flat: bool = False
    offered: tuple[str, ...] = ()


def look_into_npz(path: str, key: str | None) -> Contents:
    """One cone and its parameters, as the authors of SKATR store them."""
    stamp = stamp_of(path)
    with np.load(path, allow_pickle=False) as arrays:
        key = key or next((name for name in _VOXELS if name in arrays), None)
        if key is None or key not in arrays:
            found = ", ".join(arrays.files)
            raise Fault("missing", f"no array {key or 'image'!r}; it has {found or 'none'}")
        shape, dtype = _header(arrays, key)
        _check_numbers(shape, dtype, least=1)
        source = NpzSource(path, stamp, 1, shape, dtype.str, key=key)
        label = next((arrays[name] for name in _TARGETS if name in arrays), None)
    contents = Contents(source)
    if label is not None:
        if label.ndim > 1:
            raise Fault(
                "shape",
                f"a label of shape {label.shape}; expected ({label.size},), the parameters of one "
                "light cone",
            )
        _take_targets(contents, np.atleast_1d(label)[None], None, None)
    return contents


def _header(arrays: Any, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in an open .npz, without its values."""
    with arrays.zip.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


def look_into_npy(path: str) -> Contents:
    """Many fields in one array, and nothing beside them.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "signals.npy")
    >>> np.save(path, np.zeros((3, 8)))
    >>> look_into_npy(path).source.field_shape
    (8,)
    """
    stamp = stamp_of(path)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_numbers(mapped.shape, mapped.dtype, least=2)
    return Contents(
        NpySource(
            path,
            stamp,
            len(mapped),
            mapped.shape[1:],
            mapped.dtype.str,
            offset=mapped.offset,
            fortran=not mapped.flags.c_contiguous,
        )
    )


def look_into_stack(path: str, file: h5py.File, name: str | None) -> Contents:
    """Many cones in one dataset, with others beside it that have as many rows."""
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda k, v: found.update({k: v}) if isinstance(v, h5py.Dataset) else None)
    voxels = found[name] if name in found else _find_voxels(found, name)
    _check_numbers(voxels.shape, voxels.dtype, least=2)
    check_own(voxels, file)
    n = len(voxels)
    index = _index_of(found, voxels)
    stamp = stamp_of(path)
    source = Hdf5Source(
        path,
        stamp,
        n,
        voxels.shape[1:],
        voxels.dtype.str,
        dataset=voxels.name,
        index=None if index is None else index.name,
        sealed=index is not None and is_sealed(index, stamp),
    )
    contents = Contents(source)
    targets = _beside(found, _TARGETS, voxels, ranks=(1, 2))
    if targets is not None:
        check_own(targets, file)
        attributes = targets.attrs
        values = targets[:]
        contents.flat = values.ndim == 1
        _take_targets(
            contents,
            # An axis is added where there is none, and nothing else: a table of another shape
            # is a mistake that must not be cut into rows.
            values[:, None] if contents.flat else values,
            _texts(attributes.get("names")),
            _texts(attributes.get("units")),
        )
        contents.bounds = _array_or_none(attributes.get("bounds"))
        width = len(contents.parameters)
        if contents.bounds is not None and contents.bounds.shape != (width, 2):
            found_shape = contents.bounds.shape
            raise Fault("parameters", f"bounds of shape {found_shape}; expected ({width}, 2)")
    redshifts = _beside(found, _REDSHIFTS, voxels, ranks=(1, 2))
    n_z = voxels.shape[-1]
    if redshifts is not None:
        check_own(redshifts, file)
        if redshifts.shape not in ((n_z,), (n, n_z)):
            detail = f"redshifts of shape {redshifts.shape}; expected ({n_z},) or ({n}, {n_z})"
            raise Fault("shape", detail)
        # One grid for all cones, or one for each.
        contents.redshifts = np.broadcast_to(redshifts[:], (n, n_z))
    seeds = _beside(found, _SEEDS, voxels, ranks=(1, 2))
    if seeds is not None:
        check_own(seeds, file)
        if seeds.shape != (n,) or seeds.dtype.kind not in "iu":
            detail = f"seeds of shape {seeds.shape} and type {seeds.dtype}; expected {n} integers"
            raise Fault("shape", detail)
        contents.seeds = seeds[:].astype(np.int64)
    cell = voxels.attrs.get("cell_mpc")
    contents.cell = None if cell is None else float(np.atleast_1d(cell)[-1])
    return contents


def check_own(dataset: h5py.Dataset, file: h5py.File) -> None:
    """Refuse values that lie in other files, whose loss or change nobody would notice.

    HDF5 reads zeros where a virtual dataset's source is gone, and says nothing.
    """
    if dataset.is_virtual:
        others = [source.file_name for source in dataset.virtual_sources()]
    elif dataset.external:
        others = [os.fsdecode(name) for name, _, _ in dataset.external]
    else:
        others = [] if dataset.file.filename == file.filename else [dataset.file.filename]
    if set(others) - {"."}:
        more = f" and {len(set(others)) - 1} more" if len(set(others)) > 1 else ""
        raise Fault(
            "elsewhere",
            f"{dataset.name} has its values in other files ({others[0]}{more}), and were one of "
            "them lost, HDF5 would read zeros. Open a list of those files themselves, or copy the "
            "values into one file with save_lightcones",
        )


def _index_of(found: dict[str, h5py.Dataset], voxels: h5py.Dataset) -> h5py.Dataset | None:
    """Return the index, where there is one and it is of these voxels and not of others."""
    index = found.get(INDEX)
    if index is None or index.attrs.get("dataset", VOXELS) != voxels.name.strip("/"):
        return None
    if index.shape != (len(voxels), 16) or index.dtype != np.uint8:
        raise Fault(
            "digest",
            f"an index of row digests of shape {index.shape} and type {index.dtype}; expected "
            f"({len(voxels)}, 16) and uint8. {CHANGED}",
        )
    return index


def _find_voxels(found: dict[str, h5py.Dataset], name: str | None) -> h5py.Dataset:
    """Take the dataset of a known name, or the only one that looks like fields."""
    listed = ", ".join(f"{k} {v.shape}" for k, v in sorted(found.items())) or "none"
    if name is not None:
        raise Fault("missing", f"no dataset {name!r}; it has {listed}")
    fields = {k: v for k, v in found.items() if v.ndim >= 2 and v.dtype.kind in "fiu"}
    for known in _VOXELS:
        if known in fields:
            return fields[known]
    others = {*_TARGETS, *_REDSHIFTS, *_SEEDS, INDEX}
    left = {k: v for k, v in fields.items() if k.split("/")[-1] not in others}
    # Fields have more axes than tables of parameters or redshifts.
    rank = max((v.ndim for v in left.values()), default=0)
    left = {k: v for k, v in left.items() if v.ndim == rank}
    if len(left) != 1:
        what = "no dataset that looks like light cones" if not left else "several that could be"
        raise Fault("missing", f"{what}; name it with dataset=. It has {listed}")
    return next(iter(left.values()))


def _beside(
    found: dict[str, h5py.Dataset],
    names: Sequence[str],
    voxels: h5py.Dataset,
    ranks: tuple[int, ...],
) -> h5py.Dataset | None:
    """Return the dataset of one of these names beside the voxels, if there is one."""
    folder = voxels.name.rpartition("/")[0].strip("/")
    for name in names:
        for path in (f"{folder}/{name}".strip("/"), name):
            candidate = found.get(path)
            if candidate is not None and candidate.ndim in ranks and candidate.name != voxels.name:
                return candidate
    return None


def _take_targets(
    contents: Contents, values: np.ndarray, names: list[str] | None, units: list[str] | None
) -> None:
    n, width = values.shape
    if n != contents.source.n_rows:
        raise Fault("shape", f"{n} rows of parameters for {contents.source.n_rows} light cones")
    if values.dtype.kind not in "fiu":
        raise Fault("shape", f"parameters of type {values.dtype}; expected real numbers")
    if names is None:
        names = list(SIX) if width == len(SIX) else [f"parameter_{k}" for k in range(width)]
    if units is None:
        units = [UNITS.get(name, "") for name in names]
    if len(names) != width or len(units) != width:
        detail = f"{len(names)} names and {len(units)} units for {width} columns of parameters"
        raise Fault("parameters", detail)
    if len(set(names)) < width:
        raise Fault("parameters", f"the names {names}; expected no two alike")
    contents.parameters = {name: values[:, k].astype(np.float64) for k, name in enumerate(names)}
    contents.units = dict(zip(names, units, strict=True))
    contents.offered = tuple(names)


def _check_numbers(shape: tuple[int, ...], dtype: np.dtype, least: int) -> None:
    if dtype.kind not in "fiu":
        raise Fault("shape", f"voxels of type {dtype}; expected real numbers")
    if len(shape) < least or math.prod(shape) == 0:
        wanted = "(n, *field_shape)" if least == 2 else "that of one light cone"
        raise Fault("shape", f"voxels of shape {shape}; expected {wanted}, no axis of length 0")


def _texts(values: Any) -> list[str] | None:
    if values is None:
        return None
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(values)]


def _array_or_none(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values, dtype=np.float64)
