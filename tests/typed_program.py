"""A user's program, which mypy checks and nobody runs: classes are known after ``fit``."""

from typing import Any, assert_type

import numpy as np
import torch

from skatr_sk import HeadSearchCV, LightconeRegressor, PosteriorEstimator, SKATRTransformer
from skatr_sk.evaluation import cross_val_draws
from skatr_sk.summaries.vit import Encoder


def program() -> tuple[object, ...]:
    X, y = np.zeros((4, 3)), np.zeros((4, 2))

    skatr = assert_type(
        SKATRTransformer(max_epochs=1).fit(X, groups=[0, 0, 1, 1]), SKATRTransformer
    )
    assert_type(skatr.encoder_, Encoder)
    assert_type(SKATRTransformer.load("weights.safetensors"), SKATRTransformer)
    module: torch.nn.Module = skatr.as_module()
    summaries: np.ndarray = skatr.transform(X)
    assert_type(SKATRTransformer().fit_transform(X), np.ndarray)
    distance: np.ndarray = assert_type(skatr.learn_novelty(X, y), SKATRTransformer).novelty(X)[0]

    head = assert_type(LightconeRegressor().fit(X, y, validation_data=(X, y)), LightconeRegressor)
    assert_type(head.history_, list[dict[str, Any]])
    predicted: np.ndarray = head.predict(X)
    both: tuple[np.ndarray, np.ndarray] = head.predict(X, return_std=True)

    search = HeadSearchCV(head, {"learning_rate": [1e-3, 1e-2]})
    assert_type(search.fit(X, y, sample_weight=[1] * 4), HeadSearchCV)

    posterior = assert_type(
        PosteriorEstimator().fit(X, y, sample_weight=[1] * 4), PosteriorEstimator
    )
    assert_type(posterior.parameter_names_, list[str])
    samples: np.ndarray = posterior.sample(X, 10)
    draws: np.ndarray = cross_val_draws(posterior, X, y)
    return module, summaries, distance, predicted, both, samples, draws
