"""
Make the bundled light cones
============================

The light cones that come with the package, ``skatr_sk/lightcones/data/``, are block means of a
file of full-size ones (28 x 28 x 470 cells of 7.14 Mpc). This is how they were made::

    python examples/run_bundle_lightcones.py lightcones_lr.h5 lightcones_lr_14x14x90.h5

It needs the full-size file, which is too large to come with the package.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from skatr_sk._files import write_whole
from skatr_sk.lightcones import coarsen
from skatr_sk.lightcones.guarded import write_hdf5

# 470 cells have no divisors between 10 and 47; 450 = 5 * 90 leaves an axis that patches of
# 2, 3, 5, 6, 9, 10 or 15 cells divide. In the farthest 20 the sky varies by 3 mK rms on average,
# less than half of what it does in the rest.
N_NEAREST = 450
# Twice the cell on the sky leaves 7 x 7 patches of 2 x 2, enough for masks of sky blocks.
BLOCK = (2, 2, 5)


def bundle(source: Path, destination: Path) -> None:
    """Write the block means of `source` to `destination`, whole or not at all."""

    def write(beside: Path) -> None:
        with h5py.File(source, "r") as full:
            write_hdf5(beside, lambda small: _write(full, small))

    write_whole(destination, write)


def _write(full: h5py.File, small: h5py.File) -> None:
    # Cone by cone: all of them in float64 would take most of a gigabyte.
    brightness = full["brightness_temp"]
    means = np.concatenate(
        [coarsen(cone[None, ..., :N_NEAREST], BLOCK).astype(np.float16) for cone in brightness]
    )
    attributes = dict(brightness.attrs)
    attributes["cell_mpc"] = attributes["cell_mpc"] * np.array(BLOCK)
    attributes["block"] = np.array(BLOCK)
    # All cones are read together, so chunks are about a megabyte rather than a cone.
    _dataset(
        small, "brightness_temp", means, attributes, chunks=(min(32, len(means)), *means.shape[1:])
    )
    # Cells have a fixed comoving size, so the centre of a block is its middle cell.
    middle = full["redshifts"][:, BLOCK[-1] // 2 : N_NEAREST : BLOCK[-1]]
    _dataset(small, "redshifts", middle, full["redshifts"].attrs)
    for name in ("parameters", "seed", "global_xH", "node_redshifts"):
        _dataset(small, name, full[name][:], full[name].attrs)


def _dataset(
    file: h5py.File,
    name: str,
    values: np.ndarray,
    attributes: Mapping[str, Any],
    chunks: tuple[int, ...] | bool = True,
) -> None:
    # The checksum lets a reader tell a damaged file; no time stamps, so that the same input
    # and library give the same bytes.
    dataset = file.create_dataset(
        name,
        data=values,
        chunks=chunks,
        compression="gzip",
        compression_opts=9,
        shuffle=True,
        fletcher32=True,
        track_times=False,
    )
    dataset.attrs.update(attributes)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("source", type=Path, help="HDF5 file of full-size light cones")
    parser.add_argument("destination", type=Path, help="HDF5 file to write")
    arguments = parser.parse_args()
    bundle(arguments.source, arguments.destination)
    print(f"{arguments.destination}: {arguments.destination.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
