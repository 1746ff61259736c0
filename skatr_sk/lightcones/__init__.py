"""Light cones: reading, checking and writing them."""

from skatr_sk.lightcones.handles import close_files
from skatr_sk.lightcones.io import (
    LightconeArray,
    coarsen,
    convert,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)

__all__ = [
    "LightconeArray",
    "close_files",
    "coarsen",
    "convert",
    "load_lightcones",
    "open_lightcones",
    "save_lightcones",
]
