"""What all estimators that train a network share: parameters, their table, their docs."""

from __future__ import annotations

import copy
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
from sklearn.base import clone
from skorch.callbacks import Callback

from skatr_sk._checks import (
    Auto,
    Choice,
    Integer,
    Kind,
    PathLike,
    Problems,
    Real,
    Rule,
    warn_without_effect,
)
from skatr_sk._tensors import HISTORY
from skatr_sk.training.callbacks import copy_callbacks
from skatr_sk.training.checkpoint import Checkpoint, run_identity
from skatr_sk.training.device import DEVICE_HINT, PRECISIONS, device_mend
from skatr_sk.training.held_out import Given
from skatr_sk.training.seeds import RANDOM_STATE_HINT, is_random_state
from skatr_sk.training.stored import StoredEstimator

try:  # scikit-learn >= 1.9: nested progress in a search
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _of_sklearn
except ImportError:
    _of_sklearn = None

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks of its own."""


__all__ = ["TRAINING_DOCS", "CallbackSupportMixin", "TrainedEstimator", "with_callbacks"]

_Method = TypeVar("_Method", bound=Callable[..., Any])
_CALLBACKS_HINT = "a list of skorch callbacks, or of what makes them, or None"


def with_callbacks(method: _Method) -> _Method:
    """Let scikit-learn's callbacks follow a ``fit``, where there are such; its type stays."""
    return method if _of_sklearn is None else cast(_Method, _of_sklearn(method))


