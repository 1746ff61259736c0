"""Masked reconstruction: voxels of hidden patches, and what is left to predict of them."""

import numpy as np
import pytest
import torch
from torch import nn

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import Reconstruction
from skatr_sk.summaries.objectives.reconstruction import ReconstructionNetwork
from skatr_sk.summaries.vit import patchify
from tests.summaries.objectives.masked import N_VOXELS, build_masked, draw, masks


def build(**kwargs):
    return build_masked(ReconstructionNetwork, N_VOXELS, **kwargs)


class Oracle(nn.Module):
    """Answers with the true voxels of the patches it is asked for."""

    def __init__(self, patches):
        super().__init__()
        self.patches = patches

    def forward(self, context, context_index, target_index):
        return torch.stack([p[i] for p, i in zip(self.patches, target_index, strict=True)])


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstruction_wants_the_voxels_of_the_hidden_patches(normalize, torch_seed):
    model = build(normalize_targets=normalize)
    patches = patchify(10 + 3 * draw(5, 8, 12), (2, 3))
    drawn = masks(5)
    assert Reconstruction(loss="l1").criterion()(model(patches, drawn)).item() > 0.5
    wanted = patches
    if normalize:
        wanted = (patches - patches.mean(-1, keepdim=True)) / patches.std(
            -1, keepdim=True, correction=0
        )
    model.predictor = Oracle(wanted)
    assert Reconstruction(loss="l1").criterion()(model(patches, drawn)).item() < 1e-5
    model.predictor = Oracle(wanted.roll(1, dims=1))
    assert Reconstruction(loss="l1").criterion()(model(patches, drawn)).item() > 0.5


def test_reconstruction_trains_without_a_target_encoder(torch_seed):
    model = build()
    pairs = model(draw(3, 16, N_VOXELS), masks(3))
    assert all(predicted.shape == target.shape for predicted, target in pairs)
    Reconstruction(loss="l1").criterion()(pairs).backward()
    assert all((p.grad != 0).any() for p in model.parameters())
    assert not hasattr(model, "target_encoder")


def test_normalised_patches_of_a_single_voxel_leave_nothing_to_predict(rng):
    X = rng.normal(size=(12, 8)).astype(np.float32)
    small = dict(patch_size=1, embed_dim=8, depth=1, n_heads=2, max_epochs=1, device="cpu")
    skatr = SKATRTransformer(**small, objective="reconstruction", random_state=0)
    message = (
        r"objective__normalize_targets: expected False with patches of a single voxel .*\(1,\)"
    )
    with pytest.raises(ValueError, match=message):
        skatr.fit(X)
    skatr.set_params(objective__normalize_targets=False).fit(X)
    assert skatr.history_[-1]["train_loss"] > 0


def test_a_predictor_is_needed(rng):
    skatr = SKATRTransformer(objective=Reconstruction(predictor_depth=0))
    with pytest.raises(ValueError, match="objective__predictor_depth: expected an integer >= 1"):
        skatr.fit(rng.normal(size=(12, 8)))
