"""Checkpoints: a resumed run equals one without a break; damaged and foreign files are refused."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from skorch.callbacks import EarlyStopping, EpochScoring

from skatr_sk.summaries import Reconstruction
from tests.training.runs import Act, assert_same_run, raising, signals, transformer, without_seconds


class Cut(Exception):
    pass


def counted():
    """A list, and a callback that appends to it at each epoch."""
    epochs = []
    return epochs, Act("epoch", lambda net: epochs.append(len(net.history)))


@pytest.mark.parametrize("moment", ["batch", "begin"])
@pytest.mark.parametrize(
    "parameters",
    [
        dict(),
        dict(every=2),
        dict(objective=Reconstruction(predictor_dim=8, predictor_depth=1)),
        dict(validation_fraction=0.0),
    ],
    ids=str,
)
def test_a_resumed_run_equals_one_without_a_break(tmp_path, parameters, moment):
    every = parameters.get("every", 1)
    parameters = dict(max_epochs=5) | {k: v for k, v in parameters.items() if k != "every"}
    whole = transformer(**parameters).fit(signals())
    # In the middle of epoch 4, and before it.
    cut = Act(moment, raising(Cut()), at=11 if moment == "batch" else 4)
    kept = transformer(**parameters, checkpoint_every=every, checkpoint_dir=tmp_path / "run")
    with pytest.raises(Cut):
        kept.set_params(callbacks=[cut]).fit(signals())
    assert len(list((tmp_path / "run").glob("checkpoint-*.safetensors"))) == 1
    epochs, count = counted()
    kept.set_params(callbacks=[count]).fit(signals())
    done = 2 if every == 2 else 3
    assert epochs == list(range(done + 1, 6))  # the rest alone was trained
    assert_same_run(kept, whole)
    # The end is kept as well: another fit trains nothing more.
    epochs.clear()
    kept.fit(signals())
    assert epochs == []
    assert_same_run(kept, whole)


def test_a_resumed_run_keeps_what_early_stopping_knew(tmp_path):
    # A rate that is far too high: the validation loss turns up soon.
    parameters = dict(max_epochs=40, patience=4, learning_rate=0.3)
    whole = transformer(**parameters).fit(signals())
    losses = [row["valid_loss"] for row in whole.history_]
    best = int(np.argmin(losses)) + 1
    n_epochs = len(losses)
    assert n_epochs == best + 4 < 40
    # Cut after the best epoch: its weights must come out of the checkpoint.
    kept = transformer(**parameters, checkpoint_every=1, checkpoint_dir=tmp_path)
    with pytest.raises(Cut):
        kept.set_params(callbacks=[Act("epoch", raising(Cut()), at=best + 2)]).fit(signals())
    kept.set_params(callbacks=None).fit(signals())
    assert_same_run(kept, whole)
    # A run that had stopped stays stopped.
    kept.fit(signals())
    assert_same_run(kept, whole)


def test_what_callbacks_record_is_resumed_with_the_history(tmp_path):
    scores = [EpochScoring(lambda net, X, y: np.float32(0.5), name="mine")]
    kept = transformer(checkpoint_dir=tmp_path, checkpoint_every=1, max_epochs=4)
    with pytest.raises(Cut):
        cut = Act("epoch", raising(Cut()), at=3)
        kept.set_params(callbacks=[*scores, cut]).fit(signals())
    fitted = kept.set_params(callbacks=scores).fit(signals())
    assert [row["mine"] for row in fitted.history_] == [0.5] * 4


@pytest.mark.parametrize("kind", ["flag", "skorch"])
def test_a_stop_that_a_user_asked_for_is_kept(tmp_path, kind):
    """Also between two checkpoints, and also as skorch's callbacks ask for it."""

    def stop(net):
        net.stop_ = True

    early = Act("epoch", stop, at=2)
    if kind == "skorch":
        early = EarlyStopping(patience=1, threshold=1e9, threshold_mode="abs", sink=lambda _: 0)
    epochs, count = counted()
    fitted = transformer(checkpoint_dir=tmp_path, callbacks=[early, count]).fit(signals())
    assert epochs == [1, 2]
    again = clone(fitted).fit(signals())
    assert epochs == [1, 2]
    assert_same_run(again, fitted)


def checkpointed(folder):
    fitted = transformer(checkpoint_dir=folder, checkpoint_every=1).fit(signals())
    (path,) = folder.glob("checkpoint-*.safetensors")
    return fitted, path


def header_of(path):
    with safe_open(path, framework="pt") as stream:
        return stream.metadata()


