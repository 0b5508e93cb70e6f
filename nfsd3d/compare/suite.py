"""Suites: every prompt with every row of settings, one run each, in processes of their own."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

from nfsd3d.compare.cores import shares, threads, usable_cores
from nfsd3d.config.renamed import notice
from nfsd3d.errors import InputError
from nfsd3d.runs.directory import slug

_KEYS = {"config", "prompts", "seeds", "rows", "oracle_fit", "baseline", "equal_evaluations", "edits", "source_config"}


@dataclass(frozen=True)
class Suite:
    """A YAML file's content: the experiment ``config``, the ``prompts``, the ``seeds``, the settings of each row by
    the row's name (dotted keys), and whether the photometric ``oracle_fit`` is fitted for the first row's runs.

    In a file a row may have a ``grid``, values by setting: it stands for a row for each combination. A comparison
    (`nfsd3d.cli.compare`) reads also which row each row is compared with (``baseline``, by the row's name:
    one for all, or a mapping), and whether rows are also run at equal evaluations of the network.

    With ``edits`` the rows edit: each of the prompts is first made with the experiment ``source_config``, and then
    turned into each of its edits.
    """

    config: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: dict[str, dict[str, Any]]
    oracle_fit: bool
    baseline: dict[str, str]
    equal_evaluations: bool
    edits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source_config: str = "nfsd"


@dataclass(frozen=True)
class Job:
    """One run of a suite."""

    row: str
    run_dir: Path
    arguments: tuple[str, ...]


def load_suite(path: Path, option: str = "--suite") -> Suite:
    """The suite in a YAML file, which ``option`` of the command line named.

    Raises:
        InputError: no such file, or a key is unknown, missing or of another type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{option} {path}: no valid YAML ({error})") from error
    if isinstance(content, dict) and "ceiling" in content:  # version 0.1's name
        notice(f"{path}: ceiling", "oracle_fit")
        content["oracle_fit"] = content.pop("ceiling")
    if not isinstance(content, dict) or set(content) - _KEYS:
        unknown = ", ".join(map(str, set(content) - _KEYS)) if isinstance(content, dict) else "no mapping"
        raise InputError(f"{option} {path}: {unknown}; a suite has the keys {', '.join(sorted(_KEYS))}")
    edits = content.get("edits", {})
    if not isinstance(edits, dict) or not all(_is_list(targets, str) for targets in edits.values()):
        raise InputError(f"{option} {path}: edits must map the prompt of each source to a list of prompts")
    if edits and "prompts" in content:
        raise InputError(f"{option} {path}: prompts beside edits; the sources are the edits' keys, leave prompts out")
    prompts, seeds = list(map(str, edits)) or content.get("prompts", []), content.get("seeds", [0])
    rows = content.get("rows") or {str(content.get("config", "nfsd")): {}}
    if not _is_list(prompts, str) or not _is_list(seeds, int):
        raise InputError(f"{option} {path}: prompts must be a list of texts and seeds a list of whole numbers")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(f"{option} {path}: rows must map each row's name to its settings, such as {{distill: sds}}")
    rows = {name: row for text, settings in rows.items() for name, row in _expanded(str(text), settings).items()}
    given = content.get("baseline") or {}
    baseline: dict[str, str] = given if isinstance(given, dict) else dict.fromkeys(rows, str(given))
    if not set(baseline) | set(baseline.values()) <= set(rows):
        raise InputError(f"{option} {path}: baseline={given}: names no row; the rows are {', '.join(rows)}")
    return Suite(
        config=str(content.get("config", "nfsd")),
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        rows=rows,
        oracle_fit=bool(content.get("oracle_fit", False)),
        baseline=baseline,
        equal_evaluations=bool(content.get("equal_evaluations", False)),
        edits={str(source): tuple(targets) for source, targets in edits.items()},
        source_config=str(content.get("source_config", "nfsd")),
    )


