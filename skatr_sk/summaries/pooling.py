"""From the tokens of a field to its summary.

"moments" are the means over the tokens, followed by their standard deviations, which say how tokens
differ over the sky and along the line of sight (statistics pooling: Snyder et al., "X-vectors:
robust DNN embeddings for speaker recognition", ICASSP (2018), section 2.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POOLINGS", "pool", "pooled_dim"]

POOLINGS = ("mean", "max", "moments", "tokens")
_LEAST_VARIANCE = 1e-12  # of tokens, whose size is one


def pool(tokens: Tensor, pooling: str) -> Tensor:
    """Pool tokens (n, n_tokens, dim) to (n, dim), to (n, 2 dim) by "moments", or keep them all."""
    if pooling == "tokens":
        return tokens
    if pooling == "max":
        return tokens.amax(dim=1)
    mean = tokens.mean(dim=1)
    if pooling == "mean":
        return mean
    variance = (tokens - mean.unsqueeze(1)).square().mean(dim=1)
    # The derivative of a square root diverges at zero variance, which a field has whose tokens are
    # all alike, or that has only one.
    return torch.cat([mean, (variance + _LEAST_VARIANCE).sqrt()], dim=1)


def pooled_dim(embed_dim: int, pooling: str) -> int:
    """Length of a summary, or of a token where these are kept."""
    return embed_dim * (2 if pooling == "moments" else 1)
