"""The bundled light cones, and how they were made."""

import importlib.util
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from skatr_sk import load_lightcones, open_lightcones
from skatr_sk.fields import digest_rows
from skatr_sk.lightcones import bundled

ROOT = Path(__file__).resolve().parents[2]

FULL_SIZE = ROOT.parent / "shared" / "data" / "lightcones_lr.h5"

DATA = Path(bundled.__file__).parent / "data"

BUNDLE = DATA / "lightcones_lr_14x14x90.h5"

NAMES = ["m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta"]

BOUNDS = [[0.3, 10], [0.2, 0.4], [100, 1500], [38, 42], [4, 5.3], [10, 250]]


@pytest.fixture(scope="module")
def cones():
    return load_lightcones()


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A copy of the bundled files that a test may damage."""
    for path in (BUNDLE, DATA / "README.md"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(bundled, "_data_dir", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def script():
    """The conversion script as a module."""
    spec = importlib.util.spec_from_file_location(
        "run_bundle_lightcones", ROOT / "examples" / "run_bundle_lightcones.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A file of three full-size light cones of noise, laid out as the real one."""
    path = tmp_path_factory.mktemp("full") / "full.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        brightness = rng.normal(-50, 40, (3, 28, 28, 470)).astype(np.float16)
        file["brightness_temp"] = brightness
        file["brightness_temp"].attrs.update(cell_mpc=200 / 28, units="mK")
        file["redshifts"] = np.linspace(5, [16, 20, 30], 470, axis=1).astype(np.float32)
        file["parameters"] = rng.uniform(size=(3, 6))
        file["parameters"].attrs.update(names=NAMES, units=[""] * 6, bounds=np.array(BOUNDS))
        file["seed"] = np.array([3, 1, 2])
        file["global_xH"] = rng.uniform(size=(3, 20)).astype(np.float32)
        file["node_redshifts"] = np.tile(np.arange(24.0, 4.0, -1.0, dtype=np.float32), (3, 1))
    return path


def by_hand(cone):
    """Block means over 2 x 2 x 5 cells, written another way than `coarsen` does."""
    cone = cone[..., :450].astype(np.float64)
    for axis, size in ((0, 2), (1, 2), (2, 5)):
        starts = np.arange(0, cone.shape[axis], size)
        cone = np.add.reduceat(cone, starts, axis=axis) / size
    return cone


def test_shapes_and_types(cones):
    expected = {
        "data": ((229, 14, 14, 90), np.float32),
        "target": ((229, 6), np.float64),
        "target_bounds": ((6, 2), np.float64),
        "redshifts": ((229, 90), np.float32),
        "seeds": ((229,), np.int64),
        "cell_size": ((3,), np.float64),
        "global_xH": ((229, 20), np.float32),
        "node_redshifts": ((229, 20), np.float32),
    }
    found = {name: (cones[name].shape, cones[name].dtype) for name in expected}
    assert found == expected
    assert set(cones) == {*expected, "grid", "target_names", "target_units", "DESCR"}
    assert cones.grid.cell_size == tuple(cones.cell_size) and len(cones.grid.redshifts) == 90
    assert abs(cones.grid.origin - 4.9934) < 1e-4  # half a simulated cell before redshift 5


def test_parameters_are_named_and_inside_their_bounds(cones):
    assert cones.target_names == NAMES
    assert all(type(text) is str for text in cones.target_names + cones.target_units)
    assert cones.target_units == ["keV", "", "eV", "log10(erg/s/(Msun/yr))", "log10(K)", ""]
    np.testing.assert_array_equal(cones.target_bounds, BOUNDS)
    low, high = cones.target_bounds.T
    assert np.all((low <= cones.target) & (cones.target <= high))
    # A uniform draw of this size nearly fills its box; swapped columns would not.
    assert np.all(np.ptp(cones.target, axis=0) > 0.9 * (high - low))


