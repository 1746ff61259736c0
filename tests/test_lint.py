"""Lint, format and types; commands, pins and versions that agree; no path of one machine."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

_INSTALL = 'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[{extra}]" && '
RUN_COMMAND = _INSTALL.format(extra="plots") + ".venv/bin/python examples/plot_quickstart.py"
TEST_COMMAND = _INSTALL.format(extra="test") + ".venv/bin/python -m pytest -n 2"


@pytest.mark.parametrize(
    "arguments",
    [
        ("ruff", "check", "--output-format=concise", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", "skatr_sk", "tests/typed_program.py"),
    ],
    ids=" ".join,
)
def test_tool_finds_nothing(arguments):
    if importlib.util.find_spec(arguments[0]) is None:
        pytest.skip(f'{arguments[0]} is not installed; pip install "skatr_sk[test]" brings it')
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}"


def _lines(name):
    return [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("command", [RUN_COMMAND, TEST_COMMAND], ids=["run", "test"])
def test_readme_shows_the_command(command):
    assert command in _lines("README.md")


def test_ci_runs_the_test_command_of_the_readme():
    lines = [line for line in _lines(".ci/run") if line and not line.startswith("#")]
    assert lines[-1] == TEST_COMMAND


def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _direct_requirements():
    project = _project()
    extras = project["optional-dependencies"]
    given = [*project["dependencies"], *extras["plots"], *extras["pandas"], *extras["test"]]
    own = canonicalize_name(project["name"])
    requirements = [Requirement(text) for text in given]
    return [found for found in requirements if canonicalize_name(found.name) != own]


def _pins(name="constraints.txt"):
    pins = {}
    for line in _lines(name):
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
            pins[canonicalize_name(name)] = version
    return pins


@pytest.mark.parametrize("requirement", _direct_requirements(), ids=str)
def test_constraints_pin_what_the_project_requires(requirement):
    version = _pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(version), f"{requirement} excludes the pin {version}"


def test_torch_is_pinned_without_a_local_label():
    # "2.13.0+cpu" satisfies the pin, so a machine without a GPU can take the smaller build.
    assert _pins()["torch"] == "2.13.0"


def test_lowest_versions_are_those_that_the_project_allows():
    allowed = {}
    for text in _project()["dependencies"]:
        requirement = Requirement(text)
        (bound,) = (one.version for one in requirement.specifier if one.operator == ">=")
        allowed[canonicalize_name(requirement.name)] = Version(bound)
    pins = _pins(".github/constraints-lowest.txt")
    assert {name: Version(version) for name, version in pins.items()} == allowed


def _classified():
    """Versions of Python that the classifiers name."""
    found = (re.fullmatch(r".*Python :: (3\.\d+)", text) for text in _project()["classifiers"])
    return [match[1] for match in found if match]


def test_every_python_that_is_named_is_tested():
    workflow = "\n".join(_lines(".github/workflows/tests.yml"))
    tested = re.search(r"^python: \[(.*)\]$", workflow, flags=re.M)[1]
    assert re.findall(r"3\.\d+", tested) == _classified()
    assert _project()["requires-python"] == f">={_classified()[0]}"
    # Its commands are those of the README, in the environment that the forge has made.
    assert 'pip install ${{ matrix.constraints }} -e ".[test]"' in workflow
    assert "run: python -m pytest -n 2" in workflow


def test_pre_commit_runs_the_pinned_linter():
    hooks = "\n".join(_lines(".pre-commit-config.yaml"))
    revision = re.search(r"ruff-pre-commit\nrev: v(\S+)", hooks)[1]
    assert revision == _pins()["ruff"]


# A path below a home directory or a scratch directory, not the tail of a URL or a relative path.
MACHINE_PATH = re.compile(
    r"(?<![\w./:)}-])(?:/(?:home|Users|root|work|tmp|mnt|scratch|opt)/[\w.-]|[A-Z]:\\Users\\)"
)


def _repository_files():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def _text(path):
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8", errors="replace")


def test_no_file_holds_a_path_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _repository_files()
        for number, line in enumerate(_text(path).splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "absolute paths of one machine:\n" + "\n".join(found)


def test_the_search_for_machine_paths_sees_one():
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "someone", "data.h5"]))
    assert not MACHINE_PATH.search("https://example.org" + "/".join(["", "home", "page"]))


def test_an_editable_install_is_a_path():
    """Type checkers follow paths; setuptools installs one where packages are said to be here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-dir"] == {"": "."}
    assert (ROOT / "skatr_sk" / "py.typed").is_file()


def test_readme_has_nothing_left_to_fill():
    assert (
        re.findall(
            r"^[A-Z_]+_TABLE$|\bTODO\b|\| XAVIER", (ROOT / "README.md").read_text(), flags=re.M
        )
        == []
    )


def test_references_of_the_documentation_have_their_label():
    """Sphinx is told to leave scikit-learn's own alone, which docstrings inherit."""
    sources = [*ROOT.glob("docs/*.rst"), *ROOT.glob("examples/*"), *ROOT.glob("skatr_sk/**/*.py")]
    text = "\n".join(path.read_text("utf-8") for path in sources if path.suffix in (".rst", ".py"))
    labels = re.findall(r"^ *\.\. _([\w-]+):$", text, flags=re.M)
    assert set(re.findall(r":ref:`(?:[^`<]*<)?([\w-]+)>?`", text)) <= set(labels)
