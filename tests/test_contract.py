"""What scikit-learn's estimator checks cannot see: the contract of n-D input, files and devices."""

import contextlib
import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags

from skatr_sk import (
    LightconeRegressor,
    LightconeResampler,
    NeverSeenWarning,
    NoiseTransformer,
    PosteriorEstimator,
    PowerSpectrumTransformer,
    SimulatedLightcones,
    SKATRTransformer,
)
from skatr_sk.fields import as_fields
from skatr_sk.summaries import JEPA, BlockMask, LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.summaries.encoding import encode
from skatr_sk.training.device import autocast

# Sides differ, so that no two axes can be mistaken for each other.
SHAPES = {"signal": (24,), "map": (8, 6), "cone": (6, 4, 8)}
OTHER_SHAPES = {"signal": (6, 4, 8), "map": (10, 4), "cone": (24,)}
FIELDS = list(SHAPES)
N_SUMMARY = {"signal": 24, "map": 24, "cone": 36}  # of tokens of 12: moments, of cones by slices
HEADS = ["head", "joint", "posterior", "joint posterior"]
ALL = [*FIELDS, *HEADS]
# Transformers that train no network.
UNTRAINED = [f"{kind} of a {case}" for kind in ("noise", "spectra") for case in FIELDS]
# Of the heads that train an encoder one is enough by default,
USUAL = [pytest.param(k, marks=pytest.mark.slow) if k == "joint posterior" else k for k in ALL]
# and of the ranks of a field, where a test trains.
USUAL_FITS = [
    pytest.param(k, marks=pytest.mark.slow) if k in ("signal", "map", "joint posterior") else k
    for k in ALL
]


def make(case, **parameters):
    if case.startswith("noise"):
        return NoiseTransformer(**dict(noise=5.0, random_state=0) | parameters)
    if case.startswith("spectra"):
        return PowerSpectrumTransformer(**dict(n_bins=3) | parameters)
    if case in HEADS:
        small = dict(hidden_dims=(16,), max_epochs=4, learning_rate=1e-2)
        small |= dict(device="cpu", random_state=0)
        if "joint" in case:
            backbone = SKATRTransformer(patch_size=2, embed_dim=12, depth=1, n_heads=2)
            small |= dict(backbone=backbone, learning_rate=3e-3, max_epochs=2)
        if case == "joint posterior":
            small |= dict(learning_rate=1e-2, max_epochs=2, batch_size=8)
        if "posterior" in case:
            blocks = 1 if "joint" in case else 2
            small |= dict(n_blocks=blocks, n_bins=4, n_members=1)
            return PosteriorEstimator(**small | parameters)
        return LightconeRegressor(**small | parameters)
    small = dict(patch_size=2, embed_dim=12, depth=1, n_heads=2)
    small |= dict(max_epochs=2, batch_size=16, device="cpu", random_state=0)
    small |= dict(objective=JEPA(predictor_dim=12, predictor_depth=1))
    return SKATRTransformer(**small | parameters)


def draw(case, n=20, other=False):
    """Fields in mK, or summaries, whose values float16 holds exactly; and targets."""
    case = "cone" if "joint" in case else case.rpartition(" ")[2]
    shape = (OTHER_SHAPES if other else SHAPES).get(case, (3,) if other else (5,))
    X = np.random.default_rng(1).normal(-20, 30, size=(n, *shape)).round().astype(np.float32)
    return X, X.reshape(n, -1)[:, :2].astype(np.float64)


def output(estimator, X):
    return estimator.transform(X) if hasattr(estimator, "transform") else estimator.predict(X)


def fitted(case, n=20, **parameters):
    return make(case, **parameters).fit(*draw(case, n))


@pytest.fixture(scope="module")
def models():
    """One fitted estimator a case, for tests that only read it."""
    return {case: fitted(case) for case in [*ALL, *UNTRAINED]}


