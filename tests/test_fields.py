"""Fields: digests and splits by content, finite or not, shapes that an estimator knows."""

import hashlib
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import BaseEstimator

from skatr_sk import LightconeArray, SKATRTransformer, open_lightcones, save_lightcones
from skatr_sk import fields as module
from skatr_sk._checks import UnitsWarning
from skatr_sk.fields import (
    ArrayFields,
    Fields,
    as_fields,
    check_fields,
    check_finite_rows,
    check_numbers,
    digest,
    digest_rows,
    is_finite,
    split_rows,
    warn_implausible,
)
from skatr_sk.summaries import scaling
from skatr_sk.summaries.scaling import BrightnessScaling


class Stored:
    """Fields that are not in memory and count what is read of them."""

    in_memory = False
    grid = None

    def __init__(self, values):
        self.values, self.n_read = np.asarray(values), 0
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def read(self, rows=None):
        found = self.values if rows is None else self.values[rows]
        self.n_read += len(found)
        return found

    def digests(self, rows=None, *, recall=None):
        return digest_rows(self.values if rows is None else self.values[rows])


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(30, 4, 6)).astype(np.float16)


@pytest.fixture
def X(values, tmp_path):
    save_lightcones(tmp_path / "a.h5", values)
    return open_lightcones(tmp_path / "a.h5", validate=False).data


def signals(n=24, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)


# The protocol ------------------------------------------------------------------------------------


def test_arrays_are_fields(values):
    fields = ArrayFields(values)
    assert isinstance(fields, Fields) and fields.in_memory
    assert fields.shape == (30, 4, 6) and fields.dtype == np.float16
    assert fields.read() is values
    assert np.shares_memory(fields.read(slice(2, 5)), values)
    np.testing.assert_array_equal(fields.read([5, 2, 5]), values[[5, 2, 5]])
    assert fields.digests([5, 2]) == [digest(values[5]), digest(values[2])]
    assert fields.digests() == digest_rows(values)


def test_files_are_fields(values, X):
    assert isinstance(X, Fields) and not X.in_memory and as_fields(X) is X
    np.testing.assert_array_equal(X.read([5, 2, 5]), values[[5, 2, 5]])
    np.testing.assert_array_equal(X.read(slice(3, 9, 2)), values[3:9:2])
    np.testing.assert_array_equal(X.read(), values)
    assert X.digests(np.array([5, 2])) == ArrayFields(values).digests([5, 2])


def test_anything_else_becomes_an_array():
    fields = as_fields([[1, 2], [3, 4]])
    assert isinstance(fields, ArrayFields) and fields.shape == (2, 2)
    stored = Stored(np.zeros((2, 3)))
    assert as_fields(stored) is stored and stored.n_read == 0
    assert not isinstance(np.zeros((2, 3)), Fields)


# Digests -----------------------------------------------------------------------------------------


def test_digest_is_blake2b_of_little_endian_float32():
    row = np.array([[1.5, -2.0], [0.0, 65504.0]])
    expected = hashlib.blake2b(row.astype("<f4").tobytes(), digest_size=16).digest()
    for kind in ("<f2", ">f2", "<f4", ">f4", "<f8"):
        assert digest(row.astype(kind)) == expected
    assert digest(np.asfortranarray(row)) == expected
    assert digest(row + 1e-3) != expected


def test_digests_of_many_rows_in_any_layout(values):
    expected = [digest(row) for row in values]
    assert digest_rows(values) == expected
    assert digest_rows(np.asfortranarray(values)) == expected
    assert digest_rows(values[::-2]) == expected[::-2]
    assert digest_rows(values.tolist()) == expected


def test_digests_are_computed_some_rows_at_a_time(values, monkeypatch):
    expected = digest_rows(values)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 50)  # two rows
    assert digest_rows(values) == expected
    assert digest_rows(values[:0]) == []


# Splits ------------------------------------------------------------------------------------------


def split(X, fraction, seed):
    return split_rows(as_fields(X), fraction, seed)


@pytest.mark.parametrize(
    ("n", "fraction", "n_valid"),
    [(100, 0.1, 10), (100, 0.25, 25), (10, 0.01, 1), (2, 0.9, 1), (7, 0.99, 6), (5, 0.0, 0)]
    + [(1, 0.5, 0)],
)
def test_split_sizes(n, fraction, n_valid):
    training, validation = split(signals(n), fraction, seed=1)
    assert len(validation) == n_valid
    assert sorted([*training, *validation]) == list(range(n))
    assert (np.diff(training) > 0).all() and (np.diff(validation) > 0).all()


def members(rows, index):
    return {rows[i].tobytes() for i in index}


