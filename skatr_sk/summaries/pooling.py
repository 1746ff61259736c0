"""From the tokens of a field to its summary.

"moments" are the means over the tokens, followed by their standard deviations (statistics pooling:
Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP (2018), section
2.1). Of a light cone these mix how tokens change along the line of sight, which all cones share in
the main, with how they differ over the sky; "slices" has each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["POOLINGS", "count_slices", "pool", "pooled_dim", "pooling_compared", "pooling_seen"]

POOLINGS = ("mean", "max", "moments", "slices", "tokens")
_PARTS = {"moments": 2, "slices": 3}  # vectors of a summary
_LEAST_VARIANCE = 1e-12  # of tokens, whose size is one


def count_slices(grid_shape: Sequence[int]) -> int:
    """Patches along the line of sight: the last axis, or 1 of maps, which have none."""
    return 1 if len(grid_shape) == 2 else grid_shape[-1]


def pool(tokens: Tensor, pooling: str, n_slices: int) -> Tensor:
    """Pool tokens (n, n_tokens, dim), the line of sight fastest, or keep them all.

    To (n, dim) by "mean" and "max"; to (n, 2 dim) by "moments"; to (n, 3 dim) by "slices": the
    mean, the standard deviation between the means of the `n_slices`, and that within slices.
    Several, joined by "+", follow each other.
    """
    if "+" in pooling:
        return torch.cat([pool(tokens, each, n_slices) for each in pooling.split("+")], dim=1)
    if pooling == "tokens":
        return tokens
    if pooling == "max":
        return tokens.amax(dim=1)
    mean = tokens.mean(dim=1)
    if pooling == "mean":
        return mean
    if pooling == "moments":
        variances = [(tokens - mean.unsqueeze(1)).square().mean(dim=1)]
    else:
        sky = tokens.unflatten(1, (-1, n_slices))
        slices = sky.mean(dim=1)
        between = (slices - mean.unsqueeze(1)).square().mean(dim=1)
        variances = [between, (sky - slices.unsqueeze(1)).square().mean(dim=(1, 2))]
    # The derivative of a square root diverges at zero variance, which a field has whose tokens are
    # all alike, or that has only one.
    return torch.cat([mean, *((each + _LEAST_VARIANCE).sqrt() for each in variances)], dim=1)


def pooled_dim(embed_dim: int, pooling: str) -> int:
    """Length of a summary, or of a token where these are kept."""
    return embed_dim * sum(_PARTS.get(each, 1) for each in pooling.split("+"))


def pooling_seen(pooling: str, n_summary: int, embed_dim: int) -> str:
    """How summaries are pooled, by their length, that say where those of a `pooling` lie.

    Tokens are not compared themselves; see `pooling_compared`.
    """
    known = {pooled_dim(embed_dim, each): each for each in ("mean", *_PARTS)}
    return known.get(n_summary, "mean") if pooling == "tokens" else pooling


def pooling_compared(pooling: str, grid_shape: Sequence[int]) -> str:
    """How summaries are to be pooled that say where those of a `pooling` lie.

    >>> pooling_compared("tokens", (7, 7, 18)), pooling_compared("mean", (7, 7, 18))
    ('slices', 'mean')
    """
    if pooling != "tokens":
        return pooling
    return "slices" if len(grid_shape) == 3 else "moments"
