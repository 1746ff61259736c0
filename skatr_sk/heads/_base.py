"""What the heads share: checked summaries and parameters, standardisation, and the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from skatr_sk._checks import Choice, Integer, Problems, Real, check_numbers
from skatr_sk.fields import Fields, as_fields, check_fields, check_finite_rows, split_rows
from skatr_sk.heads.pooling import POOLINGS
from skatr_sk.training.batches import Dataset, TensorDataset
from skatr_sk.training.device import resolve_device
from skatr_sk.training.estimator import CallbackSupportMixin, TrainedEstimator
from skatr_sk.training.seeds import independent_seeds, seed_of
from skatr_sk.training.trainer import train

__all__ = ["SummaryHead", "check_inside"]

_NUMBERS = 4_000_000  # of the summaries in double precision at a time
_Module = TypeVar("_Module", bound=torch.nn.Module)


class SummaryHead(CallbackSupportMixin, BaseEstimator):
    """A small network on summaries, pooled (n, n_summary) or tokens (n, n_tokens, n_summary).

    Attributes
    ----------
    summary_mean_, summary_scale_ : ndarray of shape (n_summary,)
    field_shape_in_ : tuple of int
        Shape of one row: ``(n_summary,)`` or ``(n_tokens, n_summary)``.
    history_ : list of dict
    """

    summary_mean_: np.ndarray
    summary_scale_: np.ndarray
    field_shape_in_: tuple[int, ...]
    history_: list[dict[str, Any]]
    n_features_in_: int
    _one_dimensional: bool

    def _check_head(self, problems: Problems) -> None:
        """Note what is wrong with the parameters that every head has."""
        problems.check(TrainedEstimator._parameters, self)
        widths = Problems("")
        if isinstance(self.hidden_dims, Sequence):
            for width in self.hidden_dims:
                widths.check({"": Integer(1)}, {"": width})
        if widths.messages or not isinstance(self.hidden_dims, Sequence):
            problems.add("hidden_dims", "a tuple of integers >= 1", self.hidden_dims)
        problems.check({"pooling": Choice(*POOLINGS)}, self)
        problems.check({"dropout": Real("[0, 1)")}, {"dropout": self.dropout})

    def _check_training_data(self, X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Check summaries and targets, and remember their shapes.

        Returns
        -------
        summaries : ndarray of shape (n, n_summary) or (n, n_tokens, n_summary)
        targets : ndarray of shape (n,) or (n, n_parameters), float64
        """
        X = _check_summaries(X)
        y = _check_rows(X, y)
        checked: np.ndarray
        checked, y = validate_data(
            self,
            X,
            y,
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,
            allow_nd=True,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        check_finite_rows(checked, "X", "summaries")
        self.field_shape_in_ = tuple(int(n) for n in checked.shape[1:])
        return checked, np.asarray(y, dtype=np.float64)

    def _check_training_fields(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, np.ndarray]:
        """Check light cones and targets, and remember their shapes, as for summaries."""
        X = check_numbers(X, "X")
        y = _check_rows(X, y)
        # In this order: scikit-learn forgets the names of the features where it sees no X.
        y = validate_data(self, "no_validation", y, multi_output=True, y_numeric=True)
        fields = check_fields(self, X, reset=True, min_rows=2)
        return fields, np.asarray(y, dtype=np.float64)

    def _check_new(self, X: ArrayLike) -> np.ndarray:
        """Check summaries for a fitted head."""
        check_is_fitted(self)
        X = _check_summaries(X)
        shape = tuple(np.shape(X))[1:]
        # On 2-D input scikit-learn's own comparison of feature counts and names speaks.
        if shape != self.field_shape_in_ and (len(shape) > 1 or len(self.field_shape_in_) > 1):
            raise ValueError(
                f"X has summaries of shape {shape}, but this {type(self).__name__} was fitted on "
                f"summaries of shape {self.field_shape_in_}: use the same transformer, with the "
                "same pooling, for both, or fit again."
            )
        checked: np.ndarray = validate_data(
            self,
            X,
            reset=False,
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,
            allow_nd=True,
        )
        check_finite_rows(checked, "X", "summaries")
        return checked

    def _batches(self, summaries: np.ndarray, size: int) -> Iterator[torch.Tensor]:
        """Yield standardised summaries some rows at a time, in double precision.

        In double precision what a network says of a row does not depend on the rows beside it.
        """
        for start in range(0, len(summaries), size):
            rows = summaries[start : start + size]
            yield torch.from_numpy((rows - self.summary_mean_) / self.summary_scale_)

    def _train(
        self,
        build: Callable[[], _Module],
        criterion: torch.nn.Module,
        summaries: np.ndarray,
        targets: np.ndarray,
        train_rows: np.ndarray,
        valid_rows: np.ndarray,
        seed: int,
        schedule: Callable[[float], float] | None = None,
    ) -> _Module:
        """Standardise the summaries, build the network and train it; note what was learned."""
        mean, scale = _moments(summaries[train_rows])
        device = resolve_device(self.device)
        rows = torch.empty(summaries.shape)
        for part in _parts(summaries):
            rows[part] = torch.from_numpy((summaries[part] - mean) / scale)
        # Pooled summaries are small: the whole of them waits on the device. Tokens are not.
        rows = rows.to(device) if rows.ndim == 2 else rows
        y = torch.from_numpy(targets.astype(np.float32)).to(device)
        module = self._run(
            build,
            criterion,
            *(
                TensorDataset(rows[part], y[part]) if len(part) else None
                for part in (torch.from_numpy(train_rows), torch.from_numpy(valid_rows))
            ),
            seed,
            schedule=schedule,
            small=rows.ndim == 2,
        )
        self.summary_mean_, self.summary_scale_ = mean, scale
        return module

    def _run(
        self,
        build: Callable[[], _Module],
        criterion: torch.nn.Module,
        train_set: Dataset,
        valid_set: Dataset | None,
        seed: int,
        **options: Any,
    ) -> _Module:
        """Build a network and train it; note its history. `options` go to :func:`train`."""
        weights_seed, order_seed = independent_seeds(seed, 2)
        module, self.history_ = train(
            self,
            build,
            criterion,
            train_set,
            valid_set,
            seeds=(weights_seed, order_seed),
            **options,
        )
        return module.requires_grad_(False)

    def _split(self, summaries: np.ndarray | Fields) -> tuple[np.ndarray, np.ndarray, int]:
        """Draw the seeds of the run; return the rows that train, that validate, and a seed."""
        split_seed, seed = independent_seeds(seed_of(self.random_state), 2)
        return *split_rows(as_fields(summaries), self.validation_fraction, split_seed), seed

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """Drop the axis of parameters where the targets had none."""
        return values[..., 0] if self._one_dimensional else values

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "summary_mean_")


