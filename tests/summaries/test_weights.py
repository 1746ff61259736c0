"""Sizes, frozen encoders on disk, those that are bundled, and pipelines that never train them."""

import copy
import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import skatr_sk
from skatr_sk import SKATRTransformer, _files, load_lightcones
from skatr_sk._tensors import write_tensors
from skatr_sk.summaries import JEPA, pretraining, weights
from skatr_sk.summaries.weights import BUNDLED, read_encoder

FOLDER = Path(skatr_sk.__file__).parent / "summaries" / "weights"
SMALL = dict(
    embed_dim=8,
    depth=1,
    n_heads=2,
    objective=JEPA(predictor_dim=8, predictor_depth=1),
    batch_size=16,
    max_epochs=1,
    device="cpu",
    random_state=0,
)
SHAPES = {(8,): 2, (4, 6): (2, 3), (4, 4, 6): (2, 2, 3)}


def fields(shape=(4, 6), n=20):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return SKATRTransformer(**SMALL, patch_size=(2, 3)).fit(fields())


@pytest.fixture
def path(fitted, tmp_path):
    fitted.save(tmp_path / "skatr.safetensors")
    return tmp_path / "skatr.safetensors"


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(pretraining, "train", refuse)


def rewrite(path, *, change=None, tensors=None):
    """Write a weights file anew, with its digest, and parts of it changed."""
    with safe_open(path, framework="pt") as stream:
        found = json.loads(stream.metadata()["skatr_sk"])
    if change is not None:
        change(found)
    write_tensors(path, "skatr_sk", found, (tensors or dict)(load_file(path)))


