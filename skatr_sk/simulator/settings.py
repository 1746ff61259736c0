"""What a user may ask of the simulator, checked."""

from __future__ import annotations

import hashlib
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from skatr_sk.lightcones._cosmology import Cosmology
from skatr_sk.lightcones._lightcone import FARTHEST, Box

__all__ = ["PARAMETER_NAMES", "PRIOR_BOUNDS", "Settings", "check_settings", "entropy_of"]

PARAMETER_NAMES = ("m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta")
PRIOR_BOUNDS = np.array([[0.3, 10], [0.2, 0.4], [100, 1500], [38, 42], [4, 5.3], [10, 250]])
PRIOR_BOUNDS.setflags(write=False)
# Beyond these the formulae say nothing. An L_X of 10^20 is none, dark matter of 10^6 keV is cold.
_LIMITS = np.array([[0.1, 1e6], [0.1, 1.0], [80, 1900], [20, 45], [4, 7], [0, 1e5]])
_EVOLUTIONS = ("zeldovich", "linear")
# Goes into the digests of rows: raise it when the same settings give other light cones.
_VERSION = 1


class Settings(NamedTuple):
    """Everything that light cones depend on but their seeds.

    Attributes
    ----------
    field_shape, block : tuple of 3 int
    parameters : ndarray of shape (n, 6) or None
    prior_bounds : ndarray of shape (6, 2)
    box : Box
        Before block means.
    device : str
    batch_size : int or None
    """

    field_shape: tuple[int, ...]
    block: tuple[int, ...]
    parameters: np.ndarray | None
    prior_bounds: np.ndarray
    box: Box
    device: str
    batch_size: int | None

    def torch_device(self) -> torch.device:
        """The device; "auto" is decided now, so that a pickle goes on on another machine."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def digest(self) -> bytes:
        """32 bytes that name these settings, but for parameters given row by row."""
        drawn = self.prior_bounds.tobytes() if self.parameters is None else b"given"
        text = repr((_VERSION, self.field_shape, self.block, tuple(self.box))).encode()
        return hashlib.blake2b(text + drawn, digest_size=32).digest()


def entropy_of(random_state: Any) -> int:
    """Seed of all rows, from what scikit-learn takes as a random state."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**63))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    whole = isinstance(random_state, numbers.Integral) and not isinstance(random_state, bool)
    if not whole or random_state < 0:
        raise ValueError(
            "random_state must be a non-negative int, a numpy Generator or RandomState, or None; "
            f"found {random_state!r}."
        )
    return int(random_state)


