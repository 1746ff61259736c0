"""From ``random_state`` to seeds and generators, and torch seeded for the time of a block."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from skatr_sk._checks import Integer
from skatr_sk.training.device import torch_defaults

__all__ = [
    "ENTROPY_HINT",
    "RANDOM_STATE_HINT",
    "draw_seeds",
    "entropy_of",
    "generator_of",
    "independent_seeds",
    "is_entropy",
    "is_random_state",
    "seed_of",
    "seeded",
]

ENTROPY_HINT = "an int >= 0, a numpy RandomState or Generator, or None"
RANDOM_STATE_HINT = "an int in [0, 2**32), a numpy RandomState or None"
_RandomState = int | np.random.RandomState | None
_one_at_a_time = threading.RLock()


def _renew_lock() -> None:
    """Also after a fork: a thread that held the lock does not exist in the child."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def is_random_state(value: Any) -> bool:
    """Whether scikit-learn takes a value as `random_state`."""
    try:
        check_random_state(value)
    except ValueError:
        return False
    return True


def seed_of(random_state: _RandomState) -> int:
    """Draw the seed of one ``fit``; an int gives the same one each time."""
    return int(draw_seeds(random_state, ()))


def is_entropy(value: Any) -> bool:
    """Whether :func:`entropy_of` takes a value."""
    generators = np.random.Generator | np.random.RandomState | None
    return isinstance(value, generators) or Integer(0).fault(value) is None


def draw_seeds(random_state: _RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """Draw seeds of a shape; numpy's global generator, which is scikit-learn's None, is left."""
    legacy = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return np.asarray(legacy.randint(2**31 - 1, size=shape))


def entropy_of(random_state: _RandomState | np.random.Generator) -> int:
    """Entropy for :class:`numpy.random.SeedSequence`: an int itself; None draws anew.

    A generator is drawn from; numpy's global one is never touched. Anything else is a ValueError.
    """
    if not is_entropy(random_state):
        raise ValueError(f"random_state: expected {ENTROPY_HINT}, found {random_state!r}.")
    if random_state is None:
        random_state = np.random.default_rng()
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**63))
    return int(random_state)


def generator_of(random_state: _RandomState | np.random.Generator) -> np.random.Generator:
    """Return the generator of one call: a Generator itself, never numpy's global one."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    return np.random.default_rng(entropy_of(random_state))


def independent_seeds(seed: int, n: int) -> list[int]:
    """Draw `n` seeds from one, so that generators seeded by them share no stream."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(n)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block, with its default settings; leave both as they were.

    torch's generators belong to the whole process: threads that fit at once take turns. What is
    built inside does not depend on a default dtype or device that a script has set
    (:func:`~skatr_sk.training.device.torch_defaults`).
    """
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with _one_at_a_time, torch.random.fork_rng(devices=cuda), torch_defaults():
        # torch.manual_seed would seed GPUs as well, at once or, with a note of the whole stack each
        # time, when they are first used.
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed)
        yield
