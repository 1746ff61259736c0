"""Encoder and head trained as one network, from light cones to parameters.

The networks trained from scratch of Ore, Heneka, Plehn, arXiv:2410.18899, sections 4 and 5. What
the heads share of it is here: what a `backbone` may be, what it starts from, how it is trained
beside the head, and what it gives of fields.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import Tensor, nn

from skatr_sk._checks import (
    Instance,
    Integer,
    InvalidParameterError,
    Kind,
    NoEffectWarning,
    Problems,
    Real,
    Rule,
    spell,
    warn_without_effect,
    with_object,
)
from skatr_sk.fields import Fields, Look, warn_implausible
from skatr_sk.heads.cnn import CNN
from skatr_sk.heads.own import built, try_network
from skatr_sk.heads.prior_transform import Floats
from skatr_sk.summaries.augmentation import Augmentation
from skatr_sk.summaries.encoding import encode
from skatr_sk.summaries.novelty import SeenSummaries, enough
from skatr_sk.summaries.pooling import pool, pooled_dim
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.transformer import SKATRTransformer
from skatr_sk.summaries.views import PatchViews
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import FrozenEncoder, check_pooling
from skatr_sk.training.batches import FieldDataset
from skatr_sk.training.checkpoint import content_of
from skatr_sk.training.device import autocast, resolve_device
from skatr_sk.training.estimator import TrainedEstimator
from skatr_sk.training.held_out import Rows
from skatr_sk.training.identity import identity_of
from skatr_sk.training.seeds import independent_seeds, seeded
from skatr_sk.training.state import digest_of

__all__ = [
    "BACKBONE_DOCS",
    "BackboneHead",
    "EncoderWithHead",
    "FieldNetwork",
    "encoder_of",
    "features_of",
    "features_shape",
    "fit_end_to_end",
    "gives_tokens",
    "standing_for",
]

# These count of a backbone that is not fitted; the others are of its pre-training.
_COUNT = frozenset(
    "patch_size embed_dim depth n_heads mlp_ratio embedding attention pooling brightness_range "
    "augment n_workers weights cache device precision".split()
)
_NAMED = ("vit", "cnn")
_OF_THE_BACKBONE = frozenset({"frozen_epochs", "backbone_learning_rate", "layer_decay"})
# Cells of fields that a network of whole fields takes at a time: its first layer may have dozens of
# channels.
_CPU_CELLS, _GPU_CELLS = 1_000_000, 32_000_000
_TRIED = 2  # fields of a trial

BACKBONE_DOCS = {
    "backbone": """
        backbone : {"vit", "cnn"}, SKATRTransformer, torch.nn.Module or None, default=None
            What turns light cones, maps or signals ``(n, *field_shape)`` in mK into features, and
            is trained with the head on the same labels, each training field turned by a random sky
            symmetry of its own. "vit" is the encoder of a default :class:`SKATRTransformer` from
            random weights, an unfitted one gives other sizes (`patch_size, embed_dim, depth,
            n_heads, mlp_ratio, embedding, attention, pooling, brightness_range, augment, n_workers`
            count, and parameters of its pre-training do not), and a fitted one, also inside
            :class:`~sklearn.frozen.FrozenEstimator` or with `weights`, is fine-tuned from a copy of
            its weights, which clones of the estimator keep. "cnn" is the convolutional network
            3D-21cmPIE-Net (arXiv:2201.07587). A network of yours takes float32 fields in mK and
            gives features ``(n, n_features)``; a copy is trained, from the weights that it has,
            which clones keep too. None takes summaries.""",
    "fine_tuning": """
        frozen_epochs : int, default=0
            Epochs at the beginning in which the weights of the backbone stay as they are, and the
            head alone is trained. They count among `max_epochs`; `patience` begins after them.
        backbone_learning_rate : float or None, default=None
            Of the backbone, where it is to differ from that of the head; None is `learning_rate`.
        layer_decay : float, default=1.0
            Factor, in (0, 1], by which the rate falls from one layer of the backbone to the one
            before it, towards the fields. Layers of the transformer are its embedding, its
            blocks and its last norm, which has the whole rate.""",
    "backbone_": """
        backbone_ : SKATRTransformer, torch.nn.Module or None
            What was trained here. Of a vision transformer it is fitted:
            ``backbone_.transform(X)`` gives its summaries, ``backbone_.save(path)`` keeps it,
            ``backbone_.as_module()`` is a torch module. Of other networks it is a module from
            fields in mK to features, and ``backbone_.network`` the trained copy of yours. There are
            no `summary_mean_` and `summary_scale_` with a backbone.""",
}


def _is_backbone(value: Any) -> bool | str:
    if isinstance(value, FrozenEstimator) and isinstance(value.estimator, SKATRTransformer):
        return value.estimator.__sklearn_is_fitted__() or "fit it first, or take it out of there"
    if isinstance(value, str):
        return value in _NAMED or spell(value, _NAMED)
    return isinstance(value, SKATRTransformer | nn.Module)


_BACKBONES = (
    "'vit', 'cnn', a SKATRTransformer, a fitted SKATRTransformer in FrozenEstimator, a "
    "torch.nn.Module"
)


@dataclass(kw_only=True, eq=False, repr=False)
class BackboneHead(TrainedEstimator):
    """A head that may train what comes before it, from light cones on."""

    backbone: str | BaseEstimator | nn.Module | None = None
    frozen_epochs: int = 0
    backbone_learning_rate: float | None = None
    layer_decay: float = 1.0

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **TrainedEstimator._parameters,
        "backbone": Rule(_is_backbone, _BACKBONES, optional=True),
        "frozen_epochs": Integer(0),
        "backbone_learning_rate": Real("(0, inf)", optional=True),
        "layer_decay": Real("(0, 1]"),
    }
    _of_steps = TrainedEstimator._of_steps | _OF_THE_BACKBONE

    _learned: ClassVar[Mapping[str, Kind]] = {
        **TrainedEstimator._learned,
        "backbone_": Instance(
            SKATRTransformer, nn.Module, expected="a SKATRTransformer or a network", optional=True
        ),
    }

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the backbone too.

        Parameters
        ----------
        **params
            ``backbone__depth=2`` sets a parameter of the backbone; where that is "vit", a default
            :class:`SKATRTransformer` takes its place first.

        Returns
        -------
        self
        """
        return super().set_params(**with_object(self, "backbone", standing_for, params))

    def _check_together(self, problems: Problems) -> None:
        super()._check_together(problems)
        n_members: Any = getattr(self, "n_members", 1)
        if self.backbone is not None and n_members not in ("auto", 1):
            mend = "fit several estimators with other seeds, and average what they predict"
            problems.add("n_members", "'auto' or 1 with a backbone", n_members, mend)

    def _warn_without_effect(self) -> None:
        super()._warn_without_effect()
        if self.backbone is None:
            warn_without_effect(self, _OF_THE_BACKBONE, "backbone=None")
        elif isinstance(self.max_epochs, int) and 0 < self.max_epochs <= self.frozen_epochs:
            idle = _OF_THE_BACKBONE - {"frozen_epochs"}
            warn_without_effect(self, idle, f"frozen_epochs={self.frozen_epochs}")

    def _check_stored(self, problems: Problems) -> None:
        backbone: Any = getattr(self, "backbone_", None)
        super()._check_stored(problems)
        if backbone is None:
            return
        own = isinstance(backbone, SKATRTransformer)
        if own:
            backbone._check_stored(problems)
        wanted = backbone.field_shape_in_ if own else backbone.field_shape
        if self.field_shape_in_ != wanted:
            problems.add("field_shape_in_", f"{wanted}, as of its backbone_", self.field_shape_in_)

    def _check_head(self, shape: tuple[int, ...]) -> None:
        """Raise where a head of the user does not take features of a shape; for subclasses."""

    def __sklearn_clone__(self) -> Self:
        cloned: Self = super().__sklearn_clone__()
        given = self.backbone
        if isinstance(given, SKATRTransformer) and given.__sklearn_is_fitted__():
            # What it has learned is a parameter here. The weights may be shared: training copies.
            cloned.backbone = copy.copy(given)
        return cloned


