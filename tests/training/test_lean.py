"""The lean trainer and its AdamW: torch's numbers, and the same with listeners as without."""

import numpy as np
import pytest
import torch

from skatr_sk import LightconeRegressor, PosteriorEstimator
from skatr_sk.training.lean import AdamW, LeanTrainer
from tests.training.runs import Act, without_seconds


def test_steps_are_those_of_torch(torch_seed):
    start = [torch.randn(5, 3), torch.randn(3), torch.randn(2, 2)]
    found = []
    for kind in (torch.optim.AdamW, AdamW):
        weights = [torch.nn.Parameter(each.clone()) for each in start]
        groups = [{"params": weights[:1], "weight_decay": 0.5}, {"params": weights[1:], "lr": 1e-3}]
        optimizer = kind(groups, lr=1e-2, fused=True)
        generator = torch.Generator().manual_seed(0)
        for step in range(6):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            if step == 3:
                weights[1].grad = None
            if step == 4:  # as a run that goes back, or resumes, does it
                state = optimizer.state_dict()["state"]
                optimizer.state.clear()
                for number, own in state.items():
                    optimizer.state[weights[number]] = {k: v.clone() for k, v in own.items()}
            optimizer.step()
        found.append((weights, [dict(optimizer.state[weight]) for weight in weights]))
    for wanted, own in zip(*(part[0] for part in found), strict=True):
        assert torch.equal(wanted, own)
    for wanted, own in zip(*(part[1] for part in found), strict=True):
        assert wanted.keys() == own.keys() and all(torch.equal(wanted[k], own[k]) for k in own)


HEADS = {
    "regressor": LightconeRegressor(hidden_dims=(8,), dropout=0.2, max_epochs=6, patience=2),
    "gaussian": LightconeRegressor(hidden_dims=(8,), loss="gaussian", max_epochs=4),
    "own loss": LightconeRegressor(hidden_dims=(8,), loss=torch.nn.L1Loss(), max_epochs=3),
    "posterior": PosteriorEstimator(
        n_blocks=2, hidden_dims=(8,), n_members=1, max_epochs=3, dropout=0.2
    ),
}


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize("kind", HEADS)
def test_listeners_change_nothing(kind, rng, monkeypatch):
    X = rng.normal(size=(90, 5))
    y, weights = np.tanh(X[:, :2]) + 0.1 * rng.normal(size=(90, 2)), rng.uniform(0.5, 2, 90)
    heard = []
    watched = type(HEADS[kind])(
        **HEADS[kind].get_params(deep=False)
        | {"callbacks": [Act("batch", lambda net: heard.append(net.history[-1, "batches", -1]))]}
    )
    weights = None if kind == "own loss" else weights
    lean = type(watched)(**HEADS[kind].get_params(deep=False))
    for head in (lean, watched):
        head.set_params(random_state=0).fit(X, y, sample_weight=weights)
    assert without_seconds(lean.history_) == without_seconds(watched.history_)
    np.testing.assert_array_equal(lean.predict(X), watched.predict(X))
    assert heard and all({"train_loss", "train_batch_size"} <= row.keys() for row in heard)
    # The short way is taken where nobody listens, and only there.
    taken = []
    monkeypatch.setattr(LeanTrainer, "_step", lambda net, batch: taken.append(1) or torch.zeros(()))
    lean.set_params(max_epochs=1, patience=None).fit(X, y)
    assert taken
    taken.clear()
    watched.set_params(max_epochs=1, patience=None).fit(X, y)
    assert not taken
