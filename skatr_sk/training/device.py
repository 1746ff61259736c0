"""Where and how to compute: device, precision, threads, and torch's defaults whatever was set."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from skatr_sk._checks import spell

__all__ = [
    "DEVICE_HINT",
    "PRECISIONS",
    "able_to_compile",
    "autocast",
    "device_mend",
    "one_thread",
    "resolve_device",
    "resolve_precision",
    "return_memory",
    "torch_defaults",
]

PRECISIONS = ("auto", "float32", "bf16")
_MOST_GRAPHS = 512  # of a function, of all sizes that it was compiled for: torch itself keeps 8
_FEWEST_TOKENS, _LEAST_WIDTH = 256, 64  # for bfloat16 to be chosen on a CPU
DEVICE_HINT = "'auto', 'cpu', 'cuda' or 'cuda:N' for a device that torch sees here"


def device_mend(device: object) -> bool | str:
    """Whether torch can compute on a device here: True, or what to do about it."""
    if isinstance(device, str) and device == "auto":
        return True
    try:
        resolved = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        return spell(device, ("auto", "cpu", "cuda"))
    if resolved.type == "mps":
        return (
            "Apple's GPU has no float64, in which posteriors are computed: set_params(device='cpu')"
        )
    try:
        # The values must come back: the device "meta" takes them and has none.
        torch.zeros(1, device=resolved).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        return f"set_params(device='auto') takes what there is ({reason})"
    return True


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn ``device`` into a torch device; ``"auto"`` is CUDA when there is one.

    Raises a ValueError when the name is unknown or the device is not present.
    """
    mend = device_mend(device)
    if mend is not True:
        tail = f"; {mend}" if mend else ""
        raise ValueError(f"device: expected {DEVICE_HINT}, found {device!r}{tail}")
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def resolve_precision(
    precision: str, device: torch.device, *, n_tokens: int = 0, width: int = 0
) -> str:
    """Turn ``precision`` into "float32" or "bf16"; what "auto" is follows from sizes alone.

    It is bf16 on CUDA and, for transformers over tokens of some number and width, on processors
    that multiply matrices of it (Intel's AMX). There float32 was up to 1.3 times faster for fewer
    or narrower tokens, bf16 1.2 times (steps) to 1.9 times (summaries) for the others.
    """
    if precision != "auto":
        return precision
    has_matrices = getattr(torch.cpu, "_is_amx_tile_supported", bool)  # torch 2.4 does not know
    pays = n_tokens >= _FEWEST_TOKENS and width >= _LEAST_WIDTH and has_matrices()
    return "bf16" if device.type == "cuda" or (device.type == "cpu" and pays) else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Run what follows in bfloat16 where ``precision`` says so; "auto" means on CUDA only."""
    enabled = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class _Switch(NamedTuple):
    """A setting of torch that belongs to the whole process, and the value that we compute with."""

    get: Callable[[], Any]
    set: Callable[[Any], object]
    ours: Any


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _precisions() -> list[_Switch]:
    """In how many digits float32 is multiplied, by whichever interface this torch has."""
    owners = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(owner, "fp32_precision") for owner in owners):
        return [
            _Switch(
                torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
            )
        ]
    # The older interface refuses to answer where a script has used this one.
    name = "fp32_precision"
    return [
        _Switch(partial(_whole, owner), partial(setattr, owner, name), "ieee") for owner in owners
    ]


def _whole(owner: Any) -> str:
    """Precision of an owner; none of its own is the whole one."""
    found: str = owner.fp32_precision
    return "ieee" if found == "none" else found


_SWITCHES = (
    _Switch(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    # Operations that have no deterministic variant fail where these are asked for.
    _Switch(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
        (False, False),
    ),
    *_precisions(),
    # Every step is looked at, and the first that is not finite ends the training.
    _Switch(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda state: torch.autograd.set_detect_anomaly(*state),
        (False, True),
    ),
)


class _Process:
    """What is set for the whole process; threads may be inside at once."""

    lock = threading.Lock()
    inside = 0
    before: ClassVar[list[Any]] = []

    @classmethod
    def enter(cls) -> None:
        """Set what is not ours, at the first entry."""
        with cls.lock:
            if cls.inside == 0:
                cls.before = [switch.get() for switch in _SWITCHES]
                for switch, before in zip(_SWITCHES, cls.before, strict=True):
                    if before != switch.ours:
                        switch.set(switch.ours)
            cls.inside += 1

    @classmethod
    def leave(cls) -> None:
        """Set it back, at the last exit."""
        with cls.lock:
            cls.inside -= 1
            if cls.inside == 0:
                cls.restore()

    @classmethod
    def restore(cls) -> None:
        """Set it back."""
        for switch, before in zip(_SWITCHES, cls.before, strict=True):
            if before != switch.ours:
                switch.set(before)

    @classmethod
    def after_fork(cls) -> None:
        """Start anew: a thread that was inside does not exist in the child."""
        cls.lock = threading.Lock()
        if cls.inside:
            cls.inside = 0
            cls.restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.after_fork)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute inside the block, or the decorated function, as if no setting of torch were changed.

    A script may have called ``torch.set_default_dtype``, ``torch.set_default_device``,
    ``torch.use_deterministic_algorithms`` or ``torch.set_float32_matmul_precision``, or stand
    inside ``torch.inference_mode``, ``torch.no_grad``, ``torch.autocast`` or
    ``torch.autograd.detect_anomaly``. Networks are built and trained, and results computed, as
    without; afterwards all is as it was.
    """
    _Process.enter()
    try:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _Process.leave()


