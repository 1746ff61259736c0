"""Networks and losses of the user: tried before the training, copied for it, told in words."""

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_validate
from torch import nn

from skatr_sk import (
    InvalidParameterError,
    LightconeRegressor,
    PosteriorEstimator,
    SKATRTransformer,
    load_model,
    save_model,
)
from skatr_sk._checks import NoEffectWarning
from skatr_sk.training.state import digest_of

SHAPE = (4, 4, 6)
RNG = np.random.default_rng(0)
FIELDS = RNG.normal(-20, 30, size=(24, *SHAPE)).astype(np.float32)
SUMMARIES = RNG.normal(size=(40, 3))
LABELS = SUMMARIES[:, :2] @ RNG.normal(size=(2, 2))
MEANS = np.stack([FIELDS.mean(axis=(1, 2, 3)), FIELDS.std(axis=(1, 2, 3))], axis=1)
pytestmark = pytest.mark.usefixtures("torch_seed")  # for networks that are built here
SMALL = dict(max_epochs=3, batch_size=8, device="cpu", random_state=0)
FLOW = SMALL | dict(n_blocks=1, n_bins=4, hidden_dims=(8,), n_members=1)


class Slices(nn.Module):
    """Features of each slice by a function of the mean of slices in mK and of weights."""

    def __init__(self, function=torch.mul):
        super().__init__()
        self.weight = nn.Parameter(torch.full((SHAPE[-1],), 0.1))
        self.function = function

    def forward(self, fields):
        return self.function(fields.mean(dim=(1, 2)), self.weight)


def head(**parameters):
    return LightconeRegressor(**SMALL | parameters)


def heads(**parameters):
    shared = SMALL | parameters
    return [
        LightconeRegressor(**shared | dict(hidden_dims=(8,))),
        PosteriorEstimator(**FLOW | shared),
    ]


# --- networks as backbone -----------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_a_network_gets_fields_in_mk_and_is_trained_with_the_head(which):
    given, seen = Slices(), []
    before = digest_of(given.state_dict())
    model = heads(backbone=given)[which].fit(FIELDS, MEANS)
    assert model.backbone is given and digest_of(given.state_dict()) == before
    assert given.weight.requires_grad and given.weight.grad is None
    trained = model.backbone_.network
    assert not torch.equal(trained.weight, given.weight)
    features = model.backbone_(torch.from_numpy(FIELDS))
    trained.register_forward_hook(lambda *call: seen.append(call[1][0]))
    assert np.isfinite(model.predict(FIELDS)).all()
    torch.testing.assert_close(torch.cat(seen), torch.from_numpy(FIELDS))
    torch.testing.assert_close(features, trained(torch.from_numpy(FIELDS)))


@pytest.mark.parametrize("which", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_each_fit_begins_with_the_weights_that_were_given(which):
    model = heads(backbone=Slices(), learning_rate=1e-3)[which]
    expected = model.fit(FIELDS, MEANS).predict(FIELDS)
    np.testing.assert_array_equal(model.fit(FIELDS, MEANS).predict(FIELDS), expected)
    cloned = clone(model)
    assert cloned.backbone is not model.backbone
    np.testing.assert_array_equal(cloned.fit(FIELDS, MEANS).predict(FIELDS), expected)
    done = cross_validate(model, FIELDS, MEANS, cv=2, return_estimator=True)["estimator"]
    assert done[0].backbone_.network is not done[1].backbone_.network


def test_the_module_of_a_transformer_is_a_network():
    skatr = SKATRTransformer(patch_size=2, embed_dim=12, depth=1, max_epochs=0, device="cpu")
    module = skatr.fit(FIELDS).as_module()
    with pytest.raises(InvalidParameterError, match=r"weights that are trained, found 0; call req"):
        head(backbone=module).fit(FIELDS, MEANS)
    model = head(backbone=module.requires_grad_(True), learning_rate=1e-12).fit(FIELDS, MEANS)
    found = model.backbone_(torch.from_numpy(FIELDS)).numpy()
    np.testing.assert_allclose(found, skatr.transform(FIELDS), rtol=1e-3, atol=1e-4)


def test_statistics_of_a_network_stand_still_while_it_is_frozen():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 4))
    model = head(backbone=network, frozen_epochs=3).fit(FIELDS, MEANS)
    assert digest_of(model.backbone_.network.state_dict()) == digest_of(network.state_dict())
    model.set_params(frozen_epochs=2).fit(FIELDS, MEANS)
    assert model.backbone_.network[1].num_batches_tracked == 3  # of 20 rows, in the third epoch