class FieldNetwork(nn.Module):
    """Fields in mK to features (n, n_features) by a network that takes whole fields.

    These are scaled first, if there is a `scaling`. Fields may come as single patches
    (n, 1, n_voxels), which is how the trainer and the encoding hand them in.
    """

    n_slices = 1  # nothing is pooled

    def __init__(
        self,
        network: nn.Module,
        field_shape: tuple[int, ...],
        scaling: BrightnessScaling | None = None,
    ) -> None:
        super().__init__()
        self.network, self.field_shape, self.scaling = network, field_shape, scaling

    def forward(self, fields: Tensor) -> Tensor:
        """Return features of fields (n, *field_shape)."""
        fields = fields.reshape(-1, *self.field_shape).float()
        features: Tensor = self.network(fields if self.scaling is None else self.scaling(fields))
        return features


class EncoderWithHead(nn.Module):
    """Patches to tokens, tokens to a summary, and the summary to parameters or their density.

    The summaries are not standardised on the way, as those of a frozen encoder are. The encoder's
    last norm gives them a size of one already, and they change in every step, so that a mean and
    a scale that were learned before would soon be wrong. With ``pooling="tokens"`` the head gets
    tokens, which it pools itself, or the features of a :class:`FieldNetwork`.
    """

    sees_rows_once = True
    frozen = False  # an encoder whose weights stay does nothing either that is for training alone

    def __init__(self, encoder: Encoder | FieldNetwork, head: nn.Module, pooling: str) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder, head, pooling

    def train(self, mode: bool = True) -> Self:
        """Set the mode, in which the encoder takes no part while it is frozen."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, patches: Tensor) -> Any:
        """Map patches of shape (n, n_patches, n_voxels) to what the head gives."""
        tokens = self.encoder(patches).float()
        return self.head(pool(tokens, self.pooling, self.encoder.n_slices))


# What a network starts from -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Start:
    """An encoder before the training, how fields come to it, and what is made of it after."""

    build: Callable[[], Encoder | FieldNetwork]
    features: tuple[int, ...]  # shape of what the head sees of a field
    pooling: str
    patch_size: tuple[int, ...]
    voxels: tuple[int, ...] | None
    scaling: BrightnessScaling | None
    augmentation: Augmentation
    beside: Fields  # what is seen beside the steps
    n_workers: int
    identity: list[Any]
    finish: Callable[[Any], Any]  # makes ``backbone_`` of the trained encoder


def _start(head: Any, fields: Fields, rows: np.ndarray, seed: int) -> _Start:
    """Return what the checked parameter `backbone` stands for; `rows` of the fields train."""
    shape = fields.shape[1:]
    if not gives_tokens(head.backbone):
        return _start_of_network(head, fields, rows, seed)
    transformer = _transformer(head, fields)
    transformer._warn_without_effect_on(fields)
    augmentation = Augmentation(transformer.augment, fields, seed)
    beside = augmentation.beside(fields)
    given = _given(transformer, shape)
    attention = head.pooling == "attention" and getattr(head, "head", None) is None
    if given is None:
        if attention:
            warn_without_effect(transformer, {"pooling"}, "the attention of the head")
        sizes = transformer._architecture_for(shape)
        scaling = transformer._scaling_for(beside, rows)
        pooling = transformer._pooling_in_training(shape)
    else:
        sizes, scaling, pooling = given.architecture, given.scaling, given.pooling
    seen = "tokens" if attention else pooling  # by the head
    begin = None if given is None else digest_of(given.encoder.state_dict())
    width = pooled_dim(sizes.embed_dim, seen)

    def finish(encoder: Encoder) -> SKATRTransformer:
        # Its parameters say what it is, so that a clone has the same sizes.
        parameters = sizes.parameters() | {
            "weights": None,
            "pooling": pooling,
            "whiten": False,  # it was of the summaries before
        }
        fitted: SKATRTransformer = clone(transformer).set_params(**parameters)
        for name in ("field_shape_in_", "n_features_in_", "feature_names_in_", "grid_in_"):
            if hasattr(head, name):
                setattr(fitted, name, getattr(head, name))
        learned = FrozenEncoder(sizes, scaling, encoder, head.history_, pooling)
        fitted._adopt(dataclasses.replace(learned, augmentation=augmentation.name))
        return fitted

    return _Start(
        build=sizes.build if given is None else partial(copy.deepcopy, given.encoder),
        features=(sizes.n_tokens, width) if seen == "tokens" else (width,),
        pooling=seen,
        patch_size=sizes.patch_size,
        voxels=sizes.voxels,
        scaling=scaling,
        augmentation=augmentation,
        beside=beside,
        n_workers=transformer.n_workers,
        identity=[dataclasses.asdict(sizes), dataclasses.asdict(scaling), seen]
        + [augmentation.identity, begin],
        finish=finish,
    )


def _start_of_network(head: Any, fields: Fields, rows: np.ndarray, seed: int) -> _Start:
    """Return what the CNN, or a network of the user, starts from."""
    shape, own = fields.shape[1:], head.backbone
    build: Callable[[], nn.Module]
    identity = [identity_of(own)]  # before it is tried
    if isinstance(own, nn.Module):
        some = torch.from_numpy(np.float32(fields.read(np.arange(_TRIED))))
        least = min(_TRIED, len(rows), int(head._resolved(len(rows)).batch_size))
        n_features = try_network(type(head).__name__, "backbone", own, some, least=least)
        build, scaling = (lambda: built(copy.deepcopy(own), shape)), None
    else:
        build, scaling = partial(CNN, shape), BrightnessScaling.learn(fields, rows)
        n_features = CNN.n_features
    return _Start(
        build=lambda: FieldNetwork(build(), shape, scaling),
        features=(n_features,),
        pooling="tokens",
        patch_size=shape,  # a whole field is one patch
        voxels=None,
        scaling=None,
        augmentation=Augmentation(True, fields, seed),
        beside=fields,
        n_workers=0,
        identity=["cnn", dataclasses.asdict(scaling)] if scaling else identity,
        finish=lambda encoder: encoder,
    )


def gives_tokens(backbone: Any) -> bool:
    """Whether a checked parameter `backbone` stands for a transformer."""
    return not (isinstance(backbone, nn.Module) or backbone == "cnn")


def standing_for(backbone: Any) -> Any:
    """Return a default transformer for "vit", and anything else as it is."""
    return SKATRTransformer() if isinstance(backbone, str) and backbone == "vit" else backbone


def _transformer(head: Any, fields: Fields) -> SKATRTransformer:
    """Return the transformer that a checked parameter stands for; a file of weights is loaded."""
    backbone = standing_for(head.backbone)
    given = backbone.estimator if isinstance(backbone, FrozenEstimator) else backbone
    given._check_parameters()
    if given.__sklearn_is_fitted__():
        return given
    without_effect = given.get_params(deep=False).keys() - _COUNT
    warn_without_effect(given, without_effect, f"{type(head).__name__}(backbone=...)")
    if given.weights is None:
        return given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # unlike there, `augment` counts here
        # A whitening stays behind, and need not be there.
        loaded = {"warm_start": False, "checkpoint_dir": None, "whiten": "auto"}
        return clone(given).set_params(**loaded).fit(fields)


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


# The training -------------------------------------------------------------------------------------


def fit_end_to_end(
    head: Any,
    data: tuple[Fields, Floats, Rows],
    run: tuple[tuple[np.ndarray, np.ndarray], int],
    network: tuple[Callable[[int], nn.Module], nn.Module],
    **options: Any,
) -> EncoderWithHead:
    """Train encoder and head together, with an estimator's checked parameters.

    The `data` are fields in mK, targets (n, n_parameters) as the loss takes them, and what is known
    of the rows; the `run` is rows that train and that validate, and a seed. The `network` is what
    builds a head of the length of a summary, and its loss; `options` go to the trainer. Returns the
    network; the estimator has its `history_`, `backbone_` and `seen_` then.
    """
    (fields, targets, known_rows), (split, seed), (make_head, loss) = data, run, network
    warn_implausible(fields)
    start = _start(head, fields, split[0], seed)
    head._check_head(start.features)

    def build() -> EncoderWithHead:
        encoder = start.build()
        if isinstance(encoder, Encoder):
            encoder.requires_grad_(True)
        own = built(make_head(start.features[-1]), start.features)
        return EncoderWithHead(encoder, own, start.pooling)

    y = torch.from_numpy(targets.astype(np.float32)).to(resolve_device(head.device))
    of_both = zip((fields, start.beside), split, strict=True)
    sets: list[Any] = [FieldDataset(seen, y, rows) for seen, rows in of_both]
    options["prepare"] = PatchViews(
        fields.shape[1:],
        start.patch_size,
        voxels=start.voxels,
        scaling=start.scaling,
        augment=start.augmentation.turns,
        change=start.augmentation.change,
        seed=independent_seeds(seed, 3)[2],  # the first two are those of the training
    )
    options["n_workers"] = start.n_workers
    options["shares"] = partial(_shares, head._resolved(len(split[0])))
    if head.frozen_epochs:
        options["callbacks"] = [Freeze(int(head.frozen_epochs))]
        options["wait"] = int(head.frozen_epochs)
    options["identity"] = {}
    if head.checkpoint_dir is not None:
        known = {"X": content_of(fields), "y": digest_of({"y": y}), "backbone": start.identity}
        options["identity"] = known
    options["identity"] |= known_rows.identity()
    sets = known_rows.weighted(sets, split)
    trained, head.history_ = head._train((build, loss), sets, seed, **options)
    head.backbone_ = start.finish(trained.encoder)
    head.seen_ = _learn_seen(head, start.beside, split, trained.pooling)
    return trained


class Freeze(Callback):
    """Leave the weights of an encoder as they are in the first epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Remember which weights are to be trained."""
        self.weights_ = [each for each in net.module_.encoder.parameters() if each.requires_grad]

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Freeze, or release; by the history, so that a run that resumes goes on."""
        net.module_.frozen = len(net.history) <= self.epochs
        for weight in self.weights_:
            weight.requires_grad_(not net.module_.frozen)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Release."""
        net.module_.frozen = False


def _shares(head: Any, network: EncoderWithHead) -> dict[str, float]:
    """Shares of the learning rate by the names of weights: of the backbone, layer by layer."""
    of_all, decay = head.backbone_learning_rate, float(head.layer_decay)
    top = 1.0 if of_all is None else float(of_all) / float(head.learning_rate)
    layers = list(_layers(network.encoder))
    each = {
        id(weight): top * decay**above
        for above, layer in enumerate(reversed(layers))
        for weight in layer
    }
    return {k: each[id(v)] for k, v in network.named_parameters() if id(v) in each}


def _layers(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Yield the weights of each layer, from the fields on; of others in the order of building.

    A block of the vision transformer is one layer, and so are its embedding with the code of
    positions, and its last norm. Elsewhere it is what holds weights itself.
    """
    if isinstance(network, Encoder):
        first = (network.embed, network.position, network.slice_means)
        yield [weight for part in first if part is not None for weight in part.parameters()]
        for part in (*network.blocks, network.norm):
            yield list(part.parameters())
        return
    if own := list(network.parameters(recurse=False)):
        yield own
    for part in network.children():
        yield from _layers(part)


