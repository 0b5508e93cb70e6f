"""Results of a comparison: one JSON line for each job, in a file to which later calls and other machines append."""

import hashlib
import json
import operator
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.jobs.state import RECORD, SUMMARY, object_in

_ABOUT_OUTPUT = ("preview_every", "preview_size", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard")
_ELSEWHERE = ("prompt", "seed", "run_dir", "dry_run", "viewer", "logger", "machine", "backend", "export", "prior")

_NEWER: dict[str, dict[str, float | str]] = {
    "distill": {"guidance_factor": 1.0, "eta": 0.0},
    "generator": {"prune_alpha": 0.0, "color_cells": 0},
    "generator.encoding": {"precision": "float32"},
    "train.shading": {"normals": 0.0},
}
"""Settings that older recipes lack, and the values at which they have no effect and leave the hash unchanged."""
_NEWER_IF_SET = ("source_mesh", "refine")
"""As those, of no group; null has no effect."""


_LIMITS = {"after": 0.2, "opacity_below": 0.002, "opacity_above": 0.998}
_DIVERGED = {**_LIMITS, "window": 0.05, "values_above": 50.0, "growth": 1000.0, "retries": 0, "retry_rate": 0.5}
_DIVERGED_BEFORE = {**_LIMITS, "window": 100}
"""The defaults of ``train.diverged``, now and when the first results were recorded; a run that is done is the same."""


class Score(TypedDict, total=False):
    """The outcomes of a job, as ``RunScore`` describes them; a job without a checkpoint has none.

    ``object``, ``color``, ``pattern``, ``retrieved`` and ``janus`` are 0 or 1 for a scene and shares for images.
    ``margins`` are those of the single images, and images have no geometry.
    """

    margin: float
    object: float
    color: float
    pattern: float
    retrieved: float
    views_right: float
    iou: float
    ellipsoid_iou: float
    view_error_deg: float | None
    janus: float | None
    sharpness: float
    contrast: float
    margins: list[float]


SCORE_NAMES = tuple(name for name in Score.__annotations__ if name != "margins")
"""The fields of :class:`Score` that are single numbers."""


JobKey: TypeAlias = tuple[str, str, str, str, str, int]
"""Kind, recipe, prior, classifier, prompt and seed of a job."""


@dataclass(frozen=True)
class Job:
    """One job of a comparison: the fields that its plan and its record share.

    ``kind`` is run, oracle_fit (the same NeRF fitted to true views) or samples (the prior's own). ``recipe`` is a hash
    of the settings that decide the result, without prompt and seed. ``prior`` and ``classifier`` are hashes of their
    weights ("" for an oracle fit's prior): see :attr:`key`. ``settings`` are the row's, as its tier gives them.
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
    settings: dict[str, object]

    @property
    def key(self) -> JobKey:
        """The fields by which a record is matched to a job."""
        return self.kind, self.recipe, self.prior, self.classifier, self.prompt, self.seed


@dataclass(frozen=True)
class Record(Job):
    """The result of a job.

    ``status`` is done or diverged. ``seconds`` are those of ``summary.json``; ``cpu_seconds`` is the processor time
    of the process that finished the job, start and scoring included. ``image`` is the result's thumbnail, relative to
    the records' file.
    """

    steps: int
    status: str
    score: Score
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
    """Appends one line to ``path``, which is created if it does not exist.

    Raises:
        InputError: the file cannot be written.
    """
    line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            if stream.tell() > 0:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":  # a crash truncated the last line
                    line = b"\n" + line
            stream.write(line)
    except OSError as error:
        raise InputError(f"--results {path}: cannot be written ({error.strerror}); choose another") from error


def read(path: Path) -> tuple[list[Record], int]:
    """The records in ``path``, oldest first (none if there is no such file), and the number of invalid lines.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.exists():
        return [], 0
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: it splits at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--results {path}: cannot be read ({error}); choose another") from error
    parsed = [_parsed(line) for line in lines if line.strip()]
    return [record for record in parsed if record is not None], parsed.count(None)


def of_job(run_dir: Path) -> Record | None:
    """The record that a finished job has left in its directory; None before."""
    return _record(object_in(run_dir / SUMMARY).get(RECORD))


def _parsed(line: str) -> Record | None:
    try:
        return _record(json.loads(line))
    except ValueError:
        return None


def _record(content: Any) -> Record | None:
    try:
        values = {_RENAMED.get(name, name): value for name, value in content.items()}
        values["kind"] = next((new for new, old in _KIND_IN_HASH.items() if values["kind"] == old), values["kind"])
        return Record(**values)
    except (TypeError, KeyError, AttributeError):
        return None


def recipe_of(config: Config, kind: str, **more: float) -> str:
    """A short hash of the settings that decide a result of this ``kind``, and of ``more``.

    Not hashed are prompt, seed and prior (parts of the key), machine, backend and export (without effect on results),
    and newer settings at the value of older runs.
    """
    values = {key: value for key, value in config.to_dict().items() if key not in _ELSEWHERE}
    values["train"] = {key: value for key, value in values["train"].items() if key not in _ABOUT_OUTPUT}
    if values["train"]["diverged"] == _DIVERGED:
        values["train"]["diverged"] = _DIVERGED_BEFORE
    for name in _NEWER_IF_SET:
        if values[name] is None:
            del values[name]
    for group, neutral in _NEWER.items():
        *path, last = group.split(".")
        above = reduce(operator.getitem, path, values)
        if last in above:  # an image has no encoding
            above[last] = {k: v for k, v in above[last].items() if k not in neutral or v != neutral[k]}
    if kind == "oracle_fit":
        values = {key: values[key] for key in ("generator", "cameras", "train")}
    elif kind == "samples":
        values = {"generator": config.generator.type, "prompts": values["prompts"], "cameras": values["cameras"]}
        values["pictures"] = config.train.batch_size if config.makes_images else None
    kind = _KIND_IN_HASH.get(kind, kind)
    return short_hash([kind, values, more], 8)


def short_hash(content: object, length: int = 12) -> str:
    """The first hexadecimal digits of a hash of JSON-like ``content``."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def fingerprint(files: Iterable[Path]) -> str:
    """A short hash of the files' contents, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
