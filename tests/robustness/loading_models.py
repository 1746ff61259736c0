"""Load files one after the other, in a process of little memory and time, and say what comes.

It is asked for a kind (see `_loaders`) and a path, and answers what became of them, with the error
in the place of a crash.
"""

import json
import os
import resource
import signal
import time

MEMORY, SECONDS = 400_000_000, 2.0


def _loaders():
    from skatr_sk import SKATRTransformer, load_model
    from skatr_sk.summaries.weights import read_encoder

    return {"weights": read_encoder, "transformer": SKATRTransformer.load, "model": load_model}


def _too_long(*args):
    raise TimeoutError(f"more than {SECONDS} s")


def main(connection):
    loaders = _loaders()
    loaders["weights"]("mini-lr")  # what a first call imports and makes
    signal.signal(signal.SIGALRM, _too_long)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while True:
        try:
            kind, path = connection.recv()
        except EOFError:
            return
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            loaders[kind](path)
            error, message, typed = "none", "", False
        except BaseException as caught:
            error, message = type(caught).__name__, str(caught)
            typed = isinstance(caught, OSError | ValueError) and not isinstance(
                caught, TimeoutError | UnicodeError | json.JSONDecodeError
            )
        signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - start
        found = {"path": path, "error": error, "message": message, "typed": typed}
        connection.send(found | {"seconds": seconds})
