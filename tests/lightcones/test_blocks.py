"""Means over blocks of cells."""

import numpy as np
import pytest

from skatr_sk.lightcones import coarsen


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((3, 12), (4,)),
        ((2, 6, 4), (3, 2)),
        ((2, 4, 6, 10), (2, 3, 5)),
        ((2, 2, 4, 2, 3), (1, 2, 2, 3)),
    ],
)
def test_coarsen_averages_blocks_of_any_rank(shape, block):
    data = np.random.default_rng(0).normal(size=shape)
    means = coarsen(data, block)
    assert means.shape == (shape[0], *(n // b for n, b in zip(shape[1:], block, strict=True)))
    for index in np.ndindex(means.shape):
        corner = zip(index[1:], block, strict=True)
        cells = (index[0], *(slice(i * b, (i + 1) * b) for i, b in corner))
        np.testing.assert_allclose(means[index], data[cells].mean(), rtol=1e-12)


def test_coarsen_takes_one_size_for_every_axis():
    data = np.random.default_rng(0).normal(size=(2, 4, 6))
    np.testing.assert_array_equal(coarsen(data, 2), coarsen(data, (2, 2)))
    np.testing.assert_array_equal(coarsen(data, np.int64(2)), coarsen(data, np.array([2, 2])))
    np.testing.assert_array_equal(coarsen(data, 1), data)


def test_coarsen_sums_in_float64():
    # In float16 the sum of these stops at 2048 and the mean of a pair overflows.
    ones = coarsen(np.ones((1, 8192), np.float16), 8192)
    large = coarsen(np.full((1, 2), 60_000, np.float16), 2)
    assert ones.dtype == large.dtype == np.float64
    assert ones.item() == 1
    assert large.item() == float(np.float16(60_000))


def test_coarsen_keeps_nan_to_its_block():
    data = np.ones((1, 6))
    data[0, 4] = np.nan
    np.testing.assert_array_equal(coarsen(data, 2), [[1, 1, np.nan]])


def test_coarsen_reads_non_contiguous_input_and_leaves_it_alone():
    data = np.random.default_rng(0).normal(size=(4, 6, 2))
    before = data.copy()
    contiguous = np.ascontiguousarray(data.T)
    np.testing.assert_allclose(coarsen(data.T, (3, 2)), coarsen(contiguous, (3, 2)), rtol=1e-12)
    np.testing.assert_array_equal(data, before)


def test_coarsen_accepts_no_fields():
    assert coarsen(np.empty((0, 4, 6)), 2).shape == (0, 2, 3)


def test_coarsen_names_every_axis_that_a_block_does_not_divide():
    with pytest.raises(ValueError) as error:
        coarsen(np.zeros((2, 6, 8, 10)), (4, 2, 3))
    message = str(error.value)
    assert "block[0]: expected a divisor of the 6 cells of field axis 0, found 4" in message
    assert "3 and 6" in message
    assert "block[2]: expected a divisor of the 10 cells of field axis 2, found 3" in message
    assert "2 and 5" in message
    assert "axis 1" not in message


@pytest.mark.parametrize(
    ("data", "block", "error", "match"),
    [
        (np.zeros((2, 6, 6)), (2,), ValueError, "each of the 2 field axes"),
        (np.zeros((2, 6)), (2, 2), ValueError, "each of the 1 field axes"),
        (np.zeros((2, 6)), 0, ValueError, "at least 1.*found 0"),
        (np.zeros((2, 6)), (-2,), ValueError, "at least 1"),
        (np.zeros((2, 6)), 12, ValueError, "a divisor of the 6 cells"),
        (np.zeros(6), 2, ValueError, r"found \(6,\).*data\[None\]"),
        (np.zeros((2, 6)), 2.0, TypeError, "found 2.0"),
        (np.zeros((2, 6)), "2", TypeError, "found '2'"),
        (np.zeros((2, 6)), None, TypeError, "found None"),
        (np.zeros((2, 6), complex), 2, TypeError, "complex128"),
        (np.array([["a", "b"]]), 2, TypeError, "real numbers"),
    ],
)
def test_coarsen_rejects(data, block, error, match):
    with pytest.raises(error, match=match):
        coarsen(data, block)
