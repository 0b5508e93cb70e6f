"""Reads JSON configuration files and the headers of safetensors files, without tensor data and without torch."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError

# The first bytes of files that are often given, or downloaded, in place of safetensors.
_OTHER_FORMATS = {
    b"PK\x03\x04": "a pickle of PyTorch, which may run code when it is read; convert it to safetensors",
    b"\x80": "a pickle, which may run code when it is read; convert it to safetensors",
    b"GGUF": "a quantised GGUF file, which nfsd3d does not read; use the safetensors file of the model",
    b"version https://git-lfs": "a Git LFS pointer instead of the file; fetch the file with git lfs pull",
    b"<": "a web page instead of the file; download the file itself",
}
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library


def tensor_shapes(file: Path, setting: str) -> dict[str, list[int]]:
    """As :func:`header_shapes`.

    Raises:
        InputError: the file is in another format, damaged, or cannot be read; the message begins with ``setting``.
    """
    with named_errors(f"{setting}:", "read as safetensors"):
        return header_shapes(file)


def check_not_quantised(file: Path, setting: str) -> None:
    """Raises `InputError` if weights in a safetensors file, with an intact header, are whole numbers or scaled."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    for name, entry in header.items():
        scales = name.endswith(("weight_scale", "scale_weight", "scale_inv"))
        if scales or (name.endswith("weight") and entry["dtype"] not in _FLOATS):
            how = "scales other weights" if scales else f"is of type {entry['dtype']}"
            raise InputError(
                f"{setting}: is quantised ({name} {how}), which is not read; give it in float16, bfloat16 or float32"
            )


def header_shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file, from its header alone.

    Raises:
        OSError, ValueError: it cannot be read, is in another format, or its header does not describe its data.
    """
    with file.open("rb") as stream:
        begin, size = stream.read(32), os.fstat(stream.fileno()).st_size
        length = int.from_bytes(begin[:8], "little")
        try:
            if not 0 < length <= min(size, _LARGEST_HEADER):
                raise ValueError("no safetensors header")
            stream.seek(8)
            header = json.loads(stream.read(length))
            if not all(isinstance(text, str) for text in header.pop("__metadata__", {}).values()):
                raise ValueError("__metadata__ of other things than texts")
            shapes, end = _tensors(header)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            other = next((text for magic, text in _OTHER_FORMATS.items() if begin.startswith(magic)), None)
            raise (ValueError(f"damaged header: {error}") if other is None else _OtherFormat(f"is {other}")) from error
    expected = 8 + length + end
    if size != expected:
        raise ValueError(f"{'cut off' if size < expected else 'too long'}: it has {size:,} of {expected:,} bytes")
    return shapes


def shapes_in(files: Iterable[Path]) -> dict[str, list[int]]:
    """As :func:`header_shapes`, of a network in several files."""
    return {name: shape for file in files for name, shape in header_shapes(file).items()}


def _tensors(entries: dict[str, Any]) -> tuple[dict[str, list[int]], int]:
    """(shapes of the tensors, bytes of all); a ValueError unless each begins where the one before it ends."""
    shapes, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = 8 if kind == "BOOL" else int(re.findall(r"\d+", kind)[0])  # of one number: F16, I64, F8_E4M3
        if not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"shape {shape} of {name}")
        if (first, 8 * (last - first)) != (end, bits * math.prod(shape)):
            raise ValueError(f"data_offsets [{first}, {last}] of {name}, of shape {shape} and type {kind}")
        shapes[name], end = shape, last
    return shapes, end


class _OtherFormat(ValueError):
    """A file is not in the format of safetensors."""


_NAMES = {"_class_name", "addition_embed_type", "beta_schedule", "class_embed_type", "model_type", "prediction_type"}
"""Keys of configurations whose values are names."""


def read_object(path: Path, setting: str = "prior.model, prior.layout") -> dict[str, Any]:
    """The JSON object in a configuration file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    with named_errors(f"{setting}: {path}", "read"):
        return json_object(path)


def json_object(path: Path) -> dict[str, Any]:
    """As :func:`read_object`, for callers that name the setting.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    for name in _NAMES & content.keys():  # a damaged one is unknown like any other, and can be looked up
        if content[name] is not None:
            content[name] = str(content[name])
    return content


def optional_object(path: Path, setting: str = "prior.model, prior.layout") -> dict[str, Any]:
    """As :func:`read_object`; an empty object if there is no such file."""
    return read_object(path, setting) if path.is_file() else {}


@contextmanager
def named_errors(begin: str, verb: str = "loaded") -> Iterator[None]:
    """Turns every error of the block into an `InputError` of one line, which begins with the setting and the place."""
    try:
        yield
    except InputError:
        raise
    except _OtherFormat as error:
        raise InputError(f"{begin} {error}") from error
    except Exception as error:  # tokenizers, transformers and safetensors raise kinds of their own
        raise InputError(f"{begin} cannot be {verb} ({reason(error)}); replace it with an intact copy") from error


def reason(error: Exception) -> str:
    """The first line of an error's message, or else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
