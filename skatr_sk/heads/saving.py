"""Fitted estimators and pipelines of them in one file: safetensors and JSON, and no pickle.

The header is a tree. An estimator is its class by name, its parameters and what it has learned;
arrays are tensors of the file, by their place in the tree. Only classes of the tables below are
ever built, and of the register of :mod:`~skatr_sk.training.stored`, and all that they get has been
compared with the tables of their parameters and of what they learn.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.validation import check_is_fitted

from skatr_sk._checks import Choice, Integer, Problems, listed, warn
from skatr_sk._tensors import TensorFile, write_tensors
from skatr_sk._version import __version__
from skatr_sk.summaries.masking import BlockMask
from skatr_sk.summaries.objectives import OBJECTIVES, Combined
from skatr_sk.summaries.weights import MODEL_KEY, WEIGHTS_KEY
from skatr_sk.training.device import torch_defaults
from skatr_sk.training.processes import is_first
from skatr_sk.training.stored import STORED, StoredEstimator

__all__ = ["load_model", "save_model"]

_FORMAT = 1
_OBJECTIVES = {kind.__name__: kind for kind in (*OBJECTIVES.values(), Combined)}
# These hold no other than estimators as parameters.
_AROUND: dict[str, type[Any]] = {"Pipeline": Pipeline, "FrozenEstimator": FrozenEstimator}
# What a file cannot hold of these is left out: no result of what is fitted depends on it.
_MAY_BE_LEFT_OUT = {"augment", "callbacks", "loss", "memory", "random_state"}

_NUMBER, _TEXT, _ESTIMATOR = "a number", "a string", "an estimator"
# Of scikit-learn's own: what each has learned, as one of several things: axes of an array of finite
# numbers, n of them features, or a number, a string, None, an estimator.
_ROW = (("n",), None)
_COMPONENTS = {
    "components_": (("k", "n"),),
    "explained_variance_": (("k",),),
    "explained_variance_ratio_": (("k",),),
    "singular_values_": (("k",),),
}
_LINEAR = {"coef_": (("n",), ("p", "n")), "intercept_": (_NUMBER, ("p",))}
_PLAIN: dict[type[Any], dict[str, tuple[Any, ...]]] = {
    StandardScaler: {
        "mean_": _ROW,
        "var_": _ROW,
        "scale_": _ROW,
        "n_samples_seen_": (_NUMBER, ("n",)),
    },
    MinMaxScaler: {
        **dict.fromkeys(("scale_", "min_", "data_min_", "data_max_", "data_range_"), (("n",),)),
        "n_samples_seen_": (_NUMBER,),
    },
    MaxAbsScaler: {"scale_": (("n",),), "max_abs_": (("n",),), "n_samples_seen_": (_NUMBER,)},
    RobustScaler: {"center_": _ROW, "scale_": _ROW},
    QuantileTransformer: {
        "n_quantiles_": (_NUMBER,),
        "references_": (("q",),),
        "quantiles_": (("q", "n"),),
    },
    PowerTransformer: {"lambdas_": (("n",),), "_scaler": (_ESTIMATOR,)},
    FunctionTransformer: {},  # of no function, as TransformedTargetRegressor has it
    Normalizer: {},
    VarianceThreshold: {"variances_": (("n",),)},
    PCA: {
        **_COMPONENTS,
        "mean_": _ROW,
        "noise_variance_": (_NUMBER,),
        "n_samples_": (_NUMBER,),
        "n_components_": (_NUMBER,),
        "_fit_svd_solver": (_TEXT,),
    },
    TruncatedSVD: _COMPONENTS,
    LinearRegression: _LINEAR | {"rank_": (_NUMBER,), "singular_": (("k",),)},
    Ridge: _LINEAR | {"n_iter_": (None, _NUMBER, ("p",)), "solver_": (_TEXT, None)},
    RidgeCV: _LINEAR
    | {
        "alpha_": (_NUMBER, ("p",)),
        "best_score_": (_NUMBER, ("p",)),
        "cv_results_": (("m", "a"), ("m", "p", "a")),
    },
    TransformedTargetRegressor: {
        "regressor_": (_ESTIMATOR,),
        "transformer_": (_ESTIMATOR,),
        "_training_dim": (_NUMBER,),
    },
}
# They differ between versions and ways to fit, and nothing is computed with them.
_NOT_NEEDED = {"_fit_svd_solver", "n_iter_", "rank_", "singular_", "solver_", "best_score_"}
# What is learned where a parameter is true.
_ONLY_WITH = {"_scaler": "standardize", "cv_results_": "store_cv_results"}
_SKLEARN = {kind.__name__: kind for kind in _PLAIN}
_OUTPUTS = Choice("default", "pandas", "polars", optional=True)


def save_model(estimator: BaseEstimator, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator or a whole pipeline as one file, without pickle.

    What is loaded (:func:`load_model`) predicts and samples bit for bit the same, on the same
    machine. The file is safetensors with a JSON header; a digest finds every flipped bit.

    Parameters
    ----------
    estimator : estimator
        A fitted :class:`~skatr_sk.SKATRTransformer`, :class:`~skatr_sk.LightconeRegressor` or
        :class:`~skatr_sk.PosteriorEstimator`, :class:`~skatr_sk.LightconeResampler`,
        :class:`~skatr_sk.NoiseTransformer` or :class:`~skatr_sk.PowerSpectrumTransformer`, or a
        :class:`~sklearn.pipeline.Pipeline` of them and of scikit-learn's scalers
        (``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``,
        ``QuantileTransformer``, ``PowerTransformer``, ``Normalizer``), ``PCA``, ``TruncatedSVD``,
        ``VarianceThreshold``, ``LinearRegression``, ``Ridge``, ``RidgeCV``,
        ``TransformedTargetRegressor`` and ``FrozenEstimator``.
    path : path
        Replaced whole or not at all; its folder must exist.

    Raises
    ------
    ValueError
        When a part of the estimator is of another class, or has a parameter or has learned what
        the file cannot hold; the message says which.
    sklearn.exceptions.NotFittedError
        When the estimator is not fitted.

    Warns
    -----
    UserWarning
        When callbacks, an ``augment`` that is a function or a transformer of others, a ``loss`` of
        one's own, a ``random_state`` that is a generator, or a ``memory`` that is an object are
        left out.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skatr_sk import LightconeRegressor, load_model, save_model
    >>> X = np.random.default_rng(0).normal(size=(40, 3))
    >>> head = LightconeRegressor(max_epochs=2, random_state=0)
    >>> pipe = make_pipeline(StandardScaler(), head).fit(X, X[:, 0])
    >>> path = os.path.join(tempfile.mkdtemp(), "pipe.safetensors")
    >>> save_model(pipe, path)
    >>> bool((load_model(path).predict(X) == pipe.predict(X)).all())
    True
    """
    check_is_fitted(estimator)
    writer = _Writer()
    header = {
        "format": _FORMAT,
        "version": __version__,
        "sklearn": sklearn.__version__,
        "model": writer.estimator(estimator, type(estimator).__name__),
    }
    tensors = {name: torch.from_numpy(values) for name, values in writer.arrays.items()}
    if is_first():
        write_tensors(path, MODEL_KEY, header, tensors)
    if writer.left_out:
        left = listed(writer.left_out)
        warn(f"save: left out of {os.fspath(path)}, which cannot hold it: {left}.")


