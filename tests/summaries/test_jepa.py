"""The joint-embedding architecture: moving target, loss, schedules, and learning itself."""

import copy
import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from skatr_sk._net import seeded, train
from skatr_sk._rows import Rows
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.jepa import (
    JEPA,
    JEPALoss,
    MaskedReconstruction,
    cosine_schedule,
    ramp,
)
from skatr_sk.summaries.masking import BlockMask, sample_masks
from skatr_sk.summaries.pretraining import MovingTarget, Views
from skatr_sk.summaries.vit import Encoder, Predictor, patchify

GRID, N_VOXELS, DIM = (4, 4), 6, 12
MASK = BlockMask(n_blocks=2, scale=(0.2, 0.4))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(objective=JEPA, **kwargs):
    encoder = Encoder(N_VOXELS, GRID, embed_dim=DIM, depth=1, n_heads=2, mlp_ratio=2.0)
    target_dim = DIM if objective is JEPA else N_VOXELS
    sizes = dict(predictor_dim=8, depth=1, n_heads=1, mlp_ratio=2.0)
    return objective(encoder, Predictor(DIM, target_dim, GRID, **sizes), **kwargs)


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
    JEPALoss("l2")(jepa(draw(3, 16, N_VOXELS), masks(3))).backward()
    assert all(p.grad is None for p in jepa.target_encoder.parameters())
    assert all(p.grad is not None for p in jepa.context_encoder.parameters())


class Trained(Callback):
    """Notes which tensors the optimiser has."""

    def on_train_begin(self, net, **kwargs):
        groups = net.optimizer_.param_groups
        self.tensors = {p.data_ptr() for group in groups for p in group["params"]}


def run(
    ema_decay,
    *,
    callbacks=(),
    max_epochs=3,
    fields=None,
    loss="l1",
    learning_rate=1e-2,
    augment=False,
):
    """Train a JEPA with the trainer of the package; return it, a fresh one, and the history."""
    if fields is None:
        fields = np.random.default_rng(0).normal(size=(12, 8, 12)).astype(np.float32)
    scaling = BrightnessScaling.from_range(0, 1)
    views = Views(
        (8, 12), (2, 3), masks=[MASK], min_context=0.1, scaling=scaling, augment=augment, seed=1
    )
    with seeded(5, torch.device("cpu")):
        fresh = build()
    with seeded(5, torch.device("cpu")):
        jepa = build()
        history = train(
            jepa,
            JEPALoss(loss),
            Rows(fields),
            None,
            device=torch.device("cpu"),
            precision="float32",
            max_epochs=max_epochs,
            batch_size=4,
            learning_rate=learning_rate,
            weight_decay=0.1,
            patience=None,
            seed=2,
            prepare=views,
            callbacks=[MovingTarget((ema_decay, ema_decay)), *callbacks],
        )
    return jepa, fresh, history


def test_the_optimiser_leaves_the_target_alone():
    # Weight decay of 0.1 would show, had the optimiser got hold of it.
    trained = Trained()
    jepa, fresh, _ = run(ema_decay=1.0, callbacks=[trained])
    wanted = [*jepa.context_encoder.parameters(), *jepa.predictor.parameters()]
    assert trained.tensors == {p.data_ptr() for p in wanted}
    for name, p in jepa.target_encoder.named_parameters():
        assert torch.equal(p, fresh.target_encoder.get_parameter(name)), name
    for name, p in jepa.context_encoder.named_parameters():
        assert not torch.equal(p, fresh.context_encoder.get_parameter(name)), name


def test_training_moves_the_target_after_each_step():
    copied, _, _ = run(ema_decay=0.0)
    for context, target in zip(
        copied.context_encoder.parameters(), copied.target_encoder.parameters(), strict=True
    ):
        assert torch.equal(context, target)
    lagging, fresh, _ = run(ema_decay=0.9)
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


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("l1", lambda d: abs(d)),
        ("l2", lambda d: d * d),
        ("smooth_l1", lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5),
    ],
)
def test_losses_by_hand(name, by_hand):
    pairs = [(2 * draw(2, 3, 4), draw(2, 3, 4, seed=1)), (draw(2, 5, 4), draw(2, 5, 4, seed=2))]
    means = []
    for predicted, target in pairs:
        differences = (predicted - target).flatten().tolist()
        assert max(map(abs, differences)) > 1  # both pieces of the smooth loss are visited
        means.append(sum(map(by_hand, differences)) / len(differences))
    # Each mask counts alike, whatever its size.
    assert JEPALoss(name)(pairs).item() == pytest.approx(sum(means) / 2, rel=1e-5)


