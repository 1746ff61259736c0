"""The embedding by moments, and the means of slices apart from it."""

import pytest
import torch

from skatr_sk.summaries.embedding import MomentEmbedding, SliceMeans
from skatr_sk.summaries.masking import BlockMask, sample_masks, sample_regions
from skatr_sk.summaries.vit import Encoder, gather_tokens, patchify


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


def test_mean_and_deviation_are_not_rounded_to_bf16(torch_seed):
    """The brightness of light cones differs by less than its three digits tell."""
    embedding, apart = MomentEmbedding(8, 16), SliceMeans(depth=2, n_slices=1, dim=7)
    torch.nn.init.zeros_(embedding.texture.weight)
    patches = 5 + torch.randn(2, 3, 8) / 100
    brighter = patches + 0.001  # the next number of bfloat16 after 5 is 5.03

    def steps():
        return embedding(brighter) - embedding(patches), apart(brighter)[1] - apart(patches)[1]

    whole = steps()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = steps()
    torch.testing.assert_close(lowered, whole, rtol=0, atol=1e-5)
    assert all(step.abs().max() > 1e-4 for step in whole)


def test_gradients_of_constant_patches_are_finite(torch_seed):
    """A reionised patch has zero variance, where the derivative of the square root diverges."""
    embedding = MomentEmbedding(8, 16)
    patches = torch.zeros(4, 8, requires_grad=True)
    embedding(patches).sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())


def test_slice_means_are_taken_out_and_told_apart(torch_seed):
    fields = torch.randn(3, 4, 6, 10) + torch.arange(10.0)
    patches = patchify(fields, (2, 3, 5))
    apart = SliceMeans(depth=5, n_slices=2, dim=7)
    rest, tokens = apart(patches)
    means = fields.mean(dim=(1, 2))
    expected = patchify(fields - means[:, None, None], (2, 3, 5))
    torch.testing.assert_close(rest, expected, rtol=1e-5, atol=1e-5)
    for column in tokens.unflatten(1, (-1, 2)).unbind(1):
        torch.testing.assert_close(column, apart.embed(means.unflatten(1, (2, 5))))


def test_the_means_are_those_of_what_is_seen(torch_seed):
    """A region is embedded as if it were the whole sky, so that nothing of the other leaks."""
    patches, generator = torch.randn(3, 4 * 4 * 2, 20), torch.Generator().manual_seed(0)
    one, two = sample_regions(3, (4, 4, 2), share=0.4, generator=generator)
    apart = SliceMeans(depth=5, n_slices=2, dim=7)
    some, alone = apart(patches, one), apart(gather_tokens(patches, one))
    for found, expected in zip(some, alone, strict=True):
        torch.testing.assert_close(gather_tokens(found, one), expected, rtol=1e-5, atol=1e-5)
    other = gather_tokens(apart(patches, two)[1], two)
    assert (other - alone[1]).abs().max() > 0.01
    everything = torch.arange(32).expand(3, -1)
    for found, expected in zip(apart(patches, everything), apart(patches), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def encoder_of_fluctuations(grid, n_voxels, depth):
    sizes = dict(embed_dim=12, depth=1, n_heads=2, mlp_ratio=2.0)
    return Encoder(n_voxels, grid, embedding="fluctuations", patch_depth=depth, **sizes)


@pytest.mark.parametrize(("grid", "depth"), [((4, 4), 1), ((3, 3, 4), 2)], ids=str)
def test_what_is_hidden_is_not_in_the_means(grid, depth, torch_seed):
    """Slices of which no patch, or another number of patches, is seen are no matter."""
    encoder = encoder_of_fluctuations(grid, 4, depth)
    n_patches = encoder.position.positions.shape[0]
    patches, generator = torch.randn(2, n_patches, 4), torch.Generator().manual_seed(0)
    mask = BlockMask(1, (0.9, 1.0), depth=(0.4, 0.6))
    context, hidden = sample_masks(2, grid, mask, min_context=0.5, generator=generator)
    changed = patches.scatter(1, hidden[..., None].expand(-1, -1, 4), 100.0)
    assert torch.equal(encoder(changed, context), encoder(patches, context))
    assert encoder(patches, hidden).isfinite().all()
    encoder(patches, context).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_a_global_signal_reaches_the_tokens_of_the_means_alone(torch_seed):
    encoder = encoder_of_fluctuations((3, 3, 4), 8, 2)
    fields = torch.randn(2, 6, 6, 8)
    patches, brighter = (patchify(each, (2, 2, 2)) for each in (fields, fields + torch.arange(8.0)))
    assert (encoder(brighter) - encoder(patches)).abs().max() > 0.1
    encoder.slice_means.embed.weight.data.zero_()
    torch.testing.assert_close(encoder(brighter), encoder(patches), rtol=1e-3, atol=1e-3)