@torch_defaults()
def load_model(path: str | os.PathLike[str]) -> Any:
    """Return the fitted estimator of a file that :func:`save_model` or a head's ``save`` wrote.

    Nothing is unpickled, and only classes that :func:`save_model` names are built.

    Parameters
    ----------
    path : path
        Files of weights are loaded by :meth:`SKATRTransformer.load`.

    Returns
    -------
    estimator
        With the parameters that it was saved with. A ``device`` that is not there is not looked
        at before it is used: ``set_params(device="auto")`` takes what there is.

    Raises
    ------
    OSError
        When there is no file that may be read.
    ValueError
        When the file is damaged, of another kind, of a newer version, or holds what it may not.
    """
    written_by = "skatr_sk.save_model"
    elsewhere = {WEIGHTS_KEY: " It holds weights: use SKATRTransformer.load."}
    options: Any = {"what": "model file", "written_by": written_by, "elsewhere": elsewhere}
    stored = TensorFile(path, MODEL_KEY, newest=_FORMAT, **options)
    arrays = {name: values.numpy() for name, values in stored.read().items()}
    with stored.usable("a model"):
        reader = _Reader(arrays)
        loaded = reader.estimator(stored.header["model"])
        if idle := arrays.keys() - reader.used:
            raise ValueError(f"tensors that are not part of it: {listed(sorted(idle))}")
        check_is_fitted(loaded)
    written, here = str(stored.header.get("sklearn")), sklearn.__version__
    if reader.plain and written != here:
        names = {"current_sklearn_version": here, "original_sklearn_version": written}
        warnings.warn(
            InconsistentVersionWarning(estimator_name=listed(sorted(reader.plain)), **names),
            stacklevel=2,
        )
    return loaded


class _Unheld(ValueError):
    """A value that a file cannot hold."""


