"""Load files in processes of their own, with limits: a crash or a hang costs one of them.

``python -m tests.robustness.child`` imports the package once and then forks for each line of its
input, ``{"load": name, "path": path}``; it answers with a line each. A fresh interpreter for each
would spend its two seconds on importing torch.

Memory is limited by RLIMIT_DATA, counted from what the process has when it was forked: the address
space (RLIMIT_AS) is taken by gigabytes that torch reserves and never touches, and resident memory
(RLIMIT_RSS) is not limited by Linux. What is allocated and written counts, as does a map that is
private and writable.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from tests.memory import memory

ROOT = Path(__file__).resolve().parents[2]

CPU_SECONDS, MEGABYTES = 2, 400
WALL_SECONDS = 20  # others may use the same cores: only what hangs takes as long


class Server:
    """The warm process; ``server("lightcones", path)`` is what became of a forked one."""

    def __init__(self):
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.child"],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, load, path):
        self.process.stdin.write(json.dumps({"load": load, "path": os.fspath(path)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


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


def main():
    from tests.robustness import loads

    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_in_a_fork(getattr(loads, asked["load"]), asked["path"])), flush=True)


if __name__ == "__main__":
    main()
