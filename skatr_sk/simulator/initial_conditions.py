"""Gaussian initial conditions in a periodic box: density, smoothed on any scale, and velocities."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from skatr_sk.simulator.cosmology import Cosmology, match_axes, top_hat

__all__ = ["CELL_RADIUS", "Grid", "InitialConditions", "smooth", "to_modes"]

CELL_RADIUS = (4 * math.pi / 3) ** (-1 / 3)  # of the sphere with the volume of a cubic cell
_FINE = 3  # the matter is laid out on a grid that is finer by this factor
_FIRST_Z = 300.0  # where the displacements begin
_CELLS_AT_ONCE = 300_000  # that are smoothed, which keeps them in the processor's cache
_EMPTIEST = 0.2  # lowest density, over the mean, of matter that does not move


class Grid:
    """Wave numbers and filters of a periodic box of cubic cells, whose size `cell` is in Mpc."""

    def __init__(self, shape: tuple[int, int, int], cell: float, device: torch.device) -> None:
        self.shape, self.cell = shape, cell
        k = self._vectors([_wave_numbers(n) for n in shape])
        squared = (k**2).sum(0)
        self.k = squared.sqrt().to(device)  # of real waves, as the filters
        self.mu_squared = (k[2] ** 2 / squared.clamp(min=1e-12)).float().to(device)
        k = self._vectors([*map(torch.fft.fftfreq, shape[:2]), torch.fft.rfftfreq(shape[2])])
        self.directions = (k / (k**2).sum(0).clamp(min=1e-12)).float().to(device)
        # By symmetry many modes, and the wave numbers of many, are equal: each is looked up once.
        spacing = 2 * math.pi / (cell * max(shape)) * 1e-3
        each = k.abs().flatten(1).sort(dim=0).values
        _, like = torch.unique((each / spacing).round().long(), dim=1, return_inverse=True)
        distinct = each.new_empty(3, int(like.max()) + 1)
        distinct[:, like] = each
        images, *weights = self._aliases(distinct)
        labels, places = torch.unique((images / spacing).round().long(), return_inverse=True)
        self._like, self._places = like.view(k.shape[1:]).to(device), places.to(device)
        self._weights = torch.stack(weights).to(device)
        self._unique = labels.double().to(device) * spacing

    def _vectors(self, steps: list[Tensor]) -> Tensor:
        """Wave vectors in 1/Mpc of all waves whose numbers in a cell are given for each axis."""
        axes = torch.meshgrid(*(step.double() for step in steps), indexing="ij")
        return 2 * math.pi / self.cell * torch.stack(axes)

    def _aliases(self, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Wave numbers that cells cannot tell apart from those of vectors k (3, n_modes).

        With their weights in displacement and in mass, each of shape (n_aliases, n_modes).

        Matter lies on a grid that is finer by `_FINE`. A cell moves with the velocity in a sphere
        of its volume (a field over k squared), and has the mass that is in it.
        """
        images, displacement, mass = [], [], []
        for shift in itertools.product(range(-(_FINE // 2), _FINE // 2 + 1), repeat=3):
            moved = k + 2 * math.pi / self.cell * torch.tensor(shift)[:, None]
            squared = (moved**2).sum(0)
            images.append(squared.sqrt())
            sphere = top_hat(images[-1] * CELL_RADIUS * self.cell)
            displacement.append(sphere**2 * (k**2).sum(0) / squared.clamp(min=1e-12))
            mass.append(torch.sinc(moved * self.cell / (2 * math.pi)).prod(0) ** 2)
        return torch.stack(images), torch.stack(displacement), torch.stack(mass)

    def amplitudes(self, cosmology: Cosmology) -> tuple[Tensor, Tensor]:
        """Standard deviations of today's modes, for unit noise; each (n, *rfft shape), float32.

        The first is of minus the divergence of the cells' displacement, the second of their density
        contrast.
        """
        k = self._unique.clamp(min=1e-4).expand(len(cosmology.omega_m), -1)
        power = (cosmology.power(k) / self.cell**3)[:, self._places]
        variances = (self._weights * power[:, None]).sum(2)  # (n, 2, n_modes)
        displacement, mass = variances.sqrt().float()[:, :, self._like].unbind(1)
        displacement[:, 0, 0, 0] = mass[:, 0, 0, 0] = 0  # a box has the mean of the universe
        return displacement, mass

    def none(self) -> Tensor:
        """Filter that lets all pass."""
        return torch.ones_like(self.mu_squared)

    def top_hat(self, radius: float) -> Tensor:
        """Filter of a sphere of a radius in Mpc."""
        return top_hat(self.k * radius).float()

    def sharp(self, radius: float) -> Tensor:
        """Filter that is sharp in k, of the volume of a sphere of a radius in Mpc."""
        return (self.k * radius * (9 * math.pi / 2) ** (-1 / 3) <= 1).float()

    def groups(self, filters: list[Tensor]) -> list[Tensor]:
        """Stack filters for :func:`smooth`, as many as make fields that stay in the cache."""
        n = max(1, _CELLS_AT_ONCE // math.prod(self.shape))
        groups = []
        for i in range(0, len(filters), n):
            some = torch.stack(filters[i : i + n])
            _, n_x, n_y, n_z = (some.nonzero().amax(0) + 1).tolist()
            # Sharp filters pass nothing beyond some wave.
            groups.append(some[:, :n_x, :n_y, :n_z].contiguous())
        return groups


class InitialConditions:
    """Matter in the cells of n boxes, moved along straight lines from a Gaussian beginning.

    The approximation of Zel'dovich 1970: the mass of every cell travels by the linear displacement
    of its first position, as a cube, and is shared out to the cells that it ends in. The noise
    (n, *grid.shape) is unit normal.

    If `linear`, density contrasts grow and nothing moves. Those of the emptiest cells would fall
    below -1, and their gas cool to nothing on the way: no cell begins emptier than that at the
    redshift `last` it has a fifth of the mean density, which cells that move hardly come to.
    """

    def __init__(
        self, grid: Grid, cosmology: Cosmology, noise: Tensor, linear: bool, last: float
    ) -> None:
        self.grid, self._linear = grid, linear
        white = torch.fft.rfftn(noise, dim=(-3, -2, -1))
        displacement, mass = grid.amplitudes(cosmology)
        self._mass = self._to_cells(white * mass)  # density contrast of today if nothing moved
        begin = torch.full((len(noise),), _FIRST_Z, dtype=torch.float64, device=noise.device)
        self._first_growth = cosmology.growth(begin).to(noise.dtype)
        if linear:
            growth = match_axes(cosmology.growth(torch.full_like(begin, last)), noise)
            growth = growth.to(noise.dtype)
            matter = (1 + self._mass * growth).clamp(min=_EMPTIEST)
            matter = matter / matter.mean(dim=(1, 2, 3), keepdim=True)  # what was added is taken
            self._mass = (matter - 1) / growth
        else:
            modes = white * displacement
            # Displacement psi with div psi = -delta, in cells, of shape (3, n, *grid.shape).
            moves = [self._to_cells(1j * k * modes) / grid.cell for k in grid.directions]
            self._moves = torch.stack(moves)
            self._farthest = self._moves.abs().amax((0, 2, 3, 4))  # (n,)
            self._reach, self._laid_out = 0, [self._mass, self._moves]

    def _to_cells(self, modes: Tensor) -> Tensor:
        return torch.fft.irfftn(modes, s=self.grid.shape, dim=(-3, -2, -1))

    def matter(self, growth: Tensor) -> Tensor:
        """Density over the mean at a growth factor of shape (n,); shape (n, *grid.shape)."""
        growth = growth.to(self._mass.dtype)
        if self._linear:
            return 1 + self._mass * match_axes(growth, self._mass)
        distance = growth - self._first_growth
        reach = _reach(distance * self._farthest)
        if reach != self._reach:
            # In a box with margins, which begin without mass: :func:`_spread`.
            mass = 1 + match_axes(self._first_growth, self._mass) * self._mass
            both = mass, self._moves
            self._reach = reach
            self._laid_out = [torch.nn.functional.pad(each, [reach] * 6) for each in both]
        mass, moves = self._laid_out
        return _spread(mass, moves * match_axes(distance, mass), reach)


def _spread(mass: Tensor, moves: Tensor, reach: int) -> Tensor:
    """Share masses (n, *grid) out to cells that they overlap when moved by (3, n, *grid) cells.

    They lie in boxes with margins of `reach` cells on all sides, without mass, which are folded
    back in the end: space is periodic. So a whole box of masses moves by shifts along one axis of
    memory.
    """
    sizes = [size - 2 * reach for size in mass.shape[1:]]
    shares = [share.flatten(1).unbind() for share in _overlaps(moves, reach)]
    strides = mass.stride()[1:]
    farthest, n_cells = reach * sum(strides), mass.numel()
    flat = mass.new_zeros(n_cells + 2 * farthest)
    for i, (share, _, _) in enumerate(shares):
        along_x = mass.view(-1) * share
        for j, (_, share, _) in enumerate(shares):
            along_xy = along_x * share
            for k, (_, _, share) in enumerate(shares):
                start = i * strides[0] + j * strides[1] + k
                flat[start : start + n_cells].addcmul_(along_xy, share)
    total = flat[farthest : farthest + n_cells].view_as(mass)
    for axis, size in enumerate(sizes, start=1):
        inner = total.narrow(axis, reach, size).clone()
        # The margin before comes in again at the end, however small the box.
        for start, first in ((0, -reach), (size + reach, 0)):
            for step in range(reach):
                inner.select(axis, (first + step) % size).add_(total.select(axis, start + step))
        total = inner
    return total


def _reach(moves: Tensor) -> int:
    """How many cells on either side can get a share of cubes that move by at most so many cells."""
    half = (_FINE - 1) / (2 * _FINE)
    return max(1, math.ceil(float(moves.amax()) + half))


def _overlaps(moves: Tensor, reach: int) -> list[Tensor]:
    """Along each axis, the shares that the cells around get of cubes moved by `moves` cells.

    A cube, a cell wide, is `_FINE` clouds along each axis, each as wide as a cell. There are
    2 * reach + 1 shares, each of the shape of `moves`.
    """
    clouds = [(i - (_FINE - 1) / 2) / _FINE for i in range(_FINE)]
    if reach == 1:  # what passes a cell's centre on either side goes there, and the rest stays
        # Clouds lie evenly around the cube's centre: what is added to moves adds up to nothing.
        first, *others = (moves.clamp(min=cloud) for cloud in clouds)
        after = functools.reduce(Tensor.add_, others, first).div_(_FINE)
        before = (after - moves).clamp_(min=0)
        return [before, (before + after).neg_().add_(1), after]
    shares = []
    for offset in range(-reach, reach + 1):
        distances = ((moves + (cloud - offset)).abs_() for cloud in clouds)
        parts = (distance.neg_().add_(1).clamp_(min=0) for distance in distances)
        shares.append(functools.reduce(Tensor.add_, parts).div_(_FINE))
    return shares


def to_modes(density: Tensor) -> Tensor:
    """Amplitudes of the real waves that densities (n, n_x, n_y, n_z) are made of, in their shape.

    Along each axis they go from long to short (Hartley's transform). What is isotropic, or even in
    each axis, filters them as it filters complex waves. On axes that short, products of matrices
    are faster than FFTs.
    """
    return _along_axes(density, [_waves(n, density.device).mT for n in density.shape[1:]])


def smooth(modes: Tensor, filters: Tensor) -> Tensor:
    """Densities (n, n_filters, n_x, n_y, n_z) of modes (n, n_x, n_y, n_z) through filters.

    The axes of the filters (n_filters, ...) may end where no more modes pass.
    """
    n_x, n_y, n_z = filters.shape[1:]
    passed = modes[:, None, :n_x, :n_y, :n_z] * filters
    axes = zip(modes.shape[1:], filters.shape[1:], strict=True)
    return _along_axes(passed, [_waves(n, modes.device)[:, :n_passed] for n, n_passed in axes])


def _along_axes(fields: Tensor, matrices: list[Tensor]) -> Tensor:
    """Multiply the last three axes by a matrix each."""
    x, y, z = matrices
    fields = y @ (fields @ z.mT)
    return (x @ fields.flatten(-2)).unflatten(-1, fields.shape[-2:])


def _wave_numbers(n: int) -> Tensor:
    """Wave numbers over those of a wave in each cell: 0, then each twice, for two phases."""
    return (torch.arange(n, dtype=torch.float64) + 1) // 2 / n


@functools.lru_cache(maxsize=64)
def _waves(n: int, device: torch.device) -> Tensor:
    """Orthonormal waves in a period of n cells, (cells, waves), long ones first."""
    cells = torch.arange(n, dtype=torch.float64)
    # Eighths of a period before and behind are at right angles, and where one wave is, the same.
    phases = 2 * math.pi * (cells[:, None] * _wave_numbers(n) + (-1) ** cells / 8)
    return (math.sqrt(2 / n) * phases.cos()).to(device, torch.float32)
