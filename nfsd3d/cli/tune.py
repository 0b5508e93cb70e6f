"""``nfsd3d tune``: searches for the settings with the best mean objective over prompts and seeds, by Optuna."""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from nfsd3d.cli.engine_options import add_engine_options, chosen_engine
from nfsd3d.cli.launch import announce
from nfsd3d.cli.multirun import Sweep, as_given, checked, shown
from nfsd3d.cli.options import Parser, whole_number
from nfsd3d.cli.parse_search_space import Space, search_space
from nfsd3d.cli.prompt_file import prompts_of_file
from nfsd3d.config.compose import lines_of, settle
from nfsd3d.config.experiments import Experiment, find_experiment
from nfsd3d.config.overrides import parse_override, parse_overrides
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.jobs.controller import check_engine, last_engine
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import resume_command
from nfsd3d.runs import directory
from nfsd3d.settings.paths import user_path
from nfsd3d.tune import tuning as tunings
from nfsd3d.tune.search_space import Setting
from nfsd3d.tune.trials import tune
from nfsd3d.tune.tuning import METRICS, SUMMARY, Tuning

TRIALS = 20
WARMUP = 0.25
"""The fraction of a run before which no trial is pruned."""


def main(argv: Sequence[str]) -> int:
    """Runs the trials that ``argv`` asks for; returns 0, or 1 if none is complete.

    Raises:
        InputError: Optuna is not installed, a wrong objective, search space or setting, or another search's folder.
        Interrupted: a signal ended it.
        RunFailed: several trials in a row have failed.
    """
    options = parser().parse_intermixed_args(argv)
    if find_spec("optuna") is None:
        raise InputError("tune: Optuna is not installed; install it with: pip install 'nfsd3d[sweep]'")
    begun = _begun(options) if options.resume is None else _resumed(options)
    if begun is None:  # a dry run
        return 0
    folder, tuning = begun
    settings = chosen_engine(options, last_engine(folder))
    check_engine(settings)
    print(f"search in {folder}", file=sys.stderr)
    run_command = import_module("nfsd3d.cli.main").run_command  # a job is any command line, this one included
    study = import_module("nfsd3d.tune.study").Study(folder, maximize=tuning.maximize, warmup=tuning.warmup)
    return 0 if tune(study, folder, tuning, settings, run_command) else 1


def _begun(options: argparse.Namespace) -> tuple[Path, Tuning] | None:
    """The search of a command line, written into its folder; None for a dry run.

    Raises:
        InputError: a wrong objective, search space, setting or engine, or the folder of another search.
    """
    if options.maximize is None and options.minimize is None:
        raise InputError("tune: lacks its objective; give --maximize NAME or --minimize NAME, such as --maximize iou")
    experiment = find_experiment(options.config or "nfsd", allow_env=options.allow_env)
    parsed = parse_overrides([prompts_of_file(argument) for argument in options.overrides], sweep=True)
    engine = chosen_engine(options, EngineSettings())
    lines, choices = settle(experiment, parsed, engine.machine)
    space = search_space(list(map(parse_override, lines)))
    samples = {f"searched {index}": _samples(setting) for index, setting in enumerate(space.searched)}
    config = checked(experiment, Sweep(space.shared, space.averaged | samples, engine))
    _check_measures(options, config, space)
    check_engine(engine)
    tuning = _tuning(options, experiment, config, space)
    if not config.dry_run and options.output is not None:
        begun = _written(user_path(options.output).absolute(), tuning)
    elif not config.dry_run:
        begun = _written(directory.new_folder((directory.OUTPUTS / experiment.label).absolute(), "tune-"), tuning)
    announce(lines_of(choices))
    print("\n".join(_plan(tuning)), file=sys.stderr)
    if config.dry_run:
        print("dry run: nothing was started", file=sys.stderr)
        return None
    return begun


def _resumed(options: argparse.Namespace) -> tuple[Path, Tuning]:
    """An existing search, with the number of trials that the command line gives.

    Raises:
        InputError: no such search, or an option that it has already.
    """
    names = ("config", "maximize", "minimize", "prune_low", "prune_high", "output", "allow_env")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)] + options.overrides
    if given:
        raise InputError(f"--resume {options.resume}: the search has its own {given[0]}; leave it out")
    folder = user_path(options.resume).absolute()
    tuning = tunings.read(folder)
    if options.trials is not None:
        tuning = replace(tuning, trials=options.trials)
        tunings.write(folder, tuning)
    return folder, tuning


