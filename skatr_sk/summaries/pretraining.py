"""Pre-training: the run of an objective, and what each epoch records of the summaries."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from skorch.callbacks import Callback

from skatr_sk._checks import CollapseWarning, Problems, warn
from skatr_sk._tensors import copied_module
from skatr_sk.fields import ArrayFields, ChosenFields, Fields, check_fields, warn_implausible
from skatr_sk.summaries.augmentation import Augmentation
from skatr_sk.summaries.encoding import encode
from skatr_sk.summaries.labels import Labels, check_labels, labels_if_any
from skatr_sk.summaries.masking import sample_regions
from skatr_sk.summaries.novelty import SeenSummaries, enough
from skatr_sk.summaries.objectives import Objective, as_objective
from skatr_sk.summaries.objectives.regions import RegionObjective
from skatr_sk.summaries.pooling import pooling_compared
from skatr_sk.summaries.views import PatchViews
from skatr_sk.summaries.vit import compile_blocks
from skatr_sk.summaries.weights import Architecture, FrozenEncoder
from skatr_sk.summaries.whitening import Whitening
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.callbacks import Announcement, ReturnMemory, cosine_schedule
from skatr_sk.training.checkpoint import content_of
from skatr_sk.training.device import able_to_compile, autocast, resolve_device
from skatr_sk.training.effective_rank import effective_rank
from skatr_sk.training.held_out import Given, check_given, compare_columns
from skatr_sk.training.identity import identity_of
from skatr_sk.training.processes import Share, join
from skatr_sk.training.seeds import independent_seeds, seed_of
from skatr_sk.training.state import digest_of
from skatr_sk.training.trainer import train

if TYPE_CHECKING:
    from skatr_sk.summaries.transformer import SKATRTransformer

__all__ = ["EffectiveRank", "Hooks", "learn_from_summaries", "pretrain"]

# Summaries are watched on the validation fields. Where these are few, training fields join them:
# the rank of few fields is small whatever the encoder.
_MOST_WATCHED = 512
_FEWEST_WATCHED = 128
_MOST_HELD = 30_000_000  # voxels of fields that are held in memory, for they are read repeatedly
_MOST_WHITENED = 1024  # fields whose summaries and regions say how to whiten,
_FEWEST_WHITENED = 16  # and fewest by default,
_LEAST_WHITENED = 4  # and where it is asked for;
_PAIRS_WHITENED = 1024  # pairs of regions, several of a sky where fields are few,
_MOST_PAIRS = 8  # and how many of one
_MOST_SEEN = 512  # whose summaries say where such lie, where none are whitened
_FEWEST_RANKED = 16  # fields that are enough to speak of a collapse
_HANDFUL = 3.0  # directions
# Between light cones, healthy summaries differ by 1 to 30 % of their size on Gaussian random
# fields, collapsed ones by 0.3 %; on real light cones those of random weights differ by 9 %.
_RANK_FLOOR = 0.005


def pretrain(
    transformer: SKATRTransformer,
    fields: Fields,
    y: object = None,
    start: FrozenEncoder | None = None,
    given: Given | None = None,
    *,
    embedding_only: bool = False,
) -> FrozenEncoder:
    """Pre-train an encoder on fields (n, *field_shape) with a transformer's checked parameters.

    The objective learns from labels `y` where it needs them, and what is kept for ``novelty`` does
    where there are any; `given` may say which rows validate. The encoder begins with random
    weights, or as that of `start`, whose scaling is kept then; with `embedding_only` all but its
    patch embedding stays as it is there, and a whitening is learned anew. A CollapseWarning says
    when the summaries end on a handful of directions.
    """
    objective = as_objective(transformer.objective)

    def known(fields: Fields, y: object) -> tuple[Fields, np.ndarray | None]:
        if not objective.needs_labels:
            return fields, None
        return fields, check_labels(y, fields.shape[0], type(objective).__name__).values

    if objective.needs_labels and given is not None:
        compare_columns(y, given.validation_data)
    others = None if objective.needs_labels else labels_if_any(y, fields.shape[0])
    fields, values, rows_of_fit = check_given(
        given or Given(),
        known(fields, y),
        lambda X, y: known(check_fields(transformer, X, reset=False), y),
    )
    labels = None if values is None else Labels(values)
    own = fields
    if rows_of_fit.n_given:  # the others were looked at when they were checked
        own = ChosenFields((fields, np.arange(rows_of_fit.n_own)))
    warn_implausible(own)
    transformer._warn_without_effect_on(fields)
    architecture = transformer._architecture_for(fields.shape[1:], objective, start)
    pooling = transformer._pooling_in_training(fields.shape[1:], start)
    seed = seed_of(transformer.random_state)
    processes = join(transformer.device)
    if processes is not None:
        seed = processes.same(seed)
        names = sorted(transformer._parameters.keys() - transformer._not_learned_from)
        settings = {name: repr(getattr(transformer, name)) for name in names}
        settings["augment"] = identity_of(transformer.augment)
        processes.check_alike(X=fields.shape, parameters=settings | {"random_state": ""})
    split_seed, weights_seed, order_seed, views_seed = independent_seeds(seed, 4)
    seen = None if labels is None or objective.sees_unlabelled else labels.rows
    fraction = transformer.validation_fraction
    train_rows, valid_rows = rows_of_fit.split(fields, fraction, split_seed, seen)
    targets = None if labels is None else labels.standardised(train_rows)
    wanted = _is_whitened(transformer, objective, architecture, pooling, len(train_rows))
    augmentation = Augmentation(transformer.augment, fields, seed)
    beside = augmentation.beside(fields)  # the steps
    scaling = start.scaling if start else transformer._scaling_for(beside, train_rows)
    watched = np.concatenate([valid_rows, train_rows])
    watched = watched[: min(max(len(valid_rows), _FEWEST_WATCHED), _MOST_WATCHED)]
    held, rows = _held(beside, watched)
    # Whatever the pooling: mean tokens collapse first, and the ranks of runs can be compared.
    cut: Any = {"patch_size": architecture.patch_size, "voxels": architecture.voxels}
    options: Any = cut | {"pooling": "mean"}
    mean_tokens = functools.partial(encode, fields=held, rows=rows, scaling=scaling, **options)
    subject = (
        f"{type(transformer).__name__}: pre-training on {len(train_rows)} fields of "
        f"{fields.shape[1:]} cells, each {architecture.n_tokens} tokens"
    )
    callbacks: list[Callback] = [Hooks(objective), EffectiveRank(mean_tokens), ReturnMemory()]
    callbacks.append(Announcement(subject))
    if processes is not None:
        callbacks.append(Share(processes))
    checkpoint = None
    # Of "auto" it is a matter of the processor, and a run that goes on elsewhere is another run.
    precision = architecture.precision(transformer.precision, resolve_device(transformer.device))
    if transformer.checkpoint_dir is not None:
        identity = _identity(objective, fields, labels, pooling, start) | rows_of_fit.identity()
        if augmentation.change is not None:
            identity["augment"] = augmentation.identity
        if embedding_only:
            identity["trained"] = "embedding"
        identity["computed in"] = precision
        checkpoint = transformer._checkpoint(seed, **identity)

    def build() -> torch.nn.Module:
        encoder = copied_module(start.encoder) if start else architecture.build()
        encoder.requires_grad_(not embedding_only).embed.requires_grad_(True)
        if encoder.slice_means is not None:  # it embeds, too
            encoder.slice_means.requires_grad_(True)
        network = objective.network(encoder.train(), architecture, **sizes)
        compile_blocks(network, transformer.compile)
        return network

    n_parameters = 0 if targets is None else targets.shape[1]
    sizes: Any = {"pooling": pooling, "n_parameters": n_parameters}
    with able_to_compile(transformer.compile):
        network, history = train(
            transformer,
            build,
            objective.criterion(),
            FieldDataset(fields, targets, train_rows),
            FieldDataset(beside, targets, valid_rows) if len(valid_rows) else None,
            seeds=(weights_seed, order_seed),
            schedule=lambda progress: cosine_schedule(progress, transformer.warmup),
            prepare=PatchViews(
                architecture.field_shape,
                **cut,
                scaling=scaling,
                augment=augmentation.turns,
                seed=views_seed,
                change=augmentation.change,
                draw=objective.draw,
            ),
            callbacks=callbacks,
            checkpoint=checkpoint,
            n_workers=transformer.n_workers,
            precision=precision,
        )
    kept = [row for row in history if row["kept"]]
    if kept:
        objective.judge(kept[0])
    if kept and len(watched) >= _FEWEST_RANKED:
        _warn_collapse(kept[0], objective)
    if start is not None:
        before = [row | {"kept": False} for row in start.history]
        history = before + [row | {"epoch": len(before) + row["epoch"]} for row in history]
    compile_blocks(network, False)
    encoder: Any = network.context_encoder  # for mypy, a Module's attributes are tensors
    frozen = FrozenEncoder(architecture, scaling, encoder, history, pooling)
    frozen = replace(frozen, augmentation=augmentation.name)
    if start is not None and start.pooling == pooling and transformer.whiten:
        unchanged = len(history) == len(start.history) and not embedding_only
        as_it_was = start.whitening is not None or isinstance(transformer.whiten, str)
        if not wanted or (unchanged and as_it_was):  # none to learn anew, or nothing new
            frozen, wanted = replace(frozen, whitening=start.whitening), False
    n_valid = len(valid_rows)
    all_held = len(watched) == n_valid + len(train_rows)
    trained = (held, rows[n_valid:]) if all_held else (beside, train_rows)
    known_of = others if values is None else values  # those that train come first in both
    chosen = None if known_of is None else known_of[train_rows]
    return learn_from_summaries(
        transformer, frozen, trained, (held, rows[:n_valid]), whiten=wanted, labels=chosen
    )


def _held(fields: Fields, rows: np.ndarray) -> tuple[Fields, np.ndarray]:
    """Return fields, and which of them are the rows, in memory where these are small enough."""
    if fields.in_memory or len(rows) * math.prod(fields.shape[1:]) > _MOST_HELD:
        return fields, rows
    return ArrayFields(fields.read(rows)), np.arange(len(rows))


def _is_whitened(
    transformer: SKATRTransformer,
    objective: Objective,
    architecture: Architecture,
    pooling: str,
    n_rows: int,
) -> bool:
    """Tell whether a transformer's checked parameters want its summaries whitened.

    An InvalidParameterError says where they ask for it and fewer fields train than it takes.
    """
    if isinstance(transformer.whiten, str):  # "auto"
        possible = architecture.n_sky > 1 and pooling != "tokens"
        return possible and not objective.labels_alone and n_rows >= _FEWEST_WHITENED
    if transformer.whiten and n_rows < _LEAST_WHITENED:
        problems = Problems(type(transformer).__name__)
        wanted = f"'auto' or False where {n_rows} fields train, for it takes {_LEAST_WHITENED}"
        problems.add("whiten", wanted, True, "give more fields")
        problems.raise_if_any()
    return bool(transformer.whiten)


def learn_from_summaries(
    transformer: SKATRTransformer,
    frozen: FrozenEncoder,
    trained: tuple[Fields, np.ndarray],
    unseen: tuple[Fields, np.ndarray],
    *,
    whiten: bool,
    labels: np.ndarray | None,
) -> FrozenEncoder:
    """Learn where the summaries of fields lie and, to `whiten`, how two regions of a sky differ.

    The fields, and which rows of them, are those that were `trained` on, of which some are enough,
    and `unseen` ones. The `labels` are of the rows of the former.
    """
    fields, rows = trained
    most = _MOST_WHITENED if whiten else _MOST_SEEN
    chosen = enough(np.arange(len(rows)), most)
    rows, labels = rows[chosen], None if labels is None else labels[chosen]
    fields, rows = _held(fields, rows)
    device, grid_shape = resolve_device(transformer.device), frozen.architecture.grid_shape
    encoder = frozen.encoder.to(device)

    def region(which: int, pair: int) -> Callable[[torch.Tensor], torch.Tensor]:
        generator = torch.Generator().manual_seed(pair)  # both draw the same, and take one each

        def tokens(patches: torch.Tensor) -> torch.Tensor:
            drawn = sample_regions(
                len(patches), grid_shape, share=RegionObjective.region, generator=generator
            )
            return encoder(patches, drawn[which].to(device))

        return tokens

    summarised = functools.partial(
        encode,
        scaling=frozen.scaling,
        patch_size=frozen.architecture.patch_size,
        voxels=frozen.architecture.voxels,
        pooling=pooling_compared(frozen.pooling, grid_shape),
        device=device,
        autocast=autocast(device, frozen.architecture.precision(transformer.precision, device)),
    )
    seen = summarised(encoder, fields, rows=rows)
    if whiten:
        again = _MOST_PAIRS if fields.in_memory else 1  # each is two passes over the files
        pairs = range(min(again, math.ceil(_PAIRS_WHITENED / len(rows))))
        one, two = (
            np.concatenate([summarised(region(which, pair), fields, rows=rows) for pair in pairs])
            for which in (0, 1)
        )
        frozen = replace(frozen, whitening=Whitening.learn(seen, one, two))
    others, rows = unseen
    held_out = summarised(encoder, others, rows=rows) if len(rows) else seen[:0]
    encoder.cpu()
    if (white := frozen.whitening) is not None:
        seen, held_out = white(seen), white(held_out)
    return replace(frozen, seen=SeenSummaries.learn(seen, held_out, labels))


def _identity(
    objective: Objective,
    fields: Fields,
    labels: Labels | None,
    pooling: str,
    start: FrozenEncoder | None,
) -> dict[str, Any]:
    """Say what a pre-training depends on beside the transformer's parameters."""
    begin = start and [digest_of(start.encoder.state_dict()), dataclasses.asdict(start.scaling)]
    return {
        "objective": identity_of(objective),
        "pooling": objective.pooled_by(pooling),
        "X": content_of(fields),
        "y": None if labels is None else labels.digest(),
        "start": begin,
    }


