"""What a user hands in as network or loss: tried once before the training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from skatr_sk._checks import Problems, Rule, spell
from skatr_sk.heads.mlp import LOSSES
from skatr_sk.training.seeds import seeded

__all__ = ["LOSS", "built", "try_loss", "try_network"]

_ROWS = 4  # of a trial


def _is_loss(value: Any) -> bool | str:
    if isinstance(value, str):
        return value in LOSSES or spell(value, LOSSES)
    if isinstance(value, type):
        return f"hand in an instance, {value.__name__}(...)"
    return callable(value)


_NAMES = ", ".join(map(repr, LOSSES))
LOSS = Rule(_is_loss, f"one of {_NAMES}, or a callable loss(predicted, target)")


def try_network(
    owner: str,
    name: str,
    network: nn.Module,
    inputs: Tensor,
    n_features: int | None = None,
    least: int = _ROWS,
) -> int:
    """Return the number of features that a network gives of inputs, by one pass of a copy.

    An InvalidParameterError says by the `name` of the parameter when it gives none of shape
    (n, n_features), finite and with a gradient to its weights; any number of them where
    `n_features` is None; or when it takes no batch of `least` rows in training, or gives another
    shape when it predicts.
    """
    with seeded(0, torch.device("cpu")):
        inputs = inputs.cpu().float()
        trial = _Trial(owner, name, f"a network of inputs {tuple(inputs.shape)}")
        own = trial.of(lambda: copy.deepcopy(network).cpu().train())
        output = trial.of(lambda: own(inputs))
        shape = f"({len(inputs)}, {'n_features' if n_features is None else n_features})"
        wanted = f"outputs of shape {shape}"
        trial.compare(output, wanted)
        right = output.ndim == 2 and len(output) == len(inputs) and output.shape[1] > 0
        if not right or n_features not in (None, output.shape[1]):
            trial.fail(wanted, tuple(output.shape))
        weights = [each for each in own.parameters() if each.requires_grad]
        if not weights:
            mend = (
                f"call requires_grad_(True) on it, or leave {name} out and compute X by it before"
            )
            trial.fail("weights that are trained", 0, mend)
        trial.differentiate(output, weights, "its weights")
        if least < len(inputs):
            trial.what = f"a network of inputs {(least, *inputs.shape[1:])}, a batch in training"
            trial.of(lambda: own(inputs[:least]), "give batch_size >= 2" * (least == 1))
        trial.what = f"a network of inputs {tuple(inputs.shape)} in evaluation mode"
        wanted = f"outputs of shape {tuple(output.shape)}, as in training"
        seen = trial.of(lambda: own.eval()(inputs))
        trial.compare(seen, wanted)
        if seen.shape != output.shape:
            trial.fail(wanted, tuple(seen.shape))
    return int(output.shape[1])


def built(network: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Return a network whose lazy layers were built by inputs (n, *shape), in torch's own draws."""
    if any(map(is_lazy, network.parameters())):
        with torch.no_grad():
            network.eval()(torch.zeros(_ROWS, *shape))
    return network


def try_loss(owner: str, loss: Callable[..., Any], n_parameters: int, *, weighted: bool) -> None:
    """Try a loss once; rows that are `weighted` need one value for each of them.

    An InvalidParameterError says when it gives no finite number, or one for each row, with a
    gradient to what is predicted.
    """
    with seeded(0, torch.device("cpu")):
        target = torch.rand(_ROWS, n_parameters)
        predicted = torch.rand(_ROWS, n_parameters, requires_grad=True)
        trial = _Trial(owner, "loss", f"a loss of two tensors {tuple(target.shape)}")
        found = trial.of(lambda: loss(predicted, target))
        shapes = [(_ROWS,)] if weighted else [(), (_ROWS,)]
        wanted = f"values of shape {' or '.join(map(str, shapes))}"
        trial.compare(found, wanted)
        if tuple(found.shape) not in shapes:
            mend = "sample_weight needs one value for each row" * weighted
            trial.fail(wanted, tuple(found.shape), mend)
        trial.differentiate(found, [predicted], "what is predicted")


class _Trial:
    """One pass of what a user has handed in as the parameter `name`; `what` it is to be."""

    def __init__(self, owner: str, name: str, what: str) -> None:
        self.problems, self.name, self.what = Problems(owner), name, what

    def fail(self, wanted: str, found: object, mend: str = "") -> None:
        self.problems.add(self.name, f"{self.what} with {wanted}", found, mend)
        self.problems.raise_if_any()

    def of(self, call: Callable[[], Any], mend: str = "") -> Any:
        """Return what a call gives; whatever it raises is the fault of what was handed in."""
        try:
            return call()
        except Exception as error:
            self.problems.add(self.name, self.what, error, mend)
            try:
                self.problems.raise_if_any()
            except ValueError as said:
                raise said from error

    def compare(self, output: Any, wanted: str) -> None:
        """Raise where an output is no tensor of finite floats."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            self.fail(wanted, kind)
        if not torch.isfinite(output).all():
            bad = output[~torch.isfinite(output)].flatten()[0].item()
            self.fail(f"finite {wanted}", bad)

    def differentiate(self, output: Tensor, sources: Sequence[Tensor], to: str) -> None:
        """Raise where an output has no gradient to any of its sources."""
        gradients: Sequence[Tensor | None] = [None]
        if output.requires_grad:
            gradients = self.of(
                partial(torch.autograd.grad, output.sum(), sources, allow_unused=True)
            )
        if all(each is None for each in gradients):
            mend = "compute it by torch alone, without detach, numpy or no_grad"
            self.fail(f"a gradient to {to}", None, mend)
