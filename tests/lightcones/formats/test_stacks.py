"""HDF5 files with a dataset of light cones: what is found, and what does not fit."""

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.lightcones.formats import hdf5
from tests.lightcones.layouts import FIELD, N, edit, values, write_v3


def test_hdf5_datasets_are_found(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4, 4, 8)).astype(np.float16)
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file["deep/boxes"] = values
        file["deep/params"] = rng.uniform(size=(6, 2))
        file["deep/params"].attrs["names"] = ["a", "b"]
        file["deep/redshifts"] = np.linspace(6, 8, 8)
        file["deep/seed"] = np.arange(6)
        file["history"] = rng.uniform(size=(6, 20))
    cones = open_lightcones(tmp_path / "any.h5", parameters=["b"])
    np.testing.assert_array_equal(np.asarray(cones.data), values)
    assert cones.target.shape == (6, 1) and cones.target_names == ["b"]
    assert cones.redshifts.shape == (6, 8)
    np.testing.assert_array_equal(cones.seeds, np.arange(6))


def test_a_cone_may_be_larger_than_a_chunk_of_several_rows_may_be(tmp_path, monkeypatch):
    """At full resolution one takes 184 MB, and is written as one chunk."""
    monkeypatch.setattr(hdf5, "_MOST_CHUNK", 1000)
    values = np.random.default_rng(0).normal(size=(3, 40, 40, 30)).astype(np.float32)
    save_lightcones(tmp_path / "large.h5", values)
    with h5py.File(tmp_path / "large.h5") as file:
        assert file["brightness_temp"].chunks == (1, 40, 40, 30)
    found = open_lightcones(tmp_path / "large.h5").data
    np.testing.assert_array_equal(np.asarray(found[1:]), values[1:])
    with h5py.File(tmp_path / "several.h5", "w") as file:
        file.create_dataset("brightness_temp", data=values, chunks=(2, 40, 40, 30))
    with pytest.raises(ValueError, match=r"cells in chunks of \(2, 40, 40, 30\)"):
        open_lightcones(tmp_path / "several.h5")


def test_hdf5_datasets_that_are_not_clear(tmp_path):
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["first"] = np.ones((3, 4, 4))
        file["second"] = np.arange(48.0).reshape(3, 4, 4)
    with pytest.raises(ValueError, match=r"several that could be; name it with dataset=.*second"):
        open_lightcones(tmp_path / "two.h5")
    found = open_lightcones(tmp_path / "two.h5", dataset="second")
    np.testing.assert_array_equal(np.asarray(found.data)[1], np.arange(16.0, 32).reshape(4, 4))
    with pytest.raises(ValueError, match=r"no dataset 'third'; it has first \(3, 4, 4\)"):
        open_lightcones(tmp_path / "two.h5", dataset="third")


def test_integers_and_big_endian_become_native_floats(tmp_path):
    with h5py.File(tmp_path / "i.h5", "w") as file:
        file["data"] = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["data"] = np.arange(24, dtype=">f8").reshape(2, 3, 4)
    for name, kind in (("i.h5", np.float32), ("f.h5", np.float64)):
        data = open_lightcones(tmp_path / name).data
        assert data.dtype == np.dtype(kind) and np.asarray(data).dtype == np.dtype(kind)
        np.testing.assert_array_equal(np.asarray(data).ravel(), np.arange(24))


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, given in datasets.items():
            file[name] = given


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((6, 12), "6 rows of parameters for 12 light cones"),  # transposed
        ((24, 3), "24 rows of parameters for 12 light cones"),
        ((24,), "24 rows of parameters for 12 light cones"),
        ((11, 6), "11 rows of parameters for 12 light cones"),
    ],
)
def test_labels_are_never_cut_into_rows(tmp_path, shape, message):
    labels = np.random.default_rng(0).uniform(size=shape)
    write(tmp_path / "a.h5", images=values(), labels=labels)
    with pytest.raises(ValueError, match=rf"a\.h5: shape: {message}"):
        open_lightcones(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("seeds", np.arange(11), r"seeds of shape \(11,\) and type int64; expected 12 whole"),
        ("seeds", np.ones((12, 1)), r"seeds of shape \(12, 1\) and type float64; expected 12 wh"),
        ("seeds", np.ones((12, 1), int), r"seeds of shape \(12, 1\)"),
        ("redshifts", np.arange(9), r"redshifts of shape \(9,\); expected \(10,\) or \(12, 10\)"),
        ("redshifts", np.ones((11, 10)), r"redshifts of shape \(11, 10\); expected"),
    ],
)
def test_seeds_and_redshifts_of_a_wrong_shape_are_not_lost(tmp_path, name, given, message):
    write(tmp_path / "a.h5", images=values(), **{name: given})
    with pytest.raises(ValueError, match=rf"a\.h5: shape: {message}"):
        open_lightcones(tmp_path / "a.h5")


