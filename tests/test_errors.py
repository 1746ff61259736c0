"""Bad input gets one clear error, and changes nothing."""

import copy
import functools
import inspect
import warnings

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback

from skatr_sk import LightconeRegressor, SKATRTransformer
from skatr_sk.summaries import JEPA

SHAPE = (6, 4, 8)


def transformer(**parameters):
    small = dict(patch_size=2, embed_dim=12, depth=1, n_heads=2)
    small |= dict(objective=JEPA(predictor_dim=12, predictor_depth=1))
    small |= dict(max_epochs=1, batch_size=8, device="cpu", random_state=0)
    return SKATRTransformer(**small).set_params(**parameters)


def regressor(**parameters):
    small = dict(hidden_dims=(8,), max_epochs=2, learning_rate=1e-2)
    return LightconeRegressor(**small | dict(device="cpu", random_state=0) | parameters)


def cones(n=12, shape=SHAPE):
    return np.random.default_rng(0).normal(-20, 30, size=(n, *shape)).astype(np.float32)


def summaries(n=20):
    X = np.random.default_rng(0).normal(size=(n, 4))
    return X, X[:, :2] * [1.0, 5.0]


def _state(estimator):
    """The estimator's attributes, and what it answers."""
    answer = None
    if hasattr(estimator, "encoder_"):
        answer = estimator.transform(cones())
    elif hasattr(estimator, "head_"):
        answer = estimator.predict(summaries()[0])
    return dict(vars(estimator)), answer


def refused(call, error, *phrases, estimators=()):
    """The call raises once, says all the phrases, and leaves the estimators as they were."""
    before = [_state(estimator) for estimator in estimators]
    with pytest.raises(error) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    message = str(caught.value)
    for phrase in phrases:
        assert phrase in message, message
    assert len(message) < 1000, "an error is to be read, not scrolled"
    for estimator, (attributes, answer) in zip(estimators, before, strict=True):
        assert vars(estimator).keys() == attributes.keys()
        assert all(vars(estimator)[name] is attributes[name] for name in attributes)
        if answer is not None:
            np.testing.assert_array_equal(_state(estimator)[1], answer)
    return message


def refused_by_fit(estimator, X, y, error, *phrases, **wrong):
    """``fit`` refuses: unfitted stays unfitted, and a fitted estimator stays as it is."""
    fresh = copy.deepcopy(estimator).set_params(**wrong)
    before = vars(fresh).copy()
    refused(lambda: fresh.fit(X, y), error, *phrases, estimators=[fresh])
    assert vars(fresh).keys() == before.keys()
    with pytest.raises(NotFittedError):
        fresh.transform(cones()) if hasattr(fresh, "transform") else fresh.predict(X)

    done = copy.deepcopy(_fitted(type(estimator)))
    expected = _state(done)[1]
    right = {name: done.get_params()[name] for name in wrong}
    done.set_params(**wrong)
    before = vars(done).copy()
    refused(lambda: done.fit(X, y), error, *phrases)
    assert vars(done).keys() == before.keys()
    assert all(vars(done)[name] is before[name] for name in before)
    np.testing.assert_array_equal(_state(done.set_params(**right))[1], expected)
    return done


@functools.cache
def _fitted(kind):
    if kind is SKATRTransformer:
        return transformer().fit(cones())
    return regressor().fit(*summaries())


@pytest.fixture
def fitted_transformer():
    return _fitted(SKATRTransformer)


@pytest.fixture
def fitted_regressor():
    return _fitted(LightconeRegressor)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bad_voxels_name_their_rows(dtype, fitted_transformer):
    X = cones().astype(dtype)
    X[3, 0, 0, 0] = np.nan
    X[7, 5, 3, :2] = np.inf
    X[9, 1, 1, 1] = -np.inf
    said = ("X", "3 of 12 rows", "3, 7, 9", "1 NaN", "3 infinite", "drop or repair")
    refused_by_fit(transformer(), X, None, ValueError, *said)
    refused(lambda: fitted_transformer.transform(X), ValueError, *said)


