"""Judge recovered parameters and summaries, and draw them.

:mod:`~skatr_sk.evaluation.metrics` needs numpy only; the displays of
:mod:`~skatr_sk.evaluation.plots` import matplotlib when they draw.
"""

from skatr_sk.evaluation.metrics import (
    ParameterScorer,
    effective_rank,
    mean_absolute_relative_error,
    neg_mean_absolute_relative_error_scorer,
    r2_per_parameter,
)
from skatr_sk.evaluation.plots import RecoveryDisplay

__all__ = [
    "ParameterScorer",
    "RecoveryDisplay",
    "effective_rank",
    "mean_absolute_relative_error",
    "neg_mean_absolute_relative_error_scorer",
    "r2_per_parameter",
]
