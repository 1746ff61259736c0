"""open_lightcones: the list of files, and wrong calls."""

import numpy as np
import pytest

from skatr_sk import open_lightcones, save_lightcones
from skatr_sk._checks import InvalidParameterError
from skatr_sk.lightcones import convert_lightcones
from skatr_sk.parameters import PARAMETER_NAMES
from tests.lightcones.layouts import values, write_npz, write_v3


def test_as_frame(tmp_path):
    pytest.importorskip("pandas")
    write_v3(tmp_path / "a.h5")
    cones = open_lightcones(tmp_path, as_frame=True)
    assert list(cones.target.columns) == list(PARAMETER_NAMES)
    assert list(cones.report.columns) == ["file", "row", "fault", "detail"]


def test_nothing_left(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"No light cones can be read from .*\n- .*a\.h5: unread"):
        open_lightcones(tmp_path, on_bad="drop")
    np.save(tmp_path / "n.npy", np.full((2, 5), np.nan))
    with pytest.raises(ValueError, match="No light cone is left"):
        open_lightcones(tmp_path / "n.npy", on_bad="drop")


def test_wrong_calls(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        open_lightcones(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no light cones in"):
        open_lightcones(tmp_path)
    with pytest.raises(ValueError, match="empty list"):
        open_lightcones([])
    with pytest.raises(TypeError, match="source: expected a path or a list of paths, found 3"):
        open_lightcones(3)
    with pytest.raises(InvalidParameterError, match="source: expected a path or a list of paths"):
        open_lightcones([tmp_path, 3])
    with pytest.raises(InvalidParameterError, match=r"2 invalid.*\n.*'full'.*\n.*'drop'"):
        open_lightcones(tmp_path, validate="yes", on_bad="skip")


def test_one_file_twice(tmp_path):
    for k in range(2):
        write_npz(tmp_path / f"run{k}.npz", seed=k)
    one, other = tmp_path / "run0.npz", tmp_path / "run1.npz"
    with pytest.raises(ValueError, match=r"run0\.npz: duplicate: the same file as .*run0\.npz"):
        open_lightcones([one, other, one])
    (tmp_path / "run2.npz").symlink_to(one)
    (tmp_path / "run3.npz").hardlink_to(other)
    with pytest.warns(UserWarning, match="left out"):
        cones = open_lightcones(tmp_path, on_bad="drop")
    assert len(cones.data) == 2
    assert [line["fault"] for line in cones.report] == ["duplicate", "duplicate"]


def test_a_folder_of_files_and_what_they_were_converted_to(tmp_path):
    for k in range(20):
        write_npz(tmp_path / f"run{k:02d}.npz", seed=k)
    convert_lightcones(tmp_path, tmp_path / "all.h5")
    for validate, n in (("fast", r"\d"), ("full", "20")):
        with pytest.raises(ValueError, match=rf"(?s){n} things.*npz.* same values as .*all\.h5"):
            open_lightcones(tmp_path, validate=validate)


def test_a_generator_of_paths(tmp_path):
    save_lightcones(tmp_path / "a.h5", values())
    (tmp_path / "b.h5").write_bytes(b"")
    paths = sorted(tmp_path.glob("*.h5"))
    with pytest.raises(ValueError, match=r"in .*a\.h5 and 1 more:\n- .*b\.h5: unreadable"):
        open_lightcones(path for path in paths)
