"""Every example runs from start to end, in its fast form."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skatr_sk import SKATRTransformer
from skatr_sk.parameters import PRIOR_BOUNDS
from skatr_sk.summaries.vit import patchify
from tests.lightcones.layouts import thetas, write_v3

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))


def unarranged(figure, *args, save=Figure.savefig, **kwargs):
    figure._layout_engine = None
    save(figure, *args, **kwargs)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, monkeypatch):
    """As a script, but in this process, which has imported torch already."""
    monkeypatch.setenv("SKATR_SK_FAST", "1")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # other tests have other cores
    # Figures are drawn, but not arranged, which takes matplotlib three times as long: it measures
    # all, and draws all another time.
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda self, figure: None)
    monkeypatch.setattr(Figure, "savefig", unarranged)
    monkeypatch.setattr(sys, "argv", [str(example)])
    monkeypatch.syspath_prepend(example.parent)
    monkeypatch.chdir(tmp_path)  # what an example writes does not land in the checkout
    runpy.run_path(str(example), run_name="__main__")


@pytest.mark.slow
def test_readme_goes_from_a_folder_to_a_corner_plot(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)[1]
    assert len([line for line in code.splitlines() if line]) <= 10
    folder = tmp_path / "my_lightcones"
    folder.mkdir()
    for i, theta in enumerate(thetas(9)):
        write_v3(folder / f"LightCone_{i}.h5", seed=i, theta=theta)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["corner"].axes_[5, 0].get_xlabel() == "$m_\\mathrm{WDM}$\n[keV]"
    assert (tmp_path / "corner.png").stat().st_size > 10_000


def load(name):
    """Import a script of the examples; none is run."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow
def test_pretrain_mini_makes_weights_and_tables_and_goes_on(tmp_path, monkeypatch, capsys):
    script = load("run_pretrain_mini")
    command = [str(tmp_path), "--quick", "--seeds", "0", "1", "--from-scratch", "16"]
    script.main([*command, "--part", "simulate", "pretrain", "probe", "few"])
    script.main(command)
    scores = (tmp_path / "scores.jsonl").read_bytes()
    lines = [json.loads(line) for line in scores.splitlines()]
    assert {line["part"] for line in lines} == {"probe", "few", "curve", "shifts", "no-mean"}
    assert {line["way"] for line in lines if line["part"] == "curve"} == {
        *script.RECIPES, script.SIGNAL, script.SCRATCH
    }  # fmt: skip
    for path in (tmp_path / "weights").iterdir():
        assert SKATRTransformer.load(path).history_ or path.name.startswith("random")
    printed = capsys.readouterr().out
    tables = (tmp_path / "tables.rst").read_text()
    for title in ("Real labels, ridge: mean R2", "16 simulated labels, tested on, head", "no mean"):
        assert title in printed and title in tables
    script.main(command)
    assert (tmp_path / "scores.jsonl").read_bytes() == scores  # nothing is fitted twice
    monkeypatch.setitem(script.RECIPES, "jepa", script.RECIPES["jepa"] | dict(max_epochs=4))
    with pytest.raises(SystemExit, match="settings.json has another jepa"):
        script.main(command)


@pytest.mark.slow
def test_novelty_in_a_small_size(tmp_path, capsys):
    load("run_novelty").main([str(tmp_path), "--quick", "--weights", "mini-lr"])
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("white noise of 1 K")]
    assert [row.split()[5:7] for row in rows] == [["1.000", "100.0%"]]
    assert SKATRTransformer.load(tmp_path / "weights" / "mini-lr.safetensors").seen_ is not None


@pytest.mark.slow
def test_noisy_light_cones_are_scored_once(tmp_path, monkeypatch, capsys):
    script = load("run_noisy")
    monkeypatch.setattr(script, "GRID", dict(field_shape=(4, 4, 24), block=(1, 1, 3), cell_size=30))
    for name, value in dict(N_PRETRAIN=16, N_LABELS=8, N_TEST=8, LABELS=(4, 8)).items():
        monkeypatch.setattr(script, name, value)
    command = [str(tmp_path), "--ways", "spectra", "random", "JEPA, fresh noise"]
    script.main([*command, "--subtract-mean"])
    assert "clean, noisy    JEPA, fresh noise" in capsys.readouterr().out
    scores = (tmp_path / "scores.jsonl").read_bytes()
    assert len(scores.splitlines()) == 9
    saved = SKATRTransformer.load(tmp_path / "JEPA, fresh noise.safetensors")
    assert "NoiseTransformer(subtract_mean=True" in saved.augmentation_
    script.main(command)
    assert (tmp_path / "scores.jsonl").read_bytes() == scores  # nothing is fitted twice


