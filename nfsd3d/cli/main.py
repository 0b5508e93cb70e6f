"""The command line: runs, ``-m`` sweeps, ``--resume RUN_DIR``, and the subcommands.

User errors are printed on one line of stderr (``NFSD3D_DEBUG=1`` adds the traceback) with exit code 2. A run that
failed or diverged exits with 1, one that a signal has ended with 128 plus the signal's number.
"""

import argparse
import errno
import importlib
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import nfsd3d
from nfsd3d.cli.launch import resume, start
from nfsd3d.cli.multirun import multirun
from nfsd3d.cli.options import Parser
from nfsd3d.config.choices import all_choices
from nfsd3d.config.compose import compose_experiment, composed_yaml, load_run_config
from nfsd3d.config.experiments import choices_of, config_root, find_experiment
from nfsd3d.distill.settings import DistillSettings
from nfsd3d.errors import InputError, RunFailed, did_you_mean, print_error
from nfsd3d.runs.files import describe, remedy, storage_error
from nfsd3d.settings.paths import user_path
from nfsd3d.train.torchrun import Worker

COMMANDS = (
    *("export", "render", "evaluate", "compare", "decompose", "bench", "doctor", "sweep", "tune", "view", "report"),
    *("check-mesh", "download", "train-prior", "train-classifier", "completion"),
)
"""Subcommands; ``main(arguments) -> exit code`` and ``parser()`` of each are in the module of that name, _ for -."""

FLAGS = ("--config", "--resume", "--multirun", "--help", "--version", "--cfg", "--allow-env")
"""The options of the command itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's), prints user errors on one line, and returns the exit code.

    Of several processes that ``torchrun`` has started, the first one prints; an error that it has not found is printed
    by the one that has.
    """
    worker = Worker.of_environment()
    try:
        with worker.silent():
            return run_command(list(sys.argv[1:] if argv is None else argv))
    except Exception as error:
        cause = storage_error(error)
        no_files = cause is not None and cause.errno in (errno.EMFILE, errno.ENFILE)  # whatever the message makes of it
        if isinstance(error, InputError | RunFailed) and not (no_files and isinstance(error, InputError)):
            print_error(error)
            return 2 if isinstance(error, InputError) else 1
        if cause is None:
            raise
        print_error(RunFailed(f"{describe(cause)}; {remedy(cause)}"))
        return 1
    except KeyboardInterrupt as interruption:
        with worker.silent():
            print(f"\n{str(interruption) or 'interrupted'}", file=sys.stderr)
        return int(getattr(interruption, "exit_code", 130))


def run_command(arguments: list[str]) -> int:
    """Runs a command line; returns the exit code, and raises errors instead of printing them."""
    command = arguments[0] if arguments else ""
    worker = Worker.of_environment()
    if worker.count > 1 and (command in COMMANDS or {"-m", "--multirun"} & set(arguments)):
        what = command if command in COMMANDS else "-m"
        raise InputError(f"{what}: only one run is shared by several processes; start this without torchrun")
    if command in COMMANDS:
        module = importlib.import_module(f"nfsd3d.cli.{command.replace('-', '_')}")
        return int(module.main(arguments[1:]))
    if command and "=" not in command and not command.startswith(("-", "~")):
        hint = did_you_mean(command, COMMANDS)
        if not hint and len(arguments) > 1 and all(word.isalpha() for word in arguments):
            hint = f'; a prompt is given as prompt="{" ".join(arguments)}"'
        raise InputError(f"unknown command {command}{hint}; see --help")
    options = _parse(arguments)
    if options.help:
        print(help_text())
    elif options.version:
        print(f"nfsd3d {nfsd3d.__version__}")
    elif options.resume is not None:
        if options.config is not None or options.multirun:
            raise InputError("--resume RUN_DIR takes neither --config nor -m: the run has its own configuration")
        run_dir = user_path(options.resume)
        resume(load_run_config(run_dir, options.overrides), run_dir, worker)
    else:
        experiment = find_experiment("nfsd" if options.config is None else options.config, allow_env=options.allow_env)
        if options.multirun:
            return multirun(experiment, options.overrides, run_command)
        if options.cfg:
            print(composed_yaml(experiment, options.overrides, options.cfg), end="")
        else:
            composition = compose_experiment(experiment, options.overrides)
            start(composition.config, experiment.label, composition.notes, worker)
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="nfsd3d", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--resume")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--allow-env", action="store_true")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], FLAGS)
        raise InputError(f"unknown option {unknown[0]}{near}; see --help")
    return options


def _wrapped(names: Iterable[str], indent: int) -> str:
    """The names on lines of at most 98 characters, all but the first indented."""
    return f"\n{indent * ' '}".join(textwrap.wrap(", ".join(names), 98 - indent))


def help_text() -> str:
    """What ``--help`` prints, with the choices that the YAML files offer."""
    choices = {group: "|".join(all_choices(group)) for group in ("backend", "distill", "generator")}
    choices["prior"] = _wrapped(all_choices("prior"), 27)
    choices["weighting"] = "|".join(get_args(DistillSettings.__annotations__["weighting"]))
    template = Path(__file__).with_name("help.txt").read_text(encoding="utf-8")
    return template.format(root=config_root(), experiments=_wrapped(choices_of(""), 21), **choices).rstrip()
