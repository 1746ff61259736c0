"""The layout of the package: who imports whom, what a module may ask, and what is public.

The rules are data (`ROOMS`, `TORCH_ONLY`, ...); `problems` applies them to modules given as source
text, so that the last tests can show that each rule catches what it should.
"""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "skatr_sk"

# The way of the data: each imports from earlier ones only.
STAGES = ["simulator", "lightcones", "summaries", "heads", "evaluation"]
# Rooms from below to above, the shared ones first: a module imports from its own and from lower
# ones.
ROOMS = [{"_checks", "_files", "_version", "grid", "parameters"}]
ROOMS += [
    {"_tensors", "fields", "lazy_fields", "resampling"},
    {"training"},
    *({stage} for stage in STAGES),
]
# These, and all that they import of the package, run without scikit-learn and skorch.
TORCH_ONLY = {
    "skatr_sk.simulator.collapsed_fraction",
    "skatr_sk.simulator.cosmology",
    "skatr_sk.simulator.initial_conditions",
    "skatr_sk.simulator.ionisation",
    "skatr_sk.simulator.lightcone",
    "skatr_sk.simulator.lyman_alpha",
    "skatr_sk.simulator.sources",
    "skatr_sk.simulator.spin_temperature",
    "skatr_sk.simulator.xrays",
    "skatr_sk.summaries.embedding",
    "skatr_sk.summaries.masking",
    "skatr_sk.summaries.pooling",
    "skatr_sk.summaries.vit",
    "skatr_sk.heads.cnn",
    "skatr_sk.heads.flow",
    "skatr_sk.heads.mlp",
    "skatr_sk.heads.ridge",
    "skatr_sk.heads.spline",
    "skatr_sk.heads.stacked",
}
# Whoever has two arrays can use the metrics.
NO_TORCH = {"skatr_sk.evaluation.metrics"}
# These know fields (`skatr_sk.fields`), and neither files nor the simulator.
KNOW_FIELDS_ONLY = {"training", "summaries", "heads", "evaluation"}
# What an argument that holds light cones is called, and what may not be asked of it there.
DATA = {"X", "fields"}
QUESTIONS = {"isinstance", "getattr", "hasattr", "type"}
# What every stage may raise or warn of comes from the shared rooms by the front door.
RAISED_BY_ALL = {"InvalidParameterError", "NoEffectWarning", "PriorWarning", "UnitsWarning"}
RAISED_BY_ALL |= {"AssumedGridWarning"}
RAISED_BY_ALL |= {"PlaceWarning", "ShortTrainingWarning", "DivergenceWarning", "CheckpointWarning"}
RAISED_BY_ALL |= {"NeverSeenWarning", "ExtrapolationWarning"}
# The only module that tells one objective's name from another's.
OBJECTIVES = "skatr_sk.summaries.objectives.__init__"

IMPORT_NAMES = {"scikit-learn": "sklearn"}  # where it is not the distribution's


_parse = functools.cache(ast.parse)  # each rule walks the same trees


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
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING":
            for child in node.body:
                yield from walk(child, in_function, True)
            for child in node.orelse:
                yield from walk(child, in_function, for_types)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function, for_types)

    return list(walk(_parse(source), False, False))


def _level(module):
    """Index into `ROOMS`; None of the front door and of what stands in no room."""
    parts = module.split(".")
    levels = [i for i, room in enumerate(ROOMS) if len(parts) > 1 and parts[1] in room]
    return levels[0] if parts[0] == PACKAGE and levels else None


def _order_problems(name, imports):
    own = _level(name)
    if name == f"{PACKAGE}.__init__":
        return  # the front door shows all stages
    if own is None:
        yield 1, f"stands in no room of {sorted(set().union(*ROOMS))}"
        return
    for found in imports:
        other = _level(found.module)
        if found.module == PACKAGE:
            yield found.line, "imports from the package's front door, which imports every stage"
        elif other is not None and other > own:
            yield found.line, f"imports {found.module}, a room above its own"
        elif name.split(".")[1] in KNOW_FIELDS_ONLY and found.module.split(".")[1:2] in (
            ["simulator"],
            ["lightcones"],
        ):
            yield found.line, f"imports {found.module}: it is to know fields, not where from"


