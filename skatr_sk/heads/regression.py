"""LightconeRegressor: parameters from summaries or light cones, with or without uncertainty."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import Bounds, Choice, Kind, shared_docs, warn_without_effect
from skatr_sk.fields import check_fields
from skatr_sk.heads.base import HEAD_DOCS, SummaryHead
from skatr_sk.heads.end_to_end import BACKBONE, EncoderWithHead, fit_end_to_end, predict_end_to_end
from skatr_sk.heads.mlp import LOSSES, Head, HeadLoss, ParameterScaling
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.training.device import torch_defaults

__all__ = ["LightconeRegressor"]

_BATCH = 1024  # rows predicted at once


@shared_docs(**HEAD_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
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
        mlp_ratio, embedding, pooling, brightness_range, augment, n_workers` count, and parameters
        of its pre-training do not), and a fitted one, also inside
        :class:`~sklearn.frozen.FrozenEstimator` or with `weights`, is fine-tuned from a copy of its
        weights, which clones of the regressor keep. None takes summaries.
    pooling : {"mean", "attention"}, default="mean"
        Of token summaries ``(n, n_tokens, n_summary)``: their mean, or learned attention. Summaries
        that are pooled already are taken as they are. With a backbone "mean" leaves the pooling to
        the backbone's own, and "attention" takes its tokens.
    dropout : float, default=0.0
        Share of hidden units dropped in training, in [0, 1).
    {members}
    max_epochs : int, default=1000
        Passes over the training rows.
    batch_size : int, default=32
        Rows in a step.
    learning_rate, weight_decay : float, default=5e-4 and 1e-3
        Of AdamW.
    validation_fraction : float, default=0.15
        {held_out}
    patience : int or None, default=100
        {patience}
    {device}
    {precision}
    {callbacks}
    {verbose}
    {random_state}

    Attributes
    ----------
    head_ : torch.nn.Module
        The trained network, on the CPU; with a backbone its encoder too.
    backbone_ : SKATRTransformer or None
        Fitted, with the encoder as it was trained here: ``backbone_.transform(X)`` gives its
        summaries, ``backbone_.save(path)`` keeps it. There are no `summary_mean_` and
        `summary_scale_` then.
    scaling_ : ParameterScaling
        Of the targets.
    {learned}
    {history}

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

    hidden_dims: tuple[int, ...] = (360, 360)
    loss: str = "l1"
    target_bounds: ArrayLike | None = None
    backbone: str | BaseEstimator | None = None
    max_epochs: int = 1000
    batch_size: int = 32
    learning_rate: float = 5e-4
    validation_fraction: float = 0.15
    patience: int | None = 100

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._parameters,
        "loss": Choice(*LOSSES),
        "target_bounds": Bounds(),
        "backbone": BACKBONE,
    }

    def _warn_without_effect(self) -> None:
        super()._warn_without_effect()
        if not len(self.hidden_dims):
            warn_without_effect(self, {"dropout"}, "hidden_dims=()")

    def _fit(self, X: ArrayLike, y: ArrayLike) -> None:
        whole = self.backbone is not None
        fields, targets = self._check_training_data(X, y, of_fields=whole)
        n_parameters = targets.shape[1]
        bounds = self._check_bounds("target_bounds", Bounds(n_parameters), targets)
        ends = (targets.min(axis=0), targets.max(axis=0)) if bounds is None else bounds.T
        self.scaling_ = ParameterScaling(*ends)
        unit, criterion = self.scaling_.to_unit(targets), HeadLoss(self.loss)
        make_head = partial(
            Head,
            hidden_dims=self.hidden_dims,
            n_parameters=n_parameters,
            gaussian=self.loss == "gaussian",
            bounded=bounds is not None,
            dropout=self.dropout,
            pooling=self.pooling if whole else self._pooling_of(fields),
        )
        self.head_: Head | EncoderWithHead
        self.backbone_: SKATRTransformer | None = None
        if whole:
            for stale in ("summary_mean_", "summary_scale_"):  # of an earlier fit
                self.__dict__.pop(stale, None)
            self.head_, self.backbone_ = fit_end_to_end(self, fields, unit, make_head, criterion)
        else:
            runs, network = self._runs(fields), (partial(make_head, fields.shape[-1]), criterion)
            self.head_ = self._train_on_summaries(network, (fields, unit), runs)[0].double()

    @overload
    def predict(self, X: ArrayLike, return_std: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, X: ArrayLike, return_std: Literal[True]) -> tuple[Floats, Floats]: ...
    @torch_defaults()
    def predict(self, X: ArrayLike, return_std: bool = False) -> Floats | tuple[Floats, Floats]:
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
        whole = self.backbone_ is not None
        fields = check_fields(self, X, reset=False) if whole else self._check_summaries(X)
        head: Any = self.head_.head if whole else self.head_
        if return_std and not head.gaussian:
            raise ValueError(
                "return_std=True: expected a head that was fitted with loss='gaussian', found one "
                "that learned no standard deviation; fit again with loss='gaussian'."
            )
        if whole:
            outputs = predict_end_to_end(self, fields)
        else:
            with torch.inference_mode():
                outputs = torch.cat([head(rows) for _, rows in self._batches(fields, _BATCH)])
        unit, log_sigma = outputs.tensor_split([len(self.scaling_.low)], dim=1)
        values = self.scaling_.from_unit(unit.numpy())
        if head.bounded:  # rounding could lead beyond an end
            values = np.clip(values, self.scaling_.low, self.scaling_.high)
        mean = self._shaped(values)
        if not return_std:
            return mean
        return mean, self._shaped(log_sigma.exp().numpy() * self.scaling_.width)

    def __sklearn_clone__(self) -> Self:
        cloned: Self = super().__sklearn_clone__()
        given = self.backbone
        if isinstance(given, SKATRTransformer) and given.__sklearn_is_fitted__():
            # What it has learned is a parameter here. The weights may be shared: training copies.
            cloned.backbone = copy.copy(given)
        return cloned
