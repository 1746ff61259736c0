"""Ridge regression on summaries, in the shapes of a head, its penalty chosen by leave-one-out.

Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 2nd edition: the fit by a
singular value decomposition (equation 3.47), and the prediction of each row by the fit that never
saw it (equation 7.51).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skatr_sk.heads.mlp import CUT, LOG_SIGMA
from skatr_sk.heads.pooling import MeanPooling

__all__ = ["Ridge"]

_PENALTIES = torch.logspace(-1, 5, 13, dtype=torch.float64)  # for a variance of one
_CONSTANT = 1e-6  # standard deviation below which a pooled summary, standardised before, is noise


class Ridge(nn.Module):
    """Linear map from standardised summaries, or the mean of their tokens, to parameters in [0, 1].

    It gives what :class:`~skatr_sk.heads.mlp.Head` gives: means, and for `gaussian` a log sigma of
    each, the same for all rows. Summaries are cut at three standard deviations, and `bounded` means
    are cut to [0, 1]. In double precision.
    """

    def __init__(self, n_summary: int, n_parameters: int, *, gaussian: bool, bounded: bool) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {"n_summary": n_summary, "n_parameters": n_parameters}
        self.sizes |= {"gaussian": gaussian, "bounded": bounded}
        self.pooling = MeanPooling()
        # Filled by the fit; no weights are drawn.
        self.linear = nn.utils.skip_init(nn.Linear, n_summary, n_parameters, dtype=torch.float64)
        self.log_sigma = nn.Parameter(torch.zeros(n_parameters, dtype=torch.float64))
        self.gaussian, self.bounded = gaussian, bounded
        self.requires_grad_(False)

    def features(self, summaries: Tensor) -> Tensor:
        """Pool summaries and cut them, to (n, n_summary)."""
        pooled: Tensor = self.pooling(summaries)
        return pooled.clamp(-CUT, CUT)

    def solve(self, features: Tensor, targets: Tensor) -> Tensor:
        """Fit to targets (n, n_parameters) in [0, 1], with one penalty for all parameters.

        Returns what the fits without each row predict of it.
        """
        centre, scale = features.mean(dim=0), features.std(dim=0, correction=0)
        scale = torch.where(scale > _CONSTANT, scale, 1.0)
        mean, spread = targets.mean(dim=0), targets.std(dim=0, correction=0)
        wanted = (targets - mean) / torch.where(spread > 0, spread, 1.0)
        left, singular, right = torch.linalg.svd((features - centre) / scale, full_matrices=False)
        projected = left.T @ wanted

        def left_out(penalty: Tensor) -> Tensor:
            """Errors of each row under the fit without it."""
            kept = singular**2 / (singular**2 + penalty)
            leverage = 1 / len(features) + left**2 @ kept
            return (wanted - left @ (kept[:, None] * projected)) / (1 - leverage)[:, None]

        penalty = min(_PENALTIES, key=lambda each: float(left_out(each).square().sum()))
        inverse = singular / (singular**2 + penalty)
        weight = right.T @ (inverse[:, None] * projected) * spread / scale[:, None]
        error = left_out(penalty) * spread
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(mean - centre @ weight)
        self.log_sigma.copy_(error.square().mean(dim=0).sqrt().log().clamp(*LOG_SIGMA))
        return self._within(targets - error)

    def forward(self, summaries: Tensor) -> Tensor:
        """Return means (n, n_parameters), with their log sigmas (n, 2 n_parameters)."""
        mean = self._within(self.linear(self.features(summaries)))
        return torch.cat([mean, self.log_sigma.expand_as(mean)], dim=1) if self.gaussian else mean

    def _within(self, mean: Tensor) -> Tensor:
        return mean.clamp(0, 1) if self.bounded else mean
