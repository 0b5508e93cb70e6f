"""Validation errors of a configuration as one line: each setting, its value and the expected one."""

import json
from collections.abc import Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nfsd3d.errors import InputError, did_you_mean


def describe_errors(error: ValidationError, known: Sequence[str], limit: int = 4) -> str:
    """The errors on one line, each with setting, value and what it must be; ``known`` are all settings' dotted keys."""
    # Wrong values before missing ones.
    details = sorted(error.errors(), key=lambda detail: detail["type"] == "missing")
    lines = [_describe(detail, known) for detail in details[:limit]]
    if len(details) > limit:
        lines.append(f"and {len(details) - limit} more")
    return "; ".join(lines)


_EXPECTED = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dataclass_type": "must be a group of settings",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
}


def _describe(detail: ErrorDetails, known: Sequence[str]) -> str:
    # Within the generator's settings, the location also names the kind of generator.
    parts = [part for index, part in enumerate(detail["loc"]) if index != 1 or detail["loc"][0] != "generator"]
    key = ".".join(map(str, parts))
    kind, context = detail["type"], detail.get("ctx", {})
    if isinstance(context.get("error"), InputError):  # about several settings, which it names
        return str(context["error"])
    if kind == "unexpected_keyword_argument":
        hint = " (another kind of generator has it)" if key in known else did_you_mean(key, known)
        return f"unknown setting {key}{hint}"
    if kind == "missing":
        remedy = 'say what to make, for example prompt="a red mushroom"' if key == "prompt" else "set it"
        return f"{key} is missing: {remedy}"
    if kind == "json_invalid":  # the only way for text that came from Python values
        return "a text is not valid Unicode: write it in UTF-8"
    if kind == "prompt":
        return f"{key} {detail['msg']}"
    if kind == "schedule":  # begins with the last part of the key
        return ".".join([*map(str, detail["loc"][:-1]), detail["msg"]])
    if kind == "union_tag_invalid":
        return f"{key}={context['tag']}: must be {context['expected_tags']}"
    if kind == "literal_error":
        expected = f"must be {context['expected']}{_nearest_literal(detail['input'], context['expected'])}"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        message = detail["msg"].replace("Input should be", "must be")
        expected = message[0].lower() + message[1:]
    if kind == "dataclass_type":
        names = [setting for setting in known if setting.startswith(f"{key}.")]
        expected += f", such as {', '.join(names[:4])}" if names else ""
    if isinstance(detail["input"], dict):
        return f"{key}: {expected}"
    value = detail["input"] if isinstance(detail["input"], str) else json.dumps(detail["input"])
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    if kind in ("list_type", "tuple_type"):
        expected += f", such as {key}=[{shown}{f',{shown}' * (kind == 'tuple_type')}]"
    return f"{key}={shown}: {expected}"


def _nearest_literal(value: object, expected: str) -> str:
    options = [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]
    return did_you_mean(value, options) if isinstance(value, str) else ""
