"""Approximate light cones by the thousand: as arrays at once, or one by one as they are read."""

from __future__ import annotations

import functools
import hashlib
import numbers
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

from skatr_sk.lightcones._cosmology import Cosmology
from skatr_sk.lightcones._lightcone import cell_redshifts, simulate
from skatr_sk.lightcones._settings import (
    PARAMETER_NAMES,
    PRIOR_BOUNDS,
    Settings,
    check_settings,
    entropy_of,
)

__all__ = ["PARAMETER_NAMES", "PRIOR_BOUNDS", "SimulatedLightcones", "make_lightcones"]

_COSMOLOGIES = 256  # at a time, where redshifts are wanted
_GPU_BATCH = 64  # light cones at a time; each takes 30 MB at 28 x 28 x 470


class SimulatedLightcones:
    """Light cones that are simulated when they are read, and never stored.

    A stand-in for an array ``(n_samples, *field_shape)``: row i is simulated from its own seed
    whenever it is read, the same each time. See :func:`make_lightcones` for the method and for
    what it is good for.

    Parameters
    ----------
    n_samples : int
        Number of light cones. Nothing is simulated before it is read.
    field_shape : tuple of 3 int, default=(28, 28, 470)
        Cells of a light cone: two sky axes, then the line of sight, nearest redshift first.
    parameters : array-like of shape (n_samples, 6), optional
        m_WDM [keV], Omega_m, E_0 [eV], log10 L_X [erg/s/(Msun/yr)], log10 T_vir [K], zeta. By
        default each row's are drawn uniformly within `prior_bounds`.
    prior_bounds : array-like of shape (6, 2), optional
        Lowest and highest value of each parameter; by default `PRIOR_BOUNDS`, the box of the
        bundled light cones.
    cell_size : float, default=200 / 28
        Comoving size in Mpc of the cells that are simulated.
    block : int or tuple of 3 int, default=1
        Cells that are simulated along each axis for one of `field_shape`; blocks are averaged.
        ``field_shape=(14, 14, 90), block=(2, 2, 5)`` is the grid of the bundled light cones.
    redshift_min : float, default=5.0
        Of the nearest simulated cell.
    evolution : {"zeldovich", "linear"}, default="zeldovich"
        Matter moves along straight lines, or density contrasts grow in place (a little faster).
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
    target : ndarray of shape (n_samples, 6), float64
        The parameters of the rows.

    Raises
    ------
    ValueError
        If a parameter makes no sense; every fault is named.

    Notes
    -----
    On a CPU a row is the same to the last bit whatever it is read with. On a GPU the sums in a
    batch may be ordered otherwise, so that rows agree to rounding.

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

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(
        self,
        n_samples: int,
        *,
        field_shape: Sequence[int] = (28, 28, 470),
        parameters: ArrayLike | None = None,
        prior_bounds: ArrayLike | None = None,
        cell_size: float = 200 / 28,
        block: int | Sequence[int] = 1,
        redshift_min: float = 5.0,
        evolution: Literal["zeldovich", "linear"] = "zeldovich",
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
    ) -> None:
        self._settings = check_settings(
            n_samples, field_shape, parameters, prior_bounds, cell_size, block, redshift_min,
            evolution, device, batch_size,
        )  # fmt: skip
        self._entropy = entropy_of(random_state)
        self._rows = np.arange(n_samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that this stands for."""
        return len(self._rows), *self._settings.field_shape

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes that the array would take."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}, not in memory>"

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: Any) -> Any:
        """One light cone as an array for an integer, else a view that simulates nothing yet."""
        if isinstance(rows, tuple):
            raise IndexError(
                f"{type(self).__name__} can be indexed by rows only, found {len(rows)} indices; "
                "numpy.asarray(cones[rows]) gives an array that takes them all"
            )
        if isinstance(rows, numbers.Integral) and not isinstance(rows, bool | np.bool_):
            row = self._rows[operator.index(rows)]
            return self._simulate(np.array([row]))[0]
        chosen = self._rows[rows if isinstance(rows, slice) else _row_index(rows)]
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.__dict__.pop("target", None)
        view._rows = chosen
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Simulate every row."""
        if copy is False:
            raise ValueError(f"{type(self).__name__} cannot become an array without a copy")
        cones = self._simulate(self._rows)
        return cones if dtype is None else cones.astype(dtype, copy=False)

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
        box, block = self._settings.box, self._settings.block[-1]
        out = np.empty((len(self), self.shape[-1]), dtype=np.float32)
        for start in range(0, len(self), _COSMOLOGIES):
            m_wdm, omega_m = torch.from_numpy(
                self.target[start : start + _COSMOLOGIES, :2].T.copy()
            )
            fine = cell_redshifts(Cosmology(omega_m, m_wdm), box, offset=(block - 1) / 2)
            out[start : start + _COSMOLOGIES] = fine[:, ::block].numpy()
        return out

    def rows(self, rows: Any) -> np.ndarray:
        """Simulate these rows, as an array."""
        return np.asarray(self[rows])

    in_memory = False

    def read(self, rows: Any = None) -> np.ndarray:
        """Simulate rows, as an array."""
        return np.asarray(self if rows is None else self[rows])

    def digests(self, rows: Any = None, *, recall: Any = None) -> list[bytes]:
        """Name the content of rows in 16 bytes, without simulating them."""
        return (self if rows is None else self[rows]).row_digests()

    def require_finite(self) -> SimulatedLightcones:
        """Return itself: estimators ask what is read later to refuse NaN; here there is none."""
        return self

    def row_digests(self) -> list[bytes]:
        """Name the content of every row in 16 bytes, without simulating it.

        Equal digests are equal light cones; the device is not part of them.
        """
        key = self._settings.digest()
        given = self._settings.parameters
        digests = []
        for row in self._rows:
            text = f"{self._entropy} {row}".encode()
            more = b"" if given is None else given[row].tobytes()
            digests.append(hashlib.blake2b(text + more, digest_size=16, key=key).digest())
        return digests

    def _draw(self, row: np.integer) -> tuple[np.ndarray, np.random.Generator]:
        """Parameters of a row, and the generator that goes on to draw its initial conditions."""
        seed = np.random.SeedSequence(self._entropy, spawn_key=(int(row),))
        rng = np.random.default_rng(seed)
        low, high = self._settings.prior_bounds.T
        drawn = rng.uniform(low, high)  # also where it is not used: initial conditions stay
        given = self._settings.parameters
        return (drawn if given is None else given[row]), rng

    def _simulate(self, rows: np.ndarray) -> np.ndarray:
        settings = self._settings
        device = settings.torch_device()
        cones = np.empty((len(rows), *settings.field_shape), dtype=self.dtype)
        # One is a full load for a CPU, and its sums then never depend on what else is read.
        step = 1 if device.type == "cpu" else settings.batch_size or _GPU_BATCH
        for start in range(0, len(rows), step):
            batch = rows[start : start + step]
            cones[start : start + step] = _batch(settings, device, map(self._draw, batch))
        return cones


def _row_index(rows: Any) -> np.ndarray:
    """Integers or booleans that numpy can index rows with."""
    index = np.asarray(rows)
    if index.size == 0:
        index = index.astype(np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iub":
        raise IndexError(
            "rows must be an integer, a slice, or a 1-D array of integers or booleans; found "
            f"{type(rows).__name__} of shape {index.shape} and dtype {index.dtype}"
        )
    return index


@torch.no_grad()
def _batch(settings: Settings, device: torch.device, drawn: Any) -> np.ndarray:
    box = settings.box
    parameters, noise = [], []
    for values, rng in drawn:
        parameters.append(values)
        noise.append(rng.standard_normal(box.periodic, dtype=np.float32))
    cones = simulate(
        torch.from_numpy(np.stack(parameters)).to(device),
        torch.from_numpy(np.stack(noise)).to(device),
        box,
    ).brightness
    if any(size > 1 for size in settings.block):
        split = [
            part for cells, size in zip(settings.field_shape, settings.block, strict=True)
            for part in (cells, size)
        ]  # fmt: skip
        cones = cones.reshape(len(cones), *split).mean(dim=(2, 4, 6))
    return cones.cpu().numpy()


def make_lightcones(
    n_samples: int = 100,
    *,
    field_shape: Sequence[int] = (28, 28, 470),
    parameters: ArrayLike | None = None,
    prior_bounds: ArrayLike | None = None,
    cell_size: float = 200 / 28,
    block: int | Sequence[int] = 1,
    redshift_min: float = 5.0,
    evolution: Literal["zeldovich", "linear"] = "zeldovich",
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
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
random_state, device, batch_size
        As for :class:`SimulatedLightcones`.

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
    cones = SimulatedLightcones(
        n_samples, field_shape=field_shape, parameters=parameters, prior_bounds=prior_bounds,
        cell_size=cell_size, block=block, redshift_min=redshift_min, evolution=evolution,
        random_state=random_state, device=device, batch_size=batch_size,
    )  # fmt: skip
    return np.asarray(cones), cones.target