def test_only_the_first_bad_rows_are_named():
    X = cones(40)
    X[8:] = np.nan
    message = refused(lambda: transformer().fit(X), ValueError, "32 of 40 rows", "8, 9, 10, 11, 12")
    assert "13" not in message


def test_infinities_that_cancel_are_found():
    X = cones()
    X[5, 0, 0, :2] = np.inf, -np.inf
    refused(lambda: transformer().fit(X), ValueError, "1 of 12 rows", "first of them 5 ")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_bad_voxel_deep_in_a_large_array(dtype):
    X = np.zeros((70, 64, 64, 32), dtype=dtype)  # more values than are checked at a time
    X[:, 0, 0] = 60_000  # whose sum leaves the range of float16
    X[66, 40, 2, 31] = np.nan
    refused(lambda: transformer().fit(X), ValueError, "1 of 70 rows", "first of them 66 ")


def test_large_finite_values_are_no_infinities():
    X = np.full((12, *SHAPE), 60_000, dtype=np.float16)  # a float16 sum would overflow
    X += cones().astype(np.float16)
    assert np.isfinite(transformer().fit_transform(X)).all()


def test_bad_summaries_name_their_rows(fitted_regressor):
    X, y = summaries()
    X[2, 1], X[11, 0] = np.nan, np.inf
    said = ("X", "2 of 20 rows", "2, 11", "summaries")
    refused_by_fit(regressor(), X, y, ValueError, *said)
    refused(lambda: fitted_regressor.predict(X), ValueError, *said, estimators=[fitted_regressor])


@pytest.mark.parametrize("columns", [slice(None), 1])
def test_bad_targets_name_their_rows(columns):
    X, y = summaries()
    y[4, 1], y[9] = np.nan, np.inf
    said = ("y: expected finite values", "2 of 20 rows", "4, 9", "1 NaN")
    refused_by_fit(regressor(), X, y[:, columns], ValueError, *said)


def test_targets_of_another_length():
    X, y = summaries()
    refused_by_fit(
        regressor(), X, y[:5], ValueError, "y: expected 20 rows", "one for each row of X", "found 5"
    )
    refused_by_fit(regressor(), X[:5].tolist(), y, ValueError, "y: expected 5 rows", "found 20")


def test_no_targets():
    refused_by_fit(regressor(), summaries()[0], None, ValueError, "requires y")


def test_targets_outside_their_bounds_name_their_rows():
    X, y = summaries()
    y = np.clip(y, -1, 1)
    y[6, 1], y[13, 1] = 4.0, -4.0
    said = ("y", "target_bounds", "rows 6, 13, in parameter_1", "[-1.0, 1.0]", "widen")
    refused_by_fit(regressor(), X, y, ValueError, *said, target_bounds=[[-1, 1], [-1, 1]])


def test_constant_cones_warn():
    X = cones()
    X[2], X[5] = 1.0, 0.0
    with pytest.warns(
        UserWarning, match=r"constant fields: 2 of 12 \(first rows: 2, 5\)"
    ) as caught:
        model = transformer().fit(X)
    assert [w.filename for w in caught] == [__file__]  # the user's line, not ours
    assert np.isfinite(model.transform(X)).all()


def test_all_constant_cones_warn_and_give_numbers():
    X = np.full((12, *SHAPE), -30.0)
    with pytest.warns(UserWarning, match="constant fields: 12 of 12"):
        assert np.isfinite(transformer().fit_transform(X)).all()


