"""The ways by which a file gets into the package, one function each."""

from pathlib import Path

from skatr_sk import open_lightcones

N_GOOD = 4  # light cones in good files that lie beside a bad one


def lightcones(path):
    """Open a file of light cones, and read all of it."""
    return open_lightcones(path, validate="full").data.read().shape


def beside_good_ones(path):
    """Open the files of a folder but the bad: what is left, and the names of what is not."""
    found = open_lightcones(Path(path), validate="full", on_bad="drop")
    return len(found.data.read()), sorted({Path(name).name for name in found.report["file"]})
