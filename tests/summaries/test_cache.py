"""The cache of summaries: found again everywhere, shared by processes, never a wrong number.

Most tests put a function of the key in the place of the encoder, so that every number is known.
"""

import ctypes
import hashlib
import itertools
import logging
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from skatr_sk import InvalidParameterError, SKATRTransformer
from skatr_sk.summaries import cache
from skatr_sk.summaries.cache import (
    cache_info,
    clear_cache,
    compute_once,
    limit_cache_memory,
    recall_in,
    shards,
)
from skatr_sk.summaries.cache.memory import Memory

SPACE, OTHER = b"one set, 16 byte", b"another, 16 byte"
SHAPE = (5,)
MANY = [hashlib.blake2b(bytes([i]), digest_size=16).digest() for i in range(120)]
KEYS = MANY[:40]
forks = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


def truth(key):
    """The summary of a key: numbers that come of nothing else."""
    return np.frombuffer(hashlib.blake2b(key, digest_size=20).digest(), "<u4").astype(np.float32)


class Encoder:
    """Computes the truth, and remembers for which keys."""

    def __init__(self, keys, pause=0.0):
        self.keys = keys
        self.pause = pause
        self.seen = []

    def __call__(self, rows):
        self.seen += [self.keys[row] for row in rows]
        time.sleep(self.pause)
        return np.array([truth(self.keys[row]) for row in rows])


def check(keys=KEYS, folder=None, *, group=4, space=SPACE, pause=0.0):
    """Ask for summaries, hold them to the truth, and return the keys that were computed."""
    encoder = Encoder(keys, pause)
    found = compute_once(keys, encoder, space=space, shape=SHAPE, group=group, folder=folder)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [truth(key) for key in keys])
    return encoder.seen


@pytest.fixture(autouse=True)
def empty_memory(monkeypatch):
    monkeypatch.setattr(cache, "_MEMORY", Memory(limit=2**20))
    monkeypatch.setattr(shards._Process, "warned", set())


@pytest.fixture
def forget(monkeypatch):
    """What a new process would begin with."""

    def empty():
        clear_cache()
        monkeypatch.setattr(shards._Process, "token", os.urandom(8).hex())

    return empty


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def shards_in(folder):
    return sorted(folder.glob("*/*.summaries"))


# what is found again


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_is_computed_once_whatever_is_asked(on_disk, folder):
    folder = folder if on_disk else None
    assert check(KEYS[:10], folder) == KEYS[:10]
    assert check(KEYS[:10], folder) == []
    assert check(KEYS[9:3:-2], folder) == []  # a subset in another order
    twice = [KEYS[3], KEYS[20], KEYS[21], KEYS[20]]
    assert check(twice, folder) == KEYS[20:22]  # equal light cones are one
    assert cache_info()[:2] == (10 + 3 + 2, 10 + 2)


def test_a_new_process_finds_what_is_on_disk(folder, forget):
    assert check(KEYS[:10], folder) == KEYS[:10]
    forget()
    assert check(KEYS[:15], folder) == KEYS[10:15]
    forget()
    assert check(KEYS[:15], folder) == []
    info = cache_info(folder)
    assert (info.hits, info.misses, info.n_entries) == (15, 0, 15)
    assert info.n_bytes == sum(path.stat().st_size for path in shards_in(folder))
    assert len(shards_in(folder)) == 2  # of each process that computed


def test_spaces_do_not_mix(folder):
    assert check(KEYS[:5], folder) == KEYS[:5]
    assert check(KEYS[:5], folder, space=OTHER) == KEYS[:5]
    assert len(shards_in(folder)) == 2


def test_what_is_in_memory_goes_to_a_folder_that_is_named_later(folder, forget):
    assert check(KEYS[:10]) == KEYS[:10]
    assert check(KEYS[:12], folder) == KEYS[10:12]
    assert check(KEYS[:12], folder / "another") == KEYS[10:12]
    forget()
    assert check(KEYS[:12], folder) == []


def test_no_rows():
    assert compute_once([], None, space=SPACE, shape=SHAPE, group=4).shape == (0, *SHAPE)


def test_the_shape_of_tokens(folder, forget):
    def compute(rows):
        return np.arange(24.0).reshape(2, 3, 4)[rows]

    for _ in range(2):
        found = compute_once(KEYS[:2], compute, space=SPACE, shape=(3, 4), group=1, folder=folder)
        np.testing.assert_array_equal(found, np.arange(24.0).reshape(2, 3, 4))
        forget()


def test_groups_are_bounded():
    sizes = []

    def compute(rows):
        sizes.append(len(rows))
        return np.zeros((len(rows), *SHAPE))

    compute_once(KEYS[:10], compute, space=SPACE, shape=SHAPE, group=4)
    assert sizes == [4, 4, 2]


