"""The joint-embedding predictive architecture: predict the tokens of hidden patches.

A token's target is mostly what its redshift says, which all light cones share: the loss falls when
that is learned, and the summaries gain nothing. The history says how much of the targets their
position explains, and what that is worth. There are two cures: `slice_targets` takes what all cones
share out of the targets, and `regions` asks of summaries to differ between cones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from skatr_sk._checks import (
    Flag,
    Instance,
    Integer,
    PlaceWarning,
    Problems,
    Real,
    Rule,
    shared_docs,
    warn,
    warn_without_effect,
    with_object,
)
from skatr_sk._tensors import copied_module
from skatr_sk.summaries.masking import BlockMask
from skatr_sk.summaries.objectives.base import MASKED_DOCS, MaskedNetwork, MaskedObjective
from skatr_sk.summaries.objectives.lejepa import LeJEPA
from skatr_sk.summaries.objectives.regions import Expander, RegionNetwork, RegionObjective
from skatr_sk.summaries.views import Pairs
from skatr_sk.summaries.vit import Encoder, gather_tokens
from skatr_sk.summaries.weights import Architecture
from skatr_sk.training.callbacks import ramp

__all__ = [
    "JEPA",
    "JEPALoss",
    "JEPANetwork",
    "MeanPredictor",
    "PooledPredictor",
    "SliceStandardizer",
]

_REMEMBERED = 32  # light cones over which the statistics of slices reach, where a batch has fewer
_REGIONS = LeJEPA()  # where none are given
_LEAST_VARIANCE = 1e-4  # of targets, whose tokens have a size of one


def _is_decay(value: Any) -> bool:
    ends = value if isinstance(value, Sequence | np.ndarray) and np.ndim(value) else (value, value)
    right = len(ends) == 2 and all(Real("[0, 1]").fault(end) is None for end in ends)
    return right and bool(ends[0] <= ends[1])


@shared_docs(**MASKED_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class JEPA(MaskedObjective):
    """Predict the tokens that an averaged encoder gives to hidden patches [1]_ [2]_.

    The context encoder sees the visible patches alone, and a predictor completes them. The targets
    are the tokens of the target encoder, which sees the whole field and is a moving average of the
    context encoder over the steps.

    Parameters
    ----------
    masks : str, BlockMask or list of BlockMask, default="long"
        What is hidden; each mask is a prediction task. "long" is the union of 2 blocks of 60 to 80
        % of the sky, "short" of 8 blocks of 10 to 20 %, both along the whole line of sight;
        "multiblock" is both (V-JEPA, arXiv:2404.08471, section 3.2), at twice the cost.
    {min_context}
    ema_decay : float or (float, float), default=(0.99, 1.0)
        Decay of the target encoder's exponential moving average, in [0, 1], constant or rising from
        the first value to the second. 1.0 keeps a fixed random target, 0.0 makes it the context
        encoder.
    {loss}
    normalize_targets : bool, default=True
        Layer-normalise each target token before the loss [3]_: otherwise shrinking all tokens is
        the easiest way to lower it.
    slice_targets : bool, default=True
        Standardise the targets in each redshift slice, over the light cones of the batch and the
        sky, after `normalize_targets` [4]_. Of maps, which have no line of sight, over all patches.
        Batches of fewer than 32 fields are standardised by statistics that reach back.
    regions_weight : float, default=5.0
        Weight of `regions` in the loss, beside a prediction of weight one; 0 leaves them out. With
        `VICReg`, whose loss is larger, 0.05 is the like of it.
    regions : VICReg, LeJEPA or None, default=None
        What is asked of the summaries of two regions, their mean tokens [5]_. None is ``LeJEPA()``.
    pooled_weight : float, default=0.0
        Weight in the loss of another prediction, of the whole region: from the mean token of
        each of two regions (those of `regions`, whatever `regions_weight`) a small perceptron
        predicts the one that the target encoder gives to the other, standardised over the batch.
    {predictor_dim}
    predictor_depth : int, default=2
        Transformer blocks of the predictor. 0 leaves it out, and the mean of the visible tokens
        predicts the hidden ones: an ablation that collapses.

    Notes
    -----
    ``history_`` has, of the validation fields, ``place_share``, the share of the targets' variance
    that the mean over the others at the same position explains, ``place_loss``, the loss of
    predicting just that, and ``prediction_loss``, that of the network. Where the last is not below,
    nothing was learned of single light cones: ``fit`` warns (``PlaceWarning``). Standardised per
    slice, targets still have a share that is the place on the sky which the encoder was told, .3
    in the bundled weights.

    References
    ----------
    .. [1] Ore, Heneka, Plehn (SKATR), arXiv:2410.18899, section 3.2.
    .. [2] Assran et al. (I-JEPA), arXiv:2301.08243, section 3.
    .. [3] Bardes et al. (V-JEPA), arXiv:2404.08471, section 3.
    .. [4] Darcet et al. (CAPI), arXiv:2502.08769, section 3.
    .. [5] Mo, Tong (C-JEPA), arXiv:2410.19560, section 3.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import JEPA
    >>> SKATRTransformer(objective=JEPA(masks="short")).set_params(objective__ema_decay=0.999)
    SKATRTransformer(objective=JEPA(ema_decay=0.999, masks='short'))
    """

    masks: str | BlockMask | Sequence[BlockMask] = "long"
    predictor_depth: int = 2
    ema_decay: float | tuple[float, float] = (0.99, 1.0)
    slice_targets: bool = True
    regions_weight: float = 5.0
    regions: RegionObjective | None = None
    pooled_weight: float = 0.0

    _parameters = {
        **MaskedObjective._parameters,
        "predictor_depth": Integer(0),
        "ema_decay": Rule(_is_decay, "a number in [0, 1], or (start, end) with start <= end"),
        "slice_targets": Flag(),
        "regions_weight": Real("[0, inf)"),
        "regions": Instance(RegionObjective, expected="VICReg(...) or LeJEPA(...)", optional=True),
        "pooled_weight": Real("[0, inf)"),
    }
    prevents_collapse = (
        "ema_decay near 1, predictor_depth >= 1, normalize_targets=True, slice_targets=True, "
        "regions_weight > 0"
    )

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the regions too.

        Parameters
        ----------
        **params
            ``regions__region=0.3`` sets a parameter of the regions; where these are None,
            ``LeJEPA()`` takes its place first.

        Returns
        -------
        self
        """
        params = with_object(self, "regions", lambda given: given or LeJEPA(), params)
        return super().set_params(**params)

    def _regions(self) -> RegionObjective | None:
        seen = self.regions_weight or self.pooled_weight
        return (self.regions or _REGIONS) if seen else None

    def check(self, problems: Problems, prefix: str) -> None:
        """Note wrong parameters, those of the regions too."""
        super().check(problems, prefix)
        if self.regions is not None and not self._parameters["regions"].fault(self.regions):
            self.regions.check(problems, f"{prefix}regions__")

    def _warn_without_effect(self) -> None:
        if self.predictor_depth == 0:
            warn_without_effect(self, {"predictor_dim"}, "predictor_depth=0")
        if self._regions() is None:
            warn_without_effect(self, {"regions"}, "pooled_weight=0 and regions_weight=0")

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> list[Any]:
        """Draw the (visible, hidden) patches of each mask and, last, what the regions need."""
        masks, regions = super().draw(n, grid_shape, generator), self._regions()
        return masks if regions is None else [*masks, regions.draw(n, grid_shape, generator)]

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> JEPANetwork:
        """Return the two encoders, the predictor, and what pools and expands the regions."""
        width = architecture.embed_dim
        depth = self.predictor_depth
        predictor = self._predictor(width, architecture) if depth else MeanPredictor()
        n_slices, regions = encoder.n_slices, self._regions()
        sizes: Any = {"pooling": pooling, "n_parameters": n_parameters}
        return JEPANetwork(
            encoder,
            predictor,
            normalize_targets=self.normalize_targets,
            slices=SliceStandardizer(n_slices, width) if self.slice_targets else None,
            regions=regions and regions.network(encoder, architecture, **sizes),
            pooled=PooledPredictor(width) if self.pooled_weight else None,
        )

    def criterion(self) -> nn.Module:
        """Return the distance of the prediction, and the weighted losses of the regions."""
        of_tokens, regions = super().criterion(), (self.regions or _REGIONS).criterion()
        return JEPALoss(of_tokens, regions, float(self.regions_weight), float(self.pooled_weight))

    def judge(self, kept: Mapping[str, Any]) -> None:
        """Warn where the prediction is no better than what all light cones share."""
        if kept.get("prediction_loss", 0.0) >= kept.get("place_loss", math.inf):
            cures = ("slice_targets", "regions_weight")
            left_out = [f"{k}={getattr(JEPA, k)}" for k in cures if not getattr(self, k)]
            warn(
                f"JEPA has learned nothing of single light cones: its prediction loss of "
                f"{kept['prediction_loss']:.3g} is not below {kept['place_loss']:.3g}, that of the "
                "mean over the others at each position. Train for more steps"
                f"{', or try ' if left_out else ''}{' and '.join(left_out)}.",
                PlaceWarning,
            )

    def after_step(self, network: Any, progress: float) -> None:
        """Let the target encoder follow the context encoder; its decay rises over the run."""
        start, end = np.broadcast_to(self.ema_decay, 2).tolist()
        network.update_target(ramp(start, end, progress))

    def figures(self, criterion: Any) -> dict[str, float]:
        """Return how much of the validation targets is place, and what that is worth, if known."""
        (n, prediction, place, left, whole), criterion.sums = criterion.sums, np.zeros(5)
        if not n:
            return {}
        share = max(0.0, 1 - left / whole) if whole > 0 else 0.0
        means = {"prediction_loss": prediction / n, "place_loss": place / n}
        return means | {"place_share": share}


