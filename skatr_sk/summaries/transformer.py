"""SKATRTransformer: fit pre-trains an encoder, transform gives its frozen summaries."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import (
    Auto,
    Bounds,
    Choice,
    Flag,
    Instance,
    Integer,
    PathLike,
    Problems,
    Real,
    Rule,
    changed_parameters,
    check_options,
    is_path,
    shared_docs,
    unchanged_on_error,
    warn,
    warn_no_effect,
    warn_without_effect,
    with_object,
)
from skatr_sk._tensors import arrays_of, of_arrays
from skatr_sk.fields import Fields, check_fields, warn_implausible
from skatr_sk.grid import Grid
from skatr_sk.summaries.adaptation import adapted, with_own_embedding
from skatr_sk.summaries.augmentation import AUGMENT
from skatr_sk.summaries.encoding import MEMORY, summarise
from skatr_sk.summaries.labels import check_labels
from skatr_sk.summaries.module import Summary
from skatr_sk.summaries.novelty import Novelty, SeenSummaries, seen_of, warn_never_seen
from skatr_sk.summaries.objectives import JEPA, OBJECTIVE, Objective, as_objective
from skatr_sk.summaries.patch_size import PATCH_SIZE, fault_of_auto_patches, patch_size_for
from skatr_sk.summaries.pooling import (
    POOLINGS,
    count_slices,
    pool,
    pooled_dim,
    pooling_compared,
    pooling_seen,
)
from skatr_sk.summaries.pretraining import pretrain
from skatr_sk.summaries.regridding import described, onto_grid_of, why_of_another_shape
from skatr_sk.summaries.scaling import BrightnessScaling
from skatr_sk.summaries.vit import Encoder
from skatr_sk.summaries.weights import (
    AUGMENTATION,
    ENCODER_SIZES,
    SIZES,
    Architecture,
    FrozenEncoder,
    architecture_of,
    check_heads,
    check_pooling,
    n_seen,
    read_encoder,
    scaling_of,
    whitening_of,
    write_encoder,
)
from skatr_sk.summaries.whitening import Whitening
from skatr_sk.training.device import autocast, resolve_device, torch_defaults
from skatr_sk.training.estimator import TRAINING_DOCS, TrainedEstimator, with_callbacks
from skatr_sk.training.held_out import Given
from skatr_sk.training.processes import is_first
from skatr_sk.training.stored import stored_by_name

__all__ = ["SKATRTransformer"]

_TOKENS_POOLED = 64  # fields whose tokens are pooled at a time
_FEWEST_STEPS = 120  # of max_epochs="auto"; many fields take more, for each is seen once


def _is_range(value: Any) -> bool | str:
    wrong = Bounds(pair=True).fault(value)
    return wrong is None or wrong[2]


def _is_cache(value: Any) -> bool | str:
    if isinstance(value, str) and value == MEMORY:
        return True
    if not is_path(value):
        return False
    if os.path.lexists(value):
        return os.path.isdir(value) or "this is no folder"
    if difflib.get_close_matches(str(value).lower(), [MEMORY], cutoff=0.8):
        # A slip of the pen would make a folder.
        return f"did you mean {MEMORY!r}? A folder of that name is {os.path.join('.', value)!r}"
    return True


@stored_by_name
@shared_docs(**TRAINING_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class SKATRTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TrainedEstimator):
    """Self-supervised summaries of light cones, maps or global signals.

    ``fit`` pre-trains a vision transformer without labels, by default as a joint-embedding
    predictive architecture, which learns to predict the tokens of hidden patches from visible ones.
    ``transform`` pools the frozen encoder's tokens. The defaults are made for minutes on two cores;
    those of the paper [1]_ are :meth:`published`.

    Parameters
    ----------
    patch_size : "auto", int or tuple of int, default="auto"
        Cells of a patch along each axis; each must divide its axis. "auto" picks divisors that
        cut the field into about 1000 tokens, fewer of small fields. Axes whose cells have no such
        divisors, as 89 or 467, are a warning, which names the nearest number that has.
    embed_dim : int, default=96
        Width of a token, and length of a summary of mean tokens.
    depth : int, default=2
        Transformer blocks of the encoder.
    n_heads : int, default=2
        Attention heads; divides ``embed_dim``.
    mlp_ratio : float, default=2.0
        Hidden width of a block's MLP over ``embed_dim``.
    embedding : {"moments", "fluctuations", "linear"}, default="moments"
        How the voxels of a patch become a token: standardised, beside their mean and log standard
        deviation, which wins on light cones (docs/learning.rst); "fluctuations" does the same with
        the voxels less the mean of their slice, over the patches that are seen, and hands that
        mean over apart; "linear" is one matrix [1]_.
    attention : {"full", "axial"}, default="full"
        Which tokens see each other. "full" is all of a field [1]_. "axial", of light cones, is in
        turn, block by block, those of a column along the line of sight and those of a slice across
        the sky, which come last (after [2]_ and [3]_): as many weights, and with thousands of
        tokens a fraction of the time (docs/performance.rst).
    pooling : {"auto", "mean", "max", "moments", "slices", "tokens"}, default="auto"
        How ``transform`` pools the tokens. "moments" are their means and standard deviations, a
        summary of 2 `embed_dim`; "slices", of light cones, the means and the standard deviations
        between and within redshift slices, 3 `embed_dim`; "tokens" keeps them all. "auto" is as
        `weights` were saved, and else "slices" of light cones and "moments" of maps and signals;
        the paper has the mean [1]_. It may be changed after ``fit``.
    objective : str or objective, default="jepa"
        What the encoder learns in pre-training: :class:`~skatr_sk.summaries.JEPA` predicts the
        tokens of an averaged encoder, :class:`~skatr_sk.summaries.Reconstruction` the voxels
        themselves, :class:`~skatr_sk.summaries.VICReg` and :class:`~skatr_sk.summaries.LeJEPA` let
        two regions of one sky have the same summary, and :class:`~skatr_sk.summaries.Supervised`
        learns labels, from ``fit(X, y)``. A name, such as "lejepa", stands for the object with its
        defaults; ``objective__ema_decay`` and the like reach its parameters.
    augment : bool, callable or transformer, default=True
        Turn every training field by a random sky symmetry; the line of sight is never reversed.
        A callable then changes the fields of a step: it takes and returns a tensor
        ``(n, *field_shape)`` of float32 in mK, on the device, and may draw from the global
        generators of torch and ``np.random``, which are seeded, and from no other. A transformer
        with a method ``augment``, such as :class:`~skatr_sk.NoiseTransformer`, adds fresh noise in
        each step; what it makes of fields by ``transform`` is what they are validated, scaled and
        whitened with. `transform` of this transformer takes light cones as they come: put noise
        before it where they have none.
    max_epochs : int or "auto", default="auto"
        Passes over the training fields. "auto" makes at least 120 steps: it is 1 for more than
        3,800 of these in batches of 32. 0 keeps the random initial weights: the baseline that every
        pre-training must beat.
    batch_size : int, default=32
        Fields in a step; the memory of pre-training grows with it.
    learning_rate, weight_decay : float, default=2e-3 and 1e-3
        Of AdamW; the rate warms up linearly, then falls along a cosine to zero.
    warmup : float, default=0.1
        Share of the steps that warm up, in [0, 1).
    validation_fraction : float, default=0.1
        Share of the fields, in [0, 1), on which the loss and the effective rank are followed.
        They are chosen by content: a field's side of the split does not depend on its row.
    patience : int or None, default=None
        Epochs without a better validation loss before the run stops and the best epoch comes
        back. None trains to the end: the loss of a JEPA moves with its target and is a poor guide
        to the best summaries.
    subtract_mean : bool, default=False
        Subtract the mean over the sky at each redshift from every field, in ``fit`` and in
        ``transform``: an interferometer does not see it. It is part of the weights.
    whiten : "auto" or bool, default="auto"
        Weigh the directions of summaries by how little two regions of one sky disagree on them:
        what they do not share is cosmic variance and noise. Learned without labels after the
        training, from 1024 of its fields at most, for the `pooling` of ``fit``, and part of
        the weights. "auto" is as `weights` were saved, and else True, but False of objectives that
        learn from labels alone, which weigh the directions themselves, of signals, which have no
        sky, of ``pooling="tokens"``, and of fewer than 16 fields. False leaves it out, after
        ``fit`` too; True with ``warm_start=True`` learns what was left out.
    brightness_range : (float, float) or None, default=None
        Bounds in mK mapped affinely to [0, 1] ([-120, -1] in [1]_). None learns a symmetric
        logarithm from the training fields, which suits the long tail of absorption.
    weights : path, "mini-lr", "mini-lr-labels" or None, default=None
        A file written by :meth:`save`: ``fit`` then loads it and trains nothing. Two come with the
        package, pre-trained on simulated light cones of the grid of
        :func:`~skatr_sk.load_lightcones`: "mini-lr" without labels, "mini-lr-labels" with those of
        the simulator (docs/weights.rst says which to take when). Sizes that were given must
        be those of the file, and parameters of the training have no effect. Give new weights a new
        name under ``Pipeline(memory=...)``, which knows nothing else of them.
    warm_start : bool, default=False
        Pre-train on from what is there: the encoder of an earlier ``fit``, else that of `weights`,
        for `max_epochs` more and on any light cones of the same shape. Sizes and scaling are kept.
        What an objective puts around the encoder, such as a predictor, and the schedule of the rate
        begin anew; the epochs follow the earlier ones in ``history_``.
    on_new_grid : {"raise", "resample"}, default="raise"
        What becomes of light cones on another grid than that of the encoder, in ``fit`` with
        `weights`, those that validate too, in ``adapt`` and in ``transform``. "resample" brings
        them onto it as :class:`~skatr_sk.LightconeResampler` does, and cuts off what reaches
        farther; those that do not reach as far are refused. Where they do not know their grid
        (arrays), cells are taken to be cubes from the same nearest redshift on, on a sky as wide;
        where these would not be deep enough, they are taken to span the same volume. Arrays of as
        many cells on the sky as the encoder is for, and another number of slices, are refused,
        unless these are cubes.
    cache : "memory", path or None, default="memory"
        Where ``transform`` keeps summaries, by the content of the light cone and of the weights, so
        that none is computed twice. "memory" is that of the process
        (:func:`~skatr_sk.summaries.limit_cache_memory`); a path names a folder that all processes
        share (``n_jobs=2``, a cluster, another day); None computes them at every call.
    n_workers : int, default=0
        Processes that read light cones from files ahead of the training. 0 is a thread, which is
        enough unless they are compressed and the training is fast.
    compile : bool, default=False
        Let torch compile the transformer blocks for the steps of a training, and for nothing else:
        the first steps with blocks of a size take up to a minute more, and need a C++ compiler, or
        Triton on a GPU. On a CPU little or nothing was gained (docs/performance.rst); on a GPU it
        was not measured. The numbers are the same within rounding, and a checkpoint may be resumed
        with and without. torch keeps what it compiles in its own folder for temporary files, or in
        that of the environment's ``TORCHINDUCTOR_CACHE_DIR``.
    {device}
    precision : {"auto", "float32", "bf16"}, default="auto"
        "auto" is bfloat16 autocast on CUDA and, for encoders of at least 256 tokens that are 64
        wide or wider, on processors that multiply its matrices (Intel's AMX); float32 elsewhere.
        Summaries in bfloat16 differ from those in float32 by about a hundredth of their standard
        deviation over light cones, which changes the R2 of a ridge regression by less than .001.
    {callbacks}
    {verbose}
    {random_state}
    {checkpoint}

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
    whitening_ : Whitening or None
        The mean and the matrix by which ``transform`` weighs what it has pooled, if it does.
    augmentation_ : str or None
        What the training did to its fields, by name; None of weights that do not say.
    seen_ : SeenSummaries or None
        Where the summaries of the training lie, for :meth:`novelty`; None of weights that do not
        say.
    {history}
        Among these are ``effective_rank`` and ``effective_rank_at_init``: the rank of standardised
        mean tokens, whatever `pooling`, of the validation fields, topped up by training ones where
        these are few. Features whose standard deviation is less than 0.5 % of their root mean
        square do not count (``floor=0.005`` in :func:`~skatr_sk.evaluation.effective_rank`).
    field_shape_in_ : tuple of int
        Shape of one field, as the encoder sees it.
    grid_in_ : Grid
        Cell sizes and redshifts of the fields that the encoder was trained on, where they are
        known. It is part of the weights, and other grids are refused.
    n_features_in_ : int
        Length of the first field axis, as scikit-learn counts it.

    References
    ----------
    .. [1] Ore, Heneka, Plehn (SKATR), SciPost Phys. 18, 155 (2025), arXiv:2410.18899.
    .. [2] Ho et al., "Axial attention in multidimensional transformers", arXiv:1912.12180.
    .. [3] Bertasius, Wang, Torresani (TimeSformer), arXiv:2102.05095, section 3.

    Examples
    --------
    >>> from skatr_sk import SKATRTransformer, load_lightcones
    >>> cones = load_lightcones().data[:16]
    >>> skatr = SKATRTransformer(
    ...     patch_size=(2, 2, 45), embed_dim=16, depth=1, max_epochs=1, random_state=0
    ... )
    >>> skatr.set_params(objective__predictor_depth=1).fit_transform(cones).shape
    (16, 48)
    """

    patch_size: str | int | tuple[int, ...] = "auto"
    embed_dim: int = 96
    depth: int = 2
    n_heads: int = 2
    mlp_ratio: float = 2.0
    embedding: str = "moments"
    attention: str = "full"
    pooling: str = "auto"
    objective: str | Objective = "jepa"
    augment: Any = True
    max_epochs: int | str = "auto"
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.1
    subtract_mean: bool = False
    whiten: bool | str = "auto"
    brightness_range: tuple[float, float] | None = None
    weights: str | os.PathLike[str] | None = None
    warm_start: bool = False
    on_new_grid: str = "raise"
    cache: str | os.PathLike[str] | None = MEMORY
    n_workers: int = 0
    compile: bool = False

    _parameters = {
        **TrainedEstimator._parameters,
        "patch_size": PATCH_SIZE,
        **SIZES,
        "pooling": Choice("auto", *POOLINGS),
        "objective": OBJECTIVE,
        "augment": AUGMENT,
        "warmup": Real("[0, 1)"),
        "subtract_mean": Flag(),
        "whiten": Auto(Flag()),
        "brightness_range": Rule(_is_range, "finite (low, high) in mK, low < high", optional=True),
        "weights": PathLike(),
        "warm_start": Flag(),
        "on_new_grid": Choice("raise", "resample"),
        "cache": Rule(_is_cache, "'memory', the path of a folder, or None", optional=True),
        "n_workers": Integer(0),
        "compile": Flag(),
    }

    _learned = {
        **TrainedEstimator._learned,
        "encoder_": Instance(Encoder, expected="an encoder"),
        "architecture_": Instance(Architecture, expected="sizes"),
        "scaling_": Instance(BrightnessScaling, expected="a scaling"),
        "_pooling_found": Choice(*POOLINGS),
        "_whitening_found": Instance(Whitening, expected="a whitening", optional=True),
        "augmentation_": AUGMENTATION,
        "seen_": Instance(SeenSummaries, expected="statistics of summaries", optional=True),
    }

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        found, wanted = self.field_shape_in_, self.architecture_.field_shape
        if found != wanted:
            problems.add("field_shape_in_", f"{wanted}, the shape of its encoder's fields", found)
        check_pooling(self._pooling_found, found)

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        if "encoder_" in state:
            state["encoder_"] = arrays_of(state["encoder_"])
            state["architecture_"] = state["architecture_"].described()
            state["scaling_"] = asdict(state["scaling_"])
            if (whitening := state["_whitening_found"]) is not None:
                state["_whitening_found"] = dict(vars(whitening))
            if (seen := state.get("seen_")) is not None:
                state["seen_"] = dict(vars(seen))
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(arrays := state.get("encoder_"), dict):
            widest = max((n for each in arrays.values() for n in np.shape(each)), default=1)
            sizes = state["architecture_"] = architecture_of(state["architecture_"], widest)
            state["scaling_"] = scaling_of(state["scaling_"], sizes.field_shape)
            state["encoder_"] = of_arrays(sizes.build, arrays)
            found, pooling = state.get("_whitening_found"), state["_pooling_found"]
            if pooling in POOLINGS:  # else it is said with all that is wrong
                state["_whitening_found"] = whitening_of(found, sizes, pooling)
                seen = state.get("seen_")
                mean: Any = seen.get("mean", ()) if isinstance(seen, dict) else ()
                state["seen_"] = seen_of(seen, n_seen(sizes, pooling, np.shape(mean)))
        return state

    def _auto(self, n_rows: int) -> dict[str, Any]:
        steps_an_epoch = math.ceil(n_rows / self.batch_size)
        return {"max_epochs": math.ceil(_FEWEST_STEPS / steps_an_epoch)}

    # Of weights it is their content that counts.
    _not_learned_from = TrainedEstimator._not_learned_from | {
        *(
            "cache",
            "compile",
            "n_workers",
            "on_new_grid",
            "pooling",
            "warm_start",
            "weights",
            "whiten",
        )
    }
    _of_steps = TrainedEstimator._of_steps | {"objective", "augment", "compile", "warmup"}
    # All but these are of pre-training, and warned of beside `weights`. There a seed and `verbose`
    # are no matter: nothing is drawn, and nothing is slow enough to watch.
    _given_with_weights: ClassVar[frozenset[str]] = frozenset(
        {"patch_size", *ENCODER_SIZES, "subtract_mean", "brightness_range", "weights", "pooling"}
        | {
            "warm_start",
            "on_new_grid",
            "whiten",
            "cache",
            "device",
            "precision",
            "verbose",
            "random_state",
        }
    )

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the objective too.

        Parameters
        ----------
        **params
            ``objective__ema_decay=0.9`` sets a parameter of the objective; where that is still a
            name, its object takes the name's place first.

        Returns
        -------
        self
        """

        def standing_for(given: Any) -> Any:
            check_options(type(self).__name__, {"objective": OBJECTIVE}, {"objective": given})
            return as_objective(given)

        params = with_object(self, "objective", standing_for, params)
        return super().set_params(**params)

    def _check_together(self, problems: Problems) -> None:
        super()._check_together(problems)
        if not OBJECTIVE.fault(self.objective):
            as_objective(self.objective).check(problems, "objective__")
        dim, heads = self.embed_dim, self.n_heads
        if Integer(2).fault(dim) is None and Integer(1).fault(heads) is None:
            check_heads(problems, dim, heads)

    @property
    def _only_loads(self) -> bool:
        """Whether ``fit`` takes `weights` as they are."""
        return self.weights is not None and not self.warm_start

    def _resumes(self) -> bool:
        return super()._resumes() and not self._only_loads

    def _warn_without_effect(self) -> None:
        if self._only_loads:
            of_pretraining = self._parameters.keys() - self._given_with_weights
            idle = of_pretraining - self._in_other_words()
            warn_without_effect(self, idle, f"weights={self.weights!r}")
            return
        super()._warn_without_effect()
        if self.max_epochs:
            as_objective(self.objective)._warn_without_effect()

    def _in_other_words(self) -> frozenset[str]:
        given, default = as_objective(self.objective), as_objective("jepa")
        same = type(given) is type(default) and not changed_parameters(given)
        # Without steps too, what a transformer does to fields counts for their scaling.
        counts = hasattr(self.augment, "transform") and not self._only_loads
        return frozenset(["objective"] * same + ["augment"] * counts)

    def _warn_without_effect_on(self, fields: Fields) -> None:
        """Warn of parameters that were given and change nothing in a training on such fields."""
        if fields.in_memory:
            warn_without_effect(self, {"n_workers"}, "fields in memory")
        if len(fields.shape) == 2 and self.max_epochs and isinstance(self.augment, bool):
            warn_without_effect(self, {"augment"}, "signals, which have no sky")

    def _architecture_for(
        self,
        field_shape: Sequence[int],
        objective: Objective | None = None,
        start: FrozenEncoder | None = None,
    ) -> Architecture:
        """Return the sizes of an encoder for fields of a shape, from checked parameters.

        They are those of `start`, where the training goes on from there. A ValueError says when
        patches do not fit the field, when tokens are too narrow to tell their positions apart, and
        when parameters of the objective do not fit these sizes.
        """
        architecture = (
            start.architecture
            if start
            else Architecture(
                field_shape=tuple(int(n) for n in field_shape),
                patch_size=patch_size_for(field_shape, self.patch_size),
                # Plain numbers: a search hands in numpy's, which JSON does not know.
                **{name: kind(getattr(self, name)) for name, kind in ENCODER_SIZES.items()},
            )
        )
        problems = Problems(type(self).__name__)
        architecture.check_width(problems, "embed_dim", self.embed_dim)
        architecture.check_embedding(problems)
        architecture.check_attention(problems)
        if self.subtract_mean and len(field_shape) == 1:
            wanted = "False with signals, which have no sky to take the mean over"
            problems.add("subtract_mean", wanted, self.subtract_mean)
        if self.whiten is True and not self._only_loads:
            if architecture.n_sky < 2:
                wanted = "'auto' or False with fields whose sky has no two patches"
                problems.add("whiten", wanted, self.whiten)
            elif self._pooling_in_training(field_shape, start) == "tokens":
                problems.add("whiten", "'auto' or False with pooling='tokens'", self.whiten)
        if objective is not None:
            objective.check_sizes(problems, "objective__", architecture)
        problems.raise_if_any()
        auto = start is None and isinstance(self.patch_size, str)
        if auto and (fault := fault_of_auto_patches(field_shape)) is not None:
            warn(fault)
        return architecture

    def _pooling_in_training(
        self, field_shape: Sequence[int], start: FrozenEncoder | None = None
    ) -> str:
        """Return how an encoder that is trained on fields of a shape pools its tokens."""
        in_slices = len(field_shape) == 3
        if self.pooling == "auto":
            if start is not None:
                return start.pooling
            return "slices" if in_slices else "moments"
        if self.pooling == "slices" and not in_slices:
            problems = Problems(type(self).__name__)
            wanted = f"another for fields of {len(field_shape)} axes, such as 'moments'"
            problems.add("pooling", wanted, self.pooling)
            problems.raise_if_any()
        return self.pooling

    def _scaling_for(self, fields: Fields, rows: np.ndarray) -> BrightnessScaling:
        """Return the brightness scaling: by the range that was given, or learned from rows."""
        if self.brightness_range is None:
            return BrightnessScaling.learn(fields, rows, subtract_mean=self.subtract_mean)
        return BrightnessScaling.from_range(
            *self.brightness_range, subtract_mean=self.subtract_mean
        )

    def _check_same_encoder(self, frozen: FrozenEncoder, *, own: bool = False) -> None:
        """Check that parameters changed from their defaults agree with a frozen encoder.

        So must defaults where the encoder is its `own`: none of them stands for what a file has.
        """
        problems = Problems(type(self).__name__)
        changed = self.get_params(deep=False) if own else changed_parameters(self)
        where = "what was fitted" if own else "the weights file"
        for name in ("patch_size", *ENCODER_SIZES, "subtract_mean"):
            owner = frozen.scaling if name == "subtract_mean" else frozen.architecture
            stored = getattr(owner, name)
            given = changed.get(name, stored)
            if name == "patch_size":
                given = patch_size_for(frozen.architecture.field_shape, given)
            if given != stored:
                mend = "leave it at its default to take what the file has"
                mend = "fit other sizes with warm_start=False" if own else mend
                problems.add(name, f"{stored!r} as in {where}", given, mend)
        bounds = self.brightness_range
        same = replace(frozen.scaling, subtract_mean=False)
        if bounds is not None and BrightnessScaling.from_range(*bounds) != same:
            mend = "leave it at None: the scaling is part of the weights"
            mend = "fit other bounds with warm_start=False" if own else mend
            problems.add("brightness_range", f"{frozen.scaling} as in {where}", bounds, mend)
        problems.raise_if_any()

    @with_callbacks
    @torch_defaults()
    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        *,
        groups: ArrayLike | None = None,
        validation_data: tuple[ArrayLike, object] | None = None,
    ) -> Self:
        """Pre-train on fields, without labels unless the objective needs them, or load ``weights``.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            Light cones (n, n_x, n_y, n_z), maps (n, n_x, n_y) or signals (n, n_z), in mK.
        y : array-like of shape (n,) or (n, n_parameters), or None, default=None
            Labels, where the objective learns from them; NaN where they are unknown. Other
            objectives do without: where `y` holds finite numbers or NaN, :meth:`novelty` tells
            what lies beyond their range, and anything else is ignored. The encoder is the same.
        groups : array-like of shape (n,), default=None
            Labels, such as the seeds of initial conditions: rows of one group are on one side of
            the split into those that train and those that validate, chosen by their content.
        validation_data : (X, y), default=None
            Fields that validate, with labels or None; all of `X` then train, and
            `validation_fraction` has no effect.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters, `X` or weights are not as expected; nothing is changed then.

        Warns
        -----
        NoEffectWarning
            When parameters were given that change nothing beside the others.
        UserWarning
            When fields have no divisors for ``patch_size="auto"``.
        AssumedGridWarning
            When fields were resampled to train on that do not say which grid they are on.
        """
        with unchanged_on_error(self):
            self._check_parameters()
            start, given = self._start(), Given(groups, validation_data)
            if start is not None and self.on_new_grid == "resample":
                X = onto_grid_of(start, X, silent=self._only_loads)
                if not self._only_loads:
                    given = given.changed(partial(onto_grid_of, start))
            fields = check_fields(self, X, reset=True, min_rows=1 if self._only_loads else 2)
            if self._only_loads:
                names = [name for name, value in given._asdict().items() if value is not None]
                warn_no_effect(type(self).__name__, names, f"weights={self.weights!r}")
                given = Given()
            self._warn_of(given)
            if start is not None:
                self._adopt(start, whole=self._only_loads)
            if start is not None and self._only_loads:
                if fields.in_memory:  # else when they are read
                    warn_implausible(fields)
            else:
                self._adopt(pretrain(self, fields, y, start, given))
        return self

    @torch_defaults()
    def adapted_to(
        self,
        field_shape: Sequence[int],
        *,
        grid: Grid | None = None,
        patch_size: int | Sequence[int] | None = None,
        cell_size: float | Sequence[float] | None = None,
        offset: float | Sequence[float] | None = None,
    ) -> Self:
        """Return this fitted transformer for fields on another grid; nothing is trained.

        Its position code has the same place for the same physical place, whatever the number of
        patches. The cells of a patch are averaged to the voxels of the training, in mK: on a finer
        grid with patches of the same physical size the summaries are those of the coarsened fields.
        :meth:`adapt` trains an embedding of the cells themselves.

        Parameters
        ----------
        field_shape : sequence of int
            Cells of the new fields along each axis.
        grid : Grid or None, default=None
            Their grid, such as ``X.grid`` of light cones in files. It gives `cell_size` and
            `offset`, where the transformer knows its own grid (``grid_in_``).
        patch_size : int, sequence of int or None, default=None
            Cells of a patch; each must divide its axis. None is the physical size of the patches
            now. The code of patches of another physical size is that of their centres; their
            structure looks larger or smaller to the encoder than it is.
        cell_size : float, sequence of float or None, default=None
            Size of the new cells along each axis, in cells of the fields now: 0.5 on a grid twice
            as fine. None is that of `grid`, or 1.
        offset : float, sequence of float or None, default=None
            Where the new fields begin along each axis, in cells of the fields now, such as a line
            of sight that begins at another redshift. None is that of `grid`, or 0.

        Returns
        -------
        SKATRTransformer
            Fitted, with ``weights=None``. A clone that is fitted pre-trains anew: in searches use
            ``FrozenEstimator``, or save it.

        Raises
        ------
        ValueError
            When the parameters are not as expected, grids cannot be compared, no whole number of
            cells makes a patch of the same size, or an axis has several patches that had a single
            one in the training.

        Notes
        -----
        The whitening, and what :meth:`novelty` compares with, are kept for the same line of sight
        in patches of the same physical size. Elsewhere summaries are distributed otherwise: they
        are left out (``whiten=True`` is refused), and :meth:`adapt` learns others. Positions beyond
        those of the training are extrapolated.

        Examples
        --------
        The same light cones on a grid that is twice as fine:

        >>> import numpy as np
        >>> from skatr_sk import SKATRTransformer, load_lightcones
        >>> cones = load_lightcones().data[:4].astype(np.float32)
        >>> skatr = SKATRTransformer(weights="mini-lr").fit(cones)
        >>> fine = skatr.adapted_to((28, 28, 180), cell_size=0.5)
        >>> twice = cones.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
        >>> np.allclose(fine.transform(twice), skatr.transform(cones), atol=1e-3)
        True
        """
        check_is_fitted(self)
        self._check_parameters()
        options: Any = {"patch_size": patch_size, "cell_size": cell_size, "offset": offset}
        frozen = adapted(self._as_trained(), field_shape, grid=grid, **options)
        other: Self = clone(self).set_params(
            weights=None,
            subtract_mean=frozen.scaling.subtract_mean,
            **frozen.architecture.parameters(),
        )
        other._adopt(frozen)
        other.field_shape_in_ = frozen.architecture.field_shape
        other.n_features_in_ = other.field_shape_in_[0]
        return other

    @with_callbacks
    @torch_defaults()
    def adapt(
        self,
        X: ArrayLike,
        y: object = None,
        *,
        groups: ArrayLike | None = None,
        validation_data: tuple[ArrayLike, object] | None = None,
    ) -> Self:
        """Train the patch embedding alone on fields, by the `objective`; all else is frozen.

        For light cones of other cells (after :meth:`adapted_to`), other simulations or another
        instrument, without labels unless the objective needs them. The embedding begins as it is,
        spread over the cells that were averaged. The parameters of the training count as in
        ``fit``, also beside `weights`; a whitening is learned anew. A clone knows nothing of it:
        save the transformer, or hand it on in ``FrozenEstimator``.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            In mK, of the shape that the transformer is for now.
        y, groups, validation_data
            As in ``fit``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or `X` are not as expected; nothing is changed then.

        Examples
        --------
        An encoder of light cones of 7 x 7 x 90 cells learns to see those of 14 x 14 x 90:

        >>> from skatr_sk import SKATRTransformer, load_lightcones
        >>> from skatr_sk.lightcones import coarsen
        >>> fine = load_lightcones().data[:8]
        >>> skatr = SKATRTransformer(
        ...     patch_size=(1, 1, 30), embed_dim=16, depth=1, max_epochs=1, random_state=0
        ... ).fit(coarsen(fine, (2, 2, 1)))
        >>> finer = skatr.adapted_to((14, 14, 90), cell_size=(0.5, 0.5, 1))
        >>> finer.adapt(fine).transform(fine).shape
        (8, 48)
        """
        check_is_fitted(self)
        with unchanged_on_error(self):
            self._check_parameters()
            start, given = self._as_trained(), Given(groups, validation_data)
            if self.on_new_grid == "resample":
                X, given = onto_grid_of(start, X), given.changed(partial(onto_grid_of, start))
            fields = check_fields(self, X, reset=False, min_rows=2)
            if not self._only_loads:
                self._warn_of(given)
            start = with_own_embedding(start)
            self._adopt(pretrain(self, fields, y, start, given, embedding_only=True))
        return self

    def _start(self) -> FrozenEncoder | None:
        """Return what is there before the training: what was learned, or weights, or nothing."""
        if self.warm_start and self.__sklearn_is_fitted__():
            if self.weights is None:
                self._check_same_encoder(self._as_trained(), own=True)
            return self._as_trained()
        return None if self.weights is None else read_encoder(self.weights)

    def _adopt(self, frozen: FrozenEncoder, *, whole: bool = True) -> None:
        """Become the transformer of a frozen encoder; without `whole` it has no whitening yet."""
        self._check_same_encoder(frozen)
        if whole and self.whiten is True and frozen.whitening is None:
            problems = Problems(type(self).__name__)
            mend = "fit or adapt learns one, with weights and warm_start=True the encoder stays"
            problems.add("whiten", "'auto' or False, for the weights have no whitening", True, mend)
            problems.raise_if_any()
        wanted = frozen.architecture.field_shape
        found = getattr(self, "field_shape_in_", wanted)
        own: Grid | None = getattr(self, "grid_in_", None)
        wrong = frozen.grid.differences(own) if frozen.grid and own else []
        if found != wanted or wrong:
            other = "resample X to that grid, as on_new_grid='resample' does"
            raise ValueError(
                f"X: expected fields of shape {described(wanted, frozen.grid)}, for which the "
                f"weights{' in ' * bool(self.weights)}{self.weights or ''} are, found "
                f"{described(found, own)}; {why_of_another_shape(found, wanted) or other}."
            )
        if frozen.grid is not None:
            self.grid_in_: Grid = frozen.grid
        self.encoder_: Encoder = frozen.encoder.requires_grad_(False)
        self.architecture_: Architecture = frozen.architecture
        self.scaling_: BrightnessScaling = frozen.scaling
        self.history_: list[dict[str, Any]] = frozen.history
        self._pooling_found: str = frozen.pooling
        self._whitening_found: Whitening | None = frozen.whitening
        self.augmentation_: str | None = frozen.augmentation
        self.seen_: SeenSummaries | None = frozen.seen
        if whole:
            _ = self.whitening_  # raises where it was asked for and is not there

    def _as_trained(self) -> FrozenEncoder:
        """Return what was learned, with the pooling that it was learned of."""
        learned = self.architecture_, self.scaling_, self.encoder_, self.history_
        known: dict[str, Any] = {  # an older file has none
            "seen": self.seen_,
            "grid": getattr(self, "grid_in_", None),
            "augmentation": getattr(self, "augmentation_", None),
        }
        return FrozenEncoder(*learned, self._pooling_found, self._whitening_found, **known)

    def _frozen(self) -> FrozenEncoder:
        """Return what was learned, with the pooling that counts now."""
        seen, pooling = self.seen_, self.pooling_
        if seen is not None:  # of other summaries?
            known = pooling_seen(pooling, len(seen.mean), self.architecture_.embed_dim)
            same = known == self._pooling_seen and self.whitening_ is self._whitening_found
            seen = seen if same else None
        asked: dict[str, Any] = {"pooling": pooling, "whitening": self.whitening_, "seen": seen}
        return replace(self._as_trained(), **asked)

    @property
    def whitening_(self) -> Whitening | None:
        """How `transform` weighs the directions of what it has pooled; None where it does not."""
        check_is_fitted(self)
        here = self.whiten and self.pooling_ == self._pooling_found
        found = self._whitening_found if here else None
        if found is None and self.whiten and not isinstance(self.whiten, str):
            raise ValueError(
                "whiten: expected 'auto' or False where no whitening was learned for "
                f"pooling={self.pooling_!r}, found True; fit again (with warm_start=True and "
                "max_epochs=0 the encoder stays as it is), or leave it out."
            )
        return found

    @property
    def pooling_(self) -> str:
        """How `transform` pools the tokens; with ``pooling="auto"`` as the weights were saved."""
        check_is_fitted(self)
        if self.pooling == "auto":
            return self._pooling_found
        return self._pooling_in_training(self.architecture_.field_shape)

    @torch_defaults()
    def transform(self, X: ArrayLike) -> np.ndarray:
        """Summarise fields with the frozen encoder.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            In mK, of the shape and, where it is known, the grid seen in ``fit``; of others with
            ``on_new_grid="resample"``.

        Returns
        -------
        ndarray of shape (n, embed_dim), float32
            With ``pooling_`` "moments" of shape (n, 2 embed_dim), with "slices" (n, 3 embed_dim),
            with "tokens" (n, n_tokens, embed_dim).

        Warns
        -----
        NeverSeenWarning
            When summaries lie far outside those of the training (:meth:`novelty`).
        AssumedGridWarning
            When fields were resampled that do not say which grid they are on.
        """
        check_is_fitted(self)
        self._check_parameters()
        wanted = getattr(self, "_sklearn_output_config", {}).get("transform")
        if (wanted or get_config()["transform_output"]) != "default":
            self._check_columns()
        summaries, comparable = self._summaries(X)
        if comparable is not None and self.seen_ is not None:
            warn_never_seen(
                f"{type(self).__name__}: X",
                "fields like those that the encoder was trained on",
                self.seen_.novelty(comparable),
                "look at their units, the order of their line of sight, and their parameters; "
                "novelty(X) tells more",
            )
        return summaries

    def _summaries(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray | None]:
        """Return what `transform` gives, and summaries that `seen_` is of, from the same tokens."""
        asked = self._frozen()
        if self.seen_ is None:
            return self._summarise(X, asked), None
        if asked.pooling == self._pooling_seen:
            summaries = comparable = self._summarise(X, asked)
        elif asked.pooling == "tokens":
            summaries = self._summarise(X, asked)
            n_slices = count_slices(self.architecture_.grid_shape)
            some = torch.from_numpy(summaries).split(_TOKENS_POOLED)
            pooled = [pool(tokens, self._pooling_seen, n_slices) for tokens in some]
            comparable = torch.cat(pooled).numpy()
        else:
            joined = replace(asked, pooling=f"{asked.pooling}+{self._pooling_seen}")
            both, width = self._summarise(X, joined), asked.architecture.embed_dim
            parts = np.split(both, [pooled_dim(width, asked.pooling)], axis=1)
            summaries, comparable = map(np.ascontiguousarray, parts)
        if asked.whitening is None and self._whitening_found is not None:
            comparable = self._whitening_found(comparable)
        return summaries, comparable

    def _summarise(self, X: ArrayLike, frozen: FrozenEncoder) -> np.ndarray:
        if self.on_new_grid == "resample":
            X = onto_grid_of(frozen, X)
        fields = check_fields(self, X, reset=False)
        device = resolve_device(self.device)
        precision = autocast(device, frozen.architecture.precision(self.precision, device))
        return summarise(frozen, fields, device, precision, self.cache, verbose=self.verbose)

    @property
    def _pooling_seen(self) -> str:
        """How the summaries are pooled that `seen_` is of."""
        n_summary = len(cast("SeenSummaries", self.seen_).mean)
        return pooling_seen(self._pooling_found, n_summary, self.architecture_.embed_dim)

    @torch_defaults()
    def novelty(self, X: ArrayLike) -> Novelty:
        """Say how far fields lie from those of the training, and how rare that is.

        The distance is that of Mahalanobis between the summary and those of the training [1]_. Of
        400 or more, and no fewer than a summary has numbers, it is counted from a quadratic surface
        that they lie near, in deviations of such as are at the same place of it.
        Where the parameters of a hundred fields of the training were known (``fit(X, y)``), those
        that a ridge regression reads from the summary count too: what lies beyond their range is
        new. Whatever `pooling` and `whiten`, the summaries are those of the training; `transform`
        compares them, too.

        How far unseen fields of the training kind lie is measured on those that validated, where
        these are fifty or more. Of fewer only the median is taken, where it is farther than that of
        those that trained; the shape of the distribution is that of the latter, each compared with
        the others.
        With ``validation_fraction=0`` there are none, and unseen fields seem rarer than they are:
        call :meth:`learn_novelty` with some.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            In mK, of the shape seen in ``fit``.

        Returns
        -------
        distance : ndarray of shape (n,), float64
            Root mean square of the deviations from the training, in standard deviations: about 1
            for fields of its kind.
        tail_probability : ndarray of shape (n,), float64
            Share of unseen fields of the training kind that lie as far or farther, in (0, 1]. It
            is extrapolated beyond nine tenths of those it is measured on: one of 1e-6 says that
            none like it was ever seen, and no more. What is rarer than .01 is called new; a field
            of the training kind that is called new is a false alarm.

        Raises
        ------
        ValueError
            When the weights do not say where the training lies, as those of before this method,
            and those that were trained on fewer than six fields.

        References
        ----------
        .. [1] Lee et al., "A simple unified framework for detecting out-of-distribution samples and
           adversarial attacks", arXiv:1807.03888, equation 2, of one class.

        Examples
        --------
        >>> import numpy as np
        >>> from skatr_sk import SKATRTransformer
        >>> noise = np.random.default_rng(0).normal(0, 1000, size=(4, 14, 14, 90))  # of 1 K
        >>> skatr = SKATRTransformer(weights="mini-lr").fit(noise)  # which it does not look at
        >>> bool((skatr.novelty(noise).tail_probability < 1e-3).all())
        True
        """
        check_is_fitted(self)
        self._check_parameters()
        if self.seen_ is None:
            raise ValueError(
                "novelty: expected weights that say where the summaries of their training lie, "
                "found none that do; learn it by learn_novelty(X) from fields of that kind, or "
                "fit again, on six fields or more."
            )
        # Tokens take memory, and are of no use here.
        if self.pooling_ == "tokens":
            known = replace(self._as_trained(), pooling=self._pooling_seen)
            return self.seen_.novelty(self._summarise(X, known))
        return self.seen_.novelty(cast(np.ndarray, self._summaries(X)[1]))

    @torch_defaults()
    def learn_novelty(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn anew what :meth:`novelty` compares with; the encoder stays as it is.

        For weights that do not say where their training lies, or to compare with other fields,
        such as the simulations of an inference.

        Parameters
        ----------
        X : array-like or Fields of shape (n, *field_shape)
            At least six, of which 2,048 are enough, in mK. Best are those that the encoder was not
            trained on.
        y : array-like of shape (n,) or (n, n_parameters), default=None
            Their parameters, NaN where unknown. With a hundred of them or more, parameters beyond
            their range are found far more often.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        self._check_parameters()
        compared = pooling_compared(self._pooling_found, self.architecture_.grid_shape)
        summaries = self._summarise(X, replace(self._as_trained(), pooling=compared))
        labels = None if y is None else check_labels(y, len(summaries), "learn_novelty").values
        seen = SeenSummaries.learn(summaries, parameters=labels)
        if seen is None:
            raise ValueError(
                f"X: expected at least six fields that differ, found {len(summaries)}; give more."
            )
        self.seen_ = seen
        return self

    if TYPE_CHECKING:  # scikit-learn's own has no types

        def fit_transform(self, X: ArrayLike, y: object = None, **fit_params: Any) -> np.ndarray:
            """Fit, and return the summaries of the same fields."""

    @property
    def _n_features_out(self) -> int:
        return pooled_dim(self.architecture_.embed_dim, self.pooling_)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Name the features, ``skatrtransformer0`` and so on, as an ndarray of str."""
        self._check_columns()
        return super().get_feature_names_out(input_features)

    def _check_columns(self) -> None:
        self._check_parameters()
        if self.pooling_ == "tokens":
            raise ValueError(
                "pooling='tokens' gives an array of three axes, which has no columns to name: use "
                "another pooling, such as 'slices' or 'mean', or set_output(transform='default')."
            )

    @torch_defaults()
    def as_module(self) -> Summary:
        """Return all from fields in mK to summaries as one torch module, to export or to compile.

        Returns
        -------
        torch.nn.Module
            ``module(fields)`` gives what :meth:`transform` gives, within the rounding of float32,
            for a tensor of fields (n, *field_shape) in mK on the module's device. Its weights are
            a copy, on the CPU and without gradients (``module.requires_grad_(True)`` to train on).
            The number of fields may differ from call to call; their shape is that of ``fit``.

        Examples
        --------
        The program knows nothing of this package; ``torch.onnx.export(program)`` and
        ``torch.compile(module)`` take it as well.

        >>> import torch
        >>> from skatr_sk import SKATRTransformer, load_lightcones
        >>> fields = torch.as_tensor(load_lightcones().data[:4]).float()
        >>> module = SKATRTransformer(weights="mini-lr").fit(fields.numpy()).as_module()
        >>> n = {0: torch.export.Dim("n_lightcones")}
        >>> program = torch.export.export(module, (fields,), dynamic_shapes=(n,))
        >>> program.module()(fields[:3]).shape
        torch.Size([3, 288])
        """
        check_is_fitted(self)
        self._check_parameters()
        sizes = self.architecture_
        known = self.scaling_, sizes.field_shape, sizes.patch_size, self.encoder_
        return Summary(*known, self.pooling_, self.whitening_, sizes.voxels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frozen encoder, its scaling and its history as one safetensors file.

        Parameters
        ----------
        path : path
            Replaced whole or not at all; its folder must exist.

        Warns
        -----
        UserWarning
            When what :meth:`novelty` compares with was learned of another `pooling` or `whiten`,
            and is left out.
        """
        check_is_fitted(self)
        self._check_parameters()  # or a file would be replaced by one that nobody can read
        frozen = self._frozen()
        if self.seen_ is not None and frozen.seen is None:
            warn(
                f"{type(self).__name__}: what novelty compares with was learned of other summaries "
                f"(pooling={self._pooling_found!r}, {'not ' * (self._whitening_found is None)}"
                f"whitened) than those of pooling={self.pooling_!r}, whiten={self.whiten!r}, and "
                f"is left out of {os.fspath(path)!r}; learn_novelty(X) of what is loaded learns it "
                "anew, and save_model keeps it."
            )
        if is_first():
            write_encoder(path, frozen)

    @classmethod
    @torch_defaults()
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
        transformer._check_parameters()
        transformer._warn_without_effect()
        transformer._adopt(frozen)
        transformer.field_shape_in_ = frozen.architecture.field_shape
        transformer.n_features_in_ = transformer.field_shape_in_[0]
        return transformer

    @classmethod
    def published(cls, **parameters: Any) -> Self:
        """Return a transformer with the settings of the paper, which are made for a GPU [1]_.

        They are for the low-resolution light cones of 28 x 28 x 470 cells. On fewer cells, in fewer
        steps or with fewer light cones the defaults of the class are better.

        Parameters
        ----------
        **parameters
            What is to be otherwise, such as ``embed_dim=360``, the width of the paper's summaries,
            or ``patch_size="auto"`` for other grids.

        Returns
        -------
        SKATRTransformer
            Not fitted.

        References
        ----------
        .. [1] Ore, Heneka, Plehn (SKATR), arXiv:2410.18899, section 3 and tables 2 and 3.

        Examples
        --------
        >>> SKATRTransformer.published(random_state=0).max_epochs
        1000
        """
        objective = JEPA(
            masks="multiblock",
            ema_decay=0.9997,
            slice_targets=False,
            regions_weight=0.0,
            predictor_depth=4,
        )
        settings: dict[str, Any] = {
            "patch_size": (4, 4, 10),
            "embed_dim": 144,
            "depth": 4,
            "n_heads": 4,
            "embedding": "linear",
            "pooling": "mean",
            "objective": objective,
            "max_epochs": 1000,
            "batch_size": 64,
            "learning_rate": 1e-3,
            "brightness_range": (-120.0, -1.0),
            "whiten": False,
        }
        settings |= parameters
        if settings["max_epochs"] == 0:  # what is left without effect was not asked for
            idle = cls._of_steps - parameters.keys()
            settings = {name: value for name, value in settings.items() if name not in idle}
        return cls(**settings)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # summaries are float32
        tags.input_tags.three_d_array = True
        if not OBJECTIVE.fault(self.objective) and not self._only_loads:
            tags.target_tags.required = as_objective(self.objective).needs_labels
        return tags
