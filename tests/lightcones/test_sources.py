"""Files that are deleted, truncated or replaced after they were opened, and those kept open."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import SKATRTransformer, open_lightcones, save_lightcones
from skatr_sk.lightcones import close_files, sources
from skatr_sk.lightcones.sources import OPEN_FILES
from skatr_sk.summaries import JEPA
from tests.lightcones.layouts import values, write_npz, write_v3

ROOT = Path(__file__).resolve().parents[2]

N = 6


def _stack(folder):
    save_lightcones(folder / "cones.h5", values(N))
    return folder / "cones.h5", 0


def _compressed(folder):
    save_lightcones(folder / "cones.h5", values(N), compression="gzip")
    return folder / "cones.h5", 0


def _simulations(folder):
    for k in range(N):
        write_v3(folder / f"c{k}.h5", seed=k, n_z=10)
    return folder / "c2.h5", 2


def _npz(folder):
    for k in range(N):
        write_npz(folder / f"run{k}.npz", seed=k, n_z=10)
    return folder / "run2.npz", 2


def _npy(folder):
    np.save(folder / "cones.npy", values(N))
    return folder / "cones.npy", 0


def _delete(path):
    path.unlink()


def _truncate(path):
    os.truncate(path, path.stat().st_size // 3)


def _replace(path):
    """By another file of the same size and time, under the same name."""
    other = path.with_name("other.tmp")
    shutil.copy2(path, other)
    data = bytearray(other.read_bytes())
    data[-200:] = bytes(200)
    other.write_bytes(data)
    found = path.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    os.replace(other, path)


def _write_into(path):
    """As a program that goes on writing to its own file: the same inode and size."""
    with open(path, "r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(bytes(100))
    later = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))


HAPPENINGS = {
    "deleted": (_delete, FileNotFoundError, "cannot be found now .* or open the light cones anew"),
    "truncated": (_truncate, OSError, "has changed since it was opened .* open the light cones"),
    "replaced": (_replace, OSError, "has changed since it was opened"),
    "written into": (_write_into, OSError, "has changed since it was opened"),
}


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("make", [_stack, _compressed, _simulations, _npz, _npy])
def test_a_clear_error_and_never_a_wrong_number(tmp_path, make, happening, is_open):
    happen, kind, message = HAPPENINGS[happening]
    path, bad = make(tmp_path)
    X = open_lightcones(tmp_path).data
    before = np.asarray(X)
    X.digests()
    if not is_open:
        close_files()
    happen(path)
    whole = rf"(?i){path.name}, row \d: .*{message}"
    with pytest.raises(kind, match=whole):
        np.asarray(X)
    with pytest.raises(kind, match=whole):
        X[bad]
    with pytest.raises(kind, match=whole):
        X.digests()  # what was remembered is of the file as it was
    if bad:  # the other files are as they were
        np.testing.assert_array_equal(np.asarray(X[:2]), before[:2])


def test_training_and_summaries_say_which_file(tmp_path):
    for k in range(8):
        write_npz(tmp_path / f"run{k}.npz", seed=k, n_z=10)
    X = open_lightcones(tmp_path).data
    X.digests()
    fitted = SKATRTransformer(max_epochs=0, embed_dim=16, depth=1, random_state=0).fit(X)
    (tmp_path / "run5.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"run5\.npz, row 0"):
        fitted.transform(X)
    for n_workers in (0, 1):
        transformer = SKATRTransformer(
            max_epochs=1,
            embed_dim=16,
            depth=1,
            objective=JEPA(predictor_depth=1),
            n_workers=n_workers,
            random_state=0,
        )
        with pytest.raises(FileNotFoundError, match=r"run5\.npz, row 0"):
            transformer.fit(X)
        assert not hasattr(transformer, "encoder_")


def test_a_file_that_comes_back_is_read_again(tmp_path):
    path, _ = _stack(tmp_path)
    X = open_lightcones(path).data
    path.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        X[0]
    (tmp_path / "away").rename(path)
    np.testing.assert_array_equal(np.asarray(X), values(N))


@pytest.mark.parametrize("noticed", [True, False])
def test_a_file_that_was_rewritten_in_place_is_opened_as_it_is_now(tmp_path, noticed):
    """Also while the old one is still open here: HDF5 takes a file with one inode for one file."""
    path, _ = _stack(tmp_path)
    old = open_lightcones(path).data
    np.asarray(old)
    save_lightcones(tmp_path / "other.h5", values(9, seed=1))
    path.write_bytes((tmp_path / "other.h5").read_bytes())
    if noticed:
        with pytest.raises(OSError, match="has changed"):
            np.asarray(old)
    new = open_lightcones(path, validate="full").data
    np.testing.assert_array_equal(np.asarray(new), values(9, seed=1))
    with pytest.raises(OSError, match="has changed"):
        old.digests()


def test_a_file_damaged_before_it_was_opened(tmp_path):
    """Its outside is in order, and its last cones are not."""
    path, _ = _compressed(tmp_path)
    with h5py.File(path) as file:
        info = file["brightness_temp"].id.get_chunk_info(0)
    with open(path, "r+b") as stream:
        stream.seek(info.byte_offset)
        stream.write(bytes(info.size))
    X = open_lightcones(path, validate=False).data
    with pytest.raises(OSError, match=r"cones\.h5, row 0: cannot be read .*on_bad='drop'"):
        np.asarray(X)


def test_chunks_of_several_rows_are_unpacked_once(tmp_path):
    """Also chunks larger than HDF5's default cache."""
    big = np.random.default_rng(0).normal(size=(8, 32, 32, 128)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=big, chunks=(8, 32, 32, 128))
    X = open_lightcones(tmp_path / "a.h5").data
    source = X._files.sources[0]
    with OPEN_FILES.of(source) as handle:
        *_, room, _ = handle.dataset.file.id.get_access_plist().get_cache()
        assert room >= big.nbytes
    np.testing.assert_array_equal(X.read([5, 2]), big[[5, 2]])