@pytest.mark.parametrize("pooling", ["mean", "max", "moments", "tokens"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_round_trip_keeps_every_bit(shape, pooling, tmp_path):
    X = fields(shape)
    fitted = SKATRTransformer(**SMALL, patch_size=SHAPES[shape], pooling=pooling).fit(X)
    fitted.save(tmp_path / "w.safetensors")
    loaded = SKATRTransformer.load(tmp_path / "w.safetensors", device="cpu")
    assert loaded.pooling == pooling
    expected = fitted.transform(X)
    assert expected.std() > 0
    np.testing.assert_array_equal(loaded.transform(X), expected)
    assert loaded.history_ == fitted.history_
    assert loaded.scaling_ == fitted.scaling_
    assert loaded.architecture_ == fitted.architecture_
    assert loaded.field_shape_in_ == shape
    if pooling != "tokens":
        assert list(loaded.get_feature_names_out()) == list(fitted.get_feature_names_out())
    else:
        with pytest.raises(ValueError, match="no columns to name"):
            loaded.get_feature_names_out()
        with pytest.raises(ValueError, match="no columns to name"):
            loaded.set_output(transform="pandas").transform(X)


def test_what_nobody_could_read_is_not_written(fitted, tmp_path):
    fitted.save(tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    wrong = copy.deepcopy(fitted).set_params(pooling="meen")
    for refused in (lambda: wrong.save(tmp_path / "w.safetensors"), wrong.get_feature_names_out):
        with pytest.raises(ValueError, match="pooling: expected"):
            refused()
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_weights_pool_as_they_were_saved(tmp_path):
    X = fields((4, 6))
    path = tmp_path / "w.safetensors"
    fitted = SKATRTransformer(**SMALL, patch_size=2, pooling="moments").fit(X)
    fitted.save(path)
    frozen = SKATRTransformer(weights=path).fit(X)
    assert frozen.get_params()["pooling"] == "auto"
    assert frozen.pooling_ == "moments"
    np.testing.assert_array_equal(frozen.transform(X), fitted.transform(X))
    of_mean = SKATRTransformer(weights=path, pooling="mean").fit(X)
    assert of_mean.pooling_ == "mean"
    width = of_mean.transform(X).shape[1]
    pooled = fitted.set_params(whiten=False).transform(X)
    np.testing.assert_array_equal(of_mean.transform(X), pooled[:, :width])
    # Pooling needs no training, so that it may be changed afterwards, and "auto" goes back.
    assert frozen.set_params(pooling="mean").transform(X).shape == (len(X), width)
    assert frozen.set_params(pooling="auto").transform(X).shape == (len(X), 2 * width)
    assert SKATRTransformer(**SMALL, patch_size=2, pooling="max").fit(X).pooling_ == "max"


def test_a_scaling_that_contradicts_the_file(tmp_path):
    X = fields((4, 6))
    SKATRTransformer(**SMALL, patch_size=2, pooling="max").fit(X).save(tmp_path / "w.safetensors")
    frozen = SKATRTransformer(weights=tmp_path / "w.safetensors", brightness_range=(-1, 1))
    with pytest.raises(ValueError, match="brightness_range: expected .* as in the weights file"):
        frozen.fit(X)


def test_a_loaded_transformer_is_saved_alike(path, tmp_path):
    SKATRTransformer.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_header_is_plain_json(path, fitted):
    with safe_open(path, framework="np") as stream:
        header = json.loads(stream.metadata()["skatr_sk"])
        names = set(stream.keys())
    assert header["version"] == skatr_sk.__version__
    assert header["architecture"] == {
        "field_shape": [4, 6],
        "patch_size": [2, 3],
        "embed_dim": 8,
        "depth": 1,
        "n_heads": 2,
        "mlp_ratio": 2.0,
        "embedding": "moments",
    }
    assert set(header["scaling"]) == {"softening", "offset", "scale", "subtract_mean"}
    assert header["scaling"]["scale"] == fitted.scaling_.scale
    assert header["history"] == fitted.history_
    learned = {f"whitening.{name}" for name in vars(fitted.whitening_)}
    learned |= {f"seen.{name}" for name in vars(fitted.seen_)}
    assert names == {*fitted.encoder_.state_dict(), *learned}


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, -8, -1])
def test_truncated_files(path, keep):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*truncated.*Copy it again") as error:
        read_encoder(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(0).bytes(3000),
        b"\x00" * 500,
        b"\xff" * 500,
        pickle.dumps({"weights": 1}),
        b"{}",
    ],
    ids=["random", "zeros", "ones", "pickle", "text"],
)
def test_files_of_another_kind(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*SKATRTransformer\.save"):
        read_encoder(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(path, metadata):
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*without a skatr_sk header.*save"):
        read_encoder(path)


def set_to(key, value):
    return lambda header: header.__setitem__(key, value)


def architecture(**parts):
    return lambda header: header["architecture"].update(parts)


@pytest.mark.parametrize(
    "change",
    [
        set_to("architecture", None),
        set_to("architecture", [1, 2]),
        set_to("scaling", {"shift": 1}),
        set_to("scaling", None),
        set_to("history", 3),
        set_to("format", "one"),
        set_to("pooling", "meen"),
        lambda header: header.pop("format"),
        lambda header: header.pop("scaling"),
        architecture(patch_size=[0, 3]),
        architecture(patch_size=[2]),
        architecture(patch_size=2),
        architecture(embed_dim="wide"),
        architecture(embed_dim=-8),
        architecture(colour="red"),
        architecture(voxels=[2]),
        architecture(voxels=[2, 0]),
        architecture(voxels=[10**9, 10**9]),
        architecture(positions=[[0, 1]]),
        architecture(positions=[[0, 1], [0, -1]]),
        architecture(positions=[[0, 1], [1e300, 1]]),
        architecture(positions=[0, 1]),
        architecture(positions=[[0, 1, 2], [0, 1, 2]]),
        architecture(positions=[[0, "1"], [0, 1]]),
    ],
)
def test_headers_that_cannot_be_used(path, change):
    rewrite(path, change=change)
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*header that cannot be used"):
        read_encoder(path)


@pytest.mark.parametrize("header", [[], None, 3, "text"])
def test_headers_of_another_kind(path, header):
    with safe_open(path, framework="pt") as stream:
        assert "skatr_sk" in stream.metadata()
    save_file(load_file(path), path, metadata={"skatr_sk": json.dumps(header)})
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*header that cannot be used"):
        read_encoder(path)


def test_files_from_before_there_were_digests(path, fitted):
    """Format 1 is read without one; a later format has to have it."""
    for format_, message in ((1, None), (2, "another digest")):
        with safe_open(path, framework="pt") as stream:
            header = json.loads(stream.metadata()["skatr_sk"]) | {"format": format_}
        old = path.with_name(f"format-{format_}")
        save_file(load_file(path), old, metadata={"skatr_sk": json.dumps(header)})
        if message is None:
            again = SKATRTransformer.load(old)
            np.testing.assert_array_equal(again.transform(fields()), fitted.transform(fields()))
            again.save(old)
            assert old.read_bytes() == path.read_bytes()
        else:
            with pytest.raises(ValueError, match=message):
                read_encoder(old)


def test_a_header_that_is_too_long_is_not_written(fitted, tmp_path):
    long = copy.copy(fitted)
    long.history_ = [{"epoch": 1, "note": "x" * 9_000_000}]
    with pytest.raises(ValueError, match="header of at most 8000000 bytes.*shorten history_"):
        long.save(tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_scales_beyond_float32_are_not_written(fitted, tmp_path):
    odd = copy.copy(fitted)
    odd.scaling_ = dataclasses.replace(fitted.scaling_, scale=0.0)
    with pytest.raises(ValueError, match="scale: expected a number in"):
        odd.save(tmp_path / "w")


def test_a_newer_format(path):
    rewrite(path, change=lambda h: h.update(format=99, version="7.0"))
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*99 is newer.*upgrade.*by 7\.0"):
        read_encoder(path)


@pytest.mark.parametrize("change", [architecture(embed_dim=16), architecture(depth=2)])
def test_tensors_that_do_not_fit_the_header(path, change):
    rewrite(path, change=change)
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*another architecture.*anew"):
        read_encoder(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: {k: v for k, v in t.items() if k != "embed.texture.bias"},
            "embed.texture.bias is missing",
        ),
        (lambda t: t | {"extra": torch.zeros(1)}, "extra is not part of it"),
        (
            lambda t: t | {"embed.texture.bias": torch.zeros(9)},
            r"embed.texture.bias has shape \(9,\).*\(8,\)",
        ),
        (
            lambda t: t | {"embed.texture.bias": torch.full((8,), torch.nan)},
            "embed.texture.bias has NaN",
        ),
        (lambda t: t | {"norm.weight": torch.full((8,), torch.inf)}, "norm.weight has NaN or inf"),
    ],
)
def test_damaged_tensors(path, damage, message):
    rewrite(path, tensors=damage)
    with pytest.raises(ValueError, match=r"skatr\.safetensors.*" + message):
        read_encoder(path)


@pytest.mark.parametrize("missing", ["nothing.safetensors", "no/such/folder.safetensors"])
def test_a_missing_file(tmp_path, missing):
    name = os.fspath(tmp_path / missing)
    with pytest.raises(FileNotFoundError, match="bundled names mini-lr, mini-lr-labels") as error:
        SKATRTransformer(weights=name).fit(fields())
    assert repr(name) in str(error.value)


def test_a_bad_file_changes_nothing(fitted, path):
    transformer = clone(fitted).fit(fields())
    before = transformer.transform(fields())
    path.write_bytes(b"damaged")
    transformer.set_params(weights=path)
    with pytest.raises(ValueError, match="cannot be read"):
        transformer.fit(fields())
    np.testing.assert_array_equal(transformer.transform(fields()), before)


def test_nothing_is_unpickled(path, fitted, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    loaded = SKATRTransformer.load(path)
    np.testing.assert_array_equal(loaded.transform(fields()), fitted.transform(fields()))


def test_a_failing_write_leaves_the_old_file(path, fitted, monkeypatch):
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", fail)
    with pytest.raises(OSError, match="make room"):
        fitted.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(OSError, match="make room"):
        fitted.save(path.with_name("new"))
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupted_rename_leaves_the_old_file(path, fitted, monkeypatch):
    before = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="folder .*absent does not exist; create it first"):
        fitted.save(tmp_path / "absent" / "w.safetensors")


def test_weights_make_fit_load_and_train_nothing(path, fitted, no_training):
    loaded = SKATRTransformer(weights=path).fit(fields())
    np.testing.assert_array_equal(loaded.transform(fields()), fitted.transform(fields()))
    # One field is enough where nothing is learned; the scaling is the file's.
    few = SKATRTransformer(weights=path).fit(100 * fields(n=1))
    np.testing.assert_array_equal(few.transform(fields()), fitted.transform(fields()))
    with pytest.raises(AssertionError, match="trained again"):  # the guard is in place
        clone(fitted).fit(fields())


def test_fields_of_another_shape(path):
    message = (
        r"X: expected fields of shape \(4, 6\), for which the weights in .*skatr\.safetensors "
        r"are, found \(6, 4\); resample X to that grid"
    )
    with pytest.raises(ValueError, match=message):
        SKATRTransformer(weights=path).fit(fields((6, 4)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(embed_dim=16), "embed_dim: expected 8 as in the weights file, found 16; leave it"),
        (dict(depth=3), "depth: expected 1"),
        (dict(n_heads=8, embed_dim=8), "n_heads: expected 2"),
        (dict(mlp_ratio=3.0), "mlp_ratio: expected 2.0"),
        (dict(patch_size=1), r"patch_size: expected \(2, 3\).*found \(1, 1\)"),
        (dict(embed_dim=16, depth=3), "(?s)2 invalid parameters.*embed_dim.*depth"),
    ],
)
def test_parameters_that_contradict_the_file(path, parameters, message):
    with pytest.raises(ValueError, match=message):
        SKATRTransformer(weights=path, **parameters).fit(fields())
    with pytest.raises(ValueError, match=message):
        SKATRTransformer.load(path, **parameters)