def test_cones_in_kelvin_warn():
    with pytest.warns(UserWarning, match=r"No value of X is beyond 0\.\d+: is it in kelvin"):
        transformer().fit(cones() / 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transformer().fit(cones())


# --- shapes and types ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "error", "said"),
    [
        (cones()[:0], ValueError, ["0 sample(s)", "(0, 6, 4, 8)"]),
        (cones()[:, :, :0], ValueError, ["axis of length 0", "(12, 6, 0, 8)"]),
        (cones()[:, :, :, :0], ValueError, ["axis of length 0", "(12, 6, 4, 0)"]),
        (cones()[:1], ValueError, ["1 sample(s)", "minimum of 2"]),
        (cones()[..., None], ValueError, ["(12, 6, 4, 8, 1)", "(n, n_x, n_y, n_z)", "squeeze"]),
        (cones()[:, 0, 0, 0], ValueError, ["1D array", "reshape"]),
        (cones()[:, 0, 0, :1], ValueError, ["1 feature(s)", "single patch", "at least 2 cells"]),
        (cones()[:, :1, :1, :1], ValueError, ["(1, 1, 1)", "single patch"]),
        (cones().astype(object), TypeError, ["dtype object", "numpy.stack"]),
        (cones().astype(str), TypeError, ["<U", "real numbers", "numpy.asarray(X"]),
        (np.array([["a", "b"]] * 4), TypeError, ["<U1", "real numbers"]),
        ([["a", "b"]] * 4, TypeError, ["<U1", "real numbers"]),
        (cones().astype(complex), ValueError, ["Complex data not supported", "X.real"]),
        (
            [cones()[0], cones()[0, :4]],
            ValueError,
            ["one array of numbers", "unequal shapes", "numpy.stack"],
        ),
        (None, ValueError, ["scalar"]),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if hasattr(value, "shape") else None,
)
def test_no_light_cones(X, error, said):
    refused_by_fit(transformer(), X, None, error, *said, patch_size="auto")


def test_fields_of_different_shapes_in_an_object_array():
    X = np.empty(3, dtype=object)
    X[:] = [cones()[0], cones()[0, :4], cones()[0]]
    refused_by_fit(transformer(), X, None, TypeError, "dtype object", "numpy.stack")


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((6, 4, 4), "resample"),
        ((4, 6, 8), "resample"),
        ((6, 4), "resample"),
        ((6,), "resample"),
        ((6, 8, 4), "numpy.moveaxis(X, 2, -1)"),
        ((8, 6, 4), "numpy.moveaxis(X, 1, -1)"),
        ((6, 4, 8, 1), "numpy.squeeze"),
    ],
    ids=str,
)
def test_another_field_shape_than_the_fitted_one(shape, mend, fitted_transformer):
    # Most of these have the right n_features_in_, which is all that scikit-learn compares.
    X = cones(5, shape)
    said = (str(shape), "(6, 4, 8)", "(n, 6, 4, 8)", mend)
    refused(
        lambda: fitted_transformer.transform(X), ValueError, *said, estimators=[fitted_transformer]
    )


def test_a_single_cone_without_its_first_axis(fitted_transformer):
    said = ("one field", "(6, 4, 8)", "(n, 6, 4, 8)", "X[None]")
    refused(lambda: fitted_transformer.transform(cones()[0]), ValueError, *said)


def test_no_rows_to_transform(fitted_transformer, fitted_regressor):
    refused(lambda: fitted_transformer.transform(cones()[:0]), ValueError, "0 sample(s)")
    refused(lambda: fitted_regressor.predict(summaries()[0][:0]), ValueError, "0 sample(s)")


def test_signals_of_another_length():
    model = transformer().fit(cones()[:, 0, 0])
    said = ("6 features", "expecting 8 features")
    refused(lambda: model.transform(cones()[:, 0, 0, :6]), ValueError, *said)
    refused(lambda: model.transform(cones()), ValueError, "(6, 4, 8)", "(n, 8)")


