"""Several objectives on one encoder: parameters, the sum of losses, and what each still does."""

import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skatr_sk import SKATRTransformer
from skatr_sk._checks import NoEffectWarning, PlaceWarning
from skatr_sk.summaries import JEPA, Combined, LeJEPA, Reconstruction, Supervised, VICReg
from skatr_sk.summaries.objectives import Objective
from skatr_sk.summaries.objectives.combined import CombinedLoss
from skatr_sk.summaries.objectives.jepa import JEPANetwork
from skatr_sk.summaries.weights import Architecture
from tests.gaussian_fields import gaussian_fields, ridge_probe

SMALL = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=2, batch_size=8)
SMALL |= dict(device="cpu", random_state=0)


def tiny_jepa(**parameters):
    return JEPA(predictor_dim=8, predictor_depth=1, **parameters)


def both(weights=None, **of_jepa):
    parts = [("jepa", tiny_jepa(**of_jepa)), ("labels", Supervised())]
    return Combined(objectives=parts, weights=weights)


def fitted(objective, X, y=None, **parameters):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PlaceWarning)
        return SKATRTransformer(objective=objective, **SMALL | parameters).fit(X, y)


# Parameters --------------------------------------------------------------------------------------


def test_parameters_are_reached_by_name():
    skatr = SKATRTransformer(objective=both())
    skatr.set_params(objective__jepa__ema_decay=0.5, objective__weights=[1, 0.1])
    skatr.set_params(objective__labels=Supervised(loss="l2"))
    assert skatr.get_params()["objective__jepa__ema_decay"] == 0.5
    assert [name for name, _ in skatr.objective.objectives] == ["jepa", "labels"]
    assert skatr.objective.objectives[1][1].loss == "l2" and skatr.objective.weights == [1, 0.1]
    with pytest.raises(ValueError, match="Invalid parameter 'vicreg'"):
        skatr.set_params(objective__vicreg__region=0.1)
    with pytest.raises(TypeError, match="objectives"):
        Combined()


def test_it_is_cloned_and_stored(X, y, tmp_path):
    given = both(weights=[1.0, 2.0], ema_decay=0.5)
    cloned = clone(given)
    assert cloned.objectives[0][1] is not given.objectives[0][1]
    assert repr(cloned) == repr(given) and "ema_decay=0.5" in repr(given)
    joblib.dump(fitted(given, X, y), tmp_path / "skatr.joblib")
    loaded = joblib.load(tmp_path / "skatr.joblib")
    np.testing.assert_array_equal(loaded.transform(X), fitted(cloned, X, y).transform(X))


@pytest.mark.filterwarnings("ignore::skatr_sk.PlaceWarning")
def test_a_search_over_weights_and_objectives(X, y):
    skatr = SKATRTransformer(objective=both(), **SMALL | dict(max_epochs=1))
    pipe = Pipeline([("skatr", skatr), ("head", Ridge())])
    grid = {"skatr__objective__weights": [[1.0, 0.0], [0.0, 1.0]]}
    options = dict(cv=2, refit=False, error_score="raise")
    search = GridSearchCV(pipe, grid, **options).fit(X, y)
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0
    grid = {"skatr__objective__jepa": [VICReg(), LeJEPA()]}
    search = GridSearchCV(pipe, grid, **options).fit(X, y)
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0


PAIR = ("jepa", JEPA())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (dict(objectives=[]), "objectives: expected a list of"),
        (dict(objectives="jepa"), "objectives: expected a list of"),
        (dict(objectives=[JEPA()]), "objectives: expected a list of"),
        (dict(objectives=[("jepa", "jepa")]), "objectives: expected a list of"),
        (dict(objectives=[("mine", Objective())]), "objectives: expected a list of"),
        (dict(objectives=[("jepa", JEPA)]), r"objectives: .*did you mean JEPA\(\)\?"),
        (dict(objectives=[PAIR, PAIR]), "objectives: .*names are different words"),
        (dict(objectives=[("a__b", JEPA())]), "objectives: .*names are different words"),
        (dict(objectives=[("weights", JEPA())]), "objectives: .*names are different words"),
        (dict(objectives=[("", JEPA())]), "objectives: .*names are different words"),
        (dict(objectives=[("all", Combined(objectives=[PAIR]))]), "objectives: .*a Combined holds"),
        (dict(objectives=[PAIR], weights=[1, 2]), "weights: expected 1 numbers, one for each"),
        (dict(objectives=[PAIR], weights=[0]), "weights: expected numbers >= 0, not all of them 0"),
        (dict(objectives=[PAIR], weights=[-1]), "weights: expected numbers >= 0"),
        (dict(objectives=[PAIR], weights=1.0), "weights: expected numbers >= 0"),
        (dict(objectives=[PAIR], weights=[np.inf]), "weights: expected numbers >= 0"),
        (dict(objectives=[("j", JEPA(loss="l3"))]), "j__loss: expected one of"),
        (dict(objectives=[("j", JEPA(predictor_dim=2))]), "j__predictor_dim: expected"),
    ],
    ids=lambda given: str(given)[:60],
)
def test_wrong_parameters(parameters, said, X):
    with pytest.raises(ValueError, match=rf"(?s)1 invalid parameter:.*- objective__{said}"):
        fitted(Combined(**parameters), X)


