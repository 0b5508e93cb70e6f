"""Loggers: TensorBoard here, and how the settings choose; W&B and MLflow in the files beside this one."""

import errno
import threading

import pytest
from tiny_runs import OFF

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.callbacks.steering import Controls
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError
from nfsd3d.loggers import table
from nfsd3d.loggers.tensorboard import TensorBoard
from nfsd3d.runs import preflight
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.train.run import train_and_export

SETTLED = ["prompt=a red cube", "machine=cpu", "backend=torch", "prior=shapes"]


def live(configure, tmp_path, finished=0, **settings):
    config = configure(**settings)
    return LiveRun(None, tmp_path, config, None, None, finished, Controls())


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(scalar.step, pytest.approx(scalar.value)) for scalar in events.Scalars(name)]


def test_tensorboard_gets_the_numbers_of_metrics(configure, console, tiny_prior):
    run_dir = train_and_export(configure(**OFF, **{"train.tensorboard": True}), console=console)
    lines = read_metrics(run_dir / "metrics.jsonl")
    for name in ("opacity", "grad_norm", "guidance_scale"):
        assert scalars(run_dir / "tensorboard", name) == [(line["step"], line[name]) for line in lines]


def test_repeated_steps_replace_the_former_ones(configure, tmp_path):
    logger = TensorBoard()
    logger.on_start(live(configure, tmp_path))
    for step in (1, 2, 3):
        logger.on_metrics(step, {"opacity": 0.1})
    logger.on_rollback(1, "diverged")
    logger.on_metrics(2, {"opacity": 0.5})
    logger.on_end({})
    assert scalars(tmp_path / "tensorboard", "opacity") == [(1, 0.1), (2, 0.5)]


def test_events_that_cannot_be_opened_leave_the_hook_as_it_was(configure, tmp_path):
    (tmp_path / "tensorboard").touch()
    hook, logger = threading.excepthook, TensorBoard()
    with pytest.raises(OSError, match="tensorboard"):
        logger.on_start(live(configure, tmp_path))
    logger.on_end({})
    assert threading.excepthook is hook


def test_a_full_disk_of_tensorboard_is_one_error_without_a_traceback(configure, tmp_path, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    hook, logger = threading.excepthook, TensorBoard()
    logger.on_start(live(configure, tmp_path, **{"train.steps": 99}))
    monkeypatch.setattr(RecordWriter, "write", write)
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 100):
            logger.on_metrics(step, {"opacity": 0.5})
    logger.on_end({})
    assert capsys.readouterr().err == "" and threading.excepthook is hook


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["tensorboard"]),
        (["train.tensorboard=false"], []),
        (["logger=wandb"], ["tensorboard", "wandb"]),
        (["logger=[wandb,mlflow]", "train.tensorboard=false"], ["wandb", "mlflow"]),
        (["logger=[tensorboard,mlflow]"], ["tensorboard", "mlflow"]),
        (["logger=null"], ["tensorboard"]),
        (["logger=[]"], ["tensorboard"]),
    ],
)
def test_the_settings_choose(overrides, names):
    config = compose("nfsd", [*SETTLED, *overrides])
    assert table.names_of(config.logger, config.train.tensorboard) == names


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=mlfow"], r"logger=mlfow: no such logger \(did you mean mlflow\?\)"),
        (["logger=wandb"], r"logger=wandb: wandb is not installed: pip install 'nfsd3d\[wandb\]', or leave it out"),
        (["train.tensorboard=true"], r"train.tensorboard=true: tensorboard is not installed: pip install tensorboard"),
    ],
)
def test_a_logger_that_is_missing_is_found_before_the_run_starts(overrides, message, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        preflight.check(compose("nfsd", [*SETTLED, "train.tensorboard=false", *overrides]))


def test_a_logger_of_another_package(configure, console, tiny_prior, monkeypatch):
    seen = []

    class Mine(Callback):
        def on_metrics(self, step, metrics):
            seen.append(step)

    table.register("mine", table.LoggerRow(Mine, "nfsd3d", "nothing"))
    try:
        train_and_export(configure(**OFF, logger="mine"), console=console)
    finally:
        table.unregister("mine")
    assert seen == [2, 4, 6]
