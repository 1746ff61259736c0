"""Parameters between their box and the unbounded space: round trips, densities, edges, messages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skatr_sk.heads.prior_transform import PriorBounds, PriorTransform, check_spread

N_TRAIN = 40
quickly = settings(max_examples=25, deadline=None)


@st.composite
def transforms(draw):
    """A transform of one to four parameters: in boxes of any width and offset, or in none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bounds, train = [], []
    for _ in range(draw(st.integers(1, 4))):
        width = 10 ** draw(st.floats(-6, 6))
        low = width * draw(st.sampled_from([-1, 0, 1])) * 10 ** draw(st.floats(-3, 5))
        bounds.append([low, low + width] if draw(st.booleans()) else [-np.inf, np.inf])
        train.append(rng.uniform(low, low + width, N_TRAIN))
    return PriorTransform.learn(np.stack(train, axis=1), np.array(bounds))


def inside(transform, shares):
    """Parameters at these shares of each box, or of three standard deviations on either side."""
    shares = np.asarray(shares)[:, None]
    free = transform.mean + (6 * shares - 3) * transform.scale
    box = transform.bounded
    low, high = transform.bounds[box].T
    free[:, box] = np.clip(low + shares * (high - low), low, high)
    return free


def widths(transform):
    """Width of each box, or the standard deviation where there is none."""
    found = transform.scale.copy()
    found[transform.bounded] = np.ptp(transform.bounds[transform.bounded], axis=1)
    return found


