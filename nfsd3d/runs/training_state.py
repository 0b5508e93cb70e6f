"""The tensors of a checkpoint by name: generator, optimiser, VSD's LoRA network and random generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from nfsd3d.errors import InputError

GENERATOR, _OPTIMIZER, _RNG = "generator.", "optimizer.", "rng"
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


def generator_tensors(generator: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``generator``; :func:`restore_generator` takes them."""
    return {GENERATOR + name: value for name, value in generator.state_dict().items()}


def training_tensors(
    generator: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator, lora: Learner | None
) -> dict[str, Tensor]:
    """The tensors that a run is resumed from; :func:`restore_training` takes them."""
    tensors = generator_tensors(generator) | _moments(optimizer, _OPTIMIZER)
    if lora is not None:
        tensors |= {_LORA + name: value for name, value in lora.state_dict().items()}
        tensors |= _moments(lora.optimizer, _LORA_OPTIMIZER)
    tensors[_RNG] = rng.get_state()
    return tensors


def group_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    """The number of parameters in each of the optimiser's groups."""
    return [len(group["params"]) for group in optimizer.param_groups]


def current_name(name: str) -> str:
    """The name of a tensor in this version."""
    old = next((prefix for prefix in _OLD_PREFIXES if name.startswith(prefix)), "")
    return _OLD_PREFIXES.get(old, "") + name.removeprefix(old)


def restore_generator(path: Path, tensors: Mapping[str, Tensor], generator: nn.Module) -> None:
    """Loads the generator's tensors, in place. ``path`` is named in errors.

    Raises:
        InputError: they are of a generator of another shape.
    """
    saved = _under(tensors, GENERATOR)
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


def restore_training(
    path: Path,
    tensors: Mapping[str, Tensor],
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    lora: Learner | None,
    *,
    sizes: list[int],
    started: bool,
) -> None:
    """Restores everything of :func:`training_tensors`, in place. ``path`` is named in errors.

    ``sizes`` are the saved :func:`group_sizes`. Once a step is finished (``started``) the optimisers have moments.

    Raises:
        InputError: the tensors are of a generator, optimiser or LoRA network of another shape.
    """
    restore_generator(path, tensors, generator)
    misfit = InputError(f"{path}: the optimiser's state does not fit this configuration: start the run anew")
    if sizes != group_sizes(optimizer) or _RNG not in tensors:
        raise misfit
    if not _restore_moments(optimizer, _under(tensors, _OPTIMIZER)) and started:
        raise misfit
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
        if not _restore_moments(lora.optimizer, _under(tensors, _LORA_OPTIMIZER)) and started:
            raise misfit
    rng.set_state(tensors[_RNG])


def _moments(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimiser's state; a tensor's name is ``prefix``, the parameter's index, and the moment's name."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def _restore_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> bool:
    """Restores the optimiser's state; whether there is any."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in saved.items():
        index, moment = name.split(".", 1)
        # A copy, because the optimiser keeps the tensor itself and updates it in place.
        moments.setdefault(int(index), {})[moment] = value.clone()
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return bool(moments)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
