"""The only trainer: one skorch subclass that every estimator composes."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks.scoring import PassthroughScoring, ScoringBase
from skorch.helper import predefined_split
from skorch.utils import TeeGenerator
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from skatr_sk._checks import Problems, spell
from skatr_sk.training.batches import Dataset, Loader
from skatr_sk.training.callbacks import (
    EarlyStopping,
    Progress,
    Schedule,
    SklearnProgress,
    StopTraining,
    copy_callbacks,
    plain,
)
from skatr_sk.training.checkpoint import Checkpoint
from skatr_sk.training.device import autocast, one_thread, resolve_device
from skatr_sk.training.divergence import Guard
from skatr_sk.training.estimator import TrainedEstimator
from skatr_sk.training.interrupts import Signals
from skatr_sk.training.seeds import seeded

__all__ = ["Trainer", "UncompiledAdamW", "train"]

_LOGGER = logging.getLogger("skatr_sk.training")
_Module = TypeVar("_Module", bound=torch.nn.Module)

_FEW_PRODUCTS = 100_000_000  # multiplications of a forward pass
_SCORES = (ScoringBase, PassthroughScoring)
# What each epoch has in the history, whatever the callbacks.
_OURS = {"epoch", "train_loss", "valid_loss", "seconds", "kept", "member"}
# What skorch records of an epoch and the history leaves out, or has in a place of its own.
_SKORCH_ONLY = {"batches", "dur", "epoch", "train_batch_count", "train_loss_best"}
_SKORCH_ONLY |= {"valid_batch_count", "valid_loss_best"}


class UncompiledAdamW(torch.optim.AdamW):
    """AdamW without what hides it from torch's compiler, which importing takes seconds."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Trainer(NeuralNet):
    """The trainer: skorch's loop with whole batches, autocast, seeds, resume and clear failures.

    ``prepare(batch, training)`` turns a batch on the device into the module's arguments (scaling,
    augmentation, masks). Its attribute ``generator``, if any, is part of a checkpoint. `n_workers`
    processes read light cones from files; 0 is a thread. The `guard`, which is among the callbacks
    too, judges each step, and `signals` say when to stop. `shares` are those of the learning rate,
    by the names of weights, where they are not one. The rest is skorch's.
    """

    weights_by: type[torch.optim.Optimizer] = UncompiledAdamW

    def __init__(
        self,
        *args: Any,
        guard: Guard,
        signals: Signals,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        precision: str = "auto",
        shuffle_seed: int = 0,
        n_workers: int = 0,
        shares: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.guard = guard
        self.signals = signals
        self.prepare = prepare
        self.precision = precision
        self.shuffle_seed = shuffle_seed
        self.n_workers = n_workers
        self.shares = shares or {}
        super().__init__(*args, **kwargs)

    def initialize(self) -> Trainer:
        """Initialise module, optimiser and callbacks, and start the run's own generator."""
        self.generator_ = torch.Generator().manual_seed(self.shuffle_seed)
        self.interrupted_ = self.stop_ = False
        super().initialize()
        return self

    def get_all_learnable_params(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield what has a gradient: the EMA target has none and takes no optimiser state."""
        return ((k, p) for k, p in super().get_all_learnable_params() if p.requires_grad)

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> tuple[Any, Any]:
        """Group the weights: matrices decay, and each has its share of the learning rate.

        Biases and scales only place the data, and decay would pull them to zero.
        """
        named = list(named_parameters)
        _, kwargs = super().get_params_for_optimizer(prefix, named)
        groups: dict[tuple[bool, float], dict[str, Any]] = {}
        for name, weight in sorted(named, key=lambda each: each[1].ndim <= 1):
            decays, share = weight.ndim > 1, self.shares.get(name, 1.0)
            group = {"params": [], "share": share, "lr": self.lr * share}
            group |= {} if decays else {"weight_decay": 0.0}
            groups.setdefault((decays, share), group)["params"].append(weight)
        return (list(groups.values()),), kwargs

    def get_iterator(self, dataset: Dataset, training: bool = False) -> Loader:
        """Return the batches of a pass, shuffled in training."""
        generator = self.generator_ if training else None
        on_gpu = torch.device(self.device).type == "cuda"
        # Batch statistics need two rows where a row is seen once, not in several views of it.
        pairs = training and getattr(self.module_, "sees_rows_once", False)
        pairs = pairs and any(isinstance(each, _BatchNorm) for each in self.module_.modules())
        return Loader(dataset, self.batch_size, generator, self.n_workers, on_gpu, pairs)

    @property
    def rate(self) -> float:
        """Highest learning rate, after what the guard has halved."""
        return float(self.lr * self.guard.share_)

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return self.max_epochs * self.n_batches_

    @property
    def steps_done(self) -> int:
        """Steps up to the current one; from the history, so that a resumed run goes on."""
        return (len(self.history) - 1) * self.n_batches_ + len(self._batches)

    @property
    def _batches(self) -> list[dict[str, Any]]:
        """What the history has of the batches of this epoch; past its own index, which is slow."""
        found: list[dict[str, Any]] = list.__getitem__(self.history, -1)["batches"]
        return found

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the module on a batch, prepared, at the precision of the run."""
        device = torch.device(self.device)
        x = x[0] if isinstance(x, tuple) else x  # with the weights of its rows
        x = x.to(device, non_blocking=True)
        arguments = (x,) if self.prepare is None else self.prepare(x, self.module_.training)
        with autocast(device, self.precision):
            return self.module_(*arguments, **fit_params)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute loss and gradients, and take the step if the guard admits it."""
        self._zero_grad_optimizer()
        step: dict[str, Any] = self.train_step_single(batch, **fit_params)
        named = TeeGenerator(self.get_all_learnable_params())
        self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        if self.guard.admits(self, step["loss"]):
            self.optimizer_.step()
        return step

    def get_loss(self, y_pred: Any, y_true: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, in which rows count by their weights where they have such."""
        batch = args[0] if args else kwargs.get("X")
        weights = [batch[1]] if isinstance(batch, tuple) else []
        known = (one.to(self.device, non_blocking=True) for one in (y_true, *weights))
        loss: Tensor = self.criterion_(y_pred, *known)
        return loss

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Leave steps that were skipped out of the epoch's mean, before that is taken."""
        self.guard.leave_out(self._batches)
        super().on_epoch_end(net, **kwargs)

    def get_default_callbacks(self) -> list[tuple[str, Any]]:
        """Return skorch's own, under names that no user's callback has, and without its table."""
        callbacks = super().get_default_callbacks()
        return [(_own(name), one) for name, one in callbacks if name != "print_log"]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the module's output for a scoring callback; raise where that is no prediction."""
        try:
            return super().predict_proba(X)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                "callbacks: expected scores that need no prediction, for this network's output "
                f"is none, found one that calls predict ({error}); give EpochScoring a function "
                "of (net, X, y) that reads net.module_ or net.history itself"
            ) from error

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks, all of them, and end the training where one has asked for it."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt as stop:
                # A skorch callback stops the training by raising this in its own on_epoch_end. What
                # comes from anywhere deeper is the user's interrupt.
                *_, (frame, _) = traceback.walk_tb(stop.__traceback__)
                if frame.f_code.co_name != "on_epoch_end":
                    raise
                self.stop_ = True
            except KeyError as error:
                if method_name == "on_epoch_end" and (
                    wrong := _monitored(callback, self.history[-1])
                ):
                    raise ValueError(wrong) from error
                raise
        if method_name in ("on_batch_end", "on_epoch_end"):
            self.signals.raise_if_caught()
        if method_name == "on_epoch_end" and self.stop_:
            raise StopTraining

    def fit_loop(
        self, X: Dataset, y: Any = None, epochs: int | None = None, **kwargs: Any
    ) -> Trainer:
        """Run the epochs that are left, and tell a user's interrupt from an early end."""
        self.n_batches_ = len(self.get_iterator(X, training=True))
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
    estimator: TrainedEstimator,
    build: Callable[[], _Module],
    criterion: torch.nn.Module,
    train_set: Dataset,
    valid_set: Dataset | None,
    *,
    seeds: tuple[int, int],
    schedule: Callable[[float], float] | None = None,
    prepare: Callable[..., tuple[Any, ...]] | None = None,
    callbacks: Sequence[Any] = (),
    checkpoint: Checkpoint | None = None,
    small: bool = False,
    n_workers: int = 0,
    member: tuple[int, int] = (0, 1),
    shares: Callable[[_Module], Mapping[str, float]] | None = None,
    wait: int = 0,
    trainer: type[Trainer] = Trainer,
    precision: str | None = None,
    n_rows: int | None = None,
) -> tuple[_Module, list[dict[str, Any]]]:
    """Build and train a module with an estimator's checked parameters.

    The module comes back on the CPU in evaluation mode: a fitted estimator then loads on a machine
    without the device. Its history has a row an epoch, ``kept`` for the one whose weights these
    are. torch's global generators are left as they were. The optimiser is AdamW, and only matrices
    decay.

    ``build()`` returns the module, with weights from torch's global generator; the loss is
    ``criterion(module(...), y)``, with the weights of the rows as a third argument where the sets
    are a WeightedDataset; `seeds` are those of the weights and of the order of the batches;
    ``schedule(progress)`` is the share of the learning rate at a progress in [0, 1]; for `prepare`
    and `n_workers` see :class:`Trainer`. `callbacks` are the method's own. Copies of those that the
    user handed in are called after them, and the `checkpoint` last, so that it holds what all of
    them have recorded. With one, signals that end the process end the training after its step, and
    the state after the last epoch is written whatever ends it. `small` says that each row is one
    vector and the module an MLP: on a CPU a step that is cheap enough runs in one thread. `member`
    says which of how many networks of one ``fit`` this is, from 0 on. ``shares(module)`` are shares
    of the learning rate by the names of weights; the others have all of it. The patience begins
    after `wait` epochs. `trainer` is the class that trains, and `precision` what the estimator's
    stands for, where it is not the rule; `n_rows` are what the others of its "auto" go by, where
    they are not those of `train_set`.

    Raises an InvalidParameterError when a callback of the user watches a validation that does not
    take place, and a FloatingPointError when the training diverges: what is returned is finite.
    """
    owner = estimator
    estimator = estimator._resolved(len(train_set) if n_rows is None else n_rows)
    users = copy_callbacks(estimator.callbacks or (), make=True)
    _check_callbacks(estimator, users, validates=valid_set is not None)
    device = resolve_device(estimator.device)
    guard = Guard()
    parts: list[Any] = [*callbacks]
    stopper = None
    if estimator.patience is not None and valid_set is not None:
        stopper = EarlyStopping(estimator.patience, wait)
        parts.insert(0, stopper)
    if estimator.verbose:
        which = f" {member[0] + 1}/{member[1]}" if member[1] > 1 else ""
        parts.append(Progress(type(estimator).__name__ + which))
    parts += SklearnProgress.of(owner, int(estimator.max_epochs), member)
    if schedule is not None:
        parts.append(Schedule(schedule))
    batch_size = int(estimator.batch_size)  # torch refuses numpy's, which a search hands in
    with Signals(wanted=checkpoint is not None) as signals, seeded(seeds[0], device):
        module = build()
        net = trainer(
            module,
            criterion,
            optimizer=trainer.weights_by,
            optimizer__weight_decay=estimator.weight_decay,
            optimizer__fused=True,
            lr=estimator.learning_rate,
            max_epochs=estimator.max_epochs,
            batch_size=batch_size,
            train_split=None if valid_set is None else predefined_split(valid_set),
            callbacks=[
                *_named(parts),
                *users,
                *_named([guard] if checkpoint is None else [guard, checkpoint]),
            ],
            verbose=0,
            device=str(device),
            precision=precision or estimator.precision,
            prepare=prepare,
            shuffle_seed=seeds[1],
            n_workers=int(n_workers),
            shares=None if shares is None else shares(module),
            guard=guard,
            signals=signals,
        )
        products = batch_size * sum(p.numel() for p in module.parameters())
        with one_thread(small and device.type == "cpu" and products < _FEW_PRODUCTS):
            _run(net, train_set, checkpoint)
        if not net.interrupted_:
            _look(net, train_set)
            guard.check_end(net, kept_another=stopper is not None and stopper.best_epoch_ > 0)
    if net.interrupted_ or signals.caught is not None:  # also after the last step
        _end(net, signals, checkpoint)
    module.cpu().eval()
    kept = len(net.history) if stopper is None else stopper.best_epoch_
    return module, [_figures(row, kept) for row in net.history]


