"""What is known of one file of light cones without its cells, and what may be wrong with it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from skatr_sk._checks import listed, parameter_names
from skatr_sk.lightcones.sources import Source
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETER_UNITS

__all__ = [
    "CELLS",
    "TARGETS",
    "Fault",
    "FileMetadata",
    "check_cells",
    "name_parameters",
    "refuse_elsewhere",
]

# Names that arrays and datasets go by; the first that is found counts.
CELLS = ("brightness_temp", "data", "lightcones", "images", "image", "X", "x")
TARGETS = ("parameters", "target", "targets", "labels", "label", "params", "theta", "y")


class Fault(Exception):
    """What is wrong with a file or a row of it: a word, and what was found and expected."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass
class FileMetadata:
    """Rows of one file and what is known of them, without their cells."""

    source: Source
    # By name, each of shape (n_rows,), in the order of the file.
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    redshifts: np.ndarray | None = None  # of shape (n_rows, n_z)
    seeds: np.ndarray | None = None  # of int64, shape (n_rows,)
    cell_size: float | None = None  # Mpc (comoving) between slices
    target_bounds: np.ndarray | None = None  # prior box, of shape (n_parameters, 2)
    flat: bool = False  # the one parameter is stored without an axis of its own
    offered: tuple[str, ...] = ()  # make the target where none are asked for by name

    def take_parameters(
        self, values: np.ndarray, names: Sequence[str] | None, units: Sequence[str] | None
    ) -> None:
        """Take and offer the parameters of all rows, of shape (n_rows, n_parameters)."""
        n, width = values.shape
        if n != self.source.n_rows:
            raise Fault("shape", f"{n} rows of parameters for {self.source.n_rows} light cones")
        if values.dtype.kind not in "fiu":
            raise Fault("shape", f"parameters of type {values.dtype}; expected real numbers")
        names, units, faults = name_parameters(width, names, units)
        for what, expected, found in faults:
            raise Fault("parameters", f"{what}: expected {expected}, found {found}")
        self.parameters = {name: values[:, k].astype(np.float64) for k, name in enumerate(names)}
        self.units = dict(zip(names, units, strict=True))
        self.offered = tuple(names)


def name_parameters(
    width: int, names: Sequence[str] | None, units: Sequence[str] | None, y: Any = None
) -> tuple[list[str], list[str], list[tuple[str, str, list[str]]]]:
    """Names and units of parameters: those given, else what is usual; and what is wrong with them.

    Without names those of the columns of `y`, or the paper's where there are six; without units
    those of the paper's parameters, and none for others. What is wrong is said as "names" or
    "units", what is expected, and what was found.
    """
    if names is None:
        names = parameter_names(None, y, width)
        if width == len(PARAMETER_NAMES) and not hasattr(y, "columns"):
            names = PARAMETER_NAMES
    if units is None:
        units = [PARAMETER_UNITS.get(name, "") for name in names]
    names, units = list(names), list(units)
    expected = f"{width} of them, one for each parameter"
    labels = (("names", names), ("units", units))
    faults = [(what, expected, given) for what, given in labels if len(given) != width]
    if len(set(names)) < len(names):
        faults.append(("names", "names of which no two are alike", names))
    return names, units, faults


def check_cells(shape: tuple[int, ...], dtype: np.dtype, least: int) -> None:
    """Refuse cells that are no real numbers, or none at all, or have fewer than `least` axes."""
    if dtype.kind not in "fiu":
        raise Fault("shape", f"cells of type {dtype}; expected real numbers")
    if len(shape) < least or math.prod(shape) == 0:
        wanted = "(n, *field_shape)" if least == 2 else "that of one light cone"
        raise Fault("shape", f"cells of shape {shape}; expected {wanted}, no axis of length 0")


def refuse_elsewhere(dataset: h5py.Dataset, file: h5py.File) -> None:
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
        named = listed(dict.fromkeys(others), shown=1)
        found = f"{dataset.name} has its values in other files ({named}), and were one of them lost"
        mend = "Open a list of those files themselves, or copy the values into one file"
        detail = f"{found}, HDF5 would read zeros. {mend} with save_lightcones"
        raise Fault("elsewhere", detail)
