"""What the judgements of posteriors share: checked samples, batches with a bar, ties, seeds."""

from __future__ import annotations

__all__ = [
    "check_finite",
    "check_samples",
    "in_batches",
    "real",
    "share_below",
    "stream",
    "unwrap",
]

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

_BATCH_VALUES = 4_000_000  # of the samples of one batch: temporaries are a few times that
_BAR_AFTER = 2.0  # seconds before a progress bar shows


def check_samples(
    samples: ArrayLike, y_true: ArrayLike
) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64]]:
    """Samples (n_lightcones, n_samples, n_parameters) and truths (n_lightcones, n_parameters).

    Samples keep their precision and are not copied, so that a file-backed array stays in its file.
    """
    drawn = real("samples", samples)
    true = real("y_true", y_true).astype(np.float64)
    true = true[:, np.newaxis] if true.ndim == 1 else true
    if drawn.ndim != 3 or 0 in drawn.shape or true.shape != (len(drawn), drawn.shape[-1]):
        raise ValueError(
            f"samples has shape {drawn.shape} and y_true {np.shape(y_true)}, expected "
            "(n_lightcones, n_samples, n_parameters) and (n_lightcones, n_parameters)."
        )
    for name, values in (("samples", drawn), ("y_true", true)):
        check_finite(name, values)
    return drawn, true


def real(name: str, values: ArrayLike) -> NDArray[Any]:
    """Floating-point numbers, not copied where they are such already."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected real numbers; convert it to float first."
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Raise where light cones have NaN or infinite values, batch by batch."""
    bad: list[int] = []
    for rows in in_batches(values.shape, name):
        part = np.isfinite(values[rows]).reshape(len(values[rows]), -1).all(axis=1)
        bad += (rows.start + np.flatnonzero(~part)).tolist()
    if bad:
        raise ValueError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(values)} light cones, "
            f"the first of them {bad[0]}; leave those out."
        )


def in_batches(shape: tuple[int, ...], title: str, verbose: int = 0) -> Iterator[slice]:
    """Slices of light cones whose temporaries stay small, with a bar for long calls."""
    step = max(1, _BATCH_VALUES // math.prod(shape[1:]))
    with tqdm(
        total=shape[0], desc=title, unit="cone", delay=_BAR_AFTER, disable=not verbose
    ) as bar:
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            yield rows
            bar.update(rows.stop - rows.start)


def share_below(
    below: NDArray[np.integer[Any]],
    ties: NDArray[np.integer[Any]] | int,
    n_samples: int,
    jitter: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Where the truth stands among its samples, in [0, 1), from counts of those below and equal.

    With a jitter uniform in [0, 1), and truth and samples drawn alike, it is uniform exactly, for
    any number of samples and any ties: each of the places that the truth may take has its own
    interval of width 1 / (n_samples + 1).
    """
    return (below + jitter * (np.asarray(ties) + 1)) / (n_samples + 1)


def stream(random_state: Any, key: int) -> np.random.Generator:
    """A generator of one purpose: with one seed, no two purposes share their numbers."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31 - 1)
    try:
        return np.random.default_rng(np.random.SeedSequence(random_state, spawn_key=(key,)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"random_state is {random_state!r}, expected an int >= 0, a numpy RandomState or "
            "Generator, or None."
        ) from error


def unwrap(estimator: Any) -> tuple[list[Any], Any]:
    """The transformers that a light cone goes through, and the estimator at the end.

    Looks into Pipelines and fitted searches, in any nesting.
    """
    before: list[Any] = []
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            if len(estimator.steps) > 1:
                before.append(estimator[:-1])
            estimator = estimator.steps[-1][1]
        else:
            return before, estimator
