"""Frozen encoders: their sizes, and their files (safetensors with a JSON header, no pickle)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from skatr_sk._checks import (
    Choice,
    Flag,
    Instance,
    Integer,
    Kind,
    Problems,
    Real,
    Rule,
    nearest_divisors,
    spell,
)
from skatr_sk._files import stamp_of
from skatr_sk._tensors import (
    HISTORY,
    MOST_LAYERS,
    MOST_TOKENS,
    Declared,
    TensorFile,
    check_arrays,
    check_header,
    copied_module,
    declare,
    differences,
    fill,
    largest_axis,
    skeleton,
    write_tensors,
)
from skatr_sk._version import __version__
from skatr_sk.grid import Grid
from skatr_sk.summaries.embedding import EMBEDDINGS, FLUCTUATIONS
from skatr_sk.summaries.novelty import SeenSummaries, seen_of, shapes_of_seen
from skatr_sk.summaries.pooling import POOLINGS, count_slices, pooled_dim, pooling_seen
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import ATTENTIONS, Encoder
from skatr_sk.summaries.whitening import Whitening
from skatr_sk.training.device import resolve_precision

__all__ = [
    "BUNDLED",
    "ENCODER_SIZES",
    "SIZES",
    "AUGMENTATION",
    "Architecture",
    "FrozenEncoder",
    "MODEL_KEY",
    "WEIGHTS_KEY",
    "architecture_of",
    "check_heads",
    "check_pooling",
    "n_seen",
    "read_encoder",
    "whitening_of",
    "scaling_of",
    "write_encoder",
]

BUNDLED = ("mini-lr", "mini-lr-labels")  # names of the weights that come with the package
_SETTLED = 2 * 10**9  # ns after a change, before which another may leave a file's times as they are
_FORMAT = 2
_DIGESTED = 2  # the first format that has a digest; files of format 1 are read without
WEIGHTS_KEY = "skatr_sk"
MODEL_KEY = "skatr_sk_model"  # of files that hold a whole estimator
# Before the names of arrays, which are there where they were learned.
_WHITENING, _SEEN = "whitening.", "seen."
_FOLDER = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Architecture:
    """What an encoder is beside its weights; see the parameters of the transformer."""

    field_shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    embed_dim: int
    depth: int
    n_heads: int
    mlp_ratio: float
    embedding: str = "linear"
    attention: str = "full"
    # Of an encoder on another grid than that of its training: the voxels to which its patches are
    # averaged, and the `positions` of a PositionCode.
    voxels: tuple[int, ...] | None = None
    positions: tuple[tuple[float, float], ...] | None = None

    def described(self) -> dict[str, Any]:
        """Return what is not None, as headers and digests have it, and `attention` unless full."""
        known = dataclasses.asdict(self).items()
        return {k: v for k, v in known if v is not None and (k, v) != ("attention", ATTENTIONS[0])}

    def parameters(self) -> dict[str, Any]:
        """Return the sizes that are parameters of a transformer."""
        return {name: getattr(self, name) for name in ("patch_size", *ENCODER_SIZES)}

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Patches on each axis."""
        return tuple(n // p for n, p in zip(self.field_shape, self.patch_size, strict=True))

    @property
    def n_tokens(self) -> int:
        """Patches of a field."""
        return math.prod(self.grid_shape)

    @property
    def n_sky(self) -> int:
        """Patches of the sky; 1 of signals, which have none."""
        return math.prod(self.grid_shape[:2]) if len(self.grid_shape) > 1 else 1

    @property
    def n_voxels(self) -> int:
        """Voxels of a patch, as they are embedded."""
        return math.prod(self.voxels or self.patch_size)

    @property
    def patch_depth(self) -> int:
        """Voxels of a patch along the line of sight; 1 of maps, which have none."""
        return 1 if len(self.patch_size) == 2 else (self.voxels or self.patch_size)[-1]

    def precision(self, given: str, device: torch.device) -> str:
        """Turn a parameter ``precision`` into "float32" or "bf16" with these sizes."""
        return resolve_precision(given, device, n_tokens=self.n_tokens, width=self.embed_dim)

    def check_embedding(self, problems: Problems) -> None:
        """Note where there is no sky for the means that the embedding takes."""
        if self.embedding == FLUCTUATIONS and self.n_sky < 2:
            wanted = "'moments' or 'linear' with fields whose sky has no two patches"
            problems.add("embedding", wanted, self.embedding)

    def check_attention(self, problems: Problems) -> None:
        """Note where there are no columns or no slices to attend within, or no block for each."""
        if self.attention != "axial":
            return
        if min(self.n_sky, count_slices(self.grid_shape)) < 2:
            several = "light cones of several patches on the sky and along the line of sight"
            problems.add("attention", f"'full' but for {several}", self.attention)
        if self.depth < 2:
            wanted = "at least 2, a block for each axis, with attention='axial'"
            problems.add("depth", wanted, self.depth)

    def check_width(self, problems: Problems, name: str, width: int) -> None:
        """Note where tokens are too narrow to tell their positions apart."""
        fewest = 2 * sum(n > 1 for n in self.grid_shape)
        if width < fewest:
            axes = f"two features for each axis of the {self.grid_shape} patches"
            problems.add(name, f"at least {fewest}, {axes}", width)

    def build(self) -> Encoder:
        """Return an encoder with random weights from torch's current generator."""
        sizes = {name: getattr(self, name) for name in ENCODER_SIZES}
        sizes |= {"positions": self.positions, "patch_depth": self.patch_depth}
        return Encoder(self.n_voxels, self.grid_shape, **sizes)


# The encoder's own sizes and their types: parameters of the transformer, and of `Encoder`.
ENCODER_SIZES: dict[str, type] = {
    name: kind
    for name, kind in get_type_hints(Architecture).items()
    if name not in ("field_shape", "patch_size", "voxels", "positions")
}


# What they may be, as parameters and in files.
SIZES: dict[str, Kind] = {
    "embed_dim": Integer(1),
    "depth": Integer(1),
    "n_heads": Integer(1),
    "mlp_ratio": Real("(0, inf)"),
    "embedding": Choice(*EMBEDDINGS),
    "attention": Choice(*ATTENTIONS),
}


def check_heads(problems: Problems, embed_dim: int, n_heads: int) -> None:
    """Note where the attention heads do not divide the width."""
    if embed_dim % n_heads:
        mend = f"nearest divisors of {embed_dim}: {nearest_divisors(embed_dim, n_heads)}"
        problems.add("n_heads", f"a divisor of embed_dim={embed_dim}", n_heads, mend)


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder with all that turns a field into its summary."""

    architecture: Architecture
    scaling: BrightnessScaling
    encoder: Encoder
    history: list[dict[str, Any]]  # of the pre-training
    pooling: str = "mean"  # of the tokens, by its transformer
    whitening: Whitening | None = None  # of what is pooled so
    seen: SeenSummaries | None = None  # where such summaries lie; see `pooling_seen`
    grid: Grid | None = None  # of the fields
    augmentation: str | None = None  # of the fields that it was trained on; None where not known

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all numbers that a summary depends on, by their names in a file, on the CPU."""
        tensors = dict(self.encoder.state_dict()) | _tensors_of(_WHITENING, self.whitening)
        return {name: each.detach().cpu().contiguous() for name, each in tensors.items()}


def _tensors_of(prefix: str, arrays: Any) -> dict[str, torch.Tensor]:
    """Return what an object of arrays holds, by the names in a file; nothing of None."""
    parts = {} if arrays is None else vars(arrays)
    return {prefix + name: torch.from_numpy(values.copy()) for name, values in parts.items()}


def _of_axes(least: int) -> Rule:
    def holds(value: Any) -> bool:
        several = isinstance(value, list | tuple) and 1 <= len(value) <= 3
        return several and all(Integer(least).fault(n) is None for n in value)

    return Rule(holds, f"one to three integers >= {least}")


AUGMENTATION = Instance(str, expected="a string", optional=True)


def _are_positions(value: Any) -> bool:
    pairs = isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in value
    )
    near, far = Real("[-1e6, 1e6]"), Real("[0, 1e6]")
    return pairs and all(not near.fault(a) and not far.fault(b) for a, b in value)


