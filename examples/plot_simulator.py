"""
Simulated beside real light cones
=================================

:func:`~skatr_sk.make_lightcones` simulates light cones in a quarter of a second each. Here are
some of them beside the real 21cmFAST light cones that come with the package. They have the same
parameters and other initial conditions, so that statistics can be compared, but not cells.

They are for pre-training and tests, not for inference on real data: see :doc:`/simulator`.
"""

# %%
# The same parameters
# -------------------
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D

from skatr_sk import load_lightcones, make_lightcones
from skatr_sk.evaluation import LightconeDisplay

FAST = os.environ.get("SKATR_SK_FAST") == "1"  # a glance, for the test suite
torch.set_num_threads(1)

cones = load_lightcones()
rows = np.arange(0, len(cones.data), 60 if FAST else 4)
real, z = cones.data[rows], cones.redshifts[rows]
start = time.perf_counter()
simulated, _ = make_lightcones(
    len(rows),
    field_shape=(14, 14, 90),
    block=(2, 2, 5),  # simulated on 28 x 28 x 450 cells, as the real ones were
    parameters=cones.target[rows],
    random_state=0,
)
seconds = time.perf_counter() - start
print(f"{len(rows)} light cones in {seconds:.1f} s: {seconds / len(rows):.2f} s each on one core")

# %%
# Along the line of sight
# -----------------------
# Three light cones, real above simulated: a cut along the line of sight, and the sky where it
# varies most. The structures differ; their size, strength and timing should be alike.
shown = [0, 1, 3]
pairs = np.stack([real[shown], simulated[shown]], axis=1).reshape(-1, *real.shape[1:])
display = LightconeDisplay.from_lightcones(
    pairs,
    redshifts=np.repeat(z[shown], 2, axis=0),
    names=["21cmFAST", "simulated"] * len(shown),
    y=np.repeat(cones.target[rows][shown], 2, axis=0),
    parameter_names=cones.target_names,
    parameter_units=cones.target_units,
    cell_size=cones.cell_size[0],
)
display.figure_.savefig("simulator_slices.png", dpi=120)

# %%
# Global signals and standard deviations
# --------------------------------------
# Mean and standard deviation of every redshift slice: real as lines, simulated dashed, a colour for
# each light cone.
means = [each.mean(axis=(1, 2), dtype=np.float64) for each in (real, simulated)]
deviations = [each.std(axis=(1, 2), dtype=np.float64) for each in (real, simulated)]
colors = plt.colormaps["viridis"](np.linspace(0, 0.9, 8))
figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
for i, row in enumerate(range(0, len(rows), max(1, len(rows) // 6))):
    for axis, values in zip(axes, (means, deviations), strict=True):
        axis.plot(z[row], values[0][row], color=colors[i])
        axis.plot(z[row], values[1][row], color=colors[i], linestyle="--")
axes[0].set_ylabel("mean [mK]")
axes[0].axhline(0, color="0.7", linewidth=0.8, zorder=0)
styles = {"21cmFAST": "-", "simulated": "--"}
lines = [
    Line2D([], [], color="black", linestyle=style, label=name) for name, style in styles.items()
]
figure.legend(handles=lines, loc="outside upper center", ncols=2, frameon=False)
axes[1].set_ylabel("standard deviation [mK]")
axes[1].set_xlabel("redshift")
figure.savefig("simulator_signals.png", dpi=120)

# %%
# In numbers
# ----------
error = np.abs(means[0] - means[1])
bright = deviations[0] > 2
ratio = deviations[1][bright] / deviations[0][bright]
deepest = [z[np.arange(len(z)), mean.argmin(1)] for mean in means]
off = np.median(np.abs(deepest[0] - deepest[1]))
alike = np.mean(np.abs(np.log(ratio)) < np.log(1.5))
print(
    f"mean of a slice: absolute error {np.median(error):.2f} mK (median), {error.mean():.2f} (mean)"
)
print(f"standard deviation of a slice: median ratio to the real one {np.median(ratio):.2f},")
print(f"    within a factor 1.5 in {alike:.0%} of slices")
print(f"redshift of the deepest absorption: median error {off:.2f}")
plt.show()
