"""Recipes are found by the kind of generator and prior, and defaults lists work from any folder."""

import re
from pathlib import Path

import pytest
import yaml

from nfsd3d.config import hardware
from nfsd3d.config.compose import compose, compose_experiment
from nfsd3d.config.experiments import config_root, find_experiment
from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError
from nfsd3d.prior.priors import TABLE as PRIORS

SETTLED = ["prompt=x", "machine=cpu", "backend=numba"]


def own(folder: Path, text: str, **files: str) -> Path:
    """An experiment file in ``folder``, and other files there by their name, with - for /."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def sources(key: str, name: str) -> list[str]:
    """The files from which ``configs/<name>.yaml`` takes a setting of ``train``, itself first, by its own defaults."""
    content = yaml.safe_load((config_root() / f"{name}.yaml").read_text())
    if key in content.get("train", {}):
        return [name]
    folder = Path(name).parent
    bases = [base for base in content["defaults"] if isinstance(base, str) and base != "_self_"]
    return [name, *sources(key, (folder / bases[-1]).as_posix())]


@pytest.mark.parametrize("prior", ["shapes", "sd15", "sd21", "sd21-768"])
@pytest.mark.parametrize("generator", ["nerf", "latent", "image"])
def test_the_steps_of_every_recipe_are_at_most_two_files_away(generator, prior):
    kinds = {"nerf": "nerf", "latent": "images", "image": "images"}
    sizes = {"shapes": "shapes", "sd15": "sd-512", "sd21": "sd-512", "sd21-768": "sd-768"}
    hops = sources("steps", f"recipe/{kinds[generator]}-{sizes[prior]}")
    assert len(hops) <= 2
    steps = yaml.safe_load((config_root() / f"{hops[-1]}.yaml").read_text())["train"]["steps"]
    assert compose("nfsd", [*SETTLED, f"prior={prior}", f"generator={generator}"]).train.steps == steps


def test_there_are_few_files_and_no_stubs():
    """A method has a row's file and an experiment, a prior one file, a kind of prior three recipes, two fast ones."""
    files = list(config_root().rglob("*.yaml"))
    assert all(yaml.safe_load(path.read_text()) for path in files)
    named = {
        group: {path.stem for path in (config_root() / group).glob("*.yaml")} for group in ("", "distill", "prior")
    }
    assert named["distill"] == set(METHODS)
    assert named[""] == set(METHODS) | {"dds_2d", "nfsd_2d", "fast", "lowmem", "quick", "best", "refine", "texture"}
    assert named["prior"] == set(PRIORS.builtin)
    kinds = {yaml.safe_load((config_root() / f"prior/{name}.yaml").read_text()).get("kind") for name in named["prior"]}
    for group, all_made in (("recipe", ("images", "nerf", "mesh")), ("fast", ("images", "nerf"))):
        recipes = {f"{made}-{kind}" for made in all_made for kind in kinds - {None}}
        assert {path.stem for path in (config_root() / group).glob("*.yaml")} == recipes
    others = [path for path in files if path.parent.name not in ("configs", "distill", "prior", "recipe", "fast")]
    assert len(others) <= 28


@pytest.mark.parametrize("method", ["nfsd", "sds", "vsd"])
def test_quick_takes_the_whole_score_in_place_of_falling_guidance_with_nfsd_alone(method):
    quick = compose("quick", [*SETTLED, f"distill={method}"]).distill
    if method == "nfsd":
        assert (quick.threshold, quick.guidance_factor) == (1.0, 1.0)
    else:
        assert quick.threshold == 0.2 and quick.guidance_factor[-1][1] < 0.6
    given = compose("quick", [*SETTLED, f"distill={method}", "distill.guidance_factor=0.9"]).distill
    assert (given.threshold, given.guidance_factor) == (quick.threshold, 0.9)


@pytest.mark.parametrize("method", ["nfsd", "sds"])
def test_best_takes_less_guidance_with_nfsd_and_falling_guidance_with_others(method):
    best, usual = (compose(name, [*SETTLED, f"distill={method}"]).distill for name in ("best", "nfsd"))
    if method == "nfsd":
        assert (best.guidance_scale, best.threshold, best.guidance_factor) == (4.0, 1.0, 1.0)
    else:
        assert best.guidance_scale == usual.guidance_scale and best.guidance_factor[-1][1] == 0.3


def test_priors_of_one_kind_share_a_recipe():
    sd15, sd21 = (compose("nfsd", [*SETTLED, f"prior={name}"]) for name in ("sd15", "sd21"))
    assert sd15.train == sd21.train and sd15.cameras == sd21.cameras and sd15.generator == sd21.generator
    assert "kind" not in sd21.to_dict()["prior"]


