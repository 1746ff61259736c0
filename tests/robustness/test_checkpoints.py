"""Hostile checkpoints: one typed error each that names the file, and little time and memory."""

import json

import pytest

from tests.robustness.hostile_checkpoints import CASES, PLACES, write
from tests.robustness.trainings import resume, warm
from tests.training.runs import signals, transformer

MEGABYTES, SECONDS = 400, 2


@pytest.fixture(scope="module")
def processes():
    with warm() as context:
        yield context


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The name and the bytes of a checkpoint of the run that resumes."""
    folder = tmp_path_factory.mktemp("good")
    transformer(checkpoint_dir=folder, checkpoint_every=1).fit(signals())
    (path,) = folder.glob("checkpoint-*.safetensors")
    return path.name, path.read_bytes()


def check(processes, path, folder):
    process = processes.Process(target=resume, args=(path.parent, folder / "answer", MEGABYTES))
    process.start()
    process.join(60)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs and process.exitcode == 0
    answer = json.loads((folder / "answer").read_text())
    assert {"OSError", "ValueError"} & set(answer["raised"]), answer
    assert str(path) in answer["message"] and "MemoryError" not in answer["message"], answer
    assert answer["seconds"] < SECONDS, answer


def some(cases, every):
    """All cases, of which one in so many is part of the default run."""
    return [
        pytest.param(case, marks=[] if k % every == 0 else pytest.mark.slow)
        for k, case in enumerate(cases)
    ]


@pytest.mark.parametrize("case", some(CASES, 15))
def test_what_is_damaged_or_made_up(processes, good, tmp_path, case):
    name, whole = good
    (tmp_path / "run").mkdir()
    write(case, whole, tmp_path / "run" / name)
    check(processes, tmp_path / "run" / name, tmp_path)


@pytest.mark.parametrize("case", some(PLACES, 2))
def test_what_is_no_file_or_too_long(processes, good, tmp_path, case):
    name, whole = good
    (tmp_path / "run").mkdir()
    PLACES[case](whole, tmp_path / "run" / name)
    check(processes, tmp_path / "run" / name, tmp_path)
