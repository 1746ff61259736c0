"""Predictions and posteriors that lie at the ends of what a head was trained on, or beyond."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skatr_sk._checks import ExtrapolationWarning, listed, warn
from skatr_sk.heads.prior_transform import Floats

__all__ = ["at_the_edges", "share_at_ends", "warn_at_the_edges", "warn_beyond"]

# Noise leads some predictions to an end of the range (a sigmoid of bounded ones never quite) and a
# little beyond. Far is a share of its width; many are so many, and this share of all.
_AT_AN_END, _FAR = 0.01, 0.25
_SEVERAL, _SHARE = 5, 0.2
# Of targets that are spread evenly twice the first share lies so near an end. Where more did in the
# training, as of two classes or a grid of values, predictions there are right.
_USUAL = 0.05
_MEND = "train on a wider range, or ask novelty(X) whether such light cones were seen"


def share_at_ends(unit: Floats) -> Floats:
    """Share of targets (n, n_parameters), scaled to [0, 1], that are at an end or beyond."""
    return np.asarray((_beyond(unit) >= -_AT_AN_END).mean(axis=0))


def warn_beyond(
    owner: str, unit: Floats, what: str, names: Sequence[str], at_ends: Floats | None = None
) -> None:
    """Warn where predictions (n, n_parameters) are at an end of [0, 1] or beyond, many or far.

    `what` is the range that was scaled so; a column of NaN has none. `at_ends` is the share of the
    training targets that were at an end: where it was large, only what is far beyond counts.
    """
    beyond = np.nan_to_num(_beyond(unit), nan=-np.inf, posinf=np.inf)
    usual = False if at_ends is None else at_ends > _USUAL
    outside = beyond >= np.where(usual, _FAR, -_AT_AN_END)
    farthest = beyond.max(initial=-np.inf)
    if not _many(outside) and farthest <= _FAR:
        return
    warn(
        f"{owner}: expected predictions inside {what}, found {_counted(outside, names)}, at or "
        f"beyond it, by up to {max(farthest, 0):.0%} of its width; these extrapolate: {_MEND}.",
        ExtrapolationWarning,
    )


def at_the_edges(samples: Floats, bounds: Floats) -> NDArray[np.bool_]:
    """Tell of posterior samples (n, n_samples, n_parameters) whether most lie at an edge of a box.

    The result is of shape (n, n_parameters).
    """
    low, high = bounds.T
    margin = _AT_AN_END * (high - low)  # infinite, or NaN, where there is no edge
    with np.errstate(invalid="ignore"):
        below, above = (samples < low + margin).mean(axis=1), (samples > high - margin).mean(axis=1)
    return np.maximum(below, above) * np.isfinite(margin) > 0.5


def warn_at_the_edges(owner: str, piled: NDArray[np.bool_], names: Sequence[str]) -> None:
    """Warn where many posteriors pile up at the edges of their prior, by :func:`at_the_edges`."""
    if _many(piled):
        warn(
            f"{owner}: expected posteriors inside the prior box, found "
            f"{_counted(piled, names)}, with most of their samples within {_AT_AN_END:.0%} of an "
            f"edge; these extrapolate: {_MEND}.",
            ExtrapolationWarning,
        )


def _beyond(unit: Floats) -> Floats:
    """How far beyond [0, 1]; negative inside."""
    return np.maximum(-unit, unit - 1)


def _many(rows: NDArray[np.bool_]) -> bool:
    return int(rows.any(axis=1).sum()) >= max(_SEVERAL, _SHARE * len(rows))


def _counted(rows: NDArray[np.bool_], names: Sequence[str]) -> str:
    which = np.flatnonzero(rows.any(axis=1))
    columns = np.flatnonzero(rows.any(axis=0))
    return (
        f"{len(which)} of {len(rows)}, the first of them rows {listed(which)}, in "
        f"{listed([names[int(i)] for i in columns], 6)}"
    )
