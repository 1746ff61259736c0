"""run_21cmfast, with a module that stands in for 21cmFAST."""

import json
import os
import re
import signal
import sys

import h5py
import numpy as np
import pytest

from skatr_sk import SimulatedLightcones, open_lightcones
from skatr_sk.lightcones import run_21cmfast

# It notes each run, and does what the file `does` says for its seed.
STAND_IN = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np

__version__ = "3.4.0"
HERE = Path(__file__).parent

def run_lightcone(**given):
    seed = given["random_seed"]
    with open(HERE / "runs", "a") as file:
        file.write(json.dumps(given) + "\\\\n")
    does = json.loads((HERE / "does").read_text()).get(str(seed), "")
    if does == "fail":
        raise RuntimeError("GenericError in ComputeTsBox")
    if does == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if does == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
    n = given["user_params"]["HII_DIM"]
    cells = np.random.default_rng(seed).normal(size=(n, n, 20))
    return SimpleNamespace(brightness_temp=cells, lightcone_redshifts=np.linspace(5, 6, 20))
""".replace("\\\\n", "\\n")
SMALL = dict(field_shape=(4, 4, 12), cell_size=5.0, random_state=3)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that says what rows do, by their seeds, and gives the inputs of the runs."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "py21cmfast.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "py21cmfast", raising=False)

    def does(**what):
        (folder / "does").write_text(json.dumps({name[1:]: does for name, does in what.items()}))
        runs = folder / "runs"
        lines = runs.read_text().splitlines() if runs.exists() else []
        runs.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    does()
    yield does
    sys.modules.pop("py21cmfast", None)


def seeds_of(n):
    from skatr_sk.lightcones.running import _seed

    return [_seed(3, row) for row in range(n)]


def test_settings_labels_and_cells(stand_in, tmp_path):
    path = tmp_path / "cones.h5"
    run_21cmfast(path, 3, n_jobs=2, **SMALL)
    runs = sorted(stand_in(), key=lambda run: seeds_of(3).index(run["random_seed"]))
    cones = open_lightcones(path)
    expected = SimulatedLightcones(3, **SMALL)
    np.testing.assert_array_equal(cones.target, expected.target)
    np.testing.assert_array_equal(cones.seeds, seeds_of(3))
    assert cones.target_names[0] == "m_WDM"
    assert cones.target_bounds[1].tolist() == [0.2, 0.4]
    np.testing.assert_allclose(cones.redshifts[1], np.linspace(5, 6, 20)[:12], rtol=1e-6)
    for row, (run, y) in enumerate(zip(runs, expected.target, strict=True)):
        cells = np.random.default_rng(run["random_seed"]).normal(size=(4, 4, 20))[..., :12]
        np.testing.assert_array_equal(cones.data[row], cells.astype(np.float16))
        assert (run["P_CUTOFF"], run["M_WDM"]) == (True, y[0])
        assert run["cosmo_params"] == {"OMm": y[1]}
        assert list(run["astro_params"].values()) == [y[5], y[3], y[2], y[4]]
        assert run["user_params"]["BOX_LEN"] == 20 and run["user_params"]["DIM"] == 12
        assert run["flag_options"]["USE_TS_FLUCT"] and not run["flag_options"]["INHOMO_RECO"]
        assert (run["redshift"], run["ZPRIME_STEP_FACTOR"]) == (5.0, 1.1)
    assert {each.name for each in tmp_path.iterdir()} == {"stand-in", "cones.h5"}


def test_failures_are_told_and_take_nothing_down(stand_in, tmp_path):
    path, seeds = tmp_path / "cones.h5", seeds_of(4)
    stand_in(**{f"s{seeds[0]}": "fail", f"s{seeds[2]}": "crash"})
    with pytest.raises(RuntimeError, match=r"failed in 2 of 4 .*row 0: .*ComputeTsBox, row 2") as e:
        run_21cmfast(path, 4, **SMALL)
    assert "call again" in str(e.value)
    assert not path.exists()
    stand_in(**{f"s{seeds[2]}": "crash"})  # the first would do now
    with pytest.warns(UserWarning, match="failed in 1 of 4 light cones, which are left out"):
        run_21cmfast(path, 4, on_failure="drop", **SMALL)
    assert [run["random_seed"] for run in stand_in()] == [seeds[0], seeds[2]]  # no other again
    cones = open_lightcones(path)
    np.testing.assert_array_equal(cones.seeds, [seeds[0], seeds[1], seeds[3]])
    np.testing.assert_array_equal(cones.target, SimulatedLightcones(4, **SMALL).target[[0, 1, 3]])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_killed_run_goes_on(stand_in, tmp_path):
    path, seeds = tmp_path / "cones.h5", seeds_of(3)
    stand_in(**{f"s{seeds[1]}": "kill"})
    child = os.fork()
    if not child:
        try:
            run_21cmfast(path, 3, dark_matter="cold", **SMALL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not path.exists()
    assert [run["random_seed"] for run in stand_in()] == seeds[:2]
    with pytest.raises(ValueError, match="parts of another"):
        run_21cmfast(path, 3, **SMALL)  # warm
    run_21cmfast(path, 3, dark_matter="cold", **SMALL)
    runs = stand_in()
    assert [run["random_seed"] for run in runs] == seeds[1:]
    assert not runs[0]["P_CUTOFF"] and "M_WDM" not in runs[0]
    with h5py.File(path) as file:
        assert file["brightness_temp"].shape == (3, 4, 4, 12)
    assert {each.name for each in tmp_path.iterdir()} == {"stand-in", "cones.h5"}


def test_what_is_missing_or_wrong_is_said(stand_in, tmp_path, monkeypatch):
    def run(**changes):
        run_21cmfast(tmp_path / "cones.h5", 1, **(SMALL | changes))

    with pytest.raises(ValueError, match="field_shape: expected a square sky"):
        run(field_shape=(4, 6, 12))
    with pytest.raises(ValueError, match="2 invalid parameters"):
        run(n_jobs=0, on_failure="wait")
    with pytest.raises(ValueError, match="prior_bounds: expected"):
        run(prior_bounds=[1, 2])
    import py21cmfast

    monkeypatch.setattr(py21cmfast, "__version__", "4.1.0")
    with pytest.raises(
        ImportError, match=r"3\.4, found 4\.1\.0; version 4 has no warm dark matter"
    ):
        run()
    monkeypatch.setitem(sys.modules, "py21cmfast", None)
    with pytest.raises(ImportError, match=re.escape('pip install "skatr_sk[simulate]"')):
        run()
