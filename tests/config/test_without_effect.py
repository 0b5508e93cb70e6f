"""Settings that were given and change nothing are named; those that do something are not."""

from contextlib import suppress

import pytest

from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose, compose_experiment, load_run_config
from nfsd3d.config.experiments import find_experiment
from nfsd3d.distill.methods import Method, nfsd, register, unregister
from nfsd3d.errors import InputError

CUBE = ("prompt=a red cube", "machine=cpu", "backend=numba", "prior=shapes")


@pytest.mark.parametrize(
    ("config", "given", "reason"),
    [
        (
            "nfsd",
            ("distill=sds", "negative_prompt=dull"),
            "negative_prompt: has no effect here, distill=sds reads no",
        ),
        (
            "quick",
            ("negative_prompt=dull",),
            "negative_prompt: has no effect here, every t is below distill.threshold=1",
        ),
        (
            "nfsd",
            ("distill.threshold=0.5", "train.t_max=0.4", "negative_prompt=dull"),
            "threshold=0.5; with the paper's",
        ),
        (
            "nfsd",
            ("train.t_max=0.15", "train.t_min=0.02", "negative_prompt=dull"),
            "every t is below distill.threshold=0.2",
        ),
        ("nfsd", ("prompts.front_deg=30",), "prompts.front_deg: has no effect here, prompts.views=fine has its own"),
        ("nfsd", ("prompts.view_dependent=false", "prompts.overhead_deg=50"), "adds no view words"),
        ("nfsd", ("cameras.overhead_probability=0", "cameras.overhead_deg=[70,80]"), "cameras.overhead_probability=0"),
        ("nfsd", ("cameras.light_jitter_deg=30",), "train.shading.lambertian=0 needs no light"),
    ],
)
def test_what_has_no_effect_is_said(config, given, reason):
    (line,) = compose_experiment(find_experiment(config), [*CUBE, *given]).without_effect
    assert reason in line


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ("nfsd", ("negative_prompt=dull",)),
        ("quick", ("negative_prompt=dull", "distill.threshold=0.2")),
        ("nfsd", ("negative_prompt=dull", "distill.threshold=0.9804")),  # t_max is .98: rounded, one t is left
        ("refine", ("negative_prompt=dull", "refine.experiment=nfsd", "distill.threshold=1")),  # its field reads it
        ("nfsd", ("prompts.views=coarse", "prompts.front_deg=30")),
        ("nfsd", ("prompts.overhead_deg=50", "cameras.overhead_deg=[70,80]")),
        ("nfsd", ("train.shading.lambertian=0.5", "cameras.light_jitter_deg=30")),
        ("quick", ("distill=sds",)),  # nothing of these was given
    ],
)
def test_what_has_an_effect_is_not_mentioned(config, given):
    assert not compose_experiment(find_experiment(config), [*CUBE, *given]).without_effect


def test_it_is_printed_before_a_run_begins(capsys):
    assert main(["--config", "quick", *CUBE, "negative_prompt=dull", "dry_run=true"]) == 0
    assert capsys.readouterr().err == (
        "negative_prompt: has no effect here, every t is below distill.threshold=1; with the paper's 0.2 it is read\n"
    )


def test_a_sweep_says_what_has_no_effect_in_any_of_its_runs(capsys):
    sweep = ["--config", "quick", "-m", *CUBE, "negative_prompt=dull,dark", "dry_run=true"]
    assert main([*sweep, "seed=0,1"]) == 0
    assert capsys.readouterr().err.count("negative_prompt: has no effect here") == 1
    assert main([*sweep, "distill.threshold=0.2,1"]) == 0
    assert "has no effect" not in capsys.readouterr().err


STAGES = {
    "later": Method(nfsd, ("cond", "uncond"), then=Method(nfsd, ("cond", "uncond", "neg"))),
    "as another": Method(nfsd, ("cond", "uncond"), prompts={"uncond": "neg"}),
}


@pytest.fixture(params=STAGES)
def mine(request):
    register("mine", STAGES[request.param])
    yield
    with suppress(KeyError, InputError):
        unregister("mine")


def test_a_method_may_read_it_later_or_as_another_prediction(mine):
    given = [*CUBE, "distill=nfsd", "distill.method=mine", "negative_prompt=dull", "distill.threshold=1"]
    assert not compose_experiment(find_experiment("nfsd"), given).without_effect


def test_a_run_of_a_method_that_is_not_registered_any_more_opens(mine, tmp_path):
    given = [*CUBE, "distill=nfsd", "distill.method=mine"]
    (tmp_path / "config.yaml").write_text(compose("nfsd", given).to_yaml())
    unregister("mine")
    assert load_run_config(tmp_path).distill.method == "mine"
