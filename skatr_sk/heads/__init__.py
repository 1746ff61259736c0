"""Heads: from summaries to parameters and their posteriors."""

from skatr_sk.heads.posterior import PosteriorEstimator
from skatr_sk.heads.regression import LightconeRegressor

__all__ = ["LightconeRegressor", "PosteriorEstimator"]
