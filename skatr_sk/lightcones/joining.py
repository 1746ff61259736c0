"""Contents of files side by side: one array, one target, and what only some of the files have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.utils import Bunch

from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.contents import Contents, Fault
from skatr_sk.lightcones.grids import cropping
from skatr_sk.lightcones.quality import Report

__all__ = ["agree_on_units", "join"]


def agree_on_units(
    files: Sequence[Contents], names: Sequence[str], report: Report
) -> list[Contents]:
    """Leave out files that have a parameter in another unit than most; an empty one is not stated.

    Parameters
    ----------
    files : sequence of Contents
    names : sequence of str
        Of the target's columns.
    report : Report
        Takes the faults.

    Returns
    -------
    list of Contents
    """
    kept = list(files)
    for name in names:
        stated: Counter = Counter()
        for contents in kept:
            stated[contents.units.get(name, "")] += contents.source.n_rows
        stated.pop("", None)
        if len(stated) < 2:
            continue
        usual = stated.most_common(1)[0][0]
        odd = [c for c in kept if c.units.get(name, "") not in ("", usual)]
        for contents in odd:
            found = contents.units[name]
            detail = f"{name} in {found!r}; most have it in {usual!r}. Bring it to one unit"
            report.add(contents.source.path, -1, Fault("units", detail))
        kept = [c for c in kept if not any(c is one for one in odd)]
    return kept


def join(files: Sequence[Contents], names: list[str], notes: list[str]) -> Bunch:
    """One array of the rows of all files, cropped to the shortest line of sight.

    Parameters
    ----------
    files : sequence of Contents
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
    n_z = min(c.source.field_shape[-1] for c in files)
    target = None
    if names:
        columns = [np.concatenate([c.parameters[name] for c in files]) for name in names]
        target = np.stack(columns, axis=1)
    units = [next((c.units[n] for c in files if c.units.get(n)), "") for n in names]
    grids = _of_all("redshifts", [(c, c.redshifts) for c in files], notes)
    seeds = _of_all("seeds", [(c, c.seeds) for c in files], notes)
    return Bunch(
        data=LightconeArray([c.source.cropped(n_z) for c in files]),
        target=target,
        target_names=names,
        target_units=units,
        target_bounds=_bounds(files, names, notes),
        redshifts=None if grids is None else np.concatenate([grid[:, :n_z] for grid in grids]),
        seeds=None if seeds is None else np.concatenate(seeds),
    )


def _of_all(
    what: str, found: Sequence[tuple[Contents, np.ndarray | None]], notes: list[str]
) -> list[np.ndarray] | None:
    """Return what all files have; None, and a note where some have it and some have not."""
    there = [values for _, values in found if values is not None]
    if len(there) == len(found):
        return there
    if there:
        lacking = [c.source.path for c, values in found if values is None]
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        notes.append(f"{what} are None, for {lacking[0]}{more} has none")
    return None


def _bounds(files: Sequence[Contents], names: list[str], notes: list[str]) -> np.ndarray | None:
    """Return the prior box where it is one for all files."""
    if not names:
        return None
    boxes = _of_all("target_bounds", [(c, c.bounds) for c in files], notes)
    if boxes is None:
        return None
    chosen = [
        box[[list(c.parameters).index(name) for name in names]]
        for c, box in zip(files, boxes, strict=True)
    ]
    for contents, box in zip(files, chosen, strict=True):
        if not np.array_equal(box, chosen[0]):
            notes.append(
                f"target_bounds are None, for {contents.source.path} has others than "
                f"{files[0].source.path}"
            )
            return None
    return chosen[0]
