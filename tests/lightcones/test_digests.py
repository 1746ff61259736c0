"""What a row is: digests in memory, in the index and of the values."""

import gc
import os
import pickle
import weakref

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk.fields import digest, digest_rows
from skatr_sk.lightcones import close_files, digests
from tests.lightcones import layouts
from tests.lightcones.layouts import N, edit

GRID = np.linspace(5, 10, 100)


def test_digests_are_those_of_the_values(X, values, reads):
    assert X.digests() == digest_rows(values)
    assert digest_rows(X[[7, 2]]) == [digest(values[7]), digest(values[2])]
    reads.clear()
    X[3:].digests()
    assert not reads  # remembered


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_digests_do_not_depend_on_where_or_as_what(kind, tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float16).astype(kind)
    save_lightcones(tmp_path / "a.h5", values)
    found = open_lightcones(tmp_path / "a.h5").data
    assert found.dtype == kind
    assert digest_rows(found) == digest_rows(values.astype(np.float32)) == digest_rows(values)


def test_an_index_saves_reading(values, tmp_path, reads):
    save_lightcones(tmp_path / "a.h5", values)
    X = open_lightcones(tmp_path / "a.h5", validate=False).data
    X.digests()
    assert sum(n for _, _, n in reads) <= 2  # to see that it is of this file


def test_a_row_is_held_to_its_digest_once(values, tmp_path, monkeypatch):
    save_lightcones(tmp_path / "a.h5", values)
    X = open_lightcones(tmp_path / "a.h5", validate=False).data
    digested = []
    monkeypatch.setattr(digests, "digest", lambda row: digested.append(1) or digest(row))
    X.read()
    assert not digested  # nothing is known yet
    X.digests()
    n_checks = len(digested)
    for _ in range(3):
        X[::-1].read([1, 0])
        np.testing.assert_array_equal(X.read(), values)
    assert len(digested) - n_checks == N


