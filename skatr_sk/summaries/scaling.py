"""Scaling of brightness temperatures in mK to the numbers that an encoder takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skatr_sk.fields import BEYOND_PHYSICS, ArrayFields, Fields, as_fields

__all__ = ["BrightnessScaling"]

_CHUNK_VALUES = 4_000_000  # voxels held as float64 at a time while a scaling is learned
_SAMPLE_VALUES = 10_000_000  # voxels that it is learned from at most,
_FEWEST_SAMPLED = 64  # but never from fewer fields than these: voxels of one field are alike
_MOST_HELD = 100_000_000  # voxels of these that are held in memory
_BEYOND_MEDIAN = 100.0  # of absolute brightness: the deepest absorption is some 30 of it


@dataclass(frozen=True)
class BrightnessScaling:
    """Brightness temperature in mK to numbers of order one, the same for every data set.

    ``(f(T) - offset) / scale`` with the symmetric logarithm
    ``f(T) = sign(T) log(1 + |T| / softening)``, or ``f(T) = T`` where `softening` is None. The
    signal has a core of tens of mK about zero and a tail of absorption down to some -400 mK: f is
    linear in the core and logarithmic in the tail, so that neither is lost in the other, and it
    needs no bounds that a later data set could leave (the affine map of [-120, -1] mK to [0, 1]
    leaves 61 % of 21cmFAST's voxels outside). It has the shape of asinh at a tenth of its cost.

    Parameters
    ----------
    softening : float or None
        Brightness in mK where the linear core ends.
    offset, scale : float
        Mean and standard deviation of ``f(T)``, or low end and width of a physical range in mK.
    subtract_mean : bool, default=False
        Subtract from each field the mean over its sky first, at each redshift: what is left is what
        an interferometer sees.

    Examples
    --------
    >>> import torch
    >>> BrightnessScaling.from_range(-120, -1)(torch.tensor([-120.0, -60.5, -1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    softening: float | None
    offset: float
    scale: float
    subtract_mean: bool = False

    def __call__(self, fields: Tensor) -> Tensor:
        """Scale fields (n, *field_shape) in mK to float32."""
        fields = fields.to(torch.float32, copy=True)
        if self.subtract_mean:
            fields -= fields.mean(dim=(1, 2), keepdim=True)
        return self.scale_(fields)

    def scale_(self, values: Tensor) -> Tensor:
        """Scale values in mK, of float32 and any shape, in their place; no mean is subtracted."""
        if self.softening is not None:
            sign = values.sign()  # ONNX has no copysign
            values.abs_().div_(self.softening).log1p_().mul_(sign)
        return values.sub_(self.offset).div_(self.scale)

    @classmethod
    def from_range(
        cls, low: float, high: float, *, subtract_mean: bool = False
    ) -> BrightnessScaling:
        """Map [low, high] mK affinely to [0, 1], as in arXiv:2410.18899, section 2."""
        return cls(None, float(low), float(high) - float(low), bool(subtract_mean))

    @classmethod
    def learn(
        cls, fields: Any, rows: np.ndarray | None = None, *, subtract_mean: bool = False
    ) -> BrightnessScaling:
        """Learn softening, offset and scale from fields of shape ``(n, *field_shape)`` in mK.

        Only from `rows` of them where these are given, and from a sample of these where they are
        many: the same of an array as of a LightconeArray with its values. The softening is the
        mean absolute brightness, which a few bright voxels hardly move. Voxels beyond physics (5000
        mK) are left out, for one fill value would outweigh all others; of data in other units, or
        with foregrounds, those are that exceed a hundred times the median absolute brightness.
        Constant fields get unit scale.
        """
        fields = as_fields(fields)
        rows = np.arange(fields.shape[0]) if rows is None else rows
        # A sample is enough for three numbers, and read in no time.
        most = max(_FEWEST_SAMPLED, _SAMPLE_VALUES // max(1, math.prod(fields.shape[1:])))
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(0).choice(rows, size=most, replace=False))
        held = len(rows) * math.prod(fields.shape[1:]) <= _MOST_HELD
        if not fields.in_memory and len(rows) <= _FEWEST_SAMPLED and held:  # they are read twice
            fields, rows = ArrayFields(fields.read(rows)), np.arange(len(rows))
        chunks = functools.partial(_chunks, fields, rows, subtract_mean)
        limit = BEYOND_PHYSICS
        size, n_values, n_beyond = _sum_of_sizes(chunks(), limit)
        if n_beyond:
            some = _chunks(fields, rows[:: -(-len(rows) // _FEWEST_SAMPLED)], subtract_mean)
            median = float(np.median([np.median(np.abs(chunk)) for chunk in some]))
            limit = max(limit, _BEYOND_MEDIAN * median)
            size, n_values, _ = _sum_of_sizes(chunks(), limit)
        softening = size / n_values or 1.0
        total = square = 0.0
        for chunk in chunks():
            scaled = np.copysign(np.log1p(np.abs(chunk) / softening), chunk)
            if n_beyond:
                scaled = scaled[np.abs(chunk) <= limit]
            total += scaled.sum()
            square += np.square(scaled).sum()
        mean = total / n_values
        variance = max(square / n_values - mean**2, 0.0)
        # Below the rounding of these sums a variance is no variance.
        scale = math.sqrt(variance) if variance > 1e-10 * max(mean**2, 1e-10) else 1.0
        return cls(float(softening), float(mean), scale, bool(subtract_mean))


def _sum_of_sizes(chunks: Iterator[np.ndarray], limit: float) -> tuple[float, int, int]:
    """Sum of the absolute values up to a limit, their number, and that of those beyond."""
    total, n, n_beyond = 0.0, 0, 0
    for chunk in chunks:
        sizes = np.abs(chunk)
        if sizes.max() > limit:
            within = sizes[sizes <= limit]
            n_beyond += sizes.size - within.size
            sizes = within
        total += sizes.sum()
        n += sizes.size
    return total, n, n_beyond


def _chunks(fields: Fields, rows: np.ndarray, subtract_mean: bool) -> Iterator[np.ndarray]:
    """Yield the values of some rows of the fields at a time, as float64."""
    step = max(1, _CHUNK_VALUES // max(1, math.prod(fields.shape[1:])))
    for start in range(0, len(rows), step):
        values = fields.read(rows[start : start + step])
        if subtract_mean:
            values = values - values.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
        values = values.reshape(-1)
        for first in range(0, values.size, _CHUNK_VALUES):  # a single cone may have more
            yield values[first : first + _CHUNK_VALUES].astype(np.float64)
