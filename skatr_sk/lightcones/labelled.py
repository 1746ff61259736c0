"""Light cones as labelled arrays of xarray, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from skatr_sk._checks import require
from skatr_sk.fields import from_xarray, sight_last
from skatr_sk.grid import Grid
from skatr_sk.parameters import check_order

__all__ = ["from_labelled", "is_labelled", "to_xarray"]

_ROW, _SKY, _SIGHT = "lightcone", ("x", "y"), "z"
_REDSHIFT, _SEED = "redshift", "seed"
_TYPICAL = "a typical light cone"


def to_xarray(cones: Mapping[str, Any]) -> Any:
    """Turn light cones into a DataArray that carries their redshifts, seeds and parameters.

    Parameters
    ----------
    cones : `~sklearn.utils.Bunch`
        What :func:`~skatr_sk.open_lightcones` or :func:`~skatr_sk.load_lightcones` return. All
        light cones are read into memory.

    Returns
    -------
    `xarray.DataArray` of shape (n, n_x, n_y, n_z)
        Of the dimensions ``lightcone, x, y, z``, without those of the sky that maps and signals
        lack, in mK. Its coordinates are ``redshift``, ``seed`` and each parameter by its name, as
        far as they are known (redshifts of a typical cone where those of each are not), with their
        units; the cell size is the attribute ``cell_mpc``.
        :func:`~skatr_sk.save_lightcones` takes it back, and so does any `X`.

    Raises
    ------
    ImportError
        Without xarray.

    Examples
    --------
    >>> from skatr_sk import load_lightcones
    >>> from skatr_sk.lightcones import to_xarray
    >>> array = to_xarray(load_lightcones())                                     # doctest: +SKIP
    >>> array.sel(lightcone=array.zeta > 100).shape                              # doctest: +SKIP
    (137, 14, 14, 90)
    """
    xarray = require("xarray", "to_xarray")
    values = np.asarray(cones["data"])
    n_axes = values.ndim - 1
    sky = {1: (), 2: _SKY}.get(n_axes, (*_SKY, _SIGHT))
    dims = (_ROW, *(sky or (_SIGHT,)))
    coords: dict[str, Any] = {}
    known: Grid | None = cones.get("grid")
    typical = None if known is None or not known.fits(values.shape[1:]) else known.redshifts
    of_rows = cones.get("redshifts")
    grid, said = (typical, {"of": _TYPICAL}) if of_rows is None else (of_rows, {})
    if grid is not None and dims[-1] == _SIGHT:
        grid = np.asarray(grid)
        same = grid.ndim == 1 or (grid == grid[0]).all()
        coords[_REDSHIFT] = (
            (_SIGHT, grid.reshape(-1, grid.shape[-1])[0], said) if same else ((_ROW, _SIGHT), grid)
        )
    if (seeds := cones.get("seeds")) is not None:
        coords[_SEED] = (_ROW, np.asarray(seeds))
    if (target := cones.get("target")) is not None:
        check_order("target", target, cones["target_names"])
        columns = np.asarray(target).reshape(len(values), -1).T
        each = zip(cones["target_names"], columns, cones["target_units"], strict=True)
        coords |= {name: (_ROW, column, {"units": unit}) for name, column, unit in each}
    attributes: dict[str, Any] = {"units": "mK"}
    if known is not None and None not in known.cell_size:
        attributes["cell_mpc"] = list(known.cell_size)
    return xarray.DataArray(values, coords, dims, "brightness_temp", attributes)


def is_labelled(X: Any) -> bool:
    """Tell whether this is a DataArray, without importing xarray."""
    return type(X).__module__.partition(".")[0] == "xarray" and hasattr(X, "dims")


def from_labelled(array: Any) -> dict[str, Any]:
    """Light cones of a DataArray and what :func:`save_lightcones` keeps of its coordinates.

    Coordinates of its first dimension that hold real numbers are the seeds, by their name, and the
    parameters.
    """
    array = sight_last(array)
    values, redshifts, grid = from_xarray(array)
    if _REDSHIFT in array.coords and array.coords[_REDSHIFT].attrs.get("of") == _TYPICAL:
        redshifts = None  # those of the rows are not known; the grid has them
    found: dict[str, Any] = {"data": values, "redshifts": redshifts, "grid": grid}
    of_rows = {
        str(name): coord
        for name, coord in array.coords.items()
        if coord.dims == array.dims[:1] and name not in array.dims and coord.dtype.kind in "fiu"
    }
    if (seeds := of_rows.pop(_SEED, None)) is not None:
        found["seeds"] = seeds.to_numpy()
    if of_rows:
        found["target"] = np.stack([coord.to_numpy() for coord in of_rows.values()], axis=1)
        found["target_names"] = list(of_rows)
        found["target_units"] = [str(c.attrs.get("units", "")) for c in of_rows.values()]
    return found
