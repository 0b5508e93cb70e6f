"""The state of jobs, and the tables and the page that are derived from their directories."""

import csv
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nfsd3d.errors import InputError
from nfsd3d.jobs import controller, table
from nfsd3d.jobs.controller import cancel
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import NAME, Manifest, new_manifest, read, rewrite, write
from nfsd3d.jobs.report import render_report
from nfsd3d.jobs.state import begin_attempt, state_of, states
from nfsd3d.runs.lock import owned


@pytest.fixture
def sweep(tmp_path) -> Manifest:
    """A sweep of six jobs, of which none has begun."""
    jobs = [(f"{n}-seed={n}", [f"seed={n}"], {"seed": str(n), "prompt": "a <b>, c"}) for n in range(6)]
    manifest = new_manifest(tmp_path, "sweep", ["--config", "nfsd"], ["seed", "prompt"], jobs)
    write(manifest)
    return manifest


def summary(manifest: Manifest, number: int, status: str, **more: object) -> Path:
    run_dir = manifest.run_dir(manifest.jobs[number])
    run_dir.mkdir(exist_ok=True)
    numbers = {"grad_norm": 1.0 + number, "seconds": 3.0, "opacity": None}
    content = {"status": status, "reason": None, "steps": 7, "steps_planned": 9, "seconds": 1.5}
    (run_dir / "summary.json").write_text(json.dumps({**content, "final_metrics": numbers, **more}))
    return run_dir


def statuses(manifest: Manifest) -> list[str]:
    return [state.status for _, state in states(manifest)]


def test_a_manifest_is_read_as_it_was_written(sweep):
    assert read(sweep.folder) == sweep and sweep.cwd == Path.cwd()
    assert sweep.jobs[3].arguments == ("seed=3",) and sweep.jobs[3].values == ("3", "a <b>, c")


@pytest.mark.parametrize(
    "content", ["", "{}\n", '{"format": 2}\n', "[1]\n", '{"format": 1, "kind": "sweep"}\n', "\x00"]
)
def test_a_damaged_manifest_is_refused_in_one_line(sweep, content):
    (sweep.folder / NAME).write_text(content)
    with pytest.raises(InputError, match="not a manifest of this version"):
        read(sweep.folder)


def test_jobs_that_would_share_a_directory_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 jobs would share the directory a"):
        new_manifest(tmp_path, "sweep", [], [], [("a", ["seed=1"], {}), ("b", [], {}), ("a", ["seed=2"], {})])


def test_the_state_of_a_job_is_in_its_directory(sweep):
    assert statuses(sweep) == ["pending"] * 6
    summary(sweep, 0, "done")
    summary(sweep, 1, "failed", reason="out of memory")
    summary(sweep, 2, "diverged", reason="the scene is empty")
    killed = sweep.run_dir(sweep.jobs[3])
    killed.mkdir()
    begin_attempt(killed, "local", "12")
    running = summary(sweep, 4, "interrupted")
    with owned(running):
        (running / "config.yaml").write_text("seed: 1\ntrain:\n  steps: 50\n")
        lines = [
            '{"step": 10, "steps_per_second": 4.0, "seconds": 3.0}',
            '{"step": 20, "steps_per_second": 5.0}',
            '{"st',
        ]
        (running / "metrics.jsonl").write_text("\n".join(lines))
        assert statuses(sweep) == ["done", "failed", "diverged", "interrupted", "running", "pending"]
        state = state_of(sweep, sweep.jobs[4])
        assert (state.steps, state.planned, state.steps_per_second, state.seconds_left) == (20, 50, 5.0, 6.0)
    assert statuses(sweep)[4] == "interrupted"
    assert state_of(sweep, sweep.jobs[1]).reason == "out of memory"
    attempt = state_of(sweep, sweep.jobs[3]).attempt
    assert attempt is not None and (attempt.engine, attempt.id, attempt.pid, attempt.attempt) == (
        *("local", "12", os.getpid(), 1),
    )
    cancel(sweep.folder)
    assert statuses(sweep) == ["done", "failed", "diverged", "cancelled", "cancelled", "cancelled"]


@pytest.mark.parametrize("content", ["", "[]", '{"status": 5}', '{"status": "unheard of"}', "\x00\x01", "[" * 100_000])
def test_a_damaged_summary_is_that_of_a_job_that_has_not_ended(sweep, content):
    run_dir = summary(sweep, 0, "done")
    (run_dir / "summary.json").write_text(content)
    assert statuses(sweep)[0] == "pending"
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step-000001.json").write_text("{}")
    assert statuses(sweep)[0] == "interrupted"