# What it gives ------------------------------------------------------------------------------------


def _learn_seen(
    head: Any, fields: Fields, split: tuple[np.ndarray, np.ndarray], pooling: str
) -> SeenSummaries | None:
    """Learn where features of rows that have trained and validated lie, of tokens the moments."""
    encoder, pooling = _on_device(head), "moments" if pooling == "tokens" else pooling
    train_rows, valid_rows = map(enough, split)
    trained = _encode(head, encoder, fields, pooling, rows=train_rows)
    if not len(valid_rows):
        return SeenSummaries.learn(trained)
    return SeenSummaries.learn(trained, _encode(head, encoder, fields, pooling, rows=valid_rows))


def features_of(head: Any, pooling: str, look: Look) -> Callable[[Fields, slice], Tensor]:
    """Return what gives the features of some rows of fields by a head's ``backbone_``.

    It looks at those that are read for it.
    """
    encoder = _on_device(head)

    def features(fields: Fields, rows: slice) -> Tensor:
        chosen, own = np.arange(fields.shape[0])[rows], None if fields.in_memory else look
        return torch.from_numpy(_encode(head, encoder, fields, pooling, rows=chosen, look=own))

    return features


def features_shape(head: Any, pooling: str) -> tuple[int, ...]:
    """Shape of what the head sees of a field, by the trained ``backbone_``."""
    backbone = head.backbone_
    if not isinstance(backbone, SKATRTransformer):
        return (CNN.n_features,)
    check_pooling(pooling, backbone.field_shape_in_)
    width = pooled_dim(backbone.architecture_.embed_dim, pooling)
    return (backbone.architecture_.n_tokens, width) if pooling == "tokens" else (width,)


