"""VICReg on regions: two parts of one sky must have the same summary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from skatr_sk._checks import Problems, Real, shared_docs, warn_without_effect
from skatr_sk.summaries.objectives.base import PairLoss
from skatr_sk.summaries.objectives.regions import REGION_DOCS, RegionObjective

__all__ = ["VICReg", "VICRegLoss"]


@shared_docs(**REGION_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class VICReg(RegionObjective):
    """Let two regions of one sky have the same summary, without any target encoder [1]_ [2]_.

    Two regions of one sky have different structure and the same physics: what one region says of
    the other is, except for waves longer than the regions, what the parameters of the simulation
    are. The summary of a region is the mean of its tokens, however ``transform`` pools those of the
    whole sky.

    Parameters
    ----------
    {region}
    {expander}
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
    >>> SKATRTransformer(objective=VICReg(region=0.3, expander_dim=16))
    SKATRTransformer(objective=VICReg(expander_dim=16, region=0.3))
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    _parameters = {
        **RegionObjective._parameters,
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

    def criterion(self) -> nn.Module:
        """Return the weighted sum of the three terms."""
        return PairLoss(VICRegLoss(self.invariance, self.variance, self.covariance))


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
