"""What a step of the training sees: fields turned and scaled, and which of their patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from skatr_sk.summaries.patches import scaled_patches
from skatr_sk.summaries.scaling import BrightnessScaling

__all__ = ["Pairs", "PatchViews", "apply_symmetries", "sky_symmetries"]

Pairs = list[tuple[Tensor, Tensor]]  # of index tensors, or of what is computed with them


class PatchViews:
    """Turn a batch of fields into patches, and say which of them are seen.

    With `augment` each training field is turned by a sky symmetry of its own, before its patches
    are numbered, so that an index names a patch of the turned field. ``change(fields, generator)``,
    where it is given, then does more to them. Patches are averaged to `voxels` where these are
    given. `seed` is that of all that is drawn. ``draw(n, grid_shape, generator)``, where it is
    given, returns what is drawn for a batch of ``n`` fields, such as pairs of index tensors:
    tensors in lists or tuples. Every validation pass draws the same, so that the losses of epochs
    can be compared. The state of the attribute ``generator`` is part of a checkpoint.
    """

    def __init__(
        self,
        field_shape: Sequence[int],
        patch_size: Sequence[int],
        *,
        scaling: BrightnessScaling | None,
        augment: bool,
        seed: int,
        change: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        voxels: Sequence[int] | None = None,
        draw: Callable[[int, Sequence[int], torch.Generator], Any] | None = None,
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
        self.scaling = scaling
        self.voxels = voxels
        self.symmetries = sky_symmetries(field_shape)[: None if augment else 1]
        self.seed = seed
        self.change = change
        self.draw = draw
        self.generator = torch.Generator().manual_seed(seed)
        self._in_validation: torch.Generator | None = None

    def __call__(self, fields: Tensor, training: bool) -> tuple[Any, ...]:
        """Return a network's arguments: patches (n, n_patches, n_voxels), and what is drawn.

        The fields (n, *field_shape) are in mK; in validation none is turned or changed.
        """
        if training and len(self.symmetries) > 1:
            # Drawn on the CPU, so that a seed means the same on every device.
            which = torch.randint(len(self.symmetries), (len(fields),), generator=self.generator)
            symmetries = self.symmetries.to(fields.device)
            fields = apply_symmetries(fields, symmetries, which.to(fields.device))
        if training and self.change is not None:
            fields = self.change(fields, self.generator)
        patches = scaled_patches(fields, self.scaling, self.patch_size, self.voxels)
        if self.draw is None:
            return (patches,)
        if training:
            self._in_validation = None
        elif self._in_validation is None:  # a new pass
            self._in_validation = torch.Generator().manual_seed(self.seed + 1)
        drawn = self.draw(len(fields), self.grid_shape, self._in_validation or self.generator)
        return patches, _moved(drawn, fields.device)


def _moved(drawn: Any, device: torch.device) -> Any:
    """Move tensors to a device, those in lists and tuples too."""
    if isinstance(drawn, Tensor):
        return drawn.to(device)
    return [_moved(each, device) for each in drawn]


def sky_symmetries(field_shape: Sequence[int]) -> Tensor:
    """Rotations and reflections of the sky plane, as permutations of its cells.

    Eight for a square sky, four (no quarter turns) for another, one (the identity) for a signal
    without sky: a table of int64, (n_symmetries, n_x * n_y), whose first row is the identity. The
    line of sight is never reversed: it is an axis of time.
    """
    if len(field_shape) == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    n_x, n_y = field_shape[:2]
    cells = torch.arange(n_x * n_y).reshape(n_x, n_y)
    views = [cells, cells.flip(0), cells.flip(1), cells.flip(0, 1)]
    if n_x == n_y:
        views += [view.T for view in views]
    return torch.stack([view.reshape(-1) for view in views])


def apply_symmetries(fields: Tensor, symmetries: Tensor, which: Tensor) -> Tensor:
    """Turn each of the fields (n, *field_shape) by the row of `symmetries` that `which` (n,) names.

    `symmetries` are those of :func:`sky_symmetries`.
    """
    n, n_cells = len(fields), symmetries.shape[1]
    rows = symmetries[which] + n_cells * torch.arange(n, device=which.device).unsqueeze(1)
    turned = functional.embedding(rows, fields.reshape(n * n_cells, -1))
    return turned.reshape(fields.shape)