def test_loss_is_in_float32():
    pair = (draw(2, 3, 4).bfloat16(), draw(2, 3, 4, seed=1))
    assert JEPALoss("l1")([pair]).dtype == torch.float32


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_loss_falls_on_a_tiny_overfit(loss):
    # Smooth fields: what is hidden follows from what is seen.
    x, y = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 12), indexing="ij")
    slopes = np.random.default_rng(0).normal(size=(2, 8, 1, 1))
    fields = (slopes[0] * x + slopes[1] * y).astype(np.float32)
    _, _, history = run(1.0, max_epochs=60, fields=fields, loss=loss)
    assert history[-1]["train_loss"] < 0.4 * history[0]["train_loss"]


def test_ramp():
    assert ramp(0.9, 1.0, 0.0) == pytest.approx(0.9, abs=1e-15)
    assert ramp(0.9, 1.0, 1.0) == 1.0
    assert ramp(0.9, 1.0, 0.5) == pytest.approx(0.95)
    # Half a cosine at a quarter: (1 - cos(pi / 4)) / 2 of the way.
    assert ramp(0.0, 1.0, 0.25) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert ramp(0.9, 1.0, 1.3) == 1.0
    assert ramp(0.7, 0.7, 0.3) == pytest.approx(0.7, abs=1e-15)
    assert (np.diff([ramp(0.9, 1.0, p) for p in np.linspace(0, 1, 50)]) > 0).all()


@pytest.mark.parametrize("final", [0.0, 0.2])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_cosine_schedule(warmup, final):
    progress = np.linspace(0, 1, 201)
    shares = np.array([cosine_schedule(p, warmup, final) for p in progress])
    assert shares[0] == (0.0 if warmup else 1.0)
    assert shares[-1] == pytest.approx(final, abs=1e-15)
    assert shares.max() == 1.0 and progress[shares.argmax()] == pytest.approx(warmup)
    rising = progress <= warmup
    if warmup:
        np.testing.assert_allclose(shares[rising], progress[rising] / warmup)
    assert (np.diff(shares[~rising]) < 0).all()
    middle = cosine_schedule(warmup + (1 - warmup) / 2, warmup, final)
    assert middle == pytest.approx((1 + final) / 2)


class Oracle(nn.Module):
    """Answers with the true voxels of the patches it is asked for."""

    def __init__(self, patches):
        super().__init__()
        self.patches = patches

    def forward(self, context, context_index, target_index):
        return torch.stack([p[i] for p, i in zip(self.patches, target_index, strict=True)])


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstruction_wants_the_voxels_of_the_hidden_patches(normalize, torch_seed):
    model = build(MaskedReconstruction, normalize_targets=normalize)
    patches = patchify(10 + 3 * draw(5, 8, 12), (2, 3))
    drawn = masks(5)
    assert JEPALoss("l1")(model(patches, drawn)).item() > 0.5
    wanted = patches
    if normalize:
        wanted = (patches - patches.mean(-1, keepdim=True)) / patches.std(
            -1, keepdim=True, correction=0
        )
    model.predictor = Oracle(wanted)
    assert JEPALoss("l1")(model(patches, drawn)).item() < 1e-5
    model.predictor = Oracle(wanted.roll(1, dims=1))
    assert JEPALoss("l1")(model(patches, drawn)).item() > 0.5


def test_reconstruction_trains_without_a_target_encoder(torch_seed):
    model = build(MaskedReconstruction)
    pairs = model(draw(3, 16, N_VOXELS), masks(3))
    assert all(predicted.shape == target.shape for predicted, target in pairs)
    JEPALoss("l1")(pairs).backward()
    assert all((p.grad != 0).any() for p in model.parameters())
    before = copy.deepcopy(model.state_dict())
    model.update_target(0.0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