def test_values_of_another_digest_are_refused(values, tmp_path):
    save_lightcones(tmp_path / "a.h5", values)
    before = (tmp_path / "a.h5").stat()
    halved = values.copy()
    halved[7] /= 2
    X = open_lightcones(tmp_path / "a.h5", validate=False).data
    X.digests()
    edit(tmp_path / "a.h5", lambda file: file["brightness_temp"].write_direct(halved))
    os.utime(tmp_path / "a.h5", ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(X.read(slice(0, 7)), values[:7])
    np.testing.assert_array_equal(X[7], halved[7])  # whoever looks at the data may see it
    with pytest.raises(ValueError, match=r"a\.h5, row 7: its values do not have the digest"):
        X.read([3, 7])


def test_a_file_that_was_written_anew_within_a_second_is_another(values, tmp_path):
    """It may have the size, the time and the inode of the one that it replaced."""
    path = tmp_path / "a.h5"
    for k in range(5):
        save_lightcones(path, values + k)
        X = open_lightcones(path, validate=False).data
        np.testing.assert_array_equal(X.read(), values + k)
        assert X.digests() == digest_rows(values + k)
        np.testing.assert_array_equal(X.read(), values + k)


def test_rows_of_a_file_that_was_touched_are_held_to_their_digests(values, tmp_path):
    path = tmp_path / "a.h5"
    save_lightcones(path, values)
    before = path.stat()
    X = open_lightcones(path, validate=False).data
    X.digests()
    X.read()
    path.rename(tmp_path / "away")
    (tmp_path / "away").rename(path)
    np.testing.assert_array_equal(X.read(), values)
    edit(path, lambda file: file["brightness_temp"].write_direct(values / 2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ValueError, match=r"a\.h5, row 0: its values do not have the digest"):
        X.read()


def test_pickles_take_digests_along(values, tmp_path, reads):
    np.save(tmp_path / "a.npy", values)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = values + 1
    X = open_lightcones([tmp_path / "a.npy", tmp_path / "b.h5"], validate=False).data
    X[:-1].digests()
    sent = pickle.dumps(X[N:])
    digests._records_of.cache_clear()  # as in a process that has read nothing
    reads.clear()
    received = pickle.loads(sent)
    assert received.digests(slice(0, N - 1)) == digest_rows(values[:-1] + 1) and not reads
    assert received.digests() == digest_rows(values + 1)
    assert reads == [("b.h5", N - 1, 1)]


def test_digests_that_others_have_computed(values, tmp_path, reads):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["data"] = values
    X = open_lightcones(tmp_path / "b.h5", validate=False).data
    asked = []

    def recall(identities, compute):
        asked.append(identities)
        return [digest(values[0]), *compute(np.arange(1, len(identities)))]

    assert X.digests([2, 0, 0], recall=recall) == [digest(values[row]) for row in (2, 0, 0)]
    assert len(set(asked[0])) == 2 and reads == [("b.h5", 2, 1)]
    assert X.digests([0, 2], recall=recall) == [digest(values[0]), digest(values[2])]
    assert len(asked) == 1  # they are known now


def test_another_dataset_beside_the_light_cones(tmp_path):
    """It is not what the file's index is of."""
    save_lightcones(tmp_path / "a.h5", layouts.values())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["density"] = layouts.values(seed=1)
    for validate in ("fast", "full"):
        found = open_lightcones(tmp_path / "a.h5", dataset="density", validate=validate).data
        np.testing.assert_array_equal(np.asarray(found), layouts.values(seed=1))
        assert len(set(found.digests())) == N
    X = open_lightcones(tmp_path / "a.h5").data
    assert X._digests.stored(X._rows)[0] is not None


def test_a_file_with_an_index_of_a_wrong_shape_can_be_dropped(tmp_path):
    for k in range(2):
        save_lightcones(tmp_path / f"{k}.h5", layouts.values(seed=k))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        del file["row_digest"]
        file["row_digest"] = np.zeros((5, 16), np.uint8)
        file["row_digest"].attrs["dataset"] = "brightness_temp"
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert len(cones.data) == N
    assert [(line["fault"], line["row"]) for line in cones.report] == [("digest", -1)]
    assert "(5, 16)" in cones.report[0]["detail"]


def test_an_index_that_cannot_be_read_can_be_dropped(tmp_path):
    for k in range(2):
        save_lightcones(tmp_path / f"{k}.h5", layouts.values(seed=k))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        stored = file["row_digest"][:]
        del file["row_digest"]
        index = file.create_dataset("row_digest", data=stored, chunks=(N, 16), fletcher32=True)
        where = index.id.get_chunk_info(0).byte_offset
    with open(tmp_path / "1.h5", "r+b") as stream:
        stream.seek(where)
        stream.write(bytes(16))
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop", validate="full")
    assert len(cones.data) == N and set(cones.report["fault"]) == {"unreadable"}
    assert "1.h5, row 0: cannot be read" in cones.report["detail"][0]


@pytest.mark.parametrize("n", [1, N])
def test_a_file_whose_index_is_not_of_its_values_can_be_dropped(tmp_path, n):
    for k in range(3):
        save_lightcones(tmp_path / f"{k}.h5", layouts.values(n, seed=k))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        file["brightness_temp"][:] = layouts.values(n, seed=1) + 1
    with pytest.raises(ValueError, match=r"1 thing is wrong.*\n- .*1\.h5: digest: the values of"):
        open_lightcones(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert [(line["fault"], line["row"]) for line in cones.report] == [("digest", -1)]
    good = np.concatenate([layouts.values(n, seed=0), layouts.values(n, seed=2)])
    np.testing.assert_array_equal(np.asarray(cones.data), good)
    assert len(set(cones.data.digests())) == 2 * n


def test_an_index_of_whole_rows_is_not_that_of_cropped_ones(tmp_path):
    X = layouts.values(field=(4, 4, 100))
    save_lightcones(tmp_path / "a.h5", X[:6], redshifts=GRID)
    save_lightcones(tmp_path / "b.h5", X[6:, ..., :95], redshifts=GRID[:95])
    for validate in ("fast", "full"):
        with pytest.warns(UserWarning, match=r"up to 100 slices are cropped to 95 by .*b\.h5"):
            found = open_lightcones(tmp_path, validate=validate).data
        assert found.digests() == digest_rows(X[..., :95])
        np.testing.assert_array_equal(np.asarray(found), X[..., :95])


def test_values_that_an_index_is_not_of(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 6, 6, 4)).astype(np.float32)
    save_lightcones(tmp_path / "a.h5", X)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["brightness_temp"][:] = X + 1
    with pytest.raises(ValueError, match=r"a\.h5: digest: the values of row 0 are not those"):
        open_lightcones(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="row .*: its values do not have the digest"):
        open_lightcones(tmp_path / "a.h5", validate=False).data.digests()
    close_files()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["brightness_temp"][:] = X
        file["brightness_temp"][17, 0, 0, 0] = 0.5
    with pytest.warns(UserWarning, match="row 17: digest"):
        cones = open_lightcones(tmp_path / "a.h5", validate="full", on_bad="drop")
    assert len(cones.report) == 1 and len(cones.data) == 29


def test_what_was_known_of_a_file_is_let_go_when_it_was_written_anew(values, tmp_path):
    path = tmp_path / "a.npy"
    records = []
    for k in range(20):
        np.save(path, values + k)
        X = open_lightcones(path, validate=False).data
        X.digests()
        records.append(weakref.ref(X._digests._records[0]))
    gc.collect()
    assert [record() is None for record in records] == 19 * [True] + [False]
    assert len(digests._records_of(str(path))) == 1
    # An array of the file as it is shares what is known.
    assert open_lightcones(path).data._digests._records == X._digests._records
