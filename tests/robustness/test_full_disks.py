"""A disk that is full at any moment costs nobody what was there before, and no process its life."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits are POSIX's")
from tests.robustness import full_disks

ROOT = Path(__file__).resolve().parents[2]


def check(line):
    assert "failed" not in line, line["failed"]
    assert line["intact"], line
    assert line["leftovers"] == [], line
    if line["error"] is None:
        assert len(line["warned"]) == 1, line  # and the run went on
        told = line["warned"][0]
    else:
        assert line["error"] == "OSError", line
        assert line["errno"] in full_disks.NO_ROOM, line
        told = line["text"]
    assert line["path"] in told, line
    assert "missing); " in told, line


def run(sender, *arguments):
    try:
        sender.send(full_disks.moment(*arguments))
    except BaseException as error:
        sender.send({"failed": repr(error)})
        raise


@pytest.mark.parametrize(
    ("make", "room", "unforeseen"),
    [
        (full_disks.Packed, 140_000, False),
        (full_disks.Converted, 190_000, True),
        (full_disks.Weights, 10_000, True),
        (full_disks.Cache, 8_000, False),
    ],
)
def test_no_room_at_one_moment(make, room, unforeseen, tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, "limit", make, room, unforeseen, tmp_path)
    process = context.Process(target=run, args=arguments)
    process.start()
    sender.close()
    try:
        line = receiver.recv()
    except EOFError:
        line = {}
    process.join()
    assert process.exitcode == 0, line
    check(line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["limit", "tmpfs"])
def test_no_room_at_twenty_moments_of_each_writer(kind, tmp_path):
    found = subprocess.run(
        [sys.executable, full_disks.__file__, kind, "20", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    if "skip" in lines[0]:
        pytest.skip(lines[0]["skip"])
    assert len(lines) == 21 * len(full_disks.WRITERS)
    for line in lines:
        if "status" in line:
            assert line["status"] == 0, line
        else:
            check(line)