def _warn_collapse(kept: dict[str, Any], objective: Objective) -> None:
    """Warn when the summaries end on a handful of directions."""
    rank, at_init = kept["effective_rank"], kept["effective_rank_at_init"]
    if rank < _HANDFUL and rank < at_init / 2:
        warn(
            f"The summaries have collapsed: their effective rank fell from {at_init:.1f} at "
            f"initialisation to {rank:.1f}, counting directions in which light cones differ by "
            f"more than {_RANK_FLOOR:.1%} of a summary's size. Bring back what prevents it "
            f"({objective.prevents_collapse}), then try a lower learning_rate or fewer epochs.",
            CollapseWarning,
        )


class Hooks(Callback):
    """Let the objective act after each step, and record what it knows of each epoch."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_batch_end(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Act."""
        if training:
            self.objective.after_step(net.module_, net.steps_done / net.n_steps)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record."""
        for name, value in self.objective.figures(net.criterion_).items():
            net.history.record(name, value)


class EffectiveRank(Callback):
    """Record the effective rank of summaries before the training and after each epoch.

    ``summarise(encoder, device=..., autocast=...)`` gives those of the fields that are watched.
    """

    def __init__(self, summarise: Callable[..., np.ndarray]) -> None:
        self.summarise = summarise

    def _rank(self, net: Any) -> float:
        encoder, device = net.module_.context_encoder.eval(), torch.device(net.device)
        precision = autocast(device, net.precision)
        summaries = self.summarise(encoder, device=device, autocast=precision)
        if not np.isfinite(summaries).all():
            return math.nan  # the guard will undo the epoch
        return effective_rank(summaries, floor=_RANK_FLOOR)

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Measure the rank at initialisation; a run that resumes has the same initial weights."""
        self.at_init_ = self._rank(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the rank of this epoch."""
        net.history.record("effective_rank", self._rank(net))
        net.history.record("effective_rank_at_init", self.at_init_)
