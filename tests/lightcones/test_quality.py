"""What is found wrong with files and rows."""

import pickle

import h5py
import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk.fields import digest_rows
from skatr_sk.lightcones import convert_lightcones
from tests.lightcones.layouts import cone, edit, thetas, write_v3


def folder_of(tmp_path, n=6):
    for k, theta in enumerate(thetas(n)):
        write_v3(tmp_path / f"c{k}.h5", seed=k, theta=theta)
    return tmp_path


def _truncate(path):
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def _no_box(file):
    del file["lightcones/brightness_temp"]


def _wide(file):
    _no_box(file)
    file["lightcones/brightness_temp"] = cone(0, 20, n_sky=5)


def _short(file):
    _no_box(file)
    del file["distances"]
    file["lightcones/brightness_temp"] = cone(0, 4)
    file["distances"] = 8000 + 7.5 * np.arange(4)


def _coarse(file):
    file["distances"][:] = 8000 + 15 * np.arange(20)


def _farther(file):
    file["distances"][:] = file["distances"][:] + 500


def _backwards(file):
    file["distances"][:] = file["distances"][:][[1, 0, *range(2, 20)]]


def _one_nan(file):
    file["lightcones/brightness_temp"][1, 2, 3] = np.nan


def _fill_value(file):
    file["lightcones/brightness_temp"][1, 2, 3] = 9.96921e36


def _older_fill_value(file):
    file["lightcones/brightness_temp"][1, 2, 3] = -999


def _empty_start(file):
    file["lightcones/brightness_temp"][..., :3] = 0


def _empty_end(file):
    file["lightcones/brightness_temp"][..., 15:] = 0


def _cold(file):
    file["_globals"].attrs["P_CUTOFF"] = 0


def _nan_parameter(file):
    file["astro_params"].attrs["L_X"] = np.nan


def _unfinished(file):
    file.attrs["current_redshift"] = 11.0


