"""Whether light cones lie on one grid."""

import numpy as np
import pytest

from skatr_sk import load_lightcones, open_lightcones, save_lightcones
from skatr_sk.lightcones.grids import compare_grids
from tests.lightcones.layouts import N, values, write_v3

GRID = np.linspace(5, 10, 100)


def test_a_short_file_does_not_crop_the_others(tmp_path):
    X = values(6, field=(4, 4, 100))
    for k in range(5):
        save_lightcones(tmp_path / f"a{k}.h5", X[k : k + 1], redshifts=GRID)
    save_lightcones(tmp_path / "b.h5", X[5:, ..., :55], redshifts=GRID[:55])
    with pytest.raises(ValueError, match=r"b\.h5: shape: a line of sight of 55 slices; most .*100"):
        open_lightcones(tmp_path, validate=False)


def test_fewer_slices_to_the_same_redshift_are_cosmology(tmp_path):
    """Simulations of one depth, Omega_m at the two ends of the paper's prior and between."""
    for k, (omega_m, n_z) in enumerate([(0.2, 134), (0.3, 110), (0.4, 95)]):
        theta = (3.0, omega_m, 500.0, 40.5, 4.7, 30.0)
        write_v3(tmp_path / f"{k}.h5", seed=k, theta=theta, n_z=n_z)
    with pytest.warns(UserWarning, match=r"up to 134 slices are cropped to 95 by .*2\.h5") as found:
        cones = open_lightcones(tmp_path)
    assert cones.data.shape[-1] == 95 and len(found) == 1 and "not those of most" not in str(found)
    ends = np.sort(cones.redshifts[:, -1])
    assert ends[-1] > 1.1 * ends[0]  # one comoving grid, and redshifts of three


@pytest.mark.parametrize("labelled", [True, False])
def test_grids_with_another_spacing(tmp_path, labelled):
    y = np.random.default_rng(0).uniform([1, 0.2], [9, 0.4], (N, 2)) if labelled else None
    names = ["m_WDM", "Omega_m"] if labelled else None
    for name, n, end in (("a", N, 10), ("b", N // 2, 30)):
        save_lightcones(
            tmp_path / f"{name}.h5",
            values(n, seed=n),
            None if y is None else y[:n],
            target_names=names,
            redshifts=np.linspace(5, end, 10),
        )
    for validate in (False, "fast", "full"):
        with pytest.raises(
            ValueError, match=r"(?s)6 things.*b\.h5, row 5: grid: .*to 30.000; expected .* 10.000"
        ):
            open_lightcones(tmp_path, validate=validate)


def test_a_spacing_that_another_cosmology_might_explain(tmp_path):
    save_lightcones(tmp_path / "a.h5", values(), redshifts=np.linspace(5, 10, 10))
    save_lightcones(tmp_path / "b.h5", values(6, seed=1), redshifts=np.linspace(5, 11, 10))
    with pytest.warns(UserWarning, match=r"of 6 light cones are not those of most \(up to 10.000"):
        open_lightcones(tmp_path)


def test_one_comoving_grid_in_many_cosmologies_is_in_order(tmp_path, recwarn):
    cones = load_lightcones()
    given = {"redshifts": cones.redshifts[:60], "target_names": cones.target_names}
    save_lightcones(tmp_path / "a.h5", cones.data[:60], cones.target[:60], **given)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 60
    assert not [w for w in recwarn if w.category is UserWarning]
    # Labels that were scaled say nothing of the cosmology, and must not be held against a file.
    low, high = cones.target_bounds.T
    scaled = (cones.target[:60] - low) / (high - low)
    save_lightcones(tmp_path / "a.h5", cones.data[:60], scaled, **given)
    with pytest.warns(UserWarning, match="not those of most"):
        assert len(open_lightcones(tmp_path / "a.h5").data) == 60


def test_simulations_with_hubble_constants_of_their_own(tmp_path, recwarn):
    for k, hlittle in enumerate([0.55, 0.6, 0.65, 0.7, 0.75, 0.8]):
        write_v3(tmp_path / f"{k}.h5", seed=k, version="3.3.1", n_z=100, hlittle=hlittle)
    cones = open_lightcones(tmp_path)
    assert np.ptp(cones.redshifts[:, -1]) > 0.1 * cones.redshifts[:, -1].min()
    assert not [w for w in recwarn if w.category is UserWarning]


def test_a_grid_that_reaches_farther():
    near, far = np.linspace(5, 10, 40), np.linspace(5, 30, 40)
    odd, *_ = compare_grids(np.stack([near, near, far]), np.full(3, 0.3), np.full(3, 0.7))
    assert odd.tolist() == [False, False, True]


@pytest.mark.parametrize("hubble", [0.0, -0.7, np.nan, np.inf])
def test_a_hubble_constant_that_cannot_be(hubble):
    near = np.linspace(5, 10, 40)
    grids = np.stack([near, near, 1.1 * near])
    odd, *_ = compare_grids(grids, np.full(3, 0.3), np.full(3, hubble))
    assert odd.tolist() == [False, False, True]
