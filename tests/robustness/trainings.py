"""Small trainings of every kind that leaves checkpoints, in processes of their own."""

import json
import multiprocessing
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone

from skatr_sk import LightconeRegressor, PosteriorEstimator, SKATRTransformer
from skatr_sk.summaries import Supervised
from skatr_sk.training.state import digest_of
from tests.training.runs import signals, transformer

LABELS = np.random.default_rng(1).uniform(size=(24, 2))
ONE = dict(max_epochs=1, random_state=0)
SMALL = dict(random_state=3, device="cpu", batch_size=8, patience=30)


def _labelled(**parameters):
    return transformer(objective=Supervised(), max_epochs=40, patience=30, **parameters)


def _backbone(**parameters):
    vit = SKATRTransformer(patch_size=2, embed_dim=8, depth=1)
    head = dict(hidden_dims=(16,), max_epochs=40, learning_rate=1e-3, dropout=0.2)
    return LightconeRegressor(backbone=vit, **SMALL | head | parameters)


def _fine_tuned(**parameters):
    regressor = _backbone(**parameters)
    return regressor.set_params(backbone=clone(regressor.backbone).set_params(**ONE).fit(signals()))


def _ensemble(**parameters):
    return LightconeRegressor(max_epochs=30, n_members=3, dropout=0.2, **SMALL | parameters)


def _posterior(**parameters):
    small = dict(n_blocks=2, hidden_dims=(16,), max_epochs=20, n_members=2, dropout=0.2)
    return PosteriorEstimator(prior_bounds=[[0, 1]] * 2, **SMALL | small | parameters)


KINDS = {
    "short": lambda **parameters: transformer(max_epochs=6, **parameters),
    "transformer": lambda **parameters: transformer(max_epochs=20, **parameters),
    "labelled": _labelled,
    "backbone": _backbone,
    "fine-tuned": _fine_tuned,
    "ensemble": _ensemble,
    "posterior": _posterior,
}


def train(kind, folder, every, result):
    """Fit in a process of its own, and write what was learned and how, as a digest."""
    torch.set_num_threads(1)
    parameters = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": every}
    fitted = KINDS[kind](**parameters).fit(signals(), LABELS)
    modules = {k: v for k, v in vars(fitted).items() if isinstance(v, torch.nn.Module)}
    learned = {f"{k}.{n}": t for k, v in modules.items() for n, t in v.state_dict().items()}
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history_]
    partial = Path(f"{result}.partial")
    partial.write_text(f"{len(history)} {digest_of(learned, repr(history))}")
    os.replace(partial, result)


def resume(folder, answer, megabytes):
    """Fit where there is a checkpoint, with little memory; write what is raised, and when."""
    torch.set_num_threads(1)
    (line,) = [t for t in Path("/proc/self/status").read_text().splitlines() if "VmData" in t]
    most = 1024 * int(line.split()[1]) + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    begin, found = time.process_time(), {"raised": [], "message": ""}
    try:
        transformer(checkpoint_dir=folder, checkpoint_every=1).fit(signals())
    except Exception as error:
        found = {"raised": [k.__name__ for k in type(error).__mro__], "message": str(error)}
    answer.write_text(json.dumps(found | {"seconds": time.process_time() - begin}))


@contextmanager
def warm():
    """Processes that begin in a moment, forked from one that has imported all of this."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    first = context.Process(target=abs, args=(0,))  # waits for the imports
    first.start()
    first.join()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    yield context


def warm_process(target):
    """Begin ``target(connection)`` in such a process; return it and the other end."""
    ours, theirs = multiprocessing.Pipe()
    with warm() as context:
        process = context.Process(target=target, args=(theirs,), daemon=True)
        process.start()
    theirs.close()
    return process, ours
