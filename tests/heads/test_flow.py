"""The flow itself: identity at the start, exact inverses, pinned shapes, finite numbers."""

import pytest
import torch

from skatr_sk.heads.flow import ConditionalFlow, FlowEnsemble, coupling_masks

DIMENSIONS = [1, 2, 3, 6]


def make(n_parameters, n_summary=4, **parameters):
    small = dict(n_blocks=6, n_bins=10, hidden_dims=(16, 16), dropout=0.0)
    return ConditionalFlow(n_parameters, n_summary, **small | parameters)


def enlarge(flow, scale, affine=1.0):
    """Random weights of a given size: at initialisation the flow is the identity."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(0, scale)
        for parameter in flow.to_affine.parameters():
            parameter.mul_(affine)
    return flow


@pytest.mark.parametrize("n_parameters", DIMENSIONS)
def test_starts_as_the_identity(n_parameters, torch_seed):
    flow = make(n_parameters)
    noise = torch.randn(3, 5, n_parameters)
    points, log_prob = flow.sample_and_log_prob(noise, flow.context(torch.randn(3, 4)))
    torch.testing.assert_close(points, noise)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(dim=2)
    torch.testing.assert_close(log_prob, base)


@pytest.mark.parametrize("n_parameters", DIMENSIONS)
def test_shapes_put_the_cones_first(n_parameters, torch_seed):
    """Unequal numbers, and each row under its own context, not its neighbour's."""
    flow = enlarge(make(n_parameters), 0.5, affine=0.3).double()
    summaries = torch.randn(3, 4, dtype=torch.float64)
    noise = torch.randn(3, 7, n_parameters, dtype=torch.float64)
    points, log_prob = flow.sample_and_log_prob(noise, flow.context(summaries))
    assert points.shape == (3, 7, n_parameters)
    assert log_prob.shape == (3, 7)
    for row in range(3):
        context = flow.context(summaries[row : row + 1])
        alone, log_alone = flow.sample_and_log_prob(noise[row : row + 1, 2:4], context)
        torch.testing.assert_close(alone[0], points[row, 2:4])
        torch.testing.assert_close(log_alone[0], log_prob[row, 2:4])
    same = noise[:1].expand(2, -1, -1)
    first, second = flow.sample_and_log_prob(same, flow.context(summaries[:2]))[0]
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("n_parameters", DIMENSIONS)
def test_log_prob_is_that_of_the_samples(n_parameters, torch_seed):
    flow = enlarge(make(n_parameters), 0.5, affine=0.3).double()
    context = flow.context(torch.randn(5, 4, dtype=torch.float64))
    noise = torch.randn(5, 40, n_parameters, dtype=torch.float64)
    points, log_prob = flow.sample_and_log_prob(noise, context)
    torch.testing.assert_close(flow.log_prob(points, context), log_prob, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_parameters", [1, 3])
def test_log_prob_has_the_right_jacobian(n_parameters, torch_seed):
    """Against the determinant that automatic differentiation finds."""
    flow = enlarge(make(n_parameters), 0.5, affine=0.3).double()
    context = flow.context(torch.randn(1, 4, dtype=torch.float64))
    noise = torch.randn(n_parameters, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: flow.sample_and_log_prob(z[None, None], context)[0][0, 0], noise
    )
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    log_prob = flow.sample_and_log_prob(noise[None, None], context)[1][0, 0]
    torch.testing.assert_close(log_prob, base - torch.linalg.slogdet(jacobian).logabsdet)


def test_a_coordinate_beyond_the_splines_leaves_the_others_bent(torch_seed):
    flow = enlarge(make(2, n_blocks=2), 1.0, affine=0.0)
    context = flow.context(torch.randn(1, 4))
    far = torch.tensor([[[0.5, 50.0]]])
    points = flow.sample_and_log_prob(far, context)[0]
    assert points[0, 0, 1] == 50.0
    assert abs(points[0, 0, 0] - 0.5) > 1e-4


@pytest.mark.parametrize("n_parameters", range(2, 10))
def test_any_two_parameters_are_parted(n_parameters):
    masks = torch.stack(coupling_masks(n_parameters, 8))
    apart = (masks[:, :, None] != masks[:, None, :]).any(dim=0)
    assert (apart | torch.eye(n_parameters, dtype=torch.bool)).all()
    assert (masks.sum(dim=1) % n_parameters != 0).all()  # no block bends all or none
    assert (masks[::2] + masks[1::2] == 1).all()  # pairs swap


def test_parts_follow_binary_digits():
    masks = [mask.tolist() for mask in coupling_masks(3, 4)]
    assert masks == [[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(
    "seeds",
    # In the first two an inverse rounds out of its bin, where the slope would be NaN.
    [(10, 64), pytest.param(range(200), marks=pytest.mark.slow)],
    ids=["2 batches", "200 batches"],
)
def test_large_weights_raise_nothing(scale, seeds, torch_seed):
    """Round trips of 20,000 points."""
    for k in seeds:
        torch.manual_seed(k)
        flow = enlarge(make(3, n_blocks=2), scale)
        with torch.inference_mode():
            context = flow.context(torch.randn(20, 4))
            noise = 3 * torch.randn(20, 1000, 3)
            points, log_prob = flow.sample_and_log_prob(noise, context)
            again = flow.log_prob(points, context)
        assert torch.isfinite(points).all()
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(again).all()


def test_flow_keeps_float32_under_autocast(torch_seed):
    flow = make(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = flow.context(torch.randn(3, 4))
    assert {part.dtype for part in context} == {torch.float32}
    assert flow.log_prob(torch.randn(3, 1, 2), context).dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 60), (40, 2), (1, 1)], ids=["many", "few", "one"])
@pytest.mark.parametrize("n_parameters", DIMENSIONS)
def test_ensemble_draws_each_sample_from_its_flow(n_parameters, shape, torch_seed):
    """Of many samples of a row, and of few of many rows; the last flow has none."""
    flows = [enlarge(make(n_parameters), 0.5, affine=0.3).double() for _ in range(4)]
    ensemble = FlowEnsemble(flows)
    summaries = torch.randn(shape[0], 4, dtype=torch.float64)
    noise = torch.randn(*shape, n_parameters, dtype=torch.float64)
    whose = torch.randint(3, shape)
    context = ensemble.context(summaries)
    points, log_prob = ensemble.sample_and_log_prob(noise, context, whose)
    for number, flow in enumerate(flows):
        mine = whose == number
        wanted = flow.sample(noise, flow.context(summaries))
        torch.testing.assert_close(points[mine], wanted[mine])
    torch.testing.assert_close(ensemble.sample(noise, context, whose), points)
    each = torch.stack([flow.log_prob(points, flow.context(summaries)).exp() for flow in flows])
    torch.testing.assert_close(ensemble.log_prob(points, context).exp(), each.mean(dim=0))
    torch.testing.assert_close(log_prob.exp(), each.mean(dim=0))


def test_ensemble_of_one_is_its_flow(torch_seed):
    flow = enlarge(make(3), 0.5, affine=0.3).double()
    ensemble = FlowEnsemble([flow])
    summaries = torch.randn(4, 4, dtype=torch.float64)
    noise = torch.randn(4, 5, 3, dtype=torch.float64)
    context, whose = ensemble.context(summaries), torch.zeros(4, 5, dtype=torch.int64)
    wanted = flow.sample_and_log_prob(noise, flow.context(summaries))
    torch.testing.assert_close(ensemble.sample_and_log_prob(noise, context, whose), wanted)
    torch.testing.assert_close(ensemble.sample(noise, context, whose), wanted[0])


def test_ensemble_copies_rows_only_where_that_costs_less(torch_seed, monkeypatch):
    """Of many samples in a row each flow is asked for its own, and little more."""
    ensemble = FlowEnsemble([make(2) for _ in range(4)])
    asked, ask = [], ConditionalFlow.sample

    def noted(flow, noise, context):
        asked.append(tuple(noise.shape[:2]))
        return ask(flow, noise, context)

    monkeypatch.setattr(ConditionalFlow, "sample", noted)
    for n, m in (4, 200), (200, 2), (3, 10):
        whose = torch.randint(4, (n, m)) if m > 10 else torch.arange(n * m).view(n, m) % 4
        whose = torch.zeros(n, m) if m == 10 else whose
        context = ensemble.context(torch.randn(n, 4))
        ensemble.sample(torch.randn(n, m, 2), context, whose)
    many, few, one = asked[:4], asked[4:8], asked[8:]
    assert all(n == 4 and 40 < m < 80 for n, m in many)
    assert few == [(100, 1)] * 4
    assert one == [(3, 10)]
