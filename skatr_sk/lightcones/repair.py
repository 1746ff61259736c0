"""Cells that are no brightness temperatures, and what their neighbours say in their place."""

from __future__ import annotations

import numpy as np

from skatr_sk.fields import BEYOND_PHYSICS

__all__ = ["BEYOND_ANYTHING", "find_bad", "repair"]

BEYOND_ANYTHING = 1e15  # of a field that is not in mK: fill values are larger
# Written where there is no value, and within the physics: no computed cell is just this.
_FILL_VALUES = (-999.0, 999.0)
_MOST_REPAIRED = 0.01  # of the cells of a field: more are no single cells


def find_bad(field: np.ndarray, limit: float) -> np.ndarray | None:
    """Cells that are NaN, infinite, beyond a limit, or a usual fill value; None without any."""
    if field.dtype == np.float16:
        field = field.astype(np.float32)  # numpy compares float16 one by one
    low, high = float(field.min()), float(field.max())
    if -limit <= low and high <= limit and -999 < low and high < 999:
        return None
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(field) <= limit)
    if limit == BEYOND_PHYSICS:
        bad |= np.isin(field, _FILL_VALUES)
    return bad if bad.any() else None


def repair(field: np.ndarray, bad: np.ndarray) -> bool:
    """Replace bad cells by the mean of their good neighbours; tell whether that was possible.

    Only single cells are: at most one in a hundred, each with more good than bad neighbours along
    the axes. Else nothing is changed.
    """
    cells = np.argwhere(bad)
    if len(cells) > max(1, _MOST_REPAIRED * bad.size):
        return False
    total, n_good, n_bad = np.zeros(len(cells)), np.zeros(len(cells)), np.zeros(len(cells))
    for axis in range(bad.ndim):
        for step in (-1, 1):
            beside = cells.copy()
            beside[:, axis] += step
            inside = (beside[:, axis] >= 0) & (beside[:, axis] < bad.shape[axis])
            where = tuple(beside[inside].T)
            good = ~bad[where]
            total[inside] += np.where(good, field[where], 0)
            n_good[inside] += good
            n_bad[inside] += ~good
    if not (n_good > n_bad).all():
        return False
    field[tuple(cells.T)] = total / n_good
    return True