class JEPAOutput(NamedTuple):
    """What the network gives to the loss, in pairs of tensors."""

    tokens: Pairs  # predictions and targets of each mask, (n, n_hidden, dim)
    places: Pairs  # in validation: what the other fields have at the same position, and targets
    regions: Any  # what the loss of the regions takes, where these are compared
    pooled: Pairs  # predicted and true mean tokens of regions, (2 n, embed_dim), where predicted


class JEPANetwork(MaskedNetwork):
    """Predict the target encoder's tokens of hidden patches from the visible ones.

    The target encoder starts as a copy of the context encoder, and never gets a gradient.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        normalize_targets: bool = True,
        slices: SliceStandardizer | None = None,
        regions: RegionNetwork | None = None,
        pooled: PooledPredictor | None = None,
    ) -> None:
        super().__init__(encoder, predictor, normalize_targets=normalize_targets)
        self.target_encoder = copied_module(encoder).requires_grad_(False)
        self.slices = slices
        self.regions = regions  # its encoder is the context encoder
        self.pooled = pooled

    def _raw_targets(self, patches: Tensor) -> Tensor:
        return self.target_encoder(patches)

    def targets(self, patches: Tensor) -> Tensor:
        """Return the target encoder's tokens of the whole field, normalised and standardised."""
        targets = super().targets(patches)
        return targets if self.slices is None else self.slices(targets)

    def forward(self, patches: Tensor, drawn: Sequence[Any]) -> JEPAOutput:  # type: ignore[override]
        """Return predictions beside targets of patches (n, n_patches, n_voxels).

        Drawn are (context, target) indices for each mask and, last, what the regions need.
        """
        masks = drawn if self.regions is None else drawn[:-1]
        with torch.no_grad():
            targets = self.targets(patches)
        tokens, places = [], []
        for context_index, target_index in masks:
            context = self.context_encoder(patches, context_index)
            predicted = self.predictor(context, context_index, target_index)
            hidden = gather_tokens(targets, target_index)
            tokens.append((predicted, hidden))
            if not self.training and len(targets) > 1:
                others = (targets.sum(dim=0) - targets) / (len(targets) - 1)
                places.append((gather_tokens(others, target_index), hidden))
        if self.regions is None:
            return JEPAOutput(tokens, places, [], [])
        summaries = self.regions.summarise(self.context_encoder, patches, drawn[-1])
        regions = self.regions.compare(summaries, drawn[-1])
        if self.pooled is None:
            return JEPAOutput(tokens, places, regions, [])
        with torch.no_grad():
            wanted = self.regions.summarise(self.target_encoder, patches, drawn[-1])
        return JEPAOutput(tokens, places, regions, [self.pooled(summaries, wanted)])

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """Move the target's weights by ``1 - decay`` of their difference from the context's."""
        target: list[Tensor] = list(self.target_encoder.parameters())
        context = [p.detach() for p in self.context_encoder.parameters()]
        torch._foreach_lerp_(target, context, 1.0 - decay)


