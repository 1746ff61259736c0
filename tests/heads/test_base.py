"""What the heads share: members of an ensemble, and summaries that were never seen."""

import copy
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import (
    InvalidParameterError,
    LightconeRegressor,
    NeverSeenWarning,
    NoEffectWarning,
    PosteriorEstimator,
    SKATRTransformer,
    load_model,
    save_model,
)
from skatr_sk._checks import Problems
from skatr_sk.evaluation import RecoveryDisplay, posterior_draws
from skatr_sk.fields import as_fields
from skatr_sk.heads.end_to_end import encoder_of
from skatr_sk.heads.ridge import Ridge
from skatr_sk.summaries.novelty import SeenSummaries
from tests.training.runs import Act, signals, without_seconds

SMALL = dict(n_blocks=2, n_bins=5, hidden_dims=(8,), max_epochs=3, batch_size=32, n_members=1)
SMALL |= dict(learning_rate=1e-2, dropout=0.05, device="cpu", random_state=0)


def make(**parameters):
    return PosteriorEstimator(**SMALL | parameters)


def draw(n=100):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(n, 2))
    return y + 0.3 * rng.normal(size=y.shape), y


def test_each_member_validates_on_rows_of_its_own():
    X, _ = draw()
    runs = make(n_members=4, validation_fraction=0.2)._runs(as_fields(X))
    validated = [set(valid.tolist()) for (_, valid), _ in runs]
    assert {len(rows) for rows in validated} == {20}
    assert not set.intersection(*validated)  # no row is lost to all
    assert len({seed for _, seed in runs}) == 4
    alone = make(validation_fraction=0.2)._runs(as_fields(X))
    assert len(alone) == 1
    for first, only in zip(runs[0][0], alone[0][0], strict=True):
        np.testing.assert_array_equal(first, only)


def test_one_standardisation_of_all_rows_that_train_a_member():
    X, y = draw()
    ensemble = make(n_members=4).fit(X, y)
    np.testing.assert_allclose(ensemble.summary_mean_, X.mean(axis=0))
    np.testing.assert_allclose(ensemble.summary_scale_, X.std(axis=0))


def test_history_of_members():
    X, y = draw()
    several = make(n_members=3, patience=1).fit(X, y).history_
    whose = [row["member"] for row in several]
    assert whose == sorted(whose)
    assert set(whose) == {0, 1, 2}
    for member in range(3):
        rows = [row for row in several if row["member"] == member]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert sum(row["kept"] for row in rows) == 1
    assert len({row["train_loss"] for row in several}) == len(several)
    assert "member" not in make().fit(X, y).history_[0]


def test_a_generator_seeds_all_members():
    X, y = draw()
    given, fixed = (
        make(n_members=2, random_state=seed).fit(X, y) for seed in (np.random.RandomState(0), 0)
    )
    np.testing.assert_array_equal(given.predict(X[:10]), fixed.predict(X[:10]))


def test_no_member_is_refused():
    with pytest.raises(
        InvalidParameterError, match="n_members: expected .auto. or an integer >= 1, found 0"
    ):
        make(n_members=0).fit(*draw())


# Runs that are interrupted, and numbers that are not finite ---------------------------------------


def whole_and_resumed(make, X, y, folder, at):
    """Fit without a break; and with one in the batch `at` of all, then again."""
    batches, epochs = [], []

    def cut(net):
        batches.append(len(net.history))
        if len(batches) == at:
            raise ZeroDivisionError

    # Members that leave checkpoints are trained one after the other.
    whole = make(checkpoint_dir=folder / "whole").fit(X, y)
    kept = make(checkpoint_dir=folder, callbacks=[Act("batch", cut)])
    with pytest.raises(ZeroDivisionError):
        kept.fit(X, y)
    count = Act("epoch", lambda net: epochs.append(len(net.history)))
    return whole, clone(kept).set_params(callbacks=[count]).fit(X, y), epochs


