"""The conditional normalising flow, built on nflows, which no other module imports.

From the parameters to standard normal noise, in this order: an affine layer, whose shift and lower
triangular matrix come from the summary, and coupling blocks of monotonic rational-quadratic splines
(Durkan et al., "Neural Spline Flows", arXiv:1906.04032). The affine layer alone is a Gaussian
posterior with full covariance. It widens posteriors as narrow as e^-12 of the prior to the range of
the splines, which bend them where they are not Gaussian. At initialisation every layer is the
identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from nflows.transforms.base import CompositeTransform, Transform
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline
from torch import Tensor, nn
from torch.nn import functional

from skatr_sk.heads.pooling import make_pooling

__all__ = [
    "MAX_BINS",
    "Conditioned",
    "ConditionalFlow",
    "Context",
    "FlowEnsemble",
    "coupling_masks",
]

# Splines act between -5 and 5 standard deviations and are the identity beyond.
_TAIL_BOUND = 5.0
_SQUARE = {"left": -_TAIL_BOUND, "right": _TAIL_BOUND, "bottom": -_TAIL_BOUND, "top": _TAIL_BOUND}
_LEAST = 1e-3  # width and height of a bin, in shares of the spline's, and slope at a knot
_SPLINE = {"min_bin_width": _LEAST, "min_bin_height": _LEAST, "min_derivative": _LEAST}
MAX_BINS = 500  # the narrowest bins must leave room for the others
# Unnormalised widths, heights and derivatives stay within it. In exact arithmetic the discriminant
# of nflows' inverse is (d0 (1 - u) - d1 u)^2 + 4 s^2 u (1 - u) >= 0 for knot slopes d0, d1 and a
# mean slope s of the bin; in float32 it needs d / s below about 1e6. This bound keeps it below 1e4.
_MAX_LOGIT = 8.0
# Adam moves every weight alike: this factor lets the splines move slower than the affine layer, and
# bend a Gaussian only where the data ask for it.
_LOGIT_SCALE = 0.05
# Slope one at the knots: the spline of equal bins is then the identity.
_UNIT_SLOPE = math.log(math.expm1(1.0 - _LEAST))
# Bounds of the affine layer: log scales, and slopes of a parameter on those before it.
_LOG_SCALE, _SLOPE = 12.0, 30.0


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
            nn.Linear(n_summary, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.to_hidden = nn.Linear(width, n_blocks * width)
        n_triangle = n_parameters * (n_parameters + 1) // 2
        self.to_affine = _zeroed(nn.Linear(width, n_parameters + n_triangle))
        masks = coupling_masks(n_parameters, n_blocks)
        blocks = [_Coupling(mask, k, n_bins, hidden_dims) for k, mask in enumerate(masks)]
        self.transform = CompositeTransform([_Affine(), *blocks])

    def forward(self, summaries: Tensor) -> Conditioned:
        """Condition the flow on standardised summaries or tokens, as :meth:`context` takes them."""
        return Conditioned(self, self.context(summaries))

    def context(self, summaries: Tensor) -> Context:
        """Compute what the flow needs of (n, n_summary) or (n, n_tokens, n_summary)."""
        embedded = functional.gelu(self.embedding(self.pooling(summaries)))
        hidden = self.to_hidden(embedded).unflatten(1, (self.n_blocks, -1))
        affine = self.to_affine(embedded)
        # From here on in the flow's own precision: densities need float32.
        hidden, affine = hidden.to(self.dtype), affine.to(self.dtype)
        n = self.n_parameters
        shift, entries = affine[:, :n], affine[:, n:]
        rows, columns = torch.tril_indices(n, n, device=affine.device)
        # A positive diagonal times a unit triangle, both bounded smoothly: it allows for strong
        # correlations, and float32 can still invert it.
        scales = (_LOG_SCALE * torch.tanh(entries[:, rows == columns] / _LOG_SCALE)).exp()
        slopes = _SLOPE * torch.tanh(entries / _SLOPE)
        unit = entries.new_zeros(len(entries), n, n)
        unit[:, rows, columns] = torch.where(rows == columns, torch.ones_like(slopes), slopes)
        return Context(hidden, shift, scales.unsqueeze(2) * unit)

    def log_prob(self, points: Tensor, context: Context) -> Tensor:
        """Log densities of shape (n, m) at points of shape (n, m, n_parameters)."""
        noise, log_jacobian = self.transform(points.flatten(0, 1), context)
        return (self._base(noise) + log_jacobian).unflatten(0, points.shape[:2])

    def sample_and_log_prob(self, noise: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Turn normal noise of shape (n, m, n_parameters) into samples and log densities."""
        flat = noise.flatten(0, 1)
        points, log_jacobian = self.transform.inverse(flat, context)
        log_prob = (self._base(flat) - log_jacobian).unflatten(0, noise.shape[:2])
        return points.unflatten(0, noise.shape[:2]), log_prob

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.to_affine.weight.dtype

    @staticmethod
    def _base(noise: Tensor) -> Tensor:
        constant = 0.5 * noise.shape[1] * math.log(2 * math.pi)
        return -0.5 * noise.square().sum(dim=1) - constant


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
        """Turn noise into samples of the flows whose numbers `whose` (n, m) has.

        Their log densities are those of these flows, not of the mean.
        """
        points, log_prob = torch.empty_like(noise), noise.new_empty(noise.shape[:2])
        for number, (flow, own) in enumerate(self._with(context)):
            chosen = whose == number
            if chosen.all():
                return flow.sample_and_log_prob(noise, own)
            if chosen.any():  # each sample as a row with one
                of_each = Context(*(part[chosen.nonzero()[:, 0]] for part in own))
                found = flow.sample_and_log_prob(noise[chosen].unsqueeze(1), of_each)
                points[chosen], log_prob[chosen] = (part.squeeze(1) for part in found)
        return points, log_prob

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


