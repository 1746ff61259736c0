"""B-trees of chunks: a damaged one is told from a sound one before HDF5 opens it."""

import os

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones
from skatr_sk.lightcones.formats.chunk_trees import check_tree_of
from tests.lightcones.layouts import values

GROWING = dict(chunks=(1, 4, 4, 10), maxshape=(None,) * 4)


def write(path, userblock=0, libver="latest", **chunking):
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file.create_dataset("images", data=values(5), **chunking)
        for k in range(12):  # so many that the header goes on elsewhere
            file["images"].attrs[f"note {k}"] = k


def header_and_tree(data):
    """Bytes where the header of the dataset begins, and its tree, the one of type 10 or 11."""
    (tree,) = (at for at in range(len(data)) if data[at : at + 6] in (b"BTHD\0\n", b"BTHD\0\v"))
    return data.find(b"OHDR", data.find(b"OHDR") + 1), tree


def check(path, at):
    file = os.open(path, os.O_RDONLY)
    try:
        check_tree_of(file, at)
    finally:
        os.close(file)


@pytest.mark.parametrize("more", [{}, {"compression": "gzip"}, {"userblock": 1024}])
def test_each_damage_is_found(tmp_path, more):
    path = tmp_path / "cones.h5"
    write(path, **GROWING, **more)
    assert open_lightcones(path, validate="full").data.shape == (5, 4, 4, 10)
    sound = path.read_bytes()
    header, tree = header_and_tree(sound)
    check(path, header)
    for k in range(38):
        path.write_bytes(sound[: tree + k] + bytes([sound[tree + k] ^ 16]) + sound[tree + k + 1 :])
        with pytest.raises(OSError, match=f"a damaged B-tree of chunks at byte {tree}$"):
            check(path, header)
    with pytest.raises(ValueError, match=rf"cones\.h5.*a damaged B-tree of chunks at byte {tree}"):
        open_lightcones(path)


def test_a_tree_beyond_the_end(tmp_path):
    path = tmp_path / "cones.h5"
    write(path, **GROWING)
    sound = path.read_bytes()
    header, tree = header_and_tree(sound)
    path.write_bytes(sound.replace(tree.to_bytes(8, "little"), (2**63).to_bytes(8, "little")))
    with pytest.raises(OSError, match="a damaged B-tree"):
        check(path, header)


@pytest.mark.parametrize("chunking", [{}, {"chunks": (1, 4, 4, 10)}, GROWING])
def test_headers_without_such_a_tree_pass(tmp_path, chunking):
    path = tmp_path / "cones.h5"
    write(path, libver="earliest", **chunking)
    data = path.read_bytes()
    for at in range(0, len(data), 8):
        check(path, at)
    with h5py.File(path, "w", libver="latest") as file:  # nothing was written: there is no tree
        file.create_dataset("images", (5, 4, 4, 10), "f4", **GROWING)
    data = path.read_bytes()
    check(path, data.find(b"OHDR", data.find(b"OHDR") + 1))


def test_a_damaged_header_is_left_to_hdf5(tmp_path):
    path = tmp_path / "cones.h5"
    write(path, **GROWING)
    sound = path.read_bytes()
    header, _ = header_and_tree(sound)
    rng = np.random.default_rng(0)
    for _ in range(200):
        at = header + int(rng.integers(4, 300))
        path.write_bytes(sound[:at] + rng.bytes(4) + sound[at + 4 :])
        try:
            check(path, header)
        except OSError as error:
            assert "a damaged B-tree" in str(error)
