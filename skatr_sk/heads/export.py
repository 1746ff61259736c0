"""Posterior samples (n, n_samples, n_parameters) in the formats of other packages."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from skatr_sk._checks import require
from skatr_sk.heads.prior_transform import Floats

__all__ = ["getdist_names", "to_arviz", "to_getdist"]


def to_arviz(samples: Floats, log_prob: Floats, names: Sequence[str]) -> Any:
    """Make an InferenceData: one chain of draws, the light cones as a dimension.

    The log densities (n, n_samples) go to ``sample_stats`` as ``lp``.
    """
    arviz = require("arviz", "to_arviz")
    posterior = dict(zip(names, samples.transpose(2, 1, 0)[:, np.newaxis], strict=True))
    stats = {"lp": log_prob.T[np.newaxis]}
    cones = {"lightcone": np.arange(len(samples))}
    dims = {name: ["lightcone"] for name in [*names, "lp"]}
    return arviz.from_dict(posterior=posterior, sample_stats=stats, coords=cones, dims=dims)


def to_getdist(
    samples: Floats, log_prob: Floats, names: Sequence[str], bounds: Floats
) -> list[Any]:
    """Make one MCSamples for each light cone, with the prior's bounds (n_parameters, 2) as ranges.

    Bounds are infinite where there are none. Names are changed where GetDist would not take them;
    its labels show them in full.
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
