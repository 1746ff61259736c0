"""What a training step sees: symmetries, patches, masks; and what moves along with the steps."""

import itertools

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skatr_sk import SKATRTransformer
from skatr_sk.summaries.scaling import BrightnessScaling, apply_symmetries, sky_symmetries
from skatr_sk.summaries.jepa import JEPA
from skatr_sk.summaries.masking import BlockMask
from skatr_sk.summaries.pretraining import Views
from skatr_sk.summaries.vit import patchify

MASK = BlockMask(n_blocks=2, scale=(0.2, 0.4))
AS_IT_IS = BrightnessScaling.from_range(0, 1)


def views(field_shape, patch_size, *, augment=True, seed=0):
    return Views(
        field_shape,
        patch_size,
        masks=[MASK, MASK],
        min_context=0.1,
        scaling=AS_IT_IS,
        augment=augment,
        seed=seed,
    )


def marked(n, field_shape):
    """The same field n times, each cell holding its own number."""
    cells = torch.arange(float(np.prod(field_shape))).reshape(field_shape)
    return cells.expand(n, *field_shape).clone()


def turned_by_hand(field):
    """The eight symmetries of a square sky, from quarter turns and mirrors of numpy."""
    field = field.numpy()
    turns = [np.rot90(field, k, axes=(0, 1)) for k in range(4)]
    return [torch.from_numpy(view.copy()) for t in turns for view in (t, t[::-1])]


@pytest.mark.parametrize(
    ("field_shape", "count"),
    [((4, 4), 8), ((4, 4, 3), 8), ((4, 6), 4), ((4, 6, 3), 4), ((6, 4, 6), 4), ((9,), 1)],
)
def test_symmetries_are_distinct_and_form_a_group(field_shape, count):
    symmetries = sky_symmetries(field_shape)
    table = {tuple(s.tolist()) for s in symmetries}
    assert len(symmetries) == len(table) == count
    identity = tuple(range(symmetries.shape[1]))
    assert tuple(symmetries[0].tolist()) == identity
    for a, b in itertools.product(symmetries, repeat=2):
        assert tuple(a[b].tolist()) in table
    for a in symmetries:
        assert any(tuple(a[b].tolist()) == identity for b in symmetries)


@pytest.mark.parametrize("field_shape", [(4, 4), (5, 5, 3)])
def test_a_square_sky_has_the_turns_and_mirrors_of_numpy(field_shape):
    fields = marked(8, field_shape)
    out = apply_symmetries(fields, sky_symmetries(field_shape), torch.arange(8))
    wanted = {tuple(view.flatten().tolist()) for view in turned_by_hand(fields[0])}
    assert {tuple(view.flatten().tolist()) for view in out} == wanted
    assert len(wanted) == 8


def test_a_rectangular_sky_is_only_mirrored():
    fields = marked(4, (2, 3, 2))
    out = apply_symmetries(fields, sky_symmetries((2, 3, 2)), torch.arange(4))
    wanted = [fields[0].flip(axes) for axes in ([], [0], [1], [0, 1])]
    assert all(any(torch.equal(view, mirror) for view in out) for mirror in wanted)


@pytest.mark.parametrize("field_shape", [(4, 4, 5), (4, 6, 5), (5, 5, 5)], ids=str)
def test_the_line_of_sight_is_never_reversed(field_shape):
    depth = torch.arange(float(field_shape[-1]))
    fields = depth.expand(32, *field_shape).clone()
    patches, _ = views(field_shape, (1, 1, field_shape[-1]))(fields, True)
    assert torch.equal(patches, depth.expand_as(patches))


def test_a_signal_is_never_turned():
    fields = marked(16, (12,))
    patches, _ = views((12,), (3,))(fields, True)
    assert torch.equal(patches, patchify(fields, (3,)))


def test_each_field_gets_a_symmetry_of_its_own():
    patches, _ = views((4, 4, 2), (4, 4, 2))(marked(400, (4, 4, 2)), True)
    kinds, counts = patches[:, 0].unique(dim=0, return_counts=True)
    # 50 of each are expected, with a scatter of 6.6.
    assert len(kinds) == 8
    assert counts.min() > 20 and counts.max() < 80


def test_another_batch_gets_other_symmetries():
    see, fields = views((4, 4), (2, 2)), marked(16, (4, 4))
    assert not torch.equal(see(fields, True)[0], see(fields, True)[0])


@pytest.mark.parametrize("patch_size", [(2, 2, 3), (1, 4, 2), (4, 2, 6)])
def test_fields_are_turned_before_their_patches_are_numbered(patch_size):
    shape = (4, 4, 6)
    fields = marked(16, shape)
    patches, masks = views(shape, patch_size)(fields, True)
    whole = {
        tuple(patchify(view[None], patch_size).flatten().tolist())
        for view in turned_by_hand(fields[0])
    }
    # Each field's patches are, as a whole and in order, the patches of one turned field: index k
    # of a mask is then patch k of what the encoder sees.
    found = {tuple(p.flatten().tolist()) for p in patches}
    assert found <= whole and len(found) > 3
    for pair in masks:
        both = torch.cat(pair, dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(patches.shape[1]).expand_as(both))