TINY = dict(hidden_dims=(8,), max_epochs=4, batch_size=32, device="cpu", random_state=0)
VIT = SKATRTransformer(patch_size=2, embed_dim=8, depth=1, brightness_range=(-3, 3))
HEADS = {
    "ensemble": lambda **given: LightconeRegressor(n_members=3, **TINY, dropout=0.1, **given),
    "with ridge": lambda **given: LightconeRegressor(**TINY | {"hidden_dims": "auto"}, **given),
    "posterior": lambda **given: make(n_members=3, max_epochs=4, **given),
    "backbone": lambda **given: LightconeRegressor(backbone=VIT, **TINY, **given),
    "whole posterior": lambda **given: make(backbone=VIT, **TINY, **given),
    "fine-tuned": lambda **given: LightconeRegressor(
        backbone=clone(VIT).set_params(max_epochs=0, random_state=0).fit(signals()), **TINY, **given
    ),
}


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=pytest.mark.slow) if k in ("whole posterior", "fine-tuned") else k
        for k in HEADS
    ],
)
def test_a_head_goes_on_from_the_member_where_it_stopped(kind, tmp_path):
    X, y = draw()
    n_members = {"ensemble": 3, "with ridge": 5, "posterior": 3}.get(kind, 1)
    X = signals(100) if n_members == 1 else X
    # In the third epoch of the second member, or of the only one: 3 steps an epoch, 4 epochs.
    at = 11 if n_members == 1 else 12 + 11
    whole, resumed, epochs = whole_and_resumed(HEADS[kind], X, y, tmp_path, at)
    assert epochs == [4] + [1, 2, 3, 4] * (n_members - 2)
    np.testing.assert_array_equal(resumed.predict(X[:20]), whole.predict(X[:20]))
    assert without_seconds(resumed.history_) == without_seconds(whole.history_)
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == n_members
    # Other data, labels or parameters are another run.
    for other in ((X**3, y), (X, y**3)):
        clone(resumed).set_params(callbacks=None, max_epochs=1).fit(*other)
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 3 * n_members


def test_a_checkpoint_of_a_head_needs_a_seed(tmp_path):
    X, y = draw()
    for given in (None, np.random.RandomState(0)):
        with pytest.raises(InvalidParameterError, match="random_state: expected an int with check"):
            make(checkpoint_dir=tmp_path, random_state=given).fit(X, y)
    with pytest.warns(NoEffectWarning, match="checkpoint_every; leave it out"):
        make(checkpoint_every=3, max_epochs=1).fit(X, y)


def test_a_backbone_has_the_checkpoints_of_the_head(tmp_path):
    """Those of its own are of its pre-training, and it is said that they count for nothing."""
    backbone = clone(VIT).set_params(checkpoint_dir=tmp_path, random_state=0)
    regressor = LightconeRegressor(backbone=backbone, **TINY | {"max_epochs": 1})
    with pytest.warns(NoEffectWarning, match="no effect .*backbone=.* of .*checkpoint_dir"):
        regressor.fit(signals(), signals()[:, 0])
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize("n_members", [1, 2])
def test_rows_that_resemble_none_of_fit_have_no_density(n_members):
    """Not one of minus infinity, as beyond the box."""
    X, y = draw()
    far = np.where(np.arange(100)[:, None] % 50 == 7, 1e37 * X, X)
    flow = make(n_members=n_members, prior_bounds=[[-9, 9]] * 2).fit(X, y)
    said = (
        "X: expected rows like those of fit, found 2 without a finite .*, .* 7, 57, .* deviations"
    )
    for call in (flow.sample_log_prob, flow.sample):
        with pytest.raises(ValueError, match=said):
            call(far, 50, random_state=0)
    assert np.isneginf(flow.log_prob(X, y + 100)).all()
    with torch.no_grad():
        next(flow.net_.parameters()).fill_(torch.inf)
    for call in (flow.predict, flow.predict_quantiles, flow.sample, lambda X: flow.log_prob(X, y)):
        with pytest.raises(ValueError, match=r"found \d+ without a finite"):
            call(X)


def test_predictions_are_finite():
    X, y = draw()
    head = LightconeRegressor(**TINY).fit(X, y)
    with torch.no_grad():
        head.head_.layers[-1].weight.mul_(1e300)
    with pytest.raises(
        ValueError, match=r"without a finite prediction, .* deviations from the mean"
    ):
        head.predict(1e30 * X)
    whole = LightconeRegressor(backbone=VIT, **TINY).fit(signals(), signals()[:, 0])
    with pytest.raises(ValueError, match=r"found 24 without a finite prediction, .* mK from zero"):
        whole.predict(3e38 * np.sign(signals()))


