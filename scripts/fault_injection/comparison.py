"""Compares a run that was harmed and resumed with one that nothing happened to."""

import json
import re
from pathlib import Path

from safetensors.numpy import load_file

from fault_injection.process import STEPS


def differences(run_dir: Path, reference: Path, incomplete: bool) -> list[str]:
    """What differs between two finished runs: tensors, metrics without times, and the names of the files.

    ``incomplete``: lines of the metrics may be missing.
    """

    def metrics(folder: Path) -> list[dict[str, float]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in lines]

    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    found = []
    name = f"checkpoints/step-{STEPS:06d}.safetensors"
    if not (run_dir / name).exists():
        return [f"no {name}"]
    ours, theirs = load_file(run_dir / name), load_file(reference / name)
    if ours.keys() != theirs.keys() or any(ours[key].tobytes() != theirs[key].tobytes() for key in ours):
        found.append("the tensors differ")
    lines = metrics(run_dir)
    if lines != [line for line in metrics(reference) if not incomplete or line in lines]:
        found.append("the metrics differ")
    missing, more = files(reference) - files(run_dir), files(run_dir) - files(reference)
    found += [f"missing: {sorted(missing)}"] * bool(missing)
    # Older checkpoints that are kept may differ by where the run was resumed.
    more = {name for name in more if not re.fullmatch(r"checkpoints/step-\d+\.(json|safetensors)", name)}
    return found + [f"left over: {sorted(more)}"] * bool(more)
