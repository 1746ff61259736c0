"""The joint-embedding predictive architecture: two encoders, a predictor, loss and schedules."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.summaries.vit import Encoder, MeanPredictor, Predictor, gather_tokens

__all__ = ["JEPA", "LOSSES", "JEPALoss", "MaskedReconstruction"]

LOSSES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


class JEPA(nn.Module):
    """Predict the target encoder's tokens of hidden patches from the visible ones.

    Parameters
    ----------
    encoder : Encoder
        Becomes the context encoder; the target encoder starts as its copy and never gets a
        gradient.
    predictor : Predictor or MeanPredictor
    normalize_targets : bool
        Layer-normalise each target token before the loss, as V-JEPA does: otherwise shrinking all
        tokens is the easiest way to lower the loss.

    References
    ----------
    I-JEPA, arXiv:2301.08243, section 3; V-JEPA, arXiv:2404.08471, section 3;
    SKATR, arXiv:2410.18899, section 3.2.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor | MeanPredictor,
        *,
        normalize_targets: bool = True,
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = predictor
        self.normalize_targets = normalize_targets

    def forward(
        self, patches: Tensor, masks: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (predicted, target) tokens for each mask.

        Parameters
        ----------
        patches : Tensor of shape (n, n_patches, n_voxels)
        masks : sequence of (context_index, target_index)
            As drawn by :func:`~skatr_sk.summaries.masking.sample_masks`.

        Returns
        -------
        list of (Tensor, Tensor), each of shape (n, n_target, embed_dim)
        """
        with torch.no_grad():
            # One pass of the target encoder serves all masks.
            targets = self.target_encoder(patches)
            if self.normalize_targets:
                targets = functional.layer_norm(targets, targets.shape[-1:])
        pairs = []
        for context_index, target_index in masks:
            context = self.context_encoder(patches, context_index)
            predicted = self.predictor(context, context_index, target_index)
            pairs.append((predicted, gather_tokens(targets, target_index)))
        return pairs

    @torch.no_grad()
    def update_target(self, decay: float) -> None:
        """Move the target's weights by ``1 - decay`` of their difference from the context's."""
        target: list[Tensor] = list(self.target_encoder.parameters())
        context = [p.detach() for p in self.context_encoder.parameters()]
        torch._foreach_lerp_(target, context, 1.0 - decay)


class MaskedReconstruction(nn.Module):
    """Predict the voxels of hidden patches instead of their tokens: the rival objective.

    Parameters
    ----------
    encoder : Encoder
    predictor : Predictor
        Its ``target_dim`` is the number of voxels of a patch.
    normalize_targets : bool
        Give the voxels of each patch zero mean and unit variance before the loss.

    References
    ----------
    Masked autoencoders, arXiv:2111.06377, section 3.
    """

    def __init__(
        self, encoder: Encoder, predictor: Predictor, *, normalize_targets: bool = True
    ) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.predictor = predictor
        self.normalize_targets = normalize_targets

    def forward(
        self, patches: Tensor, masks: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (predicted, true) voxels for each mask, as :meth:`JEPA.forward` does tokens."""
        pairs = []
        for context_index, target_index in masks:
            context = self.context_encoder(patches, context_index)
            predicted = self.predictor(context, context_index, target_index)
            target = gather_tokens(patches, target_index)
            if self.normalize_targets:
                target = functional.layer_norm(target, target.shape[-1:])
            pairs.append((predicted, target))
        return pairs

    def update_target(self, decay: float) -> None:
        """Do nothing: voxels are a fixed target."""


class JEPALoss(nn.Module):
    """Mean over the masks of the distance between predictions and targets.

    Parameters
    ----------
    loss : {"l1", "l2", "smooth_l1"}
    """

    def __init__(self, loss: str = "l1") -> None:
        super().__init__()
        self.distance = LOSSES[loss]

    def forward(self, pairs: list[tuple[Tensor, Tensor]], _: object = None) -> Tensor:
        """Return the loss of the pairs of :meth:`JEPA.forward`, in float32."""
        losses = [self.distance(predicted.float(), target.float()) for predicted, target in pairs]
        return torch.stack(losses).mean()
