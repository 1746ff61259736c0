"""The vision transformer: patches of a field, position code, encoder and predictor.

SKATR, arXiv:2410.18899, sections 3.1 and 3.2 and table 3; the predictor is that of I-JEPA,
arXiv:2301.08243, section 3.

A field is cut into equal patches, and each patch's voxels, in a row, become a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from skatr_sk.summaries.embedding import EMBEDDINGS, FLUCTUATIONS, SliceMeans
from skatr_sk.summaries.masking import whole_columns
from skatr_sk.summaries.pooling import count_slices

__all__ = [
    "ATTENTIONS",
    "Block",
    "Encoder",
    "PositionCode",
    "Predictor",
    "compile_blocks",
    "gather_tokens",
    "patchify",
]

ATTENTIONS = ("full", "axial")  # "full" is that of files that do not say
_MOST_ROWS = 65_535  # of attention at a time, as many as a grid of CUDA has

# Of fields of more patches, and on a CPU of more bytes in the tokens of a batch, the activations of
# a step are not kept for its gradient but computed anew. The published sizes have 2303 patches at
# low, and 10,000 at full resolution.
_MOST_KEPT = 4096
_MOST_SCORES = 12_000_000  # of all queries and keys of a batch that are kept for the gradient
_WIDE_ENOUGH = 65_536  # numbers of a head: its gradient in bfloat16 is the faster one from here on
_MOST_KEPT_ON_CPU = 4_500_000
_CPU_TOKENS = 8192  # that a CPU computes anew at a time
_VOXELS_EMBEDDED = 4_000_000  # of each field at a time; where there are more, these anew as well
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6


def patchify(fields: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Cut fields (n, *field_shape) into patches (n, n_patches, n_voxels), which are a copy.

    Each patch size divides its axis. Patches are in C order of the patch grid, and so are the
    voxels of a patch.
    """
    split = [s for n, p in zip(fields.shape[1:], patch_size, strict=True) for s in (n // p, p)]
    axes = range(1, 1 + len(split))
    n = fields.shape[0]  # len would fix it in an exported program
    cut = fields.reshape(n, *split).permute(0, *axes[::2], *axes[1::2])
    cut = cut.clone(memory_format=torch.contiguous_format)
    return cut.view(n, -1, math.prod(patch_size))


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

    On another grid than that of the training `positions` has, for each axis, the place of the first
    patch and the distance of neighbours, in patches of the training. Axes of distance zero had a
    single patch there, and get no features.
    """

    positions: Tensor
    axes: Tensor

    def __init__(
        self,
        grid_shape: Sequence[int],
        dim: int,
        positions: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        places = positions or [(0.0, float(n > 1)) for n in grid_shape]
        coded = [axis for axis, (_, step) in enumerate(places) if step] or [0]
        n_pairs = dim // 2
        if n_pairs < len(coded):
            raise ValueError(
                f"A position code over {len(coded)} axes needs at least {2 * len(coded)} features, "
                f"found {dim}; use a larger width."
            )
        self.dim = dim
        grid = torch.cartesian_prod(
            *(
                first + step * torch.arange(n, dtype=torch.float32)
                for n, (first, step) in zip(grid_shape, places, strict=True)
            )
        )
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


class _WholeGradient(torch.autograd.Function):
    """Attention in bfloat16 with a gradient that is computed in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        *lowered, log_sums = ctx.saved_tensors
        whole = (each.float() for each in (gradient, *lowered))
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return tuple(each.to(gradient.dtype) for each in backward(*whole, log_sums, 0.0, False))


def _kept_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention that keeps its softmax for the gradient."""
    with torch.autocast(q.device.type, enabled=False):  # it would take the softmax in float32
        queries, keys, values = (each.reshape(-1, *each.shape[2:]) for each in (q, k, v))
        scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(q.new_zeros(()), queries, keys.mT, beta=0, alpha=scale)
        return torch.bmm(scores.softmax(-1), values).view(q.shape)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries to keys and values, all (n, n_heads, n_tokens, head_dim).

    On a processor the gradient of flash attention is slow in bfloat16: its kernel multiplies few or
    narrow tokens in blocks that are too small to gain from it what rounding them costs. Where the
    softmax is small it is kept instead, which takes two thirds of the time, and else the gradient
    of few or narrow tokens is computed in float32.
    """
    trained = q.requires_grad and torch.is_grad_enabled() and not _is_exporting()
    if trained and q.dtype == torch.bfloat16 and q.device.type == "cpu":
        n_tokens, width = k.shape[-2:]
        if q.shape[:-1].numel() * n_tokens <= _MOST_SCORES:
            return _kept_scores(q, k, v)
        if n_tokens * width < _WIDE_ENOUGH:
            return _WholeGradient.apply(q, k, v)  # type: ignore[no-any-return]
    return functional.scaled_dot_product_attention(q, k, v)


class Block(nn.Module):
    """One pre-norm transformer block: attention and MLP, each on a residual branch.

    Its attention heads divide its width ``dim``; the MLP's hidden width is ``mlp_ratio * dim``.
    Which tokens see each other `within` says: those of the whole "field", of a "column" along the
    line of sight, or of a "slice" across the sky.
    """

    within = "field"  # of older pickles
    compiles_in_training = False

    def __init__(self, dim: int, n_heads: int, mlp_ratio: float, within: str = "field") -> None:
        super().__init__()
        self.n_heads = n_heads
        self.within = within
        hidden = max(1, round(dim * mlp_ratio))
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, n_unasked: int = 0, n_slices: int = 1) -> Tensor:
        """Map tokens of shape (n, n_tokens, dim) to the same shape.

        The first `n_unasked` of them are seen by the others, and have no result. Within columns and
        slices tokens are those of whole columns, one after the other, each of `n_slices`.
        """
        compiled = self.compiles_in_training and self.training
        mapped = _compiled_block() if compiled else Block._mapped
        return mapped(self, tokens, n_unasked, n_slices)

    def _mapped(self, tokens: Tensor, n_unasked: int, n_slices: int) -> Tensor:
        n, n_tokens, dim = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens)).view(n, n_tokens, 3, self.n_heads, -1)
        q, k, v = qkv.unbind(2)  # a gradient of one piece
        if n_unasked:
            q, tokens = q[:, n_unasked:], tokens[:, n_unasked:]
        tokens = tokens + self.out(self._mixed(q, k, v, n_slices).reshape(tokens.shape))
        return tokens + self.mlp(self.norm_mlp(tokens))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, n_slices: int) -> Tensor:
        """Attend, with all heads, to tokens (n, n_tokens, n_heads, head_dim)."""
        if self.within == "field":
            return _attention(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2)
        q, k, v = (each.unflatten(1, (-1, n_slices)) for each in (q, k, v))
        if self.within == "slice":
            rows = [each.permute(0, 2, 3, 1, 4).flatten(0, 1) for each in (q, k, v)]
            return _by_rows(*rows).unflatten(0, (-1, n_slices)).permute(0, 3, 1, 2, 4)
        k, v = (each[:, -q.shape[1] :] for each in (k, v))  # nobody asks the columns before
        rows = [each.flatten(0, 1).transpose(1, 2) for each in (q, k, v)]
        return _by_rows(*rows).transpose(1, 2)


