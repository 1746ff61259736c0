"""The loss of the posterior: its likelihood, and the penalty on a wrong coverage."""

import math

import pytest
import torch

from skatr_sk.heads.flow import ConditionalFlow, Conditioned
from skatr_sk.heads.npe import NPELoss, coverage_penalty


@pytest.fixture
def output(torch_seed):
    """A flow that is no longer the identity, given three summaries."""
    flow = ConditionalFlow(2, 4, n_blocks=2, n_bins=4, hidden_dims=(8,), dropout=0.0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, 0.3)
    return flow(torch.randn(3, 5, 4))


def test_without_a_penalty_it_is_the_likelihood(output):
    target = torch.randn(3, 2)
    expected = -output.flow.log_prob(target[:, None], output.context).mean()
    torch.testing.assert_close(NPELoss()(output, target), expected)


def test_the_penalty_adds_with_its_weight(output):
    target = 5 + torch.randn(3, 2)  # far out
    plain = NPELoss()(output, target)
    once, twice = (NPELoss(weight).eval()(output, target) for weight in (1.0, 2.0))
    assert once > plain + 0.1
    torch.testing.assert_close(twice - plain, 2 * (once - plain))


def test_validation_draws_the_same_noise_in_every_epoch(output):
    target = torch.randn(3, 2)
    loss = NPELoss(1.0).eval()
    before = torch.get_rng_state()
    assert loss(output, target) == loss(output, target)
    assert torch.equal(torch.get_rng_state(), before)
    loss.train()
    found = {float(loss(output, target).detach()) for _ in range(5)}
    assert len(found) > 1


def test_gradients_of_the_penalty_reach_the_flow(output):
    NPELoss(1.0)(output, 5 + torch.randn(3, 2)).backward()
    gradients = [p.grad for p in output.flow.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_conditioned_is_what_a_forward_pass_gives(output):
    assert isinstance(output, Conditioned)
    assert output.context.shift.shape == (3, 2)
    standard = ConditionalFlow(2, 4, n_blocks=2, n_bins=4, hidden_dims=(8,), dropout=0.0)
    loss = NPELoss()(standard(torch.zeros(3, 4)), torch.zeros(3, 2))
    assert loss.item() == pytest.approx(math.log(2 * math.pi))


def test_penalty_of_truths_in_the_far_tail():
    """Their levels are all one: the mean of (1 - u)^2 over the quantiles 1/8, 3/8, 5/8, 7/8."""
    truth, samples = torch.full((4, 1), -9.0), torch.zeros(4, 10)
    assert coverage_penalty(truth, samples, "conservative").item() == pytest.approx(0.328125)


def test_symmetric_calibration_also_narrows():
    """Truths in the middle of wide densities: only the symmetric penalty minds."""
    too_wide, too_narrow = torch.zeros(40, 1), torch.full((40, 1), -9.0)
    levels = torch.linspace(-4, -1, 30).expand(40, -1)
    assert coverage_penalty(too_wide, levels, "conservative") == 0
    assert coverage_penalty(too_wide, levels, "symmetric") > 0.2
    for calibration in ("conservative", "symmetric"):
        assert coverage_penalty(too_narrow, levels, calibration) > 0.2
