"""Training of small networks on rows in memory, where what surrounds a step must cost little."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import torch
from skorch.callbacks import Callback
from torch import Tensor

from skatr_sk.training.callbacks import Schedule
from skatr_sk.training.device import resolve_precision
from skatr_sk.training.trainer import Trainer, UncompiledAdamW

__all__ = ["AdamW", "LeanTrainer"]

_OF_BATCHES = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class _Known(NamedTuple):
    """What the weights of a step have in the state, each list in their order."""

    weights: list[Tensor]
    means: list[Tensor]  # of gradients
    squares: list[Tensor]
    steps: list[Tensor]
    n_steps: Tensor  # the steps as one tensor


class AdamW(UncompiledAdamW):
    """torch's fused AdamW, which looks its weights and moments up once and not in every step."""

    _known: _Known | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step by the gradients of the weights; those that have none stay."""
        self.move()

    @torch.no_grad()
    def move(self) -> None:
        """Take a step of which no profiler is told."""
        moving = [[w for w in group["params"] if w.grad is not None] for group in self.param_groups]
        if not any(moving):
            return
        _, means, squares, steps, n_steps = self._moments([w for some in moving for w in some])
        n_steps.add_(1)
        start = 0
        for group, weights in zip(self.param_groups, moving, strict=True):
            if not weights:
                continue
            part = slice(start, start := start + len(weights))
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                weights,
                [weight.grad for weight in weights],
                means[part],
                squares[part],
                [],
                steps[part],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _moments(self, weights: list[Tensor]) -> _Known:
        """Return what is known of some weights; it is in the state, too, under torch's names.

        The state is only ever replaced as a whole: the first weight says whether it was.
        """
        known, first = self._known, self.state[weights[0]]
        if known is not None and first.get("exp_avg") is known.means[0]:
            if len(weights) == len(known.weights) and all(map(is_, weights, known.weights)):
                return known
        states = [self.state[weight] for weight in weights]
        for weight, own in zip(weights, states, strict=True):
            if not own:
                own["step"] = torch.zeros((), device=weight.device)
                own["exp_avg"], own["exp_avg_sq"] = (
                    torch.zeros_like(weight),
                    torch.zeros_like(weight),
                )
        n_steps = torch.stack([own["step"] for own in states])
        for own, step in zip(states, n_steps.unbind(), strict=True):
            own["step"] = step
        means, squares, steps = (
            [own[name] for own in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        self._known = _Known(weights, means, squares, steps, n_steps)
        return self._known


class LeanTrainer(Trainer):
    """The trainer, of which little is left around a step where nobody listens to single steps.

    The numbers are the same with and without listeners. Modules with a method
    ``differentiate(X, y, criterion, weights)`` find their gradients by it where it applies.
    """

    weights_by = AdamW

    def initialize(self) -> LeanTrainer:
        """Initialise, and see who listens to single steps."""
        super().initialize()
        self.is_watched_ = any(
            getattr(type(callback), moment) is not getattr(Callback, moment)
            for _, callback in self.callbacks_
            for moment in _OF_BATCHES
            if not isinstance(callback, Schedule)
        )
        self.weights_ = [weight for _, weight in self.get_all_learnable_params()]
        self.schedules_ = [one for _, one in self.callbacks_ if isinstance(one, Schedule)]
        whole = resolve_precision(self.precision, torch.device(self.device)) == "float32"
        self.by_hand_ = getattr(self.module_, "differentiate", None) if whole else None
        return self

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run over all batches; what is recorded is what skorch records."""
        if iterator is None or self.is_watched_:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            return
        batches = self._batches
        before = len(batches)
        for X, y in iterator:
            batches.append({})
            if training:
                for schedule in self.schedules_:
                    schedule.on_batch_begin(self, training=True)
                loss = self._step((X, y))
            else:
                loss = self.validation_step((X, y))["loss"]
            batches[-1] |= {f"{prefix}_loss": loss.item(), f"{prefix}_batch_size": len(y)}
            self.signals.raise_if_caught()
        self.history.record(f"{prefix}_batch_count", len(batches) - before)

    def _step(self, batch: Any) -> Tensor:
        loss: Tensor = self.train_step_single(batch)["loss"]
        if self.guard.admits(self, loss):
            self.optimizer_.move()
        return loss

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute loss and gradients."""
        module = self.module_
        if not module.training:
            self._set_training(True)
        inputs, y = batch
        if self.by_hand_ is not None:
            rows, *weights = inputs if isinstance(inputs, tuple) else (inputs,)
            device = self.device
            moved = (one.to(device, non_blocking=True) for one in (rows, y, *weights))
            found = self.by_hand_(self.criterion_, *moved)
            if found is not None:
                return {"loss": found[0], "y_pred": found[1]}
        for weight in self.weights_:
            weight.grad = None
        y_pred = self.infer(inputs)
        loss = self.get_loss(y_pred, y, X=inputs, training=True)
        loss.backward()
        return {"loss": loss, "y_pred": y_pred}
