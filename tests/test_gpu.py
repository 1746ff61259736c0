"""The script of all that needs a GPU: what it says without one, and its table."""

import shutil
import subprocess
import sys

import pytest
import torch

from tests import gpu

STAGES = {
    "device": {"name": "a card"},
    "tests": {"result": "21 passed", "passed": True},
    "simulator": {"light_cones_per_second": 512.3},
    "step": {
        "seconds": 0.0123,
        "light_cones_per_second": 5203.0,
        "teraflops": 141.0,
        "teraflops_of_matrices": 705.0,
        "share": 0.2,
        "memory_gigabytes": 3.456,
    },
    "compiled step": {"seconds": 0.0098, "seconds_in_all": 41.0},
    "summaries": {"per_second": 9876.5},
    "pre-training": {"n": 100_000},
    "probe": {"jepa": 0.81, "random": 0.62},
}


class Example:
    """Stands for the example, and keeps what it was called with."""

    def __init__(self, **changes):
        self.stages = STAGES | changes

    def main(self, arguments):
        self.arguments = arguments
        return self.stages


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no GPU" in (said := capsys.readouterr().out) and "--cpu" in said


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    example = Example()
    monkeypatch.setattr(gpu, "full_size", lambda: example)
    assert gpu.main(["--minutes", "3"]) == 0
    assert example.arguments[1:] == ["--minutes", "3.0"]
    said = capsys.readouterr().out
    for found in (
        "21 passed",
        "12.3 ms",
        "9.8 ms, after 41 s",
        "20.0% of 705",
        "3.46 GB",
        "9876",
        "512.3",
        "0.810 / 0",
    ):
        assert found in said


def test_a_failed_test_is_the_exit_status(monkeypatch):
    failed = Example(tests={"result": "1 failed", "passed": False})
    monkeypatch.setattr(gpu, "full_size", lambda: failed)
    assert gpu.main(["--cpu"]) == 1
    assert failed.arguments[-1] == "--quick"


@pytest.mark.slow
def test_small_size_on_the_processor(capsys):
    assert gpu.main(["--cpu"]) == 0
    assert "summaries a second" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
    torch.version.cuda is not None or shutil.which("c++") is None,
    reason="needs a torch for CPUs alone and a C++ compiler",
)
def test_what_needs_a_gpu_holds_on_a_pretended_one():
    """All tensors are on the device where they are computed with, and come back from it."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretended_gpu", "-q"]
    command += ["-m", "gpu and not benchmark", "-k", "not compiled"]
    folder, both = gpu.SCRIPT.parents[1], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=folder, **both, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    closing = done.stdout.splitlines()[-1]
    assert int(closing.split()[0]) > 50 and "skipped" not in closing
