"""LightconeDisplay: the slices that it shows, its axes and colours, and what it refuses."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skatr_sk import load_lightcones, open_lightcones, save_lightcones
from skatr_sk.evaluation import LightconeDisplay

Z = np.linspace(5.5, 9.4, 40)


@pytest.fixture
def cones(rng):
    X = rng.normal(-20, 5, size=(3, 4, 6, 40)).astype(np.float32)
    X[:, :, :, 30] *= np.linspace(-1, 3, 6)  # varies most
    return X


def test_the_cut_and_the_sky_are_those_of_the_light_cone(cones):
    display = LightconeDisplay.from_lightcones(cones, redshifts=Z, cell_size=2.0)
    np.testing.assert_array_equal(display.cuts_, cones[:, :, 3])
    np.testing.assert_array_equal(display.skies_, cones[..., 30])
    assert display.sky_index_.tolist() == [30, 30, 30]
    along, across = display.axes_[1]
    np.testing.assert_array_equal(along.images[0].get_array(), cones[1, :, 3])
    assert along.images[0].get_extent() == [0, 40, 0, 8]
    assert across.images[0].get_extent() == [0, 12, 0, 8]
    assert (along.get_ylabel(), across.get_title("left")) == ("sky [Mpc]", "z = 8.50")
    assert along.lines[0].get_xdata()[0] == 30.5
    near = LightconeDisplay.from_lightcones(cones, redshifts=Z, sky_redshift=6.03)
    assert near.sky_index_.tolist() == [5, 5, 5]


def test_ticks_are_whole_redshifts_where_they_are(cones):
    display = LightconeDisplay.from_lightcones(cones[:1], redshifts=Z)
    axes = display.axes_[0, 0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["6", "7", "8", "9"]
    np.testing.assert_allclose(axes.get_xticks(), [5.5, 15.5, 25.5, 35.5])
    assert axes.get_xlabel() == "redshift"
    assert LightconeDisplay.from_lightcones(cones[0]).axes_[0, 0].get_xlabel() == "slice"


def test_colours_diverge_from_a_marked_zero(cones):
    cones[0, 0, 3, 0] = -200
    cones[2, 0, 3, 0] = 12
    display = LightconeDisplay.from_lightcones(cones)
    norm = display.axes_[0, 0].images[0].norm
    assert (norm.vmin, norm.vcenter, norm.vmax) == (-200, 0, max(12, display.skies_.max()))
    assert all(axes.images[0].norm is norm for axes in display.axes_.ravel())
    ticks = display.colorbar_.get_ticks()
    assert 0 in ticks and (ticks > 0).sum() >= 2 and (ticks < 0).sum() >= 2
    assert display.colorbar_.ax.lines[0].get_ydata()[0] == 0
    assert display.colorbar_.ax.get_title() == "emission"
    darker = LightconeDisplay.from_lightcones(-np.abs(cones), vmin=-50)
    norm = darker.axes_[0, 0].images[0].norm
    assert (norm.vmin, norm.vmax) == (-50, 1)  # some room for emission where there is none


def test_what_a_bunch_knows_is_shown():
    cones = load_lightcones()
    display = LightconeDisplay.from_bunch(cones, rows=[4, 0])
    np.testing.assert_array_equal(display.cuts_, cones.data[[4, 0], :, 7])
    title = display.axes_[0, 0].get_title("left")
    assert title.startswith("light cone 4:  $m_\\mathrm{WDM}$ = 6.5 keV,  $\\Omega_m$ = 0.2966")
    assert display.axes_[1, 1].get_xlabel() == "sky [Mpc]"
    ends = display.axes_[0, 1].images[0].get_extent()
    assert ends == pytest.approx((0, 200, 0, 200))
    display.figure_.draw_without_rendering()
    width, height = display.figure_.canvas.get_width_height()
    for axes in (*display.axes_.ravel(), display.colorbar_.ax):
        box = axes.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_files_are_read_where_they_are_shown(cones, tmp_path):
    save_lightcones(tmp_path / "cones.h5", cones, cell_size=2.0)
    stored = open_lightcones(tmp_path / "cones.h5")
    display = LightconeDisplay.from_bunch(stored, rows=[2])
    np.testing.assert_array_equal(display.cuts_[0], cones[2, :, 3])
    assert display.axes_[0, 0].get_title("left") == "light cone 2"
    assert display.cell_size == 2.0


def test_axes_of_the_user(cones):
    _, axes = plt.subplots(3, 2)
    assert LightconeDisplay.from_lightcones(cones, ax=axes).axes_ is axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"X": np.zeros((4, 4))}, r"X: expected one light cone .* found shape \(4, 4\)"),
        ({"X": np.zeros((13, 2, 2, 5))}, r"at most 12 .* choose some, X\[:3\]"),
        ({"redshifts": Z[::-1]}, r"redshifts: expected rising .* X\[..., ::-1\]"),
        ({"redshifts": Z[:-1]}, r"redshifts: expected shape \(1, 40\), found \(39,\)"),
        ({"names": ["a", "b"]}, "names: expected 1"),
        ({"y": [[1.0], [2.0]]}, r"y: expected shape \(1, 1\)"),
        ({"cell_size": 0}, "cell_size: expected a number in"),
        ({"vmin": 3}, "vmin: expected a number in"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        LightconeDisplay.from_lightcones(**({"X": np.zeros((1, 2, 2, 40))} | options))
    assert plt.get_fignums() == []
