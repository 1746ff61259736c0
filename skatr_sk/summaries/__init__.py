"""Patches to tokens, pre-training without labels, and the frozen summaries of light cones."""

from skatr_sk._checks import CollapseWarning
from skatr_sk.summaries.cache import CacheInfo, cache_info, clear_cache, limit_cache_memory
from skatr_sk.summaries.masking import BlockMask
from skatr_sk.summaries.objectives import JEPA, Combined, LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.summaries.power_spectrum import PowerSpectrumTransformer
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.transformer import SKATRTransformer

__all__ = [
    "JEPA",
    "BlockMask",
    "BrightnessScaling",
    "CacheInfo",
    "CollapseWarning",
    "Combined",
    "LeJEPA",
    "PowerSpectrumTransformer",
    "Reconstruction",
    "SKATRTransformer",
    "Supervised",
    "VICReg",
    "cache_info",
    "clear_cache",
    "limit_cache_memory",
]
