"""The simulator on one core; its memory; its rate on a GPU.

21cmFAST 3.4.0 took about 25 s of one core for a light cone of 28 x 28 x 470 cells when the bundled
ones were made. It is not run again here, and so is no reference.
"""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skatr_sk import SimulatedLightcones
from tests.benchmarks.table import seconds

ROOT = Path(__file__).resolve().parents[2]
N_CONES = 12


def test_light_cone_on_one_core(table):
    """At most .12 s."""
    torch.set_num_threads(1)
    cones = SimulatedLightcones(N_CONES + 1, random_state=0)
    cones[N_CONES]  # tables
    took = statistics.median(seconds(cones.__getitem__, i) for i in range(N_CONES))
    table.add(
        "simulated light cone of 28 x 28 x 470 cells, one core", took, limit=0.12, in_readme=True
    )


_PEAK = """
import sys
import torch
from skatr_sk import SimulatedLightcones
from tests.memory import memory
torch.set_num_threads(1)
cones = SimulatedLightcones(100_000, random_state=0)
for i in range(int(sys.argv[1])):
    cones[i]
print(memory("VmHWM"))
"""


def test_memory_does_not_grow_with_what_is_read(table):
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", _PEAK, str(n)], cwd=ROOT, text=True))
        for n in (2, 20)
    ]
    table.add(
        "peak memory after 20 simulated light cones",
        peaks[1] / 1e9,
        peaks[0] / 1e9,
        against="after 2",
        unit="GB",
        limit=1.1,
    )


@pytest.mark.gpu
def test_hundreds_a_second_on_a_gpu(table):
    cones = SimulatedLightcones(10_000, random_state=0, device="cuda")
    cones[:64].__array__()
    took = seconds(cones[:640].__array__) / 640
    table.add(f"simulated light cone on {torch.cuda.get_device_name()}", took, limit=0.01)
