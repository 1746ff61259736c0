"""Every writer of the package meets a full disk at random moments; run by test_full_disks.py.

``python full_disks.py limit|tmpfs N FOLDER`` prints a JSON line for N moments of each writer, and
its status. At each moment there is what there was before, something is written until there is no
room, and what is left is looked at. The moments of a writer are in one process, a fork of this one,
which ends as any process does, so that what crashes at its end is seen.
"""

import ctypes
import errno
import gc
import json
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch

from skatr_sk import SKATRTransformer, _files, open_lightcones, save_lightcones
from skatr_sk.lightcones import convert_lightcones, converting
from skatr_sk.summaries import clear_cache

torch.set_num_threads(1)
NO_ROOM = {errno.ENOSPC, errno.EFBIG}
CHECK_ROOM = _files.check_room
RNG = np.random.default_rng(0)
OLD, NEW = (RNG.normal(-20, 30, (n, 6, 6, 8)).astype(np.float32) for n in (20, 200))
SMALL = dict(embed_dim=16, depth=1, n_heads=2, random_state=0)


class Stop(Exception):
    pass


class Writer:
    """What there was before, the write that fails, and the write that then goes on."""

    name = "cones.h5"

    def prepare(self, folder):
        save_lightcones(folder / self.name, OLD)

    def write(self, folder):
        save_lightcones(folder / self.name, NEW)

    def check(self, folder):
        """With room again."""
        self.write(folder)
        values = np.asarray(open_lightcones(folder / self.name, validate="full").data)
        np.testing.assert_array_equal(values, NEW)


class Packed(Writer):
    def write(self, folder):
        save_lightcones(folder / self.name, NEW, compression="gzip")


class Cast(Packed):
    """From numbers in double precision, with parameters."""

    def write(self, folder):
        save_lightcones(folder / self.name, NEW.astype(np.float64), NEW[:, 0, 0, :2], dtype="f4")


class Converted(Writer):
    """With a part that is there already; parts that are written later stay, for it goes on."""

    compression = "none"

    def prepare(self, folder):
        super().prepare(folder)
        np.save(folder / "source.npy", NEW)
        save, calls = converting.save_lightcones, []

        def stopped(*arguments, **options):
            if calls:
                raise Stop
            calls.append(save(*arguments, **options))

        converting.save_lightcones = stopped
        try:
            self.write(folder)
        except Stop:
            pass
        converting.save_lightcones = save
        assert len(list((folder / "cones.h5.parts").glob("0*.h5"))) == 1

    def write(self, folder):
        converting._PART_BYTES = 2**16
        convert_lightcones(folder / "source.npy", folder / self.name, compression=self.compression)


class ConvertedPacked(Converted):
    compression = "lzf"


class FirstConverted(Converted):
    """The folder of parts and its note are made in no room."""

    def prepare(self, folder):
        Writer.prepare(self, folder)
        np.save(folder / "source.npy", NEW)


class Weights(Writer):
    name = "weights.safetensors"

    def prepare(self, folder):
        self.old, self.new = (
            SKATRTransformer(**SMALL | dict(random_state=k), max_epochs=0).fit(NEW[:20])
            for k in range(2)
        )
        self.old.save(folder / self.name)

    def write(self, folder):
        self.new.save(folder / self.name)

    def check(self, folder):
        self.write(folder)
        again = SKATRTransformer(weights=folder / self.name).fit(NEW[:20]).transform(NEW[:20])
        np.testing.assert_array_equal(again, self.new.transform(NEW[:20]))


class Checkpoint(Writer):
    """A run goes on from its first epoch, and cannot write its second."""

    @property
    def name(self):
        (path,) = self.folder.glob("checkpoint-*.safetensors")
        return path.name

    def prepare(self, folder):
        self.folder, self.stops = folder, True
        try:
            self.write(folder)
        except Stop:
            self.stops = False

    def write(self, folder):
        from skorch.callbacks import Callback

        class Stopper(Callback):
            def on_batch_begin(this, net, **kwargs):
                if self.stops and len(net.history) == 2:
                    raise Stop

        run = dict(
            max_epochs=2,
            batch_size=10,
            checkpoint_dir=folder,
            checkpoint_every=1,
            callbacks=[Stopper()],
        )
        SKATRTransformer(**SMALL, **run).fit(NEW[:20])

    def check(self, folder):
        self.write(folder)


