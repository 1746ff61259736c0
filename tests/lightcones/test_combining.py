"""Files side by side: their rows, units, prior boxes and what only some of them have."""

import warnings

import numpy as np
import pytest

from skatr_sk import (
    LightconeRegressor,
    PosteriorEstimator,
    SKATRTransformer,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._checks import InvalidParameterError
from skatr_sk.lightcones import convert_lightcones
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETER_UNITS
from tests.lightcones.layouts import N, cone, edit, thetas, values, write_v3, write_v4


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


# Labels without names -----------------------------------------------------------------------------

SWAPPED = [0, 1, 3, 2, 4, 5]  # log10_L_X before E_0


def write_labels(path, label, seed=0):
    np.savez(path, image=cone(seed, 20), label=label)


def test_six_labels_in_either_order(tmp_path):
    """By their values, each file by itself; the target has the order of the paper."""
    given = np.array(thetas(4))
    for k in range(4):
        write_labels(tmp_path / f"{k}.npz", given[k, SWAPPED] if k % 2 else given[k], seed=k)
    with pytest.warns(UserWarning, match=r"labels in .*1\.npz and 1 more .*log10_L_X before E_0"):
        cones = open_lightcones(tmp_path)
    assert cones.target_names == list(PARAMETER_NAMES)
    assert cones.target_units == list(PARAMETER_UNITS.values())
    np.testing.assert_array_equal(cones.target, given)
    asked = open_lightcones(tmp_path, parameters=["zeta", "E_0"])
    np.testing.assert_array_equal(asked.target, given[:, [5, 2]])


def test_a_table_in_the_other_order(tmp_path):
    given = np.array(thetas(N))
    np.savez(tmp_path / "a.npz", X=values(), y=given[:, SWAPPED])
    with pytest.warns(UserWarning, match="log10_L_X before E_0"):
        np.testing.assert_array_equal(open_lightcones(tmp_path).target, given)
    # What is written has the names of its columns, in its order.
    save_lightcones(tmp_path / "b.h5", values(), given[:, SWAPPED])
    stored = open_lightcones(tmp_path / "b.h5")
    assert stored.target_names == [PARAMETER_NAMES[k] for k in SWAPPED]
    np.testing.assert_array_equal(stored.target, given[:, SWAPPED])


@pytest.mark.parametrize("third", [(40.0, 40.5), (0.5, 0.2), (500.0, 1e40), (40.0, 44.0)])
def test_an_order_that_the_values_do_not_tell(tmp_path, third):
    label = [3.0, 0.3, *third, 4.7, 30.0]
    write_labels(tmp_path / "a.npz", label)
    with pytest.raises(
        ValueError, match=r"a\.npz: parameters: six labels .* parameters=\[\.\.\.\]"
    ):
        open_lightcones(tmp_path)
    names = ["m", "Om", "Lx", "E0", "T", "z"]
    cones = open_lightcones(tmp_path, parameters=names)
    assert cones.target_names == names
    np.testing.assert_array_equal(cones.target, [label])
    with pytest.raises(ValueError, match=r"target_names: expected six, for the values do not tell"):
        save_lightcones(tmp_path / "b.h5", values()[:1], [label])


def test_labels_that_are_other_parameters(tmp_path):
    """Scaled ones, say: their names are numbers, or those that are given."""
    label = np.random.default_rng(0).uniform(size=(N, 6))
    np.savez(tmp_path / "a.npz", X=values(), y=label)
    with pytest.warns(
        UserWarning, match=r"no names, .* not the paper's .*parameters=\[\.\.\.\] na"
    ):
        cones = open_lightcones(tmp_path)
    assert cones.target_names == [f"parameter_{k}" for k in range(6)]
    named = open_lightcones(tmp_path, parameters=PARAMETER_NAMES)
    assert named.target_names == list(PARAMETER_NAMES)
    np.testing.assert_array_equal(named.target, label)
    np.savez(tmp_path / "a.npz", X=values(), y=label[:, :2])
    assert open_lightcones(tmp_path, parameters=["a", "b"]).target_names == ["a", "b"]
    with pytest.raises(ValueError, match="found .b., .c., .d.; there are parameter_0, parameter_1"):
        open_lightcones(tmp_path, parameters=["b", "c", "d"])


# Labels that are not known ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h5", "npz", "converted", "folder of npz", "two files"])
def test_labels_that_are_not_known_come_back(tmp_path, kind):
    """In whichever format; the known ones still tell the names, whatever their rows lack."""
    given, X = np.array(thetas(N)), values()
    given[N // 2 :] = np.nan
    given[0, 2] = given[1, [2, 3]] = given[2, 0] = np.nan
    path, options = tmp_path / "a.h5", {"validate": "full"}
    if kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, X=X, y=given)
    elif kind == "folder of npz":
        path = tmp_path
        for k in range(N):
            np.savez(path / f"{k:02d}.npz", image=X[k], label=given[k])
        options["one_per_file"] = True
    elif kind == "two files":
        path = tmp_path
        save_lightcones(path / "a.h5", X[: N // 2], given[: N // 2])
        save_lightcones(path / "b.h5", X[N // 2 :], given[N // 2 :])
    else:
        save_lightcones(path, X, given)
    if kind == "converted":
        convert_lightcones(path, path := tmp_path / "b.h5")
    for on_bad in ("raise", "drop"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cones = open_lightcones(path, on_bad=on_bad, **options)
        assert cones.target_names == list(PARAMETER_NAMES) and not len(cones.report)
        np.testing.assert_array_equal(cones.target, given)
        np.testing.assert_array_equal(np.asarray(cones.data), X)
    asked = open_lightcones(path, parameters=["zeta", "E_0"], **options | {"validate": False})
    np.testing.assert_array_equal(asked.target, given[:, [5, 2]])


def test_labels_of_which_none_is_known(tmp_path, recwarn):
    np.savez(tmp_path / "a.npz", X=values(), y=np.full((N, 6), np.nan))
    assert open_lightcones(tmp_path).target_names == [f"parameter_{k}" for k in range(6)]
    named = open_lightcones(tmp_path, parameters=PARAMETER_NAMES)
    assert named.target_names == list(PARAMETER_NAMES) and np.isnan(named.target).all()
    assert not recwarn.list


def test_unknown_labels_of_pandas(tmp_path):
    pd = pytest.importorskip("pandas")
    known = np.arange(N) % 2 == 0
    y = pd.DataFrame({"a": pd.array(np.arange(N)).astype("Int64"), "b": np.arange(float(N))})
    y.loc[~known, "a"] = pd.NA
    save_lightcones(tmp_path / "a.h5", values(), y)
    cones = open_lightcones(tmp_path / "a.h5")
    assert cones.target_names == ["a", "b"]
    np.testing.assert_array_equal(np.isnan(cones.target), np.stack([~known, known & False], axis=1))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [0, 1, 3, 2, 4, 5]], ids=["paper", "other"])
def test_single_files_of_which_few_labels_are_known(tmp_path, order):
    """The others tell which they are, unless those that are known say something else."""
    given, X = np.array(thetas(N)), values()
    given[1, [1, 2]] = given[2, [1, 3]] = given[3, :5] = given[4] = np.nan
    for k in range(N):
        np.savez(tmp_path / f"{k:02d}.npz", image=X[k], label=given[k, order])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*by their values log10_L_X before E_0")
        cones = open_lightcones(tmp_path, one_per_file=True)
    assert cones.target_names == list(PARAMETER_NAMES)
    np.testing.assert_array_equal(cones.target, given)
    given[3, 1] = 7.0  # which no Omega_m is
    np.savez(tmp_path / "03.npz", image=X[3], label=given[3, order])
    with pytest.raises(ValueError, match=r"1 thing(?s:.)*03\.npz: parameters: no m_WDM"):
        with warnings.catch_warnings(action="ignore"):
            open_lightcones(tmp_path, one_per_file=True)


def test_infinite_labels_are_refused(tmp_path):
    y = np.ones((N, 2))
    y[3, 1], y[4, 0] = np.inf, np.nan
    with pytest.raises(
        InvalidParameterError, match=r"y: .* or NaN .* found '?\[1.0, inf\] in row 3"
    ):
        save_lightcones(tmp_path / "a.h5", values(), y)
    np.savez(tmp_path / "a.npz", X=values(), y=y)
    with pytest.raises(ValueError, match=r"(?s)1 thing .*row 3: parameters: \[1.0, inf\]: "):
        open_lightcones(tmp_path, validate=False)


def test_unknown_labels_teach_what_takes_them(tmp_path):
    y = np.arange(2.0 * N).reshape(N, 2)
    y[N // 2 :] = np.nan
    save_lightcones(tmp_path / "a.h5", values(), y)
    cones = open_lightcones(tmp_path / "a.h5")
    sizes = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=1, random_state=0)
    SKATRTransformer(objective="supervised", cache=None, **sizes).fit(cones.data, cones.target)
    features = np.asarray(cones.data).reshape(N, -1)[:, :4]
    for head in (LightconeRegressor(max_epochs=1), PosteriorEstimator(max_epochs=1)):
        with pytest.raises(ValueError, match="NaN"):
            head.fit(features, cones.target)


# Files of several versions ------------------------------------------------------------------------


def test_versions_that_are_mixed(tmp_path):
    for k, theta in enumerate(thetas(4)):
        (write_v3 if k < 2 else write_v4)(tmp_path / f"{k}.h5", seed=k, theta=theta)
    with pytest.warns(UserWarning) as warned:
        cones = open_lightcones(tmp_path)
    text = str(warned[0].message)
    assert "files of 21cmFAST 3 (2) and 21cmFAST 4 (2) are mixed: their signals differ" in text
    assert "the target has no m_WDM, for 2 of 4 files do not say or use it" in text
    assert "2.h5" in text and "m_WDM" not in cones.target_names


def test_two_fields_of_one_name(tmp_path):
    for k in range(2):
        write_v4(tmp_path / f"{k}.h5", seed=k)
        edit(tmp_path / f"{k}.h5", add_distorted)
    with pytest.warns(
        UserWarning, match=r"brightness_temp was taken, which every .*_with_rsds, wh"
    ):
        plain = open_lightcones(tmp_path)
    np.testing.assert_array_equal(plain.data[0], cone(0, 23)[..., 2:22])
    distorted = open_lightcones(tmp_path, dataset="brightness_temp_with_rsds", units="mK")
    np.testing.assert_array_equal(distorted.data[0], cone(0, 23)[..., 2:22] + 1)


def add_distorted(file):
    cells = file["lightcones/brightness_temp"]
    file["lightcones/brightness_temp_with_rsds"] = cells[:] + 1
