r"""Was it ever seen? How far summaries lie from those of the training, and how rare that is.

The distance is that of Mahalanobis, in a covariance of a few strong directions and one variance for
all others (Tipping & Bishop, J. R. Stat. Soc. B 61, 611 (1999)): tens of rows do not determine a
covariance of hundreds of features. How far unseen rows of the training kind lie is measured on rows
that the covariance was not learned from. Beyond nine tenths of these the logarithm of their
distance is taken to fall off exponentially, as that of every heavy tail does in the end (Hill, Ann.
Stat. 3, 1163 (1975)); what few rows say of its slope is averaged over all slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from skatr_sk._checks import NeverSeenWarning, listed, warn

__all__ = ["Novelty", "SeenSummaries", "seen_of", "shapes_of_seen", "warn_never_seen"]

_Floats = NDArray[np.float64]

_MOST_ROWS = 2048  # that it is learned from,
_FEWEST_ROWS = 6  # and fewest
_FEWEST_HELD_OUT = 50  # unseen rows that are enough to say how far such lie
_FOLDS = 5
_MOST_AXES = 48  # strong directions
_ROWS_AN_AXIS = 4  # at least
_RIDGE = 0.01  # of the variance of a feature: nothing is known better than that
_TAIL = 0.1  # share of unseen rows that the tail is learned from
_FEWEST_IN_TAIL = 4
# What is believed of the slope of the tail before any row is seen: as if so many rows had had it.
_PRIOR_ROWS, _PRIOR_SLOPE = 4, 10.0
_KEPT = 128  # quantiles of the distances
_LEVEL = 1e-3  # share of calls on unseen rows of the training kind that warn
_RARE = 0.02  # tail probability that most rows of a call do not have by chance
_CHUNK = 4_000_000  # numbers in double precision at a time


class Novelty(NamedTuple):
    """How far each light cone lies from those of the training, and how rare that is.

    Parameters
    ----------
    distance : ndarray of shape (n,), float64
        Root mean square of the deviations, in standard deviations of the training summaries: about
        1 for what was seen.
    tail_probability : ndarray of shape (n,), float64
        Share of unseen light cones of the training kind that lie as far or farther, in (0, 1].
    """

    distance: _Floats
    tail_probability: _Floats


@dataclass(frozen=True)
class SeenSummaries:
    """Where the summaries of a training lie.

    Parameters
    ----------
    mean, inverse_scale : ndarray of shape (n_summary,), float32
        Of each feature: one over its standard deviation, and 0 where it did not vary.
    axes : ndarray of shape (n_axes, n_summary), float32
        Orthonormal directions of large variance of the standardised features.
    variances : ndarray of shape (n_axes + 1,), float32
        Along each of these, and along all others.
    distances : ndarray of shape (n_quantiles,), float32
        Of unseen rows, from the smallest to the largest, evenly spread over their ranks.
    tail : ndarray of shape (3,), float32
        Of the rows in the tail: their share, how many they are, and the sum of the logarithms of
        their distances over the smallest.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk.summaries.novelty import SeenSummaries
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> seen = SeenSummaries.learn(X)
    >>> seen.novelty(np.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])).tail_probability < 1e-3
    array([False,  True])
    """

    mean: np.ndarray
    inverse_scale: np.ndarray
    axes: np.ndarray
    variances: np.ndarray
    distances: np.ndarray
    tail: np.ndarray

    @classmethod
    def learn(cls, rows: np.ndarray, held_out: np.ndarray | None = None) -> Self | None:
        """Learn from summaries (n, n_summary), and from unseen ones where these are many.

        Else rows that are left out in turn stand in for them. None where rows are too few, or do
        not vary.
        """
        rows, few = _some(rows), None if held_out is None else _some(held_out)
        if len(rows) < _FEWEST_ROWS:
            return None
        whole = _covariance(rows)
        if not whole["inverse_scale"].any():
            return None
        if few is not None and len(few) >= _FEWEST_HELD_OUT:
            found = _distance(few, **whole)
        else:
            turn = np.random.default_rng(0).permutation(len(rows)) % _FOLDS
            found = np.empty(len(rows))
            for fold in range(_FOLDS):
                without = _covariance(rows[turn != fold])
                found[turn == fold] = _distance(rows[turn == fold], **without)
        found = np.sort(found)
        n_tail = min(max(round(_TAIL * len(found)), _FEWEST_IN_TAIL), len(found) - 1)
        first = found[-n_tail - 1]
        floor = max(float(first), 1e-30)
        excess = np.log(np.maximum(found[-n_tail:], floor) / floor).sum()
        tail = np.array([n_tail / len(found), n_tail, excess])
        kept = np.unique(np.linspace(0, len(found) - n_tail - 1, _KEPT).round().astype(int))
        parts = whole | {"distances": found[kept], "tail": tail}
        return cls(**{name: values.astype(np.float32) for name, values in parts.items()})

    def novelty(self, summaries: np.ndarray) -> Novelty:
        """Distance and tail probability of summaries (n, n_summary)."""
        step = max(1, _CHUNK // max(1, summaries.shape[-1]))
        names = "mean", "inverse_scale", "axes", "variances"
        parts = {name: getattr(self, name).astype(np.float64) for name in names}
        starts = range(0, len(summaries), step)
        some = [_distance(summaries[start : start + step], **parts) for start in starts]
        distance = np.concatenate([np.empty(0), *some])
        return Novelty(distance, self._tail_probability(distance))

    def _tail_probability(self, distance: _Floats) -> _Floats:
        share, n_tail, excess = self.tail.astype(np.float64)
        known = self.distances.astype(np.float64)
        last = max(known[-1], 1e-30)
        # Up to the tail by the ranks, from 1 down to the tail's share.
        below = np.interp(distance, known, np.linspace(1, share, len(known)))
        # The mean of (distance / last) ** -slope over what the rows say of the slope.
        weight = excess + _PRIOR_ROWS / _PRIOR_SLOPE
        beyond = np.log1p(np.log(np.maximum(distance / last, 1)) / weight)
        return np.where(distance > last, share * np.exp(-(n_tail + _PRIOR_ROWS) * beyond), below)


def seen_of(found: Any, n_summary: int) -> SeenSummaries | None:
    """Return the statistics of arrays by their names, checked; None where there are none."""
    if found is None:
        return None
    names = [field.name for field in fields(SeenSummaries)]
    if not isinstance(found, dict) or found.keys() != set(names):
        raise ValueError(f"seen: expected arrays {listed(names, 6)}, found {found!r:.80}")
    shapes = shapes_of_seen({name: np.shape(values) for name, values in found.items()}, n_summary)
    for name, shape in shapes.items():
        array = found[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
            wanted = f"an array of float32, of shape {shape}"
            raise ValueError(f"seen.{name}: expected {wanted}, found {array!r:.80}")
        if not np.isfinite(array).all():
            raise ValueError(f"seen.{name} has NaN or infinite values")
    seen = SeenSummaries(**found)
    if not (seen.variances > 0).all() or (np.diff(seen.distances) < 0).any():
        raise ValueError("seen: expected variances > 0, and distances that do not fall")
    share, n_tail, excess = seen.tail
    if seen.distances[0] < 0 or not 0 < share < 1 or n_tail < 1 or excess < 0:
        raise ValueError(f"seen.tail: expected a share in (0, 1) of some rows, found {seen.tail}")
    return seen


def shapes_of_seen(
    found: Mapping[str, tuple[int, ...]], n_summary: int
) -> dict[str, tuple[int, ...]]:
    """Return what shapes the arrays have to have, by the lengths that two of them have."""
    n_axes = min(_length(found.get("axes")), n_summary)
    n_quantiles = max(_length(found.get("distances")), 1)
    of_each = dict.fromkeys(("mean", "inverse_scale"), (n_summary,))
    sizes: dict[str, tuple[int, ...]] = {"axes": (n_axes, n_summary), "variances": (n_axes + 1,)}
    return of_each | sizes | {"distances": (n_quantiles,), "tail": (3,)}


def _length(shape: tuple[int, ...] | None) -> int:
    """Length of the first axis; 0 where there is none."""
    return shape[0] if shape else 0


def warn_never_seen(owner: str, what: str, found: Novelty, mend: str) -> None:
    """Warn of rows so far outside that hardly any unseen row of the training kind lies there."""
    far = _far(found.tail_probability)
    if not far.size:
        return
    far = far[np.argsort(-found.distance[far], kind="stable")]
    warn(
        f"{owner}: expected {what}, found {len(far)} of {len(found.distance)} rows far from all of "
        f"them, worst rows {listed(far)}, {found.distance[far[0]]:.3g} standard deviations away; "
        f"of others of that kind at most {found.tail_probability[far].max():.1g} lie as far; "
        f"{mend}.",
        NeverSeenWarning,
    )


def _far(probability: _Floats) -> NDArray[np.int64]:
    """Rows whose tail probabilities are too small for rows of the training kind.

    As many as are small are judged together (Benjamini & Hochberg, J. R. Stat. Soc. B 57, 289
    (1995)); and where most rows are rare, they are not that by chance. Of calls on rows of the
    training kind at most a share of `_LEVEL` has any by the first, and by the second.
    """
    n, ordered = len(probability), np.sort(probability)
    passed = np.flatnonzero(ordered <= _LEVEL * np.arange(1, n + 1) / max(n, 1))
    limit = ordered[passed[-1]] if passed.size else 0.0
    n_rare = int((probability <= _RARE).sum())
    if n_rare > n / 2 and bdtrc(n_rare - 1, n, _RARE) <= _LEVEL:
        limit = max(limit, _RARE)
    return np.flatnonzero(probability <= limit)


def _some(rows: np.ndarray) -> _Floats:
    """Return some of many rows, always the same of as many."""
    if len(rows) > _MOST_ROWS:
        rows = rows[np.random.default_rng(0).choice(len(rows), _MOST_ROWS, replace=False)]
    return np.asarray(rows, dtype=np.float64)


def _covariance(rows: _Floats) -> dict[str, _Floats]:
    """Return mean, inverse scale, axes and variances of rows (n, n_summary)."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    varies = scale > 1e-6 * np.abs(rows).max(axis=0)
    inverse_scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=varies)
    centred = (rows - mean) * inverse_scale
    n_axes = min(_MOST_AXES, len(rows) // _ROWS_AN_AXIS, rows.shape[1])
    # Of the two Gram matrices the smaller one.
    wide = rows.shape[1] > len(rows)
    gram = centred @ centred.T if wide else centred.T @ centred
    values, vectors = np.linalg.eigh(gram / len(rows))
    values, vectors = values[::-1][:n_axes], vectors[:, ::-1][:, :n_axes]
    kept = values > 1e-9 * max(values.max(initial=0.0), 1e-30)
    values, vectors = values[kept], vectors[:, kept]
    axes = vectors.T
    if wide:
        axes = axes @ centred / np.sqrt(values * len(rows))[:, np.newaxis]
    n_varying = int(varies.sum())
    rest = max(n_varying - values.sum(), 0.0) / max(n_varying - len(values), 1)
    variances = np.concatenate([values, [rest]]) + _RIDGE
    return {"mean": mean, "inverse_scale": inverse_scale, "axes": axes, "variances": variances}


def _distance(
    rows: np.ndarray, mean: _Floats, inverse_scale: _Floats, axes: _Floats, variances: _Floats
) -> _Floats:
    standard = (rows - mean) * inverse_scale
    along = np.square(standard @ axes.T)
    rest = np.maximum(np.square(standard).sum(axis=1) - along.sum(axis=1), 0.0)
    square = along @ (1 / variances[:-1]) + rest / variances[-1]
    return np.sqrt(square / max(np.count_nonzero(inverse_scale), 1))
