"""Names of parameters, and samples in the formats of other packages."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_names", "getdist_names", "require", "to_arviz", "to_getdist"]


def check_names(names: Sequence[str] | None, y: Any, n_parameters: int) -> list[str]:
    """Names of the parameters: those given, else those of the columns of `y`, else numbers.

    Examples
    --------
    >>> check_names(None, None, 2)
    ['parameter 0', 'parameter 1']
    """
    if names is None:
        columns = getattr(y, "columns", None)
        if columns is None:
            columns = [y.name] if isinstance(getattr(y, "name", None), str) else []
        found = list(columns)
        if len(found) == n_parameters and len(set(found)) == len(found):
            return [str(name) for name in found]
        return [f"parameter {i}" for i in range(n_parameters)]
    listed = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else []
    strings = all(isinstance(name, str) for name in listed)
    if len(listed) != n_parameters or not strings or len(set(listed)) != len(listed):
        raise ValueError(
            f"parameter_names is {names!r}, expected {n_parameters} distinct strings, one for each "
            "column of y."
        )
    return [str(name) for name in listed]


def require(package: str, caller: str) -> Any:
    """Import an optional package, or say in one sentence how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{caller} needs {package}, which is not installed: pip install "skatr_sk[{package}]".'
        ) from error


def to_arviz(
    samples: NDArray[np.float64], log_prob: NDArray[np.float64], names: Sequence[str]
) -> Any:
    """Make an InferenceData: one chain of draws, the light cones as a dimension.

    Parameters
    ----------
    samples : ndarray of shape (n, n_samples, n_parameters)
    log_prob : ndarray of shape (n, n_samples)
        Goes to ``sample_stats`` as ``lp``.
    names : sequence of str
    """
    arviz = require("arviz", "to_arviz")
    draws = samples.transpose(2, 1, 0)[:, np.newaxis]
    posterior = dict(zip(names, draws, strict=True))
    stats = {"lp": log_prob.T[np.newaxis]}
    cones = {"lightcone": np.arange(len(samples))}
    dims = {name: ["lightcone"] for name in [*names, "lp"]}
    return arviz.from_dict(posterior=posterior, sample_stats=stats, coords=cones, dims=dims)


def to_getdist(
    samples: NDArray[np.float64],
    log_prob: NDArray[np.float64],
    names: Sequence[str],
    bounds: NDArray[np.float64],
) -> list[Any]:
    """Make one MCSamples a light cone, with the prior's box as its ranges.

    Parameters
    ----------
    samples : ndarray of shape (n, n_samples, n_parameters)
    log_prob : ndarray of shape (n, n_samples)
    names : sequence of str
        Short names where GetDist would not take them as they are; its labels show them in full.
    bounds : ndarray of shape (n_parameters, 2)
        Infinite where there are none.
    """
    getdist = require("getdist", "to_getdist")
    short = getdist_names(names)
    ranges = {
        name: [end if math.isfinite(end) else None for end in pair]
        for name, pair in zip(short, bounds.tolist(), strict=True)
    }
    labels = [name.replace("_", r"\_") for name in names]
    return [
        getdist.MCSamples(
            samples=each, loglikes=-log, names=short, labels=labels, ranges=ranges, label=str(i)
        )
        for i, (each, log) in enumerate(zip(samples, log_prob, strict=True))
    ]


def getdist_names(names: Sequence[str]) -> list[str]:
    """Distinct names that GetDist takes: no blanks, and no ``*`` or ``?``, which mean more to it.

    A name that is fine stays; one that is changed into another's gets a number.

    Examples
    --------
    >>> getdist_names(["a b", "a_b", "x*"])
    ['a_b_2', 'a_b', 'x_']
    """
    short = [re.sub(r"[\s*?]", "_", name) or "_" for name in names]
    taken = {new for new, name in zip(short, names, strict=True) if new == name}
    for i, (new, name) in enumerate(zip(short, names, strict=True)):
        if new == name:
            continue
        numbered = (f"{new}_{k}" for k in itertools.count(2))
        short[i] = next(each for each in itertools.chain([new], numbered) if each not in taken)
        taken.add(short[i])
    return short
