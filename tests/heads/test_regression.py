"""LightconeRegressor: what it learns, in which units, and when it stops."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from skatr_sk import LightconeRegressor
from skatr_sk._checks import NoEffectWarning
from skatr_sk.heads.mlp import Head, HeadMixture
from skatr_sk.heads.ridge import Ridge

UNITS = np.array([3.0, 1e-3, 2e5])
OFFSETS = np.array([0.0, 0.3, -1e6])


def regressor(**parameters):
    small = dict(hidden_dims=(32,), max_epochs=40, batch_size=64, learning_rate=1e-2)
    return LightconeRegressor(**small | dict(device="cpu", random_state=0) | parameters)


def quick(**parameters):
    return regressor(**dict(hidden_dims=(8,), max_epochs=5, batch_size=16) | parameters)


def smooth(n=400, seed=0):
    """Three smooth functions of four features, in units as different as those of parameters."""
    X = np.random.default_rng(seed).uniform(-1, 1, size=(n, 4))
    y = np.stack([X[:, 0] + X[:, 1], np.sin(2 * X[:, 2]), X[:, 3] ** 2 + X[:, 0]], axis=1)
    return X, y * UNITS + OFFSETS


class Spy(Callback):
    """Keeps what a training shows to its callbacks."""

    def __sklearn_clone__(self):
        return self  # a training works with copies of its callbacks, and this one is asked

    def on_train_begin(self, net, X=None, **kwargs):
        self.epochs, self.modes = 0, set()

    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.train, self.valid = dataset_train, dataset_valid

    def on_batch_end(self, net, training=None, **kwargs):
        self.modes.add((training, net.module_.training))

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1


def rows_of(dataset, head, X):
    """Which rows of X a dataset holds, found by their standardised values."""
    standardised = (X - head.summary_mean_) / head.summary_scale_
    distance = np.abs(dataset.tensors[0].numpy()[:, None] - standardised).max(axis=2)
    assert distance.min(axis=1).max() < 1e-5
    return distance.argmin(axis=1)


# --- what it learns -----------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("loss", ["l1", "l2", "gaussian"])
def test_learns_a_known_function(loss, bounded):
    X, y = smooth(600)
    bounds = np.stack([y.min(axis=0), y.max(axis=0)], axis=1) if bounded else None
    head = regressor(loss=loss, target_bounds=bounds).fit(X[:400], y[:400])
    scores = r2_score(y[400:], head.predict(X[400:]), multioutput="raw_values")
    assert scores.min() > 0.9
    # The uniform average over parameters: their units differ by eight orders of magnitude.
    assert head.score(X[400:], y[400:]) == pytest.approx(scores.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "expected"), [("l1", np.log(2)), ("l2", 1.0)])
def test_l1_goes_to_the_median_and_l2_to_the_mean(loss, expected, rng):
    X, y = rng.normal(size=(4000, 1)), rng.exponential(size=4000)
    head = regressor(
        loss=loss, hidden_dims=(), max_epochs=200, batch_size=400, learning_rate=2e-3, patience=None
    )
    assert head.fit(X, y).predict(np.zeros((1, 1)))[0] == pytest.approx(expected, abs=0.08)


def test_gaussian_recovers_a_known_standard_deviation(rng):
    def draw(n):
        X = rng.uniform(-1, 1, size=(n, 1))
        sigma = 0.3 * np.exp(0.8 * X)
        return X, 2 * X + sigma * rng.normal(size=(n, 1)), sigma

    X, y, _ = draw(4000)
    head = regressor(loss="gaussian", batch_size=200, max_epochs=30).fit(X, y)
    X, y, sigma = draw(4000)
    mean, std = head.predict(X, return_std=True)
    assert np.sqrt(np.mean((std / sigma - 1) ** 2)) < 0.15
    np.testing.assert_allclose(mean, head.predict(X))
    pull = (y - mean) / std
    assert pull.std() == pytest.approx(1, abs=0.1)
    assert np.mean(np.abs(pull) < 1) == pytest.approx(0.683, abs=0.04)
    assert np.mean(np.abs(pull) < 2) == pytest.approx(0.954, abs=0.03)


def test_std_has_the_units_of_the_targets(rng):
    X, y = smooth()
    y = y + rng.normal(size=y.shape) * 0.3 * UNITS
    mean, std = regressor(loss="gaussian").fit(X, y).predict(X, return_std=True)
    assert mean.shape == std.shape == y.shape
    assert (std > 0).all()
    np.testing.assert_allclose(std.mean(axis=0) / UNITS, 0.3, rtol=0.3)
    _, std = quick(loss="gaussian").fit(X, y[:, 0]).predict(X, return_std=True)
    assert std.shape == (400,)


# --- beside a ridge regression ------------------------------------------------------------------


def few_labels(n, seed, curve=0.0):
    """Noisy summaries of three numbers, and these, bent by `curve`; n rows and 400 others."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(n + 400, 3))
    mixed = numbers @ np.random.default_rng(99).normal(size=(3, 30))
    X, y = mixed + 1.5 * rng.normal(size=mixed.shape), numbers + curve * (numbers**2 - 1)
    return (X[:n], y[:n]), (X[n:], y[n:])


