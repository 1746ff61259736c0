"""Every gallery example runs from start to end, in its fast form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))
TIME_LIMIT = 120  # seconds


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path):
    environment = os.environ | {
        "SKATR_SK_FAST": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",  # other tests have the other cores
        # The package of this checkout, also where another version is installed.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    try:
        done = subprocess.run(
            [sys.executable, str(example)],
            cwd=tmp_path,  # what an example writes does not land in the checkout
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{example.name} took more than {TIME_LIMIT} s:\n{error.output}", pytrace=False)
    assert done.returncode == 0, f"{example.name} failed:\n{done.stdout}"