def _expanded(name: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that a row stands for: itself, or one for each combination of its grid."""
    fixed = {key: value for key, value in settings.items() if key != "grid"}
    grid = settings.get("grid", {})
    combinations = itertools.product(*([(key, value) for value in values] for key, values in grid.items()))
    return {
        ", ".join([name, *(f"{key.rpartition('.')[2]} {_text(value)}" for key, value in chosen)]): fixed | dict(chosen)
        for chosen in combinations
    }


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def source_jobs(suite: Suite, folder: Path) -> list[Job]:
    """The runs that a suite of edits starts from, in ``folder``/source; they come before those of :func:`jobs_of`."""
    return [_job("source", suite.source_config, [], prompt, seed, folder) for prompt, seed in _sources(suite)]


def jobs_of(suite: Suite, folder: Path) -> list[Job]:
    """The runs of a suite, below ``folder``: one folder a row, one in it a prompt (or an edit) and seed."""
    jobs = []
    for name, settings in suite.rows.items():
        overrides = overrides_of(settings)
        for (prompt, seed), source in zip(_sources(suite), source_jobs(suite, folder), strict=True):
            if not suite.edits:
                jobs.append(_job(name, suite.config, overrides, prompt, seed, folder))
            for target in suite.edits.get(prompt, ()):
                edit = [f"source_run={source.run_dir}", f"source_prompt={prompt}", *overrides]
                jobs.append(_job(name, suite.config, edit, target, seed, folder, f"{slug(prompt)}-to-"))
    return jobs


def _sources(suite: Suite) -> list[tuple[str, int]]:
    return [(prompt, seed) for prompt in suite.prompts for seed in suite.seeds]


def _job(row: str, config: str, overrides: list[str], prompt: str, seed: int, folder: Path, before: str = "") -> Job:
    run_dir = folder / slug(row) / f"{before}{slug(prompt)}-{seed}"
    fixed = (f"prompt={prompt}", f"seed={seed}", f"run_dir={run_dir}")
    return Job(row, run_dir, ("--config", config, *overrides, *fixed))


def overrides_of(settings: dict[str, Any]) -> list[str]:
    """A row's settings as ``key=value`` of the command line."""
    return [f"{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_jobs(jobs: list[Job], on_job: Callable[[Job, int], None], *, side_by_side: int = 1) -> None:
    """Runs what is not done yet, ``side_by_side`` at a time on a share of the cores each; what a job prints goes to
    ``<run_dir>.log``.

    A run that was interrupted is resumed. ``on_job`` is called with each job and its exit code (0 for what was done
    before); a job that fails does not stop the others.

    Raises:
        InputError: more jobs at a time than cores.
    """
    from nfsd3d.runs.summary import read_summary

    free: SimpleQueue[list[int]] = SimpleQueue()
    for share in shares(usable_cores(), side_by_side):
        free.put(share)

    def perform(job: Job) -> int:
        if read_summary(job.run_dir).get("status") == "done":
            return 0
        cores = free.get()
        try:
            return _run(job, cores)
        finally:
            free.put(cores)

    pool = ThreadPoolExecutor(side_by_side)
    try:
        started = {pool.submit(perform, job): job for job in jobs}
        for future in as_completed(started):
            on_job(started[future], future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _run(job: Job, cores: list[int]) -> int:
    resumable = any((job.run_dir / "checkpoints").glob("step-*.json"))
    arguments = ("--resume", str(job.run_dir)) if resumable else job.arguments
    job.run_dir.parent.mkdir(parents=True, exist_ok=True)
    start = f"from nfsd3d.compare.cores import keep_to; keep_to({cores}); "
    command = [
        sys.executable,
        "-c",
        f"{start}import sys; from nfsd3d.cli.main import main; sys.exit(main())",
        *arguments,
    ]
    with job.run_dir.with_suffix(".log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, **threads(len(cores))}
        return subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
