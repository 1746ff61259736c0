"""Parameters between their prior box and the unbounded space where the flow lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from skatr_sk._checks import Problems, spell

__all__ = ["ParameterSpace", "check_prior_bounds", "check_spread"]

# Nearer to an edge of the box than this share of its width, a parameter counts as this near: the
# edge itself would be at infinity. A uniform prior has 2e-9 of its mass there.
_EDGE = 1e-9
# Where the edges are large beside the width, float64 tells shares apart to this many of its steps.
_STEPS = 4096
# Training parameters in this many edges' width are a heap: a density needs them spread out.
_HEAP = 100
_NARROWEST, _SMALLEST = 1e-6, 1e-100  # share of the box, and spread, that parameters must cover
_LOG_NORMAL = 0.5 * np.log(2 * np.pi)


@dataclass(frozen=True)
class ParameterSpace:
    r"""Map parameters to an unbounded, standardised space and back, with the Jacobian.

    A bounded parameter goes through the normal quantile function,
    :math:`z = \Phi^{-1}((y - a) / (b - a))`, which makes a uniform prior standard normal: exactly
    the noise of a flow that does nothing. All are then standardised.

    Parameters
    ----------
    low, high : ndarray of shape (n_parameters,)
        Ends of the box, infinite for an unbounded parameter.
    mean, scale : ndarray of shape (n_parameters,)
        Of the training parameters in the unbounded space.

    Examples
    --------
    >>> import numpy as np
    >>> space = ParameterSpace.learn(np.array([[0.2], [0.3], [0.4]]), np.array([[0.0, 1.0]]))
    >>> free, log_jacobian = space.to_free(np.array([[0.25]]))
    >>> space.from_free(free).round(6)
    array([[0.25]])
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def learn(cls, y: NDArray[np.float64], bounds: NDArray[np.float64] | None) -> ParameterSpace:
        """Learn the standardisation from parameters of shape (n, n_parameters) in their units."""
        n_parameters = y.shape[1]
        if bounds is None:
            bounds = np.tile([-np.inf, np.inf], (n_parameters, 1))
        space = cls(bounds[:, 0], bounds[:, 1], np.zeros(n_parameters), np.ones(n_parameters))
        free, _ = space.to_free(space.off_edges(y))
        return cls(space.low, space.high, free.mean(axis=0), free.std(axis=0))

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """Which parameters have a box."""
        return np.isfinite(self.low)

    @property
    def bounds(self) -> NDArray[np.float64]:
        """Low and high of each parameter, shape (n_parameters, 2)."""
        return np.stack([self.low, self.high], axis=1)

    @property
    def edge(self) -> NDArray[np.float64]:
        """Share of the box within which a bounded parameter counts as at the edge."""
        low, high = self.low[self.bounded], self.high[self.bounded]
        step = np.spacing(np.maximum(np.abs(low), np.abs(high))) / (high - low)
        return np.maximum(_EDGE, _STEPS * step)

    def off_edges(self, y: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
        """Spread parameters that lie at an edge over a sliver of the box, evenly at random.

        Many at one point would be a heap without a density: it would bend the whole flow, and
        what ``log_prob`` says near the edge would not integrate to one.
        """
        box = self.bounded
        if not box.any():
            return y
        low, width, edge = self.low[box], (self.high - self.low)[box], self.edge
        share = (y[:, box] - low) / width
        drawn = np.random.default_rng(seed).uniform(edge, _HEAP * edge, share.shape)
        share = np.where(share < 2 * edge, drawn, np.where(share > 1 - 2 * edge, 1 - drawn, share))
        spread = y.copy()
        spread[:, box] = np.clip(low + share * width, low, self.high[box])
        return spread

    def to_free(self, y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Map parameters of shape (..., n_parameters) to the unbounded space.

        Returns
        -------
        free : ndarray of shape (..., n_parameters)
        log_jacobian : ndarray of shape (...)
            Logarithm of the density of y over that of `free`; -inf outside the box.
        """
        free = np.array(y, dtype=np.float64)
        each = np.broadcast_to(-np.log(self.scale), free.shape).copy()
        box = self.bounded
        if box.any():
            low, width = self.low[box], (self.high - self.low)[box]
            share = (free[..., box] - low) / width
            outside = (free[..., box] < low) | (free[..., box] > self.high[box])
            normal = ndtri(np.clip(share, self.edge, 1 - self.edge))
            free[..., box] = normal
            jacobian = _LOG_NORMAL + 0.5 * normal**2 - np.log(width)
            each[..., box] += np.where(outside, -np.inf, jacobian)
        return (free - self.mean) / self.scale, each.sum(axis=-1)

    def from_free(self, free: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., n_parameters) back; every bounded parameter lies strictly inside its box."""
        y = np.asarray(free, dtype=np.float64) * self.scale + self.mean
        box = self.bounded
        if box.any():
            low, high = self.low[box], self.high[box]
            share = np.clip(ndtr(y[..., box]), self.edge, 1 - self.edge)
            # Against the last digit's rounding, where an edge is large beside the width.
            inside = np.nextafter(low, high), np.nextafter(high, low)
            y[..., box] = np.clip(low + share * (high - low), *inside)
        return y

    def beyond_edge(self, free: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which points of shape (..., n_parameters) come back pulled in from an edge."""
        normal = np.abs(free * self.scale + self.mean)[..., self.bounded]
        return (log_ndtr(-normal) < np.log(self.edge)).any(axis=-1)


def check_prior_bounds(
    problems: Problems, bounds: Any, y: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Check prior bounds, against parameters of shape (n, n_parameters) where there are any.

    Returns
    -------
    ndarray of shape (n_parameters, 2) or None
        None where no parameter is bounded, or where what is wrong is now in `problems`.
    """
    if bounds is None:
        return None
    if isinstance(bounds, str):
        if bounds != "data":
            problems.add("prior_bounds", "'data' or an array", bounds, spell(bounds, ["data"]))
        elif y is not None:
            return np.stack([y.min(axis=0), y.max(axis=0)], axis=1)
        return None
    rows = "n_parameters" if y is None else str(y.shape[1])
    expected = f"'data', None or an array of shape ({rows}, 2)"
    try:
        array = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        problems.add("prior_bounds", expected, bounds)
        return None
    if array.ndim != 2 or array.shape[1] != 2 or (y is not None and len(array) != y.shape[1]):
        mend = "transpose it" if y is not None and array.shape == (2, y.shape[1]) else ""
        problems.add("prior_bounds", expected, array.shape, mend)
        return None
    unbounded = (array == [-np.inf, np.inf]).all(axis=1)
    wrong = ~unbounded & ~(np.isfinite(array).all(axis=1) & (array[:, 0] < array[:, 1]))
    if wrong.any():
        places: Sequence[int] = np.flatnonzero(wrong).tolist()
        what = f"finite low < high in every row (see {places}), or (-inf, inf) for no bounds"
        problems.add("prior_bounds", what, array.tolist(), _mend_bounds(array[wrong]))
        return None
    steps = np.spacing(np.abs(array[~unbounded]).max(axis=1, initial=0))
    if (np.ptp(array[~unbounded], axis=1) < 1e8 * steps).any():
        what = "bounds at least 1e8 float64 steps apart"
        problems.add("prior_bounds", what, array.tolist(), "subtract an offset from y")
        return None
    return array


def _mend_bounds(wrong: NDArray[np.float64]) -> str:
    """Say what to do about rows of bounds that are none."""
    if (wrong[:, 0] > wrong[:, 1]).any():
        return "low and high are swapped"
    if np.isinf(wrong).any():
        return "a box has two ends: where only one is known, map y yourself or leave it unbounded"
    return "a box of no width holds no density"


def check_spread(
    y: NDArray[np.float64], names: Sequence[str], bounds: NDArray[np.float64] | None = None
) -> None:
    """Raise where a parameter never varies, or too little to learn a density from."""
    spread, size = np.ptp(y, axis=0), np.abs(y).max(axis=0)
    constant = np.flatnonzero(spread <= 10 * np.finfo(np.float64).eps * size)
    if constant.size:
        listed = ", ".join(f"{names[i]!r} (column {i}) = {y[0, i]:g}" for i in constant.tolist())
        raise ValueError(
            f"y never varies in {constant.size} of {y.shape[1]} parameters: {listed}. A density "
            "needs parameters that were drawn from a prior: leave these columns out."
        )
    small = np.flatnonzero(spread < _SMALLEST)
    if small.size:
        listed = ", ".join(f"{names[i]!r} by {spread[i]:.2g}" for i in small.tolist())
        raise ValueError(
            f"y varies by less than {_SMALLEST:g} in {listed}: choose larger units for them."
        )
    if bounds is None:
        return
    width = np.ptp(bounds, axis=1)
    lost = np.flatnonzero(np.isfinite(width) & (spread < _NARROWEST * width))
    if lost.size:
        listed = ", ".join(
            f"{names[i]!r} covers {spread[i]:.2g} of {width[i]:.2g}" for i in lost.tolist()
        )
        raise ValueError(
            f"prior_bounds are far wider than y: {listed}. They must be those of the uniform prior "
            "that y was drawn from; prior_bounds=None leaves parameters unbounded."
        )
