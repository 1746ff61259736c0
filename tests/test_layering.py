"""The layout of the package: who imports whom, and the shape of a module.

The rules are data (`STAGES`, `TORCH_ONLY`, ...); `problems` applies them to modules given as
source text, so that the last tests can show that each rule catches what it should.
"""

import ast
import importlib
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "skatr_sk"

# The way of the data: a stage imports from itself and from earlier stages only.
STAGES = ["simulator", "lightcones", "summaries", "heads", "evaluation"]
# These, and all that they import of the package, run without scikit-learn and skorch.
TORCH_ONLY = {
    "skatr_sk.simulator.collapsed_fraction",
    "skatr_sk.simulator.cosmology",
    "skatr_sk.simulator.initial_conditions",
    "skatr_sk.simulator.ionisation",
    "skatr_sk.simulator.lightcone",
    "skatr_sk.simulator.lyman_alpha",
    "skatr_sk.simulator.settings",
    "skatr_sk.simulator.simulated",
    "skatr_sk.simulator.sources",
    "skatr_sk.simulator.spin_temperature",
    "skatr_sk.simulator.xrays",
    "skatr_sk.summaries.embedding",
    "skatr_sk.summaries.invariance",
    "skatr_sk.summaries.vit",
    "skatr_sk.summaries.masking",
    "skatr_sk.summaries.jepa",
    "skatr_sk.heads.flow",
    "skatr_sk.heads.joint",
}
NOT_IN_TORCH_ONLY = {"sklearn", "skorch"}
# Whoever has two arrays can use the metrics.
METRICS = "skatr_sk.evaluation.metrics"
METRICS_MAY_IMPORT = {"numpy", "scipy", PACKAGE} | sys.stdlib_module_names
METRICS_MAY_IMPORT_OF_THE_PACKAGE = {"skatr_sk._rank"}
MIN_LINES, MAX_LINES = 60, 350
ANY_SHAPE = {
    "__init__",
    "_files",
    "_rank",
    "_version",
}  # last parts of names, free of the rules on shape

IMPORT_NAMES = {"scikit-learn": "sklearn"}  # where it is not the distribution's