def _check_rows(X: Any, y: Any) -> Any:
    """Raise where parameters are no finite numbers, or not one row for each row of `X`."""
    if y is None or 0 in np.shape(X):  # scikit-learn says it well
        return y
    y = check_numbers(y, "y")
    n_rows, n_targets = np.shape(X)[:1], np.shape(y)[:1]
    if n_rows and n_targets and n_rows != n_targets:
        raise ValueError(
            f"y has {n_targets[0]} rows, but X has {n_rows[0]}: expected one row of "
            "parameters for each row of X, in the same order."
        )
    check_finite_rows(np.asarray(y), "y", "values")
    return y


def _check_summaries(X: ArrayLike) -> Any:
    """Raise where the features are no numbers, or fields that no transformer has summarised."""
    X = check_numbers(X, "X")
    if np.ndim(X) > 3:
        raise ValueError(
            f"X must have shape (n, n_summary) or (n, n_tokens, n_summary), found {np.shape(X)}: "
            "light cones go through SKATRTransformer or another transformer first, or as they are "
            "into LightconeRegressor(backbone='vit')."
        )
    return X


def _parts(X: np.ndarray) -> Iterator[slice]:
    """Slices of some rows: tokens take memory, and float64 copies of all of them twice as much."""
    step = max(1, _NUMBERS // max(1, X[:1].size))
    return (slice(start, start + step) for start in range(0, len(X), step))


def _moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature over rows and tokens; a constant one gets unit scale."""
    axes = tuple(range(X.ndim - 1))
    mean = X.mean(axis=axes, dtype=np.float64)
    squares = sum(np.square(X[part] - mean).sum(axis=axes) for part in _parts(X))
    scale = np.sqrt(squares / math.prod(X.shape[:-1]))
    # What is within the rounding of the type is no variation, and must not be blown up to one.
    constant = scale <= 10 * np.finfo(X.dtype).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, scale)


def check_inside(targets: np.ndarray, bounds: np.ndarray, name: str) -> None:
    """Raise where targets lie outside their bounds, naming the first rows."""
    outside = (targets < bounds[:, 0]) | (targets > bounds[:, 1])
    if outside.any():
        rows = np.flatnonzero(outside.any(axis=1))
        columns = np.flatnonzero(outside.any(axis=0)).tolist()
        raise ValueError(
            f"y lies outside {name} in {len(rows)} of {len(targets)} rows, the first of "
            f"them {', '.join(map(str, rows[:5]))}, in parameters {columns}: widen the bounds "
            f"{bounds.tolist()} or drop these rows."
        )
