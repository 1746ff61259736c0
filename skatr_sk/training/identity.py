"""What a user hands in, told by its content, for the identity of a run."""

from __future__ import annotations

import dis
import hashlib
import json
import os
import sys
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from skatr_sk.training.state import digest_of

__all__ = ["identity_of"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_DEEPEST = 100  # of values in values; what lies deeper counts by its kind
# Of classes: what python writes itself, which says nothing or depends on the process.
_NOT_CODE = frozenset(
    "__dict__ __weakref__ __doc__ __module__ __qualname__ __firstlineno__ __static_attributes__ "
    "__annotations__ __annotate__ __annotate_func__ __annotations_cache__ __abstractmethods__ "
    "_abc_impl __dataclass_fields__ __dataclass_params__ __parameters__ __orig_bases__".split()
)


def identity_of(value: Any) -> str:
    """Digest of a function, object or network: the same in every process.

    Of functions the code, its constants, defaults, the values that it closes over and the globals
    that it reads; of objects the code of their class and their attributes, as pickle has them; of
    networks these of each part, with all weights and buffers. Installed libraries count by name and
    version, and so does by name alone what has no content that could be told.
    """
    return _Teller().tell(value)


class _Teller:
    """Tells values inside values, each once, also where they hold each other."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[Any, str]] = {}  # the values too, so that no id comes twice
        self._open: list[int] = []

    def tell(self, value: Any) -> str:
        """Return the digest of a value."""
        if type(value) in _PLAIN:
            return _digest([type(value).__name__, repr(value)])
        key = id(value)
        if key in self._told:
            return self._told[key][1]
        if key in self._open:
            return f"above {len(self._open) - self._open.index(key)}"
        if len(self._open) >= _DEEPEST:
            return _name_of(type(value))
        self._open.append(key)
        try:
            told = _digest(self._words(value))
        finally:
            self._open.pop()
        self._told[key] = value, told
        return told

    def _each(self, *values: Any) -> list[str]:
        return [self.tell(value) for value in values]

    def _words(self, value: Any) -> list[str]:
        """Say what a value is by words and the digests of its parts."""
        kind = type(value)
        if isinstance(value, Tensor):
            if torch.nn.parameter.is_lazy(value):
                return ["unbuilt", str(value.dtype)]
            return ["tensor", str(value.requires_grad), digest_of({"": value})]
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
            return ["array", str(value.dtype), str(value.shape), content]
        if isinstance(value, nn.Module):
            return self._of_network(value)
        if isinstance(value, type):
            return self._of_class(value)
        if isinstance(value, RemovableHandle):  # knows its hook by a number of the process
            return ["handle"]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, FunctionType):
            return self._of_function(value)
        if isinstance(value, MethodType):
            return ["method", *self._each(value.__func__, value.__self__)]
        if isinstance(value, CodeType):
            words = [value.co_code.hex(), *value.co_names, "of", *value.co_varnames]
            return ["code", *words, "with", *self._each(*value.co_consts)]
        if kind in (list, tuple):
            return [kind.__name__, *self._each(*value)]
        if kind in (set, frozenset):
            return [kind.__name__, *sorted(self._each(*value))]
        if kind is dict:
            return ["dict", *self._each(*value.keys()), "to", *self._each(*value.values())]
        if isinstance(value, staticmethod | classmethod):
            return [kind.__name__, self.tell(value.__func__)]
        if isinstance(value, property):
            return ["property", *self._each(value.fget, value.fset)]
        if isinstance(value, torch.Generator):
            return ["generator", self.tell(value.get_state())]
        if isinstance(value, BaseEstimator):
            return ["estimator", *self._each(kind, value.get_params(deep=False))]
        return self._of_object(value)

    def _of_object(self, value: Any) -> list[str]:
        """Tell an object as pickle takes it apart; by name where it cannot."""
        try:
            taken = value.__reduce_ex__(4)
        except Exception:  # whatever an object of others raises: there is no state to be told
            wrapped = self._each(value.__wrapped__) if hasattr(value, "__wrapped__") else []
            return ["object", _name_of(type(value)), getattr(value, "__qualname__", ""), *wrapped]
        kind = self.tell(type(value))
        if isinstance(taken, str):  # a global name
            return ["object", kind, taken, *self._each(getattr(value, "__wrapped__", None))]
        make, arguments, *state = taken
        parts = [part if number == 0 else list(part or ()) for number, part in enumerate(state[:3])]
        return ["object", kind, *self._each(make, arguments, *parts)]

    def _of_function(self, function: FunctionType) -> list[str]:
        # Those of exec() may have no module of their own.
        if function.__module__ not in (None, "builtins") and _is_library(function.__module__):
            return ["function", _name_of(function)]
        names = sorted(_globals_of(function.__code__) & function.__globals__.keys())
        closure = [_content_of(cell) for cell in function.__closure__ or ()]
        return [
            "function",
            *self._each(function.__code__, function.__defaults__, function.__kwdefaults__),
            *self._each(vars(function), closure),
            *(f"{name} {self.tell(function.__globals__[name])}" for name in names),
        ]

    def _of_class(self, kind: type) -> list[str]:
        words = ["class"]
        for each in kind.__mro__:
            if _is_library(each.__module__):
                words.append(_name_of(each))
                continue
            own = {k: v for k, v in vars(each).items() if k not in _NOT_CODE}
            slots = [k for k, v in own.items() if type(v).__name__ == "member_descriptor"]
            words += [each.__qualname__, *slots]
            words += [f"{k} {self.tell(v)}" for k, v in own.items() if k not in slots]
        return words

    def _of_network(self, network: nn.Module) -> list[str]:
        network = getattr(network, "_orig_mod", network)  # of a compiled one
        if isinstance(network, torch.jit.ScriptModule):
            return ["script", str(network.inlined_graph), digest_of(network.state_dict())]
        words = ["network", self.tell(type(network))]
        for name, value in vars(network).items():
            if name.endswith("_hooks") or "_hooks_" in name:  # by numbers that count in a process
                words.append(f"{name} {self.tell(list(value.values()))}" if value else name)
            elif name in ("_parameters", "_buffers", "_modules"):
                words.append(f"{name} {self.tell(dict(value))}")
            elif name not in ("training", "_compiled_call_impl"):
                words.append(f"{name} {self.tell(value)}")
        return words


def _digest(words: list[str]) -> str:
    return hashlib.blake2b(json.dumps(words).encode(), digest_size=16).hexdigest()


def _content_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is bound later
        return "empty"


def _globals_of(code: CodeType) -> set[str]:
    """Names of the globals that a code reads, and the codes inside it."""
    read = dis.get_instructions(code)
    names = {each.argval for each in read if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inside = (_globals_of(each) for each in code.co_consts if isinstance(each, CodeType))
    return names.union(*inside)


def _is_library(module: str | None) -> bool:
    """Whether a module is python's, this package's or an installed one, whose version says it."""
    root = (module or "builtins").partition(".")[0]
    if root in sys.stdlib_module_names or root in ("builtins", "torch", "skatr_sk"):
        return True
    folders = str(getattr(sys.modules.get(str(module)), "__file__", "")).split(os.sep)
    return "site-packages" in folders or "dist-packages" in folders


def _name_of(value: Any) -> str:
    """Name of a class or function, with the version of its library, without its build."""
    module = str(getattr(value, "__module__", ""))
    version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", "")
    return f"{module}.{value.__qualname__} {str(version).partition('+')[0]}"
