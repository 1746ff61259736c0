"""A controlled problem: Gaussian random fields whose slope and anisotropy are to be found."""

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SLOPE = (1.0, 4.0)
LOG_ANISOTROPY = (-1.2, 1.2)


def gaussian_fields(n, seed, field_shape=(16, 16, 16)):
    """Fields (n, *field_shape) and what they were drawn with: (n, 2), slope and log anisotropy.

    The power spectrum falls as (k_sky^2 + (a k_z)^2)^(-slope / 2). Each field is standardised, so
    that its mean and variance say nothing.
    """
    rng = np.random.default_rng(seed)
    slope, log_a = rng.uniform(*SLOPE, n), rng.uniform(*LOG_ANISOTROPY, n)
    k = np.meshgrid(*(np.fft.fftfreq(size) for size in field_shape), indexing="ij")
    sky, along = sum(c**2 for c in k[:-1]), k[-1] ** 2
    fields = np.empty((n, *field_shape), dtype=np.float32)
    for i in range(n):
        k2 = sky + np.exp(2 * log_a[i]) * along
        k2.flat[0] = np.inf  # the mean has no power
        modes = np.fft.fftn(rng.standard_normal(field_shape)) * k2 ** (-slope[i] / 4)
        field = np.fft.ifftn(modes).real
        fields[i] = (field - field.mean()) / field.std()
    return fields, np.column_stack([slope, log_a])


def ridge_probe(summaries, y):
    """R2 of each parameter on the second half of the fields, by a ridge fitted on the first."""
    half = len(y) // 2
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 17)))
    predicted = probe.fit(summaries[:half], y[:half]).predict(summaries[half:])
    return r2_score(y[half:], predicted, multioutput="raw_values")
