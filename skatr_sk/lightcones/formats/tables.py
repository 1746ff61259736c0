"""Cells and what lies beside them in one file, whatever the container: HDF5 or an .npz.

A file is a mapping of paths to tables, each with a shape and a type; which of them are the cells,
labels, redshifts and seeds is told by their names and shapes, and whether the cells are one light
cone or a stack by what fits the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from skatr_sk._checks import listed
from skatr_sk.fields import misplaced_axis
from skatr_sk.lightcones.digests import INDEX
from skatr_sk.lightcones.formats.metadata import (
    CELLS,
    GRID_REDSHIFTS,
    Fault,
    FileMetadata,
    Undecided,
    take_seeds,
)
from skatr_sk.parameters import PARAMETER_NAMES

__all__ = ["Table", "find_cells", "is_one_cone", "sight_comes_first", "take_what_lies_beside"]

# The first of these names that is found counts.
_TARGETS: tuple[str, ...]
_TARGETS = ("parameters", "parameter", "target", "targets", "labels", "label", "params", "theta")
_TARGETS += ("param", "thetas", "y", "lightcone_params", "lightcone_parameters")
_NAMES = ("names", "parameter_names", "param_names", "target_names", "label_names")
_REDSHIFTS = ("redshifts", "lightcone_redshifts", "redshift", "z")
_SEEDS = ("seed", "seeds", "random_seed")
_SINGULAR = ("image", "lightcone")  # what one cone is called


class Table(Protocol):
    """An array in a file: what it says of itself, and its values once that is checked."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None  # None where it does not hold real numbers

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def unknown(self) -> bool:
        """Whether it cannot be asked what it is: :meth:`check` says why."""

    def check(self, what: str, n_bytes: int, row_shape: tuple[int, ...] = ()) -> np.dtype:
        """Return the type of numbers that are all in this file, or raise a Fault."""

    def read(self) -> np.ndarray:
        """Return all values; whoever asks has called :meth:`check`."""

    def texts(self) -> list[str] | None:
        """Return the texts of a short list of them, and None for anything else."""

    def attribute(self, name: str) -> Any:
        """Value of an attribute, None where there is none."""


Tables = Mapping[str, Any]  # of Table, by their paths


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _usual(path: str) -> str:
    """Path in small letters, but for names of a single one: x and X may be two things."""
    return "/".join(part if len(part) == 1 else part.lower() for part in path.split("/"))


def find_cells(tables: Tables, name: str | None) -> Any:
    """Take the table of this name, or one of a usual name, or the only one that could be cells."""
    has = listed((f"{k} {v.shape}" for k, v in sorted(tables.items())), shown=8) or "none"
    if name is not None:
        asked = [k for k in tables if name.strip("/") in (k, _last(k))]
        if name.strip("/") in tables or len(asked) == 1:
            return tables.get(name.strip("/"), tables[asked[0]])
        raise Fault("missing", f"no dataset {name!r}; it has {has}")
    # What lies elsewhere was not asked what it is.
    fields = {k: v for k, v in tables.items() if v.unknown or (v.ndim and v.dtype is not None)}
    fields = {k: v for k, v in fields.items() if v.unknown or v.ndim > 1 or k in _SINGULAR}
    if usual := [name for name in CELLS if name in fields]:
        return fields[usual[0]]
    others = {*_TARGETS, *_NAMES, *_REDSHIFTS, *_SEEDS, INDEX}
    left = {k: v for k, v in fields.items() if others.isdisjoint(_usual(k).split("/"))}
    # Fields have more axes than tables of parameters or redshifts.
    rank = max((v.ndim for v in left.values()), default=0)
    left = {k: v for k, v in left.items() if v.ndim == rank}
    for usual_name in CELLS:
        called = [k for k in left if _last(k) == usual_name]
        if len(left) > 1 and len(called) == 1:
            return left[called[0]]
    if len(left) != 1:
        what = "no dataset that looks like light cones" if not left else "several that could be"
        raise Fault("missing", f"{what}; name it with dataset=. It has {has}")
    return next(iter(left.values()))


def _beside(tables: Tables, cells: Any, names: Sequence[str]) -> tuple[str, Any] | None:
    """Path and table of the first of these names beside the cells, if any; a group has None."""
    folder = cells.name.strip("/").rpartition("/")[0]
    others = [other for other in tables if other != cells.name[1:]]
    for name in names:
        for wanted in (f"{folder}/{name}".strip("/"), name):
            each = [path for k in others if _usual(path := k[: len(wanted)]) == _usual(wanted)]
            for path in sorted(each, key=wanted.__ne__):  # as it is written first
                if path in others:  # what lies elsewhere was not asked for its axes
                    return path, tables[path]
                if any(other.startswith(f"{path}/") for other in others):
                    return path, None
    return None


