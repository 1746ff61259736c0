"""What objectives share that compare two regions of one sky."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skatr_sk._checks import Integer, Real
from skatr_sk.summaries.masking import sample_regions
from skatr_sk.summaries.objectives.base import Objective
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["REGION_DOCS", "Expander", "RegionNetwork", "RegionObjective"]

REGION_DOCS = {
    "region": """
        region : float, default=0.4
            Share of the patches that each of the two regions has, in (0, 0.5].""",
    "expander": """
        expander_dim : int, default=64
            Numbers in which the summaries of the regions are compared.
        expander_depth : int, default=1
            Hidden layers between a summary and these numbers.""",
}


@dataclass(kw_only=True, eq=False, repr=False)
class RegionObjective(Objective):
    """Base of the objectives that compare the summaries of two regions of one sky."""

    region: float = 0.4
    expander_dim: int = 64
    expander_depth: int = 1

    _parameters = {
        "region": Real("(0, 0.5]"),  # two regions cannot both have more than half of a sky
        "expander_dim": Integer(1),
        "expander_depth": Integer(0),
    }

    def draw(
        self, n: int, grid_shape: Sequence[int], generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Draw the patches of two regions; what a subclass draws beside comes behind."""
        return sample_regions(n, grid_shape, share=self.region, generator=generator)

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> RegionNetwork:
        """Return the encoder and the expander."""
        return RegionNetwork(encoder, self._expander(architecture))

    def _expander(self, architecture: Architecture) -> Expander:
        dim, depth = int(self.expander_dim), int(self.expander_depth)
        return Expander(architecture.embed_dim, dim, depth=depth)


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

    The encoder sees one region at a time, as it sees the visible patches of a JEPA. The summary of
    a region is the mean of its tokens, however ``transform`` pools: that serves every pooling best.
    """

    def __init__(self, encoder: Encoder, expander: Expander) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.expander = expander

    def forward(self, patches: Tensor, drawn: Sequence[Tensor]) -> Any:
        """Return what the loss compares of the regions, whose patches are drawn first."""
        return self.compare(self.summarise(self.context_encoder, patches, drawn), drawn)

    def summarise(self, encoder: nn.Module, patches: Tensor, drawn: Sequence[Tensor]) -> Tensor:
        """Return the mean tokens of two regions, (2 n, embed_dim), those of the first first.

        As one batch: both are normalised alike, and even a single light cone makes two rows.
        """
        return torch.cat([encoder(patches, index).float().mean(dim=1) for index in drawn[:2]])

    def compare(self, summaries: Tensor, drawn: Sequence[Tensor]) -> Any:
        """Return the expanded summaries of the two regions, both (n, dim), as the only pair."""
        return [self.expander(summaries).chunk(2)]
