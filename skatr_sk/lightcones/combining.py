"""Files side by side: one array, one target, and what only some of the files have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.utils import Bunch

from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.formats import Fault, FileMetadata
from skatr_sk.lightcones.grids import cropping
from skatr_sk.lightcones.quality import Report

__all__ = ["choose_parameters", "combine"]


def choose_parameters(
    files: Sequence[FileMetadata], asked: Sequence[str] | None, report: Report
) -> tuple[list[str], list[FileMetadata]]:
    """Choose the target's columns, and leave out files that have not all of them in one unit.

    Parameters
    ----------
    files : sequence of FileMetadata
    asked : sequence of str or None
        Names; None are those that most files offer.
    report : Report
        Takes the faults.

    Returns
    -------
    names : list of str
    kept : list of FileMetadata
    """
    if asked is not None:
        names = list(asked)
    else:
        offered = list(dict.fromkeys(name for file in files for name in file.offered))
        names = [n for n in offered if 2 * sum(n in file.offered for file in files) > len(files)]
    kept = []
    for file in files:
        there = file.offered if asked is None else file.parameters
        lacking = ", ".join(name for name in names if name not in there)
        has = ", ".join(sorted(file.parameters)) or "no parameters"
        detail = (
            f"no {lacking}, which most have" if asked is None else f"no {lacking}; it has {has}"
        )
        if lacking:
            report.add(file.path, -1, Fault("parameters", detail))
        else:
            kept.append(file)
    for name in names:
        kept = _in_one_unit(kept, name, report)
    return names, kept


def _in_one_unit(files: list[FileMetadata], name: str, report: Report) -> list[FileMetadata]:
    """Leave out files that state another unit of a parameter than most."""
    stated: Counter = Counter()
    for file in files:
        stated[file.units.get(name, "")] += file.n_rows
    stated.pop("", None)
    if len(stated) < 2:
        return files
    usual = stated.most_common(1)[0][0]
    kept = []
    for file in files:
        found = file.units.get(name, "")
        if found in ("", usual):
            kept.append(file)
        else:
            detail = f"{name} in {found!r}; most have it in {usual!r}. Bring it to one unit"
            report.add(file.path, -1, Fault("units", detail))
    return kept


def combine(files: Sequence[FileMetadata], names: list[str], notes: list[str]) -> Bunch:
    """One array of the rows of all files, cropped to the shortest line of sight.

    Parameters
    ----------
    files : sequence of FileMetadata
        At least one, that agree with each other.
    names : list of str
        Of the target's columns; all files have them.
    notes : list of str
        Takes what is lost because only some of the files have it.

    Returns
    -------
    `~sklearn.utils.Bunch`
        With ``data, target, target_names, target_units, target_bounds, redshifts, seeds``.
    """
    lost = cropping(files)
    if lost is not None:
        notes.append(lost)
    n_z = min(file.field_shape[-1] for file in files)
    target = None
    if names:
        columns = [np.concatenate([file.parameters[name] for file in files]) for name in names]
        target = np.stack(columns, axis=1)
    grids = _of_all("redshifts", [file.redshifts for file in files], files, notes)
    seeds = _of_all("seeds", [file.seeds for file in files], files, notes)
    return Bunch(
        data=LightconeArray([file.source.cropped(n_z) for file in files]),
        target=target,
        target_names=names,
        target_units=[next((f.units[n] for f in files if f.units.get(n)), "") for n in names],
        target_bounds=_bounds(files, names, notes),
        redshifts=None if grids is None else np.concatenate([grid[:, :n_z] for grid in grids]),
        seeds=None if seeds is None else np.concatenate(seeds),
    )


def _of_all(
    what: str,
    found: Sequence[np.ndarray | None],
    files: Sequence[FileMetadata],
    notes: list[str],
) -> list[np.ndarray] | None:
    """Return what all files have; None, and a note where some have it and some have not."""
    there = [values for values in found if values is not None]
    if len(there) == len(found):
        return there
    if there:
        lacking = [file.path for file, values in zip(files, found, strict=True) if values is None]
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        notes.append(f"{what} are None, for {lacking[0]}{more} has none")
    return None


def _bounds(files: Sequence[FileMetadata], names: list[str], notes: list[str]) -> np.ndarray | None:
    """Return the prior box where it is one for all files."""
    if not names:
        return None
    boxes = _of_all("target_bounds", [file.bounds for file in files], files, notes)
    if boxes is None:
        return None
    chosen = [
        box[[list(file.parameters).index(name) for name in names]]
        for file, box in zip(files, boxes, strict=True)
    ]
    for file, box in zip(files, chosen, strict=True):
        if not np.array_equal(box, chosen[0]):
            usual = files[0].path
            notes.append(f"target_bounds are None, for {file.path} has others than {usual}")
            return None
    return chosen[0]
