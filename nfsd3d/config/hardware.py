"""Detection of devices and optional packages without importing torch, and the choices behind ``auto``."""

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
from typing import Any

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.hashgrid.spec import check_precision
from nfsd3d.generators.nerf.settings import NeRFSettings

# By implementation: the import name of its package besides torch, and how to install it.
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
    """The value that replaces ``auto`` on this machine, and the reason for it."""

    value: str
    reason: str


def is_installed(package: str) -> bool:
    """Whether a package can be found; nothing is imported."""
    return importlib.util.find_spec(package) is not None


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def triton_interprets() -> bool:
    """Whether the environment selects Triton's interpreter, which runs kernels on a CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")


def triton_obstacle() -> str | None:
    """The reason why Triton cannot be used on CUDA here, with the remedy; None if it can.

    Triton compiles a launcher for its kernels, once, with a C compiler and Python's headers.
    """
    if not is_installed("triton"):
        return f"the package triton is not installed ({_PACKAGES['triton'][1]})"
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        return "Triton finds no C compiler (install gcc or clang, or name one in CC)"
    # Debian's default scheme names a folder that does not contain Python's headers.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        return f"Triton finds no Python.h in {headers} (install Python's headers: python3-dev on Debian and Ubuntu)"
    return None


def torch_cuda_version() -> str | None:
    """The CUDA version that torch was built with; None without CUDA or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", source, re.MULTILINE)
    return match.group(1) if match else None


def visible_gpus() -> int:
    """Number of CUDA devices that this process may use, according to NVIDIA's libraries and the environment."""
    present = _count_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    names = [name.strip() for name in visible.split(",")]
    # CUDA reads the list up to the first entry that is no device.
    return min(present, next((i for i, name in enumerate(names) if name in ("", "-1")), len(names)))


def _count_gpus() -> int:
    return _ask("nvmlDeviceGetCount_v2", "cuDeviceGetCount")


def driver_cuda_version() -> int:
    """The major version of CUDA that the GPU's driver supports; 0 if unknown."""
    return _ask("nvmlSystemGetCudaDriverVersion_v2", "cuDriverGetVersion") // 1000


def _ask(nvml: str, cuda: str) -> int:
    """The number that a function of NVIDIA's management library returns, or else one of the driver; 0 without either.

    The management library comes first because, unlike CUDA, it may be initialised before a fork. It can be missing in a
    container whose NVIDIA_DRIVER_CAPABILITIES lack "utility".
    """
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
    function = getattr(library, question, None)  # missing in an old library
    return 0 if function is None or function(ctypes.byref(answer)) != 0 else answer.value


def cuda_obstacle() -> str | None:
    """The reason why CUDA cannot be used here; None if it can."""
    if visible_gpus() == 0:
        return "no NVIDIA GPU is visible"
    built = torch_cuda_version()
    if built is None:
        return "the installed torch is built without CUDA"
    driver = driver_cuda_version()
    if 0 < driver < int(built.partition(".")[0]):  # drivers are compatible within a major version
        return f"the GPU's driver is for CUDA {driver} and the installed torch for {built}: install a newer driver"
    return None


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``bfloat16`` on a CPU with AMX or AVX-512 BF16, where the prior's networks are faster in it; else ``float32``.

    Measured in docs/benchmarks.md; other CPUs emulate bfloat16.
    """
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:  # not Linux
        return "float32"
    return "bfloat16" if re.search(r"\b(amx|avx512)_bf16\b", flags) else "float32"


def auto_machine() -> Choice:
    """``cuda`` if a GPU can be used, else ``cpu``."""
    obstacle = cuda_obstacle()
    return Choice("cuda", f"{visible_gpus()} GPU(s) visible") if obstacle is None else Choice("cpu", obstacle)


def auto_backend(machine: str) -> Choice:
    """The fastest installed implementation for ``machine``; tiny-cuda-nn, which users must build, is never chosen."""
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
    """Checks that the configured device and backend are available.

    Raises:
        InputError: they are not.
    """
    device = config.machine.device
    if device.startswith("cuda"):
        obstacle = cuda_obstacle()
        if obstacle is not None:
            raise InputError(f"machine.device={device}: {obstacle}; use machine=cpu")
        if int(device.partition(":")[2] or 0) >= visible_gpus():
            raise InputError(f"machine.device={device}: only {visible_gpus()} GPU(s) are visible, counted from cuda:0")
    elif config.machine.precision == "float16":
        raise InputError("machine.precision=float16: not on a CPU; use float32 or bfloat16")
    for setting, name in vars(config.backend).items():
        obstacle = _backend_obstacle(name, device)
        if obstacle is not None:
            raise InputError(f"backend.{setting}={name}: {obstacle}")
    if isinstance(config.generator, NeRFSettings):
        check_precision(config.generator.encoding, config.backend.field)


def _backend_obstacle(name: str, device: str) -> str | None:
    """The reason why an implementation cannot be used on ``device``, with the remedy; None if it can."""
    on_cuda = device.startswith("cuda")
    if on_cuda and name in _CPU_ONLY:
        return f"computes on the CPU only; use backend=triton or torch with {device}"
    if not on_cuda and name in _CUDA_ONLY:
        return f"computes on CUDA only; use backend=numba or torch with {device}"
    if name == "triton" and not triton_interprets():
        if not on_cuda:
            return (
                "computes on CUDA only (and, for tests, in Triton's interpreter, with TRITON_INTERPRET=1 in the "
                f"environment); use backend=numba or torch with {device}"
            )
        obstacle = triton_obstacle()
        if obstacle is not None:
            return f"{obstacle}; or backend=torch"
    if name in _PACKAGES and not is_installed(_PACKAGES[name][0]):
        package, remedy = _PACKAGES[name]
        return f"the package {package} is not installed ({remedy}); or backend=torch"
    return None


def adapted(config: Config) -> tuple[Config, str | None]:
    """The configuration of a finished run with a device and a backend that are available, for rendering and export.

    Unchanged, with None, if the recorded ones are available; otherwise with a message that names the replacement.

    Raises:
        InputError: the checkpoints are tiny-cuda-nn's, which no other backend reads.
    """
    try:
        check_machine(config)
    except InputError as error:
        reason = str(error).partition(";")[0]  # without the remedy, which is for training
    else:
        return config, None
    if config.backend.field == "tcnn":
        raise InputError(
            f"trained with backend.field=tcnn, and checkpoints of tiny-cuda-nn are read by that alone ({reason}); open "
            "the run on a machine with CUDA and the package tinycudann"
        )
    machine = "cpu" if config.machine.device == "cpu" else auto_machine().value
    backend = auto_backend(machine).value
    settings = config.to_dict()["machine"] | {"name": machine, "device": machine}
    if machine == "cpu":
        settings["precision"] = cpu_precision()
    backends = dict.fromkeys(("field", "sampler", "rasterizer"), backend)
    note = f"opened with machine={machine} and backend={backend} ({reason})"
    return with_hardware(config, settings, backends), note


def with_hardware(config: Config, machine: dict[str, Any], backend: dict[str, Any]) -> Config:
    """The configuration of a finished run with other settings ``machine`` and ``backend``, which open the same run."""
    values = config.to_dict() | {"machine": machine, "backend": backend}
    if backend["field"] != "triton" and "encoding" in values["generator"]:
        values["generator"]["encoding"]["precision"] = "float32"  # which checkpoints have, whatever a step reads
    return Config.from_dict(values)
