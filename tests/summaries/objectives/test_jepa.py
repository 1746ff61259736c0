"""The JEPA: its target encoder, what it predicts from what, and how it is trained."""

import copy

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skatr_sk import BlockMask, SKATRTransformer
from skatr_sk._checks import NoEffectWarning
from skatr_sk.summaries import JEPA
from skatr_sk.summaries.masking import sample_masks
from skatr_sk.summaries.objectives.jepa import JEPANetwork
from skatr_sk.summaries.vit import Encoder, Predictor

GRID, N_VOXELS, DIM = (4, 4), 6, 12
MASK = BlockMask(n_blocks=2, scale=(0.2, 0.4))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**kwargs):
    encoder = Encoder(N_VOXELS, GRID, embed_dim=DIM, depth=1, n_heads=2, mlp_ratio=2.0)
    sizes = dict(predictor_dim=8, depth=1, n_heads=1, mlp_ratio=2.0)
    return JEPANetwork(encoder, Predictor(DIM, DIM, GRID, **sizes), **kwargs)


def masks(n, n_masks=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [sample_masks(n, GRID, MASK, generator=generator) for _ in range(n_masks)]


def parted(jepa):
    """Give context and target weights of their own; return copies of both."""
    with torch.no_grad():
        for i, p in enumerate(jepa.context_encoder.parameters()):
            p.add_(draw(*p.shape, seed=i))
    return copy.deepcopy(jepa.context_encoder), copy.deepcopy(jepa.target_encoder)


def test_target_starts_as_the_context(torch_seed):
    jepa = build()
    for context, target in zip(
        jepa.context_encoder.parameters(), jepa.target_encoder.parameters(), strict=True
    ):
        assert torch.equal(context, target)
        assert context.data_ptr() != target.data_ptr()


@pytest.mark.parametrize("decay", [0.9997, 0.996, 0.5, 0.1])
def test_target_moves_by_one_minus_decay_of_the_difference(decay, torch_seed):
    jepa = build()
    context, target = parted(jepa)
    jepa.update_target(decay)
    for name, now in jepa.target_encoder.named_parameters():
        old, new = target.get_parameter(name), context.get_parameter(name)
        expected = old.double() + (1 - decay) * (new.double() - old.double())
        # Rounding of numbers of order one to float32, far below (1 - decay) times them.
        torch.testing.assert_close(now.double(), expected, rtol=1e-7, atol=3e-7)
        assert not torch.equal(now, old), name
        assert torch.equal(jepa.context_encoder.get_parameter(name), new)


def test_decay_of_one_keeps_the_target_and_of_zero_copies(torch_seed):
    jepa = build()
    context, target = parted(jepa)
    jepa.update_target(1.0)
    for now, old in zip(jepa.target_encoder.parameters(), target.parameters(), strict=True):
        assert torch.equal(now, old)
    jepa.update_target(0.0)
    for now, new in zip(jepa.target_encoder.parameters(), context.parameters(), strict=True):
        assert torch.equal(now, new)


def test_target_keeps_to_itself(torch_seed):
    # In place: whoever holds the target's tensors (an optimiser, a checkpoint) sees them move.
    jepa = build()
    parted(jepa)
    before = [p.data_ptr() for p in jepa.target_encoder.parameters()]
    jepa.update_target(0.5)
    assert [p.data_ptr() for p in jepa.target_encoder.parameters()] == before
    assert not any(p.requires_grad for p in jepa.target_encoder.parameters())
    JEPA(loss="l2").criterion()(jepa(draw(3, 16, N_VOXELS), masks(3))).backward()
    assert all(p.grad is None for p in jepa.target_encoder.parameters())
    assert all(p.grad is not None for p in jepa.context_encoder.parameters())


class Watch(Callback):
    """Hands out the network, as it was before the training too, and what the optimiser has."""

    def __init__(self, note):
        self.note = note

    def on_train_begin(self, net, **kwargs):
        groups = net.optimizer_.param_groups
        tensors = {p.data_ptr() for group in groups for p in group["params"]}
        self.note(network=net.module_, fresh=copy.deepcopy(net.module_), tensors=tensors)


def run(ema_decay, *, max_epochs=3, fields=None, loss="l1"):
    """Train a JEPA; return its network, that before the training, the tensors and the history."""
    if fields is None:
        fields = np.random.default_rng(0).normal(size=(12, 8, 12)).astype(np.float32)
    seen = {}
    jepa = JEPA(masks=MASK, min_context=0.1, ema_decay=ema_decay, loss=loss)
    jepa.set_params(predictor_dim=8, predictor_depth=1)
    skatr = SKATRTransformer(
        objective=jepa, patch_size=(2, 3), embed_dim=DIM, depth=1, n_heads=2, augment=False,
        brightness_range=(0, 1), max_epochs=max_epochs, batch_size=4, learning_rate=1e-2, warmup=0,
        weight_decay=0.1, validation_fraction=0, device="cpu", callbacks=[Watch(seen.update)],
        random_state=0,
    ).fit(fields)  # fmt: skip
    return seen["network"], seen["fresh"], seen["tensors"], skatr.history_


def test_the_optimiser_leaves_the_target_alone():
    # Weight decay of 0.1 would show, had the optimiser got hold of it.
    jepa, fresh, tensors, _ = run(ema_decay=1.0)
    wanted = [*jepa.context_encoder.parameters(), *jepa.predictor.parameters()]
    assert tensors == {p.data_ptr() for p in wanted}
    for name, p in jepa.target_encoder.named_parameters():
        assert torch.equal(p, fresh.target_encoder.get_parameter(name)), name
    for name, p in jepa.context_encoder.named_parameters():
        assert not torch.equal(p, fresh.context_encoder.get_parameter(name)), name


def test_training_moves_the_target_after_each_step():
    copied, *_ = run(ema_decay=0.0)
    for context, target in zip(
        copied.context_encoder.parameters(), copied.target_encoder.parameters(), strict=True
    ):
        assert torch.equal(context, target)
    lagging, fresh, *_ = run(ema_decay=0.9)
    for name, p in lagging.target_encoder.named_parameters():
        start = fresh.target_encoder.get_parameter(name)
        end = lagging.context_encoder.get_parameter(name)
        assert 0 < (p - start).norm() < (end - start).norm(), name


def test_targets_are_normalised_when_asked(torch_seed):
    jepa = build()
    with torch.no_grad():  # the encoder's own last norm would hide whether there is another
        jepa.target_encoder.norm.weight.mul_(3)
        jepa.target_encoder.norm.bias.add_(2)
    patches = draw(5, 16, N_VOXELS)
    for _, target in jepa(patches, masks(5)):
        assert target.mean(dim=-1).abs().max() < 1e-5
        assert (target.var(dim=-1, unbiased=False) - 1).abs().max() < 1e-3
    jepa.normalize_targets = False
    for _, target in jepa(patches, masks(5)):
        assert (target.mean(dim=-1) - 2).abs().max() < 1.5
        assert target.mean() == pytest.approx(2, abs=0.2)


def test_targets_are_the_target_encoders_tokens_of_the_whole_field(torch_seed):
    jepa = build(normalize_targets=False)
    parted(jepa)
    patches = draw(3, 16, N_VOXELS)
    whole = jepa.target_encoder(patches)
    drawn = masks(3)
    for (_, index), (predicted, target) in zip(drawn, jepa(patches, drawn), strict=True):
        assert predicted.shape == target.shape
        for field in range(3):
            assert torch.equal(target[field], whole[field, index[field]])


def test_predictions_know_nothing_of_what_is_hidden(torch_seed):
    jepa = build()
    patches, drawn = draw(3, 16, N_VOXELS), masks(3, n_masks=1)
    index = drawn[0][1][..., None].expand(-1, -1, N_VOXELS)
    changed = patches.scatter(1, index, 50.0)
    (before, target), (after, moved) = (jepa(x, drawn)[0] for x in (patches, changed))
    assert torch.equal(before, after)
    assert not torch.allclose(target, moved)


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_loss_falls_on_a_tiny_overfit(loss):
    # Smooth fields: what is hidden follows from what is seen.
    x, y = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 12), indexing="ij")
    slopes = np.random.default_rng(0).normal(size=(2, 8, 1, 1))
    fields = (slopes[0] * x + slopes[1] * y).astype(np.float32)
    *_, history = run(1.0, max_epochs=60, fields=fields, loss=loss)
    assert history[-1]["train_loss"] < 0.4 * history[0]["train_loss"]


