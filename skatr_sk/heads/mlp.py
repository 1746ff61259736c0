"""The regression head: its networks, their losses, and the scaling of parameters to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skatr_sk.heads.pooling import make_pooling
from skatr_sk.heads.stacked import Dropout, Linear, affine

__all__ = [
    "CUT",
    "LOG_SIGMA",
    "LOSSES",
    "Head",
    "HeadLoss",
    "HeadMixture",
    "OwnHead",
    "ParameterScaling",
]

LOSSES = ("l1", "l2", "gaussian")
# Range of log sigma, sigma in units of the parameter's range: 0.1 % of it at the least. Without a
# bound the likelihood of a training row that is met exactly grows as sigma falls to zero.
LOG_SIGMA = (-7.0, 3.0)
# Standard deviations at which summaries are cut, where they are: one light cone with an extreme
# summary is else extrapolated far beyond all parameters.
CUT = 3.0


class Head(nn.Module):
    """MLP from standardised summaries, or their tokens, to each parameter scaled to [0, 1].

    `gaussian` adds a log sigma to each mean, and `bounded` keeps means inside (0, 1) by a sigmoid.
    Means begin near `start`, shape (n_parameters,), 0 by default. Pooled summaries are cut at `CUT`
    for ``cut=True``.
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
        start: np.ndarray | None = None,
        cut: bool = False,
    ) -> None:
        super().__init__()
        # All that it takes to build another, as JSON can hold it.
        self.sizes: dict[str, Any] = {"n_summary": n_summary}
        self.sizes |= {"hidden_dims": [int(n) for n in hidden_dims]}
        self.sizes |= {"n_parameters": n_parameters, "gaussian": gaussian, "bounded": bounded}
        self.sizes |= {"dropout": dropout, "pooling": pooling, "cut": cut}
        self.pooling = make_pooling(pooling, n_summary)
        widths = [n_summary, *hidden_dims]
        layers: list[nn.Module] = [nn.Hardtanh(-CUT, CUT)] if cut else []
        for inside, outside in pairwise(widths):
            layers += [Linear(inside, outside), nn.ReLU()]
            if dropout:
                layers.append(Dropout(dropout))
        last = Linear(widths[-1], n_parameters * (2 if gaussian else 1))
        if start is not None:
            centre = torch.from_numpy(start)
            last.bias.data[:n_parameters] = centre.logit(eps=0.01) if bounded else centre
        self.layers = nn.Sequential(*layers, last)
        self.n_parameters, self.gaussian, self.bounded = n_parameters, gaussian, bounded

    def forward(self, summaries: Tensor) -> Tensor:
        """Return means (n, n_parameters), with their log sigmas (n, 2 n_parameters).

        One tensor, as skorch's scoring callbacks expect of a module.
        """
        return self._within(self.layers(self.pooling(summaries)))

    def _within(self, output: Tensor) -> Tensor:
        """Bring means into (0, 1) and log sigmas into their range, where these are bounded."""
        if not self.gaussian:
            return output.sigmoid() if self.bounded else output
        mean, log_sigma = output.tensor_split([self.n_parameters], dim=-1)
        if self.bounded:
            mean = mean.sigmoid()
        return torch.cat([mean, log_sigma.clamp(*LOG_SIGMA)], dim=-1)

    @torch.no_grad()
    def differentiate(
        self, criterion: HeadLoss, summaries: Tensor, target: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Compute loss and output, and leave in the weights the gradients of a training step.

        The chain rule by hand: without a graph a step of so small a network takes half the time.
        None, and nothing is done, for a loss of which only autograd knows the slope, and for
        tokens, whose pooling may be trained.
        """
        layers = list(self.layers)
        # With an axis more the summaries are tokens, unless the weights of several have it too.
        if callable(criterion.loss) or summaries.ndim != layers[-1].weight.ndim:
            return None
        # Of each linear layer its weights and what it sees, of the others what their slope is.
        known: list[tuple[tuple[Tensor, Tensor] | None, Tensor]] = []
        inside = summaries
        for layer in layers:
            if isinstance(layer, Linear):
                both = layer.weight, layer.bias
                known.append((both, inside))
                inside = affine(inside, *both)
            elif isinstance(layer, nn.ReLU):
                known.append((None, inside.relu_().sign()))
            elif isinstance(layer, Dropout):
                known.append((None, layer.factors(inside)))
                inside = inside * known[-1][1]
            else:  # the cut of summaries, of which nobody asks the slope
                inside = layer(inside)
        output = self._within(inside)
        loss, slope = criterion.differentiate(output, target, weights)
        mean, of_mean = output, slope
        if self.gaussian:
            mean, log_sigma = output.tensor_split([self.n_parameters], dim=-1)
            of_mean, of_sigma = slope.tensor_split([self.n_parameters], dim=-1)
            of_sigma.mul_(log_sigma == inside[..., self.n_parameters :])
        if self.bounded:
            of_mean.mul_(mean * (1 - mean))
        for number, (own, seen) in reversed(list(enumerate(known))):
            if own is None:
                slope.mul_(seen)
                continue
            weight, bias = own
            _leave(weight, torch.matmul, slope.mT, seen)
            _leave(bias, torch.sum, slope, -2)
            if number:
                slope = slope @ weight
        return loss, output


def _leave(weight: Tensor, compute: Callable[..., Tensor], *arguments: Any) -> None:
    """Compute a gradient, in the memory of the last one where there is one."""
    if weight.grad is None:
        weight.grad = compute(*arguments)
    else:
        compute(*arguments, out=weight.grad)


class HeadMixture(nn.ModuleList):
    """Weighted mean of what several heads give, in the shapes of one.

    Of a Gaussian loss it is the mean and the log of the standard deviation of the mixture of their
    distributions. `weights` are one for each head, with a sum of one.
    """

    def __init__(self, heads: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__(heads)
        self.gaussian, self.bounded = heads[0].gaussian, heads[0].bounded
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

    def forward(self, summaries: Tensor) -> Tensor:
        """Return means (n, n_parameters), with their log sigmas (n, 2 n_parameters)."""
        weights = self.get_buffer("weights")[:, None, None]
        means = torch.stack([head(summaries) for head in self])
        if not self.gaussian:
            return (weights * means).sum(dim=0)
        means, log_sigmas = means.chunk(2, dim=2)
        mean = (weights * means).sum(dim=0)
        variance = (weights * ((2 * log_sigmas).exp() + (means - mean).square())).sum(dim=0)
        return torch.cat([mean, 0.5 * variance.log()], dim=1)


class OwnHead(nn.Module):
    """A user's network in the place of the MLP; its weights stay in their own precision."""

    sees_rows_once = True

    def __init__(self, network: nn.Module, *, gaussian: bool, bounded: bool) -> None:
        super().__init__()
        self.network, self.gaussian, self.bounded = network, gaussian, bounded

    def forward(self, summaries: Tensor) -> Tensor:
        """Return what the network gives, as :meth:`Head.forward` would."""
        output: Tensor = self.network(summaries.float())
        if not self.gaussian:
            return output
        mean, log_sigma = output.chunk(2, dim=1)
        return torch.cat([mean, log_sigma.clamp(*LOG_SIGMA)], dim=1)


class HeadLoss(nn.Module):
    """One of `LOSSES`, or a callable, of a head's output against targets in the unit interval.

    "gaussian" is the negative log likelihood, up to a constant. A callable gets parameters
    (n, n_parameters) and their targets, and gives a number, or one for each row.
    """

    def __init__(self, loss: str | Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss
        # What several networks have in common that can be trained at once.
        self.kind = None if callable(loss) else loss

    def forward(self, output: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean over rows, each times its weight, and parameters, in float32."""
        output = output.float()
        if callable(self.loss):
            each = self.loss(output[:, : target.shape[1]], target)
            return (each if weights is None else weights * each).mean()
        return self._each(output, target, weights)[0].mean(dim=(-2, -1))

    def differentiate(
        self, output: Tensor, target: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return one of `LOSSES`, and its slope by each number of the output."""
        each, slope = self._each(output, target, weights)
        n = target.shape[-2:].numel()
        return each.sum(dim=(-2, -1)).div_(n), slope.div_(n)  # sooner than a mean

    def _each(
        self, output: Tensor, target: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each row and parameter, and its slope by the output, times the row's weight."""
        if self.loss == "l1":
            apart = output - target
            each, slope = apart.abs(), apart.sign()
        elif self.loss == "l2":
            apart = output - target
            each, slope = apart.square(), 2 * apart
        else:
            mean, log_sigma = output.tensor_split([target.shape[-1]], dim=-1)
            pull = (mean - target) * (-log_sigma).exp()
            each = log_sigma + 0.5 * pull.square()
            slope = torch.cat([pull * (-log_sigma).exp(), 1 - pull.square()], dim=-1)
        if weights is not None:
            each, slope = weights.unsqueeze(-1) * each, weights.unsqueeze(-1) * slope
        return each, slope


@dataclass(frozen=True)
class ParameterScaling:
    """Parameters from their own units to [0, 1] and back, by the ends of the range of each.

    `low` and `high` have the shape (n_parameters,). Where they agree the parameter is that value:
    it becomes 0, and comes back as it was whatever is predicted. `at_ends`, of the same shape, is
    the share of the training targets at the ends, where it is known.
    """

    low: np.ndarray
    high: np.ndarray
    at_ends: np.ndarray | None = None

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
