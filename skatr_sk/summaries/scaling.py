"""Scaling of brightness and parameters, and the symmetries of the sky."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skatr_sk.fields import ArrayFields, Fields, as_fields

__all__ = [
    "BrightnessScaling",
    "ParameterScaling",
    "apply_symmetries",
    "sky_symmetries",
    "turn_at_random",
]

_CHUNK_VALUES = 4_000_000  # voxels held as float64 at a time while a scaling is learned
_SAMPLE_VALUES = 10_000_000  # voxels that it is learned from at most,
_FEWEST_SAMPLED = 64  # but never from fewer fields than these: voxels of one field are alike


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

    Examples
    --------
    >>> import torch
    >>> BrightnessScaling.from_range(-120, -1)(torch.tensor([-120.0, -60.5, -1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    softening: float | None
    offset: float
    scale: float

    def __call__(self, fields: Tensor) -> Tensor:
        """Scale fields of any shape, in mK, to float32."""
        fields = fields.float()
        if self.softening is not None:
            magnitude = fields.abs().div_(self.softening)
            fields = magnitude.log1p_().copysign_(fields)
        return (fields - self.offset).div_(self.scale)

    @classmethod
    def from_range(cls, low: float, high: float) -> BrightnessScaling:
        """Map [low, high] mK affinely to [0, 1], as in arXiv:2410.18899, section 2."""
        return cls(None, float(low), float(high) - float(low))

    @classmethod
    def learn(cls, fields: Any, rows: np.ndarray | None = None) -> BrightnessScaling:
        """Learn softening, offset and scale from fields of shape (n, *field_shape) in mK.

        Only from `rows` of them where these are given, and from a sample of these where they are
        many: the same of an array as of a LightconeArray with its values. The softening is the
        mean absolute brightness, which a few bright voxels hardly move. Constant fields get unit
        scale.
        """
        fields = as_fields(fields)
        rows = _sample(fields, np.arange(fields.shape[0]) if rows is None else rows)
        if not fields.in_memory and len(rows) <= _FEWEST_SAMPLED:
            # They are read twice.
            fields, rows = ArrayFields(fields.read(rows)), np.arange(len(rows))
        n_values = len(rows) * math.prod(fields.shape[1:])
        softening = sum(np.abs(c).sum() for c in _chunks(fields, rows)) / n_values or 1.0
        total = square = 0.0
        for chunk in _chunks(fields, rows):
            scaled = np.copysign(np.log1p(np.abs(chunk) / softening), chunk)
            total += scaled.sum()
            square += np.square(scaled).sum()
        mean = total / n_values
        variance = max(square / n_values - mean**2, 0.0)
        # Below the rounding of these sums a variance is no variance.
        scale = math.sqrt(variance) if variance > 1e-10 * max(mean**2, 1e-10) else 1.0
        return cls(float(softening), float(mean), scale)


def _sample(fields: Fields, rows: np.ndarray) -> np.ndarray:
    """Choose rows at random, enough for three numbers and few enough to read in no time."""
    most = max(_FEWEST_SAMPLED, _SAMPLE_VALUES // max(1, math.prod(fields.shape[1:])))
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, size=most, replace=False))


def _chunks(fields: Fields, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield some rows of the fields at a time, as float64."""
    step = max(1, _CHUNK_VALUES // max(1, math.prod(fields.shape[1:])))
    for start in range(0, len(rows), step):
        values = fields.read(rows[start : start + step]).reshape(-1)
        for first in range(0, values.size, _CHUNK_VALUES):  # a single cone may have more
            yield values[first : first + _CHUNK_VALUES].astype(np.float64)


@dataclass(frozen=True)
class ParameterScaling:
    """Parameters from their own units to [0, 1] and back.

    Parameters
    ----------
    low, high : ndarray of shape (n_parameters,)
        Ends of the range of each parameter. Where they agree the parameter is that value: it
        becomes 0 in units of its range, and comes back as it was whatever is predicted.

    Examples
    --------
    >>> import numpy as np
    >>> scaling = ParameterScaling(np.array([0.2]), np.array([0.4]))
    >>> scaling.to_unit(np.array([[0.25]]))
    array([[0.25]])
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def width(self) -> np.ndarray:
        """Width of each parameter's range, in its units."""
        return self.high - self.low

    def to_unit(self, parameters: np.ndarray) -> np.ndarray:
        """Map (n, n_parameters) in physical units to the unit interval."""
        return (parameters - self.low) / np.where(self.width > 0, self.width, 1.0)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """Map (n, n_parameters) from the unit interval to physical units."""
        return self.low + unit * self.width


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
    """Turn each of the fields (n, *field_shape) by a symmetry of its own.

    ``which`` (n,) are rows of the table from :func:`sky_symmetries`.

    Examples
    --------
    >>> import torch
    >>> fields = torch.arange(4.0).reshape(1, 2, 2)
    >>> apply_symmetries(fields, sky_symmetries((2, 2)), torch.tensor([1]))
    tensor([[[2., 3.],
             [0., 1.]]])
    """
    n, n_cells = len(fields), symmetries.shape[1]
    rows = symmetries[which] + n_cells * torch.arange(n, device=which.device).unsqueeze(1)
    turned = functional.embedding(rows, fields.reshape(n * n_cells, -1))
    return turned.reshape(fields.shape)


def turn_at_random(fields: Tensor, symmetries: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each of the fields (n, *field_shape) by a symmetry that is drawn for it.

    The generator is on the CPU, so that a seed means the same on every device; where the identity
    is the only symmetry, nothing is drawn.
    """
    if len(symmetries) == 1:
        return fields
    which = torch.randint(len(symmetries), (len(fields),), generator=generator)
    return apply_symmetries(fields, symmetries.to(fields.device), which.to(fields.device))
