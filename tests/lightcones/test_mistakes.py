"""Files that every reader takes, and that would give wrong numbers or lose some in silence."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import load_lightcones, open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.fields import digest_rows
from skatr_sk.lightcones import convert
from tests.lightcones.layouts import write_npz, write_v3

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("n", [1, N])
def test_a_file_whose_index_is_not_of_its_values_can_be_dropped(tmp_path, n):
    for k in range(3):
        save_lightcones(tmp_path / f"{k}.h5", values(n, seed=k))
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        file["brightness_temp"][:] = values(n, seed=1) + 1
    with pytest.raises(ValueError, match=r"1 thing is wrong.*\n- .*1\.h5: digest: the values of"):
        open_lightcones(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert [(line["fault"], line["row"]) for line in cones.report] == [("digest", -1)]
    good = np.concatenate([values(n, seed=0), values(n, seed=2)])
    np.testing.assert_array_equal(np.asarray(cones.data), good)
    assert len(set(cones.data.row_digests())) == 2 * n


# ------------------------------------------------------------------------------ side by side


GRID = np.linspace(5, 10, 100)


def test_an_index_of_whole_rows_is_not_that_of_cropped_ones(tmp_path):
    X = values(field=(4, 4, 100))
    save_lightcones(tmp_path / "a.h5", X[:6], redshifts=GRID)
    save_lightcones(tmp_path / "b.h5", X[6:, ..., :95], redshifts=GRID[:95])
    for validate in ("fast", "full"):
        with pytest.warns(UserWarning, match=r"up to 100 slices are cropped to 95 by .*b\.h5"):
            found = open_lightcones(tmp_path, validate=validate).data
        assert found.row_digests() == digest_rows(X[..., :95])
        np.testing.assert_array_equal(np.asarray(found), X[..., :95])


def test_a_short_file_does_not_crop_the_others(tmp_path):
    X = values(6, field=(4, 4, 100))
    for k in range(5):
        save_lightcones(tmp_path / f"a{k}.h5", X[k : k + 1], redshifts=GRID)
    save_lightcones(tmp_path / "b.h5", X[5:, ..., :55], redshifts=GRID[:55])
    with pytest.raises(ValueError, match=r"b\.h5: shape: a line of sight of 55 slices; most .*100"):
        open_lightcones(tmp_path, validate=False)


def test_fewer_slices_to_the_same_redshift_are_cosmology(tmp_path):
    """Simulations of one depth, Omega_m at the two ends of the paper's prior and between."""
    for k, (omega_m, n_z) in enumerate([(0.2, 134), (0.3, 110), (0.4, 95)]):
        theta = (3.0, omega_m, 500.0, 40.5, 4.7, 30.0)
        write_v3(tmp_path / f"{k}.h5", seed=k, theta=theta, n_z=n_z)
    with pytest.warns(UserWarning, match=r"up to 134 slices are cropped to 95 by .*2\.h5") as found:
        cones = open_lightcones(tmp_path)
    assert cones.data.shape[-1] == 95 and len(found) == 1 and "not those of most" not in str(found)
    ends = np.sort(cones.redshifts[:, -1])
    assert ends[-1] > 1.1 * ends[0]  # one comoving grid, and redshifts of three