@pytest.mark.parametrize("case", USUAL_FITS)
class TestFit:
    """What all estimators promise of a fit."""

    def test_clone_is_unfitted_and_fits_alike(self, case, models):
        X, y = draw(case)
        cloned = clone(models[case])
        assert repr(cloned.get_params()) == repr(models[case].get_params())  # nested ones, too
        with pytest.raises(NotFittedError):
            output(cloned, X)
        np.testing.assert_array_equal(output(cloned.fit(X, y), X), output(models[case], X))

    def test_fit_leaves_the_parameters_alone(self, case):
        if case in HEADS:
            bounds = "prior_bounds" if "posterior" in case else "target_bounds"
            # Mutable values on purpose: they must be neither replaced nor written into.
            given = {"hidden_dims": [8, 4], bounds: [[-999.0, 999.0]] * 2, "callbacks": []}
        else:
            given = dict(patch_size=[2] * len(SHAPES[case]), brightness_range=[-120, 0])
            within = dict(ema_decay=[0.9, 1.0], masks=[BlockMask(2, (0.2, 0.4))])
            given |= {f"objective__{name}": value for name, value in within.items()}
            given["callbacks"] = []
        estimator = make(case).set_params(**given)
        before = estimator.get_params()
        values = copy.deepcopy(given)
        X, y = draw(case)
        output(estimator.fit(X, y), X)
        after = estimator.get_params()
        assert before.keys() == after.keys()
        assert all(after[name] is before[name] for name in before)
        assert {name: after[name] for name in given} == values

    def test_fit_leaves_the_data_alone(self, case):
        X, y = draw(case)
        X_before, y_before = X.copy(), y.copy()
        output(make(case).fit(X, y), X)
        np.testing.assert_array_equal(X, X_before)
        np.testing.assert_array_equal(y, y_before)

    def test_refit_on_another_shape_forgets_the_first(self, case, models):
        X, y = draw(case, other=True)
        again = output(copy.deepcopy(models[case]).fit(X, y), X)
        np.testing.assert_array_equal(again, output(make(case).fit(X, y), X))

    def test_same_seed_same_result(self, case, models):
        X, _ = draw(case)
        expected = output(models[case], X)  # of the integer 0
        instance = fitted(case, random_state=np.random.RandomState(0))
        np.testing.assert_array_equal(output(instance, X), expected)
        assert not np.allclose(output(fitted(case, random_state=1), X), expected, rtol=1e-3)

    def test_the_result_does_not_hang_on_global_generators(self, case, models, torch_seed):
        torch.manual_seed(123)
        np.testing.assert_array_equal(
            output(fitted(case), draw(case)[0]), output(models[case], draw(case)[0])
        )

    def test_global_generators_are_left_alone(self, case):
        X, y = draw(case)
        torch_before = torch.get_rng_state()
        numpy_before = np.random.get_state()  # noqa: NPY002
        output(make(case, random_state=3).fit(X, y), X)
        assert torch.equal(torch.get_rng_state(), torch_before)
        np.testing.assert_equal(np.random.get_state(), numpy_before)  # noqa: NPY002

    def test_without_a_seed_global_generators_are_left_alone_and_runs_differ(self, case):
        X, _ = draw(case)
        torch_before = torch.get_rng_state()
        numpy_before = np.random.get_state()  # noqa: NPY002
        results = [output(fitted(case, random_state=None), X) for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), torch_before)
        np.testing.assert_equal(np.random.get_state(), numpy_before)  # noqa: NPY002
        assert not np.array_equal(*results)

    def test_pickle_and_joblib(self, case, models, tmp_path):
        X, _ = draw(case)
        expected = output(models[case], X)
        np.testing.assert_array_equal(output(pickle.loads(pickle.dumps(models[case])), X), expected)
        joblib.dump(models[case], tmp_path / "model.joblib")
        loaded = joblib.load(tmp_path / "model.joblib")
        np.testing.assert_array_equal(output(loaded, X), expected)
        assert loaded.history_ == models[case].history_
        refitted = loaded.fit(*draw(case, other=True))
        assert refitted.n_features_in_ == draw(case, other=True)[0].shape[1]

    def test_set_params_takes_effect_at_the_next_fit(self, case, models):
        X, y = draw(case)
        estimator = copy.deepcopy(models[case]).set_params(random_state=5).fit(X, y)
        np.testing.assert_array_equal(output(estimator, X), output(fitted(case, random_state=5), X))

    def test_integers_are_numbers(self, case, models):
        X, _ = draw(case)
        np.testing.assert_allclose(
            output(models[case], X.astype(np.int16)), output(models[case], X), rtol=1e-6
        )
        assert np.isfinite(output(make(case).fit(X.astype(int), draw(case)[1]), X)).all()

    def test_fit_on_any_layout(self, case, models, tmp_path):
        X, y = draw(case)
        np.save(tmp_path / "X.npy", X)
        mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
        padded = np.repeat(X, 2, axis=-1)
        for form in (mapped, np.asfortranarray(X), padded[..., ::2]):
            found = output(make(case).fit(form, y), X)
            # Sums in another order round otherwise, no more.
            np.testing.assert_allclose(found, output(models[case], X), rtol=1e-3, atol=1e-3)
        half = make(case).fit(X.astype(np.float16), y)
        assert np.isfinite(output(half, X)).all()


