"""A study of one prior: each figure of the score decomposition, with its image grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from rich.progress import Progress
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.decompose.figures import (
    Figure,
    classifier_gains,
    condition_figure,
    dds_figure,
    domain_figure,
    negative_figure,
    residual_figure,
    vsd_figure,
)
from nfsd3d.decompose.image_pairs import (
    Pairs,
    Subjects,
    degraded_pairs,
    floater_pairs,
    half_trained_pairs,
    on_latents,
    recoloured_pairs,
    saturated_pairs,
)
from nfsd3d.decompose.observation import Observation, PairObservation, lora_stages, observe
from nfsd3d.decompose.plots import (
    ImageGrid,
    condition_grid,
    dds_grid,
    domain_grid,
    negative_grid,
    residual_grid,
    vsd_grid,
)
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.oracle_fit import METHOD
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.settings.prompt_texts import VIEW_WORDS
from nfsd3d.shapes.world.grammar import COLORS, sample_caption, sample_composition
from nfsd3d.views.prompts import PAPER_NEGATIVE_PROMPT

if TYPE_CHECKING:
    from nfsd3d.api import Run

RESIDUAL_NOISES = 8
"""Factor on the number of noises for the residual's figure."""

LORA_RANK, LORA_LEARNING_RATE, CAMERA_DROPOUT = 4, 1e-3, 0.1
LORA_STAGES = (0, 30, 100, 300)

DDS_STAGES = {"a tenth of the way": 0.1, "half-way": 0.5, "at the end": 1.0}
"""Progress of an edit: weights of the cross-fade from the source to the target image."""

RECOLOURED = "other colours (control)"
FITTED, HALF_TRAINED_SCENES = "half-fitted scenes", "half-trained scenes"
UNRELATED_CAPTION = "a picture of a house"


