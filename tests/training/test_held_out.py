"""Which rows validate: groups together, the user's own, and how much each row counts."""

import warnings

import numpy as np
import pytest
import sklearn
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import Pipeline
from skorch.callbacks import EpochScoring

from skatr_sk import (
    LightconeRegressor,
    NoEffectWarning,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
)
from skatr_sk.fields import ArrayFields, ChosenFields, as_fields, split_rows
from skatr_sk.heads.flow import Conditioned
from skatr_sk.heads.mlp import HeadLoss
from skatr_sk.heads.npe import NPELoss, coverage_penalty
from skatr_sk.heads.ridge import Ridge
from skatr_sk.training.held_out import Given, Rows, check_given
from tests.training.runs import assert_same_run, signals, transformer, without_seconds

SMALL = dict(hidden_dims=(8,), max_epochs=3, learning_rate=1e-2, device="cpu", random_state=0)


def data(n=60):
    rng = np.random.default_rng(0)
    y = rng.uniform(size=(n, 2))
    return np.concatenate([y + 0.1 * rng.normal(size=y.shape)] * 2, axis=1), y


def heads():
    backbone = SKATRTransformer(patch_size=2, embed_dim=8, depth=1)
    return {
        "ridge": LightconeRegressor(**SMALL | dict(hidden_dims="auto", n_members=2)),
        "network": LightconeRegressor(**SMALL, loss="gaussian"),
        "joint": LightconeRegressor(**SMALL, backbone=backbone),
        "posterior": PosteriorEstimator(
            **SMALL, n_blocks=1, n_bins=4, n_members=1, calibration_weight=1.0
        ),
        "joint posterior": PosteriorEstimator(**SMALL, n_blocks=1, n_bins=4, backbone=backbone),
    }


HEADS = list(heads())
# Of those that train an encoder one is enough by default.
USUAL = [pytest.param(k, marks=pytest.mark.slow) if k == "joint posterior" else k for k in HEADS]


def same(first, second, X):
    assert without_seconds(first.history_) == without_seconds(second.history_)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))


# Fields ------------------------------------------------------------------------------------------


def test_chosen_fields_are_those_of_their_parts():
    one, two = np.arange(12.0).reshape(6, 2), -np.arange(8, dtype=np.float32).reshape(4, 2)
    chosen = ChosenFields((ArrayFields(one), np.array([4, 0])), (ArrayFields(two), np.arange(4)))
    whole = np.concatenate([one[[4, 0]], two])
    assert chosen.shape == (6, 2) and chosen.dtype == np.float64 and chosen.in_memory
    for rows in (None, slice(1, 4), [5, 0, 2, 2], np.array([], dtype=int)):
        expected = as_fields(whole if rows is None else whole[rows])
        np.testing.assert_array_equal(chosen.read(rows), expected.read())
        assert chosen.digests(rows) == expected.digests()
    cones = SimulatedLightcones(3, field_shape=(4, 4, 8), random_state=0)
    assert not ChosenFields((cones, np.arange(2)), (cones, np.arange(3))).in_memory


# Groups ------------------------------------------------------------------------------------------


def test_a_group_is_on_one_side():
    X, labels = signals(60), np.arange(60) % 13
    train, valid = split_rows(as_fields(X), 0.2, 1, groups=labels)
    assert sorted([*train, *valid]) == list(range(60))
    assert not set(labels[train]) & set(labels[valid]) and 9 <= len(valid) <= 15
    # By content, whatever the order of the rows and the labels.
    order = np.random.default_rng(0).permutation(60)
    _, other = split_rows(as_fields(X[order]), 0.2, 1, groups=(100 - labels)[order])
    assert {X[i].tobytes() for i in valid} == {X[order][i].tobytes() for i in other}
    assert split_rows(as_fields(X), 0.2, 2, groups=labels)[1].tolist() != valid.tolist()
    # Of many rows in one group, and of all in one.
    lopsided = np.array([0] * 55 + [1, 2, 3, 4, 5])
    train, valid = split_rows(as_fields(X), 0.01, 3, groups=lopsided)
    assert len(train) and len(valid)
    with pytest.raises(ValueError, match="groups: expected at least two groups"):
        split_rows(as_fields(X), 0.2, 1, groups=np.zeros(60))
    some = np.arange(0, 60, 2)
    train, valid = split_rows(as_fields(X), 0.2, 1, some, labels)
    assert sorted([*train, *valid]) == some.tolist()
    assert not set(labels[train]) & set(labels[valid])