@pytest.mark.parametrize(
    ("X", "y", "error", "said"),
    [
        (summaries()[0][:0], summaries()[1][:0], ValueError, ["0 sample(s)"]),
        (summaries()[0][:1], summaries()[1][:1], ValueError, ["1 sample(s)", "minimum of 2"]),
        (cones(20), summaries()[1], ValueError, ["(n, n_summary)", "SKATRTransformer", "(20, 6"]),
        (summaries()[0][:, 0], summaries()[1], ValueError, ["1D array", "reshape"]),
        (
            summaries()[0].astype(str),
            summaries()[1],
            TypeError,
            ["X: expected real numbers, found dtype <U"],
        ),
        (
            summaries()[0],
            summaries()[1].astype(str),
            TypeError,
            ["y: expected real numbers, found dtype <U", "asarray(y"],
        ),
        (summaries()[0], ["low"] * 20, TypeError, ["y: expected real numbers, found dtype <U3"]),
        (summaries()[0], summaries()[1] + 1j, ValueError, ["Complex data", "y.real"]),
        (summaries()[0], summaries()[1][:, None], ValueError, ["dim 3"]),
        (summaries()[0], summaries()[1][:, :0], ValueError, ["0 feature(s)"]),
        (summaries()[0], [[1.0], [1.0, 2.0]] * 10, ValueError, ["y: expected one array"]),
    ],
)
def test_no_summaries_or_targets(X, y, error, said):
    refused_by_fit(regressor(), X, y, error, *said)


def test_predict_on_what_the_head_has_not_seen(fitted_regressor):
    X, _ = summaries()
    for wrong, said in ((X[:, :3], "expecting 4 features"), (cones(), "SKATRTransformer")):
        refused(
            functools.partial(fitted_regressor.predict, wrong),
            ValueError,
            said,
            estimators=[fitted_regressor],
        )


def test_std_needs_a_gaussian_head(fitted_regressor):
    said = ("return_std=True", "fitted with loss='gaussian'", "fit again with loss='gaussian'")
    refused(lambda: fitted_regressor.predict(summaries()[0], return_std=True), ValueError, *said)


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch_size", "said"),
    [
        (4, ["axis 0 has 6 cells, patches 4: nearest divisors [3, 6]", "(6, 4, 8)"]),
        ((2, 3, 8), ["axis 1 has 4 cells, patches 3: nearest divisors [2, 4]"]),
        ((2, 2, 5), ["axis 2 has 8 cells, patches 5: nearest divisors [4, 8]"]),
        ((2, 2, 16), ["axis 2 has 8 cells, patches 16: nearest divisors [8]"]),
        ((4, 3, 5), ["axis 0", "axis 1", "axis 2"]),
        ((2, 2), ["2 sizes", "3 axes", "one size per axis"]),
        ((6, 4, 8), ["single patch", "smaller patches"]),
    ],
    ids=str,
)
def test_patches_that_do_not_fit(patch_size, said):
    refused_by_fit(transformer(), cones(), None, ValueError, *said, patch_size=patch_size)


STRINGS = [
    ("transformer", "patch_size", "atuo", "auto"),
    ("transformer", "max_epochs", "Auto", "auto"),
    ("transformer", "on_new_grid", "resampel", "resample"),
    ("transformer", "pooling", "maen", "mean"),
    ("transformer", "whiten", "Auto", "auto"),
    ("transformer", "pooling", "token", "tokens"),
    ("transformer", "embedding", "moment", "moments"),
    ("transformer", "attention", "axail", "axial"),
    ("transformer", "objective", "jeppa", "jepa"),
    ("transformer", "objective", "reconstruct", "reconstruction"),
    ("transformer", "objective", "vcreg", "vicreg"),
    ("transformer", "objective__masks", "multi-block", "multiblock"),
    ("transformer", "objective__loss", "smoothl1", "smooth_l1"),
    ("transformer", "objective__loss", "L1", "l1"),
    ("transformer", "cache", "memroy", "memory"),
    ("transformer", "cache", "Memory", "memory"),
    ("transformer", "precision", "bfloat16", "bf16"),
    ("transformer", "precision", "float23", "float32"),
    ("transformer", "device", "cdua", "cuda"),
    ("transformer", "device", "gpu", "cuda"),
    ("regressor", "loss", "gausian", "gaussian"),
    ("regressor", "loss", "mse", "l2"),
    ("regressor", "pooling", "atention", "attention"),
    ("regressor", "hidden_dims", "atuo", "auto"),
    ("regressor", "n_members", "Auto", "auto"),
    ("posterior", "n_members", "Auto", "auto"),
    ("regressor", "learning_rate", "aut", "auto"),
    ("regressor", "precision", "fp32", "float32"),
    ("regressor", "device", "CPU:", "cpu"),
]


