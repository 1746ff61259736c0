"""Pre-training: what a step sees, what an epoch records, and the run itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor

from skatr_sk.training.effective_rank import effective_rank
from skatr_sk.fields import ArrayFields, Fields, split_rows, warn_implausible
from skatr_sk.summaries._parameters import (
    resolve_architecture,
    resolve_masks,
    resolve_pooling,
    resolve_scaling,
    resolve_view_pooling,
)
from skatr_sk.summaries._warnings import RANK_FLOOR, warn_collapse
from skatr_sk.summaries.encoding import encode
from skatr_sk.summaries.invariance import Expander, VICRegLoss, ViewInvariance
from skatr_sk.summaries.jepa import JEPA, JEPALoss, MaskedReconstruction
from skatr_sk.summaries.masking import BlockMask, sample_masks, sample_regions
from skatr_sk.summaries.pooling import pooled_dim
from skatr_sk.summaries.scaling import BrightnessScaling, sky_symmetries, turn_at_random
from skatr_sk.summaries.vit import Encoder, MeanPredictor, Predictor, patchify
from skatr_sk.summaries.weights import Architecture, FrozenEncoder
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.callbacks import ReturnMemory, cosine_schedule, ramp
from skatr_sk.training.checkpoint import Checkpoint
from skatr_sk.training.device import autocast
from skatr_sk.training.seeds import independent_seeds, seed_of
from skatr_sk.training.trainer import train

__all__ = ["EffectiveRank", "MovingTarget", "Views", "pretrain"]

_MOST_RANKED = 512
_TOPPED_UP = 128
_MOST_HELD = 30_000_000  # voxels


class Views:
    """Turn a batch of fields into patches and masks: what one step sees.

    Parameters
    ----------
    field_shape, patch_size : sequence of int
    masks : sequence of BlockMask or None
        One prediction task each; None gives two regions to compare.
    min_context : float
        Least share of the patches that a mask leaves, or that of a region.
    scaling : BrightnessScaling
    augment : bool
        Turn each training field by a sky symmetry of its own, before its patches are numbered, so
        that context and target indices turn along.
    seed : int
        Training draws go on from it; every validation pass draws the same masks again, so that
        validation losses compare.
    """

    def __init__(
        self,
        field_shape: Sequence[int],
        patch_size: Sequence[int],
        *,
        masks: Sequence[BlockMask] | None,
        min_context: float,
        scaling: BrightnessScaling,
        augment: bool,
        seed: int,
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.grid_shape = tuple(n // p for n, p in zip(field_shape, patch_size, strict=True))
        self.masks = masks
        self.min_context = min_context
        self.scaling = scaling
        self.symmetries = sky_symmetries(field_shape)[: None if augment else 1]
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self._validation: torch.Generator | None = None

    def _source(self, training: bool) -> torch.Generator:
        if training:
            self._validation = None
            return self.generator
        if self._validation is None:
            self._validation = torch.Generator().manual_seed(self.seed + 1)
        return self._validation

    def __call__(
        self, fields: Tensor, training: bool
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return patches of shape (n, n_patches, n_voxels) and (context, target) indices."""
        generator, device, n = self._source(training), fields.device, len(fields)
        if training:
            fields = turn_at_random(fields, self.symmetries, generator)
        grid, share = self.grid_shape, self.min_context
        if self.masks is None:
            pairs = [sample_regions(n, grid, share=share, generator=generator)]
        else:
            pairs = [
                sample_masks(n, grid, mask, min_context=share, generator=generator)
                for mask in self.masks
            ]
        masks = [(one.to(device), two.to(device)) for one, two in pairs]
        return patchify(self.scaling(fields), self.patch_size), masks


class MovingTarget(Callback):
    """Let the target encoder follow the context encoder after each step.

    Parameters
    ----------
    ema_decay : (float, float)
        Decay of the moving average at the first and at the last step.
    """

    def __init__(self, ema_decay: tuple[float, float]) -> None:
        self.ema_decay = ema_decay

    def on_batch_end(self, net: Any, training: bool | None = None, **kwargs: Any) -> None:
        """Move the target."""
        if training:
            progress = net.steps_done / net.n_steps
            net.module_.update_target(ramp(*self.ema_decay, progress))


class EffectiveRank(Callback):
    """Record the effective rank of validation summaries, before training and after epochs.

    Of mean tokens, whatever the pooling: these collapse first, and runs compare.

    Parameters
    ----------
    fields : Fields of shape (n, *field_shape)
    rows : ndarray of int64
        Which of them are summarised.
    scaling, patch_size, precision
        As in the run.
    """

    def __init__(
        self,
        fields: Fields,
        rows: np.ndarray,
        *,
        scaling: BrightnessScaling,
        patch_size: Sequence[int],
        precision: str,
    ) -> None:
        self.fields = fields
        self.rows = rows
        self.scaling = scaling
        self.patch_size = patch_size
        self.precision = precision

    def _rank(self, net: Any) -> float:
        encoder = net.module_.context_encoder.eval()
        device = torch.device(net.device)
        summaries = encode(
            encoder,
            self.fields,
            rows=self.rows,
            scaling=self.scaling,
            patch_size=self.patch_size,
            pooling="mean",
            device=device,
            autocast=autocast(device, self.precision),
        )
        return effective_rank(summaries, floor=RANK_FLOOR)

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Measure the rank at initialisation; a run that resumes has the same initial weights."""
        self.at_init_ = self._rank(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the rank of this epoch."""
        net.history.record("effective_rank", self._rank(net))
        net.history.record("effective_rank_at_init", self.at_init_)


