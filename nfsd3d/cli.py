"""The command line: ``nfsd3d --config X key=value ...``, ``-m`` sweeps, ``--resume RUN_DIR``, and the subcommands.

Hydra's own command line does not take a file, and its grammar trips over ordinary prompts; so the arguments are
rewritten before Hydra sees them. Every error of the user's is one line on stderr (``NFSD3D_DEBUG=1`` adds the
traceback) and exit code 2; a run that failed or diverged is 1, an interrupted one 130 or 143.
"""

import argparse
import csv
import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import nfsd3d
from nfsd3d import preflight
from nfsd3d.backend import Choice
from nfsd3d.config import (
    Experiment,
    compose_experiment,
    config_root,
    describe_hydra_error,
    find_experiment,
    load_run_config,
    override_lines,
    parse_override,
    quote,
    quote_sweep,
    quoted,
    resolve_auto,
    to_config,
)
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.files import write_json
from nfsd3d.prior.resolve import ModelSource, fetch
from nfsd3d.settings import Config, did_you_mean

COMMANDS = {
    "export": "nfsd3d.export.command",
    "render": "nfsd3d.render_command",
    "doctor": "nfsd3d.doctor",
}
"""Subcommands and the modules whose ``main(arguments) -> exit code`` they call."""

PLANNED_COMMANDS = ("evaluate", "compare")

HELP = """\
Text to 3D by noise-free score distillation.

  python launch.py --config configs/nfsd.yaml prompt="a red and white dotted mushroom" [key=value ...]
  python launch.py --config configs/nfsd.yaml -m seed=0,1 distill=sds,nfsd prompt="a pink house"     a sweep
  python launch.py --resume RUN_DIR [key=value ...]                                                  go on with a run
  nfsd3d export|render RUN_DIR ...     nfsd3d doctor     (each with --help)

options
  --config FILE      an experiment: nfsd, configs/sds.yaml, your own YAML anywhere, or RUN_DIR/config.yaml to repeat
  --resume RUN_DIR   continue from the last checkpoint
  -m, --multirun     commas separate values; one run for each combination, and sweep.csv tells how they went
                     (a prompt with a comma is quoted: -m 'prompt="a, b","c"')
  --cfg job          print what Hydra composed (dry_run=true prints the validated configuration)
  -h, --help         this text          --version

common keys
  prompt="..."             what to make; everything after = is the prompt
  negative_prompt="..."    what it should not look like (default: the paper's)
  seed=0                   repeats a run on the same machine
  run_dir=PATH             default outputs/<config>/<prompt>/<time>
  machine=auto|cpu|cuda    device and precision          machine.device=cuda:1
  prior=auto|...           {prior}; prior.model=FOLDER or a hub id
  backend=auto|...         {backend}
  distill=...              {distill}; distill.guidance_scale=7.5
  train.steps=900          train.batch_size=4   train.resolution=64   (schedules: [[0,64],[0.2,512]])
  export.formats=[glb,obj] export.max_faces=50000   export.turntable=false
  dry_run=true             print the resolved configuration and what would be built, and stop

Every setting stands in the YAML files of {root}.
Exit codes: 0 done, 1 failed or diverged, 2 bad input, 130/143 interrupted (resumable).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _dispatch(arguments))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of ``command``, with the user's errors told on one line."""
    try:
        return command()
    except InputError as error:
        _report(error)
        return 2
    except RunFailed as error:
        _report(error)
        return 1
    except KeyboardInterrupt as interruption:
        message = str(interruption) or "interrupted"
        print(f"\n{message}", file=sys.stderr)
        return int(getattr(interruption, "exit_code", 130))


def _report(error: Exception) -> None:
    if os.environ.get("NFSD3D_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in PLANNED_COMMANDS:
        raise InputError(f"{arguments[0]} is not built yet; there are {', '.join(COMMANDS)}")
    if arguments and arguments[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:]))
    options = _parse(arguments)
    if options.help:
        print(help_text())
        return 0
    if options.version:
        print(f"nfsd3d {nfsd3d.__version__}")
        return 0
    if options.resume is not None:
        if options.config is not None or options.multirun:
            raise InputError("--resume RUN_DIR takes neither --config nor -m: the run has its own configuration")
        return _resume(Path(options.resume).expanduser(), options.overrides)
    experiment = find_experiment("nfsd" if options.config is None else options.config)
    if options.multirun:
        return _sweep(experiment, options.overrides)
    if options.cfg is not None:
        return _print_composed(experiment, options.cfg, options.overrides)
    return _run(experiment, options.overrides)