@cache
def _compiled_block() -> Callable[..., Tensor]:
    """Compile what a block does, for all blocks of a kind and any number of rows and tokens."""
    return torch.compile(Block._mapped, dynamic=True)


def compile_blocks(network: nn.Module, wanted: bool) -> None:
    """Let torch compile the blocks in a network for the steps of a training, or no longer."""
    for each in network.modules():
        if isinstance(each, Block):
            vars(each).pop("compiles_in_training", None)  # as if it had never been
            if wanted:
                each.compiles_in_training = True


def _by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of many short rows, no more at a time than CUDA takes."""
    if _is_exporting() or len(q) <= _MOST_ROWS:
        return _attention(q, k, v)
    parts = zip(*(each.split(_MOST_ROWS) for each in (q, k, v)), strict=True)
    return torch.cat([_attention(*some) for some in parts])


def _check_columns(n_slices: int, *indices: Tensor) -> None:
    """Raise unless patches are named by whole columns, from the nearest slice to the last."""
    for index in indices:
        columns = index[:, ::n_slices] // n_slices
        if not torch.equal(index, whole_columns(columns, n_slices)):
            raise ValueError(
                "attention: expected 'full' where patches are seen that are not whole columns, of "
                f"{n_slices} along the line of sight, in order, found 'axial'; let the objective "
                "draw such columns, as sample_masks and sample_regions do."
            )


def _blocks(depth: int, dim: int, n_heads: int, mlp_ratio: float, attention: str) -> nn.Sequential:
    """Blocks of full attention, or of axial: those within columns and within slices in turn.

    The last one of these is within slices.
    """
    turns = ("field",) if attention == "full" else ("slice", "column")
    within = [turns[number % len(turns)] for number in reversed(range(depth))]
    return nn.Sequential(*(Block(dim, n_heads, mlp_ratio, each) for each in within))


def _kept_small(function: Callable[[Tensor], Tensor], value: Tensor, recompute: bool) -> Tensor:
    """Return ``function(value)``; what its gradient needs is computed anew where it is asked to."""
    if not (recompute and torch.is_grad_enabled()):
        return function(value)
    return checkpoint(function, value, use_reentrant=False, preserve_rng_state=False)


def _but_attention(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Compute anew all but attention, which takes most of the time and none of the memory."""
    attends = "scaled_dot_product" in str(op)
    return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE


