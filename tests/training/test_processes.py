"""Several processes train as one: the same losses, one writes, none waits for one that is gone."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from skatr_sk.training import processes
from tests.training import together

SCRIPT = Path(together.__file__)
ROOT = SCRIPT.parents[2]


def start(folder, size, **parameters):
    """Start processes that find each other by their environment."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    arguments = [sys.executable, SCRIPT, folder, json.dumps(parameters)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [subprocess.Popen(arguments, env=settings | rank, **pipes) for rank in ranks]


def finish(started, timeout=100):
    """Wait for processes; return what each has printed."""
    try:
        return [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()


def run(folder, size, **parameters):
    started = start(folder, size, **parameters)
    said = finish(started)
    assert all(one.returncode == 0 for one in started), [text[-2000:] for _, text in said]
    return said


def steps(folder, rank=0):
    return np.array([json.loads(line) for line in (folder / f"steps-{rank}").open()])


def assert_two_are_one(tmp_path, **parameters):
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, 1, **parameters)
    run(two, 2, **parameters)
    losses = steps(one)
    assert len(losses) >= 20
    for rank in range(2):
        np.testing.assert_allclose(steps(two, rank)[:20], losses[:20], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(steps(two, 0), steps(two, 1))
    found = [np.load(two / f"summaries-{rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*found)
    # What a loss does not see, such as a shift before a normalisation, has a gradient of rounding
    # alone, and Adam makes steps of it.
    atol = 1e-3 if parameters["objective"] in ("jepa", "reconstruction", "combined") else 0.05
    np.testing.assert_allclose(found[0], np.load(one / "summaries-0.npy"), atol=atol)
    assert (two / "history-0").read_text() == (two / "history-1").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("objective", together.OBJECTIVES)
def test_two_processes_are_one(objective, tmp_path):
    assert_two_are_one(tmp_path, objective=objective)


@pytest.mark.slow
def test_two_processes_write_once(tmp_path):
    said = run(tmp_path, 2, max_epochs=2, verbose=1, checkpoint_dir=str(tmp_path / "checkpoints"))
    (_, first), (_, second) = said
    assert "LOG SKATRTransformer: pre-training on" in first and "epoch" in first
    assert "LOG" not in second and "epoch" not in second
    assert (tmp_path / "weights-0").is_file() and not (tmp_path / "weights-1").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert (tmp_path / "history-0").read_text() == (tmp_path / "history-1").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("die", ["SIGKILL", "SIGSTOP"])
def test_a_lost_process_ends_the_other(die, tmp_path):
    started = start(tmp_path, 2, die=die)
    deadline = time.monotonic() + 100
    while not (tmp_path / "steps-1").exists() or len(steps(tmp_path, 1)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lost = time.monotonic()
    try:
        said, _ = started[0].communicate(timeout=70)
        assert time.monotonic() - lost < 60
        assert started[0].returncode == 3
        assert "ConnectionError: processes that train together: expected an answer" in said
    finally:
        for one in started:
            one.send_signal(signal.SIGCONT)
            one.kill()
            one.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "name"), [({"embed_dim": 12}, "parameters"), ({"learning_rate": 1e-4}, "parameters")]
)
def test_processes_that_differ_say_so(own, name, tmp_path):
    for one, (said, _) in zip(
        started := start(tmp_path, 2, of_rank={"1": own}), finish(started), strict=True
    ):
        assert one.returncode == 3
        assert f"ValueError: {name}: expected the same in each of 2 processes" in said


@pytest.mark.slow
def test_without_a_seed_they_share_one(tmp_path):
    run(tmp_path, 2, random_state=None, max_epochs=1)
    np.testing.assert_array_equal(steps(tmp_path, 0), steps(tmp_path, 1))


@pytest.mark.slow
def test_three_processes_are_one(tmp_path):
    run(tmp_path / "one", 1, max_epochs=2)
    run(tmp_path / "three", 3, max_epochs=2)
    np.testing.assert_allclose(steps(tmp_path / "three"), steps(tmp_path / "one"), rtol=1e-5)


ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ACCELERATE, TORCHRUN], ids=lambda given: given[0])
def test_they_are_launched(launcher, tmp_path):
    command = [sys.executable, "-m", *launcher, SCRIPT, tmp_path, json.dumps({"max_epochs": 1})]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_array_equal(steps(tmp_path, 0), steps(tmp_path, 1))


