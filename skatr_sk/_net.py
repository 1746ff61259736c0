"""The only trainer: one skorch subclass that every estimator composes."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.helper import predefined_split
from torch import Tensor

from skatr_sk._callbacks import EarlyStopping, Schedule, StopTraining
from skatr_sk._checks import Problems
from skatr_sk._device import PRECISIONS, autocast, one_thread, resolve_device
from skatr_sk._rows import Batches, Rows

__all__ = [
    "Net",
    "check_training",
    "independent_seeds",
    "seeded",
    "train",
]

_ONE_AT_A_TIME = threading.RLock()
_FEW_PRODUCTS = 100_000_000  # multiplications of a forward pass


def check_training(problems: Problems, estimator: Any) -> None:
    """Note what is wrong with the parameters that every trained estimator has."""
    problems.integer("max_epochs", estimator.max_epochs, 0)
    problems.integer("batch_size", estimator.batch_size, 1)
    problems.real("learning_rate", estimator.learning_rate, "(0, inf)")
    problems.real("weight_decay", estimator.weight_decay, "[0, inf)")
    problems.real("validation_fraction", estimator.validation_fraction, "[0, 1)")
    problems.integer("patience", estimator.patience, 1, optional=True)
    problems.choice("precision", estimator.precision, PRECISIONS)
    # A flag counts as a level of 0 or 1.
    verbose = estimator.verbose
    problems.integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
    try:
        check_random_state(estimator.random_state)
    except ValueError:
        expected = "an int in [0, 2**32), a numpy RandomState or None"
        problems.add("random_state", expected, estimator.random_state)
    callbacks = estimator.callbacks
    listed = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
    # skorch takes (name, callback) pairs as well
    parts = (
        [c[1] if isinstance(c, tuple) and len(c) == 2 else c for c in callbacks or ()]
        if listed
        else []
    )
    if not (callbacks is None or listed) or not all(isinstance(c, Callback) for c in parts):
        problems.add("callbacks", "a list of instances of skorch callbacks or None", callbacks)
    try:
        resolve_device(estimator.device)
    except ValueError as error:
        problems.messages.append(f"device: {error}")


def independent_seeds(seed: int, n: int) -> list[int]:
    """Draw `n` seeds from one, so that generators seeded by them share no stream.

    Examples
    --------
    >>> len(set(independent_seeds(0, 3)))
    3
    """
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(n)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block; leave its global generators as they were.

    These generators belong to the whole process: threads that fit at once take turns.
    """
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


