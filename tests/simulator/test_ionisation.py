"""Radii of the excursion set."""

from skatr_sk.simulator.ionisation import bubble_radii


def test_bubbles_shrink_to_a_cell():
    radii = [round(radius, 1) for radius in bubble_radii(200 / 28)]
    assert radii == [15.0, 13.9, 12.6, 11.5, 10.4, 9.5, 8.6, 7.8, 7.1, 6.5, 5.9, 5.4, 4.4]
