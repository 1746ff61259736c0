"""Checkpoints: a resumed run equals one without a break; damaged and foreign files are refused."""

import copy
import errno
import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback, EarlyStopping, EpochScoring

from skatr_sk import CheckpointWarning, NoEffectWarning
from skatr_sk._files import write_whole
from skatr_sk.summaries import Reconstruction
from skatr_sk.training import checkpoint
from skatr_sk.training.state import digest_of
from tests.training.runs import (
    SMALL_JEPA,
    Act,
    assert_same_run,
    raising,
    signals,
    transformer,
    without_seconds,
)


class Cut(Exception):
    pass


def counted():
    """A list, and a callback that appends to it at each epoch."""
    epochs = []
    return epochs, Act("epoch", lambda net: epochs.append(len(net.history)))


@pytest.mark.parametrize("moment", ["batch", pytest.param("begin", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "parameters",
    [
        dict(objective=SMALL_JEPA),
        dict(every=10),
        pytest.param(
            dict(objective=Reconstruction(predictor_dim=8, predictor_depth=1)),
            marks=pytest.mark.slow,
        ),
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
    assert epochs == [4, 5]  # the rest alone was trained, however seldom it is written
    assert_same_run(kept, whole)
    # The end is kept as well: another fit trains nothing more.
    epochs.clear()
    kept.fit(signals())
    assert epochs == []
    assert_same_run(kept, whole)


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A fitted transformer and its checkpoint, which no test changes."""
    folder = tmp_path_factory.mktemp("written")
    fitted = transformer(checkpoint_dir=folder, checkpoint_every=1, patience=50).fit(signals())
    (path,) = folder.glob("checkpoint-*.safetensors")
    return fitted, path


@pytest.fixture
def run(written, tmp_path):
    """A fitted transformer whose checkpoint, a copy, may be damaged."""
    fitted, path = copy.deepcopy(written[0]), tmp_path / written[1].name
    shutil.copy(written[1], path)
    return fitted.set_params(checkpoint_dir=tmp_path), path


def parts_of(path):
    """Header and tensors of a checkpoint."""
    with safe_open(path, framework="pt") as stream:
        return json.loads(stream.metadata()["skatr_sk_checkpoint"]), load_file(path)


def rewrite(path, header, tensors):
    """Write a checkpoint that has its own digest: only what is in it can be wrong."""
    text = json.dumps(header)
    metadata = {"skatr_sk_checkpoint": text, "digest": digest_of(tensors, text)}
    save_file(tensors, path, metadata=metadata)


def refused(fitted, path, *said):
    """Check that a fit refuses the file, names it, says how to go on, and changes nothing."""
    before = fitted.encoder_, fitted.history_
    with pytest.raises((OSError, ValueError)) as error:
        fitted.fit(signals())
    message = str(error.value)
    assert str(path) in message and all(word in message for word in said), message
    assert "remove the file" in message or isinstance(error.value, OSError)
    assert (fitted.encoder_, fitted.history_) == before


def flip(path, at):
    whole = bytearray(path.read_bytes())
    whole[at] ^= 4
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", ["truncated", "longer", "random", "empty", "foreign", "no run"])
def test_a_damaged_checkpoint(run, damage):
    fitted, path = run
    whole = path.read_bytes()
    if damage in ("foreign", "no run"):
        found = {"made": "by"} if damage == "foreign" else {"skatr_sk_checkpoint": "{}"}
        save_file(load_file(path), path, metadata=found)
    else:
        random = np.random.default_rng(0).bytes(1000)
        damaged = {"truncated": whole[: len(whole) // 2], "longer": whole + random, "empty": b""}
        path.write_bytes(damaged.get(damage, random))
    refused(fitted, path, "expected a whole checkpoint of this run")


def test_a_bit_of_a_checkpoint_that_flips(run):
    """Wherever it is: in the header, in weights, moments or generators."""
    fitted, path = run
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(8, len(whole), 25):
        flip(path, at)
        refused(fitted, path)
        path.write_bytes(whole)
    fitted.fit(signals())


def test_a_header_of_more_tensors_than_there_are(run):
    """They are not compared each with each."""
    fitted, path = run
    many = {f"{i}": dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for i in range(30_000)}
    with safe_open(path, framework="pt") as stream:
        text = json.dumps(many | {"__metadata__": stream.metadata()}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    begin = time.process_time()
    refused(fitted, path, "it has 30000 tensors, where the run has")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("length", [0, 10**9, 2**63])
def test_a_header_that_is_longer_than_its_file(run, length):
    fitted, path = run
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(fitted, path, f"{length} bytes")


CUT = ["optimizer", "module", "generator.shuffle", "generator.prepare", "best"]


@pytest.mark.parametrize("change", ["shape", "dtype", "lost", "more", "infinite"])
@pytest.mark.parametrize("what", CUT)
def test_a_checkpoint_whose_tensors_do_not_fit(run, what, change):
    """The optimiser's kernels would write beyond a tensor that is too short."""
    fitted, path = run
    header, tensors = parts_of(path)
    own = [k for k in tensors if k.startswith(what) and tensors[k].numel() > 1]
    if change == "shape":
        tensors |= {k: torch.zeros(1, dtype=tensors[k].dtype) for k in own}
    elif change == "dtype":
        tensors |= {k: tensors[k].to(torch.int16) for k in own}
    elif change == "lost":
        del tensors[own[0]]
    elif change == "more":
        tensors[f"{what}.9999.exp_avg"] = torch.zeros(3)
    elif tensors[own[0]].dtype == torch.uint8:
        tensors[own[0]][16:24] = 1  # the place of its next word
    else:
        tensors[own[0]].view(-1)[0] = torch.inf
    rewrite(path, header, tensors)
    name = "" if change == "more" else own[0].partition(".")[0]
    refused(fitted, path, "does not fit this run", name)


@pytest.mark.parametrize(
    "change",
    [
        dict(history=None),
        dict(history=[{"epoch": 1}]),
        dict(history=3),
        dict(stopped="no"),
        dict(best=[1.0]),
        dict(best=None),
        dict(best=[0.1, 99]),
        dict(guard={}),
        dict(guard=None),
        {"guard": {"share_": 1e9}},
        {"guard": {"returns_": 9}},
        {"guard": {"in_a_row_": -9}},
    ],
    ids=str,
)
def test_a_checkpoint_whose_header_does_not_fit(run, change):
    fitted, path = run
    header, tensors = parts_of(path)
    if change.get("guard"):
        change = {"guard": header["guard"] | change["guard"]}
    rewrite(path, header | change, tensors)
    refused(fitted, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
# What is done to a file: bytes that are cut out of it, and put there.
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 64), st.binary(max_size=64)), max_size=3)
KEYS = ["format", "run", "stopped", "history", "guard", "best"]


def survives(written, folder, edits=(), change=None):
    """Check that a fit ends well, or with one error that names the file, whatever is in it."""
    path = folder / written[1].name
    if change is None:
        whole = written[1].read_bytes()
        for where, length, put in edits:
            at = int(where**4 * len(whole))  # most of what can go wrong is in the header
            whole = whole[:at] + put + whole[at + length :]
        path.write_bytes(whole)
    else:
        header, tensors = parts_of(written[1])
        rewrite(path, header | change, tensors)
    fitted = clone(written[0]).set_params(checkpoint_dir=folder, max_epochs=4)
    try:
        fitted.fit(signals())
    except (OSError, ValueError) as error:
        assert str(path) in str(error)
    else:
        assert_same_run(fitted, written[0])


EXAMPLES = [pytest.param(6), pytest.param(1500, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n_examples", EXAMPLES)
def test_whatever_the_bytes_of_a_checkpoint_are(written, tmp_path, n_examples):
    @settings(max_examples=n_examples)
    @given(EDITS)
    def check(edits):
        survives(written, tmp_path, edits=edits)

    check()


@pytest.mark.parametrize("n_examples", EXAMPLES)
def test_whatever_the_header_of_a_checkpoint_says(written, tmp_path, n_examples):
    """With a digest of its own: somebody has meant it."""

    @settings(max_examples=n_examples)
    @given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1))
    def check(change):
        survives(written, tmp_path, change=change)

    check()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_under_the_name_of_a_checkpoint(run, kind):
    fitted, path = run
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    refused(fitted, path, "expected a regular file")


def test_an_error_before_the_training_is_that_error(tmp_path):
    class Early(Act):
        def initialize(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transformer(checkpoint_dir=tmp_path, callbacks=[Early("batch", None)]).fit(signals())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="checkpoint_dir: expected a folder, .*file"):
        transformer(checkpoint_dir=tmp_path / "file").fit(signals())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    """A warning, once; the training goes on, and writes again when there is room."""
    full, made = [2, 3], []

    def write(path, writer, size):
        made.append(path)
        if len(made) in full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, writer, size)

    monkeypatch.setattr(checkpoint, "write_whole", write)
    with pytest.warns(
        CheckpointWarning, match="after epoch 2 could not be written .*space"
    ) as said:
        fitted = transformer(checkpoint_dir=tmp_path, checkpoint_every=1).fit(signals())
    (path,) = tmp_path.glob("*.safetensors")
    assert len(said) == 1
    assert len(made) == 4 and len(parts_of(path)[0]["history"]) == 4
    assert_same_run(fitted, transformer().fit(signals()))


def test_other_versions_begin_anew(run, tmp_path, monkeypatch):
    fitted, path = run
    before = path.read_bytes()
    monkeypatch.setattr(torch, "__version__", "99.0")
    with pytest.warns(CheckpointWarning, match=f"{path.name} is .* other versions than .*99.0"):
        again = clone(fitted).fit(signals())
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 2
    assert_same_run(again, fitted)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(dict(random_state=4), marks=pytest.mark.slow),
        dict(learning_rate=1e-4),
        pytest.param(dict(max_epochs=5), marks=pytest.mark.slow),
        "data",
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run(run, tmp_path, change):
    fitted, path = run
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
        skatr = transformer(checkpoint_dir=folder, callbacks=[count], max_epochs=2)
        pipe = Pipeline([("skatr", skatr), ("head", Ridge())])
        return cross_val_score(pipe, X, X[:, 0], cv=3, error_score="raise")

    found = scores(tmp_path)
    assert epochs == [1, 2] * 3
    assert len(list(tmp_path.glob("checkpoint-*.safetensors"))) == 3
    np.testing.assert_array_equal(found, scores(None))
    assert len(set(found)) == 3 and np.isfinite(found).all()
    # A second search finds all of them.
    epochs.clear()
    np.testing.assert_array_equal(scores(tmp_path), found)
    assert epochs == []


def test_a_file_under_the_name_of_another_run(run):
    fitted, path = run
    header, tensors = parts_of(path)
    for change in (dict(run="another"), dict(format=1)):
        rewrite(path, header | change, tensors)
        refused(fitted, path, "was not written by this run")


def test_a_checkpoint_of_another_kind_of_device(run):
    # What another device's generator knew is not in the file; that is no reason to fail.
    fitted, path = run
    header, tensors = parts_of(path)
    del tensors["generator.torch"]
    tensors["generator.cuda"] = torch.zeros(16, dtype=torch.uint8)
    rewrite(path, header, tensors)
    before = fitted.history_
    assert without_seconds(fitted.fit(signals()).history_) == without_seconds(before)


def test_a_checkpoint_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="random_state: expected an int with checkpoint_dir"):
        transformer(checkpoint_dir=tmp_path, random_state=None).fit(signals())