@pytest.mark.parametrize(("owner", "name", "found", "right"), STRINGS)
def test_a_misspelt_string_gets_the_nearest_right_one(owner, name, found, right):
    X, y = (cones(), None) if owner == "transformer" else summaries()
    estimator = transformer() if owner == "transformer" else regressor()
    said = (f"- {name}: expected ", f"found {found!r}", f"did you mean {right!r}?")
    refused_by_fit(estimator, X, y, ValueError, *said, **{name: found})


def test_every_string_parameter_is_in_the_list_above():
    for make, owner in ((SKATRTransformer, "transformer"), (LightconeRegressor, "regressor")):
        parameters = inspect.signature(make).parameters.values()
        strings = {p.name for p in parameters if isinstance(p.default, str)}
        if make is SKATRTransformer:
            nested = inspect.signature(JEPA).parameters.values()
            strings |= {f"objective__{p.name}" for p in nested if isinstance(p.default, str)}
        assert strings == {name for kind, name, *_ in STRINGS if kind == owner}


def test_nothing_is_suggested_where_nothing_is_near():
    message = refused(
        lambda: transformer(objective__loss="hellinger").fit(cones()), ValueError, "hellinger"
    )
    assert "did you mean" not in message


WHOLE = ["embed_dim", "depth", "n_heads", "batch_size", "checkpoint_every"]
WHOLE += ["objective__predictor_dim"]


