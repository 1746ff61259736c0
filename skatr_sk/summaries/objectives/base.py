"""What an objective of pre-training is, and what those that predict hidden patches share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.functional import l1_loss, layer_norm, mse_loss, smooth_l1_loss

from skatr_sk._checks import (
    Choice,
    Flag,
    Integer,
    Kind,
    Problems,
    Real,
    Rule,
    spell,
    warn_no_effect,
)
from skatr_sk.summaries.masking import LONG, SHORT, BlockMask, sample_masks
from skatr_sk.summaries.views import Pairs
from skatr_sk.summaries.vit import Encoder, Predictor, gather_tokens
from skatr_sk.summaries.weights import Architecture

__all__ = ["LOSSES", "MASKED_DOCS", "MaskedNetwork", "MaskedObjective", "Objective", "PairLoss"]

LOSSES = {"l1": l1_loss, "l2": mse_loss, "smooth_l1": smooth_l1_loss}
_MASKS = {"multiblock": (SHORT, LONG), "short": (SHORT,), "long": (LONG,)}


class Objective(BaseEstimator):
    """What an encoder learns in pre-training: the views, the network around it and the loss.

    An objective is a keyword-only dataclass that holds its parameters and nothing learned. It
    implements :meth:`draw`, :meth:`network` and :meth:`criterion`, and the others where it differs
    from the base. Pre-training calls them and trains with what they return.
    """

    _parameters: ClassVar[Mapping[str, Kind]] = {}

    # An objective overrides these by attributes of its class.

    @property
    def prevents_collapse(self) -> str:
        """Which parameters prevent a collapse, for the CollapseWarning."""
        return "see the objective's parameters"

    @property
    def needs_labels(self) -> bool:
        """Whether it learns from labels; else ``y`` is ignored."""
        return False

    @property
    def labels_alone(self) -> bool:
        """Whether it learns from nothing else."""
        return False

    @property
    def sees_unlabelled(self) -> bool:
        """Whether it learns from rows without any label."""
        return True

    def check(self, problems: Problems, prefix: str) -> None:
        """Note wrong parameters, before any data are seen; `prefix` precedes their names."""
        problems.check(self._parameters, self, prefix)

    def check_sizes(self, problems: Problems, prefix: str, architecture: Architecture) -> None:
        """Note parameters that are wrong beside an encoder's sizes, where there are any."""

    def _warn_without_effect(self) -> None:
        """Warn of parameters that were given and change nothing, where there are any."""

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> Any:
        """Draw, for ``n`` fields, what a step needs to know beside their patches.

        Usually pairs of index tensors that say which patches are seen; or other tensors, in lists
        or tuples. With axial attention these are whole columns along the line of sight, in order.
        """
        raise NotImplementedError

    def pooled_by(self, pooling: str) -> str | None:
        """How this objective pools tokens where ``transform`` pools by `pooling`.

        None means that it does not: `pooling` may then be changed without another pre-training.
        """
        return None

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> nn.Module:
        """Put around the encoder what is trained with it; its weights come from torch's generator.

        Its ``forward`` takes patches (n, n_patches, n_voxels) and what :meth:`draw` gives, and
        returns what :meth:`criterion` takes; its attribute ``context_encoder`` is the encoder that
        is kept. `n_parameters` is the number of labels, 0 where there are none.
        """
        raise NotImplementedError

    def criterion(self) -> nn.Module:
        """Return the loss of the network's output, ``criterion(output, y)``.

        The labels `y` (n, n_parameters) are standardised, and NaN where they are not known; where
        nothing is learned from them there are none, (n, 0).
        """
        raise NotImplementedError

    def after_step(self, network: Any, progress: float) -> None:
        """Act on the network after a step of the optimiser, at a `progress` in (0, 1]."""

    def figures(self, criterion: Any) -> dict[str, float]:
        """Return what the criterion knows of the epoch that ends, for ``history_``; it forgets."""
        return {}

    def judge(self, kept: Mapping[str, Any]) -> None:
        """Warn of what the figures of the epoch whose weights are kept say, where they do."""


