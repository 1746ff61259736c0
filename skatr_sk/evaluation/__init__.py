"""Judge recovered parameters, posteriors and summaries, and draw them.

:mod:`~skatr_sk.evaluation.metrics`, :mod:`~skatr_sk.evaluation.calibration`,
:mod:`~skatr_sk.evaluation.coverage` and :mod:`~skatr_sk.evaluation.data_efficiency` compute;
:mod:`~skatr_sk.evaluation.displays` draws, and imports matplotlib when it does.
"""

from skatr_sk.evaluation.calibration import (
    highest_density_levels,
    posterior_draws,
    rank_levels,
    sbc_ranks,
    tarp_levels,
)
from skatr_sk.evaluation.coverage import Coverage, coverage_band, expected_coverage
from skatr_sk.evaluation.cross_validation import cross_val_draws
from skatr_sk.evaluation.data_efficiency import data_efficiency_curve
from skatr_sk.evaluation.displays.corner import PosteriorDisplay
from skatr_sk.evaluation.displays.coverage import CoverageDisplay
from skatr_sk.evaluation.displays.data_efficiency import DataEfficiencyDisplay
from skatr_sk.evaluation.displays.lightcone import LightconeDisplay
from skatr_sk.evaluation.displays.marginals import MarginalsDisplay
from skatr_sk.evaluation.displays.recovery import RecoveryDisplay
from skatr_sk.evaluation.displays.summary import SummaryDisplay
from skatr_sk.evaluation.metrics import (
    ParameterScorer,
    effective_rank,
    mean_absolute_relative_error,
    neg_mean_absolute_relative_error_scorer,
    parameter_scores,
    r2_per_parameter,
)

__all__ = [
    "Coverage",
    "CoverageDisplay",
    "DataEfficiencyDisplay",
    "LightconeDisplay",
    "MarginalsDisplay",
    "ParameterScorer",
    "PosteriorDisplay",
    "RecoveryDisplay",
    "SummaryDisplay",
    "coverage_band",
    "cross_val_draws",
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
