"""From the token summaries of a light cone to one vector: their mean, or learned attention.

The attention is the attentive probing of Bardes et al., "V-JEPA", arXiv:2404.08471.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["POOLINGS", "AttentivePooling", "MeanPooling", "make_pooling"]

POOLINGS = ("mean", "attention")


class MeanPooling(nn.Module):
    """Mean over the tokens, (n, n_tokens, dim) to (n, dim); what is pooled stays as it is."""

    def forward(self, summaries: Tensor) -> Tensor:
        """Pool."""
        return summaries.mean(dim=1) if summaries.ndim == 3 else summaries


class AttentivePooling(nn.Module):
    """Cross-attention of one learned query to the tokens, and a residual MLP.

    It starts as the plain mean: the query is zero, values and output are the identity, and the MLP
    ends in zeros.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.n_heads = next(n for n in (8, 4, 2, 1) if dim % n == 0)
        self.query = nn.Parameter(torch.zeros(dim))
        self.keys = nn.Linear(dim, dim)
        self.values = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        for layer in (self.values, self.output):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        for parameter in self.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool (n, n_tokens, dim) to (n, dim)."""
        query = self.query.expand(len(tokens), 1, -1)
        of_heads = [
            each.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for each in (query, self.keys(tokens), self.values(tokens))
        ]
        attended = functional.scaled_dot_product_attention(*of_heads)
        pooled = self.output(attended.transpose(1, 2).flatten(1))
        return pooled + self.mlp(self.norm(pooled))


def make_pooling(pooling: str, dim: int) -> nn.Module:
    """Build the pooling of a head from its parameter."""
    return AttentivePooling(dim) if pooling == "attention" else MeanPooling()
