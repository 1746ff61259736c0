"""Grid: where the cells of fields lie, as far as it is known, in words that no cosmology changes.

Light cones of one grid have cells of one comoving size and begin at one redshift. Beyond it their
redshifts differ as ``Omega_m`` does, so that grids are not compared by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

__all__ = ["SAME_SIZE", "Grid", "depths_of", "redshifts_of"]

SAME_SIZE = 0.01  # of a cell: 7.1 Mpc and 200 / 28 are one size
_SAME_START = 0.25  # of a cell along the line of sight
_EVEN = 0.02  # of the line of sight: how far from equal comoving steps dark energy makes them seem
_MATTER = 15_900.0  # Mpc of a unit of depths_of, 2 c / (H_0 sqrt(Omega_m)), of Planck 2018
_DIGITS = 6  # of redshifts


def depths_of(redshifts: Any) -> np.ndarray:
    """Comoving distances up to a factor and a constant: ``-1 / sqrt(1 + z)``, where matter rules.

    Beyond redshift 5 dark energy and radiation change steps by less than 2 %, and ``Omega_m`` is in
    the factor, so that this needs no cosmology.
    """
    return -1 / np.sqrt(1 + np.asarray(redshifts, dtype=np.float64))


def redshifts_of(depths: Any) -> np.ndarray:
    """Inverse of :func:`depths_of`."""
    return np.asarray(depths, dtype=np.float64) ** -2 - 1


@dataclass(frozen=True)
class Grid:
    """Cell sizes and redshifts of fields; what is not known is None.

    Parameters
    ----------
    cell_size : tuple of float or None, one for each axis of a field
        Comoving sizes of a cell in Mpc. Along the line of sight None also stands for slices that
        are not of one comoving size, such as those of equal steps in redshift or frequency.
    redshifts : tuple of float of length n_z, optional
        Of the centres of the slices, nearest first, in a typical cone: other values of Omega_m have
        others, beyond the nearest.
    origin : float, optional
        Redshift at the near edge of what was simulated, which all cones share; by default that of
        the first slice of `redshifts`.
    start : float, default=0.0
        Comoving distance in Mpc from there to the near edge of the first slice.

    Raises
    ------
    ValueError
        When sizes or redshifts are none.

    Examples
    --------
    >>> fine = Grid((7.1, 7.1, 7.1), (5.0, 5.013, 5.026, 5.039))
    >>> round(fine.origin, 3), fine.differences(Grid((14.2, 14.2, 7.1)))
    (4.993, ['cells of 14.2 Mpc on axis 0, not 7.1', 'cells of 14.2 Mpc on axis 1, not 7.1'])
    """

    cell_size: tuple[float | None, ...]
    redshifts: tuple[float, ...] | None = None
    origin: float | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        sizes = tuple(None if size is None else float(size) for size in self.cell_size)
        object.__setattr__(self, "cell_size", sizes)
        if not sizes or not all(size is None or 0 < size < math.inf for size in sizes):
            raise ValueError(f"cell_size: expected sizes in Mpc, or None, found {sizes}")
        if self.redshifts is not None:
            each = tuple(round(float(z), _DIGITS) for z in self.redshifts)
            object.__setattr__(self, "redshifts", each)
            if not (each and 0 <= each[0] and each[-1] < math.inf and (np.diff(each) > 0).all()):
                raise ValueError(f"redshifts: expected rising numbers >= 0, found {each[:5]} ...")
        for name in ("origin", "start"):
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(number))
        if not all(number is None or math.isfinite(number) for number in (self.origin, self.start)):
            raise ValueError(f"origin: expected a redshift, found {self.origin}, {self.start}")
        if self.origin is None and self.start == 0:
            object.__setattr__(self, "origin", self.nearest)

    def fits(self, field_shape: Sequence[int]) -> bool:
        """Whether it can be the grid of fields of a shape."""
        right = self.redshifts is None or len(self.redshifts) == field_shape[-1]
        return right and len(self.cell_size) == len(field_shape)

    @property
    def nearest(self) -> float | None:
        """Redshift at the near edge of the first slice, in a typical cone."""
        if self.redshifts is None or len(self.redshifts) < 2:
            return None
        near, far = depths_of(self.redshifts[:2])
        return round(float(redshifts_of(near - (far - near) / 2)), _DIGITS)

    @property
    def steps_of_slice(self) -> float | None:
        """Mean distance between its slices, in sizes of a slice: 1 within the spread of Omega_m.

        None where either is not known.
        """
        size, z = self.cell_size[-1], self.redshifts
        if size is None or z is None or len(z) < 2:
            return None
        near, far = depths_of([z[0], z[-1]])
        return float(_MATTER * (far - near) / (len(z) - 1) / size)

    @property
    def is_even(self) -> bool:
        """Whether slices are of one comoving size, as far as can be told."""
        if self.cell_size[-1] is not None or self.redshifts is None:
            return True
        depths = depths_of(self.redshifts)
        even = np.linspace(depths[0], depths[-1], len(depths))
        return bool(np.abs(depths - even).max() <= _EVEN * (depths[-1] - depths[0]))

    def differences(self, other: Grid) -> list[str]:
        """What of another grid is not as in this one; what one of them does not know is as it is.

        Cell sizes may differ by a hundredth, and the near edge by a quarter of a slice.
        """
        if len(self.cell_size) != len(other.cell_size):
            return [f"{len(other.cell_size)} axes, not {len(self.cell_size)}"]
        wrong = []
        for axis, (mine, its) in enumerate(zip(self.cell_size, other.cell_size, strict=True)):
            if mine and its and abs(mine - its) > SAME_SIZE * mine:
                wrong.append(f"cells of {its:.3g} Mpc on axis {axis}, not {mine:.3g}")
        if self.is_even and not other.is_even:
            wrong.append("slices that are not of one comoving size")
        if self.differs_in_start(other):
            near = f"redshift {other.nearest:.4g}, not {self.nearest:.4g}"
            wrong.append(f"the nearest slice from {near}")
        return wrong

    def differs_in_start(self, other: Grid) -> bool:
        """Whether the near edges of both are known, and in different places."""
        size = self.cell_size[-1] or other.cell_size[-1] or math.inf
        if self.is_measured_from(other):  # in whatever cosmology
            return abs(self.start - other.start) > _SAME_START * size
        edges = self.nearest, other.nearest
        if self.start == other.start:
            edges = self.origin, other.origin
        return self._apart(other, *edges) > _SAME_START

    def is_measured_from(self, other: Grid) -> bool:
        """Whether the same redshift is the origin of both."""
        if self.origin is None or other.origin is None:
            return False
        return self._apart(other, self.origin, other.origin) <= _SAME_START

    def _apart(self, other: Grid, mine: float | None, its: float | None) -> float:
        """How far two redshifts are apart, in slices; 0 where they are not known."""
        steps = [z[1] - z[0] for z in (self.redshifts, other.redshifts) if z is not None and z[1:]]
        if mine is None or its is None or not steps:
            return 0.0
        return abs(mine - its) / max(steps)

    def cut(self, cells: Sequence[slice], field_shape: Sequence[int]) -> Self:
        """Grid of a part of fields of a shape: slices of each axis, with steps of at least 1."""
        sizes, start, origin = list(self.cell_size), self.start, self.origin
        for axis, (part, n) in enumerate(zip(cells, field_shape, strict=True)):
            first, _, step = part.indices(n)
            size = sizes[axis]
            if size is None:
                continue
            sizes[axis] = size * step
            if axis == len(sizes) - 1:
                start += size * (first + 0.5 - step / 2)
        redshifts = None if self.redshifts is None else self.redshifts[cells[-1]]
        if sizes[-1] is None and redshifts != self.redshifts:
            origin, start = None, 0.0
        return replace(
            self, cell_size=tuple(sizes), redshifts=redshifts, origin=origin, start=start
        )

    def __str__(self) -> str:
        sizes = " x ".join("?" if size is None else f"{size:.3g}" for size in self.cell_size)
        known = f"cells of {sizes} Mpc"
        if self.redshifts is None:
            return known
        return f"{known}, slices at redshift {self.redshifts[0]:.4g} to {self.redshifts[-1]:.4g}"
