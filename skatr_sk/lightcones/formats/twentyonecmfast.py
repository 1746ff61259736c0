"""Light-cone files of 21cmFAST, versions 3 and 4, read without 21cmFAST.

Version 3 writes the groups ``user_params``, ``cosmo_params``, ``flag_options``, ``astro_params``
and ``_globals``, their values as attributes, and, from 3.4 on, ``distances``; version 4 puts them
into ``InputParameters`` and writes ``lightcone_distances``, with buffer slices at both ends that
its redshift-space distortions needed. Both have the fields in ``lightcones``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5g

from skatr_sk._checks import listed
from skatr_sk._files import stamp_of
from skatr_sk.lightcones.formats.hdf5 import Stored, attribute, find, said_of_cells, scalars
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    Fault,
    FileMetadata,
    bytes_on_disk,
    check_cells,
    take_seeds,
    take_unit,
)
from skatr_sk.lightcones.formats.tables import sight_comes_first
from skatr_sk.lightcones.sources import BRIGHTNESS, Hdf5Source
from skatr_sk.parameters import PARAMETER_UNITS, PARAMETERS
from skatr_sk.simulator.cosmology import HUBBLE, OMEGA_M, comoving_distances, redshifts_at

__all__ = ["is_simulation", "look_into_simulation", "refuse_cache"]

# What the cache of 21cmFAST holds, and its coeval files: boxes at one redshift.
_BOXES: tuple[str, ...]
_BOXES = ("InitialConditions", "PerturbedField", "PerturbHaloField", "HaloField", "HaloCatalog")
_BOXES += ("PerturbedHaloCatalog", "PerturbHaloCatalog", "HaloBox", "XraySourceBox", "TsBox")
_BOXES += ("IonizedBox", "BrightnessTemp")
_WITH_RSDS = "brightness_temp_with_rsds"
_GROUPS_3 = ("user_params", "cosmo_params", "flag_options", "astro_params", "_globals")
_LARGEST_LOGARITHM = 100.0


def refuse_cache(file: h5py.File) -> None:
    """Name a file of 21cmFAST's cache, or of a coeval box, for what it is: a Fault."""
    boxes = [name for name in _BOXES if isinstance(find(file.id, name), h5g.GroupID)]
    if boxes and find(file.id, "lightcones") is None:
        what = f"21cmFAST wrote it to its cache or for a coeval box ({', '.join(boxes)})"
        raise Fault("no light cone", f"{what}; light cones are what LightCone.save writes")


def is_simulation(file: h5py.File) -> bool:
    """Tell whether a file is one light cone of 21cmFAST, by its inputs."""
    if not isinstance(find(file.id, "lightcones"), h5g.GroupID):
        return False
    return any(find(file.id, name) is not None for name in ("InputParameters", *_GROUPS_3))


