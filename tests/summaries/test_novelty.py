"""Was it ever seen: distances to the summaries of a training, how rare they are, and warnings."""

import copy
import dataclasses
import warnings

import joblib
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from skatr_sk import (
    NeverSeenWarning,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    load_model,
    save_model,
)
from skatr_sk.parameters import PARAMETER_NAMES, PRIOR_BOUNDS
from skatr_sk.summaries import cache_info, clear_cache
from skatr_sk.summaries.labels import labels_if_any
from skatr_sk.summaries.novelty import Novelty, SeenSummaries, seen_of, warn_never_seen
from skatr_sk.summaries.pooling import POOLINGS
from skatr_sk.summaries.weights import BUNDLED

pytestmark = pytest.mark.filterwarnings("ignore::skatr_sk.UnitsWarning")
SMALL = dict(patch_size=2, embed_dim=8, depth=1, max_epochs=1, device="cpu", random_state=0)
SMALL |= dict(objective="lejepa")  # the one that trains the soonest


def draw(rng, n, dim=30, *, heavy=False):
    """Summaries with a few strong directions and many weak ones, Gaussian or heavy-tailed."""
    mixed = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    scale = 3.0 * 0.8 ** np.arange(dim)
    rows = rng.standard_t(4, size=(n, dim)) if heavy else rng.normal(size=(n, dim))
    return 5.0 + rows * scale @ mixed


def far(seen, rows):
    return warned(lambda: warn_never_seen("X", "others", seen.novelty(rows), "mend"))


