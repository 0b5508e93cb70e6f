"""``nfsd3d completion bash|zsh|fish``: completes subcommands, options, settings and their values in a shell."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from nfsd3d.cli.options import Parser
from nfsd3d.config.choices import AUTO_GROUPS, all_choices
from nfsd3d.config.experiments import choices_of, config_root
from nfsd3d.config.schema import known_keys, values_of
from nfsd3d.config.yaml_files import read_yaml
from nfsd3d.errors import InputError
from nfsd3d.loggers.table import TABLE as LOGGERS
from nfsd3d.prior.priors import TABLE as PRIORS

LAUNCHER = "hydra/launcher"
SHELLS = ("bash", "zsh", "fish")
LOADED_BY = {
    "bash": 'eval "$(nfsd3d completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(nfsd3d completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "nfsd3d completion fish | source    # in ~/.config/fish/config.fish",
}
"""The line of a shell's own file that loads the completion."""


def main(argv: Sequence[str]) -> int:
    """Prints a shell's script, or for ``--line`` what completes a line, one word a line; returns 0.

    Raises:
        InputError: no shell, or another one.
    """
    options = parser().parse_args(argv)
    if options.line is not None:
        print("\n".join(completions(options.line)))
    elif options.shell is None:
        raise InputError(f"completion: name the shell: {', '.join(SHELLS)}")
    else:
        print(Path(__file__).with_name(f"completion.{options.shell}").read_text(encoding="utf-8"), end="")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d completion``."""
    parser = Parser(
        prog="nfsd3d completion",
        description="Print the script that completes subcommands, options, settings and their values.",
        epilog="\n".join(LOADED_BY.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.add_argument("--line", help=argparse.SUPPRESS)  # what the scripts call
    return parser


def completions(line: str) -> list[str]:
    """The whole words that the last word of a command line may become; [] where a file is asked for.

    A setting ends in ``=``, for the value that follows.
    """
    words = _words(line)
    *before, current = words[1:] or [""]
    command = before[0] if before else ""
    from nfsd3d.cli.main import COMMANDS, FLAGS

    if command in COMMANDS:
        module = importlib.import_module(f"nfsd3d.cli.{command.replace('-', '_')}")
        found = _of_arguments(module.parser(), before[1:], current)
    elif before and before[-1] == "--config":
        found = choices_of("")
    elif current.startswith("--config="):
        found = [f"--config={name}" for name in choices_of("")]
    elif before and before[-1] == "--resume":
        found = []
    elif before and before[-1] == "--cfg":
        found = ["job", "hydra", "all"]
    elif current.startswith("-"):
        found = FLAGS
    else:
        found = [*([] if before else COMMANDS), *_settings(current)]
    return [word for word in found if word.startswith(current)]


def _words(line: str) -> list[str]:
    """The words of a line as a shell splits it, the last one unfinished or empty."""
    splitter = shlex.shlex(line, posix=True)
    splitter.whitespace_split, splitter.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(splitter)
    except ValueError:  # within quotes, which nothing here completes
        words.append('"')
    return [*words, ""] if not line or line[-1].isspace() else words


def _settings(current: str) -> list[str]:
    """What a word ``key``, ``key=value`` or ``key=value,value`` may become."""
    key, given, value = current.partition("=")
    groups = _groups()
    if not given:
        own = (key for key in known_keys() if not _is_group(key))
        return [f"{name}=" for name in (*groups, *own, LAUNCHER, *map("hydra.launcher.{}".format, _engine_settings()))]
    done = value[: max(value.rfind(","), value.rfind("[")) + 1]
    extra = {"viewer": ["true", "false"], "logger": LOGGERS.names(), LAUNCHER: choices_of(LAUNCHER)}
    values = all_choices(key) if key in groups else extra.get(key) or values_of(key)
    if key in AUTO_GROUPS:
        values = ["auto", *values]
    return [f"{key}={done}{word}" for word in values]


def _engine_settings() -> list[str]:
    """The settings of all engines, in ``hydra.launcher``."""
    files = (config_root() / LAUNCHER).glob("*.yaml")
    return sorted({name for path in files for name in read_yaml(path)} - {"engine"})


def _groups() -> list[str]:
    """The groups of YAML files that are chosen by name, such as ``distill``."""
    internal = ("hydra", "recipe", "fast", "quick", "ablations")
    return sorted(path.name for path in config_root().iterdir() if path.is_dir() and path.name not in internal)


def _is_group(key: str) -> bool:
    return any(other.startswith(f"{key}.") for other in known_keys())


def _of_arguments(parser: argparse.ArgumentParser, before: Sequence[str], current: str) -> Iterable[str]:
    """What an argument of a subcommand may become, after the arguments ``before``."""
    actions = list(parser._actions)  # argparse has no public list of them
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            for index, word in enumerate(before):
                if word in action.choices:
                    return _of_arguments(action.choices[word], before[index + 1 :], current)
    if current.startswith("-"):
        return [option for action in actions for option in action.option_strings if action.help != argparse.SUPPRESS]
    options = {option: action for action in actions for option in action.option_strings}
    last = next((index for index in reversed(range(len(before))) if before[index].startswith("-")), None)
    awaited = options.get(before[last]) if last is not None else None
    if awaited is not None and last is not None:
        taken = len(before) - 1 - last
        several = awaited.nargs in ("+", "*")
        if awaited.nargs != 0 and (taken == 0 or several):
            return _of_action(awaited, current)
    return [word for action in actions if not action.option_strings for word in _of_action(action, current)]


def _of_action(action: argparse.Action, current: str) -> Iterable[str]:
    if action.choices is not None:
        return list(map(str, action.choices))
    if "--config" in action.option_strings:
        return choices_of("")
    if action.dest == "prior_name":
        return PRIORS.names()
    return _settings(current) if "key=" in str(action.metavar).lower() else []