def look_into_simulation(
    path: str, found: os.stat_result, file: h5py.File, field: str | None
) -> FileMetadata:
    """Find out what a light-cone file of 21cmFAST holds: one cone, of the brightness by default.

    What is found has every number of the input by 21cmFAST's own name, and offers those of the six
    parameters that the simulation made use of (no ``m_WDM`` without a cut of the power spectrum,
    no ``zeta`` and ``log10_T_vir`` where the efficiency depends on the halo's mass). `found` is
    the state of the file.
    """
    asked, field = field, (field or BRIGHTNESS).removeprefix("lightcones/")
    box = find(file.id, f"lightcones/{field}")
    if not isinstance(box, Stored):
        has = listed(name.decode() for name in find(file.id, "lightcones")) or "none"
        raise Fault("missing", f"no dataset lightcones/{field}; it has {has}")
    n_bytes = bytes_on_disk(path, found)
    dtype = box.check("cells", n_bytes, box.shape)
    group = find(file.id, "InputParameters")
    new = group is not None
    if new and not isinstance(group, h5g.GroupID):
        raise Fault("missing", "InputParameters is no group of this file")
    group = group if new else file.id
    inputs, own = _inputs(group, new), scalars(file.id)
    buffers = ("lowz_buffer_pixels", "highz_buffer_pixels")
    low, high = (_whole(own, name) or 0 if new else 0 for name in buffers)
    if box.ndim == 2:
        what = f"lightcones/{field} of shape {box.shape}, (n_pixels, n_slices): an AngularLightcone"
        raise Fault("shape", f"{what} is not supported; run 21cmFAST with a RectilinearLightconer")
    n_z = box.shape[-1] - low - high if box.ndim == 3 else 0
    if n_z < 1:
        has = f"lightcones/{field} has shape {box.shape} and {low} + {high} buffer slices"
        raise Fault("shape", f"{has}; expected two sky axes and a line of sight")
    check_cells(box.shape, dtype, one=True)
    box.check_no_holes(path, box.shape)
    _check_finished(_table(group, "node_redshifts"), own, n_bytes, new)
    omega_m, hubble = inputs.get("OMm", OMEGA_M), inputs.get("hlittle", HUBBLE)
    if not (0 < omega_m < math.inf and 0 < hubble < math.inf):
        given = f"OMm = {omega_m}, hlittle = {hubble}"
        raise Fault("parameters", f"a cosmology of {given}; expected numbers above 0")
    distances = _distances(file.id, n_bytes, own, inputs, box.shape)
    if distances[0] > distances[-1]:  # stored far first, with the buffers exchanged
        low, high = high, low
    distances = distances[low : low + n_z]
    steps = np.diff(distances)
    sane = np.isfinite(distances).all() and distances.min() >= 0
    if not (sane and ((steps > 0).all() or (steps < 0).all())):
        raise Fault("grid", "distances that are not numbers of Mpc from near to far, rising")
    seed = _whole(scalars(group) if new else own, "random_seed", least=-(2**63))
    six = _six(inputs)
    shape = (*box.shape[:-1], n_z)
    layout: dict[str, Any] = {"first": low, "dataset": box.name, "single": True}
    source = Hdf5Source(path, stamp_of(found), 1, shape, dtype.str, **layout)
    return FileMetadata(
        source,
        parameters={name: np.array([value]) for name, value in (inputs | six).items()},
        units=dict(PARAMETER_UNITS),
        redshifts=redshifts_at(distances, omega_m, hubble)[None].astype(np.float32),
        seeds=None if seed is None else take_seeds(np.array([seed])),
        cell_size=(*_sky(inputs), float(np.abs(np.median(steps))) if n_z > 1 else None),
        offered=tuple(six),
        unit=take_unit(said_of_cells(box.id, find(file.id, "lightcones"), file.id))
        if field in CELLS
        else None,
        writer=f"21cmFAST {4 if new else 3}",
        note=_of_two_fields(file, asked),
    )


