"""What happens around an epoch: the learning rate, early stopping, moving averages, progress."""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from skatr_sk._checks import warn
from skatr_sk.training.device import return_memory
from skatr_sk.training.processes import is_first
from skatr_sk.training.state import copied

__all__ = [
    "Announcement",
    "EarlyStopping",
    "Progress",
    "ReturnMemory",
    "Schedule",
    "SklearnProgress",
    "StopTraining",
    "copy_callbacks",
    "cosine_schedule",
    "plain",
    "ramp",
]

_LOGGER = logging.getLogger("skatr_sk.training")
_TRIM_SECONDS = 10.0
_CLOCKED_SECONDS = 1.0  # of steps that are timed before the minutes are told


def ramp(start: float, end: float, progress: float) -> float:
    """Rise from ``start`` to ``end`` along half a cosine as ``progress`` goes from 0 to 1."""
    return end - (end - start) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def cosine_schedule(progress: float, warmup: float = 0.1) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return ramp(1.0, 0.0, (progress - warmup) / (1 - warmup))


def copy_callbacks(callbacks: Sequence[Any], *, make: bool = False) -> list[Any]:
    """Return callbacks of their own for one training, so that what they learn stays with it.

    Each is cloned as scikit-learn clones an estimator, or else copied. What cannot be copied whole,
    because it holds an open file or a connection, shares that with its copy. Classes and functions
    that make a callback stay, or are called where they are to `make` it: a TypeError says when one
    has made something else.
    """
    return [_copy_callback(one, make) for one in callbacks]


def _copy_callback(callback: Any, make: bool) -> Any:
    if isinstance(callback, tuple):
        return callback[0], _copy_callback(callback[1], make)
    if not isinstance(callback, Callback):
        made = callback() if make else callback
        if make and not isinstance(made, Callback):
            raise TypeError(
                "callbacks: expected a class or function that makes a skorch callback, found "
                f"{callback!r}, which has made {made!r}."
            )
        return made
    failed: Exception | None = None
    for copy_of in (clone, copy.deepcopy):
        try:
            return copy_of(callback)
        except Exception as error:  # whatever a stranger's constructor or lock raises
            _LOGGER.debug("%s of a callback failed: %s", copy_of.__name__, error)
            failed = error
    if not make:  # of a clone; one training alone shares with nobody
        kind = type(callback).__name__
        warn(
            f"callbacks: expected what can be copied, found {kind} ({failed}); all clones share "
            "what it holds. Hand in a class, or a function that makes it, such as "
            f"callbacks=[lambda: {kind}(...)], to have one of its own for each fit."
        )
    try:
        return copy.copy(callback)
    except Exception as error:
        _LOGGER.debug("copy of a callback failed: %s", error)
        return callback


def plain(value: Any) -> Any:
    """Return what a callback has recorded as JSON can hold it.

    Numbers, flags, words and None stay; arrays and tensors become lists, and what is none of these
    becomes its ``repr``.
    """
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


class StopTraining(KeyboardInterrupt):
    """Ends the training early and on purpose; a user's interrupt is a plain KeyboardInterrupt.

    Callbacks ask for it by ``net.stop_ = True``, so that all of them still see the epoch end.
    """


class ReturnMemory(Callback):
    """Give freed memory back after a step on the CPU, at most once in ten seconds.

    Masks make each step's tensors of other sizes. To return the memory and to get it anew takes a
    step some 0.1 s: once a second, that was a tenth of the time.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.last_ = time.monotonic()

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        """Look at it."""
        if torch.device(net.device).type == "cpu" and time.monotonic() - self.last_ > _TRIM_SECONDS:
            return_memory()
            self.last_ = time.monotonic()


class Announcement(Callback):
    """Log once, at INFO, what is trained on, in how many steps, and the minutes it will take.

    These are extrapolated from the first steps but the very first, which also warms up.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Nothing is said yet."""
        self.said_, self.n_timed_, self.start_ = False, -1, math.nan

    def on_batch_end(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Time the steps, and speak when they have taken long enough."""
        if self.said_ or not training:
            return
        now = time.monotonic()
        self.n_timed_ += 1
        if self.n_timed_ == 0:
            self.start_ = now
        elif now - self.start_ > _CLOCKED_SECONDS or net.steps_done == net.n_steps:
            self.said_ = True
            minutes = (now - self.start_) / self.n_timed_ * (net.n_steps - net.steps_done) / 60
            _LOGGER.info(
                "%s; %d steps of %d in %d epochs on %s, about %.1f minutes to go.",
                *(self.subject, net.n_steps, net.batch_size, net.max_epochs, net.device, minutes),
            )


