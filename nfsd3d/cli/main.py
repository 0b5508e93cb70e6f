"""The command line: ``nfsd3d --config X key=value ...``, ``-m`` sweeps, ``--resume RUN_DIR``, and the subcommands.

Hydra's own command line does not take a file, and its grammar trips over ordinary prompts; so the arguments are
rewritten before Hydra sees them. Every error of the user's is one line on stderr (``NFSD3D_DEBUG=1`` adds the
traceback) and exit code 2; a run that failed or diverged is 1, an interrupted one 130 or 143.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import nfsd3d
from nfsd3d.cli.launch import announce, print_plan, tell, train
from nfsd3d.cli.sweep import run_job, sweep
from nfsd3d.config.compose import (
    Experiment,
    call_hydra,
    compose_experiment,
    config_root,
    find_experiment,
    load_run_config,
    override_lines,
    resolve_auto,
)
from nfsd3d.config.overrides import parse_override, quote
from nfsd3d.errors import InputError, RunFailed, did_you_mean
from nfsd3d.runs import preflight

COMMANDS = {
    "export": "nfsd3d.cli.export",
    "render": "nfsd3d.cli.render",
    "evaluate": "nfsd3d.cli.evaluate",
    "compare": "nfsd3d.cli.compare",
    "decompose": "nfsd3d.cli.decompose",
    "bench": "nfsd3d.cli.bench",
    "doctor": "nfsd3d.cli.doctor",
}
"""Subcommands and the modules whose ``main(arguments) -> exit code`` they call."""

HELP = """\
Text to 3D by noise-free score distillation.

  python launch.py --config configs/nfsd.yaml prompt="a red and white dotted mushroom" [key=value ...]
  python launch.py --config configs/nfsd.yaml -m seed=0,1 distill=sds,nfsd prompt="a pink house"     a sweep
  python launch.py --resume RUN_DIR [key=value ...]                                                  go on with a run
  nfsd3d export|render|evaluate RUN_DIR ...     nfsd3d compare|decompose|bench|doctor     (each with --help)

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
  generator=...            {generator}: a scene, or train.batch_size pictures as latents or pixels
  source_run=RUN_DIR       (or source_image=FILE) start from that; with --config configs/dds.yaml source_prompt="...",
                           which says what it shows, edit it
  train.steps=900          train.batch_size=4   train.resolution=64   (schedules: [[0,64],[0.2,512]])
  export.formats=[glb,obj] export.texture_size=1024 export.turntable=false
  dry_run=true             print the resolved configuration and what would be built, and stop

Every setting stands in the YAML files of {root}.
Exit codes: 0 done, 1 failed or diverged, 2 bad input, 130/143 interrupted (resumable).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's) and returns its exit code, the user's errors told on one line."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        tell(error)
        return 2
    except RunFailed as error:
        tell(error)
        return 1
    except KeyboardInterrupt as interruption:
        message = str(interruption) or "interrupted"
        print(f"\n{message}", file=sys.stderr)
        return int(getattr(interruption, "exit_code", 130))


def _dispatch(arguments: list[str]) -> int:
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
        return sweep(experiment, options.overrides)
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
        for group in ("prior", "backend", "distill", "generator")
    }
    return HELP.format(root=root, **choices).rstrip()


def _run(experiment: Experiment, overrides: Sequence[str]) -> int:
    composition = compose_experiment(experiment, overrides)
    config = composition.config
    source = preflight.check(config)
    if config.dry_run:
        if config.run_dir is not None:
            preflight.check_unused(Path(config.run_dir))
        announce(composition.choices)
        print_plan(config, source, config.run_dir or f"{preflight.OUTPUTS / experiment.label}/<prompt>/<time>")
    else:
        config = preflight.claim_run_dir(config, experiment.label)
        announce(composition.choices)
        train(config, source)
    return 0


def _resume(run_dir: Path, overrides: Sequence[str]) -> int:
    config = load_run_config(run_dir, overrides)
    source = preflight.check(config, run_dir)
    if not any((run_dir / "checkpoints").glob("step-*.json")):
        raise InputError(
            f"--resume {run_dir}: holds no checkpoint; start the run anew with --config {run_dir}/config.yaml"
        )
    if config.dry_run:
        print_plan(config, source, str(run_dir))
    else:
        train(config, source, resume=run_dir)
    return 0


def _print_composed(experiment: Experiment, what: str, overrides: Sequence[str]) -> int:
    parsed = [parse_override(quote(override)) for override in overrides]
    lines = override_lines(experiment, parsed, resolve_auto(experiment, parsed))
    call_hydra(experiment, ["--cfg", what, *lines], run_job)
    return 0
