"""What all objectives share: their interface, their views, and the loss of predictions."""

import inspect

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skatr_sk import BlockMask, SKATRTransformer
from skatr_sk.summaries import JEPA, BrightnessScaling, LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.summaries.objectives import OBJECTIVES, Objective, as_objective
from skatr_sk.summaries.views import PatchViews
from skatr_sk.summaries.vit import patchify
from skatr_sk.summaries.weights import Architecture
from tests.summaries.objectives.masked import PREDICTION_ALONE

MASK = BlockMask(n_blocks=2, scale=(0.2, 0.4))
AS_IT_IS = BrightnessScaling.from_range(0, 1)
ALL = sorted(OBJECTIVES)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**parameters):
    defaults = dict(patch_size=2, embed_dim=12, depth=1, n_heads=2, max_epochs=2, batch_size=6)
    return SKATRTransformer(**defaults | dict(device="cpu", random_state=0) | parameters)


# What an objective is --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
class TestInterface:
    def test_a_name_is_short_for_the_object(self, name, rng):
        X = rng.normal(size=(16, 8, 6)).astype(np.float32)
        y = X.mean(axis=2)
        of_name = small(objective=name, max_epochs=1).fit_transform(X, y)
        of_object = small(objective=OBJECTIVES[name](), max_epochs=1).fit_transform(X, y)
        np.testing.assert_array_equal(of_object, of_name)

    def test_it_is_an_estimator_of_scikit_learn(self, name, tmp_path):
        for value in (as_objective(name), OBJECTIVES[name](**self.changed(name))):
            assert clone(value) is not value
            assert clone(value).get_params() == value.get_params()
            joblib.dump(value, tmp_path / "objective.joblib")
            assert joblib.load(tmp_path / "objective.joblib").get_params() == value.get_params()
        changed = [f"{key}={value!r}" for key, value in sorted(self.changed(name).items())]
        assert repr(value) == f"{type(value).__name__}({', '.join(changed)})"

    @staticmethod
    def changed(name):
        of_masks = {"loss": "l2", "predictor_dim": 24}
        others = {"lejepa": {"sigreg": 0.2}, "vicreg": {"expander_dim": 8}}
        return (others | {"supervised": {"loss": "l2"}}).get(name, of_masks)

    def test_its_table_names_its_parameters(self, name):
        signature = inspect.signature(OBJECTIVES[name]).parameters
        assert set(signature) == set(OBJECTIVES[name]._parameters)
        assert all(p.kind is p.KEYWORD_ONLY for p in signature.values())
        for parameter in signature:
            assert f"{parameter} : " in OBJECTIVES[name].__doc__ or parameter in (
                "invariance", "variance", "covariance"
            )  # fmt: skip

    def test_its_network_takes_its_views_and_its_criterion_the_output(self, name, torch_seed):
        objective = as_objective(name)
        architecture = Architecture((8, 6), (2, 3), 12, 1, 2, 2.0)
        see = PatchViews(
            (8, 6), (2, 3), scaling=AS_IT_IS, augment=True, seed=0, draw=objective.draw
        )
        sizes = dict(pooling="mean", n_parameters=2)
        network = objective.network(architecture.build(), architecture, **sizes)
        loss = objective.criterion()(network(*see(draw(5, 8, 6), True)), draw(5, 2))
        assert loss.ndim == 0 and loss.isfinite()
        loss.backward()
        assert all(p.grad is not None for p in network.context_encoder.parameters())


