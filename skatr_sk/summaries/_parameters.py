"""Checks of SKATRTransformer's parameters, all problems in one message."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from skatr_sk._checks import Choice, Flag, Integer, Problems, Real, nearest_divisors
from skatr_sk.summaries.embedding import EMBEDDINGS
from skatr_sk.summaries.encoding import MEMORY, auto_patch_size
from skatr_sk.summaries.jepa import LOSSES
from skatr_sk.summaries.masking import LONG, SHORT, BlockMask
from skatr_sk.summaries.pooling import POOLINGS
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.weights import Architecture, FrozenEncoder
from skatr_sk.training.estimator import TrainedEstimator

__all__ = [
    "MASKS",
    "check_parameters",
    "resolve_architecture",
    "resolve_masks",
    "resolve_patch_size",
    "resolve_pooling",
    "resolve_scaling",
    "resolve_view_pooling",
    "same_encoder",
]

MASKS = {"multiblock": (SHORT, LONG), "short": (SHORT,), "long": (LONG,)}
OBJECTIVES = ("jepa", "reconstruction", "vicreg")


def check_parameters(estimator: Any) -> None:
    """Check what can be known before the data.

    Raises
    ------
    InvalidParameterError
        Lists every wrong parameter.
    """
    problems = Problems(type(estimator).__name__)
    problems.check(TrainedEstimator._parameters, estimator)
    for name in ("embed_dim", "depth", "n_heads", "predictor_dim", "checkpoint_every"):
        problems.check({name: Integer(1)}, {name: getattr(estimator, name)})
    problems.check({"predictor_depth": Integer(0)}, {"predictor_depth": estimator.predictor_depth})
    problems.check({"n_workers": Integer(0)}, {"n_workers": estimator.n_workers})
    if estimator.objective == "reconstruction" and estimator.predictor_depth == 0:
        problems.add("predictor_depth", "an integer >= 1 with objective='reconstruction'", 0)
    dim, heads = estimator.embed_dim, estimator.n_heads
    both_whole = isinstance(dim, numbers.Integral) and isinstance(heads, numbers.Integral)
    if both_whole and dim > 1 and heads > 0 and dim % heads:
        mend = f"nearest divisors of {dim}: {nearest_divisors(dim, heads)}"
        problems.add("n_heads", f"a divisor of embed_dim={dim}", heads, mend)
    problems.check({"mlp_ratio": Real("(0, inf)")}, {"mlp_ratio": estimator.mlp_ratio})
    # Two regions cannot both hold more than half of a sky.
    most = "(0, 0.5]" if estimator.objective == "vicreg" else "(0, 1)"
    problems.check({"min_context": Real(most)}, {"min_context": estimator.min_context})
    problems.check({"warmup": Real("[0, 1)")}, {"warmup": estimator.warmup})
    problems.check({"pooling": Choice("auto", *POOLINGS)}, estimator)
    problems.check({"embedding": Choice(*EMBEDDINGS)}, estimator)
    problems.check({"objective": Choice(*OBJECTIVES)}, estimator)
    problems.check({"loss": Choice(*LOSSES)}, estimator)
    problems.check({"augment": Flag()}, {"augment": estimator.augment})
    problems.check({"normalize_targets": Flag()}, estimator)
    _check_masks(problems, estimator.masks)
    _check_decay(problems, estimator.ema_decay)
    _check_patch(problems, estimator.patch_size)
    if estimator.brightness_range is not None:
        _check_range(problems, estimator.brightness_range)
    for name in ("weights", "checkpoint_dir"):
        path = getattr(estimator, name)
        if not isinstance(path, str | os.PathLike | None):
            problems.add(name, "a path or None", path)
    _check_cache(problems, estimator.cache)
    if estimator.checkpoint_dir is not None and not isinstance(
        estimator.random_state, numbers.Integral
    ):
        problems.add(
            "random_state", "an int with checkpoint_dir, to resume by", estimator.random_state
        )
    problems.raise_if_any()


def _check_cache(problems: Problems, cache: Any) -> None:
    expected = "'memory', the path of a folder, or None"
    if cache is None or cache == MEMORY:
        return
    if not isinstance(cache, str | os.PathLike) or not os.fspath(cache):
        problems.add("cache", expected, cache)
    elif os.path.exists(cache):
        if not os.path.isdir(cache):
            problems.add("cache", expected, cache, "this is a file")
    elif difflib.get_close_matches(str(cache).lower(), [MEMORY], cutoff=0.8):
        # Else a slip of the pen would make a folder.
        mend = f"did you mean {MEMORY!r}? A folder of that name is {os.path.join('.', cache)!r}"
        problems.add("cache", expected, cache, mend)


def _check_masks(problems: Problems, masks: Any) -> None:
    if isinstance(masks, str):
        problems.check({"masks": Choice(*MASKS)}, {"masks": masks})
    elif not isinstance(masks, BlockMask) and not (
        isinstance(masks, Sequence) and masks and all(isinstance(m, BlockMask) for m in masks)
    ):
        expected = f"one of {sorted(MASKS)} or a list of BlockMask"
        problems.add("masks", expected, masks, "'multiblock' is short and long blocks together")


def _check_decay(problems: Problems, decay: Any) -> None:
    several = isinstance(decay, Sequence | np.ndarray)
    ends = decay if several else (decay,)
    if isinstance(decay, str) or (several and len(ends) != 2):
        problems.add("ema_decay", "a number or a pair (start, end)", decay)
        return
    before = len(problems.messages)
    for end in ends:
        problems.check({"ema_decay": Real("[0, 1]")}, {"ema_decay": end})
    if len(problems.messages) == before and ends[0] > ends[-1]:
        problems.add("ema_decay", "a pair that rises from start to end", decay)


def _check_patch(problems: Problems, patch: Any) -> None:
    if isinstance(patch, str):
        problems.check({"patch_size": Choice("auto")}, {"patch_size": patch})
        return
    sizes = Problems("")
    for size in patch if isinstance(patch, Sequence | np.ndarray) else (patch,):
        sizes.check({"": Integer(1)}, {"": size})
    if sizes.messages:
        expected = "'auto', an integer >= 1 or a tuple of one for each axis of the field"
        problems.add("patch_size", expected, patch)


def _check_range(problems: Problems, bounds: Any) -> None:
    valid = isinstance(bounds, Sequence | np.ndarray) and len(bounds) == 2
    valid = valid and all(isinstance(b, numbers.Real) and math.isfinite(b) for b in bounds)
    if not (valid and bounds[0] < bounds[1]):
        problems.add("brightness_range", "None or finite (low, high) in mK, low < high", bounds)


def resolve_masks(masks: str | BlockMask | Sequence[BlockMask]) -> tuple[BlockMask, ...]:
    """Return the families of masks that a checked parameter stands for."""
    if isinstance(masks, str):
        return MASKS[masks]
    return (masks,) if isinstance(masks, BlockMask) else tuple(masks)


def resolve_patch_size(
    patch: str | int | Sequence[int], field_shape: Sequence[int]
) -> tuple[int, ...]:
    """Return one patch size per axis of the field.

    Raises
    ------
    ValueError
        When the number of sizes is not the rank, a size does not divide its axis (with the axis
        and the nearest divisors), or the field is a single patch.

    Examples
    --------
    >>> resolve_patch_size((2, 2, 7), (14, 14, 90))
    Traceback (most recent call last):
    ...
    ValueError: patch_size (2, 2, 7) does not divide fields of shape (14, 14, 90): axis 2 has 90 ...
    """
    shape = tuple(field_shape)
    if isinstance(patch, str):
        sizes = auto_patch_size(shape)
    else:
        given = patch if isinstance(patch, Sequence) else (patch,) * len(shape)
        sizes = tuple(int(size) for size in given)
    if len(sizes) != len(shape):
        raise ValueError(
            f"patch_size {sizes} has {len(sizes)} sizes, but fields of shape {shape} have "
            f"{len(shape)} axes; give one size per axis."
        )
    wrong = [
        f"axis {axis} has {n} cells, patches {p}: nearest divisors {nearest_divisors(n, p)}"
        for axis, (n, p) in enumerate(zip(shape, sizes, strict=True))
        if n % p
    ]
    if wrong:
        raise ValueError(
            f"patch_size {sizes} does not divide fields of shape {shape}: {'; '.join(wrong)}."
        )
    if sizes == shape:
        cells = f"{shape[0]} feature(s)" if len(shape) == 1 else f"shape {shape}"
        raise ValueError(
            f"X has fields of {cells}, which is a single patch of {sizes}: nothing is left to "
            "predict. Use smaller patches, or fields of at least 2 cells."
        )
    return sizes


def resolve_architecture(estimator: Any, field_shape: Sequence[int]) -> Architecture:
    """Return the sizes of an encoder with checked parameters for fields of a shape.

    Raises
    ------
    ValueError
        When patches do not fit the field, or tokens are too narrow to tell their places apart.
    """
    architecture = Architecture(
        field_shape=tuple(int(n) for n in field_shape),
        patch_size=resolve_patch_size(estimator.patch_size, field_shape),
        # Plain numbers: a search hands in numpy's, which JSON does not know.
        embed_dim=int(estimator.embed_dim),
        depth=int(estimator.depth),
        n_heads=int(estimator.n_heads),
        mlp_ratio=float(estimator.mlp_ratio),
        embedding=str(estimator.embedding),
    )
    _check_widths(estimator, architecture.grid_shape)
    return architecture


def resolve_pooling(estimator: Any) -> str:
    """Return how a transformer that is trained pools its tokens."""
    return "mean" if estimator.pooling == "auto" else str(estimator.pooling)


def resolve_view_pooling(estimator: Any) -> str:
    """Return how the regions are pooled that "vicreg" compares; tokens by their mean."""
    pooling = resolve_pooling(estimator)
    return "mean" if pooling == "tokens" else pooling


def resolve_scaling(estimator: Any, fields: Any, rows: np.ndarray) -> BrightnessScaling:
    """Return the brightness scaling: by the bounds that were given, or learned from rows."""
    if estimator.brightness_range is None:
        return BrightnessScaling.learn(fields, rows)
    return BrightnessScaling.from_range(*estimator.brightness_range)


def _check_widths(estimator: Any, grid_shape: Sequence[int]) -> None:
    problems = Problems(type(estimator).__name__)
    fewest = 2 * sum(n > 1 for n in grid_shape)
    # The numbers that vicreg compares have no places.
    names = ("embed_dim", "predictor_dim")[: 1 if estimator.objective == "vicreg" else 2]
    for name in names:
        if getattr(estimator, name) < fewest:
            expected = f"at least {fewest}, two features for each axis of the {grid_shape} patches"
            problems.add(name, expected, getattr(estimator, name))
    problems.raise_if_any()


def same_encoder(estimator: Any, frozen: FrozenEncoder) -> None:
    """Check that parameters changed from their defaults agree with loaded weights."""
    found = frozen.architecture
    problems = Problems(type(estimator).__name__)
    defaults = inspect.signature(type(estimator)).parameters
    for name in ("patch_size", "embed_dim", "depth", "n_heads", "mlp_ratio", "embedding"):
        given, stored = getattr(estimator, name), getattr(found, name)
        if given == defaults[name].default:
            continue
        if name == "patch_size" and not isinstance(given, str):
            given = resolve_patch_size(given, found.field_shape)
        if given != stored:
            mend = "leave it at its default to take what the file has"
            problems.add(name, f"{stored!r} as in the weights file", given, mend)
    bounds = estimator.brightness_range
    if bounds is not None and BrightnessScaling.from_range(*bounds) != frozen.scaling:
        mend = "leave it at None: the scaling is part of the weights"
        problems.add("brightness_range", f"{frozen.scaling} as in the weights file", bounds, mend)
    problems.raise_if_any()
