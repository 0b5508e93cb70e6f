"""``nfsd3d evaluate`` on small runs, and its input errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import nfsd3d
from nfsd3d.api import load_run
from nfsd3d.cli.main import main
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.score_scene import score_run, summarize
from nfsd3d.jobs.controller import cancel
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.state import states
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.shapes.world.objects import OBJECTS

SMALL = {
    "generator.encoding.levels": 2,
    "generator.encoding.log2_entries": 10,
    "generator.hidden_width": 8,
    "train.steps": 3,
    "train.batch_size": 2,
    "train.preview_size": 16,
    "train.tensorboard": False,
    "export.mesh": False,
    "export.resolution": 64,
    "export.turntable": False,
    "export.report": False,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of three steps with the embedded prior; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "snowman"
    overrides = {"machine": "cpu", "prior": "shapes", "run_dir": directory}
    nfsd3d.generate("a purple snowman", **overrides, **SMALL)
    return directory


def test_a_run_is_scored_with_its_costs(run_dir):
    score = score_run(load_run(run_dir), Classifier.load())
    assert score.prompt == "a purple snowman" and score.method == "nfsd" and score.steps == 3
    assert 0 <= score.iou <= 1 and 0.2 < score.ellipsoid_iou < 0.9
    assert score.view_error_deg is not None and 0 <= score.view_error_deg <= 180
    assert 3 * 2 * 2 <= score.evaluations <= 3 * 2 * 3  # per view two, and the negative prompt where t >= 200
    assert score.seconds > 0 and score.memory_mb > 100
    assert score.margin < 0 or score.retrieved
    assert score.mesh_iou == pytest.approx(score.iou, abs=0.1) and score.source_iou is None
    row = summarize([score, score])
    assert row.runs == 2 and row.iou == pytest.approx(score.iou) and row.done == 1


def test_a_prompt_with_a_leading_phrase_and_a_view_is_scored_as_its_composition(run_dir, tmp_path):
    import shutil

    classifier, other = Classifier.load(), tmp_path / "other"
    shutil.copytree(run_dir, other)
    config = (run_dir / "config.yaml").read_text()
    caption = "prompt: a 3D render of a purple snowman, front view"
    (other / "config.yaml").write_text(config.replace("prompt: a purple snowman", caption, 1))
    bare, captioned = (score_run(load_run(path), classifier, mesh=False) for path in (run_dir, other))
    assert replace(captioned, prompt=bare.prompt) == bare


def test_a_run_that_started_from_another_is_compared_with_it(run_dir, tmp_path):
    import shutil

    classifier, edited = Classifier.load(), tmp_path / "edited"
    shutil.copytree(run_dir, edited)
    for source, expected in ((run_dir, 1.0), (tmp_path / "gone", None)):
        config = (run_dir / "config.yaml").read_text().replace("source_run: null", f"source_run: {source}")
        (edited / "config.yaml").write_text(config)
        score = score_run(load_run(edited), classifier, mesh=False)
        assert score.source_iou == expected and score.mesh_iou is None


def test_the_command_prints_tables_beside_the_calibration_and_writes_json(run_dir, tmp_path, capsys):
    assert main(["evaluate", str(run_dir), "--json", str(tmp_path / "s.json"), "--sheet", str(tmp_path / "s.png")]) == 0
    printed = capsys.readouterr().out
    assert "| nfsd | 1 |" in printed and "unseen true renders" in printed and "--oracle-fit" in printed
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["runs"][str(run_dir)]["prompt"] == "a purple snowman"
    assert set(content) == {"runs", "rows", "calibration"}
    assert (tmp_path / "s.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["no/such/run"], "no/such/run"),
        (["--suite", "no-such.yaml"], "cannot be read"),
        (["--prior", "/no/such/model"], "no such folder"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(arguments, message, capsys):
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_prompts_without_ground_truth_name_the_remedy(run_dir, tmp_path, capsys):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    config = (other / "config.yaml").read_text().replace("prompt: a purple snowman", "prompt: a corgi", 1)
    (other / "config.yaml").write_text(config)
    assert main(["evaluate", str(other)]) == 2
    error = capsys.readouterr().err
    assert "--clip" in error and all(name in error for name in OBJECTS) and error.count("\n") == 1
    assert main(["evaluate", str(run_dir), "--clip", "no-such-model"]) == 2
    assert "not a hub id" in capsys.readouterr().err


def test_a_damaged_prior_is_refused_before_it_is_loaded(model_folder, tmp_path, capsys):
    model = shutil.copytree(model_folder(), tmp_path / "model")
    (model / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x")
    assert main(["evaluate", "--prior", str(model)]) == 2
    assert "cannot be read as safetensors" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path, monkeypatch):
    """(rows) -> the file of a suite of small images, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    quiet = {"train.steps": 3, "train.batch_size": 1, "train.tensorboard": False, "export.report": False}

    def written(**rows: dict[str, object]) -> str:
        content = {"config": "nfsd_2d", "prompts": ["a blue sphere", "a red cube"]}
        rows = {name: {**quiet, **settings} for name, settings in rows.items()}
        Path("small.yaml").write_text(yaml.safe_dump({**content, "rows": rows}, sort_keys=False))
        return "small.yaml"

    return written


