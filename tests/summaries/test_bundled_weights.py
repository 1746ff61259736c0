"""The weights that come with the package, by name."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skatr_sk
from skatr_sk import SKATRTransformer, load_lightcones
from skatr_sk.summaries.weights import BUNDLED, read_encoder

FOLDER = Path(skatr_sk.__file__).parent / "summaries" / "weights"


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
    assert summaries.shape == (4, 192)
    by_path = SKATRTransformer.load(FOLDER / "mini-lr.safetensors", device="cpu")
    np.testing.assert_array_equal(by_path.transform(X), summaries)


@pytest.mark.slow
@pytest.mark.parametrize("n_labels", [64, 128, 183])  # with 32 they tie with random weights
def test_they_beat_random_weights_and_the_signal(n_labels):
    """On real light cones; two draws of random weights, and one ridge for all."""
    cones = load_lightcones()
    X, y = cones.data, cones.target[:, 1:]  # m_WDM leaves no mark
    skatr = SKATRTransformer(weights="mini-lr", device="cpu").fit(X)
    found = skatr.architecture_
    sizes = dataclasses.asdict(found) | dict(pooling=skatr.pooling_, max_epochs=0, device="cpu")
    del sizes["field_shape"]
    untrained = [SKATRTransformer(**sizes, random_state=seed).fit(X) for seed in (1, 2)]
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
    trained, *random, plain = (
        cross_val_score(ridge, Z, y, cv=folds).mean()
        for Z in (skatr.transform(X), *(each.transform(X) for each in untrained), signal)
    )
    assert trained > max(random) + 0.03
    assert trained > plain + 0.15


def test_kelvin_are_warned_of():
    X = load_lightcones().data[:4]
    with pytest.warns(UserWarning, match="is it in kelvin"):
        SKATRTransformer(weights="mini-lr", device="cpu").fit(X / 1000)


def test_a_name_that_is_not_bundled():
    cones = load_lightcones().data[:2]
    with pytest.raises(FileNotFoundError, match=r"bundled names mini-lr, found no file at 'mini'"):
        SKATRTransformer(weights="mini").fit(cones)


def test_light_cones_of_another_grid(rng):
    with pytest.raises(ValueError, match=r"\(14, 14, 90\)"):
        SKATRTransformer(weights="mini-lr").fit(rng.normal(scale=30, size=(2, 14, 14, 94)))