@pytest.mark.parametrize("case", USUAL)
class TestFitted:
    """What all promise once they are fitted."""

    def test_what_was_never_seen_is_said_once(self, case, models):
        X, _ = draw(case)
        counts = []
        for given in (X, 300 * X):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                output(models[case], given)
            counts.append(sum(w.category is NeverSeenWarning for w in caught))
        assert counts == [0, 1]

    def test_not_fitted(self, case):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            output(make(case), draw(case)[0])

    def test_layout_and_type_do_not_matter(self, case, models, tmp_path):
        X, _ = draw(case)
        expected = output(models[case], X)
        np.save(tmp_path / "X.npy", X)
        padded = np.repeat(X, 2, axis=-1)
        forms = {
            "float16": X.astype(np.float16),
            "float64": X.astype(np.float64),
            "big-endian": X.astype(">f4"),
            "Fortran": np.asfortranarray(X),
            "strided": padded[..., ::2],
            "reversed twice": np.ascontiguousarray(X[::-1])[::-1],
            "memory map": np.load(tmp_path / "X.npy", mmap_mode="r"),
            "nested list": X.tolist(),
            "tensor": torch.from_numpy(X.copy()),
        }
        for name, form in forms.items():
            found = output(models[case], form)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)

    def test_a_row_does_not_depend_on_its_neighbours(self, case, models):
        X, _ = draw(case)
        whole = output(models[case], X)
        shuffled = np.random.default_rng(0).permutation(len(X))
        alone = np.concatenate([output(models[case], X[i : i + 1]) for i in range(len(X))])
        np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            output(models[case], X[shuffled]), whole[shuffled], rtol=1e-5, atol=1e-6
        )
        assert np.ptp(whole, axis=0).min() > 1e-3  # the rows do differ

    def test_history(self, case, models):
        history = models[case].history_
        keys = {"epoch", "train_loss", "valid_loss", "seconds", "kept"}
        if case not in HEADS:
            keys |= {"effective_rank", "effective_rank_at_init"}
            keys |= {"prediction_loss", "place_loss", "place_share"}  # of the JEPA
        assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
        assert len(history) == models[case].max_epochs
        assert all(row.keys() == keys for row in history)
        assert all(np.isfinite(list(row.values())).all() for row in history)