def test_tables_compare_ways_on_the_same_labels(tmp_path):
    script = load("run_pretrain_mini")
    folder = script.Folder(tmp_path, script.QUICK, stand_in=True, core_hours=1)
    wanted = dict(part="few", cones="real", fitted="ridge", labels=None)
    for way, seed, fold, r2 in (
        ("jepa", 0, 0, 0.5), ("jepa", 0, 1, 0.7), ("jepa", 1, 0, 0.8), ("random", 0, 0, 0.4)
    ):  # fmt: skip
        line = wanted | dict(way=way, seed=seed, fold=fold)
        folder.lines.append(line | {"scores": {"real": [9.0, r2, r2]}})
    wanted |= dict(test="real")
    assert script.scores_of(folder, "jepa", **wanted) == pytest.approx({0: 0.6, 1: 0.8})
    assert script.over_random(folder, "jepa", **wanted) == pytest.approx({0: 0.2})
    assert script.scores_of(folder, "jepa", column=0, **wanted) == pytest.approx({0: 9, 1: 9})


def test_light_cones_that_differ(rng):
    script = load("run_pretrain_mini")
    redshifts = script.slice_redshifts(script.FULL.grid)
    X = np.zeros((20, 14, 14, 90), dtype=np.float32)
    noise = script.with_noise(X, redshifts).std(axis=(0, 1, 2))
    at = np.searchsorted(redshifts, [9, 19])
    assert noise[at] == pytest.approx([3, 3 * 2**2.55], rel=0.1)
    kept = script.with_cut(X + 1, redshifts).any(axis=(0, 1, 2))
    assert redshifts[kept].min() > 7 and redshifts[kept].max() < 15 and kept.sum() > 40
    y = rng.uniform(*PRIOR_BOUNDS.T, size=(1000, 6))
    correlation = np.corrcoef(y[script.near_a_line(y, 229)].T)
    assert correlation[3, 4] < -0.9
    assert np.abs(correlation[np.triu_indices(6, 1)]).sum() < 1.9  # and none of the others


@pytest.mark.slow
def test_carry_over_makes_a_table_and_goes_on(tmp_path, capsys):
    script = load("run_carry_over")
    command = [str(tmp_path), "--quick"]
    script.main([*command, "--part", "simulate", "pretrain"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "weights").iterdir()}
    assert len(before) == len(script.RECIPES)
    script.main(command)
    scores = (tmp_path / "scores.jsonl").read_text()
    lines = [json.loads(line) for line in scores.splitlines()]
    assert {(line["kind"], line["change"], line["light"]) for line in lines} == set(script.TESTS)
    assert all(len(line["r2"]) == 6 for line in lines)
    printed = capsys.readouterr().out
    assert "fine, m_WDM < 3 keV, as they are" in printed
    assert "four labels" in (tmp_path / "tables.rst").read_text()
    # What was cut off is fitted again, and nothing else.
    (tmp_path / "scores.jsonl").write_text(scores[:-5])
    script.main([*command, "--part", "score"])
    assert (tmp_path / "scores.jsonl").read_text() == scores
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "weights").iterdir()}
    assert after == before


@pytest.mark.slow
def test_full_size_in_a_small_size(tmp_path, capsys):
    weights = tmp_path / "full-lr.safetensors"
    load("run_full_size").main([str(weights), "--quick"])
    stages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [
        "device",
        "tests",
        "simulator",
        "step",
        "summaries",
        "compiled step",
        "pre-training",
        "probe",
        "summary",
    ]
    assert [line["stage"] for line in stages] == names
    assert stages[-1]["step"]["share"] > 0 and stages[-1]["compiled step"]["seconds"] > 0
    assert SKATRTransformer.load(weights).pooling_ == "moments"


def test_full_size_counts_the_operations_of_a_field(torch_seed):
    script = load("run_full_size")
    X = 10 * torch.randn(3, 16, 16, 80)
    parameters = script.LEARNS | dict(patch_size=(4, 4, 10), embed_dim=16, depth=2, max_epochs=0)
    skatr = SKATRTransformer(**parameters).fit(X.numpy())
    architecture, objective = skatr.architecture_, skatr.objective
    network = objective.network(
        architecture.build(), architecture, pooling="moments", n_parameters=0
    )
    pairs = objective.draw(3, architecture.grid_shape, torch.Generator().manual_seed(0))
    patches = patchify(X, architecture.patch_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective.criterion()(network(patches, pairs)).backward()
    counted = 3 * script.field_operations(architecture, objective, pairs)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.slow
def test_joint_posterior_compares_and_goes_on(tmp_path, capsys):
    script = load("run_joint_posterior")
    command = [str(tmp_path), "--quick", "--seconds", "0.5"]
    script.main([*command, "--part", "simulated", "--ways", "joint"])
    script.main(command)
    scores = (tmp_path / "scores.jsonl").read_text()
    lines = [json.loads(line) for line in scores.splitlines()]
    for part in script.PARTS:
        assert {line["way"] for line in lines if line["part"] == part} == set(script.WAYS)
    assert all(np.isfinite(line["nats"]) for line in lines)
    assert "tuned" in capsys.readouterr().out
    script.main(command)
    assert (tmp_path / "scores.jsonl").read_text() == scores  # nothing is fitted twice
