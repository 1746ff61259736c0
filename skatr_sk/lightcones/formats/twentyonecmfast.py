"""Light-cone files of 21cmFAST, versions 3 and 4, read without 21cmFAST.

Version 3 writes the groups ``user_params``, ``cosmo_params``, ``flag_options``, ``astro_params``
and ``_globals``, their values as attributes, and, from 3.4 on, ``distances``; version 4 puts them
into ``InputParameters`` and writes ``lightcone_distances``, with buffer slices at both ends that
its redshift-space distortions needed. Both have the fields in ``lightcones``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from skatr_sk.lightcones.formats.metadata import Fault, FileMetadata, check_cells, refuse_elsewhere
from skatr_sk.lightcones.sources import BRIGHTNESS, Hdf5Source, stamp_of
from skatr_sk.parameters import PARAMETER_UNITS, PARAMETERS
from skatr_sk.simulator.cosmology import HUBBLE, OMEGA_M, comoving_distances, redshifts_at

__all__ = ["look_into_simulation"]

_GROUPS_3 = ("user_params", "cosmo_params", "flag_options", "astro_params", "_globals")
_LARGEST_LOGARITHM = 100.0


def look_into_simulation(path: str, file: h5py.File, field: str | None) -> FileMetadata:
    """Find out what a light-cone file of 21cmFAST holds: one cone, of the brightness by default.

    What is found has every number of the input by 21cmFAST's own name, and offers those of the six
    parameters that the simulation made use of (no ``m_WDM`` without a cut of the power spectrum,
    no ``zeta`` and ``log10_T_vir`` where the efficiency depends on the halo's mass).
    """
    boxes = file["lightcones"]
    field = (field or BRIGHTNESS).removeprefix("lightcones/")
    box = boxes.get(field)
    if not isinstance(box, h5py.Dataset):
        has = ", ".join(boxes) or "none"
        raise Fault("missing", f"no dataset lightcones/{field}; it has {has}")
    refuse_elsewhere(box, file)
    new = "InputParameters" in file
    group = file["InputParameters"] if new else file
    inputs = _inputs(group, new)
    buffers = ("lowz_buffer_pixels", "highz_buffer_pixels")
    low, high = (int(file.attrs.get(name, 0)) if new else 0 for name in buffers)
    n_z = box.shape[-1] - low - high if box.ndim == 3 else 0
    if n_z < 1:
        found = f"lightcones/{field} has shape {box.shape} and {low} + {high} buffer slices"
        raise Fault("shape", f"{found}; expected two sky axes and a line of sight")
    check_cells(box.shape, box.dtype, least=3)
    _check_finished(file, new)
    omega_m, hubble = inputs.get("OMm", OMEGA_M), inputs.get("hlittle", HUBBLE)
    distances = _distances(file, inputs, box.shape[-1], omega_m, hubble)[low : low + n_z]
    if len(distances) != n_z or (n_z > 1 and not (np.diff(distances) > 0).all()):
        found = f"{len(distances)} distances for {n_z} slices, or not from near to far"
        raise Fault("grid", f"{found}: expected one for each, rising")
    seed = group.attrs.get("random_seed")
    six = _six(inputs)
    shape, layout = (*box.shape[:-1], n_z), {"first": low, "dataset": box.name, "single": True}
    source = Hdf5Source(path, stamp_of(path), 1, shape, box.dtype.str, **layout)
    return FileMetadata(
        source,
        parameters={name: np.array([value]) for name, value in (inputs | six).items()},
        units=dict(PARAMETER_UNITS),
        redshifts=redshifts_at(distances, omega_m, hubble)[None].astype(np.float32),
        seeds=None if seed is None else np.array([seed], dtype=np.int64),
        cell_size=float(np.median(np.diff(distances))) if n_z > 1 else None,
        offered=tuple(six),
    )


def _inputs(group: h5py.Group, new: bool) -> dict[str, float]:
    """All numbers among the inputs, flags as 0 and 1, by 21cmFAST's names; texts are left out."""
    found: dict[str, Any] = {}
    for name in group if new else _GROUPS_3:
        if isinstance(group.get(name), h5py.Group):
            found |= dict(group[name].attrs)
    model = found.get("SOURCE_MODEL")
    if isinstance(model, str | bytes):  # from 4.1 on, instead of a flag
        model = model if isinstance(model, str) else model.decode()
        found["USE_MASS_DEPENDENT_ZETA"] = model != "CONST-ION-EFF"
    return {
        name: float(value)
        for name, value in found.items()
        if np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"
    }


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
        if parameter.logarithmic and value > _LARGEST_LOGARITHM:
            value = math.log10(value)
        six[parameter.name] = value
    return six


def _check_finished(file: h5py.File, new: bool) -> None:
    """Refuse a light cone that a run has left half-way."""
    nodes = file.get("InputParameters/node_redshifts" if new else "node_redshifts")
    if nodes is None or not nodes.shape:
        return
    if new:
        # -1 is a light cone that was saved at once, at the end.
        done = int(file.attrs.get("last_completed_node", -1))
        if 0 <= done < len(nodes) - 1:
            raise Fault("unfinished", f"{done + 1} of {len(nodes)} redshift nodes were computed")
    elif "current_redshift" in file.attrs:
        reached, end = float(file.attrs["current_redshift"]), float(np.min(nodes[:]))
        if reached > end * (1 + 1e-3):
            raise Fault("unfinished", f"computed down to redshift {reached:.2f}, not {end:.2f}")


def _distances(
    file: h5py.File, inputs: Mapping[str, float], n: int, omega_m: float, hubble: float
) -> np.ndarray:
    """Comoving distances of the slices in Mpc."""
    for name in ("lightcone_distances", "distances"):
        if name in file:
            return np.asarray(file[name][:], dtype=np.float64)
    # Before 3.4: the first slice lies at the light cone's redshift, the others a cell apart.
    try:
        start = comoving_distances(float(file.attrs["redshift"]), omega_m, hubble)
        cell = inputs["BOX_LEN"] / inputs["HII_DIM"]
    except KeyError as error:
        raise Fault("missing", f"neither distances nor {error}, which would give them") from error
    return start + cell * np.arange(n)
