"""Universes and arguments for the tests of the simulator's physics."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from skatr_sk.simulator.cosmology import Cosmology

ROOT = Path(__file__).resolve().parents[2]
# The 229 light cones of 21cmFAST that the bundled ones were made of.
FULL_SIZE = Path(
    os.environ.get("SKATR_SK_LIGHTCONES", ROOT.parent / "shared" / "data" / "lightcones_lr.h5")
)
# 13 of cells half as wide.
FINE = Path(
    os.environ.get(
        "SKATR_SK_LIGHTCONES_FINE", ROOT.parent / "shared" / "data" / "lightcones_hr56.h5"
    )
)
COLD = 1e5  # keV
FIDUCIAL = np.array([[COLD, 0.31, 500, 40.0, 4.7, 30]])


def cosmology(omega_m=0.31, m_wdm=math.inf):
    return Cosmology(torch.tensor([omega_m]), torch.tensor([m_wdm]))


def at(*values):
    """An argument of one universe."""
    return torch.tensor([values], dtype=torch.float64)
