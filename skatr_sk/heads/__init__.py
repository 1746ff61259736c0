"""Heads: from summaries to parameters and their posteriors."""

from skatr_sk.heads.posterior import PosteriorEstimator
from skatr_sk.heads.regression import LightconeRegressor
from skatr_sk.heads.saving import load_model, save_model
from skatr_sk.heads.search import HeadSearchCV

__all__ = ["HeadSearchCV", "LightconeRegressor", "PosteriorEstimator", "load_model", "save_model"]
