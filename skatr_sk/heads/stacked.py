"""Several networks of one layout as one: weights with an axis of networks before their own.

One product then serves all networks. Layers take the weights of one network, or of several, and
whatever passes through them has the same axes in front.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "Linear", "affine", "columns", "multiply_add", "parts_of", "replace", "stack"]

_Module = TypeVar("_Module", bound=nn.Module)


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map rows (n, n_in), by the weights of one network or of several."""
    if weight.ndim == 2:
        return nn.functional.linear(inputs, weight, bias)
    return torch.baddbmm(bias.unsqueeze(-2), inputs, weight.mT)


class Linear(nn.Linear):
    """Layer of an :func:`affine` map."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map."""
        return affine(inputs, self.weight, self.bias)


class Dropout(nn.Dropout):
    """Dropout that tells its factors; of several networks each draws at its own rate."""

    streams: Sequence[tuple[float, torch.Generator]] | None = None  # rate and draws of each

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop some of the inputs in training, and enlarge the others."""
        return inputs * self.factors(inputs) if self.training and self.drops else inputs

    @property
    def drops(self) -> bool:
        """Whether anything is dropped at all."""
        return any(rate for rate, _ in self.streams) if self.streams else self.p > 0

    def factors(self, inputs: Tensor) -> Tensor:
        """Draw what inputs are multiplied by, as torch's own dropout draws it."""
        if self.streams is None:
            return torch.empty_like(inputs).bernoulli_(1 - self.p).div_(1 - self.p)
        factors = torch.ones_like(inputs)
        for own, (rate, generator) in zip(factors, self.streams, strict=True):
            if rate:
                own.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
        return factors


def multiply_add(start: Tensor, weight: Tensor, inputs: Tensor, scale: float = 1.0) -> Tensor:
    """Return ``scale * (start + weight @ inputs)`` for columns (n_in, n)."""
    product = torch.addmm if weight.ndim == 2 else torch.baddbmm
    return product(start, weight, inputs, beta=scale, alpha=scale)


def columns(points: Tensor) -> Tensor:
    """Turn points (n, m, n_parameters) into columns (n_parameters, n * m)."""
    return points.flatten(-3, -2).mT


def stack(networks: Sequence[_Module], generators: Sequence[torch.Generator]) -> _Module:
    """Return a network with the weights of all, which takes pooled summaries (networks, n, length).

    Each draws its dropout from its own generator.
    """
    whole = copy.deepcopy(networks[0])
    for name, _ in list(whole.named_parameters()):
        together = torch.stack([each.get_parameter(name).detach() for each in networks])
        replace(whole, name, together)
    whole.pooling = nn.Identity()  # an axis more is no axis of tokens
    for name, layer in whole.named_modules():
        if isinstance(layer, Dropout):
            rates = [float(each.get_submodule(name).p) for each in networks]  # type: ignore[arg-type]
            layer.streams = list(zip(rates, generators, strict=True))
    return whole


def replace(network: nn.Module, name: str, values: Tensor) -> None:
    """Give a network other weights under a name."""
    owner, _, own = name.rpartition(".")
    setattr(network.get_submodule(owner), own, nn.Parameter(values))


def parts_of(whole: nn.Module, number: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights of one of the networks of a stacked one."""
    return ((name, weight.detach()[number]) for name, weight in whole.named_parameters())
