"""Effective rank: the directions that summaries use, and what it refuses."""

import warnings

import numpy as np
import pytest

from skatr_sk.training.effective_rank import effective_rank


def test_rank_by_hand():
    share = np.array([0.5, 0.3, 0.2])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    summaries = np.vstack([np.diag(7 * share) @ rotation, np.zeros((5, 3))])
    expected = np.exp(-np.sum(share * np.log(share)))
    assert effective_rank(summaries, standardize=False) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(400, 6), (6, 400)])
def test_rank_of_noise_is_nearly_full_and_bounded(rng, shape):
    rank = effective_rank(rng.normal(size=shape))
    bound = min(shape[0] - 1, shape[1])
    assert 0.97 * bound < rank <= bound


def test_rank_counts_directions_not_features(rng):
    summaries = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 64))
    assert 2.0 < effective_rank(summaries) <= 3.0


def test_standardising_ignores_offset_and_scale(rng):
    summaries = rng.normal(size=(100, 8))
    loud = 100 + summaries * np.logspace(-4, 4, 8)
    assert effective_rank(loud) == pytest.approx(effective_rank(summaries), rel=1e-6)
    assert effective_rank(loud, standardize=False) < 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_constant_up_to_rounding_do_not_count(rng, dtype):
    varying = rng.normal(size=(200, 4)).astype(dtype)
    constant = np.full((200, 30), 0.7, dtype=dtype)
    jitter = np.where(rng.random((200, 30)) < 0.5, np.nextafter(constant, dtype(1)), constant)
    alone = effective_rank(varying)
    assert effective_rank(np.hstack([varying, jitter])) == pytest.approx(alone)
    assert effective_rank(jitter) == 0.0


def test_faint_features_do_count(rng):
    summaries = rng.normal(size=(200, 4))
    assert effective_rank(summaries * [1, 1e-12, 1e-200, 1e200]) == pytest.approx(
        effective_rank(summaries)
    )


def test_rank_is_computed_in_float64(rng):
    summaries = (1000 * rng.normal(size=(300, 5))).astype(np.float16)
    exact = effective_rank(summaries.astype(np.float64))
    assert effective_rank(summaries) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300])
def test_rank_of_a_constant_is_zero_in_silence(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert effective_rank(np.full((10, 4), value)) == 0.0


def test_unstandardised_extremes():
    assert effective_rank(np.zeros((4, 3)), standardize=False) == 0.0
    assert effective_rank(np.full((4, 3), 1e300), standardize=False) == pytest.approx(1.0)
    assert effective_rank(1e-310 * np.eye(3), standardize=False) == pytest.approx(3.0)
    assert effective_rank([[1.0, 2.0]], standardize=False) == pytest.approx(1.0)


def test_rank_of_one_row_and_its_argument_untouched(rng):
    assert effective_rank([[1.0, 2.0, 3.0]]) == 0.0
    summaries = rng.normal(size=(5, 3))
    before = summaries.copy()
    effective_rank(summaries)
    np.testing.assert_array_equal(summaries, before)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0), ()])
def test_rank_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"summaries: expected shape .*n_lightcones, n_summary"):
        effective_rank(np.ones(shape))


def test_rank_names_rows_with_missing_values(rng):
    summaries = rng.normal(size=(20, 3))
    summaries[[4, 9], 1] = [np.nan, np.inf]
    with pytest.raises(ValueError, match=r"2 of 20 rows \(first rows: 4, 9\)"):
        effective_rank(summaries)


def test_rank_refuses_objects():
    with pytest.raises(TypeError, match="summaries: .* found dtype object"):
        effective_rank(np.array([[1, "a"]], dtype=object))
