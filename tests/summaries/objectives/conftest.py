"""Maps, and labels that they show: the mean and the standard deviation of each."""

import numpy as np
import pytest


@pytest.fixture
def X(rng):
    return rng.normal(size=(24, 8, 6)).astype(np.float32)


@pytest.fixture
def y(X):
    return np.column_stack([X.mean(axis=(1, 2)), X.std(axis=(1, 2))])
