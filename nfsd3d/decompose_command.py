"""``nfsd3d decompose``: the claims of NFSD's score decomposition, measured, as tables, verdicts, sheets and JSON."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.arguments import whole_number, write_numbers, writing_to
from nfsd3d.config import load_run_config
from nfsd3d.errors import InputError
from nfsd3d.files import write_text
from nfsd3d.prior.resolve import ALIASES, EMBEDDED, fetch, locate
from nfsd3d.prior.vocabulary import check_prompt

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress
    from torch import Tensor

    from nfsd3d.api import Run
    from nfsd3d.evaluate.decomposition import Figure, Observation, PairObservation
    from nfsd3d.evaluate.decomposition_pictures import Sheet
    from nfsd3d.evaluate.distortions import Pairs, Subjects
    from nfsd3d.evaluate.statistics import Estimate
    from nfsd3d.prior.stable_diffusion import StableDiffusionPrior

FIGURES = ("condition", "domain", "negative", "residual", "dds", "vsd")
OF_PAIRS = {"domain", "negative", "vsd"}
"""Figures that need pairs of an in-domain and an out-of-domain picture."""
OF_RUNS = {*OF_PAIRS, "residual"}
"""Figures that show half-trained scenes, where there are any."""

TIMESTEPS = (50, 100, 200, 300, 500, 700, 900)
IMAGES, FILE_IMAGES = 32, 8
RESIDUAL_NOISES = 8
"""The residual's figure takes this many times as many noises."""

HALF_TRAINED_PROMPTS = (
    "a red and white dotted mushroom",
    "a purple house",
    "a white chair",
    "a yellow and green striped robot",
)
HALF_TRAINED_STEPS = 100
HALF_TRAINED: dict[str, Any] = {
    "machine": "cpu",
    "prior": "shapes",
    "train.steps": HALF_TRAINED_STEPS,
    "train.preview_every": HALF_TRAINED_STEPS,
    "train.tensorboard": False,
    "export.mesh": False,
    "export.turntable": False,
    "export.report": False,
}

LORA_RANK, LORA_LEARNING_RATE, CAMERA_DROPOUT = 4, 1e-3, 0.1
LORA_STAGES = (0, 30, 100, 300)

FIT_STEPS = 100
"""Of the fits of the same scenes to true views."""

DDS_STAGES = {"a tenth of the way": 0.1, "half-way": 0.5, "at the end": 1.0}
"""How far an edit has come: cross-fades from the source to what it arrives at."""

RECOLOURED = "other colours (control)"
FITTED, HALF_TRAINED_SCENES = "half-fitted scenes", "half-trained scenes"
UNRELATED_CAPTION = "a picture of a house"


def main(argv: Sequence[str]) -> int:
    """Measures what ``argv`` asks for, prints tables and verdicts, writes sheets and JSON, and returns 0.

    Raises:
        InputError: a model, run, picture or prompt that cannot be used, or a folder that cannot be written.
    """
    options = _parser().parse_args(argv)
    _check(options)
    name, model = (options.prior, None) if options.prior in ("shapes", *ALIASES) else ("shapes", options.prior)
    folder = fetch(locate(name, model)).folder
    for setting in ("prompt", "edit"):
        if getattr(options, setting) is not None:
            check_prompt(folder, getattr(options, setting), f"--{setting}")
    for run_dir in options.half_trained:
        load_run_config(run_dir)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    wanted = FIGURES if options.figure == "all" else (options.figure,)
    study = Study.prepare(options, folder, needs_runs=bool(OF_RUNS & set(wanted)))
    numbers: dict[str, Any] = {"prior": str(options.prior), "images": len(study.subjects.images), "figures": {}}
    numbers |= {"noises": options.noises, "seed": options.seed}
    parts: list[str] = []
    verdicts: list[str] = []

    def tell(text: str) -> None:
        print(text, end="\n\n", flush=True)
        parts.append(text)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("")
        study.progress = progress
        for which in wanted:
            if which == "dds" and study.edited_images is None:
                console.print("dds: left out; it needs --edit TEXT beside --image")
                continue
            figure, sheet = getattr(study, which)()
            with writing_to(options.out):
                _write_sheet(options.out / f"{which}.png", sheet)
            tell(_markdown(which, figure, sheet))
            numbers["figures"][which] = _plain(figure)
            verdicts += _verdicts(which, figure)
    tell("## Verdicts, from the intervals\n\n" + "\n".join(verdicts))
    with writing_to(options.out):
        write_text(options.out / "tables.md", "\n\n".join(parts) + "\n")
    print(f"pictures and tables.md are in {options.out}")
    write_numbers(options.json, numbers)
    return 0