# What the parts of a header may be. Sizes of one layer are bounded by those of the file.
_PARTS: dict[str, Kind] = {
    "format": Integer(1),
    "version": Instance(str, expected="a string"),
    "architecture": Instance(dict, expected="an object"),
    "scaling": Instance(dict, expected="an object"),
    "history": HISTORY,
    "pooling": Choice(*POOLINGS),
    "grid": Instance(dict, expected="an object", optional=True),
    "augmentation": AUGMENTATION,
}
_ARCHITECTURE: dict[str, Kind] = {
    "field_shape": _of_axes(1),
    "patch_size": _of_axes(1),
    **SIZES,
    "depth": Integer(1, MOST_LAYERS),
    "voxels": replace(_of_axes(1), optional=True),
    "positions": Rule(_are_positions, "a pair of numbers, up to 1e6, for each axis", optional=True),
}
_SCALING: dict[str, Kind] = {  # of what float32 holds
    "softening": Real("[1e-37, 1e37]", optional=True),
    "offset": Real("[-1e37, 1e37]"),
    "scale": Real("[1e-37, 1e37]"),
    "subtract_mean": Flag(),
}


def architecture_of(found: dict[str, Any], widest: int) -> Architecture:
    """Return the sizes that a header has, checked one by one and side by side.

    `widest` is the longest axis of the tensors beside it.
    """
    found = {"embedding": "linear", "attention": "full"} | found  # in files that do not say
    check_header("architecture", _ARCHITECTURE | {"embed_dim": Integer(1, widest)}, found)
    sizes: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in found.items()
    }
    if sizes.get("positions") is not None:
        sizes["positions"] = tuple((float(a), float(b)) for a, b in sizes["positions"])
    architecture = Architecture(**sizes)
    problems = Problems("architecture")
    shape, patch = architecture.field_shape, architecture.patch_size
    if len(shape) != len(patch) or any(n % p for n, p in zip(shape, patch, strict=False)):
        problems.add("patch_size", f"one divisor for each axis of {shape}", patch)
    for name in ("voxels", "positions"):
        if (each := getattr(architecture, name)) is not None and len(each) != len(shape):
            problems.add(name, f"one for each axis of {shape}", each)
    problems.raise_if_any()
    if architecture.n_tokens > MOST_TOKENS:
        problems.add("field_shape", f"at most {MOST_TOKENS} patches of {patch}", shape)
    check_heads(problems, architecture.embed_dim, architecture.n_heads)
    architecture.check_width(problems, "embed_dim", architecture.embed_dim)
    architecture.check_embedding(problems)
    architecture.check_attention(problems)
    problems.raise_if_any()
    return architecture


