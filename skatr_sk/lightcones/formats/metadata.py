"""What is known of one file of light cones without its cells, and what may be wrong with it."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skatr_sk._checks import parameter_names
from skatr_sk.fields import brightness_unit
from skatr_sk.lightcones.sources import Source
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETER_UNITS, check_order, name_columns

__all__ = [
    "CELLS",
    "GRID_REDSHIFTS",
    "Fault",
    "FileMetadata",
    "Undecided",
    "bytes_on_disk",
    "check_cells",
    "check_no_holes",
    "check_size",
    "name_parameters",
    "take_seeds",
    "take_unit",
]

# Names that cells go by; the first that is found counts.
CELLS = ("brightness_temp", "data", "lightcones", "lightcone", "images", "image", "X", "x")
GRID_REDSHIFTS = "grid_redshifts"  # of a typical cone, where those of each are not known

_FEW_ROWS, _FEW_BYTES = 2**20, 2**26  # that need no proof: reading them in vain costs little
_MOST_PACKED = 100  # bytes of data from one byte in the file
_MOST_PARAMETERS = 4096
_MOST_AXES = 8
_MOST_PIECES = 100_000  # of a file with holes: one of more has no few bytes


class Fault(Exception):
    """What is wrong with a file or a row of it: a word, and what was found and expected."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Undecided(Exception):
    """Cells of three axes, of which neither the file nor its labels say what the first is."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.shape = shape


@dataclass
class FileMetadata:
    """Rows of one file and what is known of them, without their cells."""

    source: Source
    # By name, each of shape (n_rows,), in the order of the file.
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    redshifts: np.ndarray | None = None  # of shape (n_rows, n_z)
    typical: tuple[float, ...] | None = None  # redshifts of length n_z, where only these are known
    seeds: np.ndarray | None = None  # of int64, shape (n_rows,)
    cell_size: tuple[float | None, ...] | None = None  # Mpc (comoving) along each axis
    begins: tuple[float, float] | None = None  # origin and start of the grid
    target_bounds: np.ndarray | None = None  # prior box, of shape (n_parameters, 2)
    flat: bool = False  # the one parameter is stored without an axis of its own
    offered: tuple[str, ...] = ()  # make the target where none are asked for by name
    bare: np.ndarray | None = None  # parameters without names, of shape (n_rows, n_parameters)
    bare_units: Sequence[str] | None = None
    unit: str | None = None  # of the cells: "mK", "K", or None where the file does not say
    writer: str = ""  # the program whose signal this is, where versions differ
    note: str = ""  # what was chosen among several

    def check_table(self, n: int, width: int) -> None:
        """Refuse a table of parameters that has not a row for each light cone, or is very wide."""
        if n != self.source.n_rows:
            raise Fault("shape", f"{n} rows of parameters for {self.source.n_rows} light cones")
        if not 0 < width <= _MOST_PARAMETERS:
            expected = f"1 to {_MOST_PARAMETERS}"
            raise Fault("parameters", f"{width} parameters of a light cone; expected {expected}")

    def take_parameters(
        self, values: np.ndarray, names: Sequence[str] | None, units: Sequence[str] | None
    ) -> None:
        """Take and offer the parameters of all rows, of shape (n_rows, n_parameters).

        Without names they are `bare`: what the columns are is settled when all files are known.
        """
        n, width = values.shape
        self.check_table(n, width)
        if values.dtype.kind not in "fiu":
            raise Fault("shape", f"parameters of type {values.dtype}; expected real numbers")
        numbered = [f"parameter_{k}" for k in range(width)]
        if names is None or list(names) == numbered:
            self.bare, self.bare_units = values.astype(np.float64), units
            names = numbered
        names, units, faults = name_parameters(names, units, values)
        for what, expected, found in faults:
            raise Fault("parameters", f"{what}: expected {expected}, found {found}")
        self.parameters = {name: values[:, k].astype(np.float64) for k, name in enumerate(names)}
        self.units = dict(zip(names, units, strict=True))
        self.offered = tuple(names)


def name_parameters(
    names: Sequence[str] | None, units: Sequence[str] | None, y: Any
) -> tuple[list[str], list[str], list[tuple[str, str, list[Any]]]]:
    """Names and units of parameters: those given, else what is usual; and what is wrong with them.

    Without names those of the columns of `y`, (n,) or (n, n_parameters), or the paper's where there
    are six of such values, in the order that these tell; without units those of the paper's
    parameters, and none for others. What is wrong is said as "names" or "units", what is expected,
    and what was found.
    """
    width = 1 if np.ndim(y) < 2 else np.shape(y)[-1]
    unclear = []
    if names is None:
        names = parameter_names(None, y, width)
        if width == len(PARAMETER_NAMES) and not hasattr(y, "columns"):
            values = np.asarray(y, dtype=np.float64).reshape(-1, width)
            try:
                names = name_columns(values) or names
            except ValueError as error:
                unclear = [
                    ("names", f"six, for the values do not tell ({error})", values[:1].tolist())
                ]
    names = list(names)
    labels = [("names", names)]
    if units is None:
        units = [PARAMETER_UNITS.get(name, "") for name in names]
    else:
        units = list(units)
        labels.append(("units", units))
    check_order("y", y, names)
    expected = f"{width} of them, one for each parameter"
    faults: list[tuple[str, str, list[Any]]] = unclear
    faults += [(what, expected, given) for what, given in labels if len(given) != width]
    if len(set(names)) < len(names):
        faults.append(("names", "names of which no two are alike", names))
    return names, units, faults


def take_unit(text: Any) -> str | None:
    """Unit of brightness temperatures, "mK" or "K", by what a file says; another is a Fault."""
    if not isinstance(text, str) or not text.strip():
        return None
    word = text.strip()
    if (unit := brightness_unit(word)) is None:
        raise Fault("units", f"cells in {word!r}; expected brightness temperatures in mK or K")
    return unit


def check_cells(shape: tuple[int, ...], dtype: np.dtype, *, one: bool) -> None:
    """Refuse cells that are no real numbers, or none at all, or of too few or many axes."""
    if dtype.kind not in "fiu":
        raise Fault("shape", f"cells of type {dtype}; expected real numbers")
    least, most = (1, 3) if one else (2, _MOST_AXES)
    if not least <= len(shape) <= most or math.prod(shape) == 0:
        wanted = "that of one light cone, map or signal" if one else "(n, *field_shape)"
        raise Fault("shape", f"cells of shape {shape}; expected {wanted}, no axis of length 0")


def take_seeds(values: np.ndarray) -> np.ndarray:
    """Return whole numbers as int64; one that it cannot hold is a Fault."""
    if values.dtype.kind == "f" and not (values == np.trunc(values)).all():
        raise Fault("parameters", f"seeds of {values.dtype} that are not whole numbers")
    for end in (values.max(initial=0), values.min(initial=0)):
        # Of floats 2^63 is one, and the largest integer is none.
        if not -(2**63) <= (end if np.isinf(end) else int(end)) < 2**63:
            raise Fault("parameters", f"a seed of {end}; expected seeds from -2^63 to below 2^63")
    return values.astype(np.int64)


def check_size(what: str, shape: tuple[int, ...], itemsize: int, stored: int) -> None:
    """Refuse a shape that the bytes which a file has for it can hardly hold.

    Light cones pack to a third of their size; what packs to a hundredth is no data.
    """
    n_bytes = math.prod(shape) * itemsize
    many = shape and shape[0] > max(_FEW_ROWS, stored)
    if many or n_bytes > max(_FEW_BYTES, _MOST_PACKED * stored):
        detail = f"{what} of shape {shape} take {n_bytes:.3g} bytes, and the file has {stored:.3g}"
        raise Fault("size", f"{detail} for them; it is damaged, or says more than it holds")


def bytes_on_disk(path: str, found: os.stat_result) -> int:
    """Bytes that a file, of state `found`, takes: less than its size where it has holes.

    Some file systems count blocks late or not at all: holes are looked for where these are few.
    """
    if 1024 * getattr(found, "st_blocks", 0) >= found.st_size or not hasattr(os, "SEEK_HOLE"):
        return found.st_size
    taken = place = 0
    opened = os.open(path, os.O_RDONLY)
    try:
        for _ in range(_MOST_PIECES):
            start = os.lseek(opened, place, os.SEEK_DATA)
            place = os.lseek(opened, start, os.SEEK_HOLE)
            taken += place - start
        return found.st_size
    except OSError as error:
        # The end, after the last piece; or a file system that does not say.
        return taken if error.errno == errno.ENXIO else found.st_size
    finally:
        os.close(opened)


def check_no_holes(path: str, row_shape: tuple[int, ...], start: int, stop: int) -> None:
    """Refuse light cones, between two bytes of a file, that were not all written.

    A file that was given its whole size before it was written has holes where its writer did not
    come. Maps alone may be zeros over a block of the disk, where all is ionised.
    """
    if len(row_shape) == 2 or not hasattr(os, "SEEK_HOLE"):
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        hole = os.lseek(opened, start, os.SEEK_HOLE)
    except OSError:  # the file system does not say
        return
    finally:
        os.close(opened)
    if hole < stop:
        written = f"{(hole - start) / (stop - start):.0%} of the cells were written"
        detail = f"{written} before the first gap, and gaps read as zeros; write the file anew"
        raise Fault("unfinished", detail)
