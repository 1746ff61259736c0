"""The joint-embedding predictive architecture: predict the tokens of hidden patches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from skatr_sk._checks import Integer, Problems, Real, Rule, shared_docs, warn_without_effect
from skatr_sk.summaries.objectives.base import MASKED_DOCS, MaskedNetwork, MaskedObjective
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture
from skatr_sk.training.callbacks import ramp

__all__ = ["JEPA", "EMATarget", "JEPANetwork", "MeanPredictor"]


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
    {masks}
    {min_context}
    ema_decay : float or (float, float), default=(0.99, 1.0)
        Decay of the target encoder's exponential moving average, in [0, 1], constant or rising from
        the first value to the second. 1.0 keeps a fixed random target, 0.0 makes it the context
        encoder.
    {loss}
    normalize_targets : bool, default=True
        Layer-normalise each target token before the loss [3]_: otherwise shrinking all tokens is
        the easiest way to lower it.
    {predictor_dim}
    predictor_depth : int, default=4
        Transformer blocks of the predictor. 0 leaves it out, and the mean of the visible tokens
        predicts the hidden ones: an ablation that collapses.

    References
    ----------
    .. [1] Ore, Heneka, Plehn (SKATR), arXiv:2410.18899, section 3.2.
    .. [2] Assran et al. (I-JEPA), arXiv:2301.08243, section 3.
    .. [3] Bardes et al. (V-JEPA), arXiv:2404.08471, section 3.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import JEPA
    >>> SKATRTransformer(objective=JEPA(masks="long")).set_params(objective__ema_decay=0.999)
    SKATRTransformer(objective=JEPA(ema_decay=0.999, masks='long'))
    """

    ema_decay: float | tuple[float, float] = (0.99, 1.0)

    _parameters = {
        **MaskedObjective._parameters,
        "predictor_depth": Integer(0),
        "ema_decay": Rule(_is_decay, "a number in [0, 1], or (start, end) with start <= end"),
    }
    prevents_collapse = "ema_decay near 1, predictor_depth >= 1, normalize_targets=True"

    def check_sizes(self, problems: Problems, prefix: str, architecture: Architecture) -> None:
        """Note where the predictor is too narrow, if there is one."""
        if self.predictor_depth:
            super().check_sizes(problems, prefix, architecture)

    def _warn_without_effect(self) -> None:
        if self.predictor_depth == 0:
            warn_without_effect(self, {"predictor_dim"}, "predictor_depth=0")

    def network(self, encoder: Encoder, architecture: Architecture, *, pooling: str) -> JEPANetwork:
        """Return the two encoders and the predictor."""
        width = architecture.embed_dim
        predictor = (
            self._predictor(width, architecture) if self.predictor_depth else MeanPredictor()
        )
        return JEPANetwork(encoder, predictor, normalize_targets=self.normalize_targets)

    def callbacks(self) -> list[Callback]:
        """Return what moves the target encoder."""
        return [EMATarget(*np.broadcast_to(self.ema_decay, 2).tolist())]


class JEPANetwork(MaskedNetwork):
    """Predict the target encoder's tokens of hidden patches from the visible ones.

    The target encoder starts as a copy of the context encoder, and never gets a gradient.
    """

    def __init__(self, encoder: Encoder, predictor: nn.Module, **options: bool) -> None:
        super().__init__(encoder, predictor, **options)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    def targets(self, patches: Tensor) -> Tensor:
        """Return the target encoder's tokens of the whole field."""
        return self.target_encoder(patches)

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """Move the target's weights by ``1 - decay`` of their difference from the context's."""
        target: list[Tensor] = list(self.target_encoder.parameters())
        context = [p.detach() for p in self.context_encoder.parameters()]
        torch._foreach_lerp_(target, context, 1.0 - decay)


class MeanPredictor(nn.Module):
    """Predict every hidden token by the mean of the visible ones, where there is no predictor.

    An ablation. The easiest way to be right with it is to give all patches the same token.
    """

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Return tokens of shape (n, n_target, embed_dim), as ``Predictor.forward`` does."""
        return context.mean(dim=1, keepdim=True).expand(-1, target_index.shape[1], -1)


class EMATarget(Callback):
    """Let the target follow the context encoder after each step; the decay rises to `end`."""

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end

    def on_batch_end(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Move the target."""
        if training:
            net.module_.update_target(ramp(self.start, self.end, net.steps_done / net.n_steps))
