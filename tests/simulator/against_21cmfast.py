"""Figures that compare simulated with real light cones of the same parameters, other seeds."""

import numpy as np
import torch
from scipy.stats import spearmanr

from skatr_sk.simulator.lightcone import Box, brightness_lightcones, node_redshifts

CELL = 200 / 28
K_EDGES = np.array([0.1, 0.14, 0.2, 0.28, 0.4])  # 1/Mpc
DEPTH = 28  # cells of a piece of the line of sight: a cube
FAINT = 1.0  # mK^2: below this there is no signal to compare


def simulate_like(parameters, seed=0):
    """Full-size cones of given parameters, and the mean neutral fraction of their boxes."""
    cones, neutral = [], []
    box = Box((28, 28, 470), CELL, 5.0, False)
    for i, row in enumerate(parameters):
        noise = np.random.default_rng([seed, i]).standard_normal((1, 28, 28, 28), np.float32)
        made = brightness_lightcones(torch.from_numpy(row[None]), torch.from_numpy(noise), box)
        cones.append(made.brightness[0].numpy())
        neutral.append(made.x_HI[0].numpy())
    return np.stack(cones), np.stack(neutral)


def power(cones):
    """Spherical power k^3 P / (2 pi^2) in mK^2, of pieces of the line of sight and bins of k."""
    steps = np.meshgrid(*[np.fft.fftfreq(DEPTH)] * 3, indexing="ij")
    k = 2 * np.pi / CELL * np.sqrt(sum(step**2 for step in steps))
    middle = np.sqrt(K_EDGES[1:] * K_EDGES[:-1])
    out = []
    for piece in range(cones.shape[-1] // DEPTH):
        cube = cones[..., piece * DEPTH : (piece + 1) * DEPTH].astype(np.float64)
        cube = cube - cube.mean((1, 2, 3), keepdims=True)
        squared = np.abs(np.fft.fftn(cube, axes=(1, 2, 3))) ** 2 * CELL**3 / DEPTH**3
        bins = [
            squared[:, (k >= low) & (k < high)].mean(1)
            for low, high in zip(K_EDGES[:-1], K_EDGES[1:], strict=True)
        ]
        out.append(np.stack(bins, -1) * middle**3 / (2 * np.pi**2))
    return np.stack(out, axis=1)


def deepest(signal, z):
    """Redshift of the deepest absorption."""
    return z[np.arange(len(z)), signal.argmin(1)]


def zero_crossing(signal, z):
    """Where absorption turns to emission, for cones that get above 0.5 mK; else NaN."""
    out = np.full(len(z), np.nan)
    for i, (values, at) in enumerate(zip(signal, z, strict=True)):
        later = values[: values.argmin()]  # nearest first
        bright = np.flatnonzero(later > 0)
        if len(bright) and later.max() > 0.5:
            j = bright[-1]
            share = values[j] / (values[j] - values[j + 1])
            out[i] = at[j] + share * (at[j + 1] - at[j])
    return out


def half_ionised(neutral, nodes):
    """Redshift where half of the gas is neutral; NaN where that is not reached."""
    out = np.full(len(neutral), np.nan)
    for i, values in enumerate(neutral):
        below = np.flatnonzero(values < 0.5)
        if len(below) and below[0] > 0:
            j = below[0]
            share = (values[j - 1] - 0.5) / (values[j - 1] - values[j])
            out[i] = nodes[j - 1] + share * (nodes[j] - nodes[j - 1])
    return out


def compare(cones, neutral, real, real_neutral, redshifts):
    """All figures, as a dict of name to value."""
    nodes = np.array(node_redshifts(5.0))
    signal, real_signal = (a.astype(np.float64).mean((1, 2)) for a in (cones, real))
    error = np.abs(signal - real_signal)
    figures = {
        "global signal, median absolute error [mK]": np.median(error),
        "global signal, mean absolute error [mK]": error.mean(),
        "global signal, 95 % of cones within [mK]": np.quantile(error.mean(1), 0.95),
        "neutral fraction, median of largest errors": np.median(
            np.abs(neutral - real_neutral).max(1)
        ),
    }
    for name, of, (mine, theirs) in (
        ("deepest absorption", lambda s: deepest(s, redshifts), (signal, real_signal)),
        ("zero crossing", lambda s: zero_crossing(s, redshifts), (signal, real_signal)),
        ("half ionisation", lambda n: half_ionised(n, nodes), (neutral, real_neutral)),
    ):
        a, b = of(mine), of(theirs)
        both = np.isfinite(a) & np.isfinite(b)
        figures[f"{name}, rank correlation ({both.sum()} cones)"] = spearmanr(a[both], b[both])[0]
        figures[f"{name}, median error in redshift"] = np.median(np.abs(a - b)[both])
        figures[f"{name}, cones with it in one only"] = (np.isfinite(a) ^ np.isfinite(b)).sum()
    mine, theirs = power(cones), power(real)
    shines = theirs > FAINT
    ratio = mine[shines] / theirs[shines]
    figures["power, share within a factor 2"] = np.mean((ratio > 0.5) & (ratio < 2))
    figures["power, median ratio"] = np.median(ratio)
    log_ratio = np.log(ratio[ratio > 0])
    figures["power, 16 % of ratios below"] = np.exp(np.quantile(log_ratio, 0.16))
    figures["power, 84 % of ratios below"] = np.exp(np.quantile(log_ratio, 0.84))
    return figures
