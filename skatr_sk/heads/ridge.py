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


class _Filled(nn.Linear):
    """Filled by the fit: no weights are drawn. `skip_init` would import sympy for a second."""

    def reset_parameters(self) -> None:
        pass


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
        self.linear = _Filled(n_summary, n_parameters, device="cpu", dtype=torch.float64)
        self.log_sigma = nn.Parameter(torch.zeros(n_parameters, dtype=torch.float64))
        self.gaussian, self.bounded = gaussian, bounded
        self.requires_grad_(False)

    def features(self, summaries: Tensor) -> Tensor:
        """Pool summaries and cut them, to (n, n_summary)."""
        pooled: Tensor = self.pooling(summaries)
        return pooled.clamp(-CUT, CUT)

    def solve(self, features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Fit to targets (n, n_parameters) in [0, 1], with one penalty for all parameters.

        Squares count by `weights` (n,) of mean one, where these are given. Returns what the fits
        without each row predict of it.
        """
        weights = torch.ones(len(features), 1).to(features) if weights is None else weights[:, None]
        root, (centre, scale) = weights.sqrt(), _moments(features, weights)
        mean, spread = _moments(targets, weights)
        scale = torch.where(scale > _CONSTANT, scale, 1.0)
        wanted = root * (targets - mean) / torch.where(spread > 0, spread, 1.0)
        design = root * (features - centre) / scale
        left, singular, right = torch.linalg.svd(design, full_matrices=False)
        projected = left.T @ wanted

        def left_out(penalty: Tensor) -> Tensor:
            """Errors of each row under the fit without it, times the root of its weight."""
            kept = singular**2 / (singular**2 + penalty)
            leverage = weights[:, 0] / len(features) + left**2 @ kept
            return (wanted - left @ (kept[:, None] * projected)) / (1 - leverage)[:, None]

        penalty = min(_PENALTIES, key=lambda each: float(left_out(each).square().sum()))
        inverse = singular / (singular**2 + penalty)
        weight = right.T @ (inverse[:, None] * projected) * spread / scale[:, None]
        error = left_out(penalty) * spread
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(mean - centre @ weight)
        self.log_sigma.copy_(error.square().mean(dim=0).sqrt().log().clamp(*LOG_SIGMA))
        return self._within(targets - error / root)

    def means(self, features: Tensor) -> Tensor:
        """Predict means from what :meth:`features` gives."""
        return self._within(self.linear(features))

    def forward(self, summaries: Tensor) -> Tensor:
        """Return means (n, n_parameters), with their log sigmas (n, 2 n_parameters)."""
        mean = self.means(self.features(summaries))
        return torch.cat([mean, self.log_sigma.expand_as(mean)], dim=1) if self.gaussian else mean

    def _within(self, mean: Tensor) -> Tensor:
        return mean.clamp(0, 1) if self.bounded else mean


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, of rows with weights (n, 1) of mean one."""
    mean = (weights * values).mean(dim=0)
    return mean, (weights * (values - mean).square()).mean(dim=0).sqrt()
