"""Quality control of light cones: what is wrong, in which file and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from skatr_sk._finite import finite
from skatr_sk._rows import digest
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.contents import Contents, Fault

__all__ = ["Report", "check_rows", "check_together"]

_SAMPLED = 8  # rows read by the quick check
_TOLERANCE = 0.01  # of the first redshift and of the cell's size
_SHORT = 0.5  # of the usual length of the line of sight: shorter is no matter of cosmology
_MOSTLY = 0.5  # of a slice's cells; late islands of neutral hydrogen fill less than a tenth
_SHOWN = 8  # faults that an error spells out
_TABLE = np.dtype([("file", object), ("row", np.int64), ("fault", "U16"), ("detail", object)])


class Report:
    """Collects faults of files and of rows, and becomes a table.

    Examples
    --------
    >>> report = Report()
    >>> report.add("cones/run7.npz", 0, Fault("nan", "3 NaN cells"))
    >>> report.table()["fault"]
    array(['nan'], dtype='<U16')
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, str, str]] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, path: str, row: int, fault: Fault) -> None:
        """Note a fault; row -1 is the whole file."""
        self.entries.append((path, row, fault.kind, fault.detail))

    def table(self) -> np.ndarray:
        """Return a structured array with the columns ``file, row, fault, detail``."""
        return np.array(self.entries, dtype=_TABLE)

    def __str__(self) -> str:
        lines = [
            f"- {path}{'' if row < 0 else f', row {row}'}: {kind}: {detail}"
            for path, row, kind, detail in self.entries[:_SHOWN]
        ]
        if len(self) > _SHOWN:
            lines.append(f"- and {len(self) - _SHOWN} more")
        return "\n".join(lines)


def check_together(files: Sequence[Contents], report: Report) -> list[Contents]:
    """Leave out files that do not fit the others: their sky, their length, their grid.

    Lines of sight of unequal length are no fault where each has its redshifts: they are to be
    cropped to the shortest. What most files have counts as right.

    Parameters
    ----------
    files : sequence of Contents
    report : Report
        Takes the faults.

    Returns
    -------
    list of Contents
    """
    kept = list(files)
    crop = all(c.redshifts is not None and len(c.source.field_shape) == 3 for c in kept)
    shapes = [c.source.field_shape[:-1] if crop else c.source.field_shape for c in kept]
    kept = _agree(kept, shapes, "shape", "cells", report)
    if crop and kept:
        lengths = np.array([c.source.field_shape[-1] for c in kept])
        usual = float(np.median(lengths))
        for contents, length in zip(kept, lengths, strict=True):
            if length < _SHORT * usual:
                detail = f"a line of sight of {length} slices; most have about {usual:.0f}"
                report.add(contents.source.path, -1, Fault("shape", detail))
        kept = [c for c, long in zip(kept, lengths >= _SHORT * usual, strict=True) if long]
    cells = [c.cell for c in kept if c.cell is not None]
    if cells:
        usual = float(np.median(cells))
        odd = {
            id(c): f"slices {c.cell:.4g} Mpc apart; most are {usual:.4g} Mpc"
            for c in kept
            if c.cell is not None and abs(c.cell - usual) > _TOLERANCE * usual
        }
        for contents in kept:
            if id(contents) in odd:
                report.add(contents.source.path, -1, Fault("grid", odd[id(contents)]))
        kept = [c for c in kept if id(c) not in odd]
    return kept


def _agree(
    kept: list[Contents], found: Sequence[object], kind: str, what: str, report: Report
) -> list[Contents]:
    """Keep the files that have what most rows have."""
    counts: Counter = Counter()
    for contents, value in zip(kept, found, strict=True):
        counts[value] += contents.source.n_rows
    usual = counts.most_common(1)[0][0] if counts else None
    for contents, value in zip(kept, found, strict=True):
        if value != usual:
            report.add(contents.source.path, -1, Fault(kind, f"{value} {what}; most have {usual}"))
    return [c for c, value in zip(kept, found, strict=True) if value == usual]


