"""VICReg on regions: two parts of one sky must have the same summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk._checks import Integer, Problems, Real, warn_without_effect
from skatr_sk.summaries.masking import sample_regions
from skatr_sk.summaries.objectives.base import Objective, PairLoss
from skatr_sk.summaries.pooling import pool, pooled_dim
from skatr_sk.summaries.views import Pairs
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["Expander", "RegionNetwork", "VICReg", "VICRegLoss"]


@dataclass(kw_only=True, eq=False, repr=False)
class VICReg(Objective):
    """Let two regions of one sky have the same summary, without any target encoder [1]_ [2]_.

    Two regions of one sky have different structure and the same physics: what one region says of
    the other is, except for waves longer than the regions, what the parameters of the simulation
    are. The tokens of each region are pooled as ``transform`` pools them (those that it keeps as
    "tokens", by their mean).

    Parameters
    ----------
    region : float, default=0.15
        Share of the patches that each of the two regions has, in (0, 0.5].
    expander_dim : int, default=48
        Numbers in which the summaries of the regions are compared.
    expander_depth : int, default=4
        Hidden layers between a summary and these numbers.
    invariance, variance, covariance : float, default=25.0, 25.0 and 1.0
        Weights of the three terms of the loss [1]_: see
        :class:`~skatr_sk.summaries.objectives.vicreg.VICRegLoss`.

    References
    ----------
    .. [1] Bardes, Ponce, LeCun (VICReg), arXiv:2105.04906, section 3.
    .. [2] As a joint-embedding predictive architecture: Balestriero, LeCun (LeJEPA),
       arXiv:2511.08544, section 2.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import VICReg
    >>> SKATRTransformer(objective=VICReg(region=0.4, expander_dim=64), pooling="moments")
    SKATRTransformer(objective=VICReg(expander_dim=64, region=0.4), pooling='moments')
    """

    region: float = 0.15
    expander_dim: int = 48
    expander_depth: int = 4
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    _parameters = {
        "region": Real("(0, 0.5]"),  # two regions cannot both have more than half of a sky
        "expander_dim": Integer(1),
        "expander_depth": Integer(0),
        "invariance": Real("[0, inf)"),
        "variance": Real("[0, inf)"),
        "covariance": Real("[0, inf)"),
    }
    prevents_collapse = "variance and covariance beside invariance"

    def check(self, problems: Problems, prefix: str) -> None:
        """Note wrong parameters, and weights that leave no loss."""
        super().check(problems, prefix)
        weights = [self.invariance, self.variance, self.covariance]
        if all(Real("[0, 0]").fault(weight) is None for weight in weights):
            wanted = "a positive weight of one of the three terms of the loss"
            problems.add(f"{prefix}invariance, variance, covariance", wanted, 0.0)

    def _warn_without_effect(self) -> None:
        if self.expander_dim == 1:
            warn_without_effect(self, {"covariance"}, "expander_dim=1")

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> Pairs:
        """Draw the patches of two regions."""
        return [sample_regions(n, grid_shape, share=self.region, generator=generator)]

    def pooled_by(self, pooling: str) -> str:
        """How the tokens of a region are pooled."""
        return "mean" if pooling == "tokens" else pooling

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str
    ) -> RegionNetwork:
        """Return the encoder and the expander."""
        pooling = self.pooled_by(pooling)
        n_summary = pooled_dim(architecture.embed_dim, pooling)
        expander = Expander(n_summary, int(self.expander_dim), depth=int(self.expander_depth))
        return RegionNetwork(encoder, expander, pooling=pooling)

    def criterion(self) -> nn.Module:
        """Return the weighted sum of the three terms."""
        return PairLoss(VICRegLoss(self.invariance, self.variance, self.covariance))


class Expander(nn.Sequential):
    """Perceptron from a summary to the `dim` numbers in which regions are compared.

    Its `depth` hidden layers are twice as wide as a summary. It is not used after the training: its
    output keeps what the regions agree on and little else, the summary before it keeps more.
    """

    def __init__(self, n_summary: int, dim: int, *, depth: int) -> None:
        widths = [n_summary, *[2 * n_summary] * depth]
        layers: list[nn.Module] = []
        for width, hidden in pairwise(widths):
            # Summaries of different light cones differ by little compared with what they share.
            # Normalising over the batch removes what they share.
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU()]
        super().__init__(*layers, nn.Linear(widths[-1], dim))


class RegionNetwork(nn.Module):
    """Summarise two disjoint regions of each light cone, and expand both summaries.

    The encoder sees one region at a time, as it sees the visible patches of a JEPA. The tokens of a
    region are pooled by `pooling`: see :func:`~skatr_sk.summaries.pooling.pool`.
    """

    def __init__(self, encoder: Encoder, expander: Expander, *, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.context_encoder = encoder
        self.expander = expander

    def forward(self, patches: Tensor, regions: Pairs) -> Pairs:
        """Return the expanded summaries of each pair of regions, both of shape (n, dim)."""
        pairs = []
        for indices in regions:
            tokens = [self.context_encoder(patches, index) for index in indices]
            n_slices = self.context_encoder.n_slices
            summaries = [pool(each.float(), self.pooling, n_slices) for each in tokens]
            # As one batch: both are normalised alike, and even a single light cone makes two rows.
            pairs.append(self.expander(torch.cat(summaries)).chunk(2))
        return pairs


@dataclass(frozen=True)
class VICRegLoss:
    """Weighted sum of invariance, variance and covariance of paired summaries, each (n, dim).

    Invariance is the mean squared distance between the two summaries of one light cone. Variance is
    a hinge on the standard deviation of each number over the batch, which is to be at least one.
    Covariance is the sum of the squared covariances of different numbers, over how many numbers
    there are. The last two keep summaries from collapsing (VICReg, arXiv:2105.04906, equations 1 to
    6).
    """

    invariance: float
    variance: float
    covariance: float

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        """Return the loss of the two summaries of each light cone."""
        distance = functional.mse_loss(one, two)
        return self.invariance * distance + self._collapse(one) + self._collapse(two)

    def _collapse(self, summaries: Tensor) -> Tensor:
        """Return the terms of variance and covariance."""
        n, dim = summaries.shape
        if n < 2:  # a last batch of one field has no variance
            return summaries.new_zeros(())
        covariance = summaries.T.cov().reshape(dim, dim)
        variance = covariance.diagonal()
        hinge = functional.relu(1 - (variance + 1e-4).sqrt()).mean()
        repeated = (covariance.square().sum() - variance.square().sum()) / dim
        return self.variance * hinge + self.covariance * repeated