def test_parameters_that_agree_with_the_file(path, fitted, no_training):
    same = SKATRTransformer(weights=path, embed_dim=8, depth=1, n_heads=2, patch_size=[2, 3])
    np.testing.assert_array_equal(
        same.fit(fields()).transform(fields()), fitted.transform(fields())
    )


def test_a_frozen_transformer_works_in_a_pipeline(fitted, no_training):
    X, y = fields(), fields().mean(axis=(1, 2))
    pipe = Pipeline([("skatr", FrozenEstimator(fitted)), ("head", Ridge())]).fit(X, y)
    expected = Ridge().fit(fitted.transform(X), y).predict(fitted.transform(X))
    np.testing.assert_allclose(pipe.predict(X), expected)
    scores = cross_validate(pipe, X, y, cv=3, error_score="raise")
    assert np.isfinite(scores["test_score"]).all()


def test_a_search_over_heads_loads_and_never_trains(path, fitted, no_training):
    X, y = fields(), fields().mean(axis=(1, 2))
    pipe = Pipeline([("skatr", SKATRTransformer(weights=path)), ("head", Ridge())])
    grid = {"head__alpha": [0.1, 1.0]}
    search = GridSearchCV(pipe, grid, cv=2, error_score="raise").fit(X, y)
    # Just as a search over the head alone, on the summaries of the frozen encoder.
    Z = fitted.transform(X)
    alone = GridSearchCV(Pipeline([("head", Ridge())]), grid, cv=2).fit(Z, y)
    assert search.best_params_ == alone.best_params_
    for name in ("mean_test_score", "split0_test_score", "split1_test_score"):
        np.testing.assert_allclose(search.cv_results_[name], alone.cv_results_[name], rtol=1e-5)
    assert search.cv_results_["mean_test_score"].std() > 0
    np.testing.assert_allclose(search.best_estimator_.predict(X), alone.predict(Z), rtol=1e-5)


