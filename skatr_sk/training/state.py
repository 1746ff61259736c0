"""The state of a run: what its steps change, copied out, compared with a file's, and put back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Tensors",
    "all_finite",
    "copied",
    "digest_of",
    "faults",
    "generators_of",
    "layout_of",
    "part",
    "put_back",
    "squares_finite",
    "weights_and_moments",
]

Tensors = dict[str, Tensor]
Layout = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor

# What AdamW, whose kernels do not look at sizes, knows of a weight after a step.
_STEP, _MOMENTS = "step", ("exp_avg", "exp_avg_sq")
_FEW = 8  # tensors, as many as the gradients of three hidden layers
_GENERATOR_WORDS = 624  # of the Mersenne twister that torch draws from on a CPU


def weights_and_moments(net: Any) -> Tensors:
    """Return all that a step changes: the tensors of the module, and those of its optimiser."""
    tensors = {f"module.{k}": v for k, v in net.module_.state_dict().items()}
    for number, weight in enumerate(_weights(net)):
        known = net.optimizer_.state.get(weight, {})
        tensors |= {f"optimizer.{number}.{k}": v for k, v in known.items()}
    return {k: v.detach() for k, v in tensors.items()}


def copied(tensors: Tensors, into: Tensors | None = None) -> Tensors:
    """Copy tensors, into those of an earlier copy where these have the same names."""
    if into is None or into.keys() != tensors.keys():
        return {k: v.clone() for k, v in tensors.items()}
    for key, value in tensors.items():
        into[key].copy_(value)
    return into


def put_back(net: Any, tensors: Tensors) -> None:
    """Let a net have a copy of its :func:`weights_and_moments`, or what a compared file holds."""
    net.module_.load_state_dict(part(tensors, "module."))
    net.optimizer_.state.clear()
    moments: dict[int, Tensors] = {}
    for key, value in part(tensors, "optimizer.").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    weights = _weights(net)
    for index, own in moments.items():
        weight = weights[index]
        net.optimizer_.state[weight] = {k: v.to(weight.device, copy=True) for k, v in own.items()}


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def layout_of(net: Any) -> dict[str, Layout]:
    """Shape and type of each tensor of :func:`weights_and_moments` after a step of all weights."""
    layout = {f"module.{k}": (tuple(v.shape), v.dtype) for k, v in net.module_.state_dict().items()}
    for number, weight in enumerate(_weights(net)):
        layout[f"optimizer.{number}.{_STEP}"] = (), torch.float32
        for name in _MOMENTS:
            layout[f"optimizer.{number}.{name}"] = tuple(weight.shape), weight.dtype
    return layout


def generators_of(net: Any) -> dict[str, torch.Generator]:
    """Return the generators from which a run draws."""
    generators = {"shuffle": net.generator_, "torch": torch.default_generator}
    if hasattr(net.prepare, "generator"):
        generators["prepare"] = net.prepare.generator
    device = torch.device(net.device)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[index]
    return generators


def faults(name: str, value: Tensor) -> str:
    """Say what is wrong with the values of a tensor of a known shape and type; "" for none."""
    if value.is_floating_point() and not all_finite([value]):
        return f"{name} has NaN or infinite values"
    if name.endswith((f".{_MOMENTS[1]}", f".{_STEP}")) and (value < 0).any():
        return f"{name} has negative values"
    if name.startswith("generator.") and name != "generator.cuda" and not _is_twister(value):
        return f"{name} is no state of a generator"
    return ""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of some tensors are finite."""
    floats = [t for t in tensors if t.is_floating_point()]
    # The sum of their squares is ten times faster, and says nothing where it is too large.
    return squares_finite(floats) or all(bool(torch.isfinite(t).all()) for t in floats)


def squares_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are finite, and not so large that their squares are not."""
    # Products of few with themselves say it sooner, where these are finite; of a GPU each number is
    # waited for.
    if len(tensors) <= _FEW and not any(each.is_cuda for each in tensors):
        flat = (each.flatten() for each in tensors)
        if math.isfinite(sum(float(each.dot(each)) for each in flat)):
            return True
    return math.isfinite(float(torch.nn.utils.get_total_norm(tensors)))


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Digest of names, types, shapes and values of tensors, and of a text beside them."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(net: Any) -> list[Tensor]:
    return [weight for group in net.optimizer_.param_groups for weight in group["params"]]


def _is_twister(state: Tensor) -> bool:
    """Whether a generator of torch on a CPU can have this state.

    torch sets the place of the next word without looking whether as many are left, and would read
    beyond the last.
    """
    whole = state.numpy()
    left, seeded = map(int, whole[8:16].view("int32"))
    following = int(whole[16:24].view("uint64")[0])
    sound = 0 < left <= _GENERATOR_WORDS and left + following == _GENERATOR_WORDS + 1
    return seeded == 1 and (sound or (left, following) == (1, 0))
