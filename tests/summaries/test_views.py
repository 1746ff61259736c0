"""What a training step sees: fields turned, scaled and cut into patches."""

import itertools

import numpy as np
import pytest
import torch

from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.views import PatchViews, apply_symmetries, sky_symmetries
from skatr_sk.summaries.vit import patchify

AS_IT_IS = BrightnessScaling.from_range(0, 1)


def views(field_shape, patch_size, *, augment=True, seed=0, scaling=AS_IT_IS):
    return PatchViews(field_shape, patch_size, scaling=scaling, augment=augment, seed=seed)


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
    (patches,) = views(field_shape, (1, 1, field_shape[-1]))(fields, True)
    assert torch.equal(patches, depth.expand_as(patches))


def test_a_signal_is_never_turned():
    fields = marked(16, (12,))
    (patches,) = views((12,), (3,))(fields, True)
    assert torch.equal(patches, patchify(fields, (3,)))


def test_each_field_gets_a_symmetry_of_its_own():
    (patches,) = views((4, 4, 2), (4, 4, 2))(marked(400, (4, 4, 2)), True)
    kinds, counts = patches[:, 0].unique(dim=0, return_counts=True)
    # 50 of each are expected, with a standard deviation of 6.6.
    assert len(kinds) == 8
    assert counts.min() > 20 and counts.max() < 80


def test_another_batch_gets_other_symmetries():
    see, fields = views((4, 4), (2, 2)), marked(16, (4, 4))
    assert not torch.equal(see(fields, True)[0], see(fields, True)[0])


@pytest.mark.parametrize("patch_size", [(2, 2, 3), (1, 4, 2), (4, 2, 6)])
def test_fields_are_turned_before_their_patches_are_numbered(patch_size):
    shape = (4, 4, 6)
    fields = marked(16, shape)
    (patches,) = views(shape, patch_size)(fields, True)
    whole = {
        tuple(patchify(view[None], patch_size).flatten().tolist())
        for view in turned_by_hand(fields[0])
    }
    # Each field's patches are, as a whole and in order, the patches of one turned field: an index
    # names the same patch for whatever looks at it.
    found = {tuple(p.flatten().tolist()) for p in patches}
    assert found <= whole and len(found) > 3


def test_without_augmentation_and_in_validation_nothing_turns():
    fields = marked(16, (4, 4, 6))
    expected = patchify(fields, (2, 2, 3))
    assert torch.equal(views((4, 4, 6), (2, 2, 3), augment=False)(fields, True)[0], expected)
    assert torch.equal(views((4, 4, 6), (2, 2, 3))(fields, False)[0], expected)


def test_fields_are_scaled_and_left_as_they_were():
    scaling = BrightnessScaling.from_range(-10, 10)
    fields = marked(2, (4, 4))
    (patches,) = views((4, 4), (2, 2), augment=False, scaling=scaling)(fields, True)
    torch.testing.assert_close(patches, (patchify(fields, (2, 2)) + 10) / 20)
    assert torch.equal(fields, marked(2, (4, 4)))


def test_a_seed_draws_the_same_symmetries_again():
    fields = marked(16, (4, 4))
    first, again, other = (views((4, 4), (2, 2), seed=s)(fields, True)[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_validation_draws_nothing():
    see = views((4, 4), (2, 2))
    before = see.generator.get_state()
    see(marked(16, (4, 4)), False)
    assert torch.equal(see.generator.get_state(), before)
