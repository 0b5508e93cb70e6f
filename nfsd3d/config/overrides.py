"""Parses and quotes the ``key=value`` overrides of the command line for Hydra's grammar.

In Hydra's grammar commas, quotes, brackets and ``${`` are special characters; prompts and paths may contain them.
"""

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from nfsd3d.config.renamed import current_override
from nfsd3d.config.yaml_text import escape_interpolations
from nfsd3d.errors import InputError

_TEXT_KEYS = ("prompt", "negative_prompt", "source_prompt")
_PATH_KEYS = ("run_dir", "prior.model", "prior.layout", "prior.vae", "source_run", "source_image")


def quote(override: str) -> str:
    """``prompt=anything`` or ``run_dir=any path`` with the whole value quoted for Hydra; others as they are."""
    key, separator, value = override.partition("=")
    if separator and (key in _TEXT_KEYS or (key in _PATH_KEYS and value != "null")):
        return f"{key}={quoted(value)}"
    return override


def quote_sweep(override: str) -> str:
    """As `quote` for prompts in a sweep: commas separate them, except inside a prompt in quotes.

    Raises:
        InputError: a quote that is not closed.
    """
    key, separator, value = override.partition("=")
    if not separator or key not in _TEXT_KEYS:
        return override
    return f"{key}={','.join(quoted(prompt) for prompt in split_prompts(value))}"


_PROMPT_IN_SWEEP = re.compile(
    r"""\s*(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<plain>[^,"'][^,]*|))\s*(?:,|$)""",
    re.DOTALL,
)


def split_prompts(value: str) -> list[str]:
    r"""The prompts in a sweep's ``a, "b, c", 'd'``; inside quotes ``\"`` is a quote.

    Raises:
        InputError: a quote that is not closed, or text after a closing one.
    """
    prompts = []
    position = 0
    while True:
        match = _PROMPT_IN_SWEEP.match(value, position)
        if match is None:
            raise InputError(
                f'prompt={value}: unbalanced quotes in a sweep; write -m \'prompt="a, b","c"\', with \\" for a quote'
            )
        inside = match["double"] if match["double"] is not None else match["single"]
        prompts.append(match["plain"].strip() if inside is None else re.sub(r"\\(.)", r"\1", inside, flags=re.DOTALL))
        position = match.end()
        if position >= len(value) and not match[0].endswith(","):
            return prompts


def quoted(text: str) -> str:
    """``text`` as a quoted value of Hydra's override grammar, interpolating nothing."""
    return QuotedString(text=escape_interpolations(text), quote=Quote.double).with_quotes()


def parse_overrides(overrides: Sequence[str], *, sweep: bool = False) -> list[Override]:
    """The parsed overrides of a command line, without those of removed settings.

    Raises:
        InputError: not of Hydra's grammar.
    """
    current = [line for line in map(current_override, overrides) if line is not None]
    return [parse_override(quote_sweep(line) if sweep else quote(line)) for line in current]


def parse_override(text: str) -> Override:
    """The parsed override ``text``.

    Raises:
        InputError: not of Hydra's grammar.
    """
    if not re.match(r"^[~+]*[^=\s]+=|^~", text):
        raise InputError(f'{text}: not of the form key=value (quote what holds spaces: prompt="a red mushroom")')
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key = text.partition("=")[0]
        raise InputError(
            f"{text}: cannot be understood; put the value in two pairs of quotes: '{key}=\"...\"'"
        ) from error


def group_values(override: Override) -> list[str]:
    """The values of a group override: several in a sweep."""
    return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [str(override.value())]


def first_value(override: Override) -> str:
    """The override as text, a sweep replaced by its first value."""
    if not override.is_discrete_sweep():
        return str(override.input_line)
    return f"{override.get_key_element()}={group_values(override)[0]}"
