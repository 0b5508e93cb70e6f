"""Checkpoints: tensors in a safetensors file and plain values in a JSON file beside it; nothing is pickled.

``step-XXXXXX.safetensors`` holds the tensors of the generator and the optimiser, those of VSD's LoRA network if there
is one, and the state of the random generator. ``step-XXXXXX.json`` is its :class:`Header`. The JSON file is written
last: a checkpoint exists when it does. ``source.*`` holds the generator that the run started from, so that the run can
be resumed without its source.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.runs.files import replacing, write_json
from nfsd3d.runs.metrics import Metrics, current_names

FORMAT = "nfsd3d checkpoint 1"
SOURCE = Path("checkpoints", "source.json")
"""The source's checkpoint within the directory of a run that has one."""
_GENERATOR, _OPTIMIZER, _RNG = "generator.", "optimizer.", "rng"
_LORA, _LORA_OPTIMIZER = "lora.", "lora_optimizer."
_OLD_PREFIXES = {"particle.": _LORA, "particle_optimizer.": _LORA_OPTIMIZER}
"""Prefixes of version 0.1, read for one minor version."""


class Learner(Protocol):
    """A network that trains beside the generator, with its own optimiser."""

    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """All trained tensors, by name."""
        ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restores a ``state_dict``."""
        ...


class Record(TypedDict, total=False):
    """The progress of a run: seconds and NFE since its start, and the metrics of the last logged step."""

    seconds: float
    network_evaluations: int
    metrics: Metrics


class Header(TypedDict):
    """The JSON file: finished steps, number of parameters in each optimiser group, and the tensor file's checksum."""

    format: str
    sha256: str
    step: int
    group_sizes: list[int]
    record: Record


@dataclass(frozen=True)
class Restored:
    """The plain values of a checkpoint: finished ``steps``, and the ``record`` given to :func:`save`."""

    steps: int
    record: Record


def save(
    folder: Path,
    step: int,
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    record: Record,
    keep: int,
    lora: Learner | None = None,
) -> Path:
    """Writes the state after ``step`` finished steps into ``folder``; returns the path of the JSON file.

    ``record`` is the progress that a resumed run starts with; ``lora`` is VSD's LoRA network. Removes all but the
    newest ``keep`` checkpoints.
    """
    tensors = _of_generator(generator) | _moments(optimizer, _OPTIMIZER)
    if lora is not None:
        tensors |= {_LORA + name: value for name, value in lora.state_dict().items()}
        tensors |= _moments(lora.optimizer, _LORA_OPTIMIZER)
    tensors[_RNG] = rng.get_state()
    path = folder / f"step-{step:06d}.json"
    _write(path, tensors, step, _group_sizes(optimizer), record)
    for old in list_checkpoints(folder)[:-keep]:
        # The JSON file first: without it the pair is no checkpoint, so an interruption leaves no half of one.
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def save_source(run_dir: Path, generator: nn.Module) -> None:
    """Writes the generator that a run starts from into its directory; :func:`load_generator` reads it."""
    _write(run_dir / SOURCE, _of_generator(generator), 0, [], {})


