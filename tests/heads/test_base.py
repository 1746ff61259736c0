"""What the heads share: the members of an ensemble, their rows and their histories."""

import numpy as np
import pytest

from skatr_sk import InvalidParameterError, PosteriorEstimator
from skatr_sk.fields import as_fields

SMALL = dict(n_blocks=2, n_bins=5, hidden_dims=(8,), max_epochs=3, batch_size=32)
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
    np.testing.assert_array_equal(given.predict(X), fixed.predict(X))


def test_no_member_is_refused():
    with pytest.raises(InvalidParameterError, match="n_members: expected an integer >= 1, found 0"):
        make(n_members=0).fit(*draw())
