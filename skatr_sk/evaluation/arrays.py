"""Targets, predictions and posterior samples as checked arrays, and loops over many light cones."""

from __future__ import annotations

__all__ = ["Floats", "check_samples", "check_targets", "in_batches", "not_finite", "real_array"]

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from tqdm.auto import tqdm

from skatr_sk._checks import listed
from skatr_sk.parameters import check_order

Floats = NDArray[np.float64]
_BATCH_VALUES = 4_000_000  # samples in one batch: temporaries are a few times as large
_BAR_AFTER = 2.0  # seconds before a progress bar shows


def real_array(name: str, values: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return floating-point numbers, not copied where they are such already."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array, found other ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name}: expected real numbers, found dtype {array.dtype}; convert it to float first."
        )
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _as_columns(name: str, values: ArrayLike) -> Floats:
    """Return float64, one column for each parameter where `values` has one dimension."""
    array = real_array(name, values).astype(np.float64)
    return array[:, np.newaxis] if array.ndim == 1 else array


def not_finite(name: str, values: NDArray[Any]) -> str:
    """Say which rows hold NaN or infinite values, or return an empty text where none does."""
    bad: list[int] = []
    for rows in in_batches(values.shape, name):
        finite = np.isfinite(values[rows]).reshape(len(values[rows]), -1).all(axis=1)
        bad += (rows.start + np.flatnonzero(~finite)).tolist()
    if not bad:
        return ""
    return (
        f"{name}: expected finite numbers, found NaN or infinite values in {len(bad)} of "
        f"{len(values)} light cones (rows {listed(bad)}); leave those out."
    )


def check_targets(
    y_true: ArrayLike, y_pred: ArrayLike, name: str = "y_pred"
) -> tuple[Floats, Floats]:
    """Return truths and predictions as float64 of shape (n_lightcones, n_parameters).

    One error lists all that is wrong with either; `name` is what it calls the predictions.
    """
    check_order(name, y_pred, [str(label) for label in getattr(y_true, "columns", ())])
    problems: list[str] = []
    true, pred = _as_columns("y_true", y_true), _as_columns(name, y_pred)
    for each, matrix, given in (("y_true", true, y_true), (name, pred, y_pred)):
        if matrix.ndim != 2 or matrix.size == 0:
            mend = "; average posterior samples first" if matrix.ndim == 3 else ""
            problems.append(
                f"{each}: expected shape (n_lightcones,) or (n_lightcones, n_parameters) with at "
                f"least one of each, found {np.shape(given)}{mend}."
            )
        elif wrong := not_finite(each, matrix):
            problems.append(wrong)
    if true.ndim == pred.ndim == 2 and true.shape != pred.shape:
        problems.append(
            f"{name}: expected the shape of y_true, {np.shape(y_true)}, found {np.shape(y_pred)}; "
            "give one prediction for each light cone and parameter."
        )
    if problems:
        raise ValueError("\n".join(problems))
    return true, pred


def check_samples(
    samples: ArrayLike, y_true: ArrayLike
) -> tuple[NDArray[np.floating[Any]], Floats]:
    """Return samples (n_lightcones, n_samples, n_parameters), truths (n_lightcones, n_parameters).

    Samples keep their precision and are not copied, so that a file-backed array stays in its file.
    """
    drawn = real_array("samples", samples)
    true = _as_columns("y_true", y_true)
    if drawn.ndim != 3 or 0 in drawn.shape or true.shape != (len(drawn), drawn.shape[-1]):
        raise ValueError(
            "samples and y_true: expected shapes (n_lightcones, n_samples, n_parameters) and "
            f"(n_lightcones, n_parameters), found {drawn.shape} and {np.shape(y_true)}."
        )
    if wrong := not_finite("samples", drawn) or not_finite("y_true", true):
        raise ValueError(wrong)
    return drawn, true


def in_batches(shape: tuple[int, ...], title: str, verbose: int = 0) -> Iterator[slice]:
    """Yield slices of light cones small enough for memory, with a progress bar if `verbose`."""
    step = max(1, _BATCH_VALUES // math.prod(shape[1:]))
    bar = tqdm(total=shape[0], desc=title, unit="cone", delay=_BAR_AFTER, disable=not verbose)
    with bar:
        for rows in gen_batches(shape[0], step):
            yield rows
            bar.update(rows.stop - rows.start)
