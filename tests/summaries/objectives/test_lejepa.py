"""LeJEPA: the statistic, the loss, the directions of each step, and what is learned."""

import numpy as np
import pytest
import torch

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import LeJEPA
from skatr_sk.summaries.objectives.lejepa import LeJEPAOutput, epps_pulley


def by_hand(x):
    """The statistic of one projection by its definition: a sum over 17 points of [-5, 5]."""
    t = np.linspace(-5, 5, 17)
    of_samples = np.mean([np.exp(1j * t * one) for one in x], axis=0)
    normal = np.exp(-(t**2) / 2)
    return len(x) * np.trapezoid(np.abs(of_samples - normal) ** 2 * normal, t)


def test_the_statistic_is_that_of_the_paper(rng):
    x = np.column_stack([rng.normal(size=50), 3 + rng.normal(size=50), rng.uniform(size=50)])
    found = epps_pulley(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(found, [by_hand(column) for column in x.T], rtol=1e-4)
    several = epps_pulley(torch.from_numpy(np.stack([x, 2 * x])).float())
    np.testing.assert_allclose(several[0].numpy(), found, rtol=1e-6)
    assert several.shape == (2, 3)


def test_a_normal_distribution_has_the_least(rng):
    normal = torch.from_numpy(rng.normal(size=(4000, 1))).float()
    least = epps_pulley(normal).item()
    two_peaks = normal.sign() + 0.1 * normal  # zero mean and about unit variance
    for other in (1.5 * normal, 0.5 * normal, normal + 0.5, two_peaks):
        assert epps_pulley(other).item() > 20 * least
    # Times the number of samples, so that of normal samples it does not depend on it.
    fewer = np.mean([epps_pulley(some).item() for some in normal.split(100)])
    assert 0.3 < least / fewer < 3


def test_the_loss_is_the_weighted_sum(rng):
    one, two = (torch.from_numpy(rng.normal(size=(30, 4))).float() for _ in range(2))
    directions = torch.nn.functional.normalize(torch.randn(4, 6, generator=seeded()), dim=0)
    output = LeJEPAOutput([(one, two)], directions)
    distance = ((one - two) / 2).square().mean().item()
    projected = torch.cat([one @ directions, two @ directions], dim=1).numpy()
    statistic = np.mean([by_hand(column) for column in projected.T])
    for weight in (0.0, 0.3, 1.0):
        found = LeJEPA(sigreg=weight).criterion()(output).item()
        assert found == pytest.approx((1 - weight) * distance + weight * statistic, rel=1e-4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_single_field_has_no_statistic():
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    output = LeJEPAOutput([(one, two)], torch.eye(2))
    assert LeJEPA(sigreg=0.5).criterion()(output).item() == pytest.approx(0.5 * 0.5)


def test_directions_are_drawn_with_the_regions():
    objective = LeJEPA(region=0.25, expander_dim=5, n_projections=7)
    generator = seeded()
    one, two, directions = objective.draw(3, (8, 8, 4), generator)
    assert one.shape == two.shape == (3, 64)
    assert directions.shape == (5, 7)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(7))
    *_, others = objective.draw(3, (8, 8, 4), generator)
    assert not torch.equal(others, directions)
    *_, again = objective.draw(3, (8, 8, 4), seeded())
    assert torch.equal(again, directions)


SMALL = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, device="cpu", random_state=0)


def test_it_resumes_with_the_directions_that_would_have_come(rng, tmp_path, monkeypatch):
    X = rng.normal(size=(24, 8, 8)).astype(np.float32)
    run = SMALL | dict(objective=LeJEPA(expander_dim=4, expander_depth=1), max_epochs=4)
    whole = SKATRTransformer(**run).fit(X)
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=2)
    calls, draw = [], LeJEPA.draw

    def stopping(self, *args):
        calls.append(args)
        if len(calls) > 5:  # of the third epoch
            raise KeyboardInterrupt
        return draw(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(LeJEPA, "draw", stopping)
        with pytest.raises(KeyboardInterrupt):
            SKATRTransformer(**run, **folder).fit(X)
    resumed = SKATRTransformer(**run, **folder).fit(X)
    np.testing.assert_array_equal(resumed.transform(X), whole.transform(X))
    losses = [[row["valid_loss"] for row in each.history_] for each in (resumed, whole)]
    assert losses[0] == losses[1]


def test_regions_of_one_field_come_together_and_fields_stay_apart(rng):
    """Each field has a brightness of its own, which both of its regions show."""
    X = rng.normal(size=(200, 8, 8)) * 0.5 + rng.normal(size=(200, 1, 1))
    options = dict(patch_size=2, embed_dim=16, depth=1, learning_rate=6e-3, batch_size=40)
    options |= dict(
        max_epochs=8, validation_fraction=0.2, pooling="mean", random_state=0, whiten=False
    )
    few = dict(expander_dim=1, expander_depth=1, region=0.5)
    skatr = SKATRTransformer(objective=LeJEPA(**few, sigreg=0.2), **options).fit(X)
    losses = [row["valid_loss"] for row in skatr.history_]
    assert losses[-1] < 0.4 * losses[0]
    Z, truth = skatr.transform(X), X.mean(axis=(1, 2))
    assert max(abs(np.corrcoef(z, truth)[0, 1]) for z in Z.T) > 0.95
    # Without SIGReg the regions agree all the better: all fields have the same numbers.
    alone = SKATRTransformer(objective=LeJEPA(**few, sigreg=0.0), **options).fit(X)
    assert alone.history_[-1]["valid_loss"] < 0.1 * losses[-1]