class _Parser(argparse.ArgumentParser):
    """Argparse whose errors are the user's, told like all others."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="nfsd3d", add_help=False, allow_abbrev=False)
    flags = ["--config", "--resume", "--multirun", "--help", "--version", "--cfg"]
    parser.add_argument("--config")
    parser.add_argument("--resume")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], flags)
        raise InputError(f"unknown option {unknown[0]}{near}; see --help")
    return options


def help_text() -> str:
    """What ``--help`` prints, with the choices that the YAML files offer."""
    root = config_root()
    choices = {
        group: "|".join(sorted(path.stem for path in (root / group).glob("*.yaml") if path.stem != "auto"))
        for group in ("prior", "backend", "distill")
    }
    return HELP.format(root=root, **choices).rstrip()


def _announce(choices: Mapping[str, Choice]) -> None:
    for group, choice in choices.items():
        print(f"{group}={choice.value} (auto: {choice.reason})", file=sys.stderr)


def _run(experiment: Experiment, overrides: Sequence[str]) -> int:
    composition = compose_experiment(experiment, overrides)
    config = composition.config
    source = preflight.check(config)
    if config.dry_run:
        if config.run_dir is not None:
            preflight.check_unused(Path(config.run_dir))
        _announce(composition.choices)
        _print_plan(config, source, config.run_dir or f"{preflight.OUTPUTS / experiment.label}/<prompt>/<time>")
    else:
        config = preflight.claim_run_dir(config, experiment.label)
        _announce(composition.choices)
        _train(config, source)
    return 0


def _resume(run_dir: Path, overrides: Sequence[str]) -> int:
    config = load_run_config(run_dir, overrides)
    source = preflight.check(config)
    if not any((run_dir / "checkpoints").glob("step-*.json")):
        raise InputError(
            f"--resume {run_dir}: holds no checkpoint; start the run anew with --config {run_dir}/config.yaml"
        )
    if config.dry_run:
        _print_plan(config, source, str(run_dir))
    else:
        _train(config, source, resume=run_dir)
    return 0


def _train(config: Config, source: ModelSource, resume: Path | None = None) -> None:
    fetch(source)
    # Everything the user may have got wrong is known by now: torch and diffusers take seconds to import.
    from nfsd3d.train.loop import run

    run(config, resume=resume)


def _print_plan(config: Config, source: ModelSource, run_dir: str) -> None:
    """The resolved configuration as YAML, and what a run would be, as comments."""
    model = source.folder if source.folder is not None else f"to be downloaded: {' or '.join(source.hub_ids)}"
    shown = {"run directory": run_dir, "prior's model": model}
    print(config.to_yaml(), end="")
    print("# dry run: nothing was started")
    for name, value in shown.items():
        print(f"# {name}: {value}")


# Sweeps: Hydra's multirun, so that every launcher works.

_SWEEP_COLUMNS = ("status", "reason", "steps", "seconds", "run_dir")


def _job_folder(number: int, overrides: str) -> str:
    """``<n>-<overrides>`` as a file name, from what Hydra calls override_dirname."""
    words = re.sub(r"[^A-Za-z0-9=,._-]+", "-", re.sub(r"""["'\\]""", "", overrides))[:120].strip("-")
    return f"{number}-{words}" if words else str(number)


# At import, because launchers with other processes resolve the job's folder there.
OmegaConf.register_new_resolver("nfsd3d_job_folder", _job_folder, replace=True)


