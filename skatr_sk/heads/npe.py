"""Neural posterior estimation: the network, its likelihood, and the calibration of its coverage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skatr_sk.heads.flow import ConditionalFlow, Context

__all__ = ["CALIBRATIONS", "Conditioned", "NPELoss", "PosteriorNet", "coverage_penalty"]

CALIBRATIONS = ("conservative", "symmetric")
_N_SAMPLES = 16  # per light cone, to estimate the coverage of its truth
_SOFTNESS = 1.0  # nats over which the gradient of a comparison of log densities spreads


@dataclass(frozen=True)
class Conditioned:
    """A flow given the summaries of a batch: what a forward pass returns and the loss takes.

    The likelihood is computed by the loss, which runs outside autocast: the flow stays in float32.
    """

    flow: ConditionalFlow
    context: Context


class PosteriorNet(nn.Module):
    """Pooling and conditional flow: from standardised summaries to a density of parameters.

    Parameters
    ----------
    pooling : torch.nn.Module
        Of token summaries, as :func:`~skatr_sk.heads.pooling.make_pooling` builds it.
    flow : ConditionalFlow

    Examples
    --------
    >>> import torch
    >>> from skatr_sk.heads.pooling import make_pooling
    >>> flow = ConditionalFlow(2, 8, n_blocks=2, n_bins=4, hidden_dims=(16,), dropout=0.0)
    >>> net = PosteriorNet(make_pooling("mean", 8), flow)
    >>> NPELoss()(net(torch.zeros(3, 8)), torch.zeros(3, 2))  # log 2 pi: a standard normal density
    tensor(1.8379, grad_fn=<NegBackward0>)
    """

    def __init__(self, pooling: nn.Module, flow: ConditionalFlow) -> None:
        super().__init__()
        self.pooling = pooling
        self.flow = flow

    def forward(self, summaries: Tensor) -> Conditioned:
        """Condition the flow on summaries of shape (n, n_summary) or (n, n_tokens, n_summary)."""
        return Conditioned(self.flow, self.flow.context(self.pooling(summaries)))


class NPELoss(nn.Module):
    r"""Mean negative log density of the truth, and a penalty on a wrong coverage.

    .. math:: L = -\langle \log q(y | s(x)) \rangle + \lambda \, C

    Parameters
    ----------
    calibration_weight : float
        :math:`\lambda`; 0 is plain maximum likelihood and costs nothing.
    calibration : {"conservative", "symmetric"}
        See :func:`coverage_penalty`.
    """

    def __init__(self, calibration_weight: float = 0.0, calibration: str = "conservative") -> None:
        super().__init__()
        self.calibration_weight = calibration_weight
        self.calibration = calibration

    def forward(self, output: Conditioned, target: Tensor) -> Tensor:
        """Return the loss of a batch; `target` has shape (n, n_parameters)."""
        flow, context = output.flow, output.context
        log_truth = flow.log_prob(target.unsqueeze(1), context)
        loss = -log_truth.mean()
        if self.calibration_weight:
            log_samples = self._log_samples(flow, context, target)
            penalty = coverage_penalty(log_truth, log_samples, self.calibration)
            loss = loss + self.calibration_weight * penalty
        return loss

    def _log_samples(self, flow: ConditionalFlow, context: Context, target: Tensor) -> Tensor:
        shape = (len(target), _N_SAMPLES, target.shape[1])
        if self.training:
            noise = torch.randn(shape, device=target.device)
        else:
            # The same noise in every epoch: else the choice of the best one would be chance.
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(shape, generator=generator).to(target.device)
        # Gradients flow through the points as well: they move with the density.
        return flow.sample_and_log_prob(noise, context)[1]


def coverage_penalty(log_truth: Tensor, log_samples: Tensor, calibration: str) -> Tensor:
    r"""Squared distance of the credible levels of the truth from those of a calibrated density.

    The level of a truth is the share of the density's own samples that lie at a higher density:
    the smallest highest-density region that holds the truth. Calibrated levels are uniform. The
    penalty compares the sorted levels of a batch with the uniform quantiles. Where comparisons
    have no gradient, that of a sigmoid is taken (a straight-through estimator).

    Parameters
    ----------
    log_truth : Tensor of shape (n, 1)
    log_samples : Tensor of shape (n, n_samples)
    calibration : {"conservative", "symmetric"}
        "conservative" penalises levels that are too high (a density too narrow) only.

    Returns
    -------
    Tensor
        A scalar in [0, 1].

    References
    ----------
    .. [1] Falkiewicz et al., "Calibrating Neural Simulation-Based Inference with Differentiable
       Coverage Probability", arXiv:2310.13402, section 3.

    Examples
    --------
    >>> import torch
    >>> truth, samples = torch.full((4, 1), -9.0), torch.zeros(4, 10)  # truths in the far tail
    >>> coverage_penalty(truth, samples, "conservative")
    tensor(0.3281)
    """
    difference = log_samples - log_truth
    soft = torch.sigmoid(difference / _SOFTNESS)
    hard = (difference > 0).to(soft.dtype)
    levels = (hard + soft - soft.detach()).mean(dim=1).sort().values
    n = len(levels)
    uniform = (torch.arange(n, device=levels.device, dtype=levels.dtype) + 0.5) / n
    excess = levels - uniform
    if calibration == "conservative":
        excess = excess.clamp(min=0)
    return excess.square().mean()
