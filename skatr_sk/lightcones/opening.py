"""open_lightcones: files of light cones, in whatever format, as one array that is read lazily."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import (
    Choice,
    Flag,
    Instance,
    Rule,
    check_options,
    is_path,
    listed,
    require,
    warn,
)
from skatr_sk._files import check_regular
from skatr_sk.fields import BEYOND_PHYSICS, misplaced_axis
from skatr_sk.lightcones.combining import choose_parameters, combine, name_labels
from skatr_sk.lightcones.formats import Fault, FileMetadata, Undecided, look_into
from skatr_sk.lightcones.formats.metadata import CELLS
from skatr_sk.lightcones.grids import cosmology_of
from skatr_sk.lightcones.quality import Report, check_rows, check_together
from skatr_sk.lightcones.repair import BEYOND_ANYTHING
from skatr_sk.lightcones.sources import close_files, explain

__all__ = ["SUFFIXES", "Paths", "find_files", "open_lightcones"]

SUFFIXES = (".h5", ".hdf5", ".hdf", ".npz", ".npy")
_Path: TypeAlias = str | os.PathLike[str] | h5py.File
Paths: TypeAlias = _Path | Iterable[_Path]
_KELVIN = 1000.0  # mK


def _are_paths(value: Any) -> bool | str:
    each = value if isinstance(value, list) else [value]
    # Bool of an h5py.File: whether it is open; of another there is no name to be had.
    for path in each:
        if isinstance(path, h5py.File) and not (path and path.mode == "r"):
            return "close it, and give its path: what is open for writing may not be written yet"
    return all(isinstance(path, h5py.File) or is_path(path) for path in each)


def _is_a_name(value: Any) -> bool | str:
    if isinstance(value, list | tuple):
        return "light cones have one field; open each by its name, and join what becomes of them"
    return isinstance(value, str)


def _are_names(value: Any) -> bool | str:
    if isinstance(value, str):
        return f"write [{value!r}]"
    return isinstance(value, Collection) and len(set(map(str, value))) == len(value)


_OPTIONS = {
    "source": Rule(_are_paths, "a path or a list of paths"),
    "dataset": Rule(_is_a_name, "a name", optional=True),
    "parameters": Rule(_are_names, "names of which no two are alike", optional=True),
    "one_per_file": Instance(bool, np.bool_, expected="True or False", optional=True),
    "flip": Flag(),
    "units": Choice("mK", "K", optional=True),
    "validate": Rule(lambda v: v is False or v in ("fast", "full"), "'fast', 'full' or False"),
    "on_bad": Choice("raise", "drop"),
    "repair": Flag(),
    "as_frame": Flag(),
}


def open_lightcones(
    source: Paths,
    *,
    dataset: str | None = None,
    parameters: Sequence[str] | None = None,
    one_per_file: bool | None = None,
    flip: bool = False,
    units: str | None = None,
    validate: str | bool = "fast",
    on_bad: str = "raise",
    repair: bool = False,
    as_frame: bool = False,
) -> Bunch:
    """Open light cones in files, without reading more of them than a check needs.

    Parameters
    ----------
    source : path or sequence of paths
        A file, a folder (all its files that end in ``.h5``, ``.hdf5``, ``.hdf``, ``.npz`` or
        ``.npy``, by name), a pattern such as ``"~/runs/*.h5"``, an `h5py.File` that is open for
        reading, or a list of these. A file is one of

        * an HDF5 file or an ``.npz`` with cones ``(n, *field_shape)`` or one cone, and perhaps
          other arrays beside them: parameters (``parameters``, ``params``, ``label(s)``,
          ``target(s)``, ``theta``, ``y``; or a group of these names), ``redshifts``, ``seeds``
          (:func:`save_lightcones` writes such a file, and the authors of SKATR, arXiv:2410.18899,
          one cone in each ``.npz``),
        * a light-cone file of 21cmFAST 3 or 4; buffer slices of version 4 are cut off, and all
          lines of sight are cropped to the shortest, with a warning,
        * an ``.npy`` with cones ``(n, *field_shape)``, or with one cone.

        Cones that are stored far first are read nearest first where their redshifts say so, and
        those in kelvin in mK where the attribute ``units`` does.
    dataset : str, optional
        Name of the cells: of the dataset in an HDF5 file, of the field in a file of 21cmFAST
        (default ``brightness_temp``), of the array in an ``.npz``. Default is to find them.
    parameters : sequence of str, optional
        Which parameters make the target, in this order. Any number among the inputs of 21cmFAST
        can be one, by its name there, such as ``"SIGMA_8"``. Default are all that an HDF5 or npz
        file has, and those of the six of :func:`load_lightcones` that a simulation used. Labels
        without names get these, one for each column. By default six of them are the paper's where
        their values show it, log10_L_X from 30 to 45 and E_0 above, in whichever order they are
        stored; others are numbered.
    one_per_file : bool, optional
        Whether a file has one cone rather than a stack. Default is to tell by the number of axes,
        by labels and redshifts, and, of several files of three axes, by a square sky.
    flip : bool, default=False
        Whether the farthest slice is stored first, where no redshifts say so.
    units : {"mK", "K"}, optional
        Of the stored cells, where the file does not say. Default is mK.
    validate : {"fast", "full", False}, default="fast"
        Every file is looked into: whether it can be opened and is finished, has the datasets, is
        not there twice, and agrees with the others in its sky, its cells, its units and its
        redshifts: the same ones, or cells of the same comoving size in the cosmology of each cone,
        as far as ``Omega_m`` is known. "fast" also reads a few cones, and looks for duplicates
        where digests or equal seeds and parameters make that cheap. "full" reads all cells, once,
        for cells that are NaN, infinite or beyond physics (5000 mK, ten times the deepest
        absorption; usual fill values within it count too), slices that were not computed,
        duplicates, and values that an index does not belong to.
    on_bad : {"raise", "drop"}, default="raise"
        Raise an error that lists what is wrong, or leave these files and rows out, with a warning.
    repair : bool, default=False
        Replace single cells that are NaN, infinite or beyond physics by the mean of the cells
        beside them, whenever they are read: at most one in a hundred of a light cone, each with
        more good neighbours than bad. Those that `validate` meets are counted in the report, so
        that "full" counts all. The files stay as they are; an index in them is not used.
    as_frame : bool, default=False
        Give `target` and `report` as DataFrames.

    Returns
    -------
    cones : `~sklearn.utils.Bunch`
        With these attributes:

        * ``data``, LightconeArray of shape (n, ...);
        * ``target``, ndarray or DataFrame of shape (n, n_parameters), or None where there are none;
          one parameter that is stored as a 1-D array comes back as one. NaN is a parameter that
          is not known: it is no fault, unless in the input of a simulation. Infinite ones are;
        * ``target_names``, ``target_units``, lists of str;
        * ``target_bounds``, ndarray of shape (n_parameters, 2) or None: the prior box, where all
          files name the same;
        * ``redshifts``, ndarray of shape (n, n_z) or None, of the slices, nearest first; of files
          of 21cmFAST from the stored comoving distances and the cosmology of the file;
        * ``seeds``, ndarray of int64, shape (n,), or None, of the initial conditions: the groups
          for ``GroupKFold``, since cones of one seed share their density field;
        * ``grid``, :class:`~skatr_sk.lightcones.Grid` or None: cell sizes, as far as files say them
          (the attribute ``cell_mpc`` of HDF5, 21cmFAST's inputs) or redshifts and ``Omega_m`` do,
          and the redshifts of a typical cone; ``data.grid`` is the same;
        * ``report``, structured array or DataFrame with the columns ``file, row, fault, detail``,
          one line for each thing that is wrong; row -1 is the whole file. Empty unless
          ``on_bad="drop"``, or ``repair=True``: then rows of the fault "repaired" are kept.

    Raises
    ------
    FileNotFoundError
        When there is no such file or folder.
    OSError
        When this process has too many files open to look into another.
    ValueError
        When something is wrong with files or rows, or a parameter of this call is; when the line
        of sight is not the last axis, or nothing tells whether files have cones or maps. Whatever a
        damaged file does to those who read it is listed here; so is what would read zeros
        (virtual datasets, links out of the file, parts that were never written) and what says
        that it is far larger than its bytes.

    Warns
    -----
    UserWarning
        When something was left out or repaired, lines of sight are cropped, only some of the files
        have seeds, redshifts or a prior box (or prior boxes differ), and when neither redshifts nor
        comoving cells show that the grids are the same. When labels are put into the paper's order,
        cones read nearest first or in mK, a parameter is lost that few files have, versions of
        21cmFAST are mixed, or one of two fields was taken.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skatr_sk import open_lightcones
    >>> folder = tempfile.mkdtemp()
    >>> for k in range(3):
    ...     np.savez(os.path.join(folder, f"run{k}.npz"), image=np.full((2, 2, 5), k + 1.0),
    ...              label=[3.0, 0.3, 500.0, 40.5, 4.7, 30.0 + k])
    >>> cones = open_lightcones(folder, parameters=["Omega_m", "zeta"])
    >>> cones.data.shape, cones.target[2]
    ((3, 2, 2, 5), array([ 0.3, 32. ]))
    """
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike | h5py.File):
        source = list(source)  # once: it may be a generator
    given: tuple[Any, ...] = (source, dataset, parameters, one_per_file, flip, units)
    given += (validate, on_bad, repair, as_frame)
    check_options("open_lightcones", _OPTIONS, dict(zip(_OPTIONS, given, strict=True)))
    # Before any file is looked into: a wish that cannot be met should fail at once.
    pandas = require("pandas", "as_frame=True") if as_frame else None
    # A file that was written to since it was opened would be seen as it was: HDF5 remembers.
    close_files()
    report, repaired, notes = Report(), Report(), list[str]()
    shown = listed(_names(source), shown=1)
    files = _look_into_all(find_files(source), dataset, one_per_file, report)
    # Other fields of a simulation have other units.
    in_mk = dataset is None or dataset.rpartition("/")[2] in CELLS
    limit = BEYOND_PHYSICS if in_mk else BEYOND_ANYTHING
    if repair:
        for file in files:
            file.source = file.source.repaired(limit)
    files = _as_stored(files, flip, units, report, notes)
    files = check_together(files, report)
    notes += _asked_of_axes({file.source.field_shape for file in files})
    files = name_labels(files, parameters, report, notes)
    names, files = choose_parameters(files, parameters, report, notes)
    if not files:
        raise ValueError(f"No light cones can be read from {shown}:\n{report}")
    cones = combine(files, names, notes)
    try:
        cosmology = cosmology_of(files)
        sized = all(file.cell_size and file.cell_size[-1] for file in files)
        good = check_rows(
            cones, cosmology, validate, limit, report, repaired, notes, of_one_size=sized
        )
    finally:
        close_files()  # whoever mends what is wrong must be able to write
    if report:
        _settle(cones, good, report, on_bad, shown)
    if repaired:
        notes.append(f"cells of {len(repaired)} light cones were repaired:\n{repaired}")
    if notes:
        warn("\n- ".join([f"Of the light cones in {shown}:", *notes]))
    if cones.target is not None and all(file.flat for file in files) and len(names) == 1:
        cones.target = cones.target[:, 0]
    cones.report = Report([*report, *repaired]).table()
    if pandas is not None:
        cones.report = pandas.DataFrame.from_records(cones.report)
        if cones.target is not None:
            cones.target = pandas.DataFrame(cones.target, columns=names)
    return cones


def find_files(source: Paths) -> list[str]:
    """Absolute paths of the files that a path, a folder or a list names."""
    if not isinstance(source, str | os.PathLike | h5py.File):
        named = (Path(path) for name in _names(source) for path in _matching(name))
        paths = [path for one in named for path in (_inside(one) if one.is_dir() else [one])]
        if not paths:
            wanted = "at least one file of light cones"
            raise ValueError(f"source: expected {wanted}, found an empty list.")
    elif len(found := _matching(_names(source)[0])) != 1:
        paths = [Path(path) for path in found]
    elif not os.path.exists(path := Path(found[0])):
        mend = "Its link leads nowhere" if os.path.islink(path) else "Check the spelling"
        raise FileNotFoundError(f"There is no file or folder {path}. {mend}.")
    elif path.is_dir():
        paths = _inside(path)
    else:
        paths = [path]
    return [os.path.abspath(path) for path in paths]


def _inside(folder: Path) -> list[Path]:
    """Files of light cones in a folder, by name, without those that a system hides."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if not path.name.startswith("._")]
    if not paths:
        expected = f"expected files that end in one of {', '.join(SUFFIXES)}"
        raise FileNotFoundError(f"There are no light cones in {folder}: {expected}.")
    return paths


def _names(source: Paths) -> list[str]:
    """Names of what is to be opened, of open files too, with ``~`` for the home."""
    each = [source] if isinstance(source, str | os.PathLike | h5py.File) else list(source)
    named = [path.filename if isinstance(path, h5py.File) else os.fspath(path) for path in each]
    return [os.path.expanduser(name) for name in named]


def _matching(name: str) -> list[str]:
    """Files that a pattern such as ``runs/*.h5`` matches, by name; the name itself without any."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(name, recursive=True)) or [name]


def _look_into_all(
    paths: Sequence[str], dataset: str | None, one: bool | None, report: Report
) -> list[FileMetadata]:
    """Look into files; one that is there already, perhaps through a link, is a fault.

    What those are that do not say whether they are one cone is told when all are known.
    """
    files: dict[str, FileMetadata] = {}
    open_question: dict[str, tuple[int, ...]] = {}
    seen: dict[tuple[int, int], str] = {}

    def look(path: str, one: bool | None, again: bool = False) -> None:
        try:
            found = _state_of(path)
            key = found.st_dev, found.st_ino
            if key in seen and not again:
                raise Fault("duplicate", f"the same file as {seen[key]}")
            seen.setdefault(key, path)
            files[path] = look_into(path, found, dataset, one)
        except Fault as fault:
            report.add(path, -1, fault)
        except Undecided as question:
            open_question[path] = question.shape

    for path in paths:
        look(path, one)
    fields = {file.source.field_shape for file in files.values()}
    answers = _settle_axes(open_question, fields)
    for path, shape in open_question.items():
        if (answer := answers[path]) is not None:
            look(path, answer, again=True)
            continue
        found = f"{path} with cells of shape {shape}: one light cone, or {shape[0]} maps?"
        says = "one_per_file=True reads one from each file, one_per_file=False maps"
        if (axis := misplaced_axis(shape)) is not None:
            says += f"; of one, numpy.moveaxis(cells, {axis}, -1) puts the line of sight last"
        if not files:
            raise ValueError(f"one_per_file: expected True or False, found {found} {says}.")
        report.add(path, -1, Fault("axes", f"cells of shape {shape}; {says}"))
    return [files[path] for path in dict.fromkeys(paths) if path in files]


def _settle_axes(
    shapes: Mapping[str, tuple[int, ...]], known: Collection[tuple[int, ...]]
) -> dict[str, bool | None]:
    """Tell of cells of three axes whether they are one light cone, or maps, or None: ask.

    `shapes` are those of the files that do not say, `known` those of the fields in the others.
    Light cones have a square sky and another length. One such file may be maps all the same; of
    several, cones. Stacks of maps differ in their number, or come alone.
    """
    square = [a == b != c for a, b, c in shapes.values()]
    cones = len(shapes) > 1 and 2 * sum(square) > len(shapes)
    each_its_number = len({s[0] for s in shapes.values()}) == len(shapes)
    maps = not any(s[0] == s[1] for s in shapes.values()) and each_its_number
    maps = maps and len({s[1:] for s in shapes.values()}) == 1
    found: dict[str, bool | None] = dict.fromkeys(
        shapes, True if cones else False if maps else None
    )
    for path, shape in shapes.items():
        if shape in known or shape[1:] in known:
            found[path] = shape in known
    return found


def _asked_of_axes(shapes: Iterable[tuple[int, ...]]) -> list[str]:
    """Ask of fields whose axis of length 1 looks like one of channels."""
    asked = []
    for shape in sorted(shapes):
        axis = -1 if shape[1:] and shape[-1] == 1 else 1 if len(shape) > 3 and shape[0] == 1 else 0
        if axis:
            asked.append(
                f"cells of shape (n, {', '.join(map(str, shape))}): is the axis of length 1 one of "
                f"channels? Then save numpy.squeeze(cells, {axis}); the line of sight comes last"
            )
    return asked


def _as_stored(
    files: Sequence[FileMetadata], flip: bool, units: str | None, report: Report, notes: list[str]
) -> list[FileMetadata]:
    """Read light cones that are stored far first, or in kelvin, nearest first and in mK.

    By what the user says, or the file: its redshifts, or its unit. Where they contradict each
    other the file is left out.
    """
    kinds: tuple[list[str | None], list[str | None]] = [], []
    turned, kelvin = list[str](), list[str]()
    for file in files:
        grid = file.redshifts
        if grid is None and file.typical is not None:
            grid = np.array([file.typical])
        rank, falls, rises = len(file.source.field_shape), False, False
        if grid is not None and grid.shape[1] > 1:
            falls, rises = (bool((s * np.diff(grid, axis=1) > 0).all()) for s in (-1.0, 1.0))
        wrong = rank == 2 or rises
        why = "its redshifts rise, nearest first" if rises else "maps have no line of sight"
        kinds[0].append(f"flip=True; but {why}" if flip and wrong else None)
        contrary = units and file.unit and units != file.unit
        kinds[1].append(f"units={units!r}; but the file says {file.unit!r}" if contrary else None)
        far_first = rank != 2 and (flip or falls)
        scale = _KELVIN if (units or file.unit) == "K" else 1.0
        file.source = file.source.seen_as(flip=far_first, scale=scale)
        if far_first:
            file.redshifts = None if file.redshifts is None else file.redshifts[:, ::-1]
            turned += [] if flip else [file.source.path]
        if scale != 1 and units is None:
            kelvin.append(file.source.path)
    if turned:
        some = listed(turned, shown=1)
        notes.append(f"the redshifts fall in {some}: these cones are read nearest first")
    if kelvin:
        some = listed(kelvin, shown=1)
        notes.append(f"the cells are in kelvin in {some}, which says so: they are read in mK")
    each = zip(*kinds, strict=True)
    kept = report.leave_out(files, "grid", kinds[0])
    left = [unit for turn, unit in each if turn is None]
    return report.leave_out(kept, "units", left)


def _state_of(path: str) -> os.stat_result:
    try:
        return check_regular(path)
    except FileNotFoundError as error:
        raise Fault("missing", "there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise Fault("unreadable", explain(error)) from error


def _settle(cones: Bunch, good: np.ndarray, report: Report, on_bad: str, shown: str) -> None:
    """Raise what is wrong, or leave it out and say so."""
    n = len(report)
    are = "s are" if n > 1 else " is"
    wrong = f"{n} thing{are} wrong with the light cones in {shown}:\n{report}\n"
    if on_bad == "raise":
        raise ValueError(
            f"{wrong}Mend or remove these files, or leave them out with open_lightcones(..., "
            "on_bad='drop'), which returns the whole list as `report`."
        )
    if not good.any():
        raise ValueError(f"{wrong}No light cone is left.")
    warn(f"{wrong}These are left out; the list is `report` of what is returned.")
    cones.data = cones.data[good]
    for name in ("target", "redshifts", "seeds"):
        if cones[name] is not None:
            cones[name] = cones[name][good]
