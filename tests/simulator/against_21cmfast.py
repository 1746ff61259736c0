"""Figures that compare simulated with real light cones of the same parameters, other seeds."""

import numpy as np
import torch
from scipy.stats import spearmanr

from skatr_sk.simulator.lightcone import Box, brightness_lightcones, node_redshifts

WIDTH = 200.0  # Mpc
K_EDGES = np.array([0.1, 0.14, 0.2, 0.28, 0.4])  # 1/Mpc
FINER_K_EDGES = np.array([0.4, 0.56, 0.7, 0.85])  # that cells of half the size resolve as well
FAINT = 1.0  # mK^2: below this there is no signal to compare


def simulate_like(parameters, shape, seed=0):
    """Full-size cones of given parameters, and the mean neutral fraction of their boxes."""
    cones, neutral = [], []
    box = Box(tuple(shape), WIDTH / shape[0], 5.0, False)
    for i, row in enumerate(parameters):
        noise = np.random.default_rng([seed, i]).standard_normal((1, *box.periodic), np.float32)
        made = brightness_lightcones(torch.from_numpy(row[None]), torch.from_numpy(noise), box)
        cones.append(made.brightness[0].numpy())
        neutral.append(made.x_HI[0].numpy())
    return np.stack(cones), np.stack(neutral)


def power(cones, edges=K_EDGES):
    """Spherical power k^3 P / (2 pi^2) in mK^2, of cubes along the line of sight and bins of k."""
    depth = cones.shape[1]
    cell = WIDTH / depth
    steps = np.meshgrid(*[np.fft.fftfreq(depth)] * 3, indexing="ij")
    k = 2 * np.pi / cell * np.sqrt(sum(step**2 for step in steps))
    middle = np.sqrt(edges[1:] * edges[:-1])
    out = []
    for piece in range(cones.shape[-1] // depth):
        cube = cones[..., piece * depth : (piece + 1) * depth].astype(np.float64)
        cube = cube - cube.mean((1, 2, 3), keepdims=True)
        squared = np.abs(np.fft.fftn(cube, axes=(1, 2, 3))) ** 2 * cell**3 / depth**3
        bins = [
            squared[:, (k >= low) & (k < high)].mean(1)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
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


def compare_signals(cones, real):
    """Figures of the global signal, as a dict of name to value."""
    signal, real_signal = (a.astype(np.float64).mean((1, 2)) for a in (cones, real))
    error = np.abs(signal - real_signal)
    return {
        "global signal, median absolute error [mK]": np.median(error),
        "global signal, mean absolute error [mK]": error.mean(),
        "global signal, 95 % of cones within [mK]": np.quantile(error.mean(1), 0.95),
    }


def compare_power(cones, real, edges=K_EDGES):
    """Figures of the power spectrum where the real one shines."""
    mine, theirs = power(cones, edges), power(real, edges)
    shines = theirs > FAINT
    ratio = mine[shines] / theirs[shines]
    log_ratio = np.log(ratio[ratio > 0])
    return {
        "power, share within a factor 2": np.mean((ratio > 0.5) & (ratio < 2)),
        "power, median ratio": np.median(ratio),
        "power, 16 % of ratios below": np.exp(np.quantile(log_ratio, 0.16)),
        "power, 84 % of ratios below": np.exp(np.quantile(log_ratio, 0.84)),
    }


def compare(cones, neutral, real, real_neutral, redshifts):
    """All figures, as a dict of name to value."""
    nodes = np.array(node_redshifts(5.0))
    signal, real_signal = (a.astype(np.float64).mean((1, 2)) for a in (cones, real))
    figures = compare_signals(cones, real)
    difference = np.abs(neutral - real_neutral)
    figures["neutral fraction, median of largest errors"] = np.median(difference.max(1))
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
    return figures | compare_power(cones, real)
