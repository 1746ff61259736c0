"""Effective rank of summaries, as the training history and the metrics report it."""

from __future__ import annotations

__all__ = ["effective_rank"]

import numpy as np
from numpy.typing import ArrayLike

# A feature whose standard deviation is within this many roundings of its own size holds no
# information: divided by it, the rounding of a collapsed encoder would look like full rank.
_ROUNDINGS = 16.0


def effective_rank(summaries: ArrayLike, *, standardize: bool = True, floor: float = 0.0) -> float:
    r"""Count the directions that a set of summaries really uses (RankMe).

    With the singular values :math:`\sigma_k` of the array and
    :math:`p_k = \sigma_k / \sum_j \sigma_j`, the effective rank is
    :math:`\exp(-\sum_k p_k \log p_k)`: ``k`` equally strong directions give ``k``, one dominant
    direction gives about 1. It falls when an encoder collapses, and needs no labels.

    Parameters
    ----------
    summaries : array-like of shape (n_lightcones, n_summary)
        Summaries, one light cone a row, real and finite. Computed in float64 whatever the type.
    standardize : bool, default=True
        Centre every feature and divide it by its standard deviation first, so that neither a common
        offset nor one large feature hides the others. Features that are constant, up to the
        rounding of the type that they came in, become zero. ``False`` takes the array as it is, as
        the reference does.
    floor : float, default=0.0
        With `standardize`, a feature whose standard deviation is below this share of the root mean
        square of all entries counts as constant. An encoder that collapses shrinks all directions
        alike, so that after standardising the rank is as high as before: on Gaussian random fields
        it stayed at 39 without a floor, while the standard deviation over the root mean square
        fell from 0.2 to 0.003. The training history uses 0.005.

    Returns
    -------
    rank : float
        Between 1 and ``min(n_lightcones, n_summary)``, or ``min(n_lightcones - 1, n_summary)``
        when standardised, since centring takes one. It is 0.0 where no direction varies: all
        features constant, a single row when standardised, or all zeros.

    Raises
    ------
    TypeError
        When the entries are not real numbers.
    ValueError
        When the array is not two-dimensional, is empty, or holds NaN or infinite values.

    Notes
    -----
    The number of light cones bounds the result: compare values at the same ``n_lightcones``. The
    reference adds 1e-7 to every :math:`p_k`; here :math:`0 \log 0 = 0` instead, so that an array of
    rank one gives 1.

    References
    ----------
    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", arXiv:2210.02885, eq. 1; Roy & Vetterli, "The effective rank",
    EUSIPCO 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.evaluation import effective_rank
    >>> round(effective_rank(np.eye(5), standardize=False), 6)
    5.0
    >>> line = np.linspace(-1, 1, 50)
    >>> round(effective_rank(np.column_stack([line, 3 * line, 7 - line])), 6)
    1.0
    """
    values = np.asarray(summaries)
    if values.dtype.kind not in "biuf":
        mend = "convert it with summaries.astype(float)"
        raise TypeError(f"summaries: expected real numbers, found dtype {values.dtype}; {mend}.")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(
            "summaries: expected shape (n_lightcones, n_summary) with at least one of each, found "
            f"{values.shape}; average tokens or flatten further axes first."
        )
    rounding = float(np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps)
    matrix = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ValueError(
            f"summaries: expected finite numbers, found NaN or infinite values in {bad.size} of "
            f"{len(matrix)} rows (first rows: {', '.join(map(str, bad[:5]))}); leave those out."
        )
    # Scaling by the largest entry keeps sums of squares inside the range of float64.
    largest = max(float(np.abs(matrix).max()), float(np.finfo(np.float64).tiny))
    if standardize:
        least = floor * float(np.sqrt(np.mean(np.square(matrix / largest)))) * largest
        tops = np.abs(matrix).max(axis=0)
        matrix = matrix / np.where(tops > 0.0, tops, 1.0)
        matrix = matrix - matrix.mean(axis=0)
        deviation = matrix.std(axis=0)
        # What is constant, up to rounding or to `least`, becomes zero.
        varies = (deviation > _ROUNDINGS * rounding) & (deviation * tops >= least)
        matrix = np.where(varies, matrix, 0.0) / np.where(varies, deviation, 1.0)
    else:
        matrix = matrix / largest
    singular = np.linalg.svd(matrix, compute_uv=False)
    total = singular.sum()
    if total == 0.0:
        return 0.0
    share = singular / total
    share = share[share > 0.0]
    return float(np.exp(-np.sum(share * np.log(share))))
