"""What the heads share: checked summaries and targets, standardisation, and the training."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted, validate_data

from skatr_sk._checks import (
    Auto,
    Bounds,
    Choice,
    Flag,
    Instance,
    Integer,
    Kind,
    Problems,
    Real,
    Rule,
    check_options,
    listed,
    parameter_names,
    unchanged_on_error,
    warn_without_effect,
)
from skatr_sk.fields import (
    ArrayFields,
    Fields,
    Look,
    as_parameters,
    check_fields,
    check_finite_rows,
    check_numbers,
)
from skatr_sk.heads.end_to_end import (
    BACKBONE_DOCS,
    BackboneHead,
    features_of,
    features_shape,
    gives_tokens,
)
from skatr_sk.heads.pooling import POOLINGS
from skatr_sk.heads.prepared import prepared_state, shared, shared_key
from skatr_sk.heads.prior_transform import Floats, is_inside
from skatr_sk.heads.saving import load_model, save_model
from skatr_sk.heads.together import Planned, Trained, train_all
from skatr_sk.parameters import PARAMETERS, check_order
from skatr_sk.summaries.novelty import Novelty, SeenSummaries, seen_of, warn_never_seen
from skatr_sk.summaries.pooling import pool
from skatr_sk.training.batches import Dataset, TensorDataset
from skatr_sk.training.device import resolve_device, torch_defaults
from skatr_sk.training.estimator import TRAINING_DOCS, with_callbacks
from skatr_sk.training.held_out import Given, Rows, check_given, compare_columns
from skatr_sk.training.lean import LeanTrainer
from skatr_sk.training.seeds import independent_seeds, seed_of
from skatr_sk.training.state import all_finite, digest_of
from skatr_sk.training.trainer import train

__all__ = [
    "FLOATS",
    "HEAD_DOCS",
    "Run",
    "Steps",
    "SummaryHead",
    "are_widths",
    "check_logarithms",
    "least_of",
]

_NUMBERS = 4_000_000  # of the summaries in double precision at a time
_Module = TypeVar("_Module", bound=torch.nn.Module)
_Network = tuple[Callable[[], _Module], torch.nn.Module]  # what builds it, and its loss
_Returned = TypeVar("_Returned")
# A fit that hands out networks to be trained, and gets them back with their histories.
Steps = Generator[list[Planned], list[Trained], _Returned]
Run = tuple[tuple[NDArray[Any], NDArray[Any]], int]  # rows that train and that validate, seed

HEAD_DOCS = (
    TRAINING_DOCS
    | BACKBONE_DOCS
    | {
        "members": """
        n_members : "auto" or int, default="auto"
            Networks, each with weights, batches and validation rows of its own, so that no row is
            lost to all, and averaged. They are trained at once, to what each would be alone up to
            rounding; one after the other with `callbacks`, `checkpoint_dir` or attention to tokens.
        """,
        "held_out": """
        Share of the rows, in [0, 1), that decide when to stop; chosen by their content. 0 trains
        for `max_epochs`.
        """,
        "patience": """
        Epochs without a better validation loss before the training stops; the best epoch's
        weights are kept. None keeps the last.
        """,
        "learned": """
        summary_mean_, summary_scale_ : ndarray of shape (n_summary,)
            Mean and standard deviation of the features, over all tokens of the rows that train a
            network. With a backbone there are none.
        seen_ : SeenSummaries or None
            Where the summaries of ``fit`` lie, or the features of a backbone of the rows that train
            and validate; of tokens their means and standard deviations. None of fewer than six.
        field_shape_in_ : tuple of int
            Shape of one row of `X`.
        n_features_in_ : int
            Length of its first axis: of a summary, or the number of tokens.
        feature_names_in_ : ndarray of str
            Names of the features, where the input had names.
        """,
        "history": f"""
        {TRAINING_DOCS["history"].strip()} With several members all their epochs follow each
            other, and ``member``, from 0 on, says whose they are; of those that were trained at
            once ``seconds`` are each one's share.
        """,
    }
)


def _are_floats(value: Any) -> bool:
    right = isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1
    return right and bool(np.isfinite(value).all())


FLOATS = Rule(_are_floats, "a vector of finite float64")


def are_widths(value: Any) -> bool:
    """Whether a value is a sequence of widths of layers, which may be empty."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return several and all(Integer(1).fault(width) is None for width in value)