def _uncached(block: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Pass tokens through a block; weights are cast each time, so that it can be done anew."""
    kind = tokens.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):
        return block(tokens)


def through(
    blocks: nn.Sequential, tokens: Tensor, n_patches: int, n_unasked: int = 0, n_slices: int = 1
) -> Tensor:
    """Pass tokens (n, n_tokens, dim) of fields of some patches, and slices, through blocks.

    The first `n_unasked` of the tokens have no result, and cost nothing in the last block but what
    the others see of them.

    Where no gradient is asked for, a CPU takes some fields at a time, which stay in its caches.
    With one, where there are many tokens, only what enters each block, and what its attention
    gives, is kept, and the rest computed anew, some fields at a time: selective gradient
    checkpointing (Chen et al., arXiv:1604.06174; Korthikanti et al., arXiv:2205.05198, section 5).
    The numbers are the same within rounding.

    Where products are in bfloat16 the tokens between the blocks are too: else a third of the time
    goes into casting them to and fro.
    """
    layers: list[Callable[..., Tensor]] = [partial(block, n_slices=n_slices) for block in blocks]
    if n_unasked:
        layers[-1] = partial(layers[-1], n_unasked=n_unasked)

    def as_they_are(tokens: Tensor) -> Tensor:
        for layer in layers:
            tokens = layer(tokens)
        return tokens

    if _is_exporting():  # a program takes any number of rows, in the precision that it is run in
        return as_they_are(tokens)
    kind = tokens.device.type
    if torch.is_autocast_enabled(kind):
        tokens = tokens.to(torch.get_autocast_dtype(kind))
    on_cpu = kind == "cpu"
    rows = max(1, _CPU_TOKENS // tokens.shape[1]) if on_cpu else len(tokens)
    if not (torch.is_grad_enabled() and tokens.requires_grad):
        if len(tokens) <= 2 * rows:
            return as_they_are(tokens)
        return torch.cat([as_they_are(some) for some in tokens.split(rows)])
    if n_patches <= _MOST_KEPT and not (on_cpu and tokens.nbytes > _MOST_KEPT_ON_CPU):
        return as_they_are(tokens)
    contexts = partial(create_selective_checkpoint_contexts, _but_attention)

    def lean(some: Tensor) -> Tensor:
        for layer in layers:
            some = checkpoint(
                _uncached,
                layer,
                some,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=contexts,
            )
        return some

    return torch.cat([lean(some) for some in tokens.split(rows)])


class Encoder(nn.Module):
    """Patches to tokens: embedding, position code, pre-norm blocks, final norm.

    Its sizes are parameters of :class:`~skatr_sk.SKATRTransformer`; `patch_depth` is that of a
    patch along the line of sight, 1 of maps.
    """

    row_by_row = True  # processes that train together may each have some of the rows
    attention = "full"  # of older pickles

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
        attention: str = "full",
        positions: Sequence[tuple[float, float]] | None = None,
        patch_depth: int = 1,
    ) -> None:
        super().__init__()
        self.embed = EMBEDDINGS[embedding](n_voxels, embed_dim)
        self.n_slices = count_slices(grid_shape)
        apart = embedding == FLUCTUATIONS
        self.slice_means = SliceMeans(patch_depth, self.n_slices, embed_dim) if apart else None
        self.position = PositionCode(grid_shape, embed_dim, positions)
        self.blocks = _blocks(depth, embed_dim, n_heads, mlp_ratio, attention)
        self.attention = attention
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, patches: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode patches (n, n_patches, n_voxels) to tokens (n, n_patches, embed_dim).

        Where ``index`` (n, n_kept) is given, only the patches that it names: they are gathered
        before they are embedded, so that what is hidden costs nothing: of axial attention whole
        columns, in order. Patches of large fields are gathered and embedded some at a time.
        """
        if index is not None and self.attention == "axial":
            _check_columns(self.n_slices, index)
        code = self.position()
        if self.slice_means is not None:
            patches, means = self.slice_means(patches, index)
            code = code + means
        some = max(1, _VOXELS_EMBEDDED // patches.shape[-1])
        if index is None:
            parts = list(patches.split(some, dim=1))
        else:
            parts, code = list(index.split(some, dim=1)), gather_tokens(code, index)

        def embedded(part: Tensor) -> Tensor:
            return self.embed(part if index is None else gather_tokens(patches, part))

        embeddings = [_kept_small(embedded, part, len(parts) > 1) for part in parts]
        tokens = embeddings[0] if len(parts) == 1 else torch.cat(embeddings, dim=1)
        tokens = through(self.blocks, tokens + code, patches.shape[1], n_slices=self.n_slices)
        return self.norm(tokens.float())


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
        attention: str = "full",
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(embed_dim, predictor_dim)
        self.position = PositionCode(grid_shape, predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(predictor_dim))
        self.n_slices, self.attention = count_slices(grid_shape), attention
        self.blocks = _blocks(depth, predictor_dim, n_heads, mlp_ratio, attention)
        self.norm = nn.LayerNorm(predictor_dim)
        self.out = nn.Linear(predictor_dim, target_dim)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict the tokens (n, n_target, target_dim) at ``target_index`` (n, n_target).

        From those of the context, (n, n_context, embed_dim), at ``context_index``; of axial
        attention both name whole columns, in order.
        """
        if self.attention == "axial":
            _check_columns(self.n_slices, context_index, target_index)
        code = self.position()
        seen = self.embed(context) + gather_tokens(code, context_index)
        asked = self.mask_token + gather_tokens(code, target_index)
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)
        tokens = through(self.blocks, tokens, len(code), context.shape[1], self.n_slices)
        return self.out(self.norm(tokens))
