"""Fixtures shared by all tests."""

import json
import os
import signal
from importlib.metadata import version
from pathlib import Path

# Tests never download a model.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from nfsd3d.config.hardware import triton_interprets, visible_gpus
from nfsd3d.jobs.cores import threads

# Of several processes that share the tests, each keeps to one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.update(threads(1))

# Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is imported.
if visible_gpus() == 0:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

pytest_plugins = ["tiny_models", "tiny_runs"]

ON_CPU = [pytest.param((name, "cpu"), id=f"{name}-cpu") for name in ("torch", "numba", "triton")]
ON_CUDA = [pytest.param((name, "cuda"), id=f"{name}-cuda", marks=pytest.mark.gpu) for name in ("torch", "triton")]


# A shell's background jobs ignore SIGINT, nohup SIGHUP; so would the runs that tests interrupt.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)

# By default a GPU's float32 convolutions round their input to 10 bits (TF32): too far from a CPU's.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one (skipped, and counted, where there is none)."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def _present(request: pytest.FixtureRequest) -> tuple[str, torch.device]:
    name, device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if name == "triton":
        pytest.importorskip("triton")
        assert device == "cpu" or not triton_interprets(), "TRITON_INTERPRET is set: nothing would run on the GPU"
        if device == "cpu":
            _skip_without_interpreter()
    return name, torch.device(device)


def _skip_without_interpreter() -> None:
    if not triton_interprets():
        pytest.skip("Triton works on the GPU here")
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of Triton before 3.7 converts arrays as numpy 2.4 no longer does")


@pytest.fixture
def triton_interpreter() -> None:
    """Triton's kernels run on the CPU."""
    pytest.importorskip("triton")
    _skip_without_interpreter()


@pytest.fixture(params=ON_CPU + ON_CUDA)
def implementation(request: pytest.FixtureRequest) -> tuple[str, torch.device]:
    """Each implementation of the kernels whose numbers are the reference's, itself included, and its device.

    On the CPU Triton's kernels run in its interpreter.
    """
    return _present(request)


@pytest.fixture(params=[*ON_CPU[1:], *ON_CUDA[1:]])
def fast_backend(request: pytest.FixtureRequest) -> tuple[str, torch.device]:
    """Each implementation of the kernels that is compared with the torch reference, and its device."""
    return _present(request)


@pytest.fixture(params=[*ON_CPU[2:], *ON_CUDA[1:]])
def triton_device(request: pytest.FixtureRequest) -> torch.device:
    """Where Triton's kernels run: on the CPU in its interpreter, and on a GPU."""
    return _present(request)[1]


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


def pytest_sessionstart() -> None:
    """Under mutmut, SIGTERM acts as usual: its own handler ends the process as if no test had failed."""
    if "MUTANT_UNDER_TEST" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under mutmut, which runs tests until one fails, the fastest ones come first."""
    stats = Path("mutmut-stats.json")
    if "MUTANT_UNDER_TEST" in os.environ and stats.exists():
        durations = json.loads(stats.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: durations.get(item.nodeid, 0.0))
