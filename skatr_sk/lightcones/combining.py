"""Files side by side: one array, one target, and what only some of the files have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import listed, spell
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.formats import FileMetadata
from skatr_sk.lightcones.grids import cosmology_of, grid_of
from skatr_sk.lightcones.quality import Report, most_common
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETER_UNITS, name_columns

__all__ = ["choose_parameters", "combine", "name_labels"]


def name_labels(
    files: Sequence[FileMetadata], asked: Sequence[str] | None, report: Report, notes: list[str]
) -> list[FileMetadata]:
    """Name labels that have no names: six by their values, others by what is `asked` or numbers.

    Files whose six labels are the paper's parameters in an order that cannot be told are left out.
    Labels that are all NaN, unknown, have the names that most other files of as many offer; and so
    do six that tell no order where some are NaN, if those that are known agree with them.
    """
    details: list[str | None] = []
    moved, strange = list[str](), list[str]()
    known: list[FileMetadata] = []
    unknown: list[tuple[FileMetadata, np.ndarray]] = []
    for file in files:
        details.append(None)
        if file.bare is None:
            known.append(file)
            continue
        nothing, width = np.isnan(file.bare).all(axis=0), file.bare.shape[1]
        names: Sequence[str] | None = None
        told = None
        try:
            names = name_columns(file.bare) if width == len(PARAMETER_NAMES) else None
        except ValueError as error:
            told = str(error)
        untold = width == len(PARAMETER_NAMES) and names is None and told is None
        if nothing.all() or (untold and nothing.any()):
            unknown.append((file, file.bare))
            continue
        if asked is not None and _renames(file, asked) and set(asked) != set(names or ()):
            names = list(asked)
        elif told is not None:
            details[-1] = told
            continue
        elif names is None and width == len(PARAMETER_NAMES):
            strange.append(file.source.path)
        elif names is not None and tuple(names) != PARAMETER_NAMES:
            moved.append(file.source.path)
        known.append(file)
        _name(file, list(names or file.offered))
        # In the order of the paper, whatever that of the file.
        six = set(file.parameters) == set(PARAMETER_NAMES) and asked is None
        file.offered = PARAMETER_NAMES if six else tuple(file.parameters)
    strange += _name_by_others(unknown, known, asked)
    if moved:
        notes.append(
            f"the labels in {listed(moved, shown=1)} have no names, and by their values log10_L_X "
            "before E_0; the target has them in the order of the paper"
        )
    if strange:
        notes.append(
            f"the six labels in {listed(strange, shown=1)} have no names, and by their values are "
            "not the paper's parameters in its units; parameters=[...] names them"
        )
    return report.leave_out(files, "parameters", details)


def _name_by_others(
    unknown: Sequence[tuple[FileMetadata, np.ndarray]],
    known: Sequence[FileMetadata],
    asked: Sequence[str] | None,
) -> list[str]:
    """Name labels (n, width) whose values do not tell, as those of the files that are known.

    Returned are the paths of files with values that do not agree with these.
    """
    strange = []
    for width in {values.shape[1] for _, values in unknown}:
        alike = [file for file in known if len(file.offered) == width]
        usual = most_common([file.offered for file in alike], alike)
        bare = next((f.bare for f in alike if f.offered == usual and f.bare is not None), None)
        for file, values in [each for each in unknown if each[1].shape[1] == width]:
            is_empty = bool(np.isnan(values).all())
            names = usual if is_empty else _names_beside(bare, values)
            if names is not None:
                _name(file, names)
                file.offered = usual
                continue
            if asked is not None and _renames(file, asked):
                names = asked
            elif not is_empty:
                strange.append(file.source.path)
            _name(file, names or file.offered)
    return strange


def _renames(file: FileMetadata, asked: Sequence[str]) -> bool:
    """Whether the names that are asked for can be those of labels that have numbers as yet."""
    return len(asked) == len(file.offered) and set(asked) != set(file.offered)


def _names_beside(others: np.ndarray | None, values: np.ndarray) -> tuple[str, ...] | None:
    """Names of six columns by the values of another file too, if they agree."""
    try:
        return None if others is None else name_columns(np.concatenate([others, values]))
    except ValueError:
        return None


def _name(file: FileMetadata, names: Sequence[str]) -> None:
    """Give the labels of a file, which have none, their names."""
    values = np.zeros((0, len(names))) if file.bare is None else file.bare
    units = file.bare_units or [PARAMETER_UNITS.get(name, "") for name in names]
    file.parameters = dict(zip(names, values.T, strict=True))
    file.units = dict(zip(names, units, strict=True))
    file.offered = tuple(names)


def choose_parameters(
    files: Sequence[FileMetadata], asked: Sequence[str] | None, report: Report, notes: list[str]
) -> tuple[list[str], list[FileMetadata]]:
    """Choose the target's columns: those that are `asked` for, or those that most files offer.

    Files that lack one of them, or have one in another unit than most, are left out; a ValueError
    names those that are asked for and that no file has. `notes` takes what half of the files or
    fewer offer, and is lost.
    """
    _check_asked(asked or (), files)
    offered = Counter(name for file in files for name in file.offered)
    most = [name for name, n in offered.items() if 2 * n > len(files)]
    names = most if asked is None else list(asked)
    for name in [name for name in offered if asked is None and name not in most]:
        path = next(file.source.path for file in files if name not in file.offered)
        notes.append(
            f"the target has no {name}, for {len(files) - offered[name]} of {len(files)} files do "
            f"not say or use it ({path}); open those with it by themselves"
        )
    writers = Counter(file.writer for file in files if file.writer)
    if len(writers) > 1:
        found = " and ".join(f"{writer} ({n})" for writer, n in sorted(writers.items()))
        notes.append(
            f"files of {found} are mixed: their signals differ at the same parameters, and a model "
            "learns which is which; open each by itself"
        )
    chosen = [file for file in files if file.note]
    if chosen:
        notes.append(f"{chosen[0].note} ({listed([f.source.path for f in chosen], shown=1)})")
    details = []
    for file in files:
        there = file.offered if asked is None else file.parameters
        lacking = ", ".join(name for name in names if name not in there)
        has = listed(sorted(file.parameters)) or "no parameters"
        rest = ", which most have" if asked is None else f"; it has {has}"
        wrong = f"no {lacking}{rest}" if lacking else None
        if file.writer and not lacking:  # labels may be unknown; the input of a simulation is not
            unknown = [name for name in names if np.isnan(file.parameters[name]).any()]
            wrong = f"{', '.join(unknown)}: NaN in the input of a simulation" if unknown else None
        details.append(wrong)
    kept = report.leave_out(files, "parameters", details)
    for name in names:
        units = [file.units.get(name, "") for file in kept]
        usual = most_common(units, kept, besides="")
        mend = f"most have it in {usual!r}. Bring it to one unit"
        details = [None if u in ("", usual) else f"{name} in {u!r}; {mend}" for u in units]
        kept = report.leave_out(kept, "units", details)
    return names, kept


def _check_asked(asked: Sequence[str], files: Sequence[FileMetadata]) -> None:
    known = sorted({name for file in files for name in file.parameters})
    unknown = [name for name in asked if name not in known]
    if not unknown or not files:
        return
    near = [spell(name, known) for name in unknown]
    mend = " ".join(filter(None, near)) or f"there are {listed(known, shown=12) or 'none'}"
    found = ", ".join(map(repr, unknown))
    raise ValueError(f"parameters: expected names that the files have, found {found}; {mend}")


def combine(files: Sequence[FileMetadata], names: list[str], notes: list[str]) -> Bunch:
    """One array of the rows of all files, cropped to the shortest line of sight.

    The files, at least one, agree with each other and have the parameters of these names, the
    target's columns. `notes` takes what is lost because only some of the files have it.
    """
    lengths = [file.source.field_shape[-1] for file in files]
    n_z, longest = min(lengths), max(lengths)
    if n_z < longest:
        shortest = files[lengths.index(n_z)].source.path
        notes.append(f"lines of sight of up to {longest} slices are cropped to {n_z} by {shortest}")
    target = None
    if names:
        columns = [np.concatenate([file.parameters[name] for file in files]) for name in names]
        target = np.stack(columns, axis=1)
    grids, seeds = (_of_all(name, files, notes) for name in ("redshifts", "seeds"))
    redshifts = None if grids is None else np.concatenate([grid[:, :n_z] for grid in grids])
    grid = grid_of(files, redshifts, cosmology_of(files))
    return Bunch(
        data=LightconeArray([file.source.cropped(n_z) for file in files], grid),
        target=target,
        target_names=names,
        target_units=[next((f.units[n] for f in files if f.units.get(n)), "") for n in names],
        target_bounds=_bounds(files, names, notes),
        redshifts=redshifts,
        seeds=None if seeds is None else np.concatenate(seeds),
        grid=grid,
    )


def _of_all(name: str, files: Sequence[FileMetadata], notes: list[str]) -> list[np.ndarray] | None:
    """Return what all files have; None where some have not, with a note if others have."""
    found = [getattr(file, name) for file in files]
    each = zip(files, found, strict=True)
    lacking = [file.source.path for file, values in each if values is None]
    if not lacking:
        return found
    if len(lacking) < len(files):
        notes.append(f"{name} are None, for {listed(lacking, shown=1)} has none")
    return None


def _bounds(files: Sequence[FileMetadata], names: list[str], notes: list[str]) -> np.ndarray | None:
    """Return the prior box where it is one for all files."""
    boxes = _of_all("target_bounds", files, notes) if names else None
    if boxes is None:
        return None
    usual = None
    for file, bounds in zip(files, boxes, strict=True):
        box = bounds[[list(file.parameters).index(name) for name in names]]
        usual = box if usual is None else usual
        if not np.array_equal(box, usual):
            odd, first = file.source.path, files[0].source.path
            notes.append(f"target_bounds are None, for {odd} has others than {first}")
            return None
    return usual
