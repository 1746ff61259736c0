"""One cone a file, many in an archive, and labels under all the names that people use."""

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones
from skatr_sk.parameters import PARAMETER_NAMES
from tests.lightcones.layouts import THETA, cone, thetas

N, N_Z = 5, 20
CONES = np.stack([cone(k, N_Z) for k in range(N)])
GIVEN = np.array(thetas(N))


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


def save_npy(path, cells, label):
    np.save(path.with_suffix(".npy"), cells)


def save_npz(path, cells, label):
    np.savez(path.with_suffix(".npz"), X=cells, parameter=label)


def save_packed(path, cells, label):
    np.savez_compressed(path.with_suffix(".npz"), data=cells, params=label[None])


def save_h5(path, cells, label):
    write_h5(path.with_suffix(".h5"), brightness_temp=cells, label=label)


def save_groups(path, cells, label):
    z = np.linspace(6, 7, N_Z)
    given = {"lightcone/brightness_temp": cells, "lightcone/lightcone_redshifts": z}
    names = np.array(PARAMETER_NAMES, dtype="S")
    write_h5(path.with_suffix(".h5"), **given, **{"params/values": label, "params/names": names})


def save_text(path, cells, label):
    names = np.array(PARAMETER_NAMES, dtype=h5py.string_dtype())
    given = {"lightcone": cells, "params/values": label, "params/names": names}
    write_h5(path.with_suffix(".h5"), **given)


def save_scalars(path, cells, label):
    each = {f"lightcone_params/{n}": v for n, v in zip(PARAMETER_NAMES, label, strict=True)}
    write_h5(path.with_suffix(".h5"), cone=cells, **each)


ONE = [save_npy, save_npz, save_packed, save_h5, save_groups, save_text, save_scalars]


@pytest.mark.parametrize("save", ONE)
@pytest.mark.parametrize("asked", [True, None])
def test_one_cone_a_file(tmp_path, save, asked):
    for k in range(N):
        save(tmp_path / f"run{k}", CONES[k], GIVEN[k])
    cones = open_lightcones(tmp_path, one_per_file=asked, validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data[[3, 0]]), CONES[[3, 0]])
    if save is save_npy:
        assert cones.target is None
        return
    np.testing.assert_allclose(cones.target, GIVEN)
    assert set(cones.target_names) == set(PARAMETER_NAMES)
    assert (cones.redshifts is not None) == (save is save_groups)


def test_one_file_of_three_axes_is_asked_about(tmp_path):
    np.save(tmp_path / "run.npy", CONES[0])
    path = tmp_path / "run.npy"
    with pytest.raises(ValueError, match=r"one light cone, or 4 maps\? one_per_file=True reads"):
        open_lightcones(path)
    assert open_lightcones(path, one_per_file=True).data.shape == (1, 4, 4, 20)
    assert open_lightcones(path, one_per_file=False).data.shape == (4, 4, 20)
    with pytest.raises(ValueError, match="one_per_file: expected True or False or None, found 1"):
        open_lightcones(path, one_per_file=1)


def test_files_of_maps_and_of_boxes(tmp_path):
    """Unlike in number: stacks of maps. Alike in all: cubes, or maps of one number, are asked."""
    rng = np.random.default_rng(0)
    for n in (3, 5):
        np.save(tmp_path / f"maps{n}.npy", rng.normal(size=(n, 6, 6)))
    assert open_lightcones(tmp_path).data.shape == (8, 6, 6)
    for shape in ((6, 6, 6), (3, 6, 6), (9, 6, 6), (3, 5, 6)):
        (tmp_path / str(shape)).mkdir()
        for k in range(3):
            np.save(tmp_path / str(shape) / f"{k}.npy", rng.normal(size=shape))
        mend = r".*moveaxis\(cells, 0, -1\)" if shape[0] == 9 else ""
        with pytest.raises(ValueError, match=f"one_per_file: expected True or False{mend}"):
            open_lightcones(tmp_path / str(shape))
    assert open_lightcones(tmp_path / str((6, 6, 6)), one_per_file=True).data.shape == (3, 6, 6, 6)


