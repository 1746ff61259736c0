"""convert_lightcones: any files into one, resumed where it was interrupted."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk.lightcones import convert_lightcones, converting
from tests.lightcones.layouts import values, write_npz, write_v3

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(converting, "_PART_BYTES", 2**17)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("write", [write_v3, write_npz])
def test_any_files_become_one(tmp_path, write, compression, small_parts):
    (tmp_path / "in").mkdir()
    suffix = "h5" if write is write_v3 else "npz"
    for k in range(7):
        write(tmp_path / "in" / f"run{k}.{suffix}", seed=k, n_z=900)
    source = open_lightcones(tmp_path / "in")
    convert_lightcones(tmp_path / "in", tmp_path / "out.h5", compression=compression)
    made = open_lightcones(tmp_path / "out.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(made.data), np.asarray(source.data))
    np.testing.assert_allclose(made.target, source.target)
    assert made.target_names == source.target_names
    assert made.data.digests() == source.data.digests()
    if write is write_v3:
        np.testing.assert_array_equal(made.seeds, source.seeds)
        np.testing.assert_array_equal(made.redshifts, source.redshifts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.h5"]


def test_converting_many_short_rows(tmp_path, small_parts):
    """Chunks of several rows, and a last part that does not fill one."""
    X = values(n=1003, field=(30,))
    np.save(tmp_path / "a.npy", X)
    convert_lightcones(tmp_path / "a.npy", tmp_path / "a.h5", dtype=np.float64)
    found = open_lightcones(tmp_path / "a.h5", validate="full").data
    np.testing.assert_array_equal(np.asarray(found), X)


# A conversion in a process of its own, in which something happens when three parts are written.
INTERRUPTED = """
import os, signal, sys
from skatr_sk.lightcones import convert_lightcones, converting
converting._PART_BYTES = 2**16
save, parts = converting.save_lightcones, []
def saved(path, *args, **kwargs):
    save(path, *args, **kwargs)
    parts.append(path)
    if len(parts) == 3:
        {happens}
converting.save_lightcones = saved
convert_lightcones(source, path, compression="gzip")
"""


def start_converting(source, path, happens):
    """Pipes connect with the process, so that nothing depends on how fast it is."""
    code = "import sys; source, path = sys.argv[1:]\n" + INTERRUPTED.format(happens=happens)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_was_killed_goes_on_and_gives_the_same_file(tmp_path, monkeypatch):
    X = values(n=20, field=(8, 8, 200))
    save_lightcones(tmp_path / "in.h5", X, np.arange(20.0))
    code = INTERRUPTED.format(happens="os.kill(os.getpid(), signal.SIGKILL)")
    names = dict(source=tmp_path / "in.h5", path=tmp_path / "out.h5")
    killed = multiprocessing.get_context("fork").Process(target=exec, args=(code, names))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out.h5").exists()
    parts = tmp_path / "out.h5.parts"
    done = {p.name: p.stat().st_mtime_ns for p in parts.glob("0*.h5")}
    assert len(done) == 3
    writes = []
    save = converting.save_lightcones
    monkeypatch.setattr(converting, "_PART_BYTES", 2**16)
    monkeypatch.setattr(
        converting, "save_lightcones", lambda p, *a, **k: (writes.append(p.name), save(p, *a, **k))
    )
    convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5", compression="gzip")
    assert not set(writes) & set(done)  # what was done was not done again
    assert len(writes) + len(done) == 20
    assert not parts.exists()

    convert_lightcones(tmp_path / "in.h5", tmp_path / "at_once.h5", compression="gzip")
    out, at_once = (
        # The time of writing is noted in the file.
        path.read_bytes().replace(path.stat().st_mtime_ns.to_bytes(8, "little"), bytes(8))
        for path in (tmp_path / "out.h5", tmp_path / "at_once.h5")
    )
    assert out == at_once
    found = open_lightcones(tmp_path / "out.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(found.data), X)
    np.testing.assert_array_equal(found.target, np.arange(20.0))


def test_parts_of_another_conversion_are_refused(tmp_path, small_parts):
    save_lightcones(tmp_path / "in.h5", values())
    parts = tmp_path / "out.h5.parts"
    parts.mkdir()
    (parts / "job.json").write_text(json.dumps({"rows": "others"}))
    (parts / "skatr_sk.lock").touch()
    with pytest.raises(ValueError, match=r"out\.h5\.parts holds the parts of another conversion"):
        convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5")


@pytest.mark.parametrize("made", ["empty", "files", "note of another", "file", "pipe"])
def test_what_was_not_made_here_is_not_touched(tmp_path, made, small_parts):
    save_lightcones(tmp_path / "in.h5", values())
    parts = tmp_path / "out.h5.parts"
    if made == "file":
        parts.write_text("mine")
    elif made == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("pipes are POSIX's")
        os.mkfifo(parts)
    else:
        parts.mkdir()
        for name in {"files": ["thesis.txt", "lock", "000000000.h5"]}.get(made, []):
            (parts / name).write_text("mine")
        if made == "note of another":
            (parts / "job.json").write_text("{}")
    before = {p: p.stat() for p in [parts, *parts.glob("*")]}
    with pytest.raises((OSError, ValueError), match=r"out\.h5\.parts.* name another path"):
        convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5")
    assert {p: p.stat() for p in [parts, *parts.glob("*")]} == before
    assert not (tmp_path / "out.h5").exists()


def stop_before_joining(source, path, **options):
    """Leave all parts of a conversion, and no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converting, "_join", None)
        with pytest.raises(TypeError):
            convert_lightcones(source, path, **options)
    return sorted((path.parent / f"{path.name}.parts").glob("0*.h5"))


