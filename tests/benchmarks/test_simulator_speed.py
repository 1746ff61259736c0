"""The simulator beside 21cmFAST, on one core; its memory; its rate on a GPU.

21cmFAST 3.4.0 took about 25 s of one core for a light cone of 28 x 28 x 470 cells when the bundled
ones were made. It is not run again here; at a cautious 50 GFLOP/s for that core it is 1250 GFLOP.
"""

import subprocess
import sys
import time

import pytest
import torch

from skatr_sk import SimulatedLightcones
from tests.benchmarks.matmul import matmul_rate, report

THEIRS = 1250  # GFLOP
N_CONES = 12


def test_light_cone_on_one_core(capsys):
    torch.set_num_threads(1)
    cones = SimulatedLightcones(N_CONES + 1, random_state=0)
    cones[N_CONES]  # tables
    rates = [matmul_rate()]
    start = time.perf_counter()
    for i in range(N_CONES):
        cones[i]
    seconds = (time.perf_counter() - start) / N_CONES
    rates.append(matmul_rate())
    report(capsys, "light cone 28x28x470 on 1 core", seconds, rates, THEIRS, limit=1 / 20)


_PEAK = """
import resource, sys
import torch
from skatr_sk import SimulatedLightcones
torch.set_num_threads(1)
cones = SimulatedLightcones(100_000, random_state=0)
for i in range(int(sys.argv[1])):
    cones[i]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_what_is_read(capsys):
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", _PEAK, str(n)], text=True))
        for n in (2, 20)
    ]
    with capsys.disabled():
        print(f"\npeak memory after 20 light cones over that after 2: {peaks[1] / peaks[0]:.3f}")
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.gpu
def test_hundreds_a_second_on_a_gpu(capsys):
    cones = SimulatedLightcones(10_000, random_state=0, device="cuda")
    cones[:64].__array__()
    start = time.perf_counter()
    cones[:640].__array__()
    rate = 640 / (time.perf_counter() - start)
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}: {rate:.0f} light cones a second")
    assert rate > 100
