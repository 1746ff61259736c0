"""Approximate light cones: all at once in memory, or simulated when they are read."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from skatr_sk._checks import in_unit
from skatr_sk.fields import Rows
from skatr_sk.grid import Grid
from skatr_sk.lazy_fields import LazyFields
from skatr_sk.parameters import PARAMETER_NAMES
from skatr_sk.simulator.cosmology import OMEGA_M, comoving_distances, redshifts_at
from skatr_sk.simulator.lightcone import brightness_lightcones
from skatr_sk.simulator.settings import check_settings
from skatr_sk.training.device import resolve_device, torch_defaults
from skatr_sk.training.progress import watched
from skatr_sk.training.seeds import entropy_of

__all__ = ["SimulatedLightcones", "make_lightcones"]

_LOGGER = logging.getLogger("skatr_sk.simulator")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_M_WDM = PARAMETER_NAMES.index("m_WDM")
_GPU_BATCH = 64  # light cones at a time; each takes 30 MB at 28 x 28 x 470


class SimulatedLightcones(LazyFields):
    """Light cones that are simulated when they are read, and never stored.

    A stand-in for an array ``(n_samples, *field_shape)``: row i is simulated from its own seed
    whenever it is read, the same each time. See :func:`make_lightcones` for the method and for
    what it is good for.

    Parameters
    ----------
    n_samples : int, default=100
        Number of light cones. Nothing is simulated before it is read.
    field_shape : tuple of 3 int, default=(28, 28, 470)
        Cells of a light cone: two sky axes, then the line of sight, nearest redshift first.
    parameters : array-like of shape (n_samples, 6), optional
        m_WDM [keV], Omega_m, E_0 [eV], log10 L_X [erg/s/(Msun/yr)], log10 T_vir [K], zeta. By
        default each row's are drawn uniformly within `prior_bounds`.
    prior_bounds : array-like of shape (6, 2), optional
        Lowest and highest value of each parameter; by default
        ``skatr_sk.parameters.PRIOR_BOUNDS``, the box of the bundled light cones.
    cell_size : float or quantity of astropy, default=200 / 28
        Comoving size of the cells that are simulated, in Mpc.
    block : int or tuple of 3 int, default=1
        Cells that are simulated along each axis for one of `field_shape`; blocks are averaged.
        ``field_shape=(14, 14, 90), block=(2, 2, 5)`` is the grid of the bundled light cones.
    redshift_min : float, default=5.0
        Of the nearest simulated cell.
    evolution : {"zeldovich", "linear"}, default="zeldovich"
        Matter moves along straight lines, or stays while density contrasts grow (a little faster).
    dark_matter : {"warm", "cold"}, default="warm"
        With "cold" m_WDM stays a label, drawn or given as ever, and has no effect on the light
        cones: they are those of particles without velocities. Nothing else of a row changes,
        neither its other parameters nor its initial conditions.
    random_state : int, numpy Generator or RandomState, optional
        Seed. An int makes rows reproducible; the same rows come from any other `n_samples`.
    device : {"cpu", "cuda", "auto", ...}, default="cpu"
        Where light cones are simulated; "auto" is CUDA when there is one.
    batch_size : int, optional
        Light cones simulated together on a GPU, which bounds the memory; 64 by default. A CPU
        takes one at a time.

    Attributes
    ----------
    shape : tuple of int
        ``(n_samples, *field_shape)``.
    dtype : numpy.dtype
        float32.
    in_memory : bool
        False: reading costs a simulation.
    grid : Grid
        Cell sizes, and the redshifts of the slices for Planck's `Omega_m`.
    target : ndarray of shape (n_samples, 6), float64
        The parameters of the rows.
    seeds : ndarray of shape (n_samples,), int64
        A number for the initial conditions of each row: the same for the same row and
        `random_state`, whatever the parameters. They are the ``groups`` for cross-validation.

    Raises
    ------
    ValueError
        If parameters make no sense; every fault is named.

    Notes
    -----
    On a CPU a row is the same to the last bit, whatever is read with it. On a GPU the order of sums
    depends on the batch, and rows agree to rounding.

    Examples
    --------
    >>> from skatr_sk import SimulatedLightcones
    >>> cones = SimulatedLightcones(100_000, field_shape=(8, 8, 20), random_state=0)
    >>> cones.shape
    (100000, 8, 8, 20)
    >>> cones[7].shape  # simulated now
    (8, 8, 20)
    >>> cones[[3, 7]].target.shape  # a view: nothing is simulated
    (2, 6)

    It is an ``X`` for pre-training: ``SKATRTransformer(n_workers=2).fit(cones)`` simulates each
    batch anew, in two processes, while the last one trains.
    """

    @torch_defaults()
    def __init__(
        self,
        n_samples: int = 100,
        *,
        field_shape: Sequence[int] = (28, 28, 470),
        parameters: ArrayLike | None = None,
        prior_bounds: ArrayLike | None = None,
        cell_size: float = 200 / 28,
        block: int | Sequence[int] = 1,
        redshift_min: float = 5.0,
        evolution: Literal["zeldovich", "linear"] = "zeldovich",
        dark_matter: Literal["warm", "cold"] = "warm",
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ) -> None:
        cell_size = in_unit("cell_size", cell_size, "Mpc")
        self._settings = check_settings(locals())
        self._entropy = entropy_of(random_state)
        self._field_shape = self._settings.field_shape
        self._rows = np.arange(n_samples)
        sizes = tuple(self._settings.box.cell_size * size for size in self._settings.block)
        self._grid = Grid(sizes, tuple(self._redshifts_of(np.array([OMEGA_M]))[0].tolist()))

    _by_content = False

    @property
    def dtype(self) -> np.dtype:
        """Type of the values: float32."""
        return np.dtype(np.float32)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}, not in memory>"

    def read(self, rows: Rows | None = None) -> np.ndarray:
        """Simulate rows, all of them by default.

        Parameters
        ----------
        rows : slice or array-like of int or bool, optional

        Returns
        -------
        ndarray of shape (n_rows, *field_shape), float32
            In the asked order, all finite.
        """
        return self._read(self._chosen(rows))

    @torch_defaults()
    @torch.no_grad()
    def _read(self, numbers: np.ndarray, tell: Callable[[int], object] = int) -> np.ndarray:
        """Simulate rows; `tell` is told how many more there are."""
        settings = self._settings
        (n_x, n_y, n_z), (b_x, b_y, b_z) = settings.field_shape, settings.block
        device = resolve_device(settings.device)
        cones = np.empty((len(numbers), *settings.field_shape), dtype=self.dtype)
        # One keeps a CPU busy, and its sums then never depend on what else is read.
        step = 1 if device.type == "cpu" else settings.batch_size or _GPU_BATCH
        for start in range(0, len(numbers), step):
            drawn = [self._draw(row) for row in numbers[start : start + step]]
            parameters = torch.from_numpy(np.stack([values for values, _ in drawn])).to(device)
            if settings.cold:
                parameters[:, _M_WDM] = math.inf
            shape = settings.box.periodic
            noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for _, rng in drawn])
            inputs = parameters, torch.from_numpy(noise).to(device), settings.box
            made = brightness_lightcones(*inputs).brightness
            if max(settings.block) > 1:
                made = made.reshape(-1, n_x, b_x, n_y, b_y, n_z, b_z).mean(dim=(2, 4, 6))
            cones[start : start + step] = made.cpu().numpy()
            tell(len(drawn))
        return cones

    def digests(self, rows: Rows | None = None, *, recall: object = None) -> list[bytes]:
        """Identify the content of rows by 16 bytes each, without simulating them.

        Equal digests are equal light cones; the device is not part of them. Rows are given as for
        :meth:`read`; `recall` is not used, because nothing has to be computed.
        """
        key, given = self._settings.digest(), self._settings.parameters
        digests = []
        for row in self._chosen(rows):
            text = self._drawn_from(row)
            more = b"" if given is None else given[row].tobytes()
            digests.append(hashlib.blake2b(text + more, digest_size=16, key=key).digest())
        return digests

    @functools.cached_property
    def target(self) -> np.ndarray:
        """Parameters of the rows, shape (n_samples, 6), float64."""
        if self._settings.parameters is not None:
            return self._settings.parameters[self._rows]
        drawn = [self._draw(row)[0] for row in self._rows]
        return np.array(drawn, dtype=np.float64).reshape(-1, len(PARAMETER_NAMES))

    def redshifts(self) -> np.ndarray:
        """Redshifts at the comoving centres of the cells, shape (n_samples, n_z), float32.

        They differ between rows as `Omega_m` does; they are for plots, not for features.
        """
        return self._redshifts_of(self.target[:, 1])

    @functools.cached_property
    def seeds(self) -> np.ndarray:
        """Numbers of the initial conditions of the rows, shape (n_samples,), int64."""
        texts = map(self._drawn_from, self._rows)
        found = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
        return np.array([int.from_bytes(each, "little") >> 1 for each in found], dtype=np.int64)

    def _known(self, wanted: Collection[str], rows: Rows = slice(None)) -> dict[str, Any]:
        some: SimulatedLightcones = self[rows]
        known: dict[str, Callable[[], Any]] = {
            "redshifts": some.redshifts,
            "seeds": lambda: some.seeds,
            "target": lambda: some.target,
            "target_names": lambda: list(PARAMETER_NAMES),
        }
        if self._settings.parameters is None:
            known["target_bounds"] = self._box
        return {name: known[name]() for name in wanted if name in known}

    def _box(self) -> np.ndarray:
        """Prior box; a parameter that does not vary has no bounds."""
        box = self._settings.prior_bounds.copy()
        box[box[:, 0] == box[:, 1]] = -np.inf, np.inf
        return box

    def _redshifts_of(self, omega_m: np.ndarray) -> np.ndarray:
        """Redshifts of the slices for each of some matter densities."""
        box, block = self._settings.box, self._settings.block[-1]
        nearest = comoving_distances(np.full(len(omega_m), box.redshift_min), omega_m)
        centres = (block - 1) / 2 + block * np.arange(self.shape[-1])
        return redshifts_at(nearest[:, None] + box.cell_size * centres, omega_m).astype(np.float32)

    def _drawn_from(self, row: np.integer) -> bytes:
        """What tells the initial conditions of a row from others."""
        return f"{self._entropy} {row}".encode()

    def _draw(self, row: np.integer) -> tuple[np.ndarray, np.random.Generator]:
        """Parameters of a row, and the generator that goes on to draw its initial conditions."""
        seed = np.random.SeedSequence(self._entropy, spawn_key=(int(row),))
        rng = np.random.default_rng(seed)
        low, high = self._settings.prior_bounds.T
        drawn = rng.uniform(low, high)  # even if not used: the initial conditions stay the same
        given = self._settings.parameters
        return (drawn if given is None else given[row]), rng


def _parameters_of(made: Callable[_P, object]) -> Callable[[Callable[..., _R]], Callable[_P, _R]]:
    """Give a function the parameters of another, for readers, editors and type checkers."""

    def named(function: Callable[..., _R]) -> Callable[_P, _R]:
        returned = inspect.signature(function).return_annotation
        # With those that the function adds by itself.
        given = inspect.signature(function).parameters.values()
        own = [each for each in given if each.kind is each.KEYWORD_ONLY]
        signature = inspect.signature(made)
        every = [*signature.parameters.values(), *own]
        signature = signature.replace(parameters=every, return_annotation=returned)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return named


@_parameters_of(SimulatedLightcones)
def make_lightcones(
    *args: Any, verbose: int = 0, **parameters: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate light cones of the 21 cm brightness temperature, approximately.

    For pre-training and tests, **not for inference on real data**: the checks against 21cmFAST,
    and what is left out, are in the user guide's page on the simulator.

    Parameters
    ----------
    n_samples : int, default=100
        Number of light cones; all of them are held in memory (:class:`SimulatedLightcones` holds
        none).
    field_shape, parameters, prior_bounds, cell_size, block, redshift_min, evolution, \
dark_matter, random_state, device, batch_size
        As for :class:`SimulatedLightcones`.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    X : ndarray of shape (n_samples, n_x, n_y, n_z), float32
        Brightness temperature in mK: two sky axes, then the line of sight with the nearest
        redshift first.
    y : ndarray of shape (n_samples, 6), float64
        m_WDM [keV], Omega_m, E_0 [eV], log10 L_X [erg/s/(Msun/yr)], log10 T_vir [K], zeta.

    See Also
    --------
    SimulatedLightcones : The same light cones, simulated when they are read.
    load_lightcones : Real 21cmFAST light cones.

    Notes
    -----
    The approximations are those of 21cmFAST [1]_ [2]_ without mass-dependent efficiencies, on the
    cells of the light cone alone: Gaussian initial conditions with the transfer function of
    Eisenstein and Hu and a cut-off for warm dark matter; matter displaced after Zel'dovich;
    collapsed fractions conditional on the density around, with the mean of Sheth and Tormen;
    X-rays and Lyman alpha photons from past shells; spin temperature; bubbles by the excursion
    set; velocities along the line of sight. Each term's reference is in its module.

    References
    ----------
    .. [1] A. Mesinger, S. Furlanetto and R. Cen, "21cmFAST: a fast, seminumerical simulation of
       the high-redshift 21-cm signal", MNRAS 411, 955 (2011), arXiv:1003.3878.
    .. [2] S. Murray et al., "21cmFAST v3: A Python-integrated C code for generating 3D
       realizations of the cosmic 21cm signal", JOSS 5(54), 2582 (2020),
       doi:10.21105/joss.02582.

    Examples
    --------
    >>> from skatr_sk import make_lightcones
    >>> X, y = make_lightcones(2, field_shape=(8, 8, 100), random_state=0)
    >>> X.shape, y.shape
    ((2, 8, 8, 100), (2, 6))
    """
    cones = SimulatedLightcones(*args, **parameters)
    n = len(cones)
    with watched("simulated light cones", n, "cone", verbose=verbose, logger=_LOGGER) as tell:
        return cones._read(cones._rows, tell), cones.target
