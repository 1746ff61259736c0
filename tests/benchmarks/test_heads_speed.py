"""Heads and flows beside plain loops and bare libraries, in turn, on two threads."""

import statistics

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skatr_sk import HeadSearchCV, LightconeRegressor, PosteriorEstimator
from tests.benchmarks.public import PublicFlow, public_head, with_public
from tests.benchmarks.references import BareFlow, PlainHead, sklearn_head

pytestmark = [
    pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning"),
    pytest.mark.filterwarnings("ignore::skatr_sk.ExtrapolationWarning"),
]
BOX = np.tile([0.0, 1.0], (6, 1))


def summaries(n=3750):
    """Summaries that know nothing of the parameters: the time is that of the steps."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 360)).astype(np.float32), rng.uniform(size=(n, 6))


def epoch_of(head, X, y):
    """Seconds of a middle epoch: the median of three."""
    history = head.fit(X, y).history_
    return statistics.median(row["seconds"] for row in history[1:])


def test_epoch_of_a_head(torch_seed, table):
    X, y = summaries()
    head = LightconeRegressor(
        hidden_dims=(360,), max_epochs=4, validation_fraction=0, random_state=0, device="cpu"
    )
    references = {"plain loop": PlainHead(X, y).epoch, "MLPRegressor": sklearn_head(X, y)}
    table.compare(
        "epoch of a head, MLP 360-360-6, 3,750 rows in batches of 32",
        lambda: epoch_of(head, X, y),
        with_public(references, lambda: public_head(X, y)),
        limit={"plain loop": 0.4, "public code": 0.4},
        in_readme=True,
    )


@pytest.fixture(scope="module")
def flows():
    X, y = summaries()
    both = {"bare nflows": BareFlow(X, y)}
    return with_public(both, lambda: PublicFlow(X, y))


@pytest.fixture(scope="module")
def posterior():
    return PosteriorEstimator(
        batch_size=32, max_epochs=4, n_members=1, validation_fraction=0, random_state=0,
        prior_bounds=BOX, device="cpu",
    )  # fmt: skip


def test_epoch_of_a_flow(torch_seed, flows, posterior, table):
    X, y = summaries()
    table.compare(
        "epoch of a flow of 6 blocks of 128, 3,750 rows in batches of 32",
        lambda: epoch_of(posterior, X, y),
        {name: flow.epoch for name, flow in flows.items()},
        limit={"public code": 0.7},
        pairs=2,
        warm_up=False,
        in_readme=True,
    )


def test_samples(torch_seed, flows, posterior, table):
    X, y = summaries()
    rows = []
    for n_members, whose in (1, "one flow"), (5, "five flows, the default"):
        fitted = clone(posterior).set_params(max_epochs=1, n_members=n_members).fit(X, y)
        rows += table.compare(
            f"5,000 samples of 10 posteriors, of {whose}",
            lambda head=fitted: head.sample(X[:10], 5000, random_state=0),
            {name: lambda flow=flow: flow.sample(X[:10], 5000) for name, flow in flows.items()},
            limit={"public code": 0.6} if n_members == 1 else {},
            in_readme=True,
            check=False,
        )
        rows += table.compare(
            f"predict of 100 posteriors, of {whose}",
            lambda head=fitted: head.predict(X[:100]),
            {"sample(X, 1000)": lambda head=fitted: head.sample(X[:100], 1000, random_state=0)},
            limit=1.0,
            check=False,
        )
    table.check(rows)


REGRESSOR = LightconeRegressor(hidden_dims=(128, 128), max_epochs=3, patience=None, random_state=0)
POSTERIOR = PosteriorEstimator(
    batch_size=32, max_epochs=2, n_members=1, patience=None, random_state=0, prior_bounds=BOX
)


@pytest.mark.parametrize("head", [REGRESSOR, POSTERIOR], ids=["regressors", "posteriors"])
def test_ensembles(head, table):
    X, y = summaries()
    five = type(head)(**head.get_params(deep=False) | {"n_members": 5})
    table.compare(
        f"five {type(head).__name__}s at once",
        lambda: five.fit(X, y),
        {"one": lambda: head.fit(X, y)},
        limit=2.0,
        pairs=3,
        warm_up=head is REGRESSOR,  # posteriors take seconds
        in_readme=True,
    )


class Listener(Callback):
    """Hears of every step, so that candidates are fitted one by one and in skorch's own loop."""

    def on_batch_end(self, net, **kwargs):
        pass


def test_search_of_heads(table):
    X, y = summaries(400)
    grid = {
        "learning_rate": np.geomspace(1e-4, 1e-2, 6).tolist(),
        "weight_decay": [0.0, 1e-3, 1e-2, 1e-1],
    }
    head = LightconeRegressor(hidden_dims=(32,), max_epochs=20, patience=None, random_state=0)
    loud = LightconeRegressor(**head.get_params(deep=False) | {"callbacks": [Listener()]})
    options = {"cv": 4, "refit": False}
    table.compare(
        "24 candidates for a head x 4 folds at once (HeadSearchCV)",
        lambda: HeadSearchCV(head, grid, **options).fit(X, y),
        {
            "GridSearchCV": lambda: GridSearchCV(head, grid, **options).fit(X, y),
            "GridSearchCV with callbacks": lambda: GridSearchCV(loud, grid, **options).fit(X, y),
        },
        limit={"GridSearchCV": 0.25},
        pairs=1,
        warm_up=False,
        in_readme=True,
    )