def _sweep(experiment: Experiment, arguments: Sequence[str]) -> int:
    parsed = [parse_override(quote_sweep(argument)) for argument in arguments]
    choices = resolve_auto(experiment, parsed)
    folder_given = [override for override in parsed if override.key_or_group == "run_dir"]
    parsed = [override for override in parsed if override.key_or_group != "run_dir"]
    if any(override.is_sweep_override() for override in folder_given):
        raise InputError("run_dir: a sweep has one directory, and makes one for each run inside it")
    swept = [str(override.key_or_group) for override in parsed if override.is_sweep_override()]
    fixed = [str(override.key_or_group) for override in parsed if not override.is_sweep_override()]
    if folder_given:
        folder = preflight.claim_folder(Path(str(folder_given[-1].value())))
    else:
        folder = preflight.new_folder(preflight.OUTPUTS / experiment.label, "sweep-")
    _announce(choices)
    print(f"sweep in {folder}", file=sys.stderr)
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerow(["job", *swept, *_SWEEP_COLUMNS])
    excluded = ",".join(quoted(key) for key in [*fixed, *choices])
    settings = [
        f"hydra.sweep.dir={quoted(str(folder.resolve()))}",
        "hydra.sweep.subdir='${nfsd3d_job_folder:${hydra.job.num},${hydra.job.override_dirname}}'",
        f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]",
        "hydra.output_subdir=null",
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    _call_hydra(experiment, ["-m", *override_lines(experiment, parsed, choices), *settings])
    return _conclude_sweep(folder)


def _sweep_job(values: DictConfig) -> None:
    """One job: a run in the job's folder, and its row in ``sweep.csv``. Only an interruption ends the sweep."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    print(f"\njob {job.job.num}: {job.job.override_dirname}", file=sys.stderr)
    outcome: dict[str, object] = {"status": "done", "reason": ""}
    try:
        config = to_config(values).replace(run_dir=str(run_dir))
        source = preflight.check(config)
        if config.dry_run:
            _print_plan(config, source, str(run_dir))
        else:
            _train(preflight.claim_run_dir(config, "sweep"), source)
    except KeyboardInterrupt:
        outcome = {"status": "interrupted", "reason": "interrupted"}
        raise
    except Exception as error:
        # Whatever went wrong with this job, the others are to run.
        if isinstance(error, InputError | RunFailed):
            _report(error)
        else:
            traceback.print_exception(error)
        outcome = {"status": "failed", "reason": " ".join(str(error).split()) or type(error).__name__}
    finally:
        _write_row(run_dir, list(job.overrides.task), int(job.job.num), outcome)


def _write_row(run_dir: Path, overrides: Sequence[str], number: int, outcome: Mapping[str, object]) -> None:
    """Appends a job's row to ``sweep.csv``; what the run itself says in its summary counts more than ``outcome``."""
    summary = run_dir / "summary.json"
    if not summary.exists() and outcome["status"] == "failed":
        write_json(summary, outcome)
    if summary.exists():
        outcome = {**outcome, **json.loads(summary.read_text(encoding="utf-8"))}
    chosen = {override.key_or_group: override.value() for override in map(parse_override, overrides)}
    row = {"job": number, **chosen, **outcome, "run_dir": str(run_dir)}
    table = run_dir.parent / "sweep.csv"
    with table.open(newline="", encoding="utf-8") as stream:
        columns = next(csv.reader(stream))
    with table.open("a", newline="", encoding="utf-8") as stream:
        csv.DictWriter(stream, columns, extrasaction="ignore").writerow(row)


def _conclude_sweep(folder: Path) -> int:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    done = sum(row["status"] == "done" for row in rows)
    print(f"\n{done} of {len(rows)} jobs done; {folder / 'sweep.csv'}")
    return 0 if done == len(rows) else 1


def _print_composed(experiment: Experiment, what: str, overrides: Sequence[str]) -> int:
    parsed = [parse_override(quote(override)) for override in overrides]
    _call_hydra(experiment, ["--cfg", what, *override_lines(experiment, parsed, resolve_auto(experiment, parsed))])
    return 0


def _call_hydra(experiment: Experiment, arguments: Sequence[str]) -> None:
    """Hydra's own command line on an experiment file, with its errors as `InputError`."""
    location = ["--config-path", str(experiment.folder), "--config-name", experiment.name]
    with _process_sees(["nfsd3d", *location, *arguments]):
        try:
            # Not as a decorator: launchers with other processes find the plain function by its name.
            hydra.main(version_base="1.3", config_path=None)(_sweep_job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(describe_hydra_error(error)) from error


@contextmanager
def _process_sees(argv: list[str]) -> Iterator[None]:
    """Within the block, Hydra finds ``argv`` as the command line and lets its errors through (else it exits)."""
    former_argv, former_mode = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = former_argv
        if former_mode is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = former_mode