def test_the_decay_is_a_ramp_over_the_steps(monkeypatch):
    decays, update = [], JEPANetwork.update_target

    def note(self, decay):
        decays.append(decay)
        update(self, decay)

    monkeypatch.setattr(JEPANetwork, "update_target", note)
    run(ema_decay=(0.9, 1.0), max_epochs=5)
    done = np.arange(1, 16) / 15  # 12 fields in 3 batches, 5 times
    np.testing.assert_allclose(decays, 0.95 - 0.05 * np.cos(np.pi * done), rtol=1e-12)
    assert decays[-1] == 1.0
    decays.clear()
    run(ema_decay=0.997, max_epochs=5)
    assert decays == [pytest.approx(0.997, abs=1e-15)] * 15


def test_without_a_predictor_its_width_has_no_effect(rng):
    X = rng.normal(size=(12, 8)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=1, device="cpu")
    mean = JEPA(predictor_depth=0)
    plain = SKATRTransformer(**small, objective=mean, random_state=0).fit_transform(X)
    skatr = SKATRTransformer(**small, objective=mean, random_state=0)
    # Also a width that would be too narrow for a predictor.
    with pytest.warns(
        NoEffectWarning, match="JEPA: no effect with predictor_depth=0 of predictor_"
    ):
        found = skatr.set_params(objective__predictor_dim=1).fit_transform(X)
    np.testing.assert_array_equal(found, plain)