def test_maps_with_labels_are_maps(tmp_path):
    """A row of labels for each, whatever the sky."""
    write_h5(tmp_path / "a.h5", data=CONES[0], labels=np.random.default_rng(0).uniform(size=(4, 2)))
    cones = open_lightcones(tmp_path / "a.h5")
    assert cones.data.shape == (4, 4, 20) and cones.target.shape == (4, 2)


def test_one_strange_file_takes_no_folder_down(tmp_path):
    """A coeval box among cones, however many rows it would have: files vote."""
    for k in range(N):
        np.save(tmp_path / f"run{k}.npy", CONES[k])
    np.save(tmp_path / "zbox.npy", np.random.default_rng(0).normal(size=(64, 64, 64)))
    with pytest.raises(ValueError, match=r"1 thing is wrong .*\n.*zbox\.npy: shape"):
        open_lightcones(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    np.testing.assert_array_equal(np.asarray(cones.data), CONES)
    for k in range(N):
        (tmp_path / f"run{k}.npy").unlink()
        write_h5(tmp_path / f"run{k}.h5", image=CONES[k])
    with pytest.raises(ValueError, match=r"zbox\.npy: axes: cells of shape \(64, 64, 64\); one_pe"):
        open_lightcones(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("X", "y"), ("images", "labels"), ("arr_0", "theta")])
def test_many_cones_in_an_archive(tmp_path, save, names):
    cells, labels = names
    path, z = tmp_path / "all.npz", np.linspace(6, 7, N_Z)
    save(path, **{cells: CONES, labels: GIVEN}, redshifts=z, seeds=np.arange(5.0))
    cones = open_lightcones(path, validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data[[4, 0, 0, 2]]), CONES[[4, 0, 0, 2]])
    np.testing.assert_array_equal(cones.data[1], CONES[1])
    np.testing.assert_allclose(cones.target, GIVEN)
    np.testing.assert_allclose(cones.redshifts, np.tile(z, (N, 1)))
    np.testing.assert_array_equal(cones.seeds, np.arange(5))


def test_one_parameter_of_many_cones(tmp_path):
    np.savez(tmp_path / "a.npz", X=CONES, y=np.arange(5.0), names=["zeta"])
    cones = open_lightcones(tmp_path / "a.npz")
    assert cones.target.shape == (5,) and cones.target_names == ["zeta"]
    np.savez(tmp_path / "b.npz", X=CONES)
    assert open_lightcones(tmp_path / "b.npz").target is None


def test_an_archive_stored_by_columns(tmp_path):
    columns = np.asfortranarray(CONES)
    np.savez(tmp_path / "a.npz", X=columns)
    np.testing.assert_array_equal(np.asarray(open_lightcones(tmp_path / "a.npz").data), CONES)
    np.savez_compressed(tmp_path / "b.npz", X=columns)
    with pytest.raises(ValueError, match=r"b\.npz: shape: packed cells .*ascontiguousarray"):
        open_lightcones(tmp_path / "b.npz")


def test_a_stack_in_a_group_of_light_cones(tmp_path):
    labels = np.random.default_rng(0).uniform(size=(N, 3))
    given = {"lightcones/brightness_temp": CONES, "lightcone_params/physparams": labels}
    write_h5(tmp_path / "db.h5", **given)
    for name in (None, "brightness_temp", "lightcones/brightness_temp"):
        cones = open_lightcones(tmp_path / "db.h5", dataset=name)
        np.testing.assert_array_equal(np.asarray(cones.data), CONES)
        np.testing.assert_array_equal(cones.target, labels)


def test_labels_that_do_not_fit_one_cone(tmp_path):
    write_h5(tmp_path / "a.h5", image=CONES[0], params=np.ones((2, 6)))
    with pytest.raises(ValueError, match=r"a\.h5: shape: a label of shape \(2, 6\); expected \(6"):
        open_lightcones(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"shape: cells of shape \(5, 4, 4, 20\); expected that"):
        write_h5(tmp_path / "b.h5", data=CONES)
        open_lightcones(tmp_path / "b.h5", one_per_file=True)


