"""Light-cone files of 21cmFAST 3 and 4."""

import h5py
import numpy as np
import pytest

from skatr_sk import LightconeArray, open_lightcones
from skatr_sk.parameters import PARAMETER_NAMES
from skatr_sk.simulator.cosmology import comoving_distances
from tests.lightcones.layouts import BOX_LEN, HII_DIM, REDSHIFT, cone, thetas, write_v3, write_v4

SIX = list(PARAMETER_NAMES)


@pytest.mark.parametrize("version", ["3.3.1", "3.4.0"])
def test_version_3(tmp_path, version):
    given = thetas(3)
    for k, theta in enumerate(given):
        write_v3(tmp_path / f"LightCone_{k}.h5", seed=k, n_z=20 + k, theta=theta, version=version)
    with pytest.warns(UserWarning, match=r"of up to 22 slices are cropped to 20 by .*LightCone_0"):
        cones = open_lightcones(tmp_path, validate="full")
    assert isinstance(cones.data, LightconeArray)
    assert cones.data.shape == (3, HII_DIM, HII_DIM, 20)
    assert cones.target_names == SIX
    np.testing.assert_allclose(cones.target, given, rtol=1e-6)  # m_WDM is a float32 there
    np.testing.assert_array_equal(cones.seeds, [0, 1, 2])
    np.testing.assert_array_equal(np.asarray(cones.data)[2], cone(2, 22)[..., :20])
    assert cones.redshifts.shape == (3, 20)
    for z, theta in zip(cones.redshifts.astype(np.float64), given, strict=True):
        far = comoving_distances(z, theta[1])
        np.testing.assert_allclose(np.diff(far), BOX_LEN / HII_DIM, rtol=1e-3)
        assert z[0] == pytest.approx(REDSHIFT, rel=1e-6)
    assert len(cones.report) == 0


def test_version_4_is_trimmed_of_its_buffers(tmp_path):
    given = thetas(2)
    write_v4(tmp_path / "a.h5", seed=1, n_z=20, theta=given[0], low=2, high=1)
    write_v4(tmp_path / "b.h5", seed=2, n_z=18, theta=given[1], low=0, high=3)
    with pytest.warns(UserWarning, match=r"of up to 20 slices are cropped to 18 by .*b\.h5"):
        cones = open_lightcones(tmp_path, validate="full")
    assert cones.data.shape == (2, HII_DIM, HII_DIM, 18)
    np.testing.assert_array_equal(cones.data[0], cone(1, 23)[..., 2:20])
    np.testing.assert_array_equal(cones.data[1], cone(2, 21)[..., :18])
    # There is no warm dark matter in version 4.
    assert cones.target_names == SIX[1:]
    np.testing.assert_allclose(cones.target, [theta[1:] for theta in given])
    np.testing.assert_allclose(cones.redshifts[:, 0], REDSHIFT, rtol=1e-6)
    np.testing.assert_array_equal(cones.seeds, [1, 2])


def test_only_parameters_that_the_simulation_used(tmp_path):
    write_v3(tmp_path / "cold.h5", warm=False)
    assert open_lightcones(tmp_path / "cold.h5").target_names == SIX[1:]
    write_v3(tmp_path / "mass.h5", USE_MASS_DEPENDENT_ZETA=True)
    assert open_lightcones(tmp_path / "mass.h5").target_names == SIX[:4]
    write_v4(tmp_path / "new.h5", SOURCE_MODEL="E-INTEGRAL")
    assert open_lightcones(tmp_path / "new.h5").target_names == SIX[1:4]


def test_parameters_by_name_linear_ones_as_logarithms(tmp_path):
    write_v3(tmp_path / "a.h5", L_X=10**41.0, SIGMA_8=0.75)
    cones = open_lightcones(tmp_path / "a.h5", parameters=["SIGMA_8", "log10_L_X", "F_STAR10"])
    np.testing.assert_allclose(cones.target, [[0.75, 41.0, -1.3]])
    assert cones.target_names == ["SIGMA_8", "log10_L_X", "F_STAR10"]


def test_a_misspelt_parameter_is_said_once(tmp_path):
    for name in "abc":
        write_v3(tmp_path / f"{name}.h5")
    near = {"SIGMA_9": "SIGMA_8", "OMmm": "OMm", "hii_eff_factr": "HII_EFF_FACTOR"}
    for wrong, right in near.items():
        with pytest.raises(
            ValueError, match=f"^parameters: .*{wrong}'; did you mean '{right}'"
        ) as e:
            open_lightcones(tmp_path, parameters=["m_WDM", wrong])
        assert len(str(e.value)) < 200
    with pytest.raises(ValueError, match="found 'xyzzy'; there are BOX_LEN, DIM, .* more$"):
        open_lightcones(tmp_path, parameters=["xyzzy"])


def test_another_field_of_the_simulation(tmp_path):
    write_v3(tmp_path / "a.h5", seed=4)
    cones = open_lightcones(tmp_path / "a.h5", dataset="density")
    np.testing.assert_array_equal(cones.data[0], cone(1004, 20))


@pytest.mark.parametrize("of", ["group", "text"])
def test_what_is_no_light_cone_is_a_fault_of_its_file(tmp_path, of):
    for k in range(2):
        write_v3(tmp_path / f"{k}.h5", seed=k)
    with h5py.File(tmp_path / "1.h5", "r+") as file:
        del file["lightcones/brightness_temp"]
        if of == "group":
            file.create_group("lightcones/brightness_temp")
        else:
            file["lightcones/brightness_temp"] = np.full((4, 4, 20), b"text")
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert len(cones.data) == 1
    assert cones.report["fault"].tolist() == ["missing" if of == "group" else "shape"]


@pytest.mark.slow
def test_a_file_of_21cmfast_itself(tmp_path):
    """One real light cone of whatever version is installed."""
    p21c = pytest.importorskip("py21cmfast")
    if p21c.__version__ < "4":
        with p21c.config.use(direc=str(tmp_path)):
            made = p21c.run_lightcone(
                redshift=7.0,
                max_redshift=9.0,
                user_params={"HII_DIM": 16, "BOX_LEN": 50},
                random_seed=3,
                write=False,
            )
        made.save(str(tmp_path / "cone.h5"), direc=str(tmp_path))
        redshifts = made.lightcone_redshifts
    else:
        inputs = p21c.InputParameters.from_template("simple-small", random_seed=3)
        lightconer = p21c.RectilinearLightconer.with_equal_cdist_slices(
            min_redshift=7.0, max_redshift=9.0, resolution=inputs.simulation_options.cell_size
        )
        made = p21c.run_lightcone(lightconer=lightconer, inputs=inputs, write=False)
        made.save(tmp_path / "cone.h5")
        redshifts = made.lightcone_redshifts
    cones = open_lightcones(tmp_path / "cone.h5")
    np.testing.assert_allclose(cones.data[0], made.lightcones["brightness_temp"])
    np.testing.assert_allclose(cones.redshifts[0], redshifts, rtol=1e-3)
    assert cones.seeds[0] == 3


def test_a_simulation_whose_cone_is_a_link(tmp_path):
    write_v3(tmp_path / "far.h5")
    write_v3(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["lightcones/brightness_temp"]
        far = h5py.ExternalLink(str(tmp_path / "far.h5"), "/lightcones/brightness_temp")
        file["lightcones/brightness_temp"] = far
    with pytest.raises(ValueError, match=r"elsewhere: .*in other files \(.*far\.h5\)"):
        open_lightcones(tmp_path / "a.h5")
