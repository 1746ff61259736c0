"""Functions, objects and networks in the identity of a run: by their content, in every process."""

import functools
import operator
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from skatr_sk.training.identity import identity_of

FACTOR = 2.0
pytestmark = pytest.mark.usefixtures("torch_seed")


class Scaled:
    shift = 0.0

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return x * self.factor + self.shift


class Shifted(Scaled):
    shift = 1.0


class Network(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(2, 2), function
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.function(self.layer(x))


class Doubled(Network):
    def forward(self, x):
        return 2 * self.function(self.layer(x))


def closed(value):
    return lambda x: x * value


def with_default(value):
    return lambda x, y=value: x * y


def frozen(network):
    return network.requires_grad_(False)


def hooked(network):
    network.register_forward_hook(lambda *call: None)
    return network


def reading(factor):
    read = types.FunctionType((lambda x: [x * FACTOR for _ in x]).__code__, {"FACTOR": factor})
    return read


DIFFERENT = {
    "functions": [lambda x: x, lambda x: x * 50, lambda x: x * 51, lambda x: x.sin(), torch.mul],
    "inside": [lambda x: [y * 2 for y in x], lambda x: [y * 3 for y in x]],
    "closures": [closed(v) for v in (1.0, 1, 2.0, np.ones(2), np.zeros(2), torch.ones(2), closed)],
    "defaults": [with_default(1), with_default(2)],
    "globals": [reading(1.0), reading(2.0)],
    "objects": [Scaled(1.0), Scaled(50.0), Shifted(1.0), Scaled, Shifted],
    "methods": [Scaled(1.0).__call__, Scaled(2.0).__call__, operator.itemgetter(1)],
    "partials": [functools.partial(closed, value=v) for v in (1, 2)],
    "generators": [np.random.RandomState(0), np.random.RandomState(1), np.random.default_rng(0)],
    "networks": [
        *(kind(f) for kind in (Network, Doubled) for f in (torch.sin, torch.cos, closed(2))),
        frozen(Network(torch.sin)),
        hooked(Network(torch.sin)),
        nn.Conv1d(1, 1, 1, stride=1),
    ],
    "layers": [nn.L1Loss(), nn.L1Loss(reduction="sum"), nn.LazyLinear(2), nn.Dropout(0.1)],
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_different_has_another_identity(name):
    found = list(map(identity_of, DIFFERENT[name]))
    assert len(set(found)) == len(found)
    assert list(map(identity_of, DIFFERENT[name])) == found


def test_what_is_the_same_has_the_same():
    for make in (closed, with_default, Scaled, reading, lambda v: Network(closed(v))):
        assert identity_of(make(3.0)) == identity_of(make(3.0)) != identity_of(make(4.0))
    network = Network(torch.sin)
    assert identity_of(network.eval()) == identity_of(network.train())
    assert identity_of(nn.LazyLinear(2)) == identity_of(nn.LazyLinear(2))
    one, two = hooked(Network(torch.sin)), hooked(hooked(Network(torch.sin)))
    assert identity_of(one) == identity_of(hooked(Network(torch.sin))) != identity_of(two)


def test_what_holds_itself_or_cannot_be_taken_apart():
    own = Scaled(1.0)
    own.factor = [own, closed(own), (each for each in "ab"), open(os.devnull), lambda: own]
    assert identity_of(own) == identity_of(own)
    chain = None
    for _ in range(5000):
        chain = [chain]
    assert identity_of(chain) == identity_of(chain)


@pytest.mark.slow  # another process
def test_it_is_the_same_in_every_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_identity as t\n"
        "t.print_identities()"
    )
    run = [sys.executable, "-c", code, os.path.dirname(__file__)]
    found = {
        subprocess.run(
            run, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1 and found != {b""}


def print_identities():
    chosen = [each for name, group in DIFFERENT.items() if name != "networks" for each in group]
    chosen += [Network(torch.sin), Doubled(closed(2)), hooked(Network(torch.cos))]
    chosen += [lambda x: x in {"a", "b", "c", "d"}, {"a", "b", "c"}]
    print(*map(identity_of, chosen))