def test_warnings_of_each_are_given(X):
    idle = Combined(
        objectives=[("jepa", tiny_jepa(regions_weight=0, regions=VICReg())), ("vicreg", VICReg())]
    )
    with pytest.warns(NoEffectWarning, match="JEPA: no effect with .*regions_weight=0 of regions"):
        fitted(idle, X)


def test_labels_are_needed_where_one_needs_them(X):
    assert not Combined(objectives=[PAIR]).needs_labels
    assert both().needs_labels and both().sees_unlabelled
    assert not Combined(objectives=[("a", Supervised()), ("b", Supervised())]).sees_unlabelled
    with pytest.raises(ValueError, match="y: expected labels .* Combined learns, found None"):
        fitted(both(), X)
    for objective, required in ((both(), True), (Combined(objectives=None), False)):
        tags = SKATRTransformer(objective=objective).__sklearn_tags__()
        assert tags.target_tags.required is required


def test_what_prevents_collapse_is_said_of_each():
    two = Combined(objectives=[PAIR, ("regions", LeJEPA())])
    assert two.prevents_collapse == f"jepa: {JEPA.prevents_collapse}; regions: a larger sigreg"


# The sum -----------------------------------------------------------------------------------------


def test_one_objective_is_itself(X):
    """Alone, with a weight of one, it has the run that it has without."""
    for one in (tiny_jepa(), VICReg(expander_dim=4), Reconstruction(predictor_dim=8)):
        alone = fitted(one, X, max_epochs=1)
        held = fitted(Combined(objectives=[("it", one)]), X, max_epochs=1)
        np.testing.assert_array_equal(held.transform(X), alone.transform(X))
        for row, same in zip(held.history_, alone.history_, strict=True):
            assert row["train_loss"] == same["train_loss"]
            assert row["it_train_loss"] == pytest.approx(same["train_loss"], rel=1e-5)
            assert row["it_valid_loss"] == pytest.approx(same["valid_loss"], rel=1e-5)


def test_losses_are_weighted_and_recorded_by_name(X, y):
    found = fitted(both(weights=[1.0, 0.25], regions_weight=0), X, y)
    for row in found.history_:
        for when in ("train", "valid"):
            parts = row[f"jepa_{when}_loss"] + 0.25 * row[f"labels_{when}_loss"]
            assert row[f"{when}_loss"] == pytest.approx(parts, rel=1e-5)
        assert {"jepa_place_loss", "jepa_place_share", "labels_valid_r2"} <= row.keys()
        assert row["jepa_prediction_loss"] == pytest.approx(row["jepa_valid_loss"], rel=1e-5)
    other = fitted(both(weights=[1.0, 4.0], regions_weight=0), X, y)
    assert not np.array_equal(other.transform(X), found.transform(X))
    short = dict(max_epochs=1)
    plain, ones = (fitted(both(weights=w), X, y, **short).transform(X) for w in (None, np.ones(2)))
    np.testing.assert_array_equal(plain, ones)
    without = fitted(both(), X, y, validation_fraction=0, **short).history_[-1]
    assert "jepa_train_loss" in without and "jepa_valid_loss" not in without


def test_one_encoder_learns_from_all(torch_seed):
    architecture = Architecture((8, 6), (2, 2), 8, 1, 2, 2.0)
    encoder = architecture.build()
    three = Combined(objectives=[*both().objectives, ("regions", LeJEPA())])
    network = three.network(encoder, architecture, pooling="mean", n_parameters=2)
    assert network.context_encoder is encoder
    assert all(part.context_encoder is encoder for part in network.parts)
    assert network.parts[0].target_encoder is not encoder
    drawn = three.draw(4, (4, 3), torch.Generator().manual_seed(0))
    outputs = network(torch.randn(4, 12, 4), drawn)
    criterion = three.criterion()
    gradients = []
    for i, part in enumerate(criterion.parts):
        encoder.zero_grad()
        part(outputs[i], torch.randn(4, 2)).backward(retain_graph=True)
        gradients.append(encoder.embed.weight.grad.clone())
    encoder.zero_grad()
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_target_of_a_jepa_follows(X, y, monkeypatch):
    decays, update = [], JEPANetwork.update_target

    def note(self, decay):
        decays.append(decay)
        update(self, decay)

    monkeypatch.setattr(JEPANetwork, "update_target", note)
    fitted(both(ema_decay=(0.9, 1.0)), X, y)
    assert len(decays) == 6 and decays[0] < decays[-1] == 1.0  # 22 fields in 3 batches, twice


