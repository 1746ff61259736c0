"""Shells around a point."""

from skatr_sk.simulator.sources import shell_radii


def test_shells_grow_from_a_cell_outwards():
    radii = [round(radius) for radius in shell_radii(200 / 28)]
    assert radii == [4, 7, 11, 18, 29, 47, 76, 121, 194, 312]
