"""Several processes that train one network on the same batches, each with a part of the work.

Every process draws the same batches, with the same turns and masks. Networks that look at one light
cone at a time (those whose class says ``row_by_row = True``) compute the rows of one process, and
the rows of all are gathered behind them. What looks at a whole batch, its statistics and the loss,
is then the same in every process, and the same as in one that is alone. Gradients of networks that
saw a part of the rows are summed, the others are averaged.

Started by ``accelerate launch`` or ``torchrun``, which say by the environment who is who.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor, distributed, nn

from skatr_sk._checks import require
from skatr_sk.training.device import resolve_device

__all__ = ["Processes", "Share", "is_first", "join"]

_PATIENCE = 50.0  # seconds that a process waits for the others before it ends with an error
_LOGGER = logging.getLogger("skatr_sk")


class Processes:
    """The processes of one training: this is number `rank` of `size`, on `device`."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._partial: set[int] = set()  # parameters of networks that see the rows of one process

    def same(self, value: Any) -> Any:
        """Return what the first process has."""
        values = [value]
        with _lost():
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def check_alike(self, **parts: Any) -> None:
        """Raise a ValueError where the processes differ in one of some parts."""
        found: list[Any] = [None] * self.size
        with _lost():
            distributed.all_gather_object(found, parts)
        for name in parts:
            each = [one[name] for one in found]
            if any(value != each[0] for value in each):
                raise ValueError(
                    f"{name}: expected the same in each of {self.size} processes that train "
                    f"together, found {each}; call fit with the same parameters and data in all."
                )

    def share(self, network: nn.Module) -> None:
        """Let the processes share the work of a network, which begins with the first's weights."""
        network.load_state_dict(self.same({k: v.cpu() for k, v in network.state_dict().items()}))
        for each in _by_rows(network):
            self._partial.update(id(weight) for weight in each.parameters())
            each.forward = partial(self._forward, each.forward)  # type: ignore[method-assign]

    def unshare(self, network: nn.Module) -> None:
        """Let each process do all of the work again."""
        for each in _by_rows(network):
            del each.forward
        self._partial.clear()

    def _forward(self, forward: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        """Compute the rows of this process, and gather those of all."""
        n = len(arguments[0])  # type: ignore[arg-type]
        step = -(-n // self.size)
        # As many in each process: those that lack come from the beginning, and are dropped again.
        rows = torch.arange(self.rank * step, (self.rank + 1) * step) % n
        part = forward(*(each if each is None else each[rows] for each in arguments))
        gathered: Tensor = _Gather.apply(part, self.rank, self.size)
        return gathered[:n]

    def share_gradients(self, network: nn.Module) -> None:
        """Sum the gradients of networks that saw a part of the rows, and average the others."""
        weights = [each for each in network.parameters() if each.grad is not None]
        whole = torch.cat([each.grad.reshape(-1) for each in weights])  # type: ignore[union-attr]
        with _lost():
            distributed.all_reduce(whole)
        sizes = [each.numel() for each in weights]
        for weight, summed in zip(weights, whole.split(sizes), strict=True):
            share = summed if id(weight) in self._partial else summed / self.size
            weight.grad.copy_(share.view_as(weight))  # type: ignore[union-attr]


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradient goes back to those of this one.

    The loss that follows is the same in every process, so that none has to be told of it.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, rank: int, size: int) -> Tensor:
        ctx.rows = slice(rank * len(part), (rank + 1) * len(part))
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(size)]
        with _lost():
            distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rows], None, None


def _by_rows(network: nn.Module) -> list[nn.Module]:
    return [each for each in network.modules() if getattr(each, "row_by_row", False)]


class Share(Callback):
    """Let processes share the work of a training, and take each step with the same gradients."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin; the first process alone tells of the progress."""
        self.processes.share(net.module_)
        self.level_ = _LOGGER.level
        if not is_first():
            _LOGGER.setLevel(logging.WARNING)

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Check that all are in the same epoch: one may have found another checkpoint, or none."""
        self.processes.check_alike(epoch=len(net.history))

    def on_grad_computed(self, net: Any, **kwargs: Any) -> None:
        """Share the gradients."""
        self.processes.share_gradients(net.module_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """End."""
        self.processes.unshare(net.module_)
        _LOGGER.setLevel(self.level_)


@contextmanager
def _lost() -> Iterator[None]:
    """Say what it means when the others do not answer."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "processes that train together: expected an answer of each, found none: one has ended, "
            f"or has not come to the same step within {_PATIENCE:g} s; start all of them again "
            f"(with checkpoint_dir they go on). ({str(error).splitlines()[0]})"
        ) from error


_joined: Processes | None = None  # of this process, after its first training with others


def is_first() -> bool:
    """Whether this process writes: alone, or as the first of those that have trained together."""
    return _joined is None or _joined.rank == 0 or _joined_by != os.getpid()


_joined_by = 0  # process that has joined: a child of it is alone


def join(device: str) -> Processes | None:
    """Return the processes that train with this one, or None where it is alone.

    Children of a process that was launched, such as joblib's, and threads beside its main one are.
    """
    global _joined, _joined_by
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or multiprocessing.parent_process() is not None:
        return None
    if threading.current_thread() is not threading.main_thread():
        return None
    if os.environ.setdefault("SKATR_SK_LAUNCHED", str(os.getpid())) != str(os.getpid()):
        return None
    if _joined is None:
        accelerate = require("accelerate", "training in several processes", "distributed")
        on_cpu = resolve_device(device).type == "cpu"
        patience = timedelta(seconds=_PATIENCE)
        state = accelerate.PartialState(cpu=on_cpu, timeout=patience)
        _joined = Processes(state.process_index, state.num_processes, state.device)
        _joined_by = os.getpid()
    return _joined if _joined.size > 1 else None
