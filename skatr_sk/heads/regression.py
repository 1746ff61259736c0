"""LightconeRegressor: parameters from summaries or light cones, with or without uncertainty."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import (
    Auto,
    Bounds,
    Choice,
    Instance,
    Kind,
    Problems,
    Real,
    Rule,
    check_options,
    parameter_names,
    shared_docs,
    warn_without_effect,
)
from skatr_sk.fields import ArrayFields, Fields, check_fields
from skatr_sk.heads.base import FLOATS, HEAD_DOCS, Run, SummaryHead
from skatr_sk.heads.end_to_end import BACKBONE, EncoderWithHead, fit_end_to_end, predict_end_to_end
from skatr_sk.heads.extrapolation import warn_beyond
from skatr_sk.heads.mlp import LOSSES, Head, HeadLoss, HeadMixture, ParameterScaling
from skatr_sk.heads.networks import pack, unpack
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.heads.ridge import Ridge
from skatr_sk.heads.saving import stored_by_name
from skatr_sk.summaries.pooling import POOLINGS, pooled_dim
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.summaries.weights import check_pooling
from skatr_sk.training.device import torch_defaults
from skatr_sk.training.held_out import Given, Rows

__all__ = ["LightconeRegressor"]

_BATCH = 1024  # rows predicted at once
_ROWS_FOR_HALF = 10  # what few validation rows say of the weight of the networks is mostly chance


@stored_by_name
@shared_docs(**HEAD_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class LightconeRegressor(MultiOutputMixin, RegressorMixin, SummaryHead):
    """Regress parameters from summaries with a small neural network, or from light cones.

    Takes any array of features: frozen summaries of :class:`SKATRTransformer`, or what another
    transformer gives. Features are standardised and parameters scaled to [0, 1] inside;
    predictions come back in the parameters' own units. By default they are a weighted mean of a
    ridge regression, which serves best where labels are few, and of five small networks, which
    serve best where there are many; rows that a network did not train on decide the weight. With
    a `backbone` it takes light cones and trains their encoder too: the network from scratch that
    frozen summaries are compared with, or a pre-trained one that is fine-tuned.

    Parameters
    ----------
    hidden_dims : "auto" or tuple of int, default="auto"
        Widths of the hidden layers of a network; () is a linear model. "auto" is networks of
        (128, 128) beside a ridge regression: its penalty is chosen by leave-one-out, the weight of
        the networks by least squares on their validation rows (as if ten more rows had spoken for
        one half), and summaries are cut at three standard deviations for both. With a backbone
        "auto" is a network of (360, 360) alone.
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
    n_members : "auto" or int, default="auto"
        Networks that are trained one after the other, each with weights, batches and validation
        rows of its own, and averaged. "auto" is 5 with ``hidden_dims="auto"``, and 1 with widths
        or a backbone, which takes no more.
    max_epochs : int, default=1000
        Passes over the training rows.
    batch_size : int, default=32
        Rows in a step.
    learning_rate : "auto" or float, default="auto"
        Of AdamW. "auto" is 2e-3, and 5e-4 with a backbone.
    weight_decay : float, default=1e-3
        Of AdamW.
    validation_fraction : float, default=0.15
        {held_out}
    patience : int or None, default=20
        {patience}
    {device}
    {precision}
    {callbacks}
    {verbose}
    {random_state}
    {checkpoint}

    Attributes
    ----------
    head_ : torch.nn.Module
        The trained network, on the CPU, from standardised summaries to parameters in [0, 1]; of
        several networks, and of the ridge regression beside them, which comes last, their weighted
        mean; with a backbone its encoder too.
    network_weight_ : float
        Share of the networks in predictions, in [0, 1]; the rest is the ridge regression's. 1 where
        there is none.
    backbone_ : SKATRTransformer or None
        Fitted, with the encoder as it was trained here: ``backbone_.transform(X)`` gives its
        summaries, ``backbone_.save(path)`` keeps it. There are no `summary_mean_` and
        `summary_scale_` then.
    scaling_ : ParameterScaling
        Of the targets.
    parameter_names_ : list of str
        Of the columns of a DataFrame of targets, or "parameter_0", ...
    {learned}
    {history}

    References
    ----------
    .. [1] Ore, Heneka, Plehn, arXiv:2410.18899, section 4 (regression on summaries, and by a
       network trained from scratch).
    .. [2] Wolpert, "Stacked generalization", Neural Networks 5, 241 (1992) (weights of several
       models by what they predict of rows that they have not seen).

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

    hidden_dims: str | tuple[int, ...] = "auto"  # type: ignore[assignment]
    n_members: int | str = "auto"  # type: ignore[assignment]
    loss: str = "l1"
    target_bounds: ArrayLike | None = None
    backbone: str | BaseEstimator | None = None
    max_epochs: int = 1000
    batch_size: int = 32
    learning_rate: float | str = "auto"  # type: ignore[assignment]
    validation_fraction: float = 0.15
    patience: int | None = 20

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._parameters,
        **{
            name: Auto(cast(Rule, SummaryHead._parameters[name]))
            for name in ("hidden_dims", "n_members", "learning_rate")
        },
        "loss": Choice(*LOSSES),
        "target_bounds": Bounds(),
        "backbone": BACKBONE,
    }

    _learned: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._learned,
        **{name: replace(FLOATS, optional=True) for name in ("summary_mean_", "summary_scale_")},
        "head_": Instance(torch.nn.Module, expected="a network"),
        "backbone_": Instance(SKATRTransformer, expected="a SKATRTransformer", optional=True),
        "scaling_": Instance(ParameterScaling, expected="a scaling"),
        "parameter_names_": Instance(list, expected="a list of strings", optional=True),
        "network_weight_": Real("[0, 1]"),
    }

    def _check_stored(self, problems: Problems) -> None:
        backbone: Any = getattr(self, "backbone_", None)
        if backbone is None:
            super()._check_stored(problems)
            n_summary = self.field_shape_in_[-1]
        else:
            super(SummaryHead, self)._check_stored(problems)
            backbone._check_stored(problems)
            seen = cast(EncoderWithHead, self.head_).pooling
            check_pooling(seen, self.field_shape_in_)
            n_summary = pooled_dim(backbone.architecture_.embed_dim, seen)
            if self.field_shape_in_ != backbone.field_shape_in_:
                shape = f"{backbone.field_shape_in_}, as of its backbone_"
                problems.add("field_shape_in_", shape, self.field_shape_in_)
        low, high = self.scaling_.low, self.scaling_.high
        right = not FLOATS.fault(low) and not FLOATS.fault(high) and low.shape == high.shape
        if not right or (low > high).any():
            problems.add("scaling_", "finite low <= high of each parameter", (low, high))
            problems.raise_if_any()
        head: Any = self.head_ if backbone is None else self.head_.head
        sizes: Any = (head[0] if isinstance(head, HeadMixture) else head).sizes
        for name, wanted in {"n_summary": n_summary, "n_parameters": len(low)}.items():
            if sizes[name] != wanted:
                problems.add(f"{name} of head_", str(wanted), sizes[name])
        if (names := getattr(self, "parameter_names_", None)) is not None:  # an older file has none
            parameter_names(names, None, len(low))
        if self._one_dimensional and len(low) != 1:
            problems.add("scaling_", "one parameter, as the targets were 1-D", len(low))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._pack(state)
        if "head_" in state:
            head = state["head_"]
            whole = isinstance(head, EncoderWithHead)
            # The encoder is that of backbone_.
            state["head_"] = pack(head.head) | {"seen": head.pooling} if whole else pack(head)
            state["scaling_"] = {"low": self.scaling_.low, "high": self.scaling_.high}
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._unpack(state)
        if isinstance(state.get("head_"), dict):
            packed, backbone = dict(state["head_"]), state["backbone_"]
            seen = packed.pop("seen", None)
            head = unpack(packed, of_flows=False)
            if backbone is not None or seen is not None:
                table = {"backbone_": self._learned["backbone_"], "seen": Choice(*POOLINGS)}
                check_options("head_", table, {"backbone_": backbone, "seen": seen})
                head = EncoderWithHead(backbone.encoder_, head, seen).eval()
            state["head_"], state["scaling_"] = head, ParameterScaling(**state["scaling_"])
        return state

    def _auto(self, n_rows: int) -> dict[str, Any]:
        if self.backbone is not None:
            return {"hidden_dims": (360, 360), "n_members": 1, "learning_rate": 5e-4}
        several = self.hidden_dims == "auto"
        return {"hidden_dims": (128, 128), "n_members": 5 if several else 1, "learning_rate": 2e-3}

    def _check_together(self, problems: Problems) -> None:
        super()._check_together(problems)
        if self.backbone is not None and self.n_members not in ("auto", 1):
            mend = "fit several regressors with other seeds, and average what they predict"
            problems.add("n_members", "'auto' or 1 with a backbone", self.n_members, mend)

    def _warn_without_effect(self) -> None:
        super()._warn_without_effect()
        if not len(self.hidden_dims):
            warn_without_effect(self, {"dropout"}, "hidden_dims=()")

    def _fit(self, X: ArrayLike, y: ArrayLike, given: Given) -> None:
        whole = self.backbone is not None
        fields, targets, rows = self._check_training_data(X, y, given, of_fields=whole)
        n_parameters = targets.shape[1]
        self.parameter_names_: list[str] = parameter_names(None, y, n_parameters)
        bounds = self._check_bounds("target_bounds", Bounds(n_parameters), targets)
        ends = (targets.min(axis=0), targets.max(axis=0)) if bounds is None else bounds.T
        self.scaling_ = ParameterScaling(*ends)
        unit, criterion = self.scaling_.to_unit(targets), HeadLoss(self.loss)
        with_ridge = self.hidden_dims == "auto" and not whole
        widths: Any = self._resolved(len(unit)).hidden_dims
        make_head = partial(
            Head,
            hidden_dims=widths,
            n_parameters=n_parameters,
            start=np.average(unit, axis=0, weights=rows.weights),
            gaussian=self.loss == "gaussian",
            bounded=bounds is not None,
            dropout=float(self.dropout),
            pooling=self.pooling if whole else self._pooling_of(fields),
            cut=with_ridge,
        )
        self.head_: Head | HeadMixture | EncoderWithHead
        self.backbone_: SKATRTransformer | None = None
        self.network_weight_ = 1.0
        if whole:
            for stale in ("summary_mean_", "summary_scale_", "seen_"):  # of an earlier fit
                self.__dict__.pop(stale, None)
            data = fields, unit, rows
            self.head_, self.backbone_ = fit_end_to_end(self, data, make_head, criterion)
            return
        runs, network = self._runs(fields, rows), (partial(make_head, fields.shape[-1]), criterion)
        heads = self._train_on_summaries(network, (fields, unit), runs, rows)
        heads = [head.double() for head in heads]
        if with_ridge:
            self.head_ = self._with_ridge(heads, (fields, unit), runs, rows)
        else:
            several = len(heads) > 1
            self.head_ = HeadMixture(heads, [1 / len(heads)] * len(heads)) if several else heads[0]

    def _with_ridge(
        self, heads: Sequence[Head], data: tuple[Fields, Floats], runs: Sequence[Run], known: Rows
    ) -> HeadMixture:
        """Fit a ridge regression on all rows, and weigh it against trained networks.

        The weight of the networks is the least-squares one for what they predict of their
        validation rows, and what the ridge predicts of these when each is left out; those that the
        user gave are none of its rows.
        """
        summaries, targets = data
        first, unit = heads[0], torch.from_numpy(targets)
        ridge = Ridge(
            summaries.shape[-1], unit.shape[1], gaussian=first.gaussian, bounded=first.bounded
        )
        features = torch.cat([ridge.features(batch) for _, batch in self._batches(summaries)])
        n, counts = known.n_own, known.weights_of(slice(known.n_own))
        weights = None if counts is None else torch.from_numpy(counts)
        left_out = ridge.solve(features[:n], unit[:n], weights)
        left_out = torch.cat([left_out, ridge.means(features[n:])])
        weight, rows = 0.5, np.concatenate([valid for (_, valid), _ in runs])
        if len(rows):
            validation = (ArrayFields(summaries.read(valid)) for (_, valid), _ in runs)
            found = torch.cat(list(map(self._outputs, heads, validation)))[:, : unit.shape[1]]
            spread = unit.std(dim=0, correction=0)
            spread = torch.where(spread > 0, spread, torch.inf)  # a constant has no say
            if (counts := known.weights_of(rows)) is not None:
                spread = spread / torch.from_numpy(counts).sqrt()[:, None]
            apart, wanted = (found - left_out[rows]) / spread, (unit - left_out)[rows] / spread
            square, product = float(apart.square().sum()), float((apart * wanted).sum())
            best = product / square if square else 0.5
            weight = (len(rows) * best + _ROWS_FOR_HALF / 2) / (len(rows) + _ROWS_FOR_HALF)
        self.network_weight_ = min(max(weight, 0.0), 1.0)
        shares = [self.network_weight_ / len(heads)] * len(heads)
        return HeadMixture([*heads, ridge], [*shares, 1 - self.network_weight_])

    def _outputs(self, head: torch.nn.Module, summaries: Fields) -> torch.Tensor:
        """Return what a head gives for summaries, some of them at a time."""
        with torch.inference_mode():
            return torch.cat([head(rows) for _, rows in self._batches(summaries, _BATCH)])

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

        Warns
        -----
        NeverSeenWarning
            When summaries lie far outside those of ``fit``.
        ExtrapolationWarning
            When predictions lie at or beyond the range of the targets, or their bounds: any of
            them by more than a quarter of its width, or a fifth of all and at least five.
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
            outputs = self._outputs(head, fields)
        self._check_found(outputs.numpy(), fields, "prediction")
        unit, log_sigma = outputs.tensor_split([len(self.scaling_.low)], dim=1)
        names = getattr(self, "parameter_names_", None) or parameter_names(None, None, len(unit.T))
        of = "the range of the training targets" if self.target_bounds is None else "target_bounds"
        # Constants come back as they were.
        scaled = np.where(self.scaling_.width > 0, unit.numpy(), np.nan)
        warn_beyond("LightconeRegressor", scaled, of, names)
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
