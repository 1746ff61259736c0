"""Light cones: reading, checking, writing and simulating them."""

from skatr_sk.lightcones.handles import close_files
from skatr_sk.lightcones.io import (
    LightconeArray,
    coarsen,
    convert,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.lightcones.simulate import SimulatedLightcones, make_lightcones

__all__ = [
    "LightconeArray",
    "SimulatedLightcones",
    "close_files",
    "coarsen",
    "convert",
    "load_lightcones",
    "make_lightcones",
    "open_lightcones",
    "save_lightcones",
]