class SliceStandardizer(nn.Module):
    """Give the tokens of each redshift slice zero mean and unit variance over cones and sky.

    The statistics are those of the batch or, where it has few fields, a moving average of them.
    Those of training are kept; a validation batch only adds its own to them.
    """

    mean: Tensor
    variance: Tensor
    started: Tensor  # whether these are of any batch

    def __init__(self, n_slices: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_slices, dim))
        self.register_buffer("variance", torch.ones(n_slices, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardise tokens of shape (n, n_patches, dim), the line of sight fastest."""
        slices = tokens.float().unflatten(1, (-1, len(self.mean)))
        mean = slices.mean(dim=(0, 1))
        variance = slices.var(dim=(0, 1), correction=0)
        # Of the first batch all counts; chosen in this way, a GPU is not waited for.
        share = torch.where(self.started, min(1.0, len(tokens) / _REMEMBERED), 1.0)
        mean = torch.lerp(self.mean, mean, share)
        variance = torch.lerp(self.variance, variance, share)
        if self.training:
            self.mean.copy_(mean)
            self.variance.copy_(variance)
            self.started.fill_(True)
        return ((slices - mean) / (variance + _LEAST_VARIANCE).sqrt()).flatten(1, 2)


class PooledPredictor(nn.Module):
    """Predict the summary of each of two regions from that of the other by a small perceptron."""

    def __init__(self, n_summary: int) -> None:
        super().__init__()
        self.layers = Expander(n_summary, n_summary, depth=1)
        self.standardise = SliceStandardizer(1, n_summary)

    def forward(self, seen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets, (2 n, n_summary), of context's and target's summaries.

        The targets are standardised over the batch: all but little of a summary is shared by all.
        """
        targets = self.standardise(wanted.unsqueeze(1)).squeeze(1)
        return self.layers(seen), torch.cat(targets.chunk(2)[::-1])


class MeanPredictor(nn.Module):
    """Predict every hidden token by the mean of the visible ones, where there is no predictor.

    An ablation. The easiest way to be right with it is to give all patches the same token.
    """

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Return tokens of shape (n, n_target, embed_dim), as ``Predictor.forward`` does."""
        return context.mean(dim=1, keepdim=True).expand(-1, target_index.shape[1], -1)


class JEPALoss(nn.Module):
    """Distance of predictions from targets, and the weighted losses of the regions beside it.

    In validation it adds up, for :meth:`JEPA.figures`, the distance alone and that of places.
    """

    def __init__(
        self,
        of_tokens: nn.Module,
        of_regions: nn.Module,
        regions_weight: float,
        pooled_weight: float,
    ) -> None:
        super().__init__()
        self.of_tokens = of_tokens
        self.of_regions = of_regions
        self.regions_weight, self.pooled_weight = regions_weight, pooled_weight
        self.sums = np.zeros(5)

    def forward(self, output: JEPAOutput, _: object = None) -> Tensor:
        """Return the loss of a batch."""
        prediction = self.of_tokens(output.tokens)
        if output.places:
            self._add_up(output, prediction)
        loss = prediction
        if self.regions_weight:
            loss = loss + self.regions_weight * self.of_regions(output.regions)
        if self.pooled_weight:
            loss = loss + self.pooled_weight * self.of_tokens(output.pooled)
        return loss

    @torch.no_grad()
    def _add_up(self, output: JEPAOutput, prediction: Tensor) -> None:
        n = len(output.tokens[0][0])
        place = self.of_tokens(output.places)
        left = torch.stack([(t - p).square().mean() for p, t in output.places]).mean()
        whole = torch.stack([t.var(dim=(0, 1)).mean() for _, t in output.places]).mean()
        found = torch.stack([x.float() for x in (prediction, place, left, whole)]).tolist()
        self.sums += n * np.array([1.0, *found])