# Their masks and regions of signals and maps are drawn as those of JEPA and of VICReg.
LIKE_OTHERS = ("reconstruction", "lejepa")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, marks=[pytest.mark.slow] * (name in LIKE_OTHERS and rank < 3))
        for name in ALL
        for rank, shape in {1: (8,), 2: (6, 4), 3: (4, 4, 6)}.items()
    ],
    ids=str,
)
def test_fits_fields_of_every_rank(name, shape, rng, tmp_path):
    X = rng.normal(size=(20, *shape)).astype(np.float32)
    # A last batch of another size.
    skatr = small(objective=name, max_epochs=1).fit(X, X.reshape(20, -1)[:, :2])
    assert all(np.isfinite(row["train_loss"]) for row in skatr.history_)
    summaries = skatr.transform(X)
    n_summary = 12 * (3 if len(shape) == 3 else 2)  # pooled by slices, or by moments
    assert summaries.shape == (20, n_summary) and np.isfinite(summaries).all()
    skatr.save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "w.safetensors", device="cpu")
    np.testing.assert_array_equal(loaded.transform(X), summaries)


MASKED = (JEPA, Reconstruction)
REGIONS = (LeJEPA, VICReg)
WRONG = [
    (MASKED, "masks", "none"),
    (MASKED, "masks", []),
    (MASKED, "masks", ["short"]),
    (MASKED, "masks", None),
    (MASKED, "min_context", 0.0),
    (MASKED, "min_context", 1.0),
    (MASKED, "loss", None),
    (MASKED, "normalize_targets", 1),
    (MASKED, "predictor_dim", 0),
    (MASKED, "predictor_dim", 2.0),
    (MASKED, "predictor_depth", -1),
    ((JEPA,), "ema_decay", 1.5),
    ((JEPA,), "ema_decay", -0.1),
    ((JEPA,), "ema_decay", (0.9, 1.1)),
    ((JEPA,), "ema_decay", (1.0, 0.9)),
    ((JEPA,), "ema_decay", (0.9,)),
    ((JEPA,), "ema_decay", "fast"),
    ((JEPA,), "ema_decay", None),
    ((JEPA,), "pooled_weight", -1.0),
    ((JEPA,), "slice_targets", 1),
    ((JEPA,), "regions_weight", -0.1),
    (REGIONS, "region", 0.0),
    (REGIONS, "region", 0.6),
    (REGIONS, "expander_dim", 0),
    (REGIONS, "expander_depth", -1),
    ((LeJEPA,), "sigreg", 1.1),
    ((LeJEPA,), "sigreg", -0.1),
    ((LeJEPA,), "n_projections", 0),
    ((Supervised,), "visible", 0.0),
    ((Supervised,), "visible", 1.5),
    ((Supervised,), "loss", "smooth_l1"),
    ((VICReg,), "invariance", -1.0),
    ((VICReg,), "variance", float("inf")),
    ((VICReg,), "covariance", "small"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kinds, name, value in WRONG for kind in kinds],
    ids=str,
)
def test_wrong_parameters(kind, name, value):
    with pytest.raises(ValueError, match="SKATRTransformer has 1 invalid parameter:") as error:
        small(objective=kind(**{name: value})).fit(np.zeros((4, 8, 6)), np.zeros(4))
    assert f"- objective__{name}: expected " in str(error.value)
    assert f"found {value!r}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "found", "right"),
    [
        ("masks", "multi-block", "multiblock"),
        ("loss", "smoothl1", "smooth_l1"),
        ("loss", "L1", "l1"),
    ],
)
def test_a_misspelt_string_gets_the_nearest_right_one(name, found, right):
    skatr = small(objective=JEPA(**{name: found}))
    with pytest.raises(ValueError, match=f"objective__{name}: .* did you mean '{right}'"):
        skatr.fit(np.zeros((4, 8, 6)))


@pytest.mark.parametrize("kind", MASKED)
def test_a_predictor_too_narrow_for_the_positions(kind, rng):
    X = rng.normal(size=(12, 6, 4, 8))
    message = r"objective__predictor_dim: expected at least 6, .* \(3, 2, 4\) patches, found 4"
    with pytest.raises(ValueError, match=message):
        small(objective=kind(predictor_dim=4)).fit(X)
    with pytest.raises(
        ValueError, match=r"(?s)2 invalid .*- embed_dim: .*- objective__predictor_d"
    ):
        small(embed_dim=4, objective=kind(predictor_dim=4)).fit(X)


