"""The command line of ``nfsd3d tune``: search spaces, objectives and what is refused, without Optuna."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest

from nfsd3d.cli import tune as command
from nfsd3d.cli.main import main
from nfsd3d.cli.parse_search_space import search_space
from nfsd3d.config import hardware
from nfsd3d.config.overrides import parse_overrides
from nfsd3d.errors import InputError
from nfsd3d.evaluate.score_images import ImageScore
from nfsd3d.evaluate.score_scene import RunScore
from nfsd3d.tune import tuning
from nfsd3d.tune.search_space import Dimension

SCALE = "distill.guidance_scale=interval(3,15)"
SETTLED = ["--config", "nfsd_2d", "machine=cpu", "backend=torch", "prior=shapes"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, without a GPU; Optuna counts as installed, and is not reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    return tmp_path


def refusal(arguments: list[str], capsys) -> str:
    """The one line on stderr of a command line that is refused."""
    assert main(["tune", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def dimensions(*arguments: str) -> list[Dimension]:
    space = search_space(parse_overrides(arguments, sweep=True))
    return [dimension for setting in space.searched for dimension in setting.dimensions]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=interval(3,15)", Dimension("a.b", 3.0, 15.0)),
        ("a.b=int(interval(3,15))", Dimension("a.b", 3, 15, whole=True)),
        ("a.b=tag(log,interval(0.001,1))", Dimension("a.b", 0.001, 1.0, log=True)),
        ("a.b=int(tag(log, interval(1,64)))", Dimension("a.b", 1, 64, log=True, whole=True)),
        ("a.b=range(1,10,2)", Dimension("a.b", 1, 9, 2, whole=True)),
        ("a.b=range(0,4)", Dimension("a.b", 0, 3, 1, whole=True)),
        ("a.b=range(0,0.3,0.1)", Dimension("a.b", 0, 0.2, 0.1)),
        ("a.b=range(0.5,2.1,0.5)", Dimension("a.b", 0.5, 2.0, 0.5)),
        ("a.b=choice(sds,nfsd)", Dimension("a.b", choices=("sds", "nfsd"))),
        ("a.b=choice([1,2],[3.5,4])", Dimension("a.b", choices=("[1,2]", "[3.5,4]"))),
        ("+a.b=choice(true,false)", Dimension("+a.b", choices=("true", "false"))),
    ],
)
def test_hydras_sweeps_are_the_dimensions_of_the_search_space(override, expected):
    assert dimensions(override) == [expected]


def test_numbers_within_a_list_are_searched_each_by_a_name_of_its_own():
    space = search_space(parse_overrides(["a=[[0,interval(1,2)],[1,choice(3,[4,5])]]", "b={c: interval(0,1)}"]))
    first, second = space.searched
    assert [dimension.name for dimension in first.dimensions] == ["a[0]", "a[1]"]
    assert first.override({"a[0]": 1.5, "a[1]": "[4,5]"}) == "a=[[0,1.5],[1,[4,5]]]"
    assert second.dimensions == (Dimension("b", 0.0, 1.0),) and second.override({"b": 1e-05}) == "b={c:1e-05}"


def test_lists_of_prompts_and_seeds_are_averaged_over_and_everything_else_is_shared():
    given = [SCALE, 'prompt="a, b",c', "seed=range(0,3)", "train.betas=[0.9,0.99]", "train.steps=5", "train.steps=7"]
    space = search_space(parse_overrides(given, sweep=True))
    assert space.shared == ["train.betas=[0.9,0.99]", "train.steps=7"]
    assert {key: len(values) for key, values in space.averaged.items()} == {"prompt": 2, "seed": 3}
    assert [setting.template.partition("=")[0] for setting in space.searched] == ["distill.guidance_scale"]


REFUSED = [
    ([], "tune: lacks its objective; give --maximize NAME or --minimize NAME"),
    (["--maximize", "margin", "--minimize", "margin"], "--minimize: not allowed with argument --maximize"),
    (["--maximize", "margin"], "nothing to search: give a setting a range, such as distill.guidance_scale=interval"),
    (["--maximize", "margin", SCALE], "prompt is missing"),
    (["--maximize", "iou", SCALE, "prompt=a red cube"], "--maximize iou: no objective of images; there are color, "),
    (["--minimize", "x", SCALE, "prompt=a red cube"], "--minimize x: no objective of images"),
    (["--maximize", "margin", SCALE, "prompt=a cube"], "prompt='a cube': no composition of the world of shapes"),
    (["--maximize", "margin", SCALE, "prompt=a red qux"], "does not know 'qux'"),
    (["--minimize", "seconds", SCALE, "prompt=a cube", "--prune-low", "iou"], "--prune-low iou: no metric of a"),
    (["--maximize", "margin", SCALE, "distill=sds,nfsd"], "distill=sds,nfsd: write distill=choice(sds,nfsd) to search"),
    (["--maximize", "margin", "distill=choice(sds,nfsdd)"], "distill=nfsdd: no such choice (did you mean nfsd?)"),
    (["--maximize", "margin", SCALE, "seed=interval(0,9)"], "seed=interval(0,9): a trial averages over all values"),
    (
        ["--maximize", "margin", SCALE, "prompt=choice(a red cube,a blue mug)"],
        "a trial averages over prompts; list them",
    ),
    (["--maximize", "margin", SCALE, "seed=range(0,1000000000)"], "a trial of over 1,000 runs; list fewer or more"),
    (["--maximize", "margin", SCALE, "seed=range(5,1)"], "a trial of no runs; list fewer or more values of seed"),
    (["--maximize", "margin", SCALE, "run_dir=x"], "run_dir=x: tune makes a directory for each run"),
    (["--maximize", "margin", SCALE, "hydra/launcher=ray"], "hydra/launcher=ray: not for tune"),
    (["--maximize", "margin", "distill.guidance_scale=interval(9,3)"], "needs a lower and a higher end"),
    (["--maximize", "margin", "distill.guidance_scale=range(3,4)"], "needs a lower and a higher end"),
    (["--maximize", "margin", "distill.guidance_scale=interval(0,inf)"], "needs a lower and a higher end"),
    (["--maximize", "margin", "distill.guidance_scale=choice(3)"], "choice needs at least two values"),
    (["--maximize", "margin", "distill.guidance_scale=tag(log,interval(0,3))"], "begins above 0 and has no steps"),
    (["--maximize", "margin", "distill.guidance_scale=tag(log,range(1,9,2))"], "begins above 0 and has no steps"),
    (["--maximize", "margin", "distill.guidance_scale=tag(x,interval(1,9))"], "no such tag x"),
    (["--maximize", "margin", "distill.guidance_scale=interval(-1,9)", "prompt=a red cube"], "guidance_scale=-1.0: "),
    (["--maximize", "margin", SCALE, "prompt=a red cube", "train.stepz=interval(1,2)"], "unknown setting train.stepz"),
    (["--maximize", "margin", SCALE, "prompt=a red cube", "--workers", "4000"], "workers 4000: there are"),
    (["--maximize", "margin", SCALE, "prompt=a red cube", "--trials", "0"], "--trials: '0' must be a whole number"),
    (["--maximize", "margin", SCALE, "prompt=a red cube", "--output", "x" * 300], "cannot be"),
    (["--resume", "nowhere"], "the search has its own --config; leave it out"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(a)[-60:] for a, _ in REFUSED])
def test_a_wrong_search_is_refused_in_one_line_and_leaves_nothing(folder, capsys, arguments, message):
    assert message in refusal([*SETTLED, *arguments], capsys).replace("backend=torch", "")
    assert list(folder.iterdir()) == []


def test_without_optuna_the_line_names_the_command_that_installs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    line = refusal(["--maximize", "margin", "nonsense"], capsys)
    assert line == "error: tune: Optuna is not installed; install it with: pip install 'nfsd3d[sweep]'"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_searched_and_averaged_over_and_writes_nothing(folder, capsys):
    given = [SCALE, "distill.weighting=choice(sigma2,uniform)", "prompt=a red cube,a blue mug", "seed=0,1"]
    assert main(["tune", *SETTLED, "--maximize", "margin", *given, "dry_run=true"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "20 trials of 4 runs each, for the highest margin",
        "searched: distill.guidance_scale, 3 to 15",
        "searched: distill.weighting, sigma2 or uniform",
        "averaged over: prompt, a red cube or a blue mug",
        "averaged over: seed, 0 or 1",
        "dry run: nothing was started",
    ]
    assert list(folder.iterdir()) == []


@pytest.fixture
def searched(folder, monkeypatch) -> list:
    """Replaces the search by a fake that records its calls."""
    asked: list = []
    module = type(sys)("nfsd3d.tune.study")
    monkeypatch.setattr(module, "Study", lambda folder, **aim: aim, raising=False)
    monkeypatch.setitem(sys.modules, "nfsd3d.tune.study", module)
    monkeypatch.setattr(command, "tune", lambda study, *search: bool(asked.append(search[:3])) or True)
    return asked


GIVEN = [*SETTLED, "--minimize", "grad_norm", SCALE, 'prompt="a red cube, checkered",a pink house', "seed=3,4"]


def test_each_trial_runs_every_prompt_and_seed_with_the_values_of_the_trial(searched, folder):
    assert main(["tune", *GIVEN, "--output", "out", "--prune-high", "opacity", "--trials", "7", "--workers", "2"]) == 0
    [(where, search, settings)] = searched
    assert where == folder / "out" and settings.workers == 2 and search.trials == 7
    assert (search.objective, search.maximize, search.prune, search.prune_low) == ("grad_norm", False, "opacity", False)
    assert search.warmup == 75  # a quarter of 300 steps
    manifest = search.manifest(where, 5, {"distill.guidance_scale": 7.25})
    assert manifest.folder == where / "trial-005" and manifest.kind == "sweep"
    assert manifest.arguments[0] == "--config" and manifest.arguments[1].endswith("configs/nfsd_2d.yaml")
    assert manifest.arguments[-1] == "distill.guidance_scale=7.25"
    assert [job.arguments for job in manifest.jobs] == [
        (f"prompt={prompt}", f"seed={seed}") for prompt in ("a red cube, checkered", "a pink house") for seed in (3, 4)
    ]
    assert manifest.jobs[0].directory == "0-prompt=a-red-cube,-checkered,seed=3"


def test_the_same_command_and_resume_go_on_with_a_search_and_another_is_refused(searched, folder, capsys):
    assert main(["tune", *GIVEN, "--output", "out", "--trials", "3"]) == 0
    assert main(["tune", *GIVEN, "--output", "out", "--trials", "5"]) == 0
    assert main(["tune", "--resume", "out"]) == 0
    assert main(["tune", "--resume", "out", "--trials", "9", "--engine", "local", "--threads", "1"]) == 0
    assert [search.trials for _, search, _ in searched] == [3, 5, 5, 9]
    first, *others = [search for _, search, _ in searched]
    assert all(replace(search, trials=3) == first for search in others)
    assert json.loads((folder / "out" / tuning.NAME).read_text())["trials"] == 9
    capsys.readouterr()
    assert main(["tune", *GIVEN, "seed=5", "--output", "out"]) == 2
    assert "holds another search; choose another, or: nfsd3d tune --resume" in capsys.readouterr().err
    (folder / "used").mkdir()
    (folder / "used" / "file").touch()
    assert main(["tune", *GIVEN, "--output", "used"]) == 2
    assert "already used" in capsys.readouterr().err
    assert main(["tune", "--resume", "used"]) == 2
    assert f"holds no {tuning.NAME}; give the folder of a tuning" in capsys.readouterr().err
    (folder / "used" / tuning.NAME).write_text("{}")
    assert "not a tuning of this version" in refusal(["--resume", "used"], capsys)


def test_the_same_command_that_is_started_at_the_same_time_shares_the_search(searched, folder, monkeypatch):
    assert main(["tune", *GIVEN, "--output", "first"]) == 0

    def faster(path):
        path.mkdir()
        tuning.write(path, searched[0][1])
        raise InputError("already used")

    monkeypatch.setattr(command.directory, "claim_folder", faster)
    assert main(["tune", *GIVEN, "--output", "second"]) == 0
    assert [search for _, search, _ in searched] == [searched[0][1]] * 2


def test_a_search_without_output_has_a_folder_of_its_own(searched, folder):
    assert main(["tune", *GIVEN]) == main(["tune", *GIVEN]) == 0
    first, second = (where for where, _, _ in searched)
    assert first.parent == second.parent == folder / "outputs" / "nfsd_2d" and first != second
    assert first.name.startswith("tune-")


def test_objectives_from_the_evaluation_are_fields_of_its_scores():
    assert set(tuning.IMAGES) <= {field.name for field in fields(ImageScore)}
    assert set(tuning.SCENE) <= {field.name for field in fields(RunScore)}
    assert not set(tuning.SCENE) & {*tuning.METRICS, *tuning.SUMMARY}


def test_a_search_without_objectives_of_the_evaluation_needs_no_torch(tmp_path):
    if find_spec("optuna") is None:
        code = "import nfsd3d.cli.tune as t; t.find_spec = lambda name: name; "
    else:
        code = "import nfsd3d.cli.tune as t; "
    arguments = [*SETTLED, "--minimize", "seconds", SCALE, "prompt=a red cube", "dry_run=true"]
    code += f"import sys; assert t.main({arguments!r}) == 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_search_space_needs_something_to_search():
    with pytest.raises(InputError, match="nothing to search"):
        search_space(parse_overrides(["seed=1"], sweep=True))
