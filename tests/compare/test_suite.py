"""Suites: their files, their runs, and which runs are skipped or resumed."""

import json
import re
from pathlib import Path
from threading import Barrier

import pytest

from nfsd3d.compare import suite as suites
from nfsd3d.compare.suite import SuiteRun, load_suite, run_suite, runs_of, source_runs
from nfsd3d.errors import InputError

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
    runs = runs_of(suite, tmp_path / "out")
    assert len(runs) == len({run.run_dir for run in runs}) == 8
    last = runs[-1]
    assert last.row == "SDS, s = 100"
    assert last.run_dir == tmp_path / "out/sds-s-100/a-red-and-white-dotted-mushroom-1"
    assert last.arguments == (
        "--config",
        "nfsd",
        "distill=sds",
        "distill.guidance_scale=100",
        "train.t_max=[[0.0, 0.9]]",
        "prompt=a red and white dotted mushroom",
        "seed=1",
        f"run_dir={last.run_dir}",
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


def test_done_runs_are_skipped_and_started_ones_resumed(tmp_path, monkeypatch):
    runs = [SuiteRun("NFSD", tmp_path / name, ("--config", "nfsd", "prompt=a blue sphere")) for name in "abc"]
    runs[0].run_dir.mkdir()
    (runs[0].run_dir / "summary.json").write_text(json.dumps({"status": "done"}))
    (runs[1].run_dir / "checkpoints").mkdir(parents=True)
    (runs[1].run_dir / "checkpoints/step-000010.json").write_text("{}")
    commands = []

    class Result:
        returncode = 3

    def record(command, **_):
        commands.append(command[3:])
        return Result()

    monkeypatch.setattr(suites.subprocess, "run", record)
    codes = []
    run_suite(runs, lambda run, code: codes.append((run.run_dir.name, code)))
    assert sorted(codes) == [("a", 0), ("b", 3), ("c", 3)]
    assert commands == [["--resume", str(runs[1].run_dir)], ["--config", "nfsd", "prompt=a blue sphere"]]
    assert Path(tmp_path / "c.log").exists()


def test_runs_side_by_side_share_the_cores(tmp_path, monkeypatch):
    runs = [SuiteRun("NFSD", tmp_path / name, ()) for name in "abcd"]
    both_are_running, seen = Barrier(2, timeout=20), []

    class Result:
        returncode = 0

    def record(command, env, **_):
        both_are_running.wait()
        seen.append((re.search(r"keep_to\((.*?)\)", command[2])[1], env["OMP_NUM_THREADS"]))
        return Result()

    monkeypatch.setattr(suites, "usable_cores", lambda: [3, 4, 5, 6])
    monkeypatch.setattr(suites.subprocess, "run", record)
    run_suite(runs, lambda run, code: None, side_by_side=2)
    assert sorted(seen) == [("[3, 4]", "2")] * 2 + [("[5, 6]", "2")] * 2
    with pytest.raises(InputError, match="--jobs 5: there are 4 cores"):
        run_suite(runs, lambda run, code: None, side_by_side=5)


def test_edits_start_from_runs_of_their_sources(tmp_path):
    path = tmp_path / "edits.yaml"
    path.write_text("config: dds\nedits: {a blue cube: [a red cube, a blue torus]}\nrows: {DDS: {train.steps: 9}}\n")
    suite = load_suite(path)
    (source,) = source_runs(suite, tmp_path)
    assert source.arguments[:3] == ("--config", "nfsd", "prompt=a blue cube")
    first, second = runs_of(suite, tmp_path)
    assert first.run_dir == tmp_path / "dds/a-blue-cube-to-a-red-cube-0"
    expected = (f"source_run={source.run_dir}", "source_prompt=a blue cube", "train.steps=9", "prompt=a blue torus")
    assert second.arguments[2:6] == expected