class Cache(Writer):
    """Summaries are there whatever becomes of the folder."""

    @property
    def name(self):
        (path,) = self.folder.glob("*/*.summaries")
        return path.relative_to(self.folder)

    def prepare(self, folder):
        self.folder = folder
        self.transformer = SKATRTransformer(**SMALL, max_epochs=0, cache=folder).fit(NEW[:20])
        self.expected = SKATRTransformer(**SMALL, max_epochs=0, cache=None).fit(NEW[:20])
        self.expected = self.expected.transform(NEW)
        self.transformer.transform(NEW[:5])

    def write(self, folder):
        clear_cache()
        found = self.transformer.transform(NEW)
        np.testing.assert_allclose(found, self.expected, rtol=1e-4, atol=1e-5)

    def check(self, folder):
        self.write(folder)


class Note(Writer):
    name = "note.json"

    def prepare(self, folder):
        (folder / self.name).write_text("old")

    def write(self, folder):
        text = json.dumps(list(range(20_000)))
        _files.write_whole(folder / self.name, lambda path: path.write_text(text), len(text))

    def check(self, folder):
        self.write(folder)


_SAVED = [Writer, Packed, Cast]
_CONVERTED = [Converted, ConvertedPacked, FirstConverted]
WRITERS = [*_SAVED, *_CONVERTED, Weights, Checkpoint, Cache, Note]


def limit(folder, room):
    """No file of this process may be larger; returned is what lifts that."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    every = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, every)


def tmpfs(folder, room):
    """Fill the small file system that was mounted, but for some bytes."""
    filler = folder / "filler"
    free = os.statvfs(folder)
    with open(filler, "wb", buffering=0) as stream:
        # Whole pages, and one less, for what is there already may have room in its last.
        stream.write(b"x" * (free.f_bavail - max(0, room // free.f_frsize - 1)) * free.f_frsize)
    return filler.unlink


def mount(folder):
    """Mount a file system of 4 MB in a name space of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, private = 0x20000, 0x10000000, 1 << 18 | 1 << 14
    done = libc.unshare(new_mounts) == 0 or libc.unshare(new_mounts | new_users) == 0
    done = done and libc.mount(b"none", b"/", None, private, None) == 0
    if not (done and libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=4m") == 0):
        raise OSError(ctypes.get_errno(), "no small file system can be mounted here")


def state_of(folder):
    """All files but the parts of a conversion, which grow; and what should not be there."""
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "filler"}
    kept = {str(p.relative_to(folder)): data for p, data in files.items()}
    return {name: data for name, data in kept.items() if ".parts/" not in name}


def size_of(make, root):
    """Bytes that a writer writes where there is room, beside what was there before."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        writer = make()
        writer.prepare(folder)
        before = (folder / writer.name).stat().st_size if make is Cache else 0
        writer.write(folder)
        return (folder / writer.name).stat().st_size - before


def moment(kind, make, room, unforeseen, root):
    """Return what was seen when there is room for some bytes, which are too few."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        writer = make()
        writer.prepare(folder)
        before = state_of(folder)
        # As a disk that fills up meanwhile, or a quota that nobody tells us of.
        looks = (lambda *arguments, **options: None) if unforeseen else CHECK_ROOM
        _files.check_room = converting.check_room = looks
        lift = globals()[kind](folder, room)
        seen = {"error": None}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                writer.write(folder)
        except OSError as error:
            seen |= {"error": type(error).__name__, "errno": error.errno, "text": str(error)}
        finally:
            gc.collect()
        told = [str(w.message) for w in caught if "missing)" in str(w.message)]
        seen |= {"warned": told, "path": str(folder)}
        lift()
        after = state_of(folder)
        if make is Cache:  # shards only grow
            seen["intact"] = all(after[n].startswith(data) for n, data in before.items())
        else:
            seen["intact"] = after == before
        seen["leftovers"] = [p.name for p in folder.rglob(".skatr_sk-*")]
        writer.check(folder)
        return seen


def main(kind, n, root):
    generator = random.Random(0)
    if kind == "tmpfs":
        try:
            mount(root)
        except OSError as error:
            print(json.dumps({"skip": str(error)}))
            return
    for make in WRITERS:
        shares = [generator.uniform(0, 0.999) for _ in range(n)]
        read, write = os.pipe()
        if not (child := os.fork()):
            with open(write, "w") as stream:
                size = size_of(make, root)
                for k, share in enumerate(shares):
                    try:
                        seen = moment(kind, make, int(share * size), k % 2 == 1, root)
                    except BaseException:
                        seen = {"failed": traceback.format_exc()}
                    print(json.dumps({"writer": make.__name__, "share": share} | seen), file=stream)
            return  # and so to the end of the process
        os.close(write)
        with open(read) as stream:
            print(stream.read(), end="")
        ended = {"writer": make.__name__, "status": os.waitpid(child, 0)[1]}
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
