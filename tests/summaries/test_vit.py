"""Patches, position code, encoder and predictor."""

import itertools
import math

import pytest
import torch

from skatr_sk.summaries import JEPA, vit
from skatr_sk.summaries.masking import BlockMask, sample_masks
from skatr_sk.summaries.objectives.jepa import JEPANetwork
from skatr_sk.summaries.vit import (
    Block,
    Encoder,
    PositionCode,
    Predictor,
    compile_blocks,
    gather_tokens,
    patchify,
    through,
)
from skatr_sk.training.device import able_to_compile

SIZES = dict(embed_dim=12, depth=2, n_heads=3, mlp_ratio=2.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def permutations(n, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator) for _ in range(n)])


@pytest.mark.parametrize(
    ("field_shape", "patch_size"),
    [((12,), (3,)), ((4, 6), (2, 3)), ((4, 6, 10), (2, 3, 5)), ((3, 2, 4), (1, 2, 4))],
)
def test_patchify_equals_an_explicit_loop(field_shape, patch_size):
    fields = torch.arange(2.0 * math.prod(field_shape)).reshape(2, *field_shape)
    grid = [n // p for n, p in zip(field_shape, patch_size, strict=True)]
    expected = []
    for field in fields:
        patches = []
        for position in itertools.product(*map(range, grid)):
            voxels = []
            for offset in itertools.product(*map(range, patch_size)):
                cell = tuple(
                    i * p + o for i, p, o in zip(position, patch_size, offset, strict=True)
                )
                voxels.append(field[cell].item())
            patches.append(voxels)
        expected.append(patches)
    assert patchify(fields, patch_size).tolist() == expected


def test_gather_tokens_equals_torch_gather():
    tokens, index = draw(3, 7, 5), permutations(3, 7)[:, :4]
    expected = tokens.gather(1, index[..., None].expand(-1, -1, 5))
    assert torch.equal(gather_tokens(tokens, index), expected)


def test_gather_tokens_shares_a_table():
    table, index = draw(7, 5), permutations(3, 7)[:, :4]
    expected = table.expand(3, -1, -1).gather(1, index[..., None].expand(-1, -1, 5))
    assert torch.equal(gather_tokens(table, index), expected)


def test_gather_tokens_sends_gradients_to_the_gathered_alone():
    tokens = draw(2, 4, 3).requires_grad_()
    gather_tokens(tokens, torch.tensor([[3, 0], [1, 2]])).sum().backward()
    assert tokens.grad[..., 0].tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


GRIDS = [
    (2,),
    (3,),
    (512,),
    (2, 2),
    (7, 7),
    (13, 11),
    (1, 9),
    (7, 7, 10),
    (7, 7, 47),
    (28, 28, 47),
    (5, 7, 11),
    (1, 1, 8),
    (4, 1, 6),
    (2, 3, 1),
]


@pytest.mark.parametrize("dim", [48, 144])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_position_has_a_code_of_its_own(grid, dim):
    code = PositionCode(grid, dim)().detach()
    assert code.shape == (math.prod(grid), dim)
    # Distinct by far more than rounding: equal after rounding to 1e-3 would be no code.
    assert len((code * 1e3).round().unique(dim=0)) == len(code)


@pytest.mark.parametrize("dim", [48, 144])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighbours_differ_by_a_sensible_amount(grid, dim):
    code = PositionCode(grid, dim)().detach().reshape(*grid, dim)
    for axis, n in enumerate(grid):
        if n == 1:
            continue
        step = (code.narrow(axis, 1, n - 1) - code.narrow(axis, 0, n - 1)).norm(dim=-1)
        # A quarter turn of a unit vector moves it by sqrt(2); the whole code has norm sqrt(dim/2),
        # so that no step can exceed sqrt(2 dim).
        assert step.min() > 1.41
        assert step.max() < math.sqrt(2 * dim)
        # The code is that of a torus-free grid: one step looks alike everywhere on it.
        assert torch.allclose(step, step.mean(), rtol=1e-3)


def test_no_feature_is_wasted():
    code = PositionCode((7, 7, 10), 48)().detach()
    assert (code.std(dim=0) > 0.1).all()


def test_an_odd_width_keeps_its_width():
    assert PositionCode((5,), 7)().shape == (5, 7)


def test_a_width_too_small_for_the_axes_is_refused():
    with pytest.raises(ValueError, match="at least 6 features, found 4; use a larger width"):
        PositionCode((4, 4, 4), 4)


def test_frequencies_are_learnable_and_positions_are_not():
    code = PositionCode((7, 7, 10), 48)
    assert [name for name, _ in code.named_parameters()] == ["frequencies"]
    code().square().mul(torch.arange(48)).sum().backward()
    # Position (0, ..., 0) has phase zero and no gradient; every frequency has other positions.
    assert (code.frequencies.grad != 0).all()


def test_encoder_embeds_only_what_it_gathers(torch_seed):
    encoder = Encoder(4, (3, 5), **SIZES | {"depth": 0})
    patches, index = draw(2, 15, 4), permutations(2, 15)[:, :6]
    whole = encoder(patches)
    expected = whole.gather(1, index[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(encoder(patches, index), expected)
    seen = []
    encoder.embed.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape))
    encoder(patches, index)
    assert seen == [(2, 6, 4)]


def test_encoder_does_not_see_what_is_hidden(torch_seed):
    encoder = Encoder(4, (3, 5), **SIZES)
    patches, index = draw(2, 15, 4), permutations(2, 15)
    context, hidden = index[:, :6], index[:, 6:]
    changed = patches.scatter(1, hidden[..., None].expand(-1, -1, 4), 100.0)
    assert not torch.equal(changed, patches)
    assert torch.equal(encoder(changed, context), encoder(patches, context))


def test_tokens_follow_patches_that_move_with_their_positions(torch_seed):
    encoder = Encoder(4, (3, 5), **SIZES)
    patches, order = draw(2, 15, 4), permutations(2, 15)
    expected = encoder(patches).gather(1, order[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(encoder(patches, order), expected, rtol=1e-4, atol=1e-5)


def test_order_matters_through_the_position_code_alone(torch_seed, monkeypatch):
    encoder = Encoder(4, (3, 5), **SIZES)
    patches = draw(2, 15, 4)
    shuffled = gather_tokens(patches, permutations(2, 15))

    def change():
        before, after = encoder(patches).mean(dim=1), encoder(shuffled).mean(dim=1)
        return (after - before).abs().max().item()

    assert change() > 1e-2
    monkeypatch.setattr(PositionCode, "forward", lambda self: torch.zeros(15, self.dim))
    assert change() < 1e-5


@pytest.mark.parametrize("grid", [(9,), (4, 4), (3, 3, 4)], ids=str)
def test_gradients_reach_every_trainable_parameter(grid, torch_seed):
    encoder = Encoder(5, grid, **SIZES)
    predictor = Predictor(12, 12, grid, predictor_dim=8, depth=2, n_heads=2, mlp_ratio=2.0)
    jepa = JEPANetwork(encoder, predictor)
    generator = torch.Generator().manual_seed(0)
    masks = [sample_masks(4, grid, BlockMask(2, (0.3, 0.5)), generator=generator)]
    JEPA(loss="l1", regions_weight=0).criterion()(
        jepa(draw(4, math.prod(grid), 5), masks)
    ).backward()
    without = [
        name
        for part in (jepa.context_encoder, jepa.predictor)
        for name, p in part.named_parameters()
        if p.grad is None or not (p.grad != 0).any()
    ]
    assert without == []
    assert all(p.grad is None for p in jepa.target_encoder.parameters())


def test_predictor_keeps_unequal_sizes_apart(torch_seed):
    # No two of: fields, context, targets, widths, patches.
    predictor = Predictor(12, 7, (4, 5), predictor_dim=8, depth=1, n_heads=2, mlp_ratio=1.5)
    index = permutations(3, 20)
    predicted = predictor(draw(3, 6, 12), index[:, :6], index[:, 6:17])
    assert predicted.shape == (3, 11, 7)


def test_predictions_differ_by_position_and_depend_on_the_context(torch_seed):
    predictor = Predictor(12, 7, (4, 5), predictor_dim=8, depth=1, n_heads=2, mlp_ratio=2.0)
    index, context = permutations(3, 20), draw(3, 6, 12)
    predicted = predictor(context, index[:, :6], index[:, 6:])
    assert predicted.std(dim=1).min() > 1e-3
    other = predictor(context + draw(3, 6, 12, seed=1), index[:, :6], index[:, 6:])
    assert not torch.allclose(other, predicted, atol=1e-3)
    # Targets asked for in another order answer in that order.
    turned = predictor(context, index[:, :6], index[:, 6:].flip(1))
    torch.testing.assert_close(turned.flip(1), predicted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embedding", ["linear", "moments"])
def test_large_fields_are_embedded_in_parts_and_recomputed_to_the_same(
    embedding, torch_seed, monkeypatch
):
    """The loss and every gradient of a JEPA; each block is passed once more."""
    grid = (3, 3, 4)
    encoder = Encoder(5, grid, **SIZES, embedding=embedding)
    predictor = Predictor(12, 12, grid, predictor_dim=8, depth=2, n_heads=2, mlp_ratio=2.0)
    jepa = JEPANetwork(encoder, predictor)
    masks = [
        sample_masks(4, grid, BlockMask(2, (0.3, 0.5)), generator=torch.Generator().manual_seed(0))
    ]
    passes = []
    for module in jepa.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda *_: passes.append(1))

    def gradients():
        passes.clear()
        jepa.zero_grad()
        loss = JEPA(regions_weight=0).criterion()(jepa(draw(4, 36, 5), masks))
        loss.backward()
        found = {n: p.grad.clone() for n, p in jepa.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **found}, len(passes)

    expected, once = gradients()
    monkeypatch.setattr(vit, "_MOST_KEPT", 8)
    monkeypatch.setattr(vit, "_VOXELS_EMBEDDED", 5 * 7)  # seven patches at a time
    found, again = gradients()
    assert once == 6 and again == once + 4  # the target encoder's two have no gradient
    monkeypatch.undo()
    # Batches of many tokens too, on a CPU, where three fields of the four are computed at a time.
    monkeypatch.setattr(vit, "_MOST_KEPT_ON_CPU", 8)
    monkeypatch.setattr(vit, "_CPU_TOKENS", 3 * 36)
    attended = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = str(func)
            attended.extend(["attention" in name] * ("backward" not in name))
            return func(*args, **(kwargs or {}))

    with Watch():
        in_rows, again = gradients()
    assert again == 14  # the predictor's 36 tokens of four fields in two parts
    assert sum(attended) == 8  # is not computed anew
    for these in (found, in_rows):
        assert these.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(these[name], values, rtol=1e-4, atol=1e-6)


def test_blocks_are_done_anew_in_bfloat16_too(torch_seed, monkeypatch):
    """Weights that autocast has cast already, or not yet, are cast alike both times."""
    encoder = Encoder(5, (6, 6), embed_dim=16, depth=2, n_heads=2, mlp_ratio=2.0)
    patches = draw(4, 36, 5)

    def gradients():
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = encoder(patches).square().mean()
        loss.backward()
        return [weight.grad.clone() for weight in encoder.parameters()]

    expected = gradients()
    monkeypatch.setattr(vit, "_MOST_KEPT_ON_CPU", 8)
    monkeypatch.setattr(vit, "_CPU_TOKENS", 36)
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("lean", [False, True])
def test_tokens_that_nobody_asks_for_are_seen_and_left_out(lean, torch_seed, monkeypatch):
    """The others, and all gradients, are what they are where all are asked for."""
    blocks = torch.nn.Sequential(*(Block(16, 2, 2.0) for _ in range(2)))
    if lean:
        monkeypatch.setattr(vit, "_MOST_KEPT", 8)
    found = {}
    for n_unasked in (0, 5):
        tokens = draw(3, 12, 16).requires_grad_()
        blocks.zero_grad()
        asked = vit.through(blocks, tokens, 12, n_unasked)
        assert asked.shape == (3, 12 - n_unasked, 16)
        asked[:, -7:].square().sum().backward()
        weights = [weight.grad.clone() for weight in blocks.parameters()]
        found[n_unasked] = [asked[:, -7:].detach(), tokens.grad, *weights]
    torch.testing.assert_close(found[5], found[0])


def columns_and_slices(tokens, n_slices):
    """Tokens (n, n_tokens, dim) as fields of one column, and of one slice, and the ways back."""
    n, _, dim = tokens.shape
    apart = tokens.unflatten(1, (-1, n_slices))
    slices = apart.transpose(1, 2)
    return {
        "column": (apart.flatten(0, 1), lambda out: out.view(n, -1, dim)),
        "slice": (
            slices.flatten(0, 1),
            lambda out: out.view(*slices.shape).transpose(1, 2).flatten(1, 2),
        ),
    }


@pytest.mark.parametrize("within", ["column", "slice"])
def test_axial_attention_is_full_attention_to_one_column_or_slice(within, torch_seed):
    """Of some columns of a field, which nobody sees who is not among them."""
    axial, full = Block(16, 2, 2.0, within), Block(16, 2, 2.0)
    full.load_state_dict(axial.state_dict())
    tokens = draw(2, 15, 16)
    alone, back = columns_and_slices(tokens, 3)[within]
    torch.testing.assert_close(axial(tokens, n_slices=3), back(full(alone)))
    some = torch.cat([tokens[:, :3], tokens[:, 9:]], dim=1)
    alone, back = columns_and_slices(some, 3)[within]
    torch.testing.assert_close(axial(some, n_slices=3), back(full(alone)))


@pytest.mark.parametrize("within", ["column", "slice"])
def test_axial_rows_are_taken_some_at_a_time(within, torch_seed, monkeypatch):
    block, tokens = Block(16, 2, 2.0, within), draw(2, 15, 16)
    expected = block(tokens, n_slices=3)
    monkeypatch.setattr(vit, "_MOST_ROWS", 4)
    torch.testing.assert_close(block(tokens, n_slices=3), expected)


@pytest.mark.parametrize("within", ["column", "slice"])
def test_axial_attention_in_bf16_is_near_float32(within, torch_seed):
    """Forwards and back, where some columns are only seen."""
    block, found = Block(32, 2, 2.0, within), {}
    for lowered in (False, True):
        tokens = draw(2, 60, 32).requires_grad_()
        block.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            asked = block(tokens.bfloat16() if lowered else tokens, 24, 6)
        asked.float().square().mean().backward()
        found[lowered] = [asked.float().detach(), tokens.grad, block.qkv.weight.grad.clone()]
    for half, whole in zip(found[True], found[False], strict=True):
        assert (half - whole).norm() < 0.02 * whole.norm()


@pytest.mark.parametrize("within", ["column", "slice"])
def test_axial_columns_that_nobody_asks_for_are_left_out(within, torch_seed):
    block, found = Block(16, 2, 2.0, within), {}
    for n_unasked in (0, 6):
        tokens = draw(2, 15, 16).requires_grad_()
        block.zero_grad()
        asked = block(tokens, n_unasked, 3)
        assert asked.shape == (2, 15 - n_unasked, 16)
        asked[:, -9:].square().sum().backward()
        weights = [weight.grad.clone() for weight in block.parameters()]
        found[n_unasked] = [asked[:, -9:].detach(), tokens.grad, *weights]
    torch.testing.assert_close(found[6], found[0])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_axial_blocks_take_turns_and_end_within_slices(depth, torch_seed):
    encoder = Encoder(4, (2, 2, 3), **SIZES | {"depth": depth}, attention="axial")
    within = [block.within for block in encoder.blocks]
    assert within == ["slice", "column", "slice"][3 - depth :]
    patches = draw(1, 12, 4).requires_grad_()
    encoder(patches)[0, 0].square().sum().backward()
    reached = patches.grad[0].abs().amax(dim=1) > 0
    # The first token sees its own slice in one block, and the whole field in two.
    assert reached.tolist() == [number % 3 == 0 or depth > 1 for number in range(12)]


def test_an_axial_predictor_sees_what_is_visible_and_nothing_else(torch_seed):
    grid = (3, 2, 4)
    sizes = dict(predictor_dim=12, depth=2, n_heads=2, mlp_ratio=2.0, attention="axial")
    encoder, predictor = (
        Encoder(5, grid, **SIZES, attention="axial"),
        Predictor(12, 7, grid, **sizes),
    )
    mask = BlockMask(n_blocks=1, scale=(0.3, 0.5))
    context, hidden = sample_masks(2, grid, mask, generator=torch.Generator().manual_seed(0))
    patches = draw(2, 24, 5).requires_grad_()
    predicted = predictor(encoder(patches, context), context, hidden)
    assert predicted.shape == (2, hidden.shape[1], 7)
    predicted.square().sum().backward()
    reached = patches.grad.abs().amax(dim=2) > 0
    assert reached.gather(1, context).all() and not reached.gather(1, hidden).any()


@pytest.mark.parametrize(
    "index", [[0, 1, 2], [0, 1, 2, 3, 8, 9, 10, 12], [2, 3, 4, 5], [3, 2, 1, 0]], ids=str
)
def test_axial_attention_refuses_what_is_no_column(index, torch_seed):
    encoder = Encoder(5, (3, 2, 4), **SIZES, attention="axial")
    with pytest.raises(ValueError, match="attention: expected 'full' where patches are seen that"):
        encoder(draw(2, 24, 5), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7][: len(index)], index]))


