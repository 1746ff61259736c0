"""All that turns fields in mK into summaries, as one torch module to export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from skatr_sk.summaries.patches import scaled_patches
from skatr_sk.summaries.pooling import pool
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.whitening import Whitening

__all__ = ["Summary"]


class Summary(nn.Module):
    """Fields (n, *field_shape) in mK to summaries: scaling, patches, encoder, pooling, whitening.

    What :meth:`SKATRTransformer.transform` computes, without its cache and checks, in float32: the
    whitening, in double precision there, differs by rounding. The weights are a copy, in evaluation
    mode; they may be trained on. `pooling` and `n_slices` are those of
    :func:`~skatr_sk.summaries.pooling.pool`.
    """

    mean: Tensor | None
    matrix: Tensor | None

    def __init__(
        self,
        scaling: BrightnessScaling,
        field_shape: tuple[int, ...],
        patch_size: tuple[int, ...],
        encoder: Encoder,
        pooling: str,
        whitening: Whitening | None = None,
        voxels: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.scaling, self.field_shape, self.voxels = scaling, field_shape, voxels
        self.patch_size, self.pooling = patch_size, pooling
        self.encoder = copy.deepcopy(encoder).cpu()
        self.n_slices = encoder.n_slices
        for name in ("mean", "matrix"):
            values = None if whitening is None else torch.tensor(getattr(whitening, name))
            self.register_buffer(name, values)
        self.eval()

    def forward(self, fields: Tensor) -> Tensor:
        """Return summaries (n, n_summary), or (n, n_tokens, embed_dim) of pooling "tokens".

        A ValueError says when the fields are of another shape than the weights are for, and when
        the module was cast to another precision.
        """
        if tuple(fields.shape[1:]) != self.field_shape:
            raise ValueError(
                f"fields: expected shape (n, {', '.join(map(str, self.field_shape))}), found "
                f"{tuple(fields.shape)}; a single field becomes one by fields[None]"
            )
        if (dtype := next(self.encoder.parameters()).dtype) != torch.float32:
            raise ValueError(
                f"module: expected weights in float32, as brightness is scaled, found {dtype}; "
                "module.float() brings them back, and torch.autocast computes in bfloat16"
            )
        patches = scaled_patches(fields, self.scaling, self.patch_size, self.voxels)
        summaries = pool(self.encoder(patches).float(), self.pooling, self.n_slices)
        if self.mean is None or self.matrix is None:
            return summaries
        return (summaries - self.mean) @ self.matrix
