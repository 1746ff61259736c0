"""Files that appear whole or not at all."""

import contextlib
import errno
import multiprocessing
import os
import signal
import socket
import stat

import pytest
from safetensors import SafetensorError

from skatr_sk import _files
from skatr_sk._files import check_regular, open_regular, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes are POSIX's")


def make_odd(folder, kind):
    """Make what is no regular file, in a folder."""
    path = folder / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(folder):
            end.bind("odd")  # the whole path may be too long
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        return "/dev/zero"
    return path


@posix
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


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_what_is_replaced_bequeaths_its_mode(tmp_path, mode):
    path = tmp_path / "weights"
    path.write_text("old")
    path.chmod(mode)
    if not os.access(path, os.W_OK):  # as open refuses it
        with pytest.raises(PermissionError, match=r"weights: cannot be written: it may not be"):
            write_whole(path, lambda temporary: temporary.write_text("new"))
        return
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="gives a file away")
def test_what_is_replaced_bequeaths_its_owner(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    os.chown(path, 12345, 54321)
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


@posix
def test_a_group_that_cannot_be_kept_bequeaths_no_rights(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_text("old")
    path.chmod(0o664)
    group = path.stat().st_gid

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    stat_of = os.stat

    def of_another_group(name, **options):
        found = stat_of(name, **options)
        if os.fspath(name) != os.fspath(path):
            return found
        return os.stat_result([*found[:5], group + 1, *found[6:]])

    monkeypatch.setattr(os, "stat", of_another_group)
    write_whole(path, lambda temporary: temporary.write_text("new"))
    monkeypatch.undo()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@posix
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "real", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to("other/real")
    write_whole(link, lambda path: path.write_text("new"))
    assert link.is_symlink()
    assert target.read_text() == link.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["real"]


@posix
@pytest.mark.parametrize("through", ["directly", "through a link"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind, through):
    path = odd = make_odd(tmp_path, kind)
    if through == "through a link":
        path = tmp_path / "link"
        path.symlink_to(odd)
    before = os.lstat(odd)

    def write(temporary):
        raise AssertionError("written")

    with pytest.raises(OSError, match=str(path)):
        write_whole(path, write)
    assert os.lstat(odd) == before


@posix
@pytest.mark.parametrize(
    "name", ["a" * 255, "\N{GREEK SMALL LETTER ZETA}" * 127, "a" * 240 + ".h5"]
)
def test_all_names_that_a_file_may_have(tmp_path, name):
    write_whole(tmp_path / name, lambda path: path.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="cannot be written: File name too long"):
        write_whole(tmp_path / ("a" * 256), lambda path: path.write_text("whole"))


def test_nobody_foresees_the_name_of_a_temporary_file(tmp_path):
    seen = []
    for _ in range(3):
        write_whole(tmp_path / "weights", lambda path: seen.append(path) or path.write_text("x"))
    assert len({path.parent.name for path in seen}) == 3
    if os.name == "posix":
        write_whole(
            tmp_path / "weights", lambda path: seen.append(stat.S_IMODE(path.parent.stat().st_mode))
        )
        assert seen[-1] == 0o700


def killed_while_writing(path):
    write_whole(path, lambda temporary: os.kill(os.getpid(), signal.SIGKILL))


@posix
def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=[path])
    process.start()
    process.join()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_what_is_being_written_elsewhere_is_not_removed(tmp_path):
    def write(temporary):
        temporary.write_text("outer")
        write_whole(tmp_path / "inner", lambda path: path.write_text("inner"))
        assert temporary.read_text() == "outer"

    write_whole(tmp_path / "outer", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "outer"]


@pytest.mark.parametrize("host", ["another", "no locks"])
def test_without_a_lock_that_tells_age_does(tmp_path, host, monkeypatch):
    if host == "no locks":
        monkeypatch.setattr(_files, "fcntl", None)
    number = _files._host() if host == "no locks" else "0" * 8
    young, old = (tmp_path / f".skatr_sk-{number}-{digit * 16}" for digit in "01")
    for folder in (young, old):
        folder.mkdir()
        (folder / "whole").write_text("half")
    for path in (old / "whole", old):
        os.utime(path, (0, 0))
    write_whole(tmp_path / "weights", lambda path: path.write_text("new"))
    assert young.exists() and not old.exists()


@pytest.mark.parametrize(
    "name", [".skatr_sk-notes", ".skatr_sk-00000000-0", "skatr_sk-1-2", "x.tmp"]
)
def test_what_others_made_is_not_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    file = tmp_path / name / "whole"
    file.write_text("mine")
    os.utime(tmp_path / name, (0, 0))
    # A file of a name such as our folders have is not one of them.
    (tmp_path / f".skatr_sk-00000000-{'0' * 16}").write_text("mine")
    write_whole(tmp_path / "weights", lambda path: path.write_text("new"))
    assert file.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_room_is_looked_for_before_anything_is_written(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")

    def write(temporary):
        raise AssertionError("written")

    message = r"weights: expected room for at least 1,152,921,504,606,846,976 bytes .* missing"
    with pytest.raises(OSError, match=message) as raised:
        write_whole(path, write, size=2**60)
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        _files.CutShort(errno.ENOSPC, 2**60),
    ],
    ids=["system", "safetensors", "HDF5"],
)
def test_a_full_disk_is_one_error_whoever_meets_it(tmp_path, error):
    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(OSError, match=r"weights: expected room for at least .* missing") as raised:
        write_whole(tmp_path / "weights", write)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_breaks_at_last_is_an_error_of_the_file(tmp_path, step, monkeypatch):
    def breaks(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, step, breaks)
    with pytest.raises(OSError, match=r"weights: cannot be written: Input/output error\.$"):
        write_whole(tmp_path / "weights", lambda path: path.write_text("new"))
    assert list(tmp_path.iterdir()) == []


def test_errors_of_what_is_read_meanwhile_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "a", lambda path: (tmp_path / "b").read_text())
    assert raised.value.filename == str(tmp_path / "b")


@posix
def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(PermissionError, match=r"weights: cannot be written: Permission denied\.$"):
        write_whole(tmp_path / "weights", lambda path: path.write_text("new"))


def test_where_no_file_can_be(tmp_path):
    def write(path):
        raise AssertionError("written")

    with pytest.raises(FileNotFoundError, match=r"none.* does not exist; create it first"):
        write_whole(tmp_path / "none" / "note.txt", write)
    with pytest.raises(IsADirectoryError, match="it is a folder; name a file inside it"):
        write_whole(tmp_path, write)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop", "missing"])
def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path, kind):
    path = make_odd(tmp_path, kind)
    with pytest.raises(OSError, match=str(path)):
        check_regular(path)
    with pytest.raises(OSError, match=str(path)):
        open_regular(path, os.O_RDONLY)
