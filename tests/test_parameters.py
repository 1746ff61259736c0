"""The six parameters: in one place, consistent with the files and the prior."""

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import skatr_sk
from skatr_sk import load_lightcones
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