def test_the_line_of_sight_is_last(tmp_path):
    first = np.moveaxis(CONES, -1, 1)
    np.save(tmp_path / "a.npy", first)
    np.savez(tmp_path / "b.npz", image=first[0], label=THETA)
    square = np.random.default_rng(0).normal(size=(N, 6, 20, 20))  # a near end alone
    write_h5(tmp_path / "c.h5", data=square, redshifts=np.linspace(6, 7, 6))
    wanted = {"a.npy": "(cells, 1, -1)", "b.npz": "(cells, 0, -1)", "c.h5": "(cells, 1, -1)"}
    for name, mend in wanted.items():
        with pytest.raises(ValueError, match="axes: ") as raised:
            open_lightcones(tmp_path / name)
        assert f"write numpy.moveaxis{mend} instead" in str(raised.value)


def test_a_stack_of_one_is_one_cone(tmp_path):
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", CONES[k : k + 1])
        write_h5(tmp_path / f"{k}.h5", data=CONES[k + 2 : k + 3])
    for asked in (True, None):
        cones = open_lightcones(tmp_path, one_per_file=asked)
        np.testing.assert_array_equal(np.asarray(cones.data), CONES[[2, 0, 3, 1]])


def test_a_group_of_light_cones_without_the_inputs_of_a_simulation(tmp_path):
    """Distances alone do not make it one of 21cmFAST: its labels lie elsewhere."""
    for k in range(2):
        given = {"lightcones/brightness_temp": CONES[k], "lightcone_distances": np.arange(20.0)}
        write_h5(tmp_path / f"{k}.h5", **given, **{"lightcone_params/theta": GIVEN[k]})
    np.testing.assert_array_equal(open_lightcones(tmp_path).target, GIVEN[:2])


@pytest.mark.parametrize("name", ["Labels", "PARAMETERS", "Theta"])
def test_names_of_labels_in_capitals(tmp_path, name):
    np.savez(tmp_path / "a.npz", image=CONES, **{name: GIVEN})
    np.testing.assert_array_equal(open_lightcones(tmp_path / "a.npz").target, GIVEN)


def test_parameters_by_their_names_beside_the_cells(tmp_path):
    columns = dict(zip(PARAMETER_NAMES[::-1], GIVEN.T[::-1], strict=True))
    np.savez(tmp_path / "a.npz", image=CONES, **columns)
    cones = open_lightcones(tmp_path / "a.npz")
    assert cones.target_names == list(PARAMETER_NAMES)
    np.testing.assert_array_equal(cones.target, GIVEN)
    np.savez(tmp_path / "b.npz", image=CONES[0], m_WDM=3.0, Omega_m=0.3)
    np.testing.assert_array_equal(open_lightcones(tmp_path / "b.npz").target, [[3.0, 0.3]])


def test_what_may_be_labels_is_noted(tmp_path):
    np.savez(tmp_path / "a.npz", CONES, GIVEN)
    with pytest.warns(UserWarning, match=r"not read: arr_1 \(5, 6\); if these are labels, save"):
        assert open_lightcones(tmp_path / "a.npz").target is None
    write_h5(tmp_path / "b.h5", data=CONES)
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file.attrs["zeta"] = 30.0
    with pytest.warns(UserWarning, match="attributes are no labels, not read: zeta; save"):
        assert open_lightcones(tmp_path / "b.h5").target is None


@pytest.mark.parametrize("axis", [-1, 1])
def test_an_axis_of_a_channel_is_asked_about(tmp_path, axis):
    np.save(tmp_path / "a.npy", np.expand_dims(CONES, axis))
    with pytest.warns(
        UserWarning, match=rf"one of channels\? Then save .*squeeze\(cells, {axis}\)"
    ):
        open_lightcones(tmp_path / "a.npy", validate=False)
