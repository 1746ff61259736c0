"""Thermal noise of an array like SKA-Low, and the wedge of its foregrounds, by redshift.

The embedded noise is a plain radiometer formula; its numbers stand with their sources below. It is
good for the size of the noise and its growth with redshift. What depends on the layout of the
stations, such as the growth towards small scales, comes from tools21cm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from skatr_sk._checks import require
from skatr_sk.simulator.cosmology import HUBBLE, OMEGA_M, Background, comoving_distances

__all__ = ["bandwidths", "horizon_slopes", "noise_of_tools21cm", "radiometer_noise", "sensitivity"]

_LINE = 1420.405751768  # MHz, of neutral hydrogen at rest
_LIGHT = 299.792458  # m MHz
_HUBBLE_DISTANCE = 1e3 * _LIGHT / (100 * HUBBLE)  # Mpc
_POLARISATIONS = 2
# Sky: 60 K at 1 m of wavelength, steep as the synchrotron radiation of our galaxy; receiver: 40 K
# and a tenth of the sky (Dewdney et al., SKA1 system baseline design, SKA-TEL-SKO-DD-001, 2013; so
# used by Pober et al., arXiv:1310.7031, and Greig and Mesinger, arXiv:1501.06576).
_SKY, _SPECTRAL_INDEX = 60.0, 2.55
_RECEIVER, _OF_SKY = 40.0, 0.1
# A station has 256 antennas within 38 m; below 110 MHz these are dense and all of that area
# collects, above their effective area falls with the wavelength squared (Koopmans et al., "The
# Cosmic Dawn and Epoch of Reionization with SKA", arXiv:1505.07568; 38 m: arXiv:1912.12699).
_DIAMETER, _DENSE_BELOW = 38.0, 110.0  # m, MHz
# 224 of the 512 stations are in a core of 1 km (arXiv:1912.12699). Spread evenly over it, and
# without the others, they have as many baselines of 0.1 to 1 km as the layout "AA4" within 40 %,
# and half of its baselines up to 3 km.
_STATIONS, _CORE = 224, 1000.0  # m
# Of tools21cm: redshifts at which the array is laid out over a track, whose step is in seconds.
_LAYOUTS, _STEP, _HOURS_A_DAY = 6, 120.0, 6.0


def _wavelength(redshifts: np.ndarray) -> np.ndarray:
    return _LIGHT * (1 + redshifts) / _LINE  # m


def sensitivity(redshifts: np.ndarray) -> np.ndarray:
    """Effective area over system temperature of one station, m^2 / K."""
    wavelength = _wavelength(redshifts)
    sky = _SKY * wavelength**_SPECTRAL_INDEX
    area = np.pi / 4 * _DIAMETER**2 * np.minimum(1, wavelength * _DENSE_BELOW / _LIGHT) ** 2
    return area / (sky + _OF_SKY * sky + _RECEIVER)


def bandwidths(redshifts: np.ndarray) -> np.ndarray:
    """Bandwidth of each slice in MHz: from half-way to its neighbours."""
    return np.abs(np.gradient(_LINE / (1 + redshifts)))


def _share_of_baselines(length: np.ndarray) -> np.ndarray:
    """Share of the pairs of points in a disc that are nearer than a share of its diameter."""
    x = np.minimum(length, 1.0)
    rest = 2 * np.arcsin(x) - 2 * x * np.sqrt(1 - x**2) * (1 + 2 * x**2)
    return (8 * x**2 * np.arccos(x) + rest) / np.pi


def _distances(redshifts: np.ndarray) -> np.ndarray:
    return comoving_distances(redshifts[None], [OMEGA_M])[0]


def radiometer_noise(redshifts: np.ndarray, cell_size: Sequence[float], hours: float) -> np.ndarray:
    """Standard deviation of the noise in a cell of each slice, (n_z,), in mK.

    ``T_sys lambda^2 / (A_eff Omega sqrt(2 n_pol B t N))``, that of the image of all baselines which
    the cells resolve, evenly spread over the uv plane (compare Furlanetto, Oh and Briggs,
    astro-ph/0608032, section 9.2): `Omega` is the solid angle of a cell of `cell_size` (Mpc), `B`
    the bandwidth of its slice, `t` the `hours` of integration, and `N` the baselines within the
    square of the uv plane that such cells sample. The noise of cells is independent.
    """
    wavelength = _wavelength(redshifts)
    omega = cell_size[0] * cell_size[1] / _distances(redshifts) ** 2
    longest = wavelength / np.sqrt(np.pi * omega)  # the disc of the area of the square
    pairs = _STATIONS * (_STATIONS - 1) / 2 * _share_of_baselines(longest / _CORE)
    samples = bandwidths(redshifts) * 1e6 * hours * 3600
    noise = wavelength**2 / (sensitivity(redshifts) * omega)
    return 1e3 * noise / np.sqrt(2 * _POLARISATIONS * samples * pairs)


def horizon_slopes(redshifts: np.ndarray) -> np.ndarray:
    """Slope k_par / k_perp of the horizon, below which lie foregrounds: H D / (c (1 + z)).

    Parsons et al., arXiv:1204.4749; with D the comoving distance.
    """
    redshifts = np.asarray(redshifts, dtype=np.float64)
    z = torch.from_numpy(redshifts)[None]
    expansion = Background(torch.tensor([OMEGA_M])).expansion(z)[0].numpy()
    return _distances(redshifts) * expansion / (_HUBBLE_DISTANCE * (1 + redshifts))


def noise_of_tools21cm(
    redshifts: np.ndarray, shape: Sequence[int], cell_size: Sequence[float], hours: float
) -> np.ndarray:
    """Standard deviation of each mode of the sky, (n, n, n_z), as a white noise in mK would have.

    By tools21cm from the layout "AA4" of SKA-Low (Giri, Mellema and Jensen, JOSS 5(52), 2363),
    which is laid out at some redshifts; between them baselines are interpolated. Modes are those of
    :func:`numpy.fft.fft2`, and such without a baseline have no noise.
    """
    tools = require("tools21cm", "NoiseTransformer(noise='tools21cm')", "noise")
    n, box = shape[0], shape[0] * cell_size[0]
    some = np.linspace(redshifts[0], redshifts[-1], min(_LAYOUTS, len(redshifts)))
    options = dict(boxsize=box, total_int_time=_HOURS_A_DAY, int_time=_STEP, verbose=False)
    laid = [tools.get_uv_map(n, float(z), **options) for z in some]
    maps = np.stack([counts for counts, _ in laid])
    level = np.empty((n, n, len(redshifts)))
    for i, (z, width) in enumerate(zip(redshifts, bandwidths(redshifts), strict=True)):
        counts = _between(float(z), some, maps)
        # Of one visibility, in micro-Jansky; then of the mean of all in a cell of the uv plane.
        _, one = tools.sigma_noise_radio(
            float(z), float(width), hours, _STEP, N_ant=laid[0][1], verbose=False
        )
        mode = np.where(counts > 0, one / np.sqrt(np.where(counts > 0, counts, 1)), 0)
        mode = mode * np.sqrt(_STEP / 3600 / hours)
        # Its images have the variance sum(mode^2) / n^4, and ours have mean(level^2).
        level[..., i] = tools.jansky_2_kelvin(mode / n, float(z), boxsize=box, ncells=n)
    return level


def _between(z: float, some: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Interpolate maps at some redshifts linearly to another."""
    place = float(np.interp(z, some, np.arange(len(some))))
    low = min(int(place), max(len(some) - 2, 0))
    high = min(low + 1, len(some) - 1)
    mixed: np.ndarray = maps[low] + (place - low) * (maps[high] - maps[low])
    return mixed