@pytest.mark.parametrize("case", UNTRAINED)
class TestUntrained:
    """What of the contract has nothing to do with a training."""

    test_clone = TestFit.test_clone_is_unfitted_and_fits_alike
    test_the_data = TestFit.test_fit_leaves_the_data_alone
    test_refit = TestFit.test_refit_on_another_shape_forgets_the_first
    test_generators = TestFit.test_the_result_does_not_hang_on_global_generators
    test_not_fitted = TestFitted.test_not_fitted
    test_integers = TestFit.test_integers_are_numbers
    test_layouts = TestFitted.test_layout_and_type_do_not_matter
    test_rows = TestFitted.test_a_row_does_not_depend_on_its_neighbours

    def test_fit_leaves_the_parameters_alone(self, case):
        X, _ = draw(case)
        given = {"cell_size": [1.0] * (X.ndim - 1)}
        if "noise" in case:
            given = {"noise": [[1.0] * X.shape[-1]] if X.ndim == 4 else X[0].tolist()}
            given |= {"k_perp": [0.5], "cell_size": [1.0] * 3} if X.ndim == 4 else {}
        if case == "noise of a signal":
            given = {"noise": [1.0] * 24}
        estimator, before = make(case, **given), copy.deepcopy(given)
        output(estimator.fit(X), X)
        after = estimator.get_params()
        assert all(after[name] is given[name] for name in given)
        assert {name: after[name] for name in given} == before

    def test_pickle_and_joblib(self, case, models, tmp_path):
        X, _ = draw(case)
        joblib.dump(models[case], tmp_path / "model.joblib")
        for loaded in (joblib.load(tmp_path / "model.joblib"), copy.deepcopy(models[case])):
            np.testing.assert_array_equal(output(loaded, X), output(models[case], X))

    def test_columns(self, case, models):
        pandas = pytest.importorskip("pandas")
        X, _ = draw(case)
        model = copy.deepcopy(models[case]).set_output(transform="pandas")
        if "noise" in case and X.ndim > 2:
            with pytest.raises(ValueError, match="columns"):
                model.transform(X)
            return
        frame = model.transform(X)
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame.columns) == model.get_feature_names_out().tolist()
        np.testing.assert_array_equal(frame.to_numpy(), output(models[case], X))


# Whatever has parameters --------------------------------------------------------------------------

OBJECTIVES = [JEPA, LeJEPA, VICReg, Reconstruction, Supervised]
PARAMETRISED = [SKATRTransformer, LightconeRegressor, PosteriorEstimator, *OBJECTIVES]
PARAMETRISED += [LightconeResampler, NoiseTransformer, PowerSpectrumTransformer]


@pytest.mark.parametrize("kind", PARAMETRISED)
class TestParameters:
    def test_they_are_keywords_that_are_stored_untouched(self, kind):
        given = {name: object() for name in kind().get_params(deep=False)}
        estimator = kind(**given)
        assert all(getattr(estimator, name) is value for name, value in given.items())
        assert estimator.get_params(deep=False) == given
        assert vars(estimator).keys() == given.keys()
        with pytest.raises(TypeError, match="positional"):
            kind(1)

    def test_each_can_be_set_and_an_unknown_one_is_refused(self, kind):
        estimator = kind()
        for name in estimator.get_params(deep=False):
            value = object()
            assert estimator.set_params(**{name: value}) is estimator
            assert getattr(estimator, name) is value
        with pytest.raises(ValueError, match="colour"):
            kind().set_params(colour=1)
        with pytest.raises(TypeError, match="colour"):
            kind(colour=1)

    def test_each_is_checked_and_documented(self, kind):
        parameters = kind().get_params(deep=False)
        assert set(kind._parameters) <= set(parameters)
        section = inspect.getdoc(kind).partition("Parameters\n----------\n")[2]
        described = re.findall(r"^(\w[\w, ]*?) : ", section.partition("\n\n\n")[0], flags=re.M)
        described = {name.strip() for line in described for name in line.split(",")}
        assert set(parameters) <= described
        assert not re.search(r"^\s*\{\w+\}$", inspect.getdoc(kind), flags=re.M)

    def test_a_clone_has_the_same(self, kind):
        estimator = kind()
        cloned = clone(estimator)
        assert type(cloned) is kind and cloned is not estimator
        assert repr(cloned.get_params()) == repr(estimator.get_params())

    def test_its_repr_says_what_was_changed(self, kind):
        assert repr(kind()) == f"{kind.__name__}()"
        name, value = {
            SKATRTransformer: ("embed_dim", 8),
            LightconeRegressor: ("loss", "l2"),
            PosteriorEstimator: ("n_bins", 4),
            LightconeResampler: ("factor", 2),
            JEPA: ("ema_decay", 0.5),
            LeJEPA: ("n_projections", 16),
            VICReg: ("region", 0.3),
            Supervised: ("loss", "l2"),
            Reconstruction: ("min_context", 0.3),
            NoiseTransformer: ("wedge", "horizon"),
            PowerSpectrumTransformer: ("taper", "hann"),
        }[kind]
        assert repr(kind(**{name: value})) == f"{kind.__name__}({name}={value!r})"

    def test_it_can_be_written_and_read(self, kind, tmp_path):
        estimator = kind()
        joblib.dump(estimator, tmp_path / "estimator.joblib")
        loaded = joblib.load(tmp_path / "estimator.joblib")
        assert type(loaded) is kind and repr(loaded.get_params()) == repr(estimator.get_params())


