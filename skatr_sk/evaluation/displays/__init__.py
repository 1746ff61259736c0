"""Plots in scikit-learn's manner: made from estimators, predictions, samples or tables.

A display checks its data and computes what it shows when it is made; ``plot`` draws it, and imports
matplotlib then.
"""

__all__: list[str] = []
