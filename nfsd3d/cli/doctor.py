"""``nfsd3d doctor``: prints versions, devices and automatic choices of this installation, for bug reports."""

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import nfsd3d
from nfsd3d.cli.options import Parser, write_numbers
from nfsd3d.config import hardware
from nfsd3d.config.experiments import config_root
from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_folder import check_folder
from nfsd3d.prior.files.locate import EMBEDDED

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "pydantic",
    "numba",
    "trimesh",
    "xatlas",
    "imageio",
    "tensorboard",
)
OPTIONAL_PACKAGES = ("nerfacc", "tinycudann", "triton", "peft", "viser")


def examine() -> dict[str, object]:
    """Versions, devices and automatic choices, as plain values for JSON; imports nothing slow."""
    machine = hardware.auto_machine()
    backend, prior = hardware.auto_backend(machine.value), hardware.auto_prior(machine.value)
    return {
        "nfsd3d": nfsd3d.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: hardware.installed_version(name) for name in PACKAGES},
        "optional": {name: hardware.installed_version(name) for name in OPTIONAL_PACKAGES},
        "cuda": hardware.cuda_obstacle()
        or f"{hardware.visible_gpus()} GPU(s), torch for CUDA {hardware.torch_cuda_version()}",
        "configs": str(config_root()),
        "embedded prior": _embedded_prior(),
        "auto": {
            "machine": f"{machine.value} ({machine.reason})",
            "backend": f"{backend.value} ({backend.reason})",
            "prior": f"{prior.value} ({prior.reason})",
        },
    }


def _embedded_prior() -> str:
    try:
        return str(check_folder(EMBEDDED, "embedded prior"))
    except InputError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what `examine` finds; returns 1 if a required package is missing, else 0."""
    parser = Parser(prog="nfsd3d doctor", description="Print what is installed, found and chosen here.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write it as JSON")
    options = parser.parse_args(argv)
    found = examine()
    write_numbers(options.json, found)
    _print(found)
    missing = [name for name in PACKAGES if hardware.installed_version(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; install with: pip install -c constraints.txt -e .")
    return 1 if missing else 0


def _print(values: dict[str, object], indent: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{name}: {'not installed' if value is None else value}")
