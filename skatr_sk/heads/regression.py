"""LightconeRegressor: parameters from summaries, with or without their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from skatr_sk._callbacks import CallbackSupportMixin, Progress, SklearnProgress, with_callbacks
from skatr_sk._checks import (
    Problems,
    check_bounds,
    check_finite_rows,
    check_numbers,
    unchanged_on_error,
)
from skatr_sk._net import check_training, independent_seeds, resolve_device, seeded, train
from skatr_sk._rows import Rows, split_rows
from skatr_sk.heads.mlp import LOSSES, Head, HeadLoss
from skatr_sk.lightcones.scaling import ParameterScaling

__all__ = ["LightconeRegressor"]


class LightconeRegressor(CallbackSupportMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Regress parameters from summaries with a small neural network.

    Takes any array of features: frozen summaries of :class:`SKATRTransformer`, or what another
    transformer gives. Features are standardised and parameters scaled to [0, 1] inside;
    predictions come back in the parameters' own units.

    Parameters
    ----------
    hidden_dims : tuple of int, default=(360, 360)
        Widths of the hidden layers; () is a linear model.
    loss : {"l1", "l2", "gaussian"}, default="l1"
        Of parameters scaled to [0, 1]. "gaussian" learns a mean and a standard deviation for each
        parameter by maximum likelihood, for ``predict(X, return_std=True)``.
    target_bounds : array-like of shape (n_parameters, 2) or None, default=None
        Bounds of a uniform prior, in the parameters' units: predictions stay inside. None scales
        by the range of the training targets, and predictions may leave it.
    dropout : float, default=0.0
        Share of hidden units dropped in training, in [0, 1).
    max_epochs : int, default=1000
        Passes over the training rows.
    batch_size : int, default=32
        Rows in a step.
    learning_rate, weight_decay : float, default=5e-4 and 1e-3
        Of AdamW.
    validation_fraction : float, default=0.15
        Share of the rows, in [0, 1), that decide when to stop; chosen by their content. 0 trains
        for `max_epochs`.
    patience : int or None, default=100
        Epochs without a better validation loss before the training stops; the best epoch's
        weights are kept. None keeps the last.
    device : str, default="auto"
        Where to train; "auto" is CUDA when there is one.
    precision : {"auto", "float32", "bf16"}, default="auto"
        "auto" means bfloat16 autocast on CUDA and float32 elsewhere.
    callbacks : list of skorch callbacks or None, default=None
        Called during the training, after the regressor's own.
    verbose : int, default=0
        1 shows a progress bar.
    random_state : int, RandomState instance or None, default=None
        Fixes weights, batches, dropout and the validation split.

    Attributes
    ----------
    head_ : torch.nn.Module
        The trained network, on the CPU.
    scaling_ : ParameterScaling
        Of the targets.
    summary_mean_, summary_scale_ : ndarray of shape (n_features_in_,)
        Of the features.
    history_ : list of dict
        One an epoch: ``epoch, train_loss, valid_loss`` (where there is a validation split),
        ``seconds`` and ``kept``, true for the epoch whose weights these are.
    n_features_in_ : int
        Length of a summary.
    feature_names_in_ : ndarray of str
        Names of the features, where the input had names.

    References
    ----------
    .. [1] Ore, Heneka, Plehn, arXiv:2410.18899, section 4 (regression on summaries).

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import LightconeRegressor
    >>> summaries = np.random.default_rng(0).normal(size=(200, 3))
    >>> y = summaries @ [1.0, 2.0, 0.5]
    >>> head = LightconeRegressor(hidden_dims=(32,), learning_rate=1e-2, random_state=0)
    >>> bool(head.fit(summaries, y).score(summaries, y) > 0.95)
    True
    """

    def __init__(
        self,
        *,
        hidden_dims: tuple[int, ...] = (360, 360),
        loss: str = "l1",
        target_bounds: ArrayLike | None = None,
        dropout: float = 0.0,
        max_epochs: int = 1000,
        batch_size: int = 32,
        learning_rate: float = 5e-4,
        weight_decay: float = 1e-3,
        validation_fraction: float = 0.15,
        patience: int | None = 100,
        device: str = "auto",
        precision: str = "auto",
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden_dims = hidden_dims
        self.loss = loss
        self.target_bounds = target_bounds
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.precision = precision
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the head.

        Parameters
        ----------
        X : array-like of shape (n, n_summary)
        y : array-like of shape (n,) or (n, n_parameters)
            In the parameters' own units; predictions come back in this shape.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or data are not as expected; nothing is changed then.
        """
        with unchanged_on_error(self):
            self._fit(X, y)
        return self

    def _fit(self, X: ArrayLike, y: ArrayLike) -> None:
        self._check_parameters(None)
        X, y = _check_pair(X, y)
        checked: np.ndarray
        checked, y = validate_data(
            self,
            X,
            y,
            dtype=(np.float64, np.float32),
            ensure_all_finite=False,
            multi_output=True,
            y_numeric=True,
            ensure_min_samples=2,
        )
        check_finite_rows(checked, "X", "summaries")
        targets = np.asarray(y, dtype=np.float64).reshape(len(checked), -1)
        bounds = self._check_parameters(targets.shape[1])
        if bounds is None:
            scaling = ParameterScaling(targets.min(axis=0), targets.max(axis=0))
        else:
            scaling = ParameterScaling(bounds[:, 0], bounds[:, 1])
            _check_inside(targets, bounds)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        split_seed, weights_seed, order_seed = independent_seeds(seed, 3)
        train_rows, valid_rows = split_rows(checked, self.validation_fraction, split_seed)
        mean, scale = _moments(checked[train_rows])
        device = resolve_device(self.device)
        # Summaries are small: the whole of them waits on the device.
        summaries = torch.from_numpy(((checked - mean) / scale).astype(np.float32)).to(device)
        unit = torch.from_numpy(scaling.to_unit(targets).astype(np.float32)).to(device)
        callbacks: list[Any] = [Progress(type(self).__name__)] if self.verbose else []
        with seeded(weights_seed, device):
            head = Head(
                checked.shape[1],
                self.hidden_dims,
                targets.shape[1],
                gaussian=self.loss == "gaussian",
                bounded=bounds is not None,
                dropout=self.dropout,
            )
            history = train(
                head,
                HeadLoss(self.loss),
                Rows(summaries, unit, train_rows),
                Rows(summaries, unit, valid_rows) if len(valid_rows) else None,
                device=device,
                precision=self.precision,
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                patience=self.patience,
                seed=order_seed,
                callbacks=callbacks + SklearnProgress.of(self, self.max_epochs),
                user_callbacks=self.callbacks,
                small=True,
            )
        # In double precision a row's prediction does not depend on the rows beside it.
        self.head_ = head.double().requires_grad_(False)
        self.scaling_ = scaling
        self.summary_mean_, self.summary_scale_ = mean, scale
        self.history_ = history
        self._one_dimensional = np.ndim(y) == 1

    @overload
    def predict(self, X: ArrayLike, return_std: Literal[False] = False) -> np.ndarray: ...
    @overload
    def predict(self, X: ArrayLike, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...
    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict parameters in their own units.

        Parameters
        ----------
        X : array-like of shape (n, n_summary)
        return_std : bool, default=False
            Also return the standard deviations; needs ``loss="gaussian"``.

        Returns
        -------
        mean : ndarray of shape (n,) or (n, n_parameters), float64
            In the shape of the targets of ``fit``.
        std : ndarray of the same shape
            Only with `return_std`.
        """
        check_is_fitted(self)
        if return_std and not self.head_.gaussian:
            raise ValueError(
                f"return_std=True needs a head fitted with loss='gaussian', found {self.loss!r}."
            )
        X = _check_summaries(X)
        checked: np.ndarray = validate_data(
            self, X, reset=False, dtype=(np.float64, np.float32), ensure_all_finite=False
        )
        check_finite_rows(checked, "X", "summaries")
        summaries = torch.from_numpy((checked - self.summary_mean_) / self.summary_scale_)
        with torch.inference_mode():
            unit, log_sigma = self.head_(summaries.double())
        values = self.scaling_.from_unit(unit.numpy())
        if self.head_.bounded:  # against the last digit's rounding
            values = np.clip(values, self.scaling_.low, self.scaling_.high)
        mean = self._shaped(values)
        if not return_std:
            return mean
        return mean, self._shaped(log_sigma.exp().numpy() * self.scaling_.width)

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0] if self._one_dimensional else values

    def _check_parameters(self, n_parameters: int | None) -> np.ndarray | None:
        """Check the constructor's parameters; return the bounds as an array, or None."""
        problems = Problems(type(self).__name__)
        check_training(problems, self)
        widths = Problems("")
        if isinstance(self.hidden_dims, Sequence):
            for width in self.hidden_dims:
                widths.integer("", width, 1)
        if widths.messages or not isinstance(self.hidden_dims, Sequence):
            problems.add("hidden_dims", "a tuple of integers >= 1", self.hidden_dims)
        problems.choice("loss", self.loss, LOSSES)
        problems.real("dropout", self.dropout, "[0, 1)")
        bounds = check_bounds(problems, "target_bounds", self.target_bounds, n_parameters)
        problems.raise_if_any()
        return bounds

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "head_")