class Evaluated(Slices):
    def forward(self, fields):
        return super().forward(fields)[:, : 6 if self.training else 5]


class Drawing(Slices):
    def forward(self, fields):
        return super().forward(fields) + torch.rand(len(fields), 1)


def test_a_last_row_alone_goes_with_the_batch_before_it():
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(96), nn.Linear(96, 4))
    for model in heads(backbone=normed, validation_fraction=0, max_epochs=1):
        model.fit(FIELDS[:17], MEANS[:17])
        assert model.backbone_.network[1].num_batches_tracked == 2
        with pytest.raises(InvalidParameterError, match=r"- backbone: .*give batch_size >= 2"):
            model.set_params(batch_size=1).fit(FIELDS, MEANS)
    normed = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = head(head=normed, validation_fraction=0).fit(SUMMARIES[:33], LABELS[:33])
    with pytest.raises(InvalidParameterError, match=r"- head: .*give batch_size >= 2"):
        model.set_params(batch_size=1).fit(SUMMARIES, LABELS)


def test_lazy_layers_are_built(tmp_path):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    options = dict(max_epochs=1, checkpoint_dir=tmp_path)
    fitted = [head(backbone=lazy, head=nn.LazyLinear(2), **options) for _ in range(2)]
    first, again = (model.fit(FIELDS, MEANS).predict(FIELDS) for model in fitted)
    np.testing.assert_array_equal(first, again)
    assert len(list(tmp_path.iterdir())) == 1
    several = head(head=nn.LazyLinear(2), n_members=2, **options).fit(SUMMARIES, LABELS)
    assert not torch.equal(*(each.network.weight for each in several.head_))


def test_what_a_network_draws_is_the_same_in_each_prediction():
    tail = nn.Sequential(nn.Linear(6, 2), nn.RReLU())
    tail[1].train = lambda mode: tail[1]  # it draws always
    for model in (*heads(backbone=Drawing(), max_epochs=1), head(backbone=Slices(), head=tail)):
        model.fit(FIELDS, MEANS)
        state = torch.get_rng_state()
        found = [model.predict(FIELDS) for _ in range(2)]
        np.testing.assert_array_equal(*found)
        assert torch.equal(torch.get_rng_state(), state)


WRONG_NETWORKS = {
    "another in evaluation": (Evaluated(), r"shape \(2, 6\), as in training, found \(2, 5\)"),
    "no batch": (Slices(lambda x, w: x.mean(dim=1)), r"shape \(2, n_features\), found \(2,\)"),
    "one feature map": (Slices(lambda x, w: (x * w)[:, :, None]), r"found \(2, 6, 1\)"),
    "nothing": (Slices(lambda x, w: (x * w)[:, :0]), r"found \(2, 0\)"),
    "numpy": (Slices(lambda x, w: x.numpy()), "found 'ndarray'"),
    "integers": (Slices(lambda x, w: x.long()), "found torch.int64"),
    "not finite": (Slices(lambda x, w: (x * w).log()), "finite outputs of shape .*, found nan"),
    "cut off": (Slices(lambda x, w: x * w.detach()), "a gradient to its weights, found None; com"),
    "another shape": (Slices(lambda x, w: x @ w[:5]), r"inputs \(2, 4, 4, 6\), found RuntimeError"),
    "no weights": (nn.Flatten(), "weights that are trained, found 0"),
}  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("case", WRONG_NETWORKS)
def test_networks_that_do_not_fit_are_refused(case, which):
    network, said = WRONG_NETWORKS[case]
    model = heads(backbone=network)[which]
    with pytest.raises(InvalidParameterError, match=rf"- backbone: expected a network.*{said}"):
        model.fit(FIELDS, MEANS)
    assert not hasattr(model, "history_")


# --- networks as head ---------------------------------------------------------------------------