def test_files_of_others_stay_in_a_folder_of_parts(tmp_path, small_parts, caplog):
    save_lightcones(tmp_path / "in.h5", values())
    first, *_ = stop_before_joining(tmp_path / "in.h5", tmp_path / "out.h5")
    mine = first.with_name("thesis.txt")
    mine.write_text("mine")
    convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5")
    assert "stays, for it holds other files" in caplog.text
    assert list(mine.parent.iterdir()) == [mine]
    assert mine.read_text() == "mine"


DAMAGED = ["values", "digests", "header", "cut", "empty", "another's"]


@pytest.mark.parametrize(
    ("where", "compression"),
    [
        *((where, "none") for where in DAMAGED),
        ("values", "gzip"),
        *(pytest.param(where, "gzip", marks=pytest.mark.slow) for where in DAMAGED[1:]),
    ],
)
def test_damaged_parts_are_written_anew(tmp_path, where, compression, small_parts, caplog):
    X = values(n=16, field=(8, 8, 200))
    save_lightcones(tmp_path / "in.h5", X)
    options = dict(compression=compression)
    first, second, *rest = stop_before_joining(tmp_path / "in.h5", tmp_path / "out.h5", **options)
    data = bytearray(second.read_bytes())
    with h5py.File(second) as file:
        places = {
            "values": file["brightness_temp"].id.get_chunk_info(1).byte_offset + 1000,
            "digests": file["row_digest"].id.get_offset() + 3,
            "header": 0,
        }
    if where in places:
        data[places[where]] ^= 0x10
    elif where == "another's":
        data = first.read_bytes()
    second.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(where, data))
    before = [part.stat().st_mtime_ns for part in (first, *rest)]
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            converting,
            "save_lightcones",
            lambda part, *args, **kw: (written.append(part), save_lightcones(part, *args, **kw)),
        )
        if where == "another's":  # whole, and of this conversion, but twice
            with pytest.raises(ValueError, match="has the same values as"):
                convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5", **options)
            return
        convert_lightcones(tmp_path / "in.h5", tmp_path / "out.h5", **options)
    assert written == [second] and len(before) > 1
    assert f"{second} is damaged, and is written anew" in caplog.text
    found = open_lightcones(tmp_path / "out.h5", validate="full").data
    np.testing.assert_array_equal(np.asarray(found), X)


