"""The conditional normalising flow.

From the parameters to standard normal noise, in this order: an affine layer, whose shift and lower
triangular matrix come from the summary, and coupling blocks of monotonic rational-quadratic splines
(Durkan et al., "Neural Spline Flows", arXiv:1906.04032). The affine layer alone is a Gaussian
posterior with full covariance. It widens posteriors as narrow as e^-12 of the prior to the range of
the splines, which bend them where they are not Gaussian. At initialisation every layer is the
identity.

Its weights may be those of several flows, with an axis of flows first
(:mod:`~skatr_sk.heads.stacked`): whatever comes in and out then has that axis, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.heads.pooling import make_pooling
from skatr_sk.heads.spline import MAX_BINS, Places, log_slope, spline
from skatr_sk.heads.stacked import Dropout, Linear, columns, multiply_add

__all__ = [
    "MAX_BINS",
    "Conditioned",
    "ConditionalFlow",
    "Context",
    "FlowEnsemble",
    "coupling_masks",
]

# Adam moves every weight alike: this factor lets the splines move slower than the affine layer, and
# bend a Gaussian only where the data ask for it.
_LOGIT_SCALE = 0.05
# Bounds of the affine layer: log scales, and slopes of a parameter on those before it.
_LOG_SCALE, _SLOPE = 12.0, 30.0
# A row that is copied for each of its samples costs as much as some samples.
_MOST_IN_VAIN = 1.7


class Context(NamedTuple):
    """What the flow needs of a summary, computed once for all of its samples."""

    hidden: Tensor  # (n, n_blocks, width), into the first hidden layer of each conditioner
    shift: Tensor  # (n, n_parameters)
    # Lower triangular, (n, n_parameters, n_parameters): the first layer is triangle @ (y - shift).
    triangle: Tensor


@dataclass(frozen=True)
class Conditioned:
    """A flow given the summaries of a batch: what a forward pass returns and the loss takes.

    The likelihood is computed by the loss, which runs outside autocast: the flow stays in float32.
    """

    flow: ConditionalFlow
    context: Context


class ConditionalFlow(nn.Module):
    """Density of parameters given a summary, or tokens that are pooled to one.

    `hidden_dims` are the widths of each conditioner's hidden layers, the first also that of the
    context's, and `dropout` is of the context. Shapes are the same everywhere, cones first: points
    (n, n_samples, n_parameters) and their log densities (n, n_samples), whatever nflows does. A
    single parameter has none to couple to: its splines depend on the summary alone.
    """

    def __init__(
        self,
        n_parameters: int,
        n_summary: int,
        *,
        n_blocks: int,
        n_bins: int,
        hidden_dims: Sequence[int],
        dropout: float,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        # All that it takes to build another, as JSON can hold it.
        self.sizes: dict[str, Any] = {"n_parameters": n_parameters, "n_summary": n_summary}
        self.sizes |= {"n_blocks": int(n_blocks), "n_bins": int(n_bins)}
        self.sizes |= {"hidden_dims": [int(n) for n in hidden_dims], "pooling": pooling}
        self.sizes["dropout"] = float(dropout)
        self.pooling = make_pooling(pooling, n_summary)
        self.n_parameters, self.n_blocks = n_parameters, n_blocks
        width = hidden_dims[0]
        self.embedding = nn.Sequential(
            Linear(n_summary, width), nn.GELU(), Dropout(dropout), Linear(width, width)
        )
        self.to_hidden = Linear(width, n_blocks * width)
        n_triangle = n_parameters * (n_parameters + 1) // 2
        self.to_affine = _zeroed(Linear(width, n_parameters + n_triangle))
        masks = coupling_masks(n_parameters, n_blocks)
        # The names of the weights, in files of before too, count the affine layer as the first.
        self.transform = nn.Module()
        self.transform._transforms = nn.ModuleList(
            [nn.Identity(), *(_Coupling(mask, n_bins, hidden_dims) for mask in masks)]
        )

    def forward(self, summaries: Tensor) -> Conditioned:
        """Condition the flow on standardised summaries or tokens, as :meth:`context` takes them."""
        return Conditioned(self, self.context(summaries))

    def context(self, summaries: Tensor) -> Context:
        """Compute what the flow needs of (n, n_summary) or (n, n_tokens, n_summary)."""
        embedded = functional.gelu(self.embedding(self.pooling(summaries)))
        hidden = self.to_hidden(embedded).unflatten(-1, (self.n_blocks, -1))
        affine = self.to_affine(embedded)
        # From here on in the flow's own precision: densities need float32.
        hidden, affine = hidden.to(self.dtype), affine.to(self.dtype)
        n = self.n_parameters
        shift, entries = affine.tensor_split([n], dim=-1)
        rows, columns = torch.tril_indices(n, n, device=affine.device)
        # A positive diagonal times a unit triangle, both bounded smoothly: it allows for strong
        # correlations, and float32 can still invert it.
        scales = (_LOG_SCALE * torch.tanh(entries[..., rows == columns] / _LOG_SCALE)).exp()
        slopes = _SLOPE * torch.tanh(entries / _SLOPE)
        unit = entries.new_zeros(*entries.shape[:-1], n, n)
        unit[..., rows, columns] = torch.where(rows == columns, torch.ones_like(slopes), slopes)
        return Context(hidden, shift, scales.unsqueeze(-1) * unit)

    def log_prob(self, points: Tensor, context: Context) -> Tensor:
        """Log densities of shape (n, m) at points of shape (n, m, n_parameters)."""
        bent = (points - context.shift.unsqueeze(-2)) @ context.triangle.mT
        rows, places = list(columns(bent).unbind(dim=-2)), []
        for block, hidden in self._blocks(context):
            places.append(block(rows, hidden, inverse=False))
        log_prob = self._base(torch.stack(rows, dim=-2)) + _log_jacobian(places)
        return log_prob.unflatten(-1, points.shape[-3:-1]) + _log_scale(context)

    def sample(self, noise: Tensor, context: Context) -> Tensor:
        """Turn normal noise of shape (n, m, n_parameters) into samples."""
        return self._bent_back(columns(noise), context)[0]

    def sample_and_log_prob(self, noise: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Turn normal noise of shape (n, m, n_parameters) into samples and log densities."""
        start = columns(noise)
        points, places = self._bent_back(start, context)
        log_prob = self._base(start) + _log_jacobian(places)
        return points, log_prob.unflatten(-1, noise.shape[-3:-1]) + _log_scale(context)

    def _bent_back(self, noise: Tensor, context: Context) -> tuple[Tensor, list[Places]]:
        """Return samples (n, m, n_parameters) of columns of noise, and their places in splines."""
        rows, places = list(noise.unbind(dim=-2)), []
        for block, hidden in reversed(self._blocks(context)):
            places.append(block(rows, hidden, inverse=True))
        bent = torch.stack(rows, dim=-1).unflatten(-2, (context.shift.shape[-2], -1))
        solved = torch.linalg.solve_triangular(context.triangle, bent.mT, upper=False).mT
        return solved + context.shift.unsqueeze(-2), places

    def _blocks(self, context: Context) -> list[tuple[_Coupling, Tensor]]:
        """Blocks, each with what the context gives to its first hidden layer, (width, n)."""
        blocks: Any = list(self.transform._transforms)[1:]  # type: ignore[arg-type]
        hidden = context.hidden.unbind(-2)
        return [(block, own.mT) for block, own in zip(blocks, hidden, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.to_affine.weight.dtype

    @staticmethod
    def _base(noise: Tensor) -> Tensor:
        constant = 0.5 * noise.shape[-2] * math.log(2 * math.pi)
        return -0.5 * noise.square().sum(dim=-2) - constant


class FlowEnsemble(nn.ModuleList):
    """The mean of the densities of some flows of one size, in the shapes of ConditionalFlow.

    The parts of its context have one axis more, the first: that of the flows.
    """

    def context(self, summaries: Tensor) -> Context:
        """Compute what the flows need of summaries."""
        each = (flow.context(summaries) for flow in self._flows)
        return Context(*map(torch.stack, zip(*each, strict=True)))

    def log_prob(self, points: Tensor, context: Context) -> Tensor:
        """Log densities of points."""
        each = [flow.log_prob(points, own) for flow, own in self._with(context)]
        return torch.stack(each).logsumexp(dim=0) - math.log(len(self))

    def sample_and_log_prob(
        self, noise: Tensor, context: Context, whose: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turn noise into samples as :meth:`sample` does, and their log densities."""
        if len(self) == 1:
            (flow, own), *_ = self._with(context)
            return flow.sample_and_log_prob(noise, own)
        points = self.sample(noise, context, whose)
        return points, self.log_prob(points, context)

    def sample(self, noise: Tensor, context: Context, whose: Tensor) -> Tensor:
        """Turn noise into samples of the flows whose numbers `whose` (n, m) has."""
        points = torch.empty_like(noise)
        for number, (flow, own) in enumerate(self._with(context)):
            chosen = whose == number
            counts = chosen.sum(dim=1, keepdim=True)
            most, n_chosen = int(counts.max()), int(counts.sum())
            if n_chosen == chosen.numel():
                return flow.sample(noise, own)
            if not n_chosen:
                continue
            if len(noise) * most > _MOST_IN_VAIN * n_chosen:  # each sample as a row with one
                at = chosen.nonzero().unbind(1)
                of_each = Context(*(part[at[0]] for part in own))
                points[at] = flow.sample(noise[at].unsqueeze(1), of_each).squeeze(1)
            else:  # rows as they are, filled up to the longest with samples of others
                columns = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]
                rows = torch.arange(len(noise), device=noise.device)[:, None].expand_as(columns)
                kept = torch.arange(most, device=noise.device) < counts
                points[rows[kept], columns[kept]] = flow.sample(noise[rows, columns], own)[kept]
        return points

    def _with(self, context: Context) -> Iterator[tuple[ConditionalFlow, Context]]:
        """Each flow with its own context."""
        contexts = (Context(*own) for own in zip(*context, strict=True))
        return zip(self._flows, contexts, strict=True)

    @property
    def _flows(self) -> list[ConditionalFlow]:
        return cast("list[ConditionalFlow]", list(self))


def coupling_masks(n_parameters: int, n_blocks: int) -> list[Tensor]:
    """Tell for each block which parameters it bends (1) and which it reads (0).

    Blocks come in pairs, the second with the two parts swapped. The parts of a pair follow one
    binary digit of the parameters' numbers (Gao et al., "i-flow", arXiv:2001.05486, section III),
    so that any two parameters are in different parts somewhere.
    """
    numbers = torch.arange(n_parameters)
    if n_parameters == 1:
        return [torch.ones(1, dtype=torch.int64)] * n_blocks
    n_digits = (n_parameters - 1).bit_length()
    digits = [(numbers >> (k // 2 % n_digits)) & 1 for k in range(n_blocks)]
    return [1 - digit if k % 2 else digit for k, digit in enumerate(digits)]


class _Coupling(nn.Module):
    """A block that bends some parameters by splines, which depend on the others and the context."""

    def __init__(self, mask: Tensor, n_bins: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        bends = [bool(bent) for bent in mask]
        self.kept = [i for i, bent in enumerate(bends) if not bent]
        self.bent = [i for i, bent in enumerate(bends) if bent]
        self.register_buffer("identity_features", torch.tensor(self.kept, dtype=torch.int64))
        self.register_buffer("transform_features", torch.tensor(self.bent, dtype=torch.int64))
        n_logits = len(self.bent) * (3 * n_bins - 1)
        self.transform_net = _Conditioner(len(self.kept), n_logits, hidden_dims)

    def forward(self, rows: list[Tensor], hidden: Tensor, *, inverse: bool) -> Places:
        """Bend some of the rows (n_points,) of parameters in place, or bend them back."""
        kept = torch.stack([rows[i] for i in self.kept], dim=-2) if self.kept else None
        logits = self.transform_net(kept, hidden, rows[0].shape[-1])
        inputs = torch.stack([rows[i] for i in self.bent], dim=-2)
        outputs, places = spline(
            inputs, logits.unflatten(-2, (len(self.bent), -1)), inverse=inverse
        )
        for i, row in zip(self.bent, outputs.unbind(dim=-2), strict=True):
            rows[i] = row
        return places


class _Conditioner(nn.Module):
    """Spline parameters of a block from the parameters that it reads and from the context."""

    def __init__(self, n_in: int, n_out: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        # A single parameter reads no other, and all its samples share the context's spline.
        self.first = Linear(n_in, hidden_dims[0], bias=False) if n_in else None
        layers: list[nn.Module] = [nn.ReLU()]
        for inside, outside in pairwise(hidden_dims):
            layers += [Linear(inside, outside), nn.ReLU()]
        self.rest = nn.Sequential(*layers, _zeroed(Linear(hidden_dims[-1], n_out)))

    def forward(self, kept: Tensor | None, hidden: Tensor, n_points: int) -> Tensor:
        """Return logits (n_out, n_points) from (n_in, n_points) and the context's (width, n)."""
        n = hidden.shape[-1]
        if self.first is None or kept is None:
            inside = hidden.relu()
        elif n in (1, n_points):
            inside = multiply_add(hidden, self.first.weight, kept).relu_()
        else:
            inside = (self.first.weight @ kept).unflatten(-1, (n, -1)) + hidden.unsqueeze(-1)
            inside = inside.flatten(-2).relu_()
        *layers, last = (layer for layer in self.rest if isinstance(layer, Linear))
        for layer in layers:
            inside = multiply_add(layer.bias.unsqueeze(-1), layer.weight, inside).relu_()
        logits = multiply_add(last.bias.unsqueeze(-1), last.weight, inside, _LOGIT_SCALE)
        if kept is None:
            logits = logits.unsqueeze(-1).expand(*logits.shape, n_points // n).flatten(-2)
        return logits


def _log_jacobian(places: Sequence[Places]) -> Tensor:
    """Sum of the log slopes of all splines, in their forward direction, for each point."""
    return log_slope(Places(*(torch.cat(part, dim=-2) for part in zip(*places, strict=True)))).sum(
        dim=-2
    )


def _log_scale(context: Context) -> Tensor:
    """Logarithm of the determinant of the affine layer, (n, 1)."""
    return context.triangle.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1, keepdim=True)


def _zeroed(layer: Linear) -> Linear:
    """Start a layer at zero, so that what follows starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
