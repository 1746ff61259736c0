"""From the tokens of a field to its summary."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["POOLINGS", "pool", "pooled_dim"]

POOLINGS = ("mean", "max", "moments", "tokens")
_LEAST_VARIANCE = 1e-12  # of tokens, whose size is one


def pool(tokens: Tensor, pooling: str) -> Tensor:
    """Pool the tokens of each field to one vector, or keep them all.

    Parameters
    ----------
    tokens : Tensor of shape (n, n_tokens, dim)
    pooling : {"mean", "max", "moments", "tokens"}
        "moments" are the means over the tokens, followed by their standard deviations, which say
        how tokens differ over the sky and along the line of sight (statistics pooling [1]_).

    Returns
    -------
    Tensor of shape (n, dim), (n, 2 dim) or (n, n_tokens, dim)

    References
    ----------
    .. [1] Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP
       (2018), section 2.1.

    Examples
    --------
    >>> import torch
    >>> tokens = torch.tensor([[[1.0], [3.0]]])
    >>> pool(tokens, "mean"), pool(tokens, "max")
    (tensor([[2.]]), tensor([[3.]]))
    >>> pool(tokens, "moments")
    tensor([[2., 1.]])
    """
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
    """Length of a summary, or of a token where these are kept.

    Examples
    --------
    >>> pooled_dim(96, "mean"), pooled_dim(96, "moments")
    (96, 192)
    """
    return embed_dim * (2 if pooling == "moments" else 1)
