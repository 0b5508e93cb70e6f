"""``nfsd3d evaluate``: scores runs, suites and priors against ground truth."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nfsd3d.cli.engine_options import add_engine_options, chosen_engine
from nfsd3d.cli.evaluate_clip import evaluate_clip, evaluate_clip_rows, refuse_with_clip
from nfsd3d.cli.main import run_command
from nfsd3d.cli.options import Parser, counted, current_options, plain, whole_number, write_numbers, writing_to
from nfsd3d.compare.suite import check_settings, has_checkpoint, load_suite, manifest_of
from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.errors import InputError
from nfsd3d.jobs import controller
from nfsd3d.jobs.engines.base import EngineSettings, check_run
from nfsd3d.jobs.manifest import rewrite
from nfsd3d.jobs.state import states
from nfsd3d.prior.priors import TABLE as PRIORS
from nfsd3d.runs.lock import owned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nfsd3d.api import Run
    from nfsd3d.evaluate.score_scene import RunScore

T = TypeVar("T")


def main(argv: Sequence[str]) -> int:
    """Prints the tables that ``argv`` asks for and returns 0, or 1 if a job of a suite failed.

    Raises:
        InputError: nothing to evaluate, not a run, or a prompt without ground truth and no ``--clip``.
    """
    options = parser().parse_args(current_options(argv))
    if not (options.run_dirs or options.suite or options.prior):
        raise InputError("evaluate: nothing to do; give RUN_DIR..., --suite FILE or --prior FOLDER")
    for name, value in (("--row", options.row), ("--prompts", options.prompts), ("--set", options.set)):
        if value and not options.suite:
            raise InputError(f"{name}: is for a suite; give --suite FILE, or leave it out")
    if options.clip and not (options.run_dirs or options.suite):
        raise InputError("--clip: scores runs; give RUN_DIR... or --suite FILE, or leave it out")
    if options.clip:
        refuse_with_clip(options)
    settings = chosen_engine(options, EngineSettings())
    if options.suite:
        controller.check_engine(settings)
    for directory in options.run_dirs:  # wrong paths fail before the slow imports
        load_run_config(directory)
    results: dict[str, object] = {}
    failed = 0
    if options.prior and not options.suite:
        results["prior"] = _evaluate_prior(options)
    if options.clip and options.run_dirs:
        results["clip"] = evaluate_clip(options.run_dirs, options.clip)
    elif options.run_dirs:
        groups = _by_method(options.run_dirs)
        results |= _evaluate_runs(groups, options, oracle_fit=options.run_dirs if options.oracle_fit else [])
    if options.suite:
        failed, scores = _evaluate_suite(options, settings)
        both = {**_mapping(results.get("clip")), **_mapping(scores.get("clip"))}
        results |= {**scores, "clip": both} if both else scores
    write_numbers(options.json, plain(results))
    return int(failed > 0)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _by_method(run_dirs: list[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for directory in run_dirs:
        groups.setdefault(load_run_config(directory).distill.method, []).append(directory)
    return groups


def _evaluate_runs(
    groups: Mapping[str, list[Path]], options: argparse.Namespace, oracle_fit: list[Path]
) -> dict[str, object]:
    makes_images = {load_run_config(directory).makes_images for members in groups.values() for directory in members}
    if len(makes_images) > 1:
        raise InputError("evaluate: some of the runs made images, others a scene; evaluate them in two commands")
    if makes_images == {False}:
        return _evaluate_scenes(groups, options, oracle_fit)
    if oracle_fit:
        raise InputError("--oracle-fit: fits a NeRF to true views, and these runs made images; leave it out")
    return _evaluate_images(groups, options)


def _evaluate_images(groups: Mapping[str, list[Path]], options: argparse.Namespace) -> dict[str, object]:
    from nfsd3d.api import load_run
    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.classifier.calibration import load_calibration
    from nfsd3d.evaluate.classifier.model import Classifier
    from nfsd3d.evaluate.score_images import score_images

    classifier, calibration = Classifier.load(), load_calibration()
    runs = {name: [load_run(directory) for directory in directories] for name, directories in groups.items()}
    with counted("scoring images", sum(map(len, runs.values()))) as advance:
        scores = {
            name: {str(run.directory): _kept(run, _advanced(advance, score_images(run, classifier))) for run in members}
            for name, members in runs.items()
        }
    print(tables.image_table(scores), tables.calibration_table(calibration), sep="\n\n")
    if options.sheet is not None:
        _write_sheet(options.sheet, [run.images for members in runs.values() for run in members])
    return {"images": scores, "calibration": calibration}


def _evaluate_scenes(
    groups: Mapping[str, list[Path]], options: argparse.Namespace, oracle_fit: list[Path]
) -> dict[str, object]:
    from nfsd3d.api import load_run
    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.classifier.calibration import load_calibration
    from nfsd3d.evaluate.classifier.model import Classifier
    from nfsd3d.evaluate.ground_truth import composition_of
    from nfsd3d.evaluate.oracle_fit import fit_oracle
    from nfsd3d.evaluate.score_scene import score_run, summarize

    runs = {name: [load_run(directory) for directory in directories] for name, directories in groups.items()}
    for run in (run for members in runs.values() for run in members):
        composition_of(run.config.prompt)
    classifier = Classifier.load()
    scores: dict[str, list[RunScore]] = {}
    for name, members in runs.items():
        with counted(f"scoring {name}", len(members)) as advance:
            scores[name] = [_kept(run, _advanced(advance, score_run(run, classifier))) for run in members]
    if oracle_fit:
        directories = [_oracle_folder(directory) for directory in oracle_fit]
        with counted("fitting and scoring the oracle fit", len(oracle_fit)) as advance:
            for directory in directories:
                if not (directory / "summary.json").exists():
                    fit_oracle(load_run_config(directory.parent), directory)
                score = score_run(load_run(directory), classifier)
                scores.setdefault("oracle_fit", []).append(_advanced(advance, score))
        runs["oracle_fit"] = [load_run(directory) for directory in directories]
    named = {str(run.directory): score for name in runs for run, score in zip(runs[name], scores[name], strict=True)}
    rows = {name: summarize(members) for name, members in scores.items()}
    calibration = load_calibration()
    print(tables.run_table(named), tables.summary_table(rows), tables.calibration_table(calibration), sep="\n\n")
    if "oracle_fit" not in rows:
        print("\n(no oracle_fit: --oracle-fit fits the same NeRF photometrically to true views)")
    if options.sheet is not None:
        _write_sheet(options.sheet, [run.views(8, 96) for members in runs.values() for run in members])
    return {"runs": named, "rows": rows, "calibration": calibration}


def _oracle_folder(run_dir: Path) -> Path:
    """The directory of a run's oracle fit; version 0.1 called it "ceiling"."""
    made_before = run_dir / "ceiling"
    return made_before if (made_before / "summary.json").exists() else run_dir / "oracle_fit"


