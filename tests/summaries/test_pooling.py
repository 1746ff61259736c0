"""From tokens to summaries."""

import numpy as np
import pytest
import torch

from skatr_sk.summaries.pooling import POOLINGS, count_slices, pool, pooled_dim


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_by_hand(pooling):
    tokens = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    found, array = pool(tokens, pooling, n_slices=3), tokens.numpy()
    slices = array.reshape(3, 2, 3, 4)  # sky, then the line of sight
    between = slices.mean(axis=1).std(axis=1)
    within = np.sqrt(slices.var(axis=1).mean(axis=1))
    expected = {
        "slices": np.concatenate([array.mean(axis=1), between, within], axis=1),
        "mean": array.mean(axis=1),
        "max": array.max(axis=1),
        "moments": torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1),
        "tokens": array,
    }[pooling]
    torch.testing.assert_close(found, torch.as_tensor(expected))
    assert found.shape[-1] == pooled_dim(4, pooling)


@pytest.mark.parametrize("pooling", ["moments", "slices"])
def test_the_gradient_is_finite_where_all_tokens_are_alike(pooling):
    tokens = torch.ones(3, 6, 4, requires_grad=True)
    summaries = pool(tokens, pooling, n_slices=2)
    assert summaries.shape == (3, pooled_dim(4, pooling))
    summaries.sum().backward()
    assert tokens.grad.isfinite().all()


def test_slices_tell_the_sky_from_the_line_of_sight():
    ramp = torch.arange(4.0)
    along = ramp.repeat(5)[None, :, None]  # five patches of the sky, alike, of four slices
    across = ramp.repeat_interleave(5)[None, :, None]  # the sky of each of five slices
    torch.testing.assert_close(pool(along, "moments", 4), pool(across, "moments", 5))
    mean, std = ramp.mean(), ramp.std(correction=0)
    nothing = torch.zeros(())
    torch.testing.assert_close(
        pool(along, "slices", 4)[0], torch.stack([mean, std, nothing]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        pool(across, "slices", 5)[0], torch.stack([mean, nothing, std]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("grid_shape", "expected"), [((9,), 9), ((4, 5), 1), ((4, 5, 6), 6)])
def test_slices_are_along_the_line_of_sight(grid_shape, expected):
    assert count_slices(grid_shape) == expected
