"""Self-supervised summaries of 21 cm light cones, as scikit-learn estimators.

The way of the data is the layout of the package:

1. :mod:`skatr_sk.lightcones` reads light cones ``(n, n_x, n_y, n_z)`` in mK, and
   :mod:`skatr_sk.simulator` makes approximate ones;
2. :mod:`skatr_sk.summaries` scales them, pre-trains an encoder without labels and freezes it
   (:class:`SKATRTransformer`);
3. :mod:`skatr_sk.heads` learns parameters from summaries (:class:`LightconeRegressor`), or their
   whole posterior (:class:`PosteriorEstimator`);
4. :mod:`skatr_sk.evaluation` judges and draws.

>>> from sklearn.pipeline import make_pipeline
>>> pipe = make_pipeline(SKATRTransformer(random_state=0), LightconeRegressor(random_state=0))
>>> [name for name, _ in pipe.steps]
['skatrtransformer', 'lightconeregressor']
"""

from skatr_sk._checks import (
    AssumedGridWarning,
    CheckpointWarning,
    DivergenceWarning,
    ExtrapolationWarning,
    InvalidParameterError,
    NeverSeenWarning,
    NoEffectWarning,
    PlaceWarning,
    PriorWarning,
    ShortTrainingWarning,
    UnitsWarning,
)
from skatr_sk._version import __version__
from skatr_sk.heads import (
    HeadSearchCV,
    LightconeRegressor,
    PosteriorEstimator,
    load_model,
    save_model,
)
from skatr_sk.lightcones import (
    LightconeArray,
    LightconeResampler,
    NoiseTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.simulator import SimulatedLightcones, make_lightcones
from skatr_sk.summaries import (
    BlockMask,
    CollapseWarning,
    PowerSpectrumTransformer,
    SKATRTransformer,
)

__all__ = [
    "AssumedGridWarning",
    "BlockMask",
    "CheckpointWarning",
    "CollapseWarning",
    "DivergenceWarning",
    "ExtrapolationWarning",
    "HeadSearchCV",
    "InvalidParameterError",
    "LightconeArray",
    "LightconeRegressor",
    "LightconeResampler",
    "NeverSeenWarning",
    "NoEffectWarning",
    "NoiseTransformer",
    "PlaceWarning",
    "PosteriorEstimator",
    "PowerSpectrumTransformer",
    "PriorWarning",
    "ShortTrainingWarning",
    "SKATRTransformer",
    "SimulatedLightcones",
    "UnitsWarning",
    "__version__",
    "load_lightcones",
    "load_model",
    "make_lightcones",
    "open_lightcones",
    "save_lightcones",
    "save_model",
]