def test_split_follows_the_content_of_a_row(rng):
    rows = signals(200)
    _, validation = split(rows, 0.2, seed=1)
    order = rng.permutation(200)
    _, shuffled = split(rows[order], 0.2, seed=1)
    assert members(rows, validation) == members(rows[order], shuffled)
    assert validation.tolist() != list(range(40))
    _, strided = split(np.repeat(rows, 2, axis=1)[:, ::2], 0.2, seed=1)
    assert strided.tolist() == validation.tolist()


def test_a_split_of_some_rows_is_that_of_these_alone():
    rows = signals(50)
    some = np.arange(3, 50, 2)
    found = split_rows(as_fields(rows), 0.25, 1, some)
    for side, alone in zip(found, split(rows[some], 0.25, seed=1), strict=True):
        np.testing.assert_array_equal(side, some[alone])
    for side, whole in zip(split_rows(as_fields(rows), 0, 1, some), (some, []), strict=True):
        np.testing.assert_array_equal(side, whole)


def test_split_with_another_seed_is_another():
    rows = signals(200)
    first, second = (set(split(rows, 0.5, seed)[1]) for seed in (1, 2))
    # Two independent halves share some 50 of 100 rows, with a standard deviation of 3.5.
    assert 30 < len(first & second) < 70


def test_one_more_row_moves_at_most_one_across():
    rows = signals(101)
    moved = []
    for n in range(60, 101):
        before = members(rows, split(rows[:n], 0.2, seed=1)[1])
        after = members(rows, split(rows[: n + 1], 0.2, seed=1)[1])
        new = rows[n].tobytes()
        moved.append(len((before ^ after) - {new}))
    assert max(moved) <= 1


def test_a_split_needs_no_voxels_and_is_that_of_memory(values, X, monkeypatch):
    train, valid = split(values, 0.3, seed=5)
    X.digests()
    monkeypatch.setattr(LightconeArray, "read", lambda *_: pytest.fail("voxels were read"))
    for found, expected in zip(split(X, 0.3, seed=5), (train, valid), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(valid, split(X, 0.3, seed=6)[1])
    # A row stays on its side wherever it stands.
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(np.sort(order[split(X[order], 0.3, seed=5)[1]]), valid)


# Few different values, so that rows are often equal; all exact in float16.
ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 30), st.just(2)), elements=st.sampled_from([0.0, 1.5, -2])
)
FRACTIONS = st.floats(0.0, 1.0, exclude_max=True)
SEEDS = st.integers(0, 2**32 - 1)


@given(ROWS, FRACTIONS, SEEDS)
def test_sides_of_a_split_are_disjoint_and_complete(rows, fraction, seed):
    training, validation = split(rows, fraction, seed)
    n = len(rows)
    assert sorted([*training, *validation]) == list(range(n))
    assert (np.diff(training) > 0).all() and (np.diff(validation) > 0).all()
    assert len(training) >= 1
    assert (len(validation) > 0) is (fraction > 0 and n > 1)
    assert len(validation) == 0 or abs(len(validation) - fraction * n) <= 1


@given(ROWS, FRACTIONS, SEEDS, st.randoms(use_true_random=False))
def test_a_split_does_not_depend_on_the_order(rows, fraction, seed, random):
    order = random.sample(range(len(rows)), len(rows))
    sides = [
        Counter(some[i].tobytes() for i in split(some, fraction, seed)[1])
        for some in (rows, rows[order])
    ]
    assert sides[0] == sides[1]


@given(ROWS, ROWS, FRACTIONS, SEEDS)
def test_appended_rows_move_no_more_than_their_number(rows, more, fraction, seed):
    before = set(split(rows, fraction, seed)[1].tolist())
    after = set(split(np.concatenate([rows, more]), fraction, seed)[1].tolist())
    assert len(before ^ (after & set(range(len(rows))))) <= len(more)


@given(ROWS, FRACTIONS, SEEDS)
def test_a_split_is_that_of_any_kind_of_fields(rows, fraction, seed):
    expected = split(rows, fraction, seed)
    stored = Stored(rows)
    kinds = [stored, rows.astype(np.float64), rows.astype(np.float16), rows[:, :, None]]
    for kind in kinds:
        for found, side in zip(split(kind, fraction, seed), expected, strict=True):
            np.testing.assert_array_equal(found, side)
    assert stored.n_read == 0  # their digests are asked for


