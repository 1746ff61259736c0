"""The line of sight: whether light cones lie on one grid, and on which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skatr_sk.grid import Grid
from skatr_sk.lightcones.formats import FileMetadata
from skatr_sk.simulator.cosmology import HUBBLE, OMEGA_M, comoving_distances

__all__ = ["compare_grids", "cosmology_of", "grid_of", "is_short"]

_TOLERANCE = 0.01  # of redshifts
_SHORT = 0.9  # of the usual number of slices, and
_NEARER = 0.95  # of 1 + the usual last redshift: shorter by more than cosmology makes it
_EXPLAINED = 0.02  # of the line of sight: cells of one size, in the cosmology of each
_STRETCHED = 0.1  # no cells of one size, where the cosmology explains those of most
_STRETCHED_AT_ALL = 0.6  # in no cosmology, Omega_m differing by a factor of 2.5
_COMPARED = 64  # slices


def grid_of(
    files: Sequence[FileMetadata],
    redshifts: np.ndarray | None,
    cosmology: tuple[np.ndarray, np.ndarray],
) -> Grid | None:
    """Grid of the light cones of all files; None where nothing is known.

    `redshifts` (n, n_z) are those of all rows and `cosmology` what :func:`cosmology_of` returns.
    Where no file says of which size slices are, their redshifts and the cosmology do.
    """
    rank = len(files[0].source.field_shape)
    said = [file.cell_size for file in files if file.cell_size is not None]
    sizes = [next((each[k] for each in said if each[k] is not None), None) for k in range(rank)]
    begins = {file.begins for file in files}
    origin, start = (begins.pop() if len(begins) == 1 else None) or (None, 0.0)
    if redshifts is None:
        typical = files[0].typical if all(file.typical for file in files) else None
        if typical is not None:  # those of one file are as good: they begin together
            origin, start = files[0].begins or (None, 0.0)
        known_at_all = any(sizes) or origin or typical
        return Grid(tuple(sizes), typical, origin, start) if known_at_all else None
    if redshifts.shape[1] > 1 and sizes[-1] is None:
        sizes[-1] = _slice_size(redshifts, *cosmology)
    middle = np.median(redshifts, axis=0)
    if not (np.isfinite(middle).all() and (np.diff(middle) > 0).all() and middle[0] >= 0):
        return Grid(tuple(sizes))  # the rows are faults
    return Grid(tuple(sizes), tuple(middle.tolist()), origin, start)


def _slice_size(z: np.ndarray, omega_m: np.ndarray, hubble: np.ndarray) -> float | None:
    """Comoving size of slices in Mpc; None where it is not known, or slices are not of one."""
    known = np.isfinite(omega_m) & (omega_m > 0) & np.isfinite(hubble) & (hubble > 0)
    known &= (
        np.isfinite(z).all(axis=1) & (z >= 0).all(axis=1) & (np.diff(z, axis=1) > 0).all(axis=1)
    )
    if not known.any():
        return None
    distances = comoving_distances(z[known], omega_m[known], hubble[known])
    lengths = distances[:, -1] - distances[:, 0]
    even = np.linspace(distances[:, 0], distances[:, -1], z.shape[1], axis=1)
    spread = np.abs(distances - even).max(axis=1) / lengths
    if np.median(spread) > _EXPLAINED or np.ptp(lengths) > _EXPLAINED * np.median(lengths):
        return None
    return float(np.median(lengths)) / (z.shape[1] - 1)


def is_short(files: Sequence[FileMetadata]) -> np.ndarray:
    """Say which files end before the others: fewer slices, and a last redshift that is nearer.

    A line of sight to one redshift has fewer cells where Omega_m is larger, which is no fault. The
    files must have redshifts.
    """
    lengths = np.array([file.source.field_shape[-1] for file in files])
    grids = [file.redshifts for file in files if file.redshifts is not None]
    ends = 1 + np.array([np.median(grid[:, -1]) for grid in grids])
    few: np.ndarray = lengths < _SHORT * np.median(lengths)
    return few & (ends < _NEARER * np.median(ends))


def cosmology_of(files: Sequence[FileMetadata]) -> tuple[np.ndarray, np.ndarray]:
    """Matter density of all rows, NaN where it is not known, and their Hubble constant."""
    omega_m, hubble = [], []
    for file in files:
        of = file.parameters.get
        unknown, usual = np.full(file.source.n_rows, np.nan), np.full(file.source.n_rows, HUBBLE)
        omega_m.append(of("Omega_m", of("OMm", unknown)))
        hubble.append(of("hlittle", usual))
    return np.concatenate(omega_m), np.concatenate(hubble)


def compare_grids(
    redshifts: np.ndarray, omega_m: np.ndarray, hubble: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the grids of light cones: the same redshifts, or cells of the same comoving size.

    `redshifts` (n, n_z); `omega_m` (n,), NaN where it is not known: then only what no cosmology
    explains is odd; `hubble` (n,), in 100 km/s/Mpc. Returns `odd` and `doubtful`, bool (n,): rows
    whose grid is not that of most, and rows whose grid may be, in another cosmology; and the first
    and the last redshift of most, (2,).
    """
    n_z = redshifts.shape[1]
    with np.errstate(invalid="ignore"):  # infinite ones are odd
        rising = (np.diff(redshifts, axis=1) > 0).all(axis=1)
    some = np.linspace(0, n_z - 1, min(n_z, _COMPARED)).astype(np.int64)
    z = redshifts[:, some].astype(np.float64)
    sane = rising & np.isfinite(z).all(axis=1) & (z[:, 0] >= 0)
    usual = _middle(z, sane)
    if not sane.any():
        return ~sane, ~sane & False, usual[[0, -1]]
    near = np.abs(z[:, 0] - usual[0]) <= _TOLERANCE * np.abs(usual[0])
    odd = ~(sane & near)
    compared = np.flatnonzero(~odd & (np.abs(z - usual) > _TOLERANCE * (1 + usual)).any(axis=1))
    doubtful = np.zeros(len(z), dtype=bool)
    if len(compared):
        known = np.isfinite(omega_m) & (omega_m > 0)
        hubble = np.where(np.isfinite(hubble) & (hubble > 0), hubble, HUBBLE)
        # What is usual, the rows of known cosmology tell; the others' sizes are guessed.
        telling = sane & known if (sane & known).any() else sane
        stretch = _stretch(z, np.where(known, omega_m, OMEGA_M), hubble, sane, telling)
        if known.any() and np.mean(stretch[known & sane] <= _EXPLAINED) < 0.5:
            # It explains nothing: scaled numbers, say, or cells that are not of one size.
            known[:] = False
            stretch = _stretch(z, np.full(len(z), OMEGA_M), hubble, sane, sane)
        limit = np.where(known, _STRETCHED, _STRETCHED_AT_ALL)
        odd[compared] = (stretch > limit)[compared]
        doubtful[compared] = (~odd & ~(known & (stretch <= _EXPLAINED)))[compared]
    return odd, doubtful, usual[[0, -1]]


def _middle(values: np.ndarray, sane: np.ndarray) -> np.ndarray:
    """Return the median of each column; where there are two, one that occurs."""
    values = values[sane] if sane.any() else values
    return np.quantile(values, 0.5, axis=0, method="lower")


def _stretch(
    z: np.ndarray, omega_m: np.ndarray, hubble: np.ndarray, sane: np.ndarray, telling: np.ndarray
) -> np.ndarray:
    """How far comoving grids are from the usual one of `telling`, as a share of the shorter."""
    z = np.where(sane[:, None], z, 1 + np.arange(z.shape[1]))  # odd anyway; no infinities
    distances = comoving_distances(z, omega_m, hubble)
    distances = distances[:, 1:] - distances[:, :1]
    usual = _middle(distances, telling)
    return np.abs(distances - usual).max(axis=1) / np.minimum(distances[:, -1], usual[-1])