def test_weights_of_another_embedding(rng, tmp_path):
    X = rng.normal(size=(12, 8, 8)).astype(np.float32)
    small = dict(embed_dim=8, depth=1, n_heads=2, max_epochs=0, random_state=0)
    SKATRTransformer(**small).fit(X).save(tmp_path / "w.safetensors")
    other = SKATRTransformer(weights=tmp_path / "w.safetensors", embedding="linear")
    with pytest.raises(ValueError, match="embedding: expected 'moments' as in the weights file"):
        other.fit(X)
    linear = SKATRTransformer(**small, embedding="linear").fit(X)
    linear.save(tmp_path / "w.safetensors")
    # Left at its default, the embedding is that of the file.
    found = SKATRTransformer(weights=tmp_path / "w.safetensors").fit(X)
    assert found.architecture_.embedding == "linear"
    np.testing.assert_array_equal(found.transform(X), linear.transform(X))


# Those that come with the package --------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_small_and_whole(name):
    assert (FOLDER / f"{name}.safetensors").stat().st_size <= 4_000_000
    frozen = read_encoder(name)
    assert frozen.architecture == read_encoder(FOLDER / f"{name}.safetensors").architecture
    assert frozen.history  # it was trained


def test_every_file_has_a_name():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.safetensors" for name in BUNDLED}


def test_they_are_loaded_by_name():
    X = load_lightcones().data[:4]
    skatr = clone(SKATRTransformer(weights="mini-lr", device="cpu")).fit(X)
    summaries = skatr.transform(X)
    assert summaries.shape == (4, 288)
    by_path = SKATRTransformer.load(FOLDER / "mini-lr.safetensors", device="cpu")
    np.testing.assert_array_equal(by_path.transform(X), summaries)


