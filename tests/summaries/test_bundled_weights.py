"""The weights that come with the package, by name."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_score
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
def test_they_beat_random_weights_and_the_signal():
    """On real light cones; random weights of the same encoder, and one ridge for all."""
    cones = load_lightcones()
    X, y = cones.data, cones.target[:, 1:]  # m_WDM leaves no mark
    skatr = SKATRTransformer(weights="mini-lr", device="cpu").fit(X)
    found = skatr.architecture_
    untrained = SKATRTransformer(
        patch_size=found.patch_size,
        embed_dim=found.embed_dim,
        depth=found.depth,
        embedding=found.embedding,
        pooling=skatr.pooling_,
        max_epochs=0,
        device="cpu",
        random_state=0,
    ).fit(X)
    signal = np.concatenate([X.mean(axis=(1, 2)), X.std(axis=(1, 2))], axis=1)
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13), alpha_per_target=True))
    trained, random, plain = (
        cross_val_score(ridge, Z, y, cv=5).mean()
        for Z in (skatr.transform(X), untrained.transform(X), signal)
    )
    assert trained > random + 0.03
    assert trained > plain + 0.15


def test_a_name_that_is_not_bundled():
    cones = load_lightcones().data[:2]
    with pytest.raises(FileNotFoundError, match=r"bundled names mini-lr, found no file at 'mini'"):
        SKATRTransformer(weights="mini").fit(cones)


def test_light_cones_of_another_grid():
    with pytest.raises(ValueError, match=r"\(14, 14, 90\)"):
        SKATRTransformer(weights="mini-lr").fit(np.zeros((2, 14, 14, 94), dtype=np.float32))
