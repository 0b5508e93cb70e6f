"""Slips on the command line: each is refused on one line that names the remedy, and leaves nothing behind."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from nfsd3d.cli import launch
from nfsd3d.cli.main import main
from nfsd3d.config import renamed
from nfsd3d.config.compose import compose
from nfsd3d.distill.methods import TABLE, find_method
from nfsd3d.errors import did_you_mean

SETTLED = ["prompt=a red cube", "machine=cpu", "backend=numba", "prior=shapes"]


@pytest.fixture
def folder(tmp_path, monkeypatch, jobs_here) -> Path:
    """The current folder and the home folder, empty; training is replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(launch, "_train", lambda *_, **__: None)
    renamed.print_once.cache_clear()
    return tmp_path


def refusal(arguments: list[str], capsys) -> str:
    """The one line with which a command line ends that exits with 2."""
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    return line.removeprefix("error: ")


SLIPS = [
    ("~prior", "~prior: a run needs it; choose prior=auto, auraflow, chroma"),
    ("~distill", "~distill: a run needs it; choose distill="),
    ("~machine=true", "~machine=true: a run needs it; choose machine="),
    ("~machine.pixels_at_once", "~machine.rays_per_chunk: not set, so that it cannot be deleted; leave it out"),
    ("~", "not of the form key=value"),
    ("+distill=sds", "distill: chosen already; leave the + out"),
    ("+train.steps=5", "+train.steps: set already; leave the + out"),
    ("machine=null", "machine=null: no such choice; choose machine=auto, cpu, cuda"),
    ("run_dir=", "run_dir=: must not be empty"),
    ("cameras.distance=3", "cameras.distance=3: must be a list, such as cameras.distance=[3,3]"),
    ("export.formats=glb", "export.formats=glb: must be a list, such as export.formats=[glb]"),
    ("export.formats=glb,obj", "several values are a sweep; add -m, or write export.formats=[glb,obj] for a list"),
    (
        "train.betas.0=1",
        "train.betas.0: elements of a list cannot be set one by one; give the whole list, train.betas=[",
    ),
    ("machine.pixels_at_onc=3", "unknown setting machine.pixels_at_onc (did you mean machine.rays_per_chunk?)"),
    ("train.wandb=true", "unknown setting train.wandb; see --help"),
    ("hydra.run.dir=x", "hydra.run.dir=x: has no effect; choose the directory with run_dir=PATH"),
    ("hydra.sweep.dir=x", "hydra.sweep.dir=x: has no effect; choose the directory with run_dir=PATH"),
    ("hydra/launcher=1", "hydra/launcher=1: must be a name"),
    ("~hydra/launcher", "~hydra/launcher: must be a name"),
    ("hydra/launcher=nowhere", "hydra/launcher=nowhere: no such choice; choose hydra/launcher="),
    ("hydra/launcher=local,ray", "hydra/launcher=local,ray: must be a name"),
    ("hydra/sweeper=optuna", "hydra/sweeper=optuna: a sweep runs all combinations of the listed values; leave it out"),
    ("hydra.callbacks=1", "hydra.callbacks=1: has no effect"),
    ("hydra.job.env_copy=[NOWHERE]", "has no effect"),
    (f"seed={'9' * 5000}", "cannot be understood"),
    (f"seed={'[' * 3000}", "cannot be understood"),
    ("seed=${seed}", "Recursive interpolation"),
    ("distill=glob(*)", "distill=glob(*): glob() is not supported; name the values"),
]


@pytest.mark.parametrize(("slip", "message"), SLIPS, ids=[slip[:30] for slip, _ in SLIPS])
def test_a_slip_is_named_with_its_remedy(folder, capsys, slip, message):
    of_sweeps = slip.lstrip("~").startswith(("hydra/launcher", "hydra/sweeper"))
    ways = ([["-m", "seed=0,1"]] if "glb,obj" not in slip and "seed" not in slip else []) + [[]] * (not of_sweeps)
    for way in ways:
        assert message in refusal([*SETTLED, slip, *way], capsys)
    if of_sweeps:
        assert f"{slip}: is for a sweep; add -m, or leave it out" in refusal([*SETTLED, slip], capsys)
    assert list(folder.iterdir()) == []