def r2_beside_ridge(n, curve, seeds=(0, 1, 2)):
    """Mean R2 of the default regressor and of a ridge regression, and the networks' weight."""
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13)))
    ridge = TransformedTargetRegressor(ridge, transformer=StandardScaler())
    found = []
    for seed in seeds:
        train, test = few_labels(n, seed, curve)
        head = LightconeRegressor(device="cpu", random_state=seed).fit(*train)
        found.append((head.score(*test), ridge.fit(*train).score(*test), head.network_weight_))
    return np.mean(found, axis=0)


def test_the_default_does_not_lose_to_a_ridge_with_few_labels():
    default, ridge, _ = r2_beside_ridge(32, curve=0.3)
    assert default > ridge + 0.01  # a network of (360, 360) alone has .02 less than the ridge


@pytest.mark.slow
def test_the_default_does_not_lose_where_nothing_is_left_to_find():
    default, ridge, weight = r2_beside_ridge(32, curve=0.0)
    assert default > ridge - 0.015  # .07 less
    assert weight < 0.3


def test_the_default_is_a_network_where_there_are_labels_for_one():
    default, ridge, weight = r2_beside_ridge(120, curve=0.5, seeds=(0,))
    assert default > ridge + 0.15
    assert weight > 0.7


def test_given_widths_are_one_network_alone():
    X, y = smooth(60)
    head = quick(hidden_dims=(8,)).fit(X, y)
    assert isinstance(head.head_, Head)
    assert head.network_weight_ == 1
    assert [layer.weight.shape for layer in head.head_.layers[::2]] == [(8, 4), (3, 8)]
    auto = quick(hidden_dims="auto").fit(X, y)
    assert [type(part) for part in auto.head_] == [Head] * 5 + [Ridge]
    assert {row["member"] for row in auto.history_} == set(range(5))
    assert [type(part) for part in quick(hidden_dims="auto", n_members=1).fit(X, y).head_] == [
        Head,
        Ridge,
    ]


@pytest.mark.parametrize("loss", ["l1", "gaussian"])
def test_predictions_are_a_weighted_mean(loss):
    X, y = smooth(60)
    head = quick(hidden_dims="auto", n_members=2, loss=loss).fit(X, y)
    weight = head.network_weight_
    assert 0 < weight < 1

    def alone(part):
        one = quick(loss=loss).fit(X, y)
        one.head_, one.scaling_ = part, head.scaling_
        one.summary_mean_, one.summary_scale_ = head.summary_mean_, head.summary_scale_
        return one.predict(X)

    first, second, ridge = map(alone, head.head_)
    expected = weight * (first + second) / 2 + (1 - weight) * ridge
    np.testing.assert_allclose(head.predict(X), expected, rtol=1e-10)


def test_a_network_that_went_wild_has_no_say():
    """Ten rows that speak for one half must not keep a share of it in the mean."""
    X, y = smooth(60)
    test_X, test_y = smooth(200, seed=1)
    wild = dict(hidden_dims="auto", random_state=0, max_epochs=5, device="cpu")
    head = LightconeRegressor(learning_rate=1.0, **wild).fit(X, y)
    ridge = head.score(test_X, test_y)
    assert head.network_weight_ < 0.01
    assert ridge > LightconeRegressor(**wild).fit(X, y).score(test_X, test_y) - 0.3


def test_members_are_averaged(rng):
    X, y = smooth()
    y = y + 0.3 * UNITS * rng.normal(size=y.shape)
    several = regressor(n_members=3, loss="gaussian").fit(X, y)
    assert isinstance(several.head_, HeadMixture) and len(several.head_) == 3
    assert several.network_weight_ == 1
    means, sigmas = [], []
    for part in list(several.head_):
        alone = regressor(loss="gaussian", max_epochs=1).fit(X, y)
        alone.head_ = part
        alone.summary_mean_, alone.summary_scale_ = several.summary_mean_, several.summary_scale_
        mean, sigma = alone.predict(X, return_std=True)
        means.append(mean), sigmas.append(sigma)
    mean, sigma = several.predict(X, return_std=True)
    np.testing.assert_allclose(mean, np.mean(means, axis=0), rtol=1e-10)
    variance = np.mean(np.square(sigmas) + np.square(means - mean), axis=0)
    np.testing.assert_allclose(sigma, np.sqrt(variance), rtol=1e-8)