def check_settings(
    n_samples: int,
    field_shape: Sequence[int],
    parameters: ArrayLike | None,
    prior_bounds: ArrayLike | None,
    cell_size: float,
    block: int | Sequence[int],
    redshift_min: float,
    evolution: str,
    device: str | torch.device,
    batch_size: int | None,
) -> Settings:
    """Check what a user asks for, and say everything that is wrong at once.

    Raises
    ------
    ValueError
    """
    problems: list[str] = []
    shape = _sizes("field_shape", field_shape, problems)
    blocks = _sizes("block", (block,) * 3 if _is_int(block) else block, problems)
    if not _is_int(n_samples) or n_samples < 1:
        problems.append(f"n_samples must be an integer >= 1; found {n_samples!r}")
    if batch_size is not None and (not _is_int(batch_size) or batch_size < 1):
        problems.append(f"batch_size must be an integer >= 1 or None; found {batch_size!r}")
    if evolution not in _EVOLUTIONS:
        options = " or ".join(map(repr, _EVOLUTIONS))
        problems.append(f"evolution must be {options}; found {evolution!r}")
    if not _is_real(cell_size) or not 1 <= cell_size <= 30:
        problems.append(f"cell_size must be a number of Mpc from 1 to 30; found {cell_size!r}")
    if not _is_real(redshift_min) or not 2 <= redshift_min < FARTHEST - 5:
        problems.append(
            f"redshift_min must be a number from 2 to {FARTHEST - 5:g}; found {redshift_min!r}"
        )
    problems += _device_problems(device)
    bounds = _numbers("prior_bounds", PRIOR_BOUNDS if prior_bounds is None else prior_bounds,
                      (len(PARAMETER_NAMES), 2), problems)  # fmt: skip
    values = None
    if parameters is not None:
        rows = n_samples if _is_int(n_samples) else -1
        values = _numbers("parameters", parameters, (rows, len(PARAMETER_NAMES)), problems)
        _limit_problems("parameters", values, problems)
    elif bounds is not None:
        _limit_problems("prior_bounds", bounds.T, problems)
        problems += [
            f"prior_bounds of {name}: the first, {low:g}, is above the second, {high:g}"
            for name, (low, high) in zip(PARAMETER_NAMES, bounds, strict=True)
            if low > high
        ]
    if problems:
        raise ValueError("; ".join(problems) + ".")
    assert shape is not None and blocks is not None and bounds is not None  # else a problem
    fine = tuple(cells * size for cells, size in zip(shape, blocks, strict=True))
    box = Box(
        (fine[0], fine[1], fine[2]), float(cell_size), float(redshift_min), evolution == "linear"
    )
    highest = bounds[1, 1] if values is None else values[:, 1].max()
    _check_depth(box, float(highest), blocks[-1])
    return Settings(shape, blocks, values, bounds, box, str(device), batch_size)


def _check_depth(box: Box, omega_m: float, block: int) -> None:
    """Raise where the far end lies before the simulation's beginning."""
    cosmology = Cosmology(torch.tensor([omega_m]), torch.tensor([math.inf]))
    ends = torch.tensor([[box.redshift_min, FARTHEST]], dtype=torch.float64)
    near, far = cosmology.distance(ends)[0].tolist()
    most = int((far - near) / box.cell_size) + 1
    if box.shape[2] > most:
        raise ValueError(
            f"field_shape[2] = {box.shape[2] // block} reaches beyond redshift {FARTHEST:g}, where "
            f"the simulation starts, for Omega_m = {omega_m:g}: at most {most // block} cells of "
            f"{block * box.cell_size:.3g} Mpc fit."
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _sizes(name: str, value: Any, problems: list[str]) -> tuple[int, ...] | None:
    """Three positive integers."""
    try:
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1:
        problems.append(
            f"{name} must be three integers >= 1, sky, sky, line of sight; found {value!r}"
        )
        return None
    return sizes


def _numbers(
    name: str, value: ArrayLike, shape: tuple[int, int], problems: list[str]
) -> np.ndarray | None:
    """Finite numbers of a shape, as a float64 array of our own."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        problems.append(f"{name} must be numbers of shape {shape}; found {type(value).__name__}")
        return None
    if array.shape != shape:
        problems.append(f"{name} must have shape {shape}, for {', '.join(PARAMETER_NAMES)}; found "
                        f"shape {array.shape}")  # fmt: skip
        return None
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        problems.append(f"{name} must be finite; found {array[row].tolist()} in row {row}")
        return None
    return array


def _limit_problems(name: str, values: np.ndarray | None, problems: list[str]) -> None:
    """Note parameters, in columns, for which the formulae do not hold."""
    if values is None:
        return
    for column, (parameter, (low, high)) in enumerate(zip(PARAMETER_NAMES, _LIMITS, strict=True)):
        bad = (values[:, column] < low) | (values[:, column] > high)
        if bad.any():
            found = values[np.argmax(bad), column]
            where = f" in row {int(np.argmax(bad))}" if name == "parameters" else ""
            problems.append(
                f"{name}: {parameter} must be from {low:g} to {high:g}; found {found:g}{where}"
            )


def _device_problems(device: Any) -> list[str]:
    if device == "auto":
        return []
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = None
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return []
    return [f"device must be 'cpu', 'auto', or 'cuda' where torch sees a GPU; found {device!r}"]
