r"""Was it ever seen? How far summaries lie from those of the training, and how rare that is.

The distance is that of Mahalanobis, in a covariance of a few strong directions and one variance for
all others (Tipping & Bishop, J. R. Stat. Soc. B 61, 611 (1999)): tens of rows do not determine a
covariance of hundreds of features. Hundreds of rows say more. Summaries of simulations of a few
parameters lie near a curved surface, and what is off it may be well inside the ellipsoid. What a
quadratic regression on the strongest directions says of a row is therefore subtracted first, and
the distance is divided by that which rows of the same place have.

How far unseen rows of the training kind lie is measured on rows that were held out of the training.
Where these are few, rows of the training are left out in turn. But the encoder was trained on them,
so that unseen rows lie farther: their distances are multiplied by how much farther the few do.

Beyond nine tenths of these rows the logarithm of their distance is taken to fall off exponentially,
as that of every heavy tail does in the end (Hill, Ann. Stat. 3, 1163 (1975)). Few rows leave its
slope uncertain, so that the probability is the mean over all slopes that agree with them.

The parameters of simulations fill a box, and what lies just outside is not far from it. Where
parameters are known, a ridge regression reads them from the summaries, and how far they lie beyond
the ends of what it reads from unseen rows is judged as the distance is. Few rows leave these ends
uncertain, so that how far rows of the training kind lie beyond them is measured by ends of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc
from sklearn.linear_model import RidgeCV

from skatr_sk._checks import NeverSeenWarning, listed, warn
from skatr_sk._tensors import check_arrays

__all__ = ["Novelty", "SeenSummaries", "enough", "seen_of", "shapes_of_seen", "warn_never_seen"]

_Floats = NDArray[np.float64]

_MOST_ROWS, _MOST_NUMBERS = 2048, 4_000_000  # that it is learned from,
_FEWEST_ROWS = 6  # and fewest
_FEWEST_HELD_OUT = 50  # unseen rows that are enough to say how far such lie
_PRIOR_UNSEEN = 2  # of fewer: as if so many more had lain no farther than the others
_FOLDS, _PARTS = 5, 100
_MOST_AXES = 48  # strong directions
_ROWS_AN_AXIS = 4  # at least
_RIDGE = 0.01  # of the variance of a feature: nothing is known better than that
_TAIL = 0.1  # share of unseen rows that the tail is learned from
_FEWEST_IN_TAIL = 4
# What is believed of the slope of the tail before any row is seen: as if so many rows had had it.
_PRIOR_ROWS, _PRIOR_SLOPE = 4, 10.0
_KEPT = 128  # quantiles that are kept
_FEWEST_LABELLED = 100  # rows that parameters are read by, and
_MULTIPLIED = 12  # directions that are multiplied with each other for it, and for the surface
_FEWEST_CURVED = 400  # rows that say how the surface is curved, and
_ROWS_A_TERM = 8  # of it, at least
_AXES_A_CURVED = 4  # strong directions, for each that the surface extends along
_PENALTY = 10.0  # of its terms, in rows
_INSIDE = 4.0  # standard deviations, up to which it is followed along strong directions
_PENALTIES = np.logspace(-1, 6, 15)
_ENDS = 0.01, 0.05, 0.95, 0.99
_LEVEL = 1e-3  # share of calls on unseen rows of the training kind that warn by each of two tests
_RARE = 0.02  # tail probability that most rows of a call do not have by chance
_CHUNK = 4_000_000  # numbers in double precision at a time
_SURFACE = "bend", "off_mean", "off_inverse_scale", "off_axes", "off_variances"


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


def _none(n_axes: int) -> Any:
    """By default, what is of a surface is empty."""
    return field(default_factory=lambda: np.zeros(n_axes * (0,), dtype=np.float32))


@dataclass(frozen=True)
class SeenSummaries:
    """Where the summaries of a training lie.

    Parameters
    ----------
    mean, inverse_scale : ndarray of shape (n_summary,), float32
        Of each feature: one over its standard deviation. Where it did not vary the sign is minus,
        and a tenth of what the others vary by stands for it: such a feature says nothing of rows
        that have it as it was.
    axes : ndarray of shape (n_axes, n_summary), float32
        Orthonormal directions of large variance of the standardised features.
    variances : ndarray of shape (n_axes + 1,), float32
        Along each of these, and along all others.
    distances : ndarray of shape (n_quantiles,), float32
        Logarithms of those of unseen rows, from the smallest on, evenly spread over their ranks, up
        to the tail.
    tail : ndarray of shape (3,), float32
        Of the rows in the tail: their share, how many they are, and the sum of what they exceed the
        last of `distances` by.
    readout : ndarray of shape (n_features + 1, n_parameters), float32
        Coefficients, and constant, by which parameters, each standardised, are read from a summary,
        if any were known.
    ends : ndarray of shape (4, n_parameters), float32
        The quantiles .01, .05, .95 and .99 of what is read from unseen rows.
    excesses, excess_tail : ndarrays
        As `distances` and `tail`, of how far what is read lies beyond the ends.
    bend : ndarray of shape (n_terms + 1, n_summary + 1), float32
        Coefficients, and constant, by which the standardised features, and the logarithm of how far
        rows lie from these, are said by the strongest axes and their products, two by two. Empty
        of few rows, and in statistics of before there was a surface: `distances` are those from
        the mean then.
    off_mean, off_inverse_scale, off_axes, off_variances : ndarrays
        As `mean` and so on, of what features are beside that.

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
    readout: np.ndarray
    ends: np.ndarray
    excesses: np.ndarray
    excess_tail: np.ndarray
    bend: np.ndarray = _none(2)
    off_mean: np.ndarray = _none(1)
    off_inverse_scale: np.ndarray = _none(1)
    off_axes: np.ndarray = _none(2)
    off_variances: np.ndarray = _none(1)

    @classmethod
    def learn(
        cls,
        rows: np.ndarray,
        held_out: np.ndarray | None = None,
        parameters: np.ndarray | None = None,
    ) -> Self | None:
        """Learn from summaries (n, n_summary), and from unseen ones.

        Where these are fewer than fifty, rows that are left out in turn stand in for them, moved to
        where they lie. The `parameters` (n, n_parameters) are those of the rows, NaN where unknown.
        None where rows are too few, or do not vary.
        """
        most = min(_MOST_ROWS, max(_FEWEST_HELD_OUT, _MOST_NUMBERS // max(1, rows.shape[1])))
        unseen = _some(rows[:0] if held_out is None else held_out, most)
        labels = None if parameters is None else _some(parameters, most)
        rows = _some(rows, most)
        if len(rows) < _FEWEST_ROWS:
            return None
        # Fewer rows than features bend to their noise.
        curved = len(rows) >= max(_FEWEST_CURVED, rows.shape[1])
        n_curved = _n_directions(len(rows) // _ROWS_A_TERM) if curved else 0
        known: _Surface = _Surface.learn(rows, n_curved)
        where = known.around
        if not where.inverse_scale.any():
            return None
        turn, found = _turns(len(rows)), _log(known.distance(unseen))
        are_many = len(unseen) >= _FEWEST_HELD_OUT
        if not are_many:
            left_out = np.empty(len(rows))
            for fold in range(_FOLDS):
                without = _Surface.learn(rows[turn != fold], n_curved)
                left_out[turn == fold] = without.distance(rows[turn == fold])
            found = _moved(_log(left_out), found)
        n_features = where.features(rows[:1]).shape[1]
        readout, read = np.zeros((n_features + 1, 0)), np.zeros((len(rows), 0))
        full = np.zeros(0, bool) if labels is None else np.isfinite(labels).all(axis=1)
        if labels is not None and full.sum() >= _FEWEST_LABELLED:
            labels = labels[full][:, np.ptp(labels[full], axis=0) > 0]
            if labels.shape[1]:  # in units of their own: only the ends are compared with
                labels = (labels - labels.mean(axis=0)) / _positive(labels.std(axis=0))
                features = where.features(rows[full])
                readout, read = _learn_readout(features, labels, turn[full])
                if are_many:
                    read = _read(where.features(unseen), readout)
        ends = np.quantile(read, _ENDS, axis=0)
        beyond = _excess(read, ends)
        turn = _turns(len(read), _PARTS)
        # No row is judged by ends that it has set itself.
        for part in range(_PARTS) if read.size else ():
            of_others = np.quantile(read[turn != part], _ENDS, axis=0)
            beyond[turn == part] = _excess(read[turn == part], of_others)
        tails = [*_learn_tail(found), readout, ends, *_learn_tail(beyond)]
        parts = *where, *tails, known.bend, *known.off
        return cls(*(np.asarray(part, dtype=np.float32) for part in parts))

    def novelty(self, summaries: np.ndarray) -> Novelty:
        """Distance and tail probability of summaries (n, n_summary)."""
        values = [each.astype(np.float64) for each in vars(self).values()]
        where = _Ellipsoid(*values[:4])
        distances, tail, readout, ends, excesses, excess_tail = values[4:10]
        known = _Surface(where, values[10], _Ellipsoid(*values[11:]))
        step = max(1, _CHUNK // max(1, summaries.shape[-1]))
        parts = [(np.empty(0), np.empty(0))]
        for start in range(0, len(summaries), step):
            some = summaries[start : start + step]
            distance = known.distance(some)
            probability = _probability(_log(distance), distances, tail)
            if ends.shape[1]:
                excess = _excess(_read(where.features(some), readout), ends)
                smaller = np.minimum(probability, _probability(excess, excesses, excess_tail))
                probability = smaller * (2 - smaller)  # of two, as if independent
            parts.append((distance, probability))
        return Novelty(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _turns(n: int, n_folds: int = _FOLDS) -> NDArray[np.int64]:
    """Say in which fold each of `n` rows is left out."""
    return np.random.default_rng(0).permutation(n) % n_folds


def _moved(left_out: _Floats, unseen: _Floats) -> _Floats:
    """Return logarithms of distances of rows that were left out, moved to where unseen ones lie.

    By how much farther the median of these is, which counts less the fewer they are.
    """
    if not len(unseen):
        return left_out
    farther = np.median(unseen) - np.median(left_out)
    return left_out + max(farther * len(unseen) / (len(unseen) + _PRIOR_UNSEEN), 0.0)


class _Ellipsoid(NamedTuple):
    """The covariance of summaries: see `SeenSummaries`."""

    mean: _Floats
    inverse_scale: _Floats
    axes: _Floats
    variances: _Floats

    @classmethod
    def learn(cls, rows: _Floats) -> Self:
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        varies = scale > 1e-6 * np.abs(rows).max(axis=0)
        inverse_scale = np.zeros_like(scale)
        if varies.any():  # what never varied and does so now was not seen
            others = np.sqrt(_RIDGE) * np.median(scale[varies])
            inverse_scale = -1 / np.maximum(others, 1e-3 * np.abs(mean))
            inverse_scale[varies] = 1 / scale[varies]
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
        return cls(mean, inverse_scale, axes, np.concatenate([values, [rest]]) + _RIDGE)

    def distance(self, rows: np.ndarray) -> _Floats:
        """Root mean square deviation of each row, in standard deviations."""
        standard = self.standard(rows)
        along = np.square(standard @ self.axes.T)
        rest = np.maximum(np.square(standard).sum(axis=1) - along.sum(axis=1), 0.0)
        square = along @ (1 / self.variances[:-1]) + rest / self.variances[-1]
        return np.sqrt(square / max((self.inverse_scale > 0).sum(), 1))

    def features(self, rows: np.ndarray) -> _Floats:
        """Standardised summaries, and the products of the strongest directions, two by two."""
        standard = self.standard(rows)
        products = _products(self.strong(standard, _MULTIPLIED))
        return np.concatenate([standard, products], axis=1)

    def standard(self, rows: np.ndarray) -> _Floats:
        """Return rows in standard deviations."""
        return (rows - self.mean) * self.inverse_scale

    def strong(self, standard: _Floats, n: int) -> _Floats:
        """Return standardised rows along the `n` strongest directions, or all, standardised too."""
        return standard @ self.axes[:n].T / np.sqrt(self.variances[:-1][:n])


def _products(columns: _Floats) -> _Floats:
    one, other = np.triu_indices(columns.shape[1])
    return columns[:, one] * columns[:, other]


def _n_terms(n_directions: int) -> int:
    """Directions, and their products two by two."""
    return n_directions * (n_directions + 3) // 2


def _n_directions(n_terms: int) -> int:
    """Return of how many directions, and their products, there are at most so many terms."""
    return max(n for n in range(_MULTIPLIED + 1) if _n_terms(n) <= n_terms)


class _Surface(NamedTuple):
    """The surface that summaries lie near: see `SeenSummaries`."""

    around: _Ellipsoid
    bend: _Floats
    off: _Ellipsoid

    @classmethod
    def learn(cls, rows: _Floats, n_curved: int) -> Self:
        """Learn it, quadratic in some directions, or the ellipsoid alone."""
        around: _Ellipsoid = _Ellipsoid.learn(rows)
        n = min(n_curved, len(around.axes) // _AXES_A_CURVED)
        if not n:
            flat, line = np.zeros((0, 0)), np.zeros(0)
            return cls(around, flat, _Ellipsoid(line, line, flat, line))
        standard = around.standard(rows)
        strong = around.strong(standard, n)
        terms = _terms(strong)
        penalty = np.diag([_PENALTY] * (terms.shape[1] - 1) + [0.0])
        solved = np.linalg.solve(terms.T @ terms + penalty, terms.T)
        # What never varied does so by the rounding of its mean, which is no deviation.
        standard[:, around.inverse_scale <= 0] = 0.0
        bend = solved @ standard
        # As the other rows say of each: in closed form.
        leverage = np.minimum(np.einsum("ij,ji->i", terms, solved), 0.9)
        beside = _beside(standard, strong, terms, bend) / (1 - leverage)[:, np.newaxis]
        off: _Ellipsoid = _Ellipsoid.learn(beside)
        sizes = solved @ _log(off.distance(beside))
        return cls(around, np.column_stack([bend, sizes]), off)

    def distance(self, rows: np.ndarray) -> _Floats:
        """Root mean square deviation of each row, off the surface and along it.

        Off the surface in standard deviations of rows of the same place.
        """
        if not len(self.bend):
            return self.around.distance(rows)
        bend, sizes = self.bend[:, :-1], self.bend[:, -1]
        standard = self.around.standard(rows)
        strong = self.around.strong(standard, _n_directions(len(bend) - 1))
        terms = _terms(strong)
        beside = _beside(standard, strong, terms, bend)
        n_along, n_off = strong.shape[1], int((self.off.inverse_scale > 0).sum())
        square = n_off * np.square(self.off.distance(beside) / np.exp(terms @ sizes))
        return np.sqrt((square + np.square(strong).sum(axis=1)) / (n_along + n_off))


def _terms(strong: _Floats) -> _Floats:
    """What the surface is quadratic in, no farther than rows were seen, and 1."""
    inside = np.clip(strong, -_INSIDE, _INSIDE)
    return np.column_stack([inside, _products(inside), np.ones(len(strong))])


def _beside(standard: _Floats, strong: _Floats, terms: _Floats, bend: _Floats) -> _Floats:
    """What the surface leaves of standardised rows; farther out it goes on straight."""
    straight_on = (strong - np.clip(strong, -_INSIDE, _INSIDE)) @ bend[: strong.shape[1]]
    return standard - terms @ bend - straight_on


def _learn_readout(
    features: _Floats, labels: _Floats, turn: NDArray[np.int64]
) -> tuple[_Floats, _Floats]:
    """Return coefficients and constants of a ridge regression, and what it reads from its rows.

    Each row is read by a regression on the others, those of another `turn`.
    """
    readout, read = _ridge(features, labels), np.empty_like(labels)
    for fold in range(_FOLDS):
        without = _ridge(features[turn != fold], labels[turn != fold])
        read[turn == fold] = _read(features[turn == fold], without)
    return readout, read


def _ridge(features: _Floats, labels: _Floats) -> _Floats:
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, np.inf)
    ridge = RidgeCV(_PENALTIES).fit((features - mean) / scale, labels)
    coefficients = np.atleast_2d(ridge.coef_).T / scale[:, np.newaxis]
    return np.concatenate([coefficients, [ridge.intercept_ - mean @ coefficients]])


def _read(features: _Floats, readout: _Floats) -> _Floats:
    return features @ readout[:-1] + readout[-1]


def _excess(read: _Floats, ends: _Floats) -> _Floats:
    """Return how far parameters (n, n_parameters) lie beyond the ends, the farthest of each row.

    Between the quantiles .05 and .95 it is negative, and 1 at those of .01 and .99.
    """
    lowest, low, high, highest = ends
    beyond = np.concatenate(
        [(low - read) / _positive(low - lowest), (read - high) / _positive(highest - high)], axis=1
    )
    return beyond.max(axis=1, initial=-1.0)


def _positive(width: _Floats) -> _Floats:
    return np.maximum(width, 1e-30)


def _log(distance: _Floats) -> _Floats:
    return np.log(np.maximum(distance, 1e-30))


def _learn_tail(found: _Floats) -> tuple[_Floats, _Floats]:
    """Return the quantiles of unseen rows up to the tail, and what is known of the tail."""
    found = np.sort(found)
    n_tail = min(max(round(_TAIL * len(found)), _FEWEST_IN_TAIL), len(found) - 1)
    first = found[-n_tail - 1]
    kept = np.linspace(0, len(found) - n_tail - 1, _KEPT).round().astype(int)
    return found[kept], np.array([n_tail / len(found), n_tail, (found[-n_tail:] - first).sum()])


def _probability(found: _Floats, known: _Floats, tail: _Floats) -> _Floats:
    """Share of unseen rows that lie as far or farther."""
    share, n_tail, excess = tail
    # Up to the tail by the ranks, from 1 down to the tail's share.
    below = np.interp(found, known, np.linspace(1, share, len(known)))
    # The mean of exp(-slope * beyond) over what the rows say of the slope.
    beyond = np.maximum(found - known[-1], 0.0) / (excess + _PRIOR_ROWS / _PRIOR_SLOPE)
    tiny = np.finfo(np.float64).tiny
    above = np.maximum(share * np.exp(-(n_tail + _PRIOR_ROWS) * np.log1p(beyond)), tiny)
    return np.where(beyond > 0, above, below)


def seen_of(found: Any, n_summary: int) -> SeenSummaries | None:
    """Return the statistics of arrays by their names, checked; None where there are none."""
    if found is None:
        return None
    parts = found.items() if isinstance(found, dict) else ()
    check_arrays("seen", found, shapes_of_seen({k: np.shape(v) for k, v in parts}, n_summary))
    seen = SeenSummaries(**found)
    rising = seen.distances, seen.excesses, seen.ends
    variances = np.concatenate([seen.variances, seen.off_variances])
    if not (variances > 0).all() or any((np.diff(each, axis=0) < 0).any() for each in rising):
        raise ValueError("seen: expected variances > 0, and quantiles that do not fall")
    for share, n_tail, excess in (seen.tail, seen.excess_tail):
        if not 0 < share < 1 or n_tail < 1 or excess < 0:
            raise ValueError("seen: expected tails of a share in (0, 1) of one row or more")
    return seen


def shapes_of_seen(
    found: Mapping[str, tuple[int, ...]], n_summary: int
) -> dict[str, tuple[int, ...]]:
    """Return what shapes the arrays have to have, by the lengths that some of them have."""

    def n_axes(name: str) -> int:
        return min(_length(found.get(name)), n_summary)

    n = min(n_axes("axes"), _MULTIPLIED)
    n_parameters = _length(found.get("ends", ())[1:])
    shapes: dict[str, tuple[int, ...]] = {
        "mean": (n_summary,),
        "inverse_scale": (n_summary,),
        "axes": (n_axes("axes"), n_summary),
        "variances": (n_axes("axes") + 1,),
        "distances": (max(_length(found.get("distances")), 1),),
        "tail": (3,),
        "readout": (n_summary + n * (n + 1) // 2 + 1, n_parameters),
        "ends": (len(_ENDS), n_parameters),
        "excesses": (max(_length(found.get("excesses")), 1),),
        "excess_tail": (3,),
    }
    if "bend" not in found:  # of before there was a surface
        return shapes
    if not _length(found["bend"]):
        surface: list[tuple[int, ...]] = [(0, 0), (0,), (0,), (0, 0), (0,)]
    else:
        n_terms = _n_terms(min(_n_directions(_length(found["bend"]) - 1), n_axes("axes")))
        surface = [(n_terms + 1, n_summary + 1), (n_summary,), (n_summary,)]
        surface += [(n_axes("off_axes"), n_summary), (n_axes("off_axes") + 1,)]
    return shapes | dict(zip(_SURFACE, surface, strict=True))


def _length(shape: tuple[int, ...] | None) -> int:
    """Length of the first axis; 0 where there is none."""
    return shape[0] if shape else 0


def warn_never_seen(owner: str, what: str, found: Novelty, mend: str) -> None:
    """Warn of rows so far outside that hardly any unseen row of the training kind lies there."""
    far = _far(found.tail_probability)
    if not far.size:
        return
    far = far[np.lexsort((-found.distance[far], found.tail_probability[far]))]
    warn(
        f"{owner}: expected {what}, found {len(far)} of {len(found.distance)} rows far from all of "
        f"them, worst rows {listed(far)}, the first {found.distance[far[0]]:.3g} standard "
        f"deviations away; of others of that kind a share of at most "
        f"{found.tail_probability[far].max():.1g} is as far; {mend}.",
        NeverSeenWarning,
    )


def _far(probability: _Floats) -> NDArray[np.int64]:
    """Rows whose tail probabilities are too small for rows of the training kind.

    There are two tests. The first takes the rows whose probabilities are small for the number of
    rows in the call (Benjamini & Hochberg, J. R. Stat. Soc. B 57, 289 (1995)). The second takes all
    that are rarer than `_RARE` where these are most of the call. On rows of the training kind each
    of the two finds any in a share `_LEVEL` of calls at most, both together in twice as many.
    """
    n, ordered = len(probability), np.sort(probability)
    passed = np.flatnonzero(ordered <= _LEVEL * np.arange(1, n + 1) / max(n, 1))
    limit = ordered[passed[-1]] if passed.size else 0.0
    n_rare = int((probability <= _RARE).sum())
    if n_rare > n / 2 and bdtrc(n_rare - 1, n, _RARE) <= _LEVEL:
        limit = max(limit, _RARE)
    return np.flatnonzero(probability <= limit)


def enough(rows: NDArray[Any], most: int = _MOST_ROWS) -> NDArray[Any]:
    """Return as many of some rows, by their numbers, as are learned from, in order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _some(rows: np.ndarray, most: int) -> _Floats:
    """Return some of many rows, always the same of as many."""
    if len(rows) > most:
        rows = rows[np.random.default_rng(0).choice(len(rows), most, replace=False)]
    return np.asarray(rows, dtype=np.float64)
