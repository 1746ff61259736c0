"""Fitted estimators and pipelines in files: nothing is lost or pickled, others are refused."""

import copy
import json
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from skorch.callbacks import EpochScoring

from skatr_sk import (
    LightconeRegressor,
    LightconeResampler,
    NoiseTransformer,
    PosteriorEstimator,
    PowerSpectrumTransformer,
    SKATRTransformer,
    load_model,
    save_model,
)
from skatr_sk._tensors import write_tensors
from skatr_sk.fields import ArrayFields, as_fields
from skatr_sk.grid import Grid
from skatr_sk.summaries import JEPA, BlockMask, Combined, LeJEPA, Supervised

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)
TOKENS = RNG.normal(size=(40, 3, 4)).astype(np.float32)
FIELDS = RNG.normal(-20, 30, size=(40, 4, 4, 6)).astype(np.float32)
X6 = FIELDS[:, 0, 0]
Z = (7.0, 7.1, 7.2, 7.3, 7.4, 7.5)
ON_GRID = ArrayFields(FIELDS, Grid((7.0, 7.0, 14.0), Z))
Y = X[:, :2] + RNG.normal(size=(40, 2))
TABLE = pd.DataFrame(Y, columns=["Omega_m", "log10 L_X"])
NAMED = pd.DataFrame(X, columns=list("abcd"))
HEAD = dict(max_epochs=2, device="cpu", random_state=0)
FLOW = HEAD | dict(n_blocks=2, n_bins=4, hidden_dims=(8,), n_members=1)
VIT = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, device="cpu", random_state=0)
TRAINED = VIT | dict(max_epochs=1, objective=JEPA(predictor_dim=8, predictor_depth=1))
pytestmark = pytest.mark.filterwarnings("ignore:PosteriorEstimator")


def regressor(**parameters):
    return LightconeRegressor(**HEAD | parameters)


def posterior(**parameters):
    return PosteriorEstimator(**FLOW | parameters)


def skatr(**parameters):
    return SKATRTransformer(**TRAINED | parameters)