def _sky(inputs: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Comoving size of a cell across the sky, in Mpc, where the inputs say it."""
    length, cells = inputs.get("BOX_LEN", 0), inputs.get("HII_DIM", 0)
    size = length / cells if 0 < length < math.inf and 0 < cells < math.inf else None
    return size, size


def _of_two_fields(file: h5py.File, asked: str | None) -> str:
    """Say which brightness is taken where a file has two, and nobody has asked for one."""
    if asked is not None or find(file.id, f"lightcones/{_WITH_RSDS}") is None:
        return ""
    return (
        f"{BRIGHTNESS} was taken, which every file of 21cmFAST has; {_WITH_RSDS}, which is there "
        f"too and has the redshift-space distortions of an observed sky, is dataset={_WITH_RSDS!r}"
    )


def _whole(attributes: Mapping[str, float | None], name: str, least: int = 0) -> int | None:
    """Return a whole number among the attributes; what else goes by its name is a Fault."""
    if name not in attributes:
        return None
    value = attributes[name]
    if not isinstance(value, int) or value < least:
        found = "none" if value is None else value
        raise Fault("parameters", f"{name}: expected a whole number >= {least}, found {found}")
    return value


def _inputs(group: Any, new: bool) -> dict[str, float]:
    """All numbers among the inputs, flags as 0 and 1, by 21cmFAST's names; texts are left out."""
    found: dict[str, float | None] = {}
    model = None
    if new:  # some writers put them there without groups
        found |= {k: v for k, v in scalars(group).items() if k != "random_seed"}
        model = attribute(group, "SOURCE_MODEL")
    for name in [link.decode() for link in group] if new else _GROUPS_3:
        inputs = find(group, name)
        if isinstance(inputs, h5g.GroupID):
            new_ones = scalars(inputs)
            found |= new_ones
            if "SOURCE_MODEL" in new_ones:
                model = attribute(inputs, "SOURCE_MODEL")
    if isinstance(model, str):  # from 4.1 on, instead of a flag
        found["USE_MASS_DEPENDENT_ZETA"] = model != "CONST-ION-EFF"
    return {name: float(value) for name, value in found.items() if value is not None}


def _six(inputs: Mapping[str, float]) -> dict[str, float]:
    """Return those of the six parameters that made a difference to the simulation."""
    unused = set() if inputs.get("P_CUTOFF") else {"m_WDM"}
    if inputs.get("USE_MASS_DEPENDENT_ZETA"):
        unused |= {"log10_T_vir", "zeta"}
    six = {}
    for parameter in PARAMETERS:
        value = inputs.get(parameter.attribute)
        if value is None or parameter.name in unused:
            continue
        # Stored as logarithms; no logarithm is as large as what it is the logarithm of.
        if parameter.logarithmic and _LARGEST_LOGARITHM < value < math.inf:
            value = math.log10(value)
        six[parameter.name] = value
    return six


def _table(at: Any, name: str) -> Stored | None:
    """Dataset of a name, or None; a Fault where something else goes by it."""
    found = find(at, name)
    if found is None or isinstance(found, Stored):
        return found
    raise Fault("missing", f"{name} is no dataset")


def _check_finished(
    nodes: Stored | None, own: Mapping[str, float | None], n_bytes: int, new: bool
) -> None:
    """Refuse a light cone that a run has left half-way; `own` are the attributes of the file."""
    if nodes is None or not nodes.ndim:
        return
    n = nodes.shape[0]
    if new:
        # -1 is a light cone that was saved at once, at the end.
        done = _whole(own, "last_completed_node", least=-1)
        if done is not None and 0 <= done < n - 1:
            raise Fault("unfinished", f"{done + 1} of {n} redshift nodes were computed")
        return
    reached = own.get("current_redshift")
    if reached is not None and n:
        nodes.check("node_redshifts", n_bytes)
        end = float(np.min(nodes.read()))
        if not reached <= end * (1 + 1e-3):
            raise Fault("unfinished", f"computed down to redshift {reached:.2f}, not {end:.2f}")


def _distances(
    at: Any,
    n_bytes: int,
    own: Mapping[str, float | None],
    inputs: Mapping[str, float],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Comoving distances of the slices in Mpc; `own` are the attributes of the file."""
    n = shape[-1]
    omega_m, hubble = inputs.get("OMm", OMEGA_M), inputs.get("hlittle", HUBBLE)
    for name in ("lightcone_distances", "distances", "lightcone_redshifts", "redshifts"):
        table = _table(at, name)
        if table is not None:
            what = name.rpartition("_")[2]
            table.check(what, n_bytes)
            if table.shape != (n,):
                for axis in (0, 1):
                    if table.shape == (shape[axis],):
                        raise sight_comes_first(f"the {what} lie along", shape, axis)
                raise Fault("grid", f"{what} of shape {table.shape}; expected ({n},)")
            values = table.read().astype(np.float64)
            if what == "distances":
                return values
            if not (np.isfinite(values).all() and values.min() >= 0):
                raise Fault("grid", "redshifts that are not numbers from 0 on")
            return comoving_distances(values, omega_m, hubble)
    # Before 3.4: the first slice lies at the light cone's redshift, the others a cell apart.
    z, length, cells = own.get("redshift"), inputs.get("BOX_LEN"), inputs.get("HII_DIM")
    if not (z and length and cells and z > 0 and length > 0 and cells > 0):
        given = f"redshift {z}, BOX_LEN {length} and HII_DIM {cells}"
        raise Fault("missing", f"neither distances nor what would give them: found {given}")
    with np.errstate(all="ignore"):  # what is not finite is refused
        return comoving_distances(z, omega_m, hubble) + length / cells * np.arange(n)
