"""open_lightcones: the list of files, and wrong calls."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.fields import digest_rows
from skatr_sk.lightcones import convert_lightcones
from skatr_sk.lightcones.formats import Fault
from skatr_sk.lightcones.formats.metadata import take_seeds
from skatr_sk.parameters import PARAMETER_NAMES
from tests.lightcones.layouts import cone, values, write_npz, write_v3


def test_as_frame(tmp_path):
    pytest.importorskip("pandas")
    write_v3(tmp_path / "a.h5")
    cones = open_lightcones(tmp_path, as_frame=True)
    assert list(cones.target.columns) == list(PARAMETER_NAMES)
    assert list(cones.report.columns) == ["file", "row", "fault", "detail"]


def test_nothing_left(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"No light cones can be read from .*\n- .*a\.h5: unread"):
        open_lightcones(tmp_path, on_bad="drop")
    np.save(tmp_path / "n.npy", np.full((2, 5), np.nan))
    with pytest.raises(ValueError, match="No light cone is left"):
        open_lightcones(tmp_path / "n.npy", on_bad="drop")


def test_wrong_calls(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        open_lightcones(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no light cones in"):
        open_lightcones(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        open_lightcones([])
    with pytest.raises(TypeError, match="source: expected a path or a list of paths, found 3"):
        open_lightcones(3)
    with pytest.raises(InvalidParameterError, match="source: expected a path or a list of paths"):
        open_lightcones([tmp_path, 3])
    with pytest.raises(InvalidParameterError, match=r"2 invalid.*\n.*'full'.*\n.*'drop'"):
        open_lightcones(tmp_path, validate="yes", on_bad="skip")


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
    convert_lightcones(tmp_path, tmp_path / "all.h5")
    for validate, n in (("fast", r"\d"), ("full", "20")):
        with pytest.raises(ValueError, match=rf"(?s){n} things.*npz.* same values as .*all\.h5"):
            open_lightcones(tmp_path, validate=validate)


def test_a_generator_of_paths(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    (tmp_path / "b.h5").write_bytes(b"")
    paths = sorted(tmp_path.glob("*.h5"))
    with pytest.raises(ValueError, match=r"in .*a\.h5 and 1 more:\n- .*b\.h5: unreadable"):
        open_lightcones(path for path in paths)


def test_what_names_files(tmp_path, monkeypatch):
    """A pattern, the home, an open file, and a list of all of these."""
    (tmp_path / "runs").mkdir()
    X = values(6)
    for k in range(3):
        save_lightcones(tmp_path / "runs" / f"{k}.h5", X[2 * k : 2 * k + 2])
    monkeypatch.setenv("HOME", str(tmp_path))
    with h5py.File(tmp_path / "runs" / "1.h5", "r") as file:
        sources = {
            str(tmp_path / "runs" / "*.h5"): X,
            "~/runs": X,
            "~/runs/[02].h5": X[[0, 1, 4, 5]],
            Path("~/runs/0.h5"): X[:2],
            file: X[2:4],
        }
        for source, wanted in sources.items():
            np.testing.assert_array_equal(np.asarray(open_lightcones(source).data), wanted)
        listed = ["~/runs/0.h5", file, Path(tmp_path / "runs" / "2*")]
        np.testing.assert_array_equal(np.asarray(open_lightcones(listed).data), X)
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file["data"] = X
        with pytest.raises(InvalidParameterError, match="source: .*close it, and give its path"):
            open_lightcones(file)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*none\*"):
        open_lightcones(tmp_path / "none*")


def test_a_name_of_a_pattern_is_a_name(tmp_path):
    np.save(tmp_path / "a[1].npy", values(4))
    assert len(open_lightcones(tmp_path / "a[1].npy").data) == 4


def test_several_fields_are_no_light_cone(tmp_path):
    write_v3(tmp_path / "a.h5")
    with pytest.raises(InvalidParameterError, match=r"dataset: .*one field; open each by its name"):
        open_lightcones(tmp_path, dataset=["brightness_temp", "density"])


# Far first, and in kelvin -------------------------------------------------------------------------


def stack(path, X, **datasets):
    with h5py.File(path, "w") as file:
        file["data"] = X
        for name, given in datasets.items():
            file[name] = given


def test_far_first_by_redshifts(tmp_path):
    X, z = values(), np.linspace(6, 7, 10)
    stack(tmp_path / "a.h5", X[..., ::-1], redshifts=z[::-1])
    with pytest.warns(UserWarning, match=r"the redshifts fall in .*a\.h5: these"):
        cones = open_lightcones(tmp_path / "a.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data[[7, 2]]), X[[7, 2]])
    np.testing.assert_allclose(cones.redshifts[3], z, rtol=1e-6)
    assert cones.data.digests() == digest_rows(X)


def test_far_first_on_request(tmp_path):
    X = values()
    np.save(tmp_path / "a.npy", X[..., ::-1])
    np.savez(tmp_path / "b.npz", X=X[..., ::-1] + 1)
    save_lightcones(tmp_path / "c.h5", X[..., ::-1] + 2)
    found = np.asarray(open_lightcones(tmp_path, flip=True, validate="full").data)
    np.testing.assert_array_equal(found, np.concatenate([X, X + 1, X + 2]))
    stack(tmp_path / "c.h5", X, redshifts=np.linspace(6, 7, 10))
    with pytest.raises(ValueError, match=r"c\.h5: grid: flip=True; but its redshifts rise"):
        open_lightcones(tmp_path / "c.h5", flip=True)
    np.save(tmp_path / "maps.npy", X[..., 0])
    with pytest.raises(ValueError, match="grid: flip=True; but maps have no line of sight"):
        open_lightcones(tmp_path / "maps.npy", flip=True, one_per_file=False)


def test_far_first_cones_are_cropped_at_their_far_end(tmp_path):
    """In each kind of file: what is kept is near."""
    z = np.linspace(6, 7, 20)
    X = np.stack([cone(k, 20) for k in range(6)])
    stack(tmp_path / "a.h5", X[:1, ..., ::-1], redshifts=z[::-1])
    np.savez(tmp_path / "b.npz", X=X[1:3, ..., ::-1], redshifts=z[::-1])
    np.savez_compressed(tmp_path / "c.npz", X=X[3:4, ..., ::-1], redshifts=z[::-1])
    np.savez(tmp_path / "d.npz", image=X[4, ..., ::-1], redshifts=z[::-1])
    stack(tmp_path / "e.h5", X[5:, ..., :19], redshifts=z[:19])
    with pytest.warns(UserWarning, match="cropped to 19"):
        cones = open_lightcones(tmp_path, validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data), X[..., :19])
    np.testing.assert_allclose(cones.redshifts, np.tile(z[:19], (6, 1)), rtol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_kelvin(tmp_path, kind):
    X = values(kind=kind)
    stack(tmp_path / "a.h5", X / kind(1000))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["data"].attrs["units"] = "K"
    with pytest.warns(
        UserWarning, match=r"in kelvin in .*a\.h5, which says so: they are read in mK"
    ):
        cones = open_lightcones(tmp_path / "a.h5", validate="full")
    assert cones.data.dtype == kind
    np.testing.assert_allclose(np.asarray(cones.data), X, rtol=2e-3 if kind == np.float16 else 1e-6)
    with pytest.raises(ValueError, match="units: units='mK'; but the file says 'K'"):
        open_lightcones(tmp_path / "a.h5", units="mK")


def test_kelvin_in_other_files(tmp_path):
    X = values()
    np.save(tmp_path / "a.npy", X / 1000)
    found = open_lightcones(tmp_path / "a.npy", units="K").data
    np.testing.assert_allclose(np.asarray(found), X, rtol=1e-6)
    np.savez(tmp_path / "b.npz", X=X / 1000, units="Kelvin")
    with pytest.warns(UserWarning, match="in kelvin"):
        found = open_lightcones(tmp_path / "b.npz").data
    np.testing.assert_allclose(np.asarray(found), X, rtol=1e-6)
    stack(tmp_path / "c.h5", X)
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file.attrs["units"] = "Jy"
    with pytest.raises(ValueError, match=r"c\.h5: units: cells in 'Jy'; expected .* in mK or K"):
        open_lightcones(tmp_path / "c.h5")
    # Of what is no brightness, the unit is nobody's matter.
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file["density"] = X + 1
    found = open_lightcones(tmp_path / "c.h5", dataset="density").data
    np.testing.assert_array_equal(np.asarray(found), X + 1)


# Orders, units and seeds that nothing may take for others -----------------------------------------


BARE = np.array([[3.0, 0.3, 500.0, 40.5, 4.7, 30.0 + k] for k in range(4)])


@pytest.fixture
def four(rng):
    return rng.normal(size=(4, 6, 6, 20)).astype(np.float32)


@pytest.mark.parametrize(
    "order", [[1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4], [5, 4, 3, 2, 1, 0], [1, 0, 3, 2, 4, 5]]
)
def test_labels_in_an_order_that_is_nobodys_are_refused(tmp_path, four, order):
    np.savez(tmp_path / "a.npz", X=four, y=BARE[:, order])
    with pytest.raises(ValueError, match=r"a\.npz.*parameters=\[\.\.\.\]"):
        open_lightcones(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="column"):
        save_lightcones(tmp_path / "a.h5", four, BARE[:, order])


@pytest.mark.parametrize("where", ["list", "Units", "group", "file"])
def test_kelvin_is_found_wherever_a_file_says_it(tmp_path, four, where):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data/lightcones", data=four / 1000)
        text = np.array(["K"], dtype=h5py.string_dtype()) if where == "list" else "K"
        at = {"group": file["data"], "file": file}.get(where, data)
        at.attrs["Units" if where == "Units" else "units"] = text
    read = open_lightcones(tmp_path / "a.h5").data[:]
    np.testing.assert_allclose(read, four, rtol=1e-5)


def test_packed_cells_are_refused(tmp_path, four):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["lightcones"] = (four * 100).astype(np.int16)
        file["lightcones"].attrs["scale_factor"] = 0.01
    with pytest.raises(ValueError, match=r"a\.h5.*scale_factor 0.01"):
        open_lightcones(tmp_path / "a.h5")


def test_one_cone_with_an_axis_of_one_and_its_label(tmp_path, four):
    for k in range(3):
        np.savez(tmp_path / f"r{k}.npz", image=four[k : k + 1], label=BARE[k])
    found = open_lightcones(tmp_path)
    assert found.data.shape == (3, 6, 6, 20)
    np.testing.assert_array_equal(found.target, BARE[:3])


def test_a_list_of_folders(tmp_path, four):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", four + (name == "b"))
        (tmp_path / name / "._x.npy").write_bytes(b"what a Mac leaves behind")
    assert len(open_lightcones([tmp_path / "a", tmp_path / "b"]).data) == 8


@pytest.mark.parametrize("seed", [-np.inf, np.inf, 1e300, -1e300, np.nan, 2.0**63])
def test_seeds_that_are_no_integers_are_refused(tmp_path, four, seed):
    seeds = np.array([1, 2, 3, seed])
    with pytest.raises(Fault):
        take_seeds(seeds)
    with pytest.raises(ValueError, match="seeds: expected 4 whole numbers"):
        save_lightcones(tmp_path / "a.h5", four, seeds=seeds)


def test_seeds_at_the_ends_of_the_integers():
    seeds = np.array([-(2**63), 2**63 - 1])
    np.testing.assert_array_equal(take_seeds(seeds), seeds)
    with pytest.raises(Fault):
        take_seeds(np.array([2**63], dtype=np.uint64))


@pytest.mark.parametrize("path", ["", "a\0b", None, 3, [""]])
def test_what_can_be_no_path(tmp_path, path):
    with pytest.raises(InvalidParameterError, match="source: expected a path"):
        open_lightcones(path)
    with pytest.raises(InvalidParameterError, match="path: expected that of a file"):
        save_lightcones(path, np.zeros((2, 3)))
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(InvalidParameterError, match="path: expected that of a file"):
        convert_lightcones(tmp_path / "a.npy", path)
