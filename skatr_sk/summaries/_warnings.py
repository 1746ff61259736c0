"""What a pre-training warns of: summaries that have collapsed."""

from __future__ import annotations

import warnings
from typing import Any

from skatr_sk._checks import CollapseWarning

__all__ = ["RANK_FLOOR", "warn_collapse"]

_FEWEST_RANKED = 16
_HANDFUL = 3.0
# On Gaussian random fields healthy summaries scatter by 1 to 30 % of their size, collapsed ones by
# 0.3 %; on real light cones those of random weights scatter by 9 % and more.
RANK_FLOOR = 0.005


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
