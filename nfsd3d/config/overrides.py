"""Parses and quotes the ``key=value`` overrides of the command line for Hydra's grammar.

In Hydra's grammar commas, quotes, brackets and ``${`` are special characters; prompts and paths may contain them.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep, ValueType
from hydra.errors import HydraException

from nfsd3d.config.renamed import current_overrides
from nfsd3d.config.yaml_text import escape_interpolations
from nfsd3d.errors import InputError

TEXT_KEYS = ("prompt", "negative_prompt", "source_prompt")
PATH_KEYS = ("run_dir", "prior.model", "prior.layout", "prior.vae", "source_run", "source_mesh", "source_image")

_BEYOND_GRAMMAR = re.compile(r"""^[^"'()]*[~=#&;|!?{}\[\]<>^`][^"'()]*$""")
"""A path with a character that Hydra's grammar does not have; a run's directory has =."""


def quote(override: str, *, sweep: bool = False) -> str:
    """``prompt=anything`` or ``run_dir=any path`` with the whole value quoted for Hydra; others as they are.

    In a sweep, commas separate paths, and prompts that are not in quotes.

    Raises:
        InputError: a quote in a sweep's prompts that is not closed.
    """
    key, separator, value = override.partition("=")
    if separator and key in TEXT_KEYS:
        return f"{key}={','.join(map(quoted, split_prompts(value) if sweep else [value]))}"
    if not separator or key not in PATH_KEYS or value == "null":
        return override
    if not sweep:
        return f"{key}={quoted(value)}"
    return f"{key}={','.join(quoted(path) if _BEYOND_GRAMMAR.search(path) else path for path in value.split(','))}"


_PROMPT_IN_SWEEP = re.compile(
    r"""(?:^|,)\s*(?:(["'])(?P<quoted>(?:\\.|(?!\1)[^\\])*)\1|(?P<plain>[^,"'\s][^,]*|))\s*(?=,|\Z)""", re.DOTALL
)


def split_prompts(value: str) -> list[str]:
    r"""The prompts in a sweep's ``a, "b, c", 'd'``; inside quotes ``\"`` is a quote.

    Raises:
        InputError: a quote that is not closed, or text after a closing one.
    """
    matches = list(_PROMPT_IN_SWEEP.finditer(value))
    if "".join(match[0] for match in matches) != value:
        raise InputError(
            f'prompt={value}: unbalanced quotes in a sweep; write -m \'prompt="a, b","c"\', with \\" for a quote'
        )
    return [
        match["plain"].strip() if match["quoted"] is None else re.sub(r"(?s)\\(.)", r"\1", match["quoted"])
        for match in matches
    ]


def quoted(text: str) -> str:
    """``text`` as a quoted value of Hydra's override grammar, interpolating nothing."""
    return QuotedString(text=escape_interpolations(text), quote=Quote.double).with_quotes()


def parse_overrides(overrides: Sequence[str], *, sweep: bool = False) -> list[Override]:
    """The parsed overrides of a command line.

    Raises:
        InputError: not of Hydra's grammar, or both spellings of a renamed setting.
    """
    return [parse_override(quote(line, sweep=sweep)) for line in current_overrides(overrides)]


@lru_cache(maxsize=20_000)  # a sweep needs each of its values several times
def parse_override(text: str) -> Override:
    """The parsed override ``text``.

    Raises:
        InputError: not of Hydra's grammar.
    """
    if not re.match(r"^[~+]*[^=\s]+=|^~[^=\s]+$", text):
        raise InputError(f'{text}: not of the form key=value (quote what holds spaces: prompt="a red mushroom")')
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:  # a number of over 4300 digits, nested brackets
        key = text.partition("=")[0]
        raise InputError(
            f"{text[:200]}: cannot be understood; put the value in two pairs of quotes: '{key}=\"...\"'"
        ) from error
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise InputError(f"{text}: glob() is not supported; name the values, with commas between them")
    return override


def group_values(override: Override) -> list[str]:
    """The values of a group override as text: several in a sweep."""
    if override.is_choice_sweep():
        return list(override.sweep_string_iterator())
    value = override.value()
    return [value if isinstance(value, str) else str(override.input_line).partition("=")[2]]


def each_value(override: Override) -> Iterator[str]:
    """The override as text, once for each value of a sweep; nothing for an interval, which has no list of values."""
    if override.is_discrete_sweep():
        yield from (f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator())
    elif not override.is_interval_sweep():
        yield str(override.input_line)


def sweeps_in(value: object) -> Iterator[Sweep]:
    """The sweeps in the value of an override, in the order of its text: itself, or those within a list or mapping."""
    if isinstance(value, Sweep):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from sweeps_in(item)


def check_listed(override: Override) -> None:
    """Raises InputError for an interval, and for a sweep within a list: only a search can choose their values."""
    within = not override.is_sweep_override() and any(True for _ in sweeps_in(override.value()))
    if within or override.is_interval_sweep():
        what = "a sweep within a list" if within else "an interval"
        raise InputError(
            f"{override.input_line}: {what} has no list of values; write values such as 1,2,5 or range(1,10), or "
            "search it by nfsd3d tune"
        )