class Schedule(Callback):
    """Set the learning rate before each step: ``share(progress)`` of its peak, progress in (0, 1).

    A step counts at its middle, so that no step is lost to a rate of zero at either end, not even
    that of a run of one.
    """

    def __init__(self, share: Callable[[float], float]) -> None:
        self.share = share

    def on_batch_begin(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Set the rate of this step."""
        if training:
            rate = net.rate * self.share((net.steps_done - 0.5) / net.n_steps)
            for group in net.optimizer_.param_groups:
                group["lr"] = rate * group["share"]


class EarlyStopping(Callback):
    """Stop after `patience` epochs without a better validation loss; restore the best weights.

    The first `wait` epochs do not count, in which part of a network is still frozen.
    """

    def __init__(self, patience: int, wait: int = 0) -> None:
        self.patience, self.wait = patience, wait

    def initialize(self) -> EarlyStopping:
        """Forget an earlier run."""
        self.best_loss_ = float("inf")
        self.best_epoch_ = 0
        self.best_weights_: dict[str, torch.Tensor] = {}
        return self

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Keep the weights of a better epoch; stop after too many worse ones."""
        epoch, loss = net.history[-1, ("epoch", "valid_loss")]
        if loss < self.best_loss_:
            self.best_loss_, self.best_epoch_ = loss, epoch
            self.best_weights_ = copied(net.module_.state_dict())
        elif epoch - max(self.best_epoch_, self.wait) >= self.patience:
            _LOGGER.info("No better validation loss for %d epochs: stopped.", self.patience)
            net.stop_ = True

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Bring back the best weights."""
        if self.best_weights_:
            net.module_.load_state_dict(self.best_weights_)


class Progress(Callback):
    """A progress bar over the epochs, with losses, effective rank and the time left."""

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the bar."""
        quiet = not is_first()
        self.bar_ = tqdm(total=net.max_epochs, desc=self.title, unit="epoch", disable=quiet)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Move the bar."""
        row = net.history[-1]
        shown = {"train_loss": "train", "valid_loss": "valid", "effective_rank": "rank"}
        figures = {v: f"{row[k]:.3g}" for k, v in shown.items() if k in row}
        self.bar_.set_postfix(figures, refresh=False)
        self.bar_.update(row["epoch"] - self.bar_.n)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()


class SklearnProgress(Callback):
    """Report each epoch to the callbacks that scikit-learn >= 1.9 attaches to an estimator.

    `context` is the ``sklearn.callback.CallbackContext`` of the estimator's ``fit``, which the
    `last` of its trainings ends.
    """

    def __init__(self, estimator: Any, context: Any, last: bool = True) -> None:
        self.estimator, self.context, self.last = estimator, context, last

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Open a task for the epoch."""
        self.epoch_ = self.context.subcontext(task_name="epoch")
        self.epoch_.call_on_fit_task_begin(estimator=self.estimator)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Close it; a callback may ask to stop."""
        if self.epoch_.call_on_fit_task_end(estimator=self.estimator):
            net.stop_ = True

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the task of the whole fit."""
        if self.last:
            self.context.call_on_fit_task_end(estimator=self.estimator)

    @classmethod
    def of(cls, estimator: Any, max_epochs: int, member: tuple[int, int]) -> list[SklearnProgress]:
        """Return the callback in a list, or no callback where scikit-learn is older.

        The networks of one ``fit``, of which this is the `member`, share the task of the fit.
        """
        number, n_members = member
        if not hasattr(estimator, "_init_callback_context"):
            return []
        if number == 0 or not hasattr(estimator, "_callback_fit_ctx"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # an experimental interface
                estimator._init_callback_context(max_subtasks=max_epochs * n_members)
            estimator._callback_fit_ctx.call_on_fit_task_begin(estimator=estimator)
        return [cls(estimator, estimator._callback_fit_ctx, number == n_members - 1)]
