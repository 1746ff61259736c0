"""Networks as one: the same outputs, draws of their own, and single weights that come back."""

import torch

from skatr_sk.heads.flow import ConditionalFlow
from skatr_sk.heads.mlp import Head
from skatr_sk.heads.stacked import Dropout, parts_of, stack

KINDS = {
    "head": lambda: Head(4, (8, 6), 3, gaussian=True, bounded=True, dropout=0.3, cut=True),
    "flow": lambda: ConditionalFlow(3, 4, n_blocks=3, n_bins=4, hidden_dims=(8, 6), dropout=0.3),
}


def generators(n=3):
    return [torch.Generator().manual_seed(k) for k in range(n)]


def test_a_stack_gives_what_its_networks_give(torch_seed):
    summaries, points = torch.randn(3, 10, 4), torch.randn(3, 10, 2, 3)
    heads = [KINDS["head"]().eval() for _ in range(3)]
    each = torch.stack([head(own) for head, own in zip(heads, summaries, strict=True)])
    torch.testing.assert_close(stack(heads, generators())(summaries), each)
    flows = [KINDS["flow"]().eval() for _ in range(3)]
    for flow in flows:
        for weight in flow.parameters():
            weight.data.normal_(0, 0.5)
    whole = stack(flows, generators())
    found = whole.log_prob(points, whole.context(summaries))
    for number, flow in enumerate(flows):
        wanted = flow.log_prob(points[number], flow.context(summaries[number]))
        torch.testing.assert_close(found[number], wanted, rtol=1e-4, atol=1e-4)
        for name, weight in parts_of(whole, number):
            assert torch.equal(weight, flow.get_parameter(name))


def test_each_drops_what_it_would_drop_alone(torch_seed):
    inputs = torch.ones(3, 50, 20)
    rates = [0.2, 0.0, 0.5]
    layer = Dropout(0.1)
    layer.streams = list(zip(rates, generators(), strict=True))
    found = layer(inputs)
    assert layer.eval()(inputs) is inputs
    for number, rate in enumerate(rates):
        torch.manual_seed(number)
        assert torch.equal(found[number], torch.nn.functional.dropout(inputs[number], rate))
