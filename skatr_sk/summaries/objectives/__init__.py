"""Objectives of pre-training: each a small object with its views, network, loss and parameters."""

from __future__ import annotations

from typing import Any

from skatr_sk._checks import Rule, spell
from skatr_sk.summaries.objectives.base import Objective
from skatr_sk.summaries.objectives.combined import Combined
from skatr_sk.summaries.objectives.jepa import JEPA
from skatr_sk.summaries.objectives.lejepa import LeJEPA
from skatr_sk.summaries.objectives.reconstruction import Reconstruction
from skatr_sk.summaries.objectives.supervised import Supervised
from skatr_sk.summaries.objectives.vicreg import VICReg

__all__ = [
    "JEPA",
    "Combined",
    "LeJEPA",
    "OBJECTIVE",
    "OBJECTIVES",
    "Objective",
    "Reconstruction",
    "Supervised",
    "VICReg",
    "as_objective",
]

_KINDS: tuple[type[Objective], ...] = (JEPA, LeJEPA, Reconstruction, Supervised, VICReg)
OBJECTIVES = {kind.__name__.lower(): kind for kind in _KINDS}


def _is_objective(value: Any) -> bool | str:
    if isinstance(value, str):
        return value in OBJECTIVES or spell(value, OBJECTIVES)
    if isinstance(value, type) and issubclass(value, Objective):
        return f"did you mean {value.__name__}()?"
    return isinstance(value, Objective) and type(value) is not Objective


OBJECTIVE = Rule(
    _is_objective, f"one of {', '.join(map(repr, OBJECTIVES))}, or an objective such as JEPA()"
)


def as_objective(objective: str | Objective) -> Objective:
    """Return an objective as it is, and that of a name with its defaults."""
    return OBJECTIVES[objective]() if isinstance(objective, str) else objective