@pytest.mark.parametrize("labelled", [True, False])
def test_grids_with_another_spacing(tmp_path, labelled):
    y = np.random.default_rng(0).uniform([1, 0.2], [9, 0.4], (N, 2)) if labelled else None
    names = ["m_WDM", "Omega_m"] if labelled else None
    for name, n, end in (("a", N, 10), ("b", N // 2, 30)):
        save_lightcones(
            tmp_path / f"{name}.h5",
            values(n, seed=n),
            None if y is None else y[:n],
            target_names=names,
            redshifts=np.linspace(5, end, 10),
        )
    for validate in (False, "fast", "full"):
        with pytest.raises(
            ValueError, match=r"(?s)6 things.*b\.h5, row 5: grid: .*to 30.000; expected .* 10.000"
        ):
            open_lightcones(tmp_path, validate=validate)


def test_a_spacing_that_another_cosmology_might_explain(tmp_path):
    save_lightcones(tmp_path / "a.h5", values(), redshifts=np.linspace(5, 10, 10))
    save_lightcones(tmp_path / "b.h5", values(6, seed=1), redshifts=np.linspace(5, 11, 10))
    with pytest.warns(UserWarning, match=r"of 6 light cones are not those of most \(up to 10.000"):
        open_lightcones(tmp_path)


def test_one_comoving_grid_in_many_cosmologies_is_in_order(tmp_path, recwarn):
    cones = load_lightcones()
    given = {"redshifts": cones.redshifts[:60], "target_names": cones.target_names}
    save_lightcones(tmp_path / "a.h5", cones.data[:60], cones.target[:60], **given)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 60
    assert not [w for w in recwarn if w.category is UserWarning]
    # Labels that were scaled say nothing of the cosmology, and must not be held against a file.
    low, high = cones.target_bounds.T
    scaled = (cones.target[:60] - low) / (high - low)
    save_lightcones(tmp_path / "a.h5", cones.data[:60], scaled, **given)
    with pytest.warns(UserWarning, match="not those of most"):
        assert len(open_lightcones(tmp_path / "a.h5").data) == 60


def test_simulations_with_hubble_constants_of_their_own(tmp_path, recwarn):
    for k, hlittle in enumerate([0.55, 0.6, 0.65, 0.7, 0.75, 0.8]):
        write_v3(tmp_path / f"{k}.h5", seed=k, version="3.3.1", n_z=100, hlittle=hlittle)
    cones = open_lightcones(tmp_path)
    assert np.ptp(cones.redshifts[:, -1]) > 0.1 * cones.redshifts[:, -1].min()
    assert not [w for w in recwarn if w.category is UserWarning]


def _pair(folder, first, second):
    for k, given in enumerate((first, second)):
        save_lightcones(folder / f"{k}.h5", values(seed=k), np.ones((N, 2)), **given)


def test_units_that_differ(tmp_path):
    _pair(tmp_path, {"target_units": ["keV", ""]}, {"target_units": ["eV", "K"]})
    with pytest.raises(ValueError, match=r"1\.h5: units: parameter_0 in 'eV'; most .* in 'keV'"):
        open_lightcones(tmp_path)
    cones = open_lightcones(tmp_path, parameters=["parameter_1"])
    assert cones.target_units == ["K"]  # that which is stated


def test_prior_boxes_that_differ(tmp_path):
    box = np.array([[0.0, 2.0], [0.0, 3.0]])
    _pair(tmp_path, {"target_bounds": box}, {"target_bounds": box + [[0.0], [1.0]]})
    with pytest.warns(UserWarning, match=r"target_bounds are None, for .*1\.h5 has others than"):
        assert open_lightcones(tmp_path).target_bounds is None
    same = open_lightcones(tmp_path, parameters=["parameter_0"]).target_bounds
    np.testing.assert_array_equal(same, box[:1])


@pytest.mark.parametrize("name", ["seeds", "redshifts", "target_bounds"])
def test_what_only_some_files_have(tmp_path, name):
    given = {"seeds": np.arange(N), "redshifts": np.arange(1, 11), "target_bounds": [[0, 2]] * 2}
    _pair(tmp_path, {name: given[name]}, {})
    with pytest.warns(UserWarning, match=rf"{name} are None, for .*1\.h5 has none"):
        assert open_lightcones(tmp_path)[name] is None


# ------------------------------------------------------------------------------ the list of files


def test_one_file_twice(tmp_path):
    for k in range(2):
        write_npz(tmp_path / f"run{k}.npz", seed=k)
    one, other = tmp_path / "run0.npz", tmp_path / "run1.npz"
    with pytest.raises(ValueError, match=r"run0\.npz: duplicate: the same file as .*run0\.npz"):
        open_lightcones([one, other, one])
    (tmp_path / "run2.npz").symlink_to(one)
    (tmp_path / "run3.npz").hardlink_to(other)
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert len(cones.data) == 2
    assert [line["fault"] for line in cones.report] == ["duplicate", "duplicate"]


def test_a_folder_of_files_and_what_they_were_converted_to(tmp_path):
    for k in range(20):
        write_npz(tmp_path / f"run{k:02d}.npz", seed=k)
    convert(tmp_path, tmp_path / "all.h5")
    for validate, n in (("fast", r"\d"), ("full", "20")):
        with pytest.raises(ValueError, match=rf"(?s){n} things.*npz.* same values as .*all\.h5"):
            open_lightcones(tmp_path, validate=validate)


def test_a_generator_of_paths(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    (tmp_path / "b.h5").write_bytes(b"")
    paths = sorted(tmp_path.glob("*.h5"))
    with pytest.raises(ValueError, match=r"in .*a\.h5 and 1 more:\n- .*b\.h5: unreadable"):
        open_lightcones(path for path in paths)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_thread_reads(tmp_path):
    """In a process of its own: a child that waits for the lock of a lost thread never ends."""
    save_lightcones(tmp_path / "a.h5", values())
    script = """
import os, signal, sys
from skatr_sk import open_lightcones
from skatr_sk.lightcones.handles import HANDLES, close_files
path = sys.argv[1]
data = open_lightcones(path).data
data[0]
HANDLES.lock.acquire()  # as a reader in the midst of a read
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