@pytest.mark.parametrize("objective", OBJECTIVES)
class TestObjective:
    def test_a_search_reaches_its_parameters(self, objective):
        name = next(iter(objective().get_params()))
        transformer = make("map", objective=objective()).set_params(**{f"objective__{name}": 0.25})
        assert getattr(transformer.objective, name) == 0.25
        cloned = clone(transformer)
        assert cloned.objective is not transformer.objective
        assert cloned.get_params()[f"objective__{name}"] == 0.25

    def test_fit_leaves_it_alone(self, objective):
        given = objective()
        before = copy.deepcopy(vars(given))
        model = make("map", objective=given, max_epochs=1).fit(*draw("map"))
        assert model.objective is given and vars(given) == before

    def test_its_name_stands_for_it_with_its_defaults(self, objective):
        named, shown = (
            make("map", objective=one, max_epochs=1).fit_transform(*draw("map"))
            for one in (objective.__name__.lower(), objective())
        )
        np.testing.assert_array_equal(named, shown)


# What a script has set ----------------------------------------------------------------------------


@contextlib.contextmanager
def double_precision():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def set_by_a_script():
    """All that a script may stand inside of, at once."""
    lowered = torch.autocast("cpu", dtype=torch.bfloat16)
    with double_precision(), torch.inference_mode(), torch.no_grad(), lowered, torch.device("meta"):
        yield
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled() and torch.get_default_device().type == "meta"


@pytest.mark.parametrize("case", USUAL_FITS)
def test_results_do_not_depend_on_what_a_script_has_set(case, models, tmp_path):
    X, y = draw(case)
    expected = output(models[case], X)
    with set_by_a_script():
        model = fitted(case)
        found = [output(model, X), output(models[case], X)]
        loaded = None
        if case in FIELDS:
            model.set_params(cache=None).save(tmp_path / "weights.safetensors")
            loaded = SKATRTransformer.load(tmp_path / "weights.safetensors", cache=None)
            found += [model.transform(X), loaded.transform(X)]
    for one in found:
        np.testing.assert_array_equal(one, expected)
        assert one.dtype == expected.dtype
    if "posterior" in case:
        drawn = models[case].sample(X[:3], 4, random_state=0)
        with set_by_a_script():
            again = model.sample(X[:3], 4, random_state=0)
            density, quantiles = model.log_prob(X, y), model.predict_quantiles(X[:3])
        np.testing.assert_array_equal(again, drawn)
        np.testing.assert_array_equal(density, models[case].log_prob(X, y))
        np.testing.assert_array_equal(quantiles, models[case].predict_quantiles(X[:3]))
    # What was fitted under a setting is not marked by it.
    if case == "cone":
        tuned = make("joint", backbone=loaded).fit(*draw("joint"))
        assert np.isfinite(tuned.predict(X)).all()


def test_simulations_do_not_depend_on_what_a_script_has_set():
    box = dict(field_shape=(8, 8, 12), block=(1, 1, 4), random_state=0)
    expected = SimulatedLightcones(2, **box).read()
    with set_by_a_script():
        np.testing.assert_array_equal(SimulatedLightcones(2, **box).read(), expected)