@dataclass
class Study:
    """One measuring: the prior, the pictures, and how many noises at which timesteps; each method makes a figure.

    ``runs`` are half-trained scenes, none with pictures from files.
    """

    options: argparse.Namespace
    prior: StableDiffusionPrior
    subjects: Subjects
    runs: list[Run]
    progress: Progress | None = None

    @classmethod
    def prepare(cls, options: argparse.Namespace, folder: Path, *, needs_runs: bool) -> Study:
        """Loads the prior, draws or reads the pictures, and makes half-trained runs where none were given."""
        import torch

        from nfsd3d.api import load_run
        from nfsd3d.backend import auto_machine
        from nfsd3d.evaluate.distortions import file_subjects, world_subjects
        from nfsd3d.prior.stable_diffusion import StableDiffusionPrior

        prior = StableDiffusionPrior.load(folder, auto_machine().value, torch.float32)
        last = prior.schedule.training_steps - 1
        if max(options.timesteps) > last:
            raise InputError(f"--timesteps {max(options.timesteps)}: the model's last timestep is {last}")
        if options.image:
            target = options.edit or options.prompt
            count = options.images or max(FILE_IMAGES, len(options.image))
            return cls(
                options, prior, file_subjects(options.image, options.prompt, target, count, prior.image_size), []
            )
        directories = (options.half_trained or _half_trained(options, folder)) if needs_runs else []
        subjects = world_subjects(options.images or IMAGES, torch.Generator().manual_seed(options.seed))
        return cls(options, prior, subjects, [load_run(directory) for directory in directories])

    def condition(self) -> tuple[Figure, Sheet]:
        """δ_C of a prompt for something else than the picture shows; in the world, judged and with masks."""
        from nfsd3d.evaluate.decomposition import condition_figure, judged_gains
        from nfsd3d.evaluate.decomposition_pictures import condition_sheet
        from nfsd3d.evaluate.distortions import on_latents
        from nfsd3d.evaluate.judge import Judge

        s = self.subjects
        contexts = {"cond": self.prior.embed(s.targets), "uncond": self._empty}
        if s.masks is None:
            seen = self._observe("condition", s.images, contexts)
            return condition_figure(seen, None, {}), condition_sheet(self.prior, s, seen)
        rng = self._rng(1)
        behind = [f"{prompt} on a {_other_than(prompt, rng)} background" for prompt in s.prompts]
        contexts |= {"shown": self.prior.embed(s.prompts), "behind": self.prior.embed(behind)}
        seen = self._observe("condition", s.images, contexts)
        gains = judged_gains(self.prior, seen, Judge.load(), s.compositions, s.target_compositions)
        mask = on_latents(s.masks, *self.prior.latent_shape[1:], share=0.5)
        return condition_figure(seen, mask, gains), condition_sheet(self.prior, s, seen)

    def domain(self) -> tuple[Figure, Sheet]:
        """δ_N and δ_D of every family of pairs, and of the control."""
        from nfsd3d.evaluate.decomposition import domain_figure
        from nfsd3d.evaluate.decomposition_pictures import domain_sheet

        families = self.families | self.control
        figure = domain_figure({name: seen for name, (_, seen) in families.items()}, next(iter(self.control), None))
        return figure, domain_sheet(self.prior, families)

    def negative(self) -> tuple[Figure, Sheet]:
        """ε(∅) − ε(neg) of every family of pairs."""
        from nfsd3d.evaluate.decomposition import negative_figure
        from nfsd3d.evaluate.decomposition_pictures import negative_sheet

        figure = negative_figure({name: seen for name, (_, seen) in self.families.items()})
        return figure, negative_sheet(self.prior, self.families)

    def residual(self) -> tuple[Figure, Sheet]:
        """The residual of SDS, of in-domain pictures and of half-trained scenes (or over-saturated pictures)."""
        from nfsd3d.evaluate.decomposition import Observation, residual_figure
        from nfsd3d.evaluate.decomposition_pictures import residual_sheet

        name, pairs = self._hardest
        groups = {}
        for label, images, prompts in (
            ("in-domain", self.subjects.images, self.subjects.prompts),
            (name, pairs.distorted, pairs.prompts),
        ):
            noises = RESIDUAL_NOISES * self.options.noises
            uncond = self._observe(f"residual, {label}", images, {"uncond": self._empty}, noises)
            cond = self._observe(f"residual, {label}", images, {"cond": self.prior.embed(prompts)})
            noise = uncond.noise.clone()
            assert noise[: self.options.noises].equal(cond.noise)
            both = dict(uncond.eps) | dict(cond.eps)
            groups[label] = images, Observation(uncond.schedule, uncond.timesteps, uncond.z, noise, both)
        return residual_figure({label: seen for label, (_, seen) in groups.items()}), residual_sheet(groups)

    def dds(self) -> tuple[Figure, Sheet]:
        """The residuals of a source and of the edit of it, as that goes on."""
        from nfsd3d.evaluate.decomposition import dds_figure
        from nfsd3d.evaluate.decomposition_pictures import dds_sheet

        s, end = self.subjects, self.edited_images
        assert end is not None
        contexts = {"cond": self.prior.embed(s.prompts), "uncond": self._empty}
        source = self._observe("dds, source", s.images, contexts)
        contexts["cond"] = self.prior.embed(s.targets)
        edited = {
            stage: self._observe(f"dds, {stage}", s.images.lerp(end, share), contexts)
            for stage, share in DDS_STAGES.items()
        }
        return dds_figure(source, edited), dds_sheet(self.prior, source, list(edited.values())[-1])

    def vsd(self) -> tuple[Figure, Sheet]:
        """A second network that learns half-trained scenes (or over-saturated pictures).

        It adapts the prior's UNet, which can be done once; outside its calls the prior stays as it was.
        """
        from nfsd3d.evaluate.decomposition import particle_stages, vsd_figure
        from nfsd3d.evaluate.decomposition_pictures import vsd_sheet
        from nfsd3d.prior.particle import Particle

        name, pairs = self._hardest
        seen = self.families[name][1]
        particle = Particle(
            self.prior,
            rank=LORA_RANK,
            learning_rate=LORA_LEARNING_RATE,
            camera_dropout=CAMERA_DROPOUT,
            seed=self.options.seed,
        )
        total = max(LORA_STAGES) + len(LORA_STAGES) * len(self.options.timesteps)
        stages = particle_stages(
            self.prior,
            particle,
            seen.distorted,
            self.prior.embed(pairs.prompts),
            pairs.cameras,
            LORA_STAGES,
            self._rng(2),
            advance=self._bar("vsd", total),
        )
        return vsd_figure(seen, stages), vsd_sheet(pairs, seen, stages)

    @cached_property
    def families(self) -> dict[str, tuple[Pairs, PairObservation]]:
        """Pairs by the name of the distortion, and what the prior predicts for them."""
        return {name: (pairs, self._observe_pairs(name, pairs, True)) for name, pairs in self._pairs.items()}

    @cached_property
    def control(self) -> dict[str, tuple[Pairs, PairObservation]]:
        """In the world of shapes, pairs whose two pictures are both in-domain."""
        from nfsd3d.evaluate.distortions import recoloured_pairs

        if self.subjects.target_images is None:
            return {}
        pairs = recoloured_pairs(self.subjects)
        return {RECOLOURED: (pairs, self._observe_pairs(RECOLOURED, pairs, False))}

    @cached_property
    def edited_images(self) -> Tensor | None:
        """What an edit arrives at: the true picture, or with files the source in stronger colours; None without one."""
        from nfsd3d.evaluate.distortions import saturated_pairs

        if self.subjects.target_images is not None:
            return self.subjects.target_images
        return saturated_pairs(self.subjects, self._rng(3)).distorted if self.options.edit else None

    @cached_property
    def _clean(self) -> Observation:
        return self._observe("clean", self.subjects.images, {"uncond": self._empty})

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        from nfsd3d.evaluate.ceiling import METHOD
        from nfsd3d.evaluate.distortions import degraded_pairs, floater_pairs, half_trained_pairs, saturated_pairs

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
        """The family that is most like what distillation meets."""
        return list(self._pairs.items())[-1]  # scenes, where there are any

    def _observe_pairs(self, name: str, pairs: Pairs, prompts: bool) -> PairObservation:
        from nfsd3d.evaluate.decomposition import PairObservation
        from nfsd3d.evaluate.distortions import on_latents
        from nfsd3d.prompts import PAPER_NEGATIVE_PROMPT

        contexts = {"uncond": self._empty}
        shared = pairs.clean is self.subjects.images
        clean = self._clean if shared else self._observe(f"{name}, clean", pairs.clean, contexts)
        if prompts:
            contexts |= {"neg": self.prior.embed([PAPER_NEGATIVE_PROMPT]), "random": self._random_captions}
        distorted = self._observe(f"{name}, distorted", pairs.distorted, contexts)
        mask = on_latents(pairs.masks, *self.prior.latent_shape[1:])
        return PairObservation(clean, distorted, mask, shared)

    def _observe(self, name: str, images: Tensor, contexts: dict[str, Tensor], noises: int = 0) -> Observation:
        import torch

        from nfsd3d.evaluate.decomposition import observe

        count, steps = noises or self.options.noises, self.options.timesteps
        with torch.no_grad():
            z = torch.cat([self.prior.encode(part.to(self.prior.device)) for part in images.split(8)])
        # One noise after the other, so that the first ones are the same however many there are.
        rng = self._rng(0)
        noise = torch.stack([torch.randn(z.shape, generator=rng) for _ in range(count)])
        return observe(self.prior, z, noise, steps, contexts, advance=self._bar(name, len(steps)))

    def _bar(self, name: str, total: int) -> Callable[[], None]:
        """Starts the only bar again under another name; returns what advances it."""
        assert self.progress is not None
        progress, task = self.progress, self.progress.task_ids[0]
        progress.reset(task, total=total, description=name)
        return lambda: progress.advance(task)

    def _rng(self, stream: int) -> torch.Generator:
        import torch

        return torch.Generator().manual_seed(1000 * self.options.seed + stream)

    @cached_property
    def _empty(self) -> Tensor:
        return self.prior.embed([""])

    @cached_property
    def _random_captions(self) -> Tensor:
        from nfsd3d.prompts import VIEW_WORDS
        from nfsd3d.shapes.grammar import sample_caption, sample_composition

        if self.options.image:
            return self.prior.embed([UNRELATED_CAPTION])
        rng = self._rng(5)
        return self.prior.embed(
            [sample_caption(rng, sample_composition(rng), VIEW_WORDS) for _ in self.subjects.prompts]
        )