PRETRAINED = skatr().fit(FIELDS)
# Estimators with what they are fitted on; all that they give of it is compared.
CASES = {
    "ridge and networks": (regressor(n_members=2), X, Y),
    "gaussian, bounded, 1-D": (
        regressor(loss="gaussian", target_bounds=np.array([[-9.0, 9.0]]), n_members=2), X, Y[:, 0]
    ),
    "one network": (regressor(hidden_dims=(8,), dropout=0.1), X, Y),
    "several networks": (regressor(hidden_dims=[8, 4], n_members=2), X, Y),
    "linear": (regressor(hidden_dims=()), X, Y),
    "names": (regressor(hidden_dims=(8,)), NAMED, TABLE),
    "tokens": (regressor(hidden_dims=(8,), pooling="attention"), TOKENS, Y),
    "numpy's numbers": (regressor(hidden_dims=(np.int64(8),), dropout=np.float32(0.1)), X, Y),
    "backbone": (
        regressor(backbone=SKATRTransformer(patch_size=2, embed_dim=8, depth=1)), FIELDS, Y
    ),
    "backbone and attention": (
        regressor(backbone=PRETRAINED, pooling="attention", max_epochs=1), FIELDS, Y[:, 0]
    ),
    "frozen backbone": (
        regressor(backbone=FrozenEstimator(PRETRAINED), hidden_dims=(8,)), FIELDS, Y
    ),
    "cnn": (regressor(backbone="cnn"), FIELDS, Y),
    "cnn of signals": (regressor(backbone="cnn", loss="gaussian"), FIELDS[:, 0, 0], Y[:, 0]),
    "posterior": (posterior(), X, TABLE),
    "posterior with backbone and attention": (
        posterior(backbone=PRETRAINED, pooling="attention", frozen_epochs=1), FIELDS, Y
    ),
    "posterior with cnn": (posterior(backbone="cnn", prior_bounds="data"), FIELDS, Y),
    "posteriors": (posterior(n_members=2, prior_bounds=[(-9, 9), (-np.inf, np.inf)]), X, Y),
    "posterior of the data": (posterior(prior_bounds="data", parameter_names=("a", "b")), X, Y),
    "posterior, 1-D": (posterior(prior_bounds=np.array([[-9.0, 9.0]])), NAMED, Y[:, 1]),
    "posterior of tokens": (posterior(pooling="attention"), TOKENS, Y),
    "transformer": (skatr(brightness_range=(-90.0, 60.0), pooling="tokens"), FIELDS, None),
    "objectives": (
        skatr(
            objective=Combined(
                objectives=[("jepa", JEPA(masks=[BlockMask(2, (0.2, 0.4))], predictor_dim=8)),
                            ("labels", Supervised())], weights=(1.0, 0.5)
            )
        ), FIELDS, Y
    ),
    "names of objectives": (skatr(objective="lejepa"), FIELDS, None),
    "parts of objectives": (
        skatr(objective=JEPA(regions=LeJEPA(), predictor_dim=8, ema_decay=(0.9, 1.0))), FIELDS, None
    ),
    "pipeline": (
        Pipeline([("skatr", skatr()), ("scale", StandardScaler()), ("head", regressor())]),
        FIELDS, Y,
    ),
    "frozen in a pipeline": (
        make_pipeline(FrozenEstimator(PRETRAINED), "passthrough", PCA(3), posterior()),
        FIELDS, Y,
    ),
    "pandas": (
        make_pipeline(StandardScaler(), Ridge()).set_output(transform="pandas"), NAMED, TABLE
    ),
    "instrument in a pipeline": (
        make_pipeline(NoiseTransformer(noise=5.0, random_state=0), skatr(), regressor()), FIELDS, Y
    ),
    "resampled spectra": (
        make_pipeline(
            LightconeResampler(factor=(2, 1, 1.5)), PowerSpectrumTransformer(n_bins=2), regressor()
        ), FIELDS, Y
    ),
    "augmented": (skatr(augment=NoiseTransformer(noise=[5.0] * 6, random_state=0)), FIELDS, None),
    "noise": (NoiseTransformer(random_state=3, wedge=1, subtract_mean=True), ON_GRID, None),
    "noise of modes": (
        NoiseTransformer(noise=np.ones((2, 6)), k_perp=[0.1, 0.5], cell_size=7.0, wedge="horizon",
                         redshifts=Z, random_state=0), FIELDS, None
    ),
    "noise of cubes": (NoiseTransformer(noise=FIELDS[:3, 0, 0], random_state=0), X6, None),
    "no noise": (NoiseTransformer(noise=None, subtract_mean=True), FIELDS[:, 0], None),
    "resampled": (LightconeResampler(shape=(3, 4, 8)), ON_GRID, None),
    "resampled redshifts": (LightconeResampler(redshifts=Z[1:4], factor=2), ON_GRID, None),
    "resampled signals": (LightconeResampler(shape=4), X6, None),
    "spectra": (PowerSpectrumTransformer(spectrum="both", moments=True), ON_GRID, None),
    "spectra of maps": (PowerSpectrumTransformer(cell_size=[7.0, 8.0]), FIELDS[..., 0], None),
    "targets": (TransformedTargetRegressor(Ridge(), transformer=StandardScaler()), X, Y),
}  # fmt: skip
CASES |= {
    type(step).__name__: (make_pipeline(step, last), X, Y)
    for step, last in [
        (MinMaxScaler(), LinearRegression()),
        (MaxAbsScaler(), RidgeCV()),
        (RobustScaler(), Ridge()),
        (Normalizer(), RidgeCV(alphas=(1.0, 2.0), alpha_per_target=True)),
        (PowerTransformer(), Ridge()),
        (QuantileTransformer(n_quantiles=10), Ridge()),
        (VarianceThreshold(), Ridge()),
        (StandardScaler(with_mean=False), Ridge()),
        (TruncatedSVD(2, random_state=0), Ridge()),
        (PCA(2, whiten=True), Ridge()),
    ]
}
CASES |= {
    "power alone": (make_pipeline(PowerTransformer(standardize=False), Ridge()), X, Y),
    "errors of each row": (RidgeCV(store_cv_results=True), X, Y),
    "targets as they are": (TransformedTargetRegressor(Ridge()), X, Y),
}


def given(estimator, inputs):
    """All that an estimator gives of inputs."""
    if hasattr(estimator, "transform") and not hasattr(estimator, "predict"):
        found = [estimator.transform(inputs)]
        return [as_fields(each).read() for each in found]
    found = [estimator.predict(inputs)]
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if isinstance(last, PosteriorEstimator):
        inner = estimator[:-1].transform(inputs) if last is not estimator else inputs
        found += last.sample_log_prob(inner, 5, random_state=0)
        found += [np.array(last.prior_bounds_), np.array(last.prior_transform_.mean)]
        found += [last.log_prob(inner, Y[:, -1] if last._one_dimensional else Y)]
    if isinstance(last, LightconeRegressor) and last.loss == "gaussian":
        found += last.predict(inputs, return_std=True)
    if isinstance(getattr(last, "backbone_", None), SKATRTransformer):
        found += [last.backbone_.transform(inputs)]
    return found


