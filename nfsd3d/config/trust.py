"""Allow-lists for YAML files of settings: what they may say to Hydra, and which resolvers they may call.

An experiment file or a run's ``config.yaml`` may come from a stranger. Hydra imports and calls what ``_target_`` names,
sets environment variables, configures logging and imports packages of a search path. So a file may set only the
launcher's and sweeper's values in `_VALUES`, whose text cannot become a shell line or a name in Python. Everything else
below ``hydra`` comes from the command line.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from nfsd3d.config.yaml_files import texts_in
from nfsd3d.errors import InputError

_VALUES = {
    # not the engine or a cluster's address: where jobs run is the command line's alone
    *("launcher.workers", "launcher.threads", "launcher.gpus", "launcher.retries", "launcher.mem_gb"),
    *("launcher.partition", "launcher.account", "launcher.qos", "launcher.constraint"),
    *("launcher.timeout_min", "launcher.signal_delay_s", "launcher.max_requeues"),
}
"""Settings below ``hydra`` that a file may set; ``sweeper.params`` also, for settings of a run."""
_HARMLESS = {"cpu_precision", "recipe_of", "now", "oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values"}
"""Resolvers that a file may call: they read settings, the clock or the processor's features."""
_MAX_INTERPOLATIONS = 32
"""Interpolations of one configuration: values that repeat each other grow exponentially in their number."""


@dataclass(frozen=True)
class Rules:
    """What a file may say, and whether its ``hydra`` block counts.

    A run's ``resolved`` ``config.yaml`` may say less than an experiment. ``allow_env`` lets files read the environment.
    Their ``hydra`` blocks count in a ``sweep`` only.
    """

    resolved: bool = False
    allow_env: bool = False
    sweep: bool = False


def check_file(values: Mapping[str, object], name: str, rules: Rules) -> None:
    """Checks a YAML file's unresolved ``values``; ``name`` is the file's, for messages.

    Raises:
        InputError: naming the file, the key and the remedy.
    """
    for key, text in texts_in(values):
        if "${" in text:
            _check_resolvers(text, f"{name}: {key}", rules)
    if "hydra" not in values or (values["hydra"] in (None, {}) and not rules.resolved):
        return
    if rules.resolved:
        raise InputError(f"{name}: hydra: not a setting of a run; remove it, and give it on the command line")
    if not isinstance(values["hydra"], Mapping):
        raise InputError(
            f"{name}: hydra={values['hydra']}: must be a group, such as hydra: {{launcher: {{n_jobs: 2}}}}"
        )
    for key, value in leaves(values["hydra"]).items():
        check_hydra_value(key, value, name)


def check_hydra_value(key: str, value: object, name: str) -> None:
    """Raises InputError unless a file may set ``hydra.<key>`` to ``value``; ``name`` begins the message."""
    setting = key.removeprefix("sweeper.params.")
    in_params = key != setting and re.fullmatch(r"(?!hydra)[a-z]\w*(\.\w+)*", setting, re.ASCII)
    if key not in _VALUES and not in_params:
        raise InputError(
            f"{name}: hydra.{key}: not allowed in a file, because such settings can run code; "
            "give it on the command line if you want it"
        )
    safe = r"[\w.,:+\-() \[\]]*" if in_params else r"(\w[\w.,:+-]*)?"
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | int | float | None) or (
            isinstance(item, str) and not (len(item) <= 200 and re.fullmatch(safe, item, re.ASCII))
        ):
            raise InputError(
                f"{name}: hydra.{key}={item}: in a file it must be a number, or text of letters, digits and _.,:+-; "
                "give other values on the command line"
            )


def leaves(values: object, key: str = "") -> dict[str, object]:
    """The values within nested mappings by dotted key; lists and empty mappings are values."""
    if not isinstance(values, Mapping) or not values:
        return {key: values}
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= leaves(value, f"{key}.{name}" if key else str(name))
    return found


def check_interpolations(values: object) -> None:
    """Raises InputError for a configuration with too many interpolations, given unresolved."""
    if sum(text.count("${") for _, text in texts_in(values)) > _MAX_INTERPOLATIONS:
        raise InputError(
            f"over {_MAX_INTERPOLATIONS} interpolations (${{...}}) in one configuration; write some values out"
        )


def _check_resolvers(text: str, where: str, rules: Rules) -> None:
    literal = "write \\${ for a literal ${"
    if text.count("${") > _MAX_INTERPOLATIONS:
        raise InputError(f"{where}: over {_MAX_INTERPOLATIONS} interpolations in one value; {literal}")
    try:
        names = list(_resolvers(parse(text)))
    except GrammarParseError as error:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise InputError(f"{where}={shown}: not a complete interpolation; {literal}") from error
    for name in names:
        called = f"{where}: ${{{name}:...}}"
        if rules.resolved:
            raise InputError(f"{called}: a run's configuration has values only; write the value, or {literal}")
        if name == "oc.env":
            if not rules.allow_env:
                raise InputError(
                    f"{called} reads an environment variable; add --allow-env if you trust the file, or {literal}"
                )
        elif name not in _HARMLESS:
            known = ", ".join(sorted(_HARMLESS))
            raise InputError(f"{called}: a file may call only {known} and, with --allow-env, oc.env; or {literal}")


def _resolvers(tree: object) -> Iterator[str]:
    """Names of the resolvers that a parsed value calls, as written; a name may itself be an interpolation."""
    if isinstance(tree, OmegaConfGrammarParser.InterpolationResolverContext):
        yield tree.resolverName().getText().strip()
    for child in getattr(tree, "children", None) or []:
        yield from _resolvers(child)