def pretrain(transformer: Any, fields: Fields) -> FrozenEncoder:
    """Pre-train an encoder on fields with a transformer's checked parameters.

    Parameters
    ----------
    transformer : SKATRTransformer
    fields : Fields of shape (n, *field_shape)

    Returns
    -------
    FrozenEncoder
    """
    warn_implausible(fields)
    architecture = resolve_architecture(transformer, fields.shape[1:])
    seed = seed_of(transformer.random_state)
    split_seed, weights_seed, order_seed, views_seed = independent_seeds(seed, 4)
    train_rows, valid_rows = split_rows(fields, transformer.validation_fraction, split_seed)
    scaling = resolve_scaling(transformer, fields, train_rows)
    views = Views(
        architecture.field_shape,
        architecture.patch_size,
        masks=None if transformer.objective == "vicreg" else resolve_masks(transformer.masks),
        min_context=transformer.min_context,
        scaling=scaling,
        augment=transformer.augment,
        seed=views_seed,
    )
    # The rank of few fields is small whatever the encoder: training fields top them up.
    watched = np.concatenate([valid_rows, train_rows])[: max(len(valid_rows), _TOPPED_UP)]
    rank = EffectiveRank(
        *_held(fields, watched[:_MOST_RANKED]),
        scaling=scaling,
        patch_size=architecture.patch_size,
        precision=transformer.precision,
    )
    decay = transformer.ema_decay
    callbacks: list[Any] = [
        MovingTarget((decay, decay) if np.ndim(decay) == 0 else (decay[0], decay[1])),
        rank,
        ReturnMemory(),
    ]
    if transformer.checkpoint_dir is not None:
        run = _run_identity(transformer, fields, seed)
        callbacks.append(Checkpoint(transformer.checkpoint_dir, transformer.checkpoint_every, run))
    network, history = train(
        transformer,
        lambda: _objective(transformer, architecture.build(), architecture),
        VICRegLoss() if transformer.objective == "vicreg" else JEPALoss(transformer.loss),
        FieldDataset(fields, rows=train_rows),
        FieldDataset(fields, rows=valid_rows) if len(valid_rows) else None,
        seeds=(weights_seed, order_seed),
        schedule=lambda progress: cosine_schedule(progress, transformer.warmup),
        prepare=views,
        callbacks=callbacks,
        n_workers=transformer.n_workers,
    )
    encoder = network.context_encoder
    for row in history:
        if row["kept"]:
            warn_collapse(row, len(watched))
    return FrozenEncoder(architecture, scaling, encoder, history, resolve_pooling(transformer))


def _held(fields: Fields, rows: np.ndarray) -> tuple[Fields, np.ndarray]:
    """Fields and rows of them; in memory where they are few, for every epoch looks at them."""
    many = len(rows) * math.prod(fields.shape[1:]) > _MOST_HELD
    if many or fields.in_memory:
        return fields, rows
    return ArrayFields(fields.read(rows)), np.arange(len(rows))


def _objective(
    transformer: Any, encoder: Encoder, architecture: Architecture
) -> JEPA | MaskedReconstruction | ViewInvariance:
    """Put beside the encoder what predicts tokens or voxels, or compares summaries."""
    dim = transformer.predictor_dim
    if transformer.objective == "vicreg":
        pooling = resolve_view_pooling(transformer)
        n_summary = pooled_dim(transformer.embed_dim, pooling)
        expander = Expander(n_summary, dim, depth=transformer.predictor_depth)
        return ViewInvariance(encoder, expander, pooling=pooling)
    normalize = transformer.normalize_targets
    if transformer.objective == "reconstruction" and math.prod(architecture.patch_size) == 1:
        if normalize:
            raise ValueError(
                f"objective='reconstruction' with normalize_targets=True has nothing to predict in "
                f"patches of a single voxel (patch_size={architecture.patch_size}): normalised, "
                "it is always 0. Use larger patches, or normalize_targets=False."
            )
    if transformer.predictor_depth == 0:
        return JEPA(encoder, MeanPredictor(), normalize_targets=normalize)
    jepa = transformer.objective == "jepa"
    predictor = Predictor(
        transformer.embed_dim,
        transformer.embed_dim if jepa else math.prod(architecture.patch_size),
        architecture.grid_shape,
        predictor_dim=dim,
        depth=transformer.predictor_depth,
        # Heads at least 24 wide: narrower ones spend their time in softmax, not in products.
        n_heads=max((h for h in range(1, dim // 24 + 1) if dim % h == 0), default=1),
        mlp_ratio=transformer.mlp_ratio,
    )
    objective = JEPA if jepa else MaskedReconstruction
    return objective(encoder, predictor, normalize_targets=normalize)


def _run_identity(transformer: Any, fields: Fields, seed: int) -> str:
    """Say what makes a run the same run: all that its result depends on."""
    ignored = {"verbose", "callbacks", "checkpoint_dir", "checkpoint_every", "device"}
    ignored |= {"cache", "n_workers", "pooling"}
    settings = {k: v for k, v in transformer.get_params(deep=False).items() if k not in ignored}
    content = hashlib.blake2b(b"".join(fields.digests()), digest_size=8).hexdigest()
    settings |= {"random_state": seed, "X": f"{fields.shape} {content}"}
    if transformer.objective == "vicreg":  # which compares pooled regions
        settings["pooling"] = resolve_view_pooling(transformer)
    return json.dumps(settings, default=repr, sort_keys=True)
