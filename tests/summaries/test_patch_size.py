"""Sizes of patches: divisors of the axes, given or chosen, and fields that divide badly."""

import warnings

import numpy as np
import pytest

from skatr_sk import LightconeRegressor, SKATRTransformer
from skatr_sk.summaries.patch_size import auto_patch_size, fault_of_auto_patches, patch_size_for


@pytest.mark.parametrize(
    "shape",
    [(2,), (24,), (512,), (6, 4), (24, 24), (6, 4, 8), (14, 14, 90), (28, 28, 470)],
    ids=str,
)
def test_automatic_patches_divide_the_field(shape):
    patch = auto_patch_size(shape)
    assert patch_size_for(shape, "auto") == patch
    assert all(n % p == 0 for n, p in zip(shape, patch, strict=True))
    n_tokens = np.prod([n // p for n, p in zip(shape, patch, strict=True)])
    assert 2 <= n_tokens <= 2500
    assert len(shape) < 3 or shape[0] != shape[1] or patch[0] == patch[1]


@pytest.mark.parametrize(
    ("shape", "patch"), [((14, 14, 90), (2, 2, 5)), ((28, 28, 470), (4, 4, 10)), ((24, 24), (4, 4))]
)
def test_automatic_patches_by_hand(shape, patch):
    assert auto_patch_size(shape) == patch


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((13, 13, 89), "found 15041 tokens of (1, 1, 1) cells, for axis 2 has 89 cells; take X"),
        ((14, 14, 89), "axis 2 has 89 cells; take X[..., :88], 1078 tokens of (2, 2, 4) cells, or"),
        ((28, 28, 467), "784 tokens of (1, 1, 467) cells, one along the whole line of sight, for"),
        ((28, 28, 467), "take X[..., :465], 1519 tokens of (4, 4, 15) cells, or give patch_size."),
        ((139, 139), "axis 0 has 139 cells, axis 1 has 139 cells; take X[:, :138, :138], 529 tok"),
        ((31, 31, 60), "axis 1 has 31 cells; take X[:, :30, :30], 1000 tokens of (3, 3, 6) cells"),
        ((4099,), "4099 tokens of (1,) cells, for axis 0 has 4099 cells; take X[..., :4098], 1366"),
        ((140, 2, 9973), "one along the whole line of sight"),
        ((2520, 2521, 5040), "take X[:, :, :2520], 1024 tokens of (315, 315, 315) cells"),
    ],
)
def test_what_divides_badly_is_said_with_the_nearest_that_does_not(shape, words):
    assert words in fault_of_auto_patches(shape)


@pytest.mark.parametrize(
    "shape",
    [(14, 14, 90), (28, 28, 136), (28, 28, 470), (28, 28, 450), (35, 35, 588), (64, 64)]
    + [(140, 140, 2350), (8, 8, 20), (5, 5, 30), (7, 7, 13), (31, 31), (97,), (1021,), (512,)],
    ids=str,
)
def test_nothing_is_said_of_what_divides_well_or_is_small(shape):
    assert fault_of_auto_patches(shape) is None


def test_fit_warns_once_of_fields_that_divide_badly(rng, tmp_path):
    X = rng.normal(size=(4, 6, 6, 37)).astype(np.float32)
    small = dict(embed_dim=8, depth=1, n_heads=2, max_epochs=0, random_state=0, cache=None)

    def said(estimator, X, y=None):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(X, y)
        return [str(each.message) for each in caught if "'auto' can divide" in str(each.message)]

    fitted = SKATRTransformer(**small)
    (message,) = said(fitted, X)
    assert message == fault_of_auto_patches(X.shape[1:]) and "take X[..., :36]" in message
    fitted.save(tmp_path / "w.safetensors")
    assert not said(SKATRTransformer(weights=tmp_path / "w.safetensors"), X)
    assert not said(SKATRTransformer(**small), X[..., :36])
    assert not said(SKATRTransformer(**small, patch_size=(1, 1, 37)), X)
    head = LightconeRegressor(backbone=SKATRTransformer(**small), max_epochs=1, random_state=0)
    assert said(head, X, np.arange(4.0)) == [message]


def test_patches_that_do_not_divide_the_field():
    message = (
        r"patch_size: expected divisors of fields of shape \(14, 14, 90\), found \(2, 2, 7\); "
    )
    with pytest.raises(ValueError, match=message + r"axis 2 .*nearest divisors \[6, 9\]"):
        patch_size_for((14, 14, 90), (2, 2, 7))


@pytest.mark.parametrize("given", [2, np.int64(2), (2, 2, 2), [2, 2, 2], np.array([2, 2, 2])])
def test_patch_sizes_may_be_given_in_many_ways(given):
    assert patch_size_for((6, 4, 8), given) == (2, 2, 2)
