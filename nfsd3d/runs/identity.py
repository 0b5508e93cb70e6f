"""The identity of a run: a random id that its checkpoints carry, and the settings that they were trained with.

Problem: a checkpoint that was copied from another run into a run directory fits by its shapes. Resumed from it, a run
would mix the results of two prompts, methods or seeds.
Idea: a new run writes a random id to ``run.json`` in its directory, and to each of its checkpoints. A checkpoint with
another id is treated as a damaged one (`nfsd3d.runs.checkpoints`). The id is a file of its own beside ``checkpoints/``:

- A directory that is copied or moved takes its id along. So does an oracle fit within a run, which has its own.
- All of another run's files in ``checkpoints/``, copied over those of this one, do not bring their id along.
- ``config.yaml``, which is edited and copied by hand, and ``summary.json``, which a killed run lacks, are unsuitable.

A run of a version without ids has no such file, and keeps having none. Its checkpoints have no id; one with an id is
another run's. Where the file was lost, the run is that of its newest checkpoint, and a resumed run writes it anew. A
checkpoint copied between two runs without ids is not found out.

Each checkpoint also records the settings that decide results. :func:`changes` finds those that were edited since.
"""

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

from nfsd3d.config.schema import Config
from nfsd3d.config.trust import leaves
from nfsd3d.runs.files import NotRegular, json_object, read_bytes, write_json

NAME = "run.json"
_ID = re.compile(r"[0-9a-f]{32}")
_WITHOUT_EFFECT = ("run_dir", "dry_run", "viewer", "logger", "machine.", "backend.", "export.", "prior.offline")
_ABOUT_OUTPUT = ("preview_every", "preview_size", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
_SHOWN = 3
"""Changed settings in a message."""


def write(run_dir: Path, run: str | None = None) -> None:
    """Writes the id of a run, by default a new one.

    Raises:
        OSError: it cannot be written.
    """
    write_json(run_dir / NAME, {"id": uuid.uuid4().hex if run is None else run})


def read(run_dir: Path) -> str | None:
    """The id of the run in ``run_dir``; None without one, and for a file that is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        found = json_object(read_bytes(run_dir / NAME)).get("id")
    except (FileNotFoundError, NotADirectoryError, NotRegular, ValueError):
        return None
    return found if isinstance(found, str) and _ID.fullmatch(found) else None


def settings(config: Config) -> dict[str, object]:
    """The settings that decide a run's result, by dotted key, as JSON has them."""
    output = tuple(f"train.{name}" for name in _ABOUT_OUTPUT)
    found = {k: v for k, v in leaves(config.to_dict()).items() if not k.startswith((*_WITHOUT_EFFECT, *output))}
    return dict(json.loads(json.dumps(found)))


def changes(trained: Mapping[str, object], file: Config, config: Config) -> str | None:
    """The settings in ``file``, a run's ``config.yaml``, that differ from those it was ``trained`` with, in words.

    None without any. Those that ``config`` overrides are left out, and those that only one version of this program has.
    """
    now, used = settings(file), settings(config)
    edited = [key for key, value in now.items() if key in trained and trained[key] != value == used.get(key)]
    if not edited:
        return None
    shown = [f"{key}={_shown(now[key])} (trained with {_shown(trained[key])})" for key in edited[:_SHOWN]]
    return ", ".join([*shown, *([f"and {len(edited) - _SHOWN} more"] if len(edited) > _SHOWN else [])])


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
