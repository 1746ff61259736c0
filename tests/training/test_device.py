"""Devices, precision, threads, memory, and torch's defaults whatever a script has set."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from skatr_sk.training.device import (
    autocast,
    device_mend,
    one_thread,
    resolve_device,
    resolve_precision,
    return_memory,
    torch_defaults,
)
from skatr_sk.training.seeds import seeded
from tests.training.runs import CPU, signals, transformer


def test_resolve_device():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == wanted


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5, None, "cpu:x"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ValueError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'.*found"):
        resolve_device(device)
    with pytest.raises(ValueError, match="device: expected"):
        transformer(device=device).fit(signals())


def test_mends_of_a_device():
    assert device_mend("auto") is True
    assert device_mend("gpu") == "did you mean 'cuda'?"
    assert "set_params(device='auto')" in device_mend("meta")
    assert device_mend("mps").endswith(
        "no float64, in which posteriors are computed: set_params(device='cpu')"
    )
    assert device_mend("abacus") == ""


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("has_matrices", [True, False])
def test_auto_is_bf16_for_many_wide_tokens_where_a_processor_multiplies_it(
    has_matrices, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_matrices, raising=False)
    lowered = "bf16" if has_matrices else "float32"
    assert resolve_precision("auto", CPU, n_tokens=256, width=64) == lowered
    assert resolve_precision("float32", CPU, n_tokens=256, width=64) == "float32"
    for sizes in ({"n_tokens": 255, "width": 96}, {"n_tokens": 900, "width": 63}, {}):
        assert resolve_precision("auto", CPU, **sizes) == "float32"
        assert resolve_precision("bf16", CPU, **sizes) == "bf16"
        assert resolve_precision("auto", torch.device("cuda"), **sizes) == "bf16"


def test_torch_that_does_not_know_of_matrices_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert resolve_precision("auto", CPU, n_tokens=900, width=96) == "float32"


def test_bf16_trains_and_summarises_in_float32():
    fitted = transformer(precision="bf16").fit(signals())
    assert fitted.transform(signals()).dtype == np.float32
    assert all(p.dtype == torch.float32 for p in fitted.encoder_.parameters())


def test_threads_beside_each_other_leave_the_number_as_it_was():
    """The first to come is the first to go: what it brings back is no number of the others."""
    inside, leave = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def fit(number):
        with one_thread(True):
            inside[number].set()
            leave[number].wait(20)

    def of_a_new_thread():
        found = []
        asks = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        asks.start()
        asks.join()
        return found[0]

    before = of_a_new_thread()
    torch.set_num_threads(3)
    try:
        fits = [threading.Thread(target=fit, args=(number,)) for number in range(2)]
        for number, each in enumerate(fits):
            each.start()
            assert inside[number].wait(20)
        for number, each in enumerate(fits):
            leave[number].set()
            each.join()
        assert of_a_new_thread() == 3 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wanted", [False, True])
def test_one_thread_inside_the_block(wanted):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="inside"), one_thread(wanted):
            assert torch.get_num_threads() == (1 if wanted else 2)
            with one_thread(wanted):
                pass
            assert torch.get_num_threads() == (1 if wanted else 2)
            raise RuntimeError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# torch's defaults --------------------------------------------------------------------------------


@pytest.fixture
def double():
    """A script that has set double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_dtype_comes_back(double):
    with pytest.raises(RuntimeError, match="inside"), torch_defaults():
        assert torch.zeros(1).dtype == torch.float32
        with torch_defaults():
            pass
        assert torch.zeros(1).dtype == torch.float32
        raise RuntimeError("inside")
    assert torch.zeros(1).dtype == torch.float64


def test_the_default_dtype_comes_back_when_the_last_thread_leaves(double):
    """It belongs to the whole process."""
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with torch_defaults():
            inside.set()
            leave.wait(10)
            dtypes.append(torch.zeros(1).dtype)

    dtypes = []
    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(10)
    with torch_defaults():
        pass
    leave.set()
    thread.join()
    assert dtypes == [torch.float32]
    assert torch.get_default_dtype() == torch.float64


def test_other_settings_of_a_script_do_not_reach_inside():
    @torch_defaults()
    def compute():
        weight = torch.nn.Parameter(torch.ones(2, 2))
        product = weight @ weight
        product.sum().backward()
        return weight.grad, product

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        gradient, product = compute()
        assert not torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        assert torch.zeros(1).device.type == "meta"
    assert gradient.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert product.dtype == torch.float32 and product.device == CPU
    assert not product.is_inference()


# Memory ------------------------------------------------------------------------------------------


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_freed_memory_goes_back_to_the_system():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("not glibc")
    blocks = [np.ones(8000) for _ in range(3000)]  # 64 kB each: too small for pages of their own
    held = blocks[::100]  # between them glibc keeps what is freed
    del blocks
    before = resident()
    return_memory()
    assert before - resident() > 100e6
    assert all((block == 1).all() for block in held)


def test_other_systems_keep_their_memory(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("glibc was looked for"))
    return_memory()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_wait_for_threads_that_it_does_not_have():
    """The child of a process in which a thread is inside has locks and a default of its own."""
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with seeded(0, torch.device("cpu")):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:  # only what is safe in a child of a process with threads
        signal.alarm(20)
        with seeded(0, torch.device("cpu")), torch_defaults():
            os._exit(0)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.slow
def test_without_a_compiler_it_says_so(tmp_path):
    script = (
        "from tests.training.runs import signals, transformer\n"
        "transformer(compile=True).fit(signals())\n"
    )
    nowhere = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | nowhere | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 1
    said = found.stderr.splitlines()[-1]
    assert "compile: expected a torch that can compile here" in said and "none" in said
    assert "leave compile=False" in said


def test_a_platform_that_torch_does_not_compile_on(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(RuntimeError, match=r"compile: .*3\.99.*leave compile=False"):
        transformer(compile=True).fit(signals())