@pytest.mark.parametrize("value", [0, -4, 2.0, True, "8", None])
def test_sizes_are_positive_integers(value):
    wrong = dict.fromkeys(WHOLE, value)
    said = [f"- {name}: expected an integer >= 1, found {value!r}" for name in WHOLE]
    refused_by_fit(
        transformer(), cones(), None, ValueError, f"{len(WHOLE)} invalid", *said, **wrong
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 0),
        ("patch_size", -2),
        ("patch_size", 2.0),
        ("patch_size", True),
        ("patch_size", (2, -2, 2)),
        ("patch_size", None),
        ("max_epochs", -1),
        ("max_epochs", True),
        ("objective__predictor_depth", -1),
        ("attention", "axail"),
        ("attention", None),
        ("mlp_ratio", 0.0),
        ("mlp_ratio", float("nan")),
        ("objective__masks", "none"),
        ("objective__masks", []),
        ("objective__masks", ["short"]),
        ("objective__masks", None),
        ("objective__min_context", 0.0),
        ("objective__min_context", 1.0),
        ("objective__ema_decay", 1.5),
        ("objective__ema_decay", -0.1),
        ("objective__ema_decay", (0.9, 1.1)),
        ("objective__ema_decay", (0.9,)),
        ("objective__ema_decay", "fast"),
        ("objective__ema_decay", None),
        ("objective__normalize_targets", 1),
        ("augment", "yes"),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("weight_decay", -1e-3),
        ("warmup", 1.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("patience", 0),
        ("brightness_range", (1, 0)),
        ("brightness_range", (3, 3)),
        ("brightness_range", (-120,)),
        ("brightness_range", -120),
        ("brightness_range", ("a", "b")),
        ("brightness_range", (float("nan"), 0)),
        ("brightness_range", (float("-inf"), 0)),
        ("weights", 3),
        ("checkpoint_dir", 3),
        ("device", None),
        ("device", 3.5),
        ("device", "meta"),
        ("precision", 16),
        ("callbacks", object),
        ("callbacks", "progress"),
        ("verbose", -1),
        ("verbose", "loud"),
        ("verbose", None),
        ("random_state", "zero"),
        ("random_state", -1),
    ],
    ids=str,
)
def test_wrong_parameters_of_the_transformer(name, value):
    said = ("SKATRTransformer has 1 invalid parameter:", f"- {name}: expected ", f"{value!r}")
    for error in (ValueError, TypeError):  # one class for both: a wrong value may be either
        refused_by_fit(transformer(), cones(), None, error, *said, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_dims", 8),
        ("hidden_dims", "wide"),
        ("hidden_dims", (8, 0)),
        ("hidden_dims", (8, 2.5)),
        ("hidden_dims", (True,)),
        ("hidden_dims", None),
        ("loss", None),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("max_epochs", -1),
        ("batch_size", 0),
        ("learning_rate", "fast"),
        ("weight_decay", None),
        ("validation_fraction", 1),
        ("patience", -5),
        ("device", "cuda:x"),
        ("verbose", 0.5),
        ("random_state", 2**40),
        ("target_bounds", "prior"),
    ],
    ids=str,
)
def test_wrong_parameters_of_the_head(name, value):
    said = ("LightconeRegressor has 1 invalid parameter:", f"- {name}: expected ", f"{value!r}")
    refused_by_fit(regressor(), *summaries(), ValueError, *said, **{name: value})


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([[0, 1]], ["(2, 2)", "(1, 2)"]),
        ([0, 1], ["(n_parameters, 2)", "(2,)"]),
        ([[0, 1, 2], [0, 1, 2]], ["(n_parameters, 2)", "(2, 3)"]),
        ([[-9, 9], [9, -9]], ["low < high", "[1]"]),
        ([[-9, 9], [3, 3]], ["low < high", "[1]"]),
        ([[-9, np.inf], [-9, 9]], ["finite", "[0]"]),
        ([[-9, np.nan], [-9, 9]], ["finite", "[0]"]),
    ],
    ids=str,
)
def test_wrong_target_bounds(bounds, said):
    said = ["- target_bounds: expected", *said]
    refused_by_fit(regressor(), *summaries(), ValueError, *said, target_bounds=bounds)


def test_all_wrong_parameters_in_one_message():
    wrong = dict(depth=0, pooling="men", learning_rate=-1, device="cdua")
    wrong |= dict(objective__loss="l3", objective__ema_decay=2)
    said = ["SKATRTransformer has 6 invalid parameters:"] + [f"\n- {name}: " for name in wrong]
    refused_by_fit(transformer(), cones(), None, ValueError, *said, **wrong)
    wrong = dict(loss="l3", dropout=2, hidden_dims=0, target_bounds=[[1, 0]])
    said = ["LightconeRegressor has 4 invalid parameters:"] + [f"\n- {name}: " for name in wrong]
    refused_by_fit(regressor(), *summaries(), ValueError, *said, **wrong)


def test_wrong_parameters_are_found_before_the_data_are_read():
    class Unread:
        shape = (10**9, 100, 100, 1000)

        def __array__(self, *args, **kwargs):
            raise AssertionError("the data were read")

    refused(lambda: transformer(depth=0).fit(Unread()), ValueError, "depth")


def test_heads_that_do_not_divide_the_width():
    said = ("- n_heads: expected a divisor of embed_dim=12, found 5", "nearest", "[4, 6]")
    refused_by_fit(transformer(), cones(), None, ValueError, *said, n_heads=5)