def check_pooling(pooling: str, field_shape: Sequence[int]) -> None:
    """Raise where fields of a shape have no slices to pool."""
    if pooling == "slices" and len(field_shape) != 3:
        raise ValueError(f"pooling: expected another for fields of {field_shape}, found 'slices'")


def scaling_of(found: dict[str, Any], field_shape: Sequence[int]) -> BrightnessScaling:
    """Return the scaling that a header has for fields of a shape, checked."""
    found = {"subtract_mean": False} | found  # in files that do not say
    check_header("scaling", _SCALING, found)
    if found["subtract_mean"] and len(field_shape) == 1:
        raise ValueError("subtract_mean: expected false for signals, found true")
    of_header: dict[str, Any] = {k: float(v) if type(v) is int else v for k, v in found.items()}
    return BrightnessScaling(**of_header)


def grid_of(found: dict[str, Any] | None, field_shape: Sequence[int]) -> Grid | None:
    """Return the grid that a header has for fields of a shape, checked; None where it has none."""
    grid = None if found is None else Grid(**found)
    if grid is not None and not grid.fits(field_shape):
        raise ValueError(f"grid: expected that of fields of {field_shape}, found {grid}")
    return grid


def _shapes_of_whitening(architecture: Architecture, pooling: str) -> dict[str, tuple[int, ...]]:
    n = pooled_dim(architecture.embed_dim, pooling)
    return {"mean": (n,), "matrix": (n, n)}


def whitening_of(found: Any, architecture: Architecture, pooling: str) -> Whitening | None:
    """Return the whitening of arrays by their names, checked; None where there is none."""
    if found is None:
        return None
    if pooling == "tokens":
        raise ValueError(
            "pooling: expected another for summaries that are whitened, found 'tokens'"
        )
    shapes = _shapes_of_whitening(architecture, pooling)
    check_arrays("whitening", found, shapes)
    return Whitening(**found)


def n_seen(architecture: Architecture, pooling: str, shape: tuple[int, ...] | None) -> int:
    """Length of the summaries that say what was seen, where their mean is of a shape."""
    width = architecture.embed_dim
    return pooled_dim(width, pooling_seen(pooling, math.prod(shape or (0,)), width))


def _header(frozen: FrozenEncoder) -> dict[str, Any]:
    grid = None if frozen.grid is None else dataclasses.asdict(frozen.grid)
    known = {"grid": grid, "augmentation": frozen.augmentation}
    return {
        "format": _FORMAT,
        "version": __version__,
        "architecture": frozen.architecture.described(),
        "scaling": dataclasses.asdict(frozen.scaling),
        "history": frozen.history,
        "pooling": frozen.pooling,
    } | {name: value for name, value in known.items() if value is not None}


