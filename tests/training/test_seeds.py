"""Seeds: from random_state to generators, and torch seeded for the time of a block."""

import numpy as np
import pytest
import torch

from skatr_sk.training.seeds import (
    entropy_of,
    generator_of,
    independent_seeds,
    is_entropy,
    is_random_state,
    seed_of,
    seeded,
)
from tests.training.runs import CPU


def test_seeded_leaves_the_generator_as_it_was():
    before = torch.get_rng_state()
    with seeded(1, CPU):
        first = torch.rand(3)
    with seeded(1, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(2, CPU):
        assert not torch.equal(torch.rand(3), first)
    with pytest.raises(RuntimeError, match="inside"), seeded(1, CPU):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_builds_in_single_precision_whatever_the_default():
    with seeded(1, CPU):
        expected = torch.nn.Linear(2, 2).weight
    torch.set_default_dtype(torch.float64)
    try:
        with seeded(1, CPU):
            weight = torch.nn.Linear(2, 2).weight
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert weight.dtype == torch.float32 and torch.equal(weight, expected)


def test_seeded_on_a_processor_asks_nothing_of_other_devices(monkeypatch):
    def seeds(seed):
        raise AssertionError("a GPU is seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds)
    with seeded(1, CPU):
        drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(1)))


@pytest.mark.gpu
def test_seeded_on_a_processor_leaves_the_generator_of_a_gpu_as_it_was():
    before = torch.cuda.get_rng_state()
    with seeded(1, CPU):
        torch.rand(3)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
def test_seeded_leaves_the_generator_of_a_gpu_as_it_was():
    before = torch.cuda.get_rng_state()
    with seeded(1, torch.device("cuda")):
        first = torch.rand(3, device="cuda")
    with seeded(1, torch.device("cuda")):
        assert torch.equal(torch.rand(3, device="cuda"), first)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("value", [0, 2**32 - 1, np.int64(3), None, np.random.RandomState(0)])
def test_what_a_random_state_is(value):
    assert is_random_state(value)


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "0", np.random.default_rng(0)])
def test_what_a_random_state_is_not(value):
    assert not is_random_state(value)


def test_an_int_gives_the_same_seed_and_an_instance_the_next():
    assert seed_of(5) == seed_of(5) == seed_of(np.random.RandomState(5))
    assert seed_of(5) != seed_of(6)
    instance = np.random.RandomState(5)
    assert seed_of(instance) != seed_of(instance)


def test_independent_seeds():
    seeds = independent_seeds(7, 50)
    assert seeds == independent_seeds(7, 50) and len(set(seeds)) == 50
    assert independent_seeds(7, 3) == seeds[:3]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert independent_seeds(8, 1) != seeds[:1]


def test_entropy_of_what_a_call_was_given():
    assert entropy_of(None) != entropy_of(None)  # drawn anew
    assert entropy_of(7) == entropy_of(np.int64(7)) == 7
    assert entropy_of(2**40) == 2**40 and is_entropy(2**40)
    assert entropy_of(np.random.RandomState(0)) == entropy_of(np.random.RandomState(0))
    generator = np.random.default_rng(0)
    assert entropy_of(generator) != entropy_of(generator)  # it is drawn from


@pytest.mark.parametrize("value", [-1, 1.5, True, "seed", [1]])
def test_no_entropy(value):
    assert not is_entropy(value)
    for draw in (entropy_of, generator_of):
        with pytest.raises(ValueError, match="random_state: expected an int >= 0.*found"):
            draw(value)


def test_generators_of_a_call():
    first, second = (generator_of(3).normal(size=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    generator = np.random.default_rng(0)
    assert generator_of(generator) is generator
    # None draws anew, and not from numpy's global generator (the fixtures look after that).
    assert generator_of(None).normal() != generator_of(None).normal()
    again = [generator_of(np.random.RandomState(1)).normal() for _ in range(2)]
    assert again[0] == again[1]