def check_rows(
    data: LightconeArray,
    redshifts: np.ndarray | None,
    target: np.ndarray | None,
    seeds: np.ndarray | None,
    validate: str | bool,
    report: Report,
) -> np.ndarray:
    """Check rows: redshifts and parameters of all, voxels of some (``"fast"``) or all.

    Parameters
    ----------
    data : LightconeArray
    redshifts, target, seeds : ndarray of as many rows, or None
    validate : {"fast", "full"} or False
        False leaves the voxels alone.
    report : Report
        Takes the faults.

    Returns
    -------
    ndarray of bool, shape (n,)
        Which rows have none.
    """
    good = np.ones(len(data), dtype=bool)

    def note(row: int, kind: str, detail: str) -> None:
        good[row] = False
        report.add(*data.origin(row), Fault(kind, detail))

    if target is not None:
        for row in np.flatnonzero(~np.isfinite(target).all(axis=1)):
            note(int(row), "parameters", f"{target[row].tolist()} are not all finite")
    if redshifts is not None:
        first = redshifts[:, 0]
        usual = float(np.median(first))
        rising = (np.diff(redshifts, axis=1) > 0).all(axis=1)
        near = np.abs(first - usual) <= _TOLERANCE * np.abs(usual)
        for row in np.flatnonzero(~(rising & near)):
            ends = f"redshifts from {redshifts[row, 0]:.3f} to {redshifts[row, -1]:.3f}"
            expected = f"rising from {usual:.3f}, where most begin"
            note(int(row), "grid", f"{ends}; expected {expected}")
    if validate:
        full = validate == "full"
        n = len(data)
        some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64))
        chosen = np.arange(n) if full else some
        for place, fault in _voxel_faults(data, chosen, remember=full):
            note(place, fault.kind, fault.detail)
        for place, fault in _duplicates(data, good, target, seeds, full):
            note(place, fault.kind, fault.detail)
    return good


def _voxel_faults(
    data: LightconeArray, rows: np.ndarray, remember: bool
) -> Iterable[tuple[int, Fault]]:
    """Read rows, a bounded number at a time, and yield what is wrong with their voxels."""
    stored = data.stored_digests() if remember else [None] * len(data)
    for row, cone in _each(data, rows):
        if isinstance(cone, OSError):
            yield row, Fault("unreadable", str(cone))
            continue
        if not finite(cone):
            n_nan, n_wrong = int(np.isnan(cone).sum()), int((~np.isfinite(cone)).sum())
            yield row, Fault("nan", f"{n_nan} NaN cells, {n_wrong - n_nan} infinite")
        elif cone.ndim == 3 and (empty := _empty_slices(cone)).size:
            listed = ", ".join(map(str, empty[:5]))
            yield row, Fault("zeros", f"{empty.size} slices of zeros alone (first: {listed})")
        if remember:
            content = digest(cone)
            if stored[row] not in (None, content):
                yield row, Fault("digest", "values other than those that the file's index is of")
            data.remember([row], [content])


def _empty_slices(cone: np.ndarray) -> np.ndarray:
    """Slices of zeros alone that no physics explains.

    There is no signal where hydrogen is ionised, so that the near end may be zero, and slices
    beyond it among ones with a last neutral island or two. A slice of zeros beyond one that is
    mostly not was not computed.
    """
    filled = np.count_nonzero(cone, axis=(0, 1)) / (cone.shape[0] * cone.shape[1])
    if not filled.any():
        return np.arange(len(filled))
    # For each slice the nearest on its near side that is not zero.
    last = np.maximum.accumulate(np.where(filled > 0, np.arange(len(filled)), 0))
    found: np.ndarray = np.flatnonzero((filled == 0) & (filled[last] > _MOSTLY))
    return found


def _each(data: LightconeArray, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray | OSError]]:
    """Yield each row's cone, or the error that reading it gave."""
    step = data.rows_at_once
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        try:
            yield from zip(part.tolist(), data.rows(part), strict=True)
        except OSError:
            for row in part.tolist():  # which of them is it?
                try:
                    cone: np.ndarray | OSError = data[row]
                except OSError as error:
                    cone = error
                yield row, cone


def _duplicates(
    data: LightconeArray,
    good: np.ndarray,
    target: np.ndarray | None,
    seeds: np.ndarray | None,
    full: bool,
) -> Iterable[tuple[int, Fault]]:
    """Yield the later copies of rows.

    Quickly: among rows with a stored digest, and among those with one seed and one set of
    parameters, of which alone there is reason to read the voxels.
    """
    rows = np.flatnonzero(good)
    if not full:
        keys: Counter = Counter()
        labels = {}
        for row in rows.tolist():
            if seeds is not None and target is not None:
                labels[row] = (int(seeds[row]), target[row].tobytes())
                keys[labels[row]] += 1
        alike = [row in labels and keys[labels[row]] > 1 for row in rows.tolist()]
        rows = rows[data.indexed[rows] | np.array(alike, dtype=bool)]
    seen: dict[bytes, int] = {}
    for row, content in zip(rows.tolist(), data[rows].row_digests(), strict=True):
        if content in seen:
            path, place = data.origin(seen[content])
            yield row, Fault("duplicate", f"the same values as {path}, row {place}")
        else:
            seen[content] = row
