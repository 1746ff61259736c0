"""Callbacks: rates, memory, bars, those of scikit-learn, and those that a user hands in."""

import json
import logging
import re
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from skorch.callbacks import BatchScoring, Callback, Checkpoint, EpochScoring, EpochTimer
from skorch.callbacks import EarlyStopping as SkorchEarlyStopping

from skatr_sk import LightconeRegressor, PosteriorEstimator
from skatr_sk.training import callbacks
from skatr_sk.training.callbacks import (
    ReturnMemory,
    Schedule,
    copy_callbacks,
    cosine_schedule,
    plain,
    ramp,
)
from tests.training.runs import Act, Trained, scripted, signals, transformer


def summaries(n=40):
    X = np.random.default_rng(0).normal(size=(n, 4))
    return X, X[:, :2]


def regressor(**parameters):
    small = dict(hidden_dims=(8,), max_epochs=3, device="cpu", random_state=0)
    return LightconeRegressor(**small | parameters)


# The learning rate -------------------------------------------------------------------------------


def test_ramp_rises_along_half_a_cosine():
    values = [ramp(0.9, 1.0, progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)]
    np.testing.assert_allclose(values, [0.9, 0.91464466, 0.95, 0.98535534, 1.0, 1.0])


def test_cosine_schedule_warms_up_and_falls():
    shares = np.array([cosine_schedule(p, warmup=0.2) for p in np.linspace(0, 1, 101)])
    np.testing.assert_allclose(shares[:21], np.linspace(0, 1, 21))
    assert (np.diff(shares[20:]) < 0).all() and shares[-1] == 0
    assert cosine_schedule(0.0, warmup=0.0) == 1.0


def test_schedule_sets_the_rate_of_each_step():
    """At the middle of a step, so that none is lost to a rate of zero; not in validation."""
    groups = [{"lr": 1.0, "share": 1.0}, {"lr": 1.0, "share": 0.1}]
    net = SimpleNamespace(rate=2.0, n_steps=4, optimizer_=SimpleNamespace(param_groups=groups))
    schedule, rates = Schedule(lambda progress: progress), []
    for net.steps_done in (1, 2, 3, 4):
        schedule.on_batch_begin(net, training=True)
        rates.append(groups[0]["lr"])
        schedule.on_batch_begin(net, training=False)
    assert rates == [0.25, 0.75, 1.25, 1.75]
    assert groups[1]["lr"] == pytest.approx(0.175)  # its share of it


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "n"), [(15.0, 6), (4.0, 2)])
def test_long_steps_give_memory_back(seconds, n, monkeypatch):
    """After each of 6 steps, or after every third."""
    returned = []
    monkeypatch.setattr(callbacks, "return_memory", lambda: returned.append(None))
    callback = ReturnMemory()
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    now = [0.0]
    net = SimpleNamespace(device="cpu")
    callback.on_train_begin(net)
    for _ in range(6):
        now[0] += seconds
        callback.on_batch_end(net)
    assert len(returned) == n
    callback.on_batch_end(SimpleNamespace(device="cuda"))
    assert len(returned) == n


def test_pretraining_gives_memory_back(monkeypatch):
    returned = []
    monkeypatch.setattr(callbacks, "return_memory", lambda: returned.append(None))
    monkeypatch.setattr(callbacks, "_TRIM_SECONDS", -1.0)
    transformer(max_epochs=2).fit(signals())
    assert len(returned) == 2 * (3 + 1)


# Those that a user hands in ----------------------------------------------------------------------


def test_early_stopping_of_skorch_ends_quietly():
    stop = SkorchEarlyStopping(patience=2, threshold=1e9, threshold_mode="abs", sink=lambda _: 0)
    fitted = transformer(max_epochs=50, callbacks=[stop]).fit(signals())
    # No epoch can improve by 1e9: the second after the first ends the run.
    assert 2 <= len(fitted.history_) <= 3
    assert fitted.transform(signals()).shape == (24, 16)


class Remembering(Callback):
    """Learns something, which its estimator's parameter must not."""

    def __init__(self, names):
        self.names = names

    def on_epoch_end(self, net, **kwargs):
        self.epochs_ = len(net.history)
        self.names.append("epoch")
        net.history.record("epochs", self.epochs_)


