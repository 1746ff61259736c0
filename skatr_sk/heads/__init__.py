"""Heads: from summaries to parameters."""

from skatr_sk.heads.regression import LightconeRegressor

__all__ = ["LightconeRegressor"]