def _check_measures(options: argparse.Namespace, config: Config, space: Space) -> None:
    """Raises `InputError` unless the runs have the objective and the pruning metric that the options name."""
    name = options.maximize or options.minimize
    tunings.check_objective(name, _option(options, "maximize", "minimize"), images=config.makes_images)
    metric = options.prune_low or options.prune_high
    if metric is not None and metric not in METRICS:
        option = _option(options, "prune_low", "prune_high")
        raise InputError(f"{option} {metric}: no metric of a running job; there are {', '.join(sorted(METRICS))}")
    if name not in (*SUMMARY, *METRICS):
        composition_of = import_module("nfsd3d.evaluate.ground_truth").composition_of  # imports torch
        for prompt in list(map(shown, space.averaged.get("prompt", []))) or [config.prompt]:
            composition_of(prompt)


def _option(options: argparse.Namespace, *names: str) -> str:
    return next(f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None)


def _samples(setting: Setting) -> list[str]:
    """The overrides with the ends of each dimension and its choices, which are checked before the search."""
    first = {dimension.name: dimension.ends[0] for dimension in setting.dimensions}
    others = [first | {dimension.name: end} for dimension in setting.dimensions for end in dimension.ends[1:]]
    return [setting.override(values) for values in (first, *others)]


def _tuning(options: argparse.Namespace, experiment: Experiment, config: Config, space: Space) -> Tuning:
    allowed = ["--allow-env"] * experiment.allow_env
    return Tuning(
        objective=options.maximize or options.minimize,
        maximize=options.maximize is not None,
        trials=options.trials or TRIALS,
        arguments=("--config", str(experiment.path), *allowed, *map(as_given, space.shared)),
        settings=space.searched,
        averaged={key: tuple((as_given(t), shown(t)) for t in texts) for key, texts in space.averaged.items()},
        cwd=os.getcwd(),
        prune=options.prune_low or options.prune_high,
        prune_low=options.prune_high is None,
        warmup=int(WARMUP * config.train.steps),
    )


def _plan(tuning: Tuning) -> Iterator[str]:
    """Lines on what is searched for, and where."""
    runs = math.prod(map(len, tuning.averaged.values()))
    yield f"{tuning.trials} trials of {runs} run{'s' * (runs != 1)} each, for the {tuning.aim}"
    for dimension in tuning.dimensions:
        yield f"searched: {dimension.name}, {dimension}"
    for key, values in tuning.averaged.items():
        yield f"averaged over: {key}, {' or '.join(value for _, value in values)}"


def _written(folder: Path, tuning: Tuning) -> tuple[Path, Tuning]:
    """The folder with the search in it; one that holds the same search goes on with it.

    Raises:
        InputError: it holds another search, or other files, or cannot be written to.
    """
    known = folder / tunings.NAME
    if not os.path.exists(known):  # not Path.exists, which raises for a name that is too long
        try:
            directory.claim_folder(folder)
        except InputError:
            if not os.path.exists(known):  # else the same command, started at the same time, was faster
                raise
    if os.path.exists(known):
        there = tunings.read(folder)
        tuning = replace(tuning, cwd=there.cwd)
        if replace(there, trials=tuning.trials) != tuning:
            remedy = f"choose another, or: {resume_command(folder, 'tune')}"
            raise InputError(f"--output {folder}: holds another search; {remedy}")
    tunings.write(folder, tuning)
    return folder, tuning


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d tune``."""
    parser = Parser(
        prog="nfsd3d tune",
        description=__doc__,
        epilog="Overrides with interval(a,b), range(a,b,step), choice(a,b) or tag(log, interval(a,b)) are searched. "
        "Lists a,b of prompt and seed are what each trial runs and averages over. Several processes may have the same "
        "--output, on several machines too.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config", help="the experiment (default: nfsd)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with the search in DIR")
    parser.add_argument("--output", type=Path, metavar="DIR", help="its folder (default: outputs/CONFIG/tune-TIME)")
    parser.add_argument("--trials", type=whole_number(1), metavar="N", help=f"trials in all (default: {TRIALS})")
    aim = parser.add_mutually_exclusive_group()
    scores = "a score of nfsd3d evaluate, such as iou or margin, a final metric, seconds or network_evaluations"
    aim.add_argument("--maximize", metavar="NAME", help=f"the objective, of which more is better: {scores}")
    aim.add_argument("--minimize", metavar="NAME", help="the objective, of which less is better")
    prune = parser.add_mutually_exclusive_group()
    prune.add_argument("--prune-low", metavar="METRIC", help="end trials with a metric below the others' median")
    prune.add_argument("--prune-high", metavar="METRIC", help="end trials with a metric above the others' median")
    parser.add_argument("--allow-env", action="store_true", help="the experiment file may read the environment")
    add_engine_options(parser)
    return parser