def test_without_augmentation_and_in_validation_nothing_turns():
    fields = marked(16, (4, 4, 6))
    expected = patchify(fields, (2, 2, 3))
    assert torch.equal(views((4, 4, 6), (2, 2, 3), augment=False)(fields, True)[0], expected)
    assert torch.equal(views((4, 4, 6), (2, 2, 3))(fields, False)[0], expected)


def test_fields_are_scaled_and_left_as_they_were():
    see = Views(
        (4, 4),
        (2, 2),
        masks=[MASK],
        min_context=0.1,
        scaling=BrightnessScaling.from_range(-10, 10),
        augment=False,
        seed=0,
    )
    fields = marked(2, (4, 4))
    patches, _ = see(fields, True)
    torch.testing.assert_close(patches, (patchify(fields, (2, 2)) + 10) / 20)
    assert torch.equal(fields, marked(2, (4, 4)))


def flat(masks):
    return [index for pair in masks for index in pair]


def same(first, second):
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def test_validation_draws_the_same_masks_in_each_pass():
    fields, see, plain = marked(6, (6, 6)), views((6, 6), (1, 1)), views((6, 6), (1, 1))

    def epoch(n_steps):
        trained = [index for _ in range(n_steps) for index in flat(see(fields, True)[1])]
        return trained, [index for _ in range(3) for index in flat(see(fields, False)[1])]

    (train_1, valid_1), (train_2, valid_2) = epoch(2), epoch(5)
    assert same(valid_1, valid_2)
    assert not same(train_1, train_2[: len(train_1)])
    # The batches of one pass differ from each other.
    assert not same(valid_1[:4], valid_1[4:8])
    # Training goes on as if there had been no validation.
    undisturbed = [index for _ in range(7) for index in flat(plain(fields, True)[1])]
    assert same(undisturbed, train_1 + train_2)


def test_another_seed_draws_other_masks():
    fields = marked(6, (6, 6))
    first, again, other = (
        flat(views((6, 6), (1, 1), seed=s)(fields, t)[1]) for s, t in ((1, 1), (1, 1), (2, 1))
    )
    assert same(first, again)
    assert not same(first, other)
    # The validation masks of a seed are not its first training masks.
    assert not same(first, flat(views((6, 6), (1, 1), seed=1)(fields, False)[1]))


class Steps(Callback):
    """Notes the learning rate of each step."""

    def initialize(self):
        self.rates = []
        return self

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.rates.append(net.optimizer_.param_groups[0]["lr"])


def run(monkeypatch, n=23, **parameters):
    """Train on n signals; return the decays of the target and the rates of all steps."""
    decays, update = [], JEPA.update_target

    def note(self, decay):
        decays.append(decay)
        update(self, decay)

    monkeypatch.setattr(JEPA, "update_target", note)
    fields = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    steps = Steps()
    defaults = dict(
        patch_size=2,
        embed_dim=8,
        depth=1,
        n_heads=2,
        predictor_dim=8,
        predictor_depth=1,
        batch_size=4,
        max_epochs=3,
        validation_fraction=0.25,
        learning_rate=0.02,
        device="cpu",
        callbacks=[steps],
        random_state=0,
    )
    SKATRTransformer(**defaults | parameters).fit(fields)
    return decays, steps.rates


def test_target_and_learning_rate_move_once_a_step(monkeypatch):
    # Of 23 signals 6 validate: 17 train, in 5 batches, 3 times.
    decays, rates = run(monkeypatch, ema_decay=(0.9, 1.0), warmup=0.2)
    assert len(decays) == len(rates) == 15
    done = np.arange(1, 16) / 15
    np.testing.assert_allclose(decays, 0.95 - 0.05 * np.cos(np.pi * done), rtol=1e-12)
    assert decays[-1] == 1.0
    middle = (np.arange(15) + 0.5) / 15
    falling = 0.01 * (1 + np.cos(np.pi * (middle - 0.2) / 0.8))
    np.testing.assert_allclose(
        rates, np.where(middle < 0.2, 0.02 * middle / 0.2, falling), rtol=1e-12
    )


def test_a_constant_decay_stays(monkeypatch):
    decays, _ = run(monkeypatch, ema_decay=0.997)
    assert decays == [pytest.approx(0.997, abs=1e-15)] * 15


def test_a_run_of_a_single_step_learns(monkeypatch):
    _, rates = run(monkeypatch, batch_size=64, max_epochs=1)
    assert len(rates) == 1
    assert rates[0] > 0.005