@dataclass
class Study:
    """Measures a prior on images, with ``noises`` noises an image at ``timesteps``; one method per figure.

    ``runs`` are half-trained scenes (none for images from files). ``edits``: whether images from files have a target
    prompt. ``progress`` has one task.
    """

    prior: DiffusersPrior
    subjects: Subjects
    runs: list[Run]
    noises: int
    timesteps: tuple[int, ...]
    seed: int
    edits: bool
    progress: Progress

    def condition(self) -> tuple[Figure, ImageGrid]:
        """δ_C of a prompt for other content than the image's; in the world of shapes with classifier and masks."""
        s = self.subjects
        contexts = {"cond": self.prior.embed(s.targets), "uncond": self._empty}
        if s.masks is None:
            seen = self._observe("condition", s.images, contexts)
            return condition_figure(seen, None, {}), condition_grid(self.prior, s, seen)
        rng = self._rng(1)
        behind = [f"{prompt} on a {_other_than(prompt, rng)} background" for prompt in s.prompts]
        contexts |= {"shown": self.prior.embed(s.prompts), "behind": self.prior.embed(behind)}
        seen = self._observe("condition", s.images, contexts)
        gains = classifier_gains(self.prior, seen, Classifier.load(), s.compositions, s.target_compositions)
        mask = on_latents(s.masks, *self.prior.latent_shape[1:], share=0.5)
        return condition_figure(seen, mask, gains), condition_grid(self.prior, s, seen)

    def domain(self) -> tuple[Figure, ImageGrid]:
        """δ_N and δ_D of every family of pairs, and of the control."""
        families = self.families | self.control
        figure = domain_figure({name: seen for name, (_, seen) in families.items()}, next(iter(self.control), None))
        return figure, domain_grid(self.prior, families)

    def negative(self) -> tuple[Figure, ImageGrid]:
        """ε(∅) − ε(neg) of every family of pairs."""
        figure = negative_figure({name: seen for name, (_, seen) in self.families.items()})
        return figure, negative_grid(self.prior, self.families)

    def residual(self) -> tuple[Figure, ImageGrid]:
        """The residual of SDS, of in-domain images and of half-trained scenes (or over-saturated images)."""
        name, pairs = self._hardest
        groups = {}
        for label, images, prompts in (
            ("in-domain", self.subjects.images, self.subjects.prompts),
            (name, pairs.distorted, pairs.prompts),
        ):
            noises = RESIDUAL_NOISES * self.noises
            uncond = self._observe(f"residual, {label}", images, {"uncond": self._empty}, noises)
            cond = self._observe(f"residual, {label}", images, {"cond": self.prior.embed(prompts)})
            noise = uncond.noise.clone()
            assert noise[: self.noises].equal(cond.noise)
            both = dict(uncond.eps) | dict(cond.eps)
            groups[label] = images, Observation(uncond.schedule, uncond.timesteps, uncond.z, noise, both)
        return residual_figure({label: seen for label, (_, seen) in groups.items()}), residual_grid(groups)

    def dds(self) -> tuple[Figure, ImageGrid]:
        """The residuals of a source and of its edit, over the progress of the edit."""
        s, end = self.subjects, self.edited_images
        assert end is not None
        contexts = {"cond": self.prior.embed(s.prompts), "uncond": self._empty}
        source = self._observe("dds, source", s.images, contexts)
        contexts["cond"] = self.prior.embed(s.targets)
        edited = {
            stage: self._observe(f"dds, {stage}", s.images.lerp(end, share), contexts)
            for stage, share in DDS_STAGES.items()
        }
        return dds_figure(source, edited), dds_grid(self.prior, source, list(edited.values())[-1])

    def vsd(self) -> tuple[Figure, ImageGrid]:
        """A LoRA network in training on half-trained scenes (or over-saturated images).

        It adapts the prior's UNet, which is possible once; outside its calls the prior is unchanged.
        """
        name, pairs = self._hardest
        seen = self.families[name][1]
        lora = LoraNetwork(
            self.prior,
            rank=LORA_RANK,
            learning_rate=LORA_LEARNING_RATE,
            camera_dropout=CAMERA_DROPOUT,
            seed=self.seed,
        )
        total = max(LORA_STAGES) + len(LORA_STAGES) * len(self.timesteps)
        stages = lora_stages(
            self.prior,
            lora,
            seen.distorted,
            self.prior.embed(pairs.prompts),
            pairs.cameras,
            LORA_STAGES,
            self._rng(2),
            advance=self._bar("vsd", total),
        )
        return vsd_figure(seen, stages), vsd_grid(pairs, seen, stages)

    @cached_property
    def families(self) -> dict[str, tuple[Pairs, PairObservation]]:
        """Pairs by the name of the distortion, with the prior's predictions."""
        return {name: (pairs, self._observe_pairs(name, pairs, True)) for name, pairs in self._pairs.items()}

    @cached_property
    def control(self) -> dict[str, tuple[Pairs, PairObservation]]:
        """In the world of shapes, pairs whose two images are both in-domain."""
        if self.subjects.target_images is None:
            return {}
        pairs = recoloured_pairs(self.subjects)
        return {RECOLOURED: (pairs, self._observe_pairs(RECOLOURED, pairs, False))}

    @cached_property
    def edited_images(self) -> Tensor | None:
        """The targets of an edit: the true images, or with files the source in stronger colours; None without."""
        if self.subjects.target_images is not None:
            return self.subjects.target_images
        return saturated_pairs(self.subjects, self._rng(3)).distorted if self.edits else None

    @cached_property
    def _clean(self) -> Observation:
        return self._observe("clean", self.subjects.images, {"uncond": self._empty})

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        s, rng = self.subjects, self._rng(4)
        pairs = {
            "captioned (patch)": degraded_pairs(s, rng, patch=True),
            "captioned (whole picture)": degraded_pairs(s, rng, patch=False),
            "floaters": floater_pairs(s, rng),
            "over-saturated": saturated_pairs(s, rng),
        }
        fitted = [run for run in self.runs if run.summary.get("method") == METHOD]
        for name, runs in ((FITTED, fitted), (HALF_TRAINED_SCENES, [run for run in self.runs if run not in fitted])):
            if runs:
                pairs[name] = half_trained_pairs(runs, len(s.images), rng)
        return pairs

    @property
    def _hardest(self) -> tuple[str, Pairs]:
        """The family most similar to the images of distillation."""
        return list(self._pairs.items())[-1]  # scenes, where there are any

    def _observe_pairs(self, name: str, pairs: Pairs, prompts: bool) -> PairObservation:
        contexts = {"uncond": self._empty}
        shared = pairs.clean is self.subjects.images
        clean = self._clean if shared else self._observe(f"{name}, clean", pairs.clean, contexts)
        if prompts:
            contexts |= {"neg": self.prior.embed([PAPER_NEGATIVE_PROMPT]), "random": self._random_captions}
        distorted = self._observe(f"{name}, distorted", pairs.distorted, contexts)
        mask = on_latents(pairs.masks, *self.prior.latent_shape[1:])
        return PairObservation(clean, distorted, mask, shared)

    def _observe(self, name: str, images: Tensor, contexts: dict[str, Context], noises: int = 0) -> Observation:
        count, steps = noises or self.noises, self.timesteps
        with torch.no_grad():
            z = torch.cat([self.prior.encode(part.to(self.prior.device)) for part in images.split(8)])
        # Drawn one by one, so that the first noises do not depend on the count.
        rng = self._rng(0)
        noise = torch.stack([torch.randn(z.shape, generator=rng) for _ in range(count)])
        return observe(self.prior, z, noise, steps, contexts, advance=self._bar(name, len(steps)))

    def _bar(self, name: str, total: int) -> Callable[[], None]:
        """Restarts the progress bar under another name; returns the callback that advances it."""
        progress, task = self.progress, self.progress.task_ids[0]
        progress.reset(task, total=total, description=name)
        return lambda: progress.advance(task)

    def _rng(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    @cached_property
    def _empty(self) -> Context:
        return self.prior.embed([""])

    @cached_property
    def _random_captions(self) -> Context:
        if not self.subjects.compositions:
            return self.prior.embed([UNRELATED_CAPTION])
        rng = self._rng(5)
        return self.prior.embed(
            [sample_caption(rng, sample_composition(rng), VIEW_WORDS) for _ in self.subjects.prompts]
        )


def _other_than(prompt: str, rng: torch.Generator) -> str:
    """A random colour that is not in the prompt."""
    free = [name for name in COLORS if name not in prompt.split()]
    return free[int(torch.randint(len(free), (), generator=rng))]
