"""Coarser grids: means of fields over blocks of cells."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import Problems, nearest_divisors
from skatr_sk.resampling import block_means

__all__ = ["coarsen"]


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
    InvalidParameterError
        A ValueError and a TypeError: if `data` is not real numbers or has no field axis, or if
        `block` is not whole numbers of at least 1, one for each field axis, which divide it.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.lightcones import coarsen
    >>> coarsen(np.arange(12.0).reshape(1, 2, 6), (2, 3))
    array([[[4., 7.]]])
    """
    data = np.asarray(data)
    problems = Problems("coarsen")
    if data.dtype.kind not in "buif":
        problems.add("data", "real numbers", data.dtype)
    if data.ndim < 2:
        mend = "a single field becomes one by data[None]"
        problems.add("data", "shape (n, *field_shape)", data.shape, mend)
    problems.raise_if_any()
    rank = data.ndim - 1
    each = block if isinstance(block, Sequence | np.ndarray) else [block] * rank
    try:
        sizes = [operator.index(size) for size in each]
    except TypeError:
        sizes = []
    if len(sizes) != rank or min(sizes) < 1:
        expected = f"an int of at least 1, or one for each of the {rank} field axes"
        problems.add("block", expected, block)
        problems.raise_if_any()
    for axis, (size, cells) in enumerate(zip(sizes, data.shape[1:], strict=True)):
        if cells % size:
            nearest = " and ".join(map(str, nearest_divisors(cells, size)))
            expected = f"a divisor of the {cells} cells of field axis {axis}"
            problems.add(f"block[{axis}]", expected, size, f"the nearest are {nearest}")
    problems.raise_if_any()
    return block_means(data, sizes)