@quickly
@given(transforms(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip(transform, shares):
    y = inside(transform, shares)
    free, log_jacobian = transform.to_free(y)
    assert np.isfinite(free).all() and np.isfinite(log_jacobian).all()
    # An edge counts as that far inside; without a box only the rounding is left.
    near = np.full(len(transform.bounds), 1e-9)
    near[transform.bounded] += transform.edge
    assert (np.abs(transform.from_free(free) - y) <= near * widths(transform)).all()


@quickly
@given(transforms(), st.lists(st.floats(0.02, 0.98), min_size=1, max_size=20))
def test_jacobian_is_that_of_finite_differences(transform, shares):
    y = inside(transform, shares)
    step = 1e-5 * widths(transform)
    ahead, behind = transform.to_free(y + step)[0], transform.to_free(y - step)[0]
    slopes = (ahead - behind) / ((y + step) - (y - step))
    _, log_jacobian = transform.to_free(y)
    np.testing.assert_allclose(log_jacobian, np.log(slopes).sum(axis=1), atol=1e-3)


@quickly
@given(transforms(), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_samples_lie_inside_the_box(transform, deviates):
    free = np.broadcast_to(np.asarray(deviates)[:, None], (len(deviates), len(transform.bounds)))
    y = transform.from_free(free)
    assert ((y > transform.bounds[:, 0]) & (y < transform.bounds[:, 1])).all()
    again, log_jacobian = transform.to_free(y)
    assert np.isfinite(again).all() and np.isfinite(log_jacobian).all()
    kept = ~transform.beyond_edge(free)  # and not pulled in from an edge
    np.testing.assert_allclose(again[kept], free[kept], atol=1e-3)


@quickly
@given(transforms(), st.floats(1e-6, 10))
def test_outside_the_box_is_no_density(transform, beyond):
    low, high = transform.bounds.T
    middle = inside(transform, [0.5])
    for i in np.flatnonzero(transform.bounded):
        for end, sign in ((low[i], -1), (high[i], 1)):
            y = middle.copy()
            y[0, i] = end + sign * beyond * (high[i] - low[i])
            assert transform.to_free(y)[1] == -np.inf
            y[0, i] = end  # the edge belongs to the box
            assert np.isfinite(transform.to_free(y)[1]).all()


@quickly
@given(transforms(), st.integers(0, 2**31))
def test_heaps_at_an_edge_are_spread(transform, seed):
    y = inside(transform, [0.0, 0.3, 0.7, 1.0]).repeat(10, axis=0)
    spread = transform.off_edges(y, seed)
    np.testing.assert_allclose(spread[10:30], y[10:30], rtol=1e-12, atol=1e-12)
    assert ((spread >= transform.bounds[:, 0]) & (spread <= transform.bounds[:, 1])).all()
    box = transform.bounded
    moved = np.abs(spread - y)[:, box]
    assert (moved <= 101 * transform.edge * widths(transform)[box]).all()
    assert all(len(np.unique(column)) > 2 for column in spread[:, box].T)
    np.testing.assert_array_equal(spread[:, ~box], y[:, ~box])


def test_a_uniform_prior_becomes_standard_normal():
    y = np.random.default_rng(0).uniform(2, 4, (20_000, 1))
    free, log_jacobian = PriorTransform.learn(y, np.array([[2.0, 4.0]])).to_free(y)
    assert free.mean() == pytest.approx(0, abs=1e-12) and free.std() == pytest.approx(1)
    log_density = -0.5 * free[:, 0] ** 2 - 0.5 * np.log(2 * np.pi) + log_jacobian
    np.testing.assert_allclose(log_density[:100], -np.log(2), atol=0.1)


def test_what_leaves_the_flow_far_out_stays_in_the_box():
    """Far beyond the edges, in boxes whose edges are large beside their width."""
    bounds = np.array([[0.0, 1.0], [-1.0, 0.0], [1e3, 1e3 + 1e-3], [38.0, 42.0]])
    y = np.random.default_rng(0).uniform(bounds[:, 0], bounds[:, 1], (50, 4))
    transform = PriorTransform.learn(y, bounds)
    free = np.array([-1e3, -7.0, 7.0, 1e3])[:, None].repeat(4, axis=1)
    points = transform.from_free(free)
    assert ((points > bounds[:, 0]) & (points < bounds[:, 1])).all()
    assert transform.beyond_edge(free).all()
    again, log_jacobian = transform.to_free(points)
    assert np.isfinite(again).all() and np.isfinite(log_jacobian).all()


@pytest.mark.parametrize(
    ("value", "expected", "mend"),
    [
        ("dta", "'data' or an array of shape (2, 2)", "did you mean 'data'?"),
        ([[0, 1]], "'data' or an array of shape (2, 2)", ""),
        ([[0, 1], [0, 0]], "finite low < high in every row (see [1])", "no width"),
        ([[0, np.inf], [0, 1]], "or (-inf, inf) for no bounds", "two ends"),
        ([[1e9, 1e9 + 1e-6], [0, 1]], "at least 1e8 float64 steps apart", "subtract an offset"),
    ],
)
def test_what_is_no_prior(value, expected, mend):
    found_expected, _, found_mend = PriorBounds(2).fault(value)
    assert expected in found_expected and mend in found_mend


def test_what_is_a_prior():
    for value in ("data", [[0, 1], [-np.inf, np.inf]], np.tile([-np.inf, np.inf], (2, 1))):
        assert PriorBounds(2).fault(value) is None


@pytest.mark.parametrize(
    ("change", "bounds", "message"),
    [
        ({"scale": 0, "offset": 7}, None, r"y: .*that vary.*found 'b' \(column 1\) = 7 in every"),
        ({"scale": 1e-200}, None, r"y: .*'b' that varies by .*e-201; choose larger units"),
        ({}, [[0, 1], [0, 1e9]], r"y: .*'b' that covers .* of 1e\+09; the bounds must be"),
    ],
)
def test_parameters_that_say_too_little(change, bounds, message):
    y = np.random.default_rng(0).uniform(size=(30, 2))
    check_spread(y, ["a", "b"], np.array([[0, 1], [-np.inf, np.inf]]))
    y[:, 1] = y[:, 1] * change.get("scale", 1) + change.get("offset", 0)
    with pytest.raises(ValueError, match=message):
        check_spread(y, ["a", "b"], np.array(bounds or [[-np.inf, np.inf]] * 2))


def test_what_float32_rounds_to_an_edge_lies_on_it():
    """And no farther, in boxes of all sizes."""
    box = np.array([[0.2, 0.4], [38.0, 42.0], [-np.inf, np.inf], [1e6, 1e6 + 0.1]])
    ends = box.astype(np.float32).astype(np.float64)
    transform = PriorTransform(box, np.zeros(4), np.ones(4))
    ends[3] = box[3]
    ends[2] = 0
    assert np.isfinite(transform.to_free(ends.T)[1]).all()
    for column, beyond in ((0, 0.4 + 1e-7), (1, 42.0001), (3, 1e6 + 0.11)):
        y = np.array([[0.3, 40.0, 0.0, 1e6 + 0.05]])
        y[0, column] = beyond
        assert np.isneginf(transform.to_free(y)[1]).all()
