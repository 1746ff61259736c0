"""Light-cone files of 21cmFAST 3 and 4."""

import h5py
import numpy as np
import pytest

from skatr_sk import LightconeArray, open_lightcones
from skatr_sk.parameters import PARAMETER_NAMES
from skatr_sk.simulator.cosmology import HUBBLE, comoving_distances, redshifts_at
from tests.lightcones.layouts import (
    BOX_LEN,
    HII_DIM,
    REDSHIFT,
    cone,
    edit,
    thetas,
    write_v3,
    write_v4,
)

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


def test_inputs_without_groups(tmp_path):
    """Attributes of InputParameters itself, as some writers put them."""
    write_v4(tmp_path / "a.h5")

    def flatten(file):
        inputs = file["InputParameters"]
        for group in ("astro_params", "cosmo_params", "matter_options"):
            inputs.attrs.update(inputs[group].attrs)
            del inputs[group]

    wanted = open_lightcones(tmp_path / "a.h5")
    edit(tmp_path / "a.h5", flatten)
    found = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.target, wanted.target)
    assert found.target_names == wanted.target_names and len(found.target_names) == 5
    assert found.seeds == wanted.seeds
    np.testing.assert_array_equal(found.redshifts, wanted.redshifts)


@pytest.mark.parametrize("write", [write_v3, write_v4])
def test_stored_redshifts_where_there_are_no_distances(tmp_path, write):
    write(tmp_path / "a.h5", n_z=12)
    wanted = open_lightcones(tmp_path / "a.h5")
    low = 2 if write is write_v4 else 0

    def exchange(file):
        name = "lightcone_distances" if "lightcone_distances" in file else "distances"
        file["lightcone_redshifts"] = redshifts_at(file[name][:], 0.3, HUBBLE)
        del file[name]

    edit(tmp_path / "a.h5", exchange)
    found = open_lightcones(tmp_path / "a.h5")
    np.testing.assert_allclose(found.redshifts, wanted.redshifts, rtol=1e-5)
    np.testing.assert_array_equal(found.data[0], cone(1, 12 + low + low // 2)[..., low : low + 12])


@pytest.mark.parametrize("write", [write_v3, write_v4])
def test_a_simulation_that_is_stored_far_first(tmp_path, write):
    """With its distances, and the buffers at the other ends."""
    for k in range(2):
        write(tmp_path / f"{k}.h5", seed=k)
    wanted = open_lightcones(tmp_path)
    fields, redshifts = np.asarray(wanted.data), wanted.redshifts

    def turn(file):
        for name in ("lightcone_distances", "distances"):
            if name in file:
                file[name][:] = file[name][:][::-1]
        cells = file["lightcones/brightness_temp"]
        cells[:] = cells[:][..., ::-1]

    edit(tmp_path / "1.h5", turn)
    with pytest.warns(UserWarning, match=r"the redshifts fall in .*1\.h5: these"):
        found = open_lightcones(tmp_path, validate="full")
    np.testing.assert_array_equal(np.asarray(found.data), fields)
    np.testing.assert_array_equal(found.redshifts, redshifts)


def test_a_simulation_with_the_line_of_sight_first(tmp_path):
    write_v3(tmp_path / "a.h5")

    def turn(file):
        cells = np.moveaxis(file["lightcones/brightness_temp"][:], -1, 0)
        del file["lightcones/brightness_temp"]
        file["lightcones/brightness_temp"] = cells

    edit(tmp_path / "a.h5", turn)
    with pytest.raises(
        ValueError, match=r"axes: the distances lie along: .*moveaxis\(cells, 0, -1"
    ):
        open_lightcones(tmp_path / "a.h5")


def test_a_simulation_in_kelvin(tmp_path):
    write_v4(tmp_path / "a.h5")
    edit(
        tmp_path / "a.h5",
        lambda file: file["lightcones/brightness_temp"].attrs.update({"units": "K"}),
    )
    with pytest.warns(UserWarning, match="in kelvin"):
        found = open_lightcones(tmp_path / "a.h5", validate=False)
    np.testing.assert_allclose(found.data[0], 1000 * cone(1, 23)[..., 2:22], rtol=1e-6)


@pytest.mark.parametrize("box", ["BrightnessTemp", "InitialConditions", "HaloBox"])
def test_files_of_the_cache_are_named(tmp_path, box):
    write_v3(tmp_path / "a.h5")
    for k in range(3):
        with h5py.File(tmp_path / f"{box}_{k}.h5", "w") as file:
            file[f"{box}/brightness_temp"] = np.random.default_rng(k).normal(size=(8, 8, 8))
            file.create_group("user_params").attrs["HII_DIM"] = 8
    with pytest.raises(ValueError, match=rf"{box}_0\.h5: no light cone: 21cmFAST .* \({box}\);"):
        open_lightcones(tmp_path)
    with pytest.warns(UserWarning, match="3 things are wrong"):
        assert len(open_lightcones(tmp_path, on_bad="drop").data) == 1


def test_an_angular_light_cone_is_not_supported(tmp_path):
    write_v4(tmp_path / "a.h5")

    def flatten(file):
        del file["lightcones/brightness_temp"]
        file["lightcones/brightness_temp"] = np.ones((48, 23))

    edit(tmp_path / "a.h5", flatten)
    with pytest.raises(ValueError, match=r"\(48, 23\), .* an AngularLightcone is not supported"):
        open_lightcones(tmp_path / "a.h5")