def assert_same(loaded, fitted, inputs, outputs=None):
    """`outputs` are what the fitted one gives of the inputs, where that is known."""
    outputs = given(fitted, inputs) if outputs is None else outputs
    assert type(loaded) is type(fitted)
    assert repr(loaded.get_params()) == repr(fitted.get_params())
    for found, wanted in zip(given(loaded, inputs), outputs, strict=True):
        assert type(found) is type(wanted)
        np.testing.assert_array_equal(found, wanted)
        assert np.asarray(found).dtype == np.asarray(wanted).dtype
    names = "history_", "parameter_names_", "field_shape_in_", "n_features_in_", "pooling_"
    for name in (*names, "grid_in_", "grid_", "field_shape_out_", "k_unit_", "cell_size_"):
        assert getattr(loaded, name, None) == getattr(fitted, name, None)
    for name in ("sigma_", "slopes_", "chunks_", "redshifts_"):
        np.testing.assert_equal(getattr(loaded, name, None), getattr(fitted, name, None))
    assert repr(getattr(loaded, "bins_", None)) == repr(getattr(fitted, "bins_", None))
    if hasattr(fitted, "chunks_"):
        np.testing.assert_array_equal(*(m.get_feature_names_out() for m in (loaded, fitted)))
    names = [getattr(one, "feature_names_in_", None) for one in (loaded, fitted)]
    np.testing.assert_array_equal(*names)


