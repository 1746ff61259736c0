"""Fields in mK to the scaled patches that an encoder embeds, a slab of a large field at a time.

A patch may have other cells than the encoder has voxels, where the encoder is used on another grid
than that of its training (:mod:`~skatr_sk.summaries.adaptation`): it is averaged to these first, in
mK, as a coarser grid would have averaged it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from skatr_sk.resampling import overlaps
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import patchify

__all__ = ["along_axis", "scaled_patches", "shares_of"]

_SLAB_CELLS = 4_000_000  # cells of a field that are scaled and cut at a time


def scaled_patches(
    fields: Tensor,
    scaling: BrightnessScaling | None,
    patch_size: Sequence[int],
    voxels: Sequence[int] | None = None,
) -> Tensor:
    """Scale fields (n, *field_shape) in mK and cut them: (n, n_patches, n_voxels), in float32.

    Without a `scaling` they stay in mK. Each patch is averaged to `voxels` first, one number for
    each axis, where these are given. Large fields are worked on in slabs of the first axis, so that
    beside fields and patches little memory is needed.
    """
    mean = None
    if scaling is not None and scaling.subtract_mean:  # over the whole sky, before it is cut
        mean = fields.mean(dim=(1, 2), keepdim=True, dtype=torch.float32)

    def patches_of(slab: Tensor) -> Tensor:
        slab = slab if mean is None else slab.float() - mean
        if voxels is None:
            patches = patchify(slab, patch_size).float()
        else:
            patches = patchify(_averaged(slab, patch_size, voxels), voxels)
        return patches if scaling is None else scaling.scale_(patches)

    n_cells, side = math.prod(fields.shape[1:]), patch_size[0]
    if n_cells <= _SLAB_CELLS:
        return patches_of(fields)
    thick = max(1, _SLAB_CELLS * fields.shape[1] // n_cells // side) * side
    n_patches = math.prod(n // p for n, p in zip(fields.shape[1:], patch_size, strict=True))
    n_voxels = math.prod(patch_size if voxels is None else voxels)
    patches = fields.new_empty((fields.shape[0], n_patches, n_voxels), dtype=torch.float32)
    per_layer = n_patches * side // fields.shape[1]
    for start in range(0, fields.shape[1], thick):
        some = patches_of(fields[:, start : start + thick])
        first = start // side * per_layer
        patches[:, first : first + some.shape[1]] = some
    return patches


def _averaged(fields: Tensor, patch_size: Sequence[int], voxels: Sequence[int]) -> Tensor:
    """Average the cells of each patch to `voxels`: fields of (n, *(patches times voxels))."""
    for axis, (cells, n) in enumerate(zip(patch_size, voxels, strict=True), start=1):
        if cells != n:
            # In double precision, which no autocast lowers.
            shares = shares_of(cells, n).T.to(fields.device)
            fields = along_axis(fields.double().unflatten(axis, (-1, cells)), axis + 1, shares)
            fields = fields.flatten(axis, axis + 1)
    return fields.float()


def along_axis(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply an axis of some values (..., n, ...) from the right by a matrix (n, m)."""
    return (values.movedim(axis, -1) @ matrix).movedim(-1, axis)


def shares_of(cells: int, n: int) -> Tensor:
    """Share of each cell of a patch in the mean over each of `n` voxels along an axis: (n, cells).

    >>> shares_of(3, 2).numpy().round(2).tolist()
    [[0.67, 0.33, 0.0], [0.0, 0.33, 0.67]]
    """
    edges = np.arange(cells + 1) * n, np.arange(n + 1) * cells
    return torch.from_numpy(overlaps(*edges).toarray())
