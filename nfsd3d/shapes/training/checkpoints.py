"""Checkpoints of the embedded prior's training stages."""

import os
from pathlib import Path
from typing import Any

import torch

from nfsd3d.shapes.training.common import Clock


def save_training(path: Path, clock: Clock, step: int, **parts: Any) -> None:
    """Writes a checkpoint after ``step`` steps with the state of ``parts``: models and optimizers, by name."""
    states = {name: part.state_dict() for name, part in parts.items()}
    save_state(path, {**states, **clock.state(), "step": step})


def resume_training(path: Path, clock: Clock, device: torch.device, **parts: Any) -> int:
    """The number of steps in a checkpoint of `save_training`, after restoring its state; 0 if there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    clock.resume(state)
    return int(state["step"])


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