def test_what_a_callback_learns_stays_out_of_the_parameter():
    given = [Remembering([])]
    fitted = transformer(callbacks=given).fit(signals())
    assert [row["epochs"] for row in fitted.history_] == [1, 2, 3, 4]
    assert fitted.callbacks is given and vars(given[0]) == {"names": []}


def test_a_callback_whose_constructor_says_otherwise_is_copied():
    class Odd(Remembering):
        def __init__(self):
            super().__init__([])

    odd = Odd()
    assert copy_callbacks([odd])[0].names is not odd.names
    fitted = regressor(callbacks=[odd]).fit(*summaries())
    assert [row["epochs"] for row in fitted.history_] == [1, 2, 3]
    assert vars(odd) == {"names": []}


def test_what_cannot_be_copied_is_shared():
    """TensorBoard's writer holds a lock, which no copy can have."""
    lock = threading.Lock()
    callback = Remembering(lock)
    (copied,) = copy_callbacks([callback])
    assert copied is not callback and copied.names is lock

    class Immovable(Callback):
        def __reduce_ex__(self, protocol):
            raise TypeError("stays where it is")

        def get_params(self, deep=True):
            raise TypeError("has none")

    immovable = Immovable()
    assert copy_callbacks([("name", immovable)]) == [("name", immovable)]


def test_an_estimator_is_cloned_with_callbacks_that_cannot_be():
    lock = threading.Lock()
    callbacks = [("mine", Act("epoch", lambda net: None, at=lock))]
    for estimator in (Trained(callbacks=callbacks), regressor(callbacks=callbacks)):
        ((name, copied),) = clone(estimator).callbacks
        assert name == "mine" and copied.at is lock
        assert clone(estimator.set_params(callbacks=3)).callbacks == 3  # fit refuses it
    head = regressor(callbacks=callbacks)
    scores = cross_val_score(head, *summaries(), cv=2, error_score="raise")
    assert np.isfinite(scores).all()


def test_names_do_not_clash_with_ours():
    stop = SkorchEarlyStopping(patience=50, sink=lambda _: 0)
    named = [("EarlyStopping", stop), ("valid_loss", EpochTimer()), ("Progress", EpochTimer())]
    for given in (named, [stop, EpochTimer(), EpochTimer()]):
        head = regressor(callbacks=given, patience=2, verbose=1).fit(*summaries())
        alone = regressor(patience=2).fit(*summaries())
        np.testing.assert_array_equal(head.predict(summaries()[0]), alone.predict(summaries()[0]))


@pytest.mark.parametrize(
    "value",
    [pytest.param(1.5, marks=pytest.mark.slow), np.float32(1.5), torch.tensor(1.5)],
    ids=type,
)
def test_scores_of_a_callback_are_in_the_history(value):
    scoring = EpochScoring(lambda net, X, y: value, name="mine")
    by_batch = BatchScoring(lambda net, X, y: value, name="batch_mine")
    X, y = summaries()
    posterior = PosteriorEstimator(
        max_epochs=3,
        n_blocks=1,
        n_bins=4,
        hidden_dims=(8,),
        n_members=1,
        device="cpu",
        random_state=0,
    )
    for estimator in (regressor(), posterior, transformer(max_epochs=3)):
        estimator.set_params(callbacks=[scoring, by_batch])
        data = (signals(),) if estimator.__class__.__name__ == "SKATRTransformer" else (X, y)
        history = estimator.fit(*data).history_
        assert [row["mine"] for row in history] == [1.5] * 3
        assert [row["batch_mine"] for row in history] == [1.5] * 3
        assert [row["mine_best"] for row in history] == [True, False, False]
        assert json.loads(json.dumps(history)) == history


