"""save_lightcones and convert: what is written, whole or not at all, and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.fields import digest
from skatr_sk.lightcones import convert, converting
from tests.lightcones.layouts import write_npz, write_v3

ROOT = Path(__file__).resolve().parents[2]


def values(n=10, field=(5, 5, 30), kind=np.float32):
    return np.random.default_rng(0).normal(-20, 40, (n, *field)).astype(kind)


@pytest.mark.parametrize("field", [(40,), (7, 9), (5, 5, 30), (24, 24, 60)], ids=str)
@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
def test_what_is_saved_comes_back(tmp_path, field, compression):
    X, y = values(field=field), np.random.default_rng(1).uniform(size=(10, 3))
    grid = np.linspace(6, 9, field[-1])
    save_lightcones(
        tmp_path / "a.h5",
        X,
        y,
        target_names=["a", "b", "c"],
        target_units=["", "keV", "K"],
        target_bounds=[[0, 1]] * 3,
        redshifts=grid,
        seeds=np.arange(10),
        compression=compression,
    )
    cones = open_lightcones(tmp_path / "a.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data), X)
    np.testing.assert_array_equal(cones.target, y)
    assert cones.target_names == ["a", "b", "c"] and cones.target_units == ["", "keV", "K"]
    np.testing.assert_array_equal(cones.target_bounds, [[0, 1]] * 3)
    np.testing.assert_allclose(cones.redshifts, np.tile(grid, (10, 1)), rtol=1e-6)
    np.testing.assert_array_equal(cones.seeds, np.arange(10))
    with h5py.File(tmp_path / "a.h5") as file:
        stored = [row.tobytes() for row in file["row_digest"][:]]
        chunks = file["brightness_temp"].chunks
    assert stored == [digest(row) for row in X]
    assert chunks[1:] == field and (chunks[0] == 1 or np.prod(chunks) * 4 <= 2**16)


def test_names_come_from_a_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"zeta": np.arange(10.0), "other": np.zeros(10)})
    save_lightcones(tmp_path / "a.h5", values(), frame)
    cones = open_lightcones(tmp_path / "a.h5", as_frame=True)
    assert list(cones.target.columns) == ["zeta", "other"]


def test_another_type(tmp_path):
    X = values()
    save_lightcones(tmp_path / "a.h5", X, dtype=np.float16)
    found = open_lightcones(tmp_path / "a.h5", validate="full").data
    assert found.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(found), X.astype(np.float16))
    X[4, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"X\[4\] has values up to 1e\+06, which float16 cannot"):
        save_lightcones(tmp_path / "a.h5", X, dtype=np.float16)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 10  # the old file is whole


def test_from_one_file_to_another(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    save_lightcones(tmp_path / "b.h5", open_lightcones(tmp_path / "a.h5").data[::-2])
    found = open_lightcones(tmp_path / "b.h5").data
    np.testing.assert_array_equal(np.asarray(found), values()[::-2])


def test_a_file_may_be_replaced_by_what_was_made_from_it(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    save_lightcones(tmp_path / "a.h5", open_lightcones(tmp_path / "a.h5").data[3:])
    assert len(open_lightcones(tmp_path / "a.h5").data) == 7


def test_wrong_calls(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(ValueError, match=r"X has shape \(3,\); expected \(n, \*field_shape\)"):
        save_lightcones(path, np.zeros(3))
    with pytest.raises(InvalidParameterError) as raised:
        save_lightcones(
            path,
            values(),
            np.zeros((9, 2)),
            target_names=["a"],
            redshifts=np.zeros(7),
            seeds=np.zeros(10),
            compression="zip",
            dtype="int8",
            target_bounds=[0, 1],
        )
    for name in ("y", "target_names", "redshifts", "seeds", "compression", "dtype", "target_bo"):
        assert f"- {name}" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        save_lightcones(tmp_path / "none" / "a.h5", values())
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        save_lightcones(tmp_path / "b.h5", values())
        convert(tmp_path / "b.h5", tmp_path / "none" / "a.h5")
    with pytest.raises(IsADirectoryError, match="name a file inside"):
        convert(tmp_path / "b.h5", tmp_path)
    assert not path.exists()


# ------------------------------------------------------------------------------ convert


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(converting, "_PART_BYTES", 2**17)


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("write", [write_v3, write_npz])
def test_convert(tmp_path, write, compression, small_parts):
    (tmp_path / "in").mkdir()
    suffix = "h5" if write is write_v3 else "npz"
    for k in range(7):
        write(tmp_path / "in" / f"run{k}.{suffix}", seed=k, n_z=900)
    source = open_lightcones(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out.h5", compression=compression)
    made = open_lightcones(tmp_path / "out.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(made.data), np.asarray(source.data))
    np.testing.assert_allclose(made.target, source.target)
    assert made.target_names == source.target_names
    assert made.data.row_digests() == source.data.row_digests()
    if write is write_v3:
        np.testing.assert_array_equal(made.seeds, source.seeds)
        np.testing.assert_array_equal(made.redshifts, source.redshifts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.h5"]


def test_converting_many_short_rows(tmp_path, small_parts):
    """Chunks of several rows, and a last part that does not fill one."""
    X = values(n=1003, field=(30,))
    np.save(tmp_path / "a.npy", X)
    convert(tmp_path / "a.npy", tmp_path / "a.h5", dtype=np.float64)
    found = open_lightcones(tmp_path / "a.h5", validate="full").data
    np.testing.assert_array_equal(np.asarray(found), X)


SLOWLY = """
import sys, time
from skatr_sk.lightcones import convert, converting
converting._PART_BYTES = 2**16
save = converting.save_lightcones
def slow(*args, **kwargs):
    save(*args, **kwargs)
    time.sleep(0.3)
