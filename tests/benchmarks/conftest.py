"""Benchmarks compute on two threads, as their limits are stated, and share one table."""

import pytest
import torch

from tests.benchmarks.table import N_THREADS, TABLE, write_all


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table():
    """The table of this run: `table.compare` and `table.add`."""
    return TABLE


def pytest_terminal_summary(terminalreporter):
    """Print the table after everything else."""
    if TABLE.rows:
        terminalreporter.section("benchmarks, ours beside references")
        terminalreporter.write_line(TABLE.text())
        write_all()
