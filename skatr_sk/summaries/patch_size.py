"""How large patches are: sizes that divide the axes of a field, given or chosen by its shape."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from skatr_sk._checks import Integer, Rule, nearest_divisors, spell

__all__ = ["PATCH_SIZE", "auto_patch_size", "fault_of_auto_patches", "patch_size_for"]

_TOKEN_BUDGET = 1024
_TOO_MANY, _MANY_SLICES = 3, 32  # times the tokens that are wanted; slices for a single patch
_WELL_DIVIDED, _MOST_TRIED = 1.3, 300  # cost of a patch; shapes that are looked at
_MOST_CUT = 32  # cells of an axis


def _is_patch_size(patch: Any) -> bool | str:
    if isinstance(patch, str):
        return patch == "auto" or spell(patch, ["auto"])
    sizes = patch if isinstance(patch, Sequence | np.ndarray) else (patch,)
    return all(Integer(1).fault(size) is None for size in sizes)


PATCH_SIZE = Rule(
    _is_patch_size, "'auto', an integer >= 1 or a tuple of one for each axis of the field"
)


def patch_size_for(field_shape: Sequence[int], patch: str | int | Sequence[int]) -> tuple[int, ...]:
    """Return one patch size for each axis of the field, from a checked parameter.

    A ValueError says when the number of sizes is not that of the axes, a size does not divide its
    axis (with the axis and the nearest divisors), or the field is a single patch.
    """
    shape = tuple(field_shape)
    given = auto_patch_size(shape) if isinstance(patch, str) else patch
    several = given if isinstance(given, Sequence | np.ndarray) else (given,) * len(shape)
    sizes = tuple(int(size) for size in several)
    if len(sizes) != len(shape):
        raise ValueError(
            f"patch_size: expected one size per axis of fields of shape {shape}, which have "
            f"{len(shape)} axes, found {len(sizes)} sizes {sizes}."
        )
    wrong = [
        f"axis {axis} has {n} cells, patches {p}: nearest divisors {nearest_divisors(n, p)}"
        for axis, (n, p) in enumerate(zip(shape, sizes, strict=True))
        if n % p
    ]
    if wrong:
        raise ValueError(
            f"patch_size: expected divisors of fields of shape {shape}, found {sizes}; "
            f"{'; '.join(wrong)}."
        )
    if sizes == shape:
        cells = f"{shape[0]} feature(s)" if len(shape) == 1 else f"shape {shape}"
        raise ValueError(
            f"X: expected fields of more than one patch, found fields of {cells}, a single patch "
            f"of {sizes}; use smaller patches, or fields of at least 2 cells."
        )
    return sizes


def auto_patch_size(field_shape: Sequence[int]) -> tuple[int, ...]:
    """Choose a patch that divides each axis and cuts the field into about 1000 tokens.

    Among the divisors of the axes it takes those that come near to this budget with patches near to
    cubes: a factor e in the number of tokens counts as much as 1.4 in the standard deviation of the
    logarithm of the sides. Patches are square where the sky is. Each sky axis gets at least six
    patches where it has as many cells, so that blocks of the sky can be hidden. On small fields the
    budget shrinks to one token for 16 cells (4 of a signal), but not below 16 tokens: patches of a
    single cell have no structure of their own.
    """
    rank = len(field_shape)
    choices = []
    for axis, n in enumerate(field_shape):
        fewest = min(n, 6) if rank > 1 and axis < 2 else 1
        choices.append([d for d in range(1, n + 1) if n % d == 0 and n // d >= fewest])
    square = rank > 1 and field_shape[0] == field_shape[1]
    patches = itertools.product(*choices)
    usable = (each for each in patches if not square or each[0] == each[1])
    return min(usable, key=functools.partial(_patch_cost, field_shape))


def _tokens_wanted(field_shape: Sequence[int]) -> int:
    cells_of_one = 4 if len(field_shape) == 1 else 16
    return min(_TOKEN_BUDGET, max(16, math.prod(field_shape) // cells_of_one))


def _n_tokens(field_shape: Sequence[int], patch: Sequence[int]) -> int:
    return math.prod(n // p for n, p in zip(field_shape, patch, strict=True))


def _patch_cost(field_shape: Sequence[int], patch: Sequence[int]) -> float:
    """How far a patch is from the aims of :func:`auto_patch_size`."""
    far = abs(math.log(_n_tokens(field_shape, patch) / _tokens_wanted(field_shape)))
    return far + 0.7 * float(np.std(np.log(patch)))


def fault_of_auto_patches(field_shape: Sequence[int]) -> str | None:
    """Say what is wrong with patches of "auto" on fields that divide badly, and which would not.

    That is where they make more than three times the tokens that are wanted, and more than 1000, or
    a single patch along a line of sight of many slices.
    """
    shape = tuple(int(n) for n in field_shape)
    patch = auto_patch_size(shape)
    tokens = _n_tokens(shape, patch)
    many = tokens > max(_TOKEN_BUDGET, _TOO_MANY * _tokens_wanted(shape))
    single = len(shape) == 3 and patch[-1] == shape[-1] >= _MANY_SLICES
    if not many and not single:
        return None
    found = f"{tokens} tokens of {patch} cells"
    if single:
        found += ", one along the whole line of sight"
    mend, better = "give patch_size", _better_divided(shape) or shape
    cut = {axis: m for axis, (n, m) in enumerate(zip(shape, better, strict=True)) if n != m}
    if cut:
        into = auto_patch_size(better)
        ends = [f":{cut.get(axis, '')}" for axis in range(max(cut) + 1)]
        part = ["...", ends[-1]] if [*cut] == [len(shape) - 1] else [":", *ends]
        left = _n_tokens(better, into)
        mend = f"take X[{', '.join(part)}], {left} tokens of {into} cells, or {mend}"
    cells = ", ".join(f"axis {axis} has {shape[axis]} cells" for axis in cut or range(len(shape)))
    return (
        f"patch_size: expected fields that 'auto' can divide into about {_tokens_wanted(shape)} "
        f"tokens, found {found}, for {cells}; {mend}."
    )


def _better_divided(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Nearest smaller shape that "auto" divides well; at most a tenth of an axis is cut, or 32."""
    square = len(shape) > 1 and shape[0] == shape[1]
    lengths = [range(n, n - min(max(1, n // 10), _MOST_CUT) - 1, -1) for n in shape]
    if square:
        pairs = [(n, n) for n in lengths[0]]
        smaller = [(*sky, *rest) for sky in pairs for rest in itertools.product(*lengths[2:])]
    else:
        smaller = list(itertools.product(*lengths))
    smaller = [each for each in smaller if min(each) > 0 and each != shape]
    smaller.sort(key=math.prod, reverse=True)
    for each in smaller[:_MOST_TRIED]:
        patch = auto_patch_size(each)
        if patch != each and _patch_cost(each, patch) <= _WELL_DIVIDED:
            return each
    return None
