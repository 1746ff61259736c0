"""Heads: from summaries to parameters and their posteriors."""

from skatr_sk.heads.posterior import PosteriorEstimator
from skatr_sk.heads.regression import LightconeRegressor
from skatr_sk.heads.saving import load_model, save_model

__all__ = ["LightconeRegressor", "PosteriorEstimator", "load_model", "save_model"]
