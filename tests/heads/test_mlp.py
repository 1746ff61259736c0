"""The regression head's network, its losses, and the scaling of parameters."""

import numpy as np
import pytest
import torch

from skatr_sk.heads.mlp import CUT, LOSSES, Head, HeadLoss, HeadMixture, ParameterScaling


def head(**parameters):
    plain = dict(gaussian=False, bounded=False, dropout=0.0)
    return Head(4, (8,), 3, **plain | parameters)


def test_what_the_network_gives(torch_seed):
    summaries = 100 * torch.randn(50, 4)
    free = head()(summaries)
    assert free.shape == (50, 3) and free.min() < 0
    bounded = head(bounded=True)(summaries)
    assert bounded.shape == (50, 3) and bounded.min() >= 0 and bounded.max() <= 1
    both = head(bounded=True, gaussian=True)(summaries)
    assert both.shape == (50, 6)
    assert both[:, 3:].min() >= -7 and both[:, 3:].max() <= 3  # log sigma


def test_no_hidden_layer_is_a_linear_model(torch_seed):
    linear = Head(4, (), 3, gaussian=False, bounded=False, dropout=0.0)
    assert len(linear.layers) == 1 and isinstance(linear.layers[0], torch.nn.Linear)
    a, b = torch.randn(2, 5, 4)
    torch.testing.assert_close(linear(a) + linear(b), linear(a + b) + linear(torch.zeros(5, 4)))


def test_tokens_are_pooled(torch_seed):
    tokens = torch.randn(5, 7, 4)
    for pooling in ("mean", "attention"):  # which starts as the mean
        plain = head(pooling=pooling)
        torch.testing.assert_close(plain(tokens), plain.layers(tokens.mean(dim=1)))


@pytest.mark.parametrize("bounded", [False, True])
def test_means_begin_where_they_are_told(bounded, torch_seed):
    start = np.array([0.1, 0.5, 0.8])
    begun = head(start=start, bounded=bounded, gaussian=True)
    begun.layers[-1].weight.data.zero_()
    means = begun(torch.randn(5, 4)).detach()[:, :3]
    np.testing.assert_allclose(means, np.tile(start, (5, 1)), rtol=1e-5)


def test_summaries_are_cut(torch_seed):
    far, edge = torch.randn(2, 5, 4)
    far = torch.where(far.abs() > 1, 1e6 * far, far)
    edge = far.clamp(-CUT, CUT)
    for cut in (False, True):
        tried = head(cut=cut)
        assert torch.allclose(tried(far), tried(edge)) == cut


def test_mixture_of_heads(torch_seed):
    summaries, weights = torch.randn(7, 4, dtype=torch.float64), [0.2, 0.3, 0.5]
    heads = [head().double() for _ in weights]
    expected = sum(w * each(summaries) for w, each in zip(weights, heads, strict=True))
    torch.testing.assert_close(HeadMixture(heads, weights)(summaries), expected)

    heads = [head(gaussian=True).double() for _ in weights]
    mixture = HeadMixture(heads, weights)
    assert mixture.gaussian and not mixture.bounded
    mean, log_sigma = mixture(summaries).chunk(2, dim=1)
    outputs = torch.stack([each(summaries) for each in heads])
    of_each = torch.distributions.Normal(outputs[..., :3], outputs[..., 3:].exp())
    shares = torch.distributions.Categorical(torch.tensor(weights).expand(7, 3, -1))
    several = torch.distributions.Normal(
        *(part.movedim(0, -1) for part in (of_each.loc, of_each.scale))
    )
    exact = torch.distributions.MixtureSameFamily(shares, several)
    torch.testing.assert_close(mean, exact.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(log_sigma.exp(), exact.stddev, atol=1e-6, rtol=1e-6)


def test_losses_by_hand():
    mean, log_sigma = torch.tensor([[0.2, 0.6]]), torch.tensor([[0.0, -1.0]])
    target = torch.tensor([[0.5, 0.5]])
    assert HeadLoss("l1")(mean, target) == pytest.approx(0.2)
    assert HeadLoss("l2")(mean, target) == pytest.approx((0.09 + 0.01) / 2)
    normal = torch.distributions.Normal(mean, log_sigma.exp())
    constant = 0.5 * np.log(2 * np.pi)
    expected = float(-normal.log_prob(target).mean()) - constant
    found = HeadLoss("gaussian")(torch.cat([mean, log_sigma], dim=1), target)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert LOSSES == ("l1", "l2", "gaussian")


def test_parameters_go_to_the_unit_interval_and_back(rng):
    low, high = np.array([0.3, 38.0, 10.0]), np.array([10.0, 42.0, 250.0])
    parameters = rng.uniform(low, high, size=(20, 3))
    scaling = ParameterScaling(low, high)
    unit = scaling.to_unit(parameters)
    assert unit.min() >= 0 and unit.max() <= 1
    np.testing.assert_allclose(scaling.to_unit(np.stack([low, high])), [[0] * 3, [1] * 3])
    np.testing.assert_allclose(unit[:, 1], (parameters[:, 1] - 38) / 4)
    np.testing.assert_allclose(scaling.from_unit(unit), parameters, rtol=1e-13)


def test_a_parameter_without_width_is_kept():
    scaling = ParameterScaling(np.array([0.0, 7.0]), np.array([2.0, 7.0]))
    parameters = np.array([[1.0, 7.0], [2.0, 7.0]])
    unit = scaling.to_unit(parameters)
    np.testing.assert_array_equal(unit, [[0.5, 0], [1, 0]])
    np.testing.assert_array_equal(scaling.from_unit(unit), parameters)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("bounded", "cut"), [(False, True), (True, False)])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_by_hand_are_those_of_autograd(loss, bounded, cut, weighted, torch_seed):
    summaries, target = 3 * torch.randn(32, 4).double(), torch.rand(32, 3).double()
    weights = (torch.rand(32).double(),) if weighted else ()
    made = Head(
        4, (8, 6), 3, gaussian=loss == "gaussian", bounded=bounded, dropout=0.3, cut=cut
    ).double()
    made.layers[-1].weight.data *= 20  # some log sigmas beyond their range
    criterion = HeadLoss(loss)
    torch.manual_seed(1)
    wanted = criterion.double()(made(summaries), target, *weights)
    wanted.backward()
    gradients = [weight.grad for weight in made.parameters()]
    made.zero_grad()
    for _ in range(2):  # new memory, and that of the last gradients
        torch.manual_seed(1)
        found, _ = made.differentiate(criterion, summaries, target, *weights)
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)
        for own, weight in zip(gradients, made.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, own, rtol=1e-3, atol=1e-5)


def test_only_autograd_knows_the_slope_of_a_loss_of_the_user_and_of_tokens(torch_seed):
    own = HeadLoss(torch.nn.functional.l1_loss)
    assert head().differentiate(own, torch.randn(5, 4), torch.rand(5, 3)) is None
    tokens = torch.randn(5, 7, 4)
    assert head().differentiate(HeadLoss("l1"), tokens, torch.rand(5, 3)) is None
