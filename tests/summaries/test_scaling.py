"""Scaling of brightness and parameters, and the symmetries of the sky."""

import itertools

import numpy as np
import pytest
import torch

from skatr_sk.fields import ArrayFields
from skatr_sk.summaries import scaling as module
from skatr_sk.summaries.scaling import (
    BrightnessScaling,
    ParameterScaling,
    apply_symmetries,
    sky_symmetries,
)


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


def test_parameters_go_to_the_unit_interval_and_back(rng):
    low, high = np.array([0.3, 38.0, 10.0]), np.array([10.0, 42.0, 250.0])
    parameters = rng.uniform(low, high, size=(20, 3))
    scaling = ParameterScaling(low, high)
    unit = scaling.to_unit(parameters)
    assert unit.min() >= 0 and unit.max() <= 1
    np.testing.assert_allclose(scaling.to_unit(np.stack([low, high])), [[0] * 3, [1] * 3])
    np.testing.assert_allclose(unit[:, 1], (parameters[:, 1] - 38) / 4)
    np.testing.assert_allclose(scaling.from_unit(unit), parameters, rtol=1e-13)


def test_a_parameter_without_width_is_kept():
    scaling = ParameterScaling(np.array([0.0, 7.0]), np.array([2.0, 7.0]))
    parameters = np.array([[1.0, 7.0], [2.0, 7.0]])
    unit = scaling.to_unit(parameters)
    np.testing.assert_array_equal(unit, [[0.5, 0], [1, 0]])
    np.testing.assert_array_equal(scaling.from_unit(unit), parameters)


def marked(n, field_shape):
    """The same field n times, each cell holding its own number."""
    cells = torch.arange(float(np.prod(field_shape))).reshape(field_shape)
    return cells.expand(n, *field_shape).clone()


def turned_by_hand(field):
    """The eight symmetries of a square sky, from quarter turns and mirrors of numpy."""
    field = field.numpy()
    turns = [np.rot90(field, k, axes=(0, 1)) for k in range(4)]
    return [torch.from_numpy(view.copy()) for t in turns for view in (t, t[::-1])]


@pytest.mark.parametrize(
    ("field_shape", "count"),
    [((4, 4), 8), ((4, 4, 3), 8), ((4, 6), 4), ((4, 6, 3), 4), ((6, 4, 6), 4), ((9,), 1)],
)
def test_symmetries_are_distinct_and_form_a_group(field_shape, count):
    symmetries = sky_symmetries(field_shape)
    table = {tuple(s.tolist()) for s in symmetries}
    assert len(symmetries) == len(table) == count
    identity = tuple(range(symmetries.shape[1]))
    assert tuple(symmetries[0].tolist()) == identity
    for a, b in itertools.product(symmetries, repeat=2):
        assert tuple(a[b].tolist()) in table
    for a in symmetries:
        assert any(tuple(a[b].tolist()) == identity for b in symmetries)


@pytest.mark.parametrize("field_shape", [(4, 4), (5, 5, 3)])
def test_a_square_sky_has_the_turns_and_mirrors_of_numpy(field_shape):
    fields = marked(8, field_shape)
    out = apply_symmetries(fields, sky_symmetries(field_shape), torch.arange(8))
    wanted = {tuple(view.flatten().tolist()) for view in turned_by_hand(fields[0])}
    assert {tuple(view.flatten().tolist()) for view in out} == wanted
    assert len(wanted) == 8


def test_a_rectangular_sky_is_only_mirrored():
    fields = marked(4, (2, 3, 2))
    out = apply_symmetries(fields, sky_symmetries((2, 3, 2)), torch.arange(4))
    wanted = [fields[0].flip(axes) for axes in ([], [0], [1], [0, 1])]
    assert all(any(torch.equal(view, mirror) for view in out) for mirror in wanted)
