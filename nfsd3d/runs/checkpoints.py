"""Checkpoints of a run: saving and removing them, finding the newest intact one, restoring the state.

``checkpoints/step-XXXXXX.json`` and ``.safetensors`` hold the state after that step (`nfsd3d.runs.checkpoint_file`).
``source.*`` beside them holds the generator that the run started from, so that it is resumed without its source.

Reading a run that trains.
Problem: the run removes old checkpoints while another process reads them.
Idea: both files are read completely and verified at once, so a `Checkpoint` stays valid when they are removed.
:func:`newest` lists the folder again when a file disappeared while it was being read.
Measurement: tests/runs/test_checkpoints.py reads 200 times while a thread saves every few milliseconds.
"""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from nfsd3d.errors import InputError
from nfsd3d.runs import checkpoint_file, identity, training_state
from nfsd3d.runs.checkpoint_file import Checkpoint, Damaged, Record, Vanished, read_header, step_of
from nfsd3d.runs.files import sync_folder
from nfsd3d.runs.training_state import Learner
from nfsd3d.runs.training_state import load as load  # what `save` has saved
from nfsd3d.runs.training_state import load_generator as load_generator

SOURCE = Path("checkpoints", "source.json")
"""The source's checkpoint within the directory of a run that has one."""
_FILE = re.compile(r"step-[0-9]{6,}\.(json|safetensors)")


def save(
    folder: Path,
    step: int,
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    record: Record,
    keep: int,
    lora: Learner | None = None,
    sound: bool = True,
) -> Path:
    """Writes the state after ``step`` finished steps into ``folder``; returns the path of the JSON file.

    ``record`` is the progress that a resumed run starts with; ``lora`` is VSD's LoRA network. ``sound`` is false when
    there are doubts about the state. Keeps the newest ``keep`` checkpoints and the newest sound one, and removes the
    others, those of later steps among them.
    """
    remove_later(folder, step)
    path = folder / f"step-{step:06d}.json"
    checkpoint_file.write(
        path,
        training_state.training_tensors(generator, optimizer, rng, lora),
        sound=sound,
        group_sizes=training_state.group_sizes(optimizer),
        record=record,
        run=_run_of(folder),
    )
    sync_folder(folder)  # before the older ones are removed
    _remove_old(folder, keep)
    return path


def save_source(run_dir: Path, generator: nn.Module) -> None:
    """Writes the generator that a run starts from into its directory, as ``SOURCE``."""
    tensors = training_state.generator_tensors(generator)
    checkpoint_file.write(run_dir / SOURCE, tensors, run=identity.read(run_dir))


def remove_later(folder: Path, step: int) -> None:
    """Removes the checkpoints of steps after ``step``, of a run that goes back to that step and repeats the later ones.

    Otherwise a resumed run would mix the abandoned steps with the repeated ones.
    """
    for path in _files(folder):
        if step_of(path) > step:
            path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The JSON files of the checkpoints in ``folder``, oldest first; empty if there is no such folder."""
    return sorted((path for path in _files(folder) if path.suffix == ".json"), key=step_of)


def newest(run_dir: Path, *, sound: bool = False) -> Checkpoint:
    """The newest intact checkpoint of a run, with ``sound`` the newest intact and sound one.

    Damaged ones and those of other runs are skipped, and a line on stderr says which one is used instead.

    Raises:
        InputError: the run has none.
    """
    skipped: set[Path] = set()
    damage: list[Damaged] = []
    while left := [path for path in _listed(run_dir / "checkpoints") if path not in skipped]:
        path = left[-1]
        try:
            if not sound or read_header(path)["sound"]:
                checkpoint = _read(path)
                if damage:
                    print(f"{damage[0]}: step {checkpoint.steps} is used instead", file=sys.stderr)
                return checkpoint
        except Vanished:
            continue
        except Damaged as error:
            damage.append(error)
        skipped.add(path)
    kind = "sound checkpoint" if sound else "checkpoint"
    why = f"no intact {kind} ({damage[0]})" if damage else f"no {kind} (no checkpoints/step-*.json)"
    raise InputError(f"{run_dir} holds {why}: start the run anew")


def at_step(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint after ``step`` steps.

    Raises:
        InputError: there is none, or it is damaged or of another run.
    """
    folder = run_dir / "checkpoints"
    try:
        return _read(folder / f"step-{step:06d}.json")
    except (Vanished, Damaged) as error:
        problem = error if isinstance(error, Damaged) else f"{run_dir} has no checkpoint after step {step}"
        others = ", ".join(str(step_of(path)) for path in _listed(folder) if step_of(path) != step)
        raise InputError(f"{problem}; there are: {others}" if others else f"{problem}, and no other one") from error


def read_source(path: Path) -> Checkpoint:
    """The source that a run keeps at ``path``.

    Raises:
        InputError: it is missing, damaged or of another run.
    """
    try:
        return _read(path)
    except (Vanished, Damaged) as error:
        raise InputError(f"{error}: start the run anew") from error


def _read(path: Path) -> Checkpoint:
    """As `nfsd3d.runs.checkpoint_file.read`; another run's checkpoint counts as `Damaged`."""
    checkpoint = checkpoint_file.read(path)
    if checkpoint.header.get("run") != _run_of(path.parent):
        raise Damaged(f"{path} belongs to another run")
    return checkpoint


def _run_of(folder: Path) -> str | None:
    """The id of the run with the checkpoints in ``folder``; None for a run of a version without ids.

    Without a file of the id, it is that of the newest checkpoint if all have one.
    """
    run = identity.read(folder.parent)
    if run is not None:
        return run
    ids: list[str | None] = []
    for path in list_checkpoints(folder):
        with suppress(Damaged, Vanished):
            ids.append(read_header(path).get("run"))
    return ids[-1] if ids and None not in ids else None


def _listed(folder: Path) -> list[Path]:
    """As :func:`list_checkpoints`, with an `InputError` for a folder that cannot be read."""
    try:
        return list_checkpoints(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from error


def _files(folder: Path) -> list[Path]:
    """The files of checkpoints in ``folder``: of each pair first the JSON file, which is therefore removed first."""
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if _FILE.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_old(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest ``keep`` and the newest sound one, and what an interrupted save left."""
    there = list_checkpoints(folder)
    run = _run_of(folder)
    sound = next((path for path in reversed(there) if _is_sound(path, run)), None)
    kept = {path.stem for path in (*there[-keep:], sound) if path is not None}
    for path in _files(folder):
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def _is_sound(path: Path, run: str | None) -> bool:
    """Whether the checkpoint of the JSON file ``path`` is a sound one of ``run``; false if that file is damaged."""
    try:
        header = read_header(path)
        return header["sound"] and header.get("run") == run
    except (Damaged, Vanished):
        return False
