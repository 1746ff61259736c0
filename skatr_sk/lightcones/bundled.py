"""The real 21cmFAST light cones that come with the package."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, overload

import h5py
import numpy as np
from sklearn.utils import Bunch

from skatr_sk._checks import require
from skatr_sk._files import check_regular
from skatr_sk.grid import Grid
from skatr_sk.lightcones.formats.hdf5 import Stored, find, opened
from skatr_sk.lightcones.formats.metadata import Fault
from skatr_sk.lightcones.sources import explain, raise_if_out_of_handles

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["load_lightcones"]

_BUNDLE = "lightcones_lr_14x14x90.h5"
_DESCRIPTION = "README.md"


def _data_dir() -> Traversable:
    """Folder of the bundled files, wherever the package is installed."""
    return resources.files("skatr_sk.lightcones") / "data"


@overload
def load_lightcones(*, return_X_y: Literal[False] = False, as_frame: bool = False) -> Bunch: ...
@overload
def load_lightcones(
    *, return_X_y: Literal[True], as_frame: bool = False
) -> tuple[np.ndarray, Any]: ...
def load_lightcones(
    *, return_X_y: bool = False, as_frame: bool = False
) -> Bunch | tuple[np.ndarray, Any]:
    """Load the real 21cmFAST light cones that come with the package.

    229 light cones of 21 cm brightness temperature, 200 Mpc (comoving) wide and from redshift 5
    outwards, each with its own initial conditions and its own six parameters [1]_. They are
    block means over 2 x 2 x 5 cells of simulations made with 21cmFAST [2]_ [3]_.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a `~sklearn.utils.Bunch`.
    as_frame : bool, default=False
        Give the targets as a `pandas.DataFrame` with `target_names` as columns. The light cones
        stay an array, for a table has no room for their axes.

    Returns
    -------
    cones : `~sklearn.utils.Bunch`
        With the attributes

        data : ndarray of shape (229, 14, 14, 90), float32
            Brightness temperature in mK, from -362 to 44: two sky axes, then the line of sight
            with the nearest redshift first.
        target : ndarray or DataFrame of shape (229, 6), float64
            Parameters, drawn uniformly within `target_bounds`.
        target_names : list of str
            ``m_WDM`` (mass of the warm dark matter particle), ``Omega_m`` (matter density),
            ``E_0`` (threshold of X-ray self-absorption), ``log10_L_X`` (soft X-ray luminosity
            per star formation rate), ``log10_T_vir`` (smallest virial temperature of star
            forming haloes), ``zeta`` (ionising efficiency).
        target_units : list of str
            keV, none, eV, log10(erg/s/(Msun/yr)), log10(K), none; an empty string is none.
        target_bounds : ndarray of shape (6, 2), float64
            Prior box: [0.3, 10], [0.2, 0.4], [100, 1500], [38, 42], [4, 5.3], [10, 250].
        redshifts : ndarray of shape (229, 90), float32
            At the comoving centre of the cells along the line of sight: from 5 to between 15.6
            (`Omega_m` = 0.2) and 30.0 (0.4). They differ between cones as `Omega_m` does, and
            give it away: they are for plots, not for features.
        seeds : ndarray of shape (229,), int64
            Of the initial conditions, no two alike: the identity of a cone.
        cell_size : ndarray of shape (3,), float64
            Comoving size of a cell in Mpc: 14.3, 14.3, 35.7.
        grid : `~skatr_sk.lightcones.Grid`
            The same, and the redshifts of a typical cone: what later stages compare.
        global_xH : ndarray of shape (229, 20), float32
            Mean neutral fraction of hydrogen, 0 to 1, at the `node_redshifts`.
        node_redshifts : ndarray of shape (229, 20), float32
            Redshifts that the simulation stepped through, farthest first.
        DESCR : str
            Full description: how the cones were made, and what was left out.

    (data, target) : tuple, if ``return_X_y=True``
        The light cones and their parameters alone.

    Raises
    ------
    OSError
        If a file of the installed package is missing (`FileNotFoundError`) or damaged.
    ImportError
        If ``as_frame=True`` and pandas is not installed.

    References
    ----------
    .. [1] A. Ore, C. Heneka and T. Plehn, "SKATR: A self-supervised summary transformer for
       SKA", SciPost Phys. 18, 155 (2025), arXiv:2410.18899, for the parameters and their prior.
    .. [2] A. Mesinger, S. Furlanetto and R. Cen, "21cmFAST: a fast, seminumerical simulation of
       the high-redshift 21-cm signal", MNRAS 411, 955 (2011), arXiv:1003.3878.
    .. [3] S. Murray et al., "21cmFAST v3: A Python-integrated C code for generating 3D
       realizations of the cosmic 21cm signal", JOSS 5(54), 2582 (2020),
       doi:10.21105/joss.02582.

    Examples
    --------
    >>> from skatr_sk import load_lightcones
    >>> cones = load_lightcones()
    >>> cones.data.shape, cones.target.shape
    ((229, 14, 14, 90), (229, 6))
    >>> cones.target_names
    ['m_WDM', 'Omega_m', 'E_0', 'log10_L_X', 'log10_T_vir', 'zeta']
    >>> X, y = load_lightcones(return_X_y=True)
    >>> X.dtype, y.dtype
    (dtype('float32'), dtype('float64'))
    """
    # Before the file is read: a wish that cannot be met should fail at once.
    pandas = require("pandas", "as_frame=True") if as_frame else None
    cones = _read_bundle()
    if pandas is not None:
        cones.target = pandas.DataFrame(cones.target, columns=cones.target_names)
    return (cones.data, cones.target) if return_X_y else cones


def _read_bundle() -> Bunch:
    """Everything in the bundled file, or one sentence on what is wrong with it."""
    folder = _data_dir()
    missing = [name for name in (_BUNDLE, _DESCRIPTION) if not (folder / name).is_file()]
    mend = "Reinstall the package: pip install --force-reinstall --no-deps skatr_sk"
    if missing:
        what = f"{' and '.join(missing)} not found in {folder}"
        raise FileNotFoundError(f"The bundled light cones are incomplete: {what}. {mend}")
    resource = folder / _BUNDLE
    try:
        # as_file unpacks the file where the package is imported from a zip archive.
        with resources.as_file(resource) as path, opened(str(path)) as file:
            n_bytes = check_regular(path).st_size
            names = ("brightness_temp", "parameters", "redshifts", "seed", "global_xH")
            tables = {name: _table(file, name) for name in (*names, "node_redshifts")}
            values = {name: _values(table, n_bytes) for name, table in tables.items()}
            parameters = tables["parameters"]
            sizes = tables["brightness_temp"].attribute("cell_mpc")
            typical = np.median(values["redshifts"], axis=0)
            return Bunch(
                # Read as stored and then widen: numpy does it faster than HDF5.
                data=values["brightness_temp"].astype(np.float32),
                target=values["parameters"],
                target_names=parameters.attribute("names"),
                target_units=parameters.attribute("units"),
                target_bounds=parameters.attribute("bounds"),
                redshifts=values["redshifts"],
                seeds=values["seed"],
                cell_size=sizes,
                grid=Grid(tuple(sizes.tolist()), tuple(typical.tolist())),
                global_xH=values["global_xH"],
                node_redshifts=values["node_redshifts"],
                DESCR=(folder / _DESCRIPTION).read_text(encoding="utf-8"),
            )
    except Exception as error:  # h5py raises all kinds on a damaged file
        raise_if_out_of_handles(error, str(resource))
        why = error.detail if isinstance(error, Fault) else explain(error)
        what = f"{resource} is damaged ({why})"
        raise OSError(f"The bundled light cones cannot be read: {what}. {mend}") from error


def _table(file: h5py.File, name: str) -> Stored:
    table = find(file.id, name)
    if not isinstance(table, Stored):
        raise Fault("missing", f"no dataset {name}")
    return table


def _values(table: Stored, n_bytes: int) -> np.ndarray:
    table.check(table.name, n_bytes)
    return table.read()
