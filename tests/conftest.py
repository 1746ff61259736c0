"""What every test gets: marks handled, a seeded generator, global state guarded, figures closed."""

import gc
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib, doctests included
# Before torch and numpy: threads that wait by spinning make small models and small matrices ten
# times slower and more on a busy machine. Benchmarks have theirs to themselves, and time what users
# have.
if not any("benchmark" in each for each in sys.argv[1:]):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import torch

# pytest puts its handlers on every logger that does not propagate, three times a test, and torch
# has forty of them.
for _logger in list(logging.root.manager.loggerDict.values()):
    if isinstance(_logger, logging.Logger) and _logger.name.startswith("torch."):
        _logger.propagate = True

# The half million objects of the libraries and of all tests stay to the end: to look through them
# again and again takes a third of the collection's time, and a fiftieth of the tests'.
gc.disable()

BENCHMARKS = Path(__file__).parent / "benchmarks"

# The same examples everywhere and each time, however slow the machine.
hypothesis.settings.register_profile("tests", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("tests")

# The models of the tests are too small for two threads to pay; benchmarks set their own number.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if BENCHMARKS in item.path.parents and not item.get_closest_marker("slow"):
            item.add_marker("benchmark")  # slow ones run where they are asked for
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


def _global_state():
    """Everything that the package promises to leave as it was, comparable with ==."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the legacy generator is the point)
    state = {
        "numpy's global generator": (name, keys.tobytes(), *rest),
        "torch's global generator": torch.get_rng_state().numpy().tobytes(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic flag": torch.are_deterministic_algorithms_enabled(),
        "torch's default device": torch.get_default_device(),
        "whether torch keeps gradients": torch.is_grad_enabled(),
    }
    if torch.cuda.is_available():
        state["torch's CUDA generator"] = torch.cuda.get_rng_state().numpy().tobytes()
    return state


def _restore(state):
    name, keys, *rest = state["numpy's global generator"]
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_byte_tensor(state["torch's global generator"]))
    torch.set_default_dtype(state["torch's default dtype"])
    torch.set_num_threads(state["torch's number of threads"])
    if torch.are_deterministic_algorithms_enabled() != state["torch's deterministic flag"]:
        # Setting it imports torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(state["torch's deterministic flag"])
    if torch.get_default_device() != state["torch's default device"]:
        torch.set_default_device(None)  # setting any other slows all that follows
    torch.set_grad_enabled(state["whether torch keeps gradients"])
    if "torch's CUDA generator" in state:
        torch.cuda.set_rng_state(_byte_tensor(state["torch's CUDA generator"]))


def _byte_tensor(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _global_state_is_kept(request):
    """Fail a test that leaves global state changed; mend it, so that no other test suffers."""
    before = _global_state()
    yield
    after = _global_state()
    changed = [what for what in before if before[what] != after[what]]
    if not changed:
        return
    _restore(before)
    if not request.node.get_closest_marker("changes_global_state"):
        pytest.fail(
            f"the test changed {', '.join(changed)}. If the test itself draws (it builds a bare "
            "torch module, say), let it use the fixture `torch_seed` or `rng`; else the package "
            "does not keep its promise.",
            pytrace=False,
        )


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def torch_seed():
    """Seed torch's global generators for this test alone, for code that draws from them openly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield 0
