"""What a step of the training sees: fields turned and scaled, and which of their patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skatr_sk.summaries.scaling import BrightnessScaling, sky_symmetries, turn_at_random
from skatr_sk.summaries.vit import patchify

__all__ = ["Pairs", "PatchViews"]

Pairs = list[tuple[Tensor, Tensor]]  # of index tensors, or of what is computed with them


class PatchViews:
    """Turn a batch of fields into patches, and say which of them are seen.

    Parameters
    ----------
    field_shape, patch_size : sequence of int
    scaling : BrightnessScaling
    augment : bool
        Turn each training field by a sky symmetry of its own. It is turned before its patches are
        numbered, so that an index names a patch of the turned field.
    seed : int
        Of all that is drawn.
    draw : callable, optional
        ``draw(n, grid_shape, generator)`` gives pairs of index tensors for a batch of ``n`` fields.
        Every validation pass draws the same ones, so that the losses of epochs can be compared.

    Attributes
    ----------
    generator : torch.Generator
        Source of what is drawn in training. Its state is part of a checkpoint.

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
        draw: Callable[[int, Sequence[int], torch.Generator], Pairs] | None = None,
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
        self.scaling = scaling
        self.symmetries = sky_symmetries(field_shape)[: None if augment else 1]
        self.seed = seed
        self.draw = draw
        self.generator = torch.Generator().manual_seed(seed)
        self._in_validation: torch.Generator | None = None

    def __call__(self, fields: Tensor, training: bool) -> tuple[Any, ...]:
        """Return a network's arguments: patches (n, n_patches, n_voxels), and pairs if any.

        Of fields of shape (n, *field_shape) in mK; in validation none is turned.
        """
        if training:
            fields = turn_at_random(fields, self.symmetries, self.generator)
        patches = patchify(self.scaling(fields), self.patch_size)
        if self.draw is None:
            return (patches,)
        if training:
            self._in_validation = None
        elif self._in_validation is None:  # a new pass
            self._in_validation = torch.Generator().manual_seed(self.seed + 1)
        pairs = self.draw(len(fields), self.grid_shape, self._in_validation or self.generator)
        return patches, [(one.to(fields.device), two.to(fields.device)) for one, two in pairs]