def warned(call):
    """Messages of the NeverSeenWarnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if issubclass(w.category, NeverSeenWarning)]


@pytest.mark.parametrize(
    ("n", "n_held_out", "heavy"),
    [
        (300, 0, False),
        (40, 0, True),
        (300, 200, True),
        (600, 0, True),
        pytest.param(40, 0, False, marks=pytest.mark.slow),
        pytest.param(300, 0, True, marks=pytest.mark.slow),
        pytest.param(300, 200, False, marks=pytest.mark.slow),
        pytest.param(600, 0, False, marks=pytest.mark.slow),
    ],
)
def test_tail_probabilities_are_calibrated(rng, n, n_held_out, heavy):
    shares = []
    for _ in range(20):
        held_out = draw(rng, n_held_out, heavy=heavy)
        seen = SeenSummaries.learn(draw(rng, n, heavy=heavy), held_out)
        p = seen.novelty(draw(rng, 500, heavy=heavy)).tail_probability
        shares.append([(p <= level).mean() for level in (0.5, 0.05, 0.001)])
    half, twentieth, thousandth = np.mean(shares, axis=0)
    assert (0.4 if n > 100 else 0.25) < half < 0.6  # few rows are said to know less
    assert (0.025 if n > 100 else 0.005) < twentieth < 0.08
    assert thousandth < 0.004


def test_few_rows_that_were_held_out_count(rng):
    """An encoder knows the rows of its training too well, and unseen ones lie farther."""

    def shares(n_held_out, known=0.8):
        found = []
        for _ in range(6):
            rows, held_out = known * (draw(rng, 200) - 5), draw(rng, n_held_out) - 5
            p = SeenSummaries.learn(rows, held_out).novelty(draw(rng, 500) - 5).tail_probability
            found.append([(p <= level).mean() for level in (0.05, 0.01)])
        return np.mean(found, axis=0)

    assert (shares(0) > (0.15, 0.05)).all()
    for n_held_out in (20, 40):
        twentieth, hundredth = shares(n_held_out)
        assert 0.03 < twentieth < 0.09 and hundredth < 0.025
    assert shares(20, known=1.1)[0] < 0.03  # they never make what is as near seem rarer


def test_calls_on_the_training_kind_rarely_warn(rng):
    n_warned = 0
    for heavy in (False, True):
        for n in (20, 200):
            seen = SeenSummaries.learn(draw(rng, n, heavy=heavy))
            n_warned += sum(bool(far(seen, draw(rng, m, heavy=heavy))) for m in 25 * [1, 2, 200])
    assert n_warned <= 3  # of 300


@pytest.mark.parametrize("n", [8, 20, 200, 600])
def test_fifty_deviations_are_far_in_every_direction(rng, n):
    rows = draw(rng, n)
    seen = SeenSummaries.learn(rows)
    for direction in np.linalg.qr(rng.normal(size=(30, 30)))[0][:5]:
        there = rows.mean(axis=0) + 50 * rows.std(axis=0).max() * direction
        (message,) = far(seen, there[np.newaxis])
        assert "found 1 of 1 rows" in message
        everywhere = np.concatenate([rows, np.tile(there, (n, 1))])  # not hidden by many others
        assert len(far(seen, everywhere)) == 1


def test_the_message_counts_and_names_rows(rng):
    seen = SeenSummaries.learn(draw(rng, 300))
    rows = draw(rng, 50)
    rows[[7, 31]] += [[100.0], [300.0]]
    (message,) = far(seen, rows)
    assert message.startswith("X: expected others, found 2 of 50 rows far from all of them")
    assert "worst rows 31, 7, " in message and message.endswith("; mend.")


def test_many_rows_that_are_a_little_far(rng):
    """None by itself would be told from the training; all of them are no chance."""
    seen = SeenSummaries.learn(draw(rng, 300))
    rows = draw(rng, 4000)
    p = seen.novelty(rows).tail_probability
    rare = rows[(p < 0.01) & (p > 0.002)][:6]
    assert len(rare) == 6
    assert not far(seen, rare[:1]) and far(seen, rare)
    assert not far(seen, np.concatenate([rare, draw(rng, 100)]))


def test_units_and_constants_do_not_matter(rng):
    rows, new = draw(rng, 100), draw(rng, 20)
    unit = np.logspace(-6, 6, 30)
    expected = SeenSummaries.learn(rows).novelty(new)
    found = SeenSummaries.learn(rows * unit).novelty(new * unit)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-2)
    padded, other = (np.pad(each, ((0, 0), (0, 2)), constant_values=3.0) for each in (rows, new))
    other[:, -1] += 1e-6  # rounding
    found = SeenSummaries.learn(padded).novelty(other)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-5)


@pytest.mark.parametrize("constant", [0.1, 1e-6, 123.456])
def test_constants_do_not_bend_a_surface(rng, constant):
    """The rounding of their mean, in float32 in a file, is no deviation."""
    rows, new = draw(rng, 600), draw(rng, 100)
    padded = [np.pad(each, ((0, 0), (0, 4)), constant_values=constant) for each in (rows, new)]
    seen = SeenSummaries.learn(padded[0])
    assert len(seen.bend)
    expected = SeenSummaries.learn(rows).novelty(new)
    np.testing.assert_allclose(seen.novelty(padded[1]).distance, expected.distance, rtol=1e-2)


def test_what_never_varied_and_does_so_now_was_not_seen(rng):
    rows = np.pad(rng.normal(size=(400, 3)), ((0, 0), (0, 1)), constant_values=3.0)
    seen = SeenSummaries.learn(rows)
    as_ever, other = rows[:1].copy(), rows[:1].copy()
    other[0, 3] = 4.0  # by one standard deviation of the others
    assert seen.novelty(as_ever).tail_probability[0] > 0.01
    assert seen.novelty(other).tail_probability[0] < 1e-3


def test_an_offset_of_the_labels_does_not_matter(rng):
    X = rng.normal(size=(400, 5))
    labels = X[:, :2] + 0.1 * rng.normal(size=(400, 2))
    new = 3 * rng.normal(size=(50, 5))
    plain, shifted = (SeenSummaries.learn(X, None, each) for each in (labels, labels + 1e7))
    np.testing.assert_allclose(
        plain.novelty(new).tail_probability, shifted.novelty(new).tail_probability, rtol=1e-3
    )


def test_too_little_to_learn_from(rng):
    assert SeenSummaries.learn(draw(rng, 5)) is None
    assert SeenSummaries.learn(np.ones((50, 3))) is None
    for rows in (draw(rng, 6), np.repeat(draw(rng, 3), 4, axis=0), draw(rng, 50, dim=1)):
        found = SeenSummaries.learn(rows).novelty(rows)
        assert np.isfinite(found.distance).all()
        assert ((found.tail_probability >= 0) & (found.tail_probability <= 1)).all()
    assert SeenSummaries.learn(rows).novelty(rows[:0]).distance.shape == (0,)


@pytest.mark.parametrize("n_held_out", [0, 100])
def test_parameters_just_beyond_their_box(rng, n_held_out):
    """Which are not far from those that are inside it."""
    mixed = rng.normal(size=(6, 30))

    def pairs(n, low=0.0, high=1.0):
        y = rng.uniform(size=(n, 6))
        y[:, 2] = rng.uniform(low, high, size=n)
        return y @ mixed + 0.05 * rng.normal(size=(n, 30)), y

    X, y = pairs(600)
    y[::50, 1] = np.nan  # unknown
    held_out = pairs(n_held_out)[0]
    blind, seen = SeenSummaries.learn(X, held_out), SeenSummaries.learn(X, held_out, y)
    usual, beyond = pairs(2000)[0], pairs(500, 1.15, 1.3)[0]
    for level in (0.2, 0.05, 0.01):
        share = (seen.novelty(usual).tail_probability < level).mean()
        assert 0.2 * level < share < 3 * level
    found = [each.novelty(beyond).tail_probability < 0.01 for each in (blind, seen)]
    assert found[0].mean() < 0.2 and found[1].mean() > 0.9
    constant = SeenSummaries.learn(X, held_out, np.ones((600, 1)))
    assert constant.ends.shape == (4, 0) and np.array_equal(constant.mean, seen.mean)
    assert seen_of(dict(vars(seen)), 30) is not None


@pytest.mark.parametrize("n_held_out", [0, 60])
def test_ends_of_few_rows_raise_no_false_alarms(rng, n_held_out):
    """Which lie nowhere beyond ends that they have set themselves."""
    mixed = rng.normal(size=(6, 30))
    shares = []
    for _ in range(4):
        y = rng.uniform(size=(110 + n_held_out + 500, 6))
        rows = y @ mixed + 0.5 * rng.normal(size=(len(y), 30))
        seen = SeenSummaries.learn(rows[:110], rows[110:-500], y[:110])
        p = seen.novelty(rows[-500:]).tail_probability
        shares.append([(p <= level).mean() for level in (0.05, 0.01, 0.001)])
    assert (np.mean(shares, axis=0) < (0.09, 0.035, 0.012)).all()


def curved(rng, n):
    """Summaries of five parameters, on a surface that is thick where the first is large."""
    mixed = np.random.default_rng(2).normal(size=(20, 60))
    z = rng.normal(size=(n, 5))
    one, other = np.triu_indices(5)
    thick = 0.03 * np.exp(0.7 * z[:, :1]) * rng.normal(size=(n, 60))
    return np.concatenate([z, 0.3 * z[:, one] * z[:, other]], axis=1) @ mixed + thick


def test_what_is_off_the_surface_and_inside_the_ellipsoid(rng, monkeypatch):
    rows, usual = curved(rng, 800), curved(rng, 2000)
    off = curved(rng, 100) + curved(rng, 100) - rows.mean(axis=0)
    off = rows.mean(axis=0) + (off - rows.mean(axis=0)) / 2**0.5  # of the same covariance
    surface = SeenSummaries.learn(rows)
    monkeypatch.setattr("skatr_sk.summaries.novelty._FEWEST_CURVED", 10**9)
    ellipsoid = SeenSummaries.learn(rows)
    assert len(surface.bend) and not len(ellipsoid.bend)
    found = [(each.novelty(off).tail_probability < 1e-3).mean() for each in (ellipsoid, surface)]
    assert found[0] < 0.1 and found[1] > 0.6
    for level in (0.1, 0.01):
        share = (surface.novelty(usual).tail_probability < level).mean()
        assert 0.3 * level < share < 2 * level
    distance = surface.novelty(usual).distance
    assert 0.8 < np.median(distance) < 1.2
    assert seen_of(dict(vars(surface)), 60) is not None


def test_statistics_of_before_there_was_a_surface(rng):
    rows, new = curved(rng, 300), curved(rng, 20)
    parts = vars(SeenSummaries.learn(rows))
    old = {k: v for k, v in parts.items() if k != "bend" and not k.startswith("off_")}
    for known in (old, dict(parts)):
        found = seen_of(known, 60).novelty(new)
        np.testing.assert_array_equal(found, SeenSummaries(**parts).novelty(new))


def test_farther_is_rarer(rng):
    seen = SeenSummaries.learn(draw(rng, 300))
    away = draw(rng, 1)[0] + np.linspace(0, 100, 200)[:, np.newaxis] * np.ones(30)
    distance, p = seen.novelty(away)
    assert (np.diff(p[np.argsort(distance)]) <= 1e-6).all() and p.min() < 1e-9


def test_damaged_statistics_are_refused(rng):
    parts = vars(SeenSummaries.learn(draw(rng, 500)))
    assert seen_of(dict(parts), 30) is not None and seen_of(None, 30) is None
    damages = {
        "bend": lambda a: a[1:],
        "off_axes": lambda a: a[:, 1:],
        "off_mean": lambda a: a[:0],
        "off_variances": lambda a: -a,
        "mean": lambda a: a[:-1],
        "axes": lambda a: a.astype(np.float64),
        "variances": lambda a: -a,
        "distances": lambda a: a[::-1],
        "readout": lambda a: a[1:],
        "ends": lambda a: a[1:],
        "inverse_scale": lambda a: a * np.nan,
        "tail": lambda a: a * 0,
    }
    for name, damage in damages.items():
        with pytest.raises(ValueError, match="seen"):
            seen_of(parts | {name: damage(parts[name])}, 30)
    with pytest.raises(ValueError, match="seen: expected arrays mean"):
        seen_of({"mean": parts["mean"]}, 30)


# The transformer ----------------------------------------------------------------------------------


def fields(n=40, shape=(6, 6, 8), seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.linspace(-40, 10, shape[-1]) * rng.uniform(0.7, 1.3, size=(n, *[1] * len(shape)))
    return (smooth + rng.normal(0, 3, size=(n, *shape))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return SKATRTransformer(**SMALL).fit(fields())


@pytest.mark.parametrize(
    ("objective", "shape"),
    [
        ("jepa", (24,)),
        pytest.param("jepa", (8, 6), marks=pytest.mark.slow),
        ("jepa", (6, 6, 8)),
        pytest.param("vicreg", (24,), marks=pytest.mark.slow),
        ("vicreg", (8, 6)),
        pytest.param("vicreg", (6, 6, 8), marks=pytest.mark.slow),
    ],
)
def test_what_was_never_seen(objective, shape):
    skatr = SKATRTransformer(**SMALL | dict(objective=objective)).fit(fields(shape=shape))
    new = fields(shape=shape, seed=1)
    assert not warned(lambda: skatr.transform(new))
    assert np.median(skatr.novelty(new).tail_probability) > 0.1
    loud = np.random.default_rng(0).normal(0, 1000, size=new.shape).astype(np.float32)
    assert (skatr.novelty(loud).tail_probability < 0.01).all()
    (message,) = warned(lambda: skatr.transform(loud))
    assert message.startswith("SKATRTransformer: X: expected fields like those that the encoder")


def test_a_wrong_unit_and_a_reversed_line_of_sight(fitted):
    new = fields(seed=1)
    for wrong in (new / 1000, new[..., ::-1].copy()):
        found = fitted.novelty(wrong)
        assert isinstance(found, Novelty) and found.distance.shape == (len(new),)
        assert len(warned(lambda wrong=wrong: fitted.transform(wrong))) == 1


def test_whatever_transform_gives_it_is_the_same(fitted):
    """Also from the cache, where nothing is computed."""
    new = fields(seed=1)
    expected = fitted.novelty(new)
    for changed in (dict(whiten=False), *(dict(pooling=each) for each in POOLINGS)):
        skatr = copy.deepcopy(fitted).set_params(**changed)
        np.testing.assert_allclose(skatr.novelty(new).distance, expected.distance, rtol=1e-4)
        assert not warned(lambda skatr=skatr: skatr.transform(new))
        assert len(warned(lambda skatr=skatr: skatr.transform(new / 1000))) == 1
        if changed.get("pooling") != "tokens":
            clear_cache()
            alone = skatr.transform(new)
            skatr.novelty(new)  # of the same tokens
            assert cache_info().hits == cache_info().misses == len(new)
            skatr.seen_ = None
            np.testing.assert_array_equal(skatr.transform(new), alone)
            assert alone.flags.c_contiguous
    tokens = SKATRTransformer(**SMALL, pooling="tokens").fit(fields())
    assert len(warned(lambda: tokens.transform(new / 1000))) == 1
    assert (tokens.novelty(new / 1000).tail_probability < 0.01).all()
    assert len(tokens.seen_.mean) == 24  # slices


def test_weights_that_have_seen_means_of_tokens(tmp_path):
    tokens = SKATRTransformer(**SMALL, pooling="tokens").fit(fields())
    of_means = tokens.transform(fields()).mean(axis=1)
    tokens.seen_ = SeenSummaries.learn(of_means)
    tokens.save(tmp_path / "skatr.safetensors")
    save_model(tokens, tmp_path / "model")
    loaded = [SKATRTransformer.load(tmp_path / "skatr.safetensors"), load_model(tmp_path / "model")]
    expected = SeenSummaries.learn(of_means).novelty(of_means).distance
    for skatr in loaded:
        np.testing.assert_allclose(skatr.novelty(fields()).distance, expected, rtol=1e-3)
        assert len(warned(lambda skatr=skatr: skatr.transform(fields() / 1000))) == 1
    tokens.learn_novelty(fields())
    assert len(tokens.seen_.mean) == 24  # of slices, as a new one


@pytest.mark.parametrize(("found", "asked"), [("tokens", "slices"), ("slices", "tokens")])
def test_weights_keep_it_with_the_pooling_that_it_is_of(tmp_path, found, asked):
    skatr = SKATRTransformer(**SMALL, pooling=found, whiten=False).fit(fields())
    expected = skatr.novelty(fields()).distance
    skatr.set_params(pooling=asked).save(tmp_path / "skatr.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "skatr.safetensors")
    assert loaded.pooling_ == asked
    np.testing.assert_allclose(loaded.novelty(fields()).distance, expected, rtol=1e-4)


def test_bundled_weights_with_another_pooling():
    cones = load_lightcones().data[:4].astype(np.float32)
    skatr = SKATRTransformer(weights="mini-lr", pooling="mean", cache=None).fit(cones)
    assert not warned(lambda: skatr.transform(cones))
    assert len(warned(lambda: skatr.transform(cones / 1000))) == 1


def test_adapted_with_another_pooling(fitted):
    skatr = copy.deepcopy(fitted).set_params(pooling="mean")
    finer = skatr.adapted_to((12, 12, 16), cell_size=0.5)
    new = fields(seed=1).repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    assert finer.transform(new).shape == (40, 8) and not warned(lambda: finer.transform(new))
    assert len(warned(lambda: finer.transform(new / 1000))) == 1


@pytest.mark.parametrize("weights", BUNDLED)
def test_a_single_reversed_light_cone(weights):
    turned = load_lightcones().data[:30, ..., ::-1].astype(np.float32)
    skatr = SKATRTransformer(weights=weights).fit(turned)
    assert (skatr.novelty(turned).tail_probability < 1e-3).mean() > 0.6  # of each by itself


def test_it_travels_with_the_weights(fitted, tmp_path):
    new, path = fields(seed=1), tmp_path / "skatr.safetensors"
    expected = fitted.novelty(new)
    fitted.save(path)
    save_model(fitted, tmp_path / "model")
    joblib.dump(fitted, tmp_path / "joblib")
    loaded = [SKATRTransformer.load(path), SKATRTransformer(weights=path).fit(new)]
    loaded += [load_model(tmp_path / "model"), joblib.load(tmp_path / "joblib")]
    for skatr in loaded:
        np.testing.assert_array_equal(skatr.novelty(new), expected)
        assert len(warned(lambda skatr=skatr: skatr.transform(new / 1000))) == 1
    for changed in (dict(whiten=False), dict(pooling="mean")):  # it is of other summaries then
        with pytest.warns(
            UserWarning, match=r"what novelty compares with .* is left out of '.*skatr"
        ):
            fitted.set_params(**changed).save(path)
        fitted.set_params(whiten="auto", pooling="auto")
        assert SKATRTransformer.load(path).seen_ is None


def test_weights_that_do_not_say_it(fitted, tmp_path):
    path, new = tmp_path / "old.safetensors", fields(seed=1)
    fitted.save(path)
    with safe_open(path, framework="np") as stream:
        metadata = stream.metadata()
        tensors = {n: stream.get_tensor(n) for n in stream.keys() if not n.startswith("seen.")}
    metadata["skatr_sk"] = metadata["skatr_sk"].replace('"format": 2', '"format": 1')
    del metadata["skatr_sk_digest"]
    save_file(tensors, path, metadata=metadata)
    old = SKATRTransformer.load(path)
    np.testing.assert_array_equal(old.transform(new), fitted.transform(new))
    assert not warned(lambda: old.transform(new / 1000))
    with pytest.raises(ValueError, match=r"novelty: expected weights that say .* learn_novelty"):
        old.novelty(new)
    old.learn_novelty(fields()).save(path)
    again = SKATRTransformer.load(path)
    assert (again.novelty(new / 1000).tail_probability < 0.01).all()
    with pytest.raises(ValueError, match="X: expected at least six fields that differ, found 3"):
        old.learn_novelty(new[:3])


def test_labels_and_too_few_fields():
    labelled = SKATRTransformer(**SMALL | dict(objective="supervised")).fit(
        X := fields(120), X[:, 0, 0]
    )
    assert labelled.seen_.ends.shape == (4, X.shape[-1])  # labels of the training count
    few = SKATRTransformer(**SMALL).fit(fields(4))
    assert few.seen_ is None and not warned(lambda: few.transform(fields(4) / 1000))


def test_labels_of_which_the_objective_learns_nothing():
    y = (X := fields(120, (4, 4, 8)))[:, 0, 0, :2]
    own = SKATRTransformer(**SMALL, validation_fraction=0).fit(X, y)
    validated = SKATRTransformer(**SMALL).fit(X, y, validation_data=(X[:20] + 1, None))
    for skatr in (own, validated):
        assert skatr.seen_.ends.shape == (4, 2)
    np.testing.assert_array_equal(own.seen_.readout, validated.seen_.readout)
    blind = SKATRTransformer(**SMALL, validation_fraction=0).fit(X)
    assert blind.seen_.ends.shape == (4, 0)
    np.testing.assert_array_equal(own.transform(X), blind.transform(X))
    names, infinite = np.full(120, "warm", dtype=object), np.full(120, np.inf)
    for nothing in (None, y.astype(str), names, infinite, "abc", {}):
        assert labels_if_any(nothing, 120) is None
    for too_few in (y[:50], y[:50].tolist()):
        with pytest.raises(ValueError, match="y: expected 120 rows, .* found 50; leave y out"):
            SKATRTransformer(**SMALL).fit(X, too_few)


def test_a_damaged_file(fitted, tmp_path):
    wrong = copy.deepcopy(fitted)
    wrong.seen_ = dataclasses.replace(fitted.seen_, variances=-fitted.seen_.variances)
    wrong.save(tmp_path / "skatr.safetensors")
    with pytest.raises(ValueError, match="seen: expected variances > 0"):
        SKATRTransformer.load(tmp_path / "skatr.safetensors")
    wrong.seen_ = dataclasses.replace(fitted.seen_, mean=fitted.seen_.mean[:-1])
    wrong.save(tmp_path / "skatr.safetensors")
    with pytest.raises(ValueError, match="seen.mean has shape"):
        SKATRTransformer.load(tmp_path / "skatr.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("weights", BUNDLED)
def test_what_bundled_weights_call_new(weights):
    """Of what neither they nor their statistics were learned from; examples/run_novelty.py."""
    grid = dict(field_shape=(14, 14, 90), block=(2, 2, 5))
    usual = SimulatedLightcones(5080, random_state=1234, **grid)[5000:].read()
    y = np.random.default_rng(0).uniform(*PRIOR_BOUNDS.T, size=(40, 6))
    y[:, PARAMETER_NAMES.index("log10_L_X")] = 43
    noise = np.random.default_rng(0).normal(0, 1000, usual.shape)
    other = {"kelvin": usual / 1000, "reversed": usual[..., ::-1], "noise": noise}
    other["x-rays"] = SimulatedLightcones(40, parameters=y, random_state=1, **grid).read()
    skatr = SKATRTransformer(weights=weights).fit(usual)
    assert not warned(lambda: skatr.transform(usual))
    expected = skatr.novelty(usual)
    assert (expected.tail_probability < 0.01).mean() <= 0.05  # false alarms
    for name, X in other.items():
        rare = [-each.tail_probability for each in (expected, skatr.novelty(X))]
        area = roc_auc_score(np.repeat([0, 1], [len(usual), len(X)]), np.concatenate(rare))
        assert area > 0.95, f"{name}: {area}"
        if name == "reversed":
            assert (skatr.novelty(X).tail_probability < 1e-3).mean() > 0.7
        if name != "x-rays":  # just beyond the prior: most calls warn, not all
            assert len(warned(lambda X=X: skatr.transform(X))) == 1, name
    real = load_lightcones().data
    assert (skatr.novelty(real).tail_probability < 0.01).mean() <= 0.1


def test_silence_by_the_class(fitted):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", NeverSeenWarning)
        fitted.transform(fields(seed=1) * 100)
    assert not [w for w in caught if w.category is NeverSeenWarning]


def test_wide_noise_is_calibrated_without_unseen_rows():
    """More features than rows say nothing of a surface."""
    generator = np.random.default_rng(0)
    rows, others = generator.normal(size=(450, 2000)), generator.normal(size=(300, 2000))
    assert (SeenSummaries.learn(rows).novelty(others).tail_probability < 0.1).mean() < 0.2
