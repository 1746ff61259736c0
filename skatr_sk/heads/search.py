"""HeadSearchCV: a grid search over the hyper-parameters of a head, all of it trained at once."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils import Tags, _safe_indexing, get_tags, indexable
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _num_samples

from skatr_sk._checks import Problems, spell
from skatr_sk.heads.base import Steps, SummaryHead
from skatr_sk.heads.end_to_end import standing_for
from skatr_sk.heads.prepared import Fold, Prepared, identity_of_parameters, offering, sharing
from skatr_sk.heads.together import Planned, Trained, train_those_together
from skatr_sk.training.device import torch_defaults
from skatr_sk.training.held_out import Given

__all__ = ["HeadSearchCV"]

_LOGGER = logging.getLogger("skatr_sk.heads")


class _Begun(NamedTuple):
    """A fit that waits for its networks to be trained."""

    head: SummaryHead
    fold: int
    identity: str  # of its parameters
    steps: Steps[None]
    planned: list[Planned]


class HeadSearchCV(GridSearchCV):
    """Search the hyper-parameters of a head on frozen summaries, all candidates and folds at once.

    It is :class:`sklearn.model_selection.GridSearchCV`, with its attributes and scores, for a
    :class:`LightconeRegressor` or :class:`PosteriorEstimator`. Networks of one layout
    (`hidden_dims`, `batch_size`, ...) are trained together, whatever their `learning_rate`,
    `weight_decay`, `max_epochs`, `patience` or `dropout` above zero, each with its own seeds: the
    scores are those of a ``GridSearchCV`` up to the rounding of a training. What cannot be trained
    together (a `backbone`, a `head` or `loss` of one's own, attention to tokens, `callbacks`,
    `checkpoint_dir`) is fitted one by one; the logger ``skatr_sk.heads`` says at INFO why. With
    `verbose` of the head a bar shows for all that train at once.

    Parameters
    ----------
    estimator : LightconeRegressor or PosteriorEstimator
    param_grid : dict or list of dict
        Values of the head's parameters, by their names.
    scoring : str, callable, list, tuple or dict, default=None
        None is the head's own ``score``: R2, or the mean log density.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows.
    cv : int, splitter or iterable, default=None
        None is five folds.
    verbose : int, default=0
        Above 0 scikit-learn prints what it scores.
    error_score : "raise" or float, default=nan
        Score of a fit that fails.
    return_train_score : bool, default=False

    Attributes
    ----------
    cv_results_ : dict of ndarray
        As scikit-learn's. ``mean_fit_time`` of what was trained together is its share of the time.
    best_estimator_ : LightconeRegressor or PosteriorEstimator
        Fitted on all rows; ``predict``, ``score`` and ``n_features_in_`` are its own.
    best_params_, best_score_, best_index_, n_splits_, refit_time_, scorer_, multimetric_
        As scikit-learn's.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : For whole pipelines; one fit after the other.

    Examples
    --------
    >>> import numpy as np
    >>> from skatr_sk import HeadSearchCV, LightconeRegressor
    >>> rng = np.random.default_rng(0)
    >>> summaries = rng.normal(size=(120, 4))
    >>> y = np.tanh(summaries @ [1.0, 2.0, 0.5, 0.0])
    >>> head = LightconeRegressor(hidden_dims=(16,), max_epochs=15, random_state=0)
    >>> grid = {"learning_rate": [1e-6, 1e-2], "weight_decay": [0.0, 1e-3]}
    >>> search = HeadSearchCV(head, grid, cv=3).fit(summaries, y)
    >>> search.best_params_["learning_rate"]
    0.01
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
        *,
        scoring: Any = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def fit(self, X: ArrayLike, y: ArrayLike | None = None, **params: Any) -> Self:
        """Train and score all candidates on all folds, and fit the best of them on all rows.

        Parameters
        ----------
        X : array-like of shape (n, n_summary)
            Frozen summaries.
        y : array-like of shape (n,) or (n, n_parameters)
        **params
            ``sample_weight`` of shape (n,), for the head, and ``groups`` of shape (n,), for `cv`.

        Returns
        -------
        self
        """
        if y is None:
            raise ValueError("HeadSearchCV requires y to be passed, but the target y is None.")
        self._check_names()
        X, y = indexable(X, y)
        weights = params.get("sample_weight")
        if weights is not None and np.shape(weights) != (_num_samples(X),):
            raise ValueError(
                f"sample_weight: expected shape ({_num_samples(X)},), found {np.shape(weights)}."
            )
        # Drawn once: a splitter without a seed would draw other folds for the scores.
        splits = list(check_cv(self.cv, y).split(X, y, params.get("groups")))
        fixed = copy.copy(self)
        fixed.cv, fixed.n_jobs = splits, 1  # what was prepared is offered to this process
        with sharing():
            prepared, seconds = self._prepare(X, y, splits, params)
        with offering(prepared):
            GridSearchCV.fit(fixed, X, y, **params)
        fixed.n_jobs = self.n_jobs
        given = self.get_params(deep=False)
        learned = {name: v for name, v in vars(fixed).items() if name not in given}
        self.__dict__.update(learned)
        self.cv_results_["mean_fit_time"] += seconds
        return self

    def _check_names(self) -> None:
        """Raise where a name in the grid is none of a head's parameters."""
        names = {name for grid in ParameterGrid(self.param_grid).param_grid for name in grid}
        if hasattr(self.estimator, "steps"):
            self._check_steps(names)
        if not isinstance(self.estimator, SummaryHead):
            return
        own = self.estimator.get_params(deep=False)
        wrong = []
        for name in sorted(names - own.keys(), key=str):
            # What a parameter has of its own may be set where it has any, or is given beside.
            of = str(name).partition("__")[0]
            if of not in own or not (of in names or hasattr(standing_for(own[of]), "set_params")):
                wrong.append(name)
        if wrong:
            kind = type(self.estimator).__name__
            lasts = [(name, str(name).rpartition("__")[2]) for name in wrong]
            meant = ", ".join(repr(last) for _, last in lasts if last in own)
            mends = [f"here it is {meant}, for there are no steps"] if meant else []
            near = [(name, spell(name, own)) for name, last in lasts if last not in own]
            mends += [
                f"{name!r}: {said}" if len(wrong) > 1 else said for name, said in near if said
            ]
            problems = Problems(type(self).__name__)
            found = wrong[0] if len(wrong) == 1 else wrong
            problems.add("param_grid", f"parameters of {kind}", found, "; ".join(mends))
            problems.raise_if_any()

    def _check_steps(self, names: set[Any]) -> None:
        """Raise where names are of no step of a Pipeline, as a head's own are not."""
        known, each = self.estimator.get_params(), map(str, names)
        if wrong := sorted(name for name in each if name.partition("__")[0] not in known):
            mend = "give the head alone, and make this search the last step of the Pipeline"
            problems = Problems(type(self).__name__)
            problems.add("param_grid", "parameters of a Pipeline, step__name", wrong, mend)
            problems.raise_if_any()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags = copy.copy(get_tags(self.estimator).target_tags)
        return tags

    @torch_defaults()
    def _prepare(
        self, X: Any, y: Any, splits: Sequence[Any], params: Mapping[str, Any]
    ) -> tuple[Prepared, NDArray[np.float64]]:
        """Fit what can be trained together; return it, and each candidate's seconds per fold."""
        weights, counts = params.get("sample_weight"), []
        folds = [
            (
                *_safe_split(self.estimator, X, y, train),
                None if weights is None else _safe_indexing(weights, train),
            )
            for train, _ in splits
        ]
        trained_on = [np.asarray(train) for train, _ in splits]
        prepared, begun = Prepared((X, y, weights), trained_on), list[_Begun]()
        candidates, begin = list(ParameterGrid(self.param_grid)), time.perf_counter()
        if why := self._why_not(params):
            _LOGGER.info("HeadSearchCV fits one by one: %s.", why)
        for parameters in candidates:
            found = [] if why else list(self._begin(parameters, folds))
            counts.append(len(found))
            begun += found
        trained = iter(train_those_together([one for each in begun for one in each.planned]))
        for each in begun:
            of_each = [next(trained) for _ in each.planned]
            if None in of_each:  # GridSearchCV fits and scores it
                each.steps.close()
                continue
            try:
                each.steps.send(cast("list[Trained]", of_each))
            except StopIteration:
                own = each.head.get_params(deep=False).keys() | {"_callback_fit_ctx"}
                state = {name: v for name, v in vars(each.head).items() if name not in own}
                prepared.add(each.fold, each.identity, state)
            except (ArithmeticError, ValueError) as error:
                _LOGGER.info("A candidate is fitted by itself: %s", error)
        seconds = time.perf_counter() - begin
        return prepared, seconds / max(1, len(begun)) * np.array(counts) / max(1, len(splits))

    def _why_not(self, params: Mapping[str, Any]) -> str:
        """Say why nothing can be trained together; "" where something may."""
        if not isinstance(self.estimator, SummaryHead):
            return f"the estimator is a {type(self.estimator).__name__}"
        if others := sorted(params.keys() - {"sample_weight", "groups"}):
            return f"fit was given {', '.join(others)}"
        if get_config()["enable_metadata_routing"]:
            return "metadata are routed"
        return "it reports to callbacks" if getattr(self, "_skl_callbacks", None) else ""

    def _begin(self, parameters: Mapping[str, Any], folds: Sequence[Fold]) -> Iterator[_Begun]:
        """Begin the fits of a candidate that can be trained with others."""
        for number, (X, y, weights) in enumerate(folds):
            try:
                head = clone(self.estimator).set_params(**clone(dict(parameters), safe=False))
                if head.backbone is not None:
                    why = "a backbone"
                else:
                    identity = identity_of_parameters(head)
                    steps = head._steps(X, y, Given(sample_weight=weights))
                    planned = next(steps)
                    why = next((one.why_alone for one in planned if one.why_alone), "")
            except Exception as error:  # GridSearchCV meets it again, and scores it
                why = str(error)
            if not why:
                yield _Begun(head, number, identity, steps, planned)
            elif number == 0:
                _LOGGER.info("%s is fitted by itself: %s.", parameters, why)
