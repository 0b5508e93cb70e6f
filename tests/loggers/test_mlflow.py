"""MLflow with its default store, a SQLite file in the working directory, for real."""

import os
from pathlib import Path

import pytest
from tiny_runs import OFF

from nfsd3d.callbacks.callback import Callback
from nfsd3d.errors import RunFailed
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.train.run import train_and_export

pytest.importorskip("mlflow")

pytestmark = [
    pytest.mark.engines,
    pytest.mark.usefixtures("tiny_prior"),
    # MLflow's own, with SQLAlchemy 2.1: warnings are errors in these tests.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore:.*noload:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path):
    from mlflow import MlflowClient

    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return MlflowClient


def only_run(client):
    experiment = client().get_experiment_by_name("nfsd3d")
    (run,) = client().search_runs([experiment.experiment_id])
    return run


def history(client, run, name):
    return [(metric.step, metric.value) for metric in client().get_metric_history(run.info.run_id, name)]


def test_a_run_is_logged(configure, console, client, tmp_path):
    config = configure(**OFF | {"export.turntable": True}, logger="mlflow")
    run_dir = train_and_export(config, console=console)
    assert (tmp_path / "mlflow.db").is_file()
    run = only_run(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a red cube")
    assert run.data.params["train.steps"] == "6" and run.data.params["distill.method"] == '"nfsd"'
    assert len(run.data.params) > 100  # in several batches
    lines = read_metrics(run_dir / "metrics.jsonl")
    for name in ("opacity", "grad_norm", "guidance_scale"):
        assert history(client, run, name) == [(line["step"], line[name]) for line in lines]
    artifacts = {item.path for item in client().list_artifacts(run.info.run_id)}
    assert artifacts == {"previews", "turntable.mp4", "turntable.png"}
    assert len(client().list_artifacts(run.info.run_id, "previews")) == 2


class Failing(Callback):
    """Fails once."""

    def on_step(self, event):
        if event.step == 3:
            raise ValueError("once")


def test_a_run_that_fails_and_is_resumed_is_one_run(configure, console, client):
    config = configure(**OFF, logger="mlflow")
    with pytest.raises(RunFailed, match="once"):
        train_and_export(config, console=console, callbacks=[Failing()])
    assert only_run(client).info.status == "FAILED"
    train_and_export(config, resume=Path(config.run_dir), console=console)
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(client, run, "opacity")] == [2, 4, 6]


def test_the_active_run_of_a_notebook_stays(configure, console, client):
    import mlflow

    with mlflow.start_run(run_name="mine") as mine:
        train_and_export(configure(**OFF, logger="mlflow"), console=console)
        assert mlflow.active_run().info.run_id == mine.info.run_id
    assert only_run(client).info.run_id != mine.info.run_id
