"""The tensors of a checkpoint by name: generator, optimiser, VSD's LoRA network and random generator."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.runs.checkpoint_file import GENERATOR, Checkpoint

_OPTIMIZER, _LORA, _LORA_OPTIMIZER, _RNG = "optimizer.", "lora.", "lora_optimizer.", "rng"


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
    """The tensors of ``generator``; :func:`load_generator` takes them."""
    return {GENERATOR + name: value for name, value in generator.state_dict().items()}


def training_tensors(
    generator: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator, lora: Learner | None
) -> dict[str, Tensor]:
    """The tensors that a run is resumed from; :func:`load` takes them."""
    tensors = generator_tensors(generator) | _moments(optimizer, _OPTIMIZER)
    if lora is not None:
        tensors |= {_LORA + name: value for name, value in lora.state_dict().items()}
        tensors |= _moments(lora.optimizer, _LORA_OPTIMIZER)
    tensors[_RNG] = rng.get_state()
    return tensors


def group_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    """The number of parameters in each of the optimiser's groups."""
    return [len(group["params"]) for group in optimizer.param_groups]


def load_generator(checkpoint: Checkpoint, generator: nn.Module) -> None:
    """Loads a checkpoint's generator, in place.

    Raises:
        InputError: it is a generator of another shape.
    """
    saved = _under(checkpoint.tensors, GENERATOR)
    expected = generator.state_dict()
    free: frozenset[str] = getattr(generator, "sized_by_state", frozenset())
    wrong = sorted(saved.keys() ^ expected.keys()) or sorted(
        name for name, value in expected.items() if name not in free and saved[name].shape != value.shape
    )
    if wrong:
        raise InputError(
            f"{checkpoint.path} is of another generator than the configuration describes (first difference: "
            f"{wrong[0]}): use the run's own config.yaml and do not override generator.* when resuming"
        )
    generator.load_state_dict(saved)


def load(
    checkpoint: Checkpoint,
    generator: nn.Module,
    optimizer: torch.optim.Optimizer,
    rng: torch.Generator,
    lora: Learner | None = None,
) -> None:
    """Restores everything of :func:`training_tensors`, in place.

    Learning rates and other settings of the optimisers' groups are not restored: they belong to the configuration,
    which a resumed run may change.

    Raises:
        InputError: the checkpoint is of a generator, optimiser or LoRA network of another shape.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    started = checkpoint.steps > 0  # optimisers have no moments before
    load_generator(checkpoint, generator)
    misfit = InputError(f"{path}: the optimiser's state does not fit this configuration: start the run anew")
    if checkpoint.header["group_sizes"] != group_sizes(optimizer) or _RNG not in tensors:
        raise misfit
    if not _restore_moments(optimizer, _under(tensors, _OPTIMIZER)) and started:
        raise misfit
    if lora is not None:
        saved = _under(tensors, _LORA)
        expected = lora.state_dict()
        if {name: value.shape for name, value in saved.items()} != {n: value.shape for n, value in expected.items()}:
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