@pytest.mark.parametrize("damage", ["truncated", "random", "foreign", "empty header"])
def test_a_damaged_checkpoint(tmp_path, damage):
    fitted, path = checkpointed(tmp_path)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "random":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    else:
        metadata = {"skatr_sk_checkpoint": "{}"} if damage == "empty header" else {"made": "by"}
        save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ValueError, match=r"checkpoint-.*\.safetensors.*Remove the file") as error:
        fitted.fit(signals())
    assert str(path) in str(error.value)


@pytest.mark.parametrize("what", ["optimizer", "module", "generator.shuffle", "lost", "header"])
def test_a_checkpoint_whose_tensors_do_not_fit(tmp_path, what):
    """The optimiser's kernels would write beyond a tensor that is too short."""
    fitted, path = checkpointed(tmp_path)
    tensors, metadata = load_file(path), header_of(path)
    if what == "header":
        header = json.loads(metadata["skatr_sk_checkpoint"])
        del header["history"]
        metadata = {"skatr_sk_checkpoint": json.dumps(header)}
    elif what == "lost":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("module.")}
    else:
        cut = [k for k in tensors if k.startswith(what) and tensors[k].numel() > 1]
        tensors |= {k: torch.zeros(1, dtype=tensors[k].dtype) for k in cut}
        assert cut
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError, match="does not fit this run: .*Remove the file"):
        fitted.fit(signals())


@pytest.mark.parametrize(
    "change", [dict(random_state=4), dict(learning_rate=1e-4), dict(max_epochs=9), "data"], ids=str
)
def test_a_checkpoint_of_another_run(tmp_path, change):
    fitted, path = checkpointed(tmp_path)
    before = path.read_bytes()
    X = signals(seed=1) if change == "data" else signals()
    if change != "data":
        fitted.set_params(**change)
    fitted.fit(X)
    # It starts anew beside the first, which stays as it was.
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 2
    assert path.read_bytes() == before
    fresh = clone(fitted).set_params(checkpoint_dir=None, checkpoint_every=10).fit(X)
    np.testing.assert_array_equal(fitted.transform(X), fresh.transform(X))


def test_folds_share_a_checkpoint_folder(tmp_path):
    """Each has a file of its own there, and none goes on from another's."""
    X = signals()
    epochs, count = counted()

    def scores(folder):
        skatr = transformer(checkpoint_dir=folder, callbacks=[count])
        pipe = Pipeline([("skatr", skatr), ("head", Ridge())])
        return cross_val_score(pipe, X, X[:, 0], cv=3, error_score="raise")

    found = scores(tmp_path)
    assert epochs == [1, 2, 3, 4] * 3
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 3
    np.testing.assert_array_equal(found, scores(None))
    assert len(set(found)) == 3 and np.isfinite(found).all()
    # A second search finds all of them.
    epochs.clear()
    np.testing.assert_array_equal(scores(tmp_path), found)
    assert epochs == []


def test_a_file_under_the_name_of_another_run(tmp_path):
    fitted, path = checkpointed(tmp_path)
    header = json.dumps({"format": 1, "run": "another"})
    save_file(load_file(path), path, metadata={"skatr_sk_checkpoint": header})
    with pytest.raises(ValueError, match="was not written by this run. Remove the file"):
        fitted.fit(signals())


def test_a_checkpoint_of_another_kind_of_device(tmp_path):
    # What another device's generator knew is not in the file; that is no reason to fail.
    fitted, path = checkpointed(tmp_path)
    tensors = {k: v for k, v in load_file(path).items() if k != "generator.torch"}
    save_file(tensors, path, metadata=header_of(path))
    before = fitted.history_
    assert without_seconds(fitted.fit(signals()).history_) == without_seconds(before)


def test_a_checkpoint_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="random_state: expected an int with checkpoint_dir"):
        transformer(checkpoint_dir=tmp_path, random_state=None).fit(signals())


def test_resuming_is_logged(tmp_path, caplog):
    fitted, path = checkpointed(tmp_path)
    with caplog.at_level(logging.INFO, logger="skatr_sk"):
        fitted.fit(signals())
    assert f"Resumed after epoch 4 from {path}." in caplog.text


def test_whatever_a_callback_records_is_kept(tmp_path):
    record = Act("epoch", lambda net: net.history.record("mine", {(1, 2): 3}))
    fitted = transformer(max_epochs=1, callbacks=[record], checkpoint_dir=tmp_path).fit(signals())
    assert fitted.history_[-1]["mine"] == {"(1, 2)": 3}
    assert list(tmp_path.glob("checkpoint-*.safetensors"))