SWEEPS = [
    (
        ["prompt=a red cube", "distill.guidance_scale=interval(1,10)"],
        "an interval has no list of values; write values",
    ),
    (["seed=0,1"], "prompt is missing"),
    (["prompt=a red cube", "seed=0,1", "hydra.launcher.workers=4000"], "workers 4000: there are"),
    (["prompt=a red cube", "seed=0,1", "hydra.launcher.workers=0"], "hydra.launcher.workers=0: must be greater than 0"),
    (["prompt=a red cube", "seed=0,1", "train.steps=0"], "train.steps=0: must be greater than 0"),
    (["prompt=a red cube", "seed=-5,-6"], "seed=-5: must be greater"),
    (["prompt=a red cube", "export.formats=glb,obj"], "export.formats=glb: must be a list"),
    (["prompt=a red qux", "seed=0,1"], "does not know 'qux'"),
    (["prompt=a red cube", "seed=range(0,1000000000)"], "a sweep of over 10,000 jobs"),
    (["prompt=a red cube", "seed=range(5,1)"], "a sweep of no jobs"),
    (["prompt=a red cube", "distill=range(5,1)"], "distill=range(5,1): no such choice"),
    (["prompt=a red cube", "distill=range(0,1000000000)"], "distill=range(0,1000000000): no such choice"),
]


@pytest.mark.parametrize(("arguments", "message"), SWEEPS)
def test_a_sweep_without_a_valid_job_makes_nothing(folder, capsys, arguments, message):
    assert message in refusal(["-m", *SETTLED[1:], *arguments], capsys)
    assert list(folder.iterdir()) == []


def test_the_directory_of_a_sweep_may_be_in_the_home_folder(folder):
    main(["-m", *SETTLED, "seed=5,6", "run_dir=~/deep/sweep"])
    assert len((folder / "deep" / "sweep" / "sweep.csv").read_text().splitlines()) == 3
    assert not (folder / "~").exists()


def test_values_of_a_group_that_is_swept_belong_to_its_choices(folder):
    swept = ["generator=latent,image", "train.preview_size=32"]
    assert main(["-m", *SETTLED, *swept, "run_dir=sweep", "dry_run=true"]) == 0


@pytest.mark.parametrize("arguments", [["machine.rays_per_chunk=1024"], ["++machine.rays_per_chunk=1024", "-m"]])
def test_both_spellings_of_a_setting_may_not_differ(folder, capsys, arguments):
    line = refusal([*SETTLED, "machine.pixels_at_once=512", *arguments], capsys)
    assert line == (
        "machine.pixels_at_once=512: is the old name of machine.rays_per_chunk=1024; remove machine.pixels_at_once"
    )
    same = compose("nfsd", [*SETTLED, "machine.pixels_at_once=512", "machine.rays_per_chunk=512"])
    assert same.machine.rays_per_chunk == 512


def test_a_misspelt_experiment_is_suggested_as_it_was_written(capsys):
    assert "(did you mean nfsd?)" in refusal(["--config", "nsfd"], capsys)
    assert "(did you mean nfsd.yaml?)" in refusal(["--config", "configs/nsfd.yaml"], capsys)


def test_help_lists_the_methods_of_plug_ins(capsys):
    TABLE.register("mine", find_method("sds"))
    try:
        assert main(["--help"]) == 0
    finally:
        TABLE.unregister("mine")
    assert re.search(r"distill=\.\.\. .*\|mine", capsys.readouterr().out)


def test_a_plug_in_of_another_type_is_named(monkeypatch, capsys):
    point = EntryPoint("mine", "math:pi", "nfsd3d.methods")
    monkeypatch.setattr("nfsd3d.plugins.table.entry_points", lambda **_: [point])
    assert "offers math:pi, of type float, not a Method" in refusal([*SETTLED, "distill=mine"], capsys)


def test_an_unknown_word_names_the_objects(capsys):
    assert "it knows the objects sphere, cube" in refusal(["prompt=a dragon", *SETTLED[1:]], capsys)
    line = refusal(["prompt=a hat", *SETTLED[1:]], capsys)
    assert "does not know 'hat'; it knows the objects sphere" in line


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [("hat", ["at", "car"], False), ("train.wandb", ["train.shading"], False), ("nfsdd", ["nfsd"], True)],
)
def test_only_near_words_are_suggested(word, known, near):
    assert bool(did_you_mean(word, known)) == near


def test_a_full_table_of_open_files_is_told_as_such(tmp_path, capsys):
    """Whatever library meets it: the message must not say that the configuration is wrong."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [nfsd, _self_]\nprompt: a red cube\n")
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, former[1]))
    try:
        code = main(["--config", str(path), "machine=cpu", "prior=shapes", "dry_run=true"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and "Too many open files" in error and "ulimit -n" in error