def test_what_is_learned_is_finite(monkeypatch):
    """Also by the ridge regression, which no trainer watches."""
    X, y = draw()
    solve = Ridge.solve

    def spoilt(self, *data):
        found = solve(self, *data)
        self.linear.weight.fill_(torch.nan)
        return found

    monkeypatch.setattr(Ridge, "solve", spoilt)
    with pytest.raises(FloatingPointError, match="expected finite numbers .* ones in head_; check"):
        LightconeRegressor(**TINY | {"hidden_dims": "auto"}).fit(X, y)


# Parameters in other units ------------------------------------------------------------------------


def test_parameters_whose_logarithm_is_wanted():
    X, _ = draw(40)
    rng = np.random.default_rng(0)
    log_l_x, log_t_vir = rng.uniform(38, 42, 40), rng.uniform(4, 5.3, 40)
    names = ["log10_L_X", "log10 T_vir"]
    y = np.stack([log_l_x, log_t_vir], axis=1)
    linear = np.stack([log_l_x, 10**log_t_vir], axis=1)
    box = [[38, 42], [4, 5.3]]
    heads = make(max_epochs=1), LightconeRegressor(max_epochs=1, hidden_dims=(4,))
    for head in heads:
        with pytest.raises(ValueError, match=r"y: .* values too large for float32.*numpy.log10"):
            head.fit(X, 10**y)
        with pytest.raises(ValueError, match=r"in log10\(K\), found .*; give numpy.log10 of colum"):
            head.fit(X, pd.DataFrame(linear, columns=names))
        head.fit(X, pd.DataFrame(y, columns=names))
        name = "prior_bounds" if head is heads[0] else "target_bounds"
        with pytest.raises(ValueError, match=r"give log10 of parameter_1 \(columns \[1\]\), whose"):
            head.set_params(**{name: box}).fit(X, linear)
    with pytest.raises(ValueError, match="expected 'log10 T_vir' in log10"):
        make(parameter_names=names).fit(X, linear)


def test_columns_of_words_are_named():
    X, y = draw(40)
    table = pd.DataFrame(y, columns=["a", "b"]).assign(kind="x", code="1")
    for head in (make(max_epochs=1), LightconeRegressor(max_epochs=1, hidden_dims=(4,))):
        with pytest.raises(ValueError, match="y: expected columns of numbers, .* in kind "):
            head.fit(X, table)


def test_names_of_parameters_are_given_or_those_of_columns():
    X, y = draw(40)
    head = LightconeRegressor(max_epochs=1, hidden_dims=(4,), parameter_names=["a", "b"])
    assert head.fit(X, y).parameter_names_ == ["a", "b"]
    with pytest.raises(ValueError, match="y: expected the columns in the order"):
        head.fit(X, pd.DataFrame(y, columns=["b", "a"]))
    with pytest.raises(ValueError, match="parameter_names: expected 2 different strings"):
        head.set_params(parameter_names=["a"]).fit(X, y)


def test_columns_of_validation_rows_are_those_of_y():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 3)), pd.DataFrame(rng.normal(size=(30, 2)), columns=["a", "b"])
    head = LightconeRegressor(hidden_dims=(4,), max_epochs=1, device="cpu")
    with pytest.raises(ValueError, match="validation_data: expected the columns of y, a, b"):
        head.fit(X, y, validation_data=(X, y[["b", "a"]]))
    head.fit(X, y, validation_data=(X, y))


# Never seen ---------------------------------------------------------------------------------------

BOX = [[0.0, 1.0], [0.0, 1.0]]


def warned(call):
    """Messages of the NeverSeenWarnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if issubclass(w.category, NeverSeenWarning)]


def pairs(n=60, seed=0, dim=5):
    """Summaries of parameters in the unit square."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(size=(n, 2))
    mixed = np.random.default_rng(9).normal(size=(2, dim))
    return (y @ mixed + 0.1 * rng.normal(size=(n, dim))).astype(np.float32), y