@contextmanager
def able_to_compile(wanted: bool) -> Iterator[None]:
    """Let torch keep all that the block compiles, where it is to; say so where torch cannot."""
    if not wanted:
        yield
        return
    import torch._dynamo.config as dynamo  # torch's compiler takes seconds to import
    from torch._dynamo.exc import BackendCompilerFailed

    name = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    try:
        torch.compile(lambda: None)  # which it refuses on platforms that it is not for
    except RuntimeError as error:
        raise _unable(error) from error
    try:
        with dynamo.patch(**{name: _MOST_GRAPHS, f"accumulated_{name}": _MOST_GRAPHS}):
            yield
    except BackendCompilerFailed as error:
        raise _unable(getattr(error, "inner_exception", error)) from error


def _unable(error: BaseException) -> RuntimeError:
    reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return RuntimeError(
        f"compile: expected a torch that can compile here, found that it cannot ({reason.strip()});"
        " it takes a C++ compiler on a CPU and Triton on a GPU: install it, or leave compile=False."
    )


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute in one thread inside the block, where wanted.

    Products of a few rows leave a second thread nothing to do but wait, and OpenMP waits by
    spinning: beside another job a small head then trains ten to twenty times slower. The number
    belongs to the whole process, and comes back at the end: that from before the first of the fits
    that run in threads beside each other.
    """
    within = getattr(_INSIDE_HERE, "is_so", False)  # a fit within a fit
    if not wanted or within:
        yield
        return
    with _Inside.lock:
        if _Inside.n == 0:
            _Inside.before = torch.get_num_threads()
        _Inside.n += 1
        torch.set_num_threads(1)
    _INSIDE_HERE.is_so = True
    try:
        yield
    finally:
        _INSIDE_HERE.is_so = False
        with _Inside.lock:
            _Inside.n -= 1
            torch.set_num_threads(_Inside.before)


class _Inside:
    """The threads inside :func:`one_thread`, and the number of torch's from before them."""

    lock = threading.Lock()
    n, before = 0, 1


_INSIDE_HERE = threading.local()  # whether this thread is


def return_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) keeps it.

    It keeps what lies between blocks in use for requests that fit. Where sizes change from step to
    step few do, and the process grows with every step for a while.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # not musl
            trim(0)
