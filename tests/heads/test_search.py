"""HeadSearchCV: the scores of GridSearchCV, trained at once, and one by one where it must be."""

import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skatr_sk import (
    HeadSearchCV,
    LightconeRegressor,
    PosteriorEstimator,
    SKATRTransformer,
    open_lightcones,
    save_model,
)
from skatr_sk.training import trainer
from tests.training.runs import Act

REGRESSOR = LightconeRegressor(hidden_dims=(16,), max_epochs=12, patience=5, random_state=0)
# Two learning rates with dropout, and two shapes without; at the higher rate some stop early.
GRID = [
    {"learning_rate": [1e-5, 0.1], "dropout": [0.2]},
    {"learning_rate": [0.1], "hidden_dims": [(16,), (8, 8)]},
]
POSTERIOR = PosteriorEstimator(
    max_epochs=2, n_blocks=1, hidden_dims=(8,), n_members=1, random_state=0
)
CASES = {
    "regressors": (REGRESSOR, GRID),
    "with ridge": (LightconeRegressor(max_epochs=5, random_state=0), {"weight_decay": [0.0, 1.0]}),
    "posteriors": (POSTERIOR, [{"learning_rate": [1e-5]}, {"n_members": [2]}]),
}


def draw(n=101):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, np.tanh(X[:, :2]) + 0.05 * rng.normal(size=(n, 2))


@pytest.fixture
def alone(monkeypatch):
    """Networks that were trained by themselves."""
    found, train = [], trainer.Trainer.fit_loop
    monkeypatch.setattr(
        trainer.Trainer,
        "fit_loop",
        lambda net, *args, **kwargs: found.append(net) or train(net, *args, **kwargs),
    )
    return found


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize(
    ("kind", "weighted"),
    [
        *((kind, True) for kind in CASES),
        *(pytest.param(kind, False, marks=pytest.mark.slow) for kind in CASES),
    ],
)
def test_scores_are_those_of_a_grid_search(kind, weighted, alone):
    X, y = draw()
    given = {"sample_weight": np.random.default_rng(1).uniform(0.5, 2, len(X))} if weighted else {}
    head, grid = CASES[kind]
    options = dict(cv=KFold(2, shuffle=True, random_state=0), return_train_score=True)
    found = HeadSearchCV(head, grid, refit=False, **options).fit(X, y, **given)
    assert not alone  # nothing was trained by itself
    wanted = GridSearchCV(head, grid, refit=False, **options).fit(X, y, **given)
    assert found.cv_results_["params"] == wanted.cv_results_["params"]
    for name in ("mean_test_score", "split0_test_score", "mean_train_score"):
        np.testing.assert_allclose(
            found.cv_results_[name], wanted.cv_results_[name], rtol=0.01, atol=0.01
        )
    assert found.best_params_ == wanted.best_params_
    assert (found.cv_results_["mean_fit_time"] > 0).all()


def test_it_is_the_best_estimator():
    X, y = draw()
    search = HeadSearchCV(REGRESSOR, {"learning_rate": [1e-5, 1e-2]}, cv=3)
    assert clone(search).get_params(deep=False).keys() == search.get_params(deep=False).keys()
    pipe = make_pipeline(StandardScaler(), search).fit(X, y)
    assert search.best_params_ == {"learning_rate": 1e-2} and search.n_splits_ == 3
    assert search.cv == 3 and search.estimator is REGRESSOR
    np.testing.assert_array_equal(
        pipe.predict(X), search.best_estimator_.predict(pipe[0].transform(X))
    )
    assert pipe.score(X, y) > 0.5


def test_splits_are_drawn_once(alone):
    X, y = draw()
    search = HeadSearchCV(REGRESSOR, {"weight_decay": [0.0, 0.1]}, cv=2)
    drawn = KFold(2, shuffle=True, random_state=np.random.RandomState(0))  # anew in each call
    search.set_params(refit=False, cv=drawn).fit(X, y)
    assert not alone