@dataclass(kw_only=True, eq=False, repr=False)
class SummaryHead(BackboneHead):
    """A small network on summaries, pooled (n, n_summary) or tokens (n, n_tokens, n_summary)."""

    hidden_dims: tuple[int, ...] = (128, 128)
    pooling: str = "mean"
    dropout: float | str = 0.0
    n_members: int | str = "auto"

    _parameters: ClassVar[Mapping[str, Kind]] = {
        **BackboneHead._parameters,
        "hidden_dims": Rule(are_widths, "a tuple of integers >= 1"),
        "pooling": Choice(*POOLINGS),
        "dropout": Real("[0, 1)"),
        "n_members": Auto(Integer(1)),
    }
    _of_steps = BackboneHead._of_steps | {"dropout"}

    _learned: ClassVar[Mapping[str, Kind]] = {
        **BackboneHead._learned,
        "_one_dimensional": Flag(),
        **dict.fromkeys(("summary_mean_", "summary_scale_"), replace(FLOATS, optional=True)),
        "seen_": Instance(SeenSummaries, expected="statistics of summaries", optional=True),
    }

    def _check_stored(self, problems: Problems) -> None:
        super()._check_stored(problems)
        if (seen := getattr(self, "seen_", None)) is not None:
            n, of_tokens = self._n_summary, len(self._shape_seen) == 2
            if len(seen.mean) != n and not (of_tokens and len(seen.mean) == 2 * n):
                problems.add("seen_", f"{n} features", len(seen.mean))
        if self._is_whole:
            return
        problems.check(dict.fromkeys(("summary_mean_", "summary_scale_"), FLOATS), self)
        problems.raise_if_any()
        if not 1 <= len(self.field_shape_in_) <= 2:
            problems.add("field_shape_in_", "one or two axes", self.field_shape_in_)
        for name in ("summary_mean_", "summary_scale_"):
            found = getattr(self, name).shape
            if found != self.field_shape_in_[-1:]:
                problems.add(name, f"shape {self.field_shape_in_[-1:]}", found)
        if not (self.summary_scale_ > 0).all():
            problems.add("summary_scale_", "numbers > 0", float(self.summary_scale_.min()))

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        if (seen := state.get("seen_")) is not None:
            state["seen_"] = dict(vars(seen))
        return state

    def _unpack(self, state: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := state.get("seen_"), dict):
            state["seen_"] = seen_of(found, np.size(found["mean"]))
        return state

    @with_callbacks
    @torch_defaults()
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        validation_data: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Self:
        """Train the network.

        Parameters
        ----------
        X : array-like of shape (n, n_summary) or (n, n_tokens, n_summary)
            With a `backbone` array-like or Fields (n, *field_shape), in mK.
        y : array-like of shape (n,) or (n, n_parameters)
            In the parameters' own units, and, for a posterior, drawn from the prior. Predictions
            come back in this shape.
        sample_weight : array-like of shape (n,), default=None
            How much each row counts in the losses, of training and validation, and in the ridge
            regression; only ratios matter. A weight of 0 leaves the row out.
        groups : array-like of shape (n,), default=None
            Labels, such as the seeds of initial conditions: rows of one group are on one side of
            the split into those that train and those that validate, chosen by their content.
        validation_data : (X, y), default=None
            Rows that validate; all of `X` then train, and `validation_fraction` has no effect.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When parameters or data are not as expected (`y` outside its bounds and, for a
            posterior, a parameter that never varies, or too few rows to split); nothing is changed
            then.

        Warns
        -----
        NoEffectWarning
            When parameters were given that change nothing beside the others.
        """
        if groups is None and validation_data is None:
            if (state := prepared_state(self, (X, y, sample_weight))) is not None:
                self.__dict__.update(state)
                return self
        steps = self._steps(X, y, Given(groups, validation_data, sample_weight))
        # Closed where the training fails, for then it gives back what was fitted before.
        with contextlib.closing(steps), contextlib.suppress(StopIteration):
            steps.send(train_all(next(steps)))
        return self

    def _steps(self, X: ArrayLike, y: ArrayLike, given: Given) -> Steps[None]:
        """Fit; networks to be trained are handed out, and what was trained is sent back."""
        with unchanged_on_error(self):
            self._check_parameters()
            compare_columns(y, given.validation_data)
            self._warn_of(given)
            yield from self._fit(X, y, given)
            self._check_learned()
            self._one_dimensional = np.asarray(y).ndim == 1

    def _fit(self, X: ArrayLike, y: ArrayLike, given: Given) -> Steps[None]:
        """Train with parameters that have been checked."""
        raise NotImplementedError

    @property
    def _is_whole(self) -> bool:
        """Whether it was fitted on fields, with a backbone."""
        return getattr(self, "backbone_", None) is not None

    @property
    def _pooled_by(self) -> str:
        """How the tokens of a transformer as ``backbone_`` are pooled for the fitted head."""
        raise NotImplementedError

    @property
    def _shape_seen(self) -> tuple[int, ...]:
        """Shape of what the fitted head sees of a row."""
        return features_shape(self, self._pooled_by) if self._is_whole else self.field_shape_in_

    @property
    def _n_summary(self) -> int:
        """Length of it, or of one of its tokens."""
        return int(self._shape_seen[-1])

    def _check_learned(self) -> None:
        """Raise where anything that was learned, also without the trainer, is not finite."""
        known = {k: v for k, v in vars(self).items() if k.endswith("_")}
        modules = {k: v for k, v in known.items() if isinstance(v, torch.nn.Module)}
        wrong = [k for k, v in modules.items() if not all_finite(v.state_dict().values())]
        numbers = ("summary_mean_", "summary_scale_", "network_weight_")
        wrong += [k for k in numbers if k in known and not np.isfinite(known[k]).all()]
        if wrong:
            raise FloatingPointError(
                f"{type(self).__name__}: expected finite numbers in what was learned, found NaN or "
                f"infinite ones in {', '.join(wrong)}; check the range of X and y."
            )

    def _check_found(
        self, values: NDArray[Any], fields: Fields, what: str, first: int = 0
    ) -> NDArray[Any]:
        """Return what was computed for rows, from the `first` on; raise where it is not finite.

        It is finite for whatever resembles the rows of ``fit``: the rows are to blame.
        """
        bad = first + np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        if not bad.size:
            return values
        given, units = fields.read(bad[:1]).astype(np.float64), "mK"
        if hasattr(self, "summary_mean_"):
            given, units = (given - self.summary_mean_) / self.summary_scale_, "deviations"
        raise ValueError(
            f"X: expected rows like those of fit, found {len(bad)} without a finite {what}, the "
            f"first of them {listed(bad[:5])}, where X is {np.abs(given).max():.2g} {units} from "
            f"{'zero' if units == 'mK' else 'the mean of those'}; check its units, and drop these "
            "rows."
        )

    def _check_training_data(
        self, X: ArrayLike, y: ArrayLike, given: Given, *, of_fields: bool = False
    ) -> tuple[Fields, Floats, Rows]:
        """Check summaries, or fields in mK, and remember the shape of one.

        Return all that count with their targets of shape (n, n_parameters), those of the user's
        validation data last, and what is known of these rows.
        """

        def check(X: ArrayLike, y: ArrayLike, reset: bool = False) -> tuple[Fields, Floats]:
            return self._check_pair(X, y, reset=reset, of_fields=of_fields)

        fields, targets, rows = check_given(given, check(X, y, reset=True), check)
        return fields, cast(Floats, targets), rows

    def _check_pair(
        self, X: ArrayLike, y: ArrayLike, *, reset: bool, of_fields: bool
    ) -> tuple[Fields, Floats]:
        X = check_numbers(X, "X")
        if y is not None and 0 not in np.shape(X):  # else scikit-learn says it well
            y = check_numbers(y, "y")
            n_rows, n_targets = np.shape(X)[:1], np.shape(y)[:1]
            if n_rows and n_targets and n_rows != n_targets:
                raise ValueError(
                    f"y: expected {n_rows[0]} rows of parameters, one for each row of X and in its "
                    f"order, found {n_targets[0]}."
                )
            names = [str(name) for name in getattr(y, "columns", ())]
            values = as_parameters(y)
            check_finite_rows(values, "y", "values")
            check_logarithms(values, names)
        if reset:
            # Before X: scikit-learn forgets the names of the features where it sees no X.
            y = validate_data(self, "no_validation", y, multi_output=True, y_numeric=True)
        elif np.ndim(y) not in (1, 2):
            raise ValueError(f"y: expected parameters (n,) or (n, n_parameters), found {y!r}.")
        if of_fields:
            fields = check_fields(self, X, reset=reset, min_rows=2 if reset else 1)
            for stale in ("summary_mean_", "summary_scale_", "seen_"):  # of an earlier fit
                self.__dict__.pop(stale, None)
        else:
            fields = self._check_summaries(X, reset=reset, fitted=True)
            self.backbone_: Any = None
        return fields, np.asarray(y, dtype=np.float64).reshape(fields.shape[0], -1)

    def _check_rows(self, X: ArrayLike) -> Fields:
        """Check summaries, or fields with a backbone, against those of ``fit``."""
        check_is_fitted(self)
        return check_fields(self, X, reset=False) if self._is_whole else self._check_summaries(X)

    def _check_summaries(
        self, X: ArrayLike, *, reset: bool = False, fitted: bool = False
    ) -> Fields:
        """Check summaries, and remember the shape of one, or compare it with the fitted one.

        `fitted` says that the shape is known already, as it is within ``fit``.
        """
        if not (reset or fitted):
            check_is_fitted(self)
        X = check_numbers(X, "X")
        shape = np.shape(X)
        if len(shape) > 3:
            raise ValueError(
                f"X: expected shape (n, n_summary) or (n, n_tokens, n_summary), found {shape}; "
                "light cones go through SKATRTransformer or another transformer first, or as they "
                f"are into {type(self).__name__}(backbone='vit')."
            )
        # On 2-D input scikit-learn's own comparison of feature counts and names speaks.
        known = shape[1:] if reset else self.field_shape_in_
        if shape[1:] != known and max(len(shape) - 1, len(known)) > 1:
            raise ValueError(
                f"X: expected summaries of shape {known}, on which this {type(self).__name__} was "
                f"fitted, found {shape[1:]}; use the same transformer, with the same pooling, for "
                "both, or fit again."
            )
        options = {"dtype": (np.float64, np.float32), "ensure_all_finite": False, "allow_nd": True}
        least = 2 if reset else 1
        found = validate_data(self, X, reset=reset, ensure_min_samples=least, **options)
        check_finite_rows(found, "X", "summaries")
        # The fits of a search hold one array of what each of them was given as a table.
        checked = shared(("checked", shared_key(lambda: found)), lambda: found)
        if reset:
            self.field_shape_in_: tuple[int, ...] = checked.shape[1:]
        summaries = ArrayFields(checked)
        if not fitted and (seen := getattr(self, "seen_", None)) is not None:  # old files have none
            self._warn_never_seen(seen.novelty(_one_each(summaries, seen)))
        return summaries

    def _warn_never_seen(self, found: Novelty) -> None:
        mend = "compare with its light cones"
        if self._is_whole:
            mend = "look at their units, the order of their line of sight, and their parameters"
        warn_never_seen(
            f"{type(self).__name__}: X",
            f"{'fields' if self._is_whole else 'summaries'} like those of fit",
            found,
            "parameters of what a network has never seen are a guess; "
            f"{mend}, or fit on others like these",
        )

    def _names_of(
        self, names: Sequence[str] | None, y: Any, targets: NDArray[Any], given: Given
    ) -> list[str]:
        """Return the names of the parameters: those given, or else of `y`.

        Raise where rows that validate have others, and where a name is of a logarithm and its
        values are none.
        """
        found = parameter_names(names, y, targets.shape[1])
        if given.validation_data is not None:
            check_order("validation_data", given.validation_data[1], found)
        check_logarithms(targets, found)
        return found

    def _check_bounds(
        self, name: str, kind: Bounds, targets: NDArray[Any], names: Sequence[str], rows: Rows
    ) -> Floats | None:
        """Return the bounds in the parameter `name`, or None; raise where targets lie outside.

        A table of bounds may name its rows: as the parameters, whose `names` these are.
        """
        given = getattr(self, name)
        check_options(type(self).__name__, {name: kind}, {name: given})
        if given is None:
            return None
        check_order(name, given, names, "rows")
        if isinstance(given, str):  # "data"
            # Of a box, n rows leave out a share of 1 / (n + 1) at each end, on average: 1 / (n - 1)
            # of their range.
            low, high = targets.min(axis=0), targets.max(axis=0)
            beyond = (high - low) / max(1, len(targets) - 1)
            return np.stack([low - beyond, high + beyond], axis=1)
        bounds = np.array(given, dtype=np.float64)  # a copy: what is learned stays as it is
        outside = ~is_inside(targets, *bounds.T)
        if outside.any():
            of, side, wrong = rows.of_one_side(np.asarray(outside.any(axis=1)))
            targets, outside = targets[side], outside[side]
            which = [names[i] for i in np.flatnonzero(outside.any(axis=0)).tolist()]
            raise ValueError(
                f"{of}y: expected parameters inside {name} {bounds.tolist()}, found others in rows "
                f"{listed(wrong)}, in {listed(which)}; "
                f"{_mend_of(targets, bounds, outside, names)}."
            )
        return bounds

    def _pooling_of(self, summaries: Fields) -> str:
        """Return the pooling of summaries; what is pooled already is taken as it is."""
        whole = self.backbone is not None
        if gives_tokens(self.backbone) if whole else len(summaries.shape) == 3:
            return self.pooling
        pooled = "a backbone that gives no tokens" if whole else "summaries that are pooled already"
        warn_without_effect(self, {"pooling"}, pooled)
        return "mean"

    def _runs(self, fields: Fields, rows: Rows | None = None) -> list[Run]:
        """Draw the seeds of each member; return its rows that train and that validate, and a seed.

        The first member is the network of ``n_members=1``.
        """
        n_members = cast(int, self._resolved(fields.shape[0]).n_members)
        seeds = iter(independent_seeds(seed_of(self.random_state), 2 * n_members))
        split = partial((rows or Rows(fields.shape[0])).split, fields, self.validation_fraction)
        return [(split(split_seed), seed) for split_seed, seed in zip(seeds, seeds, strict=True)]

    def _batches(
        self, summaries: Fields, size: int | None = None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield some rows at a time, and their standardised summaries.

        With a backbone these are features of fields, as they are, and what was never seen is said
        after the last. In double precision what a network says of a row does not depend on the rows
        beside it.
        """
        if self._is_whole:
            pooling, found, look = self._pooled_by, [], Look()
            features, seen = features_of(self, pooling, look), getattr(self, "seen_", None)
            for rows in _parts((summaries.shape[0], *features_shape(self, pooling)), size):
                batch = features(summaries, rows).double()
                if seen is not None:
                    found.append(seen.novelty(_one_each(ArrayFields(batch.numpy()), seen)))
                yield rows, batch
            look.warn()
            if found:
                self._warn_never_seen(Novelty(*map(np.concatenate, zip(*found, strict=True))))
            return
        for rows in _parts(summaries.shape, size):
            values = (summaries.read(rows) - self.summary_mean_) / self.summary_scale_
            yield rows, torch.from_numpy(values)

    def _train_on_summaries(
        self,
        network: _Network[_Module],
        data: tuple[Fields, Floats],
        runs: Sequence[Run],
        rows: Rows,
        schedule: Callable[[float], float] | None = None,
    ) -> Steps[list[_Module]]:
        """Learn the standardisation of summaries, one for all members, and ask to train these."""
        summaries, targets = data
        content = shared_key(summaries.read)
        self.seen_: SeenSummaries | None = shared(
            ("seen", content), lambda: SeenSummaries.learn(_one_each(summaries))
        )
        trained_on = np.unique(np.concatenate([train_rows for (train_rows, _), _ in runs]))
        device = resolve_device(self.device)

        # A head that begins with the mean of the tokens gets it as a pooled summary.
        of_tokens = len(summaries.shape) == 3 and getattr(self, "head", None) is None
        means = of_tokens and self.pooling == "mean"

        def standardise() -> tuple[Floats, Floats, torch.Tensor]:
            self.summary_mean_, self.summary_scale_ = _moments(summaries.read(trained_on))
            n, *shape = summaries.shape
            X = torch.empty(n, *(shape[-1:] if means else shape))
            for some, standardised in self._batches(summaries):
                X[some] = pool(standardised, "mean", 1) if means else standardised
            # Pooled summaries are small: the whole of them waits on the device. Tokens are not.
            return self.summary_mean_, self.summary_scale_, X.to(device) if X.ndim == 2 else X

        key = "X", content, trained_on.tobytes(), str(device), means
        self.summary_mean_, self.summary_scale_, X = shared(key, standardise)
        y = torch.from_numpy(targets.astype(np.float32)).to(device)
        n_rows, planned = least_of(runs), []
        settings = self._resolved(n_rows)
        for number, (split, seed) in enumerate(runs):
            alone = partial(
                self._train_member,
                *(network, (X, y), split, rows, seed),
                member=(number, len(runs)),
                schedule=schedule,
                n_rows=n_rows,
            )
            planned.append(
                Planned(self, *network, X, y, split, rows, seed, alone, settings, schedule)
            )
        trained = yield planned
        self.history_ = []
        for number, (_, history) in enumerate(trained):
            own: dict[str, Any] = {"member": number} if len(trained) > 1 else {}
            self.history_ += [own | row for row in history]
        return [cast(_Module, module.requires_grad_(False)) for module, _ in trained]

    def _train_member(
        self,
        network: _Network[_Module],
        data: tuple[torch.Tensor, torch.Tensor],
        split: tuple[NDArray[Any], NDArray[Any]],
        rows: Rows,
        seed: int,
        **options: Any,
    ) -> Trained:
        """Train one member by itself."""
        of_both = map(torch.from_numpy, split)
        sets = [TensorDataset(*(part[some] for part in data)) for some in of_both]
        options["small"], options["trainer"] = data[0].ndim == 2, LeanTrainer
        options["identity"] = {"member": options["member"][0]} | rows.identity()
        if self.checkpoint_dir is not None:
            parts = {f"{i} {k}": t for i, s in enumerate(sets) for k, t in enumerate(s.tensors)}
            options["identity"]["X and y"] = digest_of(parts)
        return self._train(network, rows.weighted(sets, split), seed, **options)

    def _train(
        self,
        network: _Network[_Module],
        sets: Sequence[Dataset],
        seed: int,
        *,
        identity: Mapping[str, Any],
        **options: Any,
    ) -> Trained:
        """Build and train a network; return it, frozen, and its history.

        Each has a checkpoint of its own, by the `identity` that :meth:`_checkpoint` takes.
        `options` go to :func:`train`.
        """
        n_rows = options.setdefault("n_rows", len(sets[0]))
        identity = {**identity, "auto": self._stands_for(n_rows)}
        options["checkpoint"] = self._checkpoint(seed, **identity)
        options["seeds"] = tuple(independent_seeds(seed, 2))  # of the weights, of the batches
        train_set, valid_set = sets[0], sets[1] if len(sets[1]) else None
        module, history = train(self, *network, train_set, valid_set, **options)
        return module.requires_grad_(False), history

    def _shaped(self, values: NDArray[Any]) -> NDArray[Any]:
        """Drop the axis of parameters where the targets had none."""
        return values[..., 0] if self._one_dimensional else values

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator as one file, without pickle (:func:`~skatr_sk.save_model`).

        Parameters
        ----------
        path : path
            Replaced whole or not at all; its folder must exist.
        """
        save_model(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **parameters: Any) -> Self:
        """Return a fitted estimator from a file written by :meth:`save`.

        Parameters
        ----------
        path : path
        **parameters
            What is to be otherwise, such as ``device="cpu"``.

        Returns
        -------
        self
            It predicts bit for bit what the saved one does, on the same machine.

        Raises
        ------
        OSError, ValueError
            As :func:`~skatr_sk.load_model`, and when the file holds another estimator.
        """
        loaded = load_model(path)
        if not isinstance(loaded, cls):
            raise ValueError(
                f"model file {os.fspath(path)!r}: expected a {cls.__name__}, found a "
                f"{type(loaded).__name__}; use skatr_sk.load_model."
            )
        return loaded.set_params(**parameters)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "history_")


