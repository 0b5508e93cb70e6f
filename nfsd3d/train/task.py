"""The task of the training loop: a generator, its optimiser, and the loss of a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import ImageGenerator, SceneGenerator
from nfsd3d.runs.training_state import Learner
from nfsd3d.train.build import Parts
from nfsd3d.train.compilation import release_compiled
from nfsd3d.train.memory.chunking import ChunkSizes, configured_chunks
from nfsd3d.train.outlook import Outlook
from nfsd3d.train.plan import StepPlan
from nfsd3d.train.previews import preview
from nfsd3d.train.ranks import ALONE, Ranks
from nfsd3d.train.step import StepResult, step_loss
from nfsd3d.visualize.images import Image


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A training task; checkpoints keep the state of ``generator``, ``optimizer``, ``rng`` and ``lora``.

    ``lora`` is VSD's LoRA network, which trains beside the generator. ``chunks`` are the initial chunk sizes of a step.
    The ``ranks`` share its views. ``outlook`` estimates the time of what comes after training.
    """

    generator: SceneGenerator | ImageGenerator
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    lora: Learner | None = None
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    ranks: Ranks = ALONE
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers of the generator and of the LoRA network."""
        return [self.optimizer, *([] if self.lora is None else [self.lora.optimizer])]

    @abstractmethod
    def step(self, plan: StepPlan) -> StepResult:
        """The loss of a step; draws from ``rng``, and changes no other state, so that it can be repeated.

        The LoRA network gets its gradient.
        """

    @abstractmethod
    def preview(self, on_view: Callable[[], None]) -> Image:
        """An image grid of the generator's present state; ``on_view`` is called after each view of a scene."""

    @abstractmethod
    def release_compiled(self) -> None:
        """Frees the memory of torch.compile; later steps run uncompiled."""


@dataclass(frozen=True, kw_only=True)
class ScoreDistillation(Task):
    """Training by score distillation; final."""

    config: Config
    parts: Parts

    @classmethod
    def of(cls, config: Config, parts: Parts, ranks: Ranks = ALONE) -> "ScoreDistillation":
        """The task of a run with these parts, with the configured chunk sizes."""
        return cls(
            generator=parts.generator,
            optimizer=parts.optimizer,
            rng=parts.rng,
            lora=parts.distillation.lora,
            chunks=configured_chunks(config.machine),
            ranks=ranks,
            outlook=Outlook.of(config),
            config=config,
            parts=parts,
        )

    def step(self, plan: StepPlan) -> StepResult:
        """See :func:`nfsd3d.train.step.step_loss`."""
        own = self.parts
        return step_loss(
            own.generator, own.prior, own.bank, own.distillation, own.ranges, plan, own.rng, own.source, self.ranks
        )

    def preview(self, on_view: Callable[[], None]) -> Image:
        """Views of the scene, or all images."""
        return preview(self.config, self.parts.generator, self.parts.prior, on_view)

    def release_compiled(self) -> None:
        """Frees the compiled networks and their CUDA graphs."""
        release_compiled(self.parts.prior)
