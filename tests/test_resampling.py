"""Fields on other grids: against brute force, means that stay, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skatr_sk.fields import ArrayFields
from skatr_sk.grid import Grid, depths_of, redshifts_of
from skatr_sk.lazy_fields import DerivedFields
from skatr_sk.resampling import Axis, Resampling, edges_of, onto, resampled

RNG = np.random.default_rng(0)


def by_a_fine_grid(values, n_out, axis):
    """Overlap-weighted means, by way of a grid that both are blocks of."""
    n = values.shape[axis]
    fine = np.repeat(values.astype(np.float64), n_out, axis=axis)
    shape = [*values.shape]
    shape[axis : axis + 1] = [n_out, n]
    return fine.reshape(shape).mean(axis=axis + 1)


@pytest.mark.parametrize("sizes", [((35,), (28,)), ((7, 5, 11), (3, 4, 6)), ((6, 8), (5, 8))])
def test_means_are_those_of_a_fine_common_grid(sizes):
    given_shape, wanted = sizes
    values = RNG.normal(size=(3, *given_shape))
    expected = values
    for axis, n in enumerate(wanted, 1):
        expected = by_a_fine_grid(expected, n, axis)
    found = Resampling(tuple(map(Axis.even, given_shape, wanted)))(values)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.mean(), values.mean(), rtol=0, atol=1e-15)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.data())
def test_the_mean_stays_on_any_coarser_grid(n, data):
    m = data.draw(st.integers(1, n))
    values = np.random.default_rng(n).normal(size=(2, n))
    found = Resampling((Axis.even(n, m),))(values)
    assert found.shape == (2, m)
    np.testing.assert_allclose(found.mean(axis=1), values.mean(axis=1), rtol=0, atol=1e-14)


def test_uneven_cells_are_weighted_by_their_overlap():
    edges = np.array([0.0, 1.0, 1.5, 4.0, 6.0])
    axis = Axis.between(edges, np.array([0.5, 2.5, 5.5]))
    values = np.array([[1.0, 10.0, 100.0, 1000.0]])
    expected = [(0.5 * 1 + 0.5 * 10 + 1 * 100) / 2, (1.5 * 100 + 1.5 * 1000) / 3]
    np.testing.assert_allclose(Resampling((axis,))(values), [expected])


def test_each_cell_is_a_mean_or_on_a_line_by_its_own_size():
    edges = np.arange(13.0)
    wanted = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 6.0, 11.5])  # finer nearby, coarser far
    assert np.diff(wanted).mean() > 1
    other = np.concatenate([np.arange(0, 10.5, 0.5), [12.0]])  # finer on average
    assert np.diff(other).mean() < 1
    values = RNG.normal(size=(3, 12))
    found = Resampling((Axis.between(edges, wanted),))(values)
    far = [values[:, 3:6].mean(axis=1), (values[:, 6:11].sum(axis=1) + values[:, 11] / 2) / 5.5]
    np.testing.assert_allclose(found[:, -2:], np.stack(far, axis=1), atol=1e-14)
    line = [values[:, 0], 0.75 * values[:, 0] + 0.25 * values[:, 1]]
    np.testing.assert_allclose(found[:, :2], np.stack(line, axis=1), atol=1e-14)
    found = Resampling((Axis.between(edges, other),))(values)
    np.testing.assert_allclose(found[:, -1], values[:, 10:].mean(axis=1), atol=1e-14)


def test_lines_upwards():
    line = np.arange(12.0)[None]
    doubled = Resampling((Axis.even(12, 24),))(line)[0]
    np.testing.assert_allclose(doubled[1:-1], np.arange(22) / 2 + 0.25)
    assert doubled[0] == 0 and doubled[-1] == 11  # as the outermost beyond their centres
    assert doubled.mean() == pytest.approx(5.5, abs=1e-14)
    more = Resampling((Axis.even(12, 31),))(line)[0]
    np.testing.assert_allclose(more, np.clip((np.arange(31) + 0.5) * 12 / 31 - 0.5, 0, 11))
    plane = np.add.outer(np.arange(4.0), 10 * np.arange(5.0))[None]
    found = Resampling((Axis.even(4, 8), Axis.even(5, 10)))(plane)
    np.testing.assert_allclose(np.diff(found[0, 1:-1, 1:-1], axis=0), 0.5)
    np.testing.assert_allclose(np.diff(found[0, 1:-1, 1:-1], axis=1), 5.0)
    assert (Resampling((Axis.even(1, 3),))(np.array([[2.0]])) == 2).all()


def test_blocks_are_averaged_as_blocks():
    assert Axis.even(28, 14) == Axis(0, 28, 2)
    assert Axis.of_sizes(470, 200 / 28, 90, 500 / 14) == Axis(0, 450, 5)
    assert Axis.of_sizes(470, 7.14, 90, 35.7143) == Axis(0, 450, 5)  # rounded sizes
    assert Axis.of_sizes(28, 7.14, 28, 7.1) == Axis(0, 28)
    shifted = Axis.between(np.arange(20.0), np.arange(4.0, 17.0, 3.0))
    assert shifted == Axis(4, 16, 3)
    values = RNG.normal(size=(2, 19)).astype(np.float32)
    expected = values[:, 4:16].reshape(2, 4, 3).mean(axis=2, dtype=np.float64)
    np.testing.assert_array_equal(Resampling((shifted,))(values), expected)


def test_nothing_is_extrapolated():
    edges = np.arange(11.0)
    assert Axis.between(edges, np.array([-0.4, 0.5, 1.6])) is not None
    assert Axis.between(edges, np.array([-0.6, 0.4, 1.6])) is None
    assert Axis.between(edges, np.array([8.0, 9.0, 11.5])) is None
    assert Axis.of_sizes(10, 1.0, 6, 2.0) is None


def test_nan_stays_where_it_is():
    values = np.ones((1, 35))
    values[0, 21] = np.nan
    found = Resampling((Axis.even(35, 28),))(values)[0]
    assert np.isnan(found).sum() == 2 and np.isnan(found[16:18]).all()


def test_edges():
    np.testing.assert_allclose(edges_of([1.0, 3.0, 4.0]), [0.0, 2.0, 3.5, 4.5])


# Fields ------------------------------------------------------------------------------------------

FINE = Grid((5.0, 5.0, 5.0), tuple(redshifts_of(-0.4 + 0.0005 * np.arange(40))))


def test_grids_follow():
    cones = np.zeros((2, 6, 6, 40), np.float32)
    halves = Resampling((Axis.even(6, 3), Axis.even(6, 4), Axis(10, 30, 4)))
    grid = resampled(ArrayFields(cones, FINE), halves).grid
    assert grid.cell_size == pytest.approx((10.0, 7.5, 20.0))
    assert grid.start == 50.0 and grid.origin == FINE.origin
    depths = depths_of(FINE.redshifts)[10:30].reshape(5, 4).mean(axis=1)
    np.testing.assert_allclose(depths_of(grid.redshifts), depths, rtol=1e-6)


class NotInMemory(ArrayFields):
    in_memory = False


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_in_memory_and_when_they_are_read(kind, monkeypatch):
    cones = RNG.normal(size=(5, 6, 6, 40)).astype(kind)
    half = Resampling((Axis.even(6, 3), Axis.even(6, 4), Axis.even(40, 8)))
    at_once, later = (resampled(F(cones), half) for F in (ArrayFields, NotInMemory))
    assert at_once.in_memory and isinstance(later, DerivedFields)
    assert at_once.dtype == later.dtype == ("float64" if kind == "float64" else "float32")
    np.testing.assert_array_equal(at_once.read([4, 1]), later.read([4, 1]))
    assert at_once.digests([3, 0]) == later.digests([3, 0]) != NotInMemory(cones).digests([3, 0])
    monkeypatch.setattr("skatr_sk.resampling._AT_ONCE", 100)
    np.testing.assert_array_equal(resampled(ArrayFields(cones), half).read(), at_once.read())


# Onto a grid that is wanted -----------------------------------------------------------------------

CELL = 200 / 28
LOW = tuple(redshifts_of(-(6**-0.5) + 0.00045 * np.arange(470)))
WANTED, SHAPE = Grid((2 * CELL, 2 * CELL, 5 * CELL), tuple(LOW[2:450:5])), (14, 14, 90)
FULL = Grid((CELL,) * 3, LOW)


def to_weights(grid, shape=(28, 28, 470)):
    return onto(grid, shape, WANTED, SHAPE)


def test_a_known_grid_becomes_another_without_assumptions():
    resampling, guessed = to_weights(FULL)
    assert resampling.axes == (Axis(0, 28, 2), Axis(0, 28, 2), Axis(0, 450, 5)) and not guessed
    assert resampling.grid_of(FULL, (28, 28, 470)) == WANTED
    wide = to_weights(FULL, (35, 35, 470))[0]
    assert wide.axes[0] == Axis(0, 28, 2)  # the rest of a wider sky is left out
    finer = Grid((200 / 35,) * 3, tuple(redshifts_of(-(6**-0.5) + 0.00036 * np.arange(600))))
    resampling, guessed = to_weights(finer, (35, 35, 600))
    assert resampling.field_shape == SHAPE and not guessed
    assert not WANTED.differences(resampling.grid_of(finer, (35, 35, 600)))


def test_lines_of_sight_that_begin_nearer_are_cut():
    step = LOW[1] - LOW[0]
    longer = tuple(redshifts_of(-(6**-0.5) + 0.00045 * np.arange(-20, 470)))
    assert longer[0] < 5 - 10 * step
    resampling, _ = to_weights(Grid((CELL,) * 3, longer), (28, 28, 490))
    places = resampling.axes[2].places
    np.testing.assert_allclose(places, 20 + 5 * np.arange(91), atol=0.2)
    # Of one simulation no redshift is asked: distances are known.
    part = FULL.cut((slice(None),) * 2 + (slice(50, 500),), (28, 28, 470))
    late = WANTED.cut((slice(None),) * 2 + (slice(20, 90),), SHAPE)
    resampling, _ = onto(part, (28, 28, 420), late, (14, 14, 70))
    assert resampling.axes[2] == Axis(50, 400, 5)


def test_slices_of_equal_redshift_become_those_of_equal_distance():
    z = np.linspace(LOW[0] - 0.05, LOW[449] + 0.3, 800)
    values = depths_of(z)[None, None, None]  # rise evenly with the distance
    values = np.broadcast_to(values, (1, 28, 28, 800))
    resampling, guessed = to_weights(Grid((CELL, CELL, None), tuple(z)), values.shape[1:])
    found = resampling(values)[0, 0, 0]
    np.testing.assert_allclose(found, depths_of(WANTED.redshifts), rtol=1e-4)
    assert not guessed


@pytest.mark.parametrize(
    ("grid", "shape", "why"),
    [
        (FULL, (28, 28, 440), "3142.9 Mpc deep, not 3214.3"),
        (FULL, (27, 28, 470), "the sky is 192.9 Mpc, not 200 wide on axis 0"),
        (FULL, (28, 470), "2 axes instead of 3"),
        (Grid((CELL,) * 3, tuple(LOW[30:])), (28, 28, 440), "begins farther away"),
        (Grid((CELL, CELL, None), tuple(np.linspace(6, 30, 470))), (28, 28, 470), "as near"),
    ],
)
def test_what_does_not_reach_as_far_is_refused(grid, shape, why):
    with pytest.raises(ValueError, match=why):
        to_weights(grid, shape)


def test_bare_arrays_are_cubes_or_span_the_same_volume():
    resampling, guessed = to_weights(None)
    assert resampling.axes == (Axis(0, 28, 2), Axis(0, 28, 2), Axis(0, 450, 5))
    assert guessed == [
        "the sky is as wide, 200 Mpc",
        "the nearest slice is at the same redshift",
        "cells are cubes of 7.14 Mpc, of which 450 of 470 slices reach as far",
    ]
    resampling, guessed = to_weights(None, (35, 35, 500))
    assert resampling.axes == (*[Axis.even(35, 14)] * 2, Axis.even(500, 90))
    assert guessed[-1] == (
        "the depth is the same, 3214 Mpc in slices of 6.43, for 500 cubes of 5.71 Mpc would not be "
        "as deep"
    )
    deeper = to_weights(None, (28, 28, 600))[1]
    assert deeper[-1] == "cells are cubes of 7.14 Mpc, of which 450 of 600 slices reach as far"


@pytest.mark.parametrize("n", [80, 100, 470])
def test_other_slices_of_cells_as_wide_are_not_stretched(n):
    of_sky = Grid((2 * CELL, 2 * CELL, None))
    for unknown in (None, of_sky):
        with pytest.raises(ValueError, match=f"cells are as wide, and nothing says where {n} sli"):
            to_weights(unknown, (14, 14, n))
    # Redshifts do say it.
    fine = tuple(redshifts_of(np.linspace(*depths_of([LOW[0], LOW[455]]), n)))
    resampling, guessed = to_weights(Grid((None,) * 3, fine), (14, 14, n))
    made = resampling.grid_of(Grid((2 * CELL, 2 * CELL, None), fine), (14, 14, n))
    np.testing.assert_allclose(made.redshifts, WANTED.redshifts, rtol=1e-4)
    assert guessed == ["the sky is as wide, 200 Mpc"]


def test_cubes_as_wide_are_cubes_where_they_reach_as_far():
    cubes = Grid((CELL,) * 3, LOW)
    resampling, guessed = onto(None, (28, 28, 500), cubes, (28, 28, 470))
    assert resampling.axes[2] == Axis(0, 470) and "470 of 500 slices" in guessed[-1]
    with pytest.raises(ValueError, match="nothing says where 400 slices lie"):
        onto(None, (28, 28, 400), cubes, (28, 28, 470))


@pytest.mark.parametrize("wanted", [Grid((4.0, 4.0)), Grid((None, 4.0))])
def test_maps(wanted):
    maps = RNG.normal(size=(2, 10, 10))
    resampling, guessed = onto(None, (10, 10), wanted, (5, 5))
    np.testing.assert_allclose(
        resampling(maps), maps.reshape(2, 5, 2, 5, 2).mean(axis=(2, 4)), atol=1e-15
    )
    assert len(guessed) == 1
    assert not onto(Grid((2.0, 2.0)), (12, 10), Grid((4.0, 4.0)), (5, 5))[1]


def test_signals():
    own = Grid((CELL,), LOW)
    resampling, guessed = onto(own, (470,), Grid((5 * CELL,), WANTED.redshifts), (90,))
    assert resampling.axes == (Axis(0, 450, 5),) and not guessed
    resampling, guessed = onto(None, (470,), Grid((5 * CELL,), WANTED.redshifts), (90,))
    assert resampling.axes == (Axis.even(470, 90),) and "depth is the same" in guessed[-1]