def test_tables_hold_swept_values_states_and_final_metrics(sweep):
    summary(sweep, 0, "done")
    summary(sweep, 1, "failed", reason="out, of memory")
    rows = table.rows_of(sweep)
    table.write_tables(sweep, rows)
    with (sweep.folder / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["status"] for line in lines] == ["done", "failed", *["pending"] * 4]
    assert (lines[0]["seed"], lines[0]["prompt"], lines[0]["seconds"], lines[0]["grad_norm"]) == (
        *("0", "a <b>, c", "1.5", "1.0"),
    )
    assert lines[1]["reason"] == "out, of memory"
    records = json.loads((sweep.folder / "sweep.json").read_text())["jobs"]
    assert records[1]["values"] == {"seed": "1", "prompt": "a <b>, c"} and records[1]["metrics"] == {"grad_norm": 2.0}
    assert table.counts_line(rows) == "6 jobs: 1 done, 4 pending, 1 failed"


def test_the_page_of_a_sweep_holds_no_markup_of_its_values_and_loads_nothing(sweep):
    for number in range(4):
        summary(sweep, number, "done")
    page = render_report(sweep, table.rows_of(sweep))
    assert "a <b>" not in page and page.count("a &lt;b&gt;, c") == 6
    assert "http://" not in page and "https://" not in page and "<figure>" in page
    assert page.count("grad_norm over seed") == 2  # the title and the label
    assert "over prompt" not in page  # it has one value


def test_what_was_set_and_what_never_differs_has_no_figure(sweep):
    for number in range(4):
        run_dir = summary(sweep, number, "done")
        content = json.loads((run_dir / "summary.json").read_text())
        content["final_metrics"] |= {"seed": float(number), "t_min": 0.02}
        (run_dir / "summary.json").write_text(json.dumps(content))
    page = render_report(sweep, table.rows_of(sweep))
    assert "grad_norm over seed" in page and "seed over seed" not in page and "t_min over" not in page


def test_the_states_of_thousands_of_jobs_are_told_in_seconds(tmp_path):
    jobs = [(f"{n}-job", [f"seed={n}"], {"seed": str(n)}) for n in range(10_000)]
    started = time.monotonic()
    manifest = new_manifest(tmp_path, "sweep", [], ["seed"], jobs)
    write(manifest)
    written = time.monotonic()
    for number in range(0, 10_000, 10):
        summary(manifest, number, "done")
    begun = time.monotonic()
    assert statuses(read(tmp_path)).count("done") == 1000
    told = time.monotonic()
    assert written - started < 10 and told - begun < 3


def test_a_job_of_a_comparison_is_done_when_its_record_is_written(tmp_path):
    manifest = new_manifest(tmp_path, "compare", ["compare", "--job"], ["row"], [("0-a", ["{}"], {"row": "a"})])
    begin_attempt(summary(manifest, 0, "done"), "local", "7")
    assert statuses(manifest) == ["interrupted"]
    summary(manifest, 0, "done", record={})
    assert statuses(manifest) == ["done"]


def test_leading_jobs_end_before_the_others_begin(tmp_path, jobs_here, monkeypatch):
    """On an engine that runs the last job first."""
    jobs = [(str(n), [f"seed={n}"], {}) for n in range(5)]
    write(new_manifest(tmp_path, "suite", [], [], jobs, leading=2))
    order = []

    def command(arguments: list[str]) -> None:
        order.append(arguments[0])
        (tmp_path / arguments[0].removeprefix("seed=") / "summary.json").write_text('{"status": "done"}')

    engine = controller.load_engine(EngineSettings(), command)
    submit = engine.submit
    engine.submit = lambda folder, numbers: submit(folder, numbers[::-1])
    monkeypatch.setattr(controller, "load_engine", lambda settings, command: engine)
    assert controller.run(read(tmp_path), EngineSettings(), command) == {"done": 5}
    assert order == ["seed=1", "seed=0", "seed=4", "seed=3", "seed=2"]


def test_a_suite_does_not_take_the_folder_of_a_sweep(sweep):
    with pytest.raises(InputError, match="holds the jobs of a sweep; choose another"):
        rewrite(replace(sweep, kind="suite"))
    shorter = replace(sweep, jobs=sweep.jobs[:2])
    rewrite(shorter)
    assert read(sweep.folder) == shorter
