"""The two files of a checkpoint: tensors in a safetensors file, and plain values in a JSON file that names it.

The JSON file is a :class:`Header`, with checksums over both files. It is written last and removed first: a checkpoint
exists when it does. Nothing is pickled.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.runs.files import first_line, read_bytes, write_bytes, write_json
from nfsd3d.runs.metrics import Metrics, current_names, finite

FORMAT = "nfsd3d checkpoint 2"
FORMAT_1 = "nfsd3d checkpoint 1"
"""The format of version 0.1, which has no checksum over the JSON file; read for one minor version."""
GENERATOR = "generator."
"""Prefix of the names of the generator's tensors."""
_RENAMED = {"particle.": "lora.", "particle_optimizer.": "lora_optimizer."}
"""Prefixes of version 0.1, read for one minor version."""


class Record(TypedDict):
    """The progress of a run: seconds and NFE since its start, and the metrics of the last logged step.

    ``retries`` after a divergence, the ``history`` of `nfsd3d.train.divergence.History`, and the ``settings`` that the
    state was trained with (`nfsd3d.runs.identity`) and by which it was ``steered``, since version 0.2.
    """

    seconds: float
    network_evaluations: int
    metrics: Metrics
    retries: NotRequired[int]
    history: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, object]]
    steered: NotRequired[list[dict[str, float | None]]]


NO_PROGRESS = Record(seconds=0.0, network_evaluations=0, metrics={})


class Header(TypedDict):
    """The JSON file.

    ``checksum`` is over all its other values, ``sha256`` over the tensor file. ``step`` finished steps; ``sound`` is
    false when the training loop had doubts about the state. ``group_sizes`` are the numbers of parameters in the
    optimiser's groups. ``run`` is the id of its run (`nfsd3d.runs.identity`), which those of earlier versions lack.
    """

    format: str
    checksum: str
    sha256: str
    step: int
    sound: bool
    group_sizes: list[int]
    record: Record
    run: NotRequired[str]


class Damaged(InputError):
    """A file of a checkpoint is missing, damaged or of another program; the message has no remedy."""


class Vanished(Exception):
    """The checkpoint was removed while it was being read."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read completely and verified; ``path`` is its JSON file, which may be gone by now."""

    path: Path
    header: Header
    tensors: Mapping[str, Tensor]

    @property
    def steps(self) -> int:
        """Finished steps."""
        return self.header["step"]

    @property
    def record(self) -> Record:
        """The progress of the run that was saved with it."""
        return self.header["record"]

    def generator_only(self) -> "Checkpoint":
        """The checkpoint with the generator's tensors alone, for rendering and export."""
        tensors = {name: value for name, value in self.tensors.items() if name.startswith(GENERATOR)}
        return replace(self, tensors=tensors)


def step_of(path: Path) -> int:
    """The number of finished steps, from the name of a checkpoint's file; 0 for a run's source."""
    return 0 if path.stem == "source" else int(path.stem.removeprefix("step-"))


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    sound: bool = True,
    group_sizes: Sequence[int] = (),
    record: Record = NO_PROGRESS,
    run: str | None = None,
) -> None:
    """Writes the pair of files; ``path`` is the JSON file, and its name has the number of finished steps."""
    path.parent.mkdir(exist_ok=True)
    # Copies, because safetensors refuses tensors that share memory.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = safetensors.torch.save(copies)
    write_bytes(path.with_suffix(".safetensors"), content)
    sha256 = hashlib.sha256(content).hexdigest()
    header = Header(
        format=FORMAT,
        checksum="",
        sha256=sha256,
        step=step_of(path),
        sound=sound,
        group_sizes=list(group_sizes),
        record={**record, "metrics": finite(record["metrics"])},
    )
    if run is not None:
        header["run"] = run
    header["checksum"] = _checksum(header)
    write_json(path, header)


def read(path: Path) -> Checkpoint:
    """The checkpoint whose JSON file is ``path``, read completely and verified.

    Raises:
        Damaged: a file is missing, damaged or not a checkpoint's.
        Vanished: the files were removed since they were listed.
    """
    header = read_header(path)
    weights = path.with_suffix(".safetensors")
    content = _bytes_of(weights, path)
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise Damaged(f"{weights} is damaged (its checksum differs from the one in {path.name})")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise Damaged(f"{weights} is damaged ({first_line(error)})") from error
    return Checkpoint(path, header, {_current_name(name): value for name, value in tensors.items()})


def read_header(path: Path) -> Header:
    """The content of a checkpoint's JSON file, verified.

    Raises:
        Damaged, Vanished: as :func:`read`.
    """
    return parse_header(path, _bytes_of(path, path))


def parse_header(path: Path, content: bytes) -> Header:
    """``content`` of the JSON file ``path``, verified; metrics get their current names.

    Raises:
        Damaged: it is not a checkpoint's.
    """
    try:
        header = json.loads(content.decode())
        checksum = _checksum(header) if isinstance(header, dict) else ""
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({first_line(error)})") from error
    if not isinstance(header, dict) or header.get("format") not in (FORMAT, FORMAT_1):
        raise Damaged(f"{path} is not a checkpoint of this program ({FORMAT!r} expected)")
    if header.get("checksum") != (checksum if header["format"] == FORMAT else None):
        raise Damaged(f"{path} is damaged (its checksum differs from its content)")
    header.setdefault("sound", True)
    expected = {"sha256": str, "step": int, "sound": bool, "group_sizes": list, "record": dict}
    if any(type(header.get(key)) is not kind for key, kind in expected.items()):
        raise Damaged(f"{path} is incomplete")
    if not isinstance(header.get("run", ""), str):
        raise Damaged(f"{path} is incomplete")
    if header["step"] != step_of(path):
        raise Damaged(f"{path} has the content of step {header['step']}")
    record = NO_PROGRESS | header["record"] if path.stem == "source" else header["record"]
    kinds = {"seconds": int | float, "network_evaluations": int, "metrics": dict}
    if any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise Damaged(f"{path} is incomplete")
    header["record"] = {**record, "metrics": current_names(record["metrics"])}
    return cast("Header", header)


def _bytes_of(path: Path, json_file: Path) -> bytes:
    """The content of ``path``, one of the files of the checkpoint ``json_file``.

    Raises:
        Damaged, Vanished: as :func:`read`.
        OSError: a cause outside of the file, such as too many open files: the checkpoint may be intact.
    """
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        if not os.path.lexists(json_file):
            raise Vanished(f"{json_file} does not exist any more") from error
        raise Damaged(f"{path} is missing") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ESTALE):
            raise
        raise Damaged(f"{path} cannot be read ({error.strerror})") from error


def _checksum(header: Mapping[str, object]) -> str:
    """A checksum over the values of a header except its own, whatever their order and layout in the file."""
    content = {key: value for key, value in header.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _current_name(name: str) -> str:
    """The name of a tensor in this version."""
    old = next((prefix for prefix in _RENAMED if name.startswith(prefix)), "")
    return _RENAMED.get(old, "") + name.removeprefix(old)
