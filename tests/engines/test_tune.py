"""Searches by the real Optuna, with runs that take no time: what is found, pruned, killed, shared and gone on with."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nfsd3d.cli.main import main
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.jobs.controller import cancel
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.tune.search_space import Dimension, Setting, placeholder
from nfsd3d.tune.tuning import Record, Tuning, write

pytest.importorskip("optuna")
from nfsd3d.tune import objective
from nfsd3d.tune.study import JOURNAL, Study
from nfsd3d.tune.trials import tune

pytestmark = pytest.mark.engines

PROMPTS = ("a red cube", "a blue, shiny mug")
STEPS = 4


def tuning_of(folder: Path, *, trials: int = 4, prompts: tuple[str, ...] = PROMPTS, **changes: object) -> Tuning:
    """The lowest ``grad_norm``, over a scale from 0 to 10 within a list."""
    scale = Setting(f"scale=[[0,1],[1,{placeholder(0)}]]", (Dimension("scale", 0.0, 10.0),))
    averaged = {"prompt": tuple((f"prompt={prompt}", prompt) for prompt in prompts)}
    made = Tuning("grad_norm", False, trials, ("--config", "nfsd"), (scale,), averaged, str(folder))
    return replace(made, **changes)


class Runs:
    """Runs that take no time: the gradient norm is the distance of the scale to 3, 1 more for the second prompt.

    ``outcomes`` are raised by runs with these numbers, counted from 0.
    """

    def __init__(self) -> None:
        self.outcomes: dict[int, BaseException] = {}
        self.begun: list[str] = []

    def __call__(self, arguments: list[str]) -> None:
        given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        run_dir = Path(arguments[1] if arguments[0] == "--resume" else given["run_dir"])
        self.begun.append(f"{run_dir.parent.name}/{run_dir.name[0]}")
        if arguments[0] != "--resume":
            (run_dir / "arguments.json").write_text(json.dumps(given))
        given = json.loads((run_dir / "arguments.json").read_text())
        norm = abs(json.loads(given["scale"])[1][1] - 3.0) + PROMPTS.index(given["prompt"])
        lines = [json.dumps({"step": step, "grad_norm": norm}) for step in range(1, STEPS + 1)]
        (run_dir / "metrics.jsonl").write_text("\n".join([*lines, ""]))
        outcome = self.outcomes.get(len(self.begun) - 1)
        if isinstance(outcome, RunFailed):
            (run_dir / "summary.json").write_text(json.dumps({"status": "diverged", "reason": str(outcome)}))
        if isinstance(outcome, Interrupted):
            (run_dir / "checkpoints").mkdir()
            (run_dir / "checkpoints" / "step-000001.json").write_text("{}")
        if outcome is not None:
            raise outcome
        summary = {"status": "done", "reason": None, "seconds": 2.0, "final_metrics": {"grad_norm": norm}}
        (run_dir / "summary.json").write_text(json.dumps(summary))


class Killed(BaseException):
    """Ends this process's search where a SIGKILL would."""


@pytest.fixture
def runs(jobs_here) -> Runs:
    return Runs()


def search(folder: Path, runs: Runs, *, workers: int = 1, **changes: object) -> bool:
    tuning = tuning_of(folder, **changes)
    return tune(study_of(folder, tuning), folder, tuning, EngineSettings(workers=workers), runs)


def study_of(folder: Path, tuning: Tuning) -> Study:
    return Study(folder, maximize=tuning.maximize, warmup=tuning.warmup)


def records(folder: Path) -> list[Record]:
    return Study(folder, maximize=False, warmup=0).records()


