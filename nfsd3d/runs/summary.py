"""summary.json: the outcome of a run."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict, cast

import torch

import nfsd3d
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.prior.compiled.cuda_graphs import peak_bytes
from nfsd3d.runs.files import json_object, read_bytes, write_json
from nfsd3d.runs.metrics import Metrics, current_names, finite
from nfsd3d.settings.schedules import Schedule

PACKAGES = ("torch", "diffusers", "transformers", "numba", "nerfacc", "triton", "trimesh")

_STATUS = Path("/proc/self/status")  # of Linux

KINDS = {
    **dict.fromkeys(("status", "prompt", "generator", "method", "device"), str),
    **dict.fromkeys(("steps", "steps_planned", "network_evaluations"), int),
    **dict.fromkeys(("final_metrics", "smaller_chunks", "peak_memory_mb", "versions"), dict),
    **dict.fromkeys(("seconds", "training_seconds"), int | float),
    **dict.fromkeys(("exported", "steered"), list),
}
"""The types of values that readers compute with."""

RENAMED_CHUNKS = {"pixels_at_once": "rays_per_chunk", "rows_at_once": "unet_batch_size"}
"""Names of version 0.1, read for one minor version."""


class SmallerChunks(TypedDict):
    """The chunk sizes since the step ``from_step`` (from 1), at which the configured ones did not fit into memory."""

    from_step: int
    rays_per_chunk: int | None
    unet_batch_size: int | None
    checkpoint_encoder: bool


class Summary(TypedDict, total=False):
    """summary.json; all keys but the results are always there.

    ``status`` is done, interrupted, diverged or failed, ``reason`` says why, and ``signal`` names the signal of an
    interruption ("SIGTERM"). ``steps`` are finished ones;
    ``seconds`` and ``network_evaluations`` (NFE) count from the first step, resumptions included, without loading the
    model and pauses; ``training_seconds`` of them until the last step, the rest is the export. Results:
    ``final_metrics`` of the last logged step, ``exported`` files, facts about the ``mesh``, ``smaller_chunks``, and
    ``retries`` from a sound checkpoint after a divergence. ``steered`` lists the changes by which the run was steered,
    each with the number of steps before it.
    """

    status: str
    reason: str | None
    signal: str
    prompt: str
    source_prompt: str | None
    generator: str
    method: str
    guidance_scale: Schedule | None
    guidance_factor: Schedule | None
    prior: str | None
    seed: int
    steps: int
    steps_planned: int
    seconds: float
    training_seconds: float
    network_evaluations: int
    final_metrics: Metrics
    smaller_chunks: SmallerChunks
    retries: int
    steered: list[dict[str, float | None]]
    exported: list[str]
    mesh: dict[str, object] | None
    device: str
    peak_memory_mb: dict[str, float]
    versions: dict[str, str]
    git_revision: str | None


def write_summary(run_dir: Path, config: Config, outcome: Summary) -> None:
    """Writes ``summary.json``: settings of ``config``, the ``outcome``, and versions, device and memory.

    ``outcome`` has at least status, reason, steps and seconds, and replaces what follows from ``config``.
    """
    requested = Summary(
        status="",
        reason=None,
        prompt=config.prompt,
        source_prompt=config.source_prompt,
        generator=config.generator.type,
        method=config.distill.method,
        guidance_scale=config.distill.guidance_scale,
        guidance_factor=config.distill.guidance_factor,
        prior=config.prior.model or config.prior.name,
        seed=config.seed,
        steps=0,
        steps_planned=config.train.steps,
        seconds=0.0,
    )
    used = Summary(
        device=device_name(config.machine.device),
        peak_memory_mb=peak_memory_mb(config.machine.device),
        versions=versions(),
        git_revision=git_revision(),
    )
    metrics = {"final_metrics": finite(outcome["final_metrics"])} if "final_metrics" in outcome else {}
    seconds = {"seconds": round(outcome["seconds"], 2)}
    if "training_seconds" in outcome:
        seconds["training_seconds"] = round(outcome["training_seconds"], 2)
    write_json(run_dir / "summary.json", {**requested, **outcome, **metrics, **seconds, **used})


def is_done(run_dir: Path) -> bool:
    """Whether a run has ended with all its results; false for one whose ``summary.json`` is missing or damaged."""
    try:
        return read_summary(run_dir).get("status") == "done"
    except InputError:
        return False


def read_summary(run_dir: Path) -> Summary:
    """The content of a run's ``summary.json``; empty without one (the run was killed, or has not ended).

    Names of version 0.1 become current.

    Raises:
        InputError: the file cannot be read, or has no summary.
    """
    path = run_dir / "summary.json"
    try:
        content = json_object(read_bytes(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if "smaller_pieces" in content:
        content["smaller_chunks"] = content.pop("smaller_pieces")
    wrong = [key for key, kind in KINDS.items() if key in content and not isinstance(content[key], kind)]
    if wrong:
        raise _damaged(path, f"{wrong[0]} has a wrong value")
    if "final_metrics" in content:
        content["final_metrics"] = current_names(content["final_metrics"])
    if "smaller_chunks" in content:
        chunks = content["smaller_chunks"]
        content["smaller_chunks"] = {RENAMED_CHUNKS.get(name, name): value for name, value in chunks.items()}
    return cast("Summary", content)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged ({why}); a run that is resumed writes it anew")


def device_name(device: str) -> str:
    """The name of ``device``: the GPU's, or the processor's architecture."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()


def peak_memory_mb(device: str) -> dict[str, float]:
    """Largest resident memory of this process in MB, and largest memory allocated on ``device``, if that is a GPU."""
    peak = {}
    host = _peak_resident_bytes()
    if host is not None:
        peak["host"] = round(host / 2**20, 1)
    if device != "cpu" and torch.cuda.is_initialized():
        peak["cuda"] = round(peak_bytes(device) / 2**20, 1)
    return peak


def _peak_resident_bytes() -> int | None:
    """Largest resident memory of this process; None where the system does not tell."""
    # Linux: getrusage would also count what the process had that started this one, such as a notebook's.
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version(), "nfsd3d": nfsd3d.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["torch"] = torch.__version__  # includes the CUDA version of the build
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
