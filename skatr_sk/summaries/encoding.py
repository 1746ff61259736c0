"""From fields to summaries: the frozen encoder over many fields, each computed once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from skatr_sk.fields import Fields, Look, check_finite_rows, digest_once
from skatr_sk.summaries.cache import compute_once, recall_in
from skatr_sk.summaries.patches import scaled_patches
from skatr_sk.summaries.pooling import count_slices, pool, pooled_dim
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import FrozenEncoder
from skatr_sk.training.batches import FieldDataset, Loader
from skatr_sk.training.progress import watched

__all__ = ["MEMORY", "encode", "summarise"]

_LOGGER = logging.getLogger("skatr_sk.summaries")
MEMORY = "memory"  # a cache that is no folder
# Tokens encoded at a time on a CPU: enough to fill its matrix products, few enough that the
# activations of a block stay in its caches.
_CPU_TOKENS = 8192
_GPU_TOKENS = 262_144
_NUMERICS = 2  # to be raised when the same weights begin to give other summaries
_BATCHES_READ = 4  # batches of a file that are claimed at a time, so that reading can run ahead


def summarise(
    frozen: FrozenEncoder,
    fields: Fields,
    device: torch.device,
    autocast: Any,
    cache: str | os.PathLike[str] | None,
    verbose: int = 0,
) -> np.ndarray:
    """Summarise fields in mK with a frozen encoder; what the cache has is not read or computed.

    `autocast` sets the precision, and `cache` is "memory", the path of a folder, or None. The
    result, in float32, is of shape (n, n_summary), or (n, n_tokens, embed_dim) of pooling "tokens".
    A bar shows where it is `verbose`. A ValueError names the rows whose summaries are not finite.
    """
    architecture = frozen.architecture

    @functools.cache
    def encoder() -> Encoder:
        # The fitted encoder stays where it is; a copy of its small weights does the work elsewhere.
        return frozen.encoder if device.type == "cpu" else copy.deepcopy(frozen.encoder).to(device)

    def compute(rows: np.ndarray | None) -> np.ndarray:
        summaries = encode(
            encoder(),
            fields,
            rows=rows,
            scaling=frozen.scaling,
            patch_size=architecture.patch_size,
            voxels=architecture.voxels,
            pooling=frozen.pooling,
            device=device,
            autocast=autocast,
            look=None if fields.in_memory else look,  # these were looked at before
            tell=tell,
        )
        return summaries if frozen.whitening is None else frozen.whitening(summaries)

    n, look = fields.shape[0], Look()
    with watched("summaries", n, "cone", verbose=verbose, logger=_LOGGER) as tell:
        if cache is None:
            summaries = compute(None)
        else:
            folder = None if cache == MEMORY else cache
            width = pooled_dim(architecture.embed_dim, frozen.pooling)
            batch_size = _fields_at_a_time(n, architecture.n_tokens, device)
            summaries = compute_once(
                fields.digests(recall=None if folder is None else recall_in(folder)),
                compute,
                space=_space(frozen, device, autocast),
                shape=(architecture.n_tokens, width) if frozen.pooling == "tokens" else (width,),
                group=batch_size * (1 if fields.in_memory else _BATCHES_READ),
                folder=folder,
            )
    look.warn()
    return _finite(summaries)


def _finite(summaries: np.ndarray) -> np.ndarray:
    """Return summaries that are finite; a ValueError names the rows of X whose are not."""
    check_finite_rows(summaries, "X", "summaries of its light cones")
    return summaries


def _space(frozen: FrozenEncoder, device: torch.device, autocast: Any) -> bytes:
    """Digest all that a summary depends on beside the field: 16 bytes.

    The device is left out, for it changes no more than rounding. The precision is in it, so that
    summaries of bfloat16 are never handed out as those of float32.
    """
    with autocast:
        lowered = torch.is_autocast_enabled(device.type)
    parts = {
        "numerics": _NUMERICS,
        "architecture": frozen.architecture.described(),
        "scaling": dataclasses.asdict(frozen.scaling),
        "pooling": frozen.pooling,
        "precision": "bf16" if lowered else "float32",
    }
    content = [json.dumps(parts, sort_keys=True).encode()]
    for name, values in sorted(frozen.tensors().items()):
        content.append(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        content.append(values.numpy().tobytes())
    return digest_once(b"".join(content))


def _fields_at_a_time(n: int, n_tokens: int, device: torch.device) -> int:
    """Size of equal batches of `n` fields: a few left for the last one would waste its products."""
    most = (_CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS) / n_tokens
    return max(1, math.ceil(n / max(1, round(n / most)))) if most > 1 else 1


@torch.inference_mode()
def encode(
    encoder: Callable[[torch.Tensor], torch.Tensor],
    fields: Fields,
    *,
    scaling: BrightnessScaling | None,
    patch_size: Sequence[int],
    voxels: Sequence[int] | None = None,
    pooling: str,
    device: torch.device,
    autocast: Any,
    batch_size: int | None = None,
    rows: np.ndarray | None = None,
    look: Look | None = None,
    tell: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Compute summaries of `rows` of the fields (all by default), `batch_size` at a time.

    The fields are in mK, and only the asked rows are read, batch by batch; the default number in a
    batch suits the device's caches. The encoder, or what else maps patches to anything, is on
    `device` and in evaluation mode; `autocast`, a context manager, sets the precision; `tell` is
    told how many each batch has, and `look` sees them. The result, in float32, is of shape (n,
    n_summary), or (n, n_tokens, embed_dim) of pooling "tokens".
    """
    grid_shape = [n // p for n, p in zip(fields.shape[1:], patch_size, strict=True)]
    n_tokens, n_slices = math.prod(grid_shape), count_slices(grid_shape)
    dataset = FieldDataset(fields, rows=rows)
    batch_size = batch_size or _fields_at_a_time(len(dataset), n_tokens, device)
    parts: list[torch.Tensor] = []
    n_read = 0
    with autocast:
        for batch, _ in Loader(dataset, batch_size, pin_memory=device.type == "cuda"):
            if look is not None:
                look.see(batch.numpy(), dataset.rows[n_read : n_read + len(batch)].numpy())
            n_read += len(batch)
            batch = batch.to(device, non_blocking=True)
            patches = scaled_patches(batch, scaling, patch_size, voxels)
            parts.append(pool(encoder(patches).float(), pooling, n_slices).cpu())
            if tell is not None:
                tell(len(batch))
    return torch.cat(parts).numpy()