def test_without_validation_ridge_and_networks_count_the_same():
    X, y = smooth(60)
    head = quick(hidden_dims="auto", validation_fraction=0).fit(X, y)
    assert head.network_weight_ == 0.5
    constant = quick(hidden_dims="auto").fit(X, np.ones(60))
    np.testing.assert_array_equal(constant.predict(X), 1)


def test_an_extreme_light_cone_throws_nothing_far_off():
    X, y = smooth(100)
    head = quick(hidden_dims="auto").fit(X, y)
    far = X.copy()
    far[:, 0] *= 1e6
    assert (np.abs(head.predict(far) - y.mean(axis=0)) < 3 * np.ptp(y, axis=0)).all()


def test_the_default_takes_tokens():
    rng = np.random.default_rng(0)
    y = rng.normal(size=60)
    tokens = rng.normal(size=(60, 6, 5))
    tokens[..., 0] += y[:, None]
    for pooling in ("mean", "attention"):
        head = quick(hidden_dims="auto", pooling=pooling, n_members=2).fit(tokens, y)
        assert head.score(tokens, y) > 0.8
        assert head.predict(tokens).shape == (60,)


def test_a_search_compares_the_default_with_widths():
    X, y = smooth(60)
    grid = {"hidden_dims": ["auto", (8,)], "n_members": ["auto", 2]}
    search = GridSearchCV(quick(max_epochs=3), grid, cv=2).fit(X, y)
    assert search.best_params_["hidden_dims"] == "auto"  # three epochs leave it its ridge


def test_what_auto_stands_for():
    defaults = LightconeRegressor()._resolved(100)
    assert (defaults.hidden_dims, defaults.n_members) == ((128, 128), 5)
    given = LightconeRegressor(hidden_dims=(64,), learning_rate=1e-2)._resolved(100)
    assert (given.hidden_dims, given.n_members, given.learning_rate) == ((64,), 1, 1e-2)
    whole = LightconeRegressor(backbone="vit")._resolved(100)
    assert (whole.hidden_dims, whole.n_members, whole.learning_rate) == ((360, 360), 1, 5e-4)


# --- units and bounds ---------------------------------------------------------------------------


def test_bounds_hold_far_outside_the_training_range(rng):
    X, y = smooth()
    bounds = np.stack([y.min(axis=0), y.max(axis=0)], axis=1)
    # The width of this interval rounds up: low + (high - low) lies above high.
    low, high = -0.3, 0.1
    assert low + (high - low) > high
    y = np.column_stack([y, rng.uniform(low, high, size=len(y))])
    bounds = np.vstack([bounds, [low, high]])
    far = 1e6 * rng.normal(size=(500, 4))
    bounded = regressor(target_bounds=bounds).fit(X, y).predict(far)
    assert (bounded >= bounds[:, 0]).all()
    assert (bounded <= bounds[:, 1]).all()
    assert (np.ptp(bounded, axis=0) > 0.5 * np.ptp(bounds, axis=1)).all()  # not clamped to a point
    free = regressor().fit(X, y).predict(far)
    assert ((free < bounds[:, 0]) | (free > bounds[:, 1])).any(axis=0).all()


def test_bounds_may_be_wider_than_the_targets():
    X, y = smooth()
    bounds = np.stack([y.min(axis=0) - UNITS, y.max(axis=0) + UNITS], axis=1)
    head = regressor(target_bounds=bounds.tolist()).fit(X, y)
    assert head.score(X, y) > 0.9
    np.testing.assert_array_equal(head.scaling_.low, bounds[:, 0])


def test_powers_of_two_in_the_units_change_nothing():
    X, y = smooth()
    expected = quick().fit(X, y).predict(X)
    np.testing.assert_array_equal(quick().fit(X, 8 * y).predict(X), 8 * expected)


def test_units_of_targets_and_features_do_not_matter():
    X, y = smooth()
    # Whole rows of X decide the validation split, so that none is held out here.
    head = regressor(validation_fraction=0, max_epochs=20)
    expected = head.fit(X, y).predict(X)
    scale, shift = np.array([1e-4, 7.0, 300.0]), np.array([5.0, -1.0, 1e4])
    found = head.fit(X, y * scale + shift).predict(X)
    tolerance = 0.01 * np.ptp(y, axis=0)
    assert (np.abs((found - shift) / scale - expected) < tolerance).all()
    Z = X * [1e-5, 40.0, 1.0, 3e6] + [1.0, -200.0, 0.0, 1e7]
    assert (np.abs(head.fit(Z, y).predict(Z) - expected) < tolerance).all()


