"""Pre-train in one of several processes and write what came of it; run as a script.

Its arguments: a folder, and changes of the transformer's parameters as JSON. The environment says
which process it is.
"""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import numpy as np
from skorch.callbacks import Callback

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import JEPA, Combined, LeJEPA, Reconstruction, Supervised, VICReg

OBJECTIVES = {
    "jepa": lambda: JEPA(predictor_dim=8, predictor_depth=1, pooled_weight=0.5),
    "vicreg": lambda: VICReg(expander_dim=8),
    "lejepa": lambda: LeJEPA(expander_dim=8),
    "reconstruction": lambda: Reconstruction(predictor_dim=8, predictor_depth=1),
    "supervised": lambda: Supervised(),
    "combined": lambda: Combined(objectives=[("jepa", JEPA()), ("labels", Supervised())]),
}
RANK = int(os.environ.get("RANK", 0))


class Steps(Callback):
    """Writes the loss of each step."""

    def __init__(self, path):
        self.path = path

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            with open(self.path, "a") as stream:
                stream.write(json.dumps(net.history[-1, "batches", -1, "train_loss"]) + "\n")


class Die(Callback):
    """Kills, or stops, this process in its fifth step."""

    def __init__(self, how):
        self.how = how
        self.left = 5

    def on_batch_begin(self, net, training=None, **kwargs):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), getattr(signal, self.how))


def fields(n=37):
    """An odd number of rows: the last batch cannot be shared evenly."""
    rng = np.random.default_rng(0)
    return rng.normal(-20, 30, size=(n, 4, 4, 6)).astype(np.float32), rng.normal(size=(n, 2))


def transformer(objective="jepa", **parameters):
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, batch_size=7, max_epochs=4)
    small |= dict(random_state=0, device="cpu", objective=OBJECTIVES[objective]())
    return SKATRTransformer(**small | parameters)


def main(folder, given):
    folder, parameters = Path(folder), json.loads(given)
    die = parameters.pop("die", None)
    own = parameters.pop("of_rank", {}).get(str(RANK), {})
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="LOG %(message)s")
    callbacks = [Steps(folder / f"steps-{RANK}")]
    callbacks += [Die(die)] if die and RANK == 1 else []
    skatr = transformer(**parameters | own, callbacks=callbacks)
    X, y = fields()
    try:
        skatr.fit(X, y)
    except (OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.stdout.flush()
        os._exit(3)  # without waiting for others that are gone
    np.save(folder / f"summaries-{RANK}.npy", skatr.transform(X))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in skatr.history_]
    (folder / f"history-{RANK}").write_text(json.dumps(rows))
    skatr.set_params(callbacks=None).save(folder / f"weights-{RANK}")


if __name__ == "__main__":
    main(*sys.argv[1:])
