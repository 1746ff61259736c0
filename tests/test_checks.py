"""Checks: each kind of parameter, the one grammar of messages, names, documentation, warnings."""

import inspect
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import BaseEstimator

from skatr_sk._checks import (
    Bounds,
    Choice,
    EachAxis,
    Flag,
    Instance,
    Integer,
    InvalidParameterError,
    Kind,
    NoEffectWarning,
    PathLike,
    Problems,
    Real,
    Rising,
    Rule,
    UnitsWarning,
    changed_parameters,
    check_options,
    listed,
    nearest_divisors,
    parameter_names,
    require,
    shared_docs,
    spell,
    unchanged_on_error,
    warn,
    warn_without_effect,
)

# Kinds of parameters -----------------------------------------------------------------------------

KINDS = [
    (Integer(1), [1, 7, np.int64(3), np.uint8(1)], [0, -1, 1.0, True, np.True_, "1", None, np.nan]),
    (Integer(0, 3), [0, 3], [4, -1]),
    (Real("[0, 1)"), [0, 0.0, 0.5, np.float32(0.9), Fraction(1, 2)], [1, -0.1, np.nan, True, "0"]),
    (Real("(0, inf)"), [1e-300, 10**9], [0, -1.0, np.inf, None, [1.0]]),
    (Real("(0, 1]"), [1, 1.0], [0, 1.1]),
    (Flag(), [True, False, np.True_], [0, 1, "yes", None]),
    (Choice("mean", "max"), ["mean", "max"], ["Mean", "average", 3, None, ["mean"]]),
    (PathLike(), ["a.h5", Path("a"), None], [3, b"a.h5", ["a"]]),
    (Instance(dict, list, expected="a dict or a list"), [{}, []], [(), None, dict]),
    (Rule(lambda value: value == 3, "three"), [3], [2]),
    (EachAxis(Integer(1)), [1, (1, 2), [3], np.arange(1, 4)], [0, (1, 0), (), "12", 1.5, [[1]]]),
    (EachAxis(Real("(0, inf)"), unit="Mpc"), [1, 2.5, np.array(2.0)], [-1, "a", (1, np.nan)]),
    (EachAxis(Integer(1), shared=False), [(1, 2), [3]], [1, (), None]),
    (Rising(least=2), [[0, 1], np.arange(3)], [[1], [1, 1], [2, 1], [-1, 0], [0, np.inf], "ab", 3]),
    (Bounds(), [[[0, 1], [2, 3]], np.array([[0.0, 1.0]]), None], [[[1, 0]], [0, 1], "prior", 3]),
    (Bounds(n_rows=2), [[[0, 1], [2, 3]]], [[[0, 1]], [[0, 1], [2, 2]], [[0, 1], [0, np.inf]]]),
    (Bounds(pair=True), [(0, 1), [-120, -1]], [(1, 0), (0,), 5, (0, 1, 2), (np.nan, 1), "ab"]),
    (Bounds(unbounded=True), [[[-np.inf, np.inf]]], [[[0, np.inf]], [[-np.inf, 0]]]),
]


def faults(kind, value):
    """Messages about one value, as an estimator would give them."""
    problems = Problems("Estimator")
    problems.check({"name": kind}, {"name": value})
    return problems.messages


def ids(value):
    return type(value).__name__ if isinstance(value, Kind) else str(value)[:30]


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, right, _ in KINDS for value in right], ids=ids
)
def test_right_values(kind, value):
    assert faults(kind, value) == []


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, _, wrong in KINDS for value in wrong], ids=ids
)
def test_wrong_values(kind, value):
    (message,) = faults(kind, value)
    assert re.match(r"name: expected .+, found .+", message), message


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS], ids=ids)
def test_only_optional_kinds_may_be_none(kind):
    assert (faults(kind, None) == []) is kind.optional


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Integer(1), 0, "an integer >= 1, found 0"),
        (Integer(1, optional=True), 0, "an integer >= 1 or None, found 0"),
        (Integer(0, 3), 4, "an integer from 0 to 3, found 4"),
        (Real("[0, 1)"), 1.0, "a number in [0, 1), found 1.0"),
        (Flag(), "yes", "True or False, found 'yes'"),
        (Choice("l1", "l2"), "mse", "one of 'l1', 'l2', found 'mse'; did you mean 'l2'?"),
        (Choice("l1", "l2", optional=True), 3, "one of 'l1', 'l2' or None, found 3"),
        (PathLike(), 3, "a path or None, found 3"),
        (PathLike(optional=False), 3, "a path, found 3"),
        (Instance(dict, expected="a mapping", optional=True), 3, "a mapping or None, found 3"),
        (Rule(lambda v: "add one", "an odd number"), 2, "an odd number, found 2; add one"),
        (Rule(lambda v: False, "five or None"), 2, "five or None, found 2"),
        (Bounds(n_rows=3), np.zeros((2, 3)), "an array of shape (3, 2) or None, found (2, 3); "
         "transpose it"),
        (Bounds(optional=False), [[3, 3]], "finite low < high in every row (see [0]), found "
         "[[3.0, 3.0]]; a box of no width holds no density"),
        (Bounds(optional=False), [[0, 1], [3, 2]], "finite low < high in every row (see [1]), "
         "found [[0.0, 1.0], [3.0, 2.0]]; low and high are swapped"),
        (Bounds(optional=False), [[0, np.inf]], "finite low < high in every row (see [0]), found "
         "[[0.0, inf]]; both ends must be finite"),
        (Bounds(pair=True), (3, 1), "finite (low, high), low < high or None, found [3.0, 1.0]; "
         "low and high are swapped"),
    ],
    ids=ids,
)  # fmt: skip
def test_messages_of_the_kinds(kind, value, message):
    assert faults(kind, value) == [f"name: expected {message}"]