@pytest.mark.parametrize("name", ["embed_dim", "objective__predictor_dim"])
def test_widths_that_cannot_hold_the_positions(name):
    said = (f"- {name}: expected at least 6", "(3, 2, 4)", "found 4")
    refused_by_fit(transformer(), cones(), None, ValueError, *said, **{name: 4})


def test_a_device_that_is_not_there():
    said = ("- device: expected 'auto', 'cpu'", "found 'cuda:99'")
    refused_by_fit(transformer(), cones(), None, ValueError, *said, device="cuda:99")


def test_resuming_needs_a_seed(tmp_path):
    wrong = dict(checkpoint_dir=tmp_path, random_state=None)
    said = ("- random_state: expected an int with checkpoint_dir", "found None")
    refused_by_fit(transformer(), cones(), None, ValueError, *said, **wrong)


def test_a_wrong_parameter_set_after_the_fit(fitted_transformer):
    model = copy.deepcopy(fitted_transformer).set_params(pooling="men")
    refused(lambda: model.transform(cones()), ValueError, "- pooling", "'mean'")


def test_an_unknown_parameter_name():
    with pytest.raises(TypeError, match="patchsize"):
        SKATRTransformer(patchsize=2)
    with pytest.raises(ValueError, match="patchsize"):
        SKATRTransformer().set_params(patchsize=2)


def test_numpy_numbers_are_numbers(tmp_path):
    # As a search over numpy.arange hands them in.
    given = dict(embed_dim=np.int64(12), n_heads=np.int32(2), patch_size=np.int64(2))
    given |= dict(mlp_ratio=np.float32(2.0), max_epochs=np.int64(1), augment=np.True_)
    model = transformer(**given).fit(cones())
    np.testing.assert_array_equal(model.transform(cones()), transformer().fit_transform(cones()))
    model.save(tmp_path / "weights.safetensors")
    head = regressor(hidden_dims=(np.int64(8),), batch_size=np.int64(16), dropout=np.float32(0))
    assert head.fit(*summaries()).predict(summaries()[0]).shape == (20, 2)


# --- small data, and training that fails half-way -----------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("n", [2, 3])
def test_some_rows_always_train(n, fraction):
    model = transformer(validation_fraction=fraction).fit(cones(n))
    assert ("valid_loss" in model.history_[0]) == (fraction > 0)
    X, y = summaries(n)
    head = regressor(validation_fraction=fraction).fit(X, y)
    assert ("valid_loss" in head.history_[0]) == (fraction > 0)
    assert np.isfinite(head.predict(X)).all()


def test_divergence_says_what_to_do():
    said = ("Training diverged", "learning_rate", "epoch")
    X, y = summaries()
    wrong = dict(learning_rate=1e30, loss="l2", max_epochs=50)
    refused_by_fit(regressor(), X, y, FloatingPointError, *said, **wrong)


class Failing(Callback):
    """A callback that fails in the middle of a training."""

    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, **kwargs):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_training_that_ends_half_way_changes_nothing(error):
    X, y = summaries()
    wrong = dict(callbacks=[Failing(error)])
    # Other data than those of the first fit: nothing of them may stay.
    done = refused_by_fit(transformer(), cones(12, (8, 8)), None, error, **wrong)
    assert done.field_shape_in_ == SHAPE
    assert done.n_features_in_ == 6
    done = refused_by_fit(regressor(), X[:, :3], y[:, 0], error, **wrong)
    assert done.n_features_in_ == 4
    assert done.predict(X).shape == (20, 2)


def test_a_failed_refit_on_a_frame_keeps_the_names_away():
    pandas = pytest.importorskip("pandas")
    X, y = summaries()
    head = regressor().fit(X, y)
    frame = pandas.DataFrame(X, columns=list("abcd"))
    refused(
        lambda: head.fit(frame, y * np.nan), ValueError, "y: expected finite", estimators=[head]
    )
    assert not hasattr(head, "feature_names_in_")