def least_of(runs: Sequence[Run]) -> int:
    """Count the rows that train the member with the fewest: "auto" goes by them, for all members.

    With groups the members train on unlike numbers of rows.
    """
    return min(len(train_rows) for (train_rows, _), _ in runs)


def _one_each(summaries: Fields, seen: SeenSummaries | None = None) -> NDArray[Any]:
    """Return summaries (n, n_summary) as they are, of tokens their means and deviations.

    What was `seen` in models of before are means alone.
    """
    shape = summaries.shape
    if len(shape) == 2:
        return summaries.read()
    only_means = seen is not None and len(seen.mean) == shape[2]
    pooling = "mean" if only_means else "moments"
    of_some = (np.array(summaries.read(rows), dtype=np.float64) for rows in _parts(shape))
    return torch.cat([pool(torch.from_numpy(some), pooling, 1) for some in of_some]).numpy()


def _mend_of(
    targets: Floats, bounds: Floats, outside: NDArray[np.bool_], names: Sequence[str]
) -> str:
    """Say how to bring parameters inside their bounds: columns of which the logarithm is, by it.

    So do bounds, where theirs is.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        of_bounds = np.where((bounds > 0).all(axis=1), np.log10(bounds.T), np.nan).T
    meant = ((targets >= of_bounds[:, 0]) & (targets <= of_bounds[:, 1])).all(axis=0)
    if of_logarithm := np.flatnonzero(outside.any(axis=0) & meant).tolist():
        return f"give log10 of the bounds of {listed([names[i] for i in of_logarithm])}"
    positive = (targets > 0).all(axis=0) & outside.any(axis=0)
    logarithm = np.log10(np.where(positive, targets, 1.0))
    inside = ((logarithm >= bounds[:, 0]) & (logarithm <= bounds[:, 1])).all(axis=0)
    linear = np.flatnonzero(positive & inside)
    if len(linear):
        each = listed([names[i] for i in linear.tolist()])
        return f"give log10 of {each} (columns {linear.tolist()}), whose logarithms are inside"
    return "widen the bounds or drop these rows"


def check_logarithms(y: Any, names: Sequence[str]) -> None:
    """Refuse columns named as logarithms of the paper that hold what these are of.

    Values are believed where they are far beyond the prior, and their logarithm is in it.
    """
    known = {each.name: each for each in PARAMETERS if each.logarithmic}
    values = np.asarray(y, dtype=np.float64)
    for column, name in enumerate(names):
        parameter = known.get(name.replace(" ", "_"))
        found = values if values.ndim == 1 else values[:, column]
        if parameter is None or found.min() <= 10 * parameter.high:
            continue
        low, high = np.log10([found.min(), found.max()])
        if parameter.low - 2 <= low and high <= parameter.high + 2:
            raise ValueError(
                f"y: expected {name!r} in {parameter.unit}, found {found.min():.3g} to "
                f"{found.max():.3g}; give numpy.log10 of column {column}."
            )


def _parts(shape: Sequence[int], size: int | None = None) -> Iterator[slice]:
    """Slices of at most `size` rows, fewer where rows are long: float64 copies take memory."""
    step = min(size or shape[0], max(1, _NUMBERS // max(1, math.prod(shape[1:]))))
    return gen_batches(shape[0], step)


def _moments(X: NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each feature over rows and tokens; 1 for a constant one."""
    axes = tuple(range(X.ndim - 1))
    mean = X.mean(axis=axes, dtype=np.float64)
    squares = sum(np.square(X[rows] - mean).sum(axis=axes) for rows in _parts(X.shape))
    scale = np.sqrt(squares / math.prod(X.shape[:-1]))
    # What is within the rounding of the type is no variation, and must not be blown up to one.
    constant = scale <= 10 * np.finfo(X.dtype).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, scale)
