"""Supervised pre-training: labels that are known and that are not, and what is learned of them."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback

from skatr_sk import SKATRTransformer
from skatr_sk.summaries import JEPA, Supervised
from skatr_sk.summaries.labels import Labels, check_labels
from skatr_sk.summaries.objectives.supervised import Standardizer, SupervisedLoss, SupervisedNetwork
from skatr_sk.summaries.vit import Encoder
from tests.gaussian_fields import gaussian_fields, ridge_probe

SMALL = dict(patch_size=2, embed_dim=8, depth=1, n_heads=2, max_epochs=2, batch_size=8)
SMALL |= dict(objective="supervised", device="cpu", random_state=0)


def supervised(X, y, **parameters):
    return SKATRTransformer(**SMALL | parameters).fit(X, y)


# Labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "error", "said"),
    [
        (
            None,
            ValueError,
            r"y: expected labels of shape .* Supervised learns, found None; hand in y",
        ),
        (np.zeros(23), ValueError, r"y: expected shape \(24,\) or .*, found \(23,\)"),
        (np.zeros((24, 2, 2)), ValueError, r"y: expected shape .*, found \(24, 2, 2\)"),
        (
            np.full(24, np.nan),
            ValueError,
            r"y: expected at least 2 .* found 0 labelled of those that train; ",
        ),
        (np.r_[1.0, np.full(23, np.nan)], ValueError, "found [01] labelled of those that train; "),
        (np.ones((24, 2)), ValueError, "found 22 labelled .*, of which no parameter has two"),
        (np.r_[np.inf, np.arange(23.0)], ValueError, "y: expected finite values, .* 1 of 24 rows"),
        (np.r_[1e300, np.arange(23.0)], ValueError, "y: expected finite values"),
        (np.array(["a"] * 24), TypeError, "y: expected real numbers, found dtype <U1"),
        (np.ones(24, dtype=complex), ValueError, "y: expected real numbers"),
    ],
)
def test_labels_that_cannot_be_learned_from(y, error, said, X):
    skatr = SKATRTransformer(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=said):
            skatr.fit(X, y)
    assert not hasattr(skatr, "encoder_") and not hasattr(skatr, "field_shape_in_")


def test_labels_in_many_forms_are_the_same(X, y):
    short = dict(max_epochs=1)
    expected = supervised(X, y, **short).transform(X)
    for given in (y.tolist(), pd.DataFrame(y), y.astype(object)):
        np.testing.assert_array_equal(supervised(X, given, **short).transform(X), expected)
    column = supervised(X, y[:, :1], **short).transform(X)
    for given in (y[:, 0], pd.Series(y[:, 0])):
        np.testing.assert_array_equal(supervised(X, given, **short).transform(X), column)
    assert not np.array_equal(column, expected)


def test_their_units_do_not_matter(X, y):
    """Labels are standardised: a column in other units has the same weight."""
    other = supervised(X, y * [1e6, 1e-3] + [5.0, -7.0]).transform(X)
    np.testing.assert_allclose(other, supervised(X, y).transform(X), rtol=1e-3, atol=1e-4)


def test_standardised_over_what_trains_and_is_known():
    y = np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, 5.0], [np.nan, np.nan], [100.0, 9.0]])
    scaled = Labels(y).standardised(np.array([0, 1, 2, 3])).numpy()
    np.testing.assert_allclose(scaled[:, 0], [-1, 1, np.nan, np.nan, 98])
    np.testing.assert_allclose(scaled[:, 1], [0, np.nan, 0, np.nan, 0])  # it does not vary
    assert scaled.dtype == np.float32
    assert Labels(y).rows.tolist() == [0, 1, 2, 4]
    assert check_labels(y[:, 0], 5, "it").values.shape == (5, 1)


def test_rows_without_labels_count_out(X, y):
    """As if they had not been given, but for the scaling of brightness, which is given here."""
    more = np.concatenate([X, 5 * X[:7]])
    unknown = np.concatenate([y, np.full((7, 2), np.nan)])
    options = dict(brightness_range=(-5, 5))
    without, beside = supervised(X, y, **options), supervised(more, unknown, **options)
    np.testing.assert_array_equal(beside.transform(X), without.transform(X))
    figures = "train_loss", "valid_loss", "valid_r2"
    assert [[row[k] for k in figures] for row in beside.history_] == [
        [row[k] for k in figures] for row in without.history_
    ]


def test_an_unknown_label_has_no_loss_and_no_gradient():
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = torch.tensor([[0.0, np.nan], [np.nan, 1.0]])
    for name, expected in (("l1", 2.0), ("l2", 5.0)):
        predicted.grad = None
        loss = Supervised(loss=name).criterion()(predicted, y)
        assert loss.item() == pytest.approx(expected)
        loss.backward()
        assert (predicted.grad != 0).tolist() == [[True, False], [False, True]]
    nothing = Supervised().criterion()(predicted, torch.full((2, 2), np.nan))
    assert nothing.item() == 0 and nothing.requires_grad


def test_other_objectives_do_not_look_at_them(X):
    jepa = dict(objective=JEPA(predictor_dim=8, predictor_depth=1), max_epochs=1)
    plain = supervised(X, None, **jepa).transform(X)
    np.testing.assert_array_equal(supervised(X, ["?"] * 24, **jepa).transform(X), plain)


def test_labels_are_part_of_a_run(X, y, tmp_path):
    folder = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    first = supervised(X, y, **folder)
    other = supervised(X, y[:, ::-1], **folder)
    assert len(list(tmp_path.iterdir())) == 2
    assert first.history_[0]["train_loss"] != other.history_[0]["train_loss"]
    again = supervised(X, y, **folder)
    assert json.dumps(again.history_) == json.dumps(first.history_)  # resumed: done before
    assert len(list(tmp_path.iterdir())) == 2


def test_tags_say_whether_they_are_needed(X):
    for objective, needed in (("supervised", True), ("jepa", False), ("no such", False)):
        skatr = SKATRTransformer(objective=objective)
        assert skatr.__sklearn_tags__().target_tags.required is needed
    assert not SKATRTransformer(weights="mini-lr").__sklearn_tags__().target_tags.required


# The network -------------------------------------------------------------------------------------


def network(pooling="mean", n_parameters=2):
    encoder = Encoder(4, (4, 4), embed_dim=8, depth=1, n_heads=2, mlp_ratio=2.0)
    n_summary = 16 if pooling == "moments" else 8
    return SupervisedNetwork(encoder, n_summary, n_parameters, pooling=pooling)


def test_a_step_sees_some_patches_and_validation_all(torch_seed):
    model, patches = network(), torch.randn(6, 16, 4)
    [visible] = Supervised(visible=0.25).draw(6, (4, 4), torch.Generator().manual_seed(0))
    assert visible.shape == (6, 4)
    hidden = patches.clone().scatter_(1, visible[..., None].expand(-1, -1, 4), 0.0)
    only = patches - hidden
    torch.testing.assert_close(model(only, [visible]), model(patches, [visible]))
    assert not torch.allclose(model(patches, []), model(patches, [visible]))
    model.eval()
    torch.testing.assert_close(model(patches, []), model(patches, [visible]))
    assert Supervised(visible=1.0).draw(6, (4, 4), torch.Generator()) == []


def test_a_batch_of_one_field_can_be_learned_from(torch_seed):
    model = network("moments").train()
    loss = Supervised().criterion()(model(torch.randn(1, 16, 4), []), torch.ones(1, 2))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.context_encoder.parameters())


def test_validation_is_standardised_as_training_from_the_first_step(torch_seed):
    x = 100 + torch.randn(5000, 3)  # what all rows share is large
    standardise = Standardizer(3)
    for batch in x.split(250):
        standardise.train()(batch)
        found = standardise.eval()(x)
        assert found.mean(dim=0).abs().max() < 0.3
        assert (found.std(dim=0) - 1).abs().max() < 0.2
    assert standardise.train()(x[:1]).isfinite().all()
    assert standardise.num_batches_tracked == 20


@pytest.mark.parametrize("pooling", ["max", "moments", "tokens"])
def test_tokens_are_pooled_as_transform_pools(pooling, X, y):
    plain, found = (supervised(X, y, pooling=each) for each in ("mean", pooling))
    differs = plain.history_[0]["train_loss"] != found.history_[0]["train_loss"]
    assert differs == (pooling != "tokens")
    assert np.isfinite(found.transform(X)).all()


# The run -----------------------------------------------------------------------------------------


class Watch(Callback):
    """Hands out what the head predicts of some fields at the end, and their labels."""

    def __init__(self, note):
        self.note = note

    def on_epoch_end(self, net, dataset_valid=None, **kwargs):
        fields, y = dataset_valid[torch.arange(len(dataset_valid))]
        net.module_.eval()
        with torch.no_grad():
            self.note((net.infer(fields).numpy(), y.numpy()))


def test_r2_is_that_of_the_validation_fields(X, y):
    seen = []
    found = supervised(X, y, validation_fraction=0.4, callbacks=[Watch(seen.append)])
    for row, (predicted, truth) in zip(found.history_, seen, strict=True):
        assert row["valid_r2"] == pytest.approx(r2_score(truth, predicted), abs=1e-4)
    assert "valid_r2" not in supervised(X, y, validation_fraction=0).history_[-1]


def test_r2_is_of_the_labels_that_vary_and_are_known():
    loss = SupervisedLoss(torch.nn.functional.l1_loss).eval()
    y = torch.tensor([[1.0, 2.0, np.nan], [3.0, 2.0, np.nan], [np.nan, 2.0, 1.0]])
    predicted = torch.tensor([[1.5, 0.0, 0.0], [3.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    loss(predicted[:1], y[:1])
    loss(predicted[1:], y[1:])
    figures = Supervised().figures(loss)
    assert figures["valid_r2"] == pytest.approx(1 - 0.25 / 2)
    assert Supervised().figures(loss) == {}  # each epoch has its own
    loss(torch.tensor([[0.9]]), torch.tensor([[0.1]]))  # of a single label there is none
    assert Supervised().figures(loss) == {}


def test_it_learns_a_label(rng):
    """The brightness of each field, which its summary shows after training."""
    X = rng.normal(size=(200, 8, 8)) + rng.normal(size=(200, 1, 1))
    y = X.mean(axis=(1, 2))
    known = np.where(np.arange(200) < 120, y, np.nan)
    parameters = dict(max_epochs=25, learning_rate=1e-2, batch_size=40, validation_fraction=0.2)
    skatr = supervised(X, known, **parameters)
    assert skatr.history_[-1]["valid_r2"] > 0.9
    assert skatr.history_[-1]["valid_loss"] < 0.5 * skatr.history_[0]["valid_loss"]


def test_in_a_pipeline_each_fold_has_its_own_labels(X, y):
    pipe = make_pipeline(SKATRTransformer(**SMALL), Ridge())
    scores = cross_val_score(pipe, X, y, cv=2, error_score="raise")
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_labels_teach_more_than_random_weights_hold(capsys):
    X, y = gaussian_fields(2000, seed=30)
    recipe = dict(patch_size=4, embed_dim=48, depth=2, objective="supervised", batch_size=32)
    # By one matrix and to the mean: what else tokens and summaries hold needs no training.
    recipe |= dict(embedding="linear", pooling="mean")
    recipe |= dict(learning_rate=4e-3, device="cpu", random_state=0)
    trained = SKATRTransformer(**recipe, max_epochs=20).fit(X[:1000], y[:1000])
    untrained = SKATRTransformer(**recipe, max_epochs=0).fit(X[:1000], y[:1000])
    scores = [ridge_probe(each.transform(X), y).mean() for each in (trained, untrained)]
    with capsys.disabled():
        print(f"\nmean R2 of trained and untrained summaries: {scores[0]:.3f}, {scores[1]:.3f}")
    assert scores[0] > scores[1] + 0.2


def test_what_never_varies_in_training_does_not_count_in_validation():
    values = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan], [2.0, 900.0, 70.0]])
    scaled = Labels(values).standardised(np.arange(2))
    np.testing.assert_array_equal(scaled[2], [0.0, 0.0, 0.0])
    assert torch.isnan(scaled[:2, 2]).all()
