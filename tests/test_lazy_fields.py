"""Lazy fields of every kind: their indices are numpy's, or say what to do."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.model_selection import KFold, train_test_split

from skatr_sk import (
    LightconeResampler,
    NoiseTransformer,
    SimulatedLightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.fields import Fields, digest_rows
from skatr_sk.lazy_fields import DerivedFields

N, SHAPE = 4, (6, 6, 20)
VALUES = np.random.default_rng(0).normal(0, 30, (N, *SHAPE)).astype(np.float16)
KINDS = ["file", "simulated", "part", "resampled", "noisy", "noisy part", "maps", "signals"]


class Simulated(SimulatedLightcones):
    """Rows of a simulation that costs nothing."""

    def _read(self, numbers, tell=int):
        return VALUES[numbers].astype(np.float32)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lazy")
    found = {"simulated": Simulated(N, field_shape=SHAPE, random_state=0)}
    for name, values in {
        "file": VALUES,
        "maps": VALUES[..., 0],
        "signals": VALUES[:, 0, 0],
    }.items():
        save_lightcones(folder / f"{name}.h5", values)
        found[name] = open_lightcones(folder / f"{name}.h5", validate=False).data
    found["part"] = found["file"][..., 1:-1, ::2]
    found["resampled"] = LightconeResampler(factor=2).fit_transform(found["file"])
    found["noisy"] = NoiseTransformer(noise=3.0, random_state=0).fit_transform(found["file"])
    found["noisy part"] = found["noisy"][1:, ..., 2:9]
    return found


INDICES = [
    np.s_[...],
    np.s_[::-1],
    np.s_[:2, ..., 1:4],
    np.s_[[2, 0, 2], ..., ::3],
    np.s_[..., -3:],
    np.s_[:, 1:99],
    np.s_[1],
    np.s_[-1, ..., 2],
    np.s_[np.array(1), ..., 1:3],
    np.s_[0, ..., None],
    np.s_[[], ..., :2],
]


@pytest.mark.parametrize("kind", KINDS)
def test_indices_are_those_of_numpy(fields, kind):
    X, values = fields[kind], np.asarray(fields[kind])
    for index in INDICES:
        expected = values[index]
        np.testing.assert_array_equal(np.asarray(X[index]), expected)
    mask = np.arange(len(X)) % 2 == 0
    np.testing.assert_array_equal(np.asarray(X[mask, ..., 1:]), values[mask][..., 1:])
    chained = X[1:][..., 1:][::-1][..., ::2]
    np.testing.assert_array_equal(np.asarray(chained), values[1:][..., 1:][::-1][..., ::2])
    assert isinstance(chained, Fields) and not chained.in_memory


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_said_of_each_field_says_what_to_do(fields, kind):
    X = fields[kind]
    for index, said in [
        (np.s_[:, 2], r"\[:, 2\]; read"),
        (np.s_[..., ::-1], r"\[\.\.\., ::-1\]"),
        (np.s_[:, None], r"\[:, None\]"),
        (np.s_[..., [0, 1]], r"\[\.\.\., \[0, 1\]\]"),
        (np.s_[..., 2:2], "at least one cell.* found .*2:2"),
        (np.s_[..., ...], "slices of the"),
        (None, "found None"),
        (np.ones(len(X) + 1, bool), "expected a mask"),
    ]:
        with pytest.raises(IndexError, match=said):
            X[index]
    with pytest.raises(ValueError, match="without reading"):
        X.__array__(copy=False)
    assert X[(slice(None),) * X.ndim].shape == X[..., :].shape == X.shape


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_splitters_and_digests(fields, kind):
    X, values = fields[kind], np.asarray(fields[kind])
    again = pickle.loads(pickle.dumps(X[1:, ..., 1:]))
    np.testing.assert_array_equal(np.asarray(again), values[1:, ..., 1:])
    rows = [split for _, split in KFold(2).split(X)]
    sums = joblib.Parallel(1)(joblib.delayed(np.sum)(X[part]) for part in rows)
    assert len(sums) == 2
    one, other = train_test_split(X, random_state=0)
    expected = train_test_split(values, random_state=0)
    np.testing.assert_array_equal(np.asarray(one), expected[0])
    np.testing.assert_array_equal(np.asarray(other), expected[1])
    if kind != "simulated":  # which are known by their seeds
        assert X[..., 1:].digests() == digest_rows(values[..., 1:])
    assert isinstance(X[..., 1:], DerivedFields)