def _write_sheet(path: Path, rows: list[NDArray[np.uint8]]) -> None:
    """Writes the images [N,H,W,3] of each run side by side; more than twelve runs in two columns."""
    from nfsd3d.visualize.image_grid import grid, write_png

    half = (len(rows) + 1) // 2 if len(rows) > 12 else len(rows)  # many runs: two columns
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid([[*itertools.chain(*rows[index::half])] for index in range(half)]))
    print(path)


def _evaluate_suite(options: argparse.Namespace, settings: EngineSettings) -> tuple[int, dict[str, object]]:
    """Runs what is missing of a suite and scores it; the number of runs that are not done, and the scores."""
    suite = load_suite(options.suite).selected(options.row, options.prompts)
    given = dict(_setting(text) for text in options.set or ())
    if options.prior and options.prior not in PRIORS and Path(options.prior).exists():
        remedy = f"give the kind of model, such as --prior sd15, and --set prior.model={options.prior}"
        raise InputError(f"--prior {options.prior}: is no name of a teacher; {remedy}")
    suite = suite.with_settings({**({"prior": options.prior} if options.prior else {}), **given})
    label = "-".join([options.suite.stem, *([options.prior] if options.prior else [])])
    folder = options.output or Path("outputs") / "suites" / label
    clip = options.clip or suite.clip
    if clip:
        refuse_with_clip(options)
        from nfsd3d.evaluate.clip import check_available

        check_available(clip)
    manifest = manifest_of(suite, folder)
    configs = {}
    for row, job in {
        job.values[0]: job for job in manifest.jobs
    }.items():  # a wrong row fails before anything is written
        configs[row] = compose(job.arguments[1], job.arguments[2:], settings.machine)
        check_run(configs[row], settings)
    if not clip:
        from nfsd3d.evaluate.ground_truth import composition_of

        for prompt in (*suite.prompts, *itertools.chain.from_iterable(suite.edits.values())):
            composition_of(prompt)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with owned(folder):
        check_settings(manifest, configs)
        rewrite(manifest)
        counts = controller.run(manifest, settings, run_command)
    left = [controller.line_of(manifest, job, state) for job, state in states(manifest) if state.status != "done"]
    for line in left:
        print(line)
    if counts["cancelled"]:
        return len(left), {}
    groups: dict[str, list[Path]] = {}
    if clip:
        for job in manifest.jobs[manifest.leading :]:
            groups.setdefault(job.values[0], []).append(manifest.run_dir(job))
        return len(left), evaluate_clip_rows(groups, clip)
    for job in manifest.jobs[manifest.leading :]:
        if has_checkpoint(manifest.run_dir(job)):
            groups.setdefault(job.values[0], []).append(manifest.run_dir(job))
    if not groups:
        raise InputError(f"--suite {options.suite}: no run came to a checkpoint; see the logs in {folder}")
    oracle_fit = next(iter(groups.values())) if suite.oracle_fit or options.oracle_fit else []
    return len(left), _evaluate_runs(groups, options, oracle_fit)


