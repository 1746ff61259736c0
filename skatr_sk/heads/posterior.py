"""PosteriorEstimator: the whole posterior of the parameters, from summaries or light cones."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import kstest, qmc
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags, gen_batches
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skatr_sk._checks import (
    Auto,
    Choice,
    Instance,
    Integer,
    Kind,
    PriorWarning,
    Problems,
    Real,
    Rule,
    ShortTrainingWarning,
    check_options,
    listed,
    parameter_names,
    require,
    shared_docs,
    warn,
    warn_without_effect,
)
from skatr_sk._tensors import copied_module
from skatr_sk.fields import Fields, check_finite_rows, check_numbers
from skatr_sk.heads import export
from skatr_sk.heads.base import FLOATS, HEAD_DOCS, Steps, SummaryHead, are_widths, least_of
from skatr_sk.heads.end_to_end import fit_end_to_end
from skatr_sk.heads.extrapolation import at_the_edges, warn_at_the_edges
from skatr_sk.heads.flow import MAX_BINS, ConditionalFlow, Context, FlowEnsemble
from skatr_sk.heads.networks import pack, pack_backbone, unpack, unpack_backbone
from skatr_sk.heads.npe import CALIBRATIONS, NPELoss
from skatr_sk.heads.prior_transform import Floats, PriorBounds, PriorTransform, check_spread
from skatr_sk.parameters import check_order
from skatr_sk.training.callbacks import cosine_schedule
from skatr_sk.training.device import resolve_device, torch_defaults
from skatr_sk.training.held_out import Given
from skatr_sk.training.progress import watched
from skatr_sk.training.seeds import generator_of
from skatr_sk.training.stored import stored_by_name

__all__ = ["PosteriorEstimator"]

_LOGGER = logging.getLogger("skatr_sk.heads")
_STEPS = 3000  # that a training takes
_WARMUP, _WARMUP_WHOLE = 0.02, 0.1  # share of the steps in which the rate rises
_FEW = 300  # rows under which single simulations are soon fitted
_FEW_FOR_EACH = 4  # rows for each number of a summary, under which they are soon fitted, too
_UNIFORM = 1e-3  # chance of a test under which parameters are not from the prior box
_STILL_FALLING = 0.02  # share of the fall of the loss that the last quarter of the epochs has
_POINTS = 8192  # in one pass of the flow: the memory of a call is bounded by it
_ROWS = 256  # summaries embedded at once
_OF_THE_FLOW = "n_blocks", "n_bins", "hidden_dims", "dropout"
_N_SAMPLES = {"n_samples": Integer(1)}
Seed = int | np.random.RandomState | np.random.Generator | None


class Information(NamedTuple):
    """Mean gain of log density over the prior, and its standard error."""

    nats: float
    standard_error: float


def _are_levels(q: Any) -> bool:
    in_range = (Real("[0, 1]").fault(level) is None for level in np.ravel(q))
    return np.ndim(q) < 2 and np.size(q) > 0 and all(in_range)


@stored_by_name
@shared_docs(**HEAD_DOCS)
@dataclass(kw_only=True, eq=False, repr=False)
class PosteriorEstimator(MultiOutputMixin, RegressorMixin, SummaryHead):
    r"""Estimate posteriors from summaries, or from light cones, with normalising flows.

    Neural posterior estimation [1]_: a conditional flow q(y | summary) is trained by maximum
    likelihood on simulated pairs, :math:`L = -\langle \log q(y | s(x)) \rangle` [2]_. It is
    amortised: after ``fit``, a posterior is a pass of a small network, by default the mean of five.
    Features are standardised inside; parameters, samples and densities are in the parameters' own
    units. With a `backbone` it takes light cones and trains their encoder by the same likelihood:
    what frozen summaries are compared with, or a pre-trained encoder that is fine-tuned.

    Parameters
    ----------
    prior_bounds : array-like of shape (n_parameters, 2), "data" or None, default=None
        Box of a uniform prior, in the parameters' units. Samples lie inside it and the density
        integrates to one in it. None, or ``(-inf, inf)`` for a single parameter, means no bounds.
        "data" takes the range of the training parameters, and beyond each end what as many draws
        from a box leave out, ``1 / (n - 1)`` of it: a truth farther out has no density, so that
        scores on other rows, as in a cross-validation, become -inf. Give the prior where you can.
    parameter_names : sequence of str or None, default=None
        Names of the parameters; None takes the columns of a DataFrame, or "parameter_0", ...
    n_blocks, n_bins : int, default=6 and 10
        Spline coupling blocks of the flow, and bins of a spline.
    hidden_dims : tuple of int, default=(128, 128)
        Widths of the hidden layers of each block's conditioner; at least one.
    {backbone}
    {fine_tuning}
    pooling : {"mean", "attention"}, default="mean"
        Of token summaries ``(n, n_tokens, n_summary)``: their mean, or learned attention. Summaries
        that are pooled already are taken as they are. With a transformer as backbone "mean" leaves
        the pooling to its own, and "attention" takes its tokens.
    dropout : float or "auto", default="auto"
        Share of hidden units of the summary's embedding dropped in training, in [0, 1). "auto" is
        0.3 where fewer than 300 rows train, or fewer than four for each number of a summary, and
        else 0; with a backbone the former counts alone.
    {members}
        "auto" is 5, or 1 with a `calibration_weight` and with a backbone, which takes no more. One
        alone says less, and is sure of too much [4]_.
    calibration_weight : float, default=0.0
        Weight of a penalty on wrong coverage of the training rows [3]_; 0 is plain maximum
        likelihood. Some tens are needed to move an overfitted posterior, at a cost in likelihood
        and of about 17 times the time a step.
    calibration : {"conservative", "symmetric"}, default="conservative"
        Penalise posteriors that are too narrow only, or too wide as well.
    max_epochs : int or "auto", default="auto"
        Passes over the training rows, over which the learning rate falls to zero as a cosine.
        "auto" is as many as 3,000 steps need, but at least 40 and at most 100, or 60 where fewer
        than 300 rows train.
    batch_size : int or "auto", default="auto"
        Rows in a step. "auto" is a fiftieth of those that train, from 32 to 64.
    learning_rate : "auto" or float, default="auto"
        Of AdamW. "auto" is 2e-3, and 1e-3 with a backbone.
    weight_decay : float or "auto", default="auto"
        Of AdamW. It is what keeps a flow from fitting single simulations, and few rows need it
        most, and long summaries: "auto" is 7 times the length of a summary, but at least 400 and at
        most 2,000, over the number of rows that train. Where these are so few that `dropout` helps
        it is 3.5 times the length, from 400 to 1,000, over them; 10 at most, and 0.05 with a
        backbone.
    validation_fraction : float, default=0.1
        {held_out}
    patience : int or None, default=20
        {patience}
    {device}
    precision : {"auto", "float32", "bf16"}, default="auto"
        Of the backbone, the pooling and the embedding; the flow is always in float32.
    {callbacks}
    verbose : int, default=0
        1 shows progress bars, of the training and of long calls.
    {random_state}
    {checkpoint}

    Attributes
    ----------
    net_ : torch.nn.ModuleList
        The trained pooling and flow of each member, on the CPU.
    {backbone_}
    prior_transform_ : PriorTransform
        Map of the parameters to the unbounded, standardised space of the flow and of the losses.
    prior_bounds_ : ndarray of shape (n_parameters, 2)
        Infinite where there are none.
    parameter_names_ : list of str
    n_parameters_ : int
    {learned}
    {history}

    Notes
    -----
    A parameter that is nearer to an edge of its box than 1e-9 of the width counts as that far
    inside: the edge itself then has a finite density, and samples never reach it. Training
    parameters so near to an edge are spread evenly over 1e-7 of the width, for many at one point
    have no density.

    References
    ----------
    .. [1] Papamakarios & Murray, arXiv:1605.06376; Greenberg et al., arXiv:1905.07488.
    .. [2] Ore, Heneka, Plehn, arXiv:2410.18899, section 5 (posteriors from summaries).
    .. [3] Falkiewicz et al., arXiv:2310.13402.
    .. [4] Hermans et al., arXiv:2110.06581 (ensembles of posteriors are better calibrated).

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import PosteriorEstimator
    >>> rng = np.random.default_rng(0)
    >>> y = rng.uniform(0, 1, size=(300, 2))
    >>> summaries = y + 0.1 * rng.normal(size=(300, 2))
    >>> posterior = PosteriorEstimator(
    ...     prior_bounds=[[0, 1], [0, 1]], n_blocks=2, hidden_dims=(16,), max_epochs=10,
    ...     learning_rate=2e-2, random_state=0,
    ... ).fit(summaries, y)
    >>> posterior.sample(summaries[:3], 50, random_state=0).shape
    (3, 50, 2)
    >>> bool(posterior.score(summaries, y) > 0.5)  # the prior's density has log 1 = 0
    True

    From light cones, by a convolutional network that is trained with the flow:

    >>> from skatr_sk import load_lightcones
    >>> cones = load_lightcones()
    >>> joint = PosteriorEstimator(
    ...     backbone="cnn", prior_bounds=cones.target_bounds, max_epochs=1, random_state=0
    ... )
    >>> joint.fit(cones.data[:16], cones.target[:16]).sample(cones.data[:3], 50).shape
    (3, 50, 6)
    """

    prior_bounds: ArrayLike | str | None = None
    parameter_names: Sequence[str] | None = None
    n_blocks: int = 6
    n_bins: int = 10
    dropout: float | str = "auto"
    calibration_weight: float = 0.0
    calibration: str = "conservative"
    max_epochs: int | str = "auto"
    batch_size: int | str = "auto"
    learning_rate: float | str = "auto"  # type: ignore[assignment]
    weight_decay: float | str = "auto"
    patience: int | None = 20

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._parameters,
        "prior_bounds": PriorBounds(),
        "parameter_names": Instance(Iterable, expected="a sequence of strings", optional=True),
        "n_blocks": Integer(1),
        "n_bins": Integer(2, MAX_BINS),
        "hidden_dims": Rule(
            lambda value: are_widths(value) and len(value) > 0,
            "a tuple of at least one integer >= 1",
        ),
        "dropout": Auto(Real("[0, 1)")),
        "batch_size": Auto(Integer(1)),
        "learning_rate": Auto(Real("(0, inf)")),
        "weight_decay": Auto(Real("[0, inf)")),
        "calibration_weight": Real("[0, inf)"),
        "calibration": Choice(*CALIBRATIONS),
    }
    # Without steps each member is the same identity.
    _of_steps = SummaryHead._of_steps | {"calibration_weight", "n_members"}

    _learned: ClassVar[Mapping[str, Kind]] = {
        **SummaryHead._learned,
        "net_": Instance(FlowEnsemble, expected="flows"),
        "prior_transform_": Instance(PriorTransform, expected="a transform"),
        "prior_bounds_": PriorBounds(optional=False),
        "parameter_names_": Instance(list, expected="a list of strings"),
        "n_parameters_": Integer(1),
    }

    @property
    def _pooled_by(self) -> str:
        found: str = getattr(getattr(self, "backbone_", None), "_pooling_found", "tokens")
        flow = cast(ConditionalFlow, self.net_[0])
        return "tokens" if flow.sizes["pooling"] == "attention" else found

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        n, transform = self.n_parameters_, self.prior_transform_
        parameter_names(self.parameter_names_, None, n)
        problems.check(
            {"bounds": PriorBounds(n), "mean": FLOATS, "scale": FLOATS}, transform, "of transform: "
        )
        problems.raise_if_any()
        right = transform.mean.shape == transform.scale.shape == (n,) and transform.scale.min() > 0
        if not right or not np.array_equal(transform.bounds, self.prior_bounds_):
            wanted = f"bounds, a mean and a scale > 0 of each of {n} parameters"
            problems.add("prior_transform_", wanted, transform)
        found = cast(ConditionalFlow, self.net_[0]).sizes
        wanted_sizes = {"n_summary": self._n_summary, "n_parameters": n}
        for name, wanted_size in wanted_sizes.items():
            if found[name] != wanted_size:
                problems.add(f"{name} of net_", str(wanted_size), found[name])
        if self._one_dimensional and n != 1:
            problems.add("n_parameters_", "1, as the targets were 1-D", n)

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._pack(state)
        if "net_" in state:
            state["net_"] = pack(state["net_"])
            state["prior_transform_"] = asdict(state["prior_transform_"])
            state["backbone_"] = pack_backbone(state.get("backbone_"))
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._unpack(state)
        if isinstance(state.get("net_"), dict):
            state["net_"] = unpack(state["net_"], of_flows=True)
            state["prior_transform_"] = PriorTransform(**state["prior_transform_"])
            state["backbone_"] = unpack_backbone(state.get("backbone_"))
        return state

    def _auto(self, n_rows: int) -> dict[str, Any]:
        batch_size = min(max(n_rows // 50, 32), 64)
        given = batch_size if isinstance(self.batch_size, str) else self.batch_size
        epochs = math.ceil(_STEPS / math.ceil(n_rows / given))
        few, whole = n_rows < _FEW, self.backbone is not None
        n_summary = 0 if whole else getattr(self, "field_shape_in_", (0,))[-1]
        drops = few or n_rows < _FEW_FOR_EACH * n_summary
        decay = max(400, min(3.5 * n_summary, 1000) if drops else min(7 * n_summary, 2000))
        return {
            "batch_size": batch_size,
            "max_epochs": min(max(epochs, 40), 60 if few else 100),
            "learning_rate": 1e-3 if whole else 2e-3,
            "weight_decay": 0.05 if whole else min(decay / n_rows, 10.0),
            "n_members": 1 if whole or self.calibration_weight or self.max_epochs == 0 else 5,
            "dropout": 0.3 if drops else 0.0,
        }

    def _warn_without_effect(self) -> None:
        super()._warn_without_effect()
        if self.calibration_weight == 0:
            warn_without_effect(self, {"calibration"}, "calibration_weight=0")

    def _fit(self, X: ArrayLike, y: ArrayLike, given: Given) -> Steps[None]:
        whole = self.backbone is not None
        fields, targets, rows = self._check_training_data(X, y, given, of_fields=whole)
        pooling = self._pooling_of(fields)
        n_parameters = targets.shape[1]
        names = self._names_of(self.parameter_names, y, targets, given)
        bounds = self._check_bounds("prior_bounds", PriorBounds(n_parameters), targets, names, rows)
        if bounds is None:
            bounds = np.tile([-np.inf, np.inf], (n_parameters, 1))
        check_spread(targets, names, bounds)
        if len(targets) < 3 and self.validation_fraction > 0 and not rows.n_given:
            raise ValueError(
                "X: expected at least 3 rows, to train and to validate, found n_samples="
                f"{len(targets)} with validation_fraction={self.validation_fraction}; give "
                "more rows, or validation_fraction=0."
            )
        runs = self._runs(fields, rows)
        transform = PriorTransform.learn(targets, bounds)
        free, _ = transform.to_free(transform.off_edges(targets, seed=runs[0][1]))
        resolved = self._resolved(least_of(runs))
        sizes = {name: getattr(resolved, name) for name in _OF_THE_FLOW}
        build = partial(ConditionalFlow, n_parameters, pooling=pooling, **sizes)
        loss = NPELoss(self.calibration_weight, self.calibration)
        schedule = partial(cosine_schedule, warmup=_WARMUP_WHOLE if whole else _WARMUP)
        data = fields, free
        if whole:
            network = build, loss
            together = fit_end_to_end(self, (*data, rows), runs[0], network, schedule=schedule)
            flows = [cast(ConditionalFlow, together.head)]
        else:
            alone = partial(build, fields.shape[-1]), loss
            flows = yield from self._train_on_summaries(alone, data, runs, rows, schedule=schedule)
        self._warn_of_short_training(int(resolved.max_epochs))
        self.net_ = FlowEnsemble(flows)
        self.prior_transform_, self.prior_bounds_ = transform, transform.bounds.copy()
        self.parameter_names_, self.n_parameters_ = names, n_parameters

    def _warn_of_short_training(self, max_epochs: int) -> None:
        """Warn where the last epoch allowed is the best of a member, and by more than chance."""
        for row in self.history_:
            if not row["kept"] or row["epoch"] < max_epochs or "valid_loss" not in row:
                continue
            member = row.get("member")
            losses = [r["valid_loss"] for r in self.history_ if r.get("member") == member]
            late = min(losses[: max(1, 3 * max_epochs // 4)]) - losses[-1]
            if max_epochs > 1 and late > _STILL_FALLING * (losses[0] - losses[-1]):
                warn(
                    f"PosteriorEstimator: the last of {max_epochs} epochs is the best, and the "
                    "validation loss was still falling; raise max_epochs, or lower batch_size for "
                    "more steps.",
                    ShortTrainingWarning,
                )
                return

    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[False] = False, *, n_samples: int = 512
    ) -> np.ndarray: ...
    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[True], *, n_samples: int = 512
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @torch_defaults()
    def predict(
        self, X: ArrayLike, return_std: bool = False, *, n_samples: int = 512
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict the mean of the posterior, from quasi-random samples that never change.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
            With a backbone fields of the shape seen in ``fit``, in mK; so in all calls.
        return_std : bool, default=False
            Also return the standard deviation of the posterior.
        n_samples : int, default=512
            Points for each posterior, or a few more: each flow has a power of two. Moments are
            closer to those of the flows than moments of 1,000 samples are. Where a posterior is
            far narrower than the prior, few points far out make most of its standard deviation,
            which for single rows can be off by a tenth or more; 16,384 points are within some
            percent.

        Returns
        -------
        mean : ndarray of shape (n,) or (n, n_parameters), float64
            In the shape of the targets of ``fit``.
        std : ndarray of the same shape
            Only with `return_std`.
        """
        points = self._fixed_points(X, n_samples)
        moments = [(part.mean(axis=1), part.std(axis=1)) for part in points]
        mean, std = (self._shaped(np.concatenate(each)) for each in zip(*moments, strict=True))
        return (mean, std) if return_std else mean

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Mean log density of the true parameters, in the units of y: larger is better.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,) or (n, n_parameters)
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        float
            -inf where a row of `y` lies outside the prior box, with a ``PriorWarning`` that names
            the first of them.
        """
        log_prob = self._log_prob_of_truths(X, y)
        weights = _check_sample_weight(sample_weight, log_prob, ensure_non_negative=True)
        if not weights.any():
            raise ValueError(
                "sample_weight: expected a row that counts, found zeros alone; leave it out to "
                "count all rows alike."
            )
        counted = weights > 0  # a row that does not count may lie outside the box
        _warn_outside(log_prob, counted)
        return float(np.average(log_prob[counted], weights=weights[counted]))

    def information(self, X: ArrayLike, y: ArrayLike) -> Information:
        r"""Measure how much the summaries tell of the parameters, in nats.

        The mean log density of the true parameters less that of the prior,
        :math:`\langle \log q(y | s(x)) - \log p(y) \rangle`. It is a lower bound of the mutual
        information between parameters and light cones, in the mean over rows that are drawn from
        the prior and did not train (Barber & Agakov, NeurIPS 2003), and does not depend on units:
        0 is what the prior tells, and log 2 = 0.69 nats halve the volume of parameters that is
        left.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,) or (n, n_parameters)

        Returns
        -------
        nats, standard_error : float
            The mean, which is -inf where :meth:`score` is, and its standard error, which is that of
            a finite number of rows, and nan for a single one or a mean of -inf.

        Raises
        ------
        ValueError
            When a parameter has no `prior_bounds`: there is no prior density then. That of the
            training parameters would have to be estimated, and the estimate's error would be taken
            for information.

        Warns
        -----
        PriorWarning
            When parameters are outside the box, or not uniform in it, as a Kolmogorov-Smirnov test
            finds: then the box is not their prior, and what it lacks counts as information.

        Examples
        --------
        >>> import numpy as np
        >>> from skatr_sk import PosteriorEstimator
        >>> rng = np.random.default_rng(0)
        >>> y = rng.uniform(size=200)
        >>> X = np.stack([y + 0.1 * rng.normal(size=200), rng.normal(size=200)], axis=1)
        >>> posterior = PosteriorEstimator(prior_bounds=[[0, 1]], n_blocks=1, max_epochs=10,
        ...                                batch_size=32, random_state=0).fit(X, y)
        >>> nats, error = posterior.information(X, y)
        >>> bool(0.4 < nats < 1.2), bool(error < 0.1)
        (True, True)
        """
        check_is_fitted(self)
        bounded = self.prior_transform_.bounded
        if not bounded.all():
            without = [self.parameter_names_[i] for i in np.flatnonzero(~bounded)]
            raise ValueError(
                "prior_bounds: expected a box for every parameter, in which its prior is uniform, "
                f"found none for {listed(without)}; fit again with the bounds of the prior that y "
                "was drawn from."
            )
        log_prob = self._log_prob_of_truths(X, y)
        _warn_outside(log_prob)
        self._warn_of_another_prior(y)
        gain = log_prob + np.log(np.ptp(self.prior_bounds_, axis=1)).sum()
        finite = len(gain) > 1 and np.isfinite(gain).all()
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if finite else np.nan
        return Information(float(gain.mean()), float(error))

    def _warn_of_another_prior(self, y: ArrayLike) -> None:
        """Warn where parameters are not uniform in the box, by more than chance."""
        low, high = self.prior_bounds_.T
        shares = (np.asarray(y, dtype=np.float64).reshape(-1, len(low)) - low) / (high - low)
        chances = np.array([kstest(share, "uniform").pvalue for share in shares.T])
        if (wrong := np.flatnonzero(chances < _UNIFORM / len(chances))).size:
            warn(
                f"y: expected parameters drawn uniformly from the prior box, found others in "
                f"{listed([self.parameter_names_[i] for i in wrong])} (Kolmogorov-Smirnov test); "
                "what they lie in less than all of it counts as information: give the bounds of "
                "their prior, or compare the log densities of score.",
                PriorWarning,
            )

    def _log_prob_of_truths(self, X: ArrayLike, y: ArrayLike) -> Floats:
        """Log density of one set of parameters for each row."""
        log_prob = self.log_prob(X, y)
        if log_prob.ndim > 1:
            raise ValueError(
                f"y: expected one truth for each row of X, found shape {np.shape(y)}; log_prob "
                "takes several."
            )
        return log_prob

    @torch_defaults()
    def log_prob(self, X: ArrayLike, y: ArrayLike) -> Floats:
        """Log density of parameters given summaries, in the units of y.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,), (n, n_parameters) or (n, n_samples, n_parameters)
            One set of parameters for each row of X, or several, as :meth:`sample` returns them.

        Returns
        -------
        ndarray of shape (n,) or (n, n_samples), float64
            -inf outside the prior box.
        """
        summaries = self._check_rows(X)
        given = self._check_points(y, summaries.shape[0])
        points = given[:, np.newaxis] if given.ndim == 2 else given
        log_prob = np.empty(points.shape[:2])
        for at, context, flow in self._passes(summaries, points.shape[1], double=True):
            free, log_jacobian = self.prior_transform_.to_free(points[at])
            inputs = torch.from_numpy(free).to(context.shift.device)
            found = flow.log_prob(inputs, context).cpu().numpy()
            inside = ~np.isneginf(log_jacobian)
            self._check_found(np.where(inside, found, 0.0), summaries, "density", at[0].start)
            log_prob[at] = found + log_jacobian
        return log_prob[:, 0] if given.ndim == 2 else log_prob

    def sample(self, X: ArrayLike, n_samples: int = 1000, *, random_state: Seed = None) -> Floats:
        """Draw from the posterior of each row of X.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        n_samples : int, default=1000
            For each row.
        random_state : int, RandomState, Generator or None, default=None
            None draws anew in every call.

        Returns
        -------
        ndarray of shape (n, n_samples, n_parameters), float64
            In the parameters' units; strictly inside the prior box.

        Warns
        -----
        NeverSeenWarning
            When summaries lie far outside those of ``fit``. So do all other methods that take them.
        ExtrapolationWarning
            When a fifth of the posteriors, and at least five, have most of their samples within
            1 % of an edge of the prior box.
        """
        return self._draw(X, n_samples, random_state, densities=False)[0]

    def sample_log_prob(
        self, X: ArrayLike, n_samples: int = 1000, *, random_state: Seed = None
    ) -> tuple[Floats, Floats]:
        """Draw from the posterior of each row of X, with the log densities, in one pass.

        Parameters
        ----------
        X, n_samples, random_state
            As for :meth:`sample`.

        Returns
        -------
        samples : ndarray of shape (n, n_samples, n_parameters), float64
        log_prob : ndarray of shape (n, n_samples), float64
            What :meth:`log_prob` gives at the samples, within the rounding of float32. Every
            member is asked for it, so that samples alone take a fraction of the time.
        """
        return self._draw(X, n_samples, random_state, densities=True)

    @torch_defaults()
    def _draw(
        self, X: ArrayLike, n_samples: int, random_state: Seed, *, densities: bool
    ) -> tuple[Floats, Floats]:
        """Draw samples, with their log densities where `densities` says so, and else zeros.

        Rows with samples beyond an edge are asked for them anyway: where there are none, the flow
        has made nothing of the row.
        """
        summaries = self._check_rows(X)
        check_options("PosteriorEstimator", _N_SAMPLES, {"n_samples": n_samples})
        generator = generator_of(random_state)
        samples = np.empty((summaries.shape[0], n_samples, self.n_parameters_))
        log_prob = np.zeros(samples.shape[:2])
        piled: list[NDArray[np.bool_]] = []
        whose = np.zeros(samples.shape[:2], dtype=np.int64)
        if len(self.net_) > 1:
            # From draws of their own: the noise of a row does not depend on the rows after it.
            choices = np.random.default_rng(generator.integers(2**63))
            whose[...] = choices.integers(len(self.net_), size=whose.shape)
        for at, context, flow in self._passes(summaries, n_samples, double=False):
            shape = samples[at].shape
            # Row by row, so that the batches leave no trace in the numbers drawn.
            noise = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
            device = context.shift.device
            given = noise.to(device), context, torch.from_numpy(whose[at]).to(device)
            if densities:
                free, log_free = flow.sample_and_log_prob(*given)
            else:
                free = flow.sample(*given)
                log_free = free.new_zeros(free.shape[:2])
            points = free.double().cpu().numpy()
            samples[at] = self.prior_transform_.from_free(points)
            if (moved := self.prior_transform_.beyond_edge(points).any(axis=1)).any():
                # What was moved away from an edge has the density of its new position, if any.
                rows = torch.from_numpy(np.flatnonzero(moved)).to(device)
                again, _ = self.prior_transform_.to_free(samples[at][moved])
                of_rows = Context(*(part[:, rows] for part in context))
                log_free[rows] = flow.log_prob(torch.from_numpy(again).to(free), of_rows)
            log_found = log_free.double().cpu().numpy()
            # In a box samples are finite whatever the flow has made of a row: these are not.
            for found in (points, samples[at], log_found):
                self._check_found(found, summaries, "density", at[0].start)
            if densities:
                log_prob[at] = log_found + self.prior_transform_.to_free(samples[at])[1]
            if at[1].stop == n_samples:
                piled.append(at_the_edges(samples[at[0]], self.prior_bounds_))
        self._warn_of_edges(piled)
        return samples, log_prob

    def _warn_of_edges(self, piled: list[NDArray[np.bool_]]) -> None:
        warn_at_the_edges("PosteriorEstimator", np.concatenate(piled), self.parameter_names_)

    @torch_defaults()
    def predict_quantiles(
        self, X: ArrayLike, q: ArrayLike = (0.16, 0.5, 0.84), *, n_samples: int = 512
    ) -> np.ndarray:
        """Predict marginal quantiles of the posterior, from the same points as ``predict``.

        Parameters
        ----------
        X, n_samples
            As for :meth:`predict`.
        q : float or array-like of shape (n_quantiles,), default=(0.16, 0.5, 0.84)
            In [0, 1].

        Returns
        -------
        ndarray of shape (n, n_quantiles, n_parameters)
            Without the axis of quantiles for a single number `q`, and without that of parameters
            for 1-D targets.
        """
        kind = Rule(_are_levels, "a number in [0, 1] or a list of such")
        check_options("PosteriorEstimator", {"q": kind}, {"q": q})
        levels = np.asarray(q, dtype=np.float64)
        parts = [np.quantile(part, levels, axis=1) for part in self._fixed_points(X, n_samples)]
        quantiles = np.concatenate(parts, axis=levels.ndim)
        return self._shaped(np.moveaxis(quantiles, 0, 1) if levels.ndim else quantiles)

    def to_dict(
        self, X: ArrayLike, n_samples: int = 1000, *, random_state: Seed = None
    ) -> dict[str, Floats]:
        """Draw samples as plain arrays, one of shape (n, n_samples) for each parameter's name.

        Of one light cone, ``{name: draws[0] for name, draws in head.to_dict(X).items()}`` is what
        pandas.DataFrame takes, and with it ChainConsumer.
        """
        samples = self.sample(X, n_samples, random_state=random_state)
        return {name: samples[:, :, i] for i, name in enumerate(self.parameter_names_)}

    def to_arviz(self, X: ArrayLike, n_samples: int = 1000, *, random_state: Seed = None) -> Any:
        """Draw samples for ArviZ: one chain, with the dimension ``lightcone``.

        An InferenceData, or since ArviZ 1 a DataTree, with the groups ``posterior`` and
        ``sample_stats``. Needs arviz: ``pip install "skatr_sk[arviz]"``.
        """
        require("arviz", "PosteriorEstimator.to_arviz")  # before the work
        samples, log_prob = self.sample_log_prob(X, n_samples, random_state=random_state)
        return export.to_arviz(samples, log_prob, self.parameter_names_)

    def to_getdist(
        self, X: ArrayLike, n_samples: int = 1000, *, random_state: Seed = None
    ) -> list[Any]:
        """Draw samples as one GetDist MCSamples for each row of X, with the prior's ranges.

        Labels of the standard parameters are their symbols and units. Needs getdist:
        ``pip install "skatr_sk[getdist]"``.
        """
        require("getdist", "PosteriorEstimator.to_getdist")
        samples, log_prob = self.sample_log_prob(X, n_samples, random_state=random_state)
        return export.to_getdist(samples, log_prob, self.parameter_names_, self.prior_bounds_)

    def _fixed_points(self, X: ArrayLike, n_samples: int) -> Iterator[Floats]:
        """Yield points of the posteriors, some rows at a time: (rows, n_samples, n_parameters).

        All rows share one set of quasi-random noise, so that what is made of the points neither
        changes from call to call nor depends on the rows beside.
        """
        summaries = self._check_rows(X)
        check_options("PosteriorEstimator", _N_SAMPLES, {"n_samples": n_samples})
        sobol = qmc.Sobol(self.n_parameters_, rng=np.random.default_rng(0))
        # Each member has points that follow each other, a power of two: these are evenly spread.
        own = 1 << (math.ceil(n_samples / len(self.net_)) - 1).bit_length()
        n_samples = own * len(self.net_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # all of them are no power of two
            noise = torch.from_numpy(ndtri(np.clip(sobol.random(n_samples), 1e-9, 1 - 1e-9)))
        whose = torch.arange(len(self.net_)).repeat_interleave(own)
        parts: list[Floats] = []
        piled: list[NDArray[np.bool_]] = []
        for (rows, columns), context, flow in self._passes(summaries, n_samples, double=True):
            device, n = context.shift.device, context.shift.shape[1]
            inputs = noise[columns].to(device).expand(n, -1, -1)
            drawn_from = whose[columns].to(device).expand(n, -1)
            free = flow.sample(inputs, context, drawn_from)
            points = self.prior_transform_.from_free(free.cpu().numpy())
            parts.append(self._check_found(points, summaries, "posterior", rows.start))
            if columns.stop == n_samples:
                whole, parts = np.concatenate(parts, axis=1), []
                piled.append(at_the_edges(whole, self.prior_bounds_))
                yield whole
        self._warn_of_edges(piled)

    def _passes(
        self, summaries: Fields, n_samples: int, *, double: bool
    ) -> Iterator[tuple[tuple[slice, slice], Context, FlowEnsemble]]:
        """Yield the batches of a call: rows and columns, their context, and the flows.

        The context, one small pass a row, is always computed in double precision.
        """
        device = resolve_device(self.device)
        precise = copied_module(self.net_).to(device).double()
        if double:
            flow = precise
        elif device.type == "cpu":
            flow = self.net_
        else:  # the fitted one stays where it is
            flow = copied_module(self.net_).to(device)
        n_rows = min(_ROWS, max(1, _POINTS // n_samples))
        options: Any = {"verbose": self.verbose, "logger": _LOGGER}
        n = summaries.shape[0]
        with watched("posterior", n, "row", **options) as tell, torch.inference_mode():
            for rows, batch in self._batches(summaries, n_rows):
                context = precise.context(batch.to(device))
                if not double:
                    context = Context(*(part.float() for part in context))
                for columns in gen_batches(n_samples, _POINTS):
                    yield (rows, columns), context, flow
                tell(len(batch))

    def _check_points(self, y: ArrayLike, n: int) -> Floats:
        """Parameters as (n, n_parameters) or (n, n_samples, n_parameters), float64."""
        if y is None:
            raise ValueError("y: expected the parameters of each row of X, found None; hand in y.")
        check_order("y", y, self.parameter_names_)
        y = np.asarray(check_numbers(y, "y"), dtype=np.float64)
        check_finite_rows(y, "y", "values")
        points = y[:, np.newaxis] if y.ndim == 1 else y
        shaped = points.ndim in (2, 3) and points.shape[-1] == self.n_parameters_
        if not shaped or len(points) != n or 0 in points.shape:
            raise ValueError(
                f"y: expected shape ({n}, {self.n_parameters_}) or ({n}, n_samples, "
                f"{self.n_parameters_}), found {y.shape}; give parameters for each row of X, in "
                "the order of fit."
            )
        return points

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # The score is a log density, in units: no bound on it makes a good one.
        tags.regressor_tags.poor_score = True
        return tags


def _warn_outside(log_prob: Floats, counted: np.ndarray | Literal[True] = True) -> None:
    """Warn of rows that count and have no density."""
    outside = np.flatnonzero(np.isneginf(log_prob) & counted)
    if outside.size:
        warn(
            f"y: expected parameters inside the prior box, found others in {outside.size} of "
            f"{len(log_prob)} rows, the first of them {listed(outside[:5])}, where the density "
            "is zero and its logarithm, and the mean, -inf; give the bounds of the prior that y "
            "was drawn from: prior_bounds='data' are those of the training rows alone.",
            PriorWarning,
        )
