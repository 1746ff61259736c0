"""A pretended GPU: tensors that say they are on CUDA, and whose values the processor computes.

What mixes tensors of two devices fails as on a card, and so does what takes the memory of a tensor
of the card for an array. So the tests that need a GPU show on any machine whether everything is
where it has to be; of speed, rounding and memory they say nothing::

    python -m pytest -p tests.pretended_gpu -m "gpu and not benchmark" -k "not compiled"

It needs torch for CPUs alone, and a C++ compiler for ``pretended_gpu.cpp``. As a plugin it is
loaded before torch, which asks for devices once.
"""

import contextlib
import ctypes
import importlib.util
import subprocess
import tempfile
import threading
from pathlib import Path


def _load_device():
    """Compile and load what torch asks of a device, before torch is imported."""
    home = Path(importlib.util.find_spec("torch").origin).parent
    include, library = home / "include", home / "lib"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "pretended_gpu.so"
        command = ["c++", "-O1", "-std=c++20", "-shared", "-fPIC"]
        command += [str(Path(__file__).with_suffix(".cpp")), f"-I{include}"]
        command += [f"-I{include}/torch/csrc/api/include", f"-L{library}", "-lc10", "-ltorch_cpu"]
        command += [f"-Wl,-rpath,{library}", "-o", str(built)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(built), mode=ctypes.RTLD_GLOBAL)


_load_device()

import torch  # noqa: E402 (see above)
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils import _python_dispatch as dispatch  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

CARD = torch.device("cuda", 0)
aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
# Indices may lie on the CPU where the values are on the card.
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class OnCard(torch.Tensor):
    """A tensor on the card; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CARD,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, *, tensor_contents=None):
        return f"OnCard({self.inner!r})"

    def __reduce_ex__(self, protocol):
        raise RuntimeError("a tensor of the card was pickled: a machine without one could not load")

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


def _compute(function, args, kwargs):
    """Compute on the CPU what is asked of the card; refuse what a card cannot do."""
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, OnCard)]
    # A single number of the CPU goes anywhere.
    here = [each for each in tensors if not isinstance(each, OnCard) and each.dim()]
    if function is aten._fused_sdp_choice.default:
        return 0  # attention as products: the card's own kernels are not there
    if function is aten._has_compatible_shallow_copy_type.default:
        return not (there and here)
    indexed = function in _INDEXING and isinstance(args[0], OnCard)
    if there and here and not (function in _COPIES or indexed):
        shapes = [tuple(each.shape) for each in here]
        raise RuntimeError(f"{function}: tensors of the card and of the CPU, these of {shapes}")

    def inner(value):
        return value.inner if isinstance(value, OnCard) else value

    plain_args, plain_kwargs = tree_map(inner, (args, kwargs))
    on_card = isinstance(args[0], OnCard) if function is aten.copy_.default else bool(there)
    if kwargs.get("device") is not None:
        on_card = torch.device(kwargs["device"]).type == "cuda"
        plain_kwargs |= {"device": torch.device("cpu")}
    if "pin_memory" in kwargs:
        plain_kwargs |= {"pin_memory": None}
    draws = torch.Tag.nondeterministic_seeded in function.tags and not kwargs.get("generator")
    with _drawn_on_the_card() if draws else contextlib.nullcontext():
        found = function(*plain_args, **plain_kwargs)
    if not on_card or function is aten._local_scalar_dense.default:
        return found
    known = {id(each.inner): each for each in there}

    def outer(value):
        if id(value) in known:
            return known[id(value)]
        return OnCard(value) if isinstance(value, torch.Tensor) else value

    found = tree_map(outer, found)
    if not there:
        return found
    return dispatch.return_and_correct_aliasing(function, args, kwargs, found)


@contextlib.contextmanager
def _drawn_on_the_card():
    """Let what draws without a generator of its own take that of the card."""
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(_of_the_card.get_state())
    try:
        yield
    finally:
        _of_the_card.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


class _Made(dispatch.TorchDispatchMode):
    """Sends to the card what is to be made there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "cuda":
            return _compute(function, args, kwargs)
        return function(*args, **kwargs)


def _named(device):
    """The card by its number, which C++ would ask a driver for."""
    return CARD if isinstance(device, str | torch.device) and str(device) == "cuda" else device


class _Asked(TorchFunctionMode):
    """Mends what does not come to a dispatch mode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.tolist and isinstance(args[0], OnCard):
            return args[0].inner.tolist()
        if "device" in kwargs:
            kwargs["device"] = _named(kwargs["device"])
        makes = function in (torch.tensor, torch.as_tensor, torch.asarray)
        if makes and kwargs.get("device") == CARD:
            return function(*args, **kwargs | {"device": "cpu"}).to(CARD)
        if function in (torch.Tensor.to, torch._C._nn._parse_to):
            args = tuple(map(_named, args))
        return function(*args, **kwargs)


class _Generator(torch.Generator):
    """Those of the card draw on the CPU."""

    def __new__(cls, device="cpu"):
        return _plain_generator("cpu")


_plain_generator = torch.Generator
_run_thread = threading.Thread.run
_of_the_card = torch.Generator()


def _run_with_card(self):
    with _Made(), _Asked():
        _run_thread(self)


def _set_state(state, device="cuda"):
    _of_the_card.set_state(state)


def pytest_configure(config):
    """Let torch say that there is a card, in this thread and in all that follow."""
    known = dict(
        is_available=True,
        is_initialized=True,
        is_bf16_supported=True,
        device_count=1,
        current_device=0,
        get_device_name="a pretended GPU",
        max_memory_allocated=0,
    )
    for name, value in known.items():
        setattr(torch.cuda, name, lambda *_, value=value: value)
    for name in ("_lazy_init", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda *_: None)
    torch.cuda.default_generators = (_of_the_card,)
    torch.cuda.get_rng_state = lambda device="cuda": _of_the_card.get_state()
    torch.cuda.set_rng_state = _set_state
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = _of_the_card.manual_seed
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Generator = _Generator
    # Views of tensors that are not of inference cannot be made there from Python.
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.__future__.set_swap_module_params_on_conversion(True)
    threading.Thread.run = _run_with_card
    _Made().__enter__()
    _Asked().__enter__()
