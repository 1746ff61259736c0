"""What all trained estimators share: their table of parameters, documentation, clones."""

import inspect
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from sklearn.base import clone
from skorch.callbacks import EpochTimer

from skatr_sk._checks import Integer, NoEffectWarning, Problems, shared_docs
from skatr_sk.training.estimator import TRAINING_DOCS, TrainedEstimator
from tests.training.runs import Trained, signals, transformer


@dataclass(kw_only=True, eq=False, repr=False)
class Wide(Trained):
    """An estimator with a parameter and a rule of its own."""

    batch_size: int = 16

    _parameters: ClassVar = TrainedEstimator._parameters | {"width": Integer(1)}

    def _check_together(self, problems):
        if self.width == self.batch_size:
            problems.add("width", "another number than batch_size", self.width)

    def fit(self, X, y=None):
        self._check_parameters()
        self._warn_without_effect()
        return self


def test_every_parameter_is_in_the_table():
    assert TrainedEstimator._parameters.keys() == TrainedEstimator().get_params().keys()
    assert Wide._parameters.keys() == Wide().get_params().keys()


def test_defaults_pass_the_table():
    Wide().fit(None)
    problems = Problems("")
    problems.check(TrainedEstimator._parameters, TrainedEstimator())
    assert len(problems.messages) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("validation_fraction", 1.0),
        ("patience", 0),
        ("device", "gpu"),
        ("precision", "fp16"),
        ("callbacks", [3]),
        ("callbacks", [int]),
        ("callbacks", "progress"),
        ("callbacks", EpochTimer()),
        ("verbose", -1),
        ("verbose", "loud"),
        ("random_state", -1),
        ("width", 16),
        ("width", 0),
    ],
)
def test_wrong_parameters(name, value):
    with pytest.raises(ValueError, match=rf"Wide has 1 invalid parameter:\n- {name}: expected "):
        Wide(**{name: value}).fit(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("batch_size", np.int64(4)),
        ("learning_rate", np.float32(1)),
        ("validation_fraction", 0),
        ("patience", None),
        ("callbacks", None),
        ("callbacks", (EpochTimer(),)),
        ("callbacks", [("name", EpochTimer())]),
        ("verbose", True),
        ("random_state", np.random.RandomState(0)),
    ],
)
def test_right_parameters(name, value):
    Wide(**{name: value}).fit(None)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match="3 invalid parameters") as caught:
        Wide(width=0, patience=0, verbose="loud").fit(None)
    names = [line.split(":")[0] for line in str(caught.value).splitlines()[1:]]
    assert names == ["- patience", "- verbose", "- width"]


def test_a_parameter_without_effect_is_told():
    with pytest.warns(NoEffectWarning, match="Wide: no effect with validation_fraction=0") as told:
        Wide(validation_fraction=0, patience=3).fit(None)
    assert [warning.filename for warning in told] == [__file__]
    Wide(validation_fraction=0).fit(None)
    Wide(patience=3).fit(None)


def test_no_patience_agrees_with_no_validation():
    """Also where the estimator's own patience is another."""

    @dataclass(kw_only=True, eq=False, repr=False)
    class Patient(Wide):
        patience: int | None = 20

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for patience in (None, 20):  # not what would have acted; its own, which nobody has given
            Patient(validation_fraction=0, patience=patience).fit(None)
    with pytest.warns(NoEffectWarning, match="of patience"):
        Patient(validation_fraction=0, patience=5).fit(None)


def test_a_dataclass_is_an_estimator():
    estimator = Wide(width=2, random_state=3)
    assert repr(estimator) == "Wide(random_state=3, width=2)"
    assert estimator != Wide(width=2, random_state=3)  # as for any estimator
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.set_params(width=5).width == 5
    assert list(inspect.signature(Wide).parameters)[0] == "max_epochs"
    with pytest.raises(TypeError, match="positional"):
        Wide(3)


def test_what_makes_no_callback_is_refused():
    for wrong in ([3], [int]):
        with pytest.raises(ValueError, match="callbacks: expected a list of skorch callbacks"):
            transformer(callbacks=wrong).fit(signals())


def test_a_clone_has_callbacks_of_its_own():
    callbacks = [EpochTimer(), ("mine", EpochTimer())]
    first = Wide(callbacks=callbacks)
    second = clone(first)
    assert [type(one) for one in second.callbacks] == [EpochTimer, tuple]
    assert second.callbacks[0] is not callbacks[0]
    assert second.callbacks[1][0] == "mine" and second.callbacks[1][1] is not callbacks[1][1]
    assert first.callbacks is callbacks


def test_shared_documentation():
    @shared_docs(**TRAINING_DOCS)
    class Documented:
        """Learn.

        Parameters
        ----------
        {device}
        {verbose}

        Attributes
        ----------
        {history}
        """

    text = inspect.getdoc(Documented)
    assert "{" not in text.replace('{"auto", "float32", "bf16"}', "")
    assert 'device : str, default="auto"\n    Where to compute' in text
    assert "\n\nAttributes\n----------\nhistory_ : list of dict\n    One an epoch" in text
