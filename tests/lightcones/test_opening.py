"""open_lightcones: every format, and what is found wrong with files."""

import h5py
import numpy as np
import pytest

from skatr_sk import LightconeArray, open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.lightcones.handles import close_files
from skatr_sk.simulator.cosmology import comoving_distances
from tests.lightcones.layouts import (
    BOX_LEN,
    HII_DIM,
    REDSHIFT,
    cone,
    write_npz,
    write_v3,
    write_v4,
)

SIX = ["m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta"]


def thetas(n):
    rng = np.random.default_rng(5)
    return [
        tuple(rng.uniform([1, 0.2, 100, 38, 4, 10], [9, 0.4, 1500, 42, 5, 250])) for _ in range(n)
    ]


# ------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("version", ["3.3.1", "3.4.0"])
def test_version_3(tmp_path, version):
    given = thetas(3)
    for k, theta in enumerate(given):
        write_v3(tmp_path / f"LightCone_{k}.h5", seed=k, n_z=20 + k, theta=theta, version=version)
    with pytest.warns(UserWarning, match=r"of up to 22 slices are cropped to 20 by .*LightCone_0"):
        cones = open_lightcones(tmp_path, validate="full")
    assert isinstance(cones.data, LightconeArray)
    assert cones.data.shape == (3, HII_DIM, HII_DIM, 20)
    assert cones.target_names == SIX
    np.testing.assert_allclose(cones.target, given, rtol=1e-6)  # m_WDM is a float32 there
    np.testing.assert_array_equal(cones.seeds, [0, 1, 2])
    np.testing.assert_array_equal(np.asarray(cones.data)[2], cone(2, 22)[..., :20])
    assert cones.redshifts.shape == (3, 20)
    for z, theta in zip(cones.redshifts.astype(np.float64), given, strict=True):
        far = comoving_distances(z, theta[1])
        np.testing.assert_allclose(np.diff(far), BOX_LEN / HII_DIM, rtol=1e-3)
        assert z[0] == pytest.approx(REDSHIFT, rel=1e-6)
    assert len(cones.report) == 0


def test_version_4_is_trimmed_of_its_buffers(tmp_path):
    given = thetas(2)
    write_v4(tmp_path / "a.h5", seed=1, n_z=20, theta=given[0], low=2, high=1)
    write_v4(tmp_path / "b.h5", seed=2, n_z=18, theta=given[1], low=0, high=3)
    with pytest.warns(UserWarning, match=r"of up to 20 slices are cropped to 18 by .*b\.h5"):
        cones = open_lightcones(tmp_path, validate="full")
    assert cones.data.shape == (2, HII_DIM, HII_DIM, 18)
    np.testing.assert_array_equal(cones.data[0], cone(1, 23)[..., 2:20])
    np.testing.assert_array_equal(cones.data[1], cone(2, 21)[..., :18])
    # There is no warm dark matter in version 4.
    assert cones.target_names == SIX[1:]
    np.testing.assert_allclose(cones.target, [theta[1:] for theta in given])
    np.testing.assert_allclose(cones.redshifts[:, 0], REDSHIFT, rtol=1e-6)
    np.testing.assert_array_equal(cones.seeds, [1, 2])


def test_only_parameters_that_the_simulation_used(tmp_path):
    write_v3(tmp_path / "cold.h5", warm=False)
    assert open_lightcones(tmp_path / "cold.h5").target_names == SIX[1:]
    write_v3(tmp_path / "mass.h5", USE_MASS_DEPENDENT_ZETA=True)
    assert open_lightcones(tmp_path / "mass.h5").target_names == SIX[:4]
    write_v4(tmp_path / "new.h5", SOURCE_MODEL="E-INTEGRAL")
    assert open_lightcones(tmp_path / "new.h5").target_names == SIX[1:4]


def test_parameters_by_name_linear_ones_as_logarithms(tmp_path):
    write_v3(tmp_path / "a.h5", L_X=10**41.0, SIGMA_8=0.75)
    cones = open_lightcones(tmp_path / "a.h5", parameters=["SIGMA_8", "log10_L_X", "F_STAR10"])
    np.testing.assert_allclose(cones.target, [[0.75, 41.0, -1.3]])
    assert cones.target_names == ["SIGMA_8", "log10_L_X", "F_STAR10"]
    with pytest.raises(ValueError, match=r"a\.h5: parameters: no SIGMA_9; it has .*SIGMA_8"):
        open_lightcones(tmp_path / "a.h5", parameters=["SIGMA_9"])