def test_what_is_recorded_is_plain():
    class Record(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("word", "ten")
            net.history.record("rates", torch.tensor([0.5, 0.25]))
            net.history.record("counts", {"a": np.arange(2)})
            net.history.record("device", torch.device("cpu"))

    _, history = scripted([1.0], callbacks=[Record()])
    names = ["epoch", "train_loss", "valid_loss", "word", "rates", "counts", "device"]
    assert list(history[0]) == [*names, "seconds", "kept"]
    assert history[0]["word"] == "ten" and history[0]["rates"] == [0.5, 0.25]
    assert history[0]["counts"] == {"a": [0, 1]}
    assert history[0]["device"] == "device(type='cpu')"
    assert plain((None, True, np.int64(3), np.nan))[:3] == [None, True, 3]


def test_a_score_that_needs_a_prediction_where_there_is_none():
    posterior = PosteriorEstimator(
        max_epochs=1, n_blocks=1, n_bins=4, hidden_dims=(8,), random_state=0
    ).set_params(callbacks=[EpochScoring("r2")])
    with pytest.raises(TypeError, match="callbacks: expected scores that need no prediction"):
        posterior.fit(*summaries())
    # Of a regressor the network's output is one.
    scored = regressor(callbacks=[EpochScoring("r2", lower_is_better=False)]).fit(*summaries())
    assert all(row["r2"] < 1 for row in scored.history_)


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (SkorchEarlyStopping(), ("'valid_loss'", "EarlyStopping")),
        (("mine", Checkpoint(monitor="valid_loss_best")), ("'valid_loss_best'", "Checkpoint")),
    ],
    ids=["EarlyStopping", "Checkpoint"],
)
def test_a_callback_that_watches_a_validation_that_is_not(callback, said):
    for estimator, data in ((regressor(), summaries()), (transformer(), (signals(),))):
        estimator.set_params(callbacks=[callback], validation_fraction=0.0)
        with pytest.raises(ValueError, match="validation_fraction=0") as caught:
            estimator.fit(*data)
        message = str(caught.value)
        assert "- callbacks: expected none that watches " in message
        assert all(word in message for word in said) and "train_loss" in message
    # On the training loss it is welcome.
    stop = SkorchEarlyStopping(monitor="train_loss", patience=1, threshold=1e9, sink=lambda _: 0)
    stop.threshold_mode = "abs"
    head = regressor(max_epochs=9, validation_fraction=0.0, callbacks=[stop]).fit(*summaries())
    assert len(head.history_) == 2


def test_a_class_or_a_function_makes_one_for_each_training():
    made = []

    def make():
        made.append(Remembering(threading.Lock()))
        made[-1].on_epoch_end = lambda net, **kwargs: net.history.record("made", len(made))
        return made[-1]

    head = regressor(callbacks=[("mine", make), EpochTimer], n_members=2)
    assert clone(head).callbacks == head.callbacks  # nothing is made, and nothing warned of
    history = head.fit(*summaries()).history_
    assert [row["made"] for row in history] == [1] * 3 + [2] * 3
    assert len(made) == 2
    cross_val_score(head, *summaries(), cv=2, error_score="raise")
    assert len(made) == 6
    with pytest.raises(TypeError, match="that makes a skorch callback, found .* made 3"):
        regressor(callbacks=[lambda: 3]).fit(*summaries())
    with pytest.raises(ValueError, match="callbacks: expected a list of skorch callbacks, or of"):
        regressor(callbacks=[int]).fit(*summaries())


def test_clones_that_share_are_warned_of():
    head = regressor(callbacks=[Remembering(threading.Lock())])
    with pytest.warns(UserWarning, match=r"\[lambda: Remembering\(\.\.\.\)\]"):
        clone(head)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(callbacks=[Remembering([])]).fit(*summaries())
        clone(regressor(callbacks=[Remembering([])]))


@pytest.mark.parametrize("scoring", [lambda net, X, y: float(len(net.history)), "r2"], ids=type)
def test_early_stopping_on_a_score_of_the_user(scoring):
    score = EpochScoring(scoring, name="mine", lower_is_better=True)
    stop = SkorchEarlyStopping(monitor="mine", patience=2, sink=lambda _: 0)
    stop.set_params(threshold=1e9, threshold_mode="abs")
    head = regressor(max_epochs=20, callbacks=[score, stop]).fit(*summaries())
    assert 2 <= len(head.history_) <= 3
    with pytest.raises(ValueError, match="monitors 'mine'; a callback that records it comes befor"):
        regressor(callbacks=[stop, score]).fit(*summaries())
    with pytest.raises(
        ValueError, match=r"among .*valid_loss, mine, found .*'min'; did you mean 'm"
    ):
        regressor(callbacks=[score, SkorchEarlyStopping(monitor="min")]).fit(*summaries())
    with pytest.raises(ValueError, match="scores the validation rows with validation_fraction=0"):
        regressor(callbacks=[score, stop], validation_fraction=0.0).fit(*summaries())
    trained = EpochScoring(scoring, name="mine", on_train=True)
    rows = regressor(callbacks=[trained], validation_fraction=0.0).fit(*summaries()).history_
    assert all("mine" in row for row in rows)


