"""Objectives of pre-training: each a small object with its views, network, loss and parameters."""

from __future__ import annotations

from typing import Any

from skatr_sk._checks import spell
from skatr_sk.summaries.objectives.base import Objective
from skatr_sk.summaries.objectives.jepa import JEPA
from skatr_sk.summaries.objectives.reconstruction import Reconstruction
from skatr_sk.summaries.objectives.vicreg import VICReg

__all__ = [
    "JEPA",
    "OBJECTIVES",
    "OBJECTIVE_HINT",
    "Objective",
    "Reconstruction",
    "VICReg",
    "as_objective",
    "objective_mend",
]

OBJECTIVES: dict[str, type[Objective]] = {
    "jepa": JEPA,
    "reconstruction": Reconstruction,
    "vicreg": VICReg,
}
OBJECTIVE_HINT = f"one of {', '.join(map(repr, OBJECTIVES))}, or an objective such as JEPA()"


def objective_mend(value: Any) -> bool | str:
    """Whether a value is an objective or the name of one: True, or what to do about it.

    Examples
    --------
    >>> objective_mend("jepa"), objective_mend("jeppa"), objective_mend(VICReg)
    (True, "did you mean 'jepa'?", 'did you mean VICReg()?')
    """
    if isinstance(value, str):
        return value in OBJECTIVES or spell(value, OBJECTIVES)
    if isinstance(value, type) and issubclass(value, Objective):
        return f"did you mean {value.__name__}()?"
    return isinstance(value, Objective)


def as_objective(objective: str | Objective) -> Objective:
    """Return an objective as it is, and that of a name with its defaults.

    Examples
    --------
    >>> as_objective("vicreg")
    VICReg()
    """
    return OBJECTIVES[objective]() if isinstance(objective, str) else objective
