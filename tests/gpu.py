"""All that needs a GPU, in one script under 8 minutes, and a table of what it measured.

``python -m tests.gpu`` runs the tests that are marked `gpu`, and ``examples/run_full_size.py`` in
the published size: simulator, step, pre-training, summaries. ``--cpu`` runs a small size on the
processor, which shows that the script works and says nothing of speed.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "run_full_size.py"


def full_size():
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("run_full_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(stages):
    """Lay out what the stages of the example found."""
    step, memory = stages["step"], stages["step"]["memory_gigabytes"]
    compiled = stages["compiled step"]
    rows = {
        "device": stages["device"]["name"],
        "tests": stages["tests"]["result"],
        "step of pre-training": f"{1e3 * step['seconds']:.1f} ms",
        "  light cones a second": f"{step['light_cones_per_second']:.0f}",
        "  rate": f"{step['teraflops']:.3g} TFLOP/s",
        "  share of the rate of bf16 products": (
            f"{step['share']:.1%} of {step['teraflops_of_matrices']:.3g} TFLOP/s"
        ),
        "  with compile=True": (
            f"{1e3 * compiled['seconds']:.1f} ms, after {compiled['seconds_in_all']:.0f} s"
            if "seconds" in compiled
            else compiled["reason"]
        ),
        "  peak memory of the GPU": "" if memory is None else f"{memory:.2f} GB",
        "summaries a second": f"{stages['summaries']['per_second']:.0f}",
        "simulated light cones a second": f"{stages['simulator']['light_cones_per_second']:.1f}",
        "light cones pre-trained on": str(stages["pre-training"]["n"]),
        "R2, pre-trained / random weights": " / ".join(
            f"{stages['probe'][name]:.3f}" for name in ("jepa", "random")
        ),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows.items())


def main(arguments=None):
    """Return the exit status: 1 without a GPU, or where a test failed or was not done in time."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="a small size, on the processor")
    parser.add_argument("--minutes", type=float, default=7.5, help="that all of it may take")
    given = parser.parse_args(arguments)
    if not (given.cpu or torch.cuda.is_available()):
        print(
            f"no GPU: torch {torch.__version__} sees no CUDA device here; "
            "python -m tests.gpu --cpu runs a small size on the processor"
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(folder) / "weights.safetensors"), "--minutes", str(given.minutes)]
        stages = full_size().main([*command, "--quick"] if given.cpu else command)
    print(f"\n{table(stages)}")
    return int(not stages["tests"]["passed"])


if __name__ == "__main__":
    sys.exit(main())
