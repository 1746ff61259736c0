"""Divergence: steps that are not finite are skipped, and a run of them is undone."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor

from skatr_sk._checks import DivergenceWarning, warn
from skatr_sk.training.state import (
    Tensors,
    all_finite,
    copied,
    put_back,
    squares_finite,
    weights_and_moments,
)

__all__ = ["Guard"]

_LOGGER = logging.getLogger("skatr_sk.training")
_IN_A_ROW = 5  # steps that are not finite, after which a run goes back
_RETURNS = 3  # times that it does so
_WATCHED = {"valid_loss", "effective_rank"}  # figures of a good epoch are finite


class Guard(Callback):
    """Keep what is not finite out of the weights.

    A step whose loss or gradients are not finite is skipped. After five such steps in a row, and
    after an epoch that ends with weights or figures that are not finite, the run goes back to the
    last good state, that of the last epoch that ended well, and on at half the learning rate. That
    may happen three times; the next time it is a FloatingPointError. What is skipped is counted in
    the history: ``skipped_steps`` of an epoch and, once the rate was halved,
    ``learning_rate_share``.
    """

    def initialize(self) -> Guard:
        """Forget an earlier run."""
        self.share_ = 1.0  # of the learning rate
        self.returns_ = 0
        self.in_a_row_ = self.in_epoch_ = self.skipped_ = 0  # steps
        self.undone_ = False  # whether the last epoch was
        self.seen_ = ""
        self.good_: Tensors = {}
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin with a good state."""
        self.good_ = copied(weights_and_moments(net))

    def admits(self, net: Any, loss: Tensor) -> bool:
        """Whether a step is finite, its gradients too; a run of others is undone.

        Gradients whose squares, which AdamW keeps, overflow count as not finite.
        """
        finite = math.isfinite(loss.item())
        gradients = (w.grad for group in net.optimizer_.param_groups for w in group["params"])
        if finite and squares_finite([g for g in gradients if g is not None]):
            self.in_a_row_ = 0
            return True
        self.seen_ = "gradients were not finite" if finite else f"the loss became {loss.item()}"
        self.in_a_row_ += 1
        self.in_epoch_ += 1
        self.skipped_ += 1
        for name, buffer in net.module_.named_buffers():  # means over batches, say
            if not all_finite([buffer]):
                buffer.copy_(self.good_[f"module.{name}"])
        if self.in_a_row_ == _IN_A_ROW:
            self._go_back(net)
        return False

    def leave_out(self, batches: list[dict[str, Any]]) -> None:
        """Take losses that are not finite out of the mean of an epoch, unless there is no other."""
        bad = [row for row in batches if not math.isfinite(row.get("train_loss", 0.0))]
        if len(bad) < sum("train_loss" in row for row in batches):
            for row in bad:
                row |= {"train_loss": 0.0, "train_batch_size": 0}

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Look at the epoch, when all others have recorded theirs: it is good, or undone."""
        row = net.history[-1]
        # What follows from weights whose steps were all skipped is only known by a validation.
        blind = self.in_a_row_ > 0 and "valid_loss" not in row
        watched = _WATCHED | ({"train_loss"} if blind else set())
        figures = {name: row[name] for name in sorted(watched & row.keys())}
        wrong = [f"{k} became {v}" for k, v in figures.items() if not math.isfinite(v)]
        found = weights_and_moments(net)
        if not all_finite(found.values()):
            wrong.append("weights were not finite")
        self.undone_ = bool(wrong)
        if wrong:
            self.seen_ = wrong[0]
            self._go_back(net)
        else:
            self.good_ = copied(found, into=self.good_)
        if self.in_epoch_:
            net.history.record("skipped_steps", self.in_epoch_)
        if self.share_ < 1:
            net.history.record("learning_rate_share", self.share_)
        self.in_epoch_ = 0

    def _go_back(self, net: Any) -> None:
        if self.returns_ == _RETURNS:
            raise self.diverged(net)
        self.returns_ += 1
        self.share_ /= 2
        self.in_a_row_ = 0
        put_back(net, self.good_)
        for group in net.optimizer_.param_groups:
            group["lr"] /= 2
        _LOGGER.warning(
            "Epoch %d: %s; went back to the last good state, and on at a learning rate of %.2g.",
            *(len(net.history), self.seen_, net.rate),
        )

    def diverged(self, net: Any) -> FloatingPointError:
        """Say that no finite weights were found, and what was seen."""
        times = "once" if self.returns_ == 1 else f"{self.returns_} times"
        halved = f", halved {times} to {net.rate:.2g}"
        return FloatingPointError(
            f"Training diverged: {self.seen_} in epoch {len(net.history)} at a learning rate of "
            f"{net.lr:.2g}{halved * bool(self.returns_)}. Use a smaller learning_rate (found "
            f"{net.lr:.2g}), or check the data's range."
        )

    def has_seen(self, row: dict[str, Any]) -> bool:
        """Whether an epoch has a figure that its last weights gave."""
        return bool(_WATCHED & row.keys())

    def look(self, loss: Tensor) -> None:
        """Note a loss under the weights at the end that is not finite."""
        if not torch.isfinite(loss):
            self.undone_, self.seen_ = True, f"the loss became {loss.item()}"

    def check_end(self, net: Any, kept_another: bool) -> None:
        """Raise where the weights at the end are not those of a good epoch; warn of what was seen.

        `kept_another` says that they are those of an earlier epoch, which was good.
        """
        if self.undone_ and not kept_another:
            raise self.diverged(net)
        if not all_finite(net.module_.state_dict().values()):
            self.seen_ = "weights were not finite"
            raise self.diverged(net)
        if self.skipped_ or self.returns_:
            n_steps = len(net.history) * net.n_batches_
            warn(
                f"Training: {self.skipped_} of {n_steps} steps had a loss or gradients that "
                f"were not finite, and were skipped; the learning rate was halved {self.returns_} "
                "times (skipped_steps and learning_rate_share in history_). Use a smaller "
                f"learning_rate (found {net.lr:.2g}), or check the data's range.",
                DivergenceWarning,
            )

    # For checkpoints ------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """Return what a run that resumes has to know beside the state."""
        names = ("share_", "returns_", "in_a_row_", "skipped_", "undone_", "seen_")
        return {name: getattr(self, name) for name in names}

    def resume(self, net: Any, counts: dict[str, Any]) -> None:
        """Go on from a state that a net has, with what :meth:`counts` gave."""
        mine = {k: type(v) for k, v in self.counts().items()}
        alike = isinstance(counts, dict) and mine == {k: type(v) for k, v in counts.items()}
        if not alike or not 0 <= counts["returns_"] <= _RETURNS:
            raise ValueError(f"its counts of skipped steps are {counts}")
        if counts["share_"] != 0.5 ** counts["returns_"] or counts["in_a_row_"] < 0:
            raise ValueError(f"its counts of skipped steps are {counts}")
        for name, value in counts.items():
            setattr(self, name, value)
        for group in net.optimizer_.param_groups:
            group["lr"] *= self.share_
        self.good_ = copied(weights_and_moments(net))
