"""``nfsd3d bench``: measures kernels and training steps, as tables or JSON."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nfsd3d.bench import tables
from nfsd3d.cli import bench_against, bench_growth
from nfsd3d.cli.options import Parser, counted, current_options, whole_number, write_numbers
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose
from nfsd3d.config.hardware import check_machine
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.progress import print_line
from nfsd3d.prior.files.locate import ALIASES, EMBEDDED
from nfsd3d.settings.schedules import milestone_at

if TYPE_CHECKING:
    from nfsd3d.bench.kernels import Contender
    from nfsd3d.bench.step import StepTiming

PROMPT = "a red and white dotted mushroom"
WARMUP_STEPS = 5
GPU_PIXELS = 128
"""Side of the view for a GPU's kernels: 640,000 samples, for which the encoding's reference needs 5 GB."""
KERNELS = ("encoding", "network", "marching", "compositing", "rasterizing")


def main(argv: Sequence[str]) -> int:
    """Measures what ``argv`` asks for, prints it, and returns 0.

    Raises:
        InputError: an option does not apply, the embedded model or the machine is not there, or ``--json`` names a
            file that cannot be written.
    """
    if any(word.partition("=")[0] == "--against" for word in argv):
        return bench_against.main(argv)
    if "--growth" in argv:
        return bench_growth.main(argv)
    options = _options(argv)
    if options.prior is not None:
        return _compare_with_baseline(options)
    if options.only == "step" and not EMBEDDED.is_dir():
        raise InputError(
            f"--only step: there is no embedded model at {EMBEDDED}; train one with scripts/train_prior.py"
        )
    config = compose("nfsd", [f"prompt={PROMPT}", "prior=shapes", f"machine={options.machine}"])
    check_machine(config)

    import torch

    torch.set_num_threads(options.threads)
    console = Console()
    on_cuda = config.machine.name == "cuda"
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(config.machine.device) if on_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if options.only in (None, *KERNELS):
        kernels_of = compose("nfsd", [f"prompt={PROMPT}", "prior=sd21", "machine=cuda"]) if on_cuda else config
        record |= _measure_kernels(kernels_of, options, console)
    if options.only in (None, "step"):
        if EMBEDDED.is_dir():
            timing = _measure_step(config, options.steps, console)
            console.print(tables.step_table(timing))
            record["step"] = asdict(timing)
        else:
            print_line(console, f"no embedded model at {EMBEDDED}: a training step is not measured")
    write_numbers(options.json, record)
    return 0


def _compare_with_baseline(options: argparse.Namespace) -> int:
    """``--prior``: times a step with Stable Diffusion beside its FLOPs and a baseline's choices."""
    keys = [f"prompt={PROMPT}", f"prior={options.prior}", f"distill={options.method}"]
    keys += [f"machine={options.machine}"] if options.machine != "auto" else []
    keys += [*(["machine.compile=false"] if options.no_compile else []), *options.set]
    if options.weights == "random":
        keys.append("negative_prompt=dull")  # a character-level tokenizer, for which the paper's prompt is too long
    config = compose(options.config, keys)
    hardware.check_machine(config)

    import torch

    from nfsd3d.bench import diffusion_step as bench_prior
    from nfsd3d.prior.architectures import FACTOR, random_prior
    from nfsd3d.train.build import PRECISIONS, build_parts
    from nfsd3d.train.compilation import compile_prior
    from nfsd3d.train.memory.budget import fit_into_memory
    from nfsd3d.train.memory.chunking import configured_chunks

    if config.machine.device == "cpu":
        torch.set_num_threads(options.threads)
    console = Console()
    prior = None
    if options.weights == "random":
        size = options.resolution
        if size is not None and size % (8 * FACTOR):
            raise InputError(f"--resolution {size}: must be a multiple of {8 * FACTOR}")
        console.print(f"{options.prior} with random weights, {config.machine.precision}, on {config.machine.device}")
        prior = random_prior(
            options.prior, config.machine.device, PRECISIONS[config.machine.precision], image_size=size
        )
        config = bench_prior.at_most(config, prior.image_size)
    elif options.resolution is not None:
        raise InputError(f"--resolution {options.resolution}: a trained model has its own; add --weights random")
    parts = build_parts(config, prior)
    say = partial(print_line, console)
    chunks = configured_chunks(config.machine)
    if config.machine.device != "cpu":
        chunks = fit_into_memory(config, parts, chunks, say)
    compile_prior(config, parts, chunks, say)
    warmup = min(WARMUP_STEPS, options.steps)
    baseline_steps = options.steps if options.baseline_steps is None else options.baseline_steps
    total = bench_prior.count_steps(config, options.steps, baseline_steps, warmup)
    with counted("training steps", total, console, transient=True) as advance:
        comparison = bench_prior.compare(
            parts,
            config,
            options.prior,
            steps=options.steps,
            baseline_steps=baseline_steps,
            warmup=warmup,
            chunks=chunks,
            on_step=advance,
        )
    for table in tables.comparison_tables(comparison):
        console.print(table)
    console.print(tables.comparison_text(comparison), soft_wrap=True, highlight=False)
    write_numbers(options.json, comparison.to_dict())
    return 0


