"""Files as 21cmFAST 3.3, 3.4 and 4.1 and the authors of SKATR write them, small."""

import h5py
import numpy as np

from skatr_sk.lightcones import close_files
from skatr_sk.simulator.cosmology import HUBBLE, comoving_distances

N, FIELD = 12, (4, 4, 10)

# Values of the six parameters, in the paper's order.
THETA = (3.0, 0.3, 500.0, 40.5, 4.7, 30.0)
BOX_LEN, HII_DIM, REDSHIFT = 30.0, 4, 6.0


def values(n=N, field=FIELD, seed=0, kind=np.float32):
    """Light cones of noise."""
    return np.random.default_rng(seed).normal(-20, 40, (n, *field)).astype(kind)


def thetas(n):
    """Values of the six parameters for some light cones."""
    rng = np.random.default_rng(5)
    return [
        tuple(rng.uniform([1, 0.2, 100, 38, 4, 10], [9, 0.4, 1500, 42, 5, 250])) for _ in range(n)
    ]


def edit(path, change):
    """Change an HDF5 file that may be open here."""
    close_files()
    with h5py.File(path, "r+") as file:
        change(file)


def cone(seed, n_z, n_sky=HII_DIM):
    return np.random.default_rng(seed).normal(-30, 20, (n_sky, n_sky, n_z)).astype(np.float32)


def distances(omega_m, n_z, low=0):
    """A cell apart from the redshift on; `low` buffer slices lie before it."""
    return comoving_distances(REDSHIFT, omega_m) + BOX_LEN / HII_DIM * (np.arange(n_z) - low)


def write_v3(path, seed=1, n_z=20, theta=THETA, version="3.4.0", warm=True, **changed):
    """As ``LightCone.save`` of version 3: inputs as attributes of groups, None left out."""
    m_wdm, omega_m, e_0, l_x, t_vir, zeta = theta
    groups = {
        "user_params": {
            "BOX_LEN": BOX_LEN,
            "DIM": 12,
            "HII_DIM": HII_DIM,
            "USE_INTERPOLATION_TABLES": True,
            "POWER_SPECTRUM": 0,
        },
        "cosmo_params": {
            "SIGMA_8": 0.8102,
            "hlittle": HUBBLE,
            "OMm": omega_m,
            "OMb": 0.04897,
            "POWER_INDEX": 0.9665,
        },
        "flag_options": {"USE_MASS_DEPENDENT_ZETA": False, "USE_TS_FLUCT": True},
        "astro_params": {
            "HII_EFF_FACTOR": zeta,
            "F_STAR10": -1.3,
            "ION_Tvir_MIN": t_vir,
            "L_X": l_x,
            "NU_X_THRESH": e_0,
            "N_RSD_STEPS": 20,
        },
        "_globals": {
            "M_WDM": np.float32(m_wdm),
            "P_CUTOFF": int(warm),
            "NU_X_BAND_MAX": 2000.0,
            "wisdoms_path": "cache",
        },
    }
    nodes = np.geomspace(1 + REDSHIFT, 20, 6)[::-1] - 1
    with h5py.File(path, "w") as file:
        for group, attributes in groups.items():
            created = file.create_group(group)
            for name, value in attributes.items():
                created.attrs[name] = changed.get(name, value)
        file.attrs["redshift"] = REDSHIFT
        file.attrs["random_seed"] = seed
        file.attrs["version"] = version
        boxes = file.create_group("lightcones")
        boxes["brightness_temp"] = cone(seed, n_z)
        boxes["density"] = cone(seed + 1000, n_z)
        file.create_group("global_quantities")["brightness_temp"] = np.zeros(6)
        file["node_redshifts"] = nodes
        if version >= "3.4":
            file["distances"] = distances(omega_m, n_z)


def write_v4(path, seed=1, n_z=20, theta=THETA, low=2, high=1, **changed):
    """As ``LightCone.save`` of version 4: buffers at both ends, inputs in a group of their own."""
    _, omega_m, e_0, l_x, t_vir, zeta = theta
    total = n_z + low + high
    groups = {
        "cosmo_params": {"hlittle": HUBBLE, "OMm": omega_m, "OMb": 0.04897, "POWER_INDEX": 0.9665},
        "simulation_options": {"BOX_LEN": BOX_LEN, "HII_DIM": HII_DIM, "N_THREADS": 1},
        "matter_options": {"SOURCE_MODEL": "CONST-ION-EFF", "HMF": "ST"},
        "astro_options": {"USE_TS_FLUCT": True},
        "astro_params": {
            "HII_EFF_FACTOR": zeta,
            "ION_Tvir_MIN": t_vir,
            "L_X": l_x,
            "NU_X_THRESH": e_0,
            "F_STAR10": -1.3,
        },
    }
    nodes = np.geomspace(1 + REDSHIFT, 20, 6)[::-1] - 1
    with h5py.File(path, "w") as file:
        file.attrs["lightcone"] = True
        file.attrs["last_completed_node"] = changed.pop("last_completed_node", len(nodes) - 1)
        file.attrs["last_completed_lcidx"] = 0
        file.attrs["lowz_buffer_pixels"] = low
        file.attrs["highz_buffer_pixels"] = high
        file.attrs["__version__"] = "4.1.1"
        file.create_group("photon_nonconservation_data")
        boxes = file.create_group("lightcones")
        boxes["brightness_temp"] = cone(seed, total)
        boxes["los_velocity"] = cone(seed + 1000, total)
        file.create_group("global_quantities")["brightness_temp"] = np.zeros(6)
        file["lightcone_distances"] = distances(omega_m, total, low)
        inputs = file.create_group("InputParameters")
        inputs.attrs["21cmFAST-version"] = "4.1.1"
        for group, attributes in groups.items():
            created = inputs.create_group(group)
            for name, value in attributes.items():
                created.attrs[name] = changed.get(name, value)
        tables = inputs.create_group("cosmo_tables")
        tables.attrs["USE_SIGMA_8"] = True
        tables.create_group("transfer_density").attrs["x_values"] = np.arange(3.0)
        inputs.attrs["random_seed"] = seed
        inputs["node_redshifts"] = nodes


def write_npz(path, seed=1, n_z=20, theta=THETA):
    np.savez(path, image=cone(seed, n_z), label=np.array(theta))
