"""The JEPA: its target encoder, what it predicts from what, and how it is trained."""

import copy
import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from skatr_sk import SKATRTransformer
from skatr_sk._checks import NoEffectWarning, PlaceWarning
from skatr_sk.summaries import JEPA, VICReg
from skatr_sk.summaries.objectives.jepa import JEPANetwork, SliceStandardizer
from skatr_sk.summaries.weights import Architecture
from tests.summaries.objectives.masked import (
    DIM,
    MASK,
    N_VOXELS,
    PREDICTION_ALONE,
    build_masked,
    draw,
    masks,
)


def build(**kwargs):
    return build_masked(JEPANetwork, DIM, **kwargs)


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
    JEPA(loss="l2", **PREDICTION_ALONE).criterion()(
        jepa(draw(3, 16, N_VOXELS), masks(3))
    ).backward()
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


def run(ema_decay, *, max_epochs=3, fields=None, **parameters):
    """Train a JEPA; return its network, that before the training, the tensors and the history."""
    if fields is None:
        fields = np.random.default_rng(0).normal(size=(12, 8, 12)).astype(np.float32)
    seen = {}
    jepa = JEPA(masks=MASK, min_context=0.1, ema_decay=ema_decay, **PREDICTION_ALONE)
    jepa.set_params(predictor_dim=8, predictor_depth=1, **parameters)
    skatr = SKATRTransformer(
        objective=jepa, patch_size=(2, 3), embed_dim=DIM, depth=1, n_heads=2, augment=False,
        brightness_range=(0, 1), max_epochs=max_epochs, batch_size=4, learning_rate=1e-2, warmup=0,
        weight_decay=0.1, validation_fraction=0, device="cpu", callbacks=[Watch(seen.update)],
        random_state=0,
    ).fit(fields)  # fmt: skip
    return seen["network"], seen["fresh"], seen["tensors"], skatr.history_


def test_the_optimiser_leaves_the_target_alone():
    # Weight decay of 0.1 would show, had the optimiser got hold of it.
    jepa, fresh, tensors, _ = run(ema_decay=1.0, regions_weight=0.05)
    trained = (jepa.context_encoder, jepa.predictor, jepa.regions.expander)
    assert tensors == {p.data_ptr() for module in trained for p in module.parameters()}
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
    for _, target in jepa(patches, masks(5)).tokens:
        assert target.mean(dim=-1).abs().max() < 1e-5
        assert (target.var(dim=-1, unbiased=False) - 1).abs().max() < 1e-3
    jepa.normalize_targets = False
    for _, target in jepa(patches, masks(5)).tokens:
        assert (target.mean(dim=-1) - 2).abs().max() < 1.5
        assert target.mean() == pytest.approx(2, abs=0.2)


def test_targets_are_the_target_encoders_tokens_of_the_whole_field(torch_seed):
    jepa = build(normalize_targets=False)
    parted(jepa)
    patches = draw(3, 16, N_VOXELS)
    whole = jepa.target_encoder(patches)
    drawn = masks(3)
    for (_, index), (predicted, target) in zip(drawn, jepa(patches, drawn).tokens, strict=True):
        assert predicted.shape == target.shape
        for field in range(3):
            assert torch.equal(target[field], whole[field, index[field]])


def test_predictions_know_nothing_of_what_is_hidden(torch_seed):
    jepa = build()
    patches, drawn = draw(3, 16, N_VOXELS), masks(3, n_masks=1)
    index = drawn[0][1][..., None].expand(-1, -1, N_VOXELS)
    changed = patches.scatter(1, index, 50.0)
    (before, target), (after, moved) = (jepa(x, drawn).tokens[0] for x in (patches, changed))
    assert torch.equal(before, after)
    assert not torch.allclose(target, moved)


@pytest.mark.parametrize(
    "loss", ["l1", *(pytest.param(k, marks=pytest.mark.slow) for k in ("l2", "smooth_l1"))]
)
def test_loss_falls_on_a_tiny_overfit(loss):
    # Smooth fields: what is hidden follows from what is seen.
    x, y = np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 12), indexing="ij")
    slopes = np.random.default_rng(0).normal(size=(2, 8, 1, 1))
    fields = (slopes[0] * x + slopes[1] * y).astype(np.float32)
    *_, history = run(1.0, max_epochs=20, fields=fields, loss=loss)
    assert history[-1]["train_loss"] < 0.4 * history[0]["train_loss"]