def encoder_of(backbone: Any) -> Any:
    """Return the network that a ``backbone_`` has."""
    return backbone.encoder_ if isinstance(backbone, SKATRTransformer) else backbone


def _on_device(head: Any) -> Any:
    network, device = encoder_of(head.backbone_), resolve_device(head.device)
    # The fitted network stays where it is; a copy does the work elsewhere.
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)


def _encode(head: Any, network: Any, fields: Fields, pooling: str, **options: Any) -> np.ndarray:
    device, backbone = resolve_device(head.device), head.backbone_
    if isinstance(backbone, SKATRTransformer):
        options["scaling"] = backbone.scaling_
        options["patch_size"] = backbone.architecture_.patch_size
        options["voxels"] = backbone.architecture_.voxels
    else:
        options |= {"scaling": None, "patch_size": fields.shape[1:], "pooling": "tokens"}
        cells = _CPU_CELLS if device.type == "cpu" else _GPU_CELLS
        options["batch_size"] = max(1, cells // math.prod(fields.shape[1:]))
    options = {"pooling": pooling} | options
    precision = autocast(device, head.precision)
    # A network of the user may draw: each call the same, and nobody else's draws.
    quiet = seeded(0, device) if _is_own(backbone) else contextlib.nullcontext()
    with quiet:
        return encode(network, fields, device=device, autocast=precision, **options)


def _is_own(backbone: Any) -> bool:
    return isinstance(backbone, FieldNetwork) and backbone.scaling is None
