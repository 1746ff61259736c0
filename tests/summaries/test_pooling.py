"""From tokens to summaries."""

import pytest
import torch

from skatr_sk.summaries.pooling import POOLINGS, pool, pooled_dim


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_by_hand(pooling):
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    found, array = pool(tokens, pooling), tokens.numpy()
    expected = {
        "mean": array.mean(axis=1),
        "max": array.max(axis=1),
        "moments": torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1),
        "tokens": array,
    }[pooling]
    torch.testing.assert_close(found, torch.as_tensor(expected))
    assert found.shape[-1] == pooled_dim(4, pooling)


def test_the_gradient_of_moments_is_finite_where_all_tokens_are_alike():
    tokens = torch.ones(3, 5, 4, requires_grad=True)
    summaries = pool(tokens, "moments")
    assert summaries.shape == (3, 8)
    summaries.sum().backward()
    assert tokens.grad.isfinite().all()
