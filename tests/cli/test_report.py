"""The command that writes the page of a run again, and the pages of runs that end in other ways than done."""

import pytest
from tiny_runs import OFF

from nfsd3d.callbacks.callback import Callback
from nfsd3d.cli.main import main
from nfsd3d.errors import RunFailed
from nfsd3d.runs.summary import read_summary
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.run import train_and_export

pytestmark = pytest.mark.usefixtures("tiny_prior")

WITH_PAGE = OFF | {"export.report": True, "export.turntable": True}


class At(Callback):
    """Does something after step 3."""

    def __init__(self, act):
        self._act = act

    def on_start(self, run):
        self._run = run

    def on_step(self, event):
        if event.step == 3:
            self._act(self._run)


def fail(run):
    raise ValueError("no more")


def test_the_page_of_a_finished_run_has_the_summarys_seconds_and_is_written_again(configure, console, capsys):
    run_dir = train_and_export(configure(**WITH_PAGE), console=console)
    page, summary = (run_dir / "report.html").read_text(), read_summary(run_dir)
    assert summary["exported"][-1] == "report.html" and summary["status"] == "done"
    assert 0 < summary["training_seconds"] <= summary["seconds"]
    assert f"6 of 6 steps in {summary['training_seconds']:.0f} s" in page and 'class="status"' not in page
    (run_dir / "report.html").unlink()
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.endswith(f"{run_dir / 'report.html'}\n")
    assert (run_dir / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("act", "error", "status"),
    [(lambda run: run.controls.stop(), Interrupted, "interrupted"), (fail, RunFailed, "failed")],
)
def test_a_run_that_is_not_done_has_a_page_too(configure, console, act, error, status):
    config = configure(**WITH_PAGE)
    run = At(act)
    with pytest.raises(error):
        train_and_export(config, console=console, callbacks=[run])
    page = (run._run.directory / "report.html").read_text()
    assert f"<strong>{status} (" in page and "Over training" in page and "<h2>Training</h2>" in page
    run_dir = train_and_export(config, resume=run._run.directory, console=console)
    assert "<strong>" not in (run_dir / "report.html").read_text()


def test_without_report_there_is_no_page(configure, console):
    with pytest.raises(RunFailed):
        train_and_export(configure(**OFF), console=console, callbacks=[At(fail)])
    run_dir = train_and_export(configure(**OFF, run_dir=configure().run_dir + "-b"), console=console)
    assert not list(run_dir.parent.rglob("report.html"))


def test_two_runs_make_one_page(configure, console, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    first = train_and_export(configure(**WITH_PAGE, run_dir=tmp_path / "x" / "a"), console=console)
    second = train_and_export(configure(**WITH_PAGE, run_dir=tmp_path / "x" / "b", seed=5), console=console)
    assert main(["report", str(first), str(second)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    page = (tmp_path / "comparison.html").read_text()
    assert "<h1>a and b</h1>" in page and "<td>seed</td><td>0</td><td>5</td>" in page
    assert main(["report", str(first), str(second), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none"], "none: no such run directory"),
        (["{run}", "{run}/"], "is given twice"),
        (["{run}", "b", "c"], "report: 3 runs; give one, or two"),
        (["{run}", "--output", "{run}/config.yaml/page.html"], "--output"),
        ([], "RUN_DIR"),
    ],
)
def test_bad_input_is_one_line(configure, console, capsys, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir = train_and_export(configure(**OFF, **{"train.steps": 2}), console=console)
    assert main(["report", *(argument.format(run=run_dir) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1
