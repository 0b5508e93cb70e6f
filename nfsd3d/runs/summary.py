"""summary.json: how a run went."""

import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import nfsd3d
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.prior.compiled.cuda_graphs import peak_bytes
from nfsd3d.runs.files import write_json

PACKAGES = ("torch", "diffusers", "transformers", "numba", "nerfacc", "triton", "trimesh")


def write_summary(
    run_dir: Path, config: Config, *, status: str, reason: str | None, steps: int, seconds: float, **results: Any
) -> None:
    """Writes ``summary.json``: what was asked, how it ended, and on what it ran.

    ``status`` is done, interrupted, diverged or failed; ``steps`` the number of finished steps; ``seconds`` the time
    all parts of the run took together. ``results`` are added as they are (final metrics, exported files).
    """
    write_json(
        run_dir / "summary.json",
        {
            "status": status,
            "reason": reason,
            "prompt": config.prompt,
            "source_prompt": config.source_prompt,
            "generator": config.generator.type,
            "method": config.distill.method,
            "guidance_scale": config.distill.guidance_scale,
            "guidance_factor": config.distill.guidance_factor,
            "prior": config.prior.model or config.prior.name,
            "seed": config.seed,
            "steps": steps,
            "steps_planned": config.train.steps,
            "seconds": round(seconds, 2),
            **results,
            "device": device_name(config.machine.device),
            "peak_memory_mb": peak_memory_mb(config.machine.device),
            "versions": versions(),
            "git_revision": git_revision(),
        },
    )


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The content of a run's ``summary.json``; empty if there is none (the run was killed, or is still going).

    Raises:
        InputError: the file is not valid.
    """
    path = run_dir / "summary.json"
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}): delete it") from error


def device_name(device: str) -> str:
    """What ``device`` is: the GPU's name, or the processor's architecture."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()


def peak_memory_mb(device: str) -> dict[str, float]:
    """Largest resident memory of this process in MB, and largest memory allocated on ``device``, if that is a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)}
    if device != "cpu" and torch.cuda.is_initialized():
        peak["cuda"] = round(peak_bytes(device) / 2**20, 1)
    return peak


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "nfsd3d": nfsd3d.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # which also says what it was built for
    return found


def git_revision() -> str | None:
    """The commit of the source tree this package runs from, "-dirty" if changed; None outside a repository."""
    root = Path(nfsd3d.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
