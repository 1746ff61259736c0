"""Files side by side: their rows, units, prior boxes and what only some of them have."""

import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from tests.lightcones.layouts import N, values


def test_files_side_by_side(tmp_path):
    for k in range(2):
        X = np.random.default_rng(k).normal(size=(3, 5, 5, 4)).astype(np.float32)
        save_lightcones(tmp_path / f"{k}.h5", X, np.full(3, k), seeds=np.arange(3) + 10 * k)
    cones = open_lightcones([tmp_path / "1.h5", tmp_path / "0.h5"])
    assert cones.data.shape == (6, 5, 5, 4)
    np.testing.assert_array_equal(cones.target, [1, 1, 1, 0, 0, 0])  # 1-D as it was given
    np.testing.assert_array_equal(cones.seeds, [10, 11, 12, 0, 1, 2])


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