def _other_than(prompt: str, rng: torch.Generator) -> str:
    """A random colour that is not in the prompt."""
    import torch

    from nfsd3d.shapes.grammar import COLORS

    free = [name for name in COLORS if name not in prompt.split()]
    return free[int(torch.randint(len(free), (), generator=rng))]


def _half_trained(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Short runs of NFSD with the prior in ``folder``, and short fits of the same scenes, kept below ``--out``."""
    from nfsd3d.api import generate
    from nfsd3d.evaluate.ceiling import fit_ceiling
    from nfsd3d.evaluate.suite import slug
    from nfsd3d.settings import Config
    from nfsd3d.train.summary import read_summary

    directories = []
    for prompt in HALF_TRAINED_PROMPTS:
        trained = options.out / "half-trained" / f"{slug(prompt)}-{HALF_TRAINED_STEPS}"
        fitted = options.out / "half-trained" / f"{slug(prompt)}-fit-{FIT_STEPS}"
        directories += [trained, fitted]
        if read_summary(trained).get("status") != "done":
            shutil.rmtree(trained, ignore_errors=True)
            model: dict[str, Any] = {} if folder == EMBEDDED else {"prior.model": str(folder)}
            generate(prompt, seed=options.seed, run_dir=trained, **HALF_TRAINED, **model)
        if read_summary(fitted).get("status") != "done":
            shutil.rmtree(fitted, ignore_errors=True)
            values = load_run_config(trained).to_dict()
            fit_ceiling(Config.from_dict(values | {"train": values["train"] | {"steps": FIT_STEPS}}), fitted)
    return directories


def _check(options: argparse.Namespace) -> None:
    if options.image and options.prompt is None:
        raise InputError("--image: needs --prompt TEXT, which says what the pictures show")
    if not options.image and (options.prompt is not None or options.edit is not None):
        raise InputError("--prompt and --edit are about --image FILE; the world's own pictures have their prompts")
    if options.image and options.half_trained:
        raise InputError("--half-trained: its scenes are compared with the world of shapes; leave --image out")
    if options.figure == "dds" and options.image and options.edit is None:
        raise InputError("--figure dds: needs --edit TEXT beside --image, the prompt of the edit")
    options.timesteps = tuple(sorted(set(options.timesteps)))
    from nfsd3d.source_image import open_picture

    for path in options.image:
        try:
            open_picture(str(path))
        except InputError as error:
            raise InputError(str(error).replace("source_image=", "--image ", 1)) from error


def _write_sheet(path: Path, sheet: Sheet) -> None:
    from nfsd3d.export.pictures import write_png

    write_png(path, sheet.image())


def _markdown(name: str, figure: Figure, sheet: Sheet) -> str:
    """The figure's tables, one column a timestep, and where its pictures are."""
    from nfsd3d.evaluate.tables import table

    def row(title: str, values: list[Estimate]) -> list[str]:
        return [title, *map(str, values)]

    head = [f"t = {t}" if i == 0 else str(t) for i, t in enumerate(figure.timesteps)]
    parts = [f"## {name}", f"`{name}.png` shows t = {sheet.t}."]
    for title, rows in figure.tables.items():
        parts.append(table([title, *head], [row(label, values) for label, values in rows.items()]))
    return "\n\n".join(parts)


def _verdicts(name: str, figure: Figure) -> list[str]:
    """A line for each statement: its verdicts, and of what."""
    statements: dict[str, dict[str, list[str]]] = {}
    for item in figure.claims:
        statements.setdefault(item.statement, {}).setdefault(item.verdict, []).append(item.of)
    lines = []
    for statement, found in statements.items():
        told = "; ".join(f"**{verdict}**: {', '.join(subjects)}" for verdict, subjects in found.items())
        lines.append(f"- {name}: {statement}. {told}")
    return lines


def _plain(figure: Figure) -> dict[str, Any]:
    """The figure as plain values, NaN as None."""
    import math

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value

    def entry(t: int, value: Estimate) -> dict[str, Any]:
        return {"t": t} | {name: number(item) for name, item in asdict(value).items()}

    def entries(values: list[Estimate]) -> list[dict[str, Any]]:
        return [entry(t, value) for t, value in zip(figure.timesteps, values, strict=True)]

    return {
        "tables": {
            title: {label: entries(values) for label, values in rows.items()} for title, rows in figure.tables.items()
        },
        "claims": [
            {
                "statement": c.statement,
                "of": c.of,
                "verdict": c.verdict,
                "at": {str(t): a for t, a in c.answers.items()},
            }
            for c in figure.claims
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfsd3d decompose",
        description="The score decomposition of NFSD (2310.17590), measured: the condition direction; the domain and "
        "noise directions of exact pairs of a picture and its distortion; the negative prompt's stand-in for the "
        "domain direction; the residual of SDS, what DDS leaves of it, and what VSD's second network learns. Writes a "
        "sheet of pictures for each; prints, and writes to tables.md, means with 95 %% intervals and verdicts.",
    )
    parser.add_argument("--figure", choices=(*FIGURES, "all"), default="all", help="which (default: all)")
    parser.add_argument("--prior", default="shapes", metavar="MODEL", help="shapes, sd15, sd21, a folder or a hub id")
    parser.add_argument("--out", type=Path, default=Path("outputs/decompose"), metavar="DIR", help="for the sheets")
    parser.add_argument(
        "--image", type=Path, nargs="+", default=[], metavar="FILE", help="pictures instead of the world"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what the pictures of --image show")
    parser.add_argument("--edit", metavar="TEXT", help="another prompt for them: of δ_C, and of the edit by DDS")
    parser.add_argument("--images", type=whole_number(1), metavar="N", help=f"pictures (default: {IMAGES})")
    parser.add_argument("--noises", type=whole_number(2), default=2, metavar="N", help="noises a picture (default: 2)")
    parser.add_argument("--timesteps", type=whole_number(0), nargs="+", default=TIMESTEPS, metavar="T")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument(
        "--half-trained", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="scenes (default: makes some)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    return parser
