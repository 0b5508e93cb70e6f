"""Errors of Hydra and OmegaConf as one line with a remedy."""

import re
from collections.abc import Sequence

from nfsd3d.config.experiments import choices_of, config_root
from nfsd3d.config.yaml_files import one_line, read_yaml
from nfsd3d.errors import InputError, did_you_mean


def describe(error: Exception, overrides: Sequence[str] = ()) -> str:
    """The message of a composition's error on one line; ``overrides`` are those of the command line."""
    cause: BaseException | None = error
    while cause is not None:  # of a resolver, whose errors Hydra replaces by its own
        if isinstance(cause, InputError):
            return str(cause)
        if isinstance(cause, RecursionError):
            return "defaults: files name each other in a circle, or are nested too deeply; take one of them out"
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if found := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        return _missing_choice(text, found[1], found[2], overrides)
    if found := re.search(r"Could not load '([^']+)'", text):
        return f"{_within(text)}{found[1]}.yaml: no such file{did_you_mean(found[1], choices_of(''))}"
    if found := re.search(r"Could not override '([^']+)'. No match", text):
        return f"{found[1]}: no defaults list names this group; begin the file with defaults: [nfsd, _self_]"
    if found := re.search(r"Could not override '([^']+)'", text):
        return _no_such_setting(found[1])
    if found := re.search(r"full_key: (hydra\.\S+)", text):
        kind = found[1].split(".")[1]
        return f"{found[1]}: the {kind} has no such setting; choose one that has it with hydra/{kind}=..."
    if found := re.search(r"Multiple values for ([^\s.]+)", text):
        return f"{found[1]}: chosen already; leave the + out, or write override before it in a defaults list"
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"+{found[1]}: set already; leave the + out"
    if found := re.search(r"Could not delete (?:from config\. )?'([^']+)'", text):
        return f"~{found[1]}: not set, so that it cannot be deleted; leave it out"
    if found := re.search(r"Invalid defaults list in '([^']+)'", text):
        return f"{found[1]}.yaml: defaults must be a list, such as defaults: [nfsd, _self_]"
    if "Cannot merge" in text:
        return f"{_within(text)}a list where a group of settings is wanted, or a group for a list"
    if found := re.match(r"In '?([\w/-]+)'?: (.*default item.*|Missing group name.*)", text):
        return f"{found[1]}.yaml: defaults: {found[2]}; write items such as nfsd, or cameras: orbit"
    if (found := re.fullmatch(r"Error merging override (.*)", text, re.DOTALL)) and error.__cause__ is not None:
        return f"{found[1]}: {str(error.__cause__).partition('full_key')[0].strip()}"
    if isinstance(error, KeyError):
        return f"{one_line(error)}: no such key, or no such environment variable"
    if isinstance(error, OSError) and error.strerror:
        return f"defaults: a file cannot be read ({error.strerror}); name another"
    return one_line(error)


def _missing_choice(text: str, group: str, name: str, overrides: Sequence[str]) -> str:
    """The message for ``group=name``, which has no file."""
    chosen = f"{group}={name}"
    if group in ("quick", "best"):
        other = "fast" if group == "quick" else "nfsd"
        return f"--config {group}: is for prior=shapes and generator=nerf alone; choose those, or --config {other}"
    if group == "fast" and name.startswith("mesh"):
        return "--config fast: is not for generator=mesh; choose --config refine, or set train.steps"
    if group in ("recipe", "fast"):
        return (
            f"{group}/{name}.yaml: missing; write it beside the experiment file, with the settings for this kind of "
            f"generator and prior; there are {', '.join(choices_of(group))}"
        )
    if group.startswith("hydra/") and chosen not in overrides:
        return f"{_within(text)}{chosen}: not allowed in a file; give it on the command line, with -m"
    options = choices_of(group) or re.findall(r"^\t(\w+)$", text, re.MULTILINE)
    return f"{_within(text)}{chosen}: no such choice{did_you_mean(name, options)}; choose {group}={', '.join(options)}"


def _within(text: str) -> str:
    """``FILE.yaml: `` where the message names the file that is wrong, unless it is Hydra's own."""
    found = re.match(r"In '([^']+)'", text)
    return f"{found[1]}.yaml: " if found and not found[1].startswith("hydra/") else ""


def _no_such_setting(key: str) -> str:
    """The message for a known setting that the chosen groups lack."""
    if key.startswith("hydra.launcher."):
        files = (config_root() / "hydra" / "launcher").glob("*.yaml")
        known = sorted({name for path in files for name in read_yaml(path)} - {"engine"})
        hint = did_you_mean(key.rpartition(".")[2], known)
        return f"{key}: no engine has such a setting{hint}; they have {', '.join(known)}"
    group, _, name = key.partition(".")
    having = []
    for choice in choices_of(group):
        content = read_yaml(config_root() / group / f"{choice}.yaml")
        inner = content.get(group)  # of a file with the package _global_
        if name in (inner if isinstance(inner, dict) else content):
            having.append(f"{group}={choice}")
    return f"{key}: the chosen groups have no such setting" + (f"; {', '.join(having)} has" if having else "")
