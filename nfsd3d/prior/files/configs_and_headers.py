"""Reads JSON configuration files and the headers of safetensors files, without tensor data and without torch."""

import json
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
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library


def tensor_shapes(file: Path, setting: str) -> dict[str, list[int]]:
    """As :func:`header_shapes`.

    Raises:
        InputError: the file is in another format, damaged, or cannot be read; the message begins with ``setting``.
    """
    try:
        return header_shapes(file)
    except _OtherFormat as error:
        raise InputError(f"{setting}: {error}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{setting}: cannot be read as safetensors ({error}); replace it with an intact copy"
        ) from error


def header_shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file, from its header alone.

    Raises:
        OSError, ValueError: it cannot be read, is in another format, or is shorter than its header says.
    """
    with file.open("rb") as stream:
        begin, size = stream.read(32), file.stat().st_size
        length = int.from_bytes(begin[:8], "little")
        try:
            if not 0 < length <= min(size, _LARGEST_HEADER):
                raise ValueError("no safetensors header")
            stream.seek(8)
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            shapes = {name: [int(side) for side in entry["shape"]] for name, entry in entries.items()}
            end = 8 + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            other = next((text for magic, text in _OTHER_FORMATS.items() if begin.startswith(magic)), None)
            raise (ValueError(f"damaged header: {error}") if other is None else _OtherFormat(f"is {other}")) from error
    if end > size:
        raise ValueError(f"cut off: it has {size:,} of {end:,} bytes")
    return shapes


class _OtherFormat(ValueError):
    """A file is not in the format of safetensors."""


_NAMES = {"_class_name", "addition_embed_type", "beta_schedule", "class_embed_type", "model_type", "prediction_type"}
"""Keys of configurations whose values are names."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        return json_object(path)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"prior.model, prior.layout: {path} cannot be read ({error}); replace it with an intact copy"
        ) from error


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


def optional_object(path: Path) -> dict[str, Any]:
    """As :func:`read_object`; an empty object if there is no such file."""
    return read_object(path) if path.is_file() else {}