def is_one_cone(cells: Any, tables: Tables, asked: bool | None, *, ours: bool = False) -> bool:
    """Tell whether the cells are one field, not a stack of them; Undecided where nothing tells.

    `asked` is what the user says, and `ours` that the file was written by this package.
    """
    shape = cells.shape
    if len(shape) == 4 and shape[0] == 1:
        return False  # a stack of one
    if asked is not None or ours or not 2 <= len(shape) <= 3:
        return bool(asked) or len(shape) == 1
    singular = _last(cells.name) in _SINGULAR
    square = len(shape) == 3 and shape[0] == shape[1] != shape[2]
    found = _beside(tables, cells, _TARGETS)
    labels = _shapes_of_labels(tables, *found) if found else []
    if labels and all(len(s) == 2 and s[0] == shape[0] for s in labels):
        return False
    if labels and all(len(s) == 2 and s[0] == 1 for s in labels):
        return True
    # As many numbers as there are rows may be one parameter of each.
    if labels and square and all(len(s) < 2 and s != shape[:1] for s in labels):
        return True
    grid = _beside(tables, cells, _REDSHIFTS)
    if square and grid and grid[1] is not None and grid[1].shape == shape[2:]:
        return True
    if singular or len(shape) == 2:
        return singular
    raise Undecided(shape)


def _shapes_of_labels(tables: Tables, path: str, table: Any) -> list[tuple[int, ...]]:
    if table is not None:
        return [table.shape]
    return [t.shape for k, t in tables.items() if k.startswith(f"{path}/") and t.dtype is not None]


def sight_comes_first(what: str, shape: tuple[int, ...], axis: int) -> Fault:
    """Say that the line of sight of cells of this shape lies along another axis than the last."""
    moved = f"numpy.moveaxis(cells, {axis}, -1)"
    return Fault("axes", f"{what}: axis {axis} of {shape}, not the last; write {moved} instead")


def take_what_lies_beside(
    metadata: FileMetadata,
    cells: Any,
    tables: Tables,
    n_bytes: int,
    one: bool,
    *,
    ours: bool = False,
) -> None:
    """Take labels, redshifts and seeds; whatever does not fit the cells is a Fault.

    Of files that this package wrote (`ours`) the line of sight is not looked for.
    """
    n, n_z = metadata.source.n_rows, metadata.source.field_shape[-1]
    labels = _beside(tables, cells, _TARGETS)
    if labels is not None and labels[1] is not None:
        _take_table(metadata, labels[1], _names_beside(tables, labels[0]), n_bytes, one)
    elif labels is not None:
        start = f"{labels[0]}/"
        inside = {k.removeprefix(start): t for k, t in tables.items() if k.startswith(start)}
        _take_group(metadata, inside, n_bytes, one)
    else:
        _take_others(metadata, cells, tables, n_bytes, one)
    grid = _beside(tables, cells, _REDSHIFTS)
    if grid is not None and grid[1] is not None and (grid[1].ndim or grid[1].unknown):
        redshifts = grid[1]
        redshifts.check("redshifts", n_bytes)
        if redshifts.shape not in ((n_z,), (n, n_z)):
            for other, length in enumerate(cells.shape[:-1]):
                if len(metadata.source.field_shape) == 3 and redshifts.shape[-1] == length != n:
                    raise sight_comes_first("the redshifts lie along", cells.shape, other)
            detail = f"redshifts of shape {redshifts.shape}; expected ({n_z},) or ({n}, {n_z})"
            raise Fault("shape", detail)
        # One grid for all cones, or one for each.
        metadata.redshifts = np.broadcast_to(redshifts.read(), (n, n_z))
    axis = misplaced_axis(metadata.source.field_shape)
    if metadata.redshifts is None and axis is not None and not ours:
        what = "by its length the line of sight lies along"
        raise sight_comes_first(what, cells.shape, axis + len(cells.shape) - 3)
    drawn = _beside(tables, cells, _SEEDS)
    if drawn is not None and drawn[1] is not None:
        seeds = drawn[1]
        kind = seeds.check("seeds", n_bytes)
        if seeds.shape != (n,) and not (one and seeds.shape == ()) or kind.kind not in "iuf":
            detail = f"seeds of shape {seeds.shape} and type {kind}; expected {n} whole numbers"
            raise Fault("shape", detail)
        metadata.seeds = take_seeds(np.atleast_1d(seeds.read()))


def _names_beside(tables: Tables, path: str) -> list[str] | None:
    """Names of parameters in a list of texts beside their table."""
    folder = path.rpartition("/")[0]
    usual = [f"{path}_names", *(f"{folder}/{name}".strip("/") for name in _NAMES)]
    return next((texts for p in usual if p in tables and (texts := tables[p].texts())), None)


