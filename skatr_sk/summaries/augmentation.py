"""What a training does to the fields of a step beside turning them: noise, or what a user gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from skatr_sk._checks import Rule, changed_parameters
from skatr_sk.fields import Fields, as_fields
from skatr_sk.training.identity import identity_of
from skatr_sk.training.state import digest_of

__all__ = ["AUGMENT", "Augmentation", "name_of"]

_SYMMETRIES = "sky symmetries"


def _is_augmentation(value: Any) -> bool | str:
    if isinstance(value, bool | np.bool_):
        return True
    if isinstance(value, type):
        return f"give an object of it, {value.__name__}(...)"
    if hasattr(value, "transform") and not hasattr(value, "augment"):
        return "a transformer that does the same each time belongs before this one, in a pipeline"
    return callable(value) or hasattr(value, "transform")


AUGMENT = Rule(
    _is_augmentation, "True, False, a function of a batch, or a transformer with a method augment"
)


class Augmentation:
    """What a checked parameter `augment` does to the fields that a training is given.

    Parameters
    ----------
    given : bool, callable or transformer
        A callable takes and returns a tensor (n, *field_shape) of float32 in mK, in the steps of
        the training alone. Of a transformer a clone is fitted to the fields: a step sees its
        ``augment(X, generator)`` of an array and a generator of numpy, and what is looked at beside
        the steps is its ``transform`` of the fields.
    fields : Fields
        That are trained on.
    seed : int
        Of a transformer that has a `random_state` and leaves it at None.
    """

    def __init__(self, given: Any, fields: Fields, seed: int) -> None:
        self.turns = not isinstance(given, bool | np.bool_) or bool(given)
        self.name = name_of(given)
        self.identity = identity_of(given)  # before it is called
        self._given, self._fitted = given, None
        if hasattr(given, "transform"):
            fitted = clone(given)
            if fitted.get_params(deep=False).get("random_state", 0) is None:
                fitted.set_params(random_state=seed)
            self._fitted = fitted.fit(fields)

    @property
    def change(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """What changes the fields of a step after they were turned; None where nothing does."""
        return None if isinstance(self._given, bool | np.bool_) else self._change

    def beside(self, fields: Fields) -> Fields:
        """Fields as they are seen beside the steps: in validation, when scaled, when watched."""
        if self._fitted is None:
            return fields
        seen = as_fields(self._fitted.transform(fields))
        if seen.shape != fields.shape:
            raise ValueError(self._wrong(f"fields of shape {fields.shape}", seen.shape))
        return seen

    def _change(self, fields: Tensor, generator: torch.Generator) -> Tensor:
        fields = fields.float()
        expected = f"a tensor of real numbers of shape {tuple(fields.shape)}"
        try:
            if self._fitted is None:
                with _numpy_seeded(generator):
                    seen = self._given(fields)
            else:
                seed = int(torch.randint(2**62, (), generator=generator))
                values = self._fitted.augment(fields.cpu().numpy(), np.random.default_rng(seed))
                seen = torch.as_tensor(values, device=fields.device)
        except Exception as error:  # whatever it is, it is the fault of what was handed in
            raise ValueError(self._wrong(expected, repr(error))) from error
        if not isinstance(seen, Tensor) or seen.shape != fields.shape:
            found = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise ValueError(self._wrong(expected, found))
        if seen.is_complex():
            raise ValueError(self._wrong(expected, seen.dtype))
        if not torch.isfinite(seen).all():
            raise ValueError(self._wrong("finite values", "NaN or infinite ones"))
        return seen

    def _wrong(self, expected: str, found: object) -> str:
        named = self.name.removeprefix(f"{_SYMMETRIES}, ")
        return f"augment: expected {expected} from {named}, found {found}."


@contextmanager
def _numpy_seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed numpy's global generator inside the block, and leave it as it was.

    The generator of the step goes on only where the block has drawn from numpy's.
    """
    before, undrawn = np.random.get_state(), generator.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**32, (), generator=generator)))  # noqa: NPY002
    seeded = np.random.get_state()  # noqa: NPY002
    try:
        yield
        if all(map(np.array_equal, np.random.get_state(), seeded)):  # noqa: NPY002
            generator.set_state(undrawn)
    finally:
        np.random.set_state(before)  # noqa: NPY002


def name_of(given: Any) -> str:
    """Name what a parameter `augment` does, the same in every process and on every day."""
    if isinstance(given, bool | np.bool_):
        return _SYMMETRIES if given else "none"
    if isinstance(given, BaseEstimator):
        changed = changed_parameters(given).items()
        inside = ", ".join(f"{name}={_said(value)}" for name, value in changed)
        return f"{_SYMMETRIES}, {type(given).__name__}({inside})"
    kind = given if hasattr(given, "__qualname__") else type(given)
    return f"{_SYMMETRIES}, {kind.__module__}.{kind.__qualname__}"


def _said(value: Any) -> str:
    """Spell a parameter; of an array its shape and a digest."""
    if isinstance(value, BaseEstimator):
        return name_of(value)
    if isinstance(value, np.ndarray | list | tuple) and np.asarray(value).dtype.kind in "fiub":
        array = torch.from_numpy(np.array(value, dtype=np.float64))
        return f"array of {tuple(array.shape)}, {digest_of({'': array})[:8]}"
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)