def regressor(**parameters):
    return LightconeRegressor(**dict(hidden_dims=(8,), max_epochs=5, random_state=0) | parameters)


def posterior(**parameters):
    small = dict(prior_bounds=BOX, n_blocks=1, n_bins=4, hidden_dims=(8,), max_epochs=2)
    small |= dict(n_members=1)
    return PosteriorEstimator(**small | dict(random_state=0) | parameters)


@pytest.fixture(scope="module")
def heads():
    return [regressor().fit(*pairs()), posterior().fit(*pairs())]


def calls(head, X, y):
    """All that is asked of a head."""
    yield from (lambda: head.predict(X), lambda: head.score(X, y))
    if isinstance(head, PosteriorEstimator):
        yield lambda: head.predict(X, return_std=True, n_samples=8)
        yield lambda: head.sample(X, 8)
        yield lambda: head.sample_log_prob(X, 8)
        yield lambda: head.log_prob(X, y)
        yield lambda: head.predict_quantiles(X, n_samples=8)
        yield lambda: head.information(X, y)
        yield lambda: posterior_draws(head, X, y=y, n_samples=8, random_state=0)
    yield lambda: RecoveryDisplay.from_estimator(head, X, y)


def test_each_call_warns_once(heads):
    X, y = pairs(30, seed=1)
    far = X.copy()
    far[3] += 50 * X.std(axis=0)
    for head in heads:
        for call in calls(head, X, y):
            assert not warned(call)
        for call in calls(head, far, y):
            (message,) = warned(call)
            assert f"{type(head).__name__}: X: expected summaries like those of fit, found 1 of 30 "
            assert "worst rows 3, " in message


def test_neither_fit_nor_its_validation_rows_warn():
    X, y = pairs()
    far = X + 1000
    assert not warned(lambda: regressor().fit(X, y, validation_data=(far, y)))
    head = regressor().fit(X, y)
    assert not warned(lambda: head.fit(far, y))  # anew, on others
    assert not warned(lambda: head.predict(far)) and warned(lambda: head.predict(X))


def test_it_is_kept(heads, tmp_path):
    X, _ = pairs(seed=1)
    for head in heads:
        head.save(tmp_path / "head")
        save_model(make_pipeline(StandardScaler().fit(X), head), tmp_path / "pipe")
        loaded, piped = type(head).load(tmp_path / "head"), load_model(tmp_path / "pipe")
        assert warned(lambda loaded=loaded: loaded.predict(X + 100))
        assert warned(lambda head=head: head.predict(X + 100)) == warned(
            lambda loaded=loaded: loaded.predict(X + 100)
        )
        assert warned(lambda piped=piped: piped.predict(X + 100))
        assert not hasattr(clone(head), "seen_")


FIELDS = np.random.default_rng(0).normal(-20, 30, size=(120, 4, 4, 6)).astype(np.float32)
OWN = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 5))
BACKBONES = {
    "vit": SKATRTransformer(patch_size=2, embed_dim=8, depth=1, n_heads=2),
    "tokens": SKATRTransformer(patch_size=2, embed_dim=8, depth=1, n_heads=2, pooling="tokens"),
    "cnn": "cnn",
    "own": OWN,
}


@pytest.mark.parametrize(
    ("kind", "backbone"),
    [(regressor, each) for each in BACKBONES]
    + [pytest.param(posterior, k, marks=[pytest.mark.slow] * (k != "cnn")) for k in BACKBONES],
)
def test_a_backbone_compares_its_features(kind, backbone, tmp_path, monkeypatch):
    y = FIELDS.reshape(120, -1)[:, :2] / 1000 + 0.5
    attention = {"pooling": "attention"} if backbone == "vit" else {}
    small = dict(backbone=BACKBONES[backbone], max_epochs=1, validation_fraction=0.2)
    head = kind(**small, **attention).fit(FIELDS, y)
    far = FIELDS[:30] * 1000
    passed = []
    network = encoder_of(head.backbone_)
    hook = network.register_forward_hook(lambda *call: passed.append(len(call[2])))
    monkeypatch.setattr("skatr_sk.heads.posterior._ROWS", 7)
    for call in calls(head, FIELDS[:30], y[:30]):
        assert not warned(call)
    passed.clear()
    for call in calls(head, far, y[:30]):
        (message,) = warned(call)
        assert f"{type(head).__name__}: X: expected fields like those of fit, found" in message
    # As often as there are calls; posterior_draws, which is one of those of a posterior, has two.
    assert sum(passed) == 30 * (len(list(calls(head, far, y))) + (kind is posterior))
    hook.remove()
    said = warned(lambda: head.predict(far))
    joblib.dump(head, tmp_path / "joblib")
    kept = [joblib.load(tmp_path / "joblib"), copy.deepcopy(head)]
    if backbone != "own":
        head.save(tmp_path / "head")
        kept.append(type(head).load(tmp_path / "head"))
    for one in kept:
        assert warned(lambda one=one: one.predict(far)) == said
    assert not hasattr(clone(head), "seen_")


