"""Light cones: reading, checking and writing them."""

from skatr_sk.grid import Grid
from skatr_sk.lightcones.array import LightconeArray
from skatr_sk.lightcones.blocks import coarsen
from skatr_sk.lightcones.bundled import load_lightcones
from skatr_sk.lightcones.converting import convert_lightcones
from skatr_sk.lightcones.instrument import NoiseTransformer
from skatr_sk.lightcones.labelled import to_xarray
from skatr_sk.lightcones.opening import open_lightcones
from skatr_sk.lightcones.resampler import LightconeResampler
from skatr_sk.lightcones.sources import close_files
from skatr_sk.lightcones.writing import save_lightcones

__all__ = [
    "Grid",
    "LightconeArray",
    "LightconeResampler",
    "NoiseTransformer",
    "close_files",
    "coarsen",
    "convert_lightcones",
    "load_lightcones",
    "open_lightcones",
    "save_lightcones",
    "to_xarray",
]
