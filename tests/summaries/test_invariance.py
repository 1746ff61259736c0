"""Two regions of one sky, the loss that compares them, and the embedding by moments."""

import math

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from skatr_sk.summaries.embedding import MomentEmbedding
from skatr_sk.summaries.invariance import Expander, VICRegLoss, ViewInvariance
from skatr_sk.summaries.masking import sample_regions
from skatr_sk.summaries.pooling import pool
from skatr_sk.summaries.vit import Encoder
from tests.gaussian_fields import gaussian_fields, ridge_probe

GRIDS = [(9,), (64,), (4, 4), (7, 6), (7, 7, 3), (4, 4, 1), (1, 1, 6), (1, 5), (2, 1, 5)]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_regions_are_disjoint_and_equal(grid, share):
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        one, two = sample_regions(5, grid, share=share, generator=generator)
        assert one.shape == two.shape
        assert one.shape[1] >= 1
        both = torch.cat([one, two], dim=1).sort(dim=1).values
        assert (both.diff(dim=1) > 0).all()  # no patch twice
        assert both.min() >= 0 and both.max() < math.prod(grid)


def test_regions_hold_whole_columns_on_two_sides_of_a_line():
    generator = torch.Generator().manual_seed(0)
    one, two = sample_regions(200, (8, 8, 4), share=0.25, generator=generator)
    assert one.shape == (200, 64)
    columns = [region.reshape(200, 16, 4) // 4 for region in (one, two)]
    for region in columns:
        assert (region == region[..., :1]).all()
    # Their centres lie apart in every direction, and no place is favoured.
    places = [torch.stack([c[..., 0] // 8, c[..., 0] % 8], dim=-1).float() for c in columns]
    apart = places[0].mean(dim=1) - places[1].mean(dim=1)
    assert (apart.norm(dim=1) > 1.5).all()
    assert apart.mean(dim=0).abs().max() < 1.0
    counts = torch.cat([c[..., 0].flatten() for c in columns]).bincount(minlength=64)
    assert counts.min() > 0.7 * counts.float().mean()


def plain_vicreg(one, two):
    """The loss by loops, from the paper's equations."""
    n, dim = one.shape
    loss = 25 * np.mean((one - two) ** 2)
    for z in (one, two):
        centred = z - z.mean(axis=0)
        for i in range(dim):
            loss += 25 / dim * max(0, 1 - math.sqrt(centred[:, i] @ centred[:, i] / (n - 1) + 1e-4))
            for j in range(dim):
                if i != j:
                    loss += (centred[:, i] @ centred[:, j] / (n - 1)) ** 2 / dim
    return loss


def test_loss_is_that_of_the_paper(rng):
    one = rng.normal(size=(40, 5)) * [0.1, 0.5, 1, 2, 3] + 7
    two = one + rng.normal(size=(40, 5)) * 0.3
    pairs = [(torch.from_numpy(one).float(), torch.from_numpy(two).float())]
    assert VICRegLoss()(pairs).item() == pytest.approx(plain_vicreg(one, two), rel=1e-4)
    assert VICRegLoss()(pairs * 3).item() == pytest.approx(plain_vicreg(one, two), rel=1e-4)


def test_loss_of_a_single_field_and_of_a_single_number():
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert VICRegLoss()([(one, two)]).item() == pytest.approx(25 * 2)
    column = torch.tensor([[2.0], [-2.0], [0.0]])
    assert VICRegLoss()([(column, column)]).item() == pytest.approx(0)


def test_each_region_is_seen_alone(torch_seed):
    encoder = Encoder(4, (4, 4), embed_dim=16, depth=1, n_heads=2, mlp_ratio=2.0)
    views = ViewInvariance(encoder, Expander(16, 3, depth=2)).eval()
    patches = torch.randn(6, 16, 4)
    one = torch.arange(5).expand(6, -1)
    two = torch.arange(8, 13).expand(6, -1)
    [(a, b)] = views(patches, [(one, two)])
    assert a.shape == b.shape == (6, 3)
    other = patches.clone()
    other[:, 5:] = 0  # all that the first region does not see
    [(same, changed)] = views(other, [(one, two)])
    torch.testing.assert_close(same, a)
    assert not torch.allclose(changed, b)
    [(same, _)] = views(patches, [(one, one)])
    torch.testing.assert_close(same, a)


def test_a_batch_of_one_field_can_be_learned_from(torch_seed):
    encoder = Encoder(4, (4, 4), embed_dim=16, depth=1, n_heads=2, mlp_ratio=2.0)
    views = ViewInvariance(encoder, Expander(16, 3, depth=1)).train()
    places = torch.arange(16)[None]
    loss = VICRegLoss()(views(torch.randn(1, 16, 4), [(places[:, :8], places[:, 8:])]))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_moments_keep_texture_scatter_and_mean_apart(torch_seed):
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
    """A reionised patch has no scatter at all, and the square root no slope there."""
    embedding = MomentEmbedding(8, 16)
    patches = torch.zeros(4, 8, requires_grad=True)
    embedding(patches).sum().backward()
    assert all(p.grad.isfinite().all() for p in embedding.parameters())


@pytest.mark.parametrize("shape", [(8,), (6, 4), (4, 4, 6)], ids=str)
@pytest.mark.parametrize("objective", ["vicreg", "jepa", "reconstruction"])
def test_fits_fields_of_every_rank(shape, objective, rng, tmp_path):
    X = rng.normal(size=(20, *shape)).astype(np.float32)
    skatr = SKATRTransformer(
        patch_size=2,
        embed_dim=12,
        depth=1,
        n_heads=2,
        embedding="moments",
        objective=objective,
        predictor_dim=12,
        predictor_depth=1,
        batch_size=6,  # a last batch of another size
        max_epochs=2,
        device="cpu",
        random_state=0,
    ).fit(X)
    assert all(np.isfinite(row["train_loss"]) for row in skatr.history_)
    summaries = skatr.transform(X)
    assert summaries.shape == (20, 12) and np.isfinite(summaries).all()
    skatr.save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "w.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.transform(X), summaries)


@pytest.mark.parametrize("pooling", ["max", "moments"])
def test_views_are_compared_as_summaries_are_pooled(pooling, rng, tmp_path):
    X = rng.normal(size=(24, 8, 8)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, objective="vicreg", max_epochs=1)
    small |= dict(predictor_dim=3, predictor_depth=1, device="cpu", random_state=0)
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    plain = SKATRTransformer(**small, **folder).fit(X)
    pooled = SKATRTransformer(**small, **folder, pooling=pooling).fit(X)
    assert plain.history_[0]["train_loss"] != pooled.history_[0]["train_loss"]
    assert len(list(tmp_path.iterdir())) == 2  # neither is resumed by the other
    for alike in ("mean", "tokens"):  # the same run, which goes on from the same file
        again = SKATRTransformer(**small, **folder, pooling=alike).fit(X)
        assert again.history_ == plain.history_
    assert len(list(tmp_path.iterdir())) == 2


def test_regions_share_a_sky():
    with pytest.raises(ValueError, match=r"min_context: expected .*\(0, 0.5\]"):
        SKATRTransformer(objective="vicreg", min_context=0.6).fit(np.zeros((4, 8, 8)))


def test_moments_of_tokens_that_are_all_alike_have_a_slope():
    tokens = torch.ones(3, 5, 4, requires_grad=True)
    summaries = pool(tokens, "moments")
    assert summaries.shape == (3, 8)
    summaries.sum().backward()
    assert tokens.grad.isfinite().all()


def test_weights_of_another_embedding(rng, tmp_path):
    X = rng.normal(size=(12, 8, 8)).astype(np.float32)
    small = dict(embed_dim=8, depth=1, n_heads=2, predictor_dim=8, max_epochs=0, random_state=0)
    SKATRTransformer(**small).fit(X).save(tmp_path / "w.safetensors")
    other = SKATRTransformer(weights=tmp_path / "w.safetensors", embedding="moments")
    with pytest.raises(ValueError, match="embedding: expected 'linear' as in the weights file"):
        other.fit(X)


@pytest.mark.slow
def test_views_teach_what_mean_and_variance_do_not_say(capsys):
    X, y = gaussian_fields(2000, seed=20)
    recipe = dict(
        patch_size=4,
        embed_dim=48,
        depth=2,
        embedding="moments",
        objective="vicreg",
        predictor_dim=32,  # of 8 numbers nothing is learned here, of 16 the slope alone
        predictor_depth=1,
        min_context=0.5,
        learning_rate=4e-3,
        batch_size=64,
        validation_fraction=0.05,
        device="cpu",
        random_state=0,
    )
    trained = SKATRTransformer(**recipe, max_epochs=60).fit(X[:1000])
    untrained = SKATRTransformer(**recipe, max_epochs=0).fit(X[:1000])
    scores = [ridge_probe(each.transform(X), y).mean() for each in (trained, untrained)]
    with capsys.disabled():
        print(f"\nmean R2 of trained and untrained summaries: {scores[0]:.3f}, {scores[1]:.3f}")
    assert scores[0] > scores[1] + 0.25


def test_regions_of_one_field_come_together_and_fields_stay_apart(rng):
    """Each field has a brightness of its own, which both of its regions show."""
    X = rng.normal(size=(200, 8, 8)) * 0.5 + rng.normal(size=(200, 1, 1))
    skatr = SKATRTransformer(
        patch_size=2,
        embed_dim=16,
        depth=1,
        objective="vicreg",
        predictor_dim=1,
        predictor_depth=1,
        min_context=0.5,
        learning_rate=4e-3,
        batch_size=50,
        max_epochs=12,
        validation_fraction=0.2,
        device="cpu",
        random_state=0,
    ).fit(X)
    losses = [row["valid_loss"] for row in skatr.history_]
    assert losses[-1] < 0.4 * losses[0]
    Z, truth = skatr.transform(X), X.mean(axis=(1, 2))
    correlations = [abs(np.corrcoef(z, truth)[0, 1]) for z in Z.T]
    assert max(correlations) > 0.95
