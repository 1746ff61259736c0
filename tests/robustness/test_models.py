"""Hostile files of models: each ends in a typed error that names it, soon and in little memory."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
from skatr_sk.summaries import JEPA
from tests.robustness import stored
from tests.robustness.stored import assert_each_is_refused, at, look, rewrite

KEY = "skatr_sk_model"
HEAD = dict(max_epochs=1, device="cpu", random_state=0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Files of each kind of model."""
    folder = tmp_path_factory.mktemp("good")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4)).astype(np.float32)
    y = X[:, :2] + rng.normal(size=(30, 2))
    fields = rng.normal(size=(8, 4, 4, 6)).astype(np.float32)
    small = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, device="cpu", random_state=0)
    skatr = SKATRTransformer(
        **small, max_epochs=1, objective=JEPA(predictor_dim=8, predictor_depth=1)
    )
    vit = SKATRTransformer(patch_size=2, embed_dim=8, depth=1, n_heads=2)
    flow = PosteriorEstimator(n_blocks=2, n_bins=4, hidden_dims=(8,), n_members=2, **HEAD)
    models = {
        "ridge": LightconeRegressor(**HEAD).fit(X, y),
        "network": LightconeRegressor(hidden_dims=(8,), **HEAD).fit(X, y),
        "posterior": flow.fit(X, y),
        "transformer": skatr.fit(fields),
        "backbone": LightconeRegressor(backbone=vit, **HEAD).fit(fields, y[:8]),
        "cnn": PosteriorEstimator(backbone="cnn", n_blocks=1, n_bins=4, hidden_dims=(8,), **HEAD),
        "pipeline": make_pipeline(StandardScaler(), PCA(2), flow).fit(X, y),
        "noise": NoiseTransformer(random_state=0, wedge=1, redshifts=[*range(7, 13)], cell_size=7),
        "cubes": NoiseTransformer(noise=fields[:2], random_state=0).fit(fields),
        "resampled": LightconeResampler(shape=(3, 2, 9), input_cell_size=7).fit(fields),
        "spectra": PowerSpectrumTransformer(cell_size=7).fit(fields),
    }
    models["cnn"].fit(fields, y[:8])
    models["noise"].fit(fields)
    for name, model in models.items():
        save_model(model, folder / name)
        load_model(folder / name)
    return folder


IN = ("model", "learned")
NETWORK = (*IN, "head_", "dict", "parts", 0, "dict")
FLOW = (*IN, "net_", "dict", "parts", 0, "dict")
VALUES = [0, -1, 1.5, "4", None, True, [2], {}, {"a": 1, "b": 2}, 10**9, 10**30, float("nan")]


