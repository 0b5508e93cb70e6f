"""``nfsd3d decompose``: measures the claims of NFSD's score decomposition; tables, verdicts, image grids and JSON."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.cli.options import Parser, counting_bar, plain, whole_number, write_numbers, writing_to
from nfsd3d.config.compose import load_run_config
from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_model import check_files
from nfsd3d.prior.files.count_tokens import TokenCounter
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.locate import ALIASES, EMBEDDED, locate
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.runs.files import write_text

if TYPE_CHECKING:
    from rich.progress import Progress

    from nfsd3d.decompose.study import Study
    from nfsd3d.prior.files.folder import ModelFiles

FIGURES = ("condition", "domain", "negative", "residual", "dds", "vsd")
OF_PAIRS = {"domain", "negative", "vsd"}
"""Figures that need pairs of an in-domain and an out-of-domain image."""
OF_RUNS = {*OF_PAIRS, "residual"}
"""Figures that use half-trained scenes, if there are any."""

TIMESTEPS = (50, 100, 200, 300, 500, 700, 900)
IMAGES, FILE_IMAGES = 32, 8
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

FIT_STEPS = 100
"""Steps of a fit to true views, for half-fitted scenes."""


def main(argv: Sequence[str]) -> int:
    """Measures what ``argv`` asks for, prints tables and verdicts, writes image grids and JSON, and returns 0.

    Raises:
        InputError: a model, run, image or prompt that cannot be used, or a folder that cannot be written.
    """
    options = parser().parse_args(argv)
    _check(options)
    if options.prior == "shapes-flow":
        raise InputError("--prior shapes-flow: the decomposition reads diffusion models, not flows; use shapes")
    prior, model = (options.prior, None) if options.prior in ("shapes", *ALIASES) else ("shapes", options.prior)
    files = fetch(locate(prior, model))
    _check_model(options, files)
    for run_dir in options.half_trained:
        load_run_config(run_dir)

    from rich.console import Console

    from nfsd3d.decompose.report import figure_json, markdown, verdict_lines
    from nfsd3d.visualize.image_grid import write_png

    console = Console(stderr=True)
    wanted = FIGURES if options.figure == "all" else (options.figure,)
    parts: list[str] = []
    verdicts: list[str] = []
    figures: dict[str, object] = {}

    def report(text: str) -> None:
        print(text, end="\n\n", flush=True)
        parts.append(text)

    progress = counting_bar(console, transient=True)
    study = _prepare(options, files.folder, bool(OF_RUNS & set(wanted)), progress)
    with progress:
        progress.add_task("")
        for name in wanted:
            if name == "dds" and study.edited_images is None:
                console.print("dds: left out; it needs --edit TEXT beside --image")
                continue
            figure, grid = getattr(study, name)()
            with writing_to(options.out):
                options.out.mkdir(parents=True, exist_ok=True)
                write_png(options.out / f"{name}.png", grid.image())
            report(markdown(name, figure, grid))
            figures[name] = figure_json(figure)
            verdicts += verdict_lines(name, figure)
    report("## Verdicts, from the intervals\n\n" + "\n".join(verdicts))
    with writing_to(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(options.out / "tables.md", "\n\n".join(parts) + "\n")
    print(f"images and tables.md are in {options.out}")
    numbers = {"prior": str(options.prior), "images": len(study.subjects.images), "figures": plain(figures)}
    write_numbers(options.json, numbers | {"noises": options.noises, "seed": options.seed})
    return 0


def _prepare(options: argparse.Namespace, folder: Path, needs_runs: bool, progress: Progress) -> Study:
    """Loads the prior, draws or reads the images, and makes half-trained runs where none were given."""
    import torch

    from nfsd3d.api import load_run
    from nfsd3d.config.hardware import auto_machine
    from nfsd3d.decompose.image_pairs import file_subjects, world_subjects
    from nfsd3d.decompose.study import Study
    from nfsd3d.prior.load_prior import load_prior

    prior = load_prior(folder, auto_machine().value, torch.float32)
    directories: list[Path] = []
    if options.image:
        target = options.edit or options.prompt
        count = options.images or max(FILE_IMAGES, len(options.image))
        subjects = file_subjects(options.image, options.prompt, target, count, prior.image_size)
    else:
        if needs_runs:
            directories = options.half_trained or _half_trained(options, folder)
        subjects = world_subjects(options.images or IMAGES, torch.Generator().manual_seed(options.seed))
    return Study(
        prior,
        subjects,
        [load_run(directory) for directory in directories],
        options.noises,
        options.timesteps,
        options.seed,
        options.edit is not None,
        progress,
    )


def _half_trained(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Short runs of NFSD with the prior in ``folder``, and short fits of the same scenes, kept below ``--out``."""
    from nfsd3d.api import generate
    from nfsd3d.config.schema import Config
    from nfsd3d.evaluate.oracle_fit import fit_oracle
    from nfsd3d.runs.directory import slug
    from nfsd3d.runs.summary import is_done

    directories = []
    for prompt in HALF_TRAINED_PROMPTS:
        trained = options.out / "half-trained" / f"{slug(prompt)}-{HALF_TRAINED_STEPS}"
        fitted = options.out / "half-trained" / f"{slug(prompt)}-fit-{FIT_STEPS}"
        directories += [trained, fitted]
        if not is_done(trained):
            shutil.rmtree(trained, ignore_errors=True)
            model: dict[str, Any] = {} if folder == EMBEDDED else {"prior.model": str(folder)}
            generate(prompt, seed=options.seed, run_dir=trained, **HALF_TRAINED, **model)
        if not is_done(fitted):
            shutil.rmtree(fitted, ignore_errors=True)
            values = load_run_config(trained).to_dict()
            fit_oracle(Config.from_dict(values | {"train": values["train"] | {"steps": FIT_STEPS}}), fitted)
    return directories