@settings(max_examples=20)
@given(st.integers(1, 9), FRACTIONS, SEEDS)
def test_a_split_of_files_is_that_of_memory(tmp_path_factory, n, fraction, seed):
    rows = signals(n)
    path = tmp_path_factory.mktemp("split") / "a.h5"
    save_lightcones(path, rows)
    X = open_lightcones(path, validate=False).data
    for found, side in zip(split(X, fraction, seed), split(rows, fraction, seed), strict=True):
        np.testing.assert_array_equal(found, side)


# Finite or not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_not_finite(kind, wrong):
    X = np.zeros((4, 3, 5), dtype=kind)
    X[1] = np.finfo(np.float16).max
    X[2] = np.finfo(np.float16).smallest_subnormal
    assert is_finite(X) and is_finite(-X) and is_finite(X[:, ::2, 1:]) and is_finite(X[:0])
    check_finite_rows(X)
    X[2, 1, 3] = wrong
    assert not is_finite(X) and not is_finite(X[2]) and not is_finite(X[:, ::-1])
    assert is_finite(X[3])
    with pytest.raises(ValueError, match="in 1 of 4 rows, the first of them 2"):
        check_finite_rows(X)


def test_what_float32_cannot_hold_is_infinite():
    assert is_finite(np.array([3e38])) and not is_finite(np.array([1e39]))
    with pytest.raises(ValueError, match="y: expected finite values.*too large for float32.*log10"):
        check_finite_rows(np.array([[0.0], [1e39]]), "y", "values")


def test_integers_are_finite():
    check_finite_rows(np.arange(3))
    check_finite_rows(np.zeros((0, 2)))


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(width=16),
    )
)
def test_finite_as_numpy_says(array):
    assert is_finite(array) == np.isfinite(array).all()


# What an estimator knows -------------------------------------------------------------------------


class Known(BaseEstimator):
    """An estimator that has seen fields of the shape (4, 6)."""

    def __init__(self):
        check_fields(self, np.zeros((2, 4, 6)), reset=True)


def test_the_shape_of_a_field_is_remembered():
    estimator = Known()
    assert estimator.field_shape_in_ == (4, 6) and estimator.n_features_in_ == 4
    check_fields(estimator, np.zeros((3, 5)), reset=True)
    assert estimator.field_shape_in_ == (5,) and estimator.n_features_in_ == 5


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_kept_and_numbers_become_floats(kind):
    fields = check_fields(Known(), np.ones((3, 4, 6), dtype=kind), reset=False)
    assert fields.dtype == kind and fields.in_memory
    assert check_fields(Known(), np.ones((3, 4, 6), dtype=int), reset=False).dtype == np.float32


def test_fields_of_another_shape():
    with pytest.raises(ValueError, match=r"X: expected fields of shape \(4, 6\), on which this Kn"):
        check_fields(Known(), np.zeros((3, 6, 4)), reset=False)
    with pytest.raises(ValueError, match=r"expected \(n, 4, 6\), found \(4, 6\).*X\[None\]"):
        check_fields(Known(), np.zeros((4, 6)), reset=False)
    with pytest.raises(ValueError, match=r"resample the fields"):
        check_fields(Known(), Stored(np.zeros((3, 5, 6))), reset=False)


@pytest.mark.parametrize(
    ("X", "error", "said"),
    [
        (np.zeros((2, 3, 4, 5, 1)), ValueError, "numpy.squeeze"),
        (np.zeros((2, 3, 0)), ValueError, "no axis of length 0"),
        (np.zeros((1, 3, 4)), ValueError, "minimum of 2"),
        (np.array(["a", "b"]), TypeError, "real numbers, found dtype <U1"),
        (np.array([1j, 2j]), ValueError, "Complex data not supported"),
        ([[1.0], [1.0, 2.0]], ValueError, "unequal shapes"),
    ],
    ids=str,
)
def test_no_fields(X, error, said):
    with pytest.raises(error, match=said):
        check_fields(Known(), X, reset=True, min_rows=2)


def test_objects_that_are_arrays_of_unequal_shapes():
    X = np.empty(2, dtype=object)
    X[:] = [np.zeros((2, 3)), np.zeros((2, 4))]
    with pytest.raises(TypeError, match="dtype object and shape"):
        check_fields(Known(), X, reset=True)


def test_fields_that_are_not_in_memory_are_not_read():
    stored = Stored(np.full((3, 4, 6), np.nan))
    assert check_fields(Known(), stored, reset=False) is stored and stored.n_read == 0
    estimator = Known()
    check_fields(estimator, Stored(np.zeros((3, 5))), reset=True, min_rows=3)
    assert estimator.field_shape_in_ == (5,) and estimator.n_features_in_ == 5
    with pytest.raises(ValueError, match="X: expected at least 4 light cones, found 3"):
        check_fields(estimator, stored, reset=True, min_rows=4)


