"""Supervised pre-training: the encoder learns from labels, with a small head on its summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk._checks import Choice, Real
from skatr_sk.summaries.masking import sample_patches
from skatr_sk.summaries.objectives.base import LOSSES, Objective
from skatr_sk.summaries.pooling import pool, pooled_dim
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["Supervised", "SupervisedLoss", "SupervisedNetwork"]

_MOMENTUM = 0.1  # share of a batch in the statistics for validation, after ten of them


@dataclass(kw_only=True, eq=False, repr=False)
class Supervised(Objective):
    """Regress labels on pooled summaries: the encoder is trained with a small head [1]_.

    ``fit(X, y)`` needs labels, one number or a row of them for each light cone, such as the
    parameters of the simulations; ``transform`` gives the frozen encoder's summaries, as after any
    other pre-training, and the head is left behind. :class:`~skatr_sk.LightconeRegressor` on the
    summaries takes its place. Where a label is NaN it is unknown, and counts in no loss.

    The tokens are pooled as ``transform`` pools them (those that it keeps as "tokens", by their
    mean).

    Parameters
    ----------
    visible : float, default=0.5
        Share of the patches that a step sees, in (0, 1]: columns along the whole line of sight,
        drawn at random. A step costs as much as these; validation and ``transform`` see all.
    loss : {"l1", "l2"}, default="l1"
        Distance between predicted and true labels, these of zero mean and unit variance.

    Notes
    -----
    ``history_`` has ``valid_r2``, the coefficient of determination of the head on the validation
    fields, the mean over the labels that vary there.

    References
    ----------
    .. [1] Ore, Heneka, Plehn (SKATR), SciPost Phys. 18, 155 (2025), arXiv:2410.18899, section 4.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer, load_lightcones
    >>> from skatr_sk.summaries import Supervised
    >>> cones = load_lightcones()
    >>> skatr = SKATRTransformer(
    ...     objective=Supervised(), patch_size=(2, 2, 45), embed_dim=16, depth=1, max_epochs=1
    ... )
    >>> skatr.fit(cones.data[:16], cones.target[:16]).transform(cones.data[16:18]).shape
    (2, 48)
    """

    visible: float = 0.5
    loss: str = "l1"

    _parameters = {"visible": Real("(0, 1]"), "loss": Choice("l1", "l2")}
    needs_labels = labels_alone = True
    sees_unlabelled = False

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """Draw the patches that are seen, where that is not all of them."""
        if self.visible == 1:
            return []
        return [sample_patches(n, grid_shape, share=self.visible, generator=generator)]

    def pooled_by(self, pooling: str) -> str:
        """How the tokens are pooled."""
        return "mean" if pooling == "tokens" else pooling

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> nn.Module:
        """Return the encoder and the head."""
        pooling = self.pooled_by(pooling)
        n_summary = pooled_dim(architecture.embed_dim, pooling)
        return SupervisedNetwork(encoder, n_summary, n_parameters, pooling=pooling)

    def criterion(self) -> nn.Module:
        """Return the distance between predicted and known labels."""
        return SupervisedLoss(LOSSES[self.loss])

    def figures(self, criterion: Any) -> dict[str, float]:
        """Return the R2 of the head on the validation fields, where labels vary among these."""
        (n, left, total, squares), criterion.sums = criterion.sums, np.zeros((4, 1))
        whole = squares - total**2 / np.maximum(n, 1)
        varied = whole > 1e-12 * squares
        r2 = 1 - left[varied] / whole[varied]
        return {"valid_r2": float(r2.mean())} if r2.size else {}


class SupervisedNetwork(nn.Module):
    """Summarise fields and predict their labels, standardised, by a linear head.

    `n_summary` is the length of a summary that is pooled by `pooling`.
    """

    def __init__(
        self, encoder: Encoder, n_summary: int, n_parameters: int, *, pooling: str
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.context_encoder = encoder
        self.head = nn.Sequential(Standardizer(n_summary), nn.Linear(n_summary, n_parameters))

    def forward(self, patches: Tensor, visible: Sequence[Tensor]) -> Tensor:
        """Predict the labels (n, n_parameters) of patches (n, n_patches, n_voxels).

        In training from the patches alone that `visible` names, if it names any.
        """
        tokens = self.context_encoder(patches, *(visible if self.training else ()))
        n_slices = self.context_encoder.n_slices
        return self.head(pool(tokens.float(), self.pooling, n_slices))


class Standardizer(nn.BatchNorm1d):
    """Standardise over the batch what differs by little beside what all rows share.

    The statistics for validation are at first the mean over all batches: what is shared is large,
    and would not leave a moving average from zero for many steps. They also standardise a batch of
    a single row, which has none of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return rows (n, dim) standardised."""
        if not self.training or len(x) > 1:
            self.momentum = max(_MOMENTUM, 1 / (1 + int(self.num_batches_tracked or 0)))
            return super().forward(x)
        of_others = self.running_mean, self.running_var, self.weight, self.bias
        return functional.batch_norm(x, *of_others, eps=self.eps)


class SupervisedLoss(nn.Module):
    """Distance between predicted and true labels, the mean over those that are known.

    In validation it adds up what :meth:`Supervised.figures` makes an R2 of.
    """

    def __init__(self, compare: Any) -> None:
        super().__init__()
        self.compare = compare
        self.sums = np.zeros((4, 1))  # of ones, squared errors, labels and squared labels

    def forward(self, predicted: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, in float32; zero where no label is known."""
        predicted, known = predicted.float(), ~y.isnan()
        if not self.training:
            self._add_up(predicted, y, known)
        predicted, y = predicted.where(known, 0.0), y.where(known, 0.0)
        return self.compare(predicted, y, reduction="sum") / known.sum().clamp(min=1)

    def n_known(self, y: Tensor) -> Tensor:
        """Return how many labels of a batch are known, over which its loss is a mean."""
        return (~y.isnan()).sum()

    @torch.no_grad()
    def _add_up(self, predicted: Tensor, y: Tensor, known: Tensor) -> None:
        # In double precision before they are squared: labels that are level are seen to be so.
        predicted, y, known = predicted.cpu().double(), y.cpu().double(), known.cpu()
        parts = [torch.ones_like(y), (predicted - y).square(), y, y.square()]
        sums = torch.stack([part.where(known, 0.0).sum(dim=0) for part in parts])
        self.sums = self.sums + sums.numpy()
