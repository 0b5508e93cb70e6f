"""Which devices and optional packages exist, and what ``auto`` stands for, found out without importing torch."""

import ctypes
import importlib.util
import os
import platform
import re
import shutil
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError

# The import name of the package that each implementation needs besides torch, and how to get it.
_PACKAGES = {
    "numba": ("numba", "pip install numba"),
    "triton": ("triton", "it comes with CUDA builds of torch for Linux"),
    "tcnn": ("tinycudann", "see docker/Dockerfile for the build"),
    "nerfacc": ("nerfacc", "pip install nerfacc"),
}
_CPU_ONLY = {"numba"}
_CUDA_ONLY = {"tcnn", "nerfacc"}


@dataclass(frozen=True)
class Choice:
    """What ``auto`` stands for on this machine, and why."""

    value: str
    reason: str


def is_installed(package: str) -> bool:
    """Whether ``import package`` would find something; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def triton_interprets() -> bool:
    """Whether the environment asks Triton to run its kernels in its interpreter, on a CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")


def triton_obstacle() -> str | None:
    """Why Triton cannot be used on CUDA here, in a few words with the remedy; None when it can.

    Its kernels need no compiler but their launcher, once, does: a C one, and Python's headers.
    """
    if not is_installed("triton"):
        return f"the package triton is not installed ({_PACKAGES['triton'][1]})"
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        return "Triton finds no C compiler (install gcc or clang, or name one in CC)"
    # Debian's scheme for what pip installs names a folder that its headers are not in.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        return f"Triton finds no Python.h in {headers} (install Python's headers: python3-dev on Debian and Ubuntu)"
    return None


def torch_cuda_version() -> str | None:
    """The CUDA version that the installed torch was built with; None for a build without CUDA or no torch at all."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", source, re.MULTILINE)
    return match.group(1) if match else None


def visible_gpus() -> int:
    """How many CUDA devices this process may use, as far as NVIDIA's management library and the environment say.

    The management library, unlike CUDA itself, may be asked before a fork; CUDA is asked where it is missing, as in a
    container whose NVIDIA_DRIVER_CAPABILITIES lack "utility".
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        listed = [name.strip() for name in hidden.split(",")]
        # CUDA reads the list up to the first entry that is no device.
        limit = next((i for i, name in enumerate(listed) if name in ("", "-1")), len(listed))
    else:
        limit = None
    present = _count_gpus()
    return present if limit is None else min(limit, present)


def _count_gpus() -> int:
    return _ask("nvmlDeviceGetCount_v2", "cuDeviceGetCount")


def driver_cuda_version() -> int:
    """The major version of CUDA that the GPU's driver supports; 0 where nobody says."""
    return _ask("nvmlSystemGetCudaDriverVersion_v2", "cuDriverGetVersion") // 1000


def _ask(nvml: str, cuda: str) -> int:
    """The number that NVIDIA's management library answers with, or without one the driver's; 0 without either."""
    on_windows = platform.system() == "Windows"
    library = _library("nvml.dll" if on_windows else "libnvidia-ml.so.1")
    if library is not None and library.nvmlInit_v2() == 0:
        answer = _answer(library, nvml)
        library.nvmlShutdown()
        return answer
    library = _library("nvcuda.dll" if on_windows else "libcuda.so.1")
    return 0 if library is None or library.cuInit(0) != 0 else _answer(library, cuda)


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _answer(library: ctypes.CDLL, question: str) -> int:
    answer = ctypes.c_int(0)
    function = getattr(library, question, None)  # an old library may not know the question
    return 0 if function is None or function(ctypes.byref(answer)) != 0 else answer.value


