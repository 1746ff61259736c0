"""NoiseTransformer: light cones as an interferometer would see them."""

from __future__ import annotations

import functools
import hashlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import fft
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import (
    CELL_SIZE,
    Flag,
    Integer,
    Kind,
    Problems,
    Real,
    Rising,
    Rule,
    check_options,
    spell,
    unchanged_on_error,
    warn,
    warn_without_effect,
)
from skatr_sk.fields import Fields, check_cell_size, check_columns, check_fields, digest
from skatr_sk.grid import Grid
from skatr_sk.lazy_fields import DerivedFields
from skatr_sk.lightcones.thermal_noise import horizon_slopes, noise_of_tools21cm, radiometer_noise
from skatr_sk.training.seeds import RANDOM_STATE_HINT, is_random_state, seed_of
from skatr_sk.training.stored import StoredEstimator, stored_by_name

__all__ = ["NoiseTransformer"]

_MODELS = ("radiometer", "tools21cm")
_PARTS = ("level", "cubes", "wedge", "subtract_mean")  # of an instrument, beside its seed
_SEED = Integer(0, 2**64 - 1)
_SLOPES = 8  # of the horizon along a line of sight, between which wedges are blended


def _is_noise(value: Any) -> bool | str:
    if isinstance(value, str):
        return value in _MODELS or spell(value, _MODELS)
    if isinstance(value, numbers.Real):
        return Real("[0, inf)").fault(value) is None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return array.size > 0 and bool(np.isfinite(array).all())


def _is_wedge(value: Any) -> bool | str:
    if isinstance(value, str):
        return value == "horizon" or spell(value, ["horizon"])
    return Real("[0, inf)").fault(value) is None


def _are_levels(value: Any) -> bool:
    """Whether a value can be the noise of slices, or of all of them, or slopes of a wedge."""
    array = np.asarray(value)
    right = isinstance(value, float | np.ndarray) and array.dtype == np.float64 and array.ndim < 2
    return right and bool(np.isfinite(array).all() and (array >= 0).all())


