"""DataArrays of xarray: out, and in again with their coordinates."""

import warnings

import numpy as np
import pytest

from skatr_sk import AssumedGridWarning, load_lightcones, open_lightcones, save_lightcones
from skatr_sk.fields import check_numbers, from_xarray
from skatr_sk.lightcones import to_xarray

xarray = pytest.importorskip("xarray")


def few(n=6):
    cones = load_lightcones()
    for name in ("data", "target", "redshifts", "seeds"):
        cones[name] = cones[name][:n]
    return cones


def test_out_and_in_again(tmp_path):
    cones = few()
    array = to_xarray(cones)
    assert array.dims == ("lightcone", "x", "y", "z") and array.attrs["units"] == "mK"
    bright = array.sel(lightcone=array.zeta > np.median(array.zeta))
    assert bright.shape == (3, 14, 14, 90)
    assert array.log10_T_vir.attrs["units"] == "log10(K)"
    save_lightcones(tmp_path / "a.h5", array)
    found = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(np.asarray(found.data), cones.data)
    np.testing.assert_allclose(found.target, cones.target)
    assert found.target_names == cones.target_names
    assert found.target_units == cones.target_units
    np.testing.assert_allclose(found.redshifts, cones.redshifts, rtol=1e-6)
    np.testing.assert_array_equal(found.seeds, cones.seeds)


def test_a_grid_for_each_and_maps_and_signals():
    X = np.random.default_rng(0).normal(size=(3, 4, 4, 5))
    grids = np.linspace(6, 7, 5) + np.arange(3)[:, None]
    array = to_xarray({"data": X, "redshifts": grids})
    np.testing.assert_array_equal(array.redshift.to_numpy(), grids)
    assert to_xarray({"data": X[..., 0]}).dims == ("lightcone", "x", "y")
    assert to_xarray({"data": X[:, 0, 0]}).dims == ("lightcone", "z")


def test_an_array_says_which_axis_is_which():
    """Far first, in kelvin, and the line of sight in front."""
    X = np.random.default_rng(0).normal(size=(3, 4, 4, 5))
    turned = np.moveaxis(X[..., ::-1] / 1000, -1, 1)
    coords = {"redshift": np.linspace(8, 7, 5)}
    dims = ("run", "redshift", "x", "y")
    array = xarray.DataArray(turned, coords, dims, attrs={"units": "K"})
    np.testing.assert_allclose(check_numbers(array, "X"), X)
    plain = xarray.DataArray(X, dims=("run", "x", "y", "slice"))
    np.testing.assert_array_equal(check_numbers(plain, "X"), X)


@pytest.mark.parametrize("name", ["distance", "frequency", "los"])
def test_the_near_end_is_told_by_any_coordinate(name):
    X = np.random.default_rng(0).normal(size=(3, 4, 4, 5))
    z = np.linspace(6, 7, 5)
    places = {"distance": 100 * z, "frequency": 1420.4 / (1 + z), "los": np.arange(5)}[name]
    for cells, along in ((X, places), (X[..., ::-1], places[::-1])):
        array = xarray.DataArray(cells, {name: along}, ("run", "x", "y", name))
        np.testing.assert_array_equal(check_numbers(array, "X"), X)


def test_labels_are_kept_wherever_the_line_of_sight_is(tmp_path):
    array = to_xarray(few()).transpose("z", "lightcone", "x", "y")
    save_lightcones(tmp_path / "a.h5", array)
    found, cones = open_lightcones(tmp_path / "a.h5"), few()
    np.testing.assert_array_equal(np.asarray(found.data), cones.data)
    np.testing.assert_allclose(found.target, cones.target)
    np.testing.assert_array_equal(found.seeds, cones.seeds)


@pytest.mark.parametrize("unit", ["uK", "Jy/beam", "degK", "MK"])
def test_other_units_are_refused(unit):
    X = np.ones((3, 4, 4, 5))
    with pytest.raises(ValueError, match=f"in mK or K, found a DataArray with the units '{unit}'"):
        check_numbers(xarray.DataArray(X, dims=("n", "x", "y", "z"), attrs={"units": unit}), "X")


def test_slices_that_were_left_out_are_farther_apart():
    """Whatever the attribute says, which xarray leaves as it was."""
    array = to_xarray(few())
    for changed, many in ((array.isel(z=slice(None, None, 2)), 2), (array.coarsen(z=3).mean(), 3)):
        with pytest.warns(AssumedGridWarning, match=r"slices 35.71 Mpc apart.*believed: slices of"):
            grid = from_xarray(changed)[2]
        assert grid.cell_size == pytest.approx((200 / 14, 200 / 14, many * 250 / 7))
    odd = array.isel(z=np.sort(np.random.default_rng(0).choice(90, 40, replace=False)))
    with pytest.warns(AssumedGridWarning, match="slices of unknown size"):
        assert from_xarray(odd)[2].cell_size[-1] is None
    array.attrs["cell_mpc"] = [200 / 14, 200 / 14, 250 / 7 / 1.5]
    with pytest.warns(AssumedGridWarning, match="slices of unknown size"):
        assert from_xarray(array)[2].cell_size[-1] is None
    array = to_xarray(few())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_xarray(array)[2].cell_size[-1] == pytest.approx(250 / 7)
