"""Frozen encoders: their sizes, and their files (safetensors with a JSON header, no pickle)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skatr_sk._checks import Integer, Problems, Rule, nearest_divisors, spell
from skatr_sk._files import write_whole
from skatr_sk._version import __version__
from skatr_sk.summaries.pooling import POOLINGS
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.training.seeds import seeded

__all__ = [
    "BUNDLED",
    "ENCODER_SIZES",
    "PATCH_SIZE",
    "Architecture",
    "FrozenEncoder",
    "auto_patch_size",
    "patch_size_for",
    "read_encoder",
    "write_encoder",
]

BUNDLED = ("mini-lr", "mini-lr-labels")  # names of the weights that come with the package
_TOKEN_BUDGET = 1024
_FORMAT = 1
_KEY = "skatr_sk"
_FOLDER = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Architecture:
    """What determines the shapes of an encoder's weights; see the parameters of the transformer."""

    field_shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    embed_dim: int
    depth: int
    n_heads: int
    mlp_ratio: float
    embedding: str = "linear"  # in files that do not say

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Patches on each axis."""
        return tuple(n // p for n, p in zip(self.field_shape, self.patch_size, strict=True))

    @property
    def n_tokens(self) -> int:
        """Patches of a field."""
        return math.prod(self.grid_shape)

    @property
    def n_voxels(self) -> int:
        """Voxels of a patch."""
        return math.prod(self.patch_size)

    def check_width(self, problems: Problems, name: str, width: int) -> None:
        """Note where tokens are too narrow to tell their positions apart."""
        fewest = 2 * sum(n > 1 for n in self.grid_shape)
        if width < fewest:
            axes = f"two features for each axis of the {self.grid_shape} patches"
            problems.add(name, f"at least {fewest}, {axes}", width)

    def build(self) -> Encoder:
        """Return an encoder with random weights from torch's current generator."""
        sizes = {name: getattr(self, name) for name in ENCODER_SIZES}
        return Encoder(self.n_voxels, self.grid_shape, **sizes)


# The encoder's own sizes and their types: parameters of the transformer, and of `Encoder`.
ENCODER_SIZES: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(Architecture).items()
    if name not in ("field_shape", "patch_size")
}


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
    budget = min(_TOKEN_BUDGET, max(16, math.prod(field_shape) // (4 if rank == 1 else 16)))
    choices = []
    for axis, n in enumerate(field_shape):
        fewest = min(n, 6) if rank > 1 and axis < 2 else 1
        choices.append([d for d in range(1, n + 1) if n % d == 0 and n // d >= fewest])

    def cost(patch: tuple[int, ...]) -> float:
        tokens = math.prod(n // p for n, p in zip(field_shape, patch, strict=True))
        return abs(math.log(tokens / budget)) + 0.7 * float(np.std(np.log(patch)))

    square = rank > 1 and field_shape[0] == field_shape[1]
    patches = itertools.product(*choices)
    return min((each for each in patches if not square or each[0] == each[1]), key=cost)


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder with all that turns a field into its summary."""

    architecture: Architecture
    scaling: BrightnessScaling
    encoder: Encoder
    history: list[dict[str, Any]]  # of the pre-training
    pooling: str = "mean"  # of the tokens, by its transformer


def write_encoder(path: str | os.PathLike[str], frozen: FrozenEncoder) -> None:
    """Write an encoder as one safetensors file; it appears whole or not at all."""
    header = {
        "format": _FORMAT,
        "version": __version__,
        "architecture": dataclasses.asdict(frozen.architecture),
        "scaling": dataclasses.asdict(frozen.scaling),
        "history": frozen.history,
        "pooling": frozen.pooling,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in frozen.encoder.state_dict().items()}
    metadata = {_KEY: json.dumps(header)}
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def read_encoder(path: str | os.PathLike[str]) -> FrozenEncoder:
    """Read and check what :func:`write_encoder` wrote, or weights of a name in `BUNDLED`.

    A ValueError says when the file is truncated, no safetensors, not from this package, of a newer
    format, or its tensors do not fit its own header.
    """
    if path in BUNDLED:
        path = os.fspath(_FOLDER / f"{path}.safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"weights: expected a file or one of the bundled names {', '.join(BUNDLED)}, found no "
            f"file at {os.fspath(path)!r}."
        )
    source = f"weights file {os.fspath(path)!r}"
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{source} cannot be read as safetensors ({error}): it is truncated, damaged or of "
            "another kind. Copy it again, or write it anew with SKATRTransformer.save."
        ) from error
    if _KEY not in metadata:
        raise ValueError(
            f"{source} is a safetensors file without a skatr_sk header (found metadata keys "
            f"{sorted(metadata)}); expected one written by SKATRTransformer.save."
        )
    try:
        header = json.loads(metadata[_KEY])
        if header["format"] > _FORMAT:
            raise ValueError(
                f"its format {header['format']} is newer than {_FORMAT}; upgrade skatr_sk "
                f"(found {__version__}, written by {header['version']})"
            )
        sizes = header["architecture"]
        for name in ("field_shape", "patch_size"):
            sizes[name] = tuple(sizes[name])  # JSON has lists
        architecture = Architecture(**sizes)
        scaling = BrightnessScaling(**header["scaling"])
        history, pooling = list(header["history"]), header["pooling"]
        if pooling not in POOLINGS:
            raise ValueError(f"expected a pooling of {', '.join(POOLINGS)}, found {pooling!r}")
        with seeded(0, torch.device("cpu")):  # these weights are replaced below
            encoder = architecture.build()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{source} has a header that cannot be used: {e}.") from e
    _check_tensors(source, encoder, tensors)
    encoder.load_state_dict(tensors)
    return FrozenEncoder(architecture, scaling, encoder.eval(), history, pooling)


def _check_tensors(source: str, encoder: Encoder, found: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes with what the header's architecture needs; list all differences."""
    wanted = encoder.state_dict()
    problems = [f"{key} is missing" for key in wanted.keys() - found.keys()]
    problems += [f"{key} is not part of it" for key in found.keys() - wanted.keys()]
    for key in wanted.keys() & found.keys():
        if wanted[key].shape != found[key].shape:
            shapes = f"{tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}"
            problems.append(f"{key} has shape {shapes}")
        elif not torch.isfinite(found[key]).all():
            problems.append(f"{key} has NaN or infinite values")
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(
            f"{source} holds weights of another architecture than its header says "
            f"({len(problems)} differences): {shown}. Write it anew with SKATRTransformer.save."
        )