def test_a_network_takes_the_place_of_the_mlp():
    given = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    before = digest_of(given.state_dict())
    model = head(head=given, max_epochs=25, learning_rate=3e-2).fit(SUMMARIES, LABELS)
    assert model.score(SUMMARIES, LABELS) > 0.8
    assert digest_of(given.state_dict()) == before and model.network_weight_ == 1
    again = clone(model).fit(SUMMARIES, LABELS).predict(SUMMARIES)
    np.testing.assert_array_equal(again, model.predict(SUMMARIES))
    several = clone(model).set_params(n_members=2, max_epochs=3).fit(SUMMARIES, LABELS)
    assert several.head_[0].network is not several.head_[1].network


def test_a_network_behind_each_kind_of_features():
    tokens = np.random.default_rng(0).normal(size=(40, 5, 3))
    pooled = nn.Sequential(nn.Flatten(), nn.Linear(15, 2))
    assert head(head=pooled).fit(tokens, LABELS).predict(tokens).shape == (40, 2)
    vit = SKATRTransformer(patch_size=2, embed_dim=12, depth=1)
    for backbone, n in (("cnn", 128), (Slices(), 6), (vit, 36)):
        whole = head(backbone=backbone, head=nn.Linear(n, 2)).fit(FIELDS, MEANS)
        assert whole.predict(FIELDS).shape == (24, 2)
        with pytest.raises(
            InvalidParameterError, match=rf"- head: .* inputs \(4, {n}\), found Run"
        ):
            head(backbone=backbone, head=nn.Linear(5, 2)).fit(FIELDS, MEANS)


def test_a_network_knows_its_errors_and_stays_inside_bounds():
    model = head(head=nn.Linear(3, 4), loss="gaussian", target_bounds=[[-9, 9]] * 2)
    mean, std = model.fit(SUMMARIES, LABELS).predict(100 * SUMMARIES, return_std=True)
    assert np.abs(mean).max() == 9 and (std > 0).all()
    with pytest.raises(InvalidParameterError, match=r"- head: .* \(4, 2\), found \(4, 4\)"):
        model.set_params(loss="l2").fit(SUMMARIES, LABELS)
    with pytest.raises(InvalidParameterError, match="- head: expected a torch.nn.Module or None"):
        head(head=nn.Linear).fit(SUMMARIES, LABELS)


def test_parameters_without_effect_beside_a_network():
    with pytest.warns(NoEffectWarning, match="a head of your own of hidden_dims, dropout; leave"):
        head(head=nn.Linear(3, 2), hidden_dims=(8,), dropout=0.1).fit(SUMMARIES, LABELS)
    for backbone in ("cnn", Slices()):
        with pytest.warns(NoEffectWarning, match="backbone that gives no tokens of pooling"):
            head(backbone=backbone, pooling="attention").fit(FIELDS, MEANS)


# --- losses -------------------------------------------------------------------------------------


def by_rows(predicted, target):
    return (predicted - target).abs().mean(dim=1)


@pytest.mark.parametrize("loss", [by_rows, lambda a, b: (a - b).abs().mean(), nn.L1Loss()])
def test_a_loss_of_ones_own_is_the_built_in_one_where_it_is_the_same(loss):
    expected = head(hidden_dims=(8,)).fit(SUMMARIES, LABELS)
    model = head(hidden_dims=(8,), loss=loss).fit(SUMMARIES, LABELS)
    np.testing.assert_allclose(model.predict(SUMMARIES), expected.predict(SUMMARIES), rtol=1e-4)
    with pytest.raises(ValueError, match="return_std=True"):
        model.predict(SUMMARIES, return_std=True)
    fields = head(backbone="cnn", loss=loss, max_epochs=1).fit(FIELDS, MEANS)
    expected = head(backbone="cnn", max_epochs=1).fit(FIELDS, MEANS).predict(FIELDS)
    np.testing.assert_allclose(fields.predict(FIELDS), expected, rtol=1e-3)