def wrong_values():
    """Which value of which model's header becomes what."""
    for key in ("n_summary", "n_parameters", "hidden_dims", "dropout", "cut", "gaussian"):
        right = {"dropout": (0, None), "cut": (True,), "gaussian": (True,)}.get(key, ())
        for value in (v for v in VALUES if not any(v is one for one in right)):
            if not (key == "hidden_dims" and value == [2]) and (key, value) != ("dropout", 0):
                yield "network", (*NETWORK, key), value
    for key in ("n_parameters", "n_summary", "n_blocks", "n_bins", "hidden_dims", "pooling"):
        for value in VALUES:
            yield "posterior", (*FLOW, key), value
    yield from [("network", (*NETWORK, "hidden_dims"), v) for v in ([0], [-8], [10**9], ["8"], "8")]
    yield from [("network", (*NETWORK, "hidden_dims"), [1] * n) for n in (2, 10_000)]
    yield from [("posterior", (*FLOW, "hidden_dims"), v) for v in ([], [0], [10**6, 10**6])]
    for name in ("network", "posterior"):
        for key in ("summary_mean_", "history_", "field_shape_in_", "n_features_in_"):
            for value in (None, 3.5, "text", [1], {"array": "nowhere"}, {"tuple": [5]}, 10**9):
                yield name, (*IN, key), value
        for value in VALUES:
            yield name, (*IN, "_one_dimensional"), value
        for kind in ("Ridge", "Linear", "torch.nn.Linear", 3, None, ["Head"]):
            yield name, (*(NETWORK if name == "network" else FLOW), "kind"), kind
    for value in VALUES[:-1]:
        yield "network", (*IN, "network_weight_"), 2 if value in (0, True) else value
        yield "posterior", (*IN, "n_parameters_"), value
        yield "posterior", (*IN, "parameter_names_"), value
        yield "transformer", (*IN, "encoder_"), value
        yield "posterior", (*IN, "net_"), value
        yield "network", (*IN, "head_"), value
        yield "transformer", (*IN, "architecture_", "dict", "depth"), value or 2
        yield "transformer", (*IN, "architecture_", "dict", "embed_dim"), value
        yield (
            "transformer",
            (*IN, "scaling_", "dict", "scale"),
            1e99 if value in (1.5, 10**9, 10**30) else value,
        )
        yield "transformer", (*IN, "_pooling_found"), value
        yield "backbone", (*IN, "backbone_"), value
        yield "backbone", (*IN, "head_", "dict", "seen"), value
        yield "cnn", (*IN, "backbone_"), value
        for key in ("field_shape", "scaling", "arrays"):
            yield "cnn", (*IN, "backbone_", "dict", key), value
        for name in ("network", "backbone", "cnn"):
            yield name, (*IN, "seen_"), value or 3
        for key in ("level", "wedge", "subtract_mean"):
            right = {"level": (None,), "wedge": (None,), "subtract_mean": (True,)}[key]
            wrong = 3 if value in right else value
            yield "noise", (*IN, "_instrument", "dict", key), wrong
        for key in ("sigma_", "slopes_", "seed_", "_instrument"):
            right = (0, 1.5, 10**9) if key in ("seed_", "sigma_") else ()
            yield "noise", (*IN, key), -1 if value in right or value is True else value
        yield "cubes", (*IN, "_instrument", "dict", "cubes"), value or 3
        for key in ("first", "last", "block", "given", "wanted"):
            yield "resampled", (*IN, "_resampling", 0, "dict", key), value or -1
        for key in ("_resampling", "field_shape_out_", "grid_", "grid_in_"):
            yield "resampled", (*IN, key), value or 3
        for key in ("chunks_", "bins_", "cell_size_", "k_unit_", "redshifts_"):
            yield "spectra", (*IN, key), value or 3
        yield "ridge", (*IN, "head_", "dict", "together"), None if value is True else value
        yield "ridge", (*IN, "head_", "dict", "parts"), value
        yield "pipeline", ("model", "parameters", "steps"), value
    for shape in ([4, 4], [4, 4, 7], [10**9] * 3, [4, 4, 6, 1], [0, 4, 6], [96]):
        yield "cnn", (*IN, "backbone_", "dict", "field_shape"), shape
    for place in (("model",), ("model", "learned"), ("model", "parameters"), ("format",)):
        for value in (None, 3.5, "text", [1], {"estimator": "os.system"}):
            yield "network", place, value
    classes = ["os.system", "sklearn.ensemble.RandomForestRegressor", "FunctionTransformer", "Head"]
    for kind in [
        *classes,
        "PosteriorEstimator",
        "JEPA",
        "Pipeline",
        3,
        None,
        ["LightconeRegressor"],
    ]:
        yield "network", ("model", "estimator"), kind
    for key, value in {"loss": "l3", "max_epochs": -1, "callbacks": [3], "device": 5}.items():
        yield "network", ("model", "parameters", key), value
    for name in ("noise", "cubes", "resampled", "spectra"):
        for shape in ([4, 4], [4, 4, 7], [10**9] * 3, [4, 4, 6, 1], [0, 4, 6], [96]):
            if (name, shape) != ("resampled", [4, 4, 7]):  # a model that takes six slices of seven
                yield name, (*IN, "field_shape_in_"), {"tuple": shape}
    for key in ("__class__", "fit", "backbone_", "nothing_", "__dict__", "_parameters"):
        yield "network", (*IN, key), "text"
    yield "network", ("model", "output"), "csv"
    scaler = ("model", "parameters", "steps", 0, "tuple", 1)
    for key in ("mean_", "scale_", "n_features_in_", "n_samples_seen_"):
        for value in ("text", [1.0], True, {"array": "nowhere"}, {"dict": {}}):
            yield "pipeline", (*scaler, "learned", key), value
    yield "pipeline", (*scaler, "learned", "own_"), 1
    yield "pipeline", (*scaler, "parameters", "with_mean"), "yes"
    yield "pipeline", (*scaler, "parameters", "own"), 1


def deep(n):
    """A list in a list, and so on: JSON that is deeper than Python goes."""
    found = inner = []
    for _ in range(n):
        inner.append([])
        inner = inner[0]
    return found


def wrong_headers(folder, good, values):
    for i, (name, place, value) in enumerate(values):
        change = at(*place, value=copy.deepcopy(value))
        path = rewrite(good / name, folder / f"header-{i}", KEY, header=change)
        yield f"{name} {place} {str(value)[:40]}", path
    change = at(*IN, "history_", value=deep(700))
    yield "deep", rewrite(good / "network", folder / "deep", KEY, header=change)