def test_what_comes_back_is_the_callers_own():
    check(KEYS[:3])
    given = compute_once(KEYS[:3], None, space=SPACE, shape=SHAPE, group=4)
    given[:] = -1
    assert check(KEYS[:3]) == []


# memory


def test_memory_is_bounded_and_the_least_recently_used_leave():
    entry = 20 + 250
    limit_cache_memory(4 * entry)
    check(KEYS[:4])
    check(KEYS[:2])  # used again
    check(KEYS[4:6])
    assert cache_info()[2:] == (4, 4 * entry)
    assert check([KEYS[i] for i in (0, 1, 4, 5)]) == []
    assert check(KEYS[2:4]) == KEYS[2:4]
    limit_cache_memory(entry)
    assert cache_info().n_entries == 1
    limit_cache_memory(0)
    assert check(KEYS[:4]) == KEYS[:4]
    assert cache_info()[2:] == (0, 0)


@pytest.mark.parametrize("wrong", [-1, 1e9, None])
def test_a_wrong_limit_is_refused(wrong):
    with pytest.raises(ValueError, match="n_bytes: expected an integer >= 0"):
        limit_cache_memory(wrong)


def test_a_view_does_not_hold_its_batch_in_memory():
    check(KEYS[:8], group=8)
    assert all(values.base is None for values in cache._MEMORY.entries.values())


def test_threads_take_turns():
    encoder = Encoder(KEYS, pause=0.002)
    found = []

    def ask():
        found.append(compute_once(KEYS, encoder, space=SPACE, shape=SHAPE, group=4))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(encoder.seen) == sorted(KEYS)
    for each in found:
        np.testing.assert_array_equal(each, [truth(key) for key in KEYS])


def test_an_error_leaves_what_was_computed_before(folder, forget):
    def compute(rows):
        if 6 in rows:
            raise ValueError("row 6")
        return np.array([truth(KEYS[row]) for row in rows])

    for cached in (None, folder):
        with pytest.raises(ValueError, match="row 6"):
            compute_once(KEYS[:10], compute, space=SPACE, shape=SHAPE, group=4, folder=cached)
        # Neither a turn nor a claim is left behind.
        assert check(KEYS[:10], cached) == KEYS[4:10]
        forget()


# damage


def damaged(folder, forget, change):
    """Fill a cache, change its one shard, and return what is computed again in two processes."""
    check(KEYS[:10], folder)
    (shard,) = shards_in(folder)
    change(shard)
    computed = []
    for _ in range(2):
        forget()
        computed.append(check(KEYS[:10], folder))
    return computed