class _Writer:
    """Turns an estimator into a tree for JSON, and keeps the arrays by their place in it."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.left_out: list[str] = []

    def estimator(self, estimator: Any, place: str) -> dict[str, Any]:
        kind, name = type(estimator), type(estimator).__name__
        known = _classes()
        if kind is not known.get(name):
            names = ", ".join(sorted(known))
            what = (
                "its best_estimator_" if hasattr(estimator, "best_estimator_") else "it by itself"
            )
            raise _Unheld(
                f"{place}: expected an estimator that a file can hold ({names}), found "
                f"{kind.__module__}.{kind.__qualname__}; save {what}, or take joblib.dump."
            )
        parameters = {}
        for key, value in estimator.get_params(deep=False).items():
            try:
                parameters[key] = self.value(value, f"{place}.{key}")
            except _Unheld:
                if key not in _MAY_BE_LEFT_OUT:
                    raise
                self.left_out.append(f"{place}.{key}")
        learned = {
            key: {"json": value} if key == "history_" else self.value(value, f"{place}.{key}")
            for key, value in _learned(estimator).items()
        }
        output = vars(estimator).get("_sklearn_output_config", {})
        _check(estimator)  # what could not be read back is not written
        found = {"estimator": name, "parameters": parameters, "learned": learned}
        return found | ({"output": output.get("transform")} if output else {})

    def value(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            # A subclass, such as numpy's float64, is more than JSON can say.
            if type(value) in (type(None), bool, int, float, str):
                return value
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, list):
            return [self.value(one, f"{place}.{i}") for i, one in enumerate(value)]
        if type(value) is tuple:
            return {"tuple": self.value(list(value), place)}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.value(one, f"{place}.{key}") for key, one in value.items()}}
        if isinstance(value, BlockMask):
            return {"mask": self.value(dataclasses.asdict(value), place)["dict"]}
        if isinstance(value, BaseEstimator):
            return self.estimator(value, place)
        if hasattr(value, "to_numpy"):  # of a DataFrame, what it holds
            value = value.to_numpy()
        if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1:
            if all(isinstance(one, str) for one in value):
                return {"strings": value.tolist()}
        plain = isinstance(value, np.ndarray | np.generic) and not hasattr(value, "unit")
        if plain and value.dtype.kind in "fiub":  # one with a unit is more than its numbers
            array = np.array(value, dtype=value.dtype.newbyteorder("="))
            if array.dtype.name in _DTYPES:
                # The order in memory is kept: sums over columns are rounded in another way.
                by_columns = array.ndim > 1 and not array.flags.c_contiguous
                self.arrays[place] = np.ascontiguousarray(array.T) if by_columns else array
                kind = "array" if isinstance(value, np.ndarray) else "number"
                return {"columns" if by_columns else kind: place}
        mend = "; joblib.dump keeps it" * isinstance(value, torch.nn.Module)
        raise _Unheld(f"{place}: expected what a file can hold, found {value!r:.200}{mend}")


_DTYPES = {"float64", "float32", "int64", "int32", "uint8", "bool"}


class _Reader:
    """Turns a tree back into an estimator, and checks whatever it makes."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.used: set[str] = set()
        self.plain: set[str] = set()

    def estimator(self, found: Any) -> Any:
        if (
            not isinstance(found, dict)
            or not {"estimator", "parameters", "learned"} <= found.keys()
        ):
            raise ValueError("expected an estimator with parameters and what it has learned")
        name = found["estimator"]
        kind = _classes().get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"estimator: expected one that a file can hold, found {name!r}")
        if kind in _PLAIN:
            self.plain.add(name)
        parameters, learned = (self.parts(found[part]) for part in ("parameters", "learned"))
        known = inspect.signature(kind).parameters
        if unknown := parameters.keys() - known.keys():
            raise ValueError(f"{name}: expected its parameters, found {listed(sorted(unknown))}")
        estimator = kind(**parameters)
        if learned:
            allowed = _allowed(estimator)
            if unknown := learned.keys() - allowed:
                raise ValueError(f"{name}: nothing that it learns is {listed(sorted(unknown))}")
            ours = isinstance(estimator, StoredEstimator)
            vars(estimator).update(estimator._unpacked(learned) if ours else learned)
        _check(estimator)
        if "output" in found:
            wrong = Problems(name)
            wrong.check({"output": _OUTPUTS}, {"output": found["output"]})
            wrong.raise_if_any()
            estimator.set_output(transform=found["output"])
        return estimator

    def parts(self, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {found!r:.80}")
        return {key: self.value(value) for key, value in found.items()}

    def value(self, found: Any) -> Any:
        if found is None or isinstance(found, bool | int | float | str):
            return found
        if isinstance(found, list):
            return [self.value(one) for one in found]
        if "estimator" in found:
            return self.estimator(found)
        ((tag, inside),) = found.items()
        if tag == "json":
            return inside
        if tag == "tuple" and isinstance(inside, list):
            return tuple(self.value(inside))
        if tag == "dict":
            return self.parts(inside)
        if tag == "mask":
            return BlockMask(**self.parts(inside))
        if tag == "strings" and isinstance(inside, list):
            if all(isinstance(one, str) for one in inside):
                return np.array(inside, dtype=object)
        if tag in ("array", "columns", "number") and isinstance(inside, str):
            self.used.add(inside)
            array = self.arrays[inside]
            return (
                array.reshape(())[()] if tag == "number" else array.T if tag == "columns" else array
            )
        raise ValueError(f"expected a value, found {found!r:.80}")


def _classes() -> dict[str, type[Any]]:
    """Return the classes that a file can hold, by their names."""
    return {**STORED, **_OBJECTIVES, **_AROUND, **_SKLEARN}


def _learned(estimator: Any) -> dict[str, Any]:
    """Return what a file holds of what an estimator has learned."""
    if isinstance(estimator, StoredEstimator):
        state = estimator.__getstate__()
        return {name: state[name] for name in estimator._learned if name in state}
    given = estimator.get_params(deep=False)
    found = {key: value for key, value in vars(estimator).items() if key not in given}
    found.pop("_sklearn_output_config", None)
    return found


def _allowed(estimator: Any) -> set[str]:
    if isinstance(estimator, StoredEstimator):
        return set(estimator._learned)
    of_all = {"n_features_in_", "feature_names_in_"}
    return of_all | set(_PLAIN[type(estimator)]) if type(estimator) in _PLAIN else set()


def _check(estimator: Any) -> None:
    """Raise where parameters, or what was learned, are none that an estimator can have."""
    name, problems = type(estimator).__name__, Problems(type(estimator).__name__)
    if isinstance(estimator, StoredEstimator):
        there: Any = copy.copy(estimator)
        if isinstance(getattr(there, "device", None), str):
            there.device = "auto"  # it may be that of another machine
        there._check_parameters()
        if vars(estimator).keys() & estimator._learned.keys():
            estimator._check_stored(problems)
    elif name in _OBJECTIVES:
        estimator.check(problems, "")
    elif isinstance(estimator, Pipeline):
        steps = estimator.steps
        if not isinstance(steps, list) or not all(map(_is_step, steps)) or not steps:
            problems.add("steps", "a list of (name, estimator)", steps)
        elif len({step for step, _ in steps}) < len(steps):
            problems.add("steps", "different names", [step for step, _ in steps])
    elif isinstance(estimator, FrozenEstimator):
        if not isinstance(estimator.estimator, BaseEstimator):
            problems.add("estimator", "an estimator", estimator.estimator)
    else:
        estimator._validate_params()
        if learned := _learned(estimator):
            problems.messages += [f"{name}: {fault}" for fault in _faults(estimator, learned)]
    problems.raise_if_any()


def _is_step(step: Any) -> bool:
    if not isinstance(step, tuple) or len(step) != 2 or not isinstance(step[0], str):
        return False
    return step[1] in (None, "passthrough") or isinstance(step[1], BaseEstimator)


def _faults(estimator: Any, learned: Mapping[str, Any]) -> Iterator[str]:
    """Say what of scikit-learn's own cannot be, by the table."""
    table = _PLAIN[type(estimator)]
    idle = {k for k, parameter in _ONLY_WITH.items() if not getattr(estimator, parameter, True)}
    for key in table.keys() - learned.keys() - _NOT_NEEDED - idle:
        yield f"{key} is missing"
    n = learned.get("n_features_in_")
    if "n_features_in_" in learned and Integer(1).fault(n):
        yield f"n_features_in_ is {n!r}"
    sizes = {} if n is None else {"n": n}
    names = learned.get("feature_names_in_")
    if names is not None and (np.shape(names) != (n,) or not all(type(v) is str for v in names)):
        yield f"feature_names_in_ are not {n} names"
    for key, value in learned.items():
        if key in ("n_features_in_", "feature_names_in_"):
            continue
        if not any(_is(value, what, sizes) for what in table.get(key, ())):
            yield f"{key} is {type(value).__name__} of shape {np.shape(value)}"


def _is(value: Any, what: Any, sizes: dict[str, int]) -> bool:
    """Whether a value is one of the things of the table; the first array decides on other axes."""
    if what is None:
        return value is None
    if what == _TEXT:
        return isinstance(value, str)
    if what == _ESTIMATOR:
        return isinstance(value, BaseEstimator)
    numbers = isinstance(value, int | float | np.generic | np.ndarray)
    if not numbers or np.asarray(value).dtype.kind not in "fiu" or not np.isfinite(value).all():
        return False
    shape = np.shape(value)
    if what == _NUMBER:
        return shape == ()
    if len(shape) != len(what):
        return False
    return all(
        sizes.setdefault(axis, length) == length for axis, length in zip(what, shape, strict=True)
    )