@pytest.mark.parametrize(
    "base", ["kind: sd-512", "defaults: [sd21, _self_]", "defaults: [sd21-768, _self_]\nkind: sd-512"]
)
def test_a_users_own_prior_names_its_kind_or_inherits_it(tmp_path, base):
    settings = "name: sd21\nmodel: some/hub-id\noffline: false\n"
    mine = own(
        tmp_path,
        "defaults: [nfsd, {override prior: big}, _self_]\n",
        prior__big=f"{base}\n{settings}",
    )
    config = compose(mine, SETTLED)
    assert (config.prior.model, config.train.steps) == ("some/hub-id", 25000)
    assert config.train == compose("nfsd", [*SETTLED, "prior=sd21"]).train
    assert compose(mine, [*SETTLED, "generator=latent"]).train.steps == 1000


def test_a_prior_without_a_kind_is_an_error_that_says_what_to_add(tmp_path):
    mine = own(tmp_path, "defaults: [nfsd, _self_]", prior__big="name: sd21\nmodel: null\noffline: false\n")
    with pytest.raises(
        InputError, match=r"prior/big\.yaml: names no kind.*add a line such as kind: [\w-]+; there are .*nerf-sd-512"
    ):
        compose(mine, [*SETTLED, "prior=big"])


@pytest.mark.parametrize("experiment", ["nfsd", "fast"])
def test_a_missing_recipe_is_an_error_that_names_it(tmp_path, experiment):
    mine = own(
        tmp_path,
        f"defaults: [{experiment}, _self_]",
        prior__big="defaults: [sd21, _self_]\nkind: sd-2048\n",
    )
    with pytest.raises(InputError, match=r"nerf-sd-2048\.yaml: missing.*nerf-sd-512") as caught:
        compose(mine, [*SETTLED, "prior=big"])
    assert "\n" not in str(caught.value)
    own(tmp_path, f"defaults: [{experiment}, _self_]", recipe__x="")
    (tmp_path / "recipe" / "nerf-sd-2048.yaml").write_text(
        "# @package _global_\ndefaults: [nerf-sd-512, _self_]\ntrain: {steps: 12345}\n"
    )
    if experiment == "nfsd":
        assert compose(mine, [*SETTLED, "prior=big"]).train.steps == 12345


@pytest.mark.parametrize("name", ["nfsd", "sds", "csd", "vsd", "ism", "sdi", "bridge", "fast", "lowmem", "nfsd_2d"])
def test_every_experiment_can_be_inherited_from_any_folder(tmp_path, name):
    mine = own(tmp_path, f"defaults: [{name}, _self_]\nseed: 7\n")
    assert compose(mine, [*SETTLED, "prior=shapes"]) == compose(name, [*SETTLED, "prior=shapes", "seed=7"])


@pytest.mark.parametrize("name", ["dds", "dds_2d"])
def test_the_editing_experiments_can_be_inherited(tmp_path, name):
    source = ["source_run=r", "source_prompt=y", *SETTLED, "prior=shapes"]
    assert compose(own(tmp_path, f"defaults: [{name}, _self_]\nseed: 7\n"), source) == compose(
        name, [*source, "seed=7"]
    )


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        ("distill", "sds"),
        ("generator", "latent"),
        ("generator", "image"),
        ("prior", "sd15"),
        ("prior", "sd21-768"),
        ("machine", "cpu"),
        ("machine", "auto"),
        ("backend", "torch"),
        ("backend", "auto"),
        ("prior", "auto"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_defaults_list_chooses_groups(tmp_path, monkeypatch, group, choice, slash):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    mine = own(tmp_path, f"defaults:\n  - nfsd\n  - override {slash}{group}: {choice}\n  - _self_\nprompt: x\n")
    assert compose(mine) == compose("nfsd", ["prompt=x", f"{group}={choice}"])


def test_auto_choices_are_reported_wherever_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    mine = own(tmp_path, "defaults: [fast, {override /machine: auto}, {override /prior: shapes}, _self_]\nprompt: x\n")
    found = compose_experiment(find_experiment(mine), [])
    assert {name: choice.value for name, choice in found.choices.items()} == {"machine": "cpu", "backend": "numba"}
    assert compose_experiment(find_experiment(mine), ["prior=auto"]).choices["prior"].value == "shapes"


def test_every_recipe_and_fast_schedule_says_what_it_is_for():
    for path in (*config_root().glob("recipe/*.yaml"), *config_root().glob("fast/*.yaml")):
        first, second, *_ = path.read_text().splitlines()
        assert first == "# @package _global_" and re.match(r"# \S", second), path