def test_the_last_block_of_a_predictor_answers_what_is_asked(torch_seed):
    predictor = vit.Predictor(8, 8, (4, 4), predictor_dim=8, depth=2, n_heads=2, mlp_ratio=2.0)
    sizes = []
    for block in predictor.blocks:
        block.mlp.register_forward_hook(lambda _, inputs, out: sizes.append(out.shape[1]))
    index = torch.arange(16).expand(2, -1)
    assert predictor(draw(2, 10, 8), index[:, :10], index[:, 10:]).shape == (2, 6, 8)
    assert sizes == [16, 6]


def test_attention_needs_no_memory_for_pairs_of_tokens(torch_seed):
    """Of 6,000 tokens the pairs alone would take 144 MB for each head."""
    tracked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            many = out if isinstance(out, tuple | list) else [out]
            tracked.extend(each.numel() for each in many if isinstance(each, torch.Tensor))
            return out

    with Watch(), torch.no_grad():
        Block(8, 2, 1.0)(draw(1, 6000, 8))
    assert max(tracked) < 6000 * 8 * 4


@pytest.mark.parametrize(("scores", "wide"), [(0, 1), (0, 1_000_000), (1_000_000, 1)])
def test_attention_in_bf16_has_the_gradient_of_float32(scores, wide, monkeypatch):
    """That of its rounded inputs, whichever way it is computed."""
    monkeypatch.setattr(vit, "_MOST_SCORES", scores)
    monkeypatch.setattr(vit, "_WIDE_ENOUGH", wide)
    inputs, weight = draw(3, 2, 4, 70, 24).bfloat16(), draw(2, 4, 70, 24, seed=1)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = leaves = [each.to(dtype).requires_grad_() for each in inputs]
        (vit._attention(q, k, v).float() * weight).sum().backward()
        gradients.append(torch.stack([leaf.grad.float() for leaf in leaves]))
    lowered, whole = gradients
    assert (lowered - whole).abs().max() < 0.02 * whole.abs().max()
    assert (lowered - whole).norm() < 0.01 * whole.norm()