def _measure_kernels(config: Config, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Prints the table of each kernel that ``options`` ask for; returns the same numbers for JSON."""
    import torch

    from nfsd3d.bench import kernels
    from nfsd3d.bench.rasterizer import rasterizer_contenders
    from nfsd3d.train.build_generator import build_nerf

    generator = build_nerf(config)
    device = generator.device
    size = milestone_at(config.train.resolution, 0.0) if device.type == "cpu" else GPU_PIXELS
    scene = kernels.demo_scene(generator, config.cameras, config.train.batch_size, size)
    where = f"{options.threads} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    record: dict[str, Any] = {}

    def measure(kernel: str, contenders: dict[str, Contender], unit: str, count: int) -> None:
        if len(contenders) == 1:
            console.print(f"{kernel}: {device.type} has no other implementation than the reference")
            return
        with counted(kernel, options.rounds + 1, console, transient=True) as advance:
            timings = kernels.bench_kernel(contenders, device, rounds=options.rounds, on_round=advance)
        console.print(tables.kernel_table(f"{kernel}, {count:,} {unit}, {where}", timings))
        record[kernel] = {unit: count, "implementations": [asdict(timing) for timing in timings]}

    if options.only in (None, "encoding"):
        positions = scene.positions
        if options.points is not None:
            positions = torch.rand(options.points, 3, generator=torch.Generator().manual_seed(0)).to(device)
        compiled = device.type == "cpu" and not options.no_compile and kernels.can_compile()
        if device.type == "cpu" and not options.no_compile and not compiled:
            console.print("no C++ compiler: torch.compile is not measured")
        implementations = kernels.encodings(generator.settings.encoding, device, compiled=compiled)
        measure("encoding", kernels.encoding_contenders(implementations, positions), "points", positions.shape[0])
    if options.only in (None, "network"):
        contenders = kernels.network_contenders(generator.field, scene.positions)
        measure("network", contenders, "samples", scene.density.shape[0])
    if options.only in (None, "marching"):
        measure("marching", kernels.marching_contenders(scene), "rays", len(scene.rays))
    if options.only in (None, "compositing"):
        measure("compositing", kernels.compositing_contenders(scene), "samples", scene.density.shape[0])
    if options.only in (None, "rasterizing"):
        contenders = rasterizer_contenders(device, config.train.batch_size, size)
        measure("rasterizing", contenders, "pixels", config.train.batch_size * size**2)
    return record


def _measure_step(config: Config, steps: int, console: Console) -> StepTiming:
    from nfsd3d.bench.step import bench_step
    from nfsd3d.prior.diffusers_prior import DiffusersPrior
    from nfsd3d.train.build import build_parts
    from nfsd3d.train.compilation import traces_unet

    parts = build_parts(config)
    if traces_unet(config, parts.distillation.method) and isinstance(parts.prior, DiffusersPrior):
        parts.prior.trace()  # as after a run's first steps
    with counted("training steps", steps + WARMUP_STEPS, console, transient=True) as advance:
        return bench_step(parts, config.train, steps=steps, warmup=WARMUP_STEPS, on_step=advance)


# Options that apply only with --prior, or only without it, and their defaults; argparse leaves them None.
WITH_PRIOR = {
    "weights": "model",
    "resolution": None,
    "method": "nfsd",
    "config": "nfsd",
    "set": (),
    "baseline_steps": None,
}
WITHOUT_PRIOR = {"only": None, "rounds": 15, "points": None}


def _options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: an option has no meaning with, or without, ``--prior``.
    """
    options = parser().parse_args(current_options(argv))
    alone = options.prior is None
    for name in WITH_PRIOR if alone else WITHOUT_PRIOR:
        value = getattr(options, name)
        if value is not None:
            shown, remedy = " ".join(value) if isinstance(value, list) else value, "add" if alone else "leave out"
            where = "without" if alone else "with"
            raise InputError(f"--{name.replace('_', '-')} {shown}: has no meaning {where} --prior; {remedy} --prior")
    for name, default in {**WITH_PRIOR, **WITHOUT_PRIOR}.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d bench``."""
    parser = Parser(
        prog="nfsd3d bench",
        description="Measure, in the demo's configuration (a GPU's kernels in Stable Diffusion's): every "
        "implementation of the hash encoding, the field's network, the marching "
        "along rays and the compositing that the machine has (CPU: torch, torch.compile, numba; CUDA: torch, Triton, "
        "and tiny-cuda-nn and nerfacc where installed; ratios are to numba or Triton), and the parts of a training "
        "step with the embedded model. With --prior instead, on a GPU where there is one: a step of Stable Diffusion, "
        "beside its arithmetic and the same method with a common implementation's choices (eager float16, all branches "
        "always, a decoding that nobody uses, samples pruned as Stable Diffusion's recipe does).",
    )
    parser.add_argument("--against", metavar="REV", help="measure this source tree beside another revision of it "
                        "instead; its options: nfsd3d bench --against REV --help")  # fmt: skip
    parser.add_argument("--growth", action="store_true", help="measure how time and memory grow with the sizes of a "
                        "step and of the export instead; its options: nfsd3d bench --growth --help")  # fmt: skip
    parser.add_argument("--prior", choices=sorted(ALIASES), help="measure a step with this model")
    parser.add_argument("--weights", choices=("model", "random"), help="with --prior: random ones "
                        "need no download (default: the model's)")  # fmt: skip
    parser.add_argument("--resolution", type=whole_number(64), metavar="PIXELS", help="with --weights random: side of "
                        "the prior's images, and of the views at most (default: the model's)")  # fmt: skip
    parser.add_argument("--method", choices=("nfsd", "sds"), help="with --prior (default: nfsd)")
    parser.add_argument("--config", help="with --prior: another experiment, such as lowmem")
    parser.add_argument("--set", nargs="*", metavar="KEY=VALUE", help="with --prior: further settings")
    parser.add_argument("--machine", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=whole_number(1), default=2, help="of torch and numba (default: 2)")
    parser.add_argument("--only", choices=(*KERNELS, "step"), help="measure only this")
    parser.add_argument("--rounds", type=whole_number(1), help="repetitions of each kernel (default: 15)")
    parser.add_argument("--steps", type=whole_number(1), default=30, help="training steps (default: 30)")
    parser.add_argument(
        "--baseline-steps",
        type=whole_number(1),
        metavar="STEPS",
        help="with --prior: training steps with the other implementation's choices (default: as many)",
    )
    parser.add_argument("--points", type=whole_number(1), help="random points to encode (default: a first step's)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to PATH too")
    return parser
