"""Frozen encoders on disk: safetensors with a JSON header, nothing that unpickles."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skatr_sk._files import write_whole
from skatr_sk._version import __version__
from skatr_sk.summaries.pooling import POOLINGS
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.training.seeds import seeded

__all__ = ["BUNDLED", "Architecture", "FrozenEncoder", "read_encoder", "write_encoder"]

BUNDLED = ("mini-lr",)  # names of the weights that come with the package

_FORMAT = 1
_KEY = "skatr_sk"
_FOLDER = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Architecture:
    """What determines the shapes of an encoder's weights.

    Parameters
    ----------
    field_shape, patch_size : tuple of int
    embed_dim, depth, n_heads : int
    mlp_ratio : float
    embedding : str
        "linear" in files that do not say.

    Examples
    --------
    >>> Architecture((14, 14, 90), (2, 2, 9), 48, 2, 4, 2.0).grid_shape
    (7, 7, 10)
    """

    field_shape: tuple[int, ...]
    patch_size: tuple[int, ...]
    embed_dim: int
    depth: int
    n_heads: int
    mlp_ratio: float
    embedding: str = "linear"

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Patches on each axis."""
        return tuple(n // p for n, p in zip(self.field_shape, self.patch_size, strict=True))

    def build(self) -> Encoder:
        """Return an encoder with random weights from torch's current generator."""
        return Encoder(
            math.prod(self.patch_size),
            self.grid_shape,
            embed_dim=self.embed_dim,
            depth=self.depth,
            n_heads=self.n_heads,
            mlp_ratio=self.mlp_ratio,
            embedding=self.embedding,
        )


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder with all that turns a field into its tokens.

    Parameters
    ----------
    architecture : Architecture
    scaling : BrightnessScaling
    encoder : Encoder
    history : list of dict
        Of the pre-training.
    pooling : str
        How its transformer pooled tokens.
    """

    architecture: Architecture
    scaling: BrightnessScaling
    encoder: Encoder
    history: list[dict[str, Any]]
    pooling: str = "mean"


def write_encoder(path: str | os.PathLike[str], frozen: FrozenEncoder) -> None:
    """Write an encoder as one safetensors file; it appears whole or not at all.

    The header holds the package's version, the architecture, the brightness scaling, the field's
    shape and the history of the pre-training.
    """
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
    """Read and check what :func:`write_encoder` wrote.

    Parameters
    ----------
    path : path or str
        Of a file, or the name of weights that come with the package: "mini-lr".

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is truncated, no safetensors, not from this package, of a newer format, or
        its tensors do not fit its own header.
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
        architecture = _architecture(header["architecture"])
        scaling = BrightnessScaling(**header["scaling"])
        history, pooling = list(header["history"]), header["pooling"]
        if pooling not in POOLINGS:
            raise ValueError(f"expected a pooling of {', '.join(POOLINGS)}, found {pooling!r}")
        with seeded(0, torch.device("cpu")):  # these weights are replaced below
            encoder = architecture.build()
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{source} has a header that cannot be used: {error}.") from error
    _check_tensors(source, encoder, tensors)
    encoder.load_state_dict(tensors)
    return FrozenEncoder(architecture, scaling, encoder.eval(), history, pooling)


def _architecture(fields: Mapping[str, Any]) -> Architecture:
    """Read an architecture as JSON has it, with lists for tuples."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Architecture(**values)


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
