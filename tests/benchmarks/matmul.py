"""The unit of the benchmarks: seconds times the rate of a matrix product in the same run."""

import statistics
import time

import torch

N_THREADS = 2
SIZE = 2048


def matmul_rate():
    """Rate of a square matrix product in GFLOP/s: the median of some, after a warm-up."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, SIZE, SIZE, generator=generator)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(seconds[1:]) / 1e9


def report(capsys, what, seconds, rates, theirs, limit):
    """Print the cost beside theirs and hold it to a limit."""
    rate = statistics.mean(rates)
    cost = seconds * rate
    with capsys.disabled():
        print(
            f"\n{what}: {seconds:.4f} s = {cost:.1f} GFLOP at {rate:.0f} GFLOP/s, "
            f"{cost / theirs:.2f} of {theirs} (limit {limit:.2f})"
        )
    assert cost <= limit * theirs
    return cost