@pytest.mark.parametrize("constant", [0.0, 1e8])
def test_a_constant_feature_says_nothing(constant):
    X, y = smooth()
    wide = np.column_stack([X, np.full(len(X), constant)])
    head = regressor().fit(wide, y)
    assert head.score(wide, y) > 0.9
    assert np.isfinite(head.predict(wide)).all()


@pytest.mark.parametrize("loss", ["l1", "l2", "gaussian"])
def test_a_constant_target_is_predicted(loss):
    X, y = smooth()
    y = np.column_stack([y[:, 0], np.full(len(X), 3.0)])
    head = regressor(loss=loss).fit(X, y)
    np.testing.assert_allclose(head.predict(X)[:, 1], 3.0, atol=0.1)
    assert r2_score(y[:, 0], head.predict(X)[:, 0]) > 0.9


# --- shapes -------------------------------------------------------------------------------------


def test_targets_come_back_in_their_shape():
    X, y = smooth(60)
    for given in (y, y[:, :1], y[:, 0]):
        found = quick().fit(X, given).predict(X)
        assert found.shape == given.shape
        assert found.dtype == np.float64
    flat, column = quick().fit(X, y[:, 0]), quick().fit(X, y[:, :1])
    np.testing.assert_array_equal(flat.predict(X), column.predict(X)[:, 0])


def test_frames_and_lists():
    pandas = pytest.importorskip("pandas")
    X, y = smooth(60)
    expected = quick().fit(X, y).predict(X)
    frame = pandas.DataFrame(y, columns=["m_WDM", "Omega_m", "E_0"], index=np.arange(60)[::-1])
    np.testing.assert_array_equal(quick().fit(X, frame).predict(X), expected)
    np.testing.assert_array_equal(quick().fit(X.tolist(), y.tolist()).predict(X), expected)
    series = quick().fit(X, frame["E_0"])
    assert series.predict(X).shape == (60,)
    column = quick().fit(X, frame[["E_0"]])
    assert column.predict(X).shape == (60, 1)
    assert np.isfinite(series.score(X, frame["E_0"]))


def test_integer_targets():
    X, y = smooth(60)
    whole = np.round(10 * y[:, 0]).astype(int)
    expected = quick().fit(X, whole.astype(float)).predict(X)
    np.testing.assert_array_equal(quick().fit(X, whole).predict(X), expected)


def test_a_row_does_not_depend_on_its_batch(rng):
    X, y = smooth()
    head = regressor(max_epochs=5, loss="gaussian").fit(X, y)
    mean, std = head.predict(X, return_std=True)
    order = rng.permutation(len(X))
    np.testing.assert_allclose(head.predict(X[order]), mean[order], rtol=1e-12)
    for i in (0, 7, 399):
        alone = head.predict(X[i : i + 1], return_std=True)
        np.testing.assert_allclose(alone[0], mean[i : i + 1], rtol=1e-12)
        np.testing.assert_allclose(alone[1], std[i : i + 1], rtol=1e-12)


# --- training -----------------------------------------------------------------------------------


def test_history_and_callbacks():
    X, y = smooth(60)
    spy = Spy()
    head = quick(callbacks=[spy]).fit(X, y)
    assert spy.epochs == len(head.history_) == 5
    for epoch, row in enumerate(head.history_, start=1):
        assert list(row) == ["epoch", "train_loss", "valid_loss", "seconds", "kept"]
        assert row["epoch"] == epoch
        assert isinstance(row["train_loss"], float) and row["seconds"] > 0
    assert (len(spy.train), len(spy.valid)) == (51, 9)


def test_a_callback_may_stop_the_training():
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise KeyboardInterrupt  # as skorch's own early stopping does

    head = quick(callbacks=[Stop()]).fit(*smooth(60))
    assert len(head.history_) == 2


@pytest.mark.parametrize("fraction", [0, 0.15])
def test_a_fitted_head_drops_nothing(fraction):
    X, y = smooth(60)
    # Without a validation pass the last thing that the network saw was training.
    head = quick(dropout=0.5, validation_fraction=fraction).fit(X, y)
    assert not head.head_.training
    np.testing.assert_array_equal(head.predict(X), head.predict(X))