def wrong_tensors(folder, good):
    """Other arrays in the place of each."""
    names = "network", "posterior", "transformer", "pipeline", "backbone", "cnn"
    for name in (*names, "noise", "resampled", "spectra"):
        _, kept = look(good / name, KEY)
        ends = ("summary_mean_", "encoder_.norm.bias", "arrays.layers.0.bias")
        ends += ("level", "wanted", "chunks_")
        scaled = next(key for key in kept if key.endswith(ends))
        cases = {
            "none": {},
            "one more": kept | {"more": torch.zeros(3)},
            **{f"{kind} of {one}": tensors for one, kind, tensors in _changed(kept, scaled)},
        }
        for i, (what, tensors) in enumerate(cases.items()):
            path = folder / f"tensors-{name}-{i}"
            yield f"{name}: {what}", rewrite(good / name, path, KEY, tensors=lambda _, t=tensors: t)


def _changed(kept, *names):
    biggest = max(kept, key=lambda key: kept[key].numel())
    indices = [
        key for key, values in kept.items() if values.dtype == torch.int64 and values.numel()
    ]
    for one in {*names, biggest}:
        values = kept[one]
        for kind in {torch.bool, torch.int64, torch.uint8} - {values.dtype}:
            yield one, kind, kept | {one: values.to(kind)}
        yield one, "empty", kept | {one: values[:0]}
        yield one, "longer", kept | {one: torch.cat([values, values])}
        yield one, "flat", kept | {one: values.flatten()[None, None]}
        if values.is_floating_point():
            yield one, "NaN", kept | {one: torch.full_like(values, torch.nan)}
            yield one, "inf", kept | {one: torch.full_like(values, torch.inf)}
    for one in indices[:2]:  # which number a spline takes: beyond the end would be compiled code's
        yield one, "far", kept | {one: kept[one] + 10**6}


@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.slow)])
def test_hostile_models(every, good, tmp_path):
    values = list(wrong_values())
    files = dict(wrong_headers(tmp_path, good, values[::every]))
    tensors = list(wrong_tensors(tmp_path, good))
    files |= dict(tensors[:: 1 if every == 1 else 3])
    (containers := tmp_path / "containers").mkdir()
    files |= stored.broken_containers(containers, good / "network", KEY)
    files |= stored.not_regular(containers)
    assert len(files) > 500 // every
    assert_each_is_refused(files, "model")


def test_a_flipped_bit_is_found_anywhere(good, tmp_path):
    whole = (good / "pipeline").read_bytes()
    n_header = 64 + 8 * int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    bits = [
        *range(0, 64, 7),
        *rng.integers(n_header, size=60),
        *rng.integers(8 * len(whole), size=60),
    ]
    for path in stored.flipped(tmp_path, good / "pipeline", map(int, bits)).values():
        with pytest.raises(ValueError, match=path.name):
            load_model(path)


# Whatever JSON can say, and more often what a header does say.
WORDS = st.sampled_from(
    ["estimator", "array", "tuple", "dict", "Head", "Ridge", "mean", "JEPA", "1"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | WORDS
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=5,
)
MODELS = st.sampled_from(
    ["ridge", "network", "posterior", "transformer", "backbone", "cnn", "pipeline"]
    + ["noise", "cubes", "resampled", "spectra"]
)


def places(tree, path=()):
    """All places in a tree of JSON but those of history, of which there would be many."""
    if path:
        yield path
    if not isinstance(tree, dict | list):
        return
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in inside:
        if key != "json":
            yield from places(value, (*path, key))


def fuzzed(max_examples):
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def loads_or_says_why(path):
    """Load a model, which is then fitted, or get an error that names the file."""
    try:
        load_model(path)
    except (OSError, ValueError) as error:
        assert path.name in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [30, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_value_anywhere(examples, good, tmp_path):
    @fuzzed(examples)
    @given(MODELS, st.lists(st.tuples(st.integers(0), ANYTHING), min_size=1, max_size=3))
    def check(name, changes):
        def change(header):
            for number, value in changes:
                all_places = list(places(header))
                if all_places:
                    at(*all_places[number % len(all_places)], value=value)(header)
            return header

        loads_or_says_why(rewrite(good / name, tmp_path / "fuzzed", KEY, header=change))

    check()


@pytest.mark.parametrize("examples", [30, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_bytes_anywhere(examples, good, tmp_path):
    @fuzzed(examples)
    @given(MODELS, st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40))
    def check(name, share, n_cut, put):
        whole = (good / name).read_bytes()
        start = int(share * len(whole))
        (tmp_path / "fuzzed").write_bytes(whole[:start] + put + whole[start + n_cut :])
        loads_or_says_why(tmp_path / "fuzzed")

    check()
