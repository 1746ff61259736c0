"""Light cones in .npz and .npy files."""

import numpy as np
import pytest

from skatr_sk import open_lightcones
from skatr_sk.parameters import PARAMETER_NAMES
from tests.lightcones.layouts import HII_DIM, cone, thetas, values, write_npz


def test_npz_of_the_authors(tmp_path):
    given = thetas(12)
    for k, theta in enumerate(given):
        write_npz(tmp_path / f"run{k:02d}.npz", seed=k, theta=theta)
    cones = open_lightcones(tmp_path, validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data)[[3, 1]], [cone(3, 20), cone(1, 20)])
    np.testing.assert_allclose(cones.target, given)
    assert cones.target_names == list(PARAMETER_NAMES)
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


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy: unreadable: .*Python objects"):
        open_lightcones(tmp_path / "evil.npy")


def test_a_label_with_an_axis_too_many(tmp_path):
    np.savez(tmp_path / "run0.npz", image=values()[0], label=np.ones((2, 6)))
    with pytest.raises(ValueError, match=r"shape: a label of shape \(2, 6\); expected \(6,\)"):
        open_lightcones(tmp_path)


def test_an_npy_file_has_no_names(tmp_path):
    np.save(tmp_path / "signals.npy", np.ones((3, 8)))
    with pytest.raises(ValueError, match="no dataset 'image': an .npy file has one array alone"):
        open_lightcones(tmp_path / "signals.npy", dataset="image")