def test_another_field_of_the_simulation(tmp_path):
    write_v3(tmp_path / "a.h5", seed=4)
    cones = open_lightcones(tmp_path / "a.h5", dataset="density")
    np.testing.assert_array_equal(cones.data[0], cone(1004, 20))


def test_npz_of_the_authors(tmp_path):
    given = thetas(12)
    for k, theta in enumerate(given):
        write_npz(tmp_path / f"run{k:02d}.npz", seed=k, theta=theta)
    cones = open_lightcones(tmp_path, validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data)[[3, 1]], [cone(3, 20), cone(1, 20)])
    np.testing.assert_allclose(cones.target, given)
    assert cones.target_names == SIX
    assert cones.redshifts is None and cones.seeds is None


def test_an_npz_is_looked_into_without_its_voxels(tmp_path):
    """Voxels whose checksum is wrong: nothing that reads them all gets past that."""
    write_npz(tmp_path / "run0.npz", n_z=400)
    data = bytearray((tmp_path / "run0.npz").read_bytes())
    data[10_000:11_000] = bytes(1000)
    (tmp_path / "run0.npz").write_bytes(data)
    shape = open_lightcones(tmp_path, validate=False).data.shape
    assert shape == (1, HII_DIM, HII_DIM, 400)
    with pytest.raises(ValueError, match=r"run0\.npz, row 0: unreadable: .*CRC"):
        open_lightcones(tmp_path)


def test_npy(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 5, 6)).astype(np.float32)
    np.save(tmp_path / "maps.npy", values)
    np.save(tmp_path / "f.npy", np.asfortranarray(values))
    np.save(tmp_path / "b.npy", values.astype(">f4"))
    np.save(tmp_path / "i.npy", (1000 * values).astype(np.int64))
    scaled = np.asarray(open_lightcones(tmp_path / "i.npy").data)
    np.testing.assert_array_equal(scaled, np.trunc(1000 * values).astype(np.float32))
    for name in ("maps.npy", "f.npy", "b.npy"):
        cones = open_lightcones(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(cones.data[[6, 0, 1]]), values[[6, 0, 1]])
        assert cones.target is None


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


def test_files_side_by_side(tmp_path):
    for k in range(2):
        X = np.random.default_rng(k).normal(size=(3, 5, 5, 4)).astype(np.float32)
        save_lightcones(tmp_path / f"{k}.h5", X, np.full(3, k), seeds=np.arange(3) + 10 * k)
    cones = open_lightcones([tmp_path / "1.h5", tmp_path / "0.h5"])
    assert cones.data.shape == (6, 5, 5, 4)
    np.testing.assert_array_equal(cones.target, [1, 1, 1, 0, 0, 0])  # 1-D as it was given
    np.testing.assert_array_equal(cones.seeds, [10, 11, 12, 0, 1, 2])


def test_as_frame(tmp_path):
    pytest.importorskip("pandas")
    write_v3(tmp_path / "a.h5")
    cones = open_lightcones(tmp_path, as_frame=True)
    assert list(cones.target.columns) == SIX
    assert list(cones.report.columns) == ["file", "row", "fault", "detail"]


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy: unreadable: .*Python objects"):
        open_lightcones(tmp_path / "evil.npy")


# ------------------------------------------------------------------------------ faults


def folder_of(tmp_path, n=6):
    for k, theta in enumerate(thetas(n)):
        write_v3(tmp_path / f"c{k}.h5", seed=k, theta=theta)
    return tmp_path


def edit(path, change):
    close_files()
    with h5py.File(path, "r+") as file:
        change(file)


def _truncate(path):
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def _no_box(file):
    del file["lightcones/brightness_temp"]


def _wide(file):
    _no_box(file)
    file["lightcones/brightness_temp"] = cone(0, 20, n_sky=5)