@pytest.mark.parametrize("head", USUAL)
def test_groups_of_a_head(head, monkeypatch):
    X, y = data()
    labels = [f"seed {i % 9}" for i in range(60)]
    seen = []
    split = Rows.split

    def spy(*args, **kwargs):
        seen.append(split(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(Rows, "split", spy)
    heads()[head].fit(X, y, groups=labels)
    assert len(seen) == (2 if head == "ridge" else 1)
    for train, valid in seen:
        assert not {labels[i] for i in train} & {labels[i] for i in valid}
        assert len(valid) > 0


def test_groups_in_pipelines_and_searches():
    """As fit parameters of the steps, and routed by scikit-learn."""
    X, y = data()
    labels = np.arange(60) % 10
    skatr = transformer(patch_size=2, max_epochs=1)
    pipe = Pipeline([("skatr", skatr), ("head", LightconeRegressor(**SMALL))])
    plain = pipe.fit(X, y, skatr__groups=labels, head__groups=labels).predict(X)
    with sklearn.config_context(enable_metadata_routing=True):
        skatr.set_fit_request(groups=True)
        head = LightconeRegressor(**SMALL).set_fit_request(groups=True, sample_weight=True)
        pipe = Pipeline([("skatr", skatr), ("head", head)])
        np.testing.assert_array_equal(pipe.fit(X, y, groups=labels).predict(X), plain)
        given = {"groups": labels, "sample_weight": np.ones(60)}
        options = dict(cv=GroupKFold(2), error_score="raise")
        alone = Pipeline([("pca", PCA(2)), ("head", head.set_score_request(sample_weight=True))])
        assert np.isfinite(cross_validate(alone, X, y, params=given, **options)["test_score"]).all()
        search = GridSearchCV(alone, {"head__weight_decay": [0.1, 1.0]}, **options)
        assert search.fit(X, y, **given).best_params_


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(5), r"groups: expected a label for each of 60 rows.* found \(5,\)"),
        ([1.0, np.nan] * 30, "groups: expected a label for each row, found NaN or None in 30"),
        ([None, "a"] * 30, "groups: expected a label for each row, found NaN or None in 30"),
        (np.array([1, "a"] * 30, dtype=object), "groups: expected labels of one kind"),
        (np.zeros(60), "groups: expected at least two groups"),
    ],
)
def test_wrong_groups(groups, message):
    head = LightconeRegressor(**SMALL)
    with pytest.raises((TypeError, ValueError), match=message):
        head.fit(*data(), groups=groups)
    assert not hasattr(head, "head_")


# Validation data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", USUAL)
def test_own_validation_data(head):
    """All rows train; the loss is that of the rows given, and they stop the training."""
    X, y = data()
    other, truth = X[40:], y[40:]
    estimator = heads()[head].set_params(max_epochs=5, patience=2)
    fitted = estimator.fit(X[:40], y[:40], validation_data=(other, truth))
    if head in ("ridge", "network", "posterior"):
        np.testing.assert_allclose(fitted.summary_mean_, X[:40].mean(axis=0))
    assert all("valid_loss" in row for row in fitted.history_)
    # Other rows that validate leave the first epoch's training as it is.
    again = estimator.fit(X[:40], y[:40], validation_data=(other[:5], truth[:5]))
    assert np.isfinite(again.predict(X)).all()
    without = heads()[head].set_params(validation_fraction=0.0, patience=None)
    assert without.fit(X[:40], y[:40], validation_data=(other, truth)).history_[0]["valid_loss"]


def test_the_ridge_does_not_learn_from_validation_data():
    X, y = data()
    head = LightconeRegressor(hidden_dims="auto", max_epochs=1, n_members=1, random_state=0)
    head.set_params(target_bounds=[[0, 1], [0, 1]])
    first = head.fit(X[:40], y[:40], validation_data=(X[40:], y[40:])).head_[-1]
    second = head.fit(X[:40], y[:40], validation_data=(X[40:], 1 - y[40:])).head_[-1]
    torch.testing.assert_close(first.linear.weight, second.linear.weight)
    assert head.network_weight_ >= 0


