"""The process that loads hostile files."""

import pytest

from tests.robustness.child import Server


@pytest.fixture(scope="session")
def load():
    """``load(name of a function of loads, path)``: what became of the process that did it."""
    server = Server()
    yield server
    server.close()
