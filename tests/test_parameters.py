"""The six parameters: in one place, consistent with the files and the prior."""

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

import skatr_sk
from skatr_sk import (
    LightconeRegressor,
    PosteriorEstimator,
    SimulatedLightcones,
    SKATRTransformer,
    load_lightcones,
    open_lightcones,
    save_lightcones,
)
from skatr_sk.evaluation import (
    LightconeDisplay,
    PosteriorDisplay,
    RecoveryDisplay,
    data_efficiency_curve,
    r2_per_parameter,
)
from skatr_sk.lightcones import to_xarray
from skatr_sk.parameters import PARAMETER_NAMES, PARAMETER_UNITS, PARAMETERS, PRIOR_BOUNDS


def test_the_six_in_the_order_of_the_paper():
    assert PARAMETER_NAMES == ("m_WDM", "Omega_m", "E_0", "log10_L_X", "log10_T_vir", "zeta")
    assert list(PARAMETER_UNITS) == list(PARAMETER_NAMES)
    assert PARAMETER_UNITS["E_0"] == "eV" and PARAMETER_UNITS["zeta"] == ""
    assert len({parameter.attribute for parameter in PARAMETERS}) == 6


def test_the_prior_of_the_paper():
    box = [[0.3, 10], [0.2, 0.4], [100, 1500], [38, 42], [4, 5.3], [10, 250]]
    np.testing.assert_array_equal(PRIOR_BOUNDS, box)
    with pytest.raises(ValueError, match="read-only"):
        PRIOR_BOUNDS[0, 0] = 0.0


def test_logarithms_say_so_in_name_and_unit():
    for parameter in PARAMETERS:
        is_log = parameter.name.startswith("log10_")
        assert parameter.logarithmic is is_log
        wanted = f"log10({parameter.symbol_unit})" if is_log else parameter.symbol_unit
        assert parameter.unit == wanted


def test_the_bundled_light_cones_have_these_names_and_lie_in_the_box():
    cones = load_lightcones()
    assert tuple(cones.target_names) == PARAMETER_NAMES
    np.testing.assert_array_equal(cones.target_bounds, PRIOR_BOUNDS)
    assert (cones.target >= PRIOR_BOUNDS[:, 0]).all() and (cones.target <= PRIOR_BOUNDS[:, 1]).all()


def test_symbols_can_be_drawn():
    from matplotlib.mathtext import MathTextParser

    matplotlib.use("Agg")
    parser = MathTextParser("path")
    for parameter in PARAMETERS:
        assert parser.parse(parameter.symbol).width > 0
    symbols = {
        parameter.name: (parameter.symbol, parameter.symbol_unit) for parameter in PARAMETERS
    }
    assert symbols["zeta"] == (r"$\zeta$", "")
    assert symbols["m_WDM"] == (r"$m_\mathrm{WDM}$", "keV")
    assert symbols["log10_T_vir"] == (r"$\log_{10} T_\mathrm{vir}$", "K")


def test_the_six_are_written_down_nowhere_else():
    """A list of them beside this one would go its own way."""
    package = Path(skatr_sk.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        words = {node.value for node in nodes if isinstance(node, ast.Constant)}
        if path.name != "parameters.py" and len(words & set(PARAMETER_NAMES)) > 3:
            found.append(str(path.relative_to(package)))
    assert not found


# --- tables in another order --------------------------------------------------------------------
# m_WDM and zeta swapped: every value is in the range of the other, so that nothing else objects.
NAMES = list(PARAMETER_NAMES)
SWAPPED = [*NAMES[-1:], *NAMES[1:-1], *NAMES[:1]]
SMALL = dict(hidden_dims=(4,), n_members=1, max_epochs=1, device="cpu", random_state=0)
SUPERVISED = dict(objective="supervised", patch_size=(7, 7, 15), embed_dim=16, depth=1, n_heads=2)


def tables(n=24):
    cones = load_lightcones()
    y = pd.DataFrame(cones.target[:n], columns=NAMES)
    bounds = pd.DataFrame(cones.target_bounds, index=NAMES)
    return cones.data[:n].astype(np.float32), y, bounds


def saved(path, order, **labels):
    fields, y, _ = tables()
    save_lightcones(path / "cones.h5", fields[:4], y[:4][order], **labels)


def bunch(path):
    saved(path, NAMES)
    found = open_lightcones(path / "cones.h5", as_frame=True)
    found.target = found.target[SWAPPED]
    return found


def summaries():
    _, y, _ = tables()
    return np.random.default_rng(0).normal(size=(24, 5)), y


def head(kind, **parameters):
    return kind(**SMALL, **parameters)


def of_validation(path):
    X, y = summaries()
    given = X[16:], y[16:][SWAPPED]
    flow = head(PosteriorEstimator, n_blocks=1, parameter_names=NAMES)
    flow.fit(X[:16], y[:16].to_numpy(), validation_data=given)


def overlaid(path):
    X, y = summaries()
    each = (head(PosteriorEstimator, n_blocks=1).fit(X, y[names]) for names in (NAMES, SWAPPED))
    PosteriorDisplay.from_estimator(dict(zip("ab", each, strict=True)), X[:1], n_samples=50)


def of_supervised(path):
    fields, y, _ = tables()
    skatr = SKATRTransformer(**SUPERVISED, max_epochs=1)
    skatr.fit(fields[:16], y[:16], validation_data=(fields[16:], y[16:][SWAPPED]))


def edges(path):
    X, y = summaries()
    bounds = tables()[2].loc[SWAPPED]
    RecoveryDisplay.from_estimator(head(LightconeRegressor).fit(X, y), X, y, bounds=bounds)


def curve(path):
    X, y = summaries()
    data_efficiency_curve(Ridge(), X, y, [12], parameter_names=SWAPPED, cv=2)


SIMULATED = dict(field_shape=(8, 8, 20), random_state=0)
USES = {
    "names of a file": lambda path: saved(path, SWAPPED, target_names=NAMES),
    "bounds of a file": lambda path: saved(path, NAMES, target_bounds=tables()[2].loc[SWAPPED]),
    "file of a Bunch": lambda path: save_lightcones(path / "2.h5", bunch(path)),
    "xarray": lambda path: to_xarray(bunch(path)),
    "light cones": lambda path: LightconeDisplay.from_bunch(bunch(path)),
    "simulated": lambda path: SimulatedLightcones(
        2, parameters=tables()[1][:2][SWAPPED], **SIMULATED
    ),
    "drawn": lambda path: SimulatedLightcones(
        2, prior_bounds=tables()[2].loc[SWAPPED], **SIMULATED
    ),
    "predictions": lambda path: r2_per_parameter(tables()[1], tables()[1][SWAPPED]),
    "validation": of_validation,
    "overlaid": overlaid,
    "supervised": of_supervised,
    "edges": edges,
    "curve": curve,
}


@pytest.mark.filterwarnings("ignore::skatr_sk.ShortTrainingWarning")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_tables_in_another_order_are_refused(use, tmp_path):
    with pytest.raises(ValueError, match=r"order|expected the columns of y|expected posteriors of"):
        use(tmp_path)
