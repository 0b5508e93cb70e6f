"""``nfsd3d sweep status|resume|cancel|report DIR``: the jobs of a sweep, a suite or a comparison in DIR."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.cli.engine_options import add_engine_options, chosen_engine
from nfsd3d.cli.options import Parser, seconds, write_numbers
from nfsd3d.errors import InputError
from nfsd3d.jobs import table
from nfsd3d.jobs.controller import cancel, last_engine, run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Job, Manifest, read, resume_command
from nfsd3d.jobs.perform import Command
from nfsd3d.jobs.report import write_report
from nfsd3d.jobs.state import FINAL, states
from nfsd3d.runs.lock import Owner, live_owner
from nfsd3d.settings.paths import user_path
from nfsd3d.train.interrupts import Interrupted

FEW = 40
"""Jobs up to which ``status`` shows each one; of more, those that run or have failed."""
PATIENCE = 90.0
"""Seconds that ``cancel`` waits for the controller, whose workers save checkpoints."""


def main(argv: Sequence[str]) -> int:
    """Runs the action that ``argv`` names; returns 0, or for ``resume`` 1 if not all jobs are done.

    Raises:
        InputError: not the folder of a sweep, or ``resume`` while another process has it.
        Interrupted: a signal ended ``resume``.
    """
    options = parser().parse_args(argv)
    manifest = read(user_path(options.folder))
    if options.action == "status":
        return _status(manifest, options)
    if options.action == "cancel":
        return _cancel(manifest)
    if options.action == "report":
        return _report(manifest)
    if manifest.kind == "tune":
        resume = resume_command(manifest.folder, manifest.kind)
        raise InputError(f"{manifest.folder}: holds a search; go on with: {resume}")
    command = importlib.import_module("nfsd3d.cli.main").run_command  # a job is any command line, this one included
    return run_and_report(manifest, chosen_engine(options, last_engine(manifest.folder)), command)


def run_and_report(manifest: Manifest, settings: EngineSettings, command: Command) -> int:
    """Runs the jobs that are not done by ``command``, and writes tables and page; returns 0 if all are done, else 1.

    Raises:
        Interrupted: a signal ended it, after the tables are written.
        InputError: the engine cannot be used, or another process has the folder.
    """
    try:
        run(manifest, settings, command)
    except Interrupted:
        _report(manifest)
        raise
    _report(manifest)
    return 0 if all(row.state.status == "done" for row in table.rows_of(manifest)) else 1


def _status(manifest: Manifest, options: argparse.Namespace) -> int:
    """Prints counts and a table, again and again with ``--watch``."""
    while True:
        rows = table.rows_of(manifest)
        of_note = [row for row in rows if row.state.status in ("running", "failed", "diverged", "interrupted")]
        shown = rows if options.all or len(rows) <= FEW else of_note
        print(table.counts_line(rows))
        if shown:
            print(table.text_table(manifest, shown))
        write_numbers(options.json, {"jobs": [table.record_of(manifest, row) for row in rows]})
        if options.watch is None or _at_work(manifest) is None:
            return 0
        time.sleep(options.watch)
        print()


def _cancel(manifest: Manifest) -> int:
    """Ends the jobs of a running sweep after a checkpoint; those that have not begun are cancelled."""
    cancel(manifest.folder)
    deadline = time.monotonic() + PATIENCE
    while (owner := _at_work(manifest)) is not None:
        if time.monotonic() > deadline:
            raise InputError(f"{manifest.folder}: {owner} has not ended in {PATIENCE:.0f} s; stop it there")
        time.sleep(0.2)
    rows = table.rows_of(manifest)
    print(table.counts_line(rows))
    if any(row.state.status not in FINAL for row in rows):
        print(f"go on with: {resume_command(manifest.folder, manifest.kind)}", file=sys.stderr)
    return 0


def _at_work(manifest: Manifest) -> Owner | Job | None:
    """The controller of the set; of a search, whose controllers have single trials, a job that runs; None without."""
    running = (job for job, state in states(manifest) if state.status == "running")
    return live_owner(manifest.folder) or (next(running, None) if manifest.kind == "tune" else None)


def _report(manifest: Manifest) -> int:
    """Writes ``sweep.csv``, ``sweep.json`` and ``sweep.html``, and prints their paths."""
    rows = table.rows_of(manifest)
    paths = [*table.write_tables(manifest, rows), write_report(manifest, rows)]
    print(table.counts_line(rows))
    print("\n".join(map(str, paths)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d sweep``."""
    parser = Parser(prog="nfsd3d sweep", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    status = actions.add_parser("status", help="the state of each job")
    status.add_argument("--all", action="store_true", help=f"each job, also of more than {FEW}")
    status.add_argument("--watch", type=seconds, metavar="SECONDS", help="print it again until the sweep ends")
    status.add_argument("--json", type=Path, metavar="PATH", help="write the states as JSON")
    resume = actions.add_parser("resume", help="run what is missing, from checkpoints, on any engine")
    add_engine_options(resume, "as before")
    actions.add_parser("cancel", help="end the jobs, after a checkpoint")
    actions.add_parser("report", help="write sweep.html, sweep.csv and sweep.json")
    for action in (status, resume, actions.choices["cancel"], actions.choices["report"]):
        action.add_argument("folder", type=Path, metavar="DIR", help="the folder of a sweep, suite or comparison")
    return parser