def _checked(
    header: Mapping[str, Any], widest: int
) -> tuple[Architecture, BrightnessScaling, Grid | None]:
    """Return what a header says, compared with the tables of what it may say."""
    check_header("header", _PARTS, header)
    architecture = architecture_of(header["architecture"], widest)
    check_pooling(header["pooling"], architecture.field_shape)
    shape = architecture.field_shape
    return architecture, scaling_of(header["scaling"], shape), grid_of(header.get("grid"), shape)


def write_encoder(path: str | os.PathLike[str], frozen: FrozenEncoder) -> None:
    """Write an encoder as one safetensors file; it appears whole or not at all.

    A ValueError says where it has numbers that :func:`read_encoder` would refuse.
    """
    header = _header(frozen)
    _checked(header, frozen.architecture.embed_dim)
    tensors = frozen.tensors() | _tensors_of(_SEEN, frozen.seen)
    write_tensors(path, WEIGHTS_KEY, header, tensors)


def read_encoder(path: str | os.PathLike[str]) -> FrozenEncoder:
    """Read and check what :func:`write_encoder` wrote, or weights of a name in `BUNDLED`.

    A file that has not changed is not read again: what was read of it last is copied. It has the
    same size, inode and times, and these were older than clocks of file systems are coarse.

    An OSError says when there is no file that may be read, a ValueError when it is truncated, no
    safetensors, not from this package, of a newer format, has another digest than its bytes or
    numbers out of range, or its tensors do not fit its own header.
    """
    if path in BUNDLED:
        path = os.fspath(_FOLDER / f"{path}.safetensors")
    if not os.path.lexists(path):
        near = spell(os.fspath(path), BUNDLED)
        raise FileNotFoundError(
            f"weights: expected a file or one of the bundled names {', '.join(BUNDLED)}, found no "
            f"file at {os.fspath(path)!r}{'; ' * bool(near)}{near}."
        )
    found = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nothing
    settled = time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED
    read = _read_once if settled else _read_once.__wrapped__
    frozen = read(os.fspath(path), (found.st_dev, *stamp_of(found)))
    return copy.deepcopy(frozen, {id(frozen.encoder): copied_module(frozen.encoder)})


@functools.lru_cache(maxsize=2)
def _read_once(path: str, stamp: tuple[int, ...]) -> FrozenEncoder:
    """Read a file with this stamp."""
    options: Any = {"newest": _FORMAT, "digested": _DIGESTED}
    options["elsewhere"] = {MODEL_KEY: " It holds a model: use skatr_sk.load_model."}
    save = "SKATRTransformer.save"
    stored = TensorFile(path, WEIGHTS_KEY, what="weights file", written_by=save, **options)
    with stored.usable():
        architecture, scaling, grid = _checked(
            stored.header, largest_axis(stored.declared.values())
        )
        pooling = stored.header["pooling"]
        encoder = skeleton(architecture.build, stored.declared)
        wanted = declare(encoder.state_dict())
        if whitened := any(name.startswith(_WHITENING) for name in stored.declared):
            shapes = _shapes_of_whitening(architecture, pooling)
            wanted |= {_WHITENING + name: Declared("F32", s) for name, s in shapes.items()}
        parts_seen = {n: d for n, d in stored.declared.items() if n.startswith(_SEEN)}
        found = {n.removeprefix(_SEEN): each.shape for n, each in parts_seen.items()}
        n_summary = n_seen(architecture, pooling, found.get("mean"))
        shapes_seen = shapes_of_seen(found, n_summary) if found else {}
        wanted |= {_SEEN + name: Declared("F32", s) for name, s in shapes_seen.items()}
    if wrong := differences(wanted, stored.declared):
        raise ValueError(
            f"{stored.source} holds weights of another architecture than its header says "
            f"({len(wrong)} differences): {'; '.join(wrong[:5])}. Write it anew with {save}."
        )
    tensors = stored.read()
    with stored.usable("weights"):
        parts = {n: tensors.pop(_WHITENING + n).numpy() for n in shapes} if whitened else None
        where = {n: tensors.pop(_SEEN + n).numpy() for n in shapes_seen} or None
        fill(encoder, tensors)
        seen = seen_of(where, n_summary)
        whitening = whitening_of(parts, architecture, pooling)
    history, augmentation = stored.header["history"], stored.header.get("augmentation")
    learned = architecture, scaling, encoder, history, pooling, whitening, seen
    return FrozenEncoder(*learned, grid=grid, augmentation=augmentation)