def test_half_a_box_is_explained():
    (message,) = faults(Bounds(unbounded=True), [[0, np.inf], [-np.inf, np.inf]])
    assert "(see [0]), or (-inf, inf) for no bounds" in message
    assert "a box has two ends" in message


@given(st.floats(), st.floats(), st.floats())
def test_a_number_is_in_an_interval_as_written(low, high, value):
    for left, right in ("[]", "()", "[)", "(]"):
        above = value >= low if left == "[" else value > low
        below = value <= high if right == "]" else value < high
        kind = Real(f"{left}{low}, {high}{right}")
        assert (kind.fault(value) is None) is (above and below)


# Messages ----------------------------------------------------------------------------------------


def test_all_problems_are_said_in_one_message():
    problems = Problems("Estimator")
    problems.raise_if_any()
    problems.check({"a": Integer(1), "b": Flag()}, {"a": 0, "b": True})
    problems.add("c", "something else", [1], "change it")
    assert len(problems.messages) == 2
    with pytest.raises(InvalidParameterError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == (
        "Estimator has 2 invalid parameters:\n- a: expected an integer >= 1, found 0\n"
        "- c: expected something else, found [1]; change it"
    )
    for error in (ValueError, TypeError):  # a wrong value may be either
        assert isinstance(caught.value, error)


def test_one_problem_is_no_plural():
    with pytest.raises(ValueError, match=r"^load has 1 invalid parameter:\n- a: expected"):
        check_options("load", {"a": Flag()}, {"a": 3})
    check_options("load", {"a": Flag()}, {"a": False})


def test_values_may_be_attributes_and_names_have_a_prefix():
    @dataclass
    class Objective:
        decay: float = 2.0

    problems = Problems("Estimator")
    problems.check({"decay": Real("[0, 1]")}, Objective(), prefix="objective__")
    assert problems.messages == ["objective__decay: expected a number in [0, 1], found 2.0"]


# Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "options", "suggested"),
    [
        ("gausian", ["l1", "gaussian"], "gaussian"),
        ("GPU", ["auto", "cpu", "cuda"], "cuda"),
        ("MSE", ["l1", "l2"], "l2"),
        ("avg", ["mean", "max"], "mean"),
        ("mse", ["huber"], None),  # what it stands for is no option here
        ("hellinger", ["l1", "l2"], None),
        (3, ["l1"], None),
    ],
)
def test_spelling(found, options, suggested):
    assert spell(found, options) == (f"did you mean {suggested!r}?" if suggested else "")


def test_lists_are_cut():
    assert listed([]) == "" and listed("ab") == "a, b"
    assert listed(range(5)) == "0, 1, 2, 3, 4"
    assert listed(range(7)) == "0, 1, 2, 3, 4 and 2 more"


@given(st.integers(1, 500), st.integers(1, 600))
def test_nearest_divisors(n, wanted):
    found = nearest_divisors(n, wanted)
    assert found and found == sorted(found) and all(n % d == 0 for d in found)
    between = range(found[0] + 1, found[-1])
    assert not any(n % d == 0 for d in between)
    assert found[0] <= wanted and (found[-1] > wanted or n <= wanted)


# Names of parameters -----------------------------------------------------------------------------


def test_names_that_were_given_come_first():
    pandas = pytest.importorskip("pandas")
    y = pandas.DataFrame(np.zeros((3, 2)), columns=["a", "b"])
    assert parameter_names(["c", "d"], y, 2) == ["c", "d"]
    assert parameter_names(("c", "d"), None, 2) == ["c", "d"]
    assert parameter_names(np.array(["c", "d"]), None, 2) == ["c", "d"]
    assert parameter_names(None, y, 2) == ["a", "b"]
    assert parameter_names(None, y["b"], 1) == ["b"]
    assert parameter_names(None, np.zeros((3, 2)), 2) == ["parameter_0", "parameter_1"]