def _are_callbacks(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    # skorch takes (name, callback) pairs as well
    named = [c for c in value if isinstance(c, tuple) and len(c) == 2]
    parts = [c[1] if c in named else c for c in value]
    names = [name for name, _ in named]
    right = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return right and all(isinstance(part, Callback) or _makes_one(part) for part in parts)


def _makes_one(part: Any) -> bool:
    """Whether a value may be what makes a callback: its class, or a function."""
    return issubclass(part, Callback) if isinstance(part, type) else callable(part)


def _is_verbose(value: Any) -> bool:
    # A flag counts as a level of 0 or 1.
    return Integer(0).fault(int(value) if isinstance(value, bool) else value) is None


TRAINING_DOCS = {
    "device": """
        device : str, default="auto"
            Where to compute: "auto" is CUDA when there is one, else the CPU; or "cpu", "cuda",
            "cuda:1".""",
    "precision": """
        precision : {"auto", "float32", "bf16"}, default="auto"
            "auto" is bfloat16 autocast on CUDA, and float32 elsewhere.""",
    "callbacks": """
        callbacks : list of skorch callbacks or None, default=None
            Called during the training, after the estimator's own. Copies of them are, so that
            those given stay as they are; what they record of an epoch is in ``history_``. A class,
            or a function without arguments that returns a callback, is called anew by every
            training: for those that hold what cannot be copied, such as an open file.""",
    "checkpoint": """
        checkpoint_dir : path or None, default=None
            Folder where a ``fit`` that is interrupted leaves its state, and where the next one with
            the same parameters and data goes on, to the same result; needs an int `random_state`.
            SIGTERM, SIGUSR1 and Ctrl-C end the training after its step, and the state after the
            last whole epoch is written then.
        checkpoint_every : int, default=10
            Epochs between two checkpoints.""",
    "verbose": """
        verbose : int, default=0
            1 shows a progress bar, with the losses and the time left, and bars of other long
            calls.""",
    "random_state": """
        random_state : int, RandomState instance or None, default=None
            Fixes weights, batches, the validation split and all that is drawn in training. The
            same int gives the same result on the same CPU, and on a GPU up to the rounding of its
            parallel sums.""",
    "history": """
        history_ : list of dict
            One an epoch: ``epoch, train_loss, valid_loss`` (where rows are held out for
            validation), ``seconds`` and ``kept``, true for the epoch whose weights these are;
            and what callbacks have recorded. ``skipped_steps`` counts those of an epoch that were
            not finite, where there are any, and ``learning_rate_share`` is what is left of the
            rate once it was halved because of a run of them.""",
}


@dataclass(kw_only=True, eq=False, repr=False)
class TrainedEstimator(CallbackSupportMixin, StoredEstimator):
    """Base of the estimators that train a network: the parameters of the training.

    A subclass is a dataclass of the same kind: it declares its own parameters as fields, gives
    others of these defaults, and extends the table `_parameters`.
    """

    max_epochs: int | str = 100
    batch_size: int | str = 64
    learning_rate: float = 1e-3
    weight_decay: float | str = 1e-3
    validation_fraction: float = 0.1
    patience: int | None = None
    device: str = "auto"
    precision: str = "auto"
    callbacks: Sequence[Any] | None = None
    verbose: int = 0
    random_state: int | np.random.RandomState | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int = 10

    _parameters: ClassVar[Mapping[str, Kind]] = {
        "max_epochs": Auto(Integer(0)),
        "batch_size": Integer(1),
        "learning_rate": Real("(0, inf)"),
        "weight_decay": Real("[0, inf)"),
        "validation_fraction": Real("[0, 1)"),
        "patience": Integer(1, optional=True),
        "device": Rule(device_mend, DEVICE_HINT),
        "precision": Choice(*PRECISIONS),
        "callbacks": Rule(_are_callbacks, _CALLBACKS_HINT, optional=True),
        "verbose": Rule(_is_verbose, "an integer >= 0"),
        "random_state": Rule(is_random_state, RANDOM_STATE_HINT),
        "checkpoint_dir": PathLike(),
        "checkpoint_every": Integer(1),
    }

    _learned: ClassVar[Mapping[str, Kind]] = {**StoredEstimator._learned, "history_": HISTORY}

    def __sklearn_clone__(self) -> Self:
        """Clone, also with callbacks that scikit-learn cannot clone: those are copied or shared."""
        bare = copy.copy(self)
        bare.callbacks = None
        cloned: Self = super(TrainedEstimator, bare).__sklearn_clone__()
        if isinstance(self.callbacks, list | tuple):
            cloned.callbacks = copy_callbacks(self.callbacks)
        else:  # None, or what ``fit`` will refuse
            cloned.callbacks = clone(self.callbacks, safe=False)
        return cloned

    def _check_together(self, problems: Problems) -> None:
        super()._check_together(problems)
        if self._resumes() and not isinstance(self.random_state, numbers.Integral):
            wanted = "an int with checkpoint_dir, to resume by"
            problems.add("random_state", wanted, self.random_state)

    def _auto(self, n_rows: int) -> dict[str, Any]:
        """Return what "auto" stands for in a training on `n_rows` rows, of each such parameter."""
        return {}

    def _resolved(self, n_rows: int) -> Self:
        """Return a copy that has the values for which "auto" stands in a training on `n_rows`."""
        resolved = copy.copy(self)
        for name, value in self._stands_for(n_rows).items():
            setattr(resolved, name, value)
        return resolved

    def _stands_for(self, n_rows: int) -> dict[str, Any]:
        """Return what is taken of :meth:`_auto`: the parameters that are "auto"."""
        known = self._auto(n_rows).items()
        return {name: value for name, value in known if getattr(self, name) == "auto"}

    # What is learned depends on all parameters but these, which may change where a run resumes.
    _not_learned_from: ClassVar[frozenset[str]] = frozenset(
        {"callbacks", "checkpoint_dir", "checkpoint_every", "device", "verbose"}
    )

    def _resumes(self) -> bool:
        """Whether a training leaves checkpoints."""
        return self.checkpoint_dir is not None

    def _checkpoint(self, seed: int, **identity: Any) -> Checkpoint | None:
        """Return the checkpoint of a training with a seed, or None where there is to be none.

        The `identity` says on what the result depends beside the parameters, or in other words than
        these do.
        """
        if self.checkpoint_dir is None:
            return None
        given = self.get_params(deep=False)
        settings = {name: given[name] for name in given.keys() - self._not_learned_from}
        settings |= {"estimator": type(self).__name__, "random_state": seed} | identity
        folder = os.fspath(self.checkpoint_dir)
        return Checkpoint(folder, int(self.checkpoint_every), run_identity(settings))

    # Those that only act where there are steps.
    _of_steps: ClassVar = frozenset({"batch_size", "learning_rate", "weight_decay", "patience"})

    def _in_other_words(self) -> frozenset[str]:
        """Parameters that are their defaults, given in another way."""
        return frozenset()

    def _warn_of(self, given: Given) -> None:
        """Warn of parameters, and of what was given to ``fit``, that change nothing."""
        given.warn_without_effect(self)
        shown = copy.copy(self)
        if given.validation_data is not None:  # whatever the parameter, rows validate
            shown.validation_fraction = type(self).validation_fraction
        shown._warn_without_effect()

    def _warn_without_effect(self) -> None:
        """Warn of parameters that were given and change nothing; for subclasses to extend."""
        if self.max_epochs == 0:
            warn_without_effect(self, self._of_steps - self._in_other_words(), "max_epochs=0")
        elif self.validation_fraction == 0 and self.patience is not None:
            warn_without_effect(self, {"patience"}, "validation_fraction=0")
        if self.checkpoint_dir is None:
            warn_without_effect(self, {"checkpoint_every"}, "checkpoint_dir=None")
