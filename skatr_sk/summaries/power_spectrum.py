"""PowerSpectrumTransformer: the field's usual summary, power spectra in chunks of redshift."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import (
    CELL_SIZE,
    AssumedGridWarning,
    Auto,
    Choice,
    Flag,
    Integer,
    Kind,
    Problems,
    Real,
    Rule,
    listed,
    unchanged_on_error,
    warn,
    warn_without_effect,
)
from skatr_sk.fields import Fields, check_cell_size, check_fields
from skatr_sk.training.device import torch_defaults
from skatr_sk.training.stored import StoredEstimator, stored_by_name

__all__ = ["PowerSpectrumTransformer"]

_VALUES = 4_000_000  # voxels whose spectra are computed at a time
_CHUNKS, _FEWEST_SLICES = 8, 4  # of n_chunks="auto": so many, and no shorter ones, as with a taper
_BINS = 4  # of n_bins="auto"
_ROUNDING = 1e-9  # of edges of bins, so that the first and the last mode are within
# Delta^2 = _SHELL[d] k^d P is the variance in an e-fold of k: the unit sphere over (2 pi)^d.
_SHELL = {1: 1 / math.pi, 2: 1 / (2 * math.pi), 3: 1 / (2 * math.pi**2)}


@dataclass(frozen=True)
class _Chunk:
    """Where the modes of a chunk of cells go: to which bin, how often they count, and its names."""

    shape: tuple[int, ...]
    bins: torch.Tensor  # of each mode of the half transform; the last bin is that of the left out
    weights: torch.Tensor  # 2 where a mode stands for its conjugate too
    n_modes: np.ndarray  # of each bin
    k: np.ndarray  # (n_bins, n_columns): mean wave numbers of each bin
    names: tuple[str, ...]

    @property
    def n_bins(self) -> int:
        return len(self.n_modes)


def _are_chunks(value: Any) -> bool:
    right = isinstance(value, np.ndarray) and value.dtype == np.int64 and value.ndim == 2
    return right and value.shape[1] == 2 and bool((value[:, 0] < value[:, 1]).all())


def _are_ends(value: Any) -> bool:
    right = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 2
    return right and value.shape[1] == 2 and bool(np.isfinite(value).all())


def _are_bins(value: Any) -> bool:
    each = value if isinstance(value, list) else [None]
    return all(isinstance(kinds, dict) and all(map(_is_bins, kinds.items())) for kinds in each)


def _is_bins(item: tuple[str, Any]) -> bool:
    kind, part = item
    if kind not in ("cylindrical", "spherical") or not isinstance(part, tuple) or len(part) != 2:
        return False
    if not all(isinstance(each, np.ndarray) and each.dtype == np.float64 for each in part):
        return False
    if not all(np.isfinite(each).all() for each in part):
        return False
    k, n_modes = part
    return n_modes.ndim == 1 and k.shape == (len(n_modes), 1 + (kind == "cylindrical"))


@stored_by_name
@dataclass(kw_only=True, eq=False, repr=False)
class PowerSpectrumTransformer(TransformerMixin, StoredEstimator):
    """Power spectra of light cones in chunks along the line of sight, as features.

    The field's usual summary, and the rival of learned ones. The line of sight is cut into chunks,
    in which the universe hardly changes; each is Fourier transformed, and the squared modes are
    averaged in bins of wave number: of k_perp, across the line of sight, and k_par, along it
    (cylindrical, 2-D: the best single classical summary [1]_), or of their length k (spherical,
    1-D). Nothing is learned from the light cones in ``fit``.

    Of maps ``(n, n_x, n_y)`` the spectrum is that of rings of k_perp, and of signals
    ``(n, n_z)`` that along the line of sight.

    Parameters
    ----------
    spectrum : {"cylindrical", "spherical", "both"}, default="cylindrical"
        Bins of (k_perp, k_par), of k, or one after the other.
    n_chunks : "auto" or int, default="auto"
        Chunks of equal length along the line of sight; "auto" is 8, or fewer, so that
        none has less than four slices.
    n_bins : "auto" or int, default="auto"
        Bins of each wave number, at most: equal steps of its logarithm, of which empty ones are
        left out. k_par = 0 has a bin of its own, and so has each k_par where there are no more than
        `n_bins` others. "auto" is 4.
    quantity : {"delta2", "power"}, default="delta2"
        ``Delta^2 = k^3 P / (2 pi^2)`` in mK^2, with the mean k of the bin, or P(k) in
        mK^2 Mpc^3. Of maps ``k^2 P / (2 pi)``, or P in mK^2 Mpc^2; of signals ``k P / pi``, or P in
        mK^2 Mpc.
    log : bool, default=True
        Give log10, of what is at least `floor`.
    floor : float, default=0.3
        Delta^2 in mK^2 that is added before the logarithm: what is fainter counts as nothing, so
        that empty and constant light cones have finite features. As a power it is the P of that
        Delta^2.
    taper : {"hann", "blackmanharris"} or None, default=None
        Window along the line of sight of each chunk, which keeps a strong mode from leaking into
        its neighbours at the price of fewer independent ones. Its mean square is divided out.
        Chunks must have four slices at least: at both ends a window is all but zero.
    moments : bool, default=False
        Add the mean in mK and the variance in mK^2 (as its log10, where `log`) of the voxels of
        each chunk. An interferometer does not see the mean.
    cell_size : float, sequence of float, quantity of astropy or None, default=None
        Comoving size of a cell in Mpc, the same or one for each axis. None takes what the light
        cones know of themselves, and what contradicts it is refused. Cells of which some sides are
        not known are taken for cubes; where none is, sizes count in cells, and k is in 1/cell.

    Attributes
    ----------
    chunks_ : ndarray of shape (n_chunks, 2)
        First slice of each chunk, and the one after its last.
    redshifts_ : ndarray of shape (n_chunks, 2) or None
        Of the first and the last slice of each chunk, where the light cones know theirs.
    cell_size_ : tuple of float
        Of a cell along each axis, in Mpc; 1 where none is known.
    k_unit_ : str
        "1/Mpc", or "1/cell" where no cell size is known.
    bins_ : list of dict
        Of each chunk, by the kind of spectrum ("spherical" for maps and signals): the mean wave
        numbers of its bins, (n_bins, 2) for k_perp and k_par or (n_bins, 1), and how many modes
        each bin has, (n_bins,).
    field_shape_in_ : tuple of int
        Shape of one field.
    n_features_in_ : int
        Length of the first field axis, as scikit-learn counts it.

    Notes
    -----
    ``P(k) = <|T(k)|^2> / V`` with ``T(k) = sum_x T(x) exp(-i k x) dV``, so that the sum of P over
    all modes is V times the variance (Parseval). Modes with k_perp = 0, the means of the slices,
    are left out of light cones and maps: an interferometer does not see them.

    References
    ----------
    .. [1] Prelogović and Mesinger, "How informative are summaries of the cosmic 21 cm signal?",
       arXiv:2401.12277.

    Examples
    --------
    >>> from skatr_sk import PowerSpectrumTransformer, load_lightcones
    >>> cones = load_lightcones()
    >>> spectra = PowerSpectrumTransformer(cell_size=cones.cell_size)
    >>> features = spectra.fit_transform(cones.data[:8])
    >>> features.shape, len(spectra.chunks_)
    ((8, 160), 8)
    >>> spectra.get_feature_names_out()[1]
    'chunk0_kperp0.0379_kpar0.016'
    """

    spectrum: str = "cylindrical"
    n_chunks: int | str = "auto"
    n_bins: int | str = "auto"
    quantity: str = "delta2"
    log: bool = True
    floor: float = 0.3
    taper: str | None = None
    moments: bool = False
    cell_size: float | Sequence[float] | None = None

    _parameters: ClassVar[Mapping[str, Kind]] = {
        "spectrum": Choice("cylindrical", "spherical", "both"),
        "n_chunks": Auto(Integer(1)),
        "n_bins": Auto(Integer(1)),
        "quantity": Choice("delta2", "power"),
        "log": Flag(),
        "floor": Real("(0, inf)"),
        "taper": Choice("hann", "blackmanharris", optional=True),
        "moments": Flag(),
        "cell_size": CELL_SIZE,
    }

    _learned: ClassVar[Mapping[str, Kind]] = {
        **StoredEstimator._learned,
        "chunks_": Rule(_are_chunks, "first slices and those after the last"),
        "redshifts_": Rule(_are_ends, "redshifts of the ends of each chunk", optional=True),
        "cell_size_": Rule(lambda v: isinstance(v, tuple) and not CELL_SIZE.fault(v), "sizes"),
        "k_unit_": Choice("1/Mpc", "1/cell"),
        "bins_": Rule(_are_bins, "wave numbers and numbers of modes"),
    }

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        shape, n_chunks = self.field_shape_in_, len(self.chunks_)
        n_z = 1 if len(shape) == 2 else shape[-1]
        ends = [0, *self.chunks_[:, 1].tolist()]
        if not n_chunks or ends[-1] != n_z or ends[:-1] != self.chunks_[:, 0].tolist():
            problems.add("chunks_", f"those of {n_z} slices", self.chunks_)
        if len(self.cell_size_) != len(shape):
            problems.add("cell_size_", f"{len(shape)} sizes", self.cell_size_)
        of_chunks = [self.bins_, self.chunks_ if self.redshifts_ is None else self.redshifts_]
        if any(len(each) != n_chunks for each in of_chunks):
            problems.add("bins_", f"those of {n_chunks} chunks", [len(each) for each in of_chunks])

    @torch_defaults()
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Lay out chunks and bins on the grid of fields; no value of theirs is looked at.

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

        Warns
        -----
        NoEffectWarning
            When parameters were given that change nothing beside the others.
        AssumedGridWarning
            When sizes of cells are not known, and they are taken for cubes.
        """
        with unchanged_on_error(self):
            self._check_parameters()
            fields = check_fields(self, X, reset=True)
            self._lay_out(fields)
        return self

    def _lay_out(self, fields: Fields) -> None:
        shape = self.field_shape_in_
        on_sky = len(shape) == 2
        n_z = 1 if on_sky else shape[-1]
        problems = Problems(type(self).__name__)
        wanted: Any = n_z if self.n_chunks == "auto" else self.n_chunks
        if wanted > n_z and not on_sky:
            problems.add("n_chunks", f"at most {n_z}, the slices of a field", self.n_chunks)
        sizes = self._sizes_of(fields, problems)
        most = max(1, min(_CHUNKS, n_z // _FEWEST_SLICES))
        n_chunks = most if self.n_chunks == "auto" else min(int(self.n_chunks), n_z)
        ends = np.linspace(0, n_z, (1 if on_sky else n_chunks) + 1).round().astype(int)
        shortest = int(np.diff(ends).min())
        if not on_sky:
            self._check_taper(shortest, problems, "use fewer chunks" * (most < n_chunks))
        problems.raise_if_any()
        if on_sky:
            warn_without_effect(self, {"n_chunks", "taper"}, "maps, which have no line of sight")
        if len(shape) < 3:
            warn_without_effect(self, {"spectrum"}, f"fields of {len(shape)} axes")
        if not self.log:
            warn_without_effect(self, {"floor"}, "log=False")
        self.chunks_ = np.column_stack([ends[:-1], ends[1:]])
        known = None if on_sky or fields.grid is None else fields.grid.redshifts
        self.redshifts_ = None if known is None else np.asarray(known)[self.chunks_ - [0, 1]]
        self._take_sizes(sizes)
        if not sum(map(self._n_features_of, self.chunks_)):
            n = len(shape)
            raise ValueError(
                f"X: expected fields of at least two cells in a chunk, found {shape[0]} feature(s) "
                f"in fields of shape {shape}, which have no mode to measure; use fewer chunks."
                if n == 1
                else f"X: expected fields of at least two cells on the sky, found shape {shape}."
            )
        self.bins_ = [
            {kind: (part.k, part.n_modes) for kind, part in zip(self._kinds(), parts, strict=True)}
            for parts in map(self._parts_of, self.chunks_)
        ]

    def _sizes_of(self, fields: Fields, problems: Problems) -> tuple[float | None, ...]:
        """Sizes of a cell along each axis in Mpc; None where they are not known."""
        n_axes = len(self.field_shape_in_)
        if self.cell_size is None:
            return (None,) * n_axes if fields.grid is None else fields.grid.cell_size
        sizes = CELL_SIZE.of_axes("cell_size", self.cell_size, n_axes, problems)
        if sizes is not None:
            check_cell_size(sizes, fields.grid, problems)
        return sizes or ()

    def _take_sizes(self, sizes: tuple[float | None, ...]) -> None:
        """Take cells for cubes where sizes are not known, and say so."""
        known = [size for size in sizes if size is not None]
        self.k_unit_ = "1/Mpc" if known else "1/cell"
        side = known[0] if known else 1.0
        self.cell_size_: tuple[float, ...] = tuple(side if d is None else d for d in sizes)
        if len(known) < len(sizes):
            axes = listed(axis for axis, size in enumerate(sizes) if size is None)
            one = f"{side:.3g} Mpc, as the others" if known else "1, so that k is in 1/cell"
            warn(
                f"PowerSpectrumTransformer: X does not say how large its cells are on axis {axes}; "
                f"they are taken for cubes of {one}. If they are none, Delta^2 and floor are not "
                "in mK^2; give cell_size=.",
                AssumedGridWarning,
            )

    # Bins ----------------------------------------------------------------------------------------

    def _kinds(self) -> tuple[str, ...]:
        if len(self.field_shape_in_) < 3:
            return ("spherical",)
        both = ("cylindrical", "spherical")
        return both if self.spectrum == "both" else (self.spectrum,)

    def _parts_of(self, chunk: np.ndarray) -> list[_Chunk]:
        shape = self.field_shape_in_
        if len(shape) != 2:
            shape = (*shape[:-1], int(chunk[1] - chunk[0]))
        n_bins = _BINS if self.n_bins == "auto" else int(self.n_bins)
        return [_layout(kind, shape, self.cell_size_, n_bins) for kind in self._kinds()]

    def _check_taper(self, shortest: int, problems: Problems, mend: str = "") -> None:
        """Note a taper of chunks that are too short for it."""
        if self.taper is not None and 0 < shortest < _FEWEST_SLICES:
            wanted = f"None with chunks of less than {_FEWEST_SLICES} slices, such as {shortest}"
            problems.add("taper", wanted, self.taper, mend)

    def _parts(self) -> Iterator[tuple[np.ndarray, list[_Chunk]]]:
        """Yield each chunk with its bins, which are those of ``fit`` still."""
        problems = Problems(type(self).__name__)
        if len(self.field_shape_in_) != 2:
            self._check_taper(int(np.diff(self.chunks_, axis=1).min()), problems, "fit again")
        problems.raise_if_any()
        for chunk, bins in zip(self.chunks_, self.bins_, strict=True):
            parts = self._parts_of(chunk)
            fitted = {kind: len(n_modes) for kind, (_, n_modes) in bins.items()}
            now = {k: part.n_bins for k, part in zip(self._kinds(), parts, strict=True)}
            if now != fitted:
                raise ValueError(
                    f"PowerSpectrumTransformer: expected the bins of fit, {fitted} in a chunk, "
                    f"found parameters of others, {now}; fit again after set_params."
                )
            yield chunk, parts

    def _n_features_of(self, chunk: np.ndarray) -> int:
        return sum(part.n_bins for part in self._parts_of(chunk))

    # Spectra -------------------------------------------------------------------------------------

    @torch_defaults()
    def transform(self, X: ArrayLike) -> np.ndarray:
        """Compute the spectra of fields, some at a time.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            In mK, of the shape seen in ``fit``.

        Returns
        -------
        ndarray of shape (n, n_features), float64
            Chunk after chunk, the nearest first: its bins, then its mean and variance.
        """
        check_is_fitted(self)
        self._check_parameters()
        fields = check_fields(self, X, reset=False)
        n = fields.shape[0]
        step = max(1, _VALUES // max(1, math.prod(self.field_shape_in_)))
        blocks = (fields.read(slice(i, i + step)) for i in range(0, n, step))
        return np.concatenate([np.hstack(list(self._columns(block))) for block in blocks])

    def _columns(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Features of some fields, (n, ...), one kind of one chunk after the other."""
        values = torch.from_numpy(np.require(block, np.float64, ["C", "W"]))
        for chunk, parts in self._parts():
            some = values if values.ndim == 3 else values[..., chunk[0] : chunk[1]]
            spectra = self._spectra(some, parts)
            for part, power in zip(parts, spectra, strict=True):
                k = np.sqrt(np.square(part.k).sum(axis=1))
                shell = _SHELL[some.ndim - 1] * k ** (some.ndim - 1)
                if self.log:
                    power = np.log10(power * shell + self.floor)
                    yield power if self.quantity == "delta2" else power - np.log10(shell)
                else:
                    yield power * shell if self.quantity == "delta2" else power
            if self.moments:
                flat = some.flatten(1).numpy()
                variance = flat.var(axis=1)
                if self.log:
                    variance = np.log10(variance + self.floor)
                yield np.column_stack([flat.mean(axis=1), variance])

    def _spectra(self, some: torch.Tensor, parts: Sequence[_Chunk]) -> list[np.ndarray]:
        """Power P of each bin, (n, n_bins), in mK^2 Mpc^d, of one chunk of fields."""
        axes = tuple(range(1, some.ndim))
        # Modes with k_perp = 0 have no bin; without the mean they do not round into the others.
        some = some - some.mean(dim=axes if some.ndim < 4 else axes[:2], keepdim=True)
        if self.taper is not None and some.ndim != 3:
            # Imported here, for it takes longer than all else that is imported with this module.
            from scipy.signal import windows

            window = windows.get_window(self.taper, some.shape[-1], fftbins=False)
            some = some * torch.from_numpy(window / np.sqrt(np.square(window).mean()))
        modes = torch.fft.rfftn(some, dim=axes)
        volume = math.prod(self.cell_size_)  # of a cell
        power = (modes.real.square() + modes.imag.square()) * (volume / math.prod(some.shape[1:]))
        power = power.flatten(1)
        found = []
        for part in parts:
            sums = power.new_zeros(len(power), part.n_bins + 1)
            sums.index_add_(1, part.bins, power * part.weights)
            found.append(sums[:, :-1].numpy() / part.n_modes)
        return found

    # Names ---------------------------------------------------------------------------------------

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Name the features by chunk and mean wave number (in ``k_unit_``), as an ndarray of str.

        Such as ``chunk0_kperp0.0379_kpar0.0195``, ``chunk0_k0.0413`` and ``chunk0_mean``.

        Parameters
        ----------
        input_features : array-like, default=None
            Ignored.
        """
        check_is_fitted(self)
        names = []
        for number, (_, parts) in enumerate(self._parts()):
            each = [name for part in parts for name in part.names]
            each += ["mean", "variance"] if self.moments else []
            names += [f"chunk{number}_{name}" for name in each]
        return np.array(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "bins_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # spectra are float64
        tags.input_tags.three_d_array = True
        return tags


@functools.lru_cache(64)
def _layout(kind: str, shape: tuple[int, ...], sizes: tuple[float, ...], n_bins: int) -> _Chunk:
    """Bins of the modes of a chunk of cells of some sizes."""
    each = [
        2 * math.pi * (np.fft.rfftfreq if axis == len(shape) - 1 else np.fft.fftfreq)(n, d)
        for axis, (n, d) in enumerate(zip(shape, sizes, strict=True))
    ]
    k = np.stack(np.meshgrid(*each, indexing="ij")).reshape(len(shape), -1)
    halved = np.ones(len(each[-1]))  # the half transform leaves the conjugates out
    halved[1 : (shape[-1] + 1) // 2] = 2
    weights = np.broadcast_to(halved, [len(one) for one in each]).reshape(-1)
    sky = k if len(shape) == 2 else k[:-1]
    k_perp, k_par = np.sqrt(np.square(sky).sum(axis=0)), np.abs(k[-1])
    seen = (k_par if len(shape) == 1 else k_perp) > 0
    columns = [k_perp, k_par] if kind == "cylindrical" else [np.hypot(k_perp, k_par)]
    if len(shape) == 2:
        columns = [k_perp]
    numbers = [_bins_of(column, seen, n_bins) for column in columns]
    joint = np.zeros(len(seen), dtype=np.int64)
    for number in numbers:
        joint = joint * (number.max(initial=0) + 1) + number
    full, place = np.unique(joint[seen], return_inverse=True)
    bins = np.full(len(seen), len(full))
    bins[seen] = place
    n_modes = np.bincount(place, weights[seen], len(full))
    means = [np.bincount(place, (column * weights)[seen], len(full)) for column in columns]
    mean = np.column_stack(means) / n_modes[:, None]
    labels = ("kperp", "kpar") if kind == "cylindrical" else ("k",)
    for digits in range(3, 18):  # as many as tell them apart
        names = tuple(
            "_".join(f"{label}{value:.{digits}g}" for label, value in zip(labels, row, strict=True))
            for row in mean
        )
        if len(set(names)) == len(names):
            break
    return _Chunk(
        shape, torch.from_numpy(bins), torch.from_numpy(weights.copy()), n_modes, mean, names
    )


def _bins_of(k: np.ndarray, seen: np.ndarray, n_bins: int) -> np.ndarray:
    """Bin of each mode by one wave number; zero has one of its own."""
    distinct = np.unique(np.round(k[seen & (k > 0)], 12))
    if len(distinct) == 0:
        return np.zeros(len(k), dtype=np.int64)
    if len(distinct) <= n_bins:
        edges = np.append(distinct * (1 - _ROUNDING), np.inf)
    else:
        ends = distinct[0] * (1 - _ROUNDING), distinct[-1] * (1 + _ROUNDING)
        edges = np.geomspace(*ends, n_bins + 1)
    return np.where(k > 0, np.searchsorted(edges, k, side="right"), 0)
