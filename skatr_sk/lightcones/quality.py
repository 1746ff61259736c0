"""Quality control of light cones: what is wrong, in which file and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np

from skatr_sk.fields import digest, is_finite
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.contents import Contents, Fault
from skatr_sk.lightcones.files import CHANGED
from skatr_sk.lightcones.grids import compare_grids, is_short

__all__ = ["Report", "check_rows", "check_together"]

_SAMPLED = 8  # rows read by the quick check
_TOLERANCE = 0.01  # of the cell's size
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
        short = is_short(kept)
        usual = float(np.median([c.source.field_shape[-1] for c in kept]))
        for contents in np.array(kept, dtype=object)[short]:
            length = contents.source.field_shape[-1]
            detail = f"a line of sight of {length} slices; most have about {usual:.0f}"
            report.add(contents.source.path, -1, Fault("shape", detail))
        kept = [c for c, is_one in zip(kept, short, strict=True) if not is_one]
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
    cosmology: tuple[np.ndarray, np.ndarray],
    target: np.ndarray | None,
    seeds: np.ndarray | None,
    validate: str | bool,
    report: Report,
    notes: list[str],
) -> np.ndarray:
    """Check rows: redshifts and parameters of all, voxels of some (``"fast"``) or all.

    Parameters
    ----------
    data : LightconeArray
    redshifts, target, seeds : ndarray of as many rows, or None
    cosmology : two ndarrays of as many rows
        Omega_m, NaN where it is not known, and the Hubble constant.
    validate : {"fast", "full"} or False
        False leaves the voxels alone.
    report : Report
        Takes the faults.
    notes : list of str
        Takes what may be right.

    Returns
    -------
    ndarray of bool, shape (n,)
        Which rows have none.
    """
    good = np.ones(len(data), dtype=bool)
    spoiled: set[str] = set()

    def note(row: int, fault: Fault) -> None:
        good[row] = False
        report.add(*data.origin(row), fault)

    def note_file(row: int, fault: Fault) -> None:
        path = data.origin(row)[0]
        if path not in spoiled:
            spoiled.add(path)
            good[:] &= [data.origin(other)[0] != path for other in range(len(data))]
            report.add(path, -1, fault)

    if target is not None:
        for row in np.flatnonzero(~np.isfinite(target).all(axis=1)).tolist():
            note(row, Fault("parameters", f"{target[row].tolist()} are not all finite"))
    if redshifts is not None:
        grids = compare_grids(redshifts, *cosmology)
        start, end = grids.usual
        for row in np.flatnonzero(grids.odd).tolist():
            ends = f"redshifts from {redshifts[row, 0]:.3f} to {redshifts[row, -1]:.3f}"
            expected = f"rising from {start:.3f} to about {end:.3f}, as those of most"
            note(row, Fault("grid", f"{ends}; expected {expected}"))
        if grids.doubtful.any():
            path, place = data.origin(row := int(np.argmax(grids.doubtful)))
            notes.append(
                f"the redshifts of {grids.doubtful.sum()} light cones are not those of most (up to "
                f"{end:.3f}), nor are their cells known to be of one comoving size: {path}, row "
                f"{place}, goes up to {redshifts[row, -1]:.3f}"
            )
    if validate:
        full = validate == "full"
        n = len(data)
        some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64))
        chosen = np.arange(n) if full else some
        contents: dict[int, bytes] = {}
        for row, fault in _voxel_faults(data, chosen, contents):
            # A few rows that are not of the index spoil all of it; where all are read, themselves.
            (note if full or fault.kind != "digest" else note_file)(row, fault)
        compared = chosen if full else _worth_comparing(data, good, target, seeds)
        for part in [] if full else _by_file(data, compared):
            try:
                contents |= zip(part.tolist(), data[part].row_digests(), strict=True)
            except (OSError, ValueError) as error:
                kind = "unreadable" if isinstance(error, OSError) else "digest"
                note_file(int(part[0]), Fault(kind, str(error)))
        contents = {row: contents[row] for row in sorted(contents) if good[row]}
        for row, fault in _duplicates(data, contents, set(compared.tolist())):
            note(row, fault)
    return good


def _voxel_faults(
    data: LightconeArray, rows: np.ndarray, contents: dict[int, bytes]
) -> Iterable[tuple[int, Fault]]:
    """Read rows, a bounded number at a time, and yield what is wrong with their voxels.

    Their digests are put into `contents`.
    """
    stored = dict(zip(rows.tolist(), data[rows].stored_digests(), strict=True))
    for row, cone in _each(data, rows):
        if isinstance(cone, OSError):
            yield row, Fault("unreadable", str(cone))
            continue
        if not is_finite(cone):
            n_nan, n_wrong = int(np.isnan(cone).sum()), int((~np.isfinite(cone)).sum())
            yield row, Fault("nan", f"{n_nan} NaN cells, {n_wrong - n_nan} infinite")
        elif cone.ndim == 3 and (empty := _empty_slices(cone)).size:
            listed = ", ".join(map(str, empty[:5]))
            yield row, Fault("zeros", f"{empty.size} slices of zeros alone (first: {listed})")
        contents[row] = digest(cone)
        data.remember([row], [contents[row]])
        if stored[row] not in (None, contents[row]):
            _, place = data.origin(row)
            yield (
                row,
                Fault(
                    "digest",
                    f"the values of row {place} are not those that the file's index is of. "
                    f"{CHANGED}",
                ),
            )


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


def _worth_comparing(
    data: LightconeArray,
    good: np.ndarray,
    target: np.ndarray | None,
    seeds: np.ndarray | None,
) -> np.ndarray:
    """Rows to look for duplicates among, where not all are read.

    Those with a stored digest, and those with one seed and one set of parameters, of which alone
    there is reason to read the voxels.
    """
    rows = np.flatnonzero(good)
    keys: Counter = Counter()
    labels = {}
    for row in rows.tolist():
        if seeds is not None and target is not None:
            labels[row] = (int(seeds[row]), target[row].tobytes())
            keys[labels[row]] += 1
    alike = [row in labels and keys[labels[row]] > 1 for row in rows.tolist()]
    chosen: np.ndarray = rows[data.indexed[rows] | np.array(alike, dtype=bool)]
    return chosen


def _by_file(data: LightconeArray, rows: np.ndarray) -> Iterable[np.ndarray]:
    """Split rows in order where another file begins."""
    if len(data.files) == 1 or len(rows) == 0:
        return [rows] if len(rows) else []
    paths = [data.origin(row)[0] for row in rows]
    starts = [k for k in range(1, len(rows)) if paths[k] != paths[k - 1]]
    return np.split(rows, starts)


def _duplicates(
    data: LightconeArray, contents: Mapping[int, bytes], compared: Set[int]
) -> Iterable[tuple[int, Fault]]:
    """Yield the later copies of rows, from the digests of some; `compared` are all worth it."""
    seen: dict[bytes, int] = {}
    for row, content in contents.items():
        first = seen.setdefault(content, row)
        if first != row:
            path, place = data.origin(first)
            more = "" if {row, first} <= compared else "; validate='full' looks for more of them"
            yield row, Fault("duplicate", f"the same values as {path}, row {place}{more}")