def test_whole_chunks_are_copied_plainly(tmp_path):
    big = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=big, chunks=(1, 4, 5))
    X = open_lightcones(tmp_path / "a.h5", validate=False).data
    with OPEN_FILES.of(X._files.sources[0]) as handle:
        assert handle.plain
    np.testing.assert_array_equal(X.read([5, 0, 4, 3, 1, 2]), big[[5, 0, 4, 3, 1, 2]])


def test_few_files_stay_open_and_none_when_the_array_is_gone(tmp_path):
    for k in range(40):
        write_npz(tmp_path / f"run{k:02d}.npz", seed=k, n_z=5)
    X = open_lightcones(tmp_path).data
    np.asarray(X)
    assert 0 < len(OPEN_FILES.handles) <= sources._MOST_OPEN
    close_files()
    np.asarray(X[:3])
    assert len(OPEN_FILES.handles) == 3
    del X
    assert len(OPEN_FILES.handles) == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_thread_reads(tmp_path):
    """In a process of its own: a child that waits for the lock of a lost thread never ends."""
    save_lightcones(tmp_path / "a.h5", values(N))
    script = """
import os, signal, sys
from skatr_sk import open_lightcones
from skatr_sk.lightcones import close_files
from skatr_sk.lightcones.sources import OPEN_FILES
path = sys.argv[1]
data = open_lightcones(path).data
data[0]
OPEN_FILES.lock.acquire()  # as a reader in the midst of a read
for doing in (close_files, lambda: open_lightcones(path)):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        doing()
        os._exit(0 if data[3].shape == (4, 4, 10) else 1)
    if os.waitpid(pid, 0)[1]:
        sys.exit(1)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "a.h5")]
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file handles")
@pytest.mark.parametrize("make", [_stack, _npz, _npy])
def test_too_few_file_handles_are_no_fault_of_the_file(tmp_path, make):
    import resource

    path, row = make(tmp_path)
    X = open_lightcones(tmp_path).data
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    close_files()
    used = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 64
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(open(os.devnull))  # noqa: SIM115 (held open on purpose)
        message = rf"{path.name}.*too many files are open.*ulimit -n"
        with pytest.raises(OSError, match=message) as caught:
            X[row]
        assert "anew" not in str(caught.value) and caught.value.errno == errno.EMFILE
        with pytest.raises(OSError, match="too many files are open"):
            open_lightcones(path, on_bad="drop")
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    X[row]


def test_want_of_memory_names_the_file(tmp_path, monkeypatch):
    path, row = _stack(tmp_path)
    X = open_lightcones(path).data

    def fail(*args):
        raise MemoryError("Unable to allocate 447 GiB")

    monkeypatch.setattr(sources.Hdf5Source, "_load", fail)
    with pytest.raises(MemoryError, match=rf"{path.name}, row 0: there is no memory .*447 GiB"):
        X[row]
    with pytest.raises(ValueError, match=r"row 0: unreadable: .*no memory"):
        open_lightcones(path)
