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
    """The shape of each tensor in a safetensors file, from its header alone.

    Raises:
        InputError: it cannot be read, is in another format, or is shorter than its header says; the message begins
            with ``setting``.
    """
    begin = b""
    try:
        with file.open("rb") as stream:
            begin, size = stream.read(32), file.stat().st_size
            length = int.from_bytes(begin[:8], "little")
            if not 0 < length <= min(size, _LARGEST_HEADER):
                raise ValueError("no safetensors header")
            stream.seek(8)
            header = json.loads(stream.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end > size:
            raise ValueError(f"cut off: it has {size:,} of {end:,} bytes")
        return {name: [int(side) for side in entry["shape"]] for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        other = next((text for magic, text in _OTHER_FORMATS.items() if begin.startswith(magic)), None)
        if other is not None:
            raise InputError(f"{setting}: is {other}") from error
        raise InputError(
            f"{setting}: cannot be read as safetensors ({error}); replace it with an intact copy"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"prior.model, prior.layout: {path} cannot be read ({error}); replace it with an intact copy"
        ) from error
    return content


def optional_object(path: Path) -> dict[str, Any]:
    """As :func:`read_object`; an empty object if there is no such file."""
    return read_object(path) if path.is_file() else {}
