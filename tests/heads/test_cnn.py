"""The convolutional network: its published sizes, and other sizes and ranks of fields."""

import pytest
import torch

from skatr_sk.heads.cnn import CNN


def test_the_published_layers():
    """Of Neutsch et al. (2022), arXiv:2201.07587, for cones of 140 x 140 x 2350 cells."""
    with torch.device("meta"):
        network, found = CNN((140, 140, 2350)), torch.empty(1, 1, 140, 140, 2350)
        shapes = []
        for layer in network.layers:
            found = layer(found)
            shapes.append(tuple(found.shape[1:]))
    assert shapes == [
        *[(32, 138, 138, 23)] * 2, *[(32, 136, 136, 22)] * 2, (32, 68, 68, 22),
        *[(64, 66, 66, 21)] * 2, *[(64, 66, 66, 20)] * 2, (64, 33, 33, 20),
        *[(128, 31, 31, 19)] * 2, *[(128, 31, 31, 18)] * 2,
    ]  # fmt: skip
    assert network.layers[0].kernel_size == (3, 3, 102)
    assert network.layers[0].stride == (1, 1, 102)


SHAPES = [(14, 14, 90), (4, 6, 5), (1, 1, 2), (9, 8), (2, 1), (90,), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_fields_of_any_shape(shape, torch_seed):
    network, fields = CNN(shape), torch.randn(3, *shape)
    features = network(fields)
    assert features.shape == (3, CNN.n_features)
    torch.testing.assert_close(network(fields[1:2]), features[1:2], rtol=1e-4, atol=1e-6)
    features.sum().backward()
    assert all(each.grad is not None for each in network.parameters())
    assert 0.05 < features.std() < 3


def test_places_do_not_count(torch_seed):
    """Structure that is moved over the sky gives the same features, but for the edges."""
    network = CNN((100, 100))
    fields = torch.zeros(1, 100, 100)
    fields[:, 48:52, 48:52] = 1.0
    moved = fields.roll((4, -4), dims=(1, 2))  # by whole cells of what is pooled twice
    torch.testing.assert_close(network(moved), network(fields))