def test_names_that_say_nothing_are_numbered():
    pandas = pytest.importorskip("pandas")
    twice = pandas.DataFrame(np.zeros((3, 2)), columns=["a", "a"])
    assert parameter_names(None, twice, 2) == ["parameter_0", "parameter_1"]
    assert parameter_names(None, pandas.Series(np.zeros(3)), 1) == ["parameter_0"]


@pytest.mark.parametrize("given_names", [["a"], ["a", "a"], ["a", 3], "ab", 7])
def test_wrong_names(given_names):
    with pytest.raises(ValueError, match="parameter_names: expected 2 different strings.*found"):
        parameter_names(given_names, None, 2)


# Optional packages -------------------------------------------------------------------------------


def test_require():
    assert require("math", "plot").sqrt(4) == 2
    assert require("os.path", "plot") is __import__("os").path
    with pytest.raises(ImportError, match=r'plot needs nothing_here.*"skatr_sk\[plots\]"'):
        require("nothing_here.pyplot", "plot", "plots")
    with pytest.raises(ImportError, match=r'"skatr_sk\[nothing_here\]"'):
        require("nothing_here", "to_nothing")


# Documentation -----------------------------------------------------------------------------------


def test_shared_docs_replace_whole_lines_only():
    @shared_docs(
        device="""
        device : str
            Where to compute.

            The second paragraph.
        """,
        seed="seed : int",
    )
    class Estimator:
        """Learn.

        Parameters
        ----------
        loss : {"l1", "l2"}
            Not {device}, which is in a sentence.
        {device}
        {seed}

        Notes
        -----
            {seed}
        """

    assert inspect.getdoc(Estimator) == (
        "Learn.\n\nParameters\n----------\n"
        'loss : {"l1", "l2"}\n    Not {device}, which is in a sentence.\n'
        "device : str\n    Where to compute.\n\n    The second paragraph.\nseed : int\n\n"
        "Notes\n-----\n    seed : int"
    )


def test_shared_docs_of_an_unknown_name():
    with pytest.raises(KeyError, match="device"):

        @shared_docs(seed="seed : int")
        class Estimator:
            """Learn.

            {device}
            """


def test_shared_docs_without_a_docstring():
    """As under python -OO."""

    @shared_docs(device="device : str")
    class Estimator:
        pass

    assert Estimator.__doc__ is None


# Warnings ----------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class Options(BaseEstimator):
    """An estimator whose parameters may have no effect."""

    rate: float = 0.1
    bounds: object = None
    names: tuple = ("a", "b")
    missing: float = float("nan")

    def fit(self, X, y=None):
        warn_without_effect(self, {"rate", "bounds"}, "weights='mini-lr'")
        warn("look here", UnitsWarning)
        return self


@pytest.mark.parametrize(
    ("parameters", "changed"),
    [
        ({}, []),
        (dict(rate=0.1, names=["a", "b"], missing=float("nan")), []),
        (dict(rate=0.2), ["rate"]),
        (dict(bounds=np.zeros((2, 2))), ["bounds"]),
        (dict(names=("a", "c"), missing=0.0), ["names", "missing"]),
        (dict(names=[[1], [1, 2]]), ["names"]),
    ],
    ids=str,
)
def test_changed_parameters(parameters, changed):
    estimator = Options(**parameters)
    assert list(changed_parameters(estimator)) == changed
    assert all(changed_parameters(estimator)[name] is parameters[name] for name in changed)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (dict(rate=0.2), "no effect with weights='mini-lr' of rate; leave it out."),
        (dict(rate=0.2, bounds=1), "no effect with weights='mini-lr' of rate, bounds; leave them"),
        (dict(names=("c",)), None),
    ],
    ids=str,
)
def test_parameters_without_effect(parameters, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Options(**parameters).fit(None)
    told = [str(one.message) for one in caught if one.category is NoEffectWarning]
    assert len(told) == (said is not None)
    if said:
        assert f"Options: {said}" in told[0]


def test_a_warning_points_at_the_line_of_the_user():
    """Through scikit-learn and the package, whatever their depth."""
    from sklearn.pipeline import make_pipeline

    from skatr_sk.fields import as_fields, warn_implausible

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_implausible(as_fields(np.ones((2, 3))))
        make_pipeline(Options(rate=0.2)).fit([[1.0]])
    assert len(caught) == 3
    assert {one.filename for one in caught} == {__file__}


# A fit that fails --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_fit_changes_nothing(error):
    estimator = Options()
    estimator.mean_ = [1.0]
    before = dict(vars(estimator))
    with pytest.raises(error), unchanged_on_error(estimator):
        estimator.mean_, estimator.scale_ = [2.0], 3.0
        del estimator.names
        raise error
    assert vars(estimator) == before and estimator.mean_ is before["mean_"]


def test_a_fit_that_succeeds_stays():
    estimator = Options()
    with unchanged_on_error(estimator):
        estimator.mean_ = [2.0]
    assert estimator.mean_ == [2.0]