def _run(net: Trainer, train_set: Dataset, checkpoint: Checkpoint | None) -> None:
    """Run the training; whatever ends it, no epoch that has ended is lost."""
    try:
        net.fit(train_set, None)
    except Exception:
        # A worker that reads is ended by a signal too, and its end is then no fault.
        if net.signals.caught is None:
            raise
        net.interrupted_ = True
    finally:
        if checkpoint is not None:
            checkpoint.write()


def _look(net: Trainer, train_set: Dataset) -> None:
    """Let the guard see the loss of a batch where no epoch has used its last weights for a figure.

    No row is held out, and nothing else is watched.
    """
    if len(net.history) and not net.guard.has_seen(net.history[-1]):
        batch = train_set[torch.arange(min(net.batch_size, len(train_set)))]
        net.guard.look(net.validation_step(batch)["loss"])


def _end(net: Trainer, signals: Signals, checkpoint: Checkpoint | None) -> None:
    """End an interrupted training as it was asked to, and say how to go on."""
    if checkpoint is None:
        raise KeyboardInterrupt
    what = f"Stopped by {signals.name or 'an interrupt'} after epoch {checkpoint.epoch_} of "
    message = f"{what}{net.max_epochs}; {checkpoint.whereabouts()}."
    _LOGGER.warning(message)
    signals.end(message)


