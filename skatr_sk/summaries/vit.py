"""The vision transformer: patches of a field, position code, encoder and predictor.

SKATR, arXiv:2410.18899, sections 3.1 and 3.2 and table 3; the predictor is that of I-JEPA,
arXiv:2301.08243, section 3.

A field is cut into equal patches, and each patch's voxels, in a row, become a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.summaries.embedding import EMBEDDINGS, FLUCTUATIONS, SliceMeans
from skatr_sk.summaries.pooling import count_slices

__all__ = ["Block", "Encoder", "PositionCode", "Predictor", "gather_tokens", "patchify"]


def patchify(fields: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut fields (n, *field_shape) into patches (n, n_patches, n_voxels).

    Each patch size divides its axis. Patches are in C order of the patch grid, and so are the
    voxels of a patch.
    """
    split = [s for n, p in zip(fields.shape[1:], patch_size, strict=True) for s in (n // p, p)]
    axes = range(1, 1 + len(split))
    n = fields.shape[0]  # len would fix it in an exported program
    cut = fields.reshape(n, *split).permute(0, *axes[::2], *axes[1::2])
    return cut.reshape(n, -1, math.prod(patch_size))


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Take of each field the tokens that ``index`` (n, n_kept) names: (n, n_kept, dim).

    ``tokens`` are of shape (n, n_patches, dim), or (n_patches, dim) where all fields share them.
    """
    if tokens.ndim == 2:
        return functional.embedding(index, tokens)
    # Rows of the flattened table are whole tokens; torch.gather would need an index as large as
    # the result.
    n, n_patches, dim = tokens.shape
    offsets = torch.arange(n, device=index.device).unsqueeze(1) * n_patches
    return functional.embedding(index + offsets, tokens.reshape(n * n_patches, dim))


class PositionCode(nn.Module):
    """Sine and cosine code of a patch's position, per axis, with learnable frequencies.

    An axis of ``n`` patches starts with frequencies spaced geometrically from pi / n, which makes
    the cosine monotonic over the axis, up to pi / 2, which tells neighbours apart: every position
    has a code of its own at every grid size. Axes of a single patch get no features, the others at
    least two of the ``dim`` features.
    """

    positions: Tensor
    axes: Tensor

    def __init__(self, grid_shape: Sequence[int], dim: int) -> None:
        super().__init__()
        coded = [axis for axis, n in enumerate(grid_shape) if n > 1] or [0]
        n_pairs = dim // 2
        if n_pairs < len(coded):
            raise ValueError(
                f"A position code over {len(coded)} axes needs at least {2 * len(coded)} features, "
                f"found {dim}; use a larger width."
            )
        self.dim = dim
        grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32) for n in grid_shape))
        self.register_buffer("positions", grid.reshape(-1, len(grid_shape)), persistent=False)
        axis_of_pair = torch.arange(n_pairs) * len(coded) // n_pairs
        self.register_buffer("axes", torch.tensor(coded)[axis_of_pair], persistent=False)
        frequencies = [
            torch.logspace(math.log10(math.pi / grid_shape[axis]), math.log10(math.pi / 2), n)
            for axis, n in zip(coded, axis_of_pair.bincount().tolist(), strict=True)
        ]
        self.frequencies = nn.Parameter(torch.cat(frequencies))

    def forward(self) -> Tensor:
        """Return the code of every patch, of shape (n_patches, dim)."""
        phase = self.positions[:, self.axes] * self.frequencies
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        return functional.pad(code, (0, self.dim - code.shape[1]))


class Block(nn.Module):
    """One pre-norm transformer block: attention and MLP, each on a residual branch.

    Its attention heads divide its width ``dim``; the MLP's hidden width is ``mlp_ratio * dim``.
    """

    def __init__(self, dim: int, n_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        hidden = max(1, round(dim * mlp_ratio))
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens of shape (n, n_tokens, dim) to the same shape."""
        n, n_tokens, dim = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).view(n, n_tokens, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(n, n_tokens, dim))
        return tokens + self.mlp(self.norm_mlp(tokens))


class Encoder(nn.Module):
    """Patches to tokens: embedding, position code, pre-norm blocks, final norm.

    Its sizes are parameters of :class:`~skatr_sk.SKATRTransformer`; `patch_depth` is that of a
    patch along the line of sight, 1 of maps.
    """

    row_by_row = True  # processes that train together may each have some of the rows

    def __init__(
        self,
        n_voxels: int,
        grid_shape: Sequence[int],
        *,
        embed_dim: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float,
        embedding: str = "linear",
        patch_depth: int = 1,
    ) -> None:
        super().__init__()
        self.embed = EMBEDDINGS[embedding](n_voxels, embed_dim)
        self.n_slices = count_slices(grid_shape)
        apart = embedding == FLUCTUATIONS
        self.slice_means = SliceMeans(patch_depth, self.n_slices, embed_dim) if apart else None
        self.position = PositionCode(grid_shape, embed_dim)
        self.blocks = nn.Sequential(*(Block(embed_dim, n_heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode patches (n, n_patches, n_voxels) to tokens (n, n_patches, embed_dim).

        Where ``index`` (n, n_kept) is given, only the patches that it names: they are gathered
        before they are embedded, so that what is hidden costs nothing.
        """
        code = self.position()
        if self.slice_means is not None:
            patches, means = self.slice_means(patches, index)
            code = code + means
        if index is not None:
            patches, code = gather_tokens(patches, index), gather_tokens(code, index)
        return self.norm(self.blocks(self.embed(patches) + code))


class Predictor(nn.Module):
    """Predict the tokens of hidden patches from the tokens of visible ones.

    A hidden patch is asked for by a learned mask token plus the code of its position. A narrow
    transformer over these and the visible tokens answers. The encoder's tokens are ``embed_dim``
    wide, what is predicted ``target_dim``, and the other sizes are those of its own blocks.
    """

    row_by_row = True

    def __init__(
        self,
        embed_dim: int,
        target_dim: int,
        grid_shape: Sequence[int],
        *,
        predictor_dim: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, predictor_dim)
        self.position = PositionCode(grid_shape, predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(predictor_dim))
        self.blocks = nn.Sequential(
            *(Block(predictor_dim, n_heads, mlp_ratio) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(predictor_dim)
        self.out = nn.Linear(predictor_dim, target_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict the tokens (n, n_target, target_dim) at ``target_index`` (n, n_target).

        From those of the context, (n, n_context, embed_dim), at ``context_index``.
        """
        code = self.position()
        seen = self.embed(context) + gather_tokens(code, context_index)
        asked = self.mask_token + gather_tokens(code, target_index)
        tokens = self.blocks(torch.cat([seen, asked.to(seen.dtype)], dim=1))
        return self.out(self.norm(tokens[:, context.shape[1] :]))
