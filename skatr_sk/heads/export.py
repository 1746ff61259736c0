"""Posterior samples (n, n_samples, n_parameters) in the formats of other packages."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from skatr_sk._checks import require
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.parameters import PARAMETERS

__all__ = ["getdist_names", "to_arviz", "to_getdist"]


def to_arviz(samples: Floats, log_prob: Floats, names: Sequence[str]) -> Any:
    """Make what ArviZ works with: one chain of draws, the light cones as a dimension.

    That is an InferenceData before ArviZ 1, and since then a DataTree of xarray. The log densities
    (n, n_samples) go to ``sample_stats`` as ``lp``.
    """
    arviz = require("arviz", "to_arviz")
    posterior = dict(zip(names, samples.transpose(2, 1, 0)[:, np.newaxis], strict=True))
    stats = {"lp": log_prob.T[np.newaxis]}
    cones = {"lightcone": np.arange(len(samples))}
    dims = {name: ["lightcone"] for name in [*names, "lp"]}
    groups = {"posterior": posterior, "sample_stats": stats}
    if "posterior" in inspect.signature(arviz.from_dict).parameters:
        return arviz.from_dict(**groups, coords=cones, dims=dims)
    return arviz.from_dict(groups, coords=cones, dims=dims)


def to_getdist(
    samples: Floats, log_prob: Floats, names: Sequence[str], bounds: Floats
) -> list[Any]:
    """Make one MCSamples for each light cone, with the prior's bounds (n_parameters, 2) as ranges.

    Bounds are infinite where there are none. Names are changed where GetDist would not take them;
    its labels show them in full, and the standard ones by their symbols and units.
    """
    getdist = require("getdist", "to_getdist")
    short = getdist_names(names)
    ranges = {
        name: [end if math.isfinite(end) else None for end in pair]
        for name, pair in zip(short, bounds.tolist(), strict=True)
    }
    labels = list(map(_label, names))
    return [
        getdist.MCSamples(
            samples=each, loglikes=-log, names=short, labels=labels, ranges=ranges, label=str(i)
        )
        for i, (each, log) in enumerate(zip(samples, log_prob, strict=True))
    ]


def _label(name: str) -> str:
    """Symbol and unit of a parameter in the mathematics of LaTeX, or its name, without dollars."""
    known = {each.name: each for each in PARAMETERS}.get(name.replace(" ", "_"))
    if known is None:
        return name.replace("_", r"\_")
    unit = known.symbol_unit.replace("Msun", r"M_\odot")
    return known.symbol.strip("$") + (rf"\;[\mathrm{{{unit}}}]" if unit else "")


def getdist_names(names: Sequence[str]) -> list[str]:
    """Distinct names that GetDist takes: no blanks, and no ``*`` or ``?``, which mean more to it.

    A name that is fine stays; one that is changed into another's gets a number.
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
