"""The objective of a trial: the mean of a number over its runs, from their summaries or from their evaluation."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import Manifest
from nfsd3d.jobs.state import SUMMARY, object_in
from nfsd3d.tune.tuning import METRICS, Tuning
from nfsd3d.tune.tuning import SUMMARY as OF_SUMMARY

SCORES, LOG = "scores.json", "evaluate.log"


def objective_of(manifest: Manifest, tuning: Tuning) -> float:
    """The mean objective of a trial's runs, all of which are done.

    Raises:
        InputError: a run has no such number, or could not be evaluated.
    """
    name = tuning.objective
    if name not in OF_SUMMARY and name not in METRICS:
        return _mean(_scores(manifest), name)
    summaries = {str(job): object_in(manifest.run_dir(job) / SUMMARY) for job in manifest.jobs}
    if name in METRICS:
        summaries = {job: _mapping(summary.get("final_metrics")) for job, summary in summaries.items()}
    return _mean(summaries, name)


def _scores(manifest: Manifest) -> dict[str, dict[str, object]]:
    """The scores of a trial's runs, by directory: ``nfsd3d evaluate`` writes them into `SCORES`, unless it has.

    Raises:
        InputError: it has failed.
    """
    path, log = (manifest.folder.absolute() / name for name in (SCORES, LOG))
    if not path.exists():
        run_dirs = [str(manifest.run_dir(job).absolute()) for job in manifest.jobs]
        code = evaluate(["evaluate", *run_dirs, "--json", str(path)], manifest.cwd, log)
        if code != 0:
            raise InputError(f"the evaluation ended with exit code {code}; see {log}")
    found = object_in(path)
    methods = _mapping(found.get("images")).values()  # images are grouped by their method
    scores = [_mapping(found.get("runs")), *map(_mapping, methods)]
    return {run: _mapping(score) for group in scores for run, score in group.items()}


def evaluate(arguments: list[str], cwd: Path, log: Path) -> int:
    """Runs a command line of this program in a process of its own, so that this one needs no torch; its exit code."""
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "nfsd3d", *arguments]
        return subprocess.run(command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode


def _mean(records: Mapping[str, Mapping[str, object]], name: str) -> float:
    """The mean of a number over runs, given as records by their names."""
    values = []
    for run, record in records.items():
        value = record.get(name)
        if not isinstance(value, int | float):
            raise InputError(f"{run}: has no {name}")
        values.append(float(value))
    return sum(values) / len(values)


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
