"""What a pre-training warns of: fields that teach nothing, summaries that have collapsed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

__all__ = ["RANK_FLOOR", "CollapseWarning", "warn_collapse", "warn_fields"]

_FEWEST_RANKED = 16
_HANDFUL = 3.0
# On Gaussian random fields healthy summaries scatter by 1 to 30 % of their size, collapsed ones by
# 0.3 %; on real light cones those of random weights scatter by 9 % and more.
RANK_FLOOR = 0.005
_LOOKED_AT = 16  # of fields in files, where all would take a pass of their own
_IN_KELVIN = 0.6  # absorption is at most some 0.5 K deep


class CollapseWarning(UserWarning):
    """The summaries vary along a handful of directions only: pre-training has collapsed."""


def warn_collapse(last: dict[str, Any], n_watched: int) -> None:
    """Warn when the summaries end on a handful of directions."""
    rank, at_init = last["effective_rank"], last["effective_rank_at_init"]
    # The rank of a few fields is small whatever the encoder: nothing can be said.
    if n_watched >= _FEWEST_RANKED and rank < _HANDFUL and rank < at_init / 2:
        warnings.warn(
            f"The summaries have collapsed: their effective rank fell from {at_init:.1f} at "
            f"initialisation to {rank:.1f}, counting directions in which light cones differ by "
            f"more than {RANK_FLOOR:.1%} of a summary's size. Bring back what prevents it "
            "(ema_decay near 1, predictor_depth >= 1, normalize_targets=True), then try a lower "
            "learning_rate or fewer epochs.",
            CollapseWarning,
            stacklevel=5,
        )


def warn_fields(fields: Any) -> None:
    """Warn of fields without structure, or in kelvin; of fields in files some are looked at."""
    n = len(fields)
    if not isinstance(fields, np.ndarray):
        n = min(n, _LOOKED_AT)
    flat = np.asarray(fields[:n]).reshape(n, -1)
    constant = np.flatnonzero(flat.max(axis=1) == flat.min(axis=1))
    if constant.size:
        first = ", ".join(map(str, constant[:5]))
        warnings.warn(
            f"X has {constant.size} of {n} constant fields (first rows: {first}); there "
            "is nothing to learn from them. Check how they were made or read.",
            UserWarning,
            stacklevel=5,
        )
    largest = float(np.abs(flat).max())
    if 0 < largest < _IN_KELVIN:
        warnings.warn(
            f"No value of X is beyond {largest:.2g}: is it in kelvin? Brightness temperatures are "
            "expected in mK. Multiply X by 1000, here and in transform.",
            UserWarning,
            stacklevel=5,
        )
