"""run_21cmfast: light cones of 21cmFAST itself, in parallel and resumably, into one file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from skatr_sk._checks import Choice, Integer, Problems, listed, require, warn
from skatr_sk._files import check_room, check_writable, private_folder, write_whole
from skatr_sk.lightcones import worker_21cmfast
from skatr_sk.lightcones.converting import _is_whole, _join, _parts_of
from skatr_sk.lightcones.writing import FORMAT, Stack, save_lightcones, say_if_replaced
from skatr_sk.parameters import PRIOR_BOUNDS
from skatr_sk.simulator import SimulatedLightcones
from skatr_sk.training.progress import watched
from skatr_sk.training.seeds import entropy_of

__all__ = ["run_21cmfast"]

_LOGGER = logging.getLogger("skatr_sk.lightcones")
_TABLE = {"n_jobs": Integer(1), "on_failure": Choice("raise", "drop")}
_SEEDS = 2**31 - 1  # of 21cmFAST


def run_21cmfast(
    path: str | os.PathLike[str],
    n_samples: int = 100,
    *,
    field_shape: Sequence[int] = (28, 28, 470),
    parameters: ArrayLike | None = None,
    prior_bounds: ArrayLike | None = None,
    cell_size: float = 200 / 28,
    redshift_min: float = 5.0,
    dark_matter: Literal["warm", "cold"] = "warm",
    random_state: int | np.random.Generator | np.random.RandomState | None = None,
    n_jobs: int = 1,
    on_failure: Literal["raise", "drop"] = "raise",
    dtype: DTypeLike = np.float16,
    compression: str = "none",
    verbose: int = 0,
) -> None:
    """Run 21cmFAST for many parameters, into the one file of :func:`save_lightcones`, resumably.

    It needs 21cmFAST 3.4 (``pip install "skatr_sk[simulate]"``): version 4 has no warm dark matter.
    Each light cone runs in a process of its own and is kept, whole or not at all, in the folder
    ``<path>.parts``. What was interrupted, or failed, goes on when it is called again with the same
    ``random_state``, an int, and the file is the same.

    Parameters
    ----------
    path : path
        Appears whole or not at all, with parameters, seeds and redshifts.
    n_samples, parameters, prior_bounds, cell_size, redshift_min, dark_matter
        As for :class:`~skatr_sk.SimulatedLightcones`. With the same `random_state` the parameters
        are the same, too; the initial conditions are not.
    field_shape : tuple of 3 int, default=(28, 28, 470)
        Cells of a light cone. The sky must be a square, and is the side of the periodic box; with
        56, ``cell_size=200 / 56``, and a line of sight of 940, it is the same part of the sky in
        finer cells.
    random_state : int, numpy Generator or RandomState, optional
        Seed of parameters and initial conditions. Only an int can be gone on with.
    n_jobs : int, default=1
        Processes at a time, of one thread each.
    on_failure : {"raise", "drop"}, default="raise"
        What is done, when all others are made, about light cones that 21cmFAST fails to make: an
        error, after which another call tries them again; or a file without them, and a warning.
    dtype, compression
        As for :func:`save_lightcones`.
    verbose : int, default=0
        1 shows a progress bar.

    Raises
    ------
    ImportError
        Where 21cmFAST is not installed, or is not version 3.
    RuntimeError
        Where 21cmFAST fails; every row is named with the last line that it said.
    ValueError, FileExistsError, BlockingIOError, OSError
        As :func:`~skatr_sk.lightcones.convert_lightcones`.

    Notes
    -----
    Settings are those of the bundled light cones: ``DIM`` three times ``HII_DIM``, ``P_CUTOFF`` and
    ``M_WDM`` (warm dark matter), ``USE_TS_FLUCT``, heating by Lyman alpha and the microwave
    background, no mass-dependent zeta, no inhomogeneous recombinations, ``ZPRIME_STEP_FACTOR`` 1.1
    and ``NUM_FILTER_STEPS_FOR_Ts`` 10; all others are 21cmFAST's defaults. No light cone is left
    out for what it shows, so some are not reionised at the near end.

    Examples
    --------
    >>> from skatr_sk.lightcones import run_21cmfast
    >>> run_21cmfast("cones.h5", 200, random_state=0, n_jobs=8)  # doctest: +SKIP
    >>> run_21cmfast(
    ...     "fine.h5", 20, field_shape=(56, 56, 940), cell_size=200 / 56, random_state=0
    ... )  # doctest: +SKIP
    """
    path = Path(path)
    entropy = entropy_of(random_state)
    # The same parameters and sizes, checked alike; nothing of it is simulated.
    ours = SimulatedLightcones(
        n_samples,
        field_shape=field_shape,
        parameters=parameters,
        prior_bounds=prior_bounds,
        cell_size=cell_size,
        redshift_min=redshift_min,
        dark_matter=dark_matter,
        random_state=entropy,
    )
    shape: tuple[int, ...] = ours.shape[1:]
    problems = Problems("run_21cmfast")
    problems.check(_TABLE, dict(n_jobs=n_jobs, on_failure=on_failure))
    if shape[0] != shape[1]:
        problems.add("field_shape", "a square sky", shape)
    seeds = [_seed(entropy, row) for row in range(n_samples)]
    bounds = PRIOR_BOUNDS if prior_bounds is None else prior_bounds
    labels: dict[str, Any] = dict(
        target=ours.target,
        target_names=None,
        target_units=None,
        target_bounds=bounds if parameters is None else None,
        redshifts=ours.redshifts(),  # until 21cmFAST tells its own
        seeds=seeds,
        grid=ours.grid,
    )
    storage = dict(dtype=dtype, compression=compression)
    stack = Stack.plan(problems, ours, labels, storage)
    problems.raise_if_any()
    _check_version(require("py21cmfast", "run_21cmfast", "simulate"))
    check_writable(path)
    names = [f"{row:09d}.h5" for row in range(n_samples)]
    job = [
        dict(
            parameters=values.tolist(),
            seed=seed,
            field_shape=shape,
            cell_size=float(cell_size),
            redshift_min=float(redshift_min),
            cold=dark_matter == "cold",
        )
        for values, seed in zip(ours.target, seeds, strict=True)
    ]
    digest = hashlib.blake2b(json.dumps(job).encode(), digest_size=16).hexdigest()
    note = {"format": FORMAT, "dtype": stack.dtype.str, "compression": compression, "rows": digest}
    with _parts_of(path, json.dumps(note, sort_keys=True).encode(), names) as folder:
        parts = [folder / name for name in names]
        left = [row for row in range(n_samples) if not _is_whole(parts[row], (1, *shape), stack)]
        check_room(path, stack.n_bytes, beside=stack.n_bytes * len(left) // n_samples)

        def make(row: int) -> str:
            parts[row].unlink(missing_ok=True)
            return _make(parts[row], job[row], storage)

        with (
            watched("21cmFAST", n_samples, "cone", verbose=verbose, logger=_LOGGER) as tell,
            ThreadPoolExecutor(n_jobs) as pool,
        ):
            tell(n_samples - len(left))
            faults = {}
            try:
                for row, fault in zip(left, pool.map(make, left), strict=True):
                    if fault:
                        faults[row] = fault
                        _LOGGER.warning("21cmFAST failed in row %d: %s", row, fault)
                    tell(1)
            except BaseException:  # Ctrl-C: those that run come to their end, no other begins
                pool.shutdown(cancel_futures=True)
                raise
        _settle(faults, n_samples, on_failure, folder)
        kept = [row for row in range(n_samples) if row not in faults]
        labels["redshifts"] = np.stack([_redshifts(parts[row]) for row in kept])
        labels |= dict(target=ours.target[kept], seeds=np.array(seeds)[kept])
        stack = Stack.plan(problems, ours[kept], labels, storage)
        say_if_replaced(path)
        pieces = _join([parts[row] for row in kept], 1, stack.cones_in_a_chunk)
        write_whole(path, lambda temporary: stack.write(temporary, pieces), stack.n_bytes)


def _seed(entropy: int, row: int) -> int:
    """Seed of the initial conditions of a row, whatever the number of rows."""
    drawn = np.random.SeedSequence(entropy, spawn_key=(row, 21)).generate_state(1)
    return int(drawn[0]) % _SEEDS


def _check_version(package: Any) -> None:
    """Refuse a 21cmFAST without warm dark matter."""
    version = str(getattr(package, "__version__", "of no version"))
    if not version.startswith("3."):
        raise ImportError(
            f"run_21cmfast needs 21cmFAST 3.4, found {version}; version 4 has no warm dark matter: "
            'pip install "skatr_sk[simulate]".'
        )


def _make(part: Path, job: dict[str, Any], storage: dict[str, Any]) -> str:
    """Run 21cmFAST for one row, and keep what it makes; return what went wrong, or nothing."""
    script = Path(worker_21cmfast.__file__).read_text(encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with private_folder(part.parent) as folder:
        made = folder / "made.npz"
        done = subprocess.run(
            # -P: no module of the working folder is taken for one of Python's.
            [sys.executable, "-P", "-c", script, json.dumps(job), str(made)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if done.returncode or not made.exists():
            said = done.stderr.strip().splitlines()
            return said[-1] if said else f"its process ended with {done.returncode}"
        with np.load(made, allow_pickle=False) as arrays:
            cells, redshifts = arrays["cells"], arrays["redshifts"]
        if np.abs(cells).max() > np.finfo(storage["dtype"]).max:
            return f"cells up to {np.abs(cells).max():.3g} mK, which the dtype cannot hold"
        save_lightcones(part, cells[None], redshifts=redshifts[None], **storage)
    return ""


def _redshifts(part: Path) -> np.ndarray:
    with h5py.File(part, "r") as file:
        return file["redshifts"][0]


def _settle(faults: dict[int, str], n: int, on_failure: str, folder: Path) -> None:
    """Raise, or warn of, what failed."""
    if not faults:
        return
    said = listed(f"row {row}: {fault}" for row, fault in faults.items())
    if on_failure == "drop" and len(faults) < n:
        warn(f"21cmFAST failed in {len(faults)} of {n} light cones, which are left out: {said}.")
        return
    raise RuntimeError(
        f"21cmFAST failed in {len(faults)} of {n} light cones: {said}. The others are kept in "
        f"{folder}; call again to try these once more, or with on_failure='drop' to leave them out."
    )