def test_dropout_acts_in_training_only():
    X, y = smooth()
    spy = Spy()
    head = regressor(dropout=0.5, max_epochs=10, callbacks=[spy]).fit(X, y)
    assert spy.modes == {(True, True), (False, False)}
    assert any(isinstance(layer, torch.nn.Dropout) for layer in head.head_.layers)
    # Half of the units missing costs the training loss, not the validation loss.
    assert head.history_[-1]["train_loss"] > 1.1 * head.history_[-1]["valid_loss"]
    plain = regressor(max_epochs=10).fit(X, y)
    assert plain.history_[-1]["train_loss"] < 1.1 * plain.history_[-1]["valid_loss"]


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_patience_stops_early_and_brings_back_the_best_epoch(loss, rng):
    X, y = rng.normal(size=(60, 6)), rng.normal(size=(60, 2))  # nothing but noise to overfit
    spy = Spy()
    parameters = dict(loss=loss, max_epochs=300, hidden_dims=(64,), batch_size=16)
    head = regressor(patience=6, callbacks=[spy], **parameters).fit(X, y)
    losses = [row["valid_loss"] for row in head.history_]
    best = int(np.argmin(losses))
    assert 0 < best < len(losses) - 1
    assert len(losses) == best + 1 + 6 < 300

    def validation_loss(model):
        rows = rows_of(spy.valid, head, X)
        error = (model.predict(X[rows]) - y[rows]) / np.ptp(y, axis=0)
        return np.mean(np.abs(error) if loss == "l1" else error**2)

    assert validation_loss(head) == pytest.approx(losses[best], rel=1e-4)
    last = regressor(patience=None, **parameters | dict(max_epochs=len(losses))).fit(X, y)
    assert validation_loss(last) == pytest.approx(losses[-1], rel=1e-4)


def test_without_validation_every_row_trains_to_the_end():
    X, y = smooth(60)
    spy = Spy()
    with pytest.warns(NoEffectWarning, match=r"validation_fraction=0 of patience; leave it out"):
        head = quick(validation_fraction=0, patience=1, callbacks=[spy]).fit(X, y)
    assert len(head.history_) == 5
    assert "valid_loss" not in head.history_[0]
    assert (len(spy.train), spy.valid) == (60, None)


def test_the_validation_rows_do_not_depend_on_the_order(rng):
    X, y = smooth(100)

    def split(rows, **parameters):
        spy = Spy()
        head = quick(max_epochs=1, callbacks=[spy], **parameters).fit(X[rows], y[rows])
        parts = (rows_of(part, head, X[rows]) for part in (spy.train, spy.valid))
        train, valid = (set(rows[part]) for part in parts)
        assert not train & valid
        assert train | valid == set(rows)
        return valid

    whole = np.arange(100)
    expected = split(whole)
    assert len(expected) == 15
    assert split(rng.permutation(100)) == expected
    # One row more or less moves at most one other across.
    assert len(split(whole[:-1]) ^ expected) <= 2
    assert split(whole, random_state=1) != expected


def test_pooling_has_no_effect_on_pooled_summaries():
    X, y = smooth(60)
    with pytest.warns(NoEffectWarning, match="summaries that are pooled already of pooling; leave"):
        attentive = quick(pooling="attention").fit(X, y)
    np.testing.assert_array_equal(attentive.predict(X), quick().fit(X, y).predict(X))


def test_defaults_are_never_warned_of():
    X, y = smooth(60)
    for fraction in (0, 0.15):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quick(validation_fraction=fraction).fit(X, y)


# --- with scikit-learn's own tools --------------------------------------------------------------


def test_behind_other_transformers():
    X, y = smooth()
    assert make_pipeline(StandardScaler(), regressor()).fit(X, y).score(X, y) > 0.9
    wide = np.column_stack([X, X @ np.ones((4, 3))])
    assert make_pipeline(PCA(4), regressor()).fit(wide, y).score(wide, y) > 0.9


def test_grid_search_over_its_parameters():
    X, y = smooth(150)
    grid = {"hidden_dims": [(16,), ()], "learning_rate": [2e-2, 1e-7]}
    search = GridSearchCV(regressor(max_epochs=12, batch_size=32), grid, cv=2).fit(X, y)
    assert search.best_params_["learning_rate"] == 2e-2
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(X, y) > 0.5


def test_a_linear_model_has_nothing_to_drop(rng):
    X = rng.normal(size=(30, 3))
    head = LightconeRegressor(hidden_dims=(), dropout=0.5, max_epochs=2, random_state=0)
    with pytest.warns(NoEffectWarning, match=r"no effect with hidden_dims=\(\) of dropout"):
        found = head.fit(X, X[:, :2]).predict(X)
    np.testing.assert_array_equal(found, head.set_params(dropout=0.0).fit(X, X[:, :2]).predict(X))
