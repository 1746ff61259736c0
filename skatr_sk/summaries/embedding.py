"""From the voxels of a patch to a token: by one matrix, or by texture, mean and deviation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMBEDDINGS", "MomentEmbedding", "voxel_layer"]


class MomentEmbedding(nn.Module):
    """Embed a patch by its standardised voxels, its mean and the log of its standard deviation.

    The standard deviation of a patch spans three decades, from a neutral, unheated sky to the
    bubbles of reionisation, and how it changes with redshift carries most of what a light cone says
    about zeta and Omega_m. A single matrix on the voxels cannot show it, for it is no linear
    function of them and is mostly a few per cent of the mean. Here each of its decades counts
    alike, and so does the texture of faint patches.

    `softening` is added to the standard deviation of a patch, in units of the scaled brightness
    (whose standard deviation over all voxels is one): below it there is nothing but rounding.
    """

    def __init__(self, n_voxels: int, dim: int, softening: float = 0.02) -> None:
        super().__init__()
        self.softening = softening
        self.texture = nn.Linear(n_voxels, dim)
        self.moments = nn.Linear(2, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches of shape (..., n_voxels) to tokens of shape (..., dim)."""
        patches = patches.float()
        mean = patches.mean(dim=-1, keepdim=True)
        patches = patches - mean
        deviation = patches.square().mean(dim=-1, keepdim=True).sqrt() + self.softening
        moments = torch.cat([mean, deviation.log()], dim=-1)
        return self.texture(patches / deviation) + self.moments(moments)


EMBEDDINGS: dict[str, type[nn.Module]] = {"linear": nn.Linear, "moments": MomentEmbedding}


def voxel_layer(embedding: nn.Module) -> nn.Linear:
    """Return the layer of an embedding that has a weight for each voxel of a patch."""
    layer: Any = embedding.texture if isinstance(embedding, MomentEmbedding) else embedding
    return layer