def _moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each feature; a constant feature gets unit scale."""
    mean = X.mean(axis=0, dtype=np.float64)
    scale = X.std(axis=0, dtype=np.float64)
    # What is within the rounding of the type is no variation, and must not be blown up to one.
    constant = scale <= 10 * np.finfo(X.dtype).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, scale)


def _check_summaries(X: ArrayLike) -> Any:
    """Raise where the features are no numbers, or fields that no transformer has summarised."""
    X = check_numbers(X, "X")
    if np.ndim(X) > 2:
        raise ValueError(
            f"X must have shape (n, n_summary), found {np.shape(X)}: light cones and maps go "
            "through SKATRTransformer (with pooling 'mean' or 'max') or another transformer first."
        )
    return X


def _check_pair(X: ArrayLike, y: ArrayLike) -> tuple[Any, Any]:
    """Check what scikit-learn's own checks say without the rows or the mend."""
    X = _check_summaries(X)
    if y is None or 0 in np.shape(X):
        return X, y  # scikit-learn says it well
    y = check_numbers(y, "y")
    n_rows, n_targets = np.shape(X)[:1], np.shape(y)[:1]
    if n_rows and n_targets and n_rows != n_targets:
        raise ValueError(
            f"y has {n_targets[0]} rows, but X has {n_rows[0]}: expected one row of parameters for "
            "each row of X, in the same order."
        )
    check_finite_rows(np.asarray(y), "y", "values")
    return X, y


def _check_inside(targets: np.ndarray, bounds: np.ndarray) -> None:
    """Raise where targets lie outside their bounds, naming the first rows."""
    outside = (targets < bounds[:, 0]) | (targets > bounds[:, 1])
    if outside.any():
        rows = np.flatnonzero(outside.any(axis=1))
        columns = np.flatnonzero(outside.any(axis=0)).tolist()
        raise ValueError(
            f"y lies outside target_bounds in {len(rows)} of {len(targets)} rows, the first of "
            f"them {', '.join(map(str, rows[:5]))}, in parameters {columns}: widen the bounds "
            f"{bounds.tolist()} or drop these rows."
        )