def _take_table(
    metadata: FileMetadata, table: Any, beside: list[str] | None, n_bytes: int, one: bool
) -> None:
    """Take the parameters, their names and units and their prior box."""
    table.check("parameters", n_bytes)
    shape: tuple[int, ...] = table.shape
    n = metadata.source.n_rows
    # An axis is added where there is none, and nothing else: a table of another shape is a
    # mistake that must not be cut into rows.
    of_one = one or (n == 1 and len(shape) == 1)  # a stack of one, or one cone
    metadata.flat = len(shape) == 1 and not of_one
    if of_one and (len(shape) < 2 or shape[0] == 1):
        n, width = 1, int(np.prod(shape))
    elif len(shape) in (1, 2):
        n, width = shape[0], 1 if metadata.flat else shape[1]
    if len(shape) > 2 or (one and n != 1):
        expected = f"({shape[-1]},), the parameters of one light cone" if one else f"({n}, k)"
        raise Fault("shape", f"a label of shape {shape}; expected {expected}")
    metadata.check_table(n, width)
    names, units = (_texts(name, table.attribute(name)) for name in ("names", "units"))
    names = beside if names is None else names
    metadata.take_parameters(table.read().reshape(n, width), names, units)
    bounds = table.attribute("bounds")
    if bounds is not None:
        box = np.asarray(bounds)
        if box.shape != (width, 2) or box.dtype.kind not in "fiu":
            raise Fault("parameters", f"bounds of shape {box.shape}; expected {(width, 2)} numbers")
        if np.isnan(box).any():
            raise Fault("parameters", f"bounds: expected numbers, found {box.tolist()}")
        metadata.target_bounds = box.astype(np.float64)


def _take_others(
    metadata: FileMetadata, cells: Any, tables: Tables, n_bytes: int, one: bool
) -> None:
    """Take parameters that lie beside the cells by their own names; note what may be labels."""
    n, folder = metadata.source.n_rows, cells.name[1:].rpartition("/")[0]
    heads = [(n,)] if not one else [(), (1,)]
    beside = {_last(k): t for k, t in tables.items() if k.rpartition("/")[0] == folder}
    fit = {k: t for k, t in beside.items() if t.dtype is not None and t.shape[:1] in heads}
    if named := {name: fit[name] for name in PARAMETER_NAMES if name in fit}:
        return _take_group(metadata, named, n_bytes, one)
    known = {_last(cells.name), INDEX, GRID_REDSHIFTS, *_REDSHIFTS, *_SEEDS}
    left = [f"{k} {t.shape}" for k, t in fit.items() if t.ndim < 3 and k.lower() not in known]
    if left and not metadata.note:
        metadata.note = (
            "labels are looked for under names such as 'parameters' and 'labels', and not read: "
            f"{listed(left)}; if these are labels, save them under such a name"
        )


def _take_group(metadata: FileMetadata, inside: Mapping[str, Any], n_bytes: int, one: bool) -> None:
    """Take the parameters in a group: one table, or a table or list for each by its name."""
    numbers = {k: table for k, table in inside.items() if table.dtype is not None or table.unknown}
    if len(numbers) == 1:
        (table,) = numbers.values()
        names = next((t for table in inside.values() if (t := table.texts())), None)
        if names is None and table.ndim < (1 if one else 2):
            names = list(numbers)
        _take_table(metadata, table, names, n_bytes, one)
        return
    n = metadata.source.n_rows
    columns: dict[str, np.ndarray] = {}
    for name, table in numbers.items():
        table.check("parameters", n_bytes)
        metadata.check_table(*_rows_and_width(table.shape, n, one))
        values = table.read().reshape(n, -1)
        wide = values.shape[1] > 1
        columns |= {f"{name}_{k}" if wide else name: v for k, v in enumerate(values.T)}
    if columns:
        # The order in a group says nothing: first the paper's, as there.
        names = [name for name in PARAMETER_NAMES if name in columns]
        names += [name for name in columns if name not in names]
        metadata.take_parameters(np.stack([columns[n] for n in names], axis=1), names, None)


def _rows_and_width(shape: tuple[int, ...], n: int, one: bool) -> tuple[int, int]:
    if one and (len(shape) < 2 or shape[0] == 1):
        return n, int(np.prod(shape))
    if len(shape) not in (1, 2):
        raise Fault("shape", f"a label of shape {shape}; expected ({n},) or ({n}, k)")
    return shape[0], 1 if len(shape) == 1 else shape[1]


def _texts(name: str, values: Any) -> list[str] | None:
    if values is None or isinstance(values, list):
        return values
    if not isinstance(values, str):
        raise Fault("parameters", f"{name}: expected texts, found {values!r}")
    return [values]