@stored_by_name
@dataclass(kw_only=True, eq=False, repr=False)
class NoiseTransformer(OneToOneFeatureMixin, TransformerMixin, StoredEstimator):
    """Add the noise of a radio interferometer to light cones, and cut what it does not see.

    Thermal noise is added first, then modes in the wedge of foregrounds are cut, then the mean of
    each slice is subtracted, each at choice. In a pipeline before
    :class:`~skatr_sk.SKATRTransformer` each light cone has noise of its own that stays the same:
    it depends on the values of the cone and on `random_state` alone. As ``augment=`` of that
    transformer it draws fresh noise in each step of the training.

    Parameters
    ----------
    noise : {"radiometer", "tools21cm"}, float, array-like or None, default="radiometer"
        Standard deviation of the thermal noise in a cell, or what it comes from:

        * "radiometer", a plain formula for the core of SKA-Low, independent in each cell (see
          Notes);
        * "tools21cm", the layout of SKA-Low by that package (``pip install "skatr_sk[noise]"``),
          for a square sky: noise grows towards small scales;
        * a number, or an array (n_z,), in mK: independent in each cell;
        * with `k_perp`, an array (n_k, n_z), in mK: noise that depends on scale. Each entry is the
          standard deviation in a cell of the white noise that has the power of the modes at that
          wave number: ``sqrt(P / V)`` of a noise power P in mK^2 Mpc^3, such as 21cmSense and
          tuesday-eor give, and the volume V of a cell;
        * of the shape of a field, or (n, ...): noise itself, in mK, such as cubes of
          these packages. Each light cone gets one of them, turned and shifted on the sky;
        * None adds none.
    observing_hours : float, default=1000.0
        Integration time of "radiometer" and "tools21cm".
    k_perp : array-like of shape (n_k,) or None, default=None
        Rising wave numbers across the sky, in 1/Mpc, of a `noise` (n_k, n_z); between them it is
        interpolated, beyond them constant.
    wedge : {"horizon"}, float or None, default=None
        Cut the modes with ``k_par <= slope k_perp``, where foregrounds are. "horizon" is the slope
        by redshift at which they reach the horizon [1]_; a number is the same slope everywhere, and
        a cut at mu = k_par / k is the slope mu / sqrt(1 - mu^2). Needs cell sizes. The means of the
        slices (k_perp = 0) stay: no baseline measures them, and `subtract_mean` says what is done.
    subtract_mean : bool, default=False
        Subtract the mean over the sky of each slice, which an interferometer does not see.
    redshifts : array-like of shape (n_z,) or None, default=None
        Of the slices, nearest first. None takes what the light cones know of themselves.
    cell_size : float, sequence of float, quantity of astropy or None, default=None
        Comoving size of a cell in Mpc, the same or one for each axis. None takes what the light
        cones know, and what contradicts it is refused.
    random_state : int, RandomState instance or None, default=None
        Of the noise. None draws a seed in each ``fit``.

    Attributes
    ----------
    sigma_ : ndarray of shape (n_z,), or float of maps
        Standard deviation of the noise in the cells of each slice, in mK, before anything is cut.
    slopes_ : ndarray of shape (n_z,) or None
        Of the wedge, at each slice.
    seed_ : int
        Of the noise.
    field_shape_in_ : tuple of int
        Shape of one field.
    n_features_in_ : int
        Length of the first field axis, as scikit-learn counts it.

    Notes
    -----
    "radiometer" has ``T_sky = 60 K (lambda / 1 m)^2.55`` and a receiver of 40 K + 0.1 T_sky, 224
    stations of 38 m in a core of 1 km, whose area falls as lambda^2 above 110 MHz, two
    polarisations, and the bandwidth of each slice's depth; sources stand in the module
    ``lightcones.thermal_noise``. A_eff / T_sys of a station agrees within 45 % with the SKAO's own
    figures between 60 and 250 MHz. After 1000 h, cells of 14.3 x 14.3 x 35.7 Mpc have 1.7 mK at
    redshift 9 and 43 mK at 20, and cubes of 19 Mpc at 140 MHz and of 47 Mpc at 80 MHz, whose noise
    is published to be some 1 mK [2]_, 1.5 and 2.0 mK. It stops nowhere, though SKA-Low begins at
    50 MHz (redshift 27), and knows of no loss of time to flags, calibration and weather.

    The wedge is cut in the Fourier transform of the whole line of sight, mirrored at its ends; with
    "horizon" once for each of eight slopes, between which slices are blended. Cells as long as
    those of :func:`~skatr_sk.load_lightcones` (35.7 Mpc) have hardly a mode above the horizon.

    References
    ----------
    .. [1] Parsons et al., "A per-baseline, delay-spectrum technique for accessing the 21 cm cosmic
       reionization signature", arXiv:1204.4749.
    .. [2] Mellema et al., "HI tomographic imaging of the cosmic dawn and epoch of reionization with
       SKA", arXiv:1501.04203.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import NoiseTransformer, load_lightcones
    >>> cones = load_lightcones()
    >>> redshifts = np.median(cones.redshifts, axis=0)
    >>> array = NoiseTransformer(
    ...     redshifts=redshifts, cell_size=cones.cell_size, subtract_mean=True, random_state=0
    ... )
    >>> array.fit_transform(cones.data[:4]).shape
    (4, 14, 14, 90)
    >>> print(f"{np.interp(9, redshifts, array.sigma_):.1f} mK at redshift 9")
    1.7 mK at redshift 9
    """

    noise: str | float | ArrayLike | None = "radiometer"
    observing_hours: float = 1000.0
    k_perp: ArrayLike | None = None
    wedge: str | float | None = None
    subtract_mean: bool = False
    redshifts: ArrayLike | None = None
    cell_size: float | Sequence[float] | None = None
    random_state: int | np.random.RandomState | None = None

    _parameters: ClassVar[Mapping[str, Kind]] = {
        "noise": Rule(
            _is_noise, f"one of {', '.join(map(repr, _MODELS))}, or finite mK", optional=True
        ),
        "observing_hours": Real("(0, inf)"),
        "k_perp": Rising("rising numbers >= 0 in 1/Mpc"),
        "wedge": Rule(_is_wedge, "'horizon' or a slope >= 0", optional=True),
        "subtract_mean": Flag(),
        "redshifts": Rising("rising redshifts, one a slice"),
        "cell_size": CELL_SIZE,
        "random_state": Rule(is_random_state, RANDOM_STATE_HINT),
    }

    _learned: ClassVar[Mapping[str, Kind]] = {
        **StoredEstimator._learned,
        "sigma_": Rule(_are_levels, "finite numbers >= 0"),
        "slopes_": Rule(_are_levels, "finite numbers >= 0", optional=True),
        "seed_": _SEED,
        "_instrument": Rule(lambda value: isinstance(value, _Instrument), "an instrument"),
    }

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        self._instrument.check(problems, self.field_shape_in_)
        wedge: Any = self._instrument.wedge
        if (self.slopes_ is None) != (wedge is None) or not (
            wedge is None or np.array_equal(self.slopes_, wedge[0])  # type: ignore[arg-type]
        ):
            problems.add("slopes_", "those of its instrument", self.slopes_)
        if np.shape(self.sigma_) not in ((), self.field_shape_in_[-1:]):
            problems.add("sigma_", "a number, or one of each slice", np.shape(self.sigma_))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := state.get("_instrument"), _Instrument):
            state["_instrument"] = {name: getattr(found, name) for name in _PARTS}
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := state.get("_instrument"), dict):
            check_options("_instrument", {"seed_": _SEED}, {"seed_": state.get("seed_")})
            state["_instrument"] = _Instrument(**found, seed=_key_of(state["seed_"]))
        return state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the noise of each slice, and draw the seed; no value of `X` is looked at.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            Light cones (n, n_x, n_y, n_z), maps (n, n_x, n_y) or signals (n, n_z), in mK.
        y : object, default=None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or `X` are not as expected; nothing is changed then.
        ImportError
            When tools21cm is asked for and not installed.

        Warns
        -----
        NoEffectWarning
            When parameters were given that change nothing beside the others.
        """
        with unchanged_on_error(self):
            self._check_parameters()
            fields = check_fields(self, X, reset=True)
            self._warn_without_effect()
            self.seed_ = seed_of(self.random_state)
            self._set_up(fields.grid)
        return self

    def _warn_without_effect(self) -> None:
        modelled = isinstance(self.noise, str)
        if not modelled:
            warn_without_effect(self, {"observing_hours"}, "a noise that is given")
            if self.wedge is None and self.k_perp is None:
                warn_without_effect(self, {"cell_size"}, "a noise that is given, and no wedge")
            if self.wedge != "horizon":
                warn_without_effect(self, {"redshifts"}, "a noise that is given")
        if self.noise is None:
            warn_without_effect(self, {"random_state"}, "noise=None")
        if modelled or self.noise is None:
            warn_without_effect(self, {"k_perp"}, f"noise={self.noise!r}")

    def _set_up(self, known: Grid | None) -> None:
        """Find noise and wedge on the grid of the fields, or that of the parameters."""
        shape, problems = self.field_shape_in_, Problems(type(self).__name__)
        if len(shape) == 1 and self.subtract_mean:
            wanted = "False with signals, which have no sky to take the mean over"
            problems.add("subtract_mean", wanted, True)
        if len(shape) < 3 and self.wedge is not None:
            problems.add("wedge", f"None with fields of {len(shape)} axes", self.wedge)
        grid = _Cells.of(self, known, problems)
        level, cubes = self._noise_of(grid, problems)
        slopes = self._slopes_of(grid, problems)
        problems.raise_if_any()
        self.slopes_: np.ndarray | None = slopes
        self.sigma_: Any = 0.0
        for given in (level, cubes):
            if given is not None and given.ndim < 2:
                self.sigma_ = given if len(shape) != 2 else float(given)
            elif given is not None:
                axes = None if len(shape) == 2 else tuple(range(given.ndim - 1))
                self.sigma_ = np.sqrt(np.square(given, dtype=np.float64).mean(axis=axes))
        cut = None if slopes is None else (slopes, grid.sizes)
        self._instrument = _Instrument(
            level, cubes, cut, bool(self.subtract_mean), _key_of(self.seed_)
        )

    def _noise_of(
        self, grid: _Cells, problems: Problems
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Standard deviations, by slice or by mode of the sky, or noise itself: one of them."""
        noise, shape = self.noise, self.field_shape_in_
        if noise is None:
            return None, None
        if isinstance(noise, str):
            if len(shape) < 3:
                wanted = f"a number or an array with fields of {len(shape)} axes"
                problems.add("noise", wanted, noise)
            elif shape[-1] == 1:
                problems.add("noise", "a number for a single slice, of no known width", noise)
            elif noise == "tools21cm" and shape[0] != shape[1]:
                problems.add("noise", f"another for a sky of {shape[:2]} cells", noise)
            elif grid.need(f"noise={noise!r}", problems):
                z = grid.redshifts
                if noise == "tools21cm":
                    return noise_of_tools21cm(z, shape, grid.sizes, self.observing_hours), None
                return radiometer_noise(z, grid.sizes, self.observing_hours), None
            return None, None
        given = np.asarray(noise, dtype=np.float64)
        if self.k_perp is not None:
            k = np.asarray(self.k_perp, dtype=np.float64)
            if len(shape) < 3 or given.shape != (len(k), shape[-1]):
                wanted = f"shape ({len(k)}, n_z) with k_perp, of light cones of n_z slices"
                problems.add("noise", wanted, given.shape)
            elif grid.need("k_perp", problems, redshifts=False):
                return _on_sky(given, k, shape, grid.sizes), None
            return None, None
        of_slices = given.ndim == 0 or (len(shape) != 2 and given.shape == shape[-1:])
        if of_slices and (given >= 0).all():
            return np.broadcast_to(given, () if len(shape) == 2 else shape[-1:]), None
        if given.shape[-len(shape) :] == shape and given.ndim <= len(shape) + 1:
            return None, given.reshape(-1, *shape).astype(np.float32)
        wanted = f"a number, {shape[-1]} of the slices, all >= 0, or noise of shape {shape} or "
        found = given.shape if not of_slices else "negative ones"
        problems.add("noise", f"{wanted}(n, {', '.join(map(str, shape))})", found)
        return None, None

    def _slopes_of(self, grid: _Cells, problems: Problems) -> np.ndarray | None:
        if self.wedge is None or len(self.field_shape_in_) < 3:
            return None
        horizon = isinstance(self.wedge, str)
        if not grid.need(f"wedge={self.wedge!r}", problems, redshifts=horizon):
            return None
        n_z = self.field_shape_in_[-1]
        slopes = horizon_slopes(grid.redshifts) if horizon else np.full(n_z, float(self.wedge))
        k_perp = _across(self.field_shape_in_, grid.sizes)
        lowest = np.median(slopes) * k_perp[k_perp > 0].min(initial=np.inf)
        if lowest >= np.pi / grid.sizes[-1]:
            left = "nothing" if self.subtract_mean else "only the mean"
            warn(
                f"wedge={self.wedge!r}: no mode of these cells is above it in most slices, of "
                f"which {left} is left; take thinner slices, or a smaller slope."
            )
        return slopes

    def transform(self, X: ArrayLike) -> Any:
        """Add noise to fields, to each its own and always the same, and cut what is not seen.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            In mK, of the shape seen in ``fit``.

        Returns
        -------
        ndarray of shape (n, *field_shape), float32, or Fields
            Of fields in files, and others that are no arrays, those whose rows are read with noise:
            they are indexed like an array, and nothing is read before.
        """
        check_is_fitted(self)
        check_columns(self, only_for_frames=True)
        fields = check_fields(self, X, reset=False)
        if not isinstance(X, Fields):
            return self._instrument(fields.read())
        derived = fields, self._instrument, fields.shape[1:], np.dtype(np.float32), fields.grid
        return DerivedFields(*derived)

    def augment(self, X: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Do the same with fresh noise; it is what `augment` of a transformer calls in each step.

        Parameters
        ----------
        X : ndarray of shape (n, *field_shape)
            In mK, of the shape seen in ``fit``.
        generator : numpy.random.Generator
            Draws the noise.

        Returns
        -------
        ndarray of shape (n, *field_shape), float32
        """
        check_is_fitted(self)
        return self._instrument.observe(X, [generator] * len(X))

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Names of the slices of signals, as they came in."""
        check_is_fitted(self)
        check_columns(self)
        names: np.ndarray = super().get_feature_names_out(input_features)
        return names

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_instrument")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # what is observed is float32
        tags.input_tags.three_d_array = True
        return tags


@dataclass(frozen=True)
class _Cells:
    """Redshifts and sizes of the cells of fields, as far as they are known."""

    redshifts: Any  # (n_z,), or None
    sizes: Any  # a tuple, one for each axis, or None

    @classmethod
    def of(cls, given: NoiseTransformer, known: Grid | None, problems: Problems) -> Self:
        """Those that were given, else those of the fields."""
        shape = given.field_shape_in_
        redshifts: Any = given.redshifts
        sizes: Any = given.cell_size
        if redshifts is not None:
            redshifts = np.asarray(redshifts, dtype=np.float64)
            if redshifts.shape != shape[-1:]:
                problems.add("redshifts", f"{shape[-1]}, one a slice", len(redshifts))
        elif known is not None and known.redshifts is not None:
            redshifts = np.asarray(known.redshifts)
        if sizes is not None:
            sizes = CELL_SIZE.of_axes("cell_size", sizes, len(shape), problems)
            if sizes is not None:
                check_cell_size(sizes, known, problems)
        elif known is not None and None not in known.cell_size:
            sizes = known.cell_size
        return cls(redshifts, sizes)

    def need(self, why: str, problems: Problems, *, redshifts: bool = True) -> bool:
        """Whether all that is needed is known; what is missing is noted."""
        wanted = {"cell_size": self.sizes} | ({"redshifts": self.redshifts} if redshifts else {})
        noted = [message.partition(":")[0] for message in problems.messages]
        for name, value in wanted.items():
            if value is None and name not in noted:
                what = f"those of the light cones with {why}, for they do not know theirs"
                problems.add(name, what, None)
        return not problems.messages


def _on_sky(
    noise: np.ndarray, k: np.ndarray, shape: Sequence[int], sizes: Sequence[float]
) -> np.ndarray:
    """Interpolate noise (n_k, n_z) at wave numbers k to the modes of the sky, (n_x, n_y, n_z)."""
    modes = _across(shape, sizes)
    return np.stack([np.interp(modes, k, column) for column in noise.T], axis=-1)


def _across(shape: Sequence[int], sizes: Sequence[float]) -> np.ndarray:
    """Wave numbers across the sky, (n_x, n_y), in 1/Mpc."""
    x, y = (2 * np.pi * fft.fftfreq(shape[axis], sizes[axis]) for axis in (0, 1))
    return np.hypot(x[:, None], y)


@dataclass(frozen=True, repr=False)
class _Instrument:
    """What is done to fields: noise of a level or from cubes, then cuts."""

    level: np.ndarray | None  # (), (n_z,), or (n_x, n_y, n_z) of the modes of the sky
    cubes: np.ndarray | None  # (n, *field_shape)
    wedge: tuple[np.ndarray, tuple[float, ...]] | None  # slopes (n_z,), and the sizes of the cells
    subtract_mean: bool
    seed: bytes

    def check(self, problems: Problems, shape: tuple[int, ...]) -> None:
        """Note what cannot be done to fields of a shape."""
        n_axes = len(shape)
        of_slices = [()] if n_axes == 2 else [(), shape[-1:]]
        found: Any = np.shape(self.level)  # type: ignore[arg-type]
        if not _is_finite(self.level, np.float64) or found not in [*of_slices, shape[-3:]]:
            problems.add("level", f"finite numbers for fields of shape {shape}", found)
        found = np.shape(self.cubes)  # type: ignore[arg-type]
        fits = self.cubes is None or (len(self.cubes) > 0 and found[1:] == shape)
        if not _is_finite(self.cubes, np.float32) or not fits:
            problems.add("cubes", f"finite noise for fields of shape {shape}", found)
        if not isinstance(self.subtract_mean, bool) or (self.subtract_mean and n_axes < 2):
            problems.add("subtract_mean", "True or False, of signals False", self.subtract_mean)
        wedge: Any = self.wedge
        if wedge is None:
            return
        right = isinstance(wedge, tuple) and len(wedge) == 2 and n_axes == 3
        if not right or not _are_levels(wedge[0]) or np.shape(wedge[0]) != shape[-1:]:
            problems.add("wedge", "slopes, one of each slice of light cones", wedge)
        elif not isinstance(wedge[1], tuple) or len(wedge[1]) != 3 or CELL_SIZE.fault(wedge[1]):
            problems.add("wedge", "three sizes of cells", wedge[1])

    def __repr__(self) -> str:
        return f"<instrument {self._identity}>"

    @functools.cached_property
    def _identity(self) -> str:
        """Digest of all of it."""
        whole = hashlib.blake2b(repr((self.subtract_mean, self.seed)).encode(), digest_size=16)
        for part in (self.level, self.cubes, *(self.wedge or ())):
            array = np.asarray([] if part is None else part, dtype=np.float64)
            whole.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return fields as they are seen, each with noise of its own, which is always the same."""
        digests = (digest(field + np.float32(0)) for field in values)  # where zeros have no sign
        return self.observe(values, map(self._generator_of, digests))

    def _generator_of(self, content: bytes) -> np.random.Generator:
        keyed = hashlib.blake2b(content, key=self.seed, digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(keyed, "little"))

    def observe(self, values: np.ndarray, generators: Iterable[np.random.Generator]) -> np.ndarray:
        """Return fields (n, *field_shape) as they are seen, with noise from a generator of each."""
        seen = np.array(values, dtype=np.float32)
        for field, generator in zip(seen, generators, strict=True):
            field += self._noise(field.shape, generator)
        if self.wedge is not None:
            seen = _without_wedge(seen, *self.wedge)
        if self.subtract_mean:
            seen -= seen.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        return seen

    def _noise(self, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
        if self.cubes is not None:
            return _moved(self.cubes[generator.integers(len(self.cubes))], generator)
        if self.level is None:
            return 0
        white = generator.standard_normal(shape, dtype=np.float32)
        if self.level.ndim < 3:
            return white * self.level.astype(np.float32)
        modes = fft.fft2(white, axes=(0, 1)) * self.level.astype(np.float32)
        return fft.ifft2(modes, axes=(0, 1)).real


def _is_finite(value: Any, dtype: type) -> bool:
    """Whether a value is an array of a type without NaN, or None."""
    right = isinstance(value, np.ndarray) and value.dtype == dtype
    return value is None or (right and bool(np.isfinite(value).all()))


def _key_of(seed: int) -> bytes:
    return hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=16).digest()


def _moved(cube: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turn noise by a symmetry of the sky, and shift it around; it has no place of its own."""
    if cube.ndim == 1:
        return cube
    n_x, n_y = cube.shape[:2]
    flip_x, flip_y, turn = generator.integers(2, size=3).astype(bool)
    cube = cube[:: -1 if flip_x else 1, :: -1 if flip_y else 1]
    if turn and n_x == n_y:
        cube = cube.swapaxes(0, 1)
    return np.roll(cube, (generator.integers(n_x), generator.integers(n_y)), axis=(0, 1))


def _without_wedge(values: np.ndarray, slopes: np.ndarray, sizes: Sequence[float]) -> np.ndarray:
    """Cut the modes with k_par <= slope k_perp of light cones, by the slope of each slice.

    The means of slices, k_perp = 0, are in no wedge, that of the whole light cone neither.
    """
    n_z = values.shape[-1]
    distinct = 1 if slopes.min() == slopes.max() else min(_SLOPES, n_z)
    at = np.linspace(0, n_z - 1, distinct)
    shares = [np.interp(np.arange(n_z), at, row) for row in np.eye(distinct)]
    # The mirrored line of sight has no jump where its ends meet.
    k_par = 2 * np.pi * fft.rfftfreq(2 * n_z, sizes[-1])
    k_perp = _across(values.shape[1:3], sizes)[..., None]
    seen = np.zeros_like(values)
    for row, field in enumerate(values):
        mirrored = np.concatenate([field, field[..., ::-1]], axis=-1)
        modes = fft.rfftn(mirrored, axes=(0, 1, 2))
        for slope, share in zip(np.interp(at, np.arange(n_z), slopes), shares, strict=True):
            outside = (k_par > slope * k_perp) | (k_perp == 0)
            cut = fft.irfftn(modes * outside, mirrored.shape, axes=(0, 1, 2))
            seen[row] += (share * cut[..., :n_z]).astype(np.float32)
    return seen
