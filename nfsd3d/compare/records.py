"""Results of a comparison: one JSON line for each job, in a file that later calls and other machines go on with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError

_ABOUT_OUTPUT = ("preview_every", "preview_size", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
_ELSEWHERE = ("prompt", "seed", "run_dir", "dry_run", "viewer", "machine", "backend", "export", "prior")

_NEWER: dict[str, dict[str, Any]] = {
    "distill": {"guidance_factor": 1.0},
    "generator": {"prune_alpha": 0.0},
}
"""Settings that older recipes lack, and the values at which they change nothing: there a recipe is as it was."""


@dataclass(frozen=True)
class Job:
    """One job of a comparison: what its records and its plan have in common.

    ``kind`` is run, oracle_fit (the same NeRF fitted to true views) or samples (the prior's own). ``recipe`` is a hash
    of the settings that decide the result, prompt and seed aside; ``prior`` and ``classifier`` hashes of their weights
    ("" for an oracle fit's prior): see :attr:`key`. ``settings`` are the row's, as its tier gives them.
    """

    tier: str
    row: str
    kind: str
    prompt: str
    seed: int
    equal: bool
    recipe: str
    prior: str
    classifier: str
    settings: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What a job has to have in common with a record to be done."""
        return self.kind, self.recipe, self.prior, self.classifier, self.prompt, self.seed


@dataclass(frozen=True)
class Record(Job):
    """What a job reached.

    ``status`` is done or diverged. ``score`` has a number for each outcome (None where there is none, as for a run that
    left nothing), and of pictures also the list ``margins``. ``seconds`` are the run's own record, ``cpu_seconds`` the
    processor time that the job took in its last session, start and scoring included. ``image`` is the small picture of
    the result, relative to the records' file.
    """

    steps: int
    status: str
    score: dict[str, Any]
    evaluations: int | None
    seconds: float
    cpu_seconds: float
    image: str | None
    revision: str | None


_RENAMED = {"judge": "classifier"}
"""Fields of records by the names that version 0.1 gave them."""
_KIND_IN_HASH = {"oracle_fit": "ceiling"}
"""Kinds of jobs whose recipes are hashed under the name of version 0.1, so that its records stay valid."""


def append(path: Path, record: Record) -> None:
    """Adds one line to ``path``, which is made if need be.

    Raises:
        InputError: the file cannot be written.
    """
    line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            if stream.tell() > 0:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":  # a line that a crash cut off
                    line = b"\n" + line
            stream.write(line)
    except OSError as error:
        raise InputError(f"--results {path}: cannot be written ({error.strerror}); choose another") from error


def read(path: Path) -> tuple[list[Record], int]:
    """The records in ``path``, oldest first (none if there is no such file), and how many lines are no record.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.exists():
        return [], 0
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--results {path}: cannot be read ({error}); choose another") from error
    parsed = [_parsed(line) for line in lines if line.strip()]
    return [record for record in parsed if record is not None], parsed.count(None)


def _parsed(line: str) -> Record | None:
    try:
        values = {_RENAMED.get(name, name): value for name, value in json.loads(line).items()}
        values["kind"] = next((new for new, old in _KIND_IN_HASH.items() if values["kind"] == old), values["kind"])
        return Record(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def recipe_of(config: Config, kind: str, **more: Any) -> str:
    """A short hash of the settings that decide a result of this ``kind``, and of ``more``.

    Prompt, seed and the prior's weights count by themselves; machine, backend and export do not count, nor do newer
    settings at the value that older runs had.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _ELSEWHERE}
    values["train"] = {key: value for key, value in values["train"].items() if key not in _ABOUT_OUTPUT}
    for group, neutral in _NEWER.items():
        values[group] = {k: v for k, v in values[group].items() if k not in neutral or v != neutral[k]}
    if kind == "oracle_fit":
        values = {key: values[key] for key in ("generator", "cameras", "train")}
    elif kind == "samples":
        values = {"generator": config.generator.type, "prompts": values["prompts"], "cameras": values["cameras"]}
        values["pictures"] = config.train.batch_size if config.makes_images else None
    kind = _KIND_IN_HASH.get(kind, kind)
    return hashlib.sha256(json.dumps([kind, values, more], sort_keys=True).encode()).hexdigest()[:8]


def fingerprint(files: Iterable[Path]) -> str:
    """A short hash of the files' contents, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
