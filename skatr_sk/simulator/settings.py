"""What users ask of the simulator, checked."""

from __future__ import annotations

import hashlib
import numbers
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import Choice, Integer, Problems, Real, Rule, warn_no_effect
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS, check_order
from skatr_sk.simulator.cosmology import comoving_distances
from skatr_sk.simulator.lightcone import FARTHEST, Box
from skatr_sk.training.device import DEVICE_HINT, device_mend, resolve_device
from skatr_sk.training.seeds import ENTROPY_HINT, is_entropy

__all__ = ["Settings", "check_settings"]

# Goes into the digests of rows: raise it when the same settings give other light cones.
_VERSION = 2
# Beyond these, in the order of the parameters, the formulae do not hold. An L_X of 10^20 is no
# X-rays at all, dark matter of 10^6 keV is cold.
_LIMITS = np.array([[0.1, 1e6], [0.1, 1.0], [80, 1900], [20, 45], [4, 7], [0, 1e5]])


class Settings(NamedTuple):
    """All that light cones depend on except their seeds, and where they are simulated."""

    field_shape: tuple[int, ...]
    block: tuple[int, ...]
    parameters: np.ndarray | None  # (n, 6)
    prior_bounds: np.ndarray  # (6, 2)
    box: Box  # before block means
    device: str
    batch_size: int | None
    cold: bool  # whether the mass of the dark matter particle is a label without effect

    def digest(self) -> bytes:
        """32 bytes that identify these settings, except parameters given row by row."""
        drawn = self.prior_bounds.tobytes() if self.parameters is None else b"given"
        version = _VERSION + self.box.linear  # since then linear growth leaves no cell empty
        text = repr((version, self.field_shape, self.block, tuple(self.box))).encode()
        text += b"cold" if self.cold else b""
        return hashlib.blake2b(text + drawn, digest_size=32).digest()


def check_settings(given: Mapping[str, Any]) -> Settings:
    """Check the parameters of :class:`~skatr_sk.SimulatedLightcones`; name all that is wrong."""
    problems = Problems("SimulatedLightcones")
    problems.check(_TABLE, given)
    n = given["n_samples"] if Integer(1).fault(given["n_samples"]) is None else None
    values, bounds = given["parameters"], given["prior_bounds"]
    check_order("parameters", values, PARAMETER_NAMES)
    check_order("prior_bounds", bounds, PARAMETER_NAMES, "rows")
    bounds = _numbers(problems, "prior_bounds", PRIOR_BOUNDS if bounds is None else bounds, 6, 2)
    if values is not None:
        values = _numbers(problems, "parameters", values, n, 6)
        _check_limits(problems, "parameters", values)
    elif len(bounds):
        _check_limits(problems, "prior_bounds", bounds.T)
        for name, (low, high) in zip(PARAMETER_NAMES, bounds, strict=True):
            if low > high:
                problems.add("prior_bounds", f"low <= high for {name}", f"{low:g}, {high:g}")
    problems.raise_if_any()
    for name, idle, beside in (
        ("prior_bounds", values is not None, "parameters"),
        ("batch_size", resolve_device(given["device"]).type == "cpu", "a CPU"),
    ):
        if idle and given[name] is not None:
            warn_no_effect("SimulatedLightcones", [name], beside)

    shape, block = _sizes(given["field_shape"]), _sizes(given["block"], broadcast=True)
    n_x, n_y, n_z = (cells * size for cells, size in zip(shape, block, strict=True))
    cell, redshift_min = float(given["cell_size"]), float(given["redshift_min"])
    # The far end must not lie beyond the redshift where the simulation starts.
    omega_m = bounds[1, 1] if values is None else values[:, 1].max()
    near, far = comoving_distances([redshift_min, FARTHEST], omega_m)
    most = int((far - near) / cell) + 1
    if n_z > most:
        problems.add(
            "field_shape[2]",
            f"at most {most // block[2]} cells of {block[2] * cell:.3g} Mpc",
            shape[2],
            f"beyond them, for Omega_m = {omega_m:g}, lies redshift {FARTHEST:g}, where the "
            "simulation starts",
        )
    problems.raise_if_any()
    box = Box((n_x, n_y, n_z), cell, redshift_min, given["evolution"] == "linear")
    cold = given["dark_matter"] == "cold"
    device, batch_size = str(given["device"]), given["batch_size"]
    return Settings(shape, block, values, bounds, box, device, batch_size, cold)


def _sizes(value: Any, broadcast: bool = False) -> tuple[int, ...]:
    """Three sizes as a tuple of int; empty where `value` is not three sizes."""
    try:
        whole = broadcast and isinstance(value, numbers.Integral) and not isinstance(value, bool)
        sizes = tuple(operator.index(size) for size in ((value,) * 3 if whole else value))
    except TypeError:
        return ()
    return sizes if len(sizes) == 3 and min(sizes) >= 1 else ()


_TABLE = {
    "n_samples": Integer(1),
    "field_shape": Rule(lambda x: bool(_sizes(x)), "three integers >= 1: sky, sky, line of sight"),
    "block": Rule(
        lambda x: bool(_sizes(x, True)), "an integer >= 1 or three: sky, sky, line of sight"
    ),
    "cell_size": Real("[1, 30]"),
    "redshift_min": Real(f"[2, {FARTHEST - 5:g})"),
    "evolution": Choice("zeldovich", "linear"),
    "dark_matter": Choice("warm", "cold"),
    "random_state": Rule(is_entropy, ENTROPY_HINT),
    "device": Rule(device_mend, DEVICE_HINT),
    "batch_size": Integer(1, optional=True),
}


def _numbers(
    problems: Problems, name: str, value: ArrayLike, n_rows: int | None, n_columns: int
) -> np.ndarray:
    """Finite numbers as a new float64 array of a shape; without rows where something is wrong."""
    found: object = value
    try:
        array = np.array(value, dtype=np.float64)
        found = array.shape
        right = array.ndim == 2 and array.shape == (n_rows or len(array), n_columns)
    except (TypeError, ValueError):
        right = False
    if not right:
        expected = f"numbers of shape ({n_rows or 'n_samples'}, {n_columns})"
        problems.add(name, f"{expected}, for {', '.join(PARAMETER_NAMES)}", found)
    elif not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array).all(axis=1)))
        problems.add(name, "finite numbers", array[row].tolist(), f"see row {row}")
    else:
        return array
    return np.empty((0, n_columns))


def _check_limits(problems: Problems, name: str, values: np.ndarray) -> None:
    """Note values, a column for each parameter, for which the formulae do not hold."""
    wrong = (values < _LIMITS[:, 0]) | (values > _LIMITS[:, 1])
    for column in np.flatnonzero(wrong.any(axis=0)):
        row, (low, high) = int(np.argmax(wrong[:, column])), _LIMITS[column]
        expected = f"{PARAMETER_NAMES[column]} from {low:g} to {high:g}"
        mend = f"see row {row}" if name == "parameters" else ""
        problems.add(name, expected, float(values[row, column]), mend)