FAULTS = {
    "truncated": (_truncate, "unreadable", "truncated"),
    "no text": (lambda p: p.write_bytes(b"not HDF5"), "unreadable", "signature"),
    "empty": (lambda p: p.write_bytes(b""), "unreadable", ""),
    "gone": (lambda p: p.unlink(), "missing", "no such file"),
    "missing dataset": (_no_box, "missing", "lightcones/brightness_temp; it has density"),
    "shape": (_wide, "shape", "5, 5) cells; most have (4, 4)"),
    "short": (_short, "shape", "4 slices; most have about 20"),
    "coarse": (_coarse, "grid", "15 Mpc"),
    "farther": (_farther, "grid", "rising from 6.000"),
    "backwards": (_backwards, "grid", "rising"),
    "nan": (_one_nan, "nan", "1 NaN cells"),
    "zeros": (_empty_end, "zeros", "5 slices of zeros alone (first: 15"),
    "fill value": (_fill_value, "beyond physics", "the first at (1, 2, 3) is 9.96921e+36"),
    "older": (_older_fill_value, "beyond physics", "the first at (1, 2, 3) is -999"),
    "near zeros": (_empty_start, "zeros", "3 slices of zeros alone (first: 0, 1, 2)"),
    "not used": (_cold, "parameters", "no m_WDM, which most have"),
    "parameter": (_nan_parameter, "parameters", "log10_L_X: NaN in the input"),
    "unfinished": (_unfinished, "unfinished", "redshift 11.00, not 6.00"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(tmp_path, name):
    change, kind, detail = FAULTS[name]
    folder = folder_of(tmp_path)
    bad = folder / "c3.h5"
    if name in ("truncated", "no text", "empty", "gone"):
        change(bad)
    else:
        edit(bad, change)
    paths = [folder / f"c{k}.h5" for k in range(6)]
    with pytest.raises(ValueError, match=r"(?s)1 thing is wrong with .*c3\.h5.*: " + kind):
        open_lightcones(paths, validate="full")
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(paths, validate="full", on_bad="drop")
    (line,) = cones.report
    assert line["file"] == str(bad) and line["fault"] == kind
    assert detail in line["detail"]
    left = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(cones.seeds, left)
    assert len(cones.data) == len(cones.target) == len(cones.redshifts) == 5
    np.testing.assert_array_equal(np.asarray(cones.data), [cone(k, 20) for k in left])


def test_duplicates(tmp_path):
    folder = folder_of(tmp_path, n=4)
    (folder / "d.h5").write_bytes((folder / "c1.h5").read_bytes())
    for validate in ("fast", "full"):
        with pytest.raises(ValueError, match=r"d\.h5, row 0: duplicate: the same values as .*c1"):
            open_lightcones(folder, validate=validate)
    assert len(open_lightcones(folder, validate=False).data) == 5
    # The same seed and parameters, but other values: noise of its own, say.
    edit(
        folder / "d.h5", lambda file: file["lightcones/brightness_temp"].write_direct(cone(77, 20))
    )
    assert len(open_lightcones(folder).data) == 5


def test_duplicates_are_found_by_the_index_alone(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(40, 4, 4, 6)).astype(np.float32)
    X[31] = X[7]
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.raises(ValueError, match=r"row 31: duplicate: .*row 7"):
        open_lightcones(tmp_path / "a.h5")


def test_the_quick_check_reads_few_rows_and_the_full_one_all(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 4, 4, 6)).astype(np.float32)
    X[1, 0, 0, 0] = np.nan
    save_lightcones(tmp_path / "a.h5", X)
    assert len(open_lightcones(tmp_path / "a.h5").data) == 40
    with pytest.raises(ValueError, match="row 1: nan: 1 NaN cells, 0 infinite"):
        open_lightcones(tmp_path / "a.h5", validate="full")
    X[0] = np.inf
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.raises(ValueError, match="row 0: nan: 0 NaN cells, 96 infinite"):
        open_lightcones(tmp_path / "a.h5")


def test_an_ionised_near_end_is_no_fault(tmp_path):
    X = np.stack([cone(k, 30) for k in range(3)])
    X[0, ..., :9] = 0
    X[0, 1, 2, 4] = -1.0  # a last neutral island, with zeros beyond it
    X[1, ..., 12] = 0  # in the midst of a signal
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.warns(UserWarning, match=r"row 1: zeros: 1 slices of zeros alone \(first: 12\)"):
        cones = open_lightcones(tmp_path / "a.h5", validate="full", on_bad="drop")
    np.testing.assert_array_equal(np.asarray(cones.data), X[[0, 2]])


def test_a_damaged_row_is_named(tmp_path):
    """A flipped bit in one chunk: its checksum tells, and the other rows are read."""
    X = np.random.default_rng(0).normal(size=(5, 6, 6, 40)).astype(np.float32)
    path = tmp_path / "a.h5"
    save_lightcones(path, X, compression="gzip")
    with h5py.File(path) as file:
        info = file["brightness_temp"].id.get_chunk_info(0)
        rows = file["brightness_temp"].chunks[0]
    with open(path, "r+b") as stream:
        stream.seek(info.byte_offset + info.size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match=r"a\.h5, row 0: unreadable: .*row 0: cannot be read"):
        open_lightcones(path, validate="full")
    if rows < 5:
        with pytest.warns(UserWarning, match="left out"):
            cones = open_lightcones(path, validate="full", on_bad="drop")
        np.testing.assert_array_equal(np.asarray(cones.data), X[rows:])


def test_what_is_no_brightness_has_no_physics_to_be_beyond(tmp_path):
    """The temperature of the gas, say; a fill value is larger than any field."""
    path = folder_of(tmp_path, n=1) / "c0.h5"
    edit(path, lambda file: file["lightcones/density"].__setitem__((0, 0, 0), 2e4))
    open_lightcones(path, dataset="density", validate="full")
    edit(path, lambda file: file["lightcones/density"].__setitem__((0, 0, 0), 1e20))
    with pytest.raises(ValueError, match=r"beyond physics: 1 cells .* beyond 1e\+15; the first"):
        open_lightcones(path, dataset="density", validate="full")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_single_cells_are_repaired_on_request(tmp_path, kind):
    X = np.stack([cone(k, 20) for k in range(5)]).astype(kind)
    bad = X.copy()
    bad[1, 2, 2, 7] = bad[1, 0, 0, 0] = np.nan
    bad[3, 1, 1, 19] = -9999
    bad[4, ..., 5] = np.nan  # a whole slice is no single cell
    save_lightcones(tmp_path / "a.h5", bad)
    options = dict(validate="full", on_bad="drop", repair=True)
    with pytest.warns(UserWarning) as warned:
        cones = open_lightcones(tmp_path / "a.h5", **options)
    text = "\n".join(str(one.message) for one in warned)
    assert "row 4: nan: 16 NaN cells" in text
    assert "2 light cones were repaired" in text and "row 3: repaired: by the mean" in text
    np.testing.assert_array_equal(cones.report["row"], [4, 1, 3])
    assert cones.report["fault"].tolist() == ["nan", "repaired", "repaired"]
    assert "2 NaN cells, 0 infinite; the first at (0, 0, 0) is nan" in cones.report["detail"][1]
    mended = cones.data.read()
    assert len(mended) == 4 and mended.dtype == kind
    changed = np.argwhere(mended != X[:4]).tolist()
    assert changed == [[1, 0, 0, 0], [1, 2, 2, 7], [3, 1, 1, 19]]
    beside = [X[1, 1, 2, 7], X[1, 3, 2, 7], X[1, 2, 1, 7], X[1, 2, 3, 7], *X[1, 2, 2, [6, 8]]]
    assert mended[1, 2, 2, 7] == pytest.approx(np.mean(beside, dtype=np.float64), rel=1e-3)
    corner = [X[1, 1, 0, 0], X[1, 0, 1, 0], X[1, 0, 0, 1]]
    assert mended[1, 0, 0, 0] == pytest.approx(np.mean(corner, dtype=np.float64), rel=1e-3)
    assert cones.data.digests() == digest_rows(mended)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cones.data)).read(), mended)
    # Without the request they are what they are.
    with pytest.raises(ValueError, match=r"(?s)3 things are wrong.*row 3: beyond physics"):
        open_lightcones(tmp_path / "a.h5", validate="full")


