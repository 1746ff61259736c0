"""Light cones: reading, simulating and scaling them, the symmetries of their sky."""

from skatr_sk.lightcones.io import coarsen, load_lightcones
from skatr_sk.lightcones.scaling import BrightnessScaling, ParameterScaling
from skatr_sk.lightcones.simulate import SimulatedLightcones, make_lightcones

__all__ = [
    "BrightnessScaling",
    "ParameterScaling",
    "SimulatedLightcones",
    "coarsen",
    "load_lightcones",
    "make_lightcones",
]
