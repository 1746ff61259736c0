"""Small runs for the tests of the training: signals, a transformer, a script, callbacks."""

from dataclasses import dataclass

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from skatr_sk import SKATRTransformer
from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import JEPA, LeJEPA
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.estimator import TrainedEstimator
from skatr_sk.training.trainer import train

CPU = torch.device("cpu")
SMALL_JEPA = JEPA(predictor_dim=8, predictor_depth=1)


def signals(n=24, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)


def transformer(**parameters):
    """A transformer that trains in a moment: 24 signals, 18 of them in 3 batches."""
    defaults = dict(
        patch_size=2,
        embed_dim=8,
        depth=1,
        n_heads=2,
        objective=LeJEPA(),  # the one that trains the soonest
        batch_size=8,
        max_epochs=4,
        validation_fraction=0.25,
        learning_rate=5e-3,
        device="cpu",
        random_state=3,
    )
    return SKATRTransformer(**defaults | parameters)


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def assert_same_run(first, second):
    assert without_seconds(first.history_) == without_seconds(second.history_)
    weights = second.encoder_.state_dict()
    for name, value in first.encoder_.state_dict().items():
        assert torch.equal(value, weights[name]), name


class Act(Callback):
    """Calls ``act(net)`` at one or each of the moments of one kind.

    These are the end of a training "batch", the end of an "epoch", or its "begin".

    An estimator trains with copies of its callbacks: what is to be seen outside goes through `act`.
    """

    def __init__(self, moment, act, at=None):
        self.moment, self.act, self.at = moment, act, at

    def initialize(self):
        self.calls_ = 0
        return self

    def _call(self, net):
        self.calls_ += 1
        if self.at in (None, self.calls_):
            self.act(net)

    def on_batch_end(self, net, training=None, **kwargs):
        if self.moment == "batch" and training:
            self._call(net)

    def on_epoch_begin(self, net, **kwargs):
        if self.moment == "begin":
            self._call(net)

    def on_epoch_end(self, net, **kwargs):
        if self.moment == "epoch":
            self._call(net)


def raising(error):
    def act(net):
        raise error

    return act


class Scripted(nn.Module):
    """A module whose only weight counts its training steps; its loss follows a script."""

    def __init__(self, losses):
        super().__init__()
        self.losses = losses
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.steps += 1
            return self.weight * 0
        return self.weight * 0 + self.losses[self.steps - 1]


class Identity(nn.Module):
    def forward(self, output, target):
        return output


@dataclass(kw_only=True, eq=False, repr=False)
class Trained(TrainedEstimator):
    """An estimator with nothing but what all trained ones share."""

    width: int = 3
    device: str = "cpu"


def scripted(losses, **parameters):
    """Train a scripted module, one step an epoch; return it and its history."""
    rows = FieldDataset(ArrayFields(signals()))
    estimator = Trained(**dict(max_epochs=len(losses), batch_size=100) | parameters)
    return train(estimator, lambda: Scripted(losses), Identity(), rows, rows, seeds=(0, 0))