@pytest.fixture(scope="module")
def models():
    """Fitted estimators; each is fitted once."""
    fitted = {}

    def fit(case):
        estimator, inputs, y = CASES[case]
        if case not in fitted:
            fitted[case] = clone(estimator).fit(inputs, y)
        return fitted[case], inputs

    return fit


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_gives_the_same_bits(case, models, tmp_path):
    fitted, inputs = models(case)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(fitted, tmp_path / "model")
        loaded = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(loaded, fitted, inputs)
    save_model(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


@pytest.mark.parametrize(
    "case", ["ridge and networks", "backbone", "posteriors", "pipeline", "instrument in a pipeline"]
)
def test_other_ways_keep_the_same_bits(case, models, tmp_path):
    fitted, inputs = models(case)
    joblib.dump(fitted, tmp_path / "model.joblib")
    outputs = given(fitted, inputs)
    for loaded in (
        joblib.load(tmp_path / "model.joblib"),
        joblib.load(tmp_path / "model.joblib", mmap_mode="r"),
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
        copy.copy(fitted),
    ):
        assert_same(loaded, fitted, inputs, outputs)


TRUSTED = {
    "skatr_sk.heads.regression.LightconeRegressor",
    "skatr_sk.heads.posterior.PosteriorEstimator",
    "skatr_sk.summaries.transformer.SKATRTransformer",
    "skatr_sk.summaries.objectives.jepa.JEPA",
    "skatr_sk.lightcones.instrument.NoiseTransformer",
    "skatr_sk.lightcones.resampler.LightconeResampler",
    "skatr_sk.summaries.power_spectrum.PowerSpectrumTransformer",
}


@pytest.mark.parametrize(
    "case",
    ["ridge and networks", "backbone", "posteriors", "pipeline", "posterior with cnn"]
    + ["instrument in a pipeline", "resampled spectra"],
)
def test_skops_holds_what_is_fitted(case, models, tmp_path):
    import skops.io  # which takes a second, asking all loaded modules for names

    fitted, inputs = models(case)
    skops.io.dump(fitted, tmp_path / "model.skops")
    asked = skops.io.get_untrusted_types(file=tmp_path / "model.skops")
    assert set(asked) <= TRUSTED  # as the guide says
    assert_same(skops.io.load(tmp_path / "model.skops", trusted=asked), fitted, inputs)


def test_heads_save_and_load_themselves(models, tmp_path):
    for case in ("one network", "posterior"):
        fitted, inputs = models(case)
        fitted.save(tmp_path / case)
        assert_same(type(fitted).load(tmp_path / case), fitted, inputs)
        assert type(fitted).load(tmp_path / case, verbose=1).verbose == 1
    with pytest.raises(
        ValueError, match="one network.*expected a PosteriorEstimator, found a Light"
    ):
        PosteriorEstimator.load(tmp_path / "one network")


def test_a_loaded_backbone_is_that_of_the_head(models, tmp_path):
    fitted, _ = models("backbone")
    fitted.save(tmp_path / "model")
    loaded = LightconeRegressor.load(tmp_path / "model")
    assert loaded.head_.encoder is loaded.backbone_.encoder_
    copied = pickle.loads(pickle.dumps(fitted))
    assert copied.head_.encoder is copied.backbone_.encoder_


def test_weights_and_models_are_told_apart(models, tmp_path):
    fitted, _ = models("transformer")
    fitted.save(tmp_path / "weights")
    with pytest.raises(ValueError, match="weights.*SKATRTransformer.load"):
        load_model(tmp_path / "weights")
    save_model(fitted, tmp_path / "model")
    with pytest.raises(ValueError, match="model.*use skatr_sk.load_model"):
        SKATRTransformer.load(tmp_path / "model")


def test_what_may_be_left_out_is_said(tmp_path):
    callback = EpochScoring(lambda net, X, y: 0.0, name="nothing")
    head = regressor(hidden_dims=(8,), callbacks=[callback], random_state=np.random.RandomState(0))
    fitted = head.fit(X, Y)
    with pytest.warns(UserWarning, match="left out of .*Regressor.callbacks.*random_state"):
        fitted.save(tmp_path / "model")
    loaded = LightconeRegressor.load(tmp_path / "model")
    assert loaded.callbacks is None and loaded.random_state is None
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert loaded.history_ == fitted.history_ and "nothing" in loaded.history_[0]


def test_a_unit_is_not_lost(tmp_path):
    units = pytest.importorskip("astropy.units")
    fine = LightconeResampler(cell_size=14 * units.Mpc).fit(ON_GRID)
    with pytest.raises(ValueError, match="cell_size: expected what a file can hold, found <Quant"):
        save_model(fine, tmp_path / "model")


class Own(LightconeRegressor):
    """A user's own."""


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (make_pipeline(FunctionTransformer(np.exp), Ridge()), "func: expected what a file"),
        (
            make_pipeline(StandardScaler(), RandomForestRegressor(2, random_state=0)),
            "RandomForestRegressor",
        ),
        (Own(hidden_dims=(4,), **HEAD), "test_saving.*Own"),
        (TransformedTargetRegressor(Ridge(), func=np.exp, inverse_func=np.log), "func: expected"),
    ],
)
def test_others_are_refused_and_nothing_is_written(estimator, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_model(estimator.fit(X, np.abs(Y) / 100), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_is_not_fitted_is_refused(tmp_path):
    for estimator in (regressor(), make_pipeline(StandardScaler(), posterior())):
        with pytest.raises(NotFittedError):
            save_model(estimator, tmp_path / "model")


def test_parameters_that_are_wrong_are_not_written(models, tmp_path):
    fitted = copy.copy(models("one network")[0]).set_params(loss="l3")
    with pytest.raises(ValueError, match="loss: expected one of"):
        fitted.save(tmp_path / "model")


def test_a_device_that_is_not_there_is_asked_for_at_use(models, tmp_path):
    fitted, inputs = models("posterior")
    elsewhere = copy.copy(fitted).set_params(device="cuda:77")
    elsewhere.save(tmp_path / "model")
    loaded = PosteriorEstimator.load(tmp_path / "model")
    assert loaded.device == "cuda:77"
    with pytest.raises(ValueError, match=r"set_params\(device='auto'\)"):
        loaded.predict(inputs)
    assert_same(loaded.set_params(device="cpu"), fitted, inputs)


def test_another_version_of_scikit_learn_is_warned_of(models, tmp_path):
    save_model(models("RobustScaler")[0], tmp_path / "model")
    with safe_open(tmp_path / "model", framework="pt") as stream:
        header = json.loads(stream.metadata()["skatr_sk_model"])
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}
    write_tensors(tmp_path / "model", "skatr_sk_model", header | {"sklearn": "0.1"}, tensors)
    with pytest.warns(InconsistentVersionWarning, match="Ridge, RobustScaler from version 0.1"):
        load_model(tmp_path / "model")


def test_nothing_is_unpickled(models, tmp_path, monkeypatch):
    fitted, inputs = models("pipeline")
    save_model(fitted, tmp_path / "model")

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    assert_same(load_model(tmp_path / "model"), fitted, inputs)
