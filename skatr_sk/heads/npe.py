r"""Loss of neural posterior estimation: likelihood, and calibration of the coverage.

The loss of a posterior q of parameters y given a summary s(x) is

.. math:: L = -\langle \log q(y | s(x)) \rangle + \lambda \, C

with the likelihood of Ore, Heneka, Plehn, arXiv:2410.18899, section 5, and a penalty C on a wrong
coverage by Falkiewicz et al., "Calibrating Neural Simulation-Based Inference with Differentiable
Coverage Probability", arXiv:2310.13402, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skatr_sk.heads.flow import Conditioned

__all__ = ["CALIBRATIONS", "NPELoss", "coverage_penalty"]

CALIBRATIONS = ("conservative", "symmetric")
_N_SAMPLES = 16  # per light cone, to estimate the coverage of its truth
_SOFTNESS = 1.0  # nats over which the gradient of a comparison of log densities spreads


class NPELoss(nn.Module):
    """Mean negative log density of the truth, and a weight times :func:`coverage_penalty`.

    Without a weight it is plain maximum likelihood, and the penalty costs nothing.
    """

    def __init__(self, calibration_weight: float = 0.0, calibration: str = "conservative") -> None:
        super().__init__()
        self.calibration_weight = calibration_weight
        self.calibration = calibration
        # What several networks have in common that can be trained at once; the penalty draws.
        self.kind = None if calibration_weight else "likelihood"

    def forward(self, output: Conditioned, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of a batch; `target` has shape (n, n_parameters), `weights` (n,)."""
        log_truth = output.flow.log_prob(target.unsqueeze(-2), output.context)
        counted = log_truth if weights is None else weights.unsqueeze(-1) * log_truth
        loss = -counted.mean(dim=(-2, -1))
        if not self.calibration_weight:
            return loss
        shape = (len(target), _N_SAMPLES, target.shape[1])
        if self.training:
            noise = torch.randn(shape, device=target.device)
        else:
            # The same noise in every epoch: else the choice of the best one would be chance.
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(shape, generator=generator).to(target.device)
        # Gradients flow through the points as well: they move with the density.
        _, log_samples = output.flow.sample_and_log_prob(noise, output.context)
        penalty = coverage_penalty(log_truth, log_samples, self.calibration, weights)
        return loss + self.calibration_weight * penalty


def coverage_penalty(
    log_truth: Tensor, log_samples: Tensor, calibration: str, weights: Tensor | None = None
) -> Tensor:
    """Squared distance of the truths' credible levels from calibrated ones, in [0, 1].

    The level of a truth is the share of the density's own samples that lie at a higher density:
    the smallest highest-density region that holds the truth. Calibrated levels are uniform. The
    penalty compares the sorted levels of a batch with the uniform quantiles; "conservative"
    penalises only levels that are too high (a density too narrow). Where comparisons have no
    gradient, that of a sigmoid is taken (a straight-through estimator). Log densities of truths
    have the shape (n, 1), of samples (n, n_samples). A row counts as often as its weight says.
    """
    difference = log_samples - log_truth
    soft = torch.sigmoid(difference / _SOFTNESS)
    hard = (difference > 0).to(soft.dtype)
    levels, order = (hard + soft - soft.detach()).mean(dim=1).sort()
    share = torch.ones_like(levels) if weights is None else weights.to(levels.dtype)[order]
    share = share / share.sum()
    excess = levels - (share.cumsum(dim=0) - share / 2)
    if calibration == "conservative":
        excess = excess.clamp(min=0)
    return (share * excess.square()).sum()