def test_a_long_name_and_a_link(tmp_path, small_parts):
    X = values(n=16, field=(8, 8, 200))
    save_lightcones(tmp_path / "in.h5", X)
    long = tmp_path / f"{'a' * 252}.h5"
    convert_lightcones(tmp_path / "in.h5", long)
    np.testing.assert_array_equal(np.asarray(open_lightcones(long).data), X)
    assert sorted(p.name for p in tmp_path.iterdir()) == [long.name, "in.h5"]
    if os.name == "posix":
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "link.h5"
        link.symlink_to("elsewhere/real.h5")
        convert_lightcones(tmp_path / "in.h5", link)
        assert link.is_symlink()
        assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == ["real.h5"]
        np.testing.assert_array_equal(np.asarray(open_lightcones(link).data), X)


def test_convert_leaves_out_what_is_asked(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        write_v3(tmp_path / "in" / f"{k}.h5", seed=k)
    (tmp_path / "in" / "2.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.h5: unreadable"):
        convert_lightcones(tmp_path / "in", tmp_path / "out.h5")
    with pytest.warns(UserWarning, match="left out"):
        convert_lightcones(tmp_path / "in", tmp_path / "out.h5", on_bad="drop", parameters=["zeta"])
    made = open_lightcones(tmp_path / "out.h5")
    np.testing.assert_array_equal(made.seeds, [0, 1, 3])
    assert made.target_names == ["zeta"]


def test_a_former_result_is_not_one_of_the_sources(tmp_path):
    for k in range(4):
        write_npz(tmp_path / f"run{k}.npz", seed=k)
    for _ in range(2):
        convert_lightcones(tmp_path, tmp_path / "all.h5")
        assert len(open_lightcones(tmp_path / "all.h5", validate="full").data) == 4
    for k in range(4):
        (tmp_path / f"run{k}.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no light cones in .* but .*all\.h5 itself"):
        convert_lightcones(tmp_path, tmp_path / "all.h5")
    convert_lightcones(
        tmp_path / "all.h5", tmp_path / "all.h5", dtype="float16"
    )  # named, it is meant
    assert open_lightcones(tmp_path / "all.h5").data.dtype == np.float16


def test_converting_the_same_values_twice(tmp_path, small_parts):
    """In files that carry no digests, between two that the quick check does not read."""
    (tmp_path / "in").mkdir()
    for k in range(13):
        write_npz(tmp_path / "in" / f"run{k}.npz", seed=2 if k == 4 else k, n_z=900)
    message = r"run4\.npz, row 0, has the same values as .*run2\.npz, row 0.*validate=False"
    with pytest.raises(ValueError, match=message):
        convert_lightcones(tmp_path / "in", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()
    convert_lightcones(tmp_path / "in", tmp_path / "out.h5", validate=False)
    assert len(open_lightcones(tmp_path / "out.h5", validate=False).data) == 13
    with pytest.warns(UserWarning, match="left out"):
        convert_lightcones(tmp_path / "in", tmp_path / "out.h5", validate="full", on_bad="drop")
    assert len(open_lightcones(tmp_path / "out.h5").data) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.h5"]


@pytest.mark.slow
def test_two_conversions_to_one_path(tmp_path):
    pytest.importorskip("fcntl")
    save_lightcones(tmp_path / "in.h5", values(n=8, field=(8, 8, 200)))
    arguments = [str(tmp_path / "in.h5"), str(tmp_path / "out.h5")]
    parts = tmp_path / "out.h5.parts"
    other = start_converting(*arguments, "print('writing', flush=True); sys.stdin.readline()")
    assert other.stdout.readline() == "writing\n"
    with pytest.raises(BlockingIOError, match=r"out\.h5 is being written by another process"):
        convert_lightcones(*arguments, compression="gzip")
    other.communicate("go on\n")
    assert other.returncode == 0
    found = open_lightcones(tmp_path / "out.h5", validate="full").data
    np.testing.assert_array_equal(np.asarray(found), values(n=8, field=(8, 8, 200)))
    assert not parts.exists()