# Without processes --------------------------------------------------------------------------------


class Threads:
    """What torch.distributed does, between two threads."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.given = {}

    def _exchange(self, mine):
        rank = int(threading.current_thread().name)
        self.given[rank] = mine
        self.barrier.wait()
        found = [self.given[0], self.given[1]]
        self.barrier.wait()
        return found

    def all_gather(self, parts, mine):
        for part, found in zip(parts, self._exchange(mine.clone()), strict=True):
            part.copy_(found)

    def all_reduce(self, mine):
        mine.copy_(sum(self._exchange(mine.clone())))

    def all_gather_object(self, found, mine):
        found[:] = self._exchange(mine)

    def broadcast_object_list(self, values, src):
        values[:] = copy.deepcopy(self._exchange(list(values))[src])


def in_two_threads(function, monkeypatch):
    """Call ``function(processes)`` in two threads; return what they return."""
    monkeypatch.setattr(processes, "distributed", Threads())
    found = [None, None]

    def call(rank):
        found[rank] = function(processes.Processes(rank, 2, torch.device("cpu")))

    threads = [threading.Thread(target=call, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize("n", [1, 6, 7])
@pytest.mark.parametrize("objective", together.OBJECTIVES)
def test_gradients_are_those_of_one(objective, n, monkeypatch, torch_seed):
    skatr = together.transformer(objective)
    architecture = skatr._architecture_for((4, 4, 6))
    sizes = dict(pooling="slices", n_parameters=2)
    network = skatr.objective.network(architecture.build(), architecture, **sizes)
    criterion = skatr.objective.criterion()
    patches = torch.randn(n, architecture.n_tokens, architecture.n_voxels)
    y = torch.randn(n, 2)
    drawn = skatr.objective.draw(n, architecture.grid_shape, torch.Generator().manual_seed(0))

    def step(network):
        loss = copy.deepcopy(criterion)(network(patches, drawn), y)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def shared(group):
        mine = copy.deepcopy(network)
        with torch.no_grad():  # the first's weights count
            for weight in mine.parameters() if group.rank else ():
                weight += 1
        group.share(mine)
        loss = step(mine)
        group.share_gradients(mine)
        group.unshare(mine)
        return loss, mine

    loss = step(network)
    for found, mine in in_two_threads(shared, monkeypatch):
        assert found == pytest.approx(loss, rel=1e-5)
        for (name, one), two in zip(network.named_parameters(), mine.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)
        step(mine)  # alone again: nobody is waited for


def test_what_differs_is_named(monkeypatch):
    def compare(group):
        group.check_alike(X=(3, 4))
        with pytest.raises(ValueError, match=r"epoch: expected the same .* found \[0, 1\]"):
            group.check_alike(epoch=group.rank)
        return group.same(group.rank)

    assert in_two_threads(compare, monkeypatch) == [0, 0]


def test_those_who_do_not_answer_are_an_error(monkeypatch):
    class Silent:
        def broadcast_object_list(self, values, src):
            raise RuntimeError("Connection closed by peer\nand much more")

    monkeypatch.setattr(processes, "distributed", Silent())
    with pytest.raises(ConnectionError, match="expected an answer .*Connection closed by peer\\)"):
        processes.Processes(0, 2, torch.device("cpu")).same(1)


def test_a_process_is_alone_unless_it_was_launched(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join("cpu") is None and processes.is_first()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("SKATR_SK_LAUNCHED", "1")  # by a process whose child this is
    assert processes.join("cpu") is None
    monkeypatch.delenv("SKATR_SK_LAUNCHED")
    found = [0]
    thread = threading.Thread(target=lambda: found.append(processes.join("cpu")))
    thread.start()
    thread.join()
    assert found[-1] is None
