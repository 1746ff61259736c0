"""save_lightcones: what is written, whole or not at all."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils import Bunch

from skatr_sk import (
    LightconeResampler,
    NoiseTransformer,
    SimulatedLightcones,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk._checks import InvalidParameterError, NoEffectWarning
from skatr_sk.fields import digest, digest_rows
from skatr_sk.lightcones import convert_lightcones, to_xarray
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS
from tests.lightcones import layouts


def values(n=10, field=(5, 5, 30)):
    return layouts.values(n, field)


@pytest.mark.parametrize("field", [(40,), (7, 9), (5, 5, 30), (24, 24, 60)], ids=str)
@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
def test_what_is_saved_comes_back(tmp_path, field, compression):
    X, y = values(field=field), np.random.default_rng(1).uniform(size=(10, 3))
    grid = np.linspace(6, 9, field[-1])
    save_lightcones(
        tmp_path / "a.h5",
        X,
        y,
        target_names=["a", "b", "c"],
        target_units=["", "keV", "K"],
        target_bounds=[[0, 1]] * 3,
        redshifts=grid,
        seeds=np.arange(10),
        compression=compression,
    )
    cones = open_lightcones(tmp_path / "a.h5", validate="full")
    np.testing.assert_array_equal(np.asarray(cones.data), X)
    np.testing.assert_array_equal(cones.target, y)
    assert cones.target_names == ["a", "b", "c"] and cones.target_units == ["", "keV", "K"]
    np.testing.assert_array_equal(cones.target_bounds, [[0, 1]] * 3)
    np.testing.assert_allclose(cones.redshifts, np.tile(grid, (10, 1)), rtol=1e-6)
    np.testing.assert_array_equal(cones.seeds, np.arange(10))
    with h5py.File(tmp_path / "a.h5") as file:
        stored = [row.tobytes() for row in file["row_digest"][:]]
        chunks = file["brightness_temp"].chunks
    assert stored == [digest(row) for row in X]
    assert chunks[1:] == field and (chunks[0] == 1 or np.prod(chunks) * 4 <= 2**16)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    kind=st.sampled_from([">f2", "<f2", ">f4", "<f4", ">f8", "<f8", "<i2", "|u1", "<i8"]),
    compression=st.sampled_from(["none", "gzip", "lzf"]),
    seed=st.integers(0, 99),
)
def test_any_stack_comes_back(tmp_path_factory, shape, kind, compression, seed):
    path = tmp_path_factory.getbasetemp() / "any.h5"
    X = (40 * np.random.default_rng(seed).random(shape)).astype(kind)
    save_lightcones(path, X, compression=compression)
    found = open_lightcones(path, validate=False).data
    is_float = np.dtype(kind).kind == "f"
    assert found.dtype == (np.dtype(kind).newbyteorder("=") if is_float else np.float32)
    rows = np.random.default_rng(seed).permutation(len(X))
    np.testing.assert_array_equal(found.read(rows), X[rows])
    assert found.digests() == digest_rows(X)


def test_names_come_from_a_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"zeta": np.arange(10.0), "other": np.zeros(10)})
    save_lightcones(tmp_path / "a.h5", values(), frame)
    cones = open_lightcones(tmp_path / "a.h5", as_frame=True)
    assert list(cones.target.columns) == ["zeta", "other"]


def test_units_of_parameters_of_the_paper_are_known(tmp_path):
    save_lightcones(tmp_path / "a.h5", values(), np.ones((10, 2)), target_names=["m_WDM", "other"])
    assert open_lightcones(tmp_path / "a.h5").target_units == ["keV", ""]


def test_another_type(tmp_path):
    X = values()
    save_lightcones(tmp_path / "a.h5", X, dtype=np.float16)
    found = open_lightcones(tmp_path / "a.h5", validate="full").data
    assert found.dtype == np.float16
    np.testing.assert_array_equal(np.asarray(found), X.astype(np.float16))
    X[4, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"X\[4\] has values up to 1e\+06, which float16 cannot"):
        save_lightcones(tmp_path / "a.h5", X, dtype=np.float16)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 10  # the old file is whole


def test_from_one_file_to_another(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    save_lightcones(tmp_path / "b.h5", open_lightcones(tmp_path / "a.h5").data[::-2])
    found = open_lightcones(tmp_path / "b.h5").data
    np.testing.assert_array_equal(np.asarray(found), values()[::-2])


def test_a_file_may_be_replaced_by_what_was_made_from_it(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    save_lightcones(tmp_path / "a.h5", open_lightcones(tmp_path / "a.h5").data[3:])
    assert len(open_lightcones(tmp_path / "a.h5").data) == 7


def test_wrong_calls(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(ValueError, match=r"X: expected shape \(n, \*field_shape\).*found \(3,\)"):
        save_lightcones(path, np.zeros(3))
    with pytest.raises(InvalidParameterError) as raised:
        save_lightcones(
            path,
            values(),
            np.zeros((9, 2)),
            target_names=["a"],
            redshifts=np.zeros(7),
            seeds=np.full(10, 0.5),
            compression="zip",
            dtype="int8",
            target_bounds=[0, 1],
        )
    for name in ("y", "target_names", "redshifts", "seeds", "compression", "dtype", "target_bo"):
        assert f"- {name}" in str(raised.value)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        save_lightcones(tmp_path / "none" / "a.h5", values())
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        save_lightcones(tmp_path / "b.h5", values())
        convert_lightcones(tmp_path / "b.h5", tmp_path / "none" / "a.h5")
    with pytest.raises(IsADirectoryError, match="name a file inside"):
        convert_lightcones(tmp_path / "b.h5", tmp_path)
    assert not path.exists()


def test_what_has_no_effect_is_said(tmp_path):
    with pytest.warns(
        NoEffectWarning, match="no effect with y=None of target_names, target_bounds"
    ):
        save_lightcones(tmp_path / "a.h5", values(), target_names=["a"], target_bounds=[[0, 1]])
    assert open_lightcones(tmp_path / "a.h5").target_names == []


def test_a_prior_box_upside_down_is_refused(tmp_path):
    y = np.random.default_rng(0).uniform(size=(10, 2))
    with pytest.raises(InvalidParameterError, match="target_bounds: .* low and high are swapped"):
        save_lightcones(tmp_path / "a.h5", values(), y, target_bounds=[[0, 1], [1, 0]])
    box = [[0, 1], [-np.inf, np.inf]]
    save_lightcones(tmp_path / "a.h5", values(), y, target_bounds=box)
    np.testing.assert_array_equal(open_lightcones(tmp_path / "a.h5").target_bounds, box)
    # What a file names is not the caller's mistake.
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["parameters"].attrs["bounds"] = [[0.0, 1.0], [0.5, 0.5]]
    convert_lightcones(tmp_path / "a.h5", tmp_path / "b.h5")
    found = open_lightcones(tmp_path / "b.h5").target_bounds
    np.testing.assert_array_equal(found, [[0.0, 1.0], [0.5, 0.5]])


def test_a_bunch_brings_all_that_is_known(tmp_path):
    cones = load_lightcones()
    for name in ("data", "target", "redshifts", "seeds"):
        cones[name] = cones[name][:4]
    save_lightcones(tmp_path / "a.h5", cones)
    stored = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(np.asarray(stored.data), cones.data)
    for name in ("target", "target_bounds", "seeds"):
        np.testing.assert_array_equal(stored[name], cones[name])
    np.testing.assert_allclose(stored.redshifts, cones.redshifts, rtol=1e-6)
    for name in ("target_names", "target_units"):
        assert stored[name] == list(cones[name])
    # What is opened is written anew, and what is given goes before.
    save_lightcones(tmp_path / "b.h5", stored, np.arange(4.0), seeds=np.full(4, 7))
    again = open_lightcones(tmp_path / "b.h5", validate=False)
    assert again.target_names == ["parameter_0"] and again.target_bounds is None
    np.testing.assert_array_equal(again.target, np.arange(4))
    np.testing.assert_array_equal(again.seeds, np.full(4, 7))
    np.testing.assert_array_equal(again.redshifts, stored.redshifts)


def test_other_kinds_of_arrays(tmp_path):
    pandas = pytest.importorskip("pandas")
    X, y = values(6), pandas.Series(np.arange(6.0), name="zeta")
    save_lightcones(tmp_path / "a.h5", torch.as_tensor(X), y, seeds=np.arange(6.0))
    stored = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(np.asarray(stored.data), X)
    assert stored.target_names == ["zeta"] and stored.data.dtype == np.float32
    np.testing.assert_array_equal(stored.seeds, np.arange(6))
    with pytest.raises(InvalidParameterError, match="seeds: expected 6 whole numbers"):
        save_lightcones(tmp_path / "a.h5", X, seeds=np.arange(6.0) / 2)


def test_a_file_that_is_replaced_is_named(tmp_path):
    path = tmp_path / "a.h5"
    save_lightcones(path, values())
    for write in (save_lightcones, lambda there, X: convert_lightcones(tmp_path / "b.npy", there)):
        np.save(tmp_path / "b.npy", values())
        with pytest.warns(UserWarning, match=r"a\.h5 was there before, and is replaced"):
            write(path, values())


def test_seeds_of_files_that_are_whole_numbers(tmp_path):
    for seeds, good in ((np.arange(10.0), True), (np.arange(10.0) + 0.5, False)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data"], file["seed"] = values(), seeds
        if good:
            found = open_lightcones(tmp_path / "a.h5").seeds
            assert found.dtype == np.int64 and found.tolist() == list(range(10))
        else:
            with pytest.raises(ValueError, match="parameters: seeds of float64 that are not whole"):
                open_lightcones(tmp_path / "a.h5")


# What light cones know of their grid --------------------------------------------------------------


class Simulated(SimulatedLightcones):
    """Light cones of noise on a simulated grid."""

    def _read(self, numbers, tell=int):
        return values(40, self.shape[1:])[numbers]


SIMULATED = Simulated(10, field_shape=(4, 4, 20), cell_size=14.0, block=2, random_state=3)


@pytest.mark.parametrize("kind", ["whole", "rows", "part", "part of rows", "noisy"])
@pytest.mark.parametrize("labelled", [True, False])
def test_redshifts_of_simulated_ones_are_written(tmp_path, recwarn, kind, labelled):
    X, rows, slices = SIMULATED, slice(None), slice(None)
    if kind == "noisy":
        X = NoiseTransformer(noise=1.0, random_state=0).fit_transform(X)
    rows = slice(None, None, -2) if "rows" in kind else rows
    slices = slice(3, None, 2) if "part" in kind else slices
    X = X[rows][..., slices]
    save_lightcones(tmp_path / "a.h5", X, SIMULATED.target[rows] if labelled else None)
    convert_lightcones(tmp_path / "a.h5", tmp_path / "b.h5")
    for name in ("a.h5", "b.h5"):
        cones = open_lightcones(tmp_path / name)
        np.testing.assert_array_equal(cones.redshifts, SIMULATED.redshifts()[rows, slices])
        assert not X.grid.differences(cones.grid) and cones.grid.cell_size == X.grid.cell_size
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["whole", "rows", "part of rows", "noisy", "resampled"])
@pytest.mark.parametrize("labels", [None, "theirs", "others"])
def test_labels_bounds_and_seeds_of_simulated_ones_are_written(tmp_path, kind, labels):
    X, rows = SIMULATED, slice(None)
    if kind == "noisy":
        X = NoiseTransformer(noise=1.0, random_state=0).fit_transform(X)
    elif kind == "resampled":
        X = LightconeResampler(factor=2).fit_transform(X)
    elif "rows" in kind:
        X, rows = X[8:2:-2], slice(8, 2, -2)
    X = X[..., 1:] if "part" in kind else X
    known = SIMULATED.target[rows]
    y = {None: None, "theirs": known, "others": known * 1.01}[labels]
    save_lightcones(tmp_path / "a.h5", X, y)
    cones = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(cones.target, known if y is None else y)
    np.testing.assert_array_equal(cones.seeds, SIMULATED.seeds[rows])
    if labels == "others":
        assert cones.target_bounds is None
    else:
        np.testing.assert_array_equal(cones.target_bounds, PRIOR_BOUNDS)


@pytest.mark.parametrize("labels", [None, "theirs", "others"])
def test_a_bunch_of_simulated_ones_lacks_nothing(tmp_path, labels):
    y = {None: None, "theirs": SIMULATED.target, "others": SIMULATED.target * 1.01}[labels]
    save_lightcones(tmp_path / "a.h5", Bunch(data=SIMULATED, target=y))
    cones = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(cones.target, SIMULATED.target if y is None else y)
    np.testing.assert_array_equal(cones.redshifts, SIMULATED.redshifts())
    np.testing.assert_array_equal(cones.seeds, SIMULATED.seeds)
    assert (cones.target_bounds is None) == (labels == "others")


def test_given_parameters_have_no_box(tmp_path):
    own = Simulated(10, field_shape=(4, 4, 20), parameters=SIMULATED.target, random_state=3)
    save_lightcones(tmp_path / "a.h5", own)
    assert open_lightcones(tmp_path / "a.h5").target_bounds is None


def test_simulated_parameters_that_do_not_vary_or_are_unusual(tmp_path):
    """Without X-rays, and one dark matter for all: names are known, whatever the values."""
    box = PRIOR_BOUNDS.copy()
    box[0], box[3] = 3.0, (20.0, 25.0)
    own = Simulated(10, field_shape=(4, 4, 20), prior_bounds=box, random_state=3)
    for y in (None, own.target):
        save_lightcones(tmp_path / f"{y is None}.h5", own, y)
        cones = open_lightcones(tmp_path / f"{y is None}.h5")
        assert cones.target_names[:4] == ["m_WDM", "Omega_m", "E_0", "log10_L_X"]
        np.testing.assert_array_equal(cones.target_bounds[0], [-np.inf, np.inf])
        np.testing.assert_array_equal(cones.target_bounds[1:], box[1:])


def some_missing(y):
    return np.where(np.arange(6) == 2, np.nan, y)


@pytest.mark.parametrize(
    "given",
    [
        lambda y: y.astype(np.float32),
        torch.tensor,
        lambda y: torch.tensor(y, requires_grad=True),
        lambda y: pd.DataFrame(y, columns=list(PARAMETER_NAMES)).convert_dtypes(),
    ],
    ids=["float32", "tensor", "tensor with a gradient", "pandas"],
)
@pytest.mark.parametrize("changed", [np.array, some_missing])
def test_labels_in_many_forms_are_those_of_a_box(tmp_path, given, changed):
    known = Bunch(data=values(), target=changed(SIMULATED.target), target_bounds=PRIOR_BOUNDS)
    save_lightcones(tmp_path / "a.h5", known, given(known.target))
    cones = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_allclose(cones.target, known.target, rtol=1e-6)
    np.testing.assert_array_equal(cones.target_bounds, PRIOR_BOUNDS)
    save_lightcones(tmp_path / "b.h5", SIMULATED, given(known.target))
    assert (open_lightcones(tmp_path / "b.h5").target_bounds is None) == (changed is some_missing)


def test_names_of_a_table_go_before_those_that_are_known(tmp_path):
    y = pd.DataFrame(SIMULATED.target, columns=list("abcdef"))
    save_lightcones(tmp_path / "a.h5", SIMULATED, y)
    assert open_lightcones(tmp_path / "a.h5").target_names == list("abcdef")


def test_what_is_given_is_not_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(SimulatedLightcones, "_draw", lambda *_: pytest.fail("drawn in vain"))
    given = dict(redshifts=np.linspace(6, 9, 19), seeds=[1, 2, 3], target_bounds=[[0, 1]])
    save_lightcones(tmp_path / "a.h5", SIMULATED[..., 1:][2:5], [0.1, 0.2, 0.3], **given)
    many = Simulated(10**6, field_shape=(4, 4, 20), random_state=3)
    monkeypatch.undo()
    save_lightcones(tmp_path / "b.h5", many[..., 1:][:3])


def test_few_known_labels_tell_that_one_grid_is_in_order(tmp_path, recwarn):
    """The cosmology of the others is guessed, and is not what the known ones are held against."""
    X = Simulated(40, field_shape=(4, 4, 90), cell_size=14.0, random_state=2)
    y = np.where(np.random.default_rng(0).random((40, 1)) < 0.9, np.nan, X.target)
    save_lightcones(tmp_path / "a.h5", X, y)
    assert open_lightcones(tmp_path / "a.h5").redshifts.shape == (40, 90)
    assert not recwarn.list


def test_given_redshifts_go_before_those_that_are_known(tmp_path):
    z = np.linspace(7, 9, 20)
    save_lightcones(tmp_path / "a.h5", SIMULATED, SIMULATED.target, redshifts=z)
    np.testing.assert_allclose(open_lightcones(tmp_path / "a.h5").redshifts[3], z, rtol=1e-6)


def test_redshifts_of_a_grid_are_kept(tmp_path):
    """Of a typical cone: they are those of no row."""
    save_lightcones(tmp_path / "a.h5", SIMULATED, SIMULATED.target)
    coarse = LightconeResampler(factor=2).fit_transform(open_lightcones(tmp_path / "a.h5").data)
    save_lightcones(tmp_path / "b.h5", coarse, SIMULATED.target)
    convert_lightcones(tmp_path / "b.h5", tmp_path / "c.h5")
    save_lightcones(tmp_path / "d.h5", open_lightcones(tmp_path / "c.h5").data[2:, ..., 1:])
    for name in ("b.h5", "c.h5", "d.h5"):
        cones = open_lightcones(tmp_path / name)
        wanted = coarse[..., 1:].grid if name == "d.h5" else coarse.grid
        assert cones.redshifts is None and cones.grid == wanted and wanted.redshifts is not None
    pytest.importorskip("xarray")
    array = to_xarray(open_lightcones(tmp_path / "c.h5"))
    np.testing.assert_array_equal(array.redshift, coarse.grid.redshifts)
    save_lightcones(tmp_path / "e.h5", array[:, :, :, 1:])
    cones = open_lightcones(tmp_path / "e.h5")
    assert cones.redshifts is None and cones.grid.redshifts == coarse.grid.redshifts[1:]


def _typical(path, seed, **given):
    X = Simulated(4, field_shape=(4, 4, 20), cell_size=14.0, random_state=seed, **given)
    save_lightcones(rows := path.with_suffix(".rows.h5"), X, X.target)
    known = open_lightcones(rows)
    X = np.asarray(known.data) + seed  # no two files of the same values
    save_lightcones(path, {"data": X, "grid": known.grid})


def test_grids_of_several_files(tmp_path):
    """They are one where they begin together, whichever Omega_m is typical."""
    for seed in (1, 2):
        _typical(tmp_path / f"{seed}.h5", seed)
    _typical(tmp_path / "far.h5", 3, redshift_min=8.0)
    first, second = (open_lightcones(tmp_path / f"{seed}.h5").grid for seed in (1, 2))
    assert first.redshifts != second.redshifts
    paths = [tmp_path / "1.h5", tmp_path / "2.h5"]
    assert open_lightcones(paths).grid == first
    with pytest.raises(ValueError, match=r"1 thing(?s:.)*far\.h5: grid: the nearest slice from"):
        open_lightcones([*paths, tmp_path / "far.h5"])


@pytest.mark.parametrize("z", [np.arange(9.0), np.full(10, np.nan), np.arange(10.0)[::-1]])
def test_a_grid_with_wrong_redshifts_is_a_fault(tmp_path, z):
    X = LightconeResampler(factor=2).fit_transform(SIMULATED)
    save_lightcones(tmp_path / "a.h5", X)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["grid_redshifts"]
        file["grid_redshifts"] = z
    with pytest.raises(ValueError, match=r"grid_redshifts: expected 10 rising numbers"):
        open_lightcones(tmp_path / "a.h5")
