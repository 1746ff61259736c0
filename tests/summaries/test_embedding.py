"""The embedding by moments."""

import torch

from skatr_sk.summaries.embedding import MomentEmbedding


def test_texture_deviation_and_mean_are_kept_apart(torch_seed):
    embedding = MomentEmbedding(8, 16, softening=0.0)
    patches = torch.randn(3, 5, 8)
    texture = embedding(patches) - embedding.moments(moments_of(patches))
    brighter = 10 * patches + 4
    again = embedding(brighter) - embedding.moments(moments_of(brighter))
    torch.testing.assert_close(texture, again, rtol=1e-4, atol=1e-5)
    assert embedding(torch.zeros(2, 8)).isnan().all()  # what the softening is for
    assert MomentEmbedding(8, 16)(torch.zeros(2, 8)).isfinite().all()


def moments_of(patches):
    mean = patches.mean(dim=-1, keepdim=True)
    return torch.cat([mean, patches.var(dim=-1, keepdim=True, correction=0).sqrt().log()], dim=-1)


def test_gradients_of_constant_patches_are_finite(torch_seed):
    """A reionised patch has zero variance, where the derivative of the square root diverges."""
    embedding = MomentEmbedding(8, 16)
    patches = torch.zeros(4, 8, requires_grad=True)
    embedding(patches).sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())
