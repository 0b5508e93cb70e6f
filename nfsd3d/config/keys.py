"""What the keys of a tree of settings are, and what each of them may be set to."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter


def groups_in(annotation: object) -> list[type]:
    """The settings dataclasses that a field's annotation names: none, one, or several kinds of one group."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return [annotation]
    arguments = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return [kind for argument in arguments for kind in groups_in(argument)]


@cache
def keys_of(tree: type) -> list[str]:
    """Every setting of the dataclass ``tree`` as a dotted key, groups included: ``train``, ``train.steps``, ..."""

    def walk(kind: type, prefix: str) -> list[str]:
        keys = []
        for setting in fields(kind):
            keys.append(prefix + setting.name)
            for group in groups_in(setting.type):
                keys += walk(group, f"{prefix}{setting.name}.")
        return keys

    return list(dict.fromkeys(walk(tree, "")))


def words_of(tree: type, key: str) -> list[str]:
    """The words that a setting may have, such as ``true``, ``false`` or a choice; [] for numbers, texts and groups."""
    return list(dict.fromkeys(word for annotation in _annotations_of(tree, key) for word in _words(annotation)))


def may_be_list(tree: type, key: str) -> bool:
    """Whether a setting may be a list of values, such as ``export.formats``; a schedule is a list of knots."""
    schemas = [TypeAdapter(kind).json_schema() for kind in _annotations_of(tree, key) if not groups_in(kind)]
    choices = [choice for schema in schemas for choice in schema.get("anyOf", [schema])]
    return any("items" in choice or "list of texts" in choice.get("description", "") for choice in choices)


def _annotations_of(tree: type, key: str) -> list[Any]:
    """The annotations of a setting, in every kind of its group."""
    kinds: list[type] = [tree]
    *path, name = key.split(".")
    for part in path:
        kinds = [kind for outer in kinds for kind in groups_in(_annotations(outer).get(part))]
    return [_annotations(kind)[name] for kind in kinds if name in _annotations(kind)]


def _annotations(kind: type) -> dict[str, Any]:
    return {setting.name: setting.type for setting in fields(kind)}


def _words(annotation: Any) -> list[str]:
    if groups_in(annotation):
        return []
    schema = TypeAdapter(annotation).json_schema()
    choices = schema.get("anyOf", [schema])
    choices = [choice.get("items", choice) for choice in choices]
    words = ["true", "false"] if any(choice.get("type") == "boolean" for choice in choices) else []
    return words + [str(word) for choice in choices for word in (*choice.get("enum", ()), *_only(choice))]


def _only(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else []
