"""A sweep, ``-m seed=0,1 distill=sds,nfsd``, by Hydra's multirun, so that every launcher works.

A sweep's directory holds a run directory for each job, ``<n>-<overrides>``, and ``sweep.csv`` with a line for each.
"""

import csv
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from nfsd3d.cli.launch import announce, start
from nfsd3d.config.compose import settle, to_config
from nfsd3d.config.experiments import Experiment
from nfsd3d.config.hydra_compose import compose_with_hydra, multirun
from nfsd3d.config.overrides import each_value, parse_override, parse_overrides, quoted
from nfsd3d.errors import InputError, print_error
from nfsd3d.runs import directory, preflight
from nfsd3d.runs.files import write_json
from nfsd3d.settings.paths import user_path

_COLUMNS = ("status", "reason", "steps", "seconds", "run_dir")
_HYDRA = ("hydra.output_subdir=null", "hydra.job.chdir=false", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Overrides that leave log files and the working directory as in a run without Hydra."""

_MOST_JOBS = 10_000
_TRIED = 16
"""Jobs that are composed before a sweep begins, as long as none is valid."""


def _job_folder(number: int, overrides: str) -> str:
    """``<n>-<overrides>`` as a file name, from what Hydra calls override_dirname."""
    words = re.sub(r"[^A-Za-z0-9=,._-]+", "-", re.sub(r"""["'\\]|\+\+""", "", overrides))[:120].strip("-")
    return f"{number}-{words}" if words else str(number)


# At import, because launchers with other processes resolve the job's folder there.
OmegaConf.register_new_resolver("nfsd3d_job_folder", _job_folder, replace=True)


def sweep(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Runs every combination of ``arguments`` in a directory of its own; 0 if all are done, else 1.

    Raises:
        InputError: an argument that no job could use, or a directory that cannot be made.
    """
    parsed = parse_overrides(arguments, sweep=True)
    folders = [override for override in parsed if override.key_or_group == "run_dir"]
    if any(override.is_sweep_override() for override in folders):
        raise InputError("run_dir: a sweep has one directory, and makes one for each run inside it")
    given = folders[-1].value() if folders else None
    if given == "":
        raise InputError("run_dir=: must not be empty")
    parsed = [override for override in parsed if override.key_or_group != "run_dir"]
    lines, choices = settle(experiment, parsed)
    _check_jobs(experiment, lines)
    swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
    unnamed = [*(override.key_or_group for override in parsed if not override.is_sweep_override()), *choices]
    if given is not None:
        folder = directory.claim_folder(user_path(str(given)))
    else:
        folder = directory.new_folder(directory.OUTPUTS / experiment.label, "sweep-")
    announce(choices)
    print(f"sweep in {folder}", file=sys.stderr)
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerow(["job", *swept, *_COLUMNS])
    settings = [
        f"hydra.sweep.dir={quoted(str(folder.resolve()))}",
        "hydra.sweep.subdir='${nfsd3d_job_folder:${hydra.job.num},${hydra.job.override_dirname}}'",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quoted, unnamed))}]",
    ]
    multirun(experiment, [*lines, *settings, *_HYDRA, "hydra.mode=MULTIRUN"], run_job)
    return _conclude(folder)


def _check_jobs(experiment: Experiment, lines: Sequence[str]) -> None:
    """Composes jobs until one is valid, among the first ones.

    Raises:
        InputError: a job cannot be composed, none is valid (it is the first one's error), or the sweeper cannot
            enumerate the sweep.
    """
    overrides = list(map(parse_override, lines))
    first = [value for override in overrides for value in itertools.islice(each_value(override), 1)]
    _, hydras = compose_with_hydra(experiment, first, sweep=True)
    params = [parse_override(f"{key}={value}") for key, value in (hydras.sweeper.get("params") or {}).items()]
    overrides = list({override.get_key_element(): override for override in [*params, *overrides]}.values())
    intervals = [override for override in overrides if override.is_interval_sweep()]
    if intervals and hydras.runtime.choices["hydra/sweeper"] == "basic":
        raise InputError(
            f"{intervals[0].input_line}: the basic sweeper takes lists and range(); write values such as 1,2,5, "
            "or give hydra/sweeper=optuna"
        )
    size = hydras.sweeper.get("max_batch_size")
    if size is not None and size < 1:
        raise InputError(f"hydra.sweeper.max_batch_size={size}: must be at least 1")
    listed = [override for override in overrides if not override.is_interval_sweep()]
    values = [list(itertools.islice(each_value(override), _MOST_JOBS + 1)) for override in listed]
    jobs = math.prod(map(len, values))
    if not 0 < jobs <= _MOST_JOBS:
        raise InputError(f"a sweep of {'no' if jobs == 0 else f'over {_MOST_JOBS:,}'} jobs; give fewer or more values")
    errors: list[InputError] = []
    for job in itertools.islice(itertools.product(*values), _TRIED):
        settings, _ = compose_with_hydra(experiment, job, sweep=True)  # an error here would end the sweep at that job
        try:
            preflight.check(to_config(settings))
            return
        except InputError as error:
            errors.append(error)
    if len(errors) == jobs:
        raise errors[0]


def run_job(values: DictConfig) -> None:
    """Runs one job in its folder and writes its line of ``sweep.csv``; only an interruption ends the sweep."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    print(f"\njob {job.job.num}: {job.job.override_dirname}", file=sys.stderr)
    outcome: dict[str, object] = {"status": "done", "reason": ""}
    try:
        start(to_config(values).replace(run_dir=str(run_dir)), "sweep")
    except KeyboardInterrupt:
        outcome = {"status": "interrupted", "reason": "interrupted"}
        raise
    except Exception as error:
        # Whatever this job's error is, the others run.
        print_error(error)
        outcome = {"status": "failed", "reason": " ".join(str(error).split()) or type(error).__name__}
    finally:
        _write_row(run_dir, list(job.overrides.task), int(job.job.num), outcome)


def _write_row(run_dir: Path, overrides: Sequence[str], number: int, outcome: Mapping[str, object]) -> None:
    """Appends a job's line to ``sweep.csv``; the run's own summary takes precedence over ``outcome``."""
    summary = run_dir / "summary.json"
    if not summary.exists() and outcome["status"] == "failed":
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(summary, outcome)
    if summary.exists():
        outcome = {**outcome, **json.loads(summary.read_text(encoding="utf-8"))}
    chosen = {override.key_or_group: override.value() for override in map(parse_override, overrides)}
    row = {"job": number, **chosen, **outcome, "run_dir": str(run_dir)}
    table = run_dir.parent / "sweep.csv"
    columns = next(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    with table.open("a", newline="", encoding="utf-8") as stream:
        csv.DictWriter(stream, columns, extrasaction="ignore").writerow(row)


def _conclude(folder: Path) -> int:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    done = sum(row["status"] == "done" for row in rows)
    print(f"\n{done} of {len(rows)} jobs done; {folder / 'sweep.csv'}")
    return 0 if done == len(rows) else 1