@pytest.mark.parametrize(
    ("head", "grid", "why"),
    [
        (REGRESSOR, {"callbacks": [[Act("epoch", lambda net: None)]]}, "itself: callbacks"),
        (REGRESSOR, {"backbone": ["cnn"]}, "itself: a backbone"),
        (Ridge(), {"alpha": [1.0]}, "one by one: the estimator is a Ridge"),
    ],
    ids=["callbacks", "backbone", "another"],
)
@pytest.mark.filterwarnings("ignore::skatr_sk.NoEffectWarning")
def test_what_is_fitted_one_by_one_is_named(head, grid, why, caplog):
    X, y = draw(40)
    if "backbone" in grid:
        head = LightconeRegressor(max_epochs=1, random_state=0)
    with caplog.at_level(logging.INFO, logger="skatr_sk.heads"):
        search = HeadSearchCV(head, grid, cv=2, error_score="raise").fit(X, y)
    assert why in caplog.text
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_fails_costs_no_other(alone):
    X, y = draw(60)
    search = HeadSearchCV(REGRESSOR, {"learning_rate": [-1.0, 1e-2]}, cv=2, refit=False)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search.fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False]
    assert not alone
    with pytest.raises(ValueError, match="learning_rate: expected"):
        search.set_params(error_score="raise").fit(X, y)


def l1_of_rows(predicted, target):
    return (predicted - target).abs().mean(dim=1)


@pytest.mark.parametrize(
    "head",
    [
        TransformedTargetRegressor(
            LightconeRegressor(hidden_dims=(8,), max_epochs=4, random_state=0),
            transformer=StandardScaler(),
        ),
        LightconeRegressor(
            hidden_dims=(8,), max_epochs=4, validation_fraction=0, patience=None, random_state=0,
            loss=l1_of_rows,
        ),
    ],
    ids=["inside another", "own loss"],
)  # fmt: skip
def test_what_is_fitted_one_by_one_sees_its_own_fold(head, rng):
    X = rng.normal(size=(90, 4))
    y = X @ [1.0, 2.0, 0.5, 0.0]
    name = "learning_rate" if hasattr(head, "learning_rate") else "regressor__learning_rate"
    searches = [
        kind(head, {name: [1e-3, 1e-2]}, cv=2).fit(X, y) for kind in (GridSearchCV, HeadSearchCV)
    ]
    one, other = (search.cv_results_["mean_test_score"] for search in searches)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_candidate_that_diverges_takes_no_other_along(rng):
    X = rng.normal(size=(90, 4))
    y = X @ [1.0, 2.0, 0.5, 0.0]
    head = LightconeRegressor(hidden_dims=(8,), max_epochs=5, random_state=0, loss="l2")
    grid = {"learning_rate": [1e-3, 1e35, 1e-2]}
    with pytest.warns(FitFailedWarning):
        search = HeadSearchCV(head, grid, cv=2).fit(X, y)
    first, second, third = search.cv_results_["mean_test_score"]
    assert np.isnan(second)
    alone = GridSearchCV(head, {"learning_rate": [1e-3, 1e-2]}, cv=2).fit(X, y)
    np.testing.assert_allclose([first, third], alone.cv_results_["mean_test_score"], rtol=1e-4)


