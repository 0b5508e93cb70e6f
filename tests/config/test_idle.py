"""Settings that were given and change nothing are named; those that do something are not."""

import pytest

from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose_experiment
from nfsd3d.config.experiments import find_experiment

CUBE = ("prompt=a red cube", "machine=cpu", "backend=numba", "prior=shapes")


@pytest.mark.parametrize(
    ("config", "given", "reason"),
    [
        (
            "nfsd",
            ("distill=sds", "negative_prompt=dull"),
            "negative_prompt: has no effect here, distill=sds reads",
        ),
        (
            "quick",
            ("negative_prompt=dull",),
            "negative_prompt: has no effect here, distill.threshold=1 is above",
        ),
        ("nfsd", ("distill.threshold=0.99", "negative_prompt=dull"), "distill.threshold=0.99 is above every t"),
        ("nfsd", ("prompts.front_deg=30",), "prompts.front_deg: has no effect here, prompts.views=fine has its own"),
        ("nfsd", ("prompts.view_dependent=false", "prompts.overhead_deg=50"), "adds no view words"),
        ("nfsd", ("cameras.overhead_probability=0", "cameras.overhead_deg=[70,80]"), "cameras.overhead_probability=0"),
        ("nfsd", ("cameras.light_jitter_deg=30",), "train.shading.lambertian=0 needs no light"),
    ],
)
def test_what_has_no_effect_is_said(config, given, reason):
    (line,) = compose_experiment(find_experiment(config), [*CUBE, *given]).idle
    assert reason in line


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ("nfsd", ("negative_prompt=dull",)),
        ("quick", ("negative_prompt=dull", "distill.threshold=0.2")),
        ("nfsd", ("negative_prompt=dull", "distill.threshold=0.98")),  # t_max is .98: one t is left
        ("nfsd", ("prompts.views=coarse", "prompts.front_deg=30")),
        ("nfsd", ("prompts.overhead_deg=50", "cameras.overhead_deg=[70,80]")),
        ("nfsd", ("train.shading.lambertian=0.5", "cameras.light_jitter_deg=30")),
        ("quick", ("distill=sds",)),  # nothing of these was given
    ],
)
def test_what_has_an_effect_is_not_mentioned(config, given):
    assert not compose_experiment(find_experiment(config), [*CUBE, *given]).idle


def test_it_is_printed_before_a_run_begins(capsys):
    assert main(["--config", "quick", *CUBE, "negative_prompt=dull", "dry_run=true"]) == 0
    assert capsys.readouterr().err == (
        "negative_prompt: has no effect here, distill.threshold=1 is above every t; with the paper's 0.2 it is read\n"
    )
