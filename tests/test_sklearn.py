"""scikit-learn's own estimator checks, on small estimators that train for a moment."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skatr_sk import (
    HeadSearchCV,
    LightconeRegressor,
    LightconeResampler,
    NoiseTransformer,
    PosteriorEstimator,
    PowerSpectrumTransformer,
    SKATRTransformer,
)
from skatr_sk.summaries import LeJEPA


def small_transformer():
    return SKATRTransformer(
        embed_dim=8,
        depth=1,
        n_heads=2,
        objective=LeJEPA(),  # the one that trains the soonest
        max_epochs=1,
        batch_size=32,
        device="cpu",
    )


def small_regressor():
    return LightconeRegressor(
        hidden_dims=(16,), max_epochs=6, learning_rate=5e-2, patience=None, device="cpu"
    )


def small_posterior():
    return PosteriorEstimator(
        n_blocks=1,
        n_bins=4,
        hidden_dims=(8,),
        n_members=1,
        max_epochs=1,
        patience=None,
        device="cpu",
    )


def not_expected_to_hold(estimator):
    """A repeated row is in two batches and on two sides of the split, a heavy one is in one."""
    why = "networks are trained by batches in random order"
    name = "check_sample_weight_equivalence_on_dense_data"
    heads = LightconeRegressor | PosteriorEstimator | HeadSearchCV
    takes_weights = isinstance(estimator, heads)
    return {name: why} if takes_weights else {}


# Some of scikit-learn's checks draw from numpy's global generator themselves; that ours do not is
# tested in test_contract.py.
@pytest.mark.changes_global_state
@parametrize_with_checks(
    [
        small_transformer(),
        small_regressor(),
        small_posterior(),
        HeadSearchCV(
            small_regressor().set_params(random_state=0), {"weight_decay": [0.0, 1e-3]}, cv=2
        ),
        LightconeResampler(factor=0.5),
        NoiseTransformer(noise=0.5),
        PowerSpectrumTransformer(),
    ],
    expected_failed_checks=not_expected_to_hold,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