def test_the_decay_is_a_ramp_over_the_steps(monkeypatch):
    decays, update = [], JEPANetwork.update_target

    def note(self, decay):
        decays.append(decay)
        update(self, decay)

    monkeypatch.setattr(JEPANetwork, "update_target", note)
    run(ema_decay=(0.9, 1.0), max_epochs=3)
    done = np.arange(1, 10) / 9  # 12 fields in 3 batches, 3 times
    np.testing.assert_allclose(decays, 0.95 - 0.05 * np.cos(np.pi * done), rtol=1e-12)
    assert decays[-1] == 1.0
    decays.clear()
    run(ema_decay=0.997, max_epochs=1)
    assert decays == [pytest.approx(0.997, abs=1e-15)] * 3


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


# Place: what all light cones share at a redshift ------------------------------------------------


def test_slices_are_standardised_over_fields_and_sky():
    tokens = draw(40, 4, 3, 5) * torch.tensor([1.0, 3.0, 0.2])[:, None] + draw(3, 5, seed=1)
    standardised = SliceStandardizer(3, 5)(tokens.flatten(1, 2)).unflatten(1, (4, 3))
    assert standardised.mean(dim=(0, 1)).abs().max() < 1e-5
    assert (standardised.var(dim=(0, 1), correction=0) - 1).abs().max() < 5e-3


def test_statistics_of_small_batches_reach_back():
    """Two fields a batch: each alone would be standardised to plus and minus something."""
    slices = SliceStandardizer(2, 3)
    field = 5 + 2 * draw(2000, 2, 3)
    for start in range(0, 2000, 2):
        found = slices(field[start : start + 2])
    mean, variance = field.mean(dim=0), field.var(dim=0)
    assert (slices.mean - mean).abs().max() < 1.0
    assert (slices.variance / variance).min() > 0.3  # of single batches it would often be near 0
    kept = slices.mean.clone()
    slices.eval()(field[:2] + 100.0)
    assert torch.equal(slices.mean, kept)
    assert found.shape == (2, 2, 3)


def shared_by_all(n=48, noise=0.0):
    """Fields that differ by noise alone: all else is what their redshift says."""
    place = 10 * np.random.default_rng(1).normal(size=(1, 6, 6, 8))
    return (place + noise * np.random.default_rng(2).normal(size=(n, 6, 6, 8))).astype(np.float32)


def pretrained(X, **parameters):
    sizes = dict(patch_size=(2, 2, 2), embed_dim=16, depth=1, n_heads=2, augment=False)
    objective = JEPA(predictor_dim=8, predictor_depth=1, **parameters)
    run = dict(max_epochs=2, validation_fraction=0.25, device="cpu", random_state=0)
    return SKATRTransformer(objective=objective, **sizes, **run).fit(X)


