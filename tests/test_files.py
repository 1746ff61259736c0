"""Files that appear whole or not at all."""

import os
import stat

import pytest

from skatr_sk._files import check_regular, write_whole


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "weights", lambda path: path.write_text("whole"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o666 & ~mask


def test_what_replaces_the_file_gets_these_permissions_too(tmp_path):
    def replace(path):
        other = path.with_suffix(".other")
        other.write_text("whole")
        other.chmod(0o600)
        other.replace(path)

    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "weights", replace)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights").stat().st_mode) == 0o644


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_where_no_file_can_be(tmp_path):
    def write(path):
        raise AssertionError("written")

    with pytest.raises(FileNotFoundError, match=r"none.* does not exist; create it first"):
        write_whole(tmp_path / "none" / "note.txt", write)
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file inside it"):
        write_whole(tmp_path, write)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "missing"])
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, kind):
    path = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path = "/dev/zero"
    with pytest.raises(OSError, match=str(path)):
        check_regular(path)