def test_nearest_redshift_comes_first(cones):
    assert np.all(np.diff(cones.redshifts, axis=1) > 0)
    assert np.all((cones.redshifts[:, 0] > 5.0) & (cones.redshifts[:, 0] < 5.1))
    # Where the simulation has ionised everything by its last redshift, its near end is dark;
    # the nearest cells lie just before that redshift, so a trace may be left.
    nearest_node = cones.global_xH[:, -1]
    nearest = np.abs(cones.data[..., 0]).max(axis=(1, 2))
    assert np.all(nearest[nearest_node == 0] < 0.1)
    assert np.all(nearest[nearest_node > 0.1] > 1)


def test_larger_matter_density_reaches_larger_redshifts(cones):
    # The same comoving depth is more redshift where the universe expands faster.
    order = np.argsort(cones.target[:, 1])
    assert np.all(np.diff(cones.redshifts[order, -1]) > 0)


def test_each_cone_has_its_own_seed(cones):
    assert len(np.unique(cones.seeds)) == len(cones.seeds)
    assert len(np.unique(cones.data.reshape(229, -1), axis=0)) == 229


def test_brightness_is_physical(cones):
    assert np.isfinite(cones.data).all()
    # Absorption is bounded by gas that cools adiabatically, emission by a saturated signal.
    assert -500 < cones.data.min() < -200
    assert 10 < cones.data.max() < 100


def test_cells_fill_the_box(cones):
    np.testing.assert_allclose(cones.cell_size, [200 / 14, 200 / 14, 5 * 200 / 28])


def test_description_states_the_grid(cones):
    for fact in ("14 x 14 x 90", "14.3 x 14.3 x 35.7 Mpc", "2 x 2 x 5", "21cmFAST 3.4.0"):
        assert fact in cones.DESCR


def test_return_X_y(cones):
    X, y = load_lightcones(return_X_y=True)
    np.testing.assert_array_equal(X, cones.data)
    np.testing.assert_array_equal(y, cones.target)


def test_loads_are_independent(cones):
    other = load_lightcones()
    other.data[:] = 0
    other.target[:] = 0
    fresh = load_lightcones()
    np.testing.assert_array_equal(fresh.data, cones.data)
    np.testing.assert_array_equal(fresh.target, cones.target)


def test_as_frame(cones):
    pandas = pytest.importorskip("pandas")
    framed = load_lightcones(as_frame=True)
    assert isinstance(framed.target, pandas.DataFrame)
    assert list(framed.target.columns) == NAMES
    np.testing.assert_array_equal(framed.target.to_numpy(), cones.target)
    assert isinstance(framed.data, np.ndarray)
    _, y = load_lightcones(return_X_y=True, as_frame=True)
    pandas.testing.assert_frame_equal(y, framed.target)


def test_as_frame_without_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "skatr_sk\[pandas\]"'):
        load_lightcones(as_frame=True)


def test_bundle_is_small():
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 12e6


@pytest.mark.skipif(not FULL_SIZE.is_file(), reason="needs the full-size light cones")
def test_bundle_holds_the_block_means_of_every_full_size_cone(cones):
    with h5py.File(FULL_SIZE, "r") as full:
        np.testing.assert_array_equal(full["seed"][:], cones.seeds)
        np.testing.assert_array_equal(full["parameters"][:], cones.target)
        np.testing.assert_array_equal(full["redshifts"][:, 2:450:5], cones.redshifts)
        for row in (0, 1, 114, 228):
            expected = by_hand(full["brightness_temp"][row])
            # Half a unit in the last place of float16 is 2**-11 of the value.
            np.testing.assert_allclose(cones.data[row], expected, rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("name", [BUNDLE.name, "README.md"])
def test_missing_file(data_dir, name):
    (data_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} not found in .*[Rr]einstall"):
        load_lightcones()


def test_truncated_file(data_dir):
    path = data_dir / BUNDLE.name
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(OSError, match=rf"{path.name} is damaged.*[Rr]einstall"):
        load_lightcones()


def test_file_of_another_kind(data_dir):
    # What a clone without large files holds in place of one.
    (data_dir / BUNDLE.name).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(OSError, match=r"is damaged.*[Rr]einstall"):
        load_lightcones()


@pytest.mark.parametrize("name", ["brightness_temp", "parameters", "redshifts", "seed"])
def test_flipped_bit(data_dir, name):
    path = data_dir / BUNDLE.name
    with h5py.File(path, "r") as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"is damaged.*[Rr]einstall"):
        load_lightcones()


