"""VICReg: the loss, the regions that it compares, and what is learned from them."""

import math

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import VICReg
from skatr_sk.summaries.objectives.regions import Expander, RegionNetwork
from skatr_sk.summaries.vit import Encoder
from tests.gaussian_fields import gaussian_fields, ridge_probe


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
    assert VICReg().criterion()(pairs).item() == pytest.approx(plain_vicreg(one, two), rel=1e-4)
    assert VICReg().criterion()(pairs * 3).item() == pytest.approx(plain_vicreg(one, two), rel=1e-4)


def test_loss_of_a_single_field_and_of_a_single_number():
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert VICReg().criterion()([(one, two)]).item() == pytest.approx(25 * 2)
    column = torch.tensor([[2.0], [-2.0], [0.0]])
    assert VICReg().criterion()([(column, column)]).item() == pytest.approx(0)


def test_each_region_is_seen_alone(torch_seed):
    encoder = Encoder(4, (4, 4), embed_dim=16, depth=1, n_heads=2, mlp_ratio=2.0)
    network = RegionNetwork(encoder, Expander(16, 3, depth=2)).eval()
    patches = torch.randn(6, 16, 4)
    one = torch.arange(5).expand(6, -1)
    two = torch.arange(8, 13).expand(6, -1)
    [(a, b)] = network(patches, (one, two))
    assert a.shape == b.shape == (6, 3)
    other = patches.clone()
    other[:, 5:] = 0  # all that the first region does not see
    [(same, changed)] = network(other, (one, two))
    torch.testing.assert_close(same, a)
    assert not torch.allclose(changed, b)
    [(same, _)] = network(patches, (one, one))
    torch.testing.assert_close(same, a)


def test_a_batch_of_one_field_can_be_learned_from(torch_seed):
    encoder = Encoder(4, (4, 4), embed_dim=16, depth=1, n_heads=2, mlp_ratio=2.0)
    network = RegionNetwork(encoder, Expander(16, 3, depth=1)).train()
    index = torch.arange(16)[None]
    loss = VICReg().criterion()(network(torch.randn(1, 16, 4), (index[:, :8], index[:, 8:])))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_regions_are_compared_alike_however_transform_pools(rng, tmp_path):
    X = rng.normal(size=(24, 8, 8)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=1, device="cpu")
    small |= dict(objective=VICReg(expander_dim=3), random_state=0)
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    first = SKATRTransformer(**small, **folder, pooling="mean").fit(X)
    for pooling in ("max", "moments", "tokens"):  # the same run, which goes on from the same file
        again = SKATRTransformer(**small, **folder, pooling=pooling).fit(X)
        assert again.history_ == first.history_
    assert len(list(tmp_path.iterdir())) == 1


def test_regions_share_a_sky():
    with pytest.raises(ValueError, match=r"objective__region: expected .*\(0, 0.5\]"):
        SKATRTransformer(objective=VICReg(region=0.6)).fit(np.zeros((4, 8, 8)))


def test_the_terms_have_weights(rng):
    one = torch.from_numpy(rng.normal(size=(40, 5)) * 0.3).float()
    pair = [(one, one + 1)]
    terms = [
        VICReg(invariance=i, variance=v, covariance=c).criterion()(pair).item()
        for i, v, c in np.eye(3)
    ]
    assert terms[0] == pytest.approx(1, rel=1e-5)
    assert all(term > 1e-4 for term in terms)
    whole = VICReg().criterion()(pair).item()
    assert whole == pytest.approx(np.dot(terms, (25, 25, 1)), rel=1e-5)


def test_two_regions_of_the_asked_size():
    objective = VICReg(region=0.25)
    one, two = objective.draw(3, (8, 8, 4), torch.Generator().manual_seed(0))
    assert one.shape == two.shape == (3, 64)


@pytest.mark.slow
def test_regions_teach_what_mean_and_variance_do_not_say(capsys):
    X, y = gaussian_fields(2000, seed=20)
    recipe = dict(
        patch_size=4,
        embed_dim=48,
        depth=2,
        embedding="moments",
        pooling="mean",  # the standard deviations of tokens hold much without training
        # Of 8 numbers nothing is learned here, of 16 the slope alone.
        objective=VICReg(expander_dim=32, expander_depth=1, region=0.5),
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
        objective=VICReg(expander_dim=1, expander_depth=1, region=0.5),
        learning_rate=4e-3,
        batch_size=50,
        max_epochs=12,
        validation_fraction=0.2,
        whiten=False,  # it would spread the brightness over all numbers
        device="cpu",
        random_state=0,
    ).fit(X)
    losses = [row["valid_loss"] for row in skatr.history_]
    assert losses[-1] < 0.4 * losses[0]
    Z, truth = skatr.transform(X), X.mean(axis=(1, 2))
    correlations = [abs(np.corrcoef(z, truth)[0, 1]) for z in Z.T]
    assert max(correlations) > 0.95


def test_weights_that_leave_no_loss_are_refused(rng):
    nothing = VICReg(invariance=0, variance=0, covariance=0.0)
    with pytest.raises(ValueError, match="expected a positive weight of one of the three terms"):
        SKATRTransformer(objective=nothing).fit(rng.normal(size=(8, 6, 6)))
