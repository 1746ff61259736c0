"""
Your own files: six layouts, one table
======================================

Simulations are stored in many ways. Here 30 light cones are written in six of them, one in each
file, and each folder is opened in one line by :func:`~skatr_sk.open_lightcones`. All end at the
same light cones and the same table of parameters. What had to be put right on the way is said in a
warning; here it is printed.
"""

# %%
# Six ways to store 30 light cones
# --------------------------------
# Each function writes one light cone: its cells in mK, its six parameters, its redshifts, and the
# seed of its initial conditions.
import tempfile
import warnings
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from scipy.integrate import quad

from skatr_sk import load_lightcones, open_lightcones

cones = load_lightcones()
NAMES = cones.target_names


def authors_of_skatr(path, cells, y, z, seed):
    """An npz of ``image`` and ``label``, the parameters in the order of the paper, not named."""
    np.savez(path.with_suffix(".npz"), image=cells, label=y)


def luminosity_first(path, cells, y, z, seed):
    """As others store them: log10 L_X before E_0, and not named either."""
    np.savez(path.with_suffix(".npz"), lightcone=cells, parameter=y[[0, 1, 3, 2, 4, 5]])


def groups(path, cells, y, z, seed):
    """HDF5 with the light cone and its parameters in groups."""
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["lightcone/brightness_temp"] = cells
        file["lightcone/redshifts"] = z
        file["params/names"] = NAMES
        file["params/values"] = y


def kelvin_far_first(path, cells, y, z, seed):
    """HDF5 in kelvin, the farthest slice first, and the labels as a table of one row."""
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["image"] = cells[..., ::-1] / 1000
        file["image"].attrs["units"] = "K"
        file["redshifts"] = z[::-1]
        file["label"] = y[None]


def batches(path, cells, y, z, seed):
    """Packed npz of a batch each: here of a single light cone."""
    np.savez_compressed(path.with_suffix(".npz"), X=cells[None], y=y[None], seeds=[seed])


def twentyonecmfast(path, cells, y, z, seed):
    """What ``LightCone.save`` of 21cmFAST 3 writes, as far as it matters here."""
    value = dict(zip(NAMES, y, strict=True))
    astro = dict(NU_X_THRESH=value["E_0"], L_X=value["log10_L_X"])
    astro |= dict(ION_Tvir_MIN=value["log10_T_vir"], HII_EFF_FACTOR=value["zeta"])
    cosmo = dict(OMm=value["Omega_m"], hlittle=0.6766)

    def hubble_distance(x):
        return 2997.92458 / 0.6766 / np.sqrt(cosmo["OMm"] * ((1 + x) ** 3 - 1) + 1)

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["lightcones/brightness_temp"] = cells
        file["distances"] = [quad(hubble_distance, 0, one)[0] for one in z]
        file.attrs["random_seed"] = int(seed)
        file.create_group("cosmo_params").attrs.update(cosmo)
        file.create_group("astro_params").attrs.update(astro)
        file.create_group("_globals").attrs.update(dict(M_WDM=value["m_WDM"], P_CUTOFF=1))


LAYOUTS = (authors_of_skatr, luminosity_first, groups, kelvin_far_first, batches, twentyonecmfast)

# %%
# One line for each
# -----------------
N = 30
y = cones.target[:N]
found = {}
with tempfile.TemporaryDirectory() as home:
    for layout in LAYOUTS:
        folder = Path(home, layout.__name__)
        folder.mkdir()
        for k in range(N):
            given = cones.data[k].astype(np.float32), y[k], cones.redshifts[k], cones.seeds[k]
            layout(folder / f"run{k:02d}", *given)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            opened = open_lightcones(folder)  # the one line
        found[layout.__name__] = opened | {"data": opened.data.read()}
        print(f"{layout.__name__}: {opened.data.shape}, {', '.join(opened.target_names)}")
        for note in notes:
            for line in str(note.message).replace(f"{folder}/", "").splitlines()[1:]:
                print("   ", line)

# %%
# The same table
# --------------
# Whatever the order of the labels, the unit and the direction of the line of sight in the files.
print("layout           ", *(f"{name:>11}" for name in NAMES), " cells right")
for name, opened in found.items():
    same = np.allclose(opened["data"], cones.data[:N].astype(np.float32), atol=1e-3)
    assert same and np.allclose(opened["target"], y) and opened["target_names"] == NAMES
    print(f"{name:17}", *(f"{value:11.4g}" for value in opened["target"][7]), f" {same}")

# %%
# The same light cone
# -------------------
# A cut through the eighth light cone from each folder: blue is absorption, red emission.
figure, axes = plt.subplots(len(found), 1, figsize=(8, 8), layout="constrained", sharex=True)
norm = TwoSlopeNorm(0, -220, 30)
for axis, (name, opened) in zip(axes, found.items(), strict=True):
    image = axis.imshow(opened["data"][7][7], aspect="auto", cmap="RdBu_r", norm=norm)
    axis.set(title=name.replace("_", " "), ylabel="y [cells]")
axes[-1].set_xlabel("line of sight [cells], nearest first")
figure.colorbar(image, ax=axes, label="brightness temperature [mK]")
plt.show()
