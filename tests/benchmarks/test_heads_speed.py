"""Heads and flows beside plain loops, in turns, in one run: ratios of medians, on two threads.

With SKATR_PUBLIC the flow is timed beside the authors', without it beside bare nflows.
"""

import statistics
import time

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skatr_sk import HeadSearchCV, LightconeRegressor, PosteriorEstimator
from tests.benchmarks.reference_heads import BOX, flow_epoch, plain_head, public_flow, summaries
from tests.benchmarks.test_posterior_speed import bare_flow

pytestmark = [
    pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning"),
    pytest.mark.filterwarnings("ignore::skatr_sk.ExtrapolationWarning"),
]


def clock(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(ours, theirs, n):
    """Medians of both, timed n times in turns after a first time of each."""
    pairs = [(ours(), theirs()) for _ in range(n + 1)][1:]
    return [statistics.median(part) for part in zip(*pairs, strict=True)]


def say(capsys, what, ours, theirs, limit):
    with capsys.disabled():
        print(f"\n{what}: {ours:.4f} / {theirs:.4f} s, {ours / theirs:.2f} (limit {limit})")
    assert ours / theirs <= limit


def epoch_of(head, X, y):
    """Seconds of a middle epoch: the median of three."""
    history = head.fit(X, y).history_
    return statistics.median(row["seconds"] for row in history[1:])


def test_epoch_of_a_head(torch_seed, capsys):
    X, y = summaries()
    head = LightconeRegressor(
        hidden_dims=(360,), max_epochs=4, validation_fraction=0, random_state=0, device="cpu"
    )
    plain = plain_head(X, y)
    times = in_turns(lambda: epoch_of(head, X, y), lambda: clock(plain), 5)
    say(capsys, "epoch of a head, beside a plain loop", *times, 0.4)


@pytest.fixture(scope="module")
def other():
    flow = public_flow()
    return ("the authors'", flow) if flow is not None else ("bare nflows", bare_flow())


@pytest.fixture(scope="module")
def posterior():
    return PosteriorEstimator(
        batch_size=32, max_epochs=4, validation_fraction=0, random_state=0, prior_bounds=BOX,
        device="cpu",
    )  # fmt: skip


def test_epoch_of_a_flow(torch_seed, other, posterior, capsys):
    X, y = summaries()
    whose, flow = other
    epoch = flow_epoch(flow.train(), X, (y - 0.5) / 0.29)
    times = in_turns(lambda: epoch_of(posterior, X, y), lambda: clock(epoch), 2)
    say(capsys, f"epoch of a flow, beside {whose}", *times, 0.7)


def test_samples(torch_seed, other, posterior, capsys):
    X, y = summaries()
    whose, flow = other
    fitted = posterior.set_params(max_epochs=1).fit(X, y)
    rows = torch.from_numpy(X[:10]).unsqueeze(1)

    def theirs():
        with torch.inference_mode():
            for row in rows:
                if hasattr(flow, "sample_batch"):
                    flow.sample_batch(row.expand(5000, -1))
                else:
                    flow.sample(5000, context=row)

    times = in_turns(
        lambda: clock(lambda: fitted.sample(X[:10], 5000, random_state=0)), lambda: clock(theirs), 5
    )
    say(capsys, f"5,000 samples for 10 light cones, beside {whose}", *times, 0.6)
    times = in_turns(
        lambda: clock(lambda: fitted.predict(X[:100])),
        lambda: clock(lambda: fitted.sample(X[:100], 1000, random_state=0)),
        5,
    )
    say(capsys, "predict, beside sampling 1,000 draws", *times, 1.0)


REGRESSOR = LightconeRegressor(hidden_dims=(128, 128), max_epochs=3, patience=None, random_state=0)
POSTERIOR = PosteriorEstimator(
    batch_size=32, max_epochs=2, patience=None, random_state=0, prior_bounds=BOX
)


@pytest.mark.parametrize("head", [REGRESSOR, POSTERIOR], ids=["regressors", "posteriors"])
def test_ensembles(head, capsys):
    X, y = summaries()
    five = LightconeRegressor if head is REGRESSOR else PosteriorEstimator
    five = five(**head.get_params(deep=False) | {"n_members": 5})
    times = in_turns(
        lambda: clock(lambda: five.fit(X, y)), lambda: clock(lambda: head.fit(X, y)), 3
    )
    say(capsys, f"an ensemble of five {type(head).__name__}, beside one", *times, 2.0)


class Listener(Callback):
    """Hears of every step, as the trainer alone spoke of them all before: fits go one by one."""

    def on_batch_end(self, net, **kwargs):
        pass


def test_search(capsys):
    """24 candidates on 4 folds; the second figure is beside fits that tell callbacks each step."""
    X, y = summaries(400)
    grid = {
        "learning_rate": np.geomspace(1e-4, 1e-2, 6).tolist(),
        "weight_decay": [0.0, 1e-3, 1e-2, 1e-1],
    }
    head = LightconeRegressor(hidden_dims=(32,), max_epochs=20, patience=None, random_state=0)
    loud = LightconeRegressor(**head.get_params(deep=False) | {"callbacks": [Listener()]})
    options = {"cv": 4, "refit": False}
    times = in_turns(
        lambda: clock(lambda: HeadSearchCV(head, grid, **options).fit(X, y)),
        lambda: clock(lambda: GridSearchCV(head, grid, **options).fit(X, y)),
        1,
    )
    before = clock(lambda: GridSearchCV(loud, grid, **options).fit(X, y))
    with capsys.disabled():
        print(f"\na search, beside fits that are watched: {times[0] / before:.2f}")
    say(capsys, "24 candidates on 4 folds at once, beside one by one", *times, 0.25)