converting.save_lightcones = slow
convert(sys.argv[1], sys.argv[2], compression="gzip")
"""


def test_what_was_killed_goes_on_and_gives_the_same_file(tmp_path, monkeypatch):
    X = values(n=20, field=(8, 8, 200))
    save_lightcones(tmp_path / "in.h5", X, np.arange(20.0))
    killed = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(tmp_path / "in.h5"), str(tmp_path / "out.h5")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    parts = tmp_path / "out.h5.parts"
    give_up = time.monotonic() + 60
    while len(list(parts.glob("0*.h5"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out.h5").exists()
    done = {p.name: p.stat().st_mtime_ns for p in parts.glob("0*.h5")}
    assert 3 <= len(done) < 20
    # A part that was left half-way, and a joining that was.
    (parts / ".000000019.h5.x.tmp").write_bytes(b"half")
    (parts / "whole.h5").write_bytes(b"half")

    writes = []
    save = converting.save_lightcones
    monkeypatch.setattr(converting, "_PART_BYTES", 2**16)
    monkeypatch.setattr(
        converting, "save_lightcones", lambda p, *a, **k: (writes.append(p.name), save(p, *a, **k))
    )
    convert(tmp_path / "in.h5", tmp_path / "out.h5", compression="gzip")
    assert not set(writes) & set(done)  # what was done was not done again
    assert len(writes) + len(done) == 20
    assert not parts.exists()

    convert(tmp_path / "in.h5", tmp_path / "at_once.h5", compression="gzip")
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
    with pytest.raises(ValueError, match=r"out\.h5\.parts holds the parts of another conversion"):
        convert(tmp_path / "in.h5", tmp_path / "out.h5")


def test_convert_leaves_out_what_is_asked(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        write_v3(tmp_path / "in" / f"{k}.h5", seed=k)
    (tmp_path / "in" / "2.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.h5: unreadable"):
        convert(tmp_path / "in", tmp_path / "out.h5")
    with pytest.warns(UserWarning, match="left out"):
        convert(tmp_path / "in", tmp_path / "out.h5", on_bad="drop", parameters=["zeta"])
    made = open_lightcones(tmp_path / "out.h5")
    np.testing.assert_array_equal(made.seeds, [0, 1, 3])
    assert made.target_names == ["zeta"]


# ------------------------------------------------------------------------------ convert, misused


def test_a_former_result_is_not_one_of_the_sources(tmp_path):
    for k in range(4):
        write_npz(tmp_path / f"run{k}.npz", seed=k)
    for _ in range(2):
        convert(tmp_path, tmp_path / "all.h5")
        assert len(open_lightcones(tmp_path / "all.h5", validate="full").data) == 4
    for k in range(4):
        (tmp_path / f"run{k}.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no light cones in .* but .*all\.h5 itself"):
        convert(tmp_path, tmp_path / "all.h5")
    convert(tmp_path / "all.h5", tmp_path / "all.h5", dtype="float16")  # named, it is meant
    assert open_lightcones(tmp_path / "all.h5").data.dtype == np.float16


def test_converting_the_same_values_twice(tmp_path, small_parts):
    """In files that carry no digests, between two that the quick check does not read."""
    (tmp_path / "in").mkdir()
    for k in range(13):
        write_npz(tmp_path / "in" / f"run{k}.npz", seed=2 if k == 4 else k, n_z=900)
    message = r"run4\.npz, row 0, has the same values as .*run2\.npz, row 0.*validate=False"
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in", tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()
    convert(tmp_path / "in", tmp_path / "out.h5", validate=False)
    assert len(open_lightcones(tmp_path / "out.h5", validate=False).data) == 13
    with pytest.warns(UserWarning, match="left out"):
        convert(tmp_path / "in", tmp_path / "out.h5", validate="full", on_bad="drop")
    assert len(open_lightcones(tmp_path / "out.h5").data) == 12
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.h5"]


def test_two_conversions_to_one_path(tmp_path):
    pytest.importorskip("fcntl")
    save_lightcones(tmp_path / "in.h5", values(n=8, field=(8, 8, 200)))
    arguments = [str(tmp_path / "in.h5"), str(tmp_path / "out.h5")]
    other = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    parts = tmp_path / "out.h5.parts"
    give_up = time.monotonic() + 60
    while not list(parts.glob("0*.h5")) and time.monotonic() < give_up:
        time.sleep(0.02)
    with pytest.raises(BlockingIOError, match=r"out\.h5 is being written by another process"):
        convert(*arguments, compression="gzip")
    assert other.wait() == 0
    found = open_lightcones(tmp_path / "out.h5", validate="full").data
    np.testing.assert_array_equal(np.asarray(found), values(n=8, field=(8, 8, 200)))
    assert not parts.exists()