@pytest.mark.slow
@pytest.mark.parametrize("n_labels", [32, 64, 128, 183])
def test_they_beat_random_weights_and_the_signal(n_labels):
    """On real light cones; three draws of random weights, one of them whitened, and one ridge."""
    cones = load_lightcones()
    X, y = cones.data, cones.target[:, 1:]  # m_WDM leaves no mark
    skatr = SKATRTransformer(weights="mini-lr", device="cpu").fit(X)
    sizes = skatr.architecture_.parameters()
    sizes |= dict(pooling=skatr.pooling_, max_epochs=0, device="cpu")
    untrained = [
        SKATRTransformer(**sizes, whiten=whiten, random_state=seed).fit(X)
        for seed, whiten in ((1, False), (2, False), (1, True))
    ]
    signal = np.concatenate([X.mean(axis=(1, 2)), X.std(axis=(1, 2))], axis=1)
    ridge = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))),
        transformer=StandardScaler(),
    )
    # The same labels for all.
    rng = np.random.default_rng(0)
    folds = [
        (rng.permutation(train)[:n_labels], test)
        for seed in range(3)
        for train, test in KFold(5, shuffle=True, random_state=seed).split(X)
    ]
    trained, *random, whitened, plain = (
        cross_val_score(ridge, Z, y, cv=folds).mean()
        for Z in (skatr.transform(X), *(each.transform(X) for each in untrained), signal)
    )
    assert trained > max(random) + 0.03
    assert trained > whitened + 0.01
    assert trained > plain + 0.15


def test_kelvin_are_warned_of():
    X = load_lightcones().data[:4]
    with pytest.warns(UserWarning, match="is it in kelvin"):
        SKATRTransformer(weights="mini-lr", device="cpu").fit(X / 1000)


def test_a_name_that_is_not_bundled():
    cones = load_lightcones().data[:2]
    with pytest.raises(FileNotFoundError, match="found no file at 'mini-rl'; did you mean 'mini-l"):
        SKATRTransformer(weights="mini-rl").fit(np.zeros((2, 14, 14, 90)))
    with pytest.raises(FileNotFoundError, match="bundled names .*, found no file at 'mini'"):
        SKATRTransformer(weights="mini").fit(cones)


def test_light_cones_of_another_grid(rng):
    with pytest.raises(ValueError, match=r"\(14, 14, 90\)"):
        SKATRTransformer(weights="mini-lr").fit(rng.normal(scale=30, size=(2, 14, 14, 94)))


def test_a_file_that_has_not_changed_is_read_once(path, fitted, monkeypatch):
    """What comes back is a copy; a file with other times, or that changed just now, is read."""
    read = []
    plain = weights.TensorFile.read
    monkeypatch.setattr(weights.TensorFile, "read", lambda self: read.append(1) or plain(self))
    read_encoder(path)
    read_encoder(path)
    assert len(read) == 2  # written just now: another writer may leave the same times
    monkeypatch.setattr(weights, "_SETTLED", -(10**18))
    first = read_encoder(path)
    with torch.no_grad():
        first.encoder.norm.weight.zero_()
    first.history.clear()
    second = read_encoder(path)
    assert len(read) == 3 and second.history
    torch.testing.assert_close(second.encoder.norm.weight, fitted.encoder_.norm.weight)
    other = SKATRTransformer(**SMALL | {"random_state": 1}, patch_size=(2, 3)).fit(fields())
    other.save(path)
    found = read_encoder(path).encoder.norm.weight
    torch.testing.assert_close(found, other.encoder_.norm.weight)
    assert len(read) == 4


def test_what_was_read_once_is_copied_whole(monkeypatch):
    """No tensor and no dictionary is that of the next reader, and all are as in a deep copy."""
    monkeypatch.setattr(weights, "_SETTLED", -(10**18))
    mine, next_one = (read_encoder("mini-lr").encoder for _ in range(2))
    tables = ("_parameters", "_buffers", "_modules")
    for one, other, deep in zip(
        *(each.modules() for each in (mine, next_one, copy.deepcopy(mine))), strict=True
    ):
        assert type(one) is type(deep) and vars(one).keys() == vars(deep).keys()
        for name, value in vars(one).items():
            if name in tables:
                assert value.keys() == getattr(deep, name).keys()
            else:
                assert value == getattr(deep, name)
            if isinstance(value, dict | set):
                assert value is not getattr(other, name)
    tensors = (
        dict(each.named_parameters()) | dict(each.named_buffers()) for each in (mine, next_one)
    )
    for tensor, other in zip(*(each.values() for each in tensors), strict=True):
        assert torch.equal(tensor, other) and tensor.data_ptr() != other.data_ptr()
        assert type(tensor) is type(other) and tensor.requires_grad == other.requires_grad