def test_weights_of_rows_need_a_loss_of_each():
    weights = np.arange(1.0, 41.0)
    model = head(hidden_dims=(8,), loss=by_rows).fit(SUMMARIES, LABELS, weights)
    expected = head(hidden_dims=(8,)).fit(SUMMARIES, LABELS, weights).predict(SUMMARIES)
    np.testing.assert_allclose(model.predict(SUMMARIES), expected, rtol=1e-4)
    with pytest.raises(InvalidParameterError, match=r"\(4,\), found \(\); sample_weight needs one"):
        head(loss=nn.L1Loss()).fit(SUMMARIES, LABELS, weights)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("l3", "one of 'l1', 'l2', 'gaussian', or a callable .*found 'l3'; did you mean 'l2'"),
        (3, "or a callable loss.predicted, target., found 3"),
        (nn.L1Loss, "found <class .*; hand in an instance, L1Loss"),
        (lambda a: a, r"of two tensors \(4, 2\), found TypeError"),
        (lambda a, b: a - b, r"values of shape \(\) or \(4,\), found \(4, 2\)"),
        (lambda a, b: 1.0, "found 'float'"),
        (lambda a, b: (a - b).detach().mean(), "a gradient to what is predicted, found None"),
        (lambda a, b: (a - 2).log().mean(), "finite values of shape .*, found nan"),
    ],
)
def test_losses_that_do_not_fit_are_refused(loss, said):
    model = head(loss=loss)
    with pytest.raises(InvalidParameterError, match=f"- loss: expected .*{said}"):
        model.fit(SUMMARIES, LABELS)
    assert not hasattr(model, "history_")


# --- files, and runs that go on -----------------------------------------------------------------


def test_files_hold_what_they_can(tmp_path):
    model = head(loss=by_rows, hidden_dims=(8,)).fit(SUMMARIES, LABELS)
    with pytest.warns(UserWarning, match="left out of .*LightconeRegressor.loss"):
        save_model(model, tmp_path / "model")
    found = load_model(tmp_path / "model").predict(SUMMARIES)
    np.testing.assert_array_equal(found, model.predict(SUMMARIES))
    for each in (*heads(backbone=Slices(torch.mul)), head(backbone="cnn", head=nn.Linear(128, 2))):
        each.fit(FIELDS, MEANS)
        with pytest.raises(
            ValueError, match="(backbone|head): expected what a file .*; joblib.dum"
        ):
            save_model(each, tmp_path / "other")
        joblib.dump(each, tmp_path / "each.joblib")
        found = joblib.load(tmp_path / "each.joblib").predict(FIELDS)
        np.testing.assert_array_equal(found, each.predict(FIELDS))


def test_a_run_goes_on_with_the_same_network_and_loss_alone(tmp_path):
    def files():
        return len(list(tmp_path.glob("checkpoint-*.safetensors")))

    options = dict(checkpoint_dir=tmp_path, max_epochs=1)
    network = nn.Linear(3, 2)
    for each in (network, clone(network, safe=False)):
        head(head=each, loss=by_rows, **options).fit(SUMMARIES, LABELS)
    assert files() == 1
    head(head=nn.Linear(3, 2), loss=by_rows, **options).fit(SUMMARIES, LABELS)  # other weights
    head(head=network, loss=lambda a, b: (a - b).square().mean(), **options).fit(SUMMARIES, LABELS)
    assert files() == 3
    backbone = Slices()
    for each in (backbone, clone(backbone, safe=False)):
        head(backbone=each, **options).fit(FIELDS, MEANS)
    assert files() == 4
    with torch.no_grad():
        backbone.weight += 1
    head(backbone=backbone, **options).fit(FIELDS, MEANS)
    assert files() == 5


def test_a_run_with_another_function_of_the_same_name_is_another(tmp_path):
    def powered(power):
        return lambda a, b: (a - b).abs().pow(power).mean()

    def files(function, loss):
        options = dict(checkpoint_dir=tmp_path, max_epochs=1)
        head(backbone=Slices(function), **options).fit(FIELDS, MEANS)
        head(loss=loss, hidden_dims=(8,), **options).fit(SUMMARIES, LABELS)
        return len(list(tmp_path.glob("checkpoint-*.safetensors")))

    assert files(torch.mul, powered(1)) == files(torch.mul, powered(1)) == 2
    assert files(torch.add, powered(2)) == 4
