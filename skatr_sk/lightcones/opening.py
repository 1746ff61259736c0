"""open_lightcones: files of light cones, in whatever format, as one array that is read lazily."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import Choice, Flag, Instance, Rule, check_options, listed, require, warn
from skatr_sk._files import check_regular
from skatr_sk.fields import BEYOND_PHYSICS
from skatr_sk.lightcones.combining import choose_parameters, combine
from skatr_sk.lightcones.formats import Fault, FileMetadata, look_into
from skatr_sk.lightcones.formats.metadata import CELLS
from skatr_sk.lightcones.grids import cosmology_of
from skatr_sk.lightcones.quality import Report, check_rows, check_together
from skatr_sk.lightcones.repair import BEYOND_ANYTHING
from skatr_sk.lightcones.sources import close_files, explain

__all__ = ["SUFFIXES", "Paths", "find_files", "open_lightcones"]

SUFFIXES = (".h5", ".hdf5", ".hdf", ".npz", ".npy")
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def _are_paths(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return all(isinstance(path, str | os.PathLike) for path in each)


def _are_names(value: Any) -> bool | str:
    if isinstance(value, str):
        return f"write [{value!r}]"
    return isinstance(value, Collection) and len(set(map(str, value))) == len(value)


_OPTIONS = {
    "source": Rule(_are_paths, "a path or a list of paths"),
    "dataset": Instance(str, expected="a name", optional=True),
    "parameters": Rule(_are_names, "names of which no two are alike", optional=True),
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
        ``.npy``, by name), or a list of files. A file is one of

        * an HDF5 file with a dataset of cones ``(n, *field_shape)``, and perhaps others beside it:
          parameters, redshifts, seeds (:func:`save_lightcones` writes such a file),
        * a light-cone file of 21cmFAST 3 or 4; buffer slices of version 4 are cut off, and all
          lines of sight are cropped to the shortest, with a warning,
        * an ``.npz`` with the arrays ``image`` and ``label``, as the authors of SKATR
          (arXiv:2410.18899) store their light cones; six labels are taken to be the parameters of
          the paper in its order,
        * an ``.npy`` with cones ``(n, *field_shape)``.
    dataset : str, optional
        Name of the cells: of the dataset in an HDF5 file, of the field in a file of 21cmFAST
        (default ``brightness_temp``), of the array in an ``.npz``. Default is to find them.
    parameters : sequence of str, optional
        Which parameters make the target, in this order. Any number among the inputs of 21cmFAST
        can be one, by its name there, such as ``"SIGMA_8"``. Default are all that an HDF5 or npz
        file has, and those of the six of :func:`load_lightcones` that a simulation used.
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
          one parameter that is stored as a 1-D array comes back as one;
        * ``target_names``, ``target_units``, lists of str;
        * ``target_bounds``, ndarray of shape (n_parameters, 2) or None: the prior box, where all
          files name the same;
        * ``redshifts``, ndarray of shape (n, n_z) or None, of the slices, nearest first; of files
          of 21cmFAST from the stored comoving distances and the cosmology of the file;
        * ``seeds``, ndarray of int64, shape (n,), or None, of the initial conditions: the groups
          for ``GroupKFold``, since cones of one seed share their density field;
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
        When something is wrong with files or rows, or a parameter of this call is. Whatever a
        damaged file does to those who read it is listed here; so is what would read zeros
        (virtual datasets, links out of the file, parts that were never written) and what says
        that it is far larger than its bytes.

    Warns
    -----
    UserWarning
        When something was left out or repaired, lines of sight are cropped, only some of the files
        have seeds, redshifts or a prior box (or prior boxes differ), and when neither redshifts nor
        comoving cells show that the grids are the same.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skatr_sk import open_lightcones
    >>> folder = tempfile.mkdtemp()
    >>> for k in range(3):
    ...     np.savez(os.path.join(folder, f"run{k}.npz"), image=np.full((2, 2, 5), k + 1.0),
    ...              label=np.arange(6.0) + k)
    >>> cones = open_lightcones(folder, parameters=["Omega_m", "zeta"])
    >>> cones.data.shape, cones.target[2]
    ((3, 2, 2, 5), array([3., 7.]))
    """
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike):
        source = list(source)  # once: it may be a generator
    given = (source, dataset, parameters, validate, on_bad, repair, as_frame)
    check_options("open_lightcones", _OPTIONS, dict(zip(_OPTIONS, given, strict=True)))
    # Before any file is looked into: a wish that cannot be met should fail at once.
    pandas = require("pandas", "as_frame=True") if as_frame else None
    # A file that was written to since it was opened would be seen as it was: HDF5 remembers.
    close_files()
    report, repaired, notes = Report(), Report(), list[str]()
    shown = listed([source] if isinstance(source, str | os.PathLike) else source, shown=1)
    files = _look_into_all(find_files(source), dataset, report)
    # Other fields of a simulation have other units.
    in_mk = dataset is None or dataset.rpartition("/")[2] in CELLS
    limit = BEYOND_PHYSICS if in_mk else BEYOND_ANYTHING
    if repair:
        for file in files:
            file.source = file.source.repaired(limit)
    files = check_together(files, report)
    names, files = choose_parameters(files, parameters, report)
    if not files:
        raise ValueError(f"No light cones can be read from {shown}:\n{report}")
    cones = combine(files, names, notes)
    try:
        cosmology = cosmology_of(files)
        good = check_rows(cones, cosmology, validate, limit, report, repaired, notes)
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
    if not isinstance(source, str | os.PathLike):
        paths = [Path(path) for path in source]
        if not paths:
            wanted = "at least one file of light cones"
            raise ValueError(f"source: expected {wanted}, found an empty list.")
    elif not os.path.exists(path := Path(source)):
        mend = "Its link leads nowhere" if os.path.islink(path) else "Check the spelling"
        raise FileNotFoundError(f"There is no file or folder {path}. {mend}.")
    elif path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not paths:
            expected = f"expected files that end in one of {', '.join(SUFFIXES)}"
            raise FileNotFoundError(f"There are no light cones in {path}: {expected}.")
    else:
        paths = [path]
    return [os.path.abspath(path) for path in paths]


def _look_into_all(paths: Sequence[str], dataset: str | None, report: Report) -> list[FileMetadata]:
    """Look into files; one that is there already, perhaps through a link, is a fault."""
    files = []
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            found = _state_of(path)
            key = found.st_dev, found.st_ino
            if key in seen:
                raise Fault("duplicate", f"the same file as {seen[key]}")
            seen[key] = path
            files.append(look_into(path, found, dataset))
        except Fault as fault:
            report.add(path, -1, fault)
    return files


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
