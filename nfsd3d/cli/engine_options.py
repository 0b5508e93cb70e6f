"""The options of commands that run jobs, ``--engine ray --workers 8 ...``: the settings of an engine."""

import argparse
from dataclasses import replace
from typing import get_args

from nfsd3d.cli.options import at_least_zero, whole_number
from nfsd3d.config.experiments import config_root
from nfsd3d.config.yaml_files import read_yaml
from nfsd3d.errors import InputError
from nfsd3d.jobs.engines.base import EngineName, EngineSettings


def add_engine_options(parser: argparse.ArgumentParser, workers: str = "1") -> None:
    """Adds an option for each field of `EngineSettings`; without one, `chosen_engine` keeps its default.

    ``workers`` names the default number of workers.
    """
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=get_args(EngineName), help="what runs the jobs (default: local)")
    group.add_argument("--workers", type=whole_number(1), metavar="N", help=f"jobs at a time (default: {workers})")
    group.add_argument("--threads", type=whole_number(1), metavar="N", help="threads of each job")
    group.add_argument("--gpus", type=at_least_zero, metavar="N", help="GPUs of each job, a process each; Ray: or .5")
    group.add_argument("--retries", type=whole_number(0), metavar="N", help="new starts of a job whose process died")
    group.add_argument("--address", help="Ray: the cluster's address, such as auto")
    for name in ("partition", "account", "qos", "constraint"):
        group.add_argument(f"--{name}", help=f"SLURM: {name}")
    group.add_argument("--mem-gb", type=whole_number(1), metavar="GB", help="SLURM: memory of a job")
    group.add_argument("--timeout-min", type=whole_number(1), metavar="N", help="submitit: time limit in minutes")
    group.add_argument("--signal-delay-s", type=whole_number(1), metavar="N", help="SLURM: seconds to save in")
    group.add_argument("--max-requeues", type=whole_number(0), metavar="N", help="submitit: requeues of a job")


def chosen_engine(options: argparse.Namespace, default: EngineSettings) -> EngineSettings:
    """``default`` with the fields that the options give.

    Raises:
        InputError: an option that the chosen engine does not have.
    """
    given = {name: getattr(options, name) for name in vars(default)}
    chosen = replace(default, **{name: value for name, value in given.items() if value is not None})
    known = settings_of(chosen.engine)
    for name, value in given.items():
        if value is not None and name not in known:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: engine {chosen.engine} has no such setting; it has {', '.join(known)}")
    return chosen


def settings_of(engine: str) -> list[str]:
    """The settings that an engine has: those that ``configs/hydra/launcher/`` lists."""
    return list(read_yaml(config_root() / "hydra" / "launcher" / f"{engine}.yaml"))