def test_attention_keeps_nothing_where_no_gradient_is_asked_for(monkeypatch):
    monkeypatch.setattr(vit, "_kept_scores", None)
    q, k, v = draw(3, 2, 4, 70, 24).bfloat16()
    vit._attention(q, k, v)


@pytest.mark.parametrize("attention", ["full", "axial"])
def test_without_a_gradient_some_fields_at_a_time_give_the_same(attention, torch_seed, monkeypatch):
    blocks = vit._blocks(2, 12, 3, 2.0, attention)
    tokens, seen = draw(7, 8, 12), []
    with torch.no_grad():
        whole = through(blocks, tokens, 8, 4, n_slices=4)
        monkeypatch.setattr(vit, "_CPU_TOKENS", 16)
        blocks[0].register_forward_hook(lambda block, given, _: seen.append(len(given[0])))
        parts = through(blocks, tokens, 8, 4, n_slices=4)
    assert seen == [2, 2, 2, 1]
    torch.testing.assert_close(parts, whole)


# Compiled ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["full", "axial"])
def test_compiled_blocks_have_the_same_gradients(attention, precision, torch_seed, monkeypatch):
    from torch._dynamo.utils import counters

    blocks = vit._blocks(2, 32, 2, 2.0, attention)
    fields = torch.randn(3, 24, 32)
    counters.clear()

    def gradients(compiled, n_unasked):
        compile_blocks(blocks, compiled)
        blocks.zero_grad()
        tokens = fields.clone().requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            found = through(blocks, tokens, 24, n_unasked, n_slices=4)
        found.float().square().mean().backward()
        return [tokens.grad, *(weight.grad.clone() for weight in blocks.parameters())]

    near = dict(rtol=1e-4, atol=1e-6) if precision == torch.float32 else dict(rtol=0.05, atol=2e-3)
    kept = vit._MOST_KEPT_ON_CPU
    with able_to_compile(True):
        for most, n_unasked in itertools.product((kept, 0), (0, 8)):  # 0: computed anew
            monkeypatch.setattr(vit, "_MOST_KEPT_ON_CPU", most)
            both = gradients(False, n_unasked), gradients(True, n_unasked)
            for one, other in zip(*both, strict=True):
                torch.testing.assert_close(one, other, **near)
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]


def test_blocks_that_are_compiled_no_longer_are_as_if_they_had_never_been(torch_seed):
    block = Block(8, 2, 2.0)
    before = dict(vars(block))
    compile_blocks(block, True)
    assert block.compiles_in_training
    compile_blocks(block, False)
    assert vars(block) == before and not block.compiles_in_training