def test_near_slices_end_where_the_last_islands_are(tmp_path):
    """They are few and faint; a full slice as bright as the next does not follow on nothing."""
    X = np.stack([cone(k, 30) for k in range(3)])
    X[0, ..., :9] = 0
    X[0, ..., 9] *= 0.05
    X[1, ..., :9] = 0
    save_lightcones(tmp_path / "a.h5", X)
    with pytest.raises(ValueError, match=r"1 thing is wrong .*\n.*row 1: zeros: 9 slices .*: 0, 1"):
        open_lightcones(tmp_path / "a.h5", validate="full")


@pytest.mark.parametrize("validate", ["fast", "full"])
def test_what_is_ionised_throughout_is_no_fault(validate, tmp_path):
    """Late in reionisation, by its redshifts; and two such are no copies of each other."""
    X = np.stack([cone(k, 30) for k in range(6)])
    X[1] = X[3] = 0
    X[4] = X[5] = -0.0
    for name, first in (("late", 5.0), ("early", 12.0)):
        redshifts = np.linspace(first, first + 1.5, 30)
        save_lightcones(tmp_path / f"{name}.h5", X, redshifts=redshifts)
    assert len(open_lightcones(tmp_path / "late.h5", validate=validate).data) == 6
    convert_lightcones(tmp_path / "late.h5", tmp_path / "again.h5")
    assert len(open_lightcones(tmp_path / "again.h5", validate=validate).data) == 6
    with pytest.raises(ValueError, match="row 1: zeros: 30 slices of zeros alone"):
        open_lightcones(tmp_path / "early.h5", validate=validate)


def test_the_last_neutral_gas_of_a_narrow_sky_is_faint(tmp_path):
    X = np.stack([cone(k, 30) for k in range(2)])[:, :2, :2].copy()
    X[0, ..., :9] = 0
    X[0, ..., 9:11] *= 1e-4
    save_lightcones(tmp_path / "a.h5", X)
    assert len(open_lightcones(tmp_path / "a.h5", validate="full").data) == 2


def test_signals_and_maps_of_zeros(tmp_path):
    """A map may be ionised throughout; a signal is not at all redshifts."""
    for name, shape in (("signals", (3, 30)), ("maps", (3, 5, 6))):
        fields = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        fields[1] = 0
        np.save(tmp_path / f"{name}.npy", fields)
    assert len(open_lightcones(tmp_path / "maps.npy", validate="full").data) == 3
    with pytest.raises(ValueError, match="row 1: zeros: 30 zeros, and nothing else"):
        open_lightcones(tmp_path / "signals.npy", validate="full")


def test_what_is_repaired_is_converted_so(tmp_path):
    X = np.stack([cone(k, 20) for k in range(3)])
    bad = X.copy()
    bad[1, 2, 2, 7] = np.nan
    save_lightcones(tmp_path / "a.h5", bad)
    with pytest.warns(UserWarning, match="1 light cones were repaired"):
        convert_lightcones(tmp_path / "a.h5", tmp_path / "b.h5", validate="full", repair=True)
    found = open_lightcones(tmp_path / "b.h5", validate="full").data.read()
    assert np.argwhere(found != X).tolist() == [[1, 2, 2, 7]]