@pytest.mark.parametrize("name", ["brightness_temp", "parameters", "redshifts", "seed"])
def test_missing_dataset(data_dir, name):
    with h5py.File(data_dir / BUNDLE.name, "a") as file:
        del file[name]
    with pytest.raises(OSError, match=rf"is damaged.*{name}.*[Rr]einstall"):
        load_lightcones()


@pytest.mark.parametrize("name", ["brightness_temp", "parameters", "redshifts"])
def test_values_that_are_not_in_the_file(data_dir, name):
    layout = h5py.VirtualLayout((229, 6), np.float64)
    layout[:] = h5py.VirtualSource(".", name, layout.shape)  # of itself
    with h5py.File(data_dir / BUNDLE.name, "a") as file:
        del file[name]
        file.create_virtual_dataset(name, layout)
    with pytest.raises(OSError, match=rf"is damaged.*{name} is a virtual dataset.*[Rr]einstall"):
        load_lightcones()


def test_conversion_makes_what_the_loader_reads(script, full_size, data_dir):
    destination = data_dir / BUNDLE.name
    script.bundle(full_size, destination)
    cones = load_lightcones()
    with h5py.File(full_size, "r") as full:
        expected = np.stack([by_hand(cone) for cone in full["brightness_temp"]])
        np.testing.assert_allclose(cones.data, expected, rtol=2**-11)
        np.testing.assert_array_equal(cones.redshifts, full["redshifts"][:, 2:450:5])
        np.testing.assert_array_equal(cones.target, full["parameters"][:])
        np.testing.assert_array_equal(cones.seeds, [3, 1, 2])
        np.testing.assert_array_equal(cones.global_xH, full["global_xH"][:])
        np.testing.assert_array_equal(cones.node_redshifts, full["node_redshifts"][:])
    assert cones.target_names == NAMES
    np.testing.assert_allclose(cones.cell_size, [200 / 14, 200 / 14, 5 * 200 / 28])


def test_conversion_repeats_itself_to_the_byte(script, full_size, tmp_path):
    script.bundle(full_size, tmp_path / "first.h5")
    script.bundle(full_size, tmp_path / "second.h5")
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_failed_conversion_leaves_no_trace(script, full_size, tmp_path):
    incomplete = tmp_path / "incomplete.h5"
    incomplete.write_bytes(full_size.read_bytes())
    with h5py.File(incomplete, "a") as file:
        del file["node_redshifts"]
    destination = tmp_path / "out" / "small.h5"
    destination.parent.mkdir()
    destination.write_text("what was there before")
    with pytest.raises(KeyError):
        script.bundle(incomplete, destination)
    assert list(destination.parent.iterdir()) == [destination]
    assert destination.read_text() == "what was there before"


def test_the_bundled_file_opens_as_any_other(cones):
    """Chunks of many cones, compressed; names, units, bounds, redshifts and seeds are found."""
    stored = open_lightcones(BUNDLE, validate="full")
    assert stored.data.dtype == np.float16
    rows = np.random.default_rng(0).permutation(len(cones.data))[:40]
    np.testing.assert_array_equal(np.asarray(stored.data[rows]), cones.data[rows])
    np.testing.assert_array_equal(stored.target, cones.target)
    np.testing.assert_array_equal(stored.redshifts, cones.redshifts)
    np.testing.assert_array_equal(stored.seeds, cones.seeds)
    np.testing.assert_array_equal(stored.target_bounds, cones.target_bounds)
    assert stored.target_names == cones.target_names
    assert stored.target_units == cones.target_units
    assert stored.data.digests() == digest_rows(cones.data)