def test_a_failed_copy_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="skatr_sk.training"):
        copy_callbacks([Remembering(threading.Lock())])
    assert "clone of a callback failed" in caplog.text


# Progress ----------------------------------------------------------------------------------------


def test_verbose_shows_a_bar_with_loss_and_rank(capfd):
    fitted = transformer(verbose=1).fit(signals())
    out, err = capfd.readouterr()
    assert out == ""
    last = err.rsplit("\r", 1)[-1]
    assert re.search(r"SKATRTransformer: 100%.*4/4", last)
    row = fitted.history_[-1]
    assert f"train={row['train_loss']:.3g}" in last
    assert f"valid={row['valid_loss']:.3g}" in last
    assert f"rank={row['effective_rank']:.3g}" in last


def test_a_quiet_fit_says_nothing(capfd):
    transformer().fit(signals())
    assert capfd.readouterr() == ("", "")


class Tasks:
    """A scikit-learn callback that notes the tasks of a fit."""

    max_propagation_depth = None

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.begun, self.ended = [], []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        self.begun.append((context.estimator_name, context.task_name, context.max_subtasks))

    def on_fit_task_end(self, estimator, context):
        self.ended.append((context.estimator_name, context.task_name))
        epochs = self.ended.count(("SKATRTransformer", "epoch"))
        return epochs == self.stop_at


def test_scikit_learns_callbacks_see_the_epochs():
    pytest.importorskip("sklearn.callback")
    tasks = Tasks()
    transformer().set_callbacks(tasks).fit(signals())
    epoch = ("SKATRTransformer", "epoch")
    assert tasks.ended == [epoch] * 4 + [("SKATRTransformer", "fit")]
    assert [begun[:2] for begun in tasks.begun] == [("SKATRTransformer", "fit")] + [epoch] * 4
    assert tasks.begun[0][2] == 4


def test_scikit_learns_callbacks_may_stop_the_run():
    pytest.importorskip("sklearn.callback")
    fitted = transformer().set_callbacks(Tasks(stop_at=2)).fit(signals())
    assert len(fitted.history_) == 2


def test_scikit_learns_callbacks_see_one_fit_of_all_members():
    pytest.importorskip("sklearn.callback")
    tasks = Tasks()
    posterior = PosteriorEstimator(n_members=3, max_epochs=2, n_blocks=1, hidden_dims=(4,))
    posterior.set_callbacks(tasks).fit(*summaries())
    assert [task for _, task in tasks.ended] == ["epoch"] * 6 + ["fit"]
    assert [task for _, task, _ in tasks.begun] == ["fit"] + ["epoch"] * 6
    assert tasks.begun[0][2] == 6


def searched():
    pipe = Pipeline([("skatr", transformer()), ("head", Ridge())])
    return GridSearchCV(pipe, {"head__alpha": [0.1, 1.0]}, cv=2, error_score="raise")


@pytest.mark.filterwarnings("ignore:The estimator Ridge does not support callbacks")
def test_scikit_learns_callbacks_reach_into_a_search():
    pytest.importorskip("sklearn.callback")
    tasks = Tasks()
    searched().set_callbacks(tasks).fit(signals(), signals()[:, 0])
    # Two candidates on two folds, and the refit, of four epochs each.
    assert tasks.ended.count(("SKATRTransformer", "epoch")) == 20


@pytest.mark.filterwarnings("ignore:The estimator Ridge does not support callbacks")
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a search"])
def test_scikit_learns_progress_bar(inside, capfd):
    callback = pytest.importorskip("sklearn.callback")
    pytest.importorskip("rich")  # draws the bars
    estimator = searched() if inside else transformer()
    bars = callback.ProgressBar(max_propagation_depth=None)
    estimator.set_callbacks(bars).fit(signals(), signals()[:, 0])
    out, err = capfd.readouterr()
    assert "SKATRTransformer" in out + err


def test_a_run_says_once_what_it_is_and_how_long_it_takes(caplog):
    with caplog.at_level(logging.INFO, logger="skatr_sk.training"):
        transformer().fit(signals())
    said = [record.message for record in caplog.records if "pre-training" in record.message]
    assert len(said) == 1
    assert "SKATRTransformer: pre-training on 18 fields of (12,) cells, each 6 tokens" in said[0]
    assert "12 steps of 8 in 4 epochs on cpu, about 0.0 minutes to go." in said[0]
