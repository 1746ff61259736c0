"""Grid: what is compared of two grids, and the grid of a part of a field."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator

from skatr_sk import SimulatedLightcones, load_lightcones, open_lightcones, save_lightcones
from skatr_sk.fields import ChosenFields, check_fields
from skatr_sk.grid import Grid, depths_of, redshifts_of
from skatr_sk.simulator.cosmology import comoving_distances, redshifts_at
from tests.lightcones.layouts import BOX_LEN, HII_DIM, write_v3

CELL = 200 / 28


def of_slices(n=470, cell=CELL, omega_m=0.3, first=5.0, sky=CELL):
    z = redshifts_at(comoving_distances(first, omega_m) + cell * np.arange(n), omega_m)
    return Grid((sky, sky, cell), tuple(z))


def test_depths_are_comoving_distances_up_to_a_factor():
    for omega_m in (0.2, 0.4):
        z = redshifts_at(comoving_distances(5, omega_m) + np.linspace(0, 3000, 50), omega_m)
        depths = depths_of(z)
        even = np.linspace(depths[0], depths[-1], 50)
        assert np.abs(depths - even).max() < 2e-3 * (depths[-1] - depths[0])
        np.testing.assert_allclose(redshifts_of(depths), z)


def test_one_grid_in_any_cosmology():
    fine = of_slices()
    for omega_m in (0.2, 0.25, 0.4):
        assert not fine.differences(of_slices(omega_m=omega_m))
    assert not fine.differences(of_slices(cell=7.14, sky=7.14))
    assert fine.origin == pytest.approx(5 - 0.0065, abs=1e-3)


def test_what_differs_is_named():
    fine = of_slices()
    assert fine.differences(of_slices(sky=5.7)) == [
        "cells of 5.7 Mpc on axis 0, not 7.14",
        "cells of 5.7 Mpc on axis 1, not 7.14",
    ]
    assert fine.differences(of_slices(cell=5.7)) == ["cells of 5.7 Mpc on axis 2, not 7.14"]
    (start,) = fine.differences(of_slices(first=6.0))
    assert start == "the nearest slice from redshift 5.992, not 4.993"
    assert fine.differences(Grid((CELL,))) == ["1 axes, not 3"]
    uneven = Grid((CELL, CELL, None), tuple(np.linspace(5.0, 25.0, 470)))
    assert "slices that are not of one comoving size" in fine.differences(uneven)


def test_what_is_not_known_does_not_differ():
    fine = of_slices()
    assert not fine.differences(Grid((None, None, None)))
    assert not Grid((None, None, None)).differences(fine)
    assert not fine.differences(Grid((CELL, CELL, CELL)))
    assert not fine.differences(Grid((None, None, None), fine.redshifts))


def test_grid_of_a_part():
    fine = of_slices()
    part = fine.cut((slice(None), slice(2, 9), slice(100, 300, 2)), (28, 28, 470))
    assert part.cell_size == (CELL, CELL, 2 * CELL)
    assert part.redshifts == fine.redshifts[100:300:2]
    assert part.start == pytest.approx(99.5 * CELL) and part.origin == fine.origin
    # The redshift of the near edge differs between cosmologies, and is not compared.
    other = of_slices(omega_m=0.4).cut(
        (slice(None), slice(None), slice(100, 300, 2)), (28, 28, 470)
    )
    assert abs(other.nearest - part.nearest) > 0.2 and not part.differences(other)
    assert part.differences(fine.cut((slice(None),) * 2 + (slice(104, 304, 2),), (28, 28, 470)))
    again = part.cut((slice(None), slice(None), slice(10, None)), (28, 7, 100))
    assert again.start == pytest.approx(99.5 * CELL + 20 * CELL)


@pytest.fixture(scope="module")
def bundled():
    return load_lightcones()


def test_simulated_and_bundled_cones_are_of_one_grid(bundled):
    options = dict(field_shape=(14, 14, 90), block=(2, 2, 5), random_state=0)
    simulated = SimulatedLightcones(4, **options).grid
    assert simulated.cell_size == pytest.approx((200 / 14, 200 / 14, 500 / 14))
    assert not simulated.differences(bundled.grid) and not bundled.grid.differences(simulated)
    other = SimulatedLightcones(4, **options | dict(redshift_min=5.1)).grid
    assert bundled.grid.differences(other)


def test_views_parts_and_choices_keep_the_grid():
    X = SimulatedLightcones(9, field_shape=(4, 4, 20), cell_size=10, random_state=0)
    assert X[[2, 1]].grid is X.grid
    assert ChosenFields((X, np.arange(3)), (X, np.arange(2))).grid is X.grid
    part = X[3:, 1:3, :, :7]
    assert part.grid == X.grid.cut((slice(1, 3), slice(None), slice(7)), (4, 4, 20))
    assert part[1:].grid is part.grid


def test_files_say_their_grid(bundled, tmp_path):
    save_lightcones(tmp_path / "a.h5", bundled)
    cones = open_lightcones(tmp_path / "a.h5")
    assert cones.grid == cones.data.grid == cones.data[5:].grid == bundled.grid
    bare = bundled.data[:9], bundled.target[:9]
    of_rows = bundled.redshifts[:9]
    save_lightcones(tmp_path / "b.h5", *bare, redshifts=of_rows, cell_size=(14.3, 14.3, 35.7))
    assert open_lightcones(tmp_path / "b.h5").grid.cell_size == (14.3, 14.3, 35.7)
    # Redshifts and Omega_m say how far slices are apart.
    save_lightcones(tmp_path / "c.h5", *bare, redshifts=of_rows)
    sky, sky_y, depth = open_lightcones(tmp_path / "c.h5").grid.cell_size
    assert sky is sky_y is None and depth == pytest.approx(500 / 14, rel=1e-3)
    save_lightcones(tmp_path / "d.h5", bare[0], redshifts=of_rows)
    with pytest.warns(UserWarning, match="nor are their cells known"):
        grid = open_lightcones(tmp_path / "d.h5").grid
    assert grid.cell_size == (None,) * 3 and not bundled.grid.differences(grid)
    save_lightcones(tmp_path / "e.h5", bare[0])
    assert open_lightcones(tmp_path / "e.h5").grid is None
    with pytest.raises(ValueError, match="cell_size: expected one for each of 3 axes"):
        save_lightcones(tmp_path / "f.h5", bare[0], cell_size=(1.0, 2.0))


def test_a_part_keeps_its_place_in_a_file(tmp_path):
    X = SimulatedLightcones(1, field_shape=(4, 4, 30), cell_size=10, random_state=0)
    part = X[..., 10:]
    save_lightcones(tmp_path / "a.h5", part, X.target, redshifts=X.redshifts()[:, 10:])
    grid = open_lightcones(tmp_path / "a.h5", validate=False).grid
    assert (grid.origin, grid.start) == (X.grid.origin, part.grid.start)
    assert not part.grid.differences(grid)


def test_files_whose_sky_has_other_cells_do_not_go_together(bundled, tmp_path):
    for name, size in (("a", 14.3), ("b", 14.3), ("c", 7.1)):
        cells = bundled.data[:2] + len(name)
        save_lightcones(tmp_path / f"{name}.h5", cells + ord(name), cell_size=(size, size, 35.7))
    with pytest.raises(ValueError, match=r"cells of the sky 7.1 Mpc apart; most are 14.3"):
        open_lightcones(tmp_path)


def test_simulations_say_their_grid(tmp_path):
    write_v3(tmp_path / "a.h5", n_z=9)
    grid = open_lightcones(tmp_path / "a.h5", validate=False).grid
    assert grid.cell_size == pytest.approx((BOX_LEN / HII_DIM,) * 3) and len(grid.redshifts) == 9


def test_labelled_arrays_say_their_grid(bundled):
    pytest.importorskip("xarray")
    from skatr_sk.lightcones import to_xarray

    known, labelled = type("Known", (BaseEstimator,), {})(), to_xarray(bundled)[:5]
    grid = check_fields(known, labelled, reset=True).grid
    assert grid.cell_size == bundled.grid.cell_size and not bundled.grid.differences(grid)
    del labelled.attrs["cell_mpc"]
    grid = check_fields(known, labelled, reset=True).grid
    assert grid.cell_size == (None,) * 3 and len(grid.redshifts) == 90
