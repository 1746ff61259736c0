"""Quality control of light cones: what is wrong, in which file and row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import listed
from skatr_sk.fields import BEYOND_PHYSICS, digest
from skatr_sk.grid import Grid
from skatr_sk.lightcones.digests import CHANGED, RowDigests
from skatr_sk.lightcones.formats import Fault, FileMetadata
from skatr_sk.lightcones.grids import compare_grids, is_short
from skatr_sk.lightcones.repair import find_bad, repair
from skatr_sk.lightcones.sources import FileRows, raise_if_out_of_handles

__all__ = ["Report", "check_rows", "check_together", "digests_of_nothing", "most_common"]

_SAMPLED = 8  # rows read by the quick check
_TOLERANCE = 0.01  # of the distance between slices
_MOSTLY = 0.5  # of a slice's cells; late islands of neutral hydrogen fill less than a tenth
_FULL, _ABRUPT = 0.9, 0.5  # of a slice's cells; of the brightness of the next slice
_BRIGHT = 1.0  # mK in the mean of a slice; what the last neutral gas leaves is fainter
_LATEST = 10.0  # redshift before which no model has all hydrogen ionised
_SHOWN = 8  # faults that an error spells out
_TABLE = np.dtype([("file", object), ("row", np.int64), ("fault", "U16"), ("detail", object)])


class Report(list[tuple[str, int, str, str]]):
    """Faults of files and of rows: the path, the row, the kind, the detail."""

    def add(self, path: str, row: int, fault: Fault) -> None:
        """Note a fault; row -1 is the whole file."""
        self.append((path, row, fault.kind, fault.detail))

    def leave_out(
        self, files: Sequence[FileMetadata], kind: str, details: Sequence[str | None]
    ) -> list[FileMetadata]:
        """Note what is wrong with some files, and return the others, whose detail is None."""
        for file, detail in zip(files, details, strict=True):
            if detail is not None:
                self.add(file.source.path, -1, Fault(kind, detail))
        return [file for file, detail in zip(files, details, strict=True) if detail is None]

    def table(self) -> np.ndarray:
        """Return a structured array with the columns ``file, row, fault, detail``."""
        return np.array(self, dtype=_TABLE)

    def __str__(self) -> str:
        lines = [
            f"- {path}{'' if row < 0 else f', row {row}'}: {kind}: {detail}"
            for path, row, kind, detail in self[:_SHOWN]
        ]
        more = [f"- and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return "\n".join(lines + more)


def most_common(values: Sequence[Any], files: Sequence[FileMetadata], besides: Any = None) -> Any:
    """Return what most files have, and of as many that of most rows; leave out `besides`.

    A coeval box or a foreign file of many rows does not outvote a folder of light cones. None where
    no file has a value.
    """
    counts: dict[Any, tuple[int, int]] = {}
    for value, file in zip(values, files, strict=True):
        n_files, n_rows = counts.get(value, (0, 0))
        counts[value] = n_files + 1, n_rows + file.source.n_rows
    counts.pop(besides, None)
    return max(counts, key=lambda value: counts[value]) if counts else None


def check_together(files: Sequence[FileMetadata], report: Report) -> list[FileMetadata]:
    """Leave out files that do not fit the others: their sky, their length, their grid.

    Lines of sight of unequal length are no fault where each has its redshifts: they are to be
    cropped to the shortest. What most files have counts as right.
    """
    crop = all(file.redshifts is not None and len(file.source.field_shape) == 3 for file in files)
    shapes = [file.source.field_shape[:-1] if crop else file.source.field_shape for file in files]
    usual = most_common(shapes, files)
    details = [None if s == usual else f"{s} cells; most have {usual}" for s in shapes]
    kept = report.leave_out(files, "shape", details)
    if crop and kept:
        lengths = [file.source.field_shape[-1] for file in kept]
        most = f"most have about {np.median(lengths):.0f}"
        each = zip(lengths, is_short(kept), strict=True)
        details = [f"a line of sight of {n} slices; {most}" if short else None for n, short in each]
        kept = report.leave_out(kept, "shape", details)
    for axis in (-1, 0):
        if not kept:
            break
        stated = [file.cell_size and file.cell_size[axis] for file in kept]
        sizes = np.array(stated, dtype=np.float64)  # NaN for None
        if np.isfinite(sizes).any():
            size = np.nanquantile(sizes, 0.5, method="lower")  # one that there is
            what = "slices" if axis else "cells of the sky"
            most = f"most are {size:.4g} Mpc"
            odd = zip(sizes, np.abs(sizes - size) > _TOLERANCE * size, strict=True)
            details = [f"{what} {mine:.4g} Mpc apart; {most}" if far else None for mine, far in odd]
            kept = report.leave_out(kept, "grid", details)
    grids = [_typical_grid(file) for file in kept]
    most = most_common(grids, kept)
    wrong = [[] if grid is None else most.differences(grid) for grid in grids]
    return report.leave_out(kept, "grid", ["; ".join(each) or None for each in wrong])


def _typical_grid(file: FileMetadata) -> Grid | None:
    """Grid of a file that knows the redshifts of a typical cone alone."""
    if file.typical is None:
        return None
    unknown = (None,) * len(file.source.field_shape)
    return Grid(file.cell_size or unknown, file.typical, *(file.begins or (None, 0.0)))


def check_rows(
    cones: Bunch,
    cosmology: tuple[np.ndarray, np.ndarray],
    validate: str | bool,
    limit: float,
    report: Report,
    repaired: Report,
    notes: list[str],
    *,
    of_one_size: bool = False,
) -> np.ndarray:
    """Tell which rows are good: redshifts and parameters of all, cells of some or all.

    `cones` is what `combine` returns, and `cosmology` what `cosmology_of` does. With `validate`
    "fast" the cells of some rows are read, with "full" those of all; beyond `limit` they are bad.
    `of_one_size` are slices where all files say their size. `report` takes faults, `repaired` what
    no longer is one, and `notes` what may be right.
    """
    digests: RowDigests = cones.data._digests
    files = digests.files
    good = np.ones(len(files), dtype=bool)

    def note(row: int, fault: Fault, whole_file: bool = False) -> None:
        source, number = files.origin(row)
        first, n_rows = (row - number, source.n_rows) if whole_file else (row, 1)
        good[first : first + n_rows] = False
        if not whole_file or all(entry[:2] != (source.path, -1) for entry in report):
            report.add(source.path, -1 if whole_file else number, fault)

    target = np.zeros((len(files), 0)) if cones.target is None else cones.target
    for row in np.flatnonzero(np.isinf(target).any(axis=1)).tolist():
        expected = "expected finite numbers, or NaN where one is not known"
        note(row, Fault("parameters", f"{target[row].tolist()}: {expected}"))
    if cones.redshifts is not None:
        odd, doubtful, (start, end) = compare_grids(cones.redshifts, *cosmology)
        for row in np.flatnonzero(odd).tolist():
            ends = "from {:.3f} to {:.3f}".format(*cones.redshifts[row, [0, -1]])
            expected = f"rising from {start:.3f} to about {end:.3f}, as those of most"
            note(row, Fault("grid", f"redshifts {ends}; expected {expected}"))
        if of_one_size:  # redshifts differ as the Omega_m does that the file does not tell
            doubtful &= np.isfinite(cosmology[0])
        if doubtful.any():
            source, number = files.origin(row := int(np.argmax(doubtful)))
            notes.append(
                f"the redshifts of {doubtful.sum()} light cones are not those of most (up to "
                f"{end:.3f}), nor are their cells known to be of one comoving size: {source.path}, "
                f"row {number}, goes up to {cones.redshifts[row, -1]:.3f}"
            )
    if not validate:
        return good
    full = validate == "full"
    n = len(files)
    some = np.unique(np.linspace(0, n - 1, min(n, _SAMPLED)).astype(np.int64))
    chosen = np.arange(n) if full else some
    contents: dict[int, bytes] = {}
    far_ends = _far_ends(cones, n)
    for row, fault in _cell_faults(digests, chosen, limit, contents, far_ends):
        if fault.kind == "repaired":
            source, number = files.origin(row)
            repaired.add(source.path, number, fault)
            continue
        # Where only some rows are read, one that its index is not of makes the whole file suspect.
        note(row, fault, whole_file=fault.kind == "digest" and not full)
    compared = chosen if full else _worth_comparing(files, good, cones)
    for _, indices, _ in [] if full else files.by_source(compared):
        rows = compared[indices]
        try:
            contents |= zip(rows.tolist(), digests.of(rows), strict=True)
        except (OSError, MemoryError, ValueError) as error:
            raise_if_out_of_handles(error, files.origin(int(rows[0]))[0].path)
            kind = "digest" if isinstance(error, ValueError) else "unreadable"
            note(int(rows[0]), Fault(kind, str(error)), whole_file=True)
    # The later copies among the rows that are good so far.
    seen: dict[bytes, int] = {}
    nothing = digests_of_nothing(files.field_shape)
    worth = set(compared.tolist())
    for row in sorted(row for row in contents if good[row] and contents[row] not in nothing):
        first = seen.setdefault(contents[row], row)
        if first != row:
            source, number = files.origin(first)
            more = "" if worth >= {row, first} else "; validate='full' looks for more of them"
            note(row, Fault("duplicate", f"the same values as {source.path}, row {number}{more}"))
    return good


def digests_of_nothing(field_shape: Sequence[int]) -> list[bytes]:
    """Digests of a field of zeros, of either sign: all that is ionised is alike, and no copy."""
    zeros = np.zeros(field_shape, dtype=np.float32)
    return [digest(zeros), digest(-zeros)]


def _far_ends(cones: Bunch, n: int) -> np.ndarray:
    """Redshift of the last slice of each row, infinite where it is not known."""
    redshifts, grid = cones.redshifts, cones.data.grid
    if redshifts is None and grid is not None:
        redshifts = grid.redshifts
    return np.broadcast_to(np.inf if redshifts is None else np.asarray(redshifts)[..., -1], n)


def _cell_faults(
    digests: RowDigests,
    rows: np.ndarray,
    limit: float,
    contents: dict[int, bytes],
    ends: np.ndarray,
) -> Iterable[tuple[int, Fault]]:
    """Read rows, yield what is wrong with their cells, and put their digests into `contents`.

    `ends` are the redshifts of the last slices: near ones may have no neutral hydrogen at all.
    """
    for row, cone in _each(digests.files, rows):
        if not isinstance(cone, np.ndarray):
            yield row, Fault("unreadable", str(cone))
            continue
        bad = find_bad(cone, limit)
        if bad is not None:
            fault = _describe_bad(cone, bad, limit)
            if digests.files.sources[0].repair and repair(cone, bad):
                fault = Fault("repaired", f"by the mean of the cells beside each: {fault.detail}")
            yield row, fault
        elif (zeros := _zeros(cone, ends[row])) is not None:
            yield row, zeros
        contents[row] = digest(cone)
        digests.note(np.array([row]), [contents[row]], held=True)
        try:
            (stored,) = digests.stored(np.array([row]))
        except OSError as error:
            yield row, Fault("unreadable", str(error))
            continue
        if stored not in (None, contents[row]):
            number = digests.files.origin(row)[1]
            detail = f"the values of row {number} are not those that the file's index is of"
            yield row, Fault("digest", f"{detail}. {CHANGED}")


def _describe_bad(cone: np.ndarray, bad: np.ndarray, limit: float) -> Fault:
    """Say what bad cells are, and where the first is."""
    n_bad, n_nan = int(bad.sum()), int(np.isnan(cone).sum())
    n_infinite = int(np.isinf(cone).sum())
    first = tuple(np.argwhere(bad)[0].tolist())
    where = f"the first at {first} is {cone[first]:.6g}"
    if n_nan + n_infinite == n_bad:
        return Fault("nan", f"{n_nan} NaN cells, {n_infinite} infinite; {where}")
    unit = " mK" if limit == BEYOND_PHYSICS else ""
    found = f"{n_bad} cells are NaN, a fill value or beyond {limit:g}{unit}; {where}"
    return Fault("beyond physics", f"{found}. What is no 21 cm signal opens with validate=False")


def _zeros(cone: np.ndarray, far_end: float) -> Fault | None:
    """Say what zeros no physics explains; before `far_end`, a redshift, all may be ionised."""
    if far_end < _LATEST and not cone.any():
        return None
    if cone.ndim == 3 and (empty := _empty_slices(cone)).size:
        return Fault("zeros", f"{empty.size} slices of zeros alone (first: {listed(empty)})")
    if cone.ndim == 1 and not cone.any():
        return Fault("zeros", f"{len(cone)} zeros, and nothing else")
    return None


def _empty_slices(cone: np.ndarray) -> np.ndarray:
    """Slices of zeros alone that no physics explains.

    There is no signal where hydrogen is ionised: the near end may be zero, and so may slices
    between those of the last neutral islands. But a slice of zeros beyond one that is mostly not
    zero was not computed; nor were those at the near end, if the next is full and as bright as the
    one beyond it: the last islands are few and faint.
    """
    filled = np.count_nonzero(cone, axis=(0, 1)) / (cone.shape[0] * cone.shape[1])
    if not filled.any():
        return np.arange(len(filled))
    near = int(np.argmax(filled > 0))
    if 0 < near < len(filled) - 1 and filled[near] > _FULL:
        last, next_one = np.abs(cone[..., near : near + 2], dtype=np.float64).mean(axis=(0, 1))
        if last > max(_ABRUPT * next_one, _BRIGHT):
            return np.arange(near)
    # For each slice the nearest on its near side that is not zero.
    last = np.maximum.accumulate(np.where(filled > 0, np.arange(len(filled)), 0))
    return np.flatnonzero((filled == 0) & (filled[last] > _MOSTLY))


def _each(files: FileRows, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray | Exception]]:
    """Yield each row's cone as it is, or the error that reading it gave."""
    for part in files.parts(rows):
        try:
            yield from zip(part.tolist(), files.read_raw(part), strict=True)
        except (OSError, MemoryError):
            for row in part.tolist():  # which of them is it?
                try:
                    yield row, files.read_raw(np.array([row]))[0]
                except (OSError, MemoryError) as error:
                    raise_if_out_of_handles(error, files.origin(row)[0].path)
                    yield row, error


def _worth_comparing(files: FileRows, good: np.ndarray, cones: Bunch) -> np.ndarray:
    """Rows to look for duplicates among, where not all are read.

    They are those with a digest in a sealed file, and those with equal seeds and parameters, the
    only ones whose cells there is reason to read.
    """
    rows = np.flatnonzero(good)
    worth = np.array([source.sealed for source in files.sources])[files.source_of(rows)]
    if cones.seeds is not None and cones.target is not None:
        labels = [(int(cones.seeds[row]), cones.target[row].tobytes()) for row in rows]
        counts = Counter(labels)
        worth |= np.array([counts[label] > 1 for label in labels], dtype=bool)
    return rows[worth]
