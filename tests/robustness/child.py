"""Load files in processes of their own, with limits: a crash or a hang costs one of them.

A process that has imported the package forks for each ``(name of a function of loads, path)`` that
it is asked for. A fresh interpreter for each would spend its two seconds on importing torch.

Memory is limited by RLIMIT_DATA, counted from what the process has when it was forked: the address
space (RLIMIT_AS) is taken by gigabytes that torch reserves and never touches, and resident memory
(RLIMIT_RSS) is not limited by Linux. What is allocated and written counts, as does a map that is
private and writable.
"""

import json
import os
import resource
import signal
import traceback
import warnings

from tests.memory import memory
from tests.robustness.trainings import warm_process

CPU_SECONDS, MEGABYTES = 2, 400
WALL_SECONDS = 20  # others may use the same cores: only what hangs takes as long


class Server:
    """The warm process; ``server("lightcones", path)`` is what became of a forked one."""

    def __init__(self):
        self.process, self.connection = warm_process(serve)

    def __call__(self, load, path):
        self.connection.send((load, os.fspath(path)))
        return self.connection.recv()

    def close(self):
        self.connection.close()
        self.process.join()


def _limit():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    most = memory("VmData") + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    signal.alarm(WALL_SECONDS)


def _answer(load, path):
    """What loading raises, or what it returns."""
    _limit()
    try:
        return {"returned": repr(load(path))}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"raised": kinds, "message": str(error), "trace": traceback.format_exc()}


def _in_a_fork(load, path):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        before = memory("VmRSS")
        answer = _answer(load, path)
        answer["megabytes"] = (memory("VmHWM") - before) / 2**20
        with os.fdopen(writing, "w") as stream:
            json.dump(answer, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status, used = os.wait4(pid, 0)
    answer = json.loads(text) if text else {}
    if os.WIFSIGNALED(status):
        answer["killed"] = signal.Signals(os.WTERMSIG(status)).name
    return answer | {"seconds": used.ru_utime + used.ru_stime}


def serve(connection):
    from tests.robustness import loads

    warnings.simplefilter("ignore")
    while True:
        try:
            load, path = connection.recv()
        except EOFError:
            return
        connection.send(_in_a_fork(getattr(loads, load), path))