def _short(file):
    _no_box(file)
    del file["distances"]
    file["lightcones/brightness_temp"] = cone(0, 4)
    file["distances"] = 8000 + 7.5 * np.arange(4)


def _coarse(file):
    file["distances"][:] = 8000 + 15 * np.arange(20)


def _farther(file):
    file["distances"][:] = file["distances"][:] + 500


def _backwards(file):
    file["distances"][:] = file["distances"][:][::-1]


def _one_nan(file):
    file["lightcones/brightness_temp"][1, 2, 3] = np.nan


def _empty_end(file):
    file["lightcones/brightness_temp"][..., 15:] = 0


def _cold(file):
    file["_globals"].attrs["P_CUTOFF"] = 0


def _nan_parameter(file):
    file["astro_params"].attrs["L_X"] = np.nan


def _unfinished(file):
    file.attrs["current_redshift"] = 11.0


FAULTS = {
    "truncated": (_truncate, "unreadable", "truncated"),
    "no text": (lambda p: p.write_bytes(b"not HDF5"), "unreadable", "signature"),
    "empty": (lambda p: p.write_bytes(b""), "unreadable", ""),
    "gone": (lambda p: p.unlink(), "missing", "no such file"),
    "missing dataset": (_no_box, "missing", "lightcones/brightness_temp; it has density"),
    "shape": (_wide, "shape", "5, 5) cells; most have (4, 4)"),
    "short": (_short, "shape", "4 slices; most have about 20"),
    "coarse": (_coarse, "grid", "15 Mpc"),
    "farther": (_farther, "grid", "rising from 6.000"),
    "backwards": (_backwards, "grid", "rising"),
    "nan": (_one_nan, "nan", "1 NaN cells"),
    "zeros": (_empty_end, "zeros", "5 slices of zeros alone (first: 15"),
    "not used": (_cold, "parameters", "no m_WDM, which most have"),
    "parameter": (_nan_parameter, "parameters", "not all finite"),
    "unfinished": (_unfinished, "unfinished", "redshift 11.00, not 6.00"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(tmp_path, name):
    change, kind, detail = FAULTS[name]
    folder = folder_of(tmp_path)
    bad = folder / "c3.h5"
    if name in ("truncated", "no text", "empty", "gone"):
        change(bad)
    else:
        edit(bad, change)
    paths = [folder / f"c{k}.h5" for k in range(6)]
    with pytest.raises(ValueError, match=r"(?s)1 thing is wrong with .*c3\.h5.*: " + kind):
        open_lightcones(paths, validate="full")
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(paths, validate="full", on_bad="drop")
    (line,) = cones.report
    assert line["file"] == str(bad) and line["fault"] == kind
    assert detail in line["detail"]
    left = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(cones.seeds, left)
    assert len(cones.data) == len(cones.target) == len(cones.redshifts) == 5
    np.testing.assert_array_equal(np.asarray(cones.data), [cone(k, 20) for k in left])


def test_duplicates(tmp_path):
    folder = folder_of(tmp_path, n=4)
    (folder / "d.h5").write_bytes((folder / "c1.h5").read_bytes())
    for validate in ("fast", "full"):
        with pytest.raises(ValueError, match=r"d\.h5, row 0: duplicate: the same values as .*c1"):
            open_lightcones(folder, validate=validate)
    assert len(open_lightcones(folder, validate=False).data) == 5
    # The same seed and parameters, but other values: noise of its own, say.
    edit(
        folder / "d.h5", lambda file: file["lightcones/brightness_temp"].write_direct(cone(77, 20))
    )
    assert len(open_lightcones(folder).data) == 5


def test_duplicates_are_found_by_the_index_alone(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 4, 4, 6)).astype(np.float32)
    X[31] = X[7]
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.raises(ValueError, match=r"row 31: duplicate: .*row 7"):
        open_lightcones(tmp_path / "a.h5")


def test_the_quick_check_reads_few_rows_and_the_full_one_all(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 4, 4, 6)).astype(np.float32)
    X[1, 0, 0, 0] = np.nan
    save_lightcones(tmp_path / "a.h5", X)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 40
    with pytest.raises(ValueError, match="row 1: nan: 1 NaN cells, 0 infinite"):
        open_lightcones(tmp_path / "a.h5", validate="full")
    X[0] = np.inf
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.raises(ValueError, match="row 0: nan: 0 NaN cells, 96 infinite"):
        open_lightcones(tmp_path / "a.h5")


