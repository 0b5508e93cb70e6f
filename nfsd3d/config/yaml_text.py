"""Text of a run's ``config.yaml``, which YAML, OmegaConf and Hydra read back to the same values."""

from collections.abc import Mapping

import yaml


def to_yaml(values: Mapping[str, object]) -> str:
    """``values`` (nested mappings, lists and plain values) as YAML in which OmegaConf interpolates nothing."""
    return yaml.dump(_escaped(values), Dumper=_ConfigDumper, sort_keys=False, allow_unicode=True, width=110)


def escape_interpolations(text: str) -> str:
    r"""``text`` with every ``${`` written so that OmegaConf takes it literally (``\${``)."""
    chunks = text.split("${")
    # Backslashes count as escapes only right before ${: there each is doubled, and one more escapes the $.
    escaped = [chunk + "\\" * (len(chunk) - len(chunk.rstrip("\\"))) for chunk in chunks[:-1]]
    return "\\${".join([*escaped, chunks[-1]])


def _escaped(value: object) -> object:
    if isinstance(value, str):
        return escape_interpolations(value)
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


class _ConfigDumper(yaml.SafeDumper):
    """Block style, with lists on one line, so that knots and ranges stay readable."""


def _represent_text(dumper: _ConfigDumper, text: str) -> yaml.Node:
    # OmegaConf reads more texts as numbers than YAML does (1e3): quote all that begin like one. Control characters
    # survive in double quotes only.
    style = '"' if text[:1] in tuple("+-.0123456789") or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: _ConfigDumper, values: list[object]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_ConfigDumper.add_representer(str, _represent_text)
_ConfigDumper.add_representer(list, _represent_list)
