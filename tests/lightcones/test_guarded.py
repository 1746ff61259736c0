"""HDF5 files are closed whatever happens while they are written."""

import errno
import gc
import io
import multiprocessing
import os
import signal
import sys

import h5py
import numpy as np
import pytest

from skatr_sk._files import CutShort
from skatr_sk.lightcones.guarded import _Patient, write_hdf5

forks = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")
VALUES = np.random.default_rng(0).normal(size=(60, 10, 50)).astype(np.float32)


def plan(file):
    options = dict(chunks=(4, 10, 50), compression="lzf", fletcher32=True)
    cells = file.create_dataset("cells", VALUES.shape, VALUES.dtype, **options)

    def put(piece):
        start, values = piece
        cells[start : start + len(values)] = values
        cells.flush()  # or all would stay in the library's memory to the end

    return put


def pieces():
    for start in range(0, 60, 3):  # so that chunks are packed again
        yield start, VALUES[start : start + 3]


def read(path):
    with h5py.File(path, "r") as file:
        return file["cells"][:]


def write(path, **options):
    write_hdf5(path, plan, pieces(), **options)


def in_fork(function, *arguments):
    """Exit status of a process that runs a function: what ends a process must not end this one."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_what_is_written_is_there(tmp_path):
    write(tmp_path / "a.h5")
    np.testing.assert_array_equal(read(tmp_path / "a.h5"), VALUES)

    def note(file):
        file["cells"].attrs["note"] = 3

    write_hdf5(tmp_path / "a.h5", note, mode="r+")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file["cells"].attrs["note"] == 3
    np.testing.assert_array_equal(read(tmp_path / "a.h5"), VALUES)


def fail_from(error, path):
    """Let everything that is asked of the file fail, from one call on or from a later one."""
    calls = first = 0

    def failing(name):
        method = getattr(io.FileIO, name)

        def fails(self, *arguments):
            nonlocal calls
            calls += 1
            if calls >= first:
                raise error
            return method(self, *arguments)

        return fails

    methods = {name: failing(name) for name in ("seek", "write", "readinto", "truncate")}
    _Patient.__bases__ = (type("Failing", (io.FileIO,), methods),)
    for first in (1, 2, 5, 11, 26, 40):  # noqa: B007 (it is read above)
        calls = 0
        with pytest.raises(type(error)) as raised:
            write(path)
        assert getattr(raised.value, "errno", None) == getattr(error, "errno", None)
        assert h5py.h5f.get_obj_count(types=h5py.h5f.OBJ_FILE) == 0
    del raised
    gc.collect()


@forks
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), MemoryError()], ids=repr)
def test_whatever_fails_is_raised_once_the_file_is_closed(tmp_path, error):
    assert in_fork(fail_from, error, tmp_path / "a.h5") == 0


def no_room(path):
    import resource

    for limit in (0, 1, 100, 3000, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        asked = pieces()
        with pytest.raises(CutShort) as raised:
            write_hdf5(path, plan, asked)
        assert raised.value.errno == errno.EFBIG and raised.value.wanted > limit
        assert len(list(asked)) >= 8  # what comes after the failure is kept in memory: not much
    gc.collect()


@forks
def test_a_limit_of_size_at_any_place(tmp_path):
    assert in_fork(no_room, tmp_path / "a.h5") == 0


def test_errors_of_the_plan_and_of_the_pieces_are_the_callers(tmp_path):
    def wrong_plan(file):
        file.create_dataset("cells", data=VALUES)
        raise KeyError("plan")

    def wrong_pieces():
        yield next(pieces())
        raise KeyError("pieces")

    def wrong_piece():
        yield from pieces()
        yield 0, VALUES[:, :3]

    for arguments, message in [
        ((wrong_plan, pieces()), "plan"),
        ((plan, wrong_pieces()), "pieces"),
        ((plan, wrong_piece()), "broadcast"),
    ]:
        with pytest.raises((KeyError, TypeError), match=message):
            write_hdf5(tmp_path / "a.h5", *arguments)
    assert h5py.h5f.get_obj_count(types=h5py.h5f.OBJ_FILE) == 0


def interrupt(folder, seed, rounds):
    """Let a handler raise at random moments, as Ctrl-C does."""
    moments = np.random.default_rng(seed)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    hits = 0
    for k in range(rounds):
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 0.05))
        try:
            for n in range(10):
                # Where the waiting for the thread is interrupted, it is writing still.
                write(folder / f"{k}-{n}.h5")
        except KeyboardInterrupt:
            hits += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert hits > rounds / 2
    gc.collect()


@forks
def test_an_interrupt_closes_the_file(tmp_path):
    assert in_fork(interrupt, tmp_path, 0, 10) == 0


@pytest.mark.slow
@forks
@pytest.mark.parametrize("seed", range(5))
def test_many_interrupts(tmp_path, seed):
    assert in_fork(interrupt, tmp_path, seed, 200) == 0


def test_what_could_not_be_written_is_read_back(tmp_path, monkeypatch):
    with _Patient(tmp_path / "a", "w+b") as stream:
        stream.write(b"0123456789")
        stream._fail(OSError(errno.ENOSPC, "full"))
        stream.seek(8)
        assert stream.write(b"abcdef") == 6
        stream.seek(3)
        stream.write(b"x")
        found = bytearray(20)
        stream.seek(0)
        assert stream.readinto(found) == 20
        assert found == b"012x4567abcdef" + bytes(6)
        assert stream.seek(0, os.SEEK_END) == stream.tell() == 14
        with pytest.raises(CutShort) as raised:
            stream.raise_if_failed()
    assert raised.value.wanted == 14
    assert (tmp_path / "a").read_bytes() == b"0123456789"
