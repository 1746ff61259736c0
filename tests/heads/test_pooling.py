"""From tokens to one vector: the mean, and attention that starts as the mean."""

import numpy as np
import pytest
import torch

from skatr_sk import LightconeRegressor, PosteriorEstimator
from skatr_sk._checks import NoEffectWarning
from skatr_sk.heads.pooling import AttentivePooling, MeanPooling, make_pooling


def test_the_mean_is_that_of_the_tokens(torch_seed):
    tokens = torch.randn(5, 7, 12)
    torch.testing.assert_close(MeanPooling()(tokens), tokens.mean(dim=1))
    pooled = tokens[:, 0]
    assert MeanPooling()(pooled) is pooled


@pytest.mark.parametrize(("dim", "n_heads"), [(16, 8), (12, 4), (6, 2), (5, 1)])
def test_attention_starts_as_the_mean(dim, n_heads, torch_seed):
    pooling = make_pooling("attention", dim)
    assert isinstance(pooling, AttentivePooling) and pooling.n_heads == n_heads
    tokens = torch.randn(5, 7, dim)
    torch.testing.assert_close(pooling(tokens), tokens.mean(dim=1))


def test_attention_does_not_ask_for_the_order_of_tokens(torch_seed):
    pooling = AttentivePooling(12)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.normal_()
    tokens = torch.randn(3, 7, 12)
    torch.testing.assert_close(pooling(tokens[:, torch.randperm(7)]), pooling(tokens))
    assert not torch.allclose(pooling(tokens), pooling(tokens[:, :6]))


def posterior(**parameters):
    small = dict(n_blocks=2, n_bins=5, hidden_dims=(16,), dropout=0.05)
    small |= dict(batch_size=128, weight_decay=1.0, n_members=1)
    return PosteriorEstimator(**small, learning_rate=1e-2, **parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [posterior, lambda **p: LightconeRegressor(hidden_dims=(16,), learning_rate=1e-2, **p)],
    ids=["posterior", "regressor"],
)
def test_attention_finds_the_token_that_matters(head):
    """One token of twelve, marked in its first feature, holds the parameter."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=600)
    tokens = rng.normal(size=(600, 12, 8))
    tokens[..., 0] = 0
    where = rng.integers(12, size=600)
    tokens[np.arange(600), where, 0] = 3
    tokens[np.arange(600), where, 1] = y
    errors = {}
    for pooling in ("mean", "attention"):
        same = dict(pooling=pooling, max_epochs=60, device="cpu", random_state=0)
        fitted = head(**same).fit(tokens[:500], y[:500])
        errors[pooling] = np.abs(fitted.predict(tokens[500:]) - y[500:]).mean()
        with pytest.raises(ValueError, match=r"shape \(12, 8\), .* found \(11, 8\)"):
            fitted.predict(tokens[:5, :11])
    assert errors["attention"] < 0.7 * errors["mean"]


@pytest.mark.parametrize("head", [posterior, LightconeRegressor])
def test_pooled_summaries_are_taken_as_they_are(head, rng):
    X, y = rng.normal(size=(50, 8)), rng.normal(size=50)
    same = dict(max_epochs=1, device="cpu", random_state=0)
    expected = head(**same).fit(X, y).predict(X)
    with pytest.warns(NoEffectWarning, match="pooling"):
        fitted = head(pooling="attention", **same).fit(X, y)
    np.testing.assert_array_equal(fitted.predict(X), expected)