def test_a_backbone_compares_with_validation_rows_and_some_of_the_others(monkeypatch):
    y = FIELDS.reshape(120, -1)[:, :2]
    own = regressor(backbone=OWN, max_epochs=0)
    few = own.fit(FIELDS[:5], y[:5])
    assert few.seen_ is None and not warned(lambda: few.predict(FIELDS * 1000))
    whole = own.fit(FIELDS, y, validation_data=(FIELDS[:20], y[:20])).seen_
    monkeypatch.setattr("skatr_sk.summaries.novelty._MOST_ROWS", 12)
    some = own.fit(FIELDS, y, validation_data=(FIELDS[:20], y[:20])).seen_
    assert len(whole.axes) == 5 and len(some.axes) == 12 // 4  # directions for rows
    monkeypatch.setattr("skatr_sk.summaries.novelty._FEWEST_HELD_OUT", 10)
    distances = own.fit(FIELDS, y, validation_data=(100 * FIELDS[:20], y[:20])).seen_.distances
    assert distances.min() > some.distances.max()


def test_models_of_before(heads):
    X, _ = pairs()
    for head in heads:
        state = head.__getstate__()
        del state["seen_"]
        old = clone(head)
        old.__setstate__(state)
        assert not warned(lambda old=old: old.predict(X + 100))


def test_tokens_and_few_rows():
    X, y = pairs(40)
    tokens = np.stack([X, X[:, ::-1]], axis=1)
    head = regressor().fit(tokens, y)
    assert not warned(lambda: head.predict(tokens)) and warned(lambda: head.predict(tokens + 100))
    apart = tokens + 100 * np.array([1, -1])[:, np.newaxis]  # of the same mean
    assert warned(lambda: head.predict(apart))
    head.seen_ = SeenSummaries.learn(tokens.mean(axis=1))  # in models of before
    head._check_stored(Problems("head"))
    assert not warned(lambda: head.predict(apart)) and warned(lambda: head.predict(tokens + 100))
    few = regressor(validation_fraction=0.3).fit(X[:5], y[:5])
    assert few.seen_ is None and not warned(lambda: few.predict(X + 100))
    eight = regressor().fit(X[:8], y[:8])
    assert not warned(lambda: eight.predict(X[:8])) and warned(lambda: eight.predict(X + 100))


def test_missing_values_of_pandas_are_named():
    X, y = draw()
    table = pd.DataFrame(y, columns=["a", "b"]).convert_dtypes()
    table.iloc[7, 1] = pd.NA
    for head in (LightconeRegressor(**TINY), make()):
        with pytest.raises(ValueError, match="y: .*NaN.*7"):
            head.fit(X, table)
        with pytest.raises(TypeError, match="y: expected an array of numbers, found a generator"):
            head.fit(X, (row for row in y))


def test_columns_have_different_names_and_their_order():
    X, y = pairs()
    table = pd.DataFrame(y, columns=["a", "b"])
    for make_head in (regressor, posterior):
        with pytest.raises(ValueError, match="y: expected columns of different names, found a "):
            make_head().fit(X, table.rename(columns={"b": "a"}))
        head = make_head().fit(X, table)
        assert head.score(X, table) == head.score(X, y)
        with pytest.raises(ValueError, match="y: expected the columns in the order"):
            head.score(X, table[["b", "a"]])
