"""open_lightcones: files of light cones, in whatever format, as one array that is read lazily."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import Choice, Problems
from skatr_sk.lightcones.bundle import import_pandas
from skatr_sk.lightcones.contents import (
    Contents,
    Fault,
    look_into_npy,
    look_into_npz,
    look_into_stack,
)
from skatr_sk.lightcones.cosmology import HUBBLE
from skatr_sk.lightcones.files import DAMAGED
from skatr_sk.lightcones.handles import close_files
from skatr_sk.lightcones.joining import agree_on_units, join
from skatr_sk.lightcones.quality import Report, check_rows, check_together
from skatr_sk.lightcones.simulation import look_into_simulation

__all__ = ["SUFFIXES", "find_files", "open_lightcones"]

SUFFIXES = (".h5", ".hdf5", ".hdf", ".npz", ".npy")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def open_lightcones(
    source: Paths,
    *,
    dataset: str | None = None,
    parameters: Sequence[str] | None = None,
    validate: str | bool = "fast",
    on_bad: str = "raise",
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
        * an ``.npz`` with the arrays ``image`` and ``label``, as the authors of SKATR [1]_ store
          their light cones; six labels are taken to be the parameters of the paper in its order,
        * an ``.npy`` with cones ``(n, *field_shape)``.
    dataset : str, optional
        Name of the voxels: of the dataset in an HDF5 file, of the field in a file of 21cmFAST
        (default ``brightness_temp``), of the array in an ``.npz``. Default is to find them.
    parameters : sequence of str, optional
        Which parameters make the target, in this order. Of a file of 21cmFAST any number of its
        input can be had by its name there, such as ``"SIGMA_8"``. Default are all that an HDF5 or
        npz file has, and those of the six of :func:`load_lightcones` that a simulation used.
    validate : {"fast", "full", False}, default="fast"
        Every file is looked into: whether it can be opened and is finished, has the datasets, is
        not there twice, and agrees with the others in its sky, its cells, its units and its
        redshifts: the same ones, or cells of the same comoving size in the cosmology of each cone,
        as far as ``Omega_m`` is known. "fast" also reads a few cones, and looks for duplicates
        where digests or equal seeds and parameters make that cheap. "full" reads all voxels, once,
        for NaN and infinite cells, slices that are zero throughout, duplicates, and values that an
        index does not belong to.
    on_bad : {"raise", "drop"}, default="raise"
        Raise an error that lists what is wrong, or leave these files and rows out, with a warning.
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
          ``on_bad="drop"``.

    Raises
    ------
    FileNotFoundError
        When there is no such file or folder.
    ValueError
        When something is wrong with files or rows, or a parameter of this call is.

    Warns
    -----
    UserWarning
        When something was left out, lines of sight are cropped, only some of the files have
        seeds, redshifts or a prior box (or prior boxes differ), and when grids can be told to be
        one neither by their redshifts nor by their comoving cells.

    References
    ----------
    .. [1] A. Ore, C. Heneka and T. Plehn, "SKATR: A self-supervised summary transformer for
       SKA", SciPost Phys. 18, 155 (2025), arXiv:2410.18899.

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
    _check_options(validate, on_bad, parameters)
    # Before any file is looked into: a wish that cannot be met should fail at once.
    pandas = import_pandas() if as_frame else None
    # A file that was written to since it was opened would be seen as it was: HDF5 remembers.
    close_files()
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike):
        source = list(source)  # once: it may be a generator
    report, notes = Report(), list[str]()
    files = _look_into_all(find_files(source), dataset, report)
    files = check_together(files, report)
    names = _choose(files, parameters)
    files = _with_parameters(files, names, asked=parameters is not None, report=report)
    files = agree_on_units(files, names, report)
    if not files:
        raise ValueError(f"No light cones can be read from {_shown(source)}:\n{report}")
    cones = join(files, names, notes)
    cosmology = _known(files, ("Omega_m", "OMm"), np.nan), _known(files, ("hlittle",), HUBBLE)
    try:
        good = check_rows(
            cones.data,
            cones.redshifts,
            cosmology,
            cones.target,
            cones.seeds,
            validate,
            report,
            notes,
        )
    finally:
        close_files()  # whoever mends what is wrong must be able to write
    if len(report):
        _settle(cones, good, report, on_bad, _shown(source))
    if notes:
        listed = "\n- ".join(["", *notes])
        message = f"Of the light cones in {_shown(source)}:{listed}"
        warnings.warn(message, UserWarning, stacklevel=2)
    if cones.target is not None and all(c.flat for c in files) and len(names) == 1:
        cones.target = cones.target[:, 0]
    cones.report = report.table()
    if pandas is not None:
        cones.report = pandas.DataFrame.from_records(cones.report)
        if cones.target is not None:
            cones.target = pandas.DataFrame(cones.target, columns=names)
    return cones


def find_files(source: Paths) -> list[str]:
    """Absolute paths of the files that a path, a folder or a list names.

    Examples
    --------
    >>> find_files("no/such/cones.h5")
    Traceback (most recent call last):
    ...
    FileNotFoundError: There is no file or folder no/such/cones.h5. ...
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise FileNotFoundError(
                    f"There are no light cones in {path}: expected files that end in one of "
                    f"{', '.join(SUFFIXES)}."
                )
            return [os.path.abspath(p) for p in found]
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}. Check the spelling.")
        return [os.path.abspath(path)]
    if not isinstance(source, Iterable):
        raise TypeError(f"source must be a path or a list of paths; found {source!r}.")
    paths = [os.path.abspath(path) for path in source]
    if not paths:
        raise ValueError("source is an empty list; expected at least one file of light cones.")
    return paths