def test_own_validation_data_of_a_pretraining():
    X = signals(40)
    fitted = transformer().fit(X[:20], validation_data=(X[20:], None))
    assert all("valid_loss" in row for row in fitted.history_)
    assert_same_run(fitted, transformer().fit(X[:20], validation_data=[X[20:], None]))
    other = transformer().fit(X[:20], validation_data=(X[30:], None))
    losses = [[row["train_loss"] for row in each.history_] for each in (fitted, other)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    supervised = transformer(objective="supervised")
    y = X[:, :2]
    supervised.fit(X[:20], y[:20], validation_data=(X[20:], y[20:]))
    assert all("valid_r2" in row for row in supervised.history_)
    with pytest.raises(ValueError, match="validation_data: y: expected labels"):
        supervised.fit(X[:20], y[:20], validation_data=(X[20:], None))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (data()[0], r"validation_data: expected a pair \(X, y\), found ndarray; without labels"),
        ((1, 2, 3), "validation_data: expected a pair .* found tuple of 3"),
        ((data()[0][:, :3], data()[1]), "validation_data: X has 3 features"),
        ((data()[0], data()[1][:, 0]), "validation_data: y: expected 2 parameters"),
        ((data()[0], data()[1][:5]), r"validation_data: y: expected 60 rows"),
        ((data()[0] * np.nan, data()[1]), "validation_data: X: expected finite"),
        ((data()[0], None), "validation_data: y: expected parameters"),
    ],
)
def test_wrong_validation_data(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LightconeRegressor(**SMALL).fit(*data(), validation_data=wrong)


@pytest.mark.parametrize(
    ("make", "name"), [(LightconeRegressor, "target_bounds"), (PosteriorEstimator, "prior_bounds")]
)
def test_rows_outside_their_bounds_have_the_numbers_of_the_user(make, name):
    """Whatever rows do not count, and whoever validates."""
    y = np.random.default_rng(0).uniform(size=(60, 2))
    head, bad = make(**{name: [[0, 1]] * 2}, max_epochs=1), y.copy()
    bad[45, 0] = 1.5
    weights = np.arange(60) >= 30
    with pytest.raises(ValueError, match="^y: .* in rows 45, in parameter_0; wid"):
        head.fit(y, bad, sample_weight=weights)
    with pytest.raises(ValueError, match="^validation_data: y: .* in rows 45, in parameter_0;"):
        head.fit(y, y, validation_data=(y, bad))
    bounds = [[0, 1], [1.0, 10.0]]
    with pytest.raises(ValueError, match="give log10 of the bounds of parameter_1"):
        make(**{name: bounds}, max_epochs=1).fit(y, np.where([True, False], y, 0.9 * y + 0.01))


def test_fields_that_validate_are_looked_at_once():
    X = signals(12)
    valid = signals(8).copy()
    valid[3] = 1.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        transformer().fit(X, validation_data=(valid, None))
    said = [str(each.message) for each in caught if "constant" in str(each.message)]
    assert len(said) == 1 and "constant fields: 1 of 8 (first rows: 3)" in said[0]


def test_what_changes_nothing_beside_it():
    X, y = data()
    own = {"validation_data": (X, y)}
    for head in (LightconeRegressor(**SMALL), PosteriorEstimator(**SMALL, n_blocks=1, n_members=1)):
        with pytest.warns(NoEffectWarning, match="no effect with validation_data of groups"):
            head.fit(X, y, groups=np.arange(60), **own)
        head.set_params(validation_fraction=0.3)
        with pytest.warns(NoEffectWarning, match="validation_data of validation_fraction"):
            head.fit(X, y, **own)
        head.set_params(validation_fraction=0.0, patience=None)
        with pytest.warns(NoEffectWarning, match="validation_fraction=0 of groups"):
            head.fit(X, y, groups=np.arange(60))


def test_a_checkpoint_knows_who_validates(tmp_path):
    X = signals(40)
    labels = np.arange(40) % 8
    resuming = transformer(checkpoint_dir=tmp_path, random_state=0, max_epochs=1)
    resuming.fit(X)
    resuming.fit(X, groups=labels)
    assert len(list(tmp_path.iterdir())) == 2


# Weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", USUAL)
def test_a_weight_of_zero_leaves_the_row_out(head):
    X, y = data()
    weights = np.ones(60)
    weights[::3] = 0
    weighted = heads()[head].fit(X, y, sample_weight=2.5 * weights)
    left = heads()[head].fit(X[weights > 0], y[weights > 0])
    same(weighted, left, X)
    # Rows that do not count may lie anywhere, and alike weights are none.
    far = np.where(weights[:, None] > 0, y, 1e6)
    same(heads()[head].fit(X, far, sample_weight=weights), left, X)


@pytest.mark.parametrize(
    "head",
    [one if one == "network" else pytest.param(one, marks=pytest.mark.slow) for one in HEADS],
)
def test_weights_decide_between_labels_that_disagree(head):
    """Two thirds of the rows say y, the others 1 - y: whoever weighs more is believed."""
    X, y = data(120)
    says = np.where(np.arange(120)[:, None] % 3 > 0, y, 1 - y)
    estimator = heads()[head].set_params(max_epochs=20, batch_size=20, patience=None)
    if "joint" in head:
        X = X * 30
        estimator.set_params(learning_rate=3e-3)
    right = []
    for heavy in (1.0, 30.0):
        weights = np.where(np.arange(120) % 3 > 0, 1.0, heavy)
        predicted = estimator.fit(X, says, sample_weight=weights).predict(X)
        right.append(np.corrcoef(predicted[:, 0], y[:, 0])[0, 1])
    assert right[0] > 0.2 and right[1] < -0.2


def test_the_weighted_losses():
    output, target = torch.tensor([[0.5], [0.2]]), torch.tensor([[1.0], [0.0]])
    weights = torch.tensor([1.5, 0.5])
    assert HeadLoss("l1")(output, target, weights) == pytest.approx((0.75 + 0.1) / 2)
    assert HeadLoss("l2")(output, target, weights) == pytest.approx((0.375 + 0.02) / 2)
    both = torch.cat([output, torch.zeros(2, 1)], dim=1)
    assert HeadLoss("gaussian")(both, target, weights) == pytest.approx((0.1875 + 0.01) / 2)

    class Flow:
        def log_prob(self, points, context):
            return -points[..., 0]

    given = Conditioned(Flow(), None), target
    assert NPELoss()(*given) == 0.5 and NPELoss()(*given, weights) == pytest.approx(0.75)


def test_the_weighted_coverage_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    truth, drawn = (torch.from_numpy(rng.normal(size=(5, n))) for n in (1, 50))
    times = torch.tensor([1, 3, 2, 1, 1])
    weights = times / times.float().mean()
    found = coverage_penalty(truth, drawn, "symmetric", weights)
    many = torch.arange(5).repeat_interleave(times * 40)
    # In the limit of many copies the steps within one row's share average out to its middle.
    repeated = coverage_penalty(truth[many], drawn[many], "symmetric")
    spread = ((times / times.sum()) ** 3).sum() / 12
    assert float(found + spread) == pytest.approx(float(repeated), abs=1e-4)


def test_the_weighted_ridge(monkeypatch):
    """At one penalty that of repeated rows, and the fits without a row are those made by hand."""
    rng = np.random.default_rng(0)
    X, y = torch.from_numpy(rng.normal(size=(40, 3))), torch.from_numpy(rng.normal(size=(40, 2)))
    times = torch.from_numpy(rng.integers(1, 4, size=40))
    mean, options = times.double().mean(), dict(gaussian=True, bounded=False)
    X, weights = X.clamp(-3, 3), times / mean
    weighted, repeated = Ridge(3, 2, **options), Ridge(3, 2, **options)
    monkeypatch.setattr("skatr_sk.heads.ridge._PENALTIES", torch.tensor([20.0]).double())
    left_out = weighted.solve(X, y, weights)
    monkeypatch.setattr("skatr_sk.heads.ridge._PENALTIES", torch.tensor([20.0]).double() * mean)
    repeated.solve(X.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    torch.testing.assert_close(weighted.linear.weight, repeated.linear.weight)
    torch.testing.assert_close(weighted.linear.bias, repeated.linear.bias)
    centre = (weights[:, None] * X).mean(dim=0)
    scale = (weights[:, None] * (X - centre).square()).mean(dim=0).sqrt()
    design = torch.cat([torch.ones(40, 1).double(), (X - centre) / scale], dim=1)
    penalty = torch.diag(torch.tensor([0.0, 20.0, 20.0, 20.0]).double())
    for row in (0, 7):
        others = torch.arange(40) != row
        A, w = design[others], weights[others, None]
        fit = torch.linalg.solve(A.T @ (w * A) + penalty, A.T @ (w * y[others]))
        torch.testing.assert_close(left_out[row], design[row] @ fit)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), "sample_weight.shape"),
        (-np.ones(60), "[Nn]egative"),
        (np.eye(60)[0], "sample_weight: expected at least two rows that count, found 1"),
        (np.full(60, np.nan), "NaN"),
    ],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        LightconeRegressor(**SMALL).fit(*data(), sample_weight=weights)


def test_scores_of_the_user_beside_weights():
    X, y = data()
    score = EpochScoring("r2", lower_is_better=False)
    head = LightconeRegressor(**SMALL, callbacks=[score])
    rows = head.fit(X, y, sample_weight=np.linspace(1, 2, 60)).history_
    assert all(row["r2"] < 1 for row in rows)


def test_weights_of_the_two_sides_have_a_mean_of_one():
    weights = np.linspace(1, 3, 20)
    fields = ArrayFields(signals(20))
    _, _, rows = check_given(Given(sample_weight=weights), (fields, None), lambda X, y: (X, y))
    for side in rows.split(fields, 0.25, 0):
        of_side = rows.weights_of(side)
        assert of_side.mean() == pytest.approx(1)
        np.testing.assert_allclose(of_side / of_side[0], weights[side] / weights[side[0]])
