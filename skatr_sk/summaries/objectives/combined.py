"""Several objectives at once, on one encoder: the weighted sum of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils.metaestimators import _BaseComposition
from torch import Tensor, nn

from skatr_sk._checks import Instance, Problems, Real, Rule
from skatr_sk.summaries.objectives.base import Objective
from skatr_sk.summaries.objectives.supervised import SupervisedLoss
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture

__all__ = ["Combined", "CombinedLoss", "CombinedNetwork"]

_ONE = Instance(Objective, expected="an objective")
_OWN = {"objectives", "weights"}  # names of the parameters


def _are_parts(value: Any) -> bool | str:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        return False
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value):
        return False
    names, parts = zip(*value, strict=True)
    words = all(isinstance(name, str) and name and "__" not in name for name in names)
    if not words or len(set(names)) < len(names) or _OWN & set(names):
        return "names are different words without '__', other than objectives and weights"
    for part in parts:
        if isinstance(part, type) and issubclass(part, Objective):
            return f"did you mean {part.__name__}()?"
        if type(part) is Combined:
            return "a Combined holds no other: name all objectives in one list"
    return all(_ONE.fault(part) is None and type(part) is not Objective for part in parts)


def _are_weights(value: Any) -> bool:
    if not isinstance(value, Sequence | np.ndarray) or np.ndim(value) != 1:
        return False
    return all(Real("[0, inf)").fault(one) is None for one in value) and any(value)


@dataclass(kw_only=True, eq=False, repr=False)
class Combined(_BaseComposition, Objective):
    """Train one encoder with several objectives: their weighted losses add up.

    A step sees the same light cones under all of them, and draws for each. Beside a JEPA,
    :class:`~skatr_sk.summaries.Supervised` may know the labels of some light cones alone (NaN where
    they are unknown): the others teach the JEPA.

    Parameters
    ----------
    objectives : list of (str, objective) pairs
        Names and objectives. ``objective__jepa__ema_decay`` of the transformer reaches a parameter
        of the one that is named "jepa", and ``objective__jepa`` takes another in its place.
    weights : array-like of shape (n_objectives,) or None, default=None
        Weights of the losses, which are not of one size: look at them in ``history_``. None weighs
        each by one.

    Notes
    -----
    ``history_`` has what each objective records under its name, such as ``jepa_place_loss``, and
    its loss before it is weighted: ``jepa_train_loss`` and ``jepa_valid_loss``.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer
    >>> from skatr_sk.summaries import JEPA, Combined, Supervised
    >>> both = Combined(objectives=[("jepa", JEPA()), ("labels", Supervised())], weights=[1, 1])
    >>> skatr = SKATRTransformer(objective=both).set_params(objective__jepa__ema_decay=0.9)
    >>> skatr.get_params()["objective__jepa"]
    JEPA(ema_decay=0.9)
    """

    objectives: Sequence[tuple[str, Objective]]
    weights: Sequence[float] | None = None

    _parameters = {
        "objectives": Rule(_are_parts, "a list of (name, objective) pairs"),
        "weights": Rule(_are_weights, "numbers >= 0, not all of them 0", optional=True),
    }

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters and, where it goes deep, the objectives by their names and theirs.

        Parameters
        ----------
        deep : bool, default=True
            Whether it does.

        Returns
        -------
        dict
        """
        params: dict[str, Any] = self._get_params("objectives", deep=deep)
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, objectives by their names, and parameters of these.

        Parameters
        ----------
        **params
            Such as ``weights=[1, 0.2]``, ``jepa=JEPA(masks="long")`` or ``jepa__masks="long"``.

        Returns
        -------
        self
        """
        self._set_params("objectives", **params)
        return self

    @property
    def _parts(self) -> Mapping[str, Objective]:
        """The objectives by their names; none where they are still to be found wrong."""
        return (
            {} if self._parameters["objectives"].fault(self.objectives) else dict(self.objectives)
        )

    @property
    def needs_labels(self) -> bool:
        """Whether one of them does."""
        return any(part.needs_labels for part in self._parts.values())

    @property
    def sees_unlabelled(self) -> bool:
        """Whether one of them does."""
        return any(part.sees_unlabelled for part in self._parts.values())

    @property
    def labels_alone(self) -> bool:
        """Whether those that have a weight all do."""
        parts = zip(self._parts.values(), self._weights, strict=True)
        return all(part.labels_alone for part, weight in parts if weight)

    @property
    def _weights(self) -> list[float]:
        """The weights, one for each objective."""
        return (
            [1.0] * len(self._parts) if self.weights is None else [float(w) for w in self.weights]
        )

    @property
    def prevents_collapse(self) -> str:
        """What prevents the collapse of each."""
        return "; ".join(f"{name}: {part.prevents_collapse}" for name, part in self._parts.items())

    def check(self, problems: Problems, prefix: str) -> None:
        """Note wrong parameters, those of the objectives too."""
        super().check(problems, prefix)
        for name, part in self._parts.items():
            part.check(problems, f"{prefix}{name}__")
        n = len(self._parts)
        if self.weights is not None and n and _are_weights(self.weights) and len(self.weights) != n:
            problems.add(f"{prefix}weights", f"{n} numbers, one for each objective", self.weights)

    def check_sizes(self, problems: Problems, prefix: str, architecture: Architecture) -> None:
        """Note what is wrong beside an encoder's sizes."""
        for name, part in self._parts.items():
            part.check_sizes(problems, f"{prefix}{name}__", architecture)

    def _warn_without_effect(self) -> None:
        for part in self._parts.values():
            part._warn_without_effect()

    def draw(self, n: int, grid_shape: Sequence[int], generator: torch.Generator) -> list[Any]:
        """Draw for each."""
        return [part.draw(n, grid_shape, generator) for part in self._parts.values()]

    def pooled_by(self, pooling: str) -> str | None:
        """How tokens are pooled by those that do."""
        found = {part.pooled_by(pooling) for part in self._parts.values()} - {None}
        return ", ".join(sorted(map(str, found))) or None

    def network(
        self, encoder: Encoder, architecture: Architecture, *, pooling: str, n_parameters: int
    ) -> CombinedNetwork:
        """Return the networks of all around one encoder."""
        sizes: Any = {"pooling": pooling, "n_parameters": n_parameters}
        parts = [part.network(encoder, architecture, **sizes) for part in self._parts.values()]
        return CombinedNetwork(encoder, parts)

    def criterion(self) -> nn.Module:
        """Return the weighted sum of the losses."""
        parts = [part.criterion() for part in self._parts.values()]
        return CombinedLoss(parts, self._weights)

    def after_step(self, network: Any, progress: float) -> None:
        """Let each act on its network."""
        for part, own in zip(self._parts.values(), network.parts, strict=True):
            part.after_step(own, progress)

    def figures(self, criterion: Any) -> dict[str, float]:
        """Return the losses and the figures of each, under its name."""
        figures: dict[str, float] = {}
        means = criterion.means()
        for i, (name, part) in enumerate(self._parts.items()):
            own = part.figures(criterion.parts[i])
            own |= {f"{when}_loss": losses[i] for when, losses in means.items() if i in losses}
            figures |= {f"{name}_{key}": value for key, value in own.items()}
        return figures

    def judge(self, kept: Mapping[str, Any]) -> None:
        """Let each that counts judge its own figures."""
        for (name, part), weight in zip(self._parts.items(), self._weights, strict=True):
            prefix = f"{name}_"
            if weight:
                part.judge({k[len(prefix) :]: v for k, v in kept.items() if k.startswith(prefix)})


