"""Plots in scikit-learn's manner: made from estimators, predictions, samples or tables.

A display checks its data and computes what it shows when it is made, and ``plot`` draws it.
matplotlib is imported only then.
"""

from skatr_sk.evaluation.displays.corner import PosteriorDisplay
from skatr_sk.evaluation.displays.coverage import CoverageDisplay
from skatr_sk.evaluation.displays.data_efficiency import DataEfficiencyDisplay
from skatr_sk.evaluation.displays.marginals import MarginalsDisplay
from skatr_sk.evaluation.displays.recovery import RecoveryDisplay

__all__ = [
    "CoverageDisplay",
    "DataEfficiencyDisplay",
    "MarginalsDisplay",
    "PosteriorDisplay",
    "RecoveryDisplay",
]