@pytest.mark.parametrize("byte", [0, 15, 16, 23, 24, 43, 44 * 4 + 30, 44 * 10 - 1])
def test_a_changed_byte_costs_one_summary(byte, folder, forget, caplog):
    def flip(shard):
        data = bytearray(shard.read_bytes())
        data[byte] ^= 0b100
        shard.write_bytes(data)

    with caplog.at_level(logging.WARNING, "skatr_sk.cache"):
        first, second = damaged(folder, forget, flip)
    assert first == [KEYS[byte // 44]]
    assert second == []
    if byte % 44 >= 16:  # else the key is another's, whom nobody asks for
        assert f"Record {byte // 44} of " in caplog.text


@pytest.mark.parametrize("size", [0, 1, 44 * 3, 44 * 3 + 1, 44 * 10 - 1])
def test_a_truncated_shard_loses_its_end(size, folder, forget):
    first, second = damaged(folder, forget, lambda shard: os.truncate(shard, size))
    assert first == KEYS[size // 44 : 10]
    assert second == []


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard.write_bytes(b"\0" * 440),
        lambda shard: shard.write_bytes(b"x" + shard.read_bytes()),
        lambda shard: shard.write_text("not a shard"),
        lambda shard: shard.unlink(),
        lambda shard: (shard.unlink(), shard.mkdir()),
        lambda shard: (shard.unlink(), shard.symlink_to(shard.parent / "nowhere-44.summaries")),
    ],
    ids=["zeros", "shifted", "text", "gone", "folder", "broken link"],
)
def test_a_shard_of_nonsense_is_computed_again(change, folder, forget):
    first, second = damaged(folder, forget, change)
    assert first == KEYS[:10]
    assert second == []


@pytest.mark.parametrize("name", ["old.summaries", "a-0.summaries", "a-x.summaries", "0-44.txt"])
def test_foreign_files_are_neither_counted_nor_deleted(name, folder):
    check(KEYS[:5], folder)
    (shard,) = shards_in(folder)
    foreign = shard.with_name(name)
    foreign.write_text("somebody else's")
    assert cache_info(folder).n_entries == 5
    clear_cache(folder)
    assert list(shard.parent.iterdir()) == [foreign]


def test_a_shard_that_vanishes_while_it_is_counted(folder):
    """Another process clears the folder; a link to nowhere is listed and cannot be looked at."""
    check(KEYS[:5], folder)
    (shard,) = shards_in(folder)
    shard.with_name("0123-44.summaries").symlink_to(folder / "nowhere")
    assert cache_info(folder).n_entries == 5


def test_a_shard_in_the_wrong_folder_is_not_believed(folder, forget):
    check(KEYS[:5], folder)
    (shard,) = shards_in(folder)
    wrong = folder / OTHER.hex()
    wrong.mkdir()
    os.replace(shard, wrong / shard.name)
    forget()
    assert check(KEYS[:5], folder, space=OTHER) == KEYS[:5]


def test_what_follows_an_incomplete_record_is_whole(folder, forget):
    """A write that failed half-way, and could not be taken back, before the next one succeeds."""
    check(KEYS[:3], folder)
    (shard,) = shards_in(folder)
    with open(shard, "ab") as stream:
        stream.write(b"a part of a record")
    check(KEYS[3:6], folder)
    assert shard.stat().st_size == 6 * 44
    forget()
    assert check(KEYS[:6], folder) == []


# many processes


def in_process(target, *arguments):
    """Run a function in a fork of this process; return it and a pipe with what it sends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, *arguments), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def fill(sender, keys, folder, pause=0.0, start=None):
    if start is not None:
        start.wait()
    sender.send(check(keys, folder, pause=pause))


@forks
@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_share_the_work(n_processes, folder):
    orders = itertools.cycle([KEYS, KEYS[::-1], KEYS[20:] + KEYS[:20], KEYS[::2] + KEYS[1::2]])
    start = multiprocessing.get_context("fork").Barrier(n_processes)
    started = [
        in_process(fill, keys, folder, 0.01, start)
        for keys in itertools.islice(orders, n_processes)
    ]
    computed = [receiver.recv() for _, receiver in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    assert sorted(itertools.chain(*computed)) == sorted(KEYS)  # each of them once
    assert all(computed)  # and nobody waited all the time
    assert cache_info(folder).n_entries == len(KEYS)


def claim_and_wait(sender, keys, folder):
    """Start computing, say so, and never come to an end."""

    def compute(rows):
        sender.send([keys[row] for row in rows])
        time.sleep(60)

    compute_once(keys, compute, space=SPACE, shape=SHAPE, group=8, folder=folder)


@forks
def test_the_claims_of_a_killed_process_vanish(folder):
    check(KEYS[:4], folder)
    clear_cache()
    process, receiver = in_process(claim_and_wait, KEYS, folder)
    assert receiver.recv() == KEYS[4:12]
    encoder = Encoder(KEYS, pause=0.0)

    def kill_when_nothing_else_is_left():
        deadline = time.monotonic() + 60
        while len(encoder.seen) < len(KEYS) - 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()

    killer = threading.Thread(target=kill_when_nothing_else_is_left)
    killer.start()
    start = time.monotonic()
    found = compute_once(KEYS, encoder, space=SPACE, shape=SHAPE, group=4, folder=folder)
    np.testing.assert_array_equal(found, [truth(key) for key in KEYS])
    assert sorted(encoder.seen) == sorted(KEYS[4:])
    assert encoder.seen[-8:] == KEYS[4:12]  # at the end, when they were free
    assert time.monotonic() - start > 0.25
    killer.join()
    process.join()


@forks
def test_a_suspended_process_is_not_waited_for_without_end(folder, monkeypatch):
    monkeypatch.setattr(cache, "_PATIENCE", 0.3)
    process, receiver = in_process(claim_and_wait, KEYS[:8], folder)
    receiver.recv()
    os.kill(process.pid, signal.SIGSTOP)
    start = time.monotonic()
    assert check(KEYS[:8], folder) == KEYS[:8]
    assert time.monotonic() - start > 0.25
    process.kill()
    process.join()


@forks
def test_a_child_writes_a_shard_of_its_own(folder):
    check(KEYS[:2], folder)
    process, receiver = in_process(fill, KEYS[:4], folder)
    assert receiver.recv() == KEYS[2:4]  # what its parent had in memory it has as well
    process.join()
    assert len(shards_in(folder)) == 2


def test_without_locks_the_numbers_are_the_same(folder, forget, monkeypatch):
    monkeypatch.setattr(shards, "fcntl", None)
    assert check(KEYS[:6], folder) == KEYS[:6]
    forget()
    assert check(KEYS[:8], folder) == KEYS[6:8]


@forks
def test_a_file_system_that_refuses_locks(folder, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(shards.fcntl, "lockf", refuse)
    with caplog.at_level(logging.INFO, "skatr_sk.cache"):
        assert check(KEYS[:6], folder) == KEYS[:6]
    assert "processes may compute twice" in caplog.text


# a folder that cannot be written


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="Summaries cannot be written to the cache folder '.*file"):
        assert check(KEYS[:5], tmp_path / "file" / "cache", group=2) == KEYS[:5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(KEYS[:6], tmp_path / "file" / "cache") == KEYS[5:6]


@forks
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "file"])
def test_what_is_no_folder_costs_a_warning_and_no_number(tmp_path, kind):
    folder = tmp_path / "cache"
    if kind == "pipe":
        os.mkfifo(folder)
    elif kind == "device":
        folder.symlink_to("/dev/zero")
    elif kind == "loop":
        folder.symlink_to(folder)
    else:
        folder.touch()
    with pytest.warns(UserWarning, match="Summaries cannot be written to the cache folder"):
        assert check(KEYS[:5], folder) == KEYS[:5]
    assert cache_info(folder)[2:] == (0, 0)
    clear_cache(folder)
    assert os.path.lexists(folder)
    with pytest.raises(InvalidParameterError, match="cache: expected .*; this is no folder"):
        SKATRTransformer(cache=folder, max_epochs=0).fit(np.zeros((4, 4, 4, 8)))


@forks
@pytest.mark.parametrize("name", ["claims", "0123-44.summaries"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_in_a_folder_is_not_opened(folder, forget, name, kind):
    check(KEYS[:5], folder)
    odd = folder / SPACE.hex() / name
    odd.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero")
    forget()
    assert check(KEYS[:6], folder) == KEYS[5:6]
    assert cache_info(folder).n_entries == 6


def fill_a_full_disk(sender, folder, small_disk):
    try:
        small_disk(folder)
    except OSError as error:
        sender.send(("skip", str(error)))
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        computed = check(MANY, folder, group=4)
        clear_cache()
        again = check(MANY, folder, group=4)
    messages = [str(warning.message) for warning in caught]
    sender.send((computed, again, cache_info(folder).n_entries, messages))


def small_files(folder):
    """No file of this process may grow beyond 1000 bytes: 20 records, in groups of 4."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def small_tmpfs(folder):
    """Mount a file system in a name space of this process, with 4096 bytes left: 92 records."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private = 0x20000, 0x10000000, 1 << 18 | 1 << 14
    folder.mkdir()
    done = libc.unshare(new_mounts) == 0 or libc.unshare(new_mounts | new_users) == 0
    done = done and libc.mount(b"none", b"/", None, private, None) == 0
    options = b"size=8k,nr_inodes=8"
    if not (done and libc.mount(b"none", bytes(folder), b"tmpfs", 0, options) == 0):
        raise OSError(ctypes.get_errno(), "no small file system can be mounted here")
    (folder / "filler").write_bytes(b"x" * 4096)


@forks
@pytest.mark.parametrize("small_disk", [small_files, small_tmpfs])
def test_a_full_disk_costs_a_warning_and_no_number(small_disk, folder):
    process, receiver = in_process(fill_a_full_disk, folder, small_disk)
    computed, *rest = receiver.recv()
    process.join()
    if computed == "skip":
        pytest.skip(rest[0])
    again, n_written, messages = rest
    assert computed == MANY
    assert again == MANY[n_written:]
    # What was whole has stayed, as whole groups.
    assert n_written == (20 if small_disk is small_files else 92)
    assert len(messages) == 1
    assert "make room, or name another folder" in messages[0]


# clearing


def test_clearing_deletes_our_files_and_no_other(folder):
    check(KEYS[:5], folder)
    check(KEYS[:5], folder, space=OTHER)
    notes = [folder / "notes.txt", folder / SPACE.hex() / "notes.txt", folder / "x.summaries"]
    for path in notes:
        path.write_text("mine")
    clear_cache(folder)
    assert cache_info(folder) == (0, 0, 0, 0)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(notes)
    assert not (folder / OTHER.hex()).exists()
    assert check(KEYS[:5], folder) == KEYS[:5]


def test_an_absent_folder_is_empty(folder):
    assert cache_info(folder)[2:] == (0, 0)
    clear_cache(folder)
    assert not folder.exists()


# digests of light cones


def test_digests_are_shared_and_are_no_summaries(folder, forget):
    asked = []

    def digest(rows):
        asked.extend(rows)
        return [KEYS[row] for row in rows]

    assert recall_in(folder)(MANY[:100], lambda rows: [MANY[-1 - row] for row in rows]) == [
        MANY[-1 - row] for row in range(100)
    ]
    forget()
    assert recall_in(folder)(MANY[99::-1], digest) == [MANY[-1 - row] for row in range(99, -1, -1)]
    assert asked == []
    assert cache_info(folder) == (0, 0, 0, 0)
    clear_cache(folder)
    assert recall_in(folder)(MANY[:3], digest) == KEYS[:3]
    assert asked == [0, 1, 2]
