"""``nfsd3d doctor``: what this installation can do, for the user and for reports of trouble."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nfsd3d
from nfsd3d.config import hardware
from nfsd3d.config.compose import config_root
from nfsd3d.errors import InputError
from nfsd3d.prior.files.resolve import EMBEDDED, check_folder
from nfsd3d.runs.files import write_json

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


def examine() -> dict[str, Any]:
    """What is installed and found here, as plain values; imports nothing slow."""
    machine = hardware.auto_machine()
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
            "backend": f"{(choice := hardware.auto_backend(machine.value)).value} ({choice.reason})",
            "prior": f"{(choice := hardware.auto_prior(machine.value)).value} ({choice.reason})",
        },
    }


def _embedded_prior() -> str:
    try:
        return str(check_folder(EMBEDDED, "embedded prior"))
    except InputError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what `examine` finds; 1 if a required package is missing, else 0."""
    parser = argparse.ArgumentParser(prog="nfsd3d doctor", description="What is installed, found and chosen here.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write it there as JSON too")
    options = parser.parse_args(argv)
    found = examine()
    if options.json is not None:
        write_json(options.json, found)
    _print(found)
    missing = [name for name, version in found["packages"].items() if version is None]
    if missing:
        print(f"missing: {', '.join(missing)}; install with: pip install -c constraints.txt -e .")
    return 1 if missing else 0


def _print(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{name}: {'not installed' if value is None else value}")
