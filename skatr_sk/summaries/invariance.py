"""Joint embedding without a moving target: two parts of one sky must say the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.summaries.pooling import pool
from skatr_sk.summaries.vit import Encoder

__all__ = ["Expander", "VICRegLoss", "ViewInvariance"]


class Expander(nn.Sequential):
    """Perceptron from a summary to the few numbers in which views are compared.

    It is thrown away after the training: what views agree on is spread evenly in its output, and
    the summary before it keeps more.

    Parameters
    ----------
    n_summary : int
        Length of a summary.
    dim : int
        Numbers compared.
    depth : int
        Hidden layers, twice as wide as a summary.

    Examples
    --------
    >>> import torch
    >>> Expander(16, 4, depth=1)(torch.zeros(3, 16)).shape
    torch.Size([3, 4])
    """

    def __init__(self, n_summary: int, dim: int, *, depth: int) -> None:
        layers: list[nn.Module] = []
        width, hidden = n_summary, 2 * n_summary
        for _ in range(depth):
            # Normalised over the batch: summaries of different light cones differ by little beside
            # what they share, and would else have to be torn apart by the encoder first.
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU()]
            width = hidden
        super().__init__(*layers, nn.Linear(width, dim))


class ViewInvariance(nn.Module):
    """Summarise two disjoint regions of each light cone, and expand both summaries.

    Two regions of one sky have their structure apart and their physics in common: what can be told
    of one from the other is, but for waves longer than the regions, what the parameters of the
    simulation are.

    Parameters
    ----------
    encoder : Encoder
        Sees one region at a time, as it sees the visible patches of a JEPA.
    expander : Expander
    pooling : {"mean", "max", "moments"}
        Of a region's tokens: see :func:`~skatr_sk.summaries.pooling.pool`.

    References
    ----------
    VICReg, arXiv:2105.04906, section 3; as a joint-embedding predictive architecture: LeJEPA,
    arXiv:2511.08544, section 2.
    """

    def __init__(self, encoder: Encoder, expander: Expander, *, pooling: str = "mean") -> None:
        super().__init__()
        self.pooling = pooling
        self.context_encoder = encoder
        self.expander = expander

    def forward(
        self, patches: Tensor, regions: Sequence[tuple[Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the expanded summaries of both regions, each of shape (n, dim).

        Parameters
        ----------
        patches : Tensor of shape (n, n_patches, n_voxels)
        regions : sequence of (index, index)
            As drawn by :func:`~skatr_sk.summaries.masking.sample_regions`.
        """
        pairs = []
        for views in regions:
            tokens = [self.context_encoder(patches, index) for index in views]
            summaries = [pool(each.float(), self.pooling) for each in tokens]
            # Together, so that both are normalised alike, and a batch of one light cone has two.
            one, two = self.expander(torch.cat(summaries)).chunk(2)
            pairs.append((one, two))
        return pairs

    def update_target(self, decay: float) -> None:
        """Do nothing: there is no target encoder."""


class VICRegLoss(nn.Module):
    """Variance, invariance and covariance of paired summaries.

    Views of one light cone come together (the mean squared distance), each number keeps a standard
    deviation of one over the batch (a hinge), and numbers do not repeat each other (the squared
    covariances off the diagonal, over their number): the last two are what keeps summaries from
    collapsing.

    Parameters
    ----------
    invariance, variance, covariance : float
        Weights of the three.

    References
    ----------
    VICReg, arXiv:2105.04906, equations 1 to 6.

    Examples
    --------
    >>> import torch
    >>> same = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(VICRegLoss()([(same, same)]).item(), 3)
    0.0
    """

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
    ) -> None:
        super().__init__()
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance

    def forward(self, pairs: list[tuple[Tensor, Tensor]], _: object = None) -> Tensor:
        """Return the loss of the pairs of :meth:`ViewInvariance.forward`, in float32."""
        losses = [
            self.invariance * functional.mse_loss(one.float(), two.float())
            + self._spread(one.float())
            + self._spread(two.float())
            for one, two in pairs
        ]
        return torch.stack(losses).mean()

    def _spread(self, summaries: Tensor) -> Tensor:
        n, dim = summaries.shape
        if n < 2:  # a last batch of one field has no spread to judge
            return summaries.new_zeros(())
        covariance = summaries.T.cov().reshape(dim, dim)
        variance = covariance.diagonal()
        hinge = functional.relu(1 - (variance + 1e-4).sqrt()).mean()
        repeated = (covariance.square().sum() - variance.square().sum()) / dim
        return self.variance * hinge + self.covariance * repeated