TABLES = {
    "columns": lambda X: pd.DataFrame({name: X[:, k].copy() for k, name in enumerate("abcdef")}),
    "numbers": lambda X: pd.DataFrame({name: X[:, k].copy() for k, name in enumerate("abcdef")})
    .astype({"a": "float64", "b": "Float32"}),
    "half": lambda X: X.astype(np.float16),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_trained_at_once_and_become_one_array(table, alone, monkeypatch):
    X, y = draw()
    X = TABLES[table](X)
    held, train = [], LightconeRegressor._train_on_summaries
    monkeypatch.setattr(
        LightconeRegressor,
        "_train_on_summaries",
        lambda self, network, data, *rest: held.append(data[0].read()) or train(
            self, network, data, *rest
        ),
    )  # fmt: skip
    short = clone(REGRESSOR).set_params(max_epochs=2)
    search = HeadSearchCV(short, {"learning_rate": [1e-3, 1e-2, 1e-1]}, cv=3, refit=False)
    search.fit(X, pd.DataFrame(y, index=np.arange(len(y)) + 7))
    assert not alone and len(held) == 9
    assert len({id(values) for values in held}) == 3  # one for each fold
    search.set_params(refit=True).fit(X, y)
    if table != "half":
        assert search.best_estimator_.feature_names_in_.tolist() == list("abcdef")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"head__learning_rate": [1e-3], "head__n_members": [1]},
            r"param_grid: expected parameters of LightconeRegressor, found "
            r"\['head__learning_rate', 'head__n_members'\]; "
            "here it is 'learning_rate', 'n_members', for there are no steps",
        ),
        (
            [{"dropout": [0.0]}, {"learning_rat": [1]}],
            "'learning_rat'; did you mean 'learning_rate'",
        ),
        ({"lightconeregressor__loss": ["l1"]}, "here it is 'loss', for there are no steps"),
        ({1: [0.1], "dropout": [0.0]}, "found 1$"),
        (
            {"hiden_dims": [(4,)], "head__dropout": [0.0]},
            "'dropout', for there are no steps; 'hiden_dims': did you mean 'hidden_dims'",
        ),
    ],
)
def test_names_that_are_no_parameters(grid, message):
    with pytest.raises(ValueError, match=message):
        HeadSearchCV(LightconeRegressor(), grid).fit(*draw(20))


def test_a_pipeline_has_names_of_its_steps(rng):
    search = HeadSearchCV(make_pipeline(REGRESSOR), {"learning_rate": [1e-3]}, cv=2)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    with pytest.raises(ValueError, match=r"param_grid: .*step__name.*'learning_rate'.*head alone"):
        search.fit(X, y)
    pipe = Pipeline([("scale", StandardScaler()), ("head", clone(REGRESSOR))])
    grid = {"scale": [PCA()], "scale__n_components": [1, 2]}  # of what takes the step's place
    assert len(HeadSearchCV(pipe, grid, cv=2).fit(X, y).cv_results_["rank_test_score"]) == 2


def test_parameters_of_parameters(caplog):
    X, y = np.random.default_rng(0).normal(size=(20, 6, 6, 8)), np.arange(20.0)
    small = SKATRTransformer(patch_size=2, embed_dim=8, depth=1)
    grid = {"backbone__depth": [1, 2]}
    for backbone in (small, "vit"):
        head = LightconeRegressor(max_epochs=1, backbone=backbone, random_state=0)
        search = HeadSearchCV(head, grid, cv=2, refit=False, error_score="raise").fit(X, y)
        assert len(search.cv_results_["params"]) == 2


def test_files_are_not_read_where_nothing_is_trained_at_once(tmp_path, monkeypatch):
    np.save(tmp_path / "cones.npy", np.random.default_rng(0).normal(size=(20, 6, 6, 8)))
    X, y = open_lightcones(tmp_path / "cones.npy").data, np.arange(20.0)
    monkeypatch.setattr(type(X), "__array__", None)
    small = SKATRTransformer(patch_size=2, embed_dim=8, depth=1, max_epochs=1, random_state=0)
    head = LightconeRegressor(max_epochs=1, backbone=FrozenEstimator(small.fit(X)), random_state=0)
    search = HeadSearchCV(head, {"dropout": [0.0, 0.1]}, cv=2, refit=False, error_score="raise")
    assert len(search.fit(X, y).cv_results_["params"]) == 2


def test_weights_of_another_length_are_named(rng):
    search = HeadSearchCV(LightconeRegressor(), {"weight_decay": [0.0, 1e-3]})
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(20,\), found \(5,\)"):
        search.fit(rng.normal(size=(20, 2)), rng.normal(size=20), sample_weight=np.ones(5))


def test_a_search_says_what_of_it_a_file_holds(rng, tmp_path):
    head = LightconeRegressor(hidden_dims=(4,), max_epochs=1, random_state=0)
    search = HeadSearchCV(head, {"weight_decay": [0.0]}, cv=2)
    search.fit(rng.normal(size=(20, 2)), rng.normal(size=20))
    with pytest.raises(ValueError, match="save its best_estimator_"):
        save_model(search, tmp_path / "model")
