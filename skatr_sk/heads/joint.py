"""Encoder and head as one network, for training on labels from light cones to parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skatr_sk.heads.mlp import Head
from skatr_sk.summaries.pooling import pool
from skatr_sk.summaries.scaling import BrightnessScaling, sky_symmetries, turn_at_random
from skatr_sk.summaries.vit import Encoder, patchify

__all__ = ["JointNetwork", "Patches"]


class JointNetwork(nn.Module):
    """Patches to tokens, tokens to a summary, and the summary to parameters.

    The summaries are not standardised on the way, as those of a frozen encoder are: its last norm
    gives them a size of one already, and what stands still would stretch what moves.

    Parameters
    ----------
    encoder : Encoder
    head : Head
        Of summaries, or, where tokens are kept, of tokens that it pools itself.
    pooling : {"tokens", "mean", "max", "moments"}
        See :func:`~skatr_sk.summaries.pooling.pool`.

    References
    ----------
    .. [1] Ore, Heneka, Plehn, arXiv:2410.18899, section 4 (the network trained from scratch).

    Examples
    --------
    >>> import torch
    >>> encoder = Encoder(8, (3, 3), embed_dim=16, depth=1, n_heads=4, mlp_ratio=2.0)
    >>> head = Head(16, (32,), 6, gaussian=False, bounded=True, dropout=0.0)
    >>> network = JointNetwork(encoder, head)
    >>> network(torch.zeros(5, 9, 8)).shape
    torch.Size([5, 6])
    """

    def __init__(self, encoder: Encoder, head: Head, pooling: str = "tokens") -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    @property
    def gaussian(self) -> bool:
        """Whether there are log sigmas behind the means."""
        return self.head.gaussian

    @property
    def bounded(self) -> bool:
        """Whether the means stay inside (0, 1)."""
        return self.head.bounded

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches of shape (n, n_patches, n_voxels) to what :meth:`Head.forward` gives."""
        return self.head(pool(self.encoder(patches).float(), self.pooling))


class Patches:
    """Turn a batch of fields into patches: what one step sees.

    Parameters
    ----------
    field_shape, patch_size : sequence of int
    scaling : BrightnessScaling
    augment : bool
        Turn each training field by a sky symmetry of its own.
    seed : int
        Of the symmetries.

    Examples
    --------
    >>> import torch
    >>> scaling = BrightnessScaling.from_range(0, 1)
    >>> patches = Patches((4, 4), (2, 2), scaling=scaling, augment=True, seed=0)
    >>> patches(torch.zeros(3, 4, 4), training=True)[0].shape
    torch.Size([3, 4, 4])
    """

    def __init__(
        self,
        field_shape: Sequence[int],
        patch_size: Sequence[int],
        *,
        scaling: BrightnessScaling,
        augment: bool,
        seed: int,
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.scaling = scaling
        self.symmetries = sky_symmetries(field_shape)[: None if augment else 1]
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, fields: Tensor, training: bool) -> tuple[Tensor]:
        """Return patches of shape (n, n_patches, n_voxels), as the network's only argument."""
        if training:
            fields = turn_at_random(fields, self.symmetries, self.generator)
        return (patchify(self.scaling(fields), self.patch_size),)
