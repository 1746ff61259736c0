"""Where and how to compute: device, precision, threads, and torch's defaults whatever was set."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from skatr_sk._checks import spell

__all__ = [
    "DEVICE_HINT",
    "PRECISIONS",
    "autocast",
    "device_mend",
    "one_thread",
    "resolve_device",
    "return_memory",
    "torch_defaults",
]

PRECISIONS = ("auto", "float32", "bf16")
DEVICE_HINT = "'auto', 'cpu', 'cuda' or 'cuda:N' for a device that torch sees here"


def device_mend(device: object) -> bool | str:
    """Whether torch can compute on a device here: True, or what to do about it."""
    if isinstance(device, str) and device == "auto":
        return True
    try:
        resolved = torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        return spell(device, ("auto", "cpu", "cuda"))
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


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Run what follows in bfloat16 where ``precision`` says so; "auto" means on CUDA only."""
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


class _DefaultDtype:
    """torch's default dtype, which belongs to the whole process; threads may be inside at once."""

    lock = threading.Lock()
    inside = 0
    before = torch.float32

    @classmethod
    def after_fork(cls) -> None:
        """Start anew: a thread that was inside does not exist in the child."""
        cls.lock = threading.Lock()
        if cls.inside:
            cls.inside = 0
            torch.set_default_dtype(cls.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_DefaultDtype.after_fork)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute inside the block, or the decorated function, as if no setting of torch were changed.

    A script may have called ``torch.set_default_dtype`` or ``torch.set_default_device``, or stand
    inside ``torch.inference_mode``, ``torch.no_grad`` or ``torch.autocast``. Networks are built and
    trained, and results computed, as without; afterwards all is as it was.
    """
    with _DefaultDtype.lock:
        if _DefaultDtype.inside == 0:
            _DefaultDtype.before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _DefaultDtype.inside += 1
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
        with _DefaultDtype.lock:
            _DefaultDtype.inside -= 1
            if _DefaultDtype.inside == 0:
                torch.set_default_dtype(_DefaultDtype.before)


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute in one thread inside the block, where wanted.

    Products of a few rows leave a second thread nothing to do but wait, and OpenMP waits by
    spinning: beside another job a small head then trains ten to twenty times slower. The number
    belongs to the whole process, and comes back at the end.
    """
    if not wanted:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def return_memory() -> None:
    """Give freed memory back to the system, where the C library (glibc) keeps it.

    It keeps what lies between blocks in use for requests that fit. Where sizes change from step to
    step few do, and the process grows with every step for a while.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # not musl
            trim(0)
