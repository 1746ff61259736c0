"""Light cones in and out: the bundled ones, those in files, and block means of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import nearest_divisors
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.bundle import load_lightcones
from skatr_sk.lightcones.converting import convert
from skatr_sk.lightcones.opening import open_lightcones
from skatr_sk.lightcones.writing import save_lightcones

__all__ = [
    "LightconeArray",
    "coarsen",
    "convert",
    "load_lightcones",
    "open_lightcones",
    "save_lightcones",
]


def coarsen(data: ArrayLike, block: SupportsIndex | Sequence[SupportsIndex]) -> np.ndarray:
    """Average fields over blocks of cells.

    Parameters
    ----------
    data : array-like of shape (n, ...)
        Fields of any rank: signals, maps or light cones. The first axis counts fields and is
        not averaged.
    block : int or sequence of int, one for each field axis
        Cells of a block along each field axis, at least 1; an int stands for every field axis.
        Each must divide its axis, so that every cell counts once.

    Returns
    -------
    means : ndarray of shape (n, ...), float64
        Block means, summed in float64 whatever the type of `data`. A block with a NaN is NaN.

    Raises
    ------
    TypeError
        If `data` is not real numbers, or `block` is not whole numbers.
    ValueError
        If `data` has no field axis, or `block` has another length than the field has axes, is
        smaller than 1, or does not divide an axis.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.lightcones.io import coarsen
    >>> coarsen(np.arange(12.0).reshape(1, 2, 6), (2, 3))
    array([[[4., 7.]]])
    """
    data = np.asarray(data)
    if data.dtype.kind not in "buif":
        raise TypeError(f"data must hold real numbers; found dtype {data.dtype}.")
    if data.ndim < 2:
        raise ValueError(
            f"data must have shape (n, *field_shape); found shape {data.shape}. "
            "A single field becomes one by data[None]."
        )
    field_shape = data.shape[1:]
    sizes = _block_sizes(block, len(field_shape))
    problems = [
        f"block[{axis}] = {size} does not divide the {cells} cells of field axis {axis} "
        f"(divisors nearest to it: {' and '.join(map(str, nearest_divisors(cells, size)))})"
        for axis, (size, cells) in enumerate(zip(sizes, field_shape, strict=True))
        if cells % size
    ]
    if problems:
        raise ValueError("; ".join(problems) + ".")
    # Every axis becomes two, blocks and cells within a block; the latter are averaged away.
    split: list[int] = []
    for cells, size in zip(field_shape, sizes, strict=True):
        split += [cells // size, size]
    within = tuple(range(2, 2 * len(sizes) + 1, 2))
    means: np.ndarray = data.reshape(len(data), *split).mean(axis=within, dtype=np.float64)
    return means


def _block_sizes(block: SupportsIndex | Sequence[SupportsIndex], rank: int) -> tuple[int, ...]:
    """One checked block size for each of the field's `rank` axes."""
    try:
        if isinstance(block, Sequence | np.ndarray):
            sizes = tuple(operator.index(size) for size in block)
        else:
            sizes = (operator.index(block),) * rank
    except TypeError:
        raise TypeError(f"block must be an int or a sequence of int; found {block!r}.") from None
    if len(sizes) != rank:
        raise ValueError(
            f"block must have one size for each of the {rank} field axes; found {block!r}."
        )
    if min(sizes) < 1:
        raise ValueError(f"block sizes must be at least 1; found {block!r}.")
    return sizes
