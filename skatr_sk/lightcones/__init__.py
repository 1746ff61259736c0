"""Light cones: reading them, scaling them, the symmetries of their sky."""

from skatr_sk.lightcones.handles import close_files
from skatr_sk.lightcones.io import (
    LightconeArray,
    coarsen,
    convert,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.lightcones.scaling import BrightnessScaling, ParameterScaling

__all__ = [
    "BrightnessScaling",
    "LightconeArray",
    "ParameterScaling",
    "close_files",
    "coarsen",
    "convert",
    "load_lightcones",
    "open_lightcones",
    "save_lightcones",
]
