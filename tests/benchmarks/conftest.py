"""Benchmarks compute on two threads, as their limits are stated."""

import pytest
import torch

from tests.benchmarks.matmul import N_THREADS


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(before)
