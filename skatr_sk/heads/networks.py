"""The networks of fitted heads as plain sizes and arrays, and back, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from skatr_sk._checks import Choice, Flag, Instance, Integer, Kind, Real, Rule
from skatr_sk._tensors import MOST_LAYERS, arrays_of, check_header, of_arrays
from skatr_sk.heads.cnn import CNN
from skatr_sk.heads.end_to_end import FieldNetwork
from skatr_sk.heads.flow import MAX_BINS, ConditionalFlow, FlowEnsemble
from skatr_sk.heads.mlp import Head, HeadMixture
from skatr_sk.heads.pooling import POOLINGS
from skatr_sk.heads.ridge import Ridge
from skatr_sk.summaries.weights import scaling_of

__all__ = ["pack", "pack_backbone", "unpack", "unpack_backbone"]

_MOST_PARAMETERS = 1000  # of a posterior, whose affine layer grows with their square


def _are_widths(value: Any) -> bool:
    return isinstance(value, list) and all(Integer(1).fault(width) is None for width in value)


_ONE: dict[str, Kind] = {"n_summary": Integer(1), "n_parameters": Integer(1)}
_HEAD: dict[str, Kind] = _ONE | {"gaussian": Flag(), "bounded": Flag()}
_LAYERS: dict[str, Kind] = {
    "hidden_dims": Rule(_are_widths, "a list of integers >= 1"),
    "dropout": Real("[0, 1)"),
    "pooling": Choice(*POOLINGS),
}
_TABLES: dict[type[nn.Module], dict[str, Kind]] = {
    Ridge: _HEAD,
    Head: _HEAD | _LAYERS | {"cut": Flag()},
    ConditionalFlow: _ONE
    | _LAYERS
    | {
        "n_parameters": Integer(1, _MOST_PARAMETERS),
        "n_blocks": Integer(1, MOST_LAYERS),
        "n_bins": Integer(2, MAX_BINS),
    },
}
_KINDS = {kind.__name__: kind for kind in _TABLES}


def pack(network: nn.Module) -> dict[str, Any]:
    """Return the sizes of a head or an ensemble, and its weights as arrays."""
    several = isinstance(network, HeadMixture | FlowEnsemble)
    parts: Any = list(network) if several else [network]  # type: ignore[call-overload]
    sizes = [{"kind": type(part).__name__} | part.sizes for part in parts]
    return {"together": several, "parts": sizes, "arrays": arrays_of(network)}


def unpack(packed: Any, *, of_flows: bool) -> Any:
    """Return the network of what :func:`pack` gave, in evaluation mode and frozen.

    A ValueError says what of it cannot be.
    """
    check_header("network", _PACKED, packed)
    arrays, sizes = packed["arrays"], packed["parts"]
    shapes = [np.shape(values) for values in arrays.values()]
    widest = max((n for shape in shapes for n in shape), default=1)
    kinds = [_kind(part, of_flows) for part in sizes]
    builds = []
    for kind, part in zip(kinds, sizes, strict=True):
        own = {name: value for name, value in part.items() if name != "kind"}
        check_header(kind.__name__, _TABLES[kind], own)
        wide = [own["n_summary"], own["n_parameters"], *own.get("hidden_dims", ())]
        if max(wide) > widest:
            raise ValueError(f"a width of {max(wide)}, where the longest axis is {widest}")
        shared = own if of_flows else _HEAD
        if any(own[name] != sizes[0].get(name) for name in shared):
            raise ValueError(f"parts that differ in one of {', '.join(shared)}")
        builds.append(partial(kind, **own))
    doubles = [values.dtype == np.float64 for values in arrays.values() if values.dtype.kind == "f"]

    def build() -> nn.Module:
        network = _joined([one() for one in builds], packed["together"], of_flows)
        return network.double() if all(doubles) else network

    return of_arrays(build, arrays)


def pack_backbone(backbone: Any) -> Any:
    """Return what files hold of a ``backbone_``: of a CNN its scaling and arrays, else itself."""
    if isinstance(backbone, FieldNetwork) and backbone.scaling is not None:
        shape, scaling = list(backbone.field_shape), asdict(backbone.scaling)
        return {"field_shape": shape, "scaling": scaling, "arrays": arrays_of(backbone.network)}
    return backbone


def unpack_backbone(packed: Any) -> Any:
    """Return the ``backbone_`` of what :func:`pack_backbone` gave, checked."""
    if not isinstance(packed, dict):
        return packed
    check_header("backbone_", _CNN, packed)
    shape = tuple(packed["field_shape"])
    network = of_arrays(partial(CNN, shape), packed["arrays"])
    return FieldNetwork(network, shape, scaling_of(packed["scaling"], shape)).eval()


def _joined(parts: list[Any], together: bool, of_flows: bool) -> nn.Module:
    if of_flows:
        return FlowEnsemble(parts)
    joined: nn.Module = HeadMixture(parts, [0.0] * len(parts)) if together else parts[0]
    return joined


def _kind(part: Mapping[str, Any], of_flows: bool) -> type[nn.Module]:
    found = _KINDS.get(str(part.get("kind")))
    if found is None or (found is ConditionalFlow) != of_flows:
        wanted = "ConditionalFlow" if of_flows else "Head or Ridge"
        raise ValueError(f"kind: expected {wanted}, found {part.get('kind')!r}")
    return found


def _are_parts(value: Any) -> bool:
    some = isinstance(value, list) and 1 <= len(value) <= MOST_LAYERS
    return some and all(isinstance(part, dict) for part in value)


def _are_arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, np.ndarray) for v in value.values())


_PACKED: dict[str, Kind] = {
    "together": Flag(),
    "parts": Rule(_are_parts, "a list of the sizes of each part"),
    "arrays": Rule(_are_arrays, "arrays by their names"),
}
_CNN: dict[str, Kind] = {
    "field_shape": Rule(lambda v: _are_widths(v) and len(v) in (1, 2, 3), "one to three integers"),
    "scaling": Instance(dict, expected="an object"),
    "arrays": _PACKED["arrays"],
}
