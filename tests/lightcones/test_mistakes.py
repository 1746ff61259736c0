"""Files that every reader takes, and that would give wrong numbers or lose some in silence."""

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from tests.lightcones.layouts import write_v3

N, FIELD = 12, (4, 4, 10)


def values(n=N, field=FIELD, seed=0):
    return np.random.default_rng(seed).normal(-20, 40, (n, *field)).astype(np.float32)


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, given in datasets.items():
            file[name] = given


# ------------------------------------------------------------------------------ shapes


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


def test_a_label_with_an_axis_too_many(tmp_path):
    np.savez(tmp_path / "run0.npz", image=values()[0], label=np.ones((1, 6)))
    with pytest.raises(ValueError, match=r"shape: a label of shape \(1, 6\); expected \(6,\)"):
        open_lightcones(tmp_path)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("seeds", np.arange(11), r"seeds of shape \(11,\) and type int64; expected 12 integers"),
        ("seeds", np.arange(12.0), r"seeds of shape \(12,\) and type float64; expected 12 int"),
        ("seeds", np.ones((12, 1), int), r"seeds of shape \(12, 1\)"),
        ("redshifts", np.arange(9), r"redshifts of shape \(9,\); expected \(10,\) or \(12, 10\)"),
        ("redshifts", np.ones((11, 10)), r"redshifts of shape \(11, 10\); expected"),
    ],
)
def test_seeds_and_redshifts_of_a_wrong_shape_are_not_lost(tmp_path, name, given, message):
    write(tmp_path / "a.h5", images=values(), **{name: given})
    with pytest.raises(ValueError, match=rf"a\.h5: shape: {message}"):
        open_lightcones(tmp_path / "a.h5")


# ------------------------------------------------------------------------------ names


def test_two_parameters_of_one_name(tmp_path):
    y = np.random.default_rng(0).uniform(size=(N, 2))
    with pytest.raises(InvalidParameterError, match=r"target_names.*no two are alike.*'a', 'a'"):
        save_lightcones(tmp_path / "a.h5", values(), y, target_names=["a", "a"])
    save_lightcones(tmp_path / "a.h5", values(), y, target_names=["a", "b"])
    with pytest.raises(InvalidParameterError, match=r"parameters.*no two are alike.*'a', 'a'"):
        open_lightcones(tmp_path / "a.h5", parameters=["a", "a"])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["parameters"].attrs["names"] = ["a", "a"]
    with pytest.raises(ValueError, match=r"parameters: the names \['a', 'a'\]; expected no two"):
        open_lightcones(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("attribute", "given", "message"),
    [
        # Six columns would have got the paper's names in their stead.
        ("names", list("abcde"), "5 names and 6 units for 6 columns"),
        ("units", ["keV"], "6 names and 1 units for 6 columns"),
        ("bounds", np.zeros((5, 2)), r"bounds of shape \(5, 2\); expected \(6, 2\)"),
    ],
)
def test_names_units_and_bounds_that_do_not_fit_their_columns(tmp_path, attribute, given, message):
    save_lightcones(tmp_path / "a.h5", values(), np.ones((N, 6)), target_names=list("abcdef"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["parameters"].attrs[attribute] = given
    with pytest.raises(ValueError, match=rf"a\.h5: parameters: {message}"):
        open_lightcones(tmp_path / "a.h5")


# ------------------------------------------------------------------------------ other files


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


def test_a_simulation_whose_cone_is_a_link(tmp_path):
    write_v3(tmp_path / "far.h5")
    write_v3(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["lightcones/brightness_temp"]
        far = h5py.ExternalLink(str(tmp_path / "far.h5"), "/lightcones/brightness_temp")
        file["lightcones/brightness_temp"] = far
    with pytest.raises(ValueError, match=r"elsewhere: .*in other files \(.*far\.h5\)"):
        open_lightcones(tmp_path / "a.h5")


# ------------------------------------------------------------------------------ the index


def test_another_dataset_beside_the_voxels(tmp_path):
    """It is not what the file's index is of."""
    save_lightcones(tmp_path / "a.h5", values())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["density"] = values(seed=1)
    for validate in ("fast", "full"):
        found = open_lightcones(tmp_path / "a.h5", dataset="density", validate=validate).data
        np.testing.assert_array_equal(np.asarray(found), values(seed=1))
        assert len(set(found.row_digests())) == N
    assert open_lightcones(tmp_path / "a.h5").data.stored_digests()[0] is not None


def test_a_file_with_an_index_of_a_wrong_shape_can_be_dropped(tmp_path):
    for k in range(2):
        save_lightcones(tmp_path / f"{k}.h5", values(seed=k))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        del file["row_digest"]
        file["row_digest"] = np.zeros((5, 16), np.uint8)
        file["row_digest"].attrs["dataset"] = "brightness_temp"
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert len(cones.data) == N
    assert [(line["fault"], line["row"]) for line in cones.report] == [("digest", -1)]
    assert "(5, 16)" in cones.report[0]["detail"]
