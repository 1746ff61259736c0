"""Small networks of the masked objectives, their masks and what goes through them."""

import torch

from skatr_sk import BlockMask
from skatr_sk.summaries.masking import sample_masks
from skatr_sk.summaries.vit import Encoder, Predictor

GRID, N_VOXELS, DIM = (4, 4), 6, 12
PREDICTION_ALONE = dict(slice_targets=False, regions_weight=0.0)  # a JEPA without its cures
MASK = BlockMask(n_blocks=2, scale=(0.2, 0.4))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_masked(network, target_dim, **kwargs):
    encoder = Encoder(N_VOXELS, GRID, embed_dim=DIM, depth=1, n_heads=2, mlp_ratio=2.0)
    sizes = dict(predictor_dim=8, depth=1, n_heads=1, mlp_ratio=2.0)
    return network(encoder, Predictor(DIM, target_dim, GRID, **sizes), **kwargs)


def masks(n, n_masks=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [sample_masks(n, GRID, MASK, generator=generator) for _ in range(n_masks)]
