"""Whether a directory holds a run that can be resumed."""

from pathlib import Path

FIELD = "field"
"""Folder of the field that a mesh's run begins with (`nfsd3d.runs.field_stage`)."""


def can_be_resumed(run_dir: Path) -> bool:
    """Whether there is a checkpoint of the run, or of the field that it begins with."""
    folders = run_dir / "checkpoints", run_dir / FIELD / "checkpoints"
    return any(True for folder in folders for _ in folder.glob("step-*.json"))
