"""LightconeResampler: light cones with other cells, a transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import (
    CELL_SIZE,
    EachAxis,
    Instance,
    Integer,
    Kind,
    Problems,
    Real,
    Rising,
    nearest_divisors,
    unchanged_on_error,
)
from skatr_sk.fields import Fields, check_columns, check_fields
from skatr_sk.grid import SAME_SIZE, Grid, depths_of
from skatr_sk.resampling import Axis, Resampling, edges_of, resampled
from skatr_sk.training.stored import StoredEstimator, stored_by_name

__all__ = ["LightconeResampler"]

_NEAR = 1e-6  # of a cell
_REDSHIFTS = Rising("two or more rising numbers >= 0, the nearest first", least=2)


@stored_by_name
@dataclass(kw_only=True, eq=False, repr=False)
class LightconeResampler(ClassNamePrefixFeaturesOutMixin, TransformerMixin, StoredEstimator):
    """Bring light cones, maps or signals onto other cells of the same volume.

    A cell that is no smaller than those that are given is the mean over what it covers, each given
    cell weighted by the volume that both share: 28 cells become 14 by means of pairs, and 35 become
    28 by exact fractions, so that the mean of the whole stays to rounding. Smaller cells are
    interpolated linearly along each axis between the centres of given cells, which adds no
    structure; beyond the outermost centres they are as these. Nothing is extrapolated.

    Give one of `shape`, `cell_size` and `factor`, or `redshifts` with or without one of these for
    the sky.

    Parameters
    ----------
    shape : int or sequence of int, optional
        Cells along each axis of a field, of the same volume.
    cell_size : float, sequence of float, or quantity of astropy, optional
        Comoving size of a cell along each axis, in Mpc. It must divide the width of the sky, to a
        hundredth; of the line of sight, what is left at the far end is cut off.
    factor : float or sequence of float, optional
        Cells that become one along each axis; 0.5 makes two of one. The number of cells must stay
        whole.
    redshifts : array-like of shape (n_z,), optional
        Of the slices that are wanted, nearest first, on the line of sight, for light cones and
        signals that know their own, in one typical cone: another spacing, another range. The
        others then count for the sky alone. Comoving distances become redshifts by
        ``astropy.cosmology.z_at_value``.
    input_cell_size : float, sequence of float, or quantity of astropy, optional
        Comoving size of a given cell along each axis, in Mpc; default is what the light cones know
        (:func:`~skatr_sk.open_lightcones`, :class:`~skatr_sk.SimulatedLightcones`).
    input_redshifts : array-like of shape (n_z,), optional
        Of the given slices, nearest first; default is what the light cones know.

    Attributes
    ----------
    field_shape_out_ : tuple of int
        Shape of one field as it comes out.
    grid_ : Grid or None
        Cell sizes and redshifts of what comes out, as far as they are known.
    field_shape_in_ : tuple of int
        Shape of one field as it was seen in ``fit``.
    n_features_in_ : int
        Length of the first field axis, as scikit-learn counts it.

    Notes
    -----
    Means are over volumes: along the line of sight redshifts are turned into
    ``-1 / sqrt(1 + z)``, to which comoving distances are proportional as long as matter rules the
    expansion, whatever `Omega_m`. Sums are in float64; what comes out is float32, or float64 where
    the fields are.

    Examples
    --------
    >>> from skatr_sk import LightconeResampler, SimulatedLightcones
    >>> cones = SimulatedLightcones(10, field_shape=(8, 8, 50), random_state=0)
    >>> coarse = LightconeResampler(factor=(2, 2, 5)).fit_transform(cones)
    >>> coarse.shape  # nothing is simulated before it is read
    (10, 4, 4, 10)
    >>> print(coarse.grid)
    cells of 14.3 x 14.3 x 35.7 Mpc, slices at redshift 5.027 to 5.677
    """

    shape: int | Sequence[int] | None = None
    cell_size: float | Sequence[float] | None = None
    factor: float | Sequence[float] | None = None
    redshifts: ArrayLike | None = None
    input_cell_size: float | Sequence[float] | None = None
    input_redshifts: ArrayLike | None = None

    _parameters: ClassVar[Mapping[str, Kind]] = {
        "shape": EachAxis(Integer(1), optional=True),
        "cell_size": CELL_SIZE,
        "factor": EachAxis(Real("(0, inf)"), optional=True),
        "redshifts": _REDSHIFTS,
        "input_cell_size": CELL_SIZE,
        "input_redshifts": _REDSHIFTS,
    }

    _learned: ClassVar[Mapping[str, Kind]] = {
        **StoredEstimator._learned,
        "field_shape_out_": StoredEstimator._learned["field_shape_in_"],
        "grid_": Instance(Grid, expected="a grid", optional=True),
        "_resampling": Instance(Resampling, expected="how cells become others"),
    }

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        self._resampling.check(problems, self.field_shape_in_)
        problems.raise_if_any()
        shape = self._resampling.field_shape
        if self.field_shape_out_ != shape:
            problems.add("field_shape_out_", str(shape), self.field_shape_out_)
        if self.grid_ is not None and not self.grid_.fits(shape):
            problems.add("grid_", f"one of fields of shape {shape}", str(self.grid_))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := state.get("_resampling"), Resampling):
            state["_resampling"] = found.packed()
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := state.get("_resampling"), list):
            state["_resampling"] = Resampling.of_packed(found)
        return state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find out which cells become which; no value of `X` is used.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            Light cones (n, n_x, n_y, n_z), maps (n, n_x, n_y) or signals (n, n_z).
        y : object, default=None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or `X` are not as expected, or `X` does not reach as far as what is
            wanted; nothing is changed then.
        """
        with unchanged_on_error(self):
            self._check_parameters()
            fields = check_fields(self, X, reset=True)
            own = self._grid_of(fields)
            self._resampling = Resampling(self._axes(own))
            known = own.redshifts is not None or any(own.cell_size)
            self.grid_: Grid | None = None
            if known:
                self.grid_ = self._resampling.grid_of(own, self.field_shape_in_)
            self.field_shape_out_: tuple[int, ...] = self._resampling.field_shape
        return self

    def transform(self, X: ArrayLike) -> Any:
        """Resample fields.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            Of the shape, and the grid, seen in ``fit``.

        Returns
        -------
        ndarray of shape (n, *field_shape_out_), or Fields
            Of fields in files, and others that are no arrays, those that are resampled when they
            are read, some at a time; they are indexed like an array.
        """
        check_is_fitted(self)
        check_columns(self, only_for_frames=True)
        fields = check_fields(self, X, reset=False)
        made = resampled(fields, self._resampling, self.grid_)
        return made if isinstance(X, Fields) else made.read()

    def _grid_of(self, fields: Fields) -> Grid:
        """Grid of the fields: what was given, else what they know."""
        rank, problems = len(fields.shape) - 1, Problems(type(self).__name__)
        grid = fields.grid or Grid((None,) * rank)
        sizes, z = grid.cell_size, grid.redshifts
        if (given := self.input_cell_size) is not None:
            sizes = CELL_SIZE.of_axes("input_cell_size", given, rank, problems) or sizes
        if self.input_redshifts is not None:
            z = tuple(np.asarray(self.input_redshifts, dtype=np.float64).tolist())
            if rank == 2 or len(z) != fields.shape[-1]:
                wanted = f"{fields.shape[-1]}, one a slice" if rank != 2 else "None with maps"
                problems.add("input_redshifts", wanted, len(z))
        problems.raise_if_any()
        same = self.input_redshifts is None and sizes[-1] == grid.cell_size[-1]
        return Grid(sizes, z, grid.origin, grid.start) if same else Grid(sizes, z)

    def _axes(self, grid: Grid) -> tuple[Axis, ...]:
        """How the cells of each axis become others."""
        problems, shape = Problems(type(self).__name__), self.field_shape_in_
        how = [name for name in ("shape", "cell_size", "factor") if getattr(self, name) is not None]
        on_sight = self.redshifts is not None
        if len(how) > 1 or not (how or on_sight):
            one = "one of shape, cell_size and factor" + ", or redshifts" * (not on_sight)
            problems.add(how[0] if how else "shape", one, " and ".join(how) or None)
        if on_sight and len(shape) == 2:
            problems.add("redshifts", "None with maps, which have no line of sight", "redshifts")
        elif on_sight and len(shape) == 1 and how:
            problems.add(how[0], "None with the redshifts of signals", getattr(self, how[0]))
        problems.raise_if_any()
        n_axes = len(shape) - on_sight
        axes: list[Axis] = [Axis(0, n) for n in shape[:n_axes]]
        if how:
            kind: Any = self._parameters[how[0]]
            each = kind.of_axes(how[0], getattr(self, how[0]), n_axes, problems)
            problems.raise_if_any()
            make = {"shape": _of_shape, "cell_size": _of_size, "factor": _of_factor}[how[0]]
            axes = []
            for k, wanted in enumerate(each):
                along = len(shape) != 2 and k == len(shape) - 1
                axes.append(make(problems, k, shape[k], wanted, grid.cell_size[k], along))
        if on_sight:
            axes.append(self._onto_redshifts(problems, grid))
        problems.raise_if_any()
        return tuple(axes)

    def _onto_redshifts(self, problems: Problems, grid: Grid) -> Axis:
        z = np.asarray(self.redshifts, dtype=np.float64)
        if grid.redshifts is None or len(grid.redshifts) < 2:
            mend = "give input_redshifts"
            problems.add("redshifts", "light cones of two or more known slices", None, mend)
            return Axis(0, 1)
        axis = Axis.between(edges_of(depths_of(grid.redshifts)), edges_of(depths_of(z)))
        if axis is None:
            ends = "redshift {:.4g} to {:.4g}"
            within = ends.format(*np.array(grid.redshifts)[[0, -1]])
            found = ends.format(*z[[0, -1]])
            problems.add("redshifts", f"slices within those of X, {within}", found)
            return Axis(0, 1)
        return axis

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Names of the slices of signals, ``lightconeresampler0`` and so on."""
        check_is_fitted(self)
        check_columns(self)
        return super().get_feature_names_out(input_features)

    @property
    def _n_features_out(self) -> int:
        return self.field_shape_out_[0]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_resampling")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.three_d_array = True
        return tags


def _of_shape(
    problems: Problems, axis: int, n: int, wanted: int, size: float | None, along: bool
) -> Axis:
    return Axis.even(n, int(wanted))


def _of_factor(
    problems: Problems, axis: int, n: int, factor: float, size: float | None, along: bool
) -> Axis:
    many = round(n / factor)
    if many < 1 or abs(n / factor - many) > _NEAR * many:
        near = " and ".join(map(str, nearest_divisors(n, max(1, math.floor(factor)))))
        mend = f"the nearest that divide are {near}; shape takes any number of cells"
        problems.add("factor", f"what makes whole cells of the {n} on axis {axis}", factor, mend)
        return Axis(0, 1)
    return Axis.even(n, many)


def _of_size(
    problems: Problems, axis: int, n: int, wanted: float, size: float | None, along: bool
) -> Axis:
    if size is None:
        mend = "give input_cell_size, or shape or factor instead of cell_size"
        problems.add("X", f"light cones of a known cell size on axis {axis}", None, mend)
        return Axis(0, 1)
    for one, ratio in ((1, wanted / size), (-1, size / wanted)):
        k = round(ratio)
        if k and abs(ratio / k - 1) <= SAME_SIZE:  # blocks, or parts, of whole cells
            if one < 0:
                return Axis.even(n, n * k)
            if n >= k and (along or n % k == 0):
                return Axis(0, n - n % k, k)
    many = n * size / wanted
    whole = round(many)
    # Along the line of sight cells of the very size are cut to, and the rest is left out.
    if whole and abs(many - whole) <= (SAME_SIZE if along else SAME_SIZE * whole):
        return Axis.even(n, whole)
    if not along:
        near = [n * size / k for k in (math.ceil(many), math.floor(many)) if k]
        mend = f"the nearest are {' and '.join(f'{one:.4g}' for one in near)}"
        expected = f"a size that divides the {n * size:.4g} Mpc of axis {axis}"
        problems.add("cell_size", expected, wanted, mend)
        return Axis(0, 1)
    ends = size * np.arange(n + 1), wanted * np.arange(math.floor(many) + 1)
    found = Axis.between(*ends) if many >= 1 else None
    if found is None:
        problems.add("cell_size", f"at most the {n * size:.4g} Mpc of axis {axis}", wanted)
    return found or Axis(0, 1)
