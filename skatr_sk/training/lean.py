"""Training of small networks on rows in memory, where what surrounds a step must cost little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from skatr_sk.training.callbacks import Schedule
from skatr_sk.training.device import resolve_precision
from skatr_sk.training.trainer import Trainer, UncompiledAdamW

__all__ = ["AdamW", "LeanTrainer"]

_Moments = tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]
_OF_BATCHES = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class AdamW(UncompiledAdamW):
    """torch's fused AdamW, which looks its weights and moments up once and not in every step."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step by the gradients of the weights; those that have none stay."""
        self.move()

    @torch.no_grad()
    def move(self) -> None:
        """Take a step of which no profiler is told."""
        for number, group in enumerate(self.param_groups):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            means, squares, steps, count = self._moments(number, weights)
            count += 1
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                weights,
                [weight.grad for weight in weights],
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _moments(self, number: int, weights: list[Tensor]) -> _Moments:
        """Return means of gradients and of their squares, and the steps, each and as one tensor.

        They are in the state, too, under the names that torch gives them.
        """
        cache: dict[int, _Moments] = self.__dict__.setdefault("_known", {})
        known = cache.get(number)
        states = [self.state[weight] for weight in weights]
        if known is not None and len(known[0]) == len(weights):
            if all(own.get("exp_avg") is mean for own, mean in zip(states, known[0], strict=True)):
                return known
        for weight, own in zip(weights, states, strict=True):
            if not own:
                own["step"] = torch.zeros((), device=weight.device)
                own["exp_avg"], own["exp_avg_sq"] = (
                    torch.zeros_like(weight),
                    torch.zeros_like(weight),
                )
        count = torch.stack([own["step"] for own in states])
        for own, step in zip(states, count.unbind(), strict=True):
            own["step"] = step
        means, squares, steps = (
            [own[name] for own in states] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        cache[number] = means, squares, steps, count
        return cache[number]


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
