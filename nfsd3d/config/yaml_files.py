"""Reads YAML files of settings: plain values only, of limited size and depth, with errors on one line."""

import copy
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader

from nfsd3d.errors import InputError

_MAX_BYTES = 1_000_000
_MAX_NODES = 20_000
_MAX_DEPTH = 24
_PLAIN_TAGS = ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
_DOTTED = ("defaults", "hydra")
"""Groups with dotted keys: ``group@package`` in a defaults list, settings in a sweeper's params."""
_CORE = "tag:yaml.org,2002:"


def read_yaml(path: str | Path, shown: str | None = None, *, dotted_keys: bool = False) -> dict[str, object]:
    """The mapping in a YAML file, read as Hydra reads it, with interpolations as text.

    Messages name ``shown``, by default the path. ``dotted_keys`` allows keys such as ``train.steps``. Aliases count as
    often as they are used.

    Raises:
        InputError: not a mapping of plain values with text keys; unreadable, too large, or nested too deeply.
    """
    shown = str(path) if shown is None else shown
    try:
        values = copy.deepcopy(_parse(read_text(path), dotted_keys))
    except RecursionError as error:
        raise InputError(f"{shown}: cannot be read as YAML: it is nested too deeply") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{shown}: cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(values, dict | None):
        raise InputError(f"{shown}: holds no settings, no mapping of keys to values")
    return {str(key): value for key, value in (values or {}).items()}


@lru_cache(maxsize=128)  # by the text: the same few files make up every configuration
def _parse(text: str, dotted_keys: bool) -> object:
    loader = get_yaml_loader()(text)  # OmegaConf's differs from PyYAML's: 1e3 is a number, and a date is text
    root = loader.get_single_node()
    if root is None:
        return None
    _check_node(root, dotted_keys)
    return loader.construct_document(root)


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        OSError, ValueError: it cannot be read, is too large, or is not UTF-8.
    """
    with open(path, "rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    return content.decode("utf-8-sig")


def texts_in(values: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text within nested mappings and lists, with its dotted key."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, Mapping | list):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for name, value in items:
            yield from texts_in(value, f"{key}.{name}" if key else str(name))


def one_line(error: Exception) -> str:
    """The first lines of a library's message as one; the name of its type where it has none."""
    message = str(error).partition("Config search path")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__


def _check_node(root: yaml.Node, dotted_keys: bool) -> None:
    """Raises ValueError for a tag, a key, a size or a depth that settings do not have."""
    pending = [(root, dotted_keys, 0)]
    seen = 0
    while pending:
        node, dotted, depth = pending.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen > _MAX_NODES:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels, or has over {_MAX_NODES:,} values")
        line = f"line {node.start_mark.line + 1}"
        if node.tag.removeprefix(_CORE) not in _PLAIN_TAGS:
            raise ValueError(f"{line}: {node.tag.replace(_CORE, '!!')} is not a plain value; leave the tag out")
        if isinstance(node, yaml.MappingNode):
            names = set()
            for name, value in node.value:
                _check_key(name, dotted)
                if name.value in names:
                    raise ValueError(f"line {name.start_mark.line + 1}: {name.value} is given twice")
                names.add(name.value)
                pending.append((value, dotted or (depth == 0 and name.value in _DOTTED), depth + 1))
        elif isinstance(node, yaml.SequenceNode):
            pending += [(value, dotted, depth + 1) for value in node.value]


def _check_key(name: yaml.Node, dotted: bool) -> None:
    line = f"line {name.start_mark.line + 1}"
    if name.tag == f"{_CORE}merge":
        return
    if name.tag != f"{_CORE}str":
        shown = name.value if isinstance(name, yaml.ScalarNode) and name.value else "an empty or nested value"
        raise ValueError(f"{line}: the key {shown} is not text; put it in quotes")
    if "." in name.value and not dotted:
        first, _, rest = name.value.partition(".")
        raise ValueError(f"{line}: {name.value}: a key has no dots; write {first}: {{{rest}: ...}}")
