"""What a run shows of its progress, on a terminal and in a pipe."""

import io
import re
import time
from contextlib import contextmanager

import pytest
from rich.console import Console
from tiny_runs import OFF

from nfsd3d.export import progress
from nfsd3d.export.progress import clock, phase_progress, waiting
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.locate import EMBEDDED
from nfsd3d.train.build import teacher_in_words
from nfsd3d.train.outlook import MESH_VIEWS, Outlook
from nfsd3d.train.progress_bar import ProgressBar
from nfsd3d.train.run import train_and_export


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def pipe():
    return Console(file=io.StringIO(), width=80)


def lines(console):
    return console.file.getvalue().splitlines()


def test_every_phase_has_lines_in_a_pipe(configure, pipe, tiny_prior, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e-3)
    train_and_export(configure(), console=pipe)
    printed = lines(pipe)
    assert [line for line in printed if line.startswith("step 6/6 ")]
    turntable = [line for line in printed if re.match(r"turntable \d+%  \d+:\d\d left", line)]
    assert len(turntable) == 16 and turntable[-1].startswith("turntable 100%")
    assert len([line for line in printed if re.match(r"mesh \d+%  [a-z]", line)]) > 3


def test_lines_come_every_ten_seconds_also_between_logged_steps(pipe, now):
    with ProgressBar(pipe, 100, 0) as bar:
        for step in range(1, 51):
            now[0] += 3
            bar.update(step, {"grad_norm": 2.0, "opacity": 0.5} if step == 20 else None)
    printed = [int(re.match(r"step (\d+)/100", line)[1]) for line in lines(pipe)]
    assert printed == [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]
    assert "opacity 0.500  |grad| 2" in lines(pipe)[-1]


def test_the_remaining_time_includes_later_phases(pipe, now):
    with ProgressBar(pipe, 10, 0) as bar:
        bar.later = 60.0
        now[0] += 20
        bar.update(5)
    assert "1:20 left" in lines(pipe)[-1]  # 5 steps of 4 s, and a minute
    with phase_progress(pipe, "turntable", lambda: 30.0) as show:
        now[0] += 20
        show("", 0.5)
    assert lines(pipe)[-1] == "turntable 50%  0:50 left"


def test_while_a_model_is_loaded_a_pipe_has_lines_and_a_terminal_the_seconds(pipe, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)
    with waiting(pipe, "loading sd35 (9.5 GB)"):
        time.sleep(0.55)
    assert 2 <= len(lines(pipe)) <= 5 and set(lines(pipe)) <= {
        "loading sd35 (9.5 GB): 0:00",
        "loading sd35 (9.5 GB): 0:01",
    }
    said = len(lines(pipe))
    time.sleep(0.2)
    assert len(lines(pipe)) == said
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True)
    with waiting(terminal, "loading sd35 (9.5 GB)"):
        time.sleep(0.3)
    assert "loading sd35 (9.5 GB) 0:00:00" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.file.getvalue())


def test_a_run_says_what_it_loads(configure, tmp_path, monkeypatch):
    said = []

    @contextmanager
    def noted(console, text):
        said.append(text)
        yield

    monkeypatch.setattr("nfsd3d.train.run.waiting", noted)
    train_and_export(configure())
    assert said == ["loading shapes"]
    files = ModelFiles(EMBEDDED)
    config = configure(**{"prior.model": str(EMBEDDED)})
    size = sum(path.stat().st_size for path in files.weights())
    assert 1e7 < size < 1e8 and teacher_in_words(config) == "shapes"
    monkeypatch.setattr(ModelFiles, "weights", lambda self: 40 * files.weights_of("unet"))
    assert re.fullmatch(r"shapes \(0\.\d GB\)", teacher_in_words(config))


def test_a_terminal_has_bars(configure, tiny_prior):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    train_and_export(configure(), console=console)
    shown = console.file.getvalue()
    for name in ("training", "turntable", "mesh"):
        assert re.search(rf"{name} .*left", shown), name


def test_the_outlook_learns_from_a_preview(base_config):
    config = base_config.replace(export=base_config.to_dict()["export"] | {"mesh": True, "turntable": True})
    outlook = Outlook.of(config)
    outlook.measure(0.2)  # of four views
    pixel = 0.8 / (4 * config.train.preview_size**2)
    assert outlook.mesh == pytest.approx(MESH_VIEWS * config.export.resolution**2 * pixel)
    views = 8 + config.export.turntable_frames
    assert outlook.whole_export - outlook.mesh == pytest.approx(views * config.export.turntable_size**2 * pixel)
    nothing = Outlook.of(config.replace(export=config.to_dict()["export"] | OFF_EXPORT))
    nothing.measure(5.0)
    assert nothing.whole_export == 0 == Outlook().whole_export


OFF_EXPORT = {name.removeprefix("export."): value for name, value in OFF.items()}


def test_times_are_readable():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