def _named(parts: Sequence[Any]) -> list[tuple[str, Any]]:
    """Callbacks of ours, under names that no user's callback has."""
    return [(_own(f"{type(part).__name__}_{i}"), part) for i, part in enumerate(parts)]


def _own(name: str) -> str:
    """Name of a callback of ours, apart from those of the user."""
    return f"skatr_sk_{name}"


def _check_callbacks(
    estimator: TrainedEstimator, callbacks: Sequence[Any], *, validates: bool
) -> None:
    """Refuse scores that take the place of what each epoch has in the history.

    And, where no row `validates`, callbacks that need a validation.
    """
    problems = Problems(type(estimator).__name__)
    where = f"validation_fraction={estimator.validation_fraction}"
    mend = "hold rows out for validation, or let it "
    for one in callbacks:
        callback = one[1] if isinstance(one, tuple) else one
        kind, scores = type(callback).__name__, isinstance(callback, _SCORES)
        monitor = getattr(callback, "monitor", None)
        name = getattr(callback, "name_", None) or getattr(callback, "name", None)
        if scores and name in _OURS:
            expected = f"a score of another name than {', '.join(sorted(_OURS))}"
            problems.add("callbacks", expected, f"{kind}(name={name!r})")
        if validates:
            continue
        if isinstance(monitor, str) and monitor.startswith("valid_"):
            expected = f"none that watches {monitor!r} with {where}"
            problems.add("callbacks", expected, kind, f"{mend}monitor 'train_loss'")
        elif scores and not callback.on_train:
            expected = f"none that scores the validation rows with {where}"
            problems.add(
                "callbacks", expected, kind, f"{mend}score those that train, on_train=True"
            )
    problems.raise_if_any()


def _monitored(callback: Any, row: Mapping[str, Any]) -> str:
    """Say that a callback watches what no other has recorded of an epoch; "" where it does not."""
    monitor = getattr(callback, "monitor", None)
    if not isinstance(monitor, str) or monitor in row:
        return ""
    known = [name for name in row if name not in _SKORCH_ONLY and not name.endswith("_best")]
    found = f"{type(callback).__name__} that monitors {monitor!r}"
    mend = (
        spell(monitor, known)
        or f"a callback that records it comes before {type(callback).__name__}"
    )
    return f"callbacks: expected monitors among {', '.join(known)}, found {found}; {mend}"


def _figures(row: dict[str, Any], kept: int) -> dict[str, Any]:
    """Row of the history: what was recorded of an epoch, as JSON can hold it."""
    recorded = {k: plain(v) for k, v in row.items() if k not in _SKORCH_ONLY}
    epoch = row["epoch"]
    return {"epoch": epoch} | recorded | {"seconds": row["dur"], "kept": epoch == kept}
