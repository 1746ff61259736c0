"""Judge recovered parameters, posteriors and summaries, and draw them.

:mod:`~skatr_sk.evaluation.metrics`, :mod:`~skatr_sk.evaluation.calibration` and
:mod:`~skatr_sk.evaluation.coverage` need numpy, scipy and tqdm only; the displays of
:mod:`~skatr_sk.evaluation.plots`, :mod:`~skatr_sk.evaluation.posterior_plots`,
:mod:`~skatr_sk.evaluation.marginal_plots`, :mod:`~skatr_sk.evaluation.coverage_plots` and
:mod:`~skatr_sk.evaluation.data_efficiency_plots` import matplotlib when they draw.
"""

from skatr_sk.evaluation.calibration import (
    highest_density_levels,
    posterior_draws,
    rank_levels,
    sbc_ranks,
    tarp_levels,
)
from skatr_sk.evaluation.coverage import Coverage, coverage_band, expected_coverage
from skatr_sk.evaluation.coverage_plots import CoverageDisplay
from skatr_sk.evaluation.data_efficiency import data_efficiency_curve, parameter_scores
from skatr_sk.evaluation.data_efficiency_plots import DataEfficiencyDisplay
from skatr_sk.evaluation.marginal_plots import MarginalsDisplay
from skatr_sk.evaluation.metrics import (
    ParameterScorer,
    effective_rank,
    mean_absolute_relative_error,
    neg_mean_absolute_relative_error_scorer,
    r2_per_parameter,
)
from skatr_sk.evaluation.plots import RecoveryDisplay
from skatr_sk.evaluation.posterior_plots import PosteriorDisplay

__all__ = [
    "Coverage",
    "CoverageDisplay",
    "DataEfficiencyDisplay",
    "MarginalsDisplay",
    "ParameterScorer",
    "PosteriorDisplay",
    "RecoveryDisplay",
    "coverage_band",
    "data_efficiency_curve",
    "effective_rank",
    "expected_coverage",
    "highest_density_levels",
    "mean_absolute_relative_error",
    "neg_mean_absolute_relative_error_scorer",
    "parameter_scores",
    "posterior_draws",
    "r2_per_parameter",
    "rank_levels",
    "sbc_ranks",
    "tarp_levels",
]
