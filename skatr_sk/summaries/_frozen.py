"""What a transformer does once its encoder is frozen: summaries, their names, its file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skatr_sk.fields import Fields, check_fields
from skatr_sk.summaries._parameters import (
    check_parameters,
    resolve_architecture,
    resolve_pooling,
    resolve_scaling,
    same_encoder,
)
from skatr_sk.summaries.encoding import summarise
from skatr_sk.summaries.pooling import pooled_dim
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import Architecture, FrozenEncoder, read_encoder, write_encoder
from skatr_sk.training.device import autocast, resolve_device
from skatr_sk.training.estimator import CallbackSupportMixin

__all__ = ["FrozenSummaries"]


class FrozenSummaries(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """A frozen encoder as a scikit-learn transformer; a subclass says how it is trained.

    Attributes
    ----------
    encoder_ : Encoder
    architecture_ : Architecture
    scaling_ : BrightnessScaling
    history_ : list of dict
    field_shape_in_ : tuple of int
    n_features_in_ : int
    """

    encoder_: Encoder
    architecture_: Architecture
    scaling_: BrightnessScaling
    history_: list[dict[str, Any]]
    _found_pooling: str
    field_shape_in_: tuple[int, ...]
    n_features_in_: int
    weights: str | os.PathLike[str] | None
    cache: str | os.PathLike[str] | None
    pooling: str
    device: str
    precision: str

    def _check_parameters(self) -> None:
        """Check what can be known before the data; raise one error that lists what is wrong."""
        check_parameters(self)

    def _architecture_for(self, field_shape: Sequence[int]) -> Architecture:
        """Return the sizes of an encoder for fields of a shape."""
        return resolve_architecture(self, field_shape)

    def _pooling_in_training(self) -> str:
        """Return how an encoder that is trained with these parameters pools its tokens."""
        return resolve_pooling(self)

    def _scaling_for(self, fields: Fields, rows: np.ndarray) -> BrightnessScaling:
        """Return the brightness scaling: by the range that was given, or learned from rows."""
        return resolve_scaling(self, fields, rows)

    def _check_same_encoder(self, frozen: FrozenEncoder) -> None:
        """Check that parameters changed from their defaults agree with a frozen encoder."""
        same_encoder(self, frozen)

    def _adopt(self, frozen: FrozenEncoder) -> None:
        """Become the transformer of a frozen encoder."""
        same_encoder(self, frozen)
        found = getattr(self, "field_shape_in_", frozen.architecture.field_shape)
        if found != frozen.architecture.field_shape:
            raise ValueError(
                f"X has fields of shape {found}, but the weights in {self.weights!r} are for "
                f"fields of shape {frozen.architecture.field_shape}; resample X to that grid."
            )
        self.encoder_ = frozen.encoder.requires_grad_(False)
        self.architecture_ = frozen.architecture
        self.scaling_ = frozen.scaling
        self.history_ = frozen.history
        self._found_pooling = frozen.pooling

    @property
    def pooling_(self) -> str:
        """How `transform` pools the tokens; with ``pooling="auto"`` as the weights were saved."""
        check_is_fitted(self)
        return self._found_pooling if self.pooling == "auto" else self.pooling

    @property
    def _n_features_out(self) -> int:
        return pooled_dim(self.architecture_.embed_dim, self.pooling_)

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Summarise fields with the frozen encoder.

        Parameters
        ----------
        X : array-like of shape (n, *field_shape)
            In mK, of the shape seen in ``fit``.

        Returns
        -------
        ndarray of shape (n, embed_dim), float32
            With ``pooling_`` "moments" of shape (n, 2 embed_dim), with "tokens" of shape
            (n, n_tokens, embed_dim).
        """
        check_is_fitted(self)
        check_parameters(self)
        wanted = getattr(self, "_sklearn_output_config", {}).get("transform")
        if (wanted or get_config()["transform_output"]) != "default":
            self._check_columns()
        fields = check_fields(self, X, reset=False)
        device = resolve_device(self.device)
        return summarise(
            self._frozen(),
            fields,
            device=device,
            autocast=autocast(device, self.precision),
            cache=self.cache,
        )

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Name the features, ``skatrtransformer0`` and so on, as an ndarray of str."""
        self._check_columns()
        names: np.ndarray = super().get_feature_names_out(input_features)
        return names

    def _check_columns(self) -> None:
        check_parameters(self)
        if self.pooling_ == "tokens":
            raise ValueError(
                "pooling='tokens' gives an array of three axes, which has no columns to name: use "
                "pooling='mean', 'max' or 'moments', or set_output(transform='default')."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frozen encoder, its scaling and its history as one safetensors file.

        Parameters
        ----------
        path : path
            Replaced whole or not at all; its folder must exist.
        """
        check_is_fitted(self)
        check_parameters(self)  # or a file would be replaced by one that nobody can read
        write_encoder(path, self._frozen())

    def _frozen(self) -> FrozenEncoder:
        return FrozenEncoder(
            self.architecture_, self.scaling_, self.encoder_, self.history_, self.pooling_
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], **parameters: Any) -> Self:
        """Return a fitted transformer from a file written by :meth:`save`.

        Parameters
        ----------
        path : path
            Becomes the parameter ``weights``, so that a clone loads the same file.
        **parameters
            Others, such as ``device``; ``pooling`` is that of the saved transformer unless given.

        Returns
        -------
        SKATRTransformer
        """
        frozen = read_encoder(path)
        transformer = cls(weights=os.fspath(path), **({"pooling": frozen.pooling} | parameters))
        check_parameters(transformer)
        transformer._adopt(frozen)
        transformer.field_shape_in_ = transformer.architecture_.field_shape
        transformer.n_features_in_ = transformer.field_shape_in_[0]
        return transformer

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # summaries are float32
        tags.input_tags.three_d_array = True
        return tags
