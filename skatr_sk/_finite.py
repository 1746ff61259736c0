"""Finite or not: the one rule on NaN and infinite values, for arrays and for what lies in files."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["check_finite_rows", "finite"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def check_finite_rows(values: np.ndarray, name: str = "X", what: str = "cells") -> None:
    """Raise a ValueError that names the first rows with NaN or infinite values.

    Values that float32 cannot hold count as infinite: it is what the networks compute in.

    Parameters
    ----------
    values : ndarray of shape (n, ...)
    name, what : str
        How the message calls the array, and what a row is made of.

    Examples
    --------
    >>> import numpy as np
    >>> check_finite_rows(np.array([[0.0], [np.nan]]))
    Traceback (most recent call last):
    ...
    ValueError: X has NaN or infinite cells in 1 of 2 rows, the first of them 1 (1 NaN, 0 ...
    """
    if values.dtype.kind not in "fc" or values.size == 0:
        return
    n = len(values)
    largest = _largest(values.dtype)
    # Chunks keep the temporaries small beside the data, whatever its size.
    step = max(1, 4_000_000 // max(1, math.prod(values.shape[1:])))
    bad: list[int] = []
    n_nan = n_infinite = 0
    for start in range(0, n, step):
        chunk = values[start : start + step].reshape(min(step, n - start), -1)
        if finite(chunk):
            continue
        wrong = ~(np.abs(chunk) <= largest)
        bad += (start + np.flatnonzero(wrong.any(axis=1))).tolist()
        n_nan += int(np.isnan(chunk).sum())
        n_infinite += int(wrong.sum()) - int(np.isnan(chunk).sum())
    if bad:
        first = ", ".join(str(row) for row in bad[:5])
        raise ValueError(
            f"{name} has NaN or infinite {what} in {len(bad)} of {n} rows, the first of them "
            f"{first} ({n_nan} NaN, {n_infinite} infinite values in all). Drop or repair these "
            "rows before the call."
        )


def finite(values: np.ndarray) -> bool:
    """Tell whether all values are finite in float32, in one pass without a copy of them.

    Parameters
    ----------
    values : ndarray of floats, of any shape

    Examples
    --------
    >>> import numpy as np
    >>> finite(np.array([0.0, 1e30])), finite(np.array([0.0, 1e60])), finite(np.array([np.nan]))
    (True, False, False)
    """
    if values.size == 0:
        return True
    if values.dtype == np.float16 and values.flags.c_contiguous:
        # numpy compares float16 one by one; the bits of an exponent are all set in NaN and infinity
        return bool(np.bitwise_and(values.view(np.uint16), 0x7C00).max() < 0x7C00)
    largest = _largest(values.dtype)
    # A NaN makes both comparisons false, and an infinity one of them.
    return float(values.min()) >= -largest and float(values.max()) <= largest


def _largest(dtype: np.dtype) -> float:
    return min(_FLOAT32_MAX, float(np.finfo(dtype).max))
