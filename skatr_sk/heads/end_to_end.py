"""Encoder and head trained as one network, from light cones to parameters.

The network trained from scratch of Ore, Heneka, Plehn, arXiv:2410.18899, section 4.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from skatr_sk._checks import (
    InvalidParameterError,
    NoEffectWarning,
    Rule,
    spell,
    warn_without_effect,
)
from skatr_sk.fields import Fields, warn_implausible
from skatr_sk.heads.mlp import Head, HeadLoss
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.summaries.augmentation import Augmentation
from skatr_sk.summaries.encoding import encode
from skatr_sk.summaries.pooling import pool, pooled_dim
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.summaries.views import PatchViews
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import FrozenEncoder
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.checkpoint import content_of
from skatr_sk.training.device import autocast, resolve_device
from skatr_sk.training.held_out import Rows
from skatr_sk.training.seeds import independent_seeds
from skatr_sk.training.state import digest_of

__all__ = ["BACKBONE", "EncoderWithHead", "fit_end_to_end", "predict_end_to_end"]

# These count of a backbone that is not fitted; the others are of its pre-training.
_COUNT = frozenset(
    "patch_size embed_dim depth n_heads mlp_ratio embedding pooling brightness_range augment "
    "n_workers weights cache device precision".split()
)


def _is_backbone(value: Any) -> bool | str:
    if isinstance(value, FrozenEstimator) and isinstance(value.estimator, SKATRTransformer):
        return value.estimator.__sklearn_is_fitted__() or "fit it first, or take it out of there"
    if isinstance(value, str):
        return value == "vit" or spell(value, ["vit"])
    return isinstance(value, SKATRTransformer)


_BACKBONES = "'vit', a SKATRTransformer, a fitted SKATRTransformer in FrozenEstimator"
BACKBONE = Rule(_is_backbone, _BACKBONES, optional=True)


class EncoderWithHead(nn.Module):
    """Patches to tokens, tokens to a summary, and the summary to parameters.

    The summaries are not standardised on the way, as those of a frozen encoder are. The encoder's
    last norm gives them a size of one already, and they change in every step, so that a mean and
    a scale that were learned before would soon be wrong. With ``pooling="tokens"`` the head gets
    tokens, which it pools itself.
    """

    def __init__(self, encoder: Encoder, head: Head, pooling: str) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder, head, pooling

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches of shape (n, n_patches, n_voxels) to what :meth:`Head.forward` gives."""
        tokens = self.encoder(patches).float()
        return self.head(pool(tokens, self.pooling, self.encoder.n_slices))