class _Affine(Transform):
    """The affine layer; its matrix and shift come from the context."""

    def forward(self, inputs: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        points = inputs.unflatten(0, (len(context.shift), -1)) - context.shift.unsqueeze(1)
        return (points @ context.triangle.mT).flatten(0, 1), self._log_scale(inputs, context)

    def inverse(self, inputs: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        points = inputs.unflatten(0, (len(context.shift), -1))
        solved = torch.linalg.solve_triangular(context.triangle, points.mT, upper=False).mT
        flat = (solved + context.shift.unsqueeze(1)).flatten(0, 1)
        return flat, -self._log_scale(inputs, context)

    @staticmethod
    def _log_scale(inputs: Tensor, context: Context) -> Tensor:
        log_scale = context.triangle.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        return log_scale.repeat_interleave(len(inputs) // len(log_scale))


class _Coupling(PiecewiseRationalQuadraticCouplingTransform):
    """A block of splines, bounded so that no assertion of nflows fails."""

    def __init__(self, mask: Tensor, number: int, n_bins: int, hidden_dims: Sequence[int]) -> None:
        build = partial(_Conditioner, number=number, hidden_dims=hidden_dims)
        super().__init__(
            mask, build, num_bins=n_bins, tails="linear", tail_bound=_TAIL_BOUND, **_SPLINE
        )

    def _piecewise_cdf(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        bad = torch.isnan(inputs) | ~torch.isfinite(transform_params.detach().sum(dim=-1))
        if bad.any():  # it lies in no bin, and nflows would look beyond the last one
            parameters = transform_params.masked_fill(bad.unsqueeze(-1), 0.0)
            found = self._piecewise_cdf(inputs.masked_fill(bad, 0.0), parameters, inverse)
            return found[0].masked_fill(bad, torch.nan), found[1].masked_fill(bad, torch.nan)
        logits = (_LOGIT_SCALE * transform_params).clamp(-_MAX_LOGIT, _MAX_LOGIT)
        widths, heights, slopes = logits.tensor_split([self.num_bins, 2 * self.num_bins], dim=-1)
        slopes = functional.pad(slopes, (1, 1)) + _UNIT_SLOPE
        # All values go through the spline, those outside clamped to its edge, and these get their
        # own value back in the end: that is cheaper than to select those inside.
        clamped = inputs.clamp(-_TAIL_BOUND, _TAIL_BOUND)
        outputs, log_jacobian = rational_quadratic_spline(
            clamped, widths, heights, slopes, inverse=inverse, **_SQUARE, **_SPLINE
        )
        if inverse and not torch.isfinite(log_jacobian).all():
            # In float32 a root can lie so far outside its bin that the slope there is negative,
            # though the point itself is right: take the slopes of the forward direction.
            log_jacobian = -self._piecewise_cdf(outputs, transform_params)[1]
        inside = inputs.abs() < _TAIL_BOUND
        return torch.where(inside, outputs, inputs), log_jacobian * inside


class _Conditioner(nn.Module):
    """Spline parameters of a block from the parameters that it reads and from the context."""

    def __init__(self, n_in: int, n_out: int, number: int, hidden_dims: Sequence[int]) -> None:
        super().__init__()
        self.number = number
        # A single parameter reads no other, and all its samples share the context's spline.
        self.first = nn.Linear(n_in, hidden_dims[0], bias=False) if n_in else None
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for inside, outside in pairwise(hidden_dims):
            layers += [nn.Linear(inside, outside), nn.ReLU(inplace=True)]
        self.rest = nn.Sequential(*layers, _zeroed(nn.Linear(hidden_dims[-1], n_out)))

    def forward(self, inputs: Tensor, context: Context) -> Tensor:
        hidden = context.hidden[:, self.number].unsqueeze(1)
        if self.first is None:
            n_samples = len(inputs) // len(hidden)
            # A copy, for the activations that follow write into it.
            output: Tensor = self.rest(hidden.clone()).expand(-1, n_samples, -1)
        else:
            output = self.rest(hidden + self.first(inputs).unflatten(0, (len(hidden), -1)))
        return output.flatten(0, 1)


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """Start a layer at zero, so that what follows starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