def list_checkpoints(folder: Path) -> list[Path]:
    """The JSON files of the checkpoints in ``folder``, oldest first; empty if there is no such folder."""
    found = [path for path in folder.glob("step-*.json") if re.fullmatch(r"step-\d{6,}", path.stem)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The number of finished steps, from a checkpoint's file name."""
    return int(path.stem.removeprefix("step-"))


def latest(run_dir: Path) -> Path:
    """The JSON file of the newest checkpoint of a run.

    Raises:
        InputError: the run has none.
    """
    found = list_checkpoints(run_dir / "checkpoints")
    if not found:
        raise InputError(f"{run_dir} holds no checkpoint (no checkpoints/step-*.json): start the run anew")
    return found[-1]


def load_header(path: Path) -> Restored:
    """The plain values of a checkpoint, from its JSON file alone.

    Raises:
        InputError: the file is missing, damaged or not a checkpoint's.
    """
    header = _read_header(path)
    return Restored(header["step"], header["record"])


def load_generator(path: Path, generator: nn.Module) -> int:
    """Loads a checkpoint's generator, for rendering and export; returns its number of finished steps.

    Raises:
        InputError: as :func:`load`.
    """
    header, tensors = _read(path)
    _load_generator(path, generator, tensors)
    return header["step"]


def load(
    path: Path,
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    lora: Learner | None = None,
) -> Restored:
    """Restores everything that :func:`save` wrote, in place.

    Learning rates and other settings of the optimisers' groups are not restored: they belong to the configuration,
    which a resumed run may change.

    Raises:
        InputError: the files are missing, damaged, not a checkpoint, or of a generator or LoRA network of another
            shape.
    """
    header, tensors = _read(path)
    _load_generator(path, generator, tensors)
    if header["group_sizes"] != _group_sizes(optimizer):
        raise InputError(f"{path}: the optimiser's state does not fit this configuration: start the run anew")
    started = header["step"] > 0
    _load_moments(path, optimizer, tensors, _OPTIMIZER, started)
    if lora is not None:
        saved = _under(tensors, _LORA)
        if {name: value.shape for name, value in saved.items()} != {
            name: value.shape for name, value in lora.state_dict().items()
        }:
            raise InputError(
                f"{path} is of another second network than distill.lora_rank describes: "
                "use the run's own config.yaml and do not override distill.* when resuming"
            )
        lora.load_state_dict(saved)
        _load_moments(path, lora.optimizer, tensors, _LORA_OPTIMIZER, started)
    rng.set_state(tensors[_RNG])
    return Restored(header["step"], header["record"])


def _write(path: Path, tensors: Mapping[str, Tensor], step: int, group_sizes: list[int], record: Record) -> None:
    """Writes the pair of files; ``path`` is the JSON file."""
    with replacing(path.with_suffix(".safetensors")) as temporary:
        # Copies, because safetensors refuses tensors that share memory.
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, temporary)
        checksum = _checksum(temporary)
    header = Header(format=FORMAT, sha256=checksum, step=step, group_sizes=group_sizes, record=record)
    write_json(path, header)


def _of_generator(generator: nn.Module) -> dict[str, Tensor]:
    return {_GENERATOR + name: value for name, value in generator.state_dict().items()}


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimiser's state; a tensor's name is ``prefix``, the parameter's index, and the moment's name."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def _load_moments(
    path: Path, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str, started: bool
) -> None:
    """Restores the optimiser's state; there must be one once a step is finished (``started``)."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, prefix).items():
        index, moment = name.split(".", 1)
        moments.setdefault(int(index), {})[moment] = value
    if started and not moments:
        raise InputError(f"{path}: the optimiser's state does not fit this configuration: start the run anew")
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_generator(path: Path, generator: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    saved = _under(tensors, _GENERATOR)
    expected = generator.state_dict()
    wrong = sorted(saved.keys() ^ expected.keys()) or sorted(
        name for name, value in expected.items() if saved[name].shape != value.shape
    )
    if wrong:
        raise InputError(
            f"{path} is of another generator than the configuration describes (first difference: {wrong[0]}): "
            "use the run's own config.yaml and do not override generator.* when resuming"
        )
    generator.load_state_dict(saved)


def _remedy(path: Path) -> str:
    return f"delete {path.stem}.* to go on from the checkpoint before it"


def _read_header(path: Path) -> Header:
    """The content of a checkpoint's JSON file, checked; metrics get their current names."""
    remedy = _remedy(path)
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): {remedy}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this program ({FORMAT!r} expected): {remedy}")
    expected = {"step": int, "group_sizes": list, "record": dict, "sha256": str}
    if any(not isinstance(header.get(key), kind) for key, kind in expected.items()):
        raise InputError(f"{path} is incomplete: {remedy}")
    if "metrics" in header["record"]:
        header["record"]["metrics"] = current_names(header["record"]["metrics"])
    return cast("Header", header)


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a checkpoint, checked."""
    header = _read_header(path)
    weights, remedy = path.with_suffix(".safetensors"), _remedy(path)
    try:
        if _checksum(weights) != header.get("sha256"):
            raise InputError(f"{weights} is damaged (its checksum differs from the one in {path.name}): {remedy}")
        tensors = {_current_name(name): value for name, value in load_file(weights).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights} cannot be read ({_first_line(error)}): {remedy}") from error
    return header, tensors


def _current_name(name: str) -> str:
    old = next((prefix for prefix in _OLD_PREFIXES if name.startswith(prefix)), "")
    return _OLD_PREFIXES.get(old, "") + name.removeprefix(old)


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _group_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    """The number of parameters in each of the optimiser's groups."""
    return [len(group["params"]) for group in optimizer.param_groups]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