def fit_end_to_end(
    regressor: Any,
    data: tuple[Fields, Floats, Rows],
    make_head: Callable[[int], Head],
    loss: HeadLoss,
) -> tuple[EncoderWithHead, SKATRTransformer]:
    """Train encoder and head together, with a regressor's checked parameters; set its history.

    The `data` are fields in mK, targets (n, n_parameters) in [0, 1], and what is known of the rows;
    `make_head` takes the length of a summary. Returns the network and a new, fitted transformer
    that holds its encoder.
    """
    fields, unit, known_rows = data
    warn_implausible(fields)
    split, seed = regressor._runs(fields, known_rows)[0]
    transformer = _transformer(regressor.backbone, fields)
    transformer._warn_without_effect_on(fields)
    augmentation = Augmentation(transformer.augment, fields, seed)
    beside = augmentation.beside(fields)  # the steps
    given = _given(transformer, fields.shape[1:])
    if given is None:
        if regressor.pooling == "attention":
            warn_without_effect(transformer, {"pooling"}, "the attention of the head")
        sizes = transformer._architecture_for(fields.shape[1:])
        scaling = transformer._scaling_for(beside, split[0])
        pooling = transformer._pooling_in_training(fields.shape[1:])
    else:
        sizes, scaling, pooling = given.architecture, given.scaling, given.pooling
    seen = "tokens" if regressor.pooling == "attention" else pooling  # by the head

    def build() -> EncoderWithHead:
        encoder = sizes.build() if given is None else copy.deepcopy(given.encoder)
        head = make_head(pooled_dim(sizes.embed_dim, seen))
        return EncoderWithHead(encoder.requires_grad_(True), head, seen)

    y = torch.from_numpy(unit.astype(np.float32)).to(resolve_device(regressor.device))
    sets = [FieldDataset(seen, y, rows) for seen, rows in zip((fields, beside), split, strict=True)]
    turns = independent_seeds(seed, 3)[2]  # the first two are those of the training
    drawn: dict[str, Any] = {"augment": augmentation.turns, "change": augmentation.change}
    views = PatchViews(sizes.field_shape, sizes.patch_size, scaling=scaling, seed=turns, **drawn)
    options: dict[str, Any] = {"prepare": views, "n_workers": transformer.n_workers}
    options["identity"] = {}
    if regressor.checkpoint_dir is not None:
        begin = None if given is None else digest_of(given.encoder.state_dict())
        shown: list[Any] = [dataclasses.asdict(sizes), dataclasses.asdict(scaling), seen]
        shown += [augmentation.name, begin]
        known = {"X": content_of(fields), "y": digest_of({"y": y}), "backbone": shown}
        options["identity"] = known
    options["identity"] |= known_rows.identity()
    network = regressor._train((build, loss), known_rows.weighted(sets, split), seed, **options)
    # Its parameters say what it is, so that a clone has the same sizes.
    parameters = dataclasses.asdict(sizes) | {
        "weights": None,
        "pooling": pooling,
        "whiten": False,  # it was of the summaries before
    }
    del parameters["field_shape"]
    fitted = clone(transformer).set_params(**parameters)
    for name in ("field_shape_in_", "n_features_in_", "feature_names_in_", "grid_in_"):
        if hasattr(regressor, name):
            setattr(fitted, name, getattr(regressor, name))
    learned = FrozenEncoder(sizes, scaling, network.encoder, regressor.history_, pooling)
    fitted._adopt(dataclasses.replace(learned, augmentation=augmentation.name))
    return network, fitted


def predict_end_to_end(regressor: Any, fields: Fields) -> Tensor:
    """Return what a regressor's network gives for fields (n, *field_shape), some at a time."""
    device = resolve_device(regressor.device)
    network, backbone = regressor.head_, regressor.backbone_
    outputs = encode(
        network if device.type == "cpu" else copy.deepcopy(network).to(device),
        fields,
        scaling=backbone.scaling_,
        patch_size=backbone.architecture_.patch_size,
        pooling="tokens",  # the network pools for itself
        device=device,
        autocast=autocast(device, regressor.precision),
        look=True,
    )
    return torch.from_numpy(outputs).double()


def _transformer(backbone: Any, fields: Fields) -> SKATRTransformer:
    """Return the transformer that a checked parameter stands for; a file of weights is loaded."""
    if isinstance(backbone, str):  # "vit"
        return SKATRTransformer()
    given = backbone.estimator if isinstance(backbone, FrozenEstimator) else backbone
    given._check_parameters()
    if given.__sklearn_is_fitted__():
        return given
    without_effect = given.get_params(deep=False).keys() - _COUNT
    warn_without_effect(given, without_effect, "LightconeRegressor(backbone=...)")
    if given.weights is None:
        return given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # unlike there, `augment` counts here
        return clone(given).set_params(warm_start=False, checkpoint_dir=None).fit(fields)


def _given(transformer: SKATRTransformer, field_shape: tuple[int, ...]) -> FrozenEncoder | None:
    """Return the encoder of a fitted transformer, checked against fields of a shape."""
    if not transformer.__sklearn_is_fitted__():
        return None
    frozen = transformer._frozen()
    if frozen.architecture.field_shape != field_shape:
        raise ValueError(
            f"X: expected fields of shape {frozen.architecture.field_shape}, on which the backbone "
            f"was fitted, found {field_shape}; resample X to that grid, or hand in an unfitted "
            "SKATRTransformer to train from scratch."
        )
    try:
        transformer._check_same_encoder(frozen)
    except InvalidParameterError as error:
        raise InvalidParameterError(
            "backbone: expected the parameters that it was fitted with, found others; hand in an "
            f"unfitted SKATRTransformer to train other sizes from scratch. {error}"
        ) from error
    return frozen