def test_an_ionised_near_end_is_no_fault(tmp_path):
    X = np.stack([cone(k, 30) for k in range(3)])
    X[0, ..., :9] = 0
    X[0, 1, 2, 4] = -1.0  # a last neutral island, with zeros beyond it
    X[1, ..., 12] = 0  # in the midst of a signal
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.warns(UserWarning, match=r"row 1: zeros: 1 slices of zeros alone \(first: 12\)"):
        cones = open_lightcones(tmp_path / "a.h5", validate="full", on_bad="drop")
    np.testing.assert_array_equal(np.asarray(cones.data), X[[0, 2]])


def test_a_damaged_row_is_named(tmp_path):
    """A flipped bit in one chunk: its checksum tells, and the other rows are read."""
    X = np.random.default_rng(0).normal(size=(5, 6, 6, 40)).astype(np.float32)
    path = tmp_path / "a.h5"
    save_lightcones(path, X, compression="gzip")
    with h5py.File(path) as file:
        info = file["brightness_temp"].id.get_chunk_info(0)
        rows = file["brightness_temp"].chunks[0]
    with open(path, "r+b") as stream:
        stream.seek(info.byte_offset + info.size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=r"a\.h5, row 0: unreadable: .*row 0: cannot be read"):
        open_lightcones(path, validate="full")
    if rows < 5:
        with pytest.warns(UserWarning, match="left out"):
            cones = open_lightcones(path, validate="full", on_bad="drop")
        np.testing.assert_array_equal(np.asarray(cones.data), X[rows:])


def test_values_that_an_index_is_not_of(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 6, 6, 4)).astype(np.float32)
    save_lightcones(tmp_path / "a.h5", X)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["brightness_temp"][:] = X + 1
    with pytest.raises(ValueError, match=r"a\.h5: digest: the values of row 0 are not those"):
        open_lightcones(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="row .*: its values do not have the digest"):
        open_lightcones(tmp_path / "a.h5", validate=False).data.row_digests()
    close_files()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["brightness_temp"][:] = X
        file["brightness_temp"][17, 0, 0, 0] = 0.5
    with pytest.warns(UserWarning, match="row 17: digest"):
        cones = open_lightcones(tmp_path / "a.h5", validate="full", on_bad="drop")
    assert len(cones.report) == 1 and len(cones.data) == 29


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
    with pytest.raises(TypeError, match="path or a list of paths; found 3"):
        open_lightcones(3)
    with pytest.raises(InvalidParameterError, match=r"2 invalid.*\n.*'full'.*\n.*'drop'"):
        open_lightcones(tmp_path, validate="yes", on_bad="skip")


@pytest.mark.slow
def test_a_file_of_21cmfast_itself(tmp_path):
    """One real light cone of whatever version is installed."""
    p21c = pytest.importorskip("py21cmfast")
    if p21c.__version__ < "4":
        with p21c.config.use(direc=str(tmp_path)):
            made = p21c.run_lightcone(
                redshift=7.0,
                max_redshift=9.0,
                user_params={"HII_DIM": 16, "BOX_LEN": 50},
                random_seed=3,
                write=False,
            )
        made.save(str(tmp_path / "cone.h5"), direc=str(tmp_path))
        redshifts = made.lightcone_redshifts
    else:
        inputs = p21c.InputParameters.from_template("simple-small", random_seed=3)
        lightconer = p21c.RectilinearLightconer.with_equal_cdist_slices(
            min_redshift=7.0, max_redshift=9.0, resolution=inputs.simulation_options.cell_size
        )
        made = p21c.run_lightcone(lightconer=lightconer, inputs=inputs, write=False)
        made.save(tmp_path / "cone.h5")
        redshifts = made.lightcone_redshifts
    cones = open_lightcones(tmp_path / "cone.h5")
    np.testing.assert_allclose(cones.data[0], made.lightcones["brightness_temp"])
    np.testing.assert_allclose(cones.redshifts[0], redshifts, rtol=1e-3)
    assert cones.seeds[0] == 3
