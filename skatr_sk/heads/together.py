"""Several small networks trained at once: members of an ensemble, candidates and folds of a search.

Each has its own seeds, rows, order of batches, dropout, rate, decay and patience, as if it were
alone: one product serves all of them in a step, and that is what makes it faster. Its numbers are
those of a training alone up to rounding, which a training enlarges.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skatr_sk.heads.stacked import Dropout, parts_of, replace, stack
from skatr_sk.training.device import autocast, one_thread, resolve_device, resolve_precision
from skatr_sk.training.held_out import Rows
from skatr_sk.training.lean import AdamW
from skatr_sk.training.progress import watched
from skatr_sk.training.seeds import independent_seeds, seeded

__all__ = ["Planned", "Trained", "train_all", "train_those_together"]

_LOGGER = logging.getLogger("skatr_sk.heads")
_MOST_WEIGHTS = 4_000_000  # of networks that train at once: the memory of a step is bounded by it
_VALIDATED = 256  # rows of each network in one pass of a validation
_FEW_PRODUCTS = 10_000_000  # multiplications of a forward pass, for which one thread is enough
Trained = tuple[nn.Module, list[dict[str, Any]]]  # a network, and its history


@dataclass(eq=False)
class Planned:
    """One network to be trained, with an estimator's checked parameters."""

    owner: Any  # the estimator
    build: Callable[[], nn.Module]
    criterion: Any  # its loss
    X: Tensor  # all summaries of the fit, standardised, which other networks may share
    y: Tensor  # their targets, (n, n_parameters)
    split: tuple[np.ndarray, np.ndarray]  # rows that train, and that validate
    rows: Rows
    seed: int
    alone: Callable[[], Trained]  # trains it by itself
    settings: Any  # the estimator without "auto"
    schedule: Callable[[float], float] | None = None

    @property
    def why_alone(self) -> str:
        """Say why it cannot be trained with others; "" where it can."""
        owner = self.owner
        reasons = {
            "callbacks": bool(owner.callbacks) or bool(getattr(owner, "_skl_callbacks", ())),
            "checkpoint_dir": owner.checkpoint_dir is not None,
            "max_epochs=0": self.settings.max_epochs == 0,
            "tokens": self.X.ndim != 2,
            "calibration_weight": getattr(owner, "calibration_weight", 0) > 0,
            "a loss of its own": self.criterion.kind is None,
            "a head of its own": getattr(owner, "head", None) is not None,
        }
        return next((name for name, there in reasons.items() if there), "")

    @property
    def layout(self) -> tuple[Any, ...]:
        """What networks have in common that are trained together."""
        settings, n_train, n_valid = self.settings, *map(len, self.split)
        size = int(settings.batch_size)
        return (
            (self.criterion.kind, size, -(-n_train // size), n_valid > 0),
            (self.rows.weights is not None, self.y.shape[1], self.X.shape[1]),
            (str(resolve_device(settings.device)), settings.precision),
        )

    def weights(self) -> Tensor | None:
        """How much each row counts on its side of the split; None where all count alike."""
        if self.rows.weights is None:
            return None
        weights = np.ones(len(self.X), dtype=np.float32)
        for rows in self.split:
            if (found := self.rows.weights_of(rows)) is not None:
                weights[rows] = found
        return torch.from_numpy(weights)

    @property
    def rate(self) -> tuple[Any, ...]:
        """What those have in common that take the same steps."""
        settings = self.settings
        return settings.learning_rate, settings.weight_decay, settings.max_epochs


def train_all(planned: Sequence[Planned]) -> list[Trained]:
    """Train networks, together where that is possible, and return them in their order."""
    found = zip(planned, train_those_together(planned), strict=True)
    return [trained or one.alone() for one, trained in found]


def train_those_together(planned: Sequence[Planned]) -> list[Trained | None]:
    """Train the networks that can be trained with others; None stands for the others.

    Those with numbers that are not finite are among them.
    """
    trained: dict[int, Trained] = {}
    groups: dict[Any, list[_Member]] = {}
    for number, one in enumerate(planned):
        if len(planned) == 1 or one.why_alone:
            if len(planned) > 1:
                _LOGGER.debug("Trained alone because of %s.", one.why_alone)
            continue
        member = _Member(number, one)
        known: dict[str, Any] = member.network.sizes  # type: ignore[assignment]
        sizes = {name: value for name, value in known.items() if name != "dropout"}
        drops = [layer.drops for layer in member.network.modules() if isinstance(layer, Dropout)]
        # Rows that fill up a batch draw, too: with dropout members have as many rows.
        n_train = member.sizes[0] if any(drops) else 0
        groups.setdefault((*one.layout, str(sizes), len(drops), n_train), []).append(member)
    for members in groups.values():
        for some in _parts(members):
            found = _train_together(some)
            if len(found) < len(some):
                _LOGGER.info("%d networks diverged.", len(some) - len(found))
            trained |= found
    return [trained.get(number) for number in range(len(planned))]


def _parts(members: list[_Member]) -> Iterator[list[_Member]]:
    """Cut members, those of the same steps beside each other, into as many as train at once."""
    members = sorted(members, key=lambda each: str(each.planned.rate))
    n_weights = sum(weight.numel() for weight in members[0].network.parameters())
    most = max(2, _MOST_WEIGHTS // n_weights)
    for part in np.array_split(np.arange(len(members)), -(-len(members) // most)):
        yield [members[number] for number in part]


@dataclass(eq=False)
class _Member:
    """A network in training, and what is known of it."""

    number: int
    planned: Planned

    def __post_init__(self) -> None:
        planned, device = self.planned, resolve_device(self.planned.settings.device)
        weights_seed, order_seed = independent_seeds(planned.seed, 2)
        self.order = torch.Generator().manual_seed(order_seed)
        self.draws = torch.Generator(device)
        with seeded(weights_seed, device):
            self.network = planned.build().train()
            if device.type == "cpu":
                self.draws.set_state(torch.get_rng_state())
            else:
                self.draws.manual_seed(weights_seed)
        self.rows = [torch.from_numpy(rows) for rows in planned.split]
        self.sizes = [len(rows) for rows in planned.split]
        self.weights = planned.weights()
        self.starts: tuple[int, ...] = ()  # in the tables of all members
        self.history: list[dict[str, Any]] = []
        self.best_loss, self.best_epoch = float("inf"), 0
        self.best_weights: dict[str, Tensor] = {}

    def shuffled(self) -> Tensor:
        """Rows that train, in the order of an epoch."""
        return self.rows[0][torch.randperm(self.sizes[0], generator=self.order)]

    def ends(self, losses: list[float], seconds: float, weights: Mapping[str, Tensor]) -> bool:
        """Note an epoch, its weights where they are to be kept, and return whether it was the last.

        `losses` are of training and, where rows validate, of validation.
        """
        settings, epoch = self.planned.settings, len(self.history) + 1
        row = dict(zip(("train_loss", "valid_loss"), losses, strict=False))
        self.history.append({"epoch": epoch} | row | {"seconds": seconds})
        stops = "valid_loss" in row and settings.patience is not None
        better = stops and row["valid_loss"] < self.best_loss
        last = epoch == settings.max_epochs
        if better or (last and not stops):
            self.best_loss, self.best_epoch = losses[-1], epoch
            self.best_weights = {name: weight.clone() for name, weight in weights.items()}
        return last or (stops and epoch - self.best_epoch >= settings.patience)

    def finish(self) -> Trained:
        """Return the network with its best weights, and the history."""
        with torch.no_grad():
            for name, weight in self.network.named_parameters():
                weight.copy_(self.best_weights[name])
        self.best_weights = {}  # a search has many networks
        history = [row | {"kept": row["epoch"] == self.best_epoch} for row in self.history]
        return self.network.cpu().eval(), history


def _train_together(members: list[_Member]) -> dict[int, Trained]:
    """Train members of one layout, and return those whose numbers are finite."""
    first, trained = members[0].planned, dict[int, Trained]()
    device = resolve_device(first.settings.device)
    stacked, data = _Stacked(members, device), _Data(members)
    few = first.settings.batch_size * stacked.n_weights < _FEW_PRODUCTS
    title = type(first.owner).__name__
    title += f", {len(members)} networks at once" * (len(members) > 1)
    n_epochs = max(int(member.planned.settings.max_epochs) for member in members)
    verbose = max(int(member.planned.owner.verbose) for member in members)
    bar = watched(title, n_epochs, "epoch", verbose=verbose, logger=_LOGGER, at_once=True)
    with one_thread(few and device.type == "cpu"), bar as tell:
        while members:
            start = time.perf_counter()
            losses = [stacked.train(members, data)]
            if members[0].sizes[1]:
                losses.append(stacked.validate(members, data))
            of_each = np.stack(losses, axis=1)
            finite = np.isfinite(of_each).all(axis=1) & stacked.are_finite()
            tell(1, **dict(zip(("train", "valid"), map(np.mean, losses), strict=False)))
            seconds = (time.perf_counter() - start) / len(members)
            left = []
            for number, (member, own) in enumerate(zip(members, of_each.tolist(), strict=True)):
                if not finite[number]:
                    continue
                if member.ends(own, seconds, dict(parts_of(stacked.whole, number))):
                    trained[member.number] = member.finish()
                else:
                    left.append(number)
            if len(left) < len(members):
                members = [members[number] for number in left]
                stacked.keep(left, members)
    return trained


class _Data:
    """Summaries and targets of all members as one table each."""

    def __init__(self, members: Sequence[_Member]) -> None:
        planned = [member.planned for member in members]
        self.X, starts = _joined([one.X for one in planned])
        self.y, of_targets = _joined([one.y for one in planned])
        for member, *own in zip(members, starts, of_targets, strict=True):
            member.starts = tuple(own)

    def batches(
        self, members: Sequence[_Member], rows: Sequence[Tensor], size: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None, np.ndarray]]:
        """Yield X, y and weights of the members' rows, `size` at a time, and how many are real.

        Where members have unlike numbers of rows, the fewer are filled up by rows of no weight.
        """
        numbers = [len(own) for own in rows]
        found = torch.zeros(len(rows), max(numbers), dtype=torch.int64)
        for each, own in zip(found, rows, strict=True):
            each[: len(own)] = own
        device = self.X.device
        at, of_targets = (
            (found + torch.tensor([m.starts[i] for m in members]).unsqueeze(1)).to(device)
            for i in range(2)
        )
        weights = None
        if members[0].weights is not None or len(set(numbers)) > 1:
            weights = torch.zeros(found.shape)
            for each, own, member in zip(weights, rows, members, strict=True):
                each[: len(own)] = 1.0 if member.weights is None else member.weights[own]
        for first in range(0, max(numbers), size):
            part = slice(first, first + size)
            real = np.clip(np.subtract(numbers, first), 0, size)
            counted = None
            if weights is not None:
                # The loss is a mean over all, of which some are not there.
                share = weights[:, part].shape[1] / torch.from_numpy(np.maximum(real, 1))
                counted = (weights[:, part] * share.unsqueeze(1)).float().to(device)
            shape = at[:, part].shape
            yield (
                self.X.index_select(0, at[:, part].flatten()).unflatten(0, shape),
                self.y.index_select(0, of_targets[:, part].flatten()).unflatten(0, shape),
                *(counted, real),
            )


def _joined(tables: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Put tables after each other, each once, and say where each begins."""
    different = {id(table): table for table in tables}
    ends = np.cumsum([len(table) for table in different.values()])
    starts = dict(zip(different, [0, *ends[:-1].tolist()], strict=True))
    whole = torch.cat(list(different.values())) if len(different) > 1 else tables[0]
    return whole, [starts[id(table)] for table in tables]


class _Stacked:
    """The networks of all members as one, and its optimiser."""

    def __init__(self, members: Sequence[_Member], device: torch.device) -> None:
        planned = members[0].planned
        self.criterion = planned.criterion
        self.size, self.n_batches = planned.layout[0][1:3]
        self.device, self.precision = device, planned.settings.precision
        networks, draws = [m.network for m in members], [m.draws for m in members]
        self.whole = stack(networks, draws).to(device)
        self.n_weights = sum(weight.numel() for weight in self.whole.parameters())
        weights = list(self.whole.parameters())
        self.moments = [[torch.zeros_like(weight) for weight in weights] for _ in range(2)]
        self.n_steps = 0
        self._optimise(members)

    def _optimise(self, members: Sequence[_Member]) -> None:
        """Let each run of members of one rate take its own steps; only matrices decay."""
        rates = [member.planned.rate for member in members]
        starts = [i for i, rate in enumerate(rates) if i == 0 or rate != rates[i - 1]]
        groups, states = [], []
        weights = list(self.whole.parameters())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        for start, end in zip(starts, [*starts[1:], len(rates)], strict=True):
            peak, decay, n_epochs = rates[start]
            own = {"lr": peak, "peak": peak, "n_steps": n_epochs * self.n_batches}
            for decays in (True, False):
                chosen = [k for k, weight in enumerate(weights) if (weight.ndim > 2) == decays]
                parts = []
                for k in chosen:
                    part = weights[k].detach()[start:end]
                    part.grad = cast(Tensor, weights[k].grad)[start:end]
                    mean, square = (each[k][start:end] for each in self.moments)
                    step = torch.tensor(float(self.n_steps), device=self.device)
                    states.append((part, {"step": step, "exp_avg": mean, "exp_avg_sq": square}))
                    parts.append(part)
                groups.append({"params": parts, "weight_decay": decay * decays} | own)
        self.optimizer = AdamW([group for group in groups if group["params"]], fused=True)
        for part, state in states:
            self.optimizer.state[part] = state

    def train(self, members: Sequence[_Member], data: _Data) -> np.ndarray:
        """Train an epoch; return the mean loss of each."""
        self.whole.train()
        schedule = members[0].planned.schedule
        rows = [member.shuffled() for member in members]
        losses, numbers = [], []
        for X, y, weights, real in data.batches(members, rows, self.size):
            if schedule is not None:
                for group in self.optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule((self.n_steps + 0.5) / group["n_steps"])
            losses.append(self._differentiate(X, y, weights))
            self.optimizer.move()
            self.n_steps += 1
            numbers.append(real)
        return _means(losses, numbers)

    def _differentiate(self, X: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        by_hand: Any = getattr(self.whole, "differentiate", None)
        if by_hand is not None and resolve_precision(self.precision, self.device) == "float32":
            found: tuple[Tensor, Tensor] = by_hand(self.criterion, X, y, weights)
            return found[0]
        for weight in self.whole.parameters():
            weight.grad.zero_()  # type: ignore[union-attr]
        loss = self._loss(X, y, weights)
        loss.sum().backward()
        return loss.detach()

    def _loss(self, X: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        with autocast(self.device, self.precision):
            output = self.whole(X)
        loss: Tensor = self.criterion(output, y, weights)
        return loss

    @torch.no_grad()
    def validate(self, members: Sequence[_Member], data: _Data) -> np.ndarray:
        """Return the mean loss of each over its validation rows."""
        self.whole.eval()
        rows = [member.rows[1] for member in members]
        losses, numbers = [], []
        for X, y, weights, real in data.batches(members, rows, _VALIDATED):
            losses.append(self._loss(X, y, weights))
            numbers.append(real)
        return _means(losses, numbers)

    def are_finite(self) -> np.ndarray:
        """Whether all that the steps have changed is finite, of each member."""
        changed = [*self.whole.parameters(), *self.moments[0], *self.moments[1]]
        finite = [torch.isfinite(part.detach()).flatten(1).all(dim=1) for part in changed]
        return np.asarray(torch.stack(finite).all(dim=0).cpu())

    def keep(self, left: list[int], members: Sequence[_Member]) -> None:
        """Go on with some of the members."""
        if not left:
            return
        of_left = torch.tensor(left, device=self.device)
        for name, weight in list(self.whole.named_parameters()):
            replace(self.whole, name, weight.detach()[of_left])
        for layer in self.whole.modules():
            if isinstance(layer, Dropout) and layer.streams is not None:
                layer.streams = [layer.streams[number] for number in left]
        self.moments = [[moment[of_left] for moment in each] for each in self.moments]
        self._optimise(members)


def _means(losses: Sequence[Tensor], numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Mean loss of each member over its real rows, of those of its batches."""
    weights = np.stack(numbers)
    values = torch.stack(list(losses)).double().cpu().numpy()
    return np.where(weights > 0, values * weights, 0.0).sum(axis=0) / weights.sum(axis=0)