def _reach_problems(name, graph, forbidden, why):
    """Follow imports inside the package: nothing that a module imports may reach the forbidden."""
    seen, todo = {name}, [(name, None)]
    while todo:
        module, first_line = todo.pop()
        for found in graph[module]:
            if found.for_types:
                continue
            line = first_line or found.line
            if found.module.split(".")[0] in forbidden:
                yield line, f"{why}, but imports {found.module} (in {module})"
            for inner in (found.module, f"{found.module}.__init__"):
                if inner in graph and inner not in seen:
                    seen.add(inner)
                    todo.append((inner, line))


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


def _question_problems(source):
    """Kinds of data, asked with isinstance and the like instead of by the protocol of fields."""
    for node in ast.walk(_parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in QUESTIONS
            and node.args
            and isinstance(node.args[0], ast.Name)
            and node.args[0].id in DATA
        ):
            yield node.lineno, f"asks {ast.unparse(node)}: call what Fields offers"


def _is_objective(node):
    return getattr(node, "id", getattr(node, "attr", None)) in ("objective", "objective_")


def _is_words(node):
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(_is_words(element) for element in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _objective_problems(source):
    """Objectives told apart by their names, instead of asked."""
    for node in ast.walk(_parse(source)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        if isinstance(node, ast.Match):
            sides = [node.subject, ast.Constant("")]
        if any(map(_is_objective, sides)) and any(map(_is_words, sides)):
            yield node.lineno, "compares the name of an objective: ask the objective"


def _shape_problems(source):
    body = _parse(source).body
    if ast.get_docstring(_parse(source)) is None:
        yield 1, "has no docstring"
        return
    for node in body[1:]:
        targets = [*getattr(node, "targets", []), getattr(node, "target", None)]
        if any(ast.unparse(target) == "__all__" for target in targets if target is not None):
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
            each += _reach_problems(name, graph, {"sklearn", "skorch"}, "torch only")
        if name in NO_TORCH:
            each += _reach_problems(name, graph, {"torch", "skorch"}, "without torch")
        if name.split(".")[1] in KNOW_FIELDS_ONLY:
            each += _question_problems(source)
        if name != OBJECTIVES:
            each += _objective_problems(source)
        if name != f"{PACKAGE}._version":
            each += _shape_problems(source)
        found += [f"{name}, line {line}: {what}" for line, what in each]
    return found


def test_package_keeps_its_layers():
    found = problems(_sources())
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_what_is_not_used_is_not_imported():
    """Though torch's optimisers import its compiler."""
    unused = ["accelerate", "dask", "matplotlib", "tensorboard", "torch._dynamo", "umap"]
    fit = "skatr_sk.LightconeRegressor(max_epochs=1).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])"
    loaded = f"print(*[name for name in {unused} if name in sys.modules])"
    code = f"import sys, skatr_sk; {fit}; {loaded}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == []


def test_the_rules_speak_of_modules_that_exist():
    names = set(_sources())
    assert not (TORCH_ONLY | NO_TORCH | {OBJECTIVES}) - names
    physics = {name for name in names if name.startswith(f"{PACKAGE}.simulator.")}
    others = {"__init__", "settings", "simulated"}
    assert {name for name in physics if name.split(".")[2] not in others} <= TORCH_ONLY
    assert all((ROOT / PACKAGE / stage / "__init__.py").is_file() for stage in STAGES)


@pytest.mark.parametrize("name", [name.removesuffix(".__init__") for name in _sources()])
def test_all_names_exist(name):
    module = importlib.import_module(name)
    missing = [given for given in getattr(module, "__all__", []) if not hasattr(module, given)]
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


def test_test_files_have_the_names_of_their_modules():
    """But those of the whole package, beside the folders, the benchmarks and hostile files."""
    strays = []
    for path in (ROOT / "tests").glob("*/**/test_*.py"):
        tested = (path.parent / path.stem.removeprefix("test_")).relative_to(ROOT / "tests")
        module = ROOT / PACKAGE / tested
        found = module.with_suffix(".py").is_file() or module.is_dir()
        if not found and tested.parts[0] not in ("benchmarks", "robustness"):
            strays.append(str(path.relative_to(ROOT)))
    assert not strays


# What is public ----------------------------------------------------------------------------------


def _exports():
    """Names that the stages and the front door export, and their objects."""
    exports = {}
    for folder in [PACKAGE, *(f"{PACKAGE}.{stage}" for stage in STAGES)]:
        module = importlib.import_module(folder)
        for name in set(module.__all__) - {"__version__"}:
            found = getattr(module, name)
            assert exports.setdefault(name, found) is found, f"{name} is two things"
    return exports


def _documented():
    """Entries of the API reference, in full, from its autosummaries."""
    entries, within, current = [], False, ""
    for line in (ROOT / "docs" / "api.rst").read_text(encoding="utf-8").splitlines():
        if directive := re.match(r"\.\. (?:currentmodule|module):: (\S+)", line):
            current = directive[1]
        elif line.startswith(".. autosummary::"):
            within = True
        elif line and not line.startswith(" "):
            within = False
        elif within and re.fullmatch(r"\s+~?[\w.]+", line):
            name = line.strip().removeprefix("~")
            entries.append(name if name.startswith(PACKAGE) else f"{current}.{name}")
    return entries


def _resolve(dotted):
    """Object of a full name, along modules and attributes."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=1):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[: i + 1]))
        found = getattr(found, part)
    return found


def test_public_is_what_folders_export_and_the_reference_lists():
    exports, documented = _exports(), _documented()
    names = [entry.rpartition(".")[2] for entry in documented]
    assert sorted(names) == sorted(set(names)), "listed twice"
    assert set(names) == set(exports)
    for entry, name in zip(documented, names, strict=True):
        assert _resolve(entry) is exports[name], f"docs/api.rst: {entry} is something else"


def test_the_front_door_shows_what_stages_export():
    stages = [set(importlib.import_module(f"{PACKAGE}.{stage}").__all__) for stage in STAGES]
    front = set(importlib.import_module(PACKAGE).__all__) - {"__version__"}
    assert front <= set().union(*stages, RAISED_BY_ALL)
    assert sum(map(len, stages)) == len(set().union(*stages)), "exported by two stages"


# Planted violations ------------------------------------------------------------------------------


def _module(*lines):
    """A module of good shape with the given lines after its `__all__`."""
    return "\n".join(['"""Text."""', "__all__ = []", *lines])


GOOD = {
    "skatr_sk.__init__": _module("from skatr_sk.heads.regression import Head"),
    "skatr_sk._version": "__version__ = '0'",
    "skatr_sk._checks": _module("import numpy as np"),
    "skatr_sk.fields": _module("import sklearn", "from skatr_sk._checks import check"),
    "skatr_sk.training.trainer": _module("import skorch", "from skatr_sk.fields import Fields"),
    "skatr_sk.training.effective_rank": _module("import numpy as np"),
    "skatr_sk.simulator.lightcone": _module("import torch", "from .. import _checks"),
    "skatr_sk.lightcones.array": _module(
        "from .. import fields", "import h5py", "from skatr_sk.simulator import lightcone",
        "isinstance(X, LightconeArray)",
    ),
    "skatr_sk.summaries.vit": _module("from torch import nn"),
    "skatr_sk.summaries.masking": _module("from .vit import Encoder", "import math"),
    "skatr_sk.summaries.objectives.__init__": _module("if objective == 'jepa': ..."),
    "skatr_sk.summaries.objectives.jepa": _module("from sklearn.base import BaseEstimator"),
    "skatr_sk.summaries.transformer": _module(
        "from skatr_sk.training.trainer import train", "isinstance(objective, str)",
        "isinstance(y, np.ndarray)", "X = check_fields(self, X)",
    ),
    "skatr_sk.heads.regression": _module("from skatr_sk.summaries import transformer"),
    "skatr_sk.evaluation.metrics": _module(
        "import numpy", "import sklearn.metrics", "from skatr_sk.training import effective_rank"
    ),
    "skatr_sk.evaluation.displays.base": _module(
        "def draw():", "    import matplotlib.pyplot as plt"
    ),
}  # fmt: skip


def test_a_good_package_has_no_problems():
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("lightcones.array", _module("from ..heads.regression import Head"), "a room above"),
        ("lightcones.array", _module("def f():", "    import skatr_sk.summaries.vit"), "above"),
        ("simulator.lightcone", _module("import skatr_sk.lightcones.formats"), "a room above"),
        ("summaries.transformer", _module("from ..evaluation import metrics"), "a room above"),
        ("training.trainer", _module("from skatr_sk.summaries.vit import Encoder"), "above"),
        ("fields", _module("from skatr_sk.training.trainer import train"), "a room above"),
        ("_files", _module("from skatr_sk.lightcones.array import read"), "a room above"),
        ("_files", _module("from skatr_sk.fields import Fields"), "a room above"),
        ("tools", _module(), "stands in no room"),
        ("heads.regression", _module("from skatr_sk import load_lightcones"), "front door"),
        ("heads.regression", _module("from skatr_sk.lightcones import array"), "not where from"),
        ("summaries.vit", _module("from skatr_sk.simulator import lightcone"), "not where from"),
        ("summaries.masking", _module("from sklearn.base import clone"), "torch only"),
        ("summaries.masking", _module("from skatr_sk.fields import f"), "imports sklearn (in "),
        ("summaries.masking", _module("def f():", "    import skorch"), "imports skorch"),
        ("simulator.lightcone", _module("import skorch"), "torch only"),
        ("evaluation.metrics", _module("import torch"), "without torch"),
        ("evaluation.metrics", _module("from ..summaries import vit"), "imports torch (in "),
        ("evaluation.displays.base", _module("import matplotlib.pyplot as plt"), "module level"),
        ("evaluation.displays.base", _module("try:", " import pandas", "except: ..."), "level"),
        ("heads.regression", _module("isinstance(X, np.ndarray)"), "asks isinstance(X, np"),
        ("summaries.transformer", _module("if hasattr(fields, 'files'): ..."), "asks hasattr("),
        ("training.trainer", _module("getattr(X, 'digests', None)"), "asks getattr(X"),
        ("evaluation.metrics", _module("type(X) is LightconeArray"), "asks type(X)"),
        ("summaries.transformer", _module("self.objective == 'jepa'"), "ask the objective"),
        ("heads.regression", _module("objective in ('jepa', 'vicreg')"), "ask the objective"),
        ("summaries.vit", _module("match objective:", "    case 'jepa': ..."), "ask the obj"),
        ("heads.regression", "import math\n__all__ = []", "no docstring"),
        ("heads.regression", _module().replace("__all__", "names"), "does not open with __all__"),
        ("heads.regression", '"""Text."""\nx = 1\n__all__ = []', "does not open with __all__"),
        ("summaries.objectives.__init__", '"""Text."""', "does not open with __all__"),
    ],
)
def test_a_planted_violation_is_found(name, source, message):
    (found,) = problems(GOOD | {f"{PACKAGE}.{name}": source})
    assert found.startswith(f"{PACKAGE}.{name}, line ")
    assert message in found


def test_imports_for_types_alone_are_free():
    source = _module("if TYPE_CHECKING:", "    import matplotlib", "    import sklearn")
    assert problems(GOOD | {"skatr_sk.summaries.vit": source}) == []
