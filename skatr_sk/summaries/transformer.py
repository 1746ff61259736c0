"""SKATRTransformer: fit pre-trains without labels, transform gives frozen summaries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skatr_sk._checks import unchanged_on_error
from skatr_sk.fields import ArrayFields, check_fields, warn_implausible
from skatr_sk.summaries._frozen import FrozenSummaries
from skatr_sk.summaries._parameters import check_parameters
from skatr_sk.summaries.masking import BlockMask
from skatr_sk.summaries.pretraining import pretrain
from skatr_sk.summaries.weights import read_encoder
from skatr_sk.training.estimator import with_callbacks

__all__ = ["SKATRTransformer"]

_LOOKED_AT = 16  # fields in memory, before frozen weights summarise them


class SKATRTransformer(FrozenSummaries):
    """Self-supervised summaries of light cones, maps or global signals.

    ``fit`` pre-trains a vision transformer without labels: a joint-embedding predictive
    architecture learns to predict the tokens of hidden patches from visible ones. ``transform``
    pools the frozen encoder's tokens, by default to their mean.

    Parameters
    ----------
    patch_size : "auto", int or tuple of int, default="auto"
        Cells of a patch along each axis; each must divide its axis. "auto" picks divisors that
        cut the field into about 512 tokens, fewer of small fields.
    embed_dim : int, default=144
        Width of a token, and length of a summary of mean tokens. The paper's have 360.
    depth : int, default=4
        Transformer blocks of the encoder.
    n_heads : int, default=4
        Attention heads; divides ``embed_dim``.
    mlp_ratio : float, default=2.0
        Hidden width of a block's MLP over ``embed_dim``.
    pooling : {"auto", "mean", "max", "moments", "tokens"}, default="auto"
        How ``transform`` pools the tokens. "moments" are their means and standard deviations, a
        summary of 2 `embed_dim`, "tokens" keeps them all; "auto" is as `weights` were saved, and
        else the mean [1]_. With "vicreg" the regions are compared by the same pooling ("tokens" by
        their mean).
    embedding : {"linear", "moments"}, default="linear"
        How the voxels of a patch become a token: by one matrix [1]_, or standardised, beside their
        mean and the logarithm of their scatter, which wins on light cones (docs/learning.rst).
    objective : {"jepa", "reconstruction", "vicreg"}, default="jepa"
        Predict the tokens of an averaged encoder [1]_ [2]_, or the voxels themselves [4]_, or let
        two regions of one sky have the same summary, without any target encoder [5]_.
    predictor_dim, predictor_depth : int, default=48 and 4
        Width and blocks of the predictor. Depth 0 leaves it out, and the mean of the visible
        tokens predicts the hidden ones: an ablation that collapses. With "vicreg" they are the
        numbers in which summaries are compared, and the hidden layers before these.
    masks : {"multiblock", "short", "long"}, BlockMask or list of BlockMask, default="multiblock"
        What is hidden. "short" is the union of 8 blocks of 10 to 20 % of the sky, "long" of 2
        blocks of 60 to 80 %, both along the whole line of sight; "multiblock" is both [3]_.
    min_context : float, default=0.15
        Smallest share of the patches that stays visible, in (0, 1); with "vicreg", which has no
        masks, the share of each of the two regions, in (0, 0.5].
    ema_decay : float or (float, float), default=(0.99, 1.0)
        Decay of the target encoder's moving average, in [0, 1], constant or rising from the first
        value to the second. 1.0 keeps a fixed random target, 0.0 makes it the context encoder.
    normalize_targets : bool, default=True
        Layer-normalise each target token before the loss [3]_.
    loss : {"l1", "l2", "smooth_l1"}, default="l1"
        Distance between predicted and target tokens.
    augment : bool, default=True
        Turn every training field by a random sky symmetry; the line of sight is never reversed.
    max_epochs : int, default=100
        Passes over the training fields. 0 keeps the random initial weights: the baseline that
        every pre-training must beat.
    batch_size : int, default=64
        Fields in a step; the memory of pre-training grows with it.
    learning_rate, weight_decay : float, default=1e-3 and 1e-3
        Of AdamW; the rate warms up linearly, then falls along a cosine to zero.
    warmup : float, default=0.1
        Share of the steps that warm up, in [0, 1).
    validation_fraction : float, default=0.1
        Share of the fields, in [0, 1), on which the loss and the effective rank are followed.
        They are chosen by content: a field's side does not depend on its row.
    patience : int or None, default=None
        Epochs without a better validation loss before the run stops and the best epoch comes
        back. The loss of a JEPA moves with its target and is a poor guide to the best summaries,
        so that the default trains to the end.
    brightness_range : (float, float) or None, default=None
        Bounds in mK mapped affinely to [0, 1] ([-120, -1] in [1]_); None learns a symmetric
        logarithm from the training fields, for it suits the long tail of absorption.
    weights : path, "mini-lr" or None, default=None
        A file written by :meth:`save`: ``fit`` then loads it and trains nothing. "mini-lr" comes
        with the package, pre-trained on simulated light cones of the grid of
        :func:`~skatr_sk.load_lightcones` (docs/weights.rst is its card). (Give new weights
        a new name under ``Pipeline(memory=...)``, which knows nothing else of them.)
    cache : "memory", path or None, default="memory"
        Where ``transform`` keeps summaries, by the content of the light cone and of the weights, so
        that none is computed twice. "memory" is that of the process
        (:func:`~skatr_sk.summaries.limit_cache_memory`); a path names a folder that all processes
        share (``n_jobs=2``, a cluster, another day); None computes them at every call.
    checkpoint_dir : path or None, default=None
        Where an interrupted ``fit`` left its state and goes on; needs an int `random_state`.
    checkpoint_every : int, default=10
        Epochs between two checkpoints.
    device : str, default="auto"
        Where to compute; "auto" is CUDA when there is one.
    precision : {"auto", "float32", "bf16"}, default="auto"
        "auto" means bfloat16 autocast on CUDA and float32 elsewhere.
    n_workers : int, default=0
        Processes that read file-backed light cones ahead of the training; 0 is a thread, which
        is enough unless they are compressed and the training is fast.
    callbacks : list of skorch callbacks or None, default=None
        Called after the transformer's own.
    verbose : int, default=0
        1 shows a bar with losses, effective rank and the time left.
    random_state : int, RandomState instance or None, default=None
        Fixes weights, masks, batches and split: the same int gives the same result on the same
        CPU, and on a GPU up to the rounding of its parallel sums.

    Attributes
    ----------
    encoder_ : Encoder
        The frozen context encoder, on the CPU.
    architecture_ : Architecture
        Its sizes, among them the patch size that "auto" chose.
    scaling_ : BrightnessScaling
        From mK to the encoder.
    pooling_ : str
        How ``transform`` pools: what "auto" stands for.
    history_ : list of dict
        One an epoch: ``epoch, train_loss, valid_loss`` (where there is a validation split),
        ``effective_rank, effective_rank_at_init, seconds`` and ``kept``, true for the epoch whose
        weights these are. The rank is that of standardised mean tokens, whatever `pooling`, of the
        validation fields, topped up by training ones where these are few; features that scatter by
        less than 0.5 % of their root mean square do not count (``floor=0.005`` in
        :func:`~skatr_sk.evaluation.effective_rank`).
    field_shape_in_ : tuple of int
        Shape of one field.
    n_features_in_ : int
        Length of the first field axis, as scikit-learn counts it.

    References
    ----------
    .. [1] Ore, Heneka, Plehn (SKATR), SciPost Phys. 18, 155 (2025), arXiv:2410.18899.
    .. [2] Assran et al. (I-JEPA), arXiv:2301.08243.
    .. [3] Bardes et al. (V-JEPA), arXiv:2404.08471.
    .. [4] He et al. (masked autoencoders), arXiv:2111.06377.
    .. [5] Bardes, Ponce, LeCun (VICReg), arXiv:2105.04906.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer, load_lightcones
    >>> cones = load_lightcones().data[:16]
    >>> skatr = SKATRTransformer(
    ...     patch_size=(2, 2, 45), embed_dim=16, depth=1, predictor_depth=1, max_epochs=1,
    ...     random_state=0,
    ... )
    >>> skatr.fit_transform(cones).shape
    (16, 16)
    """

    def __init__(
        self,
        *,
        patch_size: str | int | tuple[int, ...] = "auto",
        embed_dim: int = 144,
        depth: int = 4,
        n_heads: int = 4,
        mlp_ratio: float = 2.0,
        pooling: str = "auto",
        embedding: str = "linear",
        objective: str = "jepa",
        predictor_dim: int = 48,
        predictor_depth: int = 4,
        masks: str | BlockMask | Sequence[BlockMask] = "multiblock",
        min_context: float = 0.15,
        ema_decay: float | tuple[float, float] = (0.99, 1.0),
        normalize_targets: bool = True,
        loss: str = "l1",
        augment: bool = True,
        max_epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        warmup: float = 0.1,
        validation_fraction: float = 0.1,
        patience: int | None = None,
        brightness_range: tuple[float, float] | None = None,
        weights: str | os.PathLike[str] | None = None,
        cache: str | os.PathLike[str] | None = "memory",
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 10,
        device: str = "auto",
        precision: str = "auto",
        n_workers: int = 0,
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.depth = depth
        self.n_heads = n_heads
        self.mlp_ratio = mlp_ratio
        self.pooling = pooling
        self.embedding = embedding
        self.objective = objective
        self.predictor_dim = predictor_dim
        self.predictor_depth = predictor_depth
        self.masks = masks
        self.min_context = min_context
        self.ema_decay = ema_decay
        self.normalize_targets = normalize_targets
        self.loss = loss
        self.augment = augment
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.brightness_range = brightness_range
        self.weights = weights
        self.cache = cache
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self.device = device
        self.precision = precision
        self.n_workers = n_workers
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks
    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Pre-train on fields without labels, or load ``weights``.

        Parameters
        ----------
        X : array-like or LightconeArray of shape (n, *field_shape)
            Light cones (n, n_x, n_y, n_z), maps (n, n_x, n_y) or signals (n, n_z), in mK.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters, `X` or weights are not as expected; nothing is changed then.
        """
        with unchanged_on_error(self):
            check_parameters(self)
            fields = check_fields(self, X, reset=True, min_rows=2 if self.weights is None else 1)
            if self.weights is not None:
                if fields.in_memory:  # a look at files would be one more reading
                    warn_implausible(ArrayFields(fields.read(slice(0, _LOOKED_AT))))
                self._adopt(read_encoder(self.weights))
            else:
                self._adopt(pretrain(self, fields))
        return self