def _check(options: argparse.Namespace) -> None:
    if options.image and options.prompt is None:
        raise InputError("--image: needs --prompt TEXT, which says what the images show")
    if not options.image and (options.prompt is not None or options.edit is not None):
        raise InputError("--prompt and --edit are about --image FILE; the world's own images have their prompts")
    if options.image and options.half_trained:
        raise InputError("--half-trained: its scenes are compared with the world of shapes; leave --image out")
    if options.figure == "dds" and options.image and options.edit is None:
        raise InputError("--figure dds: needs --edit TEXT beside --image, the prompt of the edit")
    options.timesteps = tuple(sorted(set(options.timesteps)))
    from nfsd3d.runs.source_image import open_image

    for path in options.image:
        try:
            open_image(str(path))
        except InputError as error:
            raise InputError(str(error).replace("source_image=", "--image ", 1)) from error


def _check_model(options: argparse.Namespace, files: ModelFiles) -> None:
    """Raises `InputError` if the model is damaged, or prompts or timesteps do not fit it; torch is not imported."""
    training, tokens = check_files(files)
    if max(options.timesteps) >= training.steps:
        raise InputError(f"--timesteps {max(options.timesteps)}: the model's last timestep is {training.steps - 1}")
    for option, text in (("--prompt", options.prompt), ("--edit", options.edit)):
        if text is not None:
            check_prompt(files.folder, text, option)
            assert isinstance(tokens, TokenCounter)  # --prior names no family
            tokens.check_length(text, option)


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d decompose``."""
    parser = Parser(
        prog="nfsd3d decompose",
        description="The score decomposition of NFSD (2310.17590), measured: the condition direction; the domain and "
        "noise directions of exact pairs of an image and its distortion; the negative prompt's stand-in for the "
        "domain direction; the residual of SDS, what DDS leaves of it, and what VSD's second network learns. Writes a "
        "an image grid for each; prints, and writes to tables.md, means with 95 % intervals and verdicts.",
    )
    parser.add_argument("--figure", choices=(*FIGURES, "all"), default="all", help="which (default: all)")
    parser.add_argument(
        "--prior", default="shapes", metavar="MODEL", help="shapes, sd15, sd21, sd21-768, a folder or a hub id"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/decompose"), metavar="DIR", help="for the image grids"
    )
    parser.add_argument("--image", type=Path, nargs="+", default=[], metavar="FILE", help="images instead of the world")
    parser.add_argument("--prompt", metavar="TEXT", help="what the images of --image show")
    parser.add_argument("--edit", metavar="TEXT", help="another prompt for them: of δ_C, and of the edit by DDS")
    parser.add_argument("--images", type=whole_number(1), metavar="N", help=f"images (default: {IMAGES})")
    parser.add_argument("--noises", type=whole_number(2), default=2, metavar="N", help="noises per image (default: 2)")
    parser.add_argument("--timesteps", type=whole_number(0), nargs="+", default=TIMESTEPS, metavar="T")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument(
        "--half-trained", type=Path, nargs="+", default=[], metavar="RUN_DIR", help="scenes (default: makes some)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    return parser
