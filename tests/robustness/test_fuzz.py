"""Files of light cones with bytes that hypothesis chose: whatever they do, they do it by name.

Arrays of numpy are read by Python, and so in this process. HDF5 is not: what it does to a process
it does to one of its own.
"""

import warnings

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skatr_sk import open_lightcones, save_lightcones
from tests.lightcones.layouts import values, write_npz, write_v3, write_v4
from tests.robustness.hostile_lightcones import CELLS, LABELS, N, header

BEGINNING = 3000  # bytes where most of what is not cells lies


def _npy(path):
    np.save(path, CELLS)


def _packed(path):
    np.savez_compressed(path, image=CELLS[0], label=LABELS[0])


def _stack(path):
    grid = np.linspace(5, 9, 10)
    save_lightcones(path, CELLS, LABELS, redshifts=grid, seeds=np.arange(N), compression="gzip")


def _new_layout(path):
    """As other programs write it: another kind of index for each shape of chunks."""
    with h5py.File(path, "w", libver="latest") as file:
        file["images"] = values(N)
        file["params"] = LABELS[:, :2]
        file["params"].attrs["names"] = ["a", "b"]
        for name, most in (("fixed", (N, 4, 4)), ("growing", (None, 4, 4)), ("both", (None,) * 3)):
            file.create_dataset(name, data=CELLS[..., 0], chunks=(2, 4, 4), maxshape=most)


IN_PYTHON = {"npy": _npy, "npz": write_npz, "packed.npz": _packed}
IN_HDF5 = {"stack.h5": _stack, "new.h5": _new_layout, "v3.h5": write_v3, "v4.h5": write_v4}


@st.composite
def damaged(draw, data):
    """A file's bytes with some overwritten, and perhaps its end cut off."""
    data = bytearray(data)
    places = st.integers(0, min(len(data), BEGINNING) - 1) | st.integers(0, len(data) - 1)
    patterns = st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0" * 8, b"\xff" * 8])
    for place, pattern in draw(st.lists(st.tuples(places, patterns), min_size=1, max_size=4)):
        data[place : place + len(pattern)] = pattern
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


def _headers():
    """Arrays whose header says anything, as numpy would write it."""
    sizes = st.integers(-(2**70), 2**70) | st.integers(0, 10) | st.booleans() | st.floats()
    shapes = st.lists(sizes, max_size=6).map(tuple) | st.text(max_size=5) | st.none()
    types = st.sampled_from(
        ["<f4", "<f2", ">f8", "<i8", "|u1", "|O", "<U9", "|V8", "<f16", "<M8[s]"]
    )
    types |= st.text(max_size=4) | st.lists(st.tuples(st.text(max_size=3), types), max_size=3)
    version, extra = st.integers(0, 4), st.sampled_from(["", "'more': 1", "'shape': (1, 2)"])

    def write(descr, shape, version, extra):
        text = header(ascii(descr), ascii(shape), extra, version)
        return text + CELLS.tobytes()

    return st.builds(write, types, shapes, version, extra)


def _is_one_error(error, path):
    return isinstance(error, OSError | ValueError) and path.name in str(error)


def fuzz(strategy, look, n):
    """Let hypothesis call ``look(bytes)`` with so many examples."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=n, suppress_health_check=slow)(given(strategy)(look))()


def in_this_process(path, data):
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert np.isfinite(open_lightcones(path, validate="full").data.read()).all()
        except Exception as error:
            assert _is_one_error(error, path), repr(error)


@pytest.mark.parametrize("n", [60, pytest.param(15_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", IN_PYTHON)
def test_arrays_of_numpy(tmp_path, kind, n):
    path = tmp_path / f"fuzzed.{kind}"
    IN_PYTHON[kind](path)
    fuzz(damaged(path.read_bytes()), lambda data: in_this_process(path, data), n)


@pytest.mark.parametrize("n", [40, pytest.param(6000, marks=pytest.mark.slow)])
def test_headers_of_numpy(tmp_path, n):
    fuzz(_headers(), lambda data: in_this_process(tmp_path / "fuzzed.npy", data), n)


@pytest.mark.parametrize("n", [3, pytest.param(1200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", IN_HDF5)
def test_hdf5(tmp_path, load, kind, n):
    path = tmp_path / f"fuzzed.{kind}"
    IN_HDF5[kind](path)

    def look(data):
        path.write_bytes(data)
        answer = load("lightcones", path)
        assert "killed" not in answer, answer
        if "returned" not in answer:
            assert {"OSError", "ValueError"} & set(answer["raised"]), answer["trace"]
            assert path.name in answer["message"], answer
            assert "MemoryError" not in answer["message"], answer

    fuzz(damaged(path.read_bytes()), look, n)