@pytest.mark.parametrize("case", FIELDS)
class TestTransformer:
    def test_learned_shapes(self, case, models):
        assert models[case].field_shape_in_ == SHAPES[case]
        assert models[case].n_features_in_ == SHAPES[case][0]
        assert not hasattr(models[case], "feature_names_in_")

    def test_summaries(self, case, models):
        summaries = models[case].transform(draw(case)[0])
        assert summaries.shape == (20, N_SUMMARY[case])
        assert summaries.dtype == np.float32

    def test_pooling(self, case, models):
        X, _ = draw(case)
        n_tokens = np.prod([n // 2 for n in SHAPES[case]])
        transformer = copy.deepcopy(models[case]).set_params(whiten=False)
        tokens = transformer.set_params(pooling="tokens").transform(X)
        assert tokens.shape == (20, n_tokens, 12)
        assert tokens.dtype == np.float32
        highest = transformer.set_params(pooling="max").transform(X)
        np.testing.assert_allclose(highest, tokens.max(axis=1), rtol=1e-5, atol=1e-6)
        mean = transformer.set_params(pooling="mean").transform(X)
        np.testing.assert_allclose(mean, tokens.mean(axis=1), rtol=1e-4, atol=1e-5)
        moments = transformer.set_params(pooling="moments").transform(X)
        by_hand = np.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=1)
        np.testing.assert_allclose(moments, by_hand, rtol=1e-4, atol=1e-5)
        assert len(transformer.get_feature_names_out()) == 24
        if case == "cone":
            slices = tokens.reshape(20, -1, SHAPES[case][-1] // 2, 12)
            between, within = (
                slices.mean(axis=1).std(axis=1),
                slices.var(axis=1).mean(axis=1) ** 0.5,
            )
            moments = np.concatenate([tokens.mean(axis=1), between, within], axis=1)
        pooled = transformer.set_params(pooling="auto").transform(X)
        np.testing.assert_allclose(pooled, moments, rtol=1e-4, atol=1e-5)

    def test_batch_size_of_the_encoder(self, case, models):
        X, _ = draw(case)
        model, device = models[case], torch.device("cpu")

        def summaries(batch_size):
            return encode(
                model.encoder_,
                as_fields(X),
                scaling=model.scaling_,
                patch_size=model.architecture_.patch_size,
                pooling=model.pooling_,
                device=device,
                autocast=autocast(device, "float32"),
                batch_size=batch_size,
            )

        expected = copy.deepcopy(model).set_params(whiten=False).transform(X)
        for batch_size in (1, 7, None):
            np.testing.assert_allclose(summaries(batch_size), expected, rtol=1e-5, atol=1e-6)

    def test_feature_names_out_and_pandas(self, case, models):
        pandas = pytest.importorskip("pandas")
        X, _ = draw(case)
        names = [f"skatrtransformer{i}" for i in range(N_SUMMARY[case])]
        assert models[case].get_feature_names_out().tolist() == names
        transformer = copy.deepcopy(models[case]).set_output(transform="pandas")
        frame = transformer.transform(X)
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame.columns) == names
        np.testing.assert_array_equal(frame.to_numpy(), models[case].transform(X))

    def test_bf16_is_close(self, case, models):
        X, _ = draw(case)
        half = copy.deepcopy(models[case]).set_params(precision="bf16").transform(X)
        assert _cosine(half, models[case].transform(X)).min() > 0.99


def test_y_is_ignored(models):
    X, _ = draw("cone")
    found = make("cone").fit_transform(X, np.arange(20))
    np.testing.assert_array_equal(found, models["cone"].transform(X))


def test_feature_names_in(models):
    pandas = pytest.importorskip("pandas")
    X, y = draw("signal")
    signals = pandas.DataFrame(X, columns=[f"z{i}" for i in range(24)])
    model = make("signal").fit(signals)
    assert model.feature_names_in_.tolist() == list(signals.columns)
    np.testing.assert_array_equal(model.transform(signals), models["signal"].transform(X))
    with pytest.raises(ValueError, match="feature names"):
        model.transform(signals[signals.columns[::-1]])
    head = make("head").fit(signals, y)
    assert head.feature_names_in_.tolist() == list(signals.columns)
    # A refit on a bare array forgets the names.
    assert not hasattr(model.fit(X), "feature_names_in_")


def test_pandas_output_feeds_the_head(models):
    pytest.importorskip("pandas")
    X, _ = draw("cone")
    frame = clone(models["cone"]).set_output(transform="pandas").fit_transform(X)
    head = make("head").fit(frame, np.arange(20.0))
    assert head.feature_names_in_[0] == "skatrtransformer0"


def test_tags():
    transformer, head = get_tags(make("cone")), get_tags(make("head"))
    assert transformer.transformer_tags is not None
    assert transformer.input_tags.three_d_array and transformer.input_tags.two_d_array
    assert not transformer.target_tags.required and transformer.requires_fit
    assert transformer.transformer_tags.preserves_dtype == []
    assert head.estimator_type == "regressor"
    assert head.target_tags.required and head.target_tags.multi_output


def _in_fresh_process(folder, hide_cuda=False):
    """Load every model of a folder in a new interpreter, and write its output beside it."""
    code = (
        "import pathlib, sys, joblib, numpy as np\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.joblib')):\n"
        "    model, X = joblib.load(path), np.load(path.with_suffix('.X.npy'))\n"
        "    found = model.transform(X) if hasattr(model, 'transform') else model.predict(X)\n"
        "    np.save(path.with_suffix('.out.npy'), found)\n"
    )
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if hide_cuda else {})
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=120,
    )