def test_the_share_of_place_is_recorded():
    """Fields that are alike have targets that their position explains, others have less of it."""
    with pytest.warns(PlaceWarning, match=r"is not below .* more steps\.$"):
        alike = pretrained(shared_by_all(noise=0.01)).history_[-1]
    assert alike["place_share"] > 0.99
    assert alike["place_loss"] < alike["prediction_loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlaceWarning)
        other = pretrained(shared_by_all(noise=100.0)).history_[-1]
    assert other["place_share"] < 0.7
    assert other["place_loss"] > 10 * alike["place_loss"]


def test_the_warning_names_the_cures_that_were_left_out():
    for given, said in (
        (PREDICTION_ALONE, "slice_targets=True and regions_weight=5.0"),
        (dict(slice_targets=False), "slice_targets=True"),
        (dict(regions_weight=0), "regions_weight=5.0"),
    ):
        with pytest.warns(PlaceWarning, match=f"more steps, or try {said}\\.$"):
            JEPA(**given).judge({"prediction_loss": 1.0, "place_loss": 0.9})


def test_regions_stand_beside_the_prediction():
    """The loss is that of the prediction, and the weighted one of regions, whose weight acts."""
    X = shared_by_all(noise=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlaceWarning)
        plain, beside = (pretrained(X, regions_weight=w) for w in (0, 0.5))
        other = pretrained(X, regions_weight=0.5, regions=VICReg(region=0.2, expander_dim=8))
    for found in (beside, other):
        last = found.history_[-1]
        assert last["valid_loss"] > last["prediction_loss"] + 0.1
        assert not np.array_equal(found.transform(X), plain.transform(X))
    last = plain.history_[-1]
    assert last["valid_loss"] == pytest.approx(last["prediction_loss"], rel=1e-5)
    assert not np.array_equal(beside.transform(X), other.transform(X))


def test_regions_are_checked_and_reached_by_a_search():
    skatr = SKATRTransformer(objective=JEPA(regions_weight=0.1, regions=VICReg()))
    skatr.set_params(objective__regions__region=0.7)
    with pytest.raises(ValueError, match=r"objective__regions__region: expected a number in"):
        skatr.fit(shared_by_all())
    with pytest.raises(ValueError, match=r"objective__regions: expected VICReg\(...\) or Le"):
        SKATRTransformer(objective=JEPA(regions="vicreg")).fit(shared_by_all())
    with pytest.warns(NoEffectWarning, match="pooled_weight=0 and regions_weight=0 of regions"):
        pretrained(shared_by_all(noise=5.0), regions_weight=0, regions=VICReg())


def test_the_summary_of_a_region_is_predicted_from_the_other(torch_seed):
    architecture = Architecture((8, 6), (2, 2), 8, 1, 2, 2.0)
    objective = JEPA(predictor_dim=8, pooled_weight=1.0)
    sizes = dict(pooling="moments", n_parameters=0)
    network = objective.network(architecture.build(), architecture, **sizes)
    parted(network)
    drawn = objective.draw(40, architecture.grid_shape, torch.Generator().manual_seed(0))
    patches = draw(40, 12, 4)
    [(predicted, wanted)] = network(patches, drawn).pooled
    assert predicted.shape == wanted.shape == (80, 8)
    # Of the target encoder, standardised over the batch, and those of the second region first.
    tokens = [network.target_encoder(patches, index) for index in (drawn[-1][1], drawn[-1][0])]
    summaries = torch.cat(tokens).mean(dim=1)
    by_hand = (summaries - summaries.mean(dim=0)) / (
        summaries.var(dim=0, correction=0) + 1e-4
    ).sqrt()
    torch.testing.assert_close(wanted, by_hand, rtol=1e-3, atol=1e-3)
    assert predicted.requires_grad and not wanted.requires_grad
    # What a region has is no part of the prediction of it.
    one, two, _ = drawn[-1]
    other = patches.scatter(1, two[..., None].expand(-1, -1, 4), 9.0)
    network.eval()
    [(before, _)], [(after, _)] = network(patches, drawn).pooled, network(other, drawn).pooled
    torch.testing.assert_close(before[:40], after[:40])
    assert not torch.allclose(before[40:], after[40:])


def test_pooled_prediction_has_a_weight():
    X = shared_by_all(noise=5.0)
    options = dict(slice_targets=True, regions_weight=0.0, regions=VICReg(region=0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlaceWarning)
        warnings.simplefilter("error", NoEffectWarning)
        found = [pretrained(X, **options, pooled_weight=weight) for weight in (0.5, 1.0)]
    rows = [each.history_[0] for each in found]
    beside = [row["valid_loss"] - row["prediction_loss"] for row in rows]
    assert beside[1] == pytest.approx(2 * beside[0], rel=0.2) and beside[0] > 0.1
    assert not np.array_equal(found[0].transform(X), found[1].transform(X))


def test_maps_are_one_slice():
    maps = np.random.default_rng(0).normal(size=(24, 6, 6)).astype(np.float32)
    sizes = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=1, random_state=0)
    objective = JEPA(predictor_dim=8, predictor_depth=1, slice_targets=True, regions_weight=0.1)
    found = SKATRTransformer(objective=objective, **sizes).fit(maps)
    assert np.isfinite(found.transform(maps)).all()


def test_parameters_of_default_regions_are_set_by_name():
    skatr = SKATRTransformer().set_params(objective__regions__region=0.3)
    assert repr(skatr.objective.regions) == "LeJEPA(region=0.3)"
    assert JEPA().set_params(regions=VICReg(), regions__region=0.2).regions.region == 0.2
    jepa = JEPA()
    with pytest.raises(ValueError, match="Invalid parameter 'no_such' for estimator LeJEPA"):
        jepa.set_params(regions__no_such=1)
    assert jepa.regions is None
