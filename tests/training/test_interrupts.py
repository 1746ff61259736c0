"""Signals: the training stops after its step, is written, and goes on as if it had not stopped."""

import logging
import os
import signal
import threading

import pytest

from skatr_sk.training.interrupts import Signals
from tests.training.runs import Act, assert_same_run, raising, signals, transformer

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 138}


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


def send(number):
    def act(net):
        os.kill(os.getpid(), number)

    return act


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    # A shell starts what it runs in the background with Ctrl-C ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = handlers()
    yield
    assert handlers() == before
    signal.signal(signal.SIGINT, former)


def stopped(fitted, number):
    """Fit until the signal ends it; return what is said."""
    ends = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ends) as error:
        fitted.fit(signals())
    if number != signal.SIGINT:
        assert error.value.code == STATUS[number]
    assert not isinstance(error.value, RuntimeError)
    return str(error.value)


@pytest.fixture(scope="module")
def whole():
    return transformer(max_epochs=5).fit(signals())


IN_STEP, AT_END = ("batch", 8, 2), ("epoch", 3, 3)
MOMENTS = [(number, *IN_STEP) for number in NUMBERS] + [(signal.SIGTERM, *AT_END)]


@pytest.mark.parametrize(("number", "moment", "at", "done"), MOMENTS)
def test_a_signal_writes_the_last_whole_epoch(tmp_path, caplog, whole, number, moment, at, done):
    """However seldom a checkpoint is written, and to the same end as without a break."""
    kept = transformer(max_epochs=5, checkpoint_dir=tmp_path)
    ended, epochs = [], []
    end = Act("epoch", lambda net: ended.append(len(net.history)))
    kept.set_params(callbacks=[Act(moment, send(number), at=at), end])
    said = stopped(kept, number)
    assert ended == list(range(1, done + 1))  # no step more
    (path,) = tmp_path.glob("checkpoint-*.safetensors")
    assert not hasattr(kept, "encoder_")
    message = f"Stopped by {number.name} after epoch {done} of 5; the state is in {path}: fit again"
    assert message in caplog.text
    if number == signal.SIGINT:
        assert message in said
    count = Act("epoch", lambda net: epochs.append(len(net.history)))
    assert_same_run(kept.set_params(callbacks=[count]).fit(signals()), whole)
    assert epochs == list(range(done + 1, 6))


def test_callbacks_see_the_training_end(tmp_path):
    """So that they close what they have opened."""
    seen = []

    class Last(Act):
        def on_train_end(self, net, **kwargs):
            seen.append("end")

    last = Last("batch", send(signal.SIGTERM), at=1)
    stopped(transformer(checkpoint_dir=tmp_path, callbacks=[last], verbose=1), signal.SIGTERM)
    assert seen == ["end"]


def test_a_signal_before_the_first_epoch_has_ended(tmp_path, caplog):
    early = Act("batch", send(signal.SIGTERM), at=1)
    stopped(transformer(checkpoint_dir=tmp_path, callbacks=[early]), signal.SIGTERM)
    assert "after epoch 0 of 4; no epoch has ended yet" in caplog.text
    assert not list(tmp_path.glob("*"))


def test_a_signal_after_the_last_step_is_not_lost(tmp_path, caplog):
    class Late(Act):
        def on_train_end(self, net, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped(transformer(checkpoint_dir=tmp_path, callbacks=[Late("end", None)]), signal.SIGTERM)
    assert "after epoch 4 of 4; the state is in" in caplog.text


def test_a_second_signal_ends_at_once(tmp_path):
    def twice(net):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second one came to nothing")

    fitted = transformer(checkpoint_dir=tmp_path, callbacks=[Act("batch", twice, at=4)])
    stopped(fitted, signal.SIGTERM)
    assert list(
        tmp_path.glob("checkpoint-*.safetensors")
    )  # the first epoch is written all the same


def test_a_users_handler_is_called_after_the_writing(tmp_path):
    seen = []

    def mine(number, frame):
        seen.append((number, len(list(tmp_path.glob("checkpoint-*.safetensors")))))

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        late = Act("batch", send(signal.SIGUSR1), at=4)
        stopped(transformer(checkpoint_dir=tmp_path, callbacks=[late]), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [(signal.SIGUSR1, 1)]


def test_what_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        idle = Act("batch", send(signal.SIGUSR1), at=4)
        fitted = transformer(checkpoint_dir=tmp_path, callbacks=[idle]).fit(signals())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(fitted.history_) == 4


def test_without_a_checkpoint_handlers_stay_as_they_are():
    seen = []
    watch = Act("batch", lambda net: seen.append(handlers()))
    before = handlers()
    transformer(max_epochs=1, callbacks=[watch]).fit(signals())
    assert seen == [before] * 3


def test_in_a_thread_handlers_stay_as_they_are(tmp_path):
    seen, before = [], handlers()
    watch = Act("batch", lambda net: seen.append(handlers()))
    fitted = transformer(max_epochs=1, callbacks=[watch], checkpoint_dir=tmp_path)
    thread = threading.Thread(target=fitted.fit, args=(signals(),))
    thread.start()
    thread.join()
    assert seen == [before] * 3


def test_an_interrupt_of_another_kind_is_written_too(tmp_path):
    """One that a callback raises, say; and any error."""
    for error, ends in ((KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError(), RuntimeError)):
        folder = tmp_path / ends.__name__
        cut = Act("batch", raising(error), at=7)
        with pytest.raises(ends):
            transformer(checkpoint_dir=folder, callbacks=[cut]).fit(signals())
        assert list(folder.glob("checkpoint-*.safetensors"))


def test_an_error_that_follows_a_signal_is_none(tmp_path, caplog):
    """A process that reads is ended by the same signal, and torch says that it has died."""

    def die(net):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker is killed by signal: Terminated.")

    with caplog.at_level(logging.WARNING):
        fitted = transformer(checkpoint_dir=tmp_path, callbacks=[Act("batch", die, at=7)])
        stopped(fitted, signal.SIGTERM)
    assert "Stopped by SIGTERM after epoch 2 of 4" in caplog.text


def test_handlers_come_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), Signals(wanted=True):
        assert handlers() != before
        raise ZeroDivisionError
    assert handlers() == before
