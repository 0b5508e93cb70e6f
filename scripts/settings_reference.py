"""Writes docs/settings.md: key, type, range, description and values of every setting, from schema and recipes.

python scripts/settings_reference.py
"""

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaValue

from nfsd3d.config.compose import compose
from nfsd3d.config.keys import groups_in
from nfsd3d.config.schema import Config

TARGET = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
RECIPES = ("shapes", "sd21")
"""Priors whose recipes the reference shows."""
DETECTED = ("machine.name", "machine.device", "machine.precision", "backend.field", "backend.sampler")
"""Settings that depend on the hardware."""


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted key, its type and range in words, and its description."""

    key: str
    type: str
    description: str


@dataclass(frozen=True)
class Group:
    """The settings below the dotted key ``key`` ("" for the top level); a generator's group has a ``kind``."""

    key: str
    kind: str
    description: str
    settings: tuple[Setting, ...]


def all_groups() -> list[Group]:
    """Every group of settings, the top level first."""
    return list(_groups(Config, "", ""))


def reference_markdown() -> str:
    """The settings as Markdown: a table for each group, with the values of ``configs/nfsd.yaml`` for two priors."""
    values = {prior: _values(prior) for prior in RECIPES}
    lines = [
        "# Settings",
        "",
        "Every setting, as `key=value` on the command line or in YAML. Generated from the schema by",
        "`python scripts/settings_reference.py`; do not edit. The last columns are the values of `configs/nfsd.yaml`",
        f"with {' and '.join(f'`prior={prior}`' for prior in RECIPES)}; *detected* ones depend on the hardware.",
        "A schedule is a list of `[fraction of training, value]` knots, linear between them; milestones are constant",
        "between them. `null` switches a setting off.",
    ]
    for group in all_groups():
        title = f"`{group.key}`" if group.key else "Top level"
        kind = f" (`generator={group.kind}`)" if group.kind else ""
        lines += ["", f"## {title}{kind}", "", _markdown(group.description), ""]
        lines += [_row("key", "type", "description", *(f"prior={prior}" for prior in RECIPES)), _row(*["---"] * 5)]
        for setting in group.settings:
            shown = (_shown(setting.key, group.kind, values[prior]) for prior in RECIPES)
            lines.append(_row(f"`{setting.key}`", setting.type, _markdown(setting.description), *shown))
    return "\n".join(lines) + "\n"


def _groups(kind: type, key: str, variant: str) -> Iterator[Group]:
    descriptions = _descriptions(kind)
    settings, nested = [], []
    for field in fields(kind):
        name = f"{key}.{field.name}" if key else field.name
        kinds = groups_in(field.type)
        if kinds:
            # Every kind of generator has a group of its own; a plug-in's name is the user's.
            other = variant if len(kinds) == 1 else "NAME"
            nested += [(k, name, vars(k).get("type", other)) for k in kinds]
        else:
            adapter: TypeAdapter[object] = TypeAdapter(field.type)  # type: ignore[arg-type]
            settings.append(Setting(name, _type_text(adapter.json_schema()), descriptions[field.name]))
    summary = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    yield Group(key, variant, summary, tuple(settings))
    for one, name, its_variant in nested:
        yield from _groups(one, name, its_variant)


def _descriptions(kind: type) -> dict[str, str]:
    """The docstring below each field, of the dataclass and of those that it inherits from."""
    found = {}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        definition = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, after in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = str(ast.literal_eval(after.value))
    return found


def _type_text(schema: JsonSchemaValue) -> str:
    """A JSON schema in words, such as "number in [0, 1]"."""
    if "description" in schema:
        return str(schema["description"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_type_text(option) for option in schema["anyOf"])
    if "prefixItems" in schema:
        return f"[a, b], each a {_type_text(schema['prefixItems'][0])}"
    if "items" in schema:
        return f"list of {_type_text(schema['items'])}"
    names = {"integer": "whole number", "boolean": "true or false", "string": "text"}
    name = names.get(str(schema["type"]), str(schema["type"]))
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    opening, closing = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
    if low is not None and high is not None:
        return f"{name} in {opening}{low}, {high}{closing}"
    return name if low is None else f"{name} {'>=' if opening == '[' else '>'} {low}"


def _values(prior: str) -> dict[str, Mapping[str, object]]:
    """By the kind of generator, the values of ``configs/nfsd.yaml`` with a prior."""
    machine = ["prompt=...", "machine=cpu", "backend=torch", f"prior={prior}"]
    return {kind: compose("nfsd", [*machine, f"generator={kind}"]).to_dict() for kind in ("nerf", "latent", "image")}


def _shown(key: str, kind: str, values: Mapping[str, Mapping[str, object]]) -> str:
    """The value of a setting; a setting that a NeRF lacks has the value of the first generator that has it."""
    if key in DETECTED:
        return "*detected*"
    for tree in [values.get(kind, {})] if kind else values.values():
        value: object = tree
        for part in key.split("."):
            value = value.get(part, ...) if isinstance(value, Mapping) else ...
        if value is not ...:
            return f"`{value if isinstance(value, str) else json.dumps(value)}`"
    return ""


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    TARGET.write_text(reference_markdown(), encoding="utf-8")
    print(TARGET)