def test_resuming_is_logged(run, caplog):
    fitted, path = run
    with caplog.at_level(logging.INFO, logger="skatr_sk"):
        fitted.fit(signals())
    assert f"Resumed after epoch 4 from {path}." in caplog.text


def test_callbacks_that_record_without_end(tmp_path):
    """What is not read again is not written: numbers stay, and the run resumes."""
    record = Act("epoch", lambda net: net.history.record("much", ["x" * 100] * 6000))
    count = Act("epoch", lambda net: net.history.record("mine", 3))
    made = transformer(callbacks=[record, count], checkpoint_dir=tmp_path)
    with pytest.warns(CheckpointWarning, match="record more than 10000 bytes an epoch") as said:
        fitted = made.fit(signals())
    assert len(said) == 1
    resumed = clone(fitted).fit(signals())
    assert [row["mine"] for row in resumed.history_] == [3] * 4
    np.testing.assert_array_equal(resumed.transform(signals()), fitted.transform(signals()))


def test_whatever_a_callback_records_is_kept(tmp_path):
    record = Act("epoch", lambda net: net.history.record("mine", {(1, 2): 3}))
    fitted = transformer(max_epochs=1, callbacks=[record], checkpoint_dir=tmp_path).fit(signals())
    assert fitted.history_[-1]["mine"] == {"(1, 2)": 3}
    assert list(tmp_path.glob("checkpoint-*.safetensors"))


def test_callbacks_that_come_after_a_run_has_ended_are_told(tmp_path):
    options = dict(checkpoint_dir=tmp_path, checkpoint_every=1)
    transformer(**options).fit(signals())
    with pytest.warns(NoEffectWarning, match="callbacks: .* saw no epoch"):
        transformer(**options, callbacks=[("mine", Callback())]).fit(signals())
