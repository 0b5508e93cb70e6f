"""Completion in a shell: the words it offers. (Presses of the tab key: tests/engines/test_shells.py.)"""

import importlib

import pytest

from nfsd3d.cli.completion import SHELLS, completions
from nfsd3d.cli.main import COMMANDS, FLAGS, main
from nfsd3d.config.choices import all_choices
from nfsd3d.config.schema import known_keys, values_of


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nfsd3d comp", {"compare", "completion"}),
        ("nfsd3d --", set(FLAGS)),
        ("nfsd3d --config sd", {"sdi", "sds"}),
        ("nfsd3d --resume ", set()),
        ("nfsd3d --resume out train.ste", {"train.steps="}),
        ("nfsd3d distill=s", {"distill=sds", "distill=sdi"}),
        ("nfsd3d -m seed=0 distill=sds,nf", {"distill=sds,nfsd"}),
        ("nfsd3d machine=", {"machine=auto", "machine=cpu", "machine=cuda"}),
        ("nfsd3d export.me", {"export.mesh="}),
        ("nfsd3d export.mesh=", {"export.mesh=true", "export.mesh=false"}),
        ("nfsd3d viewer=", {"viewer=true", "viewer=false"}),
        ("nfsd3d logger=w", {"logger=wandb"}),
        ("nfsd3d logger=[wandb,m", {"logger=[wandb,mlflow"}),
        ("nfsd3d export.formats=[glb,us", {"export.formats=[glb,usdz"}),
        ("nfsd3d --config=ds", set()),
        ("nfsd3d --config=sd", {"--config=sds", "--config=sdi"}),
        ("nfsd3d -m hydra/launcher=sub", {"hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm"}),
        ("nfsd3d -m hydra.launcher.wor", {"hydra.launcher.workers="}),
        ("nfsd3d download sd2", {"sd21", "sd21-768"}),
        ("nfsd3d train.steps=", set()),
        ('nfsd3d prompt="a red', set()),
        ("nfsd3d sweep ", {"status", "resume", "cancel", "report"}),
        ("nfsd3d sweep resume --engine j", {"joblib"}),
        ("nfsd3d sweep resume outputs --thr", {"--threads"}),
        ("nfsd3d view outputs --po", {"--port"}),
        ("nfsd3d view ", set()),
        ("nfsd3d tune --maximize iou train.ste", {"train.steps="}),
        ("nfsd3d tune --config fa", {"fast"}),
        ("nfsd3d bench --only composi", {"compositing"}),
    ],
)
def test_words(line, expected):
    found = completions(line)
    assert set(found) == expected
    assert len(set(found)) == len(found)


def test_every_subcommand_and_group_is_offered():
    words = completions("nfsd3d ")
    assert set(COMMANDS) <= set(words)
    assert {f"{key}=" for key in known_keys() if values_of(key)} <= set(words)
    for group in ("distill", "prior", "generator", "backend", "machine"):
        assert {f"{group}={choice}" for choice in all_choices(group)} <= set(completions(f"nfsd3d {group}="))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_every_subcommand_are_offered(command, capsys):
    parser = importlib.import_module(f"nfsd3d.cli.{command.replace('-', '_')}").parser()
    assert parser.prog == f"nfsd3d {command}"
    assert "--help" in completions(f"nfsd3d {command} --")


def test_values_of_settings():
    assert values_of("train.steps") == [] == values_of("train") == values_of("no.such") == values_of("nothing")
    assert values_of("prompts.views") == ["coarse", "fine"]
    assert values_of("generator.type") == ["nerf", "mesh", "latent", "image"]


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
    assert main(["completion"]) == 2


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_in_the_package(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "nfsd3d completion --line" in capsys.readouterr().out