def states(folder: Path) -> list[str]:
    return [record.state for record in records(folder)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_search_comes_near_the_best_value_and_each_trial_is_the_mean_of_its_runs(tmp_path, runs, capsys):
    assert search(tmp_path, runs, trials=30)
    found = rows(tmp_path / "tune.csv")
    assert [row["state"] for row in found] == ["complete"] * 30
    for row in found:
        assert float(row["grad_norm"]) == pytest.approx(abs(float(row["scale"]) - 3.0) + 0.5)
    best = min(found, key=lambda row: float(row["grad_norm"]))
    assert float(best["scale"]) == pytest.approx(3.0, abs=0.3)
    assert f"trial {best['trial']}, grad_norm 0.5" in (printed := capsys.readouterr().out)
    assert f"'scale=[[0,1],[1,{best['scale']}]]'" in printed
    assert json.loads((tmp_path / "tune.json").read_text())["best"]["number"] == int(best["trial"])
    jobs = rows(tmp_path / "sweep.csv")
    assert len(jobs) == 60 and {job["prompt"] for job in jobs} == set(PROMPTS)
    page = (tmp_path / "tune.html").read_text()
    assert page.count("<circle") == 30 and "http://" not in page and "grad_norm over scale" in page


def test_a_search_proposes_the_same_trials_again(tmp_path, runs):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        search(tmp_path / name, runs, trials=14, prompts=PROMPTS[:1])
    first, second = (records(tmp_path / name) for name in ("a", "b"))
    assert first == second and len({record.values["scale"] for record in first}) == 14


def test_dimensions_keep_to_their_ends_steps_and_kinds(tmp_path):
    found, dimensions = (
        Study(tmp_path, maximize=True, warmup=0),
        [
            Dimension("steps", 100, 500, 100, whole=True),
            Dimension("count", 1, 64, log=True, whole=True),
            Dimension("rate", 1e-3, 1.0, log=True),
            Dimension("part", 0.0, 0.3, 0.1),
            Dimension("method", choices=("sds", "[1,2]")),
        ],
    )
    values = []
    for _ in range(20):
        number = found.begin()
        values.append(found.values(number, dimensions))
        assert found.values(number, dimensions) == values[-1]
        found.complete(number, 0.0)
    assert {value["steps"] for value in values} <= {100, 200, 300, 400, 500}
    assert all(isinstance(value["count"], int) and 1 <= value["count"] <= 64 for value in values)
    assert all(1e-3 <= value["rate"] <= 1.0 for value in values)
    assert {round(value["part"], 6) for value in values} <= {0.0, 0.1, 0.2, 0.3}
    assert {value["method"] for value in values} == {"sds", "[1,2]"}


def test_a_trial_with_a_run_that_diverges_is_pruned_and_its_other_runs_do_not_begin(tmp_path, runs):
    runs.outcomes = {2: RunFailed("diverged: the scene is empty")}
    assert search(tmp_path, runs)
    assert states(tmp_path) == ["complete", "pruned", "complete", "complete"]
    assert runs.begun[:4] == ["trial-000/0", "trial-000/1", "trial-001/0", "trial-002/0"]
    log = tmp_path / "trial-001" / "0-prompt=a-red-cube" / "job.log"
    reason = f"0-prompt=a-red-cube: diverged: diverged: the scene is empty; see {log}"
    assert records(tmp_path)[1].reason == reason and records(tmp_path)[1].value is None
    assert rows(tmp_path / "tune.csv")[1]["reason"] == reason


def test_trials_that_fail_do_not_count_and_three_in_a_row_end_the_search(tmp_path, runs):
    runs.outcomes = {1: InputError("no memory"), 4: InputError("disk full")}
    assert search(tmp_path, runs, trials=2)
    assert states(tmp_path) == ["fail", "complete", "fail", "complete"]
    runs.outcomes = {len(runs.begun) + number: InputError("disk full") for number in range(3)}
    with pytest.raises(RunFailed, match=r"3 trials in a row have failed.*disk full.*nfsd3d tune --resume"):
        search(tmp_path, runs, trials=3)
    assert search(tmp_path, runs, trials=3)
    assert Counter(states(tmp_path)) == {"fail": 5, "complete": 3}


def test_a_trial_that_is_worse_than_the_median_is_pruned_by_the_metrics_of_its_first_run(tmp_path, runs):
    assert search(tmp_path, runs, trials=16, prune="grad_norm", prune_low=False)
    found = records(tmp_path)
    pruned = [record for record in found if record.state == "pruned"]
    assert pruned and all("its grad_norm was worse than the median" in record.reason for record in pruned)
    complete = [record for record in found if record.state == "complete"]
    assert len(complete) + len(pruned) == 16
    assert [record.state for record in found[:5]] == ["complete"] * 5
    begun = Counter(name.partition("/")[0] for name in runs.begun)
    assert {begun[f"trial-{record.number:03d}"] for record in pruned} == {1}
    median = sorted(abs(record.values["scale"] - 3.0) for record in complete[:5])[2]
    assert all(abs(record.values["scale"] - 3.0) <= median for record in complete[5:])


def test_a_trial_whose_runs_are_done_is_not_pruned(tmp_path, runs):
    assert search(tmp_path, runs, trials=16, prune="grad_norm", prune_low=False, prompts=PROMPTS[:1])
    assert states(tmp_path) == ["complete"] * 16


def test_a_high_metric_is_the_bad_one_in_a_search_for_a_high_objective_too(tmp_path, runs):
    search(tmp_path, runs, trials=16, maximize=True, prune="grad_norm", prune_low=False)
    found = records(tmp_path)
    complete = [abs(record.values["scale"] - 3.0) for record in found if record.state == "complete"]
    pruned = [abs(record.values["scale"] - 3.0) for record in found if record.state == "pruned"]
    assert pruned and min(pruned) > min(complete)


def test_an_interrupted_search_goes_on_with_its_trial_from_a_checkpoint(tmp_path, runs):
    runs.outcomes = {3: Interrupted(15, "interrupted after step 3")}
    with pytest.raises(Interrupted, match="go on with: nfsd3d tune --resume") as raised:
        search(tmp_path, runs)
    assert raised.value.exit_code == 143 and states(tmp_path) == ["complete", "running"]
    assert search(tmp_path, runs)
    assert states(tmp_path) == ["complete"] * 4
    assert Counter(runs.begun) == {f"trial-{n:03d}/{job}": 1 + ((n, job) == (1, 1)) for n in range(4) for job in (0, 1)}


MOMENTS = {
    "a trial is begun, without values": (Study, "values"),
    "a trial has its values and no folder": (Path, "mkdir"),
    "a trial's runs are done": (objective, "objective_of"),
    "a trial is about to end": (Study, "complete"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_lost_or_doubled_when_the_process_is_killed(tmp_path, runs, monkeypatch, moment):
    owner, name = MOMENTS[moment]
    owner = sys.modules["nfsd3d.tune.trials"] if owner is objective else owner
    with monkeypatch.context() as patched:
        former, calls = getattr(owner, name), []

        def killed_at_the_second(*arguments, **options):
            if owner is not Path or arguments[0].name.startswith("trial-"):
                calls.append(arguments)
                if len(calls) == (3 if owner is Path else 2):
                    raise Killed
            return former(*arguments, **options)

        patched.setattr(owner, name, killed_at_the_second)
        with pytest.raises(Killed):
            search(tmp_path, runs)
    assert "running" in states(tmp_path)
    assert search(tmp_path, runs)
    assert states(tmp_path) == ["complete"] * 4
    assert Counter(runs.begun) == {f"trial-{number:03d}/{job}": 1 for number in range(4) for job in (0, 1)}


def test_the_journal_of_a_full_disk_is_repaired(tmp_path, runs):
    search(tmp_path, runs, trials=2)
    with (tmp_path / JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write('{"op_code": 4, "wor')
    assert search(tmp_path, runs, trials=3)
    assert states(tmp_path) == ["complete"] * 3


@pytest.mark.parametrize(
    "content", ["{}\n{}\n", "[]\n", "\x00\n", '{"op_code": 6}\n{"op_code": 4, "wor{"op_code": 4}\n{}\n']
)
def test_a_damaged_journal_is_refused_in_one_line(tmp_path, runs, content):
    (tmp_path / JOURNAL).write_text(content)
    with pytest.raises(InputError, match="damaged; begin another search"):
        search(tmp_path, runs)


def test_a_cancelled_search_ends_and_can_be_gone_on_with(tmp_path, runs, capsys):
    def cancelling(arguments: list[str]) -> None:
        runs(arguments)
        if len(runs.begun) == 3:
            cancel(tmp_path)

    tuning = tuning_of(tmp_path)
    assert not tune(study_of(tmp_path, tuning), tmp_path, tuning, EngineSettings(), cancelling)
    assert states(tmp_path) == ["complete", "running"]
    assert f"cancelled; go on with: nfsd3d tune --resume {tmp_path}" in capsys.readouterr().err
    assert search(tmp_path, runs) and states(tmp_path) == ["complete"] * 4
    assert len(runs.begun) == 8


def test_the_subcommand_sweep_shows_all_runs_of_a_search_and_does_not_resume_it(tmp_path, runs, capsys):
    search(tmp_path, runs, trials=2)
    capsys.readouterr()
    assert main(["sweep", "status", str(tmp_path)]) == main(["sweep", "report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("4 jobs: 4 done\njob  trial  scale")
    assert main(["sweep", "resume", str(tmp_path)]) == 2
    assert f"holds a search; go on with: nfsd3d tune --resume {tmp_path}" in capsys.readouterr().err
    assert main(["sweep", "cancel", str(tmp_path)]) == 0


@pytest.mark.parametrize("kind", ["runs", "images"])
def test_an_objective_from_the_evaluation_is_the_mean_over_the_runs(tmp_path, runs, monkeypatch, kind):
    evaluated = []

    def evaluate(arguments: list[str], cwd: Path, log: Path) -> int:
        command, *run_dirs, option, path = arguments
        assert (command, option, cwd) == ("evaluate", "--json", tmp_path)
        evaluated.append(run_dirs)
        scores = {run_dir: {"margin": 1.0 + 2.0 * index} for index, run_dir in enumerate(run_dirs)}
        Path(path).write_text(json.dumps({kind: scores if kind == "runs" else {"nfsd": scores}}))
        return 0

    monkeypatch.setattr(objective, "evaluate", evaluate)
    assert search(tmp_path, runs, objective="margin", maximize=True)
    assert [record.value for record in records(tmp_path)] == [2.0] * 4
    assert len(evaluated) == 4 and all(len(run_dirs) == 2 for run_dirs in evaluated)


def test_a_search_that_is_interrupted_while_it_scores_a_trial_scores_it_again(tmp_path, runs, monkeypatch):
    def interrupted(*arguments: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return 130

    monkeypatch.setattr(objective, "evaluate", interrupted)
    with pytest.raises(Interrupted) as raised:
        search(tmp_path, runs, objective="margin")
    assert raised.value.exit_code == 130 and states(tmp_path) == ["running"] and len(runs.begun) == 2


def test_a_pruning_metric_that_no_run_logs_is_told(tmp_path, runs, capsys):
    assert search(tmp_path, runs, trials=1, prune="psnr")
    assert "trial 0: its runs log no psnr; it prunes nothing" in capsys.readouterr().err


def test_an_evaluation_that_fails_is_told(tmp_path, runs):
    with pytest.raises(RunFailed, match=r"the evaluation ended with exit code 2; see .*evaluate\.log"):
        search(tmp_path, runs, objective="margin")
    assert "holds" in (text := (tmp_path / "trial-000" / "evaluate.log").read_text()) or "error:" in text


COMMAND = """
import json, os, time
from pathlib import Path

def command(arguments):
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    run_dir, norm = Path(given["run_dir"]), json.loads(given["scale"])[1][1]
    with open(os.environ["BEGUN"], "a") as stream:
        stream.write(f"{run_dir.parent.name}/{run_dir.name[0]}\\n")
    for step in range(1, 11):
        with open(run_dir / "metrics.jsonl", "a") as stream:
            stream.write(json.dumps({"step": step, "grad_norm": norm}) + "\\n")
        time.sleep(float(os.environ["TAKES"]) / 10)
    summary = {"status": "done", "seconds": 1.0, "final_metrics": {"grad_norm": norm}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
"""
CONTROLLER = """
import sys
from pathlib import Path
from fake_command import command
from nfsd3d.jobs.controller import cancel
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.tune.study import Study
from nfsd3d.tune.trials import tune
from nfsd3d.tune.tuning import read

folder = Path(sys.argv[1])
tune(Study(folder, maximize=False, warmup=0), folder, read(folder), EngineSettings(threads=1), command)
"""


@pytest.fixture
def start(tmp_path):
    """A function that starts a process which searches in a folder, with runs of so many seconds."""
    (tmp_path / "fake_command.py").write_text(COMMAND)
    processes = []

    def started(folder: Path, takes: float) -> "subprocess.Popen[str]":
        paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        environment = {**os.environ, "BEGUN": str(tmp_path / "begun"), "TAKES": str(takes), "PYTHONPATH": paths}
        command = [sys.executable, "-c", CONTROLLER, str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def begun(folder: Path) -> list[str]:
    path = folder / "begun"
    return path.read_text().split() if path.exists() else []


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_processes_share_a_search_and_a_killed_ones_trial_is_taken_up(tmp_path, start):
    folder = tmp_path / "study"
    folder.mkdir()
    write(folder, tuning_of(folder, trials=6, prompts=PROMPTS[:1]))
    killed = start(folder, takes=30.0)
    wait_for(lambda: begun(tmp_path) == ["trial-000/0"])
    killed.kill()
    others = [start(folder, takes=0.5) for _ in range(2)]
    for process in others:
        _, printed = process.communicate(timeout=120)
        assert process.returncode == 0, printed
    assert states(folder) == ["complete"] * 6
    assert Counter(begun(tmp_path)) == {"trial-000/0": 2, **{f"trial-{number:03d}/0": 1 for number in range(1, 6)}}
    assert records(folder)[0].value == records(folder)[0].values["scale"]


def test_a_trial_is_pruned_while_its_run_goes_on(tmp_path, start):
    folder = tmp_path / "study"
    folder.mkdir()
    write(folder, tuning_of(folder, trials=7, prompts=PROMPTS[:1], prune="grad_norm", prune_low=False))
    process = start(folder, takes=1.0)
    _, printed = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    found = records(folder)
    assert [record.state for record in found[:5]] == ["complete"] * 5
    pruned = [record.number for record in found if record.state == "pruned"]
    lines = [len(path.read_text().splitlines()) for path in sorted(folder.glob("trial-*/0*/metrics.jsonl"))]
    assert len(found) == 7 and pruned and [number for number in range(7) if lines[number] < 10] == pruned
