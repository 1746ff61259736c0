"""Truths in another order than the estimator has its parameters are refused wherever they go."""

import numpy as np
import pandas as pd
import pytest

from skatr_sk.evaluation import (
    CoverageDisplay,
    MarginalsDisplay,
    ParameterScorer,
    PosteriorDisplay,
    RecoveryDisplay,
    parameter_scores,
    posterior_draws,
)
from skatr_sk.evaluation.fitted import check_truths, unwrap
from tests.evaluation.posteriors import NAMES, fitted

pytest.importorskip("matplotlib").use("agg")


def tables():
    pipe, X, y = fitted()
    right = pd.DataFrame(y, columns=NAMES)
    return pipe, X, right, right[NAMES[::-1]]


USES = {
    "scores": parameter_scores,
    "scorer": ParameterScorer(NAMES),
    "draws": lambda pipe, X, y: posterior_draws(pipe, X, y=y, n_samples=5),
    "recovery": RecoveryDisplay.from_estimator,
    "marginals": lambda *given: MarginalsDisplay.from_estimator(*given, n_samples=9),
    "coverage": lambda *given: CoverageDisplay.from_estimator(*given, n_samples=9),
    "ranks": lambda *given: CoverageDisplay.from_estimator(*given, n_samples=9, method="ranks"),
    "TARP": lambda *given: CoverageDisplay.from_estimator(*given, n_samples=9, method="tarp"),
    "one": lambda pipe, X, y: PosteriorDisplay.from_estimator(pipe, X[:1], y[:1], n_samples=99),
    "row": lambda pipe, X, y: PosteriorDisplay.from_estimator(pipe, X[:1], y.iloc[0], n_samples=99),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_truths_in_another_order_are_refused(use):
    pipe, X, right, wrong = tables()
    use(pipe, X[:30], right[:30])
    with pytest.raises(ValueError, match=rf"expected the (columns|rows) in the order .*{NAMES[0]}"):
        use(pipe, X[:30], wrong[:30])


def test_names_of_a_scorer_are_those_of_the_table():
    pipe, X, right, _ = tables()
    with pytest.raises(ValueError, match="y: expected the columns in the order"):
        ParameterScorer(NAMES[::-1])(pipe, X, right)


def test_what_has_no_names_is_taken_as_it_is():
    pipe, _, right, _ = tables()
    for y in (right.to_numpy(), right.to_numpy().tolist(), right.iloc[:, 0], None):
        check_truths(pipe, y)
    check_truths(unwrap(pipe)[1], right.rename(columns={NAMES[0]: "another"}))
    assert np.array_equal(unwrap(pipe)[1].parameter_names_, NAMES)
