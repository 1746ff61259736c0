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
from matplotlib.colors import TwoSlopeNorm

from skatr_sk import load_lightcones, make_lightcones

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
# One cut through each of three light cones, real above simulated. The structures differ; their
# size, strength and timing should be alike.
shown = [0, 1, 3]
figure, axes = plt.subplots(2 * len(shown), 1, figsize=(9, 8), layout="constrained")
for i, row in enumerate(shown):
    norm = TwoSlopeNorm(0, real[row].min(), max(real[row].max(), 5))
    for axis, (name, cone) in zip(
        axes[2 * i : 2 * i + 2], (("real", real[row]), ("simulated", simulated[row])), strict=True
    ):
        image = axis.imshow(cone[:, 7], aspect="auto", cmap="RdBu_r", norm=norm)
        axis.set_ylabel(name)
        axis.set_yticks([])
        ticks = np.arange(0, 90, 15)
        axis.set_xticks(ticks, [f"{at:.1f}" for at in z[row][ticks]])
    figure.colorbar(image, ax=axes[2 * i : 2 * i + 2], label="mK")
axes[-1].set_xlabel("redshift")
figure.savefig("simulator_slices.png", dpi=120)

# %%
# Global signals and standard deviations
# --------------------------------------
# Mean and standard deviation of every redshift slice: real as lines, simulated dashed.
means = [each.mean(axis=(1, 2), dtype=np.float64) for each in (real, simulated)]
deviations = [each.std(axis=(1, 2), dtype=np.float64) for each in (real, simulated)]
figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
for i, row in enumerate(range(0, len(rows), max(1, len(rows) // 6))):
    for axis, values in zip(axes, (means, deviations), strict=True):
        axis.plot(z[row], values[0][row], color=f"C{i}")
        axis.plot(z[row], values[1][row], color=f"C{i}", linestyle="--")
axes[0].set_ylabel("mean [mK]")
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
