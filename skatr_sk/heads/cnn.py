"""The convolutional network of the field: 3D-21cmPIE-Net, for fields of any size and rank.

Neutsch, Heneka, Brüggen, arXiv:2201.07587; the sizes of the layers are those of the authors' public
code. A first layer whose kernel steps along the line of sight by its own length leaves some 23
slices. There are three blocks of two convolutions, this one among them, with pooling over the sky
between them. The mean over all that is left is the summary, of which dense layers make parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CNN"]

_SLICES = 23  # that the first layer leaves of 2350 cells along the line of sight, by kernels of 102
_CHANNELS = (32, 64, 128)  # of the three blocks
_OF_RANK: dict[int, tuple[Any, Any]] = {
    1: (nn.Conv1d, nn.MaxPool1d),
    2: (nn.Conv2d, nn.MaxPool2d),
    3: (nn.Conv3d, nn.MaxPool3d),
}
_SKY, _SIGHT = 3, 2  # cells of a kernel along an axis of the sky, and along the line of sight


class CNN(nn.Module):
    """Scaled fields (n, *field_shape) to features (n, n_features), by convolutions alone.

    Fields of 140 x 140 x 2350 cells meet exactly the published layers. Smaller ones meet shorter
    steps along the line of sight, and kernels no longer than what is left of an axis. Maps
    (n, n_x, n_y) have no line of sight, signals (n, n_z) no sky.
    """

    row_by_row = True  # processes that train together may each have some of the rows
    n_features = _CHANNELS[-1]

    def __init__(self, field_shape: Sequence[int]) -> None:
        super().__init__()
        rank = len(field_shape)
        n_sky = 2 if rank > 1 else 0
        convolution, pooling = _OF_RANK[rank]
        sky, sight = list(field_shape[:n_sky]), list(field_shape[n_sky:])
        layers: list[nn.Module] = []

        def convolve(n_in: int, n_out: int, *, keep: bool = False, first: bool = False) -> None:
            """Add a convolution; the sky becomes smaller by the kernel unless told to `keep`."""
            nonlocal sky, sight
            wide = [min(_SKY, n) for n in sky]
            pad = [int(keep and width == _SKY) for width in wide]
            along = [max(1, n // _SLICES) if first else min(_SIGHT, n) for n in sight]
            step = [1] * len(sky) + (along if first else [1] * len(sight))
            pads = pad + [0] * len(sight)
            layer = convolution(n_in, n_out, wide + along, stride=step, padding=pads)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers.extend([layer, nn.ReLU(inplace=True)])
            sky = [n + 2 * p - width + 1 for n, p, width in zip(sky, pad, wide, strict=True)]
            sight = [n // a if first else n - a + 1 for n, a in zip(sight, along, strict=True)]

        n_in = 1
        for block, width in enumerate(_CHANNELS):
            convolve(n_in, width, first=block == 0)
            convolve(width, width, keep=block > 0)
            if block + 1 < len(_CHANNELS) and sky:
                halves = [min(2, n) for n in sky]
                layers.append(pooling([*halves, *(1 for _ in sight)]))
                sky = [n // half for n, half in zip(sky, halves, strict=True)]
            n_in = width
        self.layers = nn.Sequential(*layers)

    def forward(self, fields: Tensor) -> Tensor:
        """Return the mean over all places of the last layer."""
        return torch.flatten(self.layers(fields.unsqueeze(1)), 2).mean(dim=2)