class CombinedNetwork(nn.Module):
    """The networks of several objectives, which share their encoder."""

    def __init__(self, encoder: Encoder, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.context_encoder = encoder
        self.parts = nn.ModuleList(parts)

    def forward(self, patches: Tensor, drawn: Sequence[Any]) -> list[Any]:
        """Return what each gives of patches (n, n_patches, n_voxels) and what was drawn for it."""
        return [part(patches, own) for part, own in zip(self.parts, drawn, strict=True)]


class CombinedLoss(nn.Module):
    """Weighted sum of losses; each is added up by itself, in training and in validation.

    The means are over rows, of a loss of labels over those that are known.
    """

    def __init__(self, parts: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.weights = weights
        self.sums: dict[str, list[Any]] = {}

    def forward(self, outputs: Sequence[Any], y: Tensor) -> Tensor:
        """Return the loss of a batch."""
        losses = [part(own, y) for part, own in zip(self.parts, outputs, strict=True)]
        counts = torch.stack(
            [
                part.n_known(y) if isinstance(part, SupervisedLoss) else y.new_full((), len(y))
                for part in self.parts
            ]
        )
        n, sums = self.sums.get(when := "train" if self.training else "valid", [0.0, 0.0])
        self.sums[when] = [n + counts, sums + counts * torch.stack(losses).detach()]
        return torch.stack([w * loss for w, loss in zip(self.weights, losses, strict=True)]).sum()

    def means(self) -> dict[str, dict[int, float]]:
        """Return the mean losses since this was last asked, of training and of validation.

        By their number; one that has seen no label has none.
        """
        sums, self.sums = self.sums, {}
        found: dict[str, dict[int, float]] = {}
        for when, (counts, losses) in sums.items():
            means = enumerate(zip((losses / counts).tolist(), counts.tolist(), strict=True))
            found[when] = {i: mean for i, (mean, n) in means if n}
        return found
