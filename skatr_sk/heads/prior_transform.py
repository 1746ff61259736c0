r"""Parameters between the box of their prior and the unbounded space of the flow.

A bounded parameter goes through the normal quantile function,
:math:`z = \Phi^{-1}((y - a) / (b - a))`, which makes a uniform prior standard normal: exactly the
noise of a flow that does nothing. All are then standardised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from skatr_sk._checks import Bounds, Fault, spell

__all__ = ["Floats", "PriorBounds", "PriorTransform", "check_spread", "is_inside"]

# A parameter that is nearer to an edge of its box than this share of the width counts as this far
# from it: the edge itself would be at infinity. A uniform prior has 2e-9 of its mass there.
_EDGE = 1e-9
# The same in steps of float64, which count where the edges are large beside the width.
_STEPS = 4096
# Training parameters at an edge are spread over this many times that distance.
_HEAP = 100
_ROUNDED = 1e-5  # share of the box that is rounding, at most
_NARROWEST, _SMALLEST = 1e-6, 1e-100  # share of the box, and range, that parameters must cover
Floats = NDArray[np.float64]
_LOG_NORMAL = 0.5 * np.log(2 * np.pi)


@dataclass(frozen=True)
class PriorBounds(Bounds):
    """Rows of (low, high), or of (-inf, inf) for a parameter without a box; or ``"data"``."""

    unbounded: bool = True

    def fault(self, value: Any) -> Fault | None:
        """See :class:`~skatr_sk._checks.Kind`."""
        if isinstance(value, str) and value == "data":
            return None
        wrong = super().fault(value)
        if wrong is not None:
            mend = spell(value, ["data"]) if isinstance(value, str) else wrong[2]
            return f"'data' or {wrong[0]}", wrong[1], mend
        array = np.asarray(value, dtype=np.float64)
        box = array[np.isfinite(array[:, 0])]
        if (np.ptp(box, axis=1) < 1e8 * np.spacing(np.abs(box).max(axis=1, initial=0))).any():
            mend = "subtract an offset from y"
            return "bounds at least 1e8 float64 steps apart", array.tolist(), mend
        return None


@dataclass(frozen=True)
class PriorTransform:
    """Map parameters to an unbounded, standardised space and back, with the Jacobian.

    The ends of the box are infinite for an unbounded parameter; mean and scale are those of the
    training parameters in the unbounded space.
    """

    bounds: Floats  # low and high of each parameter, (n_parameters, 2)
    mean: Floats
    scale: Floats

    @classmethod
    def learn(cls, y: Floats, bounds: Floats) -> PriorTransform:
        """Learn the standardisation from parameters of shape (n, n_parameters) in their units."""
        plain = cls(bounds, np.zeros(len(bounds)), np.ones(len(bounds)))
        free, _ = plain.to_free(plain.off_edges(y))
        return cls(bounds, free.mean(axis=0), free.std(axis=0))

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """Which parameters have a box."""
        return np.isfinite(self.bounds[:, 0])

    @property
    def edge(self) -> Floats:
        """Least distance of a bounded parameter from the edges, as a share of the width."""
        low, high = self.bounds[self.bounded].T
        step = np.spacing(np.maximum(np.abs(low), np.abs(high))) / (high - low)
        return np.maximum(_EDGE, _STEPS * step)

    def off_edges(self, y: Floats, seed: int = 0) -> Floats:
        """Spread parameters that lie at an edge over a sliver of the box, evenly at random.

        Many at one point have no density: they would bend the whole flow, and the density that it
        learns near the edge would not integrate to one.
        """
        box, edge = self.bounded, self.edge
        low, high = self.bounds[box].T
        share = (y[:, box] - low) / (high - low)
        drawn = np.random.default_rng(seed).uniform(edge, _HEAP * edge, share.shape)
        share = np.where(share < 2 * edge, drawn, np.where(share > 1 - 2 * edge, 1 - drawn, share))
        spread = y.copy()
        spread[:, box] = np.clip(low + share * (high - low), low, high)
        return spread

    def to_free(self, y: Floats) -> tuple[Floats, Floats]:
        """Map parameters (..., n_parameters) to the unbounded space, with the log Jacobian (...).

        That is the logarithm of the density of y over that of its image; -inf outside the box.
        """
        free = np.array(y, dtype=np.float64)
        log_jacobian = np.broadcast_to(-np.log(self.scale), free.shape).copy()
        box, edge = self.bounded, self.edge
        low, high = self.bounds[box].T
        inside = is_inside(free[..., box], low, high)
        share = (free[..., box] - low) / (high - low)
        normal = free[..., box] = ndtri(np.clip(share, edge, 1 - edge))
        of_normal = _LOG_NORMAL + 0.5 * normal**2 - np.log(high - low)
        log_jacobian[..., box] += np.where(inside, of_normal, -np.inf)
        return (free - self.mean) / self.scale, log_jacobian.sum(axis=-1)

    def from_free(self, free: Floats) -> Floats:
        """Map (..., n_parameters) back: bounded parameters lie strictly inside their boxes."""
        y = np.asarray(free, dtype=np.float64) * self.scale + self.mean
        box, edge = self.bounded, self.edge
        low, high = self.bounds[box].T
        # Not to be rounded onto an end: the edge is thousands of steps of float64 away from it.
        y[..., box] = low + np.clip(ndtr(y[..., box]), edge, 1 - edge) * (high - low)
        return y

    def beyond_edge(self, free: Floats) -> NDArray[np.bool_]:
        """Tell which points (..., n_parameters) :meth:`from_free` moves away from an edge."""
        normal = np.abs(free * self.scale + self.mean)[..., self.bounded]
        return (log_ndtr(-normal) < np.log(self.edge)).any(axis=-1)


def is_inside(y: Floats, low: Floats, high: Floats) -> NDArray[np.bool_]:
    """Tell which parameters lie in their box; what float32 rounds to an end of it lies at the end.

    >>> is_inside(np.float64(np.float32(0.4)), np.array(0.2), np.array(0.4))
    np.True_
    """
    finite = np.isfinite(low) & np.isfinite(high)
    largest = float(np.finfo(np.float32).max)
    sizes = (np.where(finite, np.abs(end), 0) for end in (low, high))
    ends = (np.minimum(size, largest).astype(np.float32) for size in sizes)
    # Where float32 is coarser than the box, it tells nothing.
    most = _ROUNDED * np.where(finite, high, 0) - _ROUNDED * np.where(finite, low, 0)
    below, above = (np.minimum(np.spacing(end), most) for end in ends)
    return (y >= low - below) & (y <= high + above)


def check_spread(y: Floats, names: Sequence[str], bounds: Floats) -> None:
    """Raise where a parameter never varies, or too little to learn a density from."""
    spread, size, width = np.ptp(y, axis=0), np.abs(y).max(axis=0), np.ptp(bounds, axis=1)
    faults = [
        (
            spread <= 10 * np.finfo(np.float64).eps * size,
            "parameters that vary, as drawn from a prior",
            lambda i: f"{names[i]!r} (column {i}) = {y[0, i]:g} in every row",
            "leave out what never varies",
        ),
        (
            spread < _SMALLEST,
            f"parameters that vary by at least {_SMALLEST:g}",
            lambda i: f"{names[i]!r} that varies by {spread[i]:.2g}",
            "choose larger units for them",
        ),
        (
            np.isfinite(width) & (spread < _NARROWEST * width),
            f"parameters that cover at least {_NARROWEST:g} of the width of prior_bounds",
            lambda i: f"{names[i]!r} that covers {spread[i]:.2g} of {width[i]:.2g}",
            "the bounds must be those of the uniform prior that y was drawn from; "
            "prior_bounds=None leaves parameters unbounded",
        ),
    ]
    for wrong, expected, found, mend in faults:
        if wrong.any():
            each = "; ".join(map(found, np.flatnonzero(wrong)))
            raise ValueError(f"y: expected {expected}, found {each}; {mend}.")
