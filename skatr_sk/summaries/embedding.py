"""From the voxels of a patch to a token: by one matrix, or by texture, mean and deviation.

The mean of a slice over the sky, the global signal, may be taken out of the voxels and handed over
apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EMBEDDINGS", "FLUCTUATIONS", "MomentEmbedding", "SliceMeans", "voxel_layer"]


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
        tokens = self.texture(patches / deviation)
        # Light cones differ by little of these two: never in bfloat16.
        with torch.autocast(patches.device.type, enabled=False):
            return tokens + self.moments(torch.cat([mean, deviation.log()], dim=-1))


class SliceMeans(nn.Module):
    """Take the mean of each slice out of the patches, and give tokens of it apart.

    The mean is that over the patches that are seen: over the whole sky it would tell one region of
    a light cone of the others, and what a JEPA is to predict would leak into what it predicts from.
    A patch is `depth` cells deep along the line of sight, the voxels' fastest axis.
    """

    def __init__(self, depth: int, n_slices: int, dim: int) -> None:
        super().__init__()
        self.depth, self.n_slices = depth, n_slices
        self.embed = nn.Linear(depth, dim)

    def forward(self, patches: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return patches (n, n_patches, n_voxels) less the means, and tokens of these.

        Only the patches that ``index`` (n, n_kept) names are seen, where it is given. The tokens
        (n, n_patches, dim) are the same over the sky.
        """
        cells = patches.float().unflatten(-1, (-1, self.depth))
        sky = cells.mean(dim=-2).unflatten(1, (-1, self.n_slices))
        if index is None:
            means = sky.mean(dim=1)
        else:
            seen = sky.new_zeros(patches.shape[:2]).scatter(1, index, 1.0)
            seen = seen.unflatten(1, (-1, self.n_slices)).unsqueeze(-1)
            means = (sky * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
        n_sky = sky.shape[1]
        rest = cells - means.repeat(1, n_sky, 1).unsqueeze(-2)
        with torch.autocast(means.device.type, enabled=False):
            return rest.flatten(-2), self.embed(means).repeat(1, n_sky, 1)


FLUCTUATIONS = "fluctuations"  # about the mean of each slice, which has tokens of its own
EMBEDDINGS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "moments": MomentEmbedding,
    FLUCTUATIONS: MomentEmbedding,
}


def voxel_layer(embedding: nn.Module) -> nn.Linear:
    """Return the layer of an embedding that has a weight for each voxel of a patch."""
    layer: Any = embedding.texture if isinstance(embedding, MomentEmbedding) else embedding
    return layer
