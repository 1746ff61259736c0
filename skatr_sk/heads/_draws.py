"""Densities and samples of a fitted posterior, batch by batch."""

from __future__ import annotations

import copy
import numbers
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import qmc
from tqdm.auto import tqdm

from skatr_sk._checks import check_numbers, require
from skatr_sk.fields import check_finite_rows
from skatr_sk.heads import export
from skatr_sk.heads._base import SummaryHead
from skatr_sk.heads.flow import ConditionalFlow, Context
from skatr_sk.heads.npe import PosteriorNet
from skatr_sk.heads.space import ParameterSpace
from skatr_sk.training.device import resolve_device
from skatr_sk.training.seeds import generator_of

__all__ = ["PosteriorDraws", "check_order"]

_POINTS = 8192  # in one pass of the flow: the memory of a call is bounded by it
_ROWS = 256  # summaries embedded at once, and no more than this many numbers of them
_NUMBERS = 4_000_000
_BAR_AFTER = 2.0  # seconds before a progress bar shows


class PosteriorDraws(SummaryHead):
    """What a fitted PosteriorEstimator says: log_prob, sample and what is made of them."""

    net_: PosteriorNet
    space_: ParameterSpace
    prior_bounds_: NDArray[np.float64]
    parameter_names_: list[str]
    n_parameters_: int

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Log density of parameters given summaries, in the units of y.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,), (n, n_parameters) or (n, n_samples, n_parameters)
            One set of parameters for each row of X, or several, as :meth:`sample` returns them.

        Returns
        -------
        ndarray of shape (n,) or (n, n_samples), float64
            -inf outside the prior box.
        """
        summaries = self._check_new(X)
        given = self._check_points(y, len(summaries))
        points = given[:, np.newaxis] if given.ndim == 2 else given
        log_prob = np.empty(points.shape[:2])
        for at, context, flow in self._passes(summaries, points.shape[1], True):
            free, log_jacobian = self.space_.to_free(points[at])
            inputs = torch.from_numpy(free).to(context.shift.device)
            log_prob[at] = flow.log_prob(inputs, context).cpu().numpy() + log_jacobian
        return log_prob[:, 0] if given.ndim == 2 else log_prob

    def sample(
        self,
        X: ArrayLike,
        n_samples: int = 1000,
        *,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
    ) -> NDArray[np.float64]:
        """Draw from the posterior of each row of X.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        n_samples : int, default=1000
            For each row.
        random_state : int, RandomState, Generator or None, default=None
            None draws anew in every call.

        Returns
        -------
        ndarray of shape (n, n_samples, n_parameters), float64
            In the parameters' units; strictly inside the prior box.
        """
        return self.sample_log_prob(X, n_samples, random_state=random_state)[0]

    def sample_log_prob(
        self,
        X: ArrayLike,
        n_samples: int = 1000,
        *,
        random_state: int | np.random.RandomState | np.random.Generator | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw from the posterior of each row of X, with the log densities, in one pass.

        Parameters
        ----------
        X, n_samples, random_state
            As for :meth:`sample`.

        Returns
        -------
        samples : ndarray of shape (n, n_samples, n_parameters), float64
        log_prob : ndarray of shape (n, n_samples), float64
            What :meth:`log_prob` gives at the samples, within the rounding of float32.
        """
        summaries = self._check_new(X)
        _check_n_samples(n_samples)
        generator = generator_of(random_state)
        samples = np.empty((len(summaries), n_samples, self.n_parameters_))
        log_prob = np.empty(samples.shape[:2])
        for at, context, flow in self._passes(summaries, n_samples, False):
            shape = samples[at].shape
            # Row by row, so that the batches leave no trace in the numbers drawn.
            noise = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
            free, log_free = flow.sample_and_log_prob(noise.to(context.shift.device), context)
            points = free.double().cpu().numpy()
            samples[at] = self.space_.from_free(points)
            moved = self.space_.beyond_edge(points)
            # What was pulled in from an edge has the density of where it is now.
            points, log_jacobian = self.space_.to_free(samples[at])
            if moved.any():
                again = torch.from_numpy(points).to(free)
                log_free = torch.where(
                    torch.from_numpy(moved).to(free.device),
                    flow.log_prob(again, context),
                    log_free,
                )
            log_prob[at] = log_free.double().cpu().numpy() + log_jacobian
        return samples, log_prob

    def predict_quantiles(
        self, X: ArrayLike, q: ArrayLike = (0.16, 0.5, 0.84), *, n_samples: int = 512
    ) -> np.ndarray:
        """Predict marginal quantiles of the posterior, from the same points as ``predict``.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        q : float or array-like of shape (n_quantiles,), default=(0.16, 0.5, 0.84)
            In [0, 1].
        n_samples : int, default=512
            Points for each posterior.

        Returns
        -------
        ndarray of shape (n, n_quantiles, n_parameters)
            Without the axis of quantiles for a single number `q`, and without that of parameters
            for 1-D targets.
        """
        try:
            levels = np.asarray(q, dtype=np.float64)
        except (TypeError, ValueError):
            levels = np.empty(0)
        if levels.ndim > 1 or levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"q is {q!r}, expected a number in [0, 1] or a list of such.")
        parts = [np.quantile(part, levels, axis=1) for part in self._fixed_points(X, n_samples)]
        quantiles = np.concatenate(parts, axis=levels.ndim)
        return self._shaped(np.moveaxis(quantiles, 0, 1) if levels.ndim else quantiles)

    def to_dict(
        self, X: ArrayLike, n_samples: int = 1000, *, random_state: Any = None
    ) -> dict[str, NDArray[np.float64]]:
        """Draw samples as plain arrays, one of shape (n, n_samples) for each parameter's name."""
        samples = self.sample(X, n_samples, random_state=random_state)
        return {name: samples[:, :, i] for i, name in enumerate(self.parameter_names_)}

    def to_arviz(self, X: ArrayLike, n_samples: int = 1000, *, random_state: Any = None) -> Any:
        """Draw samples as an ArviZ InferenceData of one chain, with the dimension ``lightcone``.

        Needs arviz: ``pip install "skatr_sk[arviz]"``.
        """
        require("arviz", "PosteriorEstimator.to_arviz")  # before the work
        samples, log_prob = self.sample_log_prob(X, n_samples, random_state=random_state)
        return export.to_arviz(samples, log_prob, self.parameter_names_)

    def to_getdist(
        self, X: ArrayLike, n_samples: int = 1000, *, random_state: Any = None
    ) -> list[Any]:
        """Draw samples as one GetDist MCSamples for each row of X, with the prior's ranges.

        Needs getdist: ``pip install "skatr_sk[getdist]"``.
        """
        require("getdist", "PosteriorEstimator.to_getdist")
        samples, log_prob = self.sample_log_prob(X, n_samples, random_state=random_state)
        return export.to_getdist(samples, log_prob, self.parameter_names_, self.prior_bounds_)

    def _fixed_points(self, X: ArrayLike, n_samples: int) -> Iterator[NDArray[np.float64]]:
        """Yield points of the posteriors, some rows at a time: (rows, n_samples, n_parameters).

        All rows share one set of quasi-random noise, so that what is made of the points neither
        changes from call to call nor depends on the rows beside.
        """
        summaries = self._check_new(X)
        _check_n_samples(n_samples)
        sobol = qmc.Sobol(self.n_parameters_, rng=np.random.default_rng(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no power of two: the user's choice
            noise = torch.from_numpy(ndtri(np.clip(sobol.random(n_samples), 1e-9, 1 - 1e-9)))
        parts: list[NDArray[np.float64]] = []
        for (_, columns), context, flow in self._passes(summaries, n_samples, True):
            inputs = noise[columns].to(context.shift.device).expand(len(context.shift), -1, -1)
            free, _ = flow.sample_and_log_prob(inputs, context)
            parts.append(self.space_.from_free(free.cpu().numpy()))
            if columns.stop == n_samples:
                yield np.concatenate(parts, axis=1)
                parts = []

    def _passes(
        self, summaries: NDArray[Any], n_samples: int, double: bool
    ) -> Iterator[tuple[tuple[slice, slice], Context, ConditionalFlow]]:
        """Yield the batches of a call: rows and columns, their context, and the flow.

        The context, one small pass a row, is always computed in double precision.
        """
        device = resolve_device(self.device)
        precise = copy.deepcopy(self.net_).to(device).double()
        flow = precise.flow if double else copy.deepcopy(self.net_.flow).to(device)
        each = max(1, summaries[:1].size)
        n_rows = min(_ROWS, max(1, _POINTS // n_samples), max(1, _NUMBERS // each))
        bar = tqdm(
            total=len(summaries),
            desc="posterior",
            unit="row",
            delay=_BAR_AFTER,
            disable=not self.verbose,
        )
        with bar, torch.inference_mode():
            for k, batch in enumerate(self._batches(summaries, n_rows)):
                context = precise(batch.to(device)).context
                context = Context(*(part.to(flow.dtype) for part in context))
                rows = slice(k * n_rows, k * n_rows + len(batch))
                for start in range(0, n_samples, _POINTS):
                    columns = slice(start, min(start + _POINTS, n_samples))
                    yield (rows, columns), context, flow
                bar.update(len(batch))

    def _check_points(self, y: ArrayLike, n: int) -> NDArray[np.float64]:
        """Parameters as (n, n_parameters) or (n, n_samples, n_parameters), float64."""
        check_order(y, self.parameter_names_)
        y = np.asarray(check_numbers(y, "y"), dtype=np.float64)
        check_finite_rows(y, "y", "values")
        points = y[:, np.newaxis] if y.ndim == 1 else y
        shaped = points.ndim in (2, 3) and points.shape[-1] == self.n_parameters_
        if not shaped or len(points) != n or 0 in points.shape:
            raise ValueError(
                f"y has shape {y.shape}, expected ({n}, {self.n_parameters_}) or ({n}, n_samples, "
                f"{self.n_parameters_}): parameters for each row of X, in the order of fit."
            )
        return points

    def _warn_outside(self, log_prob: NDArray[np.float64]) -> None:
        rows = np.flatnonzero(np.isneginf(log_prob))
        if rows.size:
            warnings.warn(
                f"y lies outside the prior box in {rows.size} of {len(log_prob)} rows, the first "
                f"of them {', '.join(map(str, rows[:5]))}: their density is zero and the score "
                "-inf. Give the bounds of the prior that y was drawn from; prior_bounds='data' are "
                "those of the training rows alone.",
                UserWarning,
                stacklevel=3,
            )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")


def check_order(y: Any, names: Sequence[str]) -> None:
    """Raise where a table holds the parameters in another order than the estimator has them."""
    columns = [str(column) for column in getattr(y, "columns", ())]
    if columns != list(names) and sorted(columns) == sorted(names):
        raise ValueError(
            f"y has the columns {columns}, but the parameters' order is {list(names)}: "
            f"pass y[{list(names)}]."
        )


def _check_n_samples(n_samples: Any) -> None:
    integer = isinstance(n_samples, numbers.Integral) and not isinstance(n_samples, bool)
    if not integer or n_samples < 1:
        raise ValueError(f"n_samples is {n_samples!r}, expected an integer >= 1.")
