"""LightconeDisplay: cuts along the line of sight, and slices of the sky."""

from __future__ import annotations

__all__ = ["LightconeDisplay"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import Real, check_options, shared_docs
from skatr_sk.evaluation.arrays import Floats
from skatr_sk.evaluation.displays import base
from skatr_sk.fields import as_fields
from skatr_sk.parameters import check_order

_MOST = 12  # rows of a figure
_FEWEST_MK = 1.0  # either side of zero, so that no noise fills half of the colours
_TICKS_APART = 0.055  # of the line of sight
_ZERO = {"color": "black", "linewidth": 0.8}
_AT = {"color": "black", "linestyle": ":", "linewidth": 1.0}
_SHORT = 4  # letters of a unit that is written in a title


@shared_docs(names_and_units=base.SHARED_DOCS["names_and_units"])
@dataclass(kw_only=True, eq=False, repr=False)
class LightconeDisplay(base.Display):
    """Light cones, one in a row: a cut along the line of sight, and a slice of the sky.

    The cut goes through the middle of the sky; the dotted line in it is where the slice lies. All
    have one diverging scale of colours: blue is absorption, white is zero, red is emission. Make it
    with :meth:`from_lightcones` or :meth:`from_bunch`.

    Parameters
    ----------
    X : array-like of shape (n_lightcones, n_x, n_y, n_z) or (n_x, n_y, n_z)
        Light cones in mK, the nearest redshift first, in memory or in files: at most 12.
    redshifts : array-like of shape (n_lightcones, n_z) or (n_z,), default=None
        Of the slices, rising. By default the axis counts slices.
    names : sequence of str, default=None
        Of the light cones, for the titles.
    y : array-like of shape (n_lightcones, n_parameters) or (n_parameters,), default=None
        Parameters of the light cones, for the titles.
    {names_and_units}
    cell_size : float, default=None
        Comoving size of a cell across the sky in Mpc. By default axes of the sky count cells.
    sky_redshift : float, default=None
        Where the slices of the sky lie: at the nearest redshift of each light cone, or at the slice
        of this number where `redshifts` are not given. By default at the slice of each that varies
        most.

    Attributes
    ----------
    cuts_ : ndarray of shape (n_lightcones, n_x, n_z)
    skies_ : ndarray of shape (n_lightcones, n_x, n_y)
    sky_index_ : ndarray of int of shape (n_lightcones,)
        Numbers of the slices in `skies_`.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes of shape (n_lightcones, 2)
    colorbar_ : Colorbar

    Examples
    --------
    >>> from skatr_sk import load_lightcones
    >>> from skatr_sk.evaluation import LightconeDisplay
    >>> display = LightconeDisplay.from_bunch(load_lightcones(), rows=[0, 4])
    >>> display.axes_.shape, display.cuts_.shape
    ((2, 2), (2, 14, 90))
    """

    X: Any
    redshifts: ArrayLike | None = None
    names: Sequence[str] | None = None
    y: ArrayLike | None = None
    parameter_names: Sequence[str] | None = None
    parameter_units: Sequence[str] | None = None
    cell_size: float | None = None
    sky_redshift: float | None = None

    def __post_init__(self) -> None:
        number = Real("(0, inf)", optional=True)
        check_options("LightconeDisplay", {"cell_size": number}, vars(self))
        number = Real("[0, inf)", optional=True)
        check_options("LightconeDisplay", {"sky_redshift": number}, vars(self))
        shape = np.shape(self.X)
        if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[0] > _MOST):
            raise ValueError(
                f"X: expected one light cone (n_x, n_y, n_z) or at most {_MOST} of them, found "
                f"shape {shape}; choose some, X[:3]."
            )
        one = len(shape) == 3
        cones = as_fields(np.asarray(self.X)[np.newaxis] if one else self.X).read()
        n, n_z = len(cones), shape[-1]
        self._redshifts = _rows_of("redshifts", self.redshifts, (n, n_z), shared=True)
        if self._redshifts is not None and not (np.diff(self._redshifts, axis=1) > 0).all():
            raise ValueError(
                "redshifts: expected rising numbers, found others; flip X and the redshifts "
                "together, X[..., ::-1], if the farthest is first."
            )
        self._titles = self._named(n)
        self.cuts_ = np.asarray(cones[:, :, shape[-2] // 2], dtype=np.float64)
        self.sky_index_ = self._slices(cones)
        self.skies_ = np.stack(
            [cone[..., k] for cone, k in zip(cones, self.sky_index_, strict=True)]
        )

    def _slices(self, cones: Any) -> Any:
        """Which slice of each light cone is shown."""
        if self.sky_redshift is None:
            return cones.std(axis=(1, 2), dtype=np.float64).argmax(axis=1)
        grid = (
            np.arange(cones.shape[-1])[np.newaxis] if self._redshifts is None else self._redshifts
        )
        nearest = np.abs(grid - self.sky_redshift).argmin(axis=1)
        return np.broadcast_to(nearest, len(cones))

    def _named(self, n: int) -> list[str]:
        """Titles of the light cones: their names and parameters."""
        names = [""] * n if self.names is None else [str(name) for name in self.names]
        if len(names) != n:
            raise ValueError(f"names: expected {n}, one for each light cone, found {len(names)}.")
        if self.y is None:
            return names
        width = np.shape(self.y)[-1] if np.ndim(self.y) else 1
        values = _rows_of("y", self.y, (n, width))
        labels = base.parameter_labels(self.parameter_names, self.parameter_units, width)
        titles = []
        for name, row in zip(names, np.asarray(values), strict=True):
            each = [
                f"{symbol} = {value:.4g}" + (f" {unit}" if 0 < len(unit) <= _SHORT else "")
                for (symbol, unit), value in zip(labels, row, strict=True)
            ]
            titles.append((f"{name}:  " if name else "") + ",  ".join(each))
        return titles

    def plot(
        self,
        ax: Any = None,
        *,
        vmin: float | None = None,
        vmax: float | None = None,
        image_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Draw the light cones, and return the display.

        Parameters
        ----------
        ax : array-like of Axes of shape (n_lightcones, 2), default=None
            For the cuts and the slices of the sky; by default those of a new figure.
        vmin, vmax : float, default=None
            Ends of the colours in mK, below and above zero. By default those of what is shown.
        image_kwargs : dict, default=None
            Passed on to ``Axes.imshow``.
        """
        plt = self._pyplot("plot")
        from matplotlib.colors import TwoSlopeNorm

        ends = {"vmin": Real("(-inf, 0)", optional=True), "vmax": Real("(0, inf)", optional=True)}
        check_options("LightconeDisplay.plot", ends, {"vmin": vmin, "vmax": vmax})
        n = len(self.cuts_)
        if ax is None:
            ratios = {"width_ratios": [5, 1]}
            size = 10.5, 1.75 * n + 0.7
            options: dict[str, Any] = {"figsize": size, "layout": "constrained", "squeeze": False}
            _, self.axes_ = plt.subplots(n, 2, gridspec_kw=ratios, **options)
        else:
            self.axes_ = base.check_axes(ax, (n, 2), f"Axes of shape ({n}, 2), cuts and skies")
        self.figure_ = self.axes_[0, 0].figure
        shown = np.concatenate([self.cuts_.ravel(), self.skies_.ravel()])
        low = min(float(shown.min()), -_FEWEST_MK) if vmin is None else vmin
        high = max(float(shown.max()), _FEWEST_MK) if vmax is None else vmax
        norm = TwoSlopeNorm(0.0, low, high)
        style = {"cmap": "RdBu_r", "norm": norm, "origin": "lower", "interpolation": "nearest"}
        style |= dict(image_kwargs or {})
        for i, (cut, sky) in enumerate(zip(self.cuts_, self.skies_, strict=True)):
            image = self._draw(i, cut, sky, style)
        self.axes_[-1, 0].set_xlabel("slice" if self._redshifts is None else "redshift")
        self.axes_[-1, 1].set_xlabel(self._sky_label)
        options = {"ticks": _ticks(plt, low, high), "aspect": 8 * n + 8}
        options["ax"] = self.axes_.ravel().tolist()
        self.colorbar_ = self.figure_.colorbar(image, format="%g", **options)
        self.colorbar_.ax.axhline(0, **_ZERO)
        self.colorbar_.set_label(r"$\delta T_b$ [mK]")
        self.colorbar_.ax.set_title("emission", fontsize="small")
        self.colorbar_.ax.set_xlabel("absorption", fontsize="small")
        return self

    @property
    def _sky_label(self) -> str:
        return "sky [cells]" if self.cell_size is None else "sky [Mpc]"

    def _draw(self, i: int, cut: Floats, sky: Floats, style: Mapping[str, Any]) -> Any:
        """Draw one light cone; returns the image of its cut."""
        along, across = self.axes_[i]
        scale = self.cell_size or 1.0
        (n_x, n_z), n_y = cut.shape, sky.shape[1]
        extent = 0, n_z, 0, n_x * scale
        image = along.imshow(cut, **{"aspect": "auto", "extent": extent, **style})
        along.axvline(self.sky_index_[i] + 0.5, **_AT)
        along.set_title(self._titles[i], loc="left", fontsize="small")
        along.set_ylabel(self._sky_label)
        extent = 0, n_y * scale, 0, n_x * scale
        across.imshow(sky, **{"aspect": "equal", "extent": extent, **style})
        at = f"slice {self.sky_index_[i]}"
        if self._redshifts is not None:
            redshifts = self._redshifts[i]
            at = f"z = {redshifts[self.sky_index_[i]]:.2f}"
            along.set_xticks(*_redshift_ticks(redshifts))
        across.set_title(at, loc="left", fontsize="small")
        return image

    @classmethod
    def from_lightcones(cls, X: Any, *, ax: Any = None, **kwargs: Any) -> Self:
        """Draw light cones, return the display; takes parameters of the class and :meth:`plot`."""
        return cls._drawn(ax, {"X": X, **kwargs})

    @classmethod
    def from_bunch(
        cls, cones: Mapping[str, Any], *, rows: Sequence[int] = (0,), **kwargs: Any
    ) -> Self:
        """Draw some light cones of a Bunch with what it knows of them, and return the display.

        Parameters
        ----------
        cones : Bunch
            From :func:`~skatr_sk.load_lightcones` or :func:`~skatr_sk.open_lightcones`.
        rows : sequence of int, default=(0,)
            Which ones; no others are read.
        **kwargs
            As for :meth:`from_lightcones`; they go before what the Bunch says.
        """
        chosen, n = np.atleast_1d(np.asarray(rows, dtype=np.intp)), len(cones["data"])
        if ((chosen < -n) | (chosen >= n)).any():
            raise ValueError(f"rows: expected some of {n} light cones, found {chosen.tolist()}.")
        known: dict[str, Any] = {"names": [f"light cone {row}" for row in chosen]}
        if cones.get("redshifts") is not None:
            known["redshifts"] = np.asarray(cones["redshifts"])[chosen]
        if cones.get("target") is not None:
            check_order("target", cones["target"], cones.get("target_names") or ())
            target = np.asarray(cones["target"])
            known["y"] = target.reshape(len(target), -1)[chosen]
            known["parameter_names"] = cones.get("target_names")
            known["parameter_units"] = cones.get("target_units")
        sizes = cones.get("cell_size", getattr(cones.get("grid"), "cell_size", None))
        if sizes is not None and sizes[0] is not None:
            known["cell_size"] = float(sizes[0])
        return cls.from_lightcones(cones["data"][chosen], **(known | kwargs))


def _rows_of(
    name: str, given: ArrayLike | None, shape: tuple[int, int], *, shared: bool = False
) -> Floats | None:
    """Numbers for each light cone; one row will do for one light cone, or where it is `shared`."""
    if given is None:
        return None
    values = np.asarray(given, dtype=np.float64)
    if values.ndim == 1 and (shared or shape[0] == 1):
        values = np.broadcast_to(values, (shape[0], *values.shape))
    if values.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {np.shape(given)}.")
    return values


def _redshift_ticks(redshifts: Floats) -> tuple[Floats, list[str]]:
    """Places of whole redshifts on an axis of slices, and their names, where they do not touch."""
    whole = np.arange(math.ceil(redshifts[0]), math.floor(redshifts[-1]) + 1)
    places = np.interp(whole, redshifts, np.arange(len(redshifts)) + 0.5)
    kept: list[int] = []
    for k, place in enumerate(places):
        if not kept or place - places[kept[-1]] > _TICKS_APART * len(redshifts):
            kept.append(k)
    return places[kept], [f"{whole[k]}" for k in kept]


def _ticks(plt: Any, low: float, high: float) -> Floats:
    """Round numbers below and above zero, and zero itself."""
    locator = plt.matplotlib.ticker.MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
    each = [locator.tick_values(*sorted((0.0, end))) for end in (low, high)]
    ticks = np.unique(np.concatenate([*each, [0.0]]))
    return ticks[(ticks >= low) & (ticks <= high)]
