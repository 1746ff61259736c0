"""The regression head: its network, its losses, and the scaling of parameters to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.heads.pooling import make_pooling

__all__ = ["LOSSES", "Head", "HeadLoss", "ParameterScaling"]

LOSSES = ("l1", "l2", "gaussian")
# Range of log sigma, sigma in units of the parameter's range: 0.1 % of it at the least. Without a
# bound the likelihood of a training row that is met exactly grows as sigma falls to zero.
_LOG_SIGMA = (-7.0, 3.0)


class Head(nn.Module):
    """MLP from standardised summaries, or their tokens, to each parameter scaled to [0, 1].

    `gaussian` adds a log sigma to each mean, and `bounded` keeps means inside (0, 1) by a sigmoid.
    """

    def __init__(
        self,
        n_summary: int,
        hidden_dims: Sequence[int],
        n_parameters: int,
        *,
        gaussian: bool,
        bounded: bool,
        dropout: float,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.pooling = make_pooling(pooling, n_summary)
        widths = [n_summary, *hidden_dims]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], n_parameters * (2 if gaussian else 1)))
        self.layers = nn.Sequential(*layers)
        self.n_parameters, self.gaussian, self.bounded = n_parameters, gaussian, bounded

    def forward(self, summaries: Tensor) -> Tensor:
        """Return means (n, n_parameters), with their log sigmas (n, 2 n_parameters).

        One tensor, as skorch's scoring callbacks expect of a module.
        """
        output = self.layers(self.pooling(summaries))
        mean, log_sigma = output.tensor_split([self.n_parameters], dim=1)
        if self.bounded:
            mean = mean.sigmoid()
        return torch.cat([mean, log_sigma.clamp(*_LOG_SIGMA)], dim=1) if self.gaussian else mean


class HeadLoss(nn.Module):
    """One of `LOSSES`, of a head's output against targets in the unit interval.

    "gaussian" is the negative log likelihood, up to a constant.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean over rows and parameters, in float32."""
        mean, log_sigma = output.float().tensor_split([target.shape[1]], dim=1)
        if self.loss == "gaussian":
            pull = (target - mean) * (-log_sigma).exp()
            return (log_sigma + 0.5 * pull.square()).mean()
        return (functional.l1_loss if self.loss == "l1" else functional.mse_loss)(mean, target)


@dataclass(frozen=True)
class ParameterScaling:
    """Parameters from their own units to [0, 1] and back, by the ends of the range of each.

    `low` and `high` have the shape (n_parameters,). Where they agree the parameter is that value:
    it becomes 0, and comes back as it was whatever is predicted.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def width(self) -> np.ndarray:
        """Width of each parameter's range, in its units."""
        return self.high - self.low

    def to_unit(self, parameters: np.ndarray) -> np.ndarray:
        """Map (n, n_parameters) in physical units to the unit interval."""
        return (parameters - self.low) / np.where(self.width > 0, self.width, 1.0)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """Map (n, n_parameters) from the unit interval to physical units."""
        return self.low + unit * self.width
