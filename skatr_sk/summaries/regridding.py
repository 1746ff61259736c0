"""Light cones on the grid of given weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.base import BaseEstimator

from skatr_sk._checks import AssumedGridWarning, warn
from skatr_sk.fields import check_fields, moved_axis
from skatr_sk.grid import Grid
from skatr_sk.resampling import onto, resampled
from skatr_sk.summaries.weights import FrozenEncoder

__all__ = ["described", "onto_grid_of", "why_of_another_shape"]


class _Anything(BaseEstimator):
    """Remembers of fields what nobody asks for."""


_Anything.__name__ = "SKATRTransformer"  # in messages of scikit-learn


def described(field_shape: Sequence[int], grid: Grid | None) -> str:
    """A shape, and the grid where it is known."""
    return f"{tuple(field_shape)}" if grid is None else f"{tuple(field_shape)} ({grid})"


def why_of_another_shape(found: Sequence[int], wanted: Sequence[int]) -> str:
    """What a user may have done to have fields of another shape, with its mend; or nothing."""
    found, wanted = tuple(found), tuple(wanted)
    if len(found) != len(wanted):
        return (
            f"the weights take fields of {len(wanted)} axes and no others: a SKATRTransformer "
            "without weights is pre-trained on fields of any"
        )
    if len(found) < 3 or found == wanted or len(set(wanted)) == 1:  # what does not tell
        return ""
    if (axis := moved_axis(found, wanted)) is not None:
        return f"the line of sight is last after numpy.moveaxis(X, {axis + 1}, -1)"
    if found[:-1] == wanted[1:]:
        return "if X has its light cones on the last axis, give numpy.moveaxis(X, -1, 0)"
    return ""


def onto_grid_of(frozen: FrozenEncoder, X: Any, *, silent: bool = False) -> Any:
    """Fields as an encoder takes them: as they are where they fit, else resampled onto its grid.

    A ValueError says where they do not reach as far, with both grids, or the encoder knows of none.
    What had to be assumed of fields that do not know their own is said in an AssumedGridWarning,
    unless `silent`: where nothing is learned from them.
    """
    fields = check_fields(_Anything(), X, reset=True)
    found, own = fields.shape[1:], fields.grid
    wanted, grid = frozen.architecture.field_shape, frozen.grid
    differ = grid.differences(own) if grid is not None and own is not None else []
    if found == wanted and not differ:
        return X
    both = f"{described(wanted, grid)}, found {described(found, own)}"
    if grid is None:
        raise ValueError(
            f"X: expected fields of shape {both}; the weights do not know their cell size and "
            "redshifts, so that nothing can be resampled onto their grid: use "
            "LightconeResampler(shape=...)."
        )
    try:
        resampling, assumed = onto(own, found, grid, wanted)
    except ValueError as reason:
        raise ValueError(
            f"X: expected fields that reach as far as those of the weights, {both}: {reason}. "
            f"{_mend(found, wanted, own)}"
        ) from reason
    if assumed and not silent:
        warn(
            f"X: fields of shape {described(found, own)} do not say all of their grid, and were "
            f"resampled to {described(wanted, grid)} as if {', '.join(assumed)}. If this is wrong, "
            "use LightconeResampler, or open files that say it (cell_mpc, redshifts).",
            AssumedGridWarning,
        )
    return resampled(fields, resampling, grid)


def _mend(found: Sequence[int], wanted: Sequence[int], own: Grid | None) -> str:
    """Say what to do with fields of a shape that do not come onto a grid of a wanted one."""
    if why := why_of_another_shape(found, wanted):
        return f"{why[0].upper()}{why[1:]}."
    if own is not None:
        return (
            "adapted_to(field_shape, grid=) of a transformer that was fitted on the grid of the "
            "weights takes these to that of X."
        )
    cut = f"X[..., :{wanted[-1]}] cuts them"
    if found[-1] < wanted[-1]:
        cut = (
            f"adapted_to({tuple(found)}) of a transformer that was fitted on that shape takes them"
        )
    return (
        f"Where the cells are those of the weights, {cut}; where they span the same volume, "
        f"LightconeResampler(shape={tuple(wanted)}) brings them there; else open files that say "
        "their grid (cell_mpc, redshifts)."
    )