NO_MODEL = {"prior.model": "/no/such/model"}


@pytest.mark.engines
def test_a_suite_runs_on_two_workers_and_is_resumed_where_version_0_1_left_it(small, capsys, request):
    """Also without a manifest: runs that are done stay as they are, one with a checkpoint is resumed."""
    path, runs = small(NFSD={}, broken=NO_MODEL), Path("out/nfsd")
    assert main(["evaluate", "--suite", path, "--output", "out", "--workers", "2", "--json", "first.json"]) == 1
    printed = capsys.readouterr().out
    assert "broken/a-red-cube-0: failed: prior.model=/no/such/model" in printed
    assert "see out/broken/a-red-cube-0/job.log" in printed and "no such folder" in printed
    assert "| NFSD | " in printed
    manifest = read(Path("out"))
    assert (manifest.kind, manifest.columns) == ("suite", ("row", "prompt", "seed"))
    assert [state.status for _, state in states(manifest)] == ["done", "done", "failed", "failed"]
    engines = {json.loads((run / "job.json").read_text())["pid"] for run in runs.iterdir()}
    assert len(engines) == 2
    assert main(["sweep", "status", "out"]) == 0
    assert "4 jobs: 2 done, 2 failed" in capsys.readouterr().out

    for name in ("manifest.jsonl", "nfsd/a-red-cube-0/job.json", "nfsd/a-red-cube-0/job.log"):
        Path("out", name).unlink()
    summary = runs / "a-red-cube-0/summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "status": "interrupted"}))
    untouched = (runs / "a-blue-sphere-0/summary.json").stat().st_mtime_ns
    request.getfixturevalue("jobs_here")
    assert main(["evaluate", "--suite", small(NFSD={}), "--output", "out", "--json", "second.json"]) == 0
    assert "resumed after step 3" in capsys.readouterr().out
    assert (runs / "a-blue-sphere-0/summary.json").stat().st_mtime_ns == untouched
    first, second = (json.loads(Path(name).read_text())["images"]["NFSD"] for name in ("first.json", "second.json"))
    assert first.keys() == second.keys()
    assert all(first[run]["margin"] == second[run]["margin"] for run in first)


def test_runs_with_other_settings_than_a_suite_has_now_are_not_counted_as_its_own(small, jobs_here, capsys):
    assert main(["evaluate", "--suite", small(A=NO_MODEL), "--output", "out"]) == 2
    assert "no run came to a checkpoint; see the logs in out" in capsys.readouterr().err
    changed = small(A={**NO_MODEL, "train.steps": 4})
    assert main(["evaluate", "--suite", changed, "--output", "out"]) == 2  # nothing is lost: it did not start
    assert "no run came to a checkpoint; see the logs in out" in capsys.readouterr().err
    Path("out/a/a-red-cube-0/checkpoints").mkdir()
    Path("out/a/a-red-cube-0/checkpoints/step-000002.json").write_text("{}")
    assert main(["evaluate", "--suite", small(A=NO_MODEL), "--output", "out"]) == 2
    assert "out/a/a-red-cube-0: a run with other settings than the suite has now" in capsys.readouterr().err
    Path("out/a/a-red-cube-0/checkpoints/step-000002.json").unlink()
    assert main(["evaluate", "--suite", small(A=NO_MODEL, B=NO_MODEL), "--output", "out"]) == 2
    assert "no run came to a checkpoint" in capsys.readouterr().err
    assert len(read(Path("out")).jobs) == 4


