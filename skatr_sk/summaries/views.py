"""What one training step sees of a batch: its fields turned, scaled and cut into patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from skatr_sk.summaries.scaling import BrightnessScaling, sky_symmetries, turn_at_random
from skatr_sk.summaries.vit import patchify

__all__ = ["PatchViews"]


class PatchViews:
    """Turn a batch of fields into patches.

    Objectives that need more, such as the indices of hidden patches, extend this class.

    Parameters
    ----------
    field_shape, patch_size : sequence of int
    scaling : BrightnessScaling
    augment : bool
        Turn each training field by a sky symmetry of its own. It is turned before its patches are
        numbered, so that whatever names patches by their index names those of the turned field.
    seed : int
        Of all that is drawn in training.

    Attributes
    ----------
    generator : torch.Generator
        Source of these draws. Its state is part of a checkpoint.

    Examples
    --------
    >>> import torch
    >>> scaling = BrightnessScaling.from_range(0, 1)
    >>> views = PatchViews((4, 4), (2, 2), scaling=scaling, augment=True, seed=0)
    >>> views(torch.zeros(3, 4, 4), training=True)[0].shape
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
        self.grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
        self.scaling = scaling
        self.symmetries = sky_symmetries(field_shape)[: None if augment else 1]
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, fields: Tensor, training: bool) -> tuple[Any, ...]:
        """Return patches of shape (n, n_patches, n_voxels), as a network's only argument.

        Parameters
        ----------
        fields : Tensor of shape (n, *field_shape)
            In mK.
        training : bool
            In validation nothing is turned.
        """
        if training:
            fields = turn_at_random(fields, self.symmetries, self.generator)
        return (patchify(self.scaling(fields), self.patch_size),)
