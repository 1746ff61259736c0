"""LightconeRegressor: parameters from summaries or light cones, with or without uncertainty."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import Bounds, Choice, Problems, unchanged_on_error
from skatr_sk.fields import check_fields
from skatr_sk.heads._backbone import check_backbone, fit_joint, predict_joint
from skatr_sk.heads._base import SummaryHead, check_inside
from skatr_sk.heads.joint import JointNetwork
from skatr_sk.heads.mlp import LOSSES, Head, HeadLoss
from skatr_sk.summaries.scaling import ParameterScaling
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.training.estimator import with_callbacks

__all__ = ["LightconeRegressor"]

_BATCH = 1024  # rows predicted at once


class LightconeRegressor(MultiOutputMixin, RegressorMixin, SummaryHead):
    """Regress parameters from summaries with a small neural network, or from light cones.

    Takes any array of features: frozen summaries of :class:`SKATRTransformer`, or what another
    transformer gives. Features are standardised and parameters scaled to [0, 1] inside;
    predictions come back in the parameters' own units. With a `backbone` it takes light cones and
    trains their encoder too: the network from scratch that frozen summaries are compared with, or
    a pre-trained one that is fine-tuned.

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
    backbone : {"vit"}, SKATRTransformer or None, default=None
        What turns light cones, maps or signals ``(n, *field_shape)`` in mK into tokens, and is
        trained with the head on the same labels, each training field turned by a random sky
        symmetry of its own. "vit" is the encoder of a default :class:`SKATRTransformer` from
        random weights, an unfitted one gives other sizes (`patch_size, embed_dim, depth, n_heads,
        mlp_ratio, embedding, pooling, brightness_range, augment, n_workers` count), and a fitted
        one, also inside :class:`~sklearn.frozen.FrozenEstimator` or with `weights`, is fine-tuned
        from a copy of its weights, which clones of the regressor keep. None takes summaries.
    pooling : {"mean", "attention"}, default="mean"
        Of token summaries ``(n, n_tokens, n_summary)``: their mean, or learned attention. Summaries
        that are pooled already count as one token. With a backbone "mean" leaves the pooling to the
        backbone's own, and "attention" takes its tokens.
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
        The trained network, on the CPU; with a backbone its encoder too.
    backbone_ : SKATRTransformer or None
        Fitted, with the encoder as it was trained here: ``backbone_.transform(X)`` gives its
        summaries, ``backbone_.save(path)`` keeps it.
    scaling_ : ParameterScaling
        Of the targets.
    summary_mean_, summary_scale_ : ndarray of shape (n_summary,)
        Of the features, of tokens over all of them; only without a backbone.
    field_shape_in_ : tuple of int
        Shape of one summary, or of one field.
    history_ : list of dict
        One an epoch: ``epoch, train_loss, valid_loss`` (where there is a validation split),
        ``seconds`` and ``kept``, true for the epoch whose weights these are.
    n_features_in_ : int
        Length of a summary, the number of tokens, or the length of the first field axis.
    feature_names_in_ : ndarray of str
        Names of the features, where the input had names.

    References
    ----------
    .. [1] Ore, Heneka, Plehn, arXiv:2410.18899, section 4 (regression on summaries, and by a
       network trained from scratch).

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import LightconeRegressor
    >>> summaries = np.random.default_rng(0).normal(size=(200, 3))
    >>> y = summaries @ [1.0, 2.0, 0.5]
    >>> head = LightconeRegressor(hidden_dims=(32,), learning_rate=1e-2, random_state=0)
    >>> bool(head.fit(summaries, y).score(summaries, y) > 0.95)
    True

    From light cones, by a small network of which all weights are trained:

    >>> from skatr_sk import SKATRTransformer, load_lightcones
    >>> cones = load_lightcones()
    >>> vit = SKATRTransformer(patch_size=(7, 7, 18), embed_dim=16, depth=1)
    >>> whole = LightconeRegressor(backbone=vit, max_epochs=1, random_state=0)
    >>> whole.fit(cones.data[:32], cones.target[:32]).predict(cones.data[:4]).shape
    (4, 6)
    """

    def __init__(
        self,
        *,
        hidden_dims: tuple[int, ...] = (360, 360),
        loss: str = "l1",
        target_bounds: ArrayLike | None = None,
        backbone: str | BaseEstimator | None = None,
        pooling: str = "mean",
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
        self.backbone = backbone
        self.pooling = pooling
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
        """Train the head, and the backbone where there is one.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
            With a backbone array-like or LightconeArray of shape (n, *field_shape), in mK.
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
        joint = self.backbone is not None
        check = self._check_training_fields if joint else self._check_training_data
        rows, given = check(X, y)
        targets = given.reshape(len(given), -1)
        bounds = self._check_parameters(targets.shape[1])
        if bounds is None:
            scaling = ParameterScaling(targets.min(axis=0), targets.max(axis=0))
        else:
            scaling = ParameterScaling(bounds[:, 0], bounds[:, 1])
            check_inside(targets, bounds, "target_bounds")

        def make_head(n_summary: int) -> Head:
            return Head(
                n_summary,
                self.hidden_dims,
                targets.shape[1],
                gaussian=self.loss == "gaussian",
                bounded=bounds is not None,
                dropout=self.dropout,
                pooling=self.pooling,
            )

        unit, split = scaling.to_unit(targets), self._split(rows)
        self.head_: Head | JointNetwork
        self.backbone_: SKATRTransformer | None = None
        if joint:
            for stale in ("summary_mean_", "summary_scale_"):  # of an earlier fit
                self.__dict__.pop(stale, None)
            self.head_, self.backbone_ = fit_joint(self, rows, unit, make_head, *split)
        else:
            n_summary = rows.shape[-1]
            head = self._train(
                lambda: make_head(n_summary), HeadLoss(self.loss), rows, unit, *split
            )
            self.head_ = head.double()
        self.scaling_ = scaling
        self._one_dimensional = given.ndim == 1

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
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
            With a backbone fields of the shape seen in ``fit``, some of them at a time.
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
        joint = self.backbone_ is not None
        rows = check_fields(self, X, reset=False) if joint else self._check_new(X)
        if return_std and not self.head_.gaussian:
            raise ValueError(
                "return_std=True needs a head that was fitted with loss='gaussian', and this one "
                "learned no standard deviation: fit again with loss='gaussian'."
            )
        if joint:
            outputs = predict_joint(self, rows)
        else:
            with torch.inference_mode():
                outputs = torch.cat([self.head_(batch) for batch in self._batches(rows, _BATCH)])
        unit, log_sigma = outputs.tensor_split([len(self.scaling_.low)], dim=1)
        values = self.scaling_.from_unit(unit.numpy())
        if self.head_.bounded:  # against the last digit's rounding
            values = np.clip(values, self.scaling_.low, self.scaling_.high)
        mean = self._shaped(values)
        if not return_std:
            return mean
        return mean, self._shaped(log_sigma.exp().numpy() * self.scaling_.width)

    def _check_parameters(self, n_parameters: int | None) -> np.ndarray | None:
        """Check the constructor's parameters; return the bounds as an array, or None."""
        problems = Problems(type(self).__name__)
        self._check_head(problems)
        problems.check({"loss": Choice(*LOSSES)}, self)
        check_backbone(problems, self.backbone)
        problems.check({"target_bounds": Bounds(n_parameters)}, self)
        problems.raise_if_any()
        return Bounds.array(self.target_bounds)

    def __sklearn_clone__(self) -> Self:
        cloned: Self = super().__sklearn_clone__()
        given = self.backbone
        if isinstance(given, SKATRTransformer) and given.__sklearn_is_fitted__():
            # What it has learned is a parameter here. The weights may be shared: training copies.
            cloned.backbone = copy.copy(given)
        return cloned

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "head_")