def test_a_jepa_still_judges_itself():
    place = 10 * np.random.default_rng(1).normal(size=(1, 6, 6, 8)).repeat(48, axis=0)
    place += 0.01 * np.random.default_rng(2).normal(size=place.shape)
    one = Combined(objectives=[("mine", tiny_jepa())])
    with pytest.warns(PlaceWarning, match="is not below"):
        SKATRTransformer(objective=one, **SMALL | dict(validation_fraction=0.25)).fit(place)


def test_unlabelled_rows_teach_the_others(X, y):
    some = np.where(np.arange(24)[:, None] < 12, y, np.nan)
    row = fitted(both(), X, some).history_[-1]
    assert 0 < row["labels_train_loss"] < np.inf
    # The JEPA has them all, though half have no label; labels alone have nothing to say of those.
    labels = Combined(objectives=[("labels", Supervised())])
    for objective, same in ((both(), False), (labels, True)):
        options = dict(brightness_range=(-5, 5), max_epochs=1)
        whole, half = (fitted(objective, X[:n], some[:n], **options) for n in (24, 12))
        assert np.array_equal(whole.transform(X), half.transform(X)) == same


def test_losses_are_means_over_the_labels_that_are_known(X, y):
    """Whichever batches they lie in; where none is known there is no loss of labels."""
    few, still = np.where(np.arange(len(y))[:, None] < 8, y, np.nan), dict(learning_rate=1e-12)
    losses = [
        fitted(both(), X, few, batch_size=n, max_epochs=1, **still).history_[0] for n in (len(X), 2)
    ]
    # Batches of another size are standardised otherwise, but these losses differ by no factor.
    ratio = losses[1]["labels_train_loss"] / losses[0]["labels_train_loss"]
    assert 0.6 < ratio < 1.6
    loss = CombinedLoss([Supervised().criterion(), Supervised().criterion()], [1.0, 1.0])
    zeros, nan = torch.zeros(4, 1), torch.full((4, 1), torch.nan)
    for labels in (torch.tensor([[1.0], [3.0], [torch.nan], [torch.nan]]), nan, zeros + 6.0):
        loss([zeros, zeros], labels)
    assert loss.means()["train"] == {0: pytest.approx(28 / 6), 1: pytest.approx(28 / 6)}
    loss([zeros, zeros], nan)
    assert loss.means() == {"train": {}}


def test_an_objective_of_no_weight_is_not_judged(X, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlaceWarning)
        skatr = SKATRTransformer(objective=both([0, 1]), **SMALL | dict(learning_rate=1e-9))
        assert "jepa_place_loss" in skatr.fit(X, y).history_[0]
    with pytest.warns(PlaceWarning):
        skatr.set_params(objective__weights=[1, 1]).fit(X, y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::skatr_sk.PlaceWarning", "ignore::skatr_sk.NoEffectWarning")
def test_labels_of_some_help_a_jepa(capsys):
    """Labels of a fifth of the fields, beside a JEPA on all of them."""
    X, y = gaussian_fields(1200, seed=40)
    some = np.where(np.arange(600)[:, None] < 120, y[:600], np.nan)
    of_jepa = dict(masks="multiblock", predictor_dim=24, predictor_depth=2)
    jepa = JEPA(**of_jepa, slice_targets=False, regions_weight=0.0)
    recipe = dict(patch_size=4, embed_dim=48, depth=2, embedding="linear", pooling="mean")
    recipe |= dict(learning_rate=6e-3, batch_size=32, max_epochs=20, device="cpu", random_state=0)
    together = Combined(objectives=[("jepa", jepa), ("labels", Supervised())], weights=[1.0, 0.3])
    scores = []
    for objective, changed in ((jepa, dict(max_epochs=0)), (jepa, {}), (together, {})):
        skatr = SKATRTransformer(objective=objective, **recipe | changed).fit(X[:600], some)
        scores.append(ridge_probe(skatr.transform(X), y).mean())
    with capsys.disabled():
        print("\nmean R2 untrained, JEPA, JEPA and labels: {:.3f}, {:.3f}, {:.3f}".format(*scores))
    assert scores[0] + 0.2 < scores[1] < scores[2] - 0.1


def test_it_resumes(X, y, tmp_path):
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1, max_epochs=1)
    whole = fitted(both(), X, y, **folder)
    assert whole.history_ == fitted(both(), X, y, **folder).history_  # done before
    fitted(both(weights=[1, 2]), X, y, **folder)
    fitted(both(ema_decay=0.5), X, y, **folder)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("shape", [pytest.param((8,), marks=pytest.mark.slow), (4, 4, 6)], ids=str)
def test_fits_fields_of_every_rank(shape, rng):
    X = rng.normal(size=(20, *shape)).astype(np.float32)
    parts = [*both().objectives, ("a", VICReg()), ("b", LeJEPA()), ("c", Reconstruction())]
    found = fitted(Combined(objectives=parts), X, X.reshape(20, -1)[:, 0], embed_dim=12)
    assert all(np.isfinite(list(row.values())).all() for row in found.history_)
    assert found.transform(X).shape == (20, 12 * (3 if len(shape) == 3 else 2))
