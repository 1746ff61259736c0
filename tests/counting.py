"""Hooks on an encoder that count what it sees, in any process, or kill the process it runs in;
and files that count how often they are read.

They are pickled by reference: a worker imports this module, and writes to the same files.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from skatr_sk import LightconeArray
from skatr_sk.lightcones.sources import NpzSource


class CountFields:
    """Forward hook: append the fields of each batch to a file that all processes share."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.touch()

    def __call__(self, module, arguments, output):
        # One short write to a file that is open for appending is never mixed with another's.
        with open(self.path, "ab", buffering=0) as stream:
            stream.write(b"%d %d\n" % (os.getpid(), len(output)))

    def total(self):
        return sum(int(line.split()[1]) for line in self.path.read_text().splitlines())

    def processes(self):
        return {int(line.split()[0]) for line in self.path.read_text().splitlines()}


class KillOnce:
    """Forward hook: the first process that finds the flag takes it away and is killed."""

    def __init__(self, flag):
        self.flag = Path(flag)
        self.flag.touch()

    def __call__(self, module, arguments, output):
        try:
            self.flag.unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class CountedNpz(NpzSource):
    """An .npz file that notes each reading in a file that all processes share."""

    log: str = ""

    def _load(self, handle, row, out):
        with open(self.log, "ab", buffering=0) as stream:
            stream.write(b"%d\n" % os.getpid())
        super()._load(handle, row, out)


def count_reads(X, log):
    """The same light cones in .npz files, with each reading a line in `log`."""
    log.touch()
    sources = [CountedNpz(**vars(source), log=str(log)) for source in X._files.sources]
    return LightconeArray(sources)