def test_numbers_of_numpy_are_numbers(rng):
    """As a search over numpy.arange hands them in."""
    X = rng.normal(size=(12, 8)).astype(np.float32)
    plain = JEPA(predictor_dim=24, predictor_depth=1, ema_decay=(0.5, 0.5), min_context=0.25)
    given = dict(
        predictor_dim=np.int64(24), predictor_depth=np.int32(1), min_context=np.float32(0.25)
    )
    of_numpy = JEPA(**given, ema_decay=np.array([0.5, 0.5]), normalize_targets=np.True_)
    found = [small(objective=each).fit_transform(X) for each in (plain, of_numpy)]
    np.testing.assert_array_equal(*found)


def test_an_objective_of_ones_own(rng):
    """What the base asks for is enough."""

    class Standardised(Objective):
        """The mean token has zero mean and unit variance over the batch."""

        def draw(self, n, grid_shape, generator):
            return []

        def network(self, encoder, architecture, *, pooling, n_parameters):
            class Network(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.context_encoder = encoder

                def forward(self, patches, pairs):
                    return self.context_encoder(patches).mean(dim=1)

            return Network()

        def criterion(self):
            class Loss(torch.nn.Module):
                def forward(self, output, _):
                    variance = output.var(dim=0) if len(output) > 1 else torch.ones(())
                    return output.mean(dim=0).square().mean() + (variance - 1).square().mean()

            return Loss()

    X = rng.normal(size=(40, 8, 6)).astype(np.float32)
    skatr = small(objective=Standardised(), max_epochs=20, learning_rate=1e-2, batch_size=20).fit(X)
    assert skatr.history_[-1]["train_loss"] < 0.5 * skatr.history_[0]["train_loss"]
    assert clone(skatr).get_params()["objective"].get_params() == {}


# Views -----------------------------------------------------------------------------------------


def views(field_shape, patch_size, *, augment=True, seed=0):
    masks = JEPA(masks=[MASK, MASK], min_context=0.1, **PREDICTION_ALONE)
    options = dict(scaling=AS_IT_IS, augment=augment, seed=seed, draw=masks.draw)
    return PatchViews(field_shape, patch_size, **options)


def marked(n, field_shape):
    """The same field n times, each cell holding its own number."""
    cells = torch.arange(float(np.prod(field_shape))).reshape(field_shape)
    return cells.expand(n, *field_shape).clone()


def test_views_are_patches_and_what_is_seen_of_them():
    fields = marked(3, (4, 6))
    patches, masks = views((4, 6), (2, 2), augment=False)(fields, True)
    assert torch.equal(patches, patchify(fields, (2, 2)))
    assert len(masks) == 2
    for pair in masks:
        both = torch.cat(pair, dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(6).expand(3, -1))


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


# The loss of predictions -----------------------------------------------------------------------


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
    assert Reconstruction(loss=name).criterion()(pairs).item() == pytest.approx(
        sum(means) / 2, rel=1e-5
    )


def test_loss_is_in_float32():
    pair = (draw(2, 3, 4).bfloat16(), draw(2, 3, 4, seed=1))
    assert Reconstruction(loss="l1").criterion()([pair]).dtype == torch.float32


def test_wrong_numbers_are_told_and_not_tripped_over(rng):
    X = rng.normal(size=(8, 6, 6))
    with pytest.raises(ValueError, match="objective__invariance: expected a number in"):
        SKATRTransformer(objective=VICReg(invariance=np.array([1, 2]))).fit(X)
    with pytest.raises(ValueError, match="objective__ema_decay: expected a number in"):
        SKATRTransformer(objective=JEPA(ema_decay=np.array(0.5))).fit(X)
    with pytest.raises(ValueError, match="objective: expected one of"):
        SKATRTransformer(objective=Objective()).fit(X)


def test_a_wrong_name_changes_nothing():
    skatr = SKATRTransformer()
    with pytest.raises(ValueError, match="Invalid parameter 'foo'"):
        skatr.set_params(objective__foo=1)
    assert skatr.objective == "jepa"