def test_two_parameters_of_one_name(tmp_path):
    y = np.random.default_rng(0).uniform(size=(N, 2))
    with pytest.raises(InvalidParameterError, match=r"target_names.*no two are alike.*'a', 'a'"):
        save_lightcones(tmp_path / "a.h5", values(), y, target_names=["a", "a"])
    save_lightcones(tmp_path / "a.h5", values(), y, target_names=["a", "b"])
    with pytest.raises(InvalidParameterError, match=r"parameters.*no two are alike.*'a', 'a'"):
        open_lightcones(tmp_path / "a.h5", parameters=["a", "a"])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["parameters"].attrs["names"] = ["a", "a"]
    with pytest.raises(
        ValueError, match=r"parameters: names: .* no two are alike, found \['a', 'a'\]"
    ):
        open_lightcones(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("attribute", "given", "message"),
    [
        # Six columns would have got the paper's names in their stead.
        (
            "names",
            list("abcde"),
            r"names: expected 6 of them, .* found \['a', 'b', 'c', 'd', 'e'\]",
        ),
        ("units", ["keV"], r"units: expected 6 of them, .* found \['keV'\]"),
        ("bounds", np.zeros((5, 2)), r"bounds of shape \(5, 2\); expected \(6, 2\)"),
    ],
)
def test_names_units_and_bounds_that_do_not_fit_their_columns(tmp_path, attribute, given, message):
    save_lightcones(tmp_path / "a.h5", values(), np.ones((N, 6)), target_names=list("abcdef"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["parameters"].attrs[attribute] = given
    with pytest.raises(ValueError, match=rf"a\.h5: parameters: {message}"):
        open_lightcones(tmp_path / "a.h5")


def _virtual(folder, name, shape):
    write(folder / "part.h5", data=np.ones(shape, np.float32))
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[:] = h5py.VirtualSource(folder / "part.h5", "data", shape)
    with h5py.File(folder / "a.h5", "a") as file:
        file.create_virtual_dataset(name, layout)


def _external(folder, name, shape):
    stored = [(str(folder / "part.bin"), 0, h5py.h5f.UNLIMITED)]
    with h5py.File(folder / "a.h5", "a") as file:
        file.create_dataset(name, shape, np.float32, external=stored)[...] = 1


@pytest.mark.parametrize("make", [_virtual, _external])
@pytest.mark.parametrize("name", ["images", "labels", "redshifts"])
def test_values_in_other_files_are_refused(tmp_path, make, name):
    """HDF5 gives zeros for a virtual source that is gone: so nobody could tell."""
    shapes = {"images": (N, *FIELD), "labels": (N, 2), "redshifts": (N, 10)}
    for other, shape in shapes.items():
        if other == name:
            make(tmp_path, name, shape)
        else:
            with h5py.File(tmp_path / "a.h5", "a") as file:
                file[other] = np.random.default_rng(0).uniform(1, 2, shape)
    with pytest.raises(
        ValueError, match=rf"elsewhere: /{name} has its values in other files \(.*part\.(h5|bin)\)"
    ):
        open_lightcones(tmp_path / "a.h5")


def test_what_lies_beside_light_cones_is_not_touched(tmp_path):
    """Datasets of types that nothing is made of, links and groups, however odd."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = values()
        file["labels"] = np.ones((N, 2))
        file["empty"] = h5py.Empty("f4")
        file["notes"] = np.full((3, 3, 3, 3, 3), b"text")
        file["table"] = np.zeros((2, 2, 2, 2, 2), [("a", "f4")])
        file["kind"] = np.dtype("f4")
        file["alias"] = h5py.SoftLink("/images")
        file["circle"] = h5py.SoftLink("/circle")
        file["other"] = h5py.ExternalLink("/dev/zero", "/a")
        file["same"] = file["images"]  # another name of it
        inner = file.create_group("group/in/group")
        inner["up"] = file["group"]
        layout = h5py.VirtualLayout((N, 4, 4, 10), "f4")
        layout[:] = h5py.VirtualSource(".", "virtual", layout.shape)
        file.create_virtual_dataset("virtual", layout)
        odd = h5py.h5d.create(
            file.id, b"time", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2, 2, 2, 2, 2))
        )
        del odd
    cones = open_lightcones(tmp_path / "a.h5", validate="full")
    assert cones.target.shape == (N, 2)
    np.testing.assert_array_equal(np.asarray(cones.data), values())


def test_a_soft_link_within_the_file_is_followed_in_a_simulation(tmp_path):
    write_v3(tmp_path / "a.h5", seed=3)
    edit(tmp_path / "a.h5", lambda file: file.move("distances", "far/away"))
    edit(tmp_path / "a.h5", lambda file: file.__setitem__("distances", h5py.SoftLink("/far/away")))
    assert open_lightcones(tmp_path / "a.h5").seeds == [3]
