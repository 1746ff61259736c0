"""Predictions and posteriors at the ends of what a head was trained on, counted in one warning."""

import warnings

import numpy as np
import pytest

from skatr_sk import ExtrapolationWarning, LightconeRegressor, PosteriorEstimator
from skatr_sk.heads.extrapolation import at_the_edges, warn_at_the_edges, warn_beyond


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if issubclass(w.category, ExtrapolationWarning)]


def regressor(**parameters):
    small = dict(hidden_dims="auto", n_members=1, max_epochs=2, random_state=0)
    return LightconeRegressor(**small | parameters)


def line(n=40):
    X = np.linspace(0, 1, n)[:, np.newaxis] * np.ones(3)
    return X, np.stack([X[:, 0], np.full(n, 7.0)], axis=1)


def test_predictions_beyond_the_range_are_counted_once():
    X, y = line()
    head = regressor().fit(X, y)
    assert not warned(lambda: head.predict(X))
    beyond = np.concatenate([X, [[1.5, 1.5, 1.5]]])
    (message,) = warned(lambda: head.predict(beyond))
    assert message.startswith("LightconeRegressor: expected predictions inside the range of the ")
    assert " of 41, the first of them rows " in message
    assert "in parameter_0, at or beyond it, by up to" in message
    assert len(warned(lambda: head.score(beyond, np.ones((41, 2))))) == 1


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0]], ids=str)
def test_targets_at_the_ends_are_predicted_there(values, tmp_path, rng):
    y = rng.choice(values, 60)
    X = y[:, np.newaxis] + 0.05 * rng.normal(size=(60, 3))
    head = regressor().fit(X, y)
    head.save(tmp_path / "head.skops")
    for each in (head, LightconeRegressor.load(tmp_path / "head.skops")):
        assert not warned(lambda each=each: each.predict(X))
        assert warned(lambda each=each: each.predict(X + 2))


@pytest.mark.parametrize(
    ("unit", "n_outside"),
    [
        ([0.5] * 20, 0),
        ([1.02] * 2 + [0.5] * 18, 0),  # a little, by noise
        ([1.02], 0),
        ([1.2], 0),
        ([1.3], 1),
        ([1.3] + [0.5] * 500, 1),
        ([1.0] * 10 + [0.5] * 10, 10),
        ([0.995] * 10, 10),  # a sigmoid never quite reaches the end
        ([np.inf], 1),
        ([], 0),
    ],
    ids=str,
)
def test_far_or_many(unit, n_outside):
    both = np.stack([unit, np.full(len(unit), np.nan)], axis=1)
    found = warned(lambda: warn_beyond("Head", both, "its range", ["a", "b"]))
    assert len(found) == bool(n_outside)
    if found:
        assert f"inside its range, found {n_outside} of {len(unit)}, the first" in found[0]
        assert " in a, " in found[0]


def test_posteriors_that_pile_up_at_an_edge(rng):
    bounds = np.array([[0.0, 1.0], [-5.0, 5.0], [-np.inf, np.inf]])
    samples = rng.uniform([0, -5, -9], [1, 5, 9], size=(20, 100, 3))
    assert not at_the_edges(samples, bounds).any()
    samples[3, :80, 1] = 4.99
    piled = at_the_edges(samples, bounds)
    assert np.argwhere(piled).tolist() == [[3, 1]]
    assert not warned(
        lambda: warn_at_the_edges("Head", piled, list("abc"))
    )  # a truth may lie there
    piled[:8, 0] = True
    (message,) = warned(lambda: warn_at_the_edges("Head", piled, list("abc")))
    assert "found 8 of 20, the first of them rows 0, 1, 2, 3, 4 and 3 more, in a, b, " in message


def test_a_posterior_of_what_is_far_away(rng):
    y = rng.uniform(size=(300, 1))
    X = (y + 0.02 * rng.normal(size=(300, 3))).astype(np.float32)
    head = PosteriorEstimator(
        prior_bounds=[[0, 1]], n_blocks=1, hidden_dims=(16,), n_members=1, max_epochs=15,
        learning_rate=2e-2, random_state=0,
    ).fit(X, y)  # fmt: skip
    asked = [lambda X: head.sample(X, 50), lambda X: head.predict(X, n_samples=64)]
    asked += [lambda X: head.predict_quantiles(X, n_samples=64)]
    for ask in asked:
        assert not warned(lambda ask=ask: ask(X))
        assert len(warned(lambda ask=ask: ask(X + 3))) == 1
