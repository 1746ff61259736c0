"""From fields to summaries: patch sizes, pooling, and the frozen encoder over many fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skatr_sk.lightcones.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder, patchify

__all__ = ["POOLINGS", "TOKEN_BUDGET", "auto_patch_size", "encode", "pool"]

POOLINGS = ("mean", "max", "tokens")
TOKEN_BUDGET = 512
# Tokens encoded at a time on a CPU: enough to fill its matrix products, few enough that the
# activations of a block stay in its caches.
_CPU_TOKENS = 8192
_GPU_TOKENS = 262_144


def auto_patch_size(field_shape: Sequence[int], budget: int = TOKEN_BUDGET) -> tuple[int, ...]:
    """Choose a patch that divides each axis and cuts the field into about `budget` tokens.

    Among the divisors of the axes: as near to the budget as possible, with patches as cubic as
    possible, the two at one exchange rate (a factor e in the number of tokens weighs as much as a
    factor e^2 in the scatter of the sides), and at least six patches across each sky axis where it
    has as many cells, so that blocks of the sky can be hidden. On small fields the budget shrinks
    to one token for 16 cells (4 of a signal), but not below 16: patches of a single cell have no
    structure of their own.

    Parameters
    ----------
    field_shape : sequence of int
    budget : int
        Tokens aimed at.

    Returns
    -------
    tuple of int
        One size per axis.

    Examples
    --------
    >>> auto_patch_size((14, 14, 90))
    (2, 2, 9)
    >>> auto_patch_size((24, 24))
    (4, 4)
    """
    rank = len(field_shape)
    budget = min(budget, max(16, math.prod(field_shape) // (4 if rank == 1 else 16)))
    choices = []
    for axis, n in enumerate(field_shape):
        fewest = min(n, 6) if rank > 1 and axis < 2 else 1
        choices.append([d for d in range(1, n + 1) if n % d == 0 and n // d >= fewest])

    def cost(patch: tuple[int, ...]) -> float:
        tokens = math.prod(n // p for n, p in zip(field_shape, patch, strict=True))
        return abs(math.log(tokens / budget)) + 0.5 * float(np.std(np.log(patch)))

    return min(itertools.product(*choices), key=cost)


def pool(tokens: Tensor, pooling: str) -> Tensor:
    """Pool tokens of shape (n, n_tokens, dim) to (n, dim), or keep them all.

    Parameters
    ----------
    tokens : Tensor
    pooling : {"mean", "max", "tokens"}

    Examples
    --------
    >>> import torch
    >>> pool(torch.tensor([[[1.0], [3.0]]]), "mean")
    tensor([[2.]])
    """
    if pooling == "mean":
        return tokens.mean(dim=1)
    return tokens.amax(dim=1) if pooling == "max" else tokens


@torch.inference_mode()
def encode(
    encoder: Encoder,
    fields: np.ndarray,
    *,
    scaling: BrightnessScaling,
    patch_size: Sequence[int],
    pooling: str,
    device: torch.device,
    autocast: Any,
    batch_size: int | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Compute summaries of many fields, a bounded number at a time.

    Parameters
    ----------
    encoder : Encoder
        On `device`, in evaluation mode.
    fields : ndarray of shape (n, *field_shape)
        In mK.
    scaling : BrightnessScaling
    patch_size : sequence of int
    pooling : {"mean", "max", "tokens"}
    device : torch.device
    autocast : context manager
        Sets the precision.
    batch_size : int, optional
        Fields at a time; the default suits the device's caches.
    rows : ndarray of int64, optional
        Which fields; default is all.

    Returns
    -------
    ndarray of shape (n, dim) or (n, n_tokens, dim), float32
    """
    if batch_size is None:
        n_tokens = math.prod(fields.shape[1:]) // math.prod(patch_size)
        most = _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS
        batch_size = max(1, most // n_tokens)
    parts = []
    with autocast:
        for start in range(0, len(fields) if rows is None else len(rows), batch_size):
            part: Any = slice(start, start + batch_size)
            chosen = fields[part if rows is None else rows[part]]
            # Memory maps may be read-only, which torch does not know: these are copied.
            batch = torch.from_numpy(np.require(chosen, requirements=["C", "W"]))
            patches = patchify(scaling(batch.to(device, non_blocking=True)), patch_size)
            parts.append(pool(encoder(patches).float(), pooling).cpu())
    summaries: np.ndarray = torch.cat(parts).numpy()
    return summaries