def cuda_obstacle() -> str | None:
    """Why CUDA cannot be used here, in a few words; None when it can."""
    if visible_gpus() == 0:
        return "no NVIDIA GPU is visible"
    built = torch_cuda_version()
    if built is None:
        return "the installed torch is built without CUDA"
    driver = driver_cuda_version()
    if 0 < driver < int(built.partition(".")[0]):  # within a major version any driver will do
        return f"the GPU's driver is for CUDA {driver} and the installed torch for {built}: install a newer driver"
    return None


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``bfloat16`` where the CPU multiplies in it (AMX or AVX-512's BF16) and the prior's networks gain by it (see
    docs/benchmarks.md); ``float32`` elsewhere, where it would be emulated.
    """
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if re.search(r"\b(amx|avx512)_bf16\b", flags) else "float32"


def auto_machine() -> Choice:
    """``cuda`` where a GPU is usable, else ``cpu``."""
    obstacle = cuda_obstacle()
    return Choice("cuda", f"{visible_gpus()} GPU(s) visible") if obstacle is None else Choice("cpu", obstacle)


def auto_backend(machine: str) -> Choice:
    """The fastest implementation for ``machine`` that can be used without building anything by hand."""
    if machine == "cuda":
        obstacle = triton_obstacle()
        return Choice("triton", "fastest on a GPU") if obstacle is None else Choice("torch", obstacle)
    if is_installed("numba"):
        return Choice("numba", "fastest on a CPU")
    return Choice("torch", "numba is not installed")


def auto_prior(machine: str) -> Choice:
    """Stable Diffusion 2.1 on a GPU, the embedded model on a CPU."""
    return Choice("sd21", "machine=cuda") if machine == "cuda" else Choice("shapes", "machine=cpu")


def check_machine(config: Config) -> None:
    """Raises `InputError` when the configured device or backend is not there."""
    device = config.machine.device
    on_cuda = device.startswith("cuda")
    if on_cuda:
        obstacle = cuda_obstacle()
        if obstacle is not None:
            raise InputError(f"machine.device={device}: {obstacle}; use machine=cpu")
        index = int(device.partition(":")[2] or 0)
        if index >= visible_gpus():
            raise InputError(f"machine.device={device}: only {visible_gpus()} GPU(s) are visible, counted from cuda:0")
    elif config.machine.precision == "float16":
        raise InputError("machine.precision=float16: not on a CPU; use float32 or bfloat16")
    for setting, name in (("backend.field", config.backend.field), ("backend.sampler", config.backend.sampler)):
        if on_cuda and name in _CPU_ONLY:
            raise InputError(f"{setting}={name}: computes on the CPU only; use backend=triton or torch with {device}")
        if not on_cuda and name in _CUDA_ONLY:
            raise InputError(f"{setting}={name}: computes on CUDA only; use backend=numba or torch with {device}")
        if name == "triton" and not triton_interprets():
            if not on_cuda:
                raise InputError(
                    f"{setting}=triton: computes on CUDA only (and, for tests, in Triton's interpreter, with "
                    f"TRITON_INTERPRET=1 in the environment); use backend=numba or torch with {device}"
                )
            obstacle = triton_obstacle()
            if obstacle is not None:
                raise InputError(f"{setting}=triton: {obstacle}; or backend=torch")
        if name in _PACKAGES:
            package, remedy = _PACKAGES[name]
            if not is_installed(package):
                raise InputError(
                    f"{setting}={name}: the package {package} is not installed ({remedy}); or backend=torch"
                )


def adapted(config: Config) -> tuple[Config, str | None]:
    """The configuration of a finished run with a device and a backend that are here, to look at its result.

    Itself and None where what was recorded is here; otherwise also what took its place and why, for the user.

    Raises:
        InputError: the checkpoints are tiny-cuda-nn's, which nothing else reads.
    """
    try:
        check_machine(config)
    except InputError as error:
        reason = str(error).partition(";")[0]  # the remedy is about settings of training
    else:
        return config, None
    if config.backend.field == "tcnn":
        raise InputError(
            f"trained with backend.field=tcnn, and checkpoints of tiny-cuda-nn are read by that alone ({reason}); open "
            "the run on a machine with CUDA and the package tinycudann"
        )
    machine = "cpu" if config.machine.device == "cpu" else auto_machine().value
    backend = auto_backend(machine).value
    values = config.to_dict()
    values["machine"] |= {"name": machine, "device": machine}
    if machine == "cpu":
        values["machine"]["precision"] = cpu_precision()
    values["backend"] = {"field": backend, "sampler": backend}
    return Config.from_dict(values), f"opened with machine={machine} and backend={backend} ({reason})"
