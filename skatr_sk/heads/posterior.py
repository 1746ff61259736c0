"""PosteriorEstimator: the whole posterior of the parameters from summaries."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight

from skatr_sk._checks import (
    Choice,
    Integer,
    Problems,
    Real,
    parameter_names,
    unchanged_on_error,
)
from skatr_sk.heads._base import SummaryHead, check_inside
from skatr_sk.heads._draws import PosteriorDraws, check_order
from skatr_sk.heads.flow import MAX_BINS
from skatr_sk.heads.npe import CALIBRATIONS, NPELoss, PosteriorNet
from skatr_sk.heads.space import ParameterSpace, check_prior_bounds, check_spread
from skatr_sk.training.callbacks import cosine_schedule
from skatr_sk.training.estimator import with_callbacks

__all__ = ["PosteriorEstimator"]


class PosteriorEstimator(PosteriorDraws, MultiOutputMixin, RegressorMixin, SummaryHead):
    r"""Estimate posteriors of the parameters from summaries with a normalising flow.

    Neural posterior estimation [1]_: a conditional flow q(y | summary) is trained by maximum
    likelihood on simulated pairs, :math:`L = -\langle \log q(y | s(x)) \rangle` [2]_. It is
    amortised: after ``fit``, a posterior is one pass of a small network. Features are standardised
    inside; parameters, samples and densities are in the parameters' own units.

    Parameters
    ----------
    prior_bounds : array-like of shape (n_parameters, 2), "data" or None, default=None
        Box of a uniform prior, in the parameters' units. Samples lie inside it and the density
        integrates to one in it. None, or ``(-inf, inf)`` for a single parameter, means no bounds.
        "data" takes the range of the training parameters: a truth beyond it has no density, so that
        scores on other rows, as in a cross-validation, become -inf. Give the prior where you can.
    parameter_names : sequence of str or None, default=None
        Names of the parameters; None takes the columns of a DataFrame, or "parameter_0", ...
    n_blocks, n_bins : int, default=6 and 10
        Spline coupling blocks of the flow, and bins of a spline.
    hidden_dims : tuple of int, default=(128, 128)
        Widths of the hidden layers of each block's conditioner; at least one.
    pooling : {"mean", "attention"}, default="mean"
        Of token summaries ``(n, n_tokens, n_summary)``: their mean, or learned attention. Summaries
        that are pooled already count as one token.
    dropout : float, default=0.2
        Share of hidden units of the summary's embedding dropped in training, in [0, 1). Long and
        noisy summaries need it; for a few informative ones 0.05 gives sharper posteriors.
    calibration_weight : float, default=0.0
        Weight of a penalty on wrong coverage of the training rows [3]_; 0 is plain maximum
        likelihood. Some tens are needed to move an overfitted posterior, at a cost in likelihood
        and of about 17 times the time a step.
    calibration : {"conservative", "symmetric"}, default="conservative"
        Penalise posteriors that are too narrow only, or too wide as well.
    max_epochs : int, default=30
        Passes over the training rows, over which the learning rate falls to zero as a cosine.
    batch_size : int, default=128
        Rows in a step. With a few hundred rows, 32 and more epochs.
    learning_rate, weight_decay : float, default=2e-3 and 1.0
        Of AdamW. The strong decay is what keeps a flow from fitting single simulations.
    validation_fraction : float, default=0.1
        Share of the rows, in [0, 1), that decide when to stop; chosen by their content. 0 trains
        for `max_epochs`.
    patience : int or None, default=20
        Epochs without a better validation loss before the training stops; the best epoch's
        weights are kept. None keeps the last.
    device : str, default="auto"
        Where to train and sample; "auto" is CUDA when there is one.
    precision : {"auto", "float32", "bf16"}, default="auto"
        Of the pooling and the embedding; the flow is always in float32.
    callbacks : list of skorch callbacks or None, default=None
        Called during the training, after the estimator's own.
    verbose : int, default=0
        1 shows progress bars.
    random_state : int, RandomState instance or None, default=None
        Fixes weights, batches, dropout and the validation split.

    Attributes
    ----------
    net_ : torch.nn.Module
        The trained pooling and flow, on the CPU.
    space_ : ParameterSpace
        Map of the parameters to the unbounded space of the flow.
    prior_bounds_ : ndarray of shape (n_parameters, 2)
        Infinite where there are none.
    parameter_names_ : list of str
    n_parameters_ : int
    summary_mean_, summary_scale_ : ndarray of shape (n_summary,)
        Of the features, of tokens over all of them.
    field_shape_in_ : tuple of int
        Shape of one summary.
    history_ : list of dict
        One an epoch: ``epoch, train_loss, valid_loss, seconds``. Losses are of the unbounded,
        standardised parameters.
    n_features_in_ : int
        Length of a summary, or the number of tokens.
    feature_names_in_ : ndarray of str
        Names of the features, where the input had names.

    Notes
    -----
    Within 1e-9 of the box's width from an edge a parameter counts as that far inside: the edge
    itself has finite density, and samples never reach it. Training parameters so near to an edge
    are spread over a sliver of 1e-7 of the width: a heap at one point has no density.

    References
    ----------
    .. [1] Papamakarios & Murray, arXiv:1605.06376; Greenberg et al., arXiv:1905.07488.
    .. [2] Ore, Heneka, Plehn, arXiv:2410.18899, section 5 (posteriors from summaries).
    .. [3] Falkiewicz et al., arXiv:2310.13402.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import PosteriorEstimator
    >>> rng = np.random.default_rng(0)
    >>> y = rng.uniform(0, 1, size=(300, 2))
    >>> summaries = y + 0.1 * rng.normal(size=(300, 2))
    >>> posterior = PosteriorEstimator(
    ...     prior_bounds=[[0, 1], [0, 1]], n_blocks=2, hidden_dims=(16,), max_epochs=20,
    ...     learning_rate=1e-2, random_state=0,
    ... ).fit(summaries, y)
    >>> posterior.sample(summaries[:3], 50, random_state=0).shape
    (3, 50, 2)
    >>> bool(posterior.score(summaries, y) > 0.5)  # the prior's density has log 1 = 0
    True
    """

    def __init__(
        self,
        *,
        prior_bounds: ArrayLike | str | None = None,
        parameter_names: Sequence[str] | None = None,
        n_blocks: int = 6,
        n_bins: int = 10,
        hidden_dims: tuple[int, ...] = (128, 128),
        pooling: str = "mean",
        dropout: float = 0.2,
        calibration_weight: float = 0.0,
        calibration: str = "conservative",
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        weight_decay: float = 1.0,
        validation_fraction: float = 0.1,
        patience: int | None = 20,
        device: str = "auto",
        precision: str = "auto",
        callbacks: Sequence[Any] | None = None,
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prior_bounds = prior_bounds
        self.parameter_names = parameter_names
        self.n_blocks = n_blocks
        self.n_bins = n_bins
        self.hidden_dims = hidden_dims
        self.pooling = pooling
        self.dropout = dropout
        self.calibration_weight = calibration_weight
        self.calibration = calibration
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.precision = precision
        self.callbacks = callbacks
        self.verbose = verbose
        self.random_state = random_state

    @with_callbacks
    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the flow.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        y : array-like of shape (n,) or (n, n_parameters)
            Drawn from the prior, in the parameters' own units.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or data are not as expected (`y` outside the prior box, a parameter
            that never varies, too few rows to split); nothing is changed then.
        """
        with unchanged_on_error(self):
            self._fit(X, y)
        return self

    def _fit(self, X: ArrayLike, y: ArrayLike) -> None:
        self._check_parameters(None)
        summaries, given = self._check_training_data(X, y)
        targets = given.reshape(len(given), -1)
        bounds = self._check_parameters(targets)
        names = parameter_names(self.parameter_names, y, targets.shape[1])
        check_order(y, names)
        if bounds is not None:
            check_inside(targets, bounds, "prior_bounds")
        check_spread(targets, names, bounds)
        if len(targets) < 3 and self.validation_fraction > 0:
            raise ValueError(
                f"n_samples={len(targets)} rows cannot be split into training and validation: "
                f"at least 3 are needed with validation_fraction={self.validation_fraction}. "
                "Give more rows, or validation_fraction=0."
            )
        train_rows, valid_rows, seed = self._split(summaries)
        space = ParameterSpace.learn(targets, bounds)

        def build() -> PosteriorNet:
            return PosteriorNet(
                targets.shape[1],
                summaries.shape[-1],
                pooling=self.pooling,
                n_blocks=self.n_blocks,
                n_bins=self.n_bins,
                hidden_dims=self.hidden_dims,
                dropout=self.dropout,
            )

        criterion = NPELoss(self.calibration_weight, self.calibration)
        free, _ = space.to_free(space.off_edges(targets, seed))
        self.net_ = self._train(
            build,
            criterion,
            summaries,
            free,
            train_rows,
            valid_rows,
            seed,
            schedule=lambda progress: cosine_schedule(progress, warmup=0.02),
        )
        self.space_ = space
        self.prior_bounds_ = space.bounds
        self.parameter_names_ = names
        self.n_parameters_ = targets.shape[1]
        self._one_dimensional = given.ndim == 1

    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[False] = False, *, n_samples: int = 512
    ) -> np.ndarray: ...
    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[True], *, n_samples: int = 512
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def predict(
        self, X: ArrayLike, return_std: bool = False, *, n_samples: int = 512
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict the mean of the posterior, from quasi-random samples that never change.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
        return_std : bool, default=False
            Also return the standard deviation of the posterior.
        n_samples : int, default=512
            Points for each posterior; powers of two serve best.

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
            -inf where a row of `y` lies outside the prior box, with a warning that names it.
        """
        log_prob = self.log_prob(X, y)
        if log_prob.ndim > 1:
            raise ValueError(f"y must hold one truth for each row of X, found {np.shape(y)}.")
        weights = _check_sample_weight(sample_weight, log_prob, ensure_non_negative=True)
        if not weights.any():
            raise ValueError("sample_weight is zero in every row: at least one must count.")
        counted = weights > 0  # a row that does not count may lie outside the box
        self._warn_outside(np.where(counted, log_prob, 0.0))
        return float(np.average(log_prob[counted], weights=weights[counted]))

    def _check_parameters(self, targets: np.ndarray | None) -> np.ndarray | None:
        """Check the constructor's parameters; return the prior's bounds, or None."""
        problems = Problems(type(self).__name__)
        self._check_head(problems)
        if isinstance(self.hidden_dims, Sequence) and len(self.hidden_dims) == 0:
            problems.add("hidden_dims", "at least one width", self.hidden_dims)
        problems.check({"n_blocks": Integer(1)}, {"n_blocks": self.n_blocks})
        problems.check({"n_bins": Integer(2)}, {"n_bins": self.n_bins})
        if isinstance(self.n_bins, Integral) and self.n_bins > MAX_BINS:
            problems.add("n_bins", f"at most {MAX_BINS} bins", self.n_bins)
        problems.check(
            {"calibration_weight": Real("[0, inf)")},
            {"calibration_weight": self.calibration_weight},
        )
        problems.check({"calibration": Choice(*CALIBRATIONS)}, self)
        bounds = check_prior_bounds(problems, self.prior_bounds, targets)
        problems.raise_if_any()
        return bounds

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # The score is a log density, in units: no bound on it makes a good one.
        tags.regressor_tags.poor_score = True
        return tags