def _check_options(validate: Any, on_bad: Any, parameters: Any) -> None:
    problems = Problems("open_lightcones")
    if validate is not False and validate not in ("fast", "full"):
        problems.add("validate", "'fast', 'full' or False", validate)
    problems.check({"on_bad": Choice("raise", "drop")}, {"on_bad": on_bad})
    if isinstance(parameters, str):
        problems.add("parameters", "a list of names", parameters, f"write [{parameters!r}]")
    elif parameters is not None and len(set(parameters)) < len(parameters):
        problems.add("parameters", "names of which no two are alike", list(parameters))
    problems.raise_if_any()


def look_into(path: str, dataset: str | None = None) -> Contents:
    """Find out what a file holds, from its layout alone; raise a Fault where it cannot be told."""
    try:
        if path.lower().endswith(".npz"):
            return look_into_npz(path, dataset)
        if path.lower().endswith(".npy"):
            return look_into_npy(path)
        with h5py.File(path, "r") as file:
            if isinstance(file.get("lightcones"), h5py.Group):
                return look_into_simulation(path, file, dataset)
            return look_into_stack(path, file, dataset)
    except FileNotFoundError as error:
        raise Fault("missing", "there is no such file") from error
    except DAMAGED as error:
        raise Fault("unreadable", str(error) or type(error).__name__) from error


def _look_into_all(paths: Sequence[str], dataset: str | None, report: Report) -> list[Contents]:
    files = []
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            _check_new(path, seen)
            files.append(look_into(path, dataset))
        except Fault as fault:
            report.add(path, -1, fault)
    return files


def _check_new(path: str, seen: dict[tuple[int, int], str]) -> None:
    """Refuse a file that is there already, under the same name or through a link."""
    try:
        found = os.stat(path)
    except OSError:
        return  # what is wrong with it will be said
    key = found.st_dev, found.st_ino
    if key in seen:
        raise Fault("duplicate", f"the same file as {seen[key]}")
    seen[key] = path


def _choose(files: Sequence[Contents], parameters: Sequence[str] | None) -> list[str]:
    """Names of the target's columns: those asked for, or those that most files offer."""
    if parameters is not None:
        return list(parameters)
    names = list(dict.fromkeys(name for c in files for name in c.offered))
    return [n for n in names if 2 * sum(n in c.offered for c in files) > len(files)]


def _with_parameters(
    files: Sequence[Contents], names: Sequence[str], asked: bool, report: Report
) -> list[Contents]:
    """Leave out files that lack a parameter, or did not use one that the others did."""
    kept = []
    for contents in files:
        there = contents.parameters if asked else contents.offered
        lacking = ", ".join(name for name in names if name not in there)
        if lacking:
            has = ", ".join(sorted(contents.parameters)) or "no parameters"
            detail = f"no {lacking}; it has {has}" if asked else f"no {lacking}, which most have"
            report.add(contents.source.path, -1, Fault("parameters", detail))
        else:
            kept.append(contents)
    return kept


def _known(files: Sequence[Contents], names: Sequence[str], otherwise: float) -> np.ndarray:
    """A parameter of all rows, under one of these names or what else it is taken to be."""
    columns = []
    for contents in files:
        name = next((name for name in names if name in contents.parameters), None)
        rows = contents.source.n_rows
        columns.append(np.full(rows, otherwise) if name is None else contents.parameters[name])
    return np.concatenate(columns)


def _settle(cones: Bunch, good: np.ndarray, report: Report, on_bad: str, shown: str) -> None:
    """Raise what is wrong, or leave it out and say so."""
    n = len(report)
    title = f"{n} thing{'s are' if n > 1 else ' is'} wrong with the light cones in {shown}:"
    if on_bad == "raise":
        raise ValueError(
            f"{title}\n{report}\nMend or remove these files, or leave them out with "
            "open_lightcones(..., on_bad='drop'), which returns the whole list as `report`."
        )
    if not good.any():
        raise ValueError(f"{title}\n{report}\nNo light cone is left.")
    warnings.warn(
        f"{title}\n{report}\nThese are left out; the list is `report` of what is returned.",
        UserWarning,
        stacklevel=3,
    )
    cones.data = cones.data[good]
    for name in ("target", "redshifts", "seeds"):
        if cones[name] is not None:
            cones[name] = cones[name][good]


def _shown(source: Paths) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    paths = list(source)
    return f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