def _evaluate_prior(options: argparse.Namespace) -> dict[str, object]:
    from nfsd3d.prior.files.check_model import check_files
    from nfsd3d.prior.files.download import fetch
    from nfsd3d.prior.files.locate import EMBEDDED_PRIORS, locate

    named = options.prior in EMBEDDED_PRIORS
    files = fetch(locate(options.prior) if named else locate("shapes", options.prior))
    check_files(files)

    import torch

    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.classifier.calibration import load_calibration
    from nfsd3d.evaluate.classifier.model import Classifier
    from nfsd3d.evaluate.classifier.training import SEED, plain_backgrounds, render_truth
    from nfsd3d.evaluate.score_prior import GUIDANCE_SCALES, held_out_requests, reconstruction_psnr, sample_quality
    from nfsd3d.prior.load_prior import load_prior
    from nfsd3d.shapes.world.grammar import held_out

    prior = load_prior(files, torch.device("cpu"), torch.float32)
    classifier = Classifier.load()
    with counted("true renders", 1024) as advance:
        truth = render_truth(1024, SEED + 3, on_images=advance)
    rng = torch.Generator().manual_seed(SEED + 4)
    psnr = reconstruction_psnr(prior, truth.over(plain_backgrounds(rng, truth.compositions)))
    rows, samples = [], []
    with counted("samples", len(GUIDANCE_SCALES) * len(held_out_requests())) as advance:
        for scale in GUIDANCE_SCALES:
            row, images = sample_quality(prior, classifier, scale, on_images=advance)
            rows.append(row)
            samples.append(images)
    print(f"reconstruction of {len(truth)} clean renders: {psnr:.2f} dB")
    print(tables.sample_table(rows), tables.calibration_table(load_calibration()), sep="\n\n")
    if options.sheet is not None:
        from nfsd3d.shapes.training.pipeline import write_samples

        write_samples(options.sheet, samples[len(samples) // 2][: len(held_out())])
        print(options.sheet)
    return {"psnr_db": psnr, "samples": rows}


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: must be KEY=VALUE, such as prior.model=FOLDER")
    if key in ("prompt", "seed", "run_dir", "dry_run"):
        raise InputError(f"--set {text}: is each run's own; change the suite's prompts and seeds, or give --output")
    return key, value


def _kept(run: Run, score: T) -> T:
    """``score``, which is written into the run's directory for its page."""
    from nfsd3d.runs.files import write_json
    from nfsd3d.visualize.report import EVALUATION

    try:
        write_json(run.directory / EVALUATION, plain(score))
    except OSError as error:
        print(f"{run.directory}: the score is not kept there ({error.strerror})", file=sys.stderr)
    return score


def _advanced(advance: Callable[..., None], value: T) -> T:
    advance()
    return value


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d evaluate``."""
    parser = Parser(
        prog="nfsd3d evaluate",
        description="Measure runs against the ground truth of the world of shapes: the content of views or images "
        "(judged by a calibrated classifier); of a scene the accuracy of its shape, Janus faces, sharpness; and cost. "
        "For other prompts: --clip.",
    )
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR")
    parser.add_argument("--suite", type=Path, metavar="FILE", help="run and measure every row and prompt of a suite")
    parser.add_argument("--output", type=Path, metavar="DIR", help="the suite's runs (default: outputs/suites/NAME)")
    parser.add_argument(
        "--oracle-fit", action="store_true", help="fit the same NeRF to true views, in RUN_DIR/oracle_fit"
    )
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row of the suite; may be repeated")
    parser.add_argument("--prompts", type=whole_number(1), metavar="N", help="only the first N prompts of the suite")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of all rows of the suite")
    parser.add_argument(
        "--prior",
        nargs="?",
        const="shapes",
        metavar="FOLDER|NAME",
        help="measure samples of a model of the world of shapes; with --suite: the teacher of all its rows, by name",
    )
    parser.add_argument("--clip", metavar="ID|FOLDER", help="CLIP score and R-Precision instead of ground truth")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write views, images or samples as one image grid")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    add_engine_options(parser)
    return parser