class PairLoss(nn.Module):
    """Mean of ``compare(one, two)``, in float32, over the pairs of tensors that a network gives."""

    def __init__(self, compare: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.compare = compare

    def forward(self, pairs: Pairs, _: object = None) -> Tensor:
        """Return the loss; there are no labels."""
        return torch.stack([self.compare(one.float(), two.float()) for one, two in pairs]).mean()


# Objectives that predict what is hidden from what is seen -----------------------------------------


def _are_masks(value: Any) -> bool | str:
    if isinstance(value, str):
        return value in _MASKS or spell(value, _MASKS)
    several = value if isinstance(value, Sequence) else [value]
    right = len(several) > 0 and all(isinstance(mask, BlockMask) for mask in several)
    return right or "'multiblock' is short and long blocks together"


MASKED_DOCS = {
    "masks": """
        masks : str, BlockMask or list of BlockMask, default="multiblock"
            What is hidden; each mask is a prediction task. "short" is the union of 8 blocks of 10
            to 20 % of the sky, "long" of 2 blocks of 60 to 80 %, both along the whole line of
            sight; "multiblock" is both (V-JEPA, arXiv:2404.08471, section 3.2).""",
    "min_context": """
        min_context : float, default=0.15
            Smallest share of the patches that stays visible, in (0, 1).""",
    "loss": """
        loss : {"l1", "l2", "smooth_l1"}, default="l1"
            Distance between prediction and target.""",
    "predictor_dim": """
        predictor_dim : int, default=48
            Width of the predictor's tokens.""",
}


@dataclass(kw_only=True, eq=False, repr=False)
class MaskedObjective(Objective):
    """Base of the objectives that predict something of hidden patches from visible ones."""

    masks: str | BlockMask | Sequence[BlockMask] = "multiblock"
    min_context: float = 0.15
    loss: str = "l1"
    normalize_targets: bool = True
    predictor_dim: int = 48
    predictor_depth: int = 4

    _parameters = {
        "masks": Rule(_are_masks, f"one of {sorted(_MASKS)} or a list of BlockMask"),
        "min_context": Real("(0, 1)"),
        "loss": Choice(*LOSSES),
        "normalize_targets": Flag(),
        "predictor_dim": Integer(1),
        "predictor_depth": Integer(1),
    }

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> Pairs:
        """Draw the (visible, hidden) patches of each mask."""
        masks = _MASKS[self.masks] if isinstance(self.masks, str) else self.masks
        options: Any = {"min_context": self.min_context, "generator": generator}
        several = [masks] if isinstance(masks, BlockMask) else masks
        return [sample_masks(n, grid_shape, mask, **options) for mask in several]

    def check_sizes(self, problems: Problems, prefix: str, architecture: Architecture) -> None:
        """Note masks that the attention cannot take, and a predictor too narrow for positions."""
        if self.predictor_depth:
            architecture.check_width(problems, f"{prefix}predictor_dim", self.predictor_dim)
        rank = len(architecture.grid_shape)
        masks = [] if isinstance(self.masks, str) else [self.masks]
        for mask in np.ravel(np.array(masks, dtype=object)):
            idle = [("aspect", (0.75, 1.5))] if rank == 1 else []
            idle += [("depth", (1.0, 1.0))] if rank < 3 else []
            given = [name for name, default in idle if getattr(mask, name) != default]
            warn_no_effect("BlockMask", given, f"fields of {rank} axes")
            if architecture.attention == "axial" and mask.depth != (1.0, 1.0):
                wanted = "masks along the whole line of sight with attention='axial'"
                problems.add(f"{prefix}masks", wanted, mask, "leave depth at (1, 1)")

    def _predictor(self, target_dim: int, architecture: Architecture) -> Predictor:
        """Build the predictor of targets of some width."""
        width = int(self.predictor_dim)
        # Narrower heads than 48 spend their time in softmax, not in products.
        n_heads = max((h for h in range(1, width // 48 + 1) if width % h == 0), default=1)
        return Predictor(
            architecture.embed_dim,
            target_dim,
            architecture.grid_shape,
            predictor_dim=width,
            depth=int(self.predictor_depth),
            n_heads=n_heads,
            mlp_ratio=architecture.mlp_ratio,
            attention=architecture.attention,
        )

    def criterion(self) -> nn.Module:
        """Return the distance between predictions and targets."""
        return PairLoss(LOSSES[self.loss])


class MaskedNetwork(nn.Module):
    """Predict targets of hidden patches from the encoder's tokens of visible ones.

    A subclass says what the targets are; `normalize_targets` gives that of each patch zero mean and
    unit variance.
    """

    def __init__(
        self, encoder: Encoder, predictor: nn.Module, *, normalize_targets: bool = True
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.predictor = predictor
        self.normalize_targets = normalize_targets

    def targets(self, patches: Tensor) -> Tensor:
        """Return the targets of all patches, of shape (n, n_patches, target_dim)."""
        targets = self._raw_targets(patches)
        return layer_norm(targets, targets.shape[-1:]) if self.normalize_targets else targets

    def _raw_targets(self, patches: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, patches: Tensor, masks: Pairs) -> Pairs:
        """Return predictions and targets, each of shape (n, n_hidden, target_dim), for each mask.

        Of patches (n, n_patches, n_voxels) and pairs of indices (context, target) as drawn by
        :func:`~skatr_sk.summaries.masking.sample_masks`.
        """
        with torch.no_grad():
            targets = self.targets(patches)  # once, for all masks
        pairs = []
        for context_index, target_index in masks:
            context = self.context_encoder(patches, context_index)
            predicted = self.predictor(context, context_index, target_index)
            pairs.append((predicted, gather_tokens(targets, target_index)))
        return pairs