def test_files_load_in_a_fresh_process(models, tmp_path):
    for case, model in models.items():
        joblib.dump(model, tmp_path / f"{case}.joblib")
        np.save(tmp_path / f"{case}.X.npy", draw(case)[0])
    _in_fresh_process(tmp_path)
    for case, model in models.items():
        found = np.load(tmp_path / f"{case}.out.npy")
        # Another process may run another number of threads, and so round otherwise.
        np.testing.assert_allclose(found, output(model, draw(case)[0]), rtol=1e-5, atol=1e-6)


def _cosine(a, b):
    return (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "float32", "bf16"])
@pytest.mark.parametrize("case", USUAL)
def test_fit_on_a_gpu(case, precision):
    X, _ = draw(case)
    cuda, cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
    model = fitted(case, device="cuda", precision=precision)
    found = output(model, X)
    assert np.isfinite(found).all()
    assert torch.equal(torch.cuda.get_rng_state(), cuda)
    assert torch.equal(torch.get_rng_state(), cpu)
    trained = "net_" if "posterior" in case else "head_" if case in HEADS else "encoder_"
    trained = getattr(model, trained)
    assert {p.device.type for p in trained.parameters()} == {"cpu"}
    assert {p.dtype for p in trained.parameters()} <= {torch.float32, torch.float64}


@pytest.mark.gpu
@pytest.mark.parametrize("case", FIELDS)
def test_precisions_agree_on_a_gpu(case, models):
    X, _ = draw(case)
    model = copy.deepcopy(models[case])
    full = model.set_params(device="cuda", precision="float32").transform(X)
    half = model.set_params(precision="bf16").transform(X)
    np.testing.assert_allclose(full, models[case].transform(X), rtol=1e-2, atol=1e-2)
    assert _cosine(half, full).min() > 0.99
    assert not np.array_equal(half, full)  # the precision did change


@pytest.mark.gpu
def test_gpu_models_load_without_a_gpu(tmp_path):
    models = {case: fitted(case, device="auto") for case in ALL}
    for case, model in models.items():
        joblib.dump(model, tmp_path / f"{case}.joblib")
        np.save(tmp_path / f"{case}.X.npy", draw(case)[0])
    _in_fresh_process(tmp_path, hide_cuda=True)
    for case, model in models.items():
        found = np.load(tmp_path / f"{case}.out.npy")
        np.testing.assert_allclose(found, output(model, draw(case)[0]), rtol=0.1, atol=0.1)