def test_runs_of_an_experiment_that_was_edited_since_are_not_counted_as_its_own(small, jobs_here, capsys):
    def suite_of(scale):
        Path("mine.yaml").write_text(f"defaults: [nfsd_2d, _self_]\ndistill: {{guidance_scale: {scale}}}\n")
        path = Path(small(A={}))
        path.write_text(path.read_text().replace("config: nfsd_2d", "config: mine.yaml"))
        return ["evaluate", "--suite", str(path), "--output", "out", "--prompts", "1"]

    assert main(suite_of(5)) == 0 and main(suite_of(5)) == 0
    capsys.readouterr()
    assert main(suite_of(6)) == 2
    printed = capsys.readouterr().err
    assert "error: out/a/a-blue-sphere-0: a run of mine.yaml as it was; now it has " in printed
    assert "distill.guidance_scale=6 (trained with 5); remove the run, or choose another --output" in printed
    assert main(suite_of(5)) == 0  # nothing was changed


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"A": {}, "B": {"train.stepz": 3}}, [], "train.stepz"),
        ({"A": {}, "B": {"distill": "sdx"}}, [], "distill"),
        ({"A": {}}, ["--workers", "1000"], "workers 1000: there are"),
        ({"A": {}}, ["--jobs", "1000"], "workers 1000: there are"),
        ({"A": {}}, ["--engine", "rya"], "invalid choice: 'rya'"),
        ({"S 1": {}, "S, 1": {}}, [], "2 jobs would share the directory s-1/a-blue-sphere-0"),
    ],
)
def test_a_suite_that_cannot_run_leaves_no_directory(rows, options, message, small, capsys):
    assert main(["evaluate", "--suite", small(**rows), "--output", "out", *options]) == 2
    assert message in capsys.readouterr().err and not Path("out").exists()


def test_a_suite_that_is_cancelled_is_not_scored(small, jobs_here, monkeypatch, capsys):
    monkeypatch.setattr("nfsd3d.cli.evaluate.run_command", lambda arguments: cancel(Path("out")))
    assert main(["evaluate", "--suite", small(NFSD={}), "--output", "out"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["nfsd/a-blue-sphere-0: cancelled", "nfsd/a-red-cube-0: cancelled"]


PUBLIC = str(Path(__file__).parents[2] / "scripts/suites/public.yaml")


def test_prompts_without_ground_truth_are_scored_by_clip(clip_folder, tmp_path, jobs_here, capsys):
    model = shutil.copytree(EMBEDDED, tmp_path / "model", ignore=shutil.ignore_patterns("vocabulary.json"))
    small = ["--row", "SDS", "--prompts", "2", "--clip", str(clip_folder)]
    settings = {"prior.model": model, "generator": "latent", "machine": "cpu", "train.steps": 2, "train.batch_size": 1}
    settings |= {"export.report": False, "train.tensorboard": False}
    for key, value in settings.items():
        small += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    command = ["evaluate", "--suite", PUBLIC, "--prior", "sd15", "--output", str(tmp_path / "out"), *small]
    assert main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    assert "| row | runs | CLIP score | retrieved | diverged | minutes | GB |" in printed
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["rows"].keys() == {"SDS"} and written["rows"]["SDS"]["runs"] == 2
    assert {score["prompt"] for score in written["clip"].values()} == {
        "A car made out of sushi",
        "A delicious croissant",
    }
    priors = {json.dumps(job.arguments).count("prior=sd15") for job in read(tmp_path / "out").jobs}
    assert priors == {1}  # --prior replaces the suite's


def test_the_public_suite_has_the_prompts_of_its_paper():
    from nfsd3d.compare.suite import load_suite, manifest_of

    suite = load_suite(Path(PUBLIC))
    assert len(set(suite.prompts)) == 43 and suite.clip == "openai/clip-vit-base-patch32"
    assert len(manifest_of(suite, Path("out")).jobs) == 43 * len(suite.rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", PUBLIC, "--clip", "no-such-model"], "--clip no-such-model: no such folder"),
        (["--suite", PUBLIC, "--row", "X"], "--row X: no such row"),
        (["--suite", PUBLIC, "--set", "prior.model"], "--set prior.model: must be KEY=VALUE"),
        (["--prior", "--set", "a=b"], "--set: is for a suite"),
        (["--suite", PUBLIC, "--set", "seed=5"], "--set seed=5: is each run's own"),
        (["--suite", PUBLIC, "--prior", str(EMBEDDED)], f"and --set prior.model={EMBEDDED}"),
        (["--suite", PUBLIC, "--sheet", "x.png"], "--sheet: is for prompts with ground truth"),
        (["--prior", "--clip", "x/y"], "--clip: scores runs"),
    ],
)
def test_options_of_a_suite_are_checked_before_it_runs(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())
