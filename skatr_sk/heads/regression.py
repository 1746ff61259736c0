"""LightconeRegressor: parameters from summaries or light cones, with or without uncertainty."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
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
from skatr_sk._tensors import copied_module
from skatr_sk.fields import ArrayFields, Fields
from skatr_sk.heads.base import FLOATS, HEAD_DOCS, Run, Steps, SummaryHead
from skatr_sk.heads.end_to_end import EncoderWithHead, encoder_of, fit_end_to_end
from skatr_sk.heads.extrapolation import share_at_ends, warn_beyond
from skatr_sk.heads.mlp import Head, HeadLoss, HeadMixture, OwnHead, ParameterScaling
from skatr_sk.heads.networks import pack, pack_backbone, unpack, unpack_backbone
from skatr_sk.heads.own import LOSS, built, try_loss, try_network
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.heads.ridge import Ridge
from skatr_sk.parameters import check_order
from skatr_sk.summaries.pooling import POOLINGS
from skatr_sk.training.device import torch_defaults
from skatr_sk.training.held_out import Given, Rows
from skatr_sk.training.identity import identity_of
from skatr_sk.training.seeds import seeded
from skatr_sk.training.stored import stored_by_name

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
        "auto" is a network of (360, 360) alone, of (128, 128, 128) behind the "cnn".
    head : torch.nn.Module or None, default=None
        A network of yours in the place of the hidden layers and of the ridge regression. It takes
        standardised summaries ``(n, n_summary)``, or tokens where these are handed in, and with a
        backbone its features, and gives parameters ``(n, n_parameters)`` scaled to [0, 1], with
        ``loss="gaussian"`` followed by the logarithms of as many standard deviations. Copies are
        trained, from the weights that it has.
    loss : {"l1", "l2", "gaussian"} or callable, default="l1"
        Of parameters scaled to [0, 1]. "gaussian" learns a mean and a standard deviation for each
        parameter by maximum likelihood, for ``predict(X, return_std=True)``. A callable gets
        ``(predicted, target)``, tensors ``(n, n_parameters)``, and gives a number or, as
        `sample_weight` needs it, one for each row.
    target_bounds : array-like of shape (n_parameters, 2) or None, default=None
        Bounds of a uniform prior, in the parameters' units: predictions stay inside. None scales
        by the range of the training targets, and predictions may leave it.
    parameter_names : sequence of str or None, default=None
        Names of the targets, which displays and messages show; None takes the columns of a
        DataFrame, or "parameter_0", ...
    {backbone}
    {fine_tuning}
    pooling : {"mean", "attention"}, default="mean"
        Of token summaries ``(n, n_tokens, n_summary)``: their mean, or learned attention. Summaries
        that are pooled already are taken as they are. With a transformer as backbone "mean" leaves
        the pooling to its own, and "attention" takes its tokens.
    dropout : float, default=0.0
        Share of hidden units dropped in training, in [0, 1).
    {members}
        "auto" is 5 with ``hidden_dims="auto"``, and 1 with widths, a `head`, or a backbone, which
        takes no more.
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
    {backbone_}
    scaling_ : ParameterScaling
        Of the targets.
    parameter_names_ : list of str
        Those given, or of the columns of a DataFrame of targets, or "parameter_0", ...
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
    head: torch.nn.Module | None = None
    loss: str | Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = "l1"
    target_bounds: ArrayLike | None = None
    parameter_names: Sequence[str] | None = None
    max_epochs: int = 1000
    batch_size: int = 32
    learning_rate: float | str = "auto"  # type: ignore[assignment]
    validation_fraction: float = 0.15
    patience: int | None = 20

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._parameters,
        **{
            name: Auto(cast(Rule, SummaryHead._parameters[name]))
            for name in ("hidden_dims", "learning_rate")
        },
        "head": Instance(torch.nn.Module, expected="a torch.nn.Module", optional=True),
        "loss": LOSS,
        "target_bounds": Bounds(),
        "parameter_names": Instance(Iterable, expected="a sequence of strings", optional=True),
    }

    _learned: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._learned,
        "head_": Instance(torch.nn.Module, expected="a network"),
        "scaling_": Instance(ParameterScaling, expected="a scaling"),
        "parameter_names_": Instance(list, expected="a list of strings", optional=True),
        "network_weight_": Real("[0, 1]"),
    }

    @property
    def _pooled_by(self) -> str:
        return cast(EncoderWithHead, self.head_).pooling

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        head: Any = self.head_.head if self._is_whole else self.head_  # type: ignore[union-attr]
        low, high = self.scaling_.low, self.scaling_.high
        right = not FLOATS.fault(low) and not FLOATS.fault(high) and low.shape == high.shape
        if not right or (low > high).any():
            problems.add("scaling_", "finite low <= high of each parameter", (low, high))
            problems.raise_if_any()
        if (share := self.scaling_.at_ends) is not None and (
            FLOATS.fault(share) or share.shape != low.shape or (share < 0).any()
        ):
            problems.add("scaling_", "a share of each parameter at its ends", share)
        sizes: Any = (head[0] if isinstance(head, HeadMixture) else head).sizes
        for name, wanted in {"n_summary": self._n_summary, "n_parameters": len(low)}.items():
            if sizes[name] != wanted:
                problems.add(f"{name} of head_", str(wanted), sizes[name])
        if (names := getattr(self, "parameter_names_", None)) is not None:  # an older file has none
            parameter_names(names, None, len(low))
        if self._one_dimensional and len(low) != 1:
            problems.add("scaling_", "one parameter, as the targets were 1-D", len(low))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._pack(state)
        if "head_" in state and self.head is None:
            head = state["head_"]
            whole = isinstance(head, EncoderWithHead)
            # The encoder is that of backbone_.
            state["head_"] = pack(head.head) | {"seen": head.pooling} if whole else pack(head)
            state["scaling_"] = dict(vars(self.scaling_))
            state["backbone_"] = pack_backbone(state.get("backbone_"))
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._unpack(state)
        if isinstance(state.get("head_"), dict):
            state["backbone_"] = backbone = unpack_backbone(state.get("backbone_"))
            packed = dict(state["head_"])
            seen = packed.pop("seen", None)
            head = unpack(packed, of_flows=False)
            if backbone is not None or seen is not None:
                table = {"backbone_": self._learned["backbone_"], "seen": Choice(*POOLINGS)}
                check_options("head_", table, {"backbone_": backbone, "seen": seen})
                head = EncoderWithHead(encoder_of(backbone), head, seen).eval()
            state["head_"], state["scaling_"] = head, ParameterScaling(**state["scaling_"])
        return state

    def _auto(self, n_rows: int) -> dict[str, Any]:
        if self.backbone is not None:
            widths = (128, 128, 128) if self.backbone == "cnn" else (360, 360)
            return {"hidden_dims": widths, "n_members": 1, "learning_rate": 5e-4}
        several = self.hidden_dims == "auto" and self.head is None
        return {"hidden_dims": (128, 128), "n_members": 5 if several else 1, "learning_rate": 2e-3}

    def _warn_without_effect(self) -> None:
        super()._warn_without_effect()
        if self.head is not None:
            warn_without_effect(self, {"hidden_dims", "dropout", "pooling"}, "a head of your own")
        elif not len(self.hidden_dims):
            warn_without_effect(self, {"dropout"}, "hidden_dims=()")

    def _checkpoint(self, seed: int, **identity: Any) -> Any:
        given = {name: getattr(self, name) for name in ("head", "loss")}
        own = {k: identity_of(v) for k, v in given.items() if callable(v)}
        return super()._checkpoint(seed, **own | identity)

    def _check_head(self, shape: tuple[int, ...]) -> None:
        if self.head is not None:
            n = len(self.scaling_.low) * (2 if self.loss == "gaussian" else 1)
            some = np.random.default_rng(0).normal(size=(4, *shape))  # as standardised ones are
            least = min(len(some), int(self._resolved(0).batch_size))
            try_network(type(self).__name__, "head", self.head, torch.from_numpy(some), n, least)

    def _fit(self, X: ArrayLike, y: ArrayLike, given: Given) -> Steps[None]:
        whole = self.backbone is not None
        fields, targets, rows = self._check_training_data(X, y, given, of_fields=whole)
        n_parameters = targets.shape[1]
        self.parameter_names_ = self._names_of(self.parameter_names, y, targets, given)
        bounds = self._check_bounds(
            "target_bounds", Bounds(n_parameters), targets, self.parameter_names_, rows
        )
        low, high = (targets.min(axis=0), targets.max(axis=0)) if bounds is None else bounds.T
        unit, loss = ParameterScaling(low, high).to_unit(targets), self.loss
        self.scaling_ = ParameterScaling(low, high, share_at_ends(unit))
        if callable(loss):
            weighted = rows.weights is not None
            try_loss(type(self).__name__, loss, n_parameters, weighted=weighted)
            loss = copy.deepcopy(loss)  # it may be a module, which has a state
        criterion = HeadLoss(loss).requires_grad_(False)
        with_ridge = self.hidden_dims == "auto" and not whole and self.head is None
        widths: Any = self._resolved(len(unit)).hidden_dims
        kind = {"gaussian": loss == "gaussian", "bounded": bounds is not None}
        make_head: Any
        if self.head is None:
            make_head = partial(
                Head,
                hidden_dims=widths,
                n_parameters=n_parameters,
                start=np.average(unit, axis=0, weights=rows.weights),
                dropout=float(self.dropout),
                pooling=self._pooling_of(fields),
                cut=with_ridge,
                **kind,
            )
        else:
            own = self.head

            def make_head(n_summary: int) -> OwnHead:
                return OwnHead(copy.deepcopy(own), **kind)

        self.head_: Head | HeadMixture | EncoderWithHead | OwnHead
        self.network_weight_ = 1.0
        runs = self._runs(fields, rows)
        if whole:
            network = make_head, criterion
            self.head_ = fit_end_to_end(self, (fields, unit, rows), runs[0], network)
            return
        self._check_head(fields.shape[1:])
        network = (lambda: built(make_head(fields.shape[-1]), fields.shape[1:])), criterion
        heads: list[Any]
        heads = yield from self._train_on_summaries(network, (fields, unit), runs, rows)
        heads = [head if isinstance(head, OwnHead) else head.double() for head in heads]
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
            varied = spread > 0
            spread = torch.where(varied, spread, torch.inf)  # a constant has no say
            if (counts := known.weights_of(rows)) is not None:
                spread = spread / torch.from_numpy(counts).sqrt()[:, None]
            apart, wanted = (found - left_out[rows]) / spread, (unit - left_out)[rows] / spread
            square, product = float(apart.square().sum()), float((apart * wanted).sum())
            # In these ten rows a network that has gone wild is no farther from the ridge than the
            # targets from their mean, or they would keep a share of it.
            more = _ROWS_FOR_HALF * min(square / len(rows), float(varied.sum()))
            if square:
                weight = (product + more / 2) / (square + more)
        self.network_weight_ = min(max(weight, 0.0), 1.0)
        shares = [self.network_weight_ / len(heads)] * len(heads)
        return HeadMixture([*heads, ridge], [*shares, 1 - self.network_weight_])

    def _outputs(self, head: torch.nn.Module, summaries: Fields) -> torch.Tensor:
        """Return what a head gives for summaries, or for fields, some of them at a time."""
        own = any(isinstance(each, OwnHead) for each in head.modules())
        # A network of the user may draw: each call the same, and nobody else's draws.
        quiet = seeded(0, torch.device("cpu")) if own else contextlib.nullcontext()
        with torch.inference_mode(), quiet:
            return torch.cat([head(rows) for _, rows in self._batches(summaries, _BATCH)])

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return R2, the mean over the parameters.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,) or (n, n_parameters)
            A table has its columns in the order of ``fit``.
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        float
        """
        check_is_fitted(self)
        known = getattr(self, "parameter_names_", None) or ()  # an older file has none
        check_order("y", y, known)
        return float(super().score(X, y, sample_weight))

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
            When summaries, or what the backbone makes of fields, lie far outside those of ``fit``.
        ExtrapolationWarning
            When predictions lie at or beyond the range of the targets, or their bounds: any of
            them by more than a quarter of its width, or a fifth of all and at least five.
        """
        fields, whole = self._check_rows(X), self._is_whole
        head: Any = self.head_.head if whole else self.head_
        if return_std and not head.gaussian:
            raise ValueError(
                "return_std=True: expected a head that was fitted with loss='gaussian', found one "
                "that learned no standard deviation; fit again with loss='gaussian'."
            )
        if whole and not isinstance(head, OwnHead):
            head = copied_module(head).double()
        outputs = self._outputs(head, fields)
        self._check_found(outputs.numpy(), fields, "prediction")
        unit, log_sigma = outputs.tensor_split([len(self.scaling_.low)], dim=1)
        names = getattr(self, "parameter_names_", None) or parameter_names(None, None, len(unit.T))
        of = "the range of the training targets" if self.target_bounds is None else "target_bounds"
        # Constants come back as they were.
        scaled = np.where(self.scaling_.width > 0, unit.numpy(), np.nan)
        warn_beyond("LightconeRegressor", scaled, of, names, self.scaling_.at_ends)
        values = self.scaling_.from_unit(unit.numpy())
        if head.bounded:  # rounding could lead beyond an end
            values = np.clip(values, self.scaling_.low, self.scaling_.high)
        mean = self._shaped(values)
        if not return_std:
            return mean
        return mean, self._shaped(log_sigma.exp().numpy() * self.scaling_.width)