def _required():
    """The packages that are always there: only they may be imported at module level."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = [Requirement(given).name for given in tomllib.loads(text)["project"]["dependencies"]]
    return {IMPORT_NAMES.get(name, name) for name in names} | sys.stdlib_module_names | {PACKAGE}


class Import(NamedTuple):
    module: str  # what is imported, in full
    line: int
    in_function: bool
    for_types: bool  # below `if TYPE_CHECKING`, so it never runs


def _sources():
    """Every module of the package: its dotted name (packages end in __init__) and its text."""
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def _imports(name, source, modules):
    """Imports of one module, relative ones resolved, submodules told apart from attributes."""

    def resolve(node):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = name.split(".")[: -node.level] if node.level else []
        base = ".".join(base + ([node.module] if node.module else []))
        for alias in node.names:
            full = f"{base}.{alias.name}"
            is_module = full in modules or f"{full}.__init__" in modules
            yield full if is_module else base

    def walk(node, in_function, for_types):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in resolve(node):
                yield Import(module, node.lineno, in_function, for_types)
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, in_function, True)
            for child in node.orelse:
                yield from walk(child, in_function, for_types)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function, for_types)

    return list(walk(ast.parse(source), False, False))


def _stage(module):
    parts = module.split(".")
    return STAGES.index(parts[1]) if len(parts) > 1 and parts[1] in STAGES else None


def _order_problems(name, imports):
    own = _stage(name)
    if own is None and name == f"{PACKAGE}.__init__":
        return  # the front door shows all stages
    for found in imports:
        other = _stage(found.module)
        if found.module == PACKAGE:
            yield found.line, "imports from the package's front door, which imports every stage"
        elif other is not None and (own is None or other > own):
            where = "below all stages" if own is None else f"stage {STAGES[own]}"
            yield found.line, f"{where}, imports {found.module} of stage {STAGES[other]}"


def _torch_only_problems(name, graph):
    """Follow imports inside the package: what a torch-only module imports is torch-only too."""
    seen, todo = {name}, [(name, None)]
    while todo:
        module, first_line = todo.pop()
        for found in graph[module]:
            if found.for_types:
                continue
            line = first_line or found.line
            if found.module.split(".")[0] in NOT_IN_TORCH_ONLY:
                yield line, f"torch only, but imports {found.module} (in {module})"
            for inner in (found.module, f"{found.module}.__init__"):
                if inner in graph and inner not in seen:
                    seen.add(inner)
                    todo.append((inner, line))


def _metrics_problems(imports):
    for found in imports:
        root = found.module.split(".")[0]
        if root not in METRICS_MAY_IMPORT or (
            root == PACKAGE and found.module not in METRICS_MAY_IMPORT_OF_THE_PACKAGE
        ):
            yield found.line, f"the metrics import {found.module}: only numpy and scipy are allowed"


def _optional_problems(imports, required):
    for found in imports:
        if found.in_function or found.for_types:
            continue
        if found.module.split(".")[0] not in required:
            yield (
                found.line,
                f"imports {found.module}, which is not a required dependency, at module level: "
                "import it in the function that needs it",
            )


def _shape_problems(source):
    lines = len(source.splitlines())
    if not MIN_LINES <= lines <= MAX_LINES:
        yield lines, f"has {lines} lines, not {MIN_LINES} to {MAX_LINES}"
    body = ast.parse(source).body
    if ast.get_docstring(ast.parse(source)) is None:
        yield 1, "has no docstring"
        return
    for node in body[1:]:
        names = [ast.unparse(target) for target in getattr(node, "targets", [])]
        if names == ["__all__"]:
            return
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Try | ast.If):
            break
    yield body[0].lineno, "does not open with __all__: docstring, imports, __all__, then the rest"


def problems(sources):
    """All breaches of the rules, as lines of text, in modules given by name and source."""
    required = _required()
    graph = {name: _imports(name, source, sources) for name, source in sources.items()}
    found = []
    for name, source in sources.items():
        each = [*_order_problems(name, graph[name]), *_optional_problems(graph[name], required)]
        if name in TORCH_ONLY:
            each += _torch_only_problems(name, graph)
        if name == METRICS:
            each += _metrics_problems(graph[name])
        if name.split(".")[-1] not in ANY_SHAPE:
            each += _shape_problems(source)
        found += [f"{name}, line {line}: {what}" for line, what in each]
    return found


def test_package_keeps_its_layers():
    found = problems(_sources())
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in _sources()])
def test_all_names_exist(name):
    module = importlib.import_module(name)
    missing = [given for given in getattr(module, "__all__", []) if not hasattr(module, given)]
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


def _module(*lines):
    """A module of good shape with the given lines after its `__all__`."""
    return "\n".join(['"""Text."""', "__all__ = []", *lines, *["pass"] * MIN_LINES])


GOOD = {
    "skatr_sk.__init__": "from skatr_sk.heads.regression import Head",
    "skatr_sk._checks": _module("import numpy as np", "import sklearn"),
    "skatr_sk._rank": "import numpy as np",
    "skatr_sk.lightcones.io": _module("from .. import _checks", "import h5py"),
    "skatr_sk.summaries.vit": _module("import torch", "from torch import nn"),
    "skatr_sk.summaries.jepa": _module("from .vit import Encoder", "import math"),
    "skatr_sk.summaries.transformer": _module("from ..lightcones.io import open_lightcones"),
    "skatr_sk.heads.regression": _module("from skatr_sk.summaries import transformer"),
    "skatr_sk.evaluation.metrics": _module("import numpy", "from skatr_sk._rank import rank"),
    "skatr_sk.evaluation.plots": _module("def draw():", "    import matplotlib.pyplot as plt"),
}


def test_a_good_package_has_no_problems():
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("lightcones.io", _module("from ..heads.regression import Head"), "of stage heads"),
        (
            "lightcones.io",
            _module("def f():", "    import skatr_sk.summaries.vit"),
            "of stage summ",
        ),
        (
            "summaries.vit",
            _module("from skatr_sk.evaluation import metrics"),
            "of stage evaluation",
        ),
        ("_checks", _module("from skatr_sk.lightcones.io import read"), "below all stages"),
        ("heads.regression", _module("from skatr_sk import load_lightcones"), "front door"),
        ("summaries.jepa", _module("from sklearn.base import clone"), "torch only"),
        ("summaries.jepa", _module("from skatr_sk._checks import check"), "imports sklearn (in "),
        ("summaries.jepa", _module("def f():", "    import skorch"), "imports skorch"),
        ("evaluation.metrics", _module("import torch"), "the metrics import torch"),
        ("evaluation.metrics", _module("from .. import _checks"), "import skatr_sk._checks"),
        ("evaluation.plots", _module("import matplotlib.pyplot as plt"), "at module level"),
        (
            "evaluation.plots",
            _module("try:", " import pandas", "except: ..."),
            "at module level",
        ),
        ("heads.regression", _module(*["pass"] * MAX_LINES), "lines, not"),
        ("heads.regression", '"""Text."""\n__all__ = []', "has 2 lines"),
        ("heads.regression", "import math\n" * MIN_LINES, "no docstring"),
        ("heads.regression", _module().replace("__all__", "names"), "does not open with __all__"),
    ],
)
def test_a_planted_violation_is_found(name, source, message):
    (found,) = problems(GOOD | {f"{PACKAGE}.{name}": source})
    assert found.startswith(f"{PACKAGE}.{name}, line ")
    assert message in found


def test_imports_for_types_alone_are_free():
    source = _module("if TYPE_CHECKING:", "    import matplotlib", "    import sklearn")
    assert problems(GOOD | {"skatr_sk.summaries.jepa": source}) == []
