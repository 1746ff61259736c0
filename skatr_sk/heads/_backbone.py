"""A regressor's backbone: what it may be, what training starts from, and the run itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import Tensor

from skatr_sk._checks import InvalidParameterError, Problems, spell
from skatr_sk.fields import warn_implausible
from skatr_sk.heads.joint import JointNetwork, Patches
from skatr_sk.heads.mlp import Head, HeadLoss
from skatr_sk.summaries._parameters import (
    check_parameters,
    resolve_architecture,
    resolve_pooling,
    resolve_scaling,
    same_encoder,
)
from skatr_sk.summaries.encoding import encode
from skatr_sk.summaries.pooling import pooled_dim
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture, FrozenEncoder
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.device import autocast, resolve_device
from skatr_sk.training.seeds import independent_seeds

__all__ = ["check_backbone", "fit_joint", "predict_joint"]

_VIT = "vit"


def check_backbone(problems: Problems, backbone: Any) -> None:
    """Note what is wrong with the parameter `backbone`."""
    inner = backbone.estimator if isinstance(backbone, FrozenEstimator) else backbone
    if isinstance(inner, SKATRTransformer):
        if inner is not backbone and not inner.__sklearn_is_fitted__():
            mend = "fit it first, or hand it in without FrozenEstimator"
            problems.add("backbone", "a fitted SKATRTransformer in FrozenEstimator", inner, mend)
    elif backbone is not None and not (isinstance(backbone, str) and backbone == _VIT):
        expected = "None, 'vit', or a SKATRTransformer, fitted or not"
        mend = spell(backbone, [_VIT]) if isinstance(backbone, str) else ""
        problems.add("backbone", expected, backbone, mend)


def fit_joint(
    regressor: Any,
    fields: Any,
    targets: np.ndarray,
    make_head: Callable[[int], Head],
    train_rows: np.ndarray,
    valid_rows: np.ndarray,
    seed: int,
) -> tuple[JointNetwork, SKATRTransformer]:
    """Train encoder and head together, with a regressor's checked parameters.

    Parameters
    ----------
    regressor : LightconeRegressor
        Its history becomes that of this run.
    fields : ndarray or LightconeArray of shape (n, *field_shape)
        In mK.
    targets : ndarray of shape (n, n_parameters)
        Scaled to [0, 1].
    make_head : callable
        Builds the head for summaries of a length.
    train_rows, valid_rows : ndarray of int64
    seed : int

    Returns
    -------
    network : JointNetwork
    transformer : SKATRTransformer
        Fitted: a new one around the network's encoder.
    """
    warn_implausible(fields)
    transformer = _transformer(regressor.backbone, fields)
    sizes, scaling, given = _start(transformer, fields, train_rows)
    device = resolve_device(regressor.device)
    found = transformer.pooling_ if given is not None else resolve_pooling(transformer)
    pooling = "tokens" if regressor.pooling == "attention" else found  # which attends to tokens

    def build() -> JointNetwork:
        encoder = sizes.build() if given is None else copy.deepcopy(given)
        head = make_head(pooled_dim(sizes.embed_dim, pooling))
        return JointNetwork(encoder.requires_grad_(True), head, pooling)

    patches = Patches(
        sizes.field_shape,
        sizes.patch_size,
        scaling=scaling,
        augment=transformer.augment,
        seed=independent_seeds(seed, 3)[2],
    )
    y = torch.from_numpy(targets.astype(np.float32)).to(device)
    network = regressor._run(
        build,
        HeadLoss(regressor.loss),
        FieldDataset(fields, y, train_rows),
        FieldDataset(fields, y, valid_rows) if len(valid_rows) else None,
        seed,
        prepare=patches,
        n_workers=transformer.n_workers,
    )
    trained = FrozenEncoder(sizes, scaling, network.encoder, regressor.history_, found)
    # Its parameters say what it is, so that a clone has the same sizes.
    what = dataclasses.asdict(sizes) | {"weights": None, "pooling": found}
    del what["field_shape"]
    fitted = clone(transformer).set_params(**what)
    fitted.field_shape_in_ = sizes.field_shape
    fitted.n_features_in_ = sizes.field_shape[0]
    if hasattr(regressor, "feature_names_in_"):
        fitted.feature_names_in_ = regressor.feature_names_in_
    fitted._adopt(trained)
    return network, fitted


def predict_joint(regressor: Any, fields: Any) -> Tensor:
    """Return what the network gives for fields (n, *field_shape), some of them at a time."""
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
    )
    return torch.from_numpy(outputs).double()


def _transformer(backbone: Any, fields: Any) -> SKATRTransformer:
    """Return the transformer that a checked parameter stands for; a file of weights is loaded."""
    if isinstance(backbone, str):
        return SKATRTransformer()
    given = backbone.estimator if isinstance(backbone, FrozenEstimator) else backbone
    check_parameters(given)
    if given.weights is not None and not given.__sklearn_is_fitted__():
        return clone(given).fit(fields)
    return given


def _start(
    transformer: SKATRTransformer, fields: Any, train_rows: np.ndarray
) -> tuple[Architecture, BrightnessScaling, Encoder | None]:
    """Return sizes and scaling, and the encoder of a fitted transformer."""
    shape = tuple(int(n) for n in fields.shape[1:])
    if not transformer.__sklearn_is_fitted__():
        sizes = resolve_architecture(transformer, shape)
        return sizes, resolve_scaling(transformer, fields, train_rows), None
    frozen = transformer._frozen()
    if frozen.architecture.field_shape != shape:
        raise ValueError(
            f"X has fields of shape {shape}, but backbone was fitted on fields of shape "
            f"{frozen.architecture.field_shape}: resample X to that grid, or hand in an unfitted "
            "SKATRTransformer to train from scratch."
        )
    try:
        same_encoder(transformer, frozen)
    except InvalidParameterError as error:
        raise InvalidParameterError(
            "backbone is fitted, and its parameters were changed since: hand in an unfitted "
            f"SKATRTransformer to train other sizes from scratch. {error}"
        ) from error
    return frozen.architecture, frozen.scaling, frozen.encoder
