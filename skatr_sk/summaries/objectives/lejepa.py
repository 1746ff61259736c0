"""LeJEPA on regions: one summary for each sky, and a Gaussian of them over the light cones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from skatr_sk._checks import Integer, Real, shared_docs
from skatr_sk.summaries.objectives.regions import REGION_DOCS, RegionNetwork, RegionObjective
from skatr_sk.summaries.views import Pairs
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["LeJEPA", "LeJEPALoss", "LeJEPANetwork", "epps_pulley"]

_LAST_FREQUENCY, _N_FREQUENCIES = 5.0, 17  # of the integral over [-5, 5]


@shared_docs(**REGION_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class LeJEPA(RegionObjective):
    """Let the regions of one sky agree, and their numbers be Gaussian over light cones [1]_.

    The two regions are views of one sky, and their expanded summaries are to meet in their mean.
    That all summaries become alike is prevented by a test of normality: over the batch, the
    projections of the numbers on random directions are to follow a normal distribution of zero mean
    and unit variance (SIGReg). There is no target encoder, and one weight. The summary of a region
    is the mean of its tokens, however ``transform`` pools those of the whole sky.

    Parameters
    ----------
    {region}
    {expander}
    sigreg : float, default=0.05
        Weight of SIGReg in the loss, in [0, 1], the paper's lambda; that of the agreement is what
        is left of one.
    n_projections : int, default=256
        Random directions, drawn anew in each step, on which the numbers are projected.

    References
    ----------
    .. [1] Balestriero, LeCun (LeJEPA), arXiv:2511.08544, sections 4 and 5; the test is that of
       Epps, Pulley, Biometrika 70, 723 (1983).

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import LeJEPA
    >>> SKATRTransformer(objective=LeJEPA(region=0.3, expander_dim=16))
    SKATRTransformer(objective=LeJEPA(expander_dim=16, region=0.3))
    """

    sigreg: float = 0.05
    n_projections: int = 256

    _parameters = {
        **RegionObjective._parameters,
        "sigreg": Real("[0, 1]"),
        "n_projections": Integer(1),
    }
    prevents_collapse = "a larger sigreg"

    def draw(
        self, n: int, grid_shape: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Draw the patches of two regions, and the directions of this step as columns."""
        shape = int(self.expander_dim), int(self.n_projections)
        directions = nn.functional.normalize(torch.randn(shape, generator=generator), dim=0)
        return *super().draw(n, grid_shape, generator), directions

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> LeJEPANetwork:
        """Return the encoder and the expander."""
        return LeJEPANetwork(encoder, self._expander(architecture))


class LeJEPAOutput(NamedTuple):
    """What the network gives to the loss."""

    pairs: Pairs  # expanded summaries of two regions, both (n, expander_dim)
    directions: Tensor  # on which they are projected, (expander_dim, n_projections)


class LeJEPANetwork(RegionNetwork):
    """Summarise and expand two regions, and hand on the directions of the step."""

    def compare(self, summaries: Tensor, drawn: Sequence[Tensor]) -> LeJEPAOutput:
        """Return the expanded summaries, and the directions, which are drawn last."""
        return LeJEPAOutput(super().compare(summaries, drawn), drawn[-1])


class LeJEPALoss(nn.Module):
    """Distance of the views from their mean, and the statistic of their projections.

    The distance is squared, and the mean of it over views, light cones and numbers; the statistic
    is that of :func:`epps_pulley`, the mean of it over views and directions. The weight of the
    statistic is `sigreg`, that of the distance what is left of one (arXiv:2511.08544, section 5.1).
    """

    def __init__(self, sigreg: float) -> None:
        super().__init__()
        self.sigreg = sigreg

    def forward(self, output: LeJEPAOutput, _: object = None) -> Tensor:
        """Return the loss of a batch, in float32."""
        views = torch.stack([view.float() for pair in output.pairs for view in pair])
        distance = (views - views.mean(dim=0)).square().mean()
        statistic = epps_pulley(views @ output.directions).mean()
        return (1 - self.sigreg) * distance + self.sigreg * statistic


def epps_pulley(x: Tensor) -> Tensor:
    """Epps-Pulley statistic: how far samples are from a standard normal distribution.

    The characteristic function of the samples, less that of the normal distribution, squared,
    weighted by exp(-t^2 / 2), integrated over [-5, 5] by the trapezoid rule on 17 points, times the
    number of samples (arXiv:2511.08544, section 4.2). A single sample has no distribution: zero.

    Of `x` of shape (..., n_samples, n_projections) the result is (..., n_projections).
    """
    n = x.shape[-2]
    if n < 2:
        return x.new_zeros(*x.shape[:-2], x.shape[-1])
    # The integrand is even: twice the integral from zero.
    t = torch.linspace(0, _LAST_FREQUENCY, _N_FREQUENCIES // 2 + 1, device=x.device)
    normal = (-t.square() / 2).exp()
    phase = x.unsqueeze(-1) * t
    real, imaginary = phase.cos().mean(dim=-3), phase.sin().mean(dim=-3)
    error = (real - normal).square() + imaginary.square()
    return 2 * n * torch.trapezoid(error * normal, t, dim=-1)
