"""Light cones in files of several kinds, and a count of what is read."""

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk.lightcones.sources import Hdf5Source
from tests.lightcones import layouts


@pytest.fixture
def values():
    return layouts.values()


@pytest.fixture
def X(values, tmp_path):
    """Rows in two HDF5 files, one with chunks of several rows, and an .npy."""
    save_lightcones(tmp_path / "a.h5", values[:5])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("data", data=values[5:9], chunks=(3, 4, 4, 5), compression="gzip")
    np.save(tmp_path / "c.npy", values[9:])
    return open_lightcones([tmp_path / name for name in ("a.h5", "b.h5", "c.npy")]).data


@pytest.fixture
def reads(monkeypatch):
    """Rows that are read from HDF5 files, in the order of the readings."""
    seen = []
    load = Hdf5Source._load

    def counted(self, handle, row, out):
        seen.append((self.path[-4:], row, len(out)))
        load(self, handle, row, out)

    monkeypatch.setattr(Hdf5Source, "_load", counted)
    return seen
