"""Scaling of brightness temperatures."""

import numpy as np
import pytest
import torch

from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import scaling as module
from skatr_sk.summaries.scaling import BrightnessScaling


def brightness(rng, shape=(40, 3, 4, 10)):
    """A core of tens of mK about zero and a tail of absorption down to -400."""
    fields = rng.normal(0, 15, size=shape)
    tail = rng.random(shape) < 0.1
    return np.where(tail, -400 * rng.random(shape), fields)


def scaled(scaling, fields):
    return scaling(torch.from_numpy(np.ascontiguousarray(fields))).double().numpy()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_learned_scaling_standardises(rng, dtype):
    fields = brightness(rng).astype(dtype)
    out = scaled(BrightnessScaling.learn(fields), fields)
    assert out.mean() == pytest.approx(0, abs=1e-5)
    assert out.std() == pytest.approx(1, abs=1e-5)


def test_learned_scaling_by_hand(rng):
    fields = brightness(rng)
    learned = BrightnessScaling.learn(fields)
    mean_size = np.abs(fields).mean()
    logs = np.sign(fields) * np.log(1 + np.abs(fields) / mean_size)
    assert learned.softening == pytest.approx(mean_size)
    assert learned.offset == pytest.approx(logs.mean())
    assert learned.scale == pytest.approx(logs.std())
    np.testing.assert_allclose(
        scaled(learned, fields), (logs - logs.mean()) / logs.std(), atol=1e-5
    )


def test_only_the_rows_named_are_learned_from(rng):
    fields = brightness(rng)
    rows = np.array([3, 7, 8, 20, 31])
    fields[np.setdiff1d(np.arange(len(fields)), rows)] = 1e4
    learned = BrightnessScaling.learn(fields, rows)
    assert learned == BrightnessScaling.learn(fields[rows])
    out = scaled(learned, fields[rows])
    assert out.mean() == pytest.approx(0, abs=1e-5)
    assert out.std() == pytest.approx(1, abs=1e-5)


def test_half_precision_does_not_overflow():
    # 500 values of 300 mK sum to more than float16 holds, and so do their squares.
    fields = np.full((50, 100), 300, dtype=np.float16)
    fields[::2] *= -1
    learned = BrightnessScaling.learn(fields)
    assert learned.softening == pytest.approx(300)
    out = scaled(learned, fields)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(np.abs(out), 1, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 120, 500, 10**9])
def test_chunks_do_not_matter(rng, monkeypatch, chunk):
    fields = brightness(rng)
    whole = BrightnessScaling.learn(fields)
    sizes = []

    class Watched(ArrayFields):
        def read(self, rows=None):
            sizes.append(len(rows))
            return super().read(rows)

    monkeypatch.setattr(module, "_CHUNK_VALUES", chunk)
    pieces = BrightnessScaling.learn(Watched(fields))
    for name in ("softening", "offset", "scale"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-12, abs=1e-13)
    # 120 voxels a field: so many fields are read at a time, never more.
    assert max(sizes) == min(max(1, chunk // 120), 40)


@pytest.mark.parametrize("value", [0.0, -37.5, 1e-6, 1e4])
def test_constant_fields_get_unit_scale(value):
    fields = np.full((6, 50), value, dtype=np.float32)
    learned = BrightnessScaling.learn(fields)
    assert learned.scale == 1.0
    np.testing.assert_allclose(scaled(learned, fields), 0, atol=1e-6)


def test_from_range_is_affine():
    published = BrightnessScaling.from_range(-120, -1)
    out = scaled(published, np.array([-120.0, -1.0, -60.5, -239.0, 118.0]))
    np.testing.assert_allclose(out, [0, 1, 0.5, -1, 2], atol=1e-6)


@pytest.mark.parametrize("range_", [None, (-120, -1)])
def test_scaling_is_monotonic_and_smooth_through_zero(rng, range_):
    if range_ is None:
        scaling = BrightnessScaling.learn(brightness(rng))
    else:
        scaling = BrightnessScaling.from_range(*range_)
    temperatures = np.linspace(-1000, 200, 4001)
    slope = np.diff(scaled(scaling, temperatures)) / np.diff(temperatures)
    assert (slope > 0).all()
    at_zero = np.abs(temperatures[:-1]).argmin()
    assert slope[at_zero] == pytest.approx(slope[at_zero - 1], rel=0.05)


def test_scaling_gives_float32_and_leaves_the_input():
    fields = torch.linspace(-100, 100, 11)
    before = fields.clone()
    for scaling in (BrightnessScaling(10.0, 0.5, 2.0), BrightnessScaling.from_range(-1, 1)):
        for dtype in (torch.float16, torch.float32, torch.float64):
            assert scaling(fields.to(dtype)).dtype == torch.float32
        assert torch.equal(fields, before)


def test_real_light_cones_keep_core_and_tail():
    from skatr_sk import load_lightcones

    fields = load_lightcones().data
    out = scaled(BrightnessScaling.learn(fields), fields)
    assert out.std() == pytest.approx(1, abs=1e-4)
    # The affine map of [-120, -1] mK to [0, 1] reaches -2.4, 6 of its own standard deviations out.
    assert np.abs(out).max() < 5


@pytest.mark.parametrize("shape", [(40, 3, 4, 10), (40, 6, 5)])
def test_without_the_mean_of_the_sky_it_is_the_scaling_of_what_is_left(rng, shape):
    fields = brightness(rng, shape)
    left = fields - fields.mean(axis=(1, 2), keepdims=True)
    learned = BrightnessScaling.learn(fields, subtract_mean=True)
    plain = BrightnessScaling.learn(left)
    assert learned.subtract_mean and not plain.subtract_mean
    assert (learned.softening, learned.offset) == pytest.approx((plain.softening, plain.offset))
    np.testing.assert_allclose(scaled(learned, fields), scaled(plain, left), atol=1e-4)


@pytest.mark.parametrize("value", [-9999.0, 1e20, 9.96921e36, -32768.0])
@pytest.mark.parametrize("subtract_mean", [False, True])
def test_a_fill_value_does_not_spoil_the_scaling_of_all(rng, value, subtract_mean):
    fields = brightness(rng, (40, 14, 14, 10)).astype(np.float32)
    whole = BrightnessScaling.learn(fields, subtract_mean=subtract_mean)
    fields[7, 1, 2, 3] = value
    spoilt = BrightnessScaling.learn(fields, subtract_mean=subtract_mean)
    assert spoilt.softening == pytest.approx(whole.softening, rel=0.05)
    assert spoilt.offset == pytest.approx(whole.offset, abs=0.02)
    assert spoilt.scale == pytest.approx(whole.scale, rel=0.02)


def test_data_in_other_units_are_scaled_as_ever(rng):
    """Also with foregrounds: what most voxels exceed is no fill value."""
    fields = 1e6 * brightness(rng)
    learned = BrightnessScaling.learn(fields)
    assert learned.softening == pytest.approx(np.abs(fields).mean())
    fields[3, 0, 0, 0] = 1e20
    assert BrightnessScaling.learn(fields).softening == pytest.approx(learned.softening, rel=0.01)
