"""What happens around an epoch: schedules, early stopping, checkpoints, progress."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from skatr_sk._device import return_memory
from skatr_sk._files import write_whole

try:  # scikit-learn >= 1.9: nested progress in a search
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks of its own."""

    def with_callbacks(method: Callable) -> Callable:  # type: ignore[no-redef]
        """Return the method as it is."""
        return method


__all__ = [
    "CallbackSupportMixin",
    "Checkpoint",
    "EarlyStopping",
    "Progress",
    "ReturnMemory",
    "Schedule",
    "SklearnProgress",
    "StopTraining",
    "with_callbacks",
]

_LOGGER = logging.getLogger("skatr_sk.training")
_CHECKPOINT_FORMAT = 2
_TRIM_SECONDS = 1.0


class StopTraining(KeyboardInterrupt):
    """Ends the training early and on purpose; a user's interrupt is a plain KeyboardInterrupt.

    Callbacks ask for it by ``net.stop_ = True``, so that all of them still see the epoch end.
    """


class ReturnMemory(Callback):
    """Give freed memory back after a step on the CPU, at most once in a second.

    Masks make each step's tensors of other sizes. A step of a second has allocated so much that the
    some 50 ms are little; fast steps are small, and left in peace.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.last_ = time.monotonic()

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        """Look at it."""
        if torch.device(net.device).type == "cpu" and time.monotonic() - self.last_ > _TRIM_SECONDS:
            return_memory()
            self.last_ = time.monotonic()


class Schedule(Callback):
    """Set the learning rate before each step from the share of all steps that are done.

    Parameters
    ----------
    share : callable
        Share of the peak learning rate at a progress in (0, 1). A step counts at its middle, so
        that no step is lost to a rate of zero at either end, not even that of a run of one.
    """

    def __init__(self, share: Callable[[float], float]) -> None:
        self.share = share

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Count the steps of the whole run."""
        self.n_batches_ = net.n_batches(X)

    def on_batch_begin(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Set the rate of this step."""
        if training:
            # Counted from the history, so that a resumed run goes on where it was.
            done = (len(net.history) - 1) * self.n_batches_ + len(net.history[-1, "batches"])
            rate = net.lr * self.share((done - 0.5) / (net.max_epochs * self.n_batches_))
            for group in net.optimizer_.param_groups:
                group["lr"] = rate


class EarlyStopping(Callback):
    """Stop when the validation loss no longer falls, and bring back the best epoch's weights.

    Parameters
    ----------
    patience : int
        Epochs without a better validation loss.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

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
            self.best_weights_ = copy.deepcopy(net.module_.state_dict())
        elif epoch - self.best_epoch_ >= self.patience:
            _LOGGER.info("No better validation loss for %d epochs: stopped.", self.patience)
            net.stop_ = True

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Bring back the best weights."""
        if self.best_weights_:
            net.module_.load_state_dict(self.best_weights_)


class Checkpoint(Callback):
    """Write the whole state of a run every few epochs, and go on from it when it is there.

    One safetensors file with a JSON header: weights, optimiser, generators, history and what
    early stopping knows. A resumed run equals one that was never interrupted.

    Parameters
    ----------
    folder : path
        Made if it does not exist.
    every : int
        Epochs between two writes.
    run : str
        What identifies the run (parameters, data, seed): another run has a file of its own.
    """

    def __init__(self, folder: str | Path, every: int, run: str) -> None:
        self.folder = folder
        self.every = every
        self.run = run

    @property
    def path(self) -> Path:
        """File of the checkpoint: one a run, so that the folds of a search can share a folder."""
        digest = hashlib.blake2b(self.run.encode(), digest_size=8).hexdigest()
        return Path(self.folder) / f"checkpoint-{digest}.safetensors"

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Resume where there is a file."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._resume(net)
            _LOGGER.info("Resumed after epoch %d from %s.", len(net.history), self.path)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Write every few epochs, and after the last."""
        epoch = len(net.history)
        if epoch % self.every == 0 or epoch == net.max_epochs or net.stop_:
            self._write(net)

    @staticmethod
    def _stopper(net: Any) -> EarlyStopping | None:
        return next((c for _, c in net.callbacks_ if isinstance(c, EarlyStopping)), None)

    @staticmethod
    def _generators(net: Any) -> dict[str, torch.Generator]:
        generators = {"shuffle": net.generator_, "torch": torch.default_generator}
        if hasattr(net.prepare, "generator"):
            generators["prepare"] = net.prepare.generator
        device = torch.device(net.device)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generators["cuda"] = torch.cuda.default_generators[index]
        return generators

    def _write(self, net: Any) -> None:
        tensors = {f"module.{k}": v for k, v in net.module_.state_dict().items()}
        optimizer = net.optimizer_.state_dict()["state"]
        tensors |= {f"optimizer.{i}.{k}": v for i, s in optimizer.items() for k, v in s.items()}
        tensors |= {f"generator.{k}": g.get_state() for k, g in self._generators(net).items()}
        header: dict[str, Any] = {"format": _CHECKPOINT_FORMAT, "run": self.run}
        header["stopped"] = net.stop_
        header["history"] = net.history.to_list()
        stopper = self._stopper(net)
        if stopper is not None:
            header["best"] = [stopper.best_loss_, stopper.best_epoch_]
            tensors |= {f"best.{k}": v for k, v in stopper.best_weights_.items()}
        whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        metadata = {"skatr_sk_checkpoint": json.dumps(header)}
        write_whole(self.path, lambda path: save_file(whole, path, metadata=metadata))

    def _resume(self, net: Any) -> None:
        advice = "Remove the file to start anew, or name another checkpoint_dir."
        try:
            with safe_open(self.path, framework="pt") as stream:
                header = json.loads((stream.metadata() or {})["skatr_sk_checkpoint"])
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{self.path} is no readable checkpoint: {error}. {advice}") from error
        if header.get("run") != self.run or header.get("format") != _CHECKPOINT_FORMAT:
            raise ValueError(f"{self.path} was not written by this run. {advice}")

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        net.module_.load_state_dict(part("module."))
        state = net.optimizer_.state_dict()
        state["state"] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            state["state"].setdefault(int(index), {})[name] = value
        net.optimizer_.load_state_dict(state)
        for name, generator in self._generators(net).items():
            if f"generator.{name}" in tensors:  # a run may go on on another device
                generator.set_state(tensors[f"generator.{name}"])
        net.history.extend(header["history"])
        net.stop_ = header["stopped"]
        stopper = self._stopper(net)
        if stopper is not None:
            stopper.best_loss_, stopper.best_epoch_ = header["best"]
            stopper.best_weights_ = {k: v.to(net.device) for k, v in part("best.").items()}


class Progress(Callback):
    """A progress bar over the epochs, with losses, effective rank and the time left.

    Parameters
    ----------
    title : str
        What is being fitted.
    """

    def __init__(self, title: str) -> None:
        self.title = title

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar_ = tqdm(total=net.max_epochs, desc=self.title, unit="epoch")

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

    Parameters
    ----------
    estimator : estimator
        The one whose ``fit`` runs.
    context : sklearn.callback.CallbackContext
        Of that fit.
    """

    def __init__(self, estimator: Any, context: Any) -> None:
        self.estimator = estimator
        self.context = context

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
        self.context.call_on_fit_task_end(estimator=self.estimator)

    @classmethod
    def of(cls, estimator: Any, max_epochs: int) -> list[SklearnProgress]:
        """Return the callback in a list, or no callback where scikit-learn is older."""
        if not hasattr(estimator, "_init_callback_context"):
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # an experimental interface
            context = estimator._init_callback_context(max_subtasks=max_epochs)
        context.call_on_fit_task_begin(estimator=estimator)
        return [cls(estimator, context)]
