"""Monotonic rational-quadratic splines of many numbers at once, bins before points.

Durkan et al., "Neural Spline Flows", arXiv:1906.04032, equations 4 to 8. Splines act between -5 and
5 and are the identity beyond. The axis of points comes last, so that each operation runs over
neighbouring numbers whatever the number of bins, and all knots come from one product.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BOUND", "MAX_BINS", "MAX_LOGIT", "Places", "log_slope", "spline"]

BOUND = 5.0  # standard deviations
_LEAST = 1e-3  # width and height of a bin, in shares of the spline's, and slope at a knot
MAX_BINS = 500  # the narrowest bins must leave room for the others
# Logits stay within it. In exact arithmetic the discriminant of the inverse is
# (d0 (1 - u) - d1 u)^2 + 4 s^2 u (1 - u) >= 0 for knot slopes d0, d1 and a mean slope s of the bin;
# in float32 it needs d / s below about 1e6. This bound keeps it below 1e4.
MAX_LOGIT = 8.0
# Slope one at the knots: the spline of equal bins is then the identity.
_UNIT_SLOPE = math.log(math.expm1(1.0 - _LEAST))


class Places(NamedTuple):
    """Where in their bins numbers lie: all that the slope there depends on, shape (..., n)."""

    share: Tensor  # of the bin's width
    mean: Tensor  # slope of the bin
    left: Tensor  # slope at its ends
    right: Tensor


def spline(inputs: Tensor, logits: Tensor, *, inverse: bool = False) -> tuple[Tensor, Places]:
    """Bend each number by its own spline, or bend it back.

    `inputs` have the shape (..., n), and `logits` (..., 3 n_bins - 1, n): of the widths and heights
    of the bins, and of the slopes at the knots between them. Zeros are the identity.
    """
    n_bins = (logits.shape[-2] + 1) // 3
    logits = functional.hardtanh(logits, -MAX_LOGIT, MAX_LOGIT)
    sizes, slopes = logits.tensor_split([2 * n_bins], dim=-2)
    found = _positions(n_bins, logits.dtype, logits.device) @ sizes.exp().unflatten(-2, (2, n_bins))
    knots = found[..., :-1, :] / found[..., -1:, :]
    inside = inputs.clamp(-BOUND, BOUND)
    with torch.no_grad():
        inner = knots[..., int(inverse), 1:-1, :]
        # What is not a number lies in the first bin, and stays none.
        bins = (inside.unsqueeze(-2) >= inner).sum(dim=-2, keepdim=True)
        ends = torch.cat([bins, bins + 1], dim=-2)
    of_both = ends.unsqueeze(-3).expand(*ends.shape[:-2], 2, *ends.shape[-2:])
    low, high = knots.gather(-2, of_both).unbind(dim=-2)
    (x, y), (width, height) = low.unbind(dim=-2), (high - low).unbind(dim=-2)
    slopes = functional.pad(slopes, (0, 0, 1, 1)).gather(-2, ends) + _UNIT_SLOPE
    left, right = (functional.softplus(slopes) + _LEAST).unbind(dim=-2)
    mean = height / width
    bend = left + right - 2 * mean
    if inverse:
        up = (inside - y) / height
        linear = left - up * bend
        root = (linear.square() + 4 * mean * up * (mean - left + up * bend)).clamp(min=0).sqrt()
        share = (2 * mean * up / (linear + root)).clamp(0, 1)  # rounding could leave the bin
        outputs = torch.addcmul(x, share, width)
    else:
        share = (inside - x) / width
        mixed = share - share.square()
        upper = torch.addcmul(left * mixed, mean, share.square())
        outputs = torch.addcmul(y, height, upper / torch.addcmul(mean, bend, mixed))
    # Beyond the bounds the slope is one.
    return outputs + (inputs - inside), Places(share, mean, left, right)


def log_slope(places: Places) -> Tensor:
    """Logarithm of the slope of a spline in its forward direction, shape (..., n)."""
    share, mean, left, right = places
    rest = 1 - share
    mixed = share * rest
    upper = right * share.square() + 2 * mean * mixed + left * rest.square()
    lower = torch.addcmul(mean, left + right - 2 * mean, mixed)
    return (upper * (mean / lower).square()).log()


@lru_cache(maxsize=16)
def _positions(n_bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what turns unnormalised sizes of bins into positions of knots, times the sum of sizes.

    That sum is the last row of the matrix (n_bins + 2, n_bins).
    """
    with torch.inference_mode(False):  # it is kept, and gradients may be asked for another time
        knots = torch.arange(n_bins + 1, device=device, dtype=dtype).unsqueeze(1)
        below = (knots > torch.arange(n_bins, device=device)).to(dtype)
        shares = _LEAST * knots + (1 - _LEAST * n_bins) * below
        return torch.cat([(2 * shares - 1) * BOUND, torch.ones_like(below[:1])])
