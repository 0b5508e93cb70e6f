"""Suites: their files, their runs, and which runs are skipped or resumed."""

import json
from pathlib import Path

import pytest
import yaml

from nfsd3d.cli.main import main
from nfsd3d.compare.suite import load_suite, manifest_of
from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.state import states

TEXT = """
config: nfsd
prompts: [a blue sphere, a red and white dotted mushroom]
seeds: [0, 1]
rows:
  NFSD: {}
  SDS, s = 100: {distill: sds, distill.guidance_scale: 100, train.t_max: [[0.0, 0.9]]}
oracle_fit: true
"""


def test_every_row_prompt_and_seed_is_one_run(tmp_path):
    path = tmp_path / "methods.yaml"
    path.write_text(TEXT)
    suite = load_suite(path)
    assert suite.oracle_fit and suite.seeds == (0, 1)
    manifest = manifest_of(suite, tmp_path / "out")
    assert len(manifest.jobs) == 8 and manifest.leading == 0
    last = manifest.jobs[-1]
    assert last.values == ("SDS, s = 100", "a red and white dotted mushroom", "1")
    assert manifest.run_dir(last) == tmp_path / "out/sds-s-100/a-red-and-white-dotted-mushroom-1"
    assert last.arguments == (
        "--config",
        "nfsd",
        "distill=sds",
        "distill.guidance_scale=100",
        "train.t_max=[[0.0, 0.9]]",
        "prompt=a red and white dotted mushroom",
        "seed=1",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "no mapping"),
        ("prompt: [a blue sphere]", "prompt; a suite has the keys"),
        ("prompts: a blue sphere", "list of texts"),
        ("prompts: [a blue sphere]\nseeds: [x]", "whole numbers"),
        ("prompts: [a blue sphere]\nrows: [sds]", "rows must map"),
        ("prompts: [", "cannot be read as YAML"),
    ],
)
def test_bad_suites_are_refused(tmp_path, text, message):
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")


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
    assert main(["evaluate", "--suite", changed, "--output", "out"]) == 2
    assert "out/a/a-blue-sphere-0: a run with other settings than the suite has now" in capsys.readouterr().err
    assert main(["evaluate", "--suite", small(A=NO_MODEL, B=NO_MODEL), "--output", "out"]) == 2
    assert "no run came to a checkpoint" in capsys.readouterr().err
    assert len(read(Path("out")).jobs) == 4


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


def test_edits_start_from_runs_of_their_sources_which_are_run_first(tmp_path):
    path = tmp_path / "edits.yaml"
    path.write_text("config: dds\nedits: {a blue cube: [a red cube, a blue torus]}\nrows: {DDS: {train.steps: 9}}\n")
    manifest = manifest_of(load_suite(path), tmp_path)
    source, first, second = manifest.jobs
    assert manifest.leading == 1 and manifest.run_dir(source) == tmp_path / "source/a-blue-cube-0"
    assert source.arguments[:3] == ("--config", "nfsd", "prompt=a blue cube")
    assert manifest.run_dir(first) == tmp_path / "dds/a-blue-cube-to-a-red-cube-0"
    edit = (f"source_run={manifest.run_dir(source)}", "source_prompt=a blue cube", "train.steps=9")
    assert second.arguments == ("--config", "dds", *edit, "prompt=a blue torus", "seed=0")