def test_arrays_are_looked_at():
    X = np.zeros((3, 4, 6))
    X[1, 2, 2] = np.nan
    with pytest.raises(ValueError, match="in 1 of 3 rows, the first of them 1"):
        check_fields(Known(), X, reset=False)


# Implausible fields ------------------------------------------------------------------------------


def test_constant_fields_are_noticed():
    X = signals(12)
    X[3], X[5] = 1.0, 0.0
    with pytest.warns(UserWarning, match=r"constant fields: 2 of 12 \(first rows: 3, 5\)") as told:
        warn_implausible(as_fields(X))
    assert [warning.filename for warning in told] == [__file__]  # the user's line


def test_constant_fields_in_files_are_noticed(tmp_path):
    X = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    X[3] = 1.0
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.warns(UserWarning, match=r"constant fields: 1 of 12 \(first rows: 3\)"):
        SKATRTransformer(max_epochs=0, embed_dim=8, depth=1, random_state=0).fit(
            open_lightcones(tmp_path / "a.h5").data
        )


def test_kelvin_is_noticed():
    with pytest.warns(UnitsWarning, match=r"No value of X is beyond 0\.\d+: is it in kelvin"):
        warn_implausible(as_fields(signals() / 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_implausible(as_fields(signals()))


def test_of_fields_not_in_memory_some_are_looked_at():
    stored = Stored(signals(100))
    warn_implausible(stored)
    assert 0 < stored.n_read < 100


def test_all_rows_that_are_summarised_are_looked_at(tmp_path):
    """Of files as they are read, whatever the cache has of others; the rows are those of X."""
    X = np.random.default_rng(0).normal(0, 30, size=(60, 16)).astype(np.float32)
    X[40] = 1.0
    X[50, 3] = 1e7
    save_lightcones(tmp_path / "a.h5", X)
    stored = open_lightcones(tmp_path / "a.h5", validate=False).data
    transformer = SKATRTransformer(max_epochs=0, embed_dim=8, depth=1, random_state=0)
    transformer.set_params(cache=tmp_path / "cache").fit(X[:12])
    for fields, n in ((stored[:45], 45), (stored, 15), (X, 60)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            transformer.transform(fields)
        said = [str(each.message) for each in caught]
        told = [f"constant fields: 1 of {n} (first rows: 40)"] if n != 15 else []
        told += [f"in 1 of {n} fields (first rows: 50)"] if n != 45 else []
        for part in told:
            assert sum(part in each for each in said) == 1, said
        assert len([each for each in said if each.startswith("X has")]) == len(told)


# What is learned from fields ---------------------------------------------------------------------


def test_scaling_is_learned_from_a_sample_the_same_in_files(values, X, monkeypatch):
    whole = BrightnessScaling.learn(values)
    assert BrightnessScaling.learn(X) == whole
    monkeypatch.setattr(scaling, "_SAMPLE_VALUES", 0)
    monkeypatch.setattr(scaling, "_FEWEST_SAMPLED", 10)
    asked = []
    read = LightconeArray.read

    def counted(self, rows=None):
        asked.extend(np.arange(30)[rows])
        return read(self, rows)

    monkeypatch.setattr(LightconeArray, "read", counted)
    sampled = BrightnessScaling.learn(X, np.arange(5, 30))
    assert len(set(asked)) == 10 and min(asked) >= 5
    assert sampled == BrightnessScaling.learn(values, np.arange(5, 30))
    assert sampled != whole and sampled.scale == pytest.approx(whole.scale, rel=0.2)
    # Voxels of one field in pieces, as of one too large for memory.
    monkeypatch.setattr(scaling, "_CHUNK_VALUES", 7)
    pieces = BrightnessScaling.learn(X, np.arange(5, 30))
    assert pieces.scale == pytest.approx(sampled.scale) and len(set(asked)) == 10


def test_numbers_come_back_as_they_are():
    X = np.zeros((2, 3), dtype=np.float16)
    assert check_numbers(X, "X") is X
    assert check_numbers([[1, 2]], "X").shape == (1, 2)


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        (["a"], TypeError, "y: expected real numbers, found dtype <U1"),
        (np.array([b"a"]), TypeError, "y: expected real numbers, found dtype |S1"),
        (
            np.array(["2020"], dtype="M8[Y]"),
            TypeError,
            "y: expected real numbers, found dtype datetime64[Y]",
        ),
        ([1j], ValueError, "y: expected real numbers, found dtype complex128; take y.real"),
        ([[1], [1, 2]], ValueError, "y: expected one array of numbers, found rows of unequal"),
    ],
    ids=str,
)
def test_no_numbers(values, error, said):
    with pytest.raises(error, match=re.escape(said)):
        check_numbers(values, "y")


@pytest.mark.parametrize("value", [-9999.0, 1e20])
def test_fill_values_are_noticed(value):
    X = np.random.default_rng(0).normal(-20, 30, (6, 4, 4, 5)).astype(np.float32)
    X[4, 1, 2, 3] = value
    with pytest.warns(UnitsWarning, match=r"1 cells beyond 5000 mK, up to 1e.*rows: 4\).*Repair"):
        warn_implausible(ArrayFields(X))


# Arrays of other libraries, and axes in another order ---------------------------------------------


def test_a_masked_array_has_nan_where_it_is_masked():
    X = np.ma.masked_greater(np.arange(48.0).reshape(2, 4, 6), 46)
    X.data[1, 3, 5] = 1e4
    with pytest.raises(
        ValueError, match=r"finite cells, found NaN .* in 1 of 2 rows, .* 1 \(1 NaN"
    ):
        check_fields(Known(), X, reset=False)
    whole = check_numbers(np.ma.array([[1, 2]]), "X")
    assert type(whole) is np.ndarray and whole.dtype.kind == "i"
    counted = check_numbers(np.ma.array([1, 2], mask=[True, False]), "y")
    assert counted.dtype == np.float32 and np.isnan(counted[0]) and counted[1] == 2


def test_tensors():
    torch = pytest.importorskip("torch")
    X = torch.arange(24.0).reshape(2, 3, 4)
    for tensor in (X, X.clone().requires_grad_(), X.bfloat16()):
        np.testing.assert_array_equal(check_numbers(tensor, "X"), np.arange(24).reshape(2, 3, 4))


def test_quantities_of_astropy():
    units = pytest.importorskip("astropy.units")
    X = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(check_numbers(X * units.K, "X"), 1000 * X)
    np.testing.assert_allclose(check_numbers(X * units.mK, "X"), X)
    np.testing.assert_allclose(check_numbers(X[0] * units.one, "y"), X[0])
    with pytest.raises(TypeError, match=r"X: expected a quantity in mK, found the unit m; hand"):
        check_numbers(X * units.m, "X")
    with pytest.raises(
        TypeError, match=r"y: expected numbers without a unit, found the unit eV; h"
    ):
        check_numbers(X[0] * units.eV, "y")


def test_the_line_of_sight_is_the_last_axis():
    X = np.random.default_rng(0).normal(-30, 20, (3, 6, 6, 20))
    known = Known()
    for axis in (1, 2):
        turned = np.moveaxis(X, -1, axis)
        with pytest.raises(ValueError, match=rf"use numpy\.moveaxis\(X, {axis}, -1\)\."):
            check_fields(known, turned, reset=True)
    with pytest.raises(ValueError, match=r"\(6, 6, 20\), .* one light cone; pass .* as X\[None\]"):
        check_fields(known, X[0], reset=True)
    # Coarse along the line of sight, maps, and a part of them.
    for right in (X, X[..., :4], X[:, 0], X[:, :, :, 0], np.repeat(X[..., 0], 2, axis=0)):
        check_fields(Known(), right, reset=True)
    check_fields(known, X, reset=True)
    with pytest.raises(
        ValueError, match=r"line of sight is last after numpy\.moveaxis\(X, 1, -1\)"
    ):
        check_fields(known, np.moveaxis(X, -1, 1), reset=False)
    with pytest.raises(ValueError, match=r"a single channel goes away with numpy\.squeeze"):
        check_fields(known, X[:, None], reset=False)


def test_digests_are_looked_up_by_content(monkeypatch):
    """Of another array with the same values, and not of one that was changed in place."""
    computed = []
    plain = module._blake2b
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "_blake2b", lambda content: computed.append(1) or plain(content))
    values = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float16)
    expected = [digest(row) for row in values]
    computed.clear()
    assert ArrayFields(values).digests() == expected and len(computed) == 5
    again = values[::-1].astype(np.float64)
    assert ArrayFields(again).digests() == expected[::-1] and len(computed) == 5
    again[0, 0, 0] += 1
    changed = ArrayFields(again).digests()
    assert changed[0] not in expected and changed[1:] == expected[-2::-1] and len(computed) == 6
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)
    ArrayFields(values + 1).digests()
    assert len(module._known) <= 3


def test_finite_numbers_whose_sum_is_not_are_finite():
    large = np.full((2, 3), 3e38, dtype=np.float32)
    assert is_finite(large) and is_finite(large * np.float32([1, -1, 1]))
    large[1, 1] = -np.inf
    assert not is_finite(large)
