"""The command line: runs, ``-m`` sweeps, ``--resume RUN_DIR``, and the subcommands.

User errors are printed on one line of stderr (``NFSD3D_DEBUG=1`` adds the traceback) with exit code 2. A run that
failed or diverged exits with 1, an interrupted one with 130 or 143.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

import nfsd3d
from nfsd3d.cli.launch import print_error, resume, start
from nfsd3d.cli.sweep import sweep
from nfsd3d.config.compose import compose_experiment, composed_yaml, load_run_config
from nfsd3d.config.errors import did_you_mean
from nfsd3d.config.experiments import config_root, find_experiment
from nfsd3d.config.schema import DistillConfig
from nfsd3d.errors import InputError, RunFailed

COMMANDS = {
    "export": "nfsd3d.cli.export",
    "render": "nfsd3d.cli.render",
    "evaluate": "nfsd3d.cli.evaluate",
    "compare": "nfsd3d.cli.compare",
    "decompose": "nfsd3d.cli.decompose",
    "bench": "nfsd3d.cli.bench",
    "doctor": "nfsd3d.cli.doctor",
    "check-mesh": "nfsd3d.cli.check_mesh",
    "train-prior": "nfsd3d.cli.train_prior",
    "train-classifier": "nfsd3d.cli.train_classifier",
}
"""Subcommands and the modules whose ``main(arguments) -> exit code`` they call."""

HELP = """\
Text to 3D by noise-free score distillation: a prompt becomes a NeRF, then a textured mesh.

  nfsd3d prompt="a red and white dotted mushroom" [key=value ...]              train, then export
  nfsd3d --config sds prompt="a pink house"                                    another experiment
  nfsd3d -m seed=0,1 distill=sds,nfsd prompt="a pink house"                    a sweep: 4 runs
  nfsd3d --resume RUN_DIR [key=value ...]                                      resume a run

In a checkout, python launch.py is the same command.

commands, each with --help
  export RUN_DIR       extract the mesh again: other formats, resolution, texture
  render RUN_DIR       write views or a turntable
  evaluate RUN_DIR...  score runs made with the embedded prior against ground truth
  check-mesh RUN_DIR   reload an exported mesh and compare it with the NeRF's views
  compare              compare methods over many prompts and seeds
  decompose            plot the parts of the score, as the paper does
  bench                measure the speed of kernels and training steps
  train-prior, train-classifier
                       retrain the embedded prior, or the classifier of evaluate
  doctor               print what is installed, found and chosen on this machine

options
  --config FILE      an experiment, your own YAML anywhere, or RUN_DIR/config.yaml to repeat a run;
                     {experiments}
  --resume RUN_DIR   continue from the newest checkpoint
  -m, --multirun     a sweep: commas separate values, each combination is a run, listed in sweep.csv
                     (quote prompts that contain commas: -m 'prompt="a, b","c"')
  --cfg job          print what Hydra composed; dry_run=true prints the validated configuration
  -h, --help         print this text
  --version          print the version

common settings
  prompt="..."             what to make; the whole value is the prompt, commas included
  negative_prompt="..."    what it should not look like (default: the paper's)
  seed=0                   seed of everything random; repeats a run on the same machine
  run_dir=PATH             default: outputs/<config>/<prompt>/<time>
  dry_run=true             print the resolved configuration and the plan, and stop

  machine=auto|cpu|cuda    device and precision; machine.device=cuda:1 for the second GPU
  machine.memory_gb=12     predicted GPU memory limit per step, in GiB; chunks are reduced to fit
  backend=auto|...         NeRF kernels: {backend}

  distill=...              method: {distill}
  distill.guidance_scale=7.5     guidance scale; high values oversaturate and thicken geometry
  distill.guidance_factor=1      factor on it; with a schedule, over training
  distill.weighting=...          w(t): {weighting}

  prior=auto|...           diffusion model: {prior}
  prior.model=...          instead of its weights: a hub id, diffusers folder or .safetensors file
  prior.layout=...         beside a .safetensors file: hub id or folder with its configurations
  prior.vae=...            another autoencoder, such as madebyollin/taesd (less memory)
  prior.offline=true       never access the network: use the local cache

  prompts.view_dependent=true    append "front view", "side view", ... to the prompt
  prompts.views=coarse|fine      4 views, or eighths of the circle with heights
  prompts.perp_neg=true          Perp-Neg, which reduces the Janus (multi-face) problem

  generator=...            {generator}: nerf is a 3D scene, latent and image are images
  source_run=RUN_DIR       start from that run; with --config dds edit it (with source_prompt="...")
  source_image=FILE        the same with an image file (generator=latent|image)

  train.steps=900          optimisation steps
  train.batch_size=4       views per step, or number of images
  train.resolution=64      pixels per side of a view; a schedule is a list of [fraction of training,
                           value]: [[0,64],[0.2,512]] switches to 512 after a fifth
  train.checkpoint_every=200     steps between checkpoints
  export.formats=[glb,obj]       mesh files: glb, obj, ply, stl
  export.resolution=256          cells per axis of the grid that the mesh is extracted from
  export.texture_size=1024       texels per side; 0: vertex colours
  export.turntable=false         write no turntable

All settings, with comments, are in the YAML files of
{root}
Exit codes: 0 done, 1 failed or diverged, 2 bad input, 130 or 143 interrupted (resumable).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's), prints user errors on one line, and returns the exit code."""
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print_error(error)
        return 2
    except RunFailed as error:
        print_error(error)
        return 1
    except KeyboardInterrupt as interruption:
        message = str(interruption) or "interrupted"
        print(f"\n{message}", file=sys.stderr)
        return int(getattr(interruption, "exit_code", 130))


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        return int(importlib.import_module(COMMANDS[command]).main(arguments[1:]))
    if command and "=" not in command and not command.startswith(("-", "~")):
        raise InputError(f"unknown command {command}{did_you_mean(command, list(COMMANDS))}; see --help")
    options = _parse(arguments)
    if options.help:
        print(help_text())
    elif options.version:
        print(f"nfsd3d {nfsd3d.__version__}")
    elif options.resume is not None:
        if options.config is not None or options.multirun:
            raise InputError("--resume RUN_DIR takes neither --config nor -m: the run has its own configuration")
        run_dir = Path(options.resume).expanduser()
        resume(load_run_config(run_dir, options.overrides), run_dir)
    else:
        experiment = find_experiment("nfsd" if options.config is None else options.config)
        if options.multirun:
            return sweep(experiment, options.overrides)
        if options.cfg is not None:
            print(composed_yaml(experiment, options.overrides, options.cfg), end="")
        else:
            composition = compose_experiment(experiment, options.overrides)
            start(composition.config, experiment.label, composition.choices)
    return 0


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="nfsd3d", add_help=False, allow_abbrev=False)
    flags = ["--config", "--resume", "--multirun", "--help", "--version", "--cfg"]
    parser.add_argument("--config")
    parser.add_argument("--resume")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], flags)
        raise InputError(f"unknown option {unknown[0]}{near}; see --help")
    return options


def help_text() -> str:
    """What ``--help`` prints, with the choices that the YAML files offer."""
    root = config_root()
    choices = {
        group: "|".join(sorted(path.stem for path in root.glob(f"{group}/*.yaml")))
        for group in ("prior", "backend", "distill", "generator")
    }
    experiments = ", ".join(sorted(path.stem for path in root.glob("*.yaml")))
    weighting = "|".join(get_args(DistillConfig.model_fields["weighting"].annotation))
    return HELP.format(root=root, experiments=experiments, weighting=weighting, **choices).rstrip()
