"""``nfsd3d doctor``: prints versions, devices and automatic choices of this installation, for bug reports."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nfsd3d
from nfsd3d.cli.launch import start
from nfsd3d.cli.options import Parser, write_numbers
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose
from nfsd3d.config.experiments import config_root
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.prior.files.check_folder import check_folder
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.train.interrupts import Interrupted

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
    "av",
    "tensorboard",
)
OPTIONAL_PACKAGES = {
    "nerfacc": "for backend=nvidia: pip install 'nfsd3d[cuda]'",
    "tinycudann": "for backend=nvidia: compile it, see docs/gpu.md",
    "triton": "for backend=triton: comes with a CUDA build of torch",
    "peft": "for LoRA: pip install peft",
    "viser": "for view and viewer=true: pip install 'nfsd3d[viewer]'",
    "joblib": "for sweeps on it, submitit or Ray, and tune: pip install 'nfsd3d[sweep]'",
    "wandb": "for logger=wandb: pip install 'nfsd3d[wandb]'",
    "mlflow": "for logger=mlflow: pip install 'nfsd3d[mlflow]'",
}
"""Optional packages, and what for and how they are installed."""

SELF_TEST = [
    *("prompt=a red and white dotted mushroom", "prior=shapes", "train.steps=40", "train.tensorboard=false"),
    *("export.resolution=64", "export.texture_size=128", "export.turntable_frames=8", "export.turntable_size=64"),
]
"""The run of ``--self-test``: with the embedded teacher, and everything that is written."""


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
        "optional": {name: hardware.installed_version(name) or f"not installed; {how}" for name, how in _optional()},
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


def _optional() -> list[tuple[str, str]]:
    return list(OPTIONAL_PACKAGES.items())


def _embedded_prior() -> str:
    try:
        return str(check_folder(EMBEDDED, "embedded prior"))
    except InputError as error:
        return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what `examine` finds; returns 1 if a required package is missing, else 0.

    Raises:
        RunFailed, InputError: of the self-test's run.
    """
    options = parser().parse_args(argv)
    found = examine()
    write_numbers(options.json, found)
    _print(found)
    missing = [name for name in PACKAGES if hardware.installed_version(name) is None]
    if missing:
        print(f"missing: {', '.join(missing)}; install with: pip install -c constraints.txt -e .")
        return 1
    if options.self_test:
        _self_test()
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d doctor``."""
    parser = Parser(prog="nfsd3d doctor", description="Print what is installed, found and chosen here.")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write it as JSON")
    parser.add_argument(
        "--self-test", action="store_true", help="make a tiny run, and read its results again (20 s on an idle machine)"
    )
    return parser


def _self_test() -> None:
    """Makes a run in a temporary folder, reads its results, and prints what took how long.

    Raises:
        RunFailed: a result is not what it must be.
    """
    begin = time.monotonic()
    print("self-test: a run of 40 steps, its mesh and its page", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        try:
            start(compose("nfsd", [*SELF_TEST, f"run_dir={run_dir}"]), "self-test")
        except Interrupted as interruption:  # its folder goes, so that nothing can be resumed
            raise Interrupted(interruption.signum, "the self-test was interrupted") from interruption

        import trimesh

        from nfsd3d.runs.summary import read_summary

        summary = read_summary(run_dir)
        mesh = trimesh.load_scene(run_dir / "mesh" / "model.glb").to_geometry()
        absent = [name for name in summary["exported"] if not (run_dir / name).is_file()]
        if absent or not len(mesh.faces):
            raise RunFailed(f"self-test: {', '.join(absent) or 'mesh/model.glb'}: missing or empty")
    speed, trained = summary["final_metrics"]["steps_per_second"], summary["training_seconds"]
    print(f"{speed:.1f} steps/s; export {summary['seconds'] - trained:.1f} s; {len(mesh.faces)} triangles")
    print(f"self-test passed in {time.monotonic() - begin:.0f} s")


def _print(values: dict[str, object], indent: str = "") -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{name}: {'not installed' if value is None else value}")