class Net(NeuralNet):
    """The trainer: skorch's loop with whole batches, autocast, seeds, resume and clear failures.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`skorch.NeuralNet`.
    prepare : callable, optional
        ``prepare(batch, training)`` turns a batch on the device into the module's arguments
        (scaling, augmentation, masks). Its attribute ``generator``, if any, is part of a
        checkpoint.
    precision : {"auto", "float32", "bf16"}
    shuffle_seed : int
        Seed of the order of the batches.
    n_workers : int
        Processes that read light cones from files; 0 is a thread.
    """

    def __init__(
        self,
        *args: Any,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        precision: str = "auto",
        shuffle_seed: int = 0,
        n_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        self.prepare = prepare
        self.precision = precision
        self.shuffle_seed = shuffle_seed
        self.n_workers = n_workers
        super().__init__(*args, **kwargs)

    def initialize(self) -> Net:
        """Initialise module, optimiser and callbacks, and start the run's own generator."""
        self.generator_ = torch.Generator().manual_seed(self.shuffle_seed)
        self.interrupted_ = self.stop_ = False
        super().initialize()
        return self

    def get_all_learnable_params(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield what has a gradient: the EMA target has none and takes no optimiser state."""
        return ((k, p) for k, p in super().get_all_learnable_params() if p.requires_grad)

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> tuple[Any, Any]:
        """Let matrices decay; biases and scales only place the data and would pull them to zero."""
        named = list(named_parameters)
        _, kwargs = super().get_params_for_optimizer(prefix, named)
        decaying = [p for _, p in named if p.ndim > 1]
        free = [p for _, p in named if p.ndim <= 1]
        return ([{"params": decaying}, {"params": free, "weight_decay": 0.0}],), kwargs

    def get_iterator(self, dataset: Rows, training: bool = False) -> Batches:
        """Return the batches of a pass, shuffled in training."""
        return Batches(
            dataset,
            self.batch_size,
            self.generator_ if training else None,
            n_workers=self.n_workers,
            pin_memory=torch.device(self.device).type == "cuda",
        )

    def n_batches(self, dataset: Rows) -> int:
        """Count the batches of one pass."""
        return math.ceil(len(dataset) / self.batch_size)

    def infer(self, x: Tensor, **fit_params: Any) -> Any:
        """Run the module on a batch, prepared, at the precision of the run."""
        device = torch.device(self.device)
        x = x.to(device, non_blocking=True)
        arguments = (x,) if self.prepare is None else self.prepare(x, self.module_.training)
        with autocast(device, self.precision):
            return self.module_(*arguments, **fit_params)

    def get_loss(self, y_pred: Any, y_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, and stop with a reason when training diverges."""
        loss: Tensor = self.criterion_(y_pred, y_true.to(self.device, non_blocking=True))
        if not torch.isfinite(loss):
            rate = self.optimizer_.param_groups[0]["lr"]
            raise FloatingPointError(
                f"Training diverged: the loss became {loss.item()} in epoch "
                f"{len(self.history)} at a learning rate of {rate:.2g}. Use a smaller "
                f"learning_rate (found {self.lr:.2g}), or check the data's range."
            )
        return loss

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks, and end the training where one of them asks for it."""
        try:
            super().notify(method_name, **cb_kwargs)
        except KeyboardInterrupt as stop:
            # A skorch callback stops the training by raising this in its own on_epoch_end. What
            # comes from anywhere deeper is the user's interrupt.
            *_, (frame, _) = traceback.walk_tb(stop.__traceback__)
            if frame.f_code.co_name != "on_epoch_end":
                raise
            self.stop_ = True
        if method_name == "on_epoch_end" and self.stop_:
            raise StopTraining

    def fit_loop(self, X: Rows, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Net:
        """Run the epochs that are left, and tell a user's interrupt from an early end."""
        left = 0 if self.stop_ else self.max_epochs - len(self.history)
        try:
            super().fit_loop(X, y, epochs=left, **kwargs)
        except StopTraining:
            pass
        except KeyboardInterrupt:
            self.interrupted_ = True
            raise  # skorch ends the training tidily
        return self


def train(
    module: torch.nn.Module,
    criterion: torch.nn.Module,
    train_rows: Rows,
    valid_rows: Rows | None,
    *,
    device: torch.device,
    precision: str,
    max_epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    patience: int | None,
    seed: int,
    schedule: Callable[[float], float] | None = None,
    prepare: Callable[..., tuple[Any, ...]] | None = None,
    callbacks: Sequence[Any] = (),
    user_callbacks: Sequence[Any] | None = None,
    small: bool = False,
    n_workers: int = 0,
) -> list[dict[str, Any]]:
    """Train a module and return its history, one dict an epoch; "kept" marks its weights' epoch.

    Called inside :func:`seeded`. The module is trained in place and comes back on the CPU in
    evaluation mode: a fitted estimator then loads on a machine without the device.

    Parameters
    ----------
    module, criterion : torch.nn.Module
        What is trained, and ``criterion(module(...), y)``, the loss.
    train_rows, valid_rows : Rows
    device, precision, max_epochs, batch_size, learning_rate, weight_decay
        Of the run; the optimiser is AdamW, and only matrices decay.
    patience : int or None
        Epochs without a better validation loss before the best epoch's weights come back; None
        trains to the end and keeps the last.
    seed : int
        Of the order of the batches.
    schedule : callable, optional
        Share of the learning rate at a progress in [0, 1].
    prepare : callable, optional
        See :class:`Net`.
    callbacks, user_callbacks : sequences of skorch callbacks
        The estimator's own, and those that the user handed in, called last.
    small : bool
        Each row is one vector and the module an MLP: on a CPU a step that is cheap enough runs in
        one thread.
    n_workers : int
        Processes that read light cones from files ahead of the training; 0 is a thread.
    """
    parts: list[Any] = [*callbacks]
    stopper = EarlyStopping(patience) if patience is not None and valid_rows is not None else None
    if schedule is not None:
        parts.append(Schedule(schedule))
    if stopper is not None:
        # First, so that a checkpoint of this epoch holds what it decided.
        parts.insert(0, stopper)
    net = Net(
        module,
        criterion,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=learning_rate,
        max_epochs=max_epochs,
        batch_size=int(batch_size),  # torch refuses numpy's, which a search hands in
        train_split=None if valid_rows is None else predefined_split(valid_rows),
        callbacks=[*parts, *(user_callbacks or ())],
        callbacks__print_log=None,
        verbose=0,
        device=str(device),
        precision=precision,
        prepare=prepare,
        shuffle_seed=seed,
        n_workers=int(n_workers),
    )
    products = batch_size * sum(p.numel() for p in module.parameters())
    with one_thread(small and device.type == "cpu" and products < _FEW_PRODUCTS):
        net.fit(train_rows, None)
    if net.interrupted_:
        raise KeyboardInterrupt
    module.cpu().eval()
    kept = len(net.history) if stopper is None else stopper.best_epoch_
    figures = ("train_loss", "valid_loss", "effective_rank", "effective_rank_at_init")
    return [
        {"epoch": row["epoch"]}
        | {name: float(row[name]) for name in figures if name in row}
        | {"seconds": row["dur"], "kept": row["epoch"] == kept}
        for row in net.history
    ]
