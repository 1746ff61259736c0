"""Masks: unions of blocks, drawn in one step; and pairs of regions."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skatr_sk.summaries.masking import (
    LONG,
    SHORT,
    BlockMask,
    sample_masks,
    sample_patches,
    sample_regions,
)

GRIDS = [(2,), (9,), (64,), (4, 4), (1, 5), (7, 6), (7, 7, 3), (4, 4, 1), (2, 1, 5), (1, 1, 6)]
DEEP = BlockMask(n_blocks=3, scale=(0.2, 0.4), depth=(0.2, 0.6))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def as_maps(target, grid):
    """Hidden patches as boolean arrays of shape (n, *grid)."""
    maps = torch.zeros(len(target), math.prod(grid), dtype=torch.bool)
    return maps.scatter(1, target, True).reshape(len(target), *grid)


def share_hidden(mask, grid, n_draws=400, min_context=0.1, seed=0):
    """The hidden share of many batches of one field."""
    generator = seeded(seed)
    shares = [
        sample_masks(1, grid, mask, min_context=min_context, generator=generator)[1].shape[1]
        for _ in range(n_draws)
    ]
    return torch.tensor(shares) / math.prod(grid)


@pytest.mark.parametrize("mask", [SHORT, LONG, DEEP], ids=["short", "long", "deep"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_context_and_target_partition_the_grid(grid, mask):
    generator = seeded()
    for _ in range(20):
        context, target = sample_masks(5, grid, mask, generator=generator)
        assert context.dtype == target.dtype == torch.int64
        assert context.shape[1] >= 1 and target.shape[1] >= 1
        for part in (context, target):
            assert (part.diff(dim=1) > 0).all()
        both = torch.cat([context, target], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(math.prod(grid)).expand(5, -1))


@pytest.mark.parametrize("grid", [(60,), (12, 12), (12, 12, 5)], ids=str)
def test_more_blocks_hide_more(grid):
    means = [
        share_hidden(BlockMask(n_blocks=k, scale=(0.1, 0.2)), grid, 100).mean().item()
        for k in (1, 2, 4, 8)
    ]
    # The mean of a block is 0.15 of the sky, and a union of k blocks cannot exceed their sum.
    assert means[0] == pytest.approx(0.15, abs=0.02)
    assert all(more > less + 0.08 for less, more in zip(means, means[1:], strict=False))
    assert all(mean < 0.15 * k for k, mean in zip((2, 4, 8), means[1:], strict=True))


@pytest.mark.parametrize("grid", [(60,), (12, 12), (7, 7, 5)], ids=str)
def test_long_masks_hide_more_than_short_ones(grid):
    assert share_hidden(LONG, grid, 200).mean() > share_hidden(SHORT, grid, 200).mean() + 0.05


def slow_union(mask, grid, rng):
    """Hidden share of one draw, block by block and patch by patch."""
    hidden = set()
    for _ in range(mask.n_blocks):
        share = rng.uniform(*mask.scale)
        aspect = math.exp(rng.uniform(*(math.log(a) for a in mask.aspect)))
        depth = rng.uniform(*mask.depth)
        if len(grid) == 1:
            shares = [share]
        else:
            shares = [math.sqrt(share / aspect), math.sqrt(share * aspect), depth][: len(grid)]
        ranges = []
        for part, n in zip(shares, grid, strict=True):
            side = min(max(round(part * n), 1), n)
            start = rng.randint(0, n - side)
            ranges.append(range(start, start + side))
        hidden |= {
            (i, j, k)
            for i in ranges[0]
            for j in (ranges[1] if len(grid) > 1 else [0])
            for k in (ranges[2] if len(grid) > 2 else [0])
        }
    return len(hidden) / math.prod(grid)


@pytest.mark.parametrize(
    ("mask", "grid"),
    [
        (SHORT, (40,)),
        (SHORT, (7, 7)),
        (LONG, (7, 7)),
        (SHORT, (9, 6, 2)),
        (LONG, (7, 7, 3)),
        (DEEP, (6, 6, 5)),
    ],
    ids=str,
)
def test_hidden_share_agrees_with_a_slow_reference(mask, grid):
    n, min_context, rng = 300, 0.1, random.Random(1)
    # Blocks along the whole line of sight are drawn on the sky and capped in columns of patches.
    drawn = math.prod(grid[:2] if mask.depth == (1.0, 1.0) else grid)
    most = math.floor((1 - min_context) * drawn) / drawn
    slow = torch.tensor([min(slow_union(mask, grid, rng), most) for _ in range(n)])
    fast = share_hidden(mask, grid, n, min_context)
    error = math.sqrt((slow.var() + fast.var()) / n)
    assert abs(slow.mean() - fast.mean()) < 4 * error
    assert fast.std() == pytest.approx(slow.std().item(), rel=0.2, abs=0.005)


@pytest.mark.parametrize("min_context", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("sky", [(4, 4), (7, 7)], ids=str)
def test_the_context_keeps_its_share(sky, min_context):
    generator, n_patches = seeded(), math.prod(sky)
    fewest = n_patches
    for _ in range(300):
        context, target = sample_masks(2, sky, LONG, min_context=min_context, generator=generator)
        fewest = min(fewest, context.shape[1])
        assert target.shape[1] >= 1
    # Some of the draws reach the bound: it is honoured, not overdone.
    assert fewest == math.ceil(min_context * n_patches)


@pytest.mark.parametrize("grid", [(2,), (2, 1), (1, 2, 4), (1, 1, 2)], ids=str)
def test_of_two_patches_one_is_seen_and_one_hidden(grid):
    context, target = sample_masks(50, grid, LONG, min_context=0.9, generator=seeded())
    assert context.shape == target.shape == (50, math.prod(grid) // 2)
    assert len(target.unique(dim=0)) == 2


def test_a_cone_of_one_column_is_masked_along_its_line_of_sight():
    mask = BlockMask(n_blocks=1, scale=(0.3, 0.5))
    _, target = sample_masks(20, (1, 1, 30), mask, generator=seeded())
    assert 9 <= target.shape[1] <= 15
    assert (target.diff(dim=1) == 1).all()


def test_whole_depth_hides_whole_lines_of_sight():
    for mask in (SHORT, LONG):
        _, target = sample_masks(20, (7, 6, 5), mask, generator=seeded())
        maps = as_maps(target, (7, 6, 5))
        assert torch.equal(maps.any(dim=-1), maps.all(dim=-1))


def test_part_of_the_depth_cuts_lines_of_sight():
    maps = as_maps(sample_masks(20, (6, 6, 10), DEEP, generator=seeded())[1], (6, 6, 10))
    cut = maps.any(dim=-1) & ~maps.all(dim=-1)
    assert cut.flatten(1).any(dim=1).all()
    # Shallow single blocks hide no more than their depth, but for the rim that fits a batch.
    mask = BlockMask(n_blocks=1, scale=(0.3, 0.3), aspect=(1, 1), depth=(0.3, 0.3))
    maps = as_maps(sample_masks(20, (6, 6, 10), mask, generator=seeded())[1], (6, 6, 10))
    assert (maps.sum(dim=-1).flatten(1).amax(dim=1) == 3).all()


@pytest.mark.parametrize("grid", [(40,), (7, 7), (7, 7, 3)], ids=str)
def test_seeds_repeat_and_cones_differ(grid):
    first, again, other = (
        sample_masks(6, grid, SHORT, generator=seeded(seed)) for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[1].shape != other[1].shape or not torch.equal(first[1], other[1])
    assert len(first[1].unique(dim=0)) >= 5


def test_one_generator_goes_on():
    generator = seeded()
    draws = [sample_masks(6, (7, 7), LONG, generator=generator)[1] for _ in range(2)]
    assert draws[0].shape != draws[1].shape or not torch.equal(*draws)


def alike_neighbours(maps):
    """Share of pairs of neighbours on the sky of one kind."""
    same = [
        (maps.narrow(a, 1, maps.shape[a] - 1) == maps.narrow(a, 0, maps.shape[a] - 1))
        for a in (1, 2)
    ]
    return torch.cat([s.flatten(1) for s in same], dim=1).float().mean().item()


@pytest.mark.parametrize("mask", [SHORT, LONG], ids=["short", "long"])
def test_masks_are_compact(mask):
    sky, generator = (12, 12), seeded()
    compact, shuffled = [], []
    for _ in range(20):
        _, target = sample_masks(8, sky, mask, generator=generator)
        maps = as_maps(target, sky)
        order = torch.randperm(144, generator=generator)
        compact.append(alike_neighbours(maps))
        shuffled.append(alike_neighbours(maps.flatten(1)[:, order].reshape(-1, *sky)))
    # Of the pairs of unlike neighbours that salt and pepper has, at most four in ten are left.
    unlike, at_random = (1 - sum(x) / 20 for x in (compact, shuffled))
    assert unlike < 0.4 * at_random


def test_a_single_block_is_a_rectangle_where_the_batch_is_one_field():
    generator, mask = seeded(), BlockMask(n_blocks=1, scale=(0.1, 0.5))
    for _ in range(50):
        hidden = as_maps(sample_masks(1, (9, 8), mask, generator=generator)[1], (9, 8))[0]
        rows, columns = hidden.any(dim=1), hidden.any(dim=0)
        assert torch.equal(hidden, rows[:, None] & columns)
        for line in (rows, columns):
            assert line.nonzero().diff(dim=0).eq(1).all()


def test_aspect_is_width_over_height():
    mask = BlockMask(n_blocks=1, scale=(0.25, 0.25), aspect=(4.0, 4.0))
    hidden = as_maps(sample_masks(1, (20, 20), mask, generator=seeded())[1], (20, 20))[0]
    # 0.25 of 400 patches with sides in the ratio 1 : 4 is 5 x 20.
    assert (hidden.any(dim=1).sum(), hidden.any(dim=0).sum()) == (5, 20)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(n_blocks=0), "n_blocks: expected an integer >= 1, found 0"),
        (dict(n_blocks=1.5), "n_blocks: expected an integer >= 1, found 1.5"),
        (dict(scale=(0.5, 0.2)), r"scale: expected .* found \(0.5, 0.2\)"),
        (dict(scale=(0.5, 1.2)), r"scale: expected .* <= 1.0, found \(0.5, 1.2\)"),
        (dict(scale="ab"), r"scale: expected .* found 'ab'"),
        (dict(aspect=(0.0, 1.0)), r"aspect: expected .* 0 < low .* found \(0.0, 1.0\)"),
        (dict(depth=(-1, 1)), r"depth: expected .* found \(-1, 1\)"),
    ],
)
def test_block_mask_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match="(?s)^BlockMask has 1 invalid .*- " + message):
        BlockMask(**{"n_blocks": 2, "scale": (0.1, 0.2)} | wrong)


def test_block_mask_says_all_that_is_wrong():
    with pytest.raises(ValueError, match="(?s)n_blocks.*scale.*aspect.*depth"):
        BlockMask(0, (2, 1), (2, 1), (2, 1))


# Whatever the grid, the mask and the batch -------------------------------------------------------


sides = st.integers(1, 9)
grids = st.lists(sides, min_size=1, max_size=3).map(tuple).filter(lambda grid: math.prod(grid) > 1)
ranges = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(sorted).map(tuple)
blocks = st.builds(
    BlockMask,
    n_blocks=st.integers(1, 9),
    scale=ranges,
    aspect=st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 5.0)).map(sorted).map(tuple),
    depth=st.one_of(st.just((1.0, 1.0)), ranges),
)
whatever = settings(max_examples=25, deadline=None, derandomize=True)


@whatever
@given(
    n=st.integers(1, 6),
    grid=grids,
    mask=blocks,
    min_context=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_any_mask_parts_any_grid(n, grid, mask, min_context, seed):
    context, target = sample_masks(n, grid, mask, min_context=min_context, generator=seeded(seed))
    assert len(context) == len(target) == n
    assert context.shape[1] >= 1 and target.shape[1] >= 1
    for part in (context, target):
        assert (part.diff(dim=1) > 0).all()  # sorted, and none twice
    both = torch.cat([context, target], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(math.prod(grid)).expand(n, -1))
    # Drawn in columns, the context may be a column larger; of few patches one is always hidden.
    columns = grid[-1] if len(grid) == 3 and mask.depth == (1.0, 1.0) else 1
    least = min(math.floor(min_context * math.prod(grid)), math.prod(grid) - columns)
    assert context.shape[1] >= least


@whatever
@given(n=st.integers(2, 6), grid=grids, mask=blocks, seed=st.integers(0, 2**31))
def test_all_fields_of_a_batch_hide_as_many_patches(n, grid, mask, seed):
    _, target = sample_masks(n, grid, mask, generator=seeded(seed))
    _, alone = sample_masks(1, grid, mask, generator=seeded(seed))
    maps = as_maps(target, grid).flatten(1)
    assert maps.sum(dim=1).unique().tolist() == [target.shape[1]]
    assert alone.shape[0] == 1 and 1 <= alone.shape[1] < math.prod(grid)
    again = sample_masks(n, grid, mask, generator=seeded(seed))[1]
    assert torch.equal(again, target)


@whatever
@given(n=st.integers(1, 6), grid=grids, share=st.floats(0.01, 0.5), seed=st.integers(0, 2**31))
def test_any_two_regions_are_disjoint(n, grid, share, seed):
    one, two = sample_regions(n, grid, share=share, generator=seeded(seed))
    assert one.shape == two.shape
    columns = math.prod(grid[:2]) if len(grid) > 1 and math.prod(grid[:2]) > 1 else math.prod(grid)
    wanted = min(max(1, round(share * columns)), columns // 2) * (math.prod(grid) // columns)
    assert one.shape == (n, wanted)
    for part in (one, two):
        assert (part.diff(dim=1) > 0).all()
    both = torch.cat([one, two], dim=1).sort(dim=1).values
    assert (both.diff(dim=1) > 0).all()  # no patch twice
    assert both.min() >= 0 and both.max() < math.prod(grid)


# Regions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)
def test_regions_are_disjoint_and_equal(grid, share):
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        one, two = sample_regions(5, grid, share=share, generator=generator)
        assert one.shape == two.shape
        assert one.shape[1] >= 1
        both = torch.cat([one, two], dim=1).sort(dim=1).values
        assert (both.diff(dim=1) > 0).all()  # no patch twice
        assert both.min() >= 0 and both.max() < math.prod(grid)


def test_regions_hold_whole_columns_on_two_sides_of_a_line():
    generator = torch.Generator().manual_seed(0)
    one, two = sample_regions(200, (8, 8, 4), share=0.25, generator=generator)
    assert one.shape == (200, 64)
    columns = [region.reshape(200, 16, 4) // 4 for region in (one, two)]
    for region in columns:
        assert (region == region[..., :1]).all()
    # Their centres lie apart in every direction, and no column is favoured.
    one, two = (torch.stack([c[..., 0] // 8, c[..., 0] % 8], dim=-1).float() for c in columns)
    apart = one.mean(dim=1) - two.mean(dim=1)
    assert (apart.norm(dim=1) > 1.5).all()
    assert apart.mean(dim=0).abs().max() < 1.0
    counts = torch.cat([c[..., 0].flatten() for c in columns]).bincount(minlength=64)
    assert counts.min() > 0.7 * counts.float().mean()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_some_patches_are_whole_columns_at_random_places(grid):
    share, n = 0.3, 400
    found = sample_patches(n, grid, share=share, generator=seeded())
    assert (found.diff(dim=1) > 0).all()
    seen = as_maps(found, grid)
    if len(grid) == 3 and math.prod(grid[:2]) > 1:
        assert (seen.all(dim=-1) == seen.any(dim=-1)).all()
        seen = seen.any(dim=-1)
    columns = seen.reshape(n, -1).float()
    n_kept = max(1, round(share * columns.shape[1]))
    assert (columns.sum(dim=1) == n_kept).all()
    often = columns.mean(dim=0)  # each as often as any other
    assert (often - n_kept / len(often)).abs().max() < 0.13
    assert torch.equal(sample_patches(n, grid, share=share, generator=seeded()), found)
    whole = sample_patches(2, grid, share=1.0, generator=seeded())
    assert torch.equal(whole, torch.arange(math.prod(grid)).expand(2, -1))
