"""Light cones: reading them, scaling them, the symmetries of their sky."""

from skatr_sk.lightcones.io import coarsen, load_lightcones
from skatr_sk.lightcones.scaling import BrightnessScaling, ParameterScaling

__all__ = ["BrightnessScaling", "ParameterScaling", "coarsen", "load_lightcones"]
