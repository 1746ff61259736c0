"""Processes that train and are killed at random moments end as those that were left alone."""

import time

import numpy as np
import pytest

from tests.robustness.trainings import KINDS, train, warm

MOST = 4  # kills of one run, before it is left alone


@pytest.fixture(scope="module")
def processes():
    with warm() as context:
        yield context


def alone(processes, kind, folder):
    """Result of a run that nobody kills, and its seconds.

    It leaves no checkpoints, but for the flows of a posterior: without them they train at once,
    which rounds otherwise.
    """
    result, run = folder / "alone", folder / "run" if kind == "posterior" else None
    begin = time.monotonic()
    process = processes.Process(target=train, args=(kind, run, 1, result))
    process.start()
    process.join()
    assert process.exitcode == 0
    return result.read_text(), time.monotonic() - begin


def killed(processes, kind, folder, seconds, rng):
    """Result of a run that is killed again and again, and how often it was."""
    result, every, kills = folder / "result", int(rng.integers(1, 4)), 0
    while not result.exists():
        process = processes.Process(target=train, args=(kind, folder / "run", every, result))
        process.start()
        process.join(rng.uniform(0, seconds) if kills < MOST else 120)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert process.exitcode in (0, -9)
        process.close()
    return result.read_text(), kills


def check(processes, kind, folder, n_runs, seed=0):
    expected, seconds = alone(processes, kind, folder)
    rng, kills = np.random.default_rng(seed), 0
    for number in range(n_runs):
        own = folder / f"{number}"
        own.mkdir()
        found, times = killed(processes, kind, own, seconds, rng)
        assert found == expected, f"run {number}, killed {times} times"
        kills += times
    print(f"{kind}: {n_runs} runs, {kills} kills, all as the run of {seconds:.1f} s left alone")
    assert kills >= n_runs


def test_a_run_that_is_killed_ends_as_one_that_is_not(processes, tmp_path):
    check(processes, "short", tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "short"])
def test_runs_of_every_kind_that_are_killed(processes, tmp_path, kind):
    check(processes, kind, tmp_path, 30 if kind == "transformer" else 10, seed=1)
